"""Following a repository on a real smart-HTTP host, through everything that can go wrong."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from aiohttp import web

from gitsync.errors import Invalid, Refused, Transient, Waiting
from gitsync.source import GitCredentials, GitPolicy, GitSource, Ref, process
from tests.cluster.githost import Failure, GitHost
from tests.unit.source.conftest import LOGIN, Repository, Shop, free_port, make_repository

MAIN = Ref(branch="main")


def mirrors(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "git").glob("*.git"))


def left_processes(text: str) -> list[str]:
    """Command lines of running processes that name ``text``."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line and "git" in line:
                found.append(line)
    return found


# ---------------------------------------------------------------- the good way


async def test_a_branch_arrives_with_its_commits_words(source: GitSource, shop: Shop) -> None:
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    assert str(revision) == f"main@sha1:{shop.first}"
    assert revision.repository == shop.url
    assert (revision.author, revision.subject) == ("Ada", "first: one module")
    assert revision.committed_at is not None
    assert revision.committed_at.tzinfo is not None
    assert await source.resolve(shop.url, MAIN, LOGIN) == shop.first


async def test_what_is_there_already_costs_one_question(source: GitSource, shop: Shop, host: GitHost) -> None:
    await source.fetch(shop.url, MAIN, LOGIN)
    before = host.requests
    await source.resolve(shop.url, MAIN, LOGIN)
    asked = host.requests - before
    await source.fetch(shop.url, MAIN, LOGIN)
    assert host.requests - before == 2 * asked


async def test_news_cost_one_conversation(source: GitSource, shop: Shop, host: GitHost) -> None:
    await source.fetch(shop.url, MAIN, LOGIN)
    before = host.requests
    await source.resolve(shop.url, MAIN, LOGIN)
    asked = host.requests - before
    shop.work.write("news.txt")
    second = shop.work.commit()
    shop.push("main")
    before = host.requests
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    assert host.requests - before == asked + 1  # what was asked for anyway, and the pack
    assert revision.sha == second
    assert await source.relation(shop.url, shop.first, second) == "ahead"


async def test_while_another_fetch_has_the_mirror_a_question_is_enough(source: GitSource, shop: Shop) -> None:
    await source.fetch(shop.url, MAIN, LOGIN)
    async with source._locked(source._mirror(shop.url), "writing"), asyncio.timeout(20):
        assert (await source.fetch(shop.url, MAIN, LOGIN)).sha == shop.first


async def test_only_the_ref_that_is_followed_is_fetched(source: GitSource, shop: Shop, tmp_path: Path) -> None:
    shop.work.git("checkout", "--quiet", "-b", "other")
    shop.work.write("other.txt")
    other = shop.work.commit()
    shop.work.git("tag", "--annotate", "--message", "note", "v1", "main")
    shop.push("other", "main", "v1")
    await source.fetch(shop.url, MAIN, LOGIN)
    refs = subprocess.run(["git", "for-each-ref"], cwd=mirrors(tmp_path)[0], check=True, capture_output=True)
    assert len(refs.stdout.splitlines()) == 1
    shown = subprocess.run(["git", "cat-file", "-e", other], cwd=mirrors(tmp_path)[0], check=False, capture_output=True)
    assert shown.returncode != 0
    await source.fetch(shop.url, Ref(branch="other"), LOGIN)
    assert len(mirrors(tmp_path)) == 1
    subprocess.run(["git", "cat-file", "-e", other], cwd=mirrors(tmp_path)[0], check=True, capture_output=True)


async def test_tags_are_peeled_and_a_moved_tag_is_followed(source: GitSource, shop: Shop) -> None:
    shop.work.git("tag", "light")
    shop.work.git("tag", "--annotate", "--message", "note", "heavy")
    shop.push("light", "heavy")
    for tag in ("light", "heavy"):
        assert await source.resolve(shop.url, Ref(tag=tag), LOGIN) == shop.first
        assert str(await source.fetch(shop.url, Ref(tag=tag), LOGIN)) == f"{tag}@sha1:{shop.first}"
    second = shop.work.commit("second")
    shop.work.git("tag", "--force", "--annotate", "--message", "moved", "heavy")
    shop.push("heavy")
    assert (await source.fetch(shop.url, Ref(tag="heavy"), LOGIN)).sha == second


