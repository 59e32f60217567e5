"""The git host, asked by git itself and by what is not git."""

import asyncio
import gzip
import os
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from gitsync.errors import Invalid, Transient
from gitsync.web import push
from gitsync.web.push import GitHost, git

WHO = {f"GIT_{role}_{what}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@asynccontextmanager
async def host(root: Path, pushed: list[str]) -> AsyncGenerator[GitHost]:
    async with GitHost(root, pushed.append).serve("127.0.0.1", 0) as found:
        yield found


async def commit(clone: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (clone / name).write_bytes(content)
    await git("-C", str(clone), "add", "--all", home=clone)
    await git("-C", str(clone), "commit", "--quiet", "--message", "x", home=clone, env=WHO)
    return await git("-C", str(clone), "rev-parse", "HEAD", home=clone)


async def test_what_is_pushed_is_fetched_and_told_of_once(tmp_path: Path) -> None:
    pushed: list[str] = []
    async with host(tmp_path / "root", pushed) as found:
        url = await found.create("shop")
        assert url == f"{found.url}/shop.git"
        first, second = tmp_path / "first", tmp_path / "second"
        await git("clone", "--quiet", url, str(first), home=tmp_path)
        # more than git sends at once: then the body is chunked and has no length
        sha = await commit(first, {"big": random.Random(1).randbytes(3 << 20)})
        assert pushed == []
        await git("-C", str(first), "push", "--quiet", "origin", "HEAD:main", home=tmp_path)
        assert set(pushed) == {"shop"}
        await git("clone", "--quiet", url, str(second), home=tmp_path)
        assert await git("-C", str(second), "rev-parse", "HEAD", home=tmp_path) == sha
        told = len(pushed)
        sha = await commit(first, {"small": b"x"})
        await git("-C", str(first), "push", "--quiet", "origin", "HEAD:main", home=tmp_path)
        await git("-C", str(second), "fetch", "--quiet", home=tmp_path)
        assert await git("-C", str(second), "rev-parse", "origin/main", home=tmp_path) == sha
        assert len(pushed) > told
        await commit(second, {"other": b"y"})
        with pytest.raises(Transient, match="rejected"):
            await git("-C", str(second), "push", "--quiet", "origin", "HEAD:main", home=tmp_path)


async def test_a_compressed_request_is_read_as_git_compresses_it(tmp_path: Path) -> None:
    async with host(tmp_path, []) as found, aiohttp.ClientSession() as session:
        await found.create("shop")
        headers = {
            "Content-Type": "application/x-git-upload-pack-request",
            "Content-Encoding": "gzip",
            "Git-Protocol": "version=2",
        }
        body = gzip.compress(b"0014command=ls-refs\n0001000bunborn\n000csymrefs\n0000")
        async with session.post(f"{found.url}/shop.git/git-upload-pack", data=body, headers=headers) as answer:
            assert await answer.read() == b"002eunborn HEAD symref-target:refs/heads/main\n0000"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/shop.git/info/refs?service=git-upload-pack", {}, 200),
        ("/shop.git/info/refs?service=git-upload-pack", {"Host": "attacker.example"}, 403),
        ("/shop.git/info/refs?service=git-receive-pack", {"Origin": "http://127.0.0.1"}, 403),
        ("/other.git/info/refs?service=git-upload-pack", {}, 404),
        ("/..%2Fshop.git/info/refs", {}, 404),
        ("/shop.git/config", {}, 404),
        ("/shop.git/../secret", {}, 404),
        ("/", {}, 404),
    ],
)
async def test_only_git_is_served_and_no_page(tmp_path: Path, path: str, headers: dict[str, str], status: int) -> None:
    async with host(tmp_path, []) as found, aiohttp.ClientSession() as session:
        await found.create("shop")
        (tmp_path / "secret").write_text("secret")
        async with session.get(URL(found.url + path, encoded=True), headers=headers) as answer:
            assert answer.status == status
            assert b"secret" not in await answer.read()


async def test_a_body_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "LARGEST_REQUEST", 1 << 16)
    async with host(tmp_path, []) as found:
        url, clone = await found.create("shop"), tmp_path / "clone"
        await git("clone", "--quiet", url, str(clone), home=tmp_path)
        await commit(clone, {"big": os.urandom(1 << 20)})
        with pytest.raises(Transient):
            await git("-C", str(clone), "push", "--quiet", "origin", "HEAD:main", home=tmp_path)
        assert await git("ls-remote", url, home=tmp_path) == ""


async def test_a_request_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "DEADLINE", 0.2)
    async with host(tmp_path, []) as found:
        await found.create("shop")
        async with aiohttp.ClientSession() as session:

            async def endless() -> AsyncGenerator[bytes]:
                yield b"00"
                await asyncio.Event().wait()

            headers = {"Content-Type": "application/x-git-receive-pack-request"}
            async with asyncio.timeout(30):
                asking = session.post(f"{found.url}/shop.git/git-receive-pack", data=endless(), headers=headers)
                with pytest.raises(aiohttp.ClientError):
                    await (await asking).read()


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    async with host(tmp_path, []) as found:
        port = int(found.url.rpartition(":")[2])
        with pytest.raises(Invalid, match=f"cannot listen on 127.0.0.1:{port}"):
            async with GitHost(tmp_path).serve("127.0.0.1", port):
                pass
