"""Label and field selectors as they stand in a query string. Pure."""

import re
from collections.abc import Callable
from typing import Any

from gitsync.sandbox.schema import at

Json = dict[str, Any]
Test = Callable[[Json], bool]

_TERM = re.compile(
    r"\s*(?:(?P<set>[^\s!=(),]+)\s+(?P<op>in|notin)\s*\((?P<values>[^)]*)\)"
    r"|(?P<key>[^\s!=(),]+)\s*(?P<equal>==|=|!=)\s*(?P<value>[^\s,()!=]*)"
    r"|(?P<absent>!)?\s*(?P<exists>[^\s!=(),]+))\s*(?:,|$)"
)
_FIELDS = {
    "Pod": {"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "status.phase",
            "status.podIP", "status.nominatedNodeName"},
    "Event": {f"involvedObject.{name}" for name in
              ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")}
             | {"reason", "reportingComponent", "source", "type"},
    "Secret": {"type"},
    "Namespace": {"status.phase"},
    "Job": {"status.successful"},
    "ReplicaSet": {"status.replicas"},
    "Node": {"spec.unschedulable"},
}  # fmt: skip


class BadSelector(Exception):
    """Not a selector, or a field that the kind cannot be selected by. The message is the API server's."""


def by_labels(text: str) -> Test:
    tests: list[tuple[str, str, set[str]]] = []
    begin = 0
    while begin < len(text):
        found = _TERM.match(text, begin)
        if found is None or found.end() == begin:
            raise BadSelector(f"unable to parse requirement: found '{text[begin:]}', expected: identifier")
        begin = found.end()
        if found["set"]:
            tests.append((found["set"], found["op"], {each.strip() for each in found["values"].split(",")}))
        elif found["key"]:
            tests.append((found["key"], "notin" if found["equal"] == "!=" else "in", {found["value"]}))
        else:
            tests.append((found["exists"], "absent" if found["absent"] else "exists", set()))

    def test(value: Json) -> bool:
        labels = at(value["metadata"], "labels")
        for key, operator, values in tests:
            present = key in labels
            if not {
                "in": present and labels.get(key) in values,
                "notin": not present or labels.get(key) not in values,
                "exists": present,
                "absent": not present,
            }[operator]:
                return False
        return True

    return test


def by_fields(text: str, kind: str) -> Test:
    tests: list[tuple[list[str], str, bool]] = []
    for term in filter(None, text.split(",")):
        found = re.fullmatch(r"\s*([\w.]+)\s*(==|=|!=)\s*(.*?)\s*", term)
        if found is None:
            raise BadSelector(f"invalid selector: '{term}'; can't understand '{term}'")
        if found[1] not in {"metadata.name", "metadata.namespace"} | _FIELDS.get(kind, set()):
            raise BadSelector(f"field label not supported: {found[1]}")
        tests.append((found[1].split("."), found[3], found[2] != "!="))

    def test(value: Json) -> bool:
        for path, wanted, equal in tests:
            node = at(value, *path[:-1]).get(path[-1])
            if (("" if node is None else str(node)) == wanted) is not equal:
                return False
        return True

    return test
