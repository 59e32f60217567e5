"""The status page in a real browser: it follows what happens, needs no script to be read, and runs none but its own."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from playwright.async_api import Browser, Page, Route, async_playwright, expect

from gitsync.web.board import StepState
from gitsync.web.server import Options
from tests.cluster import packages

from .conftest import Site, Start
from .test_dashboard import EVIL, evil

OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
SHOP = "/applications/prod/shop"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=packages.program("chromium"), args=OPTIONS)
        yield chromium
        await chromium.close()


@pytest.fixture
async def public(start: Start) -> Site:
    return await start(Options(public=True, grace=0.2))


async def opened(browser: Browser, site: Site, path: str, *, script: bool = True) -> tuple[Page, list[str]]:
    """A page, and what it complains about or asks of other hosts, as it happens."""
    page = await browser.new_page(base_url=f"http://{site.host}:{site.port}", java_script_enabled=script)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: trouble.append(f"dialog {dialog.message}"))

    async def guard(route: Route) -> None:
        if route.request.url.startswith(f"http://{site.host}:{site.port}/"):
            await route.continue_()
        else:
            trouble.append(route.request.url)
            await route.abort()

    await page.route("**/*", guard)
    await page.goto(path)
    return page, trouble


async def test_it_follows_what_happens_without_losing_the_readers_place(public: Site, browser: Browser) -> None:
    page, trouble = await opened(browser, public, SHOP)
    await expect(page.locator("#live")).to_have_text("Live")
    rollout = page.locator(".step", has_text="rollout")
    await expect(rollout).to_contain_text("web: 1 of 2 ready")
    await page.locator("details summary").click()
    await page.evaluate("window.same = true")

    shop = public.board.views["prod/shop"]
    steps = [replace(each, state=StepState.DONE, summary="web: 2 of 2 ready") if each.name == "rollout" else each
             for each in shop.steps]  # fmt: skip
    public.board.views["prod/shop"] = replace(shop, steps=tuple(steps))
    public.board.changes.publish("prod/hello")
    public.board.changes.publish("prod/shop")
    await expect(rollout).to_contain_text("web: 2 of 2 ready")
    await expect(page.get_by_text("kubetm/web built")).to_be_visible()  # still unfolded
    assert await page.evaluate("window.same"), "it was loaded anew"

    del public.board.views["prod/shop"]
    public.board.changes.publish("prod/shop")
    await expect(page.locator("#live")).to_have_text("Gone")
    assert [each for each in trouble if "404" not in each] == []


async def test_it_can_be_read_and_walked_without_a_script(public: Site, browser: Browser) -> None:
    page, trouble = await opened(browser, public, "/", script=False)
    await page.get_by_role("link", name="shop").click()
    await expect(page).to_have_url(f"http://{public.host}:{public.port}{SHOP}")
    for words in ("web: 1 of 2 ready", "web-1", "Sell pears too"):
        await expect(page.get_by_text(words).first).to_be_visible()
    assert trouble == []


async def test_what_a_repository_says_is_text(public: Site, browser: Browser) -> None:
    public.board.views["prod/shop"] = evil()
    for path in ("/", SHOP):
        page, trouble = await opened(browser, public, path)
        await expect(page.locator("#live")).to_have_text("Live")
        await expect(page.get_by_text(EVIL).first).to_be_visible()
        assert trouble == []
