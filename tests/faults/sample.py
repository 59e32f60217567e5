"""The repository that is deployed in the fault tests: a page in an image, its Deployment, Service and settings.

Small and quick on purpose: one replica on busybox, probed each second, gone two seconds after it was asked to go.
"""

import base64
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Sample:
    """Change its fields, then ``write`` it over a clone."""

    version: str = "1"  # of the settings, and unless page says otherwise of the page, which is in the image
    page: str = ""
    build: tuple[str, ...] = ()  # further instructions of the Dockerfile
    replicas: int | None = 1
    command: tuple[str, ...] = ()
    probe: str = "/"
    container: Json = field(default_factory=dict[str, Any])  # further fields of the container
    pod: Json = field(default_factory=dict[str, Any])  # further fields of the pod
    deadline: int = 20  # progressDeadlineSeconds
    port: int = 8000  # of the Service
    maps: dict[str, Json] = field(default_factory=dict[str, Json])  # further ConfigMaps: name → further fields
    objects: list[Json] = field(default_factory=list[Json])  # anything else
    folder: str = "manifests"

    def write(self, clone: Path) -> None:
        shutil.rmtree(clone / "web", ignore_errors=True)
        shutil.rmtree(clone / self.folder, ignore_errors=True)
        (clone / "web").mkdir()
        (clone / self.folder).mkdir(parents=True)
        (clone / "web/index.html").write_text(f"{self.page or self.version}\n")
        lines = [
            "FROM busybox",
            *self.build,
            "COPY index.html /www/index.html",
            'CMD ["httpd", "-f", "-p", "8000", "-h", "/www"]',
        ]
        (clone / "web/Dockerfile").write_text("\n".join(lines) + "\n")
        for number, obj in enumerate(self.manifests()):
            file = clone / self.folder / f"{number:02}-{obj['kind'].lower()}.yaml"
            file.write_text(json.dumps(obj, indent=1) + "\n")

    def manifests(self) -> list[Json]:
        settings = _map("settings", {"data": {"version": self.version}})
        return [settings, *(_map(name, more) for name, more in self.maps.items()), self._service(),
                self._deployment(), *self.objects]  # fmt: skip

    def _service(self) -> Json:
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": self.port, "targetPort": 8000}]},
        }

    def _deployment(self) -> Json:
        return deployment(
            "web",
            replicas=self.replicas,
            command=self.command,
            probe=self.probe,
            deadline=self.deadline,
            container=self.container,
            pod=self.pod,
        )


def deployment(
    name: str,
    *,
    replicas: int | None = 1,
    command: Sequence[str] = (),
    probe: str = "/",
    deadline: int = 20,
    container: Json | None = None,
    pod: Json | None = None,
) -> Json:
    """Runs the page. ``container`` and ``pod`` are further fields of theirs."""
    inside: Json = {
        "name": name,
        "image": "web",
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": probe, "port": 8000}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "2"]}}},
        "resources": {"requests": {"cpu": "5m", "memory": "8Mi"}},
    }
    inside |= ({"command": list(command)} if command else {}) | (container or {})
    spec: Json = {
        "progressDeadlineSeconds": deadline,
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 3, "containers": [inside]} | (pod or {}),
        },
    }
    spec |= {"replicas": replicas} if replicas is not None else {}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def incompressible(seed: int, *, characters: int = 700_000) -> str:
    """Text that stays three quarters of its size when it is compressed."""
    return base64.b64encode(random.Random(seed).randbytes(characters * 3 // 4)).decode()


def autoscaler(name: str = "web") -> Json:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": 3,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
                }
            ],
        },
    }


def _map(name: str, more: Json) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": "value"}} | more
