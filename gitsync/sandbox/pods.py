"""From a pod's specification to what a container gets: environment, volumes, mounts, options. Reads the store, writes
only below the pod's own directory.
"""

import base64
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson

from gitsync.sandbox.rules import amount_of
from gitsync.sandbox.schema import at, many
from gitsync.sandbox.store import Json, Store

CAPACITY = {"cpu": str(os.cpu_count() or 1), "memory": str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))}
"""What the node has to give: the limit of a container that has none."""


class NotReady(Exception):
    """Something the pod refers to does not exist (yet); it is tried again. The message is the kubelet's."""


def field(pod: Json, path: str) -> str:
    """A ``fieldRef``: ``metadata.labels['app']``, ``status.podIP``, …"""
    found = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if found:
        return str(at(pod["metadata"], found[1]).get(found[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        values = at(pod["metadata"], path.partition(".")[2])
        return "".join(f"{key}={orjson.dumps(values[key]).decode()}\n" for key in sorted(values))
    node: Any = pod
    for part in path.split("."):
        node = cast("Json", node).get(part, "") if isinstance(node, dict) else ""
    return str(node)


def _amount(container: Json, reference: Json) -> str:
    """A ``resourceFieldRef``: ``limits.memory`` in units of its divisor, rounded up. A divisor of 0 stands for 1."""
    what, _, name = reference["resource"].partition(".")
    absent = CAPACITY.get(name, "0") if what == "limits" else "0"
    amount = amount_of(str(at(container, "resources", what).get(name, absent)))
    return str(math.ceil(round(amount / (amount_of(str(reference.get("divisor", "1"))) or 1), 6)))


def _content(store: Store, kind: str, namespace: str, name: str) -> dict[str, bytes] | None:
    value = store.get(kind, namespace, name)
    if value is None:
        return None
    found = {key: base64.b64decode(each) for key, each in at(value, "binaryData").items()}
    for key, each in at(value, "data").items():
        found[key] = base64.b64decode(each) if kind == "secrets" else str(each).encode()
    return found


def _source(store: Store, kind: str, namespace: str, reference: Json) -> dict[str, bytes]:
    name = reference.get("name") or reference.get("secretName") or ""
    found = _content(store, kind, namespace, name)
    if found is None:
        if reference.get("optional"):
            return {}
        raise NotReady(f'{kind.removesuffix("s")} "{name}" not found')
    return found


def environment(store: Store, pod: Json, container: Json, services: Mapping[str, str]) -> dict[str, str]:
    """All variables of a container; ``services`` are those that Services add, which its own override."""
    namespace = pod["metadata"]["namespace"]
    env = dict(services)
    for each in many(container, "envFrom"):
        for source, kind in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if reference := each.get(source):
                for key, content in _source(store, kind, namespace, reference).items():
                    env[each.get("prefix", "") + key] = content.decode(errors="replace")
    for each in many(container, "env"):
        source = at(each, "valueFrom")
        value: str | None = each.get("value", "")
        for name, kind in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
            if reference := source.get(name):
                content = _source(store, kind, namespace, reference)
                if reference["key"] not in content and not reference.get("optional"):
                    title = "ConfigMap" if kind == "configmaps" else "Secret"
                    raise NotReady(f"couldn't find key {reference['key']} in {title} {namespace}/{reference['name']}")
                found = content.get(reference["key"])
                value = None if found is None else found.decode(errors="replace")
        if reference := source.get("fieldRef"):
            value = field(pod, reference["fieldPath"])
        if reference := source.get("resourceFieldRef"):
            value = _amount(container, reference)
        if value is not None:
            env[each["name"]] = value if source else expand(value, env)
    return env


def expand(text: str, env: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced where NAME is known; ``$$(NAME)`` is the literal."""

    def one(found: re.Match[str]) -> str:
        if found[0].startswith("$$"):
            return found[0][1:]
        return env.get(found[1], found[0])

    return re.sub(r"\$?\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)", one, text)


def volumes(store: Store, pod: Json, root: Path) -> dict[str, Path]:
    """Make every volume of a pod below ``root``; returns where each is on this machine."""
    namespace = pod["metadata"]["namespace"]
    containers = {each["name"]: each for group in ("initContainers", "containers") for each in many(pod["spec"], group)}
    group: int | None = at(pod["spec"], "securityContext").get("fsGroup")
    found: dict[str, Path] = {}
    for volume in many(pod["spec"], "volumes"):
        place = root / volume["name"]
        found[volume["name"]] = place
        files: dict[str, tuple[bytes, int]] = {}
        sources = at(volume, "projected").get("sources") or [volume]
        known = False
        for source in sources:
            for name, kind in (("configMap", "configmaps"), ("secret", "secrets")):
                if reference := source.get(name):
                    known = True
                    mode = reference.get("defaultMode") or at(volume, "projected").get("defaultMode") or 0o644
                    files |= _chosen(_source(store, kind, namespace, reference), reference, mode)
            if reference := source.get("downwardAPI"):
                known = True
                for item in many(reference, "items"):
                    if "fieldRef" in item:
                        text = field(pod, item["fieldRef"]["fieldPath"])
                    else:
                        amount = item["resourceFieldRef"]
                        text = _amount(containers.get(amount.get("containerName", ""), {}), amount)
                    files[item["path"]] = (text.encode(), reference.get("defaultMode", 0o644))
        if known:
            _write(place, files, group)
        elif "emptyDir" in volume:
            place.mkdir(parents=True, exist_ok=True)
            _share(place, 0o777, group)
        elif "hostPath" in volume:
            found[volume["name"]] = Path(volume["hostPath"]["path"])
        else:
            kinds = ", ".join(key for key in volume if key != "name")
            raise NotReady(f'volume "{volume["name"]}": the sandbox has no {kinds}')
    return found


def _chosen(content: dict[str, bytes], reference: Json, mode: int) -> dict[str, tuple[bytes, int]]:
    items = reference.get("items")
    if not items:
        return {key: (each, mode) for key, each in content.items()}
    missing = [item["key"] for item in items if item["key"] not in content]
    if missing and not reference.get("optional"):
        raise NotReady(f"references non-existent config key: {missing[0]}")
    return {item["path"]: (content[item["key"]], item.get("mode", mode)) for item in items if item["key"] in content}


def _share(path: Path, mode: int, group: int | None) -> None:
    """Set the mode of a file or directory; the pod's ``fsGroup`` has it and may read it."""
    if group is not None:
        mode |= 0o440
        try:
            os.chown(path, -1, group)
        except PermissionError:  # the engine is no root here, and the group is none of ours
            mode |= 0o004
    path.chmod(mode)


def _write(place: Path, files: Mapping[str, tuple[bytes, int]], group: int | None) -> None:
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o755)
    for name, (content, mode) in files.items():
        path = place / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise NotReady(f"invalid path in a volume: {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.new")
        scratch.write_bytes(content)
        _share(scratch, mode, group)
        scratch.replace(path)
    for path in place.rglob("*"):
        if path.is_file() and str(path.relative_to(place)) not in files:
            path.unlink()


def mounts(container: Json, places: Mapping[str, Path], env: Mapping[str, str]) -> list[str]:
    """``--volume`` options. ``env``: the container's variables, which a ``subPathExpr`` names."""
    args: list[str] = []
    for mount in many(container, "volumeMounts"):
        source = places[mount["name"]]
        if sub := mount.get("subPath") or expand(mount.get("subPathExpr", ""), env):
            source = source / sub
            if not source.exists():
                source.mkdir(parents=True)
        option = "ro" if mount.get("readOnly") else "rw"
        args += ["--volume", f"{source}:{mount['mountPath']}:{option}"]
    return args


def security(pod: Json, container: Json) -> list[str]:
    """Options for users, rights and limits."""
    context = at(pod["spec"], "securityContext") | at(container, "securityContext")
    args: list[str] = []
    if "runAsUser" in context:
        group = f":{context['runAsGroup']}" if "runAsGroup" in context else ""
        args += ["--user", f"{context['runAsUser']}{group}"]
    own = [context["fsGroup"]] if "fsGroup" in context else []
    for group in [*own, *many(context, "supplementalGroups")]:
        args += ["--group-add", str(group)]
    if context.get("readOnlyRootFilesystem"):
        args += ["--read-only"]
    if context.get("privileged"):
        args += ["--privileged"]
    if context.get("allowPrivilegeEscalation") is False:
        args += ["--security-opt", "no-new-privileges"]
    capabilities = at(context, "capabilities")
    for what in ("drop", "add"):
        for each in many(capabilities, what):
            args += [f"--cap-{what}", each]
    limits = at(container, "resources", "limits")
    if "memory" in limits:
        args += ["--memory", str(max(int(amount_of(limits["memory"])), 8 << 20))]
    if "cpu" in limits:
        args += ["--cpus", f"{min(amount_of(limits['cpu']), os.cpu_count() or 1):.3f}"]
    return args


def secret_environment(env: Mapping[str, str], directory: Path) -> tuple[list[str], dict[str, str]]:
    """Options that pass an environment without showing it in a process list, and what the engine's own must hold."""
    simple = {key: each for key, each in env.items() if "\n" not in each}
    path = directory / "environment"
    path.touch(mode=0o600)
    path.write_text("".join(f"{key}={each}\n" for key, each in simple.items()))
    rest = {key: each for key, each in env.items() if key not in simple}
    args = ["--env-file", str(path)]
    for key in rest:
        args += ["--env", key]
    return args, rest


def logins(store: Store, pod: Json, directory: Path) -> Path | None:
    """A directory with the docker ``config.json`` of the pod's imagePullSecrets, if it has any that exist."""
    auths: Json = {}
    for reference in many(pod["spec"], "imagePullSecrets"):
        content = _content(store, "secrets", pod["metadata"]["namespace"], reference.get("name", "")) or {}
        if raw := content.get(".dockerconfigjson"):
            auths |= orjson.loads(raw).get("auths", {})
        elif raw := content.get(".dockercfg"):
            auths |= orjson.loads(raw)
    if not auths:
        return None
    place = directory / "login"
    place.mkdir(mode=0o700, exist_ok=True)
    path = place / "config.json"
    path.touch(mode=0o600)
    path.write_bytes(orjson.dumps({"auths": auths}))
    return place


def remove_tree(path: Path) -> None:
    """Also what containers wrote there; never follows a link out of it."""
    shutil.rmtree(path, ignore_errors=True)
