"""Files to documents: from the cache, in this process, or by a worker — whichever is cheapest and safe.

A git blob's id names its bytes, so what it parsed to is kept by that id, errors too. Parsing in this process is
bounded by a small file's size as long as it has no alias or merge key to multiply it (measured: at most a few
milliseconds for ``IN_PROCESS`` bytes); all else goes to a worker process.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from gitsync.model import Origin
from gitsync.render.workers import Failed, Outcome, Workers, outcome
from gitsync.render.yaml import Document

#: Bytes of one file, and of all files of one call, that are parsed in this process.
IN_PROCESS: Final = 32 << 10
_BATCH: Final = 512 << 10  # bytes per worker's turn: long enough to be efficient, short enough to share out
_BREATH: Final = 256 << 10  # bytes decoded before the event loop gets its turn


class Reader:
    """Shared by all Applications of a process: ``async with Reader() as reader``. ``cache`` is in bytes."""

    def __init__(self, *, cache: int = 128 << 20, workers: Workers | None = None) -> None:
        self._workers = workers or Workers()
        self._limit = cache
        self._size = 0
        self._known: OrderedDict[str, Outcome] = OrderedDict()

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._workers.__aexit__()

    def knows(self, blob: str) -> bool:
        """Whether ``documents`` needs no bytes for this blob."""
        return blob in self._known

    async def documents(
        self, files: Mapping[str, tuple[str, bytes | None]], origin: Origin
    ) -> dict[str, tuple[list[Document], int]]:
        """Documents by path, with the length of their JSON, from blob id ("": not to be kept) and bytes by path.

        The bytes may be absent if ``knows`` said so with no ``await`` in between. Raises ``Invalid`` for the first
        unreadable file in order; ``origin`` gives repository and sha.
        """
        outcomes: dict[str, Outcome] = {}
        small, large, total = list[str](), list[str](), 0
        for path, (blob, data) in files.items():
            if blob in self._known:
                self._known.move_to_end(blob)
                outcomes[path] = self._known[blob]
                continue
            assert data is not None
            total += len(data)
            bounded = total <= IN_PROCESS and b"&" not in data and b"<<" not in data
            (small if bounded else large).append(path)
        for path in small:
            outcomes[path] = outcome(files[path][1] or b"")
        outcomes |= await self._parallel({path: files[path][1] or b"" for path in large})
        for path in (*small, *large):
            self._keep(files[path][0], outcomes[path])

        found: dict[str, tuple[list[Document], int]] = {}
        decoded = 0
        for path in files:
            result = outcomes[path]
            if isinstance(result, Failed):
                place = Origin(repository=origin.repository, sha=origin.sha, file=path)
                raise result.error().within(place)
            found[path] = (result.documents(), len(result.values))
            decoded += len(result.values)
            if decoded > _BREATH:
                decoded = 0
                await asyncio.sleep(0)
        return found

    async def _parallel(self, files: Mapping[str, bytes]) -> dict[str, Outcome]:
        batches: list[list[str]] = []
        size = _BATCH
        for path, data in files.items():
            if size >= _BATCH:
                batches.append([])
                size = 0
            batches[-1].append(path)
            size += len(data)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._workers.parse([files[path] for path in batch])) for batch in batches]
        return {
            path: result
            for batch, task in zip(batches, tasks, strict=True)
            for path, result in zip(batch, task.result(), strict=True)
        }

    def _keep(self, blob: str, result: Outcome) -> None:
        if not blob or blob in self._known or len(result) > self._limit:
            return
        self._known[blob] = result
        self._size += len(result)
        while self._size > self._limit:
            _, gone = self._known.popitem(last=False)
            self._size -= len(gone)
