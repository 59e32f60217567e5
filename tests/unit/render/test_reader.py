"""Parsing in worker processes that can be killed, and what is remembered by blob id."""

import asyncio
import os
import tracemalloc
from pathlib import Path

import pytest

from gitsync.errors import Invalid
from gitsync.model import Origin
from gitsync.render.reader import IN_PROCESS, Reader
from gitsync.render.workers import Failed, Workers
from gitsync.render.yaml import Parsed, parse

NOWHERE = Origin(repository="https://git.example.test/shop.git", sha="b" * 40)
SLOW = b"a: [" + b"{}," * 1_000_000 + b"]\n"  # about two seconds of parsing


def children() -> set[int]:
    """Live processes whose parent is this one."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(os.getpid()) and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


async def test_outcomes_come_in_order_and_the_processes_end() -> None:
    before = children()
    async with Workers(size=1) as workers:
        outcomes = await workers.parse([b"a: 1\n", b"a: 1\na: 2\n", b"# nothing\n", b"- 1\n---\n- 2\n"])
        assert children() > before
    assert children() <= before
    assert isinstance(outcomes[0], Parsed)
    assert outcomes[0].documents()[0].value == {"a": 1}
    assert isinstance(outcomes[1], Failed)
    assert (outcomes[1].line, outcomes[1].column) == (2, 1)
    assert [len(o.documents()) for o in outcomes[2:] if isinstance(o, Parsed)] == [0, 2]


async def test_a_file_that_takes_too_long_ends_its_worker_and_nothing_else() -> None:
    async with Workers(size=1, deadline=0.2) as workers:
        outcomes = await workers.parse([b"a: 1\n", SLOW, b"b: 2\n"])
    assert isinstance(outcomes[0], Parsed)
    assert isinstance(outcomes[1], Failed)
    assert "takes more than 0.2 s" in outcomes[1].message
    assert isinstance(outcomes[2], Parsed)


async def test_a_file_that_needs_too_much_memory_is_refused_and_nothing_else() -> None:
    async with Workers(size=1, memory=160 << 20) as workers:
        outcomes = await workers.parse([b"a: 1\n", b"a: [" + b"{a: {}}," * 200_000 + b"]\n", b"b: 2\n"])
    assert isinstance(outcomes[0], Parsed)
    assert isinstance(outcomes[1], Failed)
    assert "memory" in outcomes[1].message or "ended the process" in outcomes[1].message
    assert isinstance(outcomes[2], Parsed)


async def test_cancelling_ends_the_worker_and_frees_its_place() -> None:
    before = children()
    async with Workers(size=1) as workers:
        await workers.parse([b"a: 1\n"])
        running = asyncio.create_task(workers.parse([SLOW]))
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert children() <= before
        assert isinstance((await workers.parse([b"a: 1\n"]))[0], Parsed)


async def test_a_worker_that_was_killed_is_replaced() -> None:
    async with Workers(size=1) as workers:
        before = children()
        await workers.parse([b"a: 1\n"])
        (worker,) = children() - before or children()
        os.kill(worker, 9)
        first = (await workers.parse([b"a: 1\n"]))[0]
        second = (await workers.parse([b"a: 1\n"]))[0]
    assert isinstance(second, Parsed)
    assert isinstance(first, Parsed | Failed)


async def test_workers_see_neither_environment_nor_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "hunter2")
    async with Workers(size=1) as workers:
        before = children()
        await workers.parse([b"a: 1\n"])
        (worker,) = children() - before or children()
        assert b"hunter2" not in Path(f"/proc/{worker}/environ").read_bytes()
        assert Path(f"/proc/{worker}/cwd").readlink() == Path("/")


async def test_a_known_blob_needs_no_bytes_and_gives_objects_of_its_own() -> None:
    async with Reader() as reader:
        assert not reader.knows("1")
        found, size = (await reader.documents({"a.yaml": ("1", b"a: {b: 1}\n")}, NOWHERE))["a.yaml"]
        assert size == len('[{"a":{"b":1}}]')
        found[0].value["a"]["b"] = "changed by a careless caller"
        assert reader.knows("1")
        again, _ = (await reader.documents({"other.yaml": ("1", None)}, NOWHERE))["other.yaml"]
    assert again[0].value == {"a": {"b": 1}}
    assert again[0].lines["a.b"] == 1


async def test_an_error_is_remembered_but_named_by_the_file_that_asks() -> None:
    async with Reader() as reader:
        with pytest.raises(Invalid, match=r"shop@bbbbbbb a\.yaml:2:1"):
            await reader.documents({"a.yaml": ("1", b"a: 1\na: 2\n")}, NOWHERE)
        with pytest.raises(Invalid, match=r"shop@bbbbbbb b\.yaml:2:1"):
            await reader.documents({"b.yaml": ("1", None)}, NOWHERE)


async def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    async with Reader(cache=2000) as reader:
        for blob in "123":
            await reader.documents({"a.yaml": (blob, b"a: " + b"x" * 400)}, NOWHERE)
            if blob == "2":
                await reader.documents({"a.yaml": ("1", None)}, NOWHERE)
        assert [reader.knows(blob) for blob in "123"] == [True, False, True]


async def test_nothing_is_kept_without_a_blob_id() -> None:
    async with Reader() as reader:
        await reader.documents({"a.yaml": ("", b"a: 1\n")}, NOWHERE)
        assert not reader.knows("")


async def test_what_is_larger_than_the_cache_does_not_empty_it() -> None:
    async with Reader(cache=1000) as reader:
        await reader.documents({"a.yaml": ("1", b"a: 1\n")}, NOWHERE)
        await reader.documents({"b.yaml": ("2", b"a: " + b"x" * 2000)}, NOWHERE)
        assert [reader.knows(blob) for blob in "12"] == [True, False]


@pytest.mark.parametrize(
    ("data", "process"),
    [
        (b"a: 1\n", False),
        (b"a: " + b"x" * IN_PROCESS, True),
        (b"a: &x 1\nb: *x\n", True),
        (b"a: {<<: {b: 1}}\n", True),
    ],
)
async def test_only_small_files_that_nothing_multiplies_are_parsed_in_this_process(data: bytes, process: bool) -> None:
    before = children()
    async with Reader() as reader:
        await reader.documents({"a.yaml": ("1", data)}, NOWHERE)
        assert (children() > before) is process


async def test_many_files_are_shared_out_and_keep_their_order() -> None:
    files: dict[str, tuple[str, bytes | None]] = {
        f"{index:04}.yaml": (str(index), f"number: {index}\n".encode() + b"# " + b"x" * 3000) for index in range(600)
    }
    async with Reader() as reader:
        found = await reader.documents(files, NOWHERE)
    assert list(found) == list(files)
    assert [documents[0].value["number"] for documents, _ in found.values()] == list(range(600))


def test_what_is_kept_of_a_small_file_takes_little() -> None:
    tracemalloc.start()
    try:
        kept = [parse(b"a: {b: 1}\n") for _ in range(100)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 100 * 1000, f"{taken} bytes for {len(kept)} files"
