"""What the API server, or something that stands in for it, may answer; and what must never be concluded from it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from gitsync.cluster import client as module
from gitsync.cluster.answers import Conflict, Expired, Forbidden, NoKind, Rejected
from gitsync.cluster.client import Access, Cluster
from gitsync.errors import GitsyncError, Transient, Waiting
from gitsync.model import Json, ObjectRef
from tests.unit.cluster.faults import (
    Handler,
    Request,
    Server,
    answering,
    bookmark,
    config_map,
    event,
    failure,
    faulty,
    listing,
)

REF = ObjectRef(version="v1", kind="ConfigMap", namespace="shop", name="c")
#: What a Kubernetes API server says when a right is missing,
NO_RIGHT = (
    'deployments.apps "web" is forbidden: User "system:serviceaccount:rights:web" cannot patch resource "deployments" '
    'in API group "apps" in the namespace "rights": RBAC: role.rbac.authorization.k8s.io "nowhere" not found',
    'services is forbidden: User "system:serviceaccount:rights:web" cannot list resource "services" in API group "" '
    'in the namespace "rights"',
    'clusterroles.rbac.authorization.k8s.io "system:x" is forbidden: User "system:serviceaccount:rights:web" cannot '
    'patch resource "clusterroles" in API group "rbac.authorization.k8s.io" at the cluster scope',
    'serviceaccounts "default" is forbidden: User "system:serviceaccount:rights:web" cannot impersonate resource '
    '"serviceaccounts" in API group "" in the namespace "rights"',
    'rolebindings.rbac.authorization.k8s.io "x" is forbidden: user "system:serviceaccount:rights:web" '
    '(groups=["system:serviceaccounts" "system:authenticated"]) is attempting to grant RBAC permissions not currently '
    'held:\n{APIGroups:[""], Resources:["bindings"], Verbs:["get" "list" "watch"]}',
)
#: and when it has looked at the object.
DENIED = (
    'pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container '
    '"a" must set securityContext.allowPrivilegeEscalation=false)',
    "configmaps \"bad\" is forbidden: ValidatingAdmissionPolicy 'no-maps' with binding 'no-maps' denied request: "
    'User "x" cannot patch resource "configmaps"',
    'admission webhook "rights.example.org" denied the request: configmaps "c" is forbidden: User "x" cannot patch '
    'resource "configmaps" in API group ""',
    "no rights",
)
SENT: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}}


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Server, Cluster]]:
    async with faulty() as both:
        yield both


async def names(cluster: Cluster, limit: int = 2) -> list[str]:
    resource = await cluster.resource("", "v1", "ConfigMap")
    return [item["metadata"]["name"] for item in (await cluster.list(resource, namespace="shop", limit=limit)).items]


async def html(request: Request) -> None:
    await request.answer(b"<html>Bad gateway</html>", 503, "text/html")


async def ok(request: Request) -> None:
    await request.answer(config_map("c", 5))


async def reset(request: Request) -> None:
    request.reset()


async def silence(request: Request) -> None:
    await asyncio.sleep(30)


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (404, failure(404, "NotFound", kind="namespaces", name="shop"), Waiting, "NamespaceNotFound"),
        (404, failure(404, "NotFound", kind="roles", name="r"), Waiting, "NotFound"),
        (404, b"404 page not found", NoKind, "NoKind"),
        (404, {"kind": "Error", "details": {"name": "c", "kind": "configmaps"}}, NoKind, "NoKind"),  # no Status
        (409, failure(409, "Conflict"), Conflict, "Conflict"),
        (409, failure(409, "AlreadyExists"), Conflict, "AlreadyExists"),
        (410, failure(410, "Expired"), Expired, "Expired"),
        (400, failure(400, "BadRequest"), Rejected, "Refused"),
        (500, failure(500, "InternalError", "etcdserver: request timed out"), Transient, "InternalError"),
        *((403, failure(403, "Forbidden", text), Forbidden, "Forbidden") for text in NO_RIGHT),
        *((403, failure(403, "Forbidden", text), Rejected, "Forbidden") for text in DENIED),
        (403, failure(403, "Forbidden", "exceeded quota: q"), Waiting, "QuotaExceeded"),
        (
            403,
            failure(403, "Forbidden", causes=[{"reason": "NamespaceTerminating"}]),
            Waiting,
            "NamespaceTerminating",
        ),
        (422, failure(422, "Invalid"), Rejected, "Refused"),
        (400, b"a proxy speaks", Transient, "Unavailable"),
        (403, b"a proxy speaks", Transient, "Unavailable"),
        (302, b"", Transient, "Unavailable"),
    ],
)
async def test_each_status_has_its_class(
    pair: tuple[Server, Cluster], status: int, body: Json | bytes, kind: type[GitsyncError], reason: str
) -> None:
    server, cluster = pair
    content = "text/plain" if isinstance(body, bytes) else "application/json"

    async def answer(request: Request) -> None:
        await request.answer(body, status, content, Location="http://127.0.0.1:1/")

    server.script(answer)
    with pytest.raises(kind) as caught:
        await cluster.create(SENT)
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert caught.value.ref == REF
    assert len(server.requests) == 1  # a create is never repeated, a redirect never followed


async def test_an_html_page_is_never_an_absent_object_or_kind(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair

    async def page(request: Request) -> None:
        await request.answer(b"<html>Not here</html>", 404, "text/html")

    server.script(page)
    with pytest.raises(Transient, match="text/html"):
        await cluster.get(REF, deadline=1.0)
    server.script(page, silence)
    with pytest.raises(Transient, match="text/html"):  # that time ran out then says less
        await cluster.get(REF, deadline=1.0)


async def test_bad_luck_is_retried_and_bodies_are_repeated(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    server.script(html, reset, ok)
    applied = await cluster.apply(SENT)
    assert applied.resource_version == "5"
    assert len({request.body for request in server.requests}) == 1
    assert [request.method for request in server.requests] == ["PATCH"] * 3
    assert server.requests[0].headers["content-type"] == "application/apply-patch+yaml"
    assert server.requests[0].query["fieldValidation"] == "Strict"


async def test_retry_after_is_honoured_even_for_what_is_never_retried(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair

    async def busy(request: Request) -> None:
        await request.answer(failure(429, "TooManyRequests"), 429, Retry_After="0.3")

    server.script(busy, ok)
    began = time.monotonic()
    await cluster.create(SENT)
    assert time.monotonic() - began >= 0.3

    async def busier(request: Request) -> None:
        await request.answer(failure(429, "TooManyRequests"), 429, Retry_After="50")

    server.script(busier)
    with pytest.raises(Waiting) as caught:
        await cluster.create(SENT, deadline=10)
    assert caught.value.retry_after == 50

    async def for_ever(request: Request) -> None:
        await request.answer(failure(429, "TooManyRequests"), 429, Retry_After="86400")

    server.script(for_ever)
    with pytest.raises(Waiting) as caught:
        await cluster.create(SENT, deadline=10)
    assert caught.value.retry_after == 60


async def test_a_silent_server_costs_the_deadline_and_no_more(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    await cluster.resource("", "v1", "ConfigMap")
    server.script(silence)
    began = time.monotonic()
    with pytest.raises(Transient) as caught:
        await cluster.get(REF, deadline=0.3)
    assert caught.value.reason == "Timeout"
    assert time.monotonic() - began < 5


async def test_nobody_listening_is_unreachable() -> None:
    async with Cluster(Access(host="http://127.0.0.1:1")) as cluster:
        with pytest.raises(Transient) as caught:
            await cluster.get(REF, deadline=1.0)
    assert caught.value.reason == "Unreachable"


async def test_an_answer_has_a_bound(pair: tuple[Server, Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    server, cluster = pair
    monkeypatch.setattr(module, "PAGE_LIMIT", 1000)

    async def endless(request: Request) -> None:
        await request.begin()
        while True:
            await request.send(b"x" * 500)

    server.script(endless)
    with pytest.raises(Transient, match="bound"):
        await names(cluster)


async def test_a_refusal_has_a_bound(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    server.script(lambda request: request.answer(b"x" * (module.ERROR_LIMIT + 1), 422, "text/plain"))
    with pytest.raises(Transient, match="bound"):
        await cluster.create(SENT)


# ---------------------------------------------------------------- lists


async def test_pages_make_one_list(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    server.script(
        lambda request: request.answer(listing(5, config_map("a", 1), token="next")),
        lambda request: request.answer(listing(5, config_map("b", 2))),
    )
    assert await names(cluster) == ["a", "b"]
    assert server.requests[1].query == {"limit": "2", "continue": "next"}


async def test_a_token_that_expires_starts_the_list_again(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    server.script(
        lambda request: request.answer(listing(5, config_map("a", 1), token="next")),
        lambda request: request.answer(failure(410, "Expired"), 410),
        lambda request: request.answer(listing(9, config_map("b", 2), config_map("c", 3))),
    )
    assert await names(cluster) == ["b", "c"]
    assert server.requests[2].query == {}  # in one piece


@pytest.mark.parametrize(
    "second",
    [
        b"",
        b"{",
        b"<html>",
        b'{"kind":"Status","metadata":{}}',
        b'{"kind":"ConfigMapList","metadata":{},"items":[]}',
        b'{"kind":"ConfigMapList","metadata":{"resourceVersion":"5"},"items":{}}',
    ],
)
async def test_a_partial_list_is_an_error(pair: tuple[Server, Cluster], second: bytes) -> None:
    server, cluster = pair
    server.script(
        lambda request: request.answer(listing(5, config_map("a", 1), token="next")),
        lambda request: request.answer(second),
    )
    with pytest.raises(Transient):
        await names(cluster)


async def test_a_list_cut_off_in_the_middle_is_read_again(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair

    async def half(request: Request) -> None:
        await request.begin()
        await request.send(b'{"kind":"ConfigMapList","items":[')
        request.reset()

    server.script(half, lambda request: request.answer(listing(5, config_map("a", 1))))
    assert await names(cluster) == ["a"]


# ---------------------------------------------------------------- watches


async def watched(cluster: Cluster, window: float = 1, grace: float = 1) -> list[str]:
    resource = await cluster.resource("", "v1", "ConfigMap")
    seen: list[str] = []
    async with aclosing(cluster.watch(resource, resource_version="5", window=window, grace=grace)) as events:
        async for each in events:
            seen.append(each.type)  # noqa: PERF401 - what came before an error counts
    return seen


async def test_events_are_split_wherever_the_bytes_are(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair

    async def answer(request: Request) -> None:
        text = b"".join(json.dumps(event("ADDED", config_map(str(n), n))).encode() + b"\n" for n in range(20))
        await request.begin()
        for at in range(0, len(text), 7):
            await request.send(text[at : at + 7])
        await request.end()

    server.script(answer)
    assert await watched(cluster, window=10) == ["ADDED"] * 20
    assert server.requests[0].query["allowWatchBookmarks"] == "true"


async def test_a_line_cut_short_is_no_event(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair

    async def answer(request: Request) -> None:
        await request.begin()
        await request.events(bookmark(6))
        await request.send(b'{"type":"DELETED","object":{"metadata":{"name":"a"')
        await request.end()

    server.script(answer)
    assert await watched(cluster) == ["BOOKMARK"]


async def test_an_event_has_a_bound(pair: tuple[Server, Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    server, cluster = pair
    monkeypatch.setattr(module, "OBJECT_LIMIT", 1000)

    async def endless(request: Request) -> None:
        await request.begin()
        while True:
            await request.send(b"x" * 500)

    server.script(endless)
    with pytest.raises(Transient, match="larger than 1000"):
        await watched(cluster)


async def test_a_watch_follows_no_redirect(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    server.script(lambda request: request.answer(b"", 302, Location=f"{server.url}/api/v1/elsewhere"), ok)
    with pytest.raises(Transient):
        await watched(cluster)
    assert len(server.requests) == 1


async def test_silence_is_noticed(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair

    async def answer(request: Request) -> None:
        await request.begin()
        await asyncio.sleep(30)

    server.script(answer)
    with pytest.raises(Transient) as caught:
        await watched(cluster, window=0.2, grace=0.2)
    assert caught.value.reason == "Silent"


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (html, Transient),
        (reset, Transient),
        (answering(b"<html>", 200, "text/html"), Transient),
        (answering(failure(410, "Expired"), 410), Expired),
        (answering(b'{"type":"ERROR","object":{"code":410,"kind":"Status"}}\n'), Expired),
        (answering(b'{"type":"ERROR","object":{"code":500,"kind":"Status"}}\n'), Transient),
        (answering(b"garbage\n"), Transient),
        (answering(failure(429, "TooManyRequests"), 429), Waiting),
    ],
)
async def test_a_watch_that_fails_says_how(
    pair: tuple[Server, Cluster], handler: Handler, kind: type[GitsyncError]
) -> None:
    server, cluster = pair
    server.script(handler)
    with pytest.raises(kind) as caught:
        await watched(cluster)
    assert type(caught.value) is kind


# ---------------------------------------------------------------- credentials, guard, secrets


async def test_a_refused_token_is_read_again_once() -> None:
    tokens = iter(["Bearer old", "Bearer new", "Bearer newer"])

    async def authorization() -> str:
        return next(tokens)

    async with faulty() as (server, _):

        async def check(request: Request) -> None:
            if request.headers.get("authorization") == "Bearer new":
                await ok(request)
            else:
                await request.answer(failure(401, "Unauthorized"), 401)

        server.script(check)
        async with Cluster(Access(host=server.url, authorization=authorization)) as cluster:
            await cluster.create(SENT)
            server.script(lambda request: request.answer(failure(401, "Unauthorized"), 401))
            with pytest.raises(Transient) as caught:
                await cluster.create(SENT)
    assert caught.value.reason == "Unauthorized"
    assert "newer" not in str(caught.value)


async def test_the_guard_stops_every_write_and_no_read(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    server.script(ok)

    def guard() -> None:
        raise Transient("not the leader")

    cluster.guard = guard
    assert await cluster.get(REF)
    await cluster.apply(SENT, dry_run=True)
    before = len(server.requests)
    for write in (
        cluster.apply(SENT),
        cluster.create(SENT),
        cluster.update(SENT),
        cluster.patch(REF, {}),
        cluster.delete(REF, "uid"),
        cluster.patch_status(REF, {}),
    ):
        with pytest.raises(Transient, match="leader"):
            await write
    assert len(server.requests) == before


async def test_every_write_is_made_as_the_account_that_it_is_for(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    server.script(ok)
    user = "system:serviceaccount:shop:deployer"
    for call in (
        cluster.apply(SENT, impersonate=user),
        cluster.apply(SENT, dry_run=True, impersonate=user),
        cluster.create(SENT, impersonate=user),
        cluster.update(SENT, impersonate=user),
        cluster.patch(REF, {}, impersonate=user),
        cluster.delete(REF, "uid", impersonate=user),
    ):
        await call
    assert {request.headers.get("impersonate-user") for request in server.requests} == {user}


async def test_nothing_is_deleted_without_its_uid(pair: tuple[Server, Cluster]) -> None:
    server, cluster = pair
    server.script(ok)
    with pytest.raises(ValueError, match="without its UID"):
        await cluster.delete(REF, "")
    assert server.requests == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a%2fb"])
async def test_a_name_never_leaves_its_place_in_the_path(pair: tuple[Server, Cluster], name: str) -> None:
    server, cluster = pair
    with pytest.raises(Rejected):
        await cluster.get(ObjectRef(version="v1", kind="ConfigMap", namespace="shop", name=name))
    assert server.requests == []


@pytest.mark.parametrize(
    ("code", "message", "field"),
    [
        (500, 'failed to create typed patch object (s): .stringData.p: expected string, got {"hunter2": 31337}', True),
        (422, "it is invalid: hunter2 and 31337", False),
    ],
)
async def test_no_error_quotes_a_secret(pair: tuple[Server, Cluster], code: int, message: str, field: bool) -> None:
    server, cluster = pair
    server.script(lambda request: request.answer(failure(code, "", message, causes=[]), code))
    secret: Json = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": "shop"},
        "stringData": {"p": {"x": ["hunter2", 31337]}},
    }
    with pytest.raises(Rejected) as caught:
        await cluster.apply(secret)
    told = f"{caught.value} {caught.value.causes} {caught.value.args}"
    assert "hunter2" not in told
    assert "31337" not in told
    assert [path for path, _ in caught.value.causes] == ["stringData.p"] * field