async def test_the_highest_tag_of_a_range_is_followed(source: GitSource, shop: Shop) -> None:
    for version in ("v1.2.0", "v1.10.0", "v1.9.0", "v2.0.0"):
        shop.work.commit(version)
        shop.work.git("tag", "--annotate", "--message", version, version)
    shop.push("--tags")
    revision = await source.fetch(shop.url, Ref(semver="1.x"), LOGIN)
    assert (revision.ref, revision.subject) == ("v1.10.0", "v1.10.0")
    with pytest.raises(Invalid, match=r"no tag is a version in the range 3\.x; tags there: v2\.0\.0, v1\.9\.0"):
        await source.fetch(shop.url, Ref(semver="3.x"), LOGIN)


async def test_a_commit_is_followed_by_its_id(source: GitSource, shop: Shop) -> None:
    shop.work.commit("second")
    shop.push()
    revision = await source.fetch(shop.url, Ref(commit=shop.first), LOGIN)
    assert str(revision) == f"sha1:{shop.first}"
    with pytest.raises(Invalid, match=r"does not offer commit aaaa.*branches there: main"):
        await source.fetch(shop.url, Ref(commit="a" * 40), LOGIN)


async def test_who_may_not_read_gets_no_commit_from_the_shared_mirror(source: GitSource, shop: Shop) -> None:
    await source.fetch(shop.url, Ref(commit=shop.first), LOGIN)
    with pytest.raises(Waiting, match="refused the credentials"):
        await source.fetch(shop.url, Ref(commit=shop.first), None)


async def test_rewritten_history_is_fetched_and_recognized(source: GitSource, shop: Shop) -> None:
    second = shop.work.commit("second")
    shop.push()
    await source.fetch(shop.url, MAIN, LOGIN)
    shop.work.git("reset", "--quiet", "--hard", shop.first)
    shop.work.write("other.txt")
    rewritten = shop.work.commit("rewritten")
    shop.push()
    assert (await source.fetch(shop.url, MAIN, LOGIN)).sha == rewritten
    shop.work.git("checkout", "--quiet", "--orphan", "new")
    unrelated = shop.work.commit("unrelated")
    shop.push("new:main")
    assert (await source.fetch(shop.url, MAIN, LOGIN)).sha == unrelated

    relations = {
        "same": (second, second),
        "ahead": (shop.first, second),
        "behind": (second, shop.first),
        "diverged": (second, rewritten),
        "unrelated": (second, unrelated),
        "unknown": (second, "a" * 40),
    }
    for relation, (old, new) in relations.items():
        assert await source.relation(shop.url, old, new) == relation
    assert await source.relation("https://never.example/x", second, rewritten) == "unknown"
    assert await source.changed(shop.url, second, rewritten) == ("other.txt",)


async def test_a_clone_without_its_history_can_be_followed(source: GitSource, work: Repository, tmp_path: Path) -> None:
    """As CI checks it out. Where its history was cut says nothing about who descends from whom."""

    def commits(word: str) -> str:
        for number in range(3):
            work.write("n.txt", f"{number} {word}\n")
            work.commit(str(number))
        return work.git("rev-parse", "HEAD").strip()

    before = commits("before")
    shallow = Repository(tmp_path / "shallow")
    work.git("clone", "--quiet", "--depth=1", work.path.as_uri(), str(shallow.path))
    first = await source.fetch(shallow.path.as_uri(), MAIN)
    assert first.sha == before
    assert (await source.snapshot(first)).entry("n.txt") is not None
    after = commits("after")
    shallow.git("fetch", "--quiet", "--depth=1", "origin", "main")
    shallow.git("reset", "--quiet", "--hard", "FETCH_HEAD")
    second = await source.fetch(shallow.path.as_uri(), MAIN)
    assert second.sha == after
    assert await source.relation(shallow.path.as_uri(), first.sha, second.sha) == "unknown"


