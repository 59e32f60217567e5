"""The status page: whole without JavaScript, live through names only, and nothing from a repository becomes markup."""

import asyncio
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gitsync.web import dashboard
from gitsync.web.board import Changes, Commit, Deployment, PodView, Step, StepState, View
from gitsync.web.server import Options

from .conftest import AT, Site, Start, view

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*11111}}"


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> list[str | None]:
        return [attributes.get("href") for tag, attributes in self.tags if tag == "a"]


@pytest.fixture
async def public(start: Start) -> Site:
    return await start(Options(public=True, grace=0.2))


async def page(site: Site, path: str) -> Page:
    async with site.http.get(path) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        return Page(await answer.text())


async def test_the_list(public: Site) -> None:
    found = await page(public, "/")
    assert "/applications/prod/shop" in found.links()
    for word in ("hello", "shop", "Synced", "Healthy", "main@0123456", "Sell pears too"):
        assert word in found.text


async def test_an_empty_list_says_what_to_do(public: Site) -> None:
    public.board.views = {}
    assert "gitsync run" in (await page(public, "/")).text


async def test_the_way_from_commit_to_pods(public: Site) -> None:
    found = await page(public, "/applications/prod/shop")
    order = [found.text.index(f" {name}") for name in ("commit", "images", "plan", "rollout")]
    assert order == sorted(order)
    for words in ("1 built", "12.3 s", "web: 1 of 2 ready", "running", "web-1", "kubetm/web built", "1 min 15 s",
                  "r.example.com/web@sha256:abc", "step 1\nstep 2", "Sell pears too", "Kim"):  # fmt: skip
        assert words in found.text
    assert "https://git.example.com/team/shop/commit/0123456" in found.links()


async def test_a_failure_is_shown_with_its_reason(public: Site) -> None:
    condition = {"type": "Ready", "status": "False", "reason": "BuildFailed", "message": "step 3: exit 1"}
    public.board.views["prod/shop"] = view(status={"conditions": [condition]})
    for path in ("/", "/applications/prod/shop"):
        assert "step 3: exit 1" in (await page(public, path)).text


async def test_an_application_about_which_nothing_is_known(public: Site) -> None:
    public.board.views["prod/shop"] = view(status={}, commit=None, steps=(), pods=(), history=(), build_log="")
    assert "Unknown" in (await page(public, "/")).text
    assert "Unknown" in (await page(public, "/applications/prod/shop")).text


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "https://u:p@h/x", "//h", "http:///x", "x"])
async def test_only_http_links(public: Site, url: str) -> None:
    shop = public.board.views["prod/shop"]
    assert shop.commit is not None
    public.board.views["prod/shop"] = replace(shop, repository=url, commit=replace(shop.commit, url=url))
    assert url not in (await page(public, "/applications/prod/shop")).links()


def evil() -> View:
    """Every word of it was written by somebody who means harm."""
    condition = {"type": "Ready", "status": "False", "reason": EVIL, "message": EVIL}
    return view(
        repository=EVIL,
        ref=EVIL,
        status={
            "sync": EVIL, "health": EVIL, "revision": EVIL, "conditions": [condition],
            "images": [{"name": EVIL, "reference": EVIL, "fingerprint": EVIL}],
            "findings": [{"rule": EVIL, "level": EVIL, "object": EVIL, "message": EVIL}],
            "quarantined": [{"revision": EVIL, "reason": EVIL, "message": EVIL}],
        },
        commit=Commit(revision=EVIL, sha=EVIL, subject=EVIL, author=EVIL, at=AT, url=EVIL),
        steps=(Step(name=EVIL, state=StepState.FAILED, summary=EVIL, details=(EVIL,)),),
        pods=(PodView(name=EVIL, state=StepState.DONE, message=EVIL, revision=EVIL, digest=EVIL),),
        history=(Deployment(revision=EVIL, at=AT, outcome=EVIL, subject=EVIL, author=EVIL, message=EVIL),),
        build_log=EVIL,
    )  # fmt: skip


async def test_nothing_from_a_repository_becomes_markup(public: Site) -> None:
    clean_list = (await page(public, "/")).tags
    public.board.views["prod/shop"] = evil()
    for path in ("/", "/applications/prod/shop"):
        found = await page(public, path)
        assert [a for tag, a in found.tags if tag == "script"] == [{"src": "/static/app.js", "defer": None}]
        assert [a.get("src") for tag, a in found.tags if tag == "img"] == ["/static/icon.svg"]
        assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
        assert not [name for _, attributes in found.tags for name in attributes if name == "style"]
        assert EVIL in found.text
        assert "77777" not in found.text
    assert len((await page(public, "/")).tags) - len(clean_list) < 5


async def test_static_files(public: Site) -> None:
    for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")):
        async with public.http.get(f"/static/{name}") as answer:
            assert answer.headers["Content-Type"].startswith(kind)


# ---------------------------------------------------------------- the stream


async def test_the_stream_says_names_only_and_each_once(public: Site) -> None:
    async with public.http.get("/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert await answer.content.readuntil(b"\n\n") == b"retry: 2000\n\n"
        for _ in range(1000):
            public.board.changes.publish("prod/shop")
        public.board.changes.publish("prod/hello")
        assert await answer.content.readuntil(b"\n\n") == b"event: change\ndata: prod/hello\n\n"
        assert await answer.content.readuntil(b"\n\n") == b"event: change\ndata: prod/shop\n\n"
        for _ in range(2):
            public.board.changes.publish("prod/hello")
            assert await answer.content.readuntil(b"\n\n") == b"event: change\ndata: prod/hello\n\n"


async def test_a_silent_stream_is_kept_alive(public: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "PING", 0.05)
    async with public.http.get("/events") as answer:
        await answer.content.readuntil(b"\n\n")
        assert await answer.content.readuntil(b"\n\n") == b":\n\n"


async def test_streams_are_limited_and_given_back(public: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "MOST_STREAMS", 2)
    first, second = [await public.http.get("/events") for _ in range(2)]
    async with public.http.get("/events") as answer:
        assert answer.status == 503
    first.close()
    second.close()
    async with asyncio.timeout(10):
        while len(public.board.changes):
            public.board.changes.publish("prod/shop")
            await asyncio.sleep(0.02)
    async with public.http.get("/events") as answer:
        assert answer.status == 200


async def test_who_asks_for_the_head_of_the_stream_gets_no_body_and_holds_no_stream(public: Site) -> None:
    async with public.http.head("/events") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")
    async with public.http.head("/") as answer:
        assert answer.status == 200
    assert len(public.board.changes) == 0


async def test_changes_close_for_good() -> None:
    changes = Changes()
    with changes.subscribe() as before:
        changes.close()
        assert await before.next(5) == frozenset()
        assert before.closed
    with changes.subscribe() as after:
        assert await after.next(5) == frozenset()
        assert after.closed
    assert len(changes) == 0
