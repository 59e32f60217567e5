"""Real builds by buildah, pushed to a real registry that asks for a login."""

import asyncio
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gitsync.errors import BuildFailed, GitsyncError, Invalid, Transient, Waiting
from gitsync.images import Access, Images, RegistryCredentials, describe
from gitsync.images.buildah import Buildah
from gitsync.images.builder import BuildRequest
from gitsync.model import ImageSpec
from tests.registry import TestRegistry
from tests.unit.images.support import HELLO, Bench, Repository, bench, processes


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def repository(tmp_path: Path, name: str = "shop") -> Repository:
    return Repository(tmp_path / name)


def dockerfile(b: Bench, *lines: str) -> str:
    return "\n".join((f"FROM {b.base}", *lines, ""))


async def test_an_image_is_built_once_and_found_after(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        first = await repo.commit(
            {"hello/Dockerfile": dockerfile(b, "COPY hello.txt /", "RUN cat /hello.txt"), "hello/hello.txt": "Hello!\n"}
        )
        built = await b.ensure(first)
        (image,) = built.images
        assert image.built
        assert image.name == "kubetm/hello"
        assert image.reference == f"registry.in:5000/team/kubetm/hello@{image.digest}"
        assert "Hello!" in b.lines
        log = tmp_path / "work" / "logs" / f"gs-{image.fingerprint[:32]}.log"
        assert "Hello!" in log.read_text()
        assert b.registry.requests("HEAD", f"/v2/team/kubetm/hello/manifests/gs-{image.fingerprint[:32]}")

        other = await repo.commit({"README": "touches no input"})
        b.lines.clear()
        asked = b.registry.requests()
        found = (await b.ensure(other, bases=built.bases)).images[0]
        assert not found.built
        assert (found.digest, found.fingerprint) == (image.digest, image.fingerprint)
        assert b.lines == []
        assert b.registry.requests() - asked <= 3  # one HEAD, at most after a challenge and a retry

        changed = await b.ensure(await repo.commit({"hello/hello.txt": "Hello again!\n"}), bases=built.bases)
        assert changed.images[0].built
        assert changed.images[0].digest != image.digest


async def test_a_moved_base_rebuilds_only_when_it_is_refreshed(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN cat /etc/version || echo none")})
        first = await b.ensure(commit)
        assert first.bases[b.base] == await b.registry.push_image("base", "1")
        moved = await b.registry.push_image("base", "1", {"etc/version": b"two\n"})
        asked = b.registry.requests("HEAD", "/v2/base/")
        locked = await b.ensure(commit, bases=first.bases)
        assert not locked.images[0].built
        assert b.registry.requests("HEAD", "/v2/base/") == asked, "a locked base was asked for"
        assert locked.bases == first.bases
        refreshed = await b.images.lock(commit, [HELLO], to=b.to)
        assert refreshed == {b.base: moved}
        again = await b.ensure(commit, bases=refreshed)
        assert again.images[0].built
        assert "two" in b.lines


async def test_a_locked_base_is_built_on_although_its_tag_moved(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        old = await b.registry.push_image("base", "1", {"etc/version": b"one\n"})
        await b.registry.push_image("base", "1", {"etc/version": b"two\n"})
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN cat /etc/version")})
        await b.ensure(commit, bases={b.base: old})
        assert "one" in b.lines
        assert "two" not in b.lines


async def test_a_locked_base_that_its_registry_has_thrown_away_gives_way_to_its_tag(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        first = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN cat /etc/word"), "hello/a": "a"})
        old = await b.registry.push_image("base", "1", {"etc/word": b"old\n"})
        locked = {**await b.images.lock(first, [HELLO], to=b.to), "elsewhere:1": "sha256:of another image"}
        new = await b.registry.push_image("base", "1", {"etc/word": b"new\n"})
        await b.registry.delete("base", old)
        result = await b.ensure(first, bases=locked)
        assert result.bases == {b.base: new}
        assert "new" in b.lines
        assert any(f"{old} is not in its registry any more" in line for line in b.lines)

        # A builder does not always say so: for COPY --from buildah says the same as when the registry is away.
        files = f"{b.registry.host}/files:1"
        kept = [await b.registry.push_image("files", "1", {"etc/word": word}) for word in (b"1", b"2")]
        await b.registry.delete("files", kept[0])
        copies = await repo.commit({"hello/Dockerfile": dockerfile(b, f"COPY --from={files} /etc/word /")})
        result = await b.ensure(copies, bases={**result.bases, files: kept[0]})
        assert result.bases == {b.base: new, files: kept[1]}

        other, name = await b.registry.push_image("other", "1", {"etc/word": b"lost\n"}), f"{b.registry.host}/other:1"
        await b.registry.delete("other", other)
        with pytest.raises(Invalid) as caught:
            await b.ensure(await repo.commit({"hello/Dockerfile": f"FROM {name}\n"}), bases={name: other})
        assert caught.value.reason == "UnknownBase", "its tag is gone, too"


async def test_two_clones_of_a_commit_are_one_image(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        await repo.commit({"hello/Dockerfile": dockerfile(b, "COPY . /"), "hello/a": "a"})
        repo.git("clone", "-q", str(repo.path), str(tmp_path / "clone"))
        one = await b.ensure(await repo.snapshot())
        two = await b.ensure(await Repository(tmp_path / "clone").snapshot())
        assert one.images[0].built
        assert not two.images[0].built
        assert one.images[0].fingerprint == two.images[0].fingerprint


async def test_many_who_want_one_image_build_it_once(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path, concurrency=2) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN echo one-step")})
        results = await asyncio.gather(*(b.ensure(commit) for _ in range(4)))
        assert len({result.images[0].digest for result in results}) == 1
        assert b.registry.requests("PUT", "/manifests/gs-") == 1
        assert b.lines.count("one-step") == 4, "each who waits sees the output"


async def test_stages_args_target_and_what_is_ignored(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        text = "\n".join(
            (
                "ARG TAG=none",
                f"FROM {b.registry.host}/base:${{TAG}} AS tools",
                "ARG WORD",
                "RUN echo made-$WORD > /made",
                f"FROM {b.registry.host}/unused:1 AS unused",
                f"FROM {b.base} AS web",
                f"COPY --from={b.registry.host}/files:1 /etc/extra /etc/extra",
                "COPY --from=tools /made /made",
                "COPY . /src/",
                "RUN cat /made /etc/extra && ls -R /src && ls -A /src",
                "FROM web AS debug",
                "RUN echo never",
                "",
            )
        )
        await b.registry.push_image("files", "1", {"etc/extra": b"from-files\n"})
        spec = ImageSpec(
            name="web",
            context="web",
            dockerfile="docker/web.Dockerfile",
            target="web",
            args=(("TAG", "1"), ("WORD", "x")),
        )
        commit = await repo.commit(
            {
                "docker/web.Dockerfile": text,
                "web/.dockerignore": "*\n!keep/**\n!.dockerignore",
                "web/drop/secret": "x",
                "web/keep/me": "y",
            }
        )
        result = await b.ensure(commit, spec)
        assert sorted(result.bases) == [b.base, f"{b.registry.host}/files:1"]
        assert {"made-x", "from-files", "me"} <= set(b.lines)
        assert not {"drop", "secret", "never"} & set(b.lines)


async def test_what_is_ignored_may_be_what_no_build_could_use(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        await repo.commit(
            {
                "Dockerfile": dockerfile(b, "COPY . /src/", "RUN cd /src && ls -RA ."),
                ".dockerignore": "docs\n**/*.bin\n",
                "app/main": "a program",
                "app/large.bin": f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n",
            }
        )
        (repo.path / "docs" / "theme").mkdir(parents=True)  # a submodule: git has no files of it
        (repo.path / "docs" / "other").symlink_to("../../elsewhere")
        repo.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},docs/theme")
        spec = ImageSpec(name="shop", context=".", dockerfile="Dockerfile")
        await b.ensure(await repo.commit({}), spec)
        assert "main" in b.lines
        assert not {"large.bin", "docs", "theme", "other"} & set(b.lines)


async def test_a_failed_step_is_evidence_with_its_line_and_output(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit(
            {"hello/Dockerfile": dockerfile(b, "RUN true", "RUN echo why it \\", "  failed; exit 7")}
        )
        with pytest.raises(BuildFailed) as caught:
            await b.ensure(commit)
        assert caught.value.origin
        assert (caught.value.origin.file, caught.value.origin.line) == ("hello/Dockerfile", 3)
        assert "exit code 7" in caught.value.message
        assert "why it failed" in caught.value.message


@pytest.mark.parametrize(
    ("lines", "kind", "line", "said"),
    [
        (["COPY nothere /"], BuildFailed, 2, "nothere"),
        (["RUN echo dial tcp: lookup example.org: no such host; exit 1"], Transient, 2, "network"),
        (["RUN kill -9 $$"], Transient, 2, "killed"),
        (["RUN <<EOF", "true", "EOF"], Invalid, 2, "a heredoc"),
        (["COPY --link Dockerfile /"], Invalid, 2, "--link"),
    ],
)
async def test_what_a_failure_means(tmp_path: Path, lines: list[str], kind: type, line: int, said: str) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, *lines)})
        with pytest.raises(GitsyncError) as caught:
            await b.ensure(commit)
        assert type(caught.value) is kind
        assert caught.value.origin
        assert caught.value.origin.line == line
        assert said in str(caught.value)


async def test_an_unknown_base_names_its_line_and_an_absent_registry_is_bad_luck(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": f"# a\nFROM {b.registry.host}/nosuch:1\n"})
        with pytest.raises(Invalid, match=r"nosuch:1 .*hello/Dockerfile:2\): there is no such image"):
            await b.ensure(commit)
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN true")})
        await b.registry.stop()
        with pytest.raises(Transient, match="cannot be reached") as caught:
            await b.ensure(commit)
        assert not isinstance(caught.value, Waiting)


async def test_a_registry_that_goes_away_before_the_push_is_bad_luck(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN echo started; sleep 1")})
        task = asyncio.create_task(b.ensure(commit))
        await until(lambda: "started" in b.lines)
        await b.registry.stop()
        with pytest.raises(Transient, match=r"pushing image|cannot be reached"):
            await task
        await b.registry.start()
        assert (await b.ensure(commit)).images[0].built


async def test_a_refused_login_names_the_secret_and_no_password(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b)})
        wrong = b.registry.dockerconfigjson().replace(b.registry.password.encode(), b"not-the-password")
        to = type(b.to)(
            push=b.to.push, credentials=RegistryCredentials.from_dockerconfigjson(wrong, source="Secret shop/login")
        )
        with pytest.raises(Waiting, match="Secret shop/login") as caught:
            await b.ensure(commit, to=to)
        assert "not-the-password" not in str(caught.value) + repr(to)


async def test_a_base_need_be_only_for_those_platforms_that_use_it(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        lines: list[str] = []
        for name in ("amd64", "arm64"):
            await b.registry.push_image(f"base-{name}", "1", architecture=name)
            lines.append(f"FROM {b.registry.host}/base-{name}:1 AS base-{name}")
        commit = await repo.commit({"hello/Dockerfile": "\n".join((*lines, "FROM base-$TARGETARCH"))})
        spec = replace(HELLO, platforms=("linux/amd64", "linux/arm64"))
        assert len(await b.images.lock(commit, [spec], to=b.to)) == 2
        crossed = await repo.commit({"hello/Dockerfile": "\n".join((*lines, "FROM base-amd64"))})
        with pytest.raises(Invalid, match="for linux/amd64, not for linux/arm64"):
            await b.images.lock(crossed, [spec], to=b.to)


async def test_a_base_for_another_machine(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        await b.registry.push_image("arm", "1", architecture="arm64")
        commit = await repo.commit({"hello/Dockerfile": f"FROM {b.registry.host}/arm:1\n"})
        with pytest.raises(Invalid, match=r"hello/Dockerfile:1.*for linux/arm64, not for linux/amd64"):
            await b.ensure(commit)


async def test_cancelling_leaves_no_process_and_a_store_that_works(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    word = uuid.uuid4().hex
    async with bench(tmp_path) as b:
        commit = await repo.commit(
            {
                "hello/Dockerfile": dockerfile(
                    b, f"RUN setsid sh -c 'sleep 300; : {word}' & echo started; sleep 301; : {word}"
                )
            }
        )
        task = asyncio.create_task(b.ensure(commit))
        await until(lambda: "started" in b.lines and len(processes(word)) >= 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert processes(word) == []
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN echo works")})
        await b.ensure(commit)
        assert "works" in b.lines
        assert list((tmp_path / "store" / "building").iterdir()) == []


async def test_a_daemon_that_a_step_leaves_ends_with_the_build(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    word = uuid.uuid4().hex
    async with bench(tmp_path) as b:
        step = f"RUN setsid sh -c 'sleep 300; : {word}' >/dev/null 2>&1 & sleep 0.2; echo started"
        await b.ensure(await repo.commit({"hello/Dockerfile": dockerfile(b, step)}))
        assert "started" in b.lines
        assert processes(word) == []


async def test_a_build_goes_on_while_somebody_waits_for_it(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    word = uuid.uuid4().hex
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, f"RUN echo {word}; sleep 1")})
        first, second = (asyncio.create_task(b.ensure(commit)) for _ in range(2))
        await until(lambda: b.lines.count(word) == 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).images[0].built


async def test_a_step_that_never_ends_is_the_commits_own_doing(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    word = uuid.uuid4().hex
    async with bench(tmp_path, timeout=2.0) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, f"RUN echo {word}; sleep 300")})
        with pytest.raises(BuildFailed, match="not done after 2 s") as caught:
            await b.ensure(commit)
        assert caught.value.origin
        assert caught.value.origin.line == 2
        assert processes(word) == []


async def test_a_disk_that_is_full_is_never_the_commits_doing(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path, timeout=20) as b:
        talks = (
            "RUN i=0; while [ $i -lt 3000 ]; do echo a line that is long enough to fill a pipe with; i=$((i+1)); done"
        )
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, talks)})
        bases = await b.images.lock(commit, [HELLO], to=b.to)
        (row,) = await describe(commit, [HELLO], bases=bases)
        (tmp_path / "work" / "logs").mkdir(parents=True)
        (tmp_path / "work" / "logs" / f"{row['tag']}.log").symlink_to("/dev/full")
        assert (await b.ensure(commit, bases=bases)).images[0].built, "a log is not worth a build"

        shutil.rmtree(tmp_path / "work")
        (tmp_path / "work").write_text("no directory can be made here")
        with pytest.raises(Transient, match="cannot be written: Not a directory"):
            await b.ensure(await repo.commit({"hello/a": "a"}))
        (tmp_path / "work").unlink()


async def test_what_a_killed_gitsync_left_in_the_store_is_cleaned_up(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN true")})
        marks = tmp_path / "store" / "building"
        marks.mkdir(parents=True)
        (marks / "of-a-dead-process").touch()
        (marks / "disk-full").touch()
        (tmp_path / "store" / "root").mkdir()
        (tmp_path / "store" / "root" / "garbage").write_text("x")
        await b.ensure(commit)
        assert not (tmp_path / "store" / "root" / "garbage").exists()
        assert list(marks.iterdir()) == []


async def test_files_of_a_build_that_was_killed_are_removed_and_those_of_a_live_one_are_not(tmp_path: Path) -> None:
    building, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Buildah):
        async def build(self, request: BuildRequest, log: Callable[[str], None]) -> str:
            building.set()
            await go_on.wait()
            return await super().build(request, log)

    repo = repository(tmp_path)
    left = tmp_path / "work" / "builds" / "gs-killed" / "scratch"
    left.mkdir(parents=True)
    (left / "config.json").write_text("a login")
    async with bench(tmp_path, Slow(tmp_path / "store")) as b:
        assert not left.parent.exists()
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "COPY a /a"), "hello/a": "a"})
        task = asyncio.create_task(b.ensure(commit))
        await building.wait()
        async with Images(Buildah(tmp_path / "store"), tmp_path / "work"):
            go_on.set()
            assert (await task).images[0].built