async def test_a_branch_where_a_directory_of_branches_was_does_not_wedge_the_mirror(
    source: GitSource, shop: Shop, tmp_path: Path
) -> None:
    shop.push("main:refs/heads/release/1.0")
    await source.fetch(shop.url, Ref(branch="release/1.0"), LOGIN)
    before = mirrors(tmp_path)[0].stat().st_ino
    shop.push(":refs/heads/release/1.0")
    shop.push("main:refs/heads/release")
    assert (await source.fetch(shop.url, Ref(branch="release"), LOGIN)).sha == shop.first
    assert mirrors(tmp_path)[0].stat().st_ino == before  # it was not discarded


async def test_many_at_once_fetch_once(source: GitSource, shop: Shop, tmp_path: Path) -> None:
    revisions = await asyncio.gather(*(source.fetch(shop.url, MAIN, LOGIN) for _ in range(8)))
    assert {revision.sha for revision in revisions} == {shop.first}
    assert len(list(mirrors(tmp_path)[0].glob("objects/pack/*.pack"))) == 1


PROGRAM = """
import asyncio, sys
from pathlib import Path
from gitsync.source import *

async def main():
    source = GitSource(Path(sys.argv[1]), GitPolicy(allow_insecure_transports=True))
    revision = await source.fetch(sys.argv[2], Ref(), GitCredentials(username="git", password="push-please"))
    snapshot = await source.snapshot(revision)
    print(revision.sha, len(list(snapshot.entries())))

asyncio.run(main())
"""


def another_process(tmp_path: Path, url: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / "cache"), url], stdout=subprocess.PIPE)


async def test_two_processes_share_one_cache(shop: Shop, tmp_path: Path) -> None:
    running = [another_process(tmp_path, shop.url) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0].decode().split() for process in running]
    assert outputs == [[shop.first, "2"]] * 3


# ---------------------------------------------------------------- what is not there


async def test_a_deleted_branch_says_which_are_there(source: GitSource, shop: Shop) -> None:
    shop.push("main:refs/heads/feature-a")
    await source.fetch(shop.url, Ref(branch="feature-a"), LOGIN)
    shop.push(":refs/heads/feature-a")
    shop.push("main:refs/heads/feature-b")
    assert await source.resolve(shop.url, Ref(branch="feature-a"), LOGIN) is None
    with pytest.raises(Invalid, match=r"there is no branch feature-a; branches there: feature-b, main"):
        await source.fetch(shop.url, Ref(branch="feature-a"), LOGIN)


async def test_an_empty_repository_says_so(source: GitSource, host: GitHost) -> None:
    host.create("empty")
    for ref in (MAIN, Ref(tag="v1"), Ref(semver="*"), Ref(commit="a" * 40)):
        with pytest.raises(Invalid, match="the repository is empty; push a first commit"):
            await source.fetch(host.url("empty"), ref, LOGIN)


async def test_a_missing_repository_is_not_an_empty_one(source: GitSource, host: GitHost) -> None:
    with pytest.raises(Invalid, match="no such repository"):
        await source.fetch(host.url("missing"), MAIN, LOGIN)


async def test_a_tag_of_something_else_is_no_commit(source: GitSource, shop: Shop) -> None:
    shop.work.git("tag", "data", shop.work.blob(b"x"))
    shop.push("data")
    with pytest.raises(Invalid, match="data names a blob, not a commit"):
        await source.fetch(shop.url, Ref(tag="data"), LOGIN)


async def test_a_repository_with_sha256_ids_is_refused_by_that_name(
    source: GitSource, shop: Shop, tmp_path: Path
) -> None:
    subprocess.run(["git", "init", "--quiet", "--object-format=sha256", str(tmp_path / "long")], check=True)
    repository = Repository(tmp_path / "long")
    repository.git("checkout", "--quiet", "-B", "main")
    repository.commit()
    with pytest.raises(Invalid, match="SHA-256"):
        await source.fetch(str(repository.path), MAIN)


