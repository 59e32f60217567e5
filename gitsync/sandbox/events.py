"""Kubernetes Events as ``kubectl describe`` shows them: one object for each repeated fact, with a count."""

import hashlib

from gitsync.sandbox.registry import Options, Refusal, Registry, now
from gitsync.sandbox.store import Json

_KEPT = 2_000


def record(registry: Registry, about: Json, kind: str, reason: str, message: str, component: str) -> None:
    """Note a fact about an object; the same fact again raises the count. ``kind``: Normal or Warning."""
    metadata = about["metadata"]
    namespace = metadata.get("namespace") or "default"
    key = hashlib.sha256(f"{metadata['uid']} {kind} {reason} {message}".encode()).hexdigest()[:16]
    name = f"{metadata['name']}.{key}"
    events = registry.resource("events")
    options = Options(manager=component)
    stamp = now()
    try:
        if registry.store.get("events", namespace, name):
            registry.modify(
                events,
                namespace,
                name,
                lambda event: event | {"count": event.get("count", 1) + 1, "lastTimestamp": stamp},
                options,
            )
            return
        subject = {"kind": about["kind"], "apiVersion": about["apiVersion"], "name": metadata["name"]}
        subject |= {"uid": metadata["uid"], "resourceVersion": metadata.get("resourceVersion", "")}
        if metadata.get("namespace"):
            subject["namespace"] = namespace
        registry.create(
            events,
            namespace,
            {
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": subject,
                "type": kind,
                "reason": reason,
                "message": message[:1024],
                "source": {"component": component},
                "reportingComponent": component,
                "reportingInstance": "",
                "firstTimestamp": stamp,
                "lastTimestamp": stamp,
                "count": 1,
            },
            options,
        )
    except Refusal:
        return  # the namespace is gone or going: nobody will read it
    if registry.store.count("events") > _KEPT:
        oldest = min(registry.store.items("events"), key=lambda event: event.get("lastTimestamp") or "")
        registry.delete(events, oldest["metadata"]["namespace"], oldest["metadata"]["name"])
