"""What kubectl reads before anything else: versions, groups, resources, OpenAPI for explain and validation. Pure."""

from typing import Any

from gitsync.sandbox.kinds import VERBS, Kinds, Resource
from gitsync.sandbox.schema import openapi

Json = dict[str, Any]

VERSION = "v1.34.0+gitsync.sandbox"
#: An empty OpenAPI v2 document in protobuf (swagger, info, paths): all that kubectl still asks of the old format.
OPENAPI_V2 = b"\x0a\x032.0\x12\x12\x0a\x0aKubernetes\x12\x041.34\x42\x00"
OPENAPI_V2_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_REFERENCE = "#/components/schemas/"


def document(path: str, kinds: Kinds) -> Json | None:
    """The document at a path, or ``None`` if there is none."""
    parts = path.strip("/").split("/")
    everything = kinds.all()
    if path == "/version":
        return {"major": "1", "minor": "34", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux"}  # fmt: skip
    if path == "/":
        return {"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups(everything)}
    if path == "/openapi/v3":
        versions = sorted({each.api_version for each in everything})
        places = [f"{'apis' if '/' in each else 'api'}/{each}" for each in versions]
        return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}}
    if parts[:2] == ["openapi", "v3"]:
        found = [
            each
            for each in everything
            if ["apis", each.group, each.version] == parts[2:]
            or (not each.group and ["api", each.version] == parts[2:])
        ]
        return _openapi(found) if found else None
    if parts[0] == "apis" and len(parts) == 2:
        return next((each for each in _groups(everything) if each["name"] == parts[1]), None)
    wanted = "/".join(parts[1:])
    found = [each for each in everything if each.api_version == wanted and (parts[0] == "api") == (not each.group)]
    return _resources(wanted, found) if found else None


def _groups(everything: list[Resource]) -> list[Json]:
    groups: dict[str, list[str]] = {}
    for each in everything:
        if each.group and each.version not in groups.setdefault(each.group, []):
            groups[each.group].append(each.version)
    found: list[Json] = []
    for group, versions in groups.items():
        entries = [{"groupVersion": f"{group}/{version}", "version": version} for version in versions]
        found.append(
            {"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": entries, "preferredVersion": entries[0]}
        )
    return found


def _resources(version: str, found: list[Resource]) -> Json:
    entries: list[Json] = []
    for each in found:
        entry: Json = {"name": each.plural, "singularName": each.singular, "namespaced": each.namespaced}
        entry |= {"kind": each.kind, "verbs": list(VERBS)}
        if each.short:
            entry["shortNames"] = list(each.short)
        if each.categories:
            entry["categories"] = list(each.categories)
        entries.append(entry)
        for name in sorted(each.subresources):
            sub: Json = {"name": f"{each.plural}/{name}", "singularName": "", "namespaced": each.namespaced}
            sub |= {"kind": each.kind, "verbs": ["get", "patch", "update"]}
            if name == "scale":
                sub |= {"group": "autoscaling", "version": "v1", "kind": "Scale"}
            elif name == "eviction":
                sub |= {"group": "policy", "version": "v1", "kind": "Eviction", "verbs": ["create"]}
            elif name == "log":
                sub |= {"verbs": ["get"]}
            elif name == "finalize":
                sub |= {"verbs": ["update"]}
            entries.append(sub)
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": entries}


def _openapi(found: list[Resource]) -> Json:
    """Schemas by kind, and the parameters by which kubectl learns what a PATCH understands."""
    schemas: dict[str, Json] = {}
    paths: Json = {}
    names = ("fieldManager", "fieldValidation", "dryRun", "force")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    for each in found:
        kind = {"group": each.group, "version": each.version, "kind": each.kind}
        shape = openapi(each.schema, schemas, _REFERENCE)
        name = each.schema.title or f"{each.group}.{each.version}.{each.kind}"
        schemas.setdefault(name, shape)["x-kubernetes-group-version-kind"] = [kind]
        root = f"/apis/{each.group}/{each.version}" if each.group else f"/api/{each.version}"
        place = f"{root}/namespaces/{{namespace}}/{each.plural}" if each.namespaced else f"{root}/{each.plural}"
        reference = {"content": {"application/json": {"schema": {"$ref": f"{_REFERENCE}{name}"}}}}
        common = {
            "parameters": parameters,
            "responses": {"200": {"description": "OK", **reference}},
            "x-kubernetes-group-version-kind": kind,
        }
        paths[place] = {
            "get": common | {"x-kubernetes-action": "list"},
            "post": common | {"x-kubernetes-action": "post"},
        }
        paths[f"{place}/{{name}}"] = {
            verb: common | {"x-kubernetes-action": action}
            for verb, action in (("get", "get"), ("put", "put"), ("patch", "patch"), ("delete", "delete"))
        }
    info = {"title": "Kubernetes", "version": VERSION}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}