async def test_podman_builds_the_same_image(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN echo hi > /hi"), "hello/a": "a"})
        one = await b.ensure(commit)
        await b.registry.delete("team/kubetm/hello", one.images[0].digest)
        builder = Buildah(tmp_path / "podman", tool="podman")
        assert await builder.available() is None
        async with bench(tmp_path / "second", builder) as second:
            copy = await Repository(tmp_path / "other").commit(
                {"hello/Dockerfile": dockerfile(second, "RUN echo hi > /hi"), "hello/a": "a"}
            )
            assert (await second.ensure(copy)).images[0].built


async def test_who_waited_for_a_turn_takes_what_another_replica_built_meanwhile(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN echo built")})
        await b.images._slots.acquire()
        waiting = asyncio.create_task(b.ensure(commit))
        asked = b.registry.requests("HEAD", "/manifests/gs-")
        await until(lambda: b.registry.requests("HEAD", "/manifests/gs-") > asked)
        async with Images(Buildah(tmp_path / "store"), tmp_path / "replica") as replica:
            (theirs,) = (await replica.ensure(commit, [HELLO], to=b.to)).images
        b.images._slots.release()
        assert (await waiting).images[0].digest == theirs.digest
        assert b.registry.requests("PUT", "/manifests/gs-") == 1


async def test_who_joined_a_build_is_not_refused_with_the_login_of_another(tmp_path: Path) -> None:
    refused = asyncio.Event()

    async def theirs(note: Callable[[str], None]) -> str:
        await refused.wait()
        raise Waiting("the login is wrong")

    async def ours(note: Callable[[str], None]) -> str:
        return "sha256:ours"

    async with Images(Buildah(tmp_path / "store"), tmp_path / "work") as images:
        first = asyncio.create_task(images._fly("web", theirs, lambda line: None))
        await until(lambda: images._flights)
        second = asyncio.create_task(images._fly("web", ours, lambda line: None))
        await until(lambda: images._flights["web"].waiting == 2)
        refused.set()
        with pytest.raises(Waiting):
            await first
        assert await second == "sha256:ours"


@pytest.mark.parametrize(
    ("architecture", "lies", "kind", "said"),
    [("arm64", False, Invalid, "for linux/arm64, not for linux/amd64"), ("amd64", True, Transient, "instead of")],
)
async def test_what_was_pushed_is_looked_at_again(
    tmp_path: Path, architecture: str, lies: bool, kind: type[GitsyncError], said: str
) -> None:
    class Elsewhere(Buildah):
        async def build(self, request: BuildRequest, log: Callable[[str], None]) -> str:
            place = request.place
            digest = await b.registry.push_image(place.path, place.tag, architecture=architecture)
            return "sha256:" + "0" * 64 if lies else digest

    repo = repository(tmp_path)
    async with bench(tmp_path, Elsewhere(tmp_path / "store")) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b)})
        with pytest.raises(kind, match=said) as caught:
            await b.ensure(commit)
        assert type(caught.value) is kind