# ---------------------------------------------------------------- the host fails


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Failure.ERROR, "error: 500"),
        (Failure.HTML, "is this a git repository"),
        (Failure.SILENCE, "operation too slow"),
        (Failure.TRICKLE, "operation too slow"),
    ],
)
async def test_a_failing_host_is_bad_luck(
    source: GitSource, shop: Shop, host: GitHost, fault: Failure, text: str
) -> None:
    await source.fetch(shop.url, MAIN, LOGIN)
    second = shop.work.commit("second")
    shop.push()
    host.failure = fault
    with pytest.raises(Transient, match=f"(?i){text}") as caught:
        await source.fetch(shop.url, MAIN, LOGIN)
    assert not isinstance(caught.value, Waiting)
    assert shop.url in str(caught.value)
    host.failure = Failure.NONE
    assert (await source.fetch(shop.url, MAIN, LOGIN)).sha == second
    assert left_processes(shop.url) == []


async def test_an_unreachable_host_is_bad_luck(source: GitSource, shop: Shop) -> None:
    with pytest.raises(Transient, match=r"(?i)connect"):
        await source.fetch("http://127.0.0.1:1/x.git", MAIN, LOGIN)


async def test_ssh_really_runs_ssh(source: GitSource) -> None:
    credentials = GitCredentials(identity="key\n", known_hosts="h ssh-ed25519 AAAA\n")
    with pytest.raises(Transient, match=r"port 1: Connection refused"):
        await source.fetch("ssh://git@127.0.0.1:1/x.git", MAIN, credentials)


@pytest.mark.parametrize("fault", [Failure.SILENCE, Failure.TRICKLE])
async def test_the_deadline_holds_when_the_speed_limit_does_not(
    shop: Shop, host: GitHost, tmp_path: Path, fault: Failure
) -> None:
    slow = GitPolicy(allow_insecure_transports=True, poll_timeout=0.5, low_speed_seconds=600)
    host.failure = fault
    with pytest.raises(Transient, match=r"no answer after 0\.5 s"):
        await GitSource(tmp_path / "cache", slow).resolve(shop.url, MAIN, LOGIN)
    host.failure = Failure.NONE
    assert left_processes(shop.url) == []


