"""Manifests and live objects from YAML, for the tests of this folder."""

import copy
from typing import Any

import yaml

from gitsync.model import LABEL_APPLICATION, LABEL_NAMESPACE, Desired, InventoryItem, Json, Manifest, ObjectRef, Origin
from gitsync.model import Revision as _Revision

REVISION = _Revision(repository="https://git.example.com/shop.git", ref="main", sha="1" * 40)
OWNER = "prod/shop"


def manifest(obj: Json, line: int = 1) -> Manifest:
    origin = Origin(repository=REVISION.repository, sha=REVISION.sha, file="app.yaml", line=line)
    return Manifest(ref=ObjectRef.of(obj), object=obj, origin=origin)


def objects(text: str) -> list[Json]:
    return [obj for obj in yaml.safe_load_all(text) if obj]


def desired(text: str) -> Desired:
    return Desired(revision=REVISION, manifests=tuple(manifest(obj, line) for line, obj in enumerate(objects(text), 1)))


def as_live(obj: Json, owner: str = OWNER, **metadata: Any) -> Json:
    """As the cluster would answer it, applied by ``owner`` ("" for nobody)."""
    live = copy.deepcopy(obj)
    ref = ObjectRef.of(obj)
    meta: Json = live["metadata"]
    meta.update({"uid": f"uid-{ref.kind}-{ref.name}", "resourceVersion": "1"} | metadata)
    if owner:
        namespace, name = owner.split("/")
        meta["labels"] = (meta.get("labels") or {}) | {LABEL_APPLICATION: name, LABEL_NAMESPACE: namespace}
    return live


def cluster(text: str, owner: str = OWNER) -> dict[tuple[str, str, str, str], Json]:
    return {ObjectRef.of(obj).key: as_live(obj, owner) for obj in objects(text)}


def inventory(live: dict[tuple[str, str, str, str], Json]) -> list[InventoryItem]:
    return [InventoryItem(ref=ObjectRef.of(obj), uid=obj["metadata"]["uid"]) for obj in live.values()]