async def test_an_image_for_another_machine_is_no_better_when_it_is_found(tmp_path: Path) -> None:
    class AsItsBase(Buildah):  # as BuildKit does it; buildah would say what it was asked for
        async def build(self, request: BuildRequest, log: Callable[[str], None]) -> str:
            return await b.registry.push_image(request.place.path, request.place.tag, architecture="arm64")

    repo = repository(tmp_path)
    async with bench(tmp_path, AsItsBase(tmp_path / "store")) as b:
        await b.registry.push_image("base", "1", architecture="arm64")
        text = f"FROM --platform=linux/arm64 {b.base} AS main\nFROM main\n"
        commit = await repo.commit({"hello/Dockerfile": text})
        spec = replace(HELLO, platforms=("linux/amd64",))
        for _ in ("built", "found"):
            with pytest.raises(Invalid, match="for linux/arm64, not for linux/amd64"):
                await b.ensure(commit, spec)
        assert b.registry.requests("PUT", "/manifests/gs-") == 1


async def test_a_mirror_is_asked_for_bases_and_not_for_what_was_pushed(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    async with bench(tmp_path) as b, TestRegistry(tmp_path / "mirror", login=False) as mirror:
        there = await mirror.push_image("base", "1", {"etc/word": b"mirrored\n"})
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b, "RUN cat /etc/word")})
        access = Access(mirrors={b.registry.host: mirror.host})
        async with Images(Buildah(tmp_path / "store"), tmp_path / "work", access=access) as images:
            built = await images.ensure(commit, [HELLO], to=b.to)
            assert built.bases == {b.base: there}
            assert await images.found(commit, [HELLO], to=b.to, bases=built.bases) == {
                image.name: image.reference for image in built.images
            }
        assert not mirror.requests(path="/team/")


async def test_what_the_registry_does_not_have_was_not_pushed(tmp_path: Path) -> None:
    class Boastful(Buildah):
        async def build(self, request: BuildRequest, log: Callable[[str], None]) -> str:
            return "sha256:" + "0" * 64

    repo = repository(tmp_path)
    async with bench(tmp_path, Boastful(tmp_path / "store")) as b:
        commit = await repo.commit({"hello/Dockerfile": dockerfile(b)})
        with pytest.raises(Transient, match="the registry has nothing instead"):
            await b.ensure(commit)
