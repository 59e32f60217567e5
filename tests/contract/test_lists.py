"""Lists and watches: selectors, pages, tables, events in order, bookmarks, versions that are gone."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.contract.client import Api, Json


async def make(api: Api, name: str, **labels: str) -> Json:
    body = {"metadata": {"name": name, "labels": labels | {"test": "yes"}}, "data": {"k": "v"}}
    return (await api.post(api.path("v1", "configmaps"), body)).body


def names(items: list[Json]) -> list[str]:
    return [each["metadata"]["name"] for each in items]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("tier=web", ["a"]),
        ("tier==web", ["a"]),
        ("tier!=web", ["b", "c"]),
        ("tier", ["a", "b"]),
        ("!tier", ["c"]),
        ("tier in (web, db)", ["a", "b"]),
        ("tier notin (web)", ["b", "c"]),
        ("tier=web,size=big", ["a"]),
        ("tier=db,size=big", []),
    ],
)
async def test_label_selectors(api: Api, selector: str, expected: list[str]) -> None:
    await make(api, "a", tier="web", size="big")
    await make(api, "b", tier="db")
    await make(api, "c")
    found = await api.get(api.path("v1", "configmaps"), labelSelector=f"test=yes,{selector}")
    assert names(found.body["items"]) == expected


async def test_a_selector_that_cannot_be_read_is_a_bad_request(api: Api) -> None:
    for query in ({"labelSelector": "a in ("}, {"fieldSelector": "data.k=v"}, {"fieldSelector": "nonsense"}):
        answer = await api.get(api.path("v1", "configmaps"), **query)
        assert (answer.code, answer.reason) == (400, "BadRequest"), query


async def test_field_selectors(api: Api) -> None:
    await make(api, "a")
    await make(api, "b")
    found = await api.get(api.path("v1", "configmaps"), fieldSelector="metadata.name=b")
    assert names(found.body["items"]) == ["b"]
    found = await api.get(api.path("v1", "configmaps"), fieldSelector="metadata.name!=b", labelSelector="test=yes")
    assert names(found.body["items"]) == ["a"]


async def test_a_list_has_a_kind_and_a_version(api: Api) -> None:
    await make(api, "a")
    found = (await api.get(api.path("v1", "configmaps"), labelSelector="test")).body
    assert (found["kind"], found["apiVersion"]) == ("ConfigMapList", "v1")
    assert int(found["metadata"]["resourceVersion"]) > 0
    assert "kind" not in found["items"][0]


async def test_pages_show_every_object_once(api: Api) -> None:
    for index in range(7):
        await make(api, f"n{index}")
    seen: list[str] = []
    query = {"limit": "3", "labelSelector": "test=yes"}
    first = (await api.get(api.path("v1", "configmaps"), **query)).body
    seen += names(first["items"])
    await make(api, "late")  # a page shows the list as it was
    page = first
    while token := page["metadata"].get("continue"):
        answer = await api.get(api.path("v1", "configmaps"), **query, **{"continue": token})
        page = answer.body
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        seen += names(page["items"])
    assert seen == [f"n{index}" for index in range(7)]


async def test_a_table_for_kubectl(api: Api) -> None:
    await make(api, "a")
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    answer = await api.request("GET", api.path("v1", "configmaps", "a"), headers={"Accept": accept})
    assert answer.body["kind"] == "Table"
    assert [each["name"] for each in answer.body["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert answer.body["rows"][0]["cells"][:2] == ["a", 1]
    assert answer.body["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


async def take(events: AsyncIterator[Json], count: int) -> list[Json]:
    async with asyncio.timeout(20):
        return [await anext(events) for _ in range(count)]


async def test_a_watch_continues_where_a_list_ended(api: Api) -> None:
    path = api.path("v1", "configmaps")
    await make(api, "before")
    version = (await api.get(path)).body["metadata"]["resourceVersion"]
    async with api.watch(path, resourceVersion=version, labelSelector="test=yes") as events:
        await make(api, "a")
        await api.patch(f"{path}/a", {"data": {"k": "w"}})
        await api.delete(f"{path}/a")
        found = await take(events, 3)
    assert [each["type"] for each in found] == ["ADDED", "MODIFIED", "DELETED"]
    assert found[1]["object"]["data"] == {"k": "w"}
    assert found[0]["object"]["kind"] == "ConfigMap"
    versions = [int(each["object"]["metadata"]["resourceVersion"]) for each in found]
    assert versions == sorted(set(versions))
    async with api.watch(path, resourceVersion=str(versions[0]), labelSelector="test=yes") as events:
        assert [each["type"] for each in await take(events, 2)] == ["MODIFIED", "DELETED"]


async def test_a_watch_without_a_version_begins_with_what_is_there(api: Api) -> None:
    await make(api, "a")
    async with api.watch(api.path("v1", "configmaps"), labelSelector="test=yes") as events:
        [first] = await take(events, 1)
    assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "a")


async def test_an_object_that_leaves_a_selection_is_deleted_for_the_watch(api: Api) -> None:
    path = api.path("v1", "configmaps")
    version = (await api.get(path)).body["metadata"]["resourceVersion"]
    async with api.watch(path, resourceVersion=version, labelSelector="team=x") as events:
        await make(api, "a", team="x")
        await api.patch(f"{path}/a", {"metadata": {"labels": {"team": "y"}}})
        await api.patch(f"{path}/a", {"metadata": {"labels": {"team": "x"}}})
        found = await take(events, 3)
    assert [each["type"] for each in found] == ["ADDED", "DELETED", "ADDED"]
    assert (await api.get(f"{path}/a")).code == 200


async def test_a_watch_ends_after_its_time(api: Api) -> None:
    path = api.path("v1", "configmaps")
    version = (await api.get(path)).body["metadata"]["resourceVersion"]
    async with api.watch(path, resourceVersion=version, timeoutSeconds="1", labelSelector="test=yes") as events:
        async with asyncio.timeout(20):
            assert [each async for each in events] == []


async def test_initial_events_end_with_a_bookmark(api: Api) -> None:
    await make(api, "a")
    query = {"sendInitialEvents": "true", "allowWatchBookmarks": "true", "resourceVersionMatch": "NotOlderThan"}
    async with api.watch(api.path("v1", "configmaps"), labelSelector="test=yes", **query) as events:
        added, mark = await take(events, 2)
    assert (added["type"], mark["type"]) == ("ADDED", "BOOKMARK")
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_a_version_that_is_no_number_is_refused(api: Api) -> None:
    answer = await api.get(api.path("v1", "configmaps"), watch="1", resourceVersion="yesterday")
    assert answer.code == 500
    assert 'resourceVersion: Invalid value: "yesterday"' in answer.message


async def test_an_old_version_is_gone(api: Api) -> None:
    """On a real server version 1 is older than any watch cache; etcd compacts what the cache does not hold."""
    answer = await api.get(api.path("v1", "configmaps"), **{"continue": "bm90IGEgdG9rZW4", "limit": "1"})
    assert answer.code in (400, 410)