async def test_cancelling_leaves_no_process_and_no_private_file(
    source: GitSource, shop: Shop, host: GitHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    host.failure = Failure.SILENCE
    before = host.requests
    task = asyncio.create_task(source.fetch(shop.url, MAIN, GitCredentials(password="x", ca_file="PEM\n")))
    while host.requests == before:
        await asyncio.sleep(0.01)
    (private,) = tmp_path.glob("gitsync-git-*/ca_file")
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.parent.stat().st_mode & 0o777 == 0o700
    assert left_processes(shop.url)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left_processes(shop.url) == []
    assert not private.parent.exists()
    host.failure = Failure.NONE


# ---------------------------------------------------------------- credentials


@pytest.mark.parametrize("credentials", [None, GitCredentials(username="git", password="hunter2")])
async def test_refused_credentials_are_waited_for(
    source: GitSource, shop: Shop, credentials: GitCredentials | None
) -> None:
    with pytest.raises(Waiting, match=r"refused the credentials.*Secret of spec\.source\.secretRef") as caught:
        await source.fetch(shop.url, MAIN, credentials)
    assert caught.value.reason == "AuthenticationFailed"
    assert "hunter2" not in str(caught.value)


async def test_an_ssh_key_is_of_no_use_for_https(source: GitSource) -> None:
    with pytest.raises(Invalid, match="the URL is not ssh"):
        await source.resolve("https://git.example/x", MAIN, GitCredentials(identity="key"))


async def test_a_machines_netrc_is_not_used(
    source: GitSource, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login git password push-please\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(Waiting):
        await source.resolve(shop.url, MAIN, None)


async def test_the_password_is_in_no_command_line_and_no_file_of_the_cache(
    source: GitSource, shop: Shop, host: GitHost, tmp_path: Path
) -> None:
    host.failure = Failure.SILENCE
    before = host.requests
    task = asyncio.create_task(source.resolve(shop.url, MAIN, LOGIN))
    while host.requests == before:
        await asyncio.sleep(0.01)
    lines = left_processes(shop.url)
    assert lines
    assert not any("push-please" in line or "Authorization" in line for line in lines)
    host.failure = Failure.NONE
    await asyncio.gather(task, return_exceptions=True)
    await source.fetch(shop.url, MAIN, LOGIN)
    for file in (tmp_path / "cache").rglob("*"):
        assert not file.is_file() or b"push-please" not in file.read_bytes()


class Recorder:
    """An HTTP server that redirects everything, and remembers what it was asked."""

    def __init__(self, target: str, status: int = 302) -> None:
        self.seen: list[tuple[str, str | None]] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                recorder.seen.append((self.path, self.headers.get("Authorization")))
                self.send_response(status)
                self.send_header("Location", target + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def redirect(host: GitHost) -> Iterator[Recorder]:
    recorder = Recorder(host.base_url)
    yield recorder
    recorder.close()


async def test_a_redirect_to_another_host_is_not_followed(
    source: GitSource, shop: Shop, host: GitHost, redirect: Recorder
) -> None:
    with pytest.raises(Invalid, match=r"redirects are not followed.*with \.git"):
        await source.fetch(f"{redirect.url}/team/shop.git", MAIN, LOGIN)
    assert len(redirect.seen) == 1
    assert host.requests == 0


async def test_a_token_is_sent_as_bearer(source: GitSource, redirect: Recorder) -> None:
    with pytest.raises(Invalid):
        await source.resolve(f"{redirect.url}/x.git", MAIN, GitCredentials(bearer_token="token"))
    assert redirect.seen == [("/x.git/info/refs?service=git-upload-pack", "Bearer token")]


# ---------------------------------------------------------------- the cache fails


def corrupt(mirror: Path) -> None:
    for pack in mirror.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(b"PACK" + os.urandom(200))


async def test_a_corrupt_mirror_is_fetched_again(source: GitSource, shop: Shop, tmp_path: Path) -> None:
    await source.fetch(shop.url, MAIN, LOGIN)
    corrupt(mirrors(tmp_path)[0])
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    assert [entry.path for entry in (await source.snapshot(revision)).entries()] == [
        "manifests/web.yaml",
        "web/Dockerfile",
    ]


@pytest.mark.parametrize("damage", ["HEAD", "config", "objects", "refs"])
async def test_a_mirror_with_something_missing_is_made_whole(
    source: GitSource, shop: Shop, tmp_path: Path, damage: str
) -> None:
    await source.fetch(shop.url, MAIN, LOGIN)
    path = mirrors(tmp_path)[0] / damage
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"\0garbage")
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    assert len(list((await source.snapshot(revision)).entries())) == 2


async def test_damage_found_while_reading_is_bad_luck_and_healed_by_the_next_fetch(
    source: GitSource, shop: Shop, tmp_path: Path
) -> None:
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    snapshot = await source.snapshot(revision)
    corrupt(mirrors(tmp_path)[0])
    with pytest.raises(Transient, match="fetch it again"):
        await snapshot.read(snapshot.entries())
    with pytest.raises(Transient, match="no longer in the cache"):
        await source.snapshot(revision)
    snapshot = await source.snapshot(await source.fetch(shop.url, MAIN, LOGIN))
    assert len(await snapshot.read(snapshot.entries())) == 2


async def test_a_damaged_mirror_inside_a_working_tree_is_not_taken_for_that(shop: Shop, policy: GitPolicy) -> None:
    source = GitSource(shop.work.path / "cache", policy)
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    (source._mirror(shop.url) / "HEAD").unlink()
    with pytest.raises(Transient, match="the cache was damaged"):
        await source.snapshot(revision)


async def test_a_vanished_cache_is_fetched_again(source: GitSource, shop: Shop, tmp_path: Path) -> None:
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(Transient, match="no longer in the cache"):
        await source.snapshot(revision)
    assert await source.fetch(shop.url, MAIN, LOGIN) == revision


async def test_what_a_killed_git_left_is_removed(source: GitSource, shop: Shop, tmp_path: Path) -> None:
    await source.fetch(shop.url, MAIN, LOGIN)
    mirror = mirrors(tmp_path)[0]
    kept = next((mirror / "refs" / "gitsync").iterdir())
    kept.with_name(f"{kept.name}.lock").touch()
    (mirror / "packed-refs.lock").touch()
    (mirror / "objects" / "pack" / "tmp_pack_x").write_bytes(b"x" * 1000)
    second, before = shop.work.commit("second"), mirror.stat().st_ino
    shop.push()
    assert (await source.fetch(shop.url, MAIN, LOGIN)).sha == second
    assert not list(mirror.glob("objects/pack/tmp_*"))
    assert mirror.stat().st_ino == before  # it was not discarded


class StallingHost(GitHost):
    """Answers two requests, those of ls-remote, and is silent from the next on, until told to fail."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.requests >= 2 and self.failure is Failure.NONE:
            self.failure = Failure.SILENCE
        return await super()._answer(request)


def is_free(lock: Path) -> bool:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def test_a_git_that_outlives_its_gitsync_keeps_the_lock(shop: Shop, tmp_path: Path) -> None:
    root, port = shop.bare.parent.parent, free_port()
    with StallingHost(root, address="127.0.0.1", port=port) as stalling:
        url = stalling.url("team/shop")
        lock = GitSource(tmp_path / "cache")._mirror(url).with_suffix(".lock")
        killed = another_process(tmp_path, url)
        while stalling.failure is Failure.NONE:
            await asyncio.sleep(0.01)
        killed.kill()
        killed.communicate()
        assert left_processes(url)
        assert not is_free(lock)
        impatient = GitSource(tmp_path / "cache", GitPolicy(allow_insecure_transports=True, fetch_timeout=0.2))
        with pytest.raises(Transient, match="another process"):
            async with impatient._locked(lock.with_suffix(".git"), "fetching"):
                pass
        stalling.failure = Failure.ERROR
        while left_processes(url):
            await asyncio.sleep(0.01)
        assert is_free(lock)


async def test_a_read_only_cache_is_bad_luck(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a directory")
    with pytest.raises(Transient, match="the cache cannot be written"):
        await GitSource(tmp_path / "cache", GitPolicy(allow_insecure_transports=True)).fetch(shop.url, MAIN, LOGIN)


async def test_a_fetch_larger_than_the_limit_is_stopped_and_other_refs_keep_working(shop: Shop, tmp_path: Path) -> None:
    shop.push("main:refs/heads/small")
    for place in (shop.work.path, shop.bare):
        subprocess.run(["git", "-C", str(place), "config", "core.compression", "0"], check=True)  # it is random anyway
    shop.work.write("large", os.urandom(64 << 20))
    shop.work.commit("large")
    shop.push()
    url = str(shop.bare)
    source = GitSource(tmp_path / "cache", GitPolicy(allow_insecure_transports=True, max_bytes=1 << 20))
    small = await source.fetch(url, Ref(branch="small"))
    before = sorted(mirrors(tmp_path)[0].glob("objects/pack/*"))
    with pytest.raises(Invalid, match=r"more than 1\.0 MiB would have to be stored"):
        await source.fetch(url, MAIN)
    assert sorted(mirrors(tmp_path)[0].glob("objects/pack/*")) == before
    assert len(list((await source.snapshot(small)).entries())) == 2
    assert left_processes(url) == []


async def test_garbage_is_collected(source: GitSource, shop: Shop, host: GitHost, tmp_path: Path) -> None:
    bare = host.create("team/other")
    shop.work.git("push", "--quiet", str(bare), "main")
    await source.fetch(host.url("team/other"), MAIN, LOGIN)
    await source.fetch(shop.url, MAIN, LOGIN)
    mirror = source._mirror(shop.url)
    packs = list(mirror.glob("objects/pack/*.pack"))
    for n in range(45):
        shop.work.write("n.txt", f"{n}\n")
        shop.work.git("add", "--all")
        head = shop.work.commit(str(n))
        packed = subprocess.run(
            ["git", "pack-objects", "--revs", "--quiet", str(mirror / "objects/pack/pack")],
            cwd=shop.work.path, input=f"{head}\n^{head}~1\n".encode(), capture_output=True, check=True,
        )  # fmt: skip
        assert packed.stdout
    shop.push()
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    left = mirror.parent / f"{mirror.stem}.tmp-0"
    left.mkdir()
    assert len(list(mirror.glob("objects/pack/*.pack"))) > len(packs) + 40
    freed = await source.collect_garbage(keep=[shop.url])
    assert freed > 0
    assert mirrors(tmp_path) == [mirror]
    assert not left.exists()
    assert len(list(mirror.glob("objects/pack/*.pack"))) <= 2
    assert (await source.snapshot(revision)).entry("n.txt") is not None
    assert await source.relation(shop.url, shop.first, revision.sha) == "ahead"


# ---------------------------------------------------------------- hardening


async def test_output_is_bounded_by_bytes_and_rows_while_it_comes(shop: Shop) -> None:
    git = ["ls-tree", "-r", "-t", "-z", "main"]  # four rows: two directories, two files
    for limit, rows, exceeded in [(1000, 0, False), (1000, 4, False), (1000, 3, True), (100, 0, True)]:
        result = await process.run(git, env=process.local_env(shop.bare), cwd=shop.bare, limit=limit, rows=rows)
        assert result.exceeded is exceeded
        assert bool(result.stdout) is not exceeded


@pytest.mark.parametrize("allowed", [True, False])
async def test_file_urls_and_paths_work_by_the_flag_only(shop: Shop, tmp_path: Path, allowed: bool) -> None:
    source = GitSource(tmp_path / "cache", GitPolicy(allow_insecure_transports=allowed))
    for url in (f"file://{shop.bare}", str(shop.bare)):
        if allowed:
            assert (await source.fetch(url, MAIN)).sha == shop.first
        else:
            with pytest.raises(Refused):
                await source.fetch(url, MAIN)


async def test_no_transport_is_open_beyond_the_urls_own(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for url in (f"ext::touch {marker}", f"file://{tmp_path}"):
        result = await process.run(["ls-remote", "--", url], env=process.local_env(tmp_path), cwd=tmp_path)
        assert result.code != 0
        assert "not allowed" in result.stderr
    assert not marker.exists()


async def test_a_hook_in_a_mirror_never_runs(source: GitSource, shop: Shop, tmp_path: Path) -> None:
    await source.fetch(shop.url, MAIN, LOGIN)
    marker = tmp_path / "ran"
    hook = mirrors(tmp_path)[0] / "hooks" / "reference-transaction"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
    hook.chmod(0o755)
    second = shop.work.commit("second")
    shop.push()
    assert (await source.fetch(shop.url, MAIN, LOGIN)).sha == second
    assert not marker.exists()


async def test_a_submodule_is_not_fetched(source: GitSource, shop: Shop, host: GitHost) -> None:
    shop.work.write(".gitmodules", f'[submodule "x"]\n\tpath = x\n\turl = {host.url("secret")}\n')
    shop.work.git("update-index", "--add", "--cacheinfo", f"160000,{shop.first},x")
    shop.work.git("add", ".gitmodules")
    shop.work.git("commit", "--quiet", "--message", "submodule")
    shop.push()
    snapshot = await source.snapshot(await source.fetch(shop.url, MAIN, LOGIN))
    with pytest.raises(Invalid, match="x is a submodule"):
        snapshot.regular_files()


async def test_an_environment_left_by_a_hook_does_not_mislead(
    source: GitSource, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_repository(tmp_path / "other")
    other.commit("other")
    for name, value in {
        "GIT_DIR": str(other.path / ".git"),
        "GIT_OBJECT_DIRECTORY": str(other.path / ".git/objects"),
        "GIT_CONFIG_PARAMETERS": "'core.bare'='false'",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.proxy",
        "GIT_CONFIG_VALUE_0": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    revision = await source.fetch(shop.url, MAIN, LOGIN)
    assert revision.sha == shop.first
    assert len(list((await source.snapshot(revision)).entries())) == 2


async def test_head_names_the_default_branch(source: GitSource, shop: Shop) -> None:
    shop.push("main:refs/heads/trunk")
    subprocess.run(["git", "symbolic-ref", "HEAD", "refs/heads/trunk"], cwd=shop.bare, check=True)
    assert await source.default_branch(shop.url, LOGIN) == "trunk"
    assert (await source.open(shop.url, "", LOGIN)).ref == "trunk"


async def test_the_command_line_opens_urls_by_any_name(source: GitSource, shop: Shop) -> None:
    shop.work.git("tag", "v1")
    shop.push("v1")
    for name in ("main", "v1", shop.first, "HEAD"):
        assert (await source.open(shop.url, name, LOGIN)).sha == shop.first
    with pytest.raises(Invalid, match="there is no branch v2"):
        await source.open(shop.url, "v2", LOGIN)
