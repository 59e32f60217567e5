"""CustomResourceDefinitions: served at once, validated, defaulted, pruned, scaled, printed."""

import copy

import pytest

from tests.contract.applycases import WIDGET_DEFINITION, WIDGET_VERSION, WIDGETS
from tests.contract.client import MERGE, STRATEGIC, Api, Json
from tests.contract.test_apply_table import define_widgets

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def widget(name: str = "w", **spec: object) -> Json:
    return {"apiVersion": WIDGET_VERSION, "kind": "Widget", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
async def widgets(api: Api) -> str:
    await define_widgets(api)
    return api.path(WIDGET_VERSION, WIDGETS)


async def test_a_definition_becomes_established(api: Api, widgets: str) -> None:
    found = (await api.get(f"{DEFINITIONS}/widgets.contract.gitsync.dev")).body
    conditions = {each["type"]: each["status"] for each in found["status"]["conditions"]}
    assert (conditions["Established"], conditions["NamesAccepted"]) == ("True", "True")
    assert found["status"]["acceptedNames"]["listKind"] == "WidgetList"
    assert found["status"]["storedVersions"] == ["v1"]
    resources = {each["name"]: each for each in (await api.get(f"/apis/{WIDGET_VERSION}")).body["resources"]}
    assert (resources["widgets"]["kind"], resources["widgets"]["shortNames"]) == ("Widget", ["wd"])
    assert {"widgets/status", "widgets/scale"} <= set(resources)


async def test_defaults_and_pruning(api: Api, widgets: str) -> None:
    made = await api.post(widgets, widget(parts=[{"name": "a"}], unknown=1, free={"any": {"thing": 1}}))
    assert made.code == 201, made.text
    assert made.body["spec"] == {"size": 3, "parts": [{"name": "a", "weight": 1}], "free": {"any": {"thing": 1}}}
    assert made.body["metadata"]["generation"] == 1
    assert made.headers["Warning"] == '299 - "unknown field \\"spec.unknown\\""'
    strict = await api.post(widgets, widget("x", unknown=1), fieldValidation="Strict")
    assert (strict.code, strict.reason) == (400, "BadRequest")
    assert 'strict decoding error: unknown field "spec.unknown"' in strict.message


@pytest.mark.parametrize(
    ("spec", "reason", "field", "message"),
    [
        ({"size": 10}, "FieldValueInvalid", "spec.size", "should be less than or equal to 9"),
        ({"size": 0}, "FieldValueInvalid", "spec.size", "should be greater than or equal to 1"),
        ({"mode": "idle"}, "FieldValueNotSupported", "spec.mode", 'Unsupported value: "idle": supported values: "fast", "slow"'),  # noqa: E501
        ({"code": "A1"}, "FieldValueInvalid", "spec.code", "should match '^[a-z]+$'"),
        ({"title": "x" * 21}, "FieldValueTooLong", "spec.title", "Too long: may not be more than 20 bytes"),
        ({"size": "big"}, "FieldValueTypeInvalid", "spec.size", "must be of type integer"),
        ({"parts": [{"value": "1"}]}, "FieldValueRequired", "spec.parts[0].name", "Required value"),
        ({"tags": ["a", "a"]}, "FieldValueDuplicate", "spec.tags[1]", 'Duplicate value: "a"'),
        ({"parts": [{"name": "a"}, {"name": "a"}]}, "FieldValueDuplicate", "spec.parts[1]", 'Duplicate value: {"name":"a"}'),  # noqa: E501
    ],
)  # fmt: skip
async def test_the_schema_is_enforced(
    api: Api, widgets: str, spec: Json, reason: str, field: str, message: str
) -> None:
    answer = await api.post(widgets, widget(**spec))
    assert (answer.code, answer.reason) == (422, "Invalid"), answer.text
    causes = {cause["field"]: cause for cause in answer.body["details"]["causes"]}
    assert message in causes[field]["message"]
    assert causes[field]["reason"] == reason


async def test_status_and_scale(api: Api, widgets: str) -> None:
    await api.post(widgets, widget(size=2) | {"status": {"size": 2}})
    found = (await api.get(f"{widgets}/w")).body
    assert "status" not in found
    answer = await api.patch(f"{widgets}/w/status", {"status": {"size": 1, "note": "n"}, "spec": {"size": 9}}, MERGE)
    assert (answer.body["status"], answer.body["spec"]["size"]) == ({"size": 1, "note": "n"}, 2)
    assert answer.body["metadata"]["generation"] == 1
    answer = await api.patch(f"{widgets}/w", {"status": {"size": 5}, "spec": {"size": 4}}, MERGE)
    assert (answer.body["status"]["size"], answer.body["spec"]["size"]) == (1, 4)
    assert answer.body["metadata"]["generation"] == 2
    scale = (await api.get(f"{widgets}/w/scale")).body
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (4, 1)
    await api.patch(f"{widgets}/w/scale", {"spec": {"replicas": 5}}, MERGE)
    assert (await api.get(f"{widgets}/w")).body["spec"]["size"] == 5


async def test_printer_columns(api: Api, widgets: str) -> None:
    await api.post(widgets, widget(size=7))
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    answer = await api.request("GET", widgets, headers={"Accept": accept})
    assert [each["name"] for each in answer.body["columnDefinitions"]] == ["Name", "Size"]
    assert answer.body["rows"][0]["cells"] == ["w", 7]


async def test_no_strategic_merge_patch(api: Api, widgets: str) -> None:
    await api.post(widgets, widget())
    answer = await api.patch(f"{widgets}/w", {"spec": {}}, STRATEGIC)
    assert (answer.code, answer.reason) == (415, "UnsupportedMediaType")


async def test_a_definition_is_served_until_it_is_deleted(api: Api) -> None:
    definition = copy.deepcopy(WIDGET_DEFINITION)
    group = f"{api.namespace}.test"
    definition["metadata"]["name"] = f"gadgets.{group}"
    definition["spec"] |= {"group": group, "names": {"plural": "gadgets", "kind": "Gadget"}}
    path = api.path(f"{group}/v1", "gadgets")
    assert (await api.get(path)).code == 404
    made = await api.post(DEFINITIONS, definition)
    assert made.code == 201, made.text
    assert made.body["spec"]["names"]["singular"] == "gadget"
    while (await api.get(path)).code != 200:
        pass
    await api.delete(f"{DEFINITIONS}/gadgets.{group}")
    while (await api.get(path)).code != 404:
        pass


async def test_a_definition_without_a_schema_is_refused(api: Api) -> None:
    definition = copy.deepcopy(WIDGET_DEFINITION)
    definition["metadata"]["name"] = "other.contract.gitsync.dev"
    del definition["spec"]["versions"][0]["schema"]
    answer = await api.post(DEFINITIONS, definition)
    assert (answer.code, answer.reason) == (422, "Invalid")
    fields = [cause["field"] for cause in answer.body["details"]["causes"]]
    assert "metadata.name" in fields
    assert "spec.versions[0].schema.openAPIV3Schema" in fields
