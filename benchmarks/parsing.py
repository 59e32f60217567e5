"""What is read of a commit: which of many build contexts changed, and YAML documents, cold and known."""

import gc
import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
import yaml

from benchmarks.figures import Goal, Row, median, timed
from benchmarks.installed import git, write_repository
from gitsync.images import describe
from gitsync.model import ImageSpec, Origin, Revision
from gitsync.render import Reader
from gitsync.source import GitPolicy, GitSource, Ref
from gitsync.source.changes import touched

CONTEXTS = 200


async def run(scale: float) -> Sequence[Row]:
    with tempfile.TemporaryDirectory(prefix="gitsync-bench-") as folder:
        return [await _contexts(Path(folder), scale), *await _documents(Path(folder), scale)]


# ---------------------------------------------------------------- contexts


async def _contexts(folder: Path, scale: float) -> Row:
    each = max(3, int(50 * scale))
    place = folder / "monorepo"
    files = {
        f"app-{context:03}/src/file-{number:03}.py": f"print('{context} {number}')\n" * 40
        for context in range(CONTEXTS)
        for number in range(each - 1)
    }
    files |= {f"app-{context:03}/Dockerfile": "FROM scratch\nCOPY . /\n" for context in range(CONTEXTS)}
    write_repository(place, files)
    changed = {f"app-{number:03}" for number in (3, 77, 140)}
    write_repository(place, {f"{context}/src/file-000.py": "print('new')\n" for context in changed})
    new, old = git(place, "rev-parse", "HEAD"), git(place, "rev-parse", "HEAD~1")
    source = GitSource(folder / "cache", GitPolicy(allow_insecure_transports=True))
    await source.fetch(place.as_uri(), Ref(branch="main"), None)
    after = await source.snapshot(Revision(repository=place.as_uri(), ref="main", sha=new))
    before = await source.snapshot(Revision(repository=place.as_uri(), ref="main", sha=old))
    specs = [
        ImageSpec(name=f"app-{number:03}", context=f"app-{number:03}", dockerfile=f"app-{number:03}/Dockerfile")
        for number in range(CONTEXTS)
    ]

    def by_tree() -> set[str]:
        return set(touched(before.identity, after.identity, [spec.context for spec in specs]))

    def by_diff_tree() -> set[str]:
        out = git(place, "diff-tree", "-r", "--name-only", old, new)
        return {line.split("/")[0] for line in out.splitlines()}

    def by_hash() -> set[str]:
        for path in files:
            hashlib.sha256((place / path).read_bytes()).digest()
        return changed

    assert by_tree() == by_diff_tree() == changed
    rows = await describe(after, specs, since=before)
    assert {row["name"] for row in rows if row["touched"]} == changed
    ours, diff_tree, hashed = _in_turns(9, by_tree, by_diff_tree, by_hash)
    listed = await timed(lambda: source.snapshot(Revision(repository=place.as_uri(), ref="main", sha=new)))
    whole = await timed(lambda: describe(after, specs, since=before))
    return Row(
        name="contexts",
        work=f"which of {CONTEXTS} build contexts changed, {len(files)} files",
        unit="ms",
        ours=ours * 1000,
        peers={"git diff-tree": diff_tree * 1000, "sha256 of the files": hashed * 1000},
        goals=[Goal(against="git diff-tree", least=3), Goal(against="sha256 of the files", least=100)],
        checked="the three contexts that changed, and no other",
        note=f"both trees are listed, which rendering needs anyway ({listed * 1000:.0f} ms each); "
        f"with every Dockerfile, .dockerignore and fingerprint of both commits: {whole * 1000:.0f} ms",
    )


def _in_turns(rounds: int, *works: Callable[[], object]) -> list[float]:
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for times, work in zip(taken, works, strict=True):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
    return [median(times) for times in taken]


# ---------------------------------------------------------------- documents


async def _documents(folder: Path, scale: float) -> Sequence[Row]:
    count = max(100, int(10_000 * scale))
    files = {f"{number}.yaml": (f"blob-{number}", _document(number).encode()) for number in range(count)}
    texts = [data for _, data in files.values()]
    cold: list[float] = []
    safe: list[float] = []
    loaded: list[object] = []
    for _ in range(3):
        async with Reader(cache=256 << 20) as reader:
            cold.append(await timed(lambda reader=reader: reader.documents(files, Origin())))
        began = time.perf_counter()
        loaded = [yaml.load(text, yaml.CSafeLoader) for text in texts]
        safe.append(time.perf_counter() - began)
    async with Reader(cache=256 << 20) as reader:
        first = await reader.documents(files, Origin())
        known = {path: (blob, None) for path, (blob, _) in files.items()}
        encoded = [orjson.dumps(each) for each in loaded]
        warm: list[float] = []
        floor: list[float] = []
        again = first
        for _ in range(9):
            gc.collect()
            began = time.perf_counter()
            plain = [orjson.loads(each) for each in encoded]
            floor.append(time.perf_counter() - began)
            del plain
            gc.collect()
            warm.append(await timed(lambda: reader.documents(known, Origin())))
        again = await reader.documents(known, Origin())
    for values in (first, again):
        assert [each.value for path in files for each in values[path][0]] == loaded, "what was read differs"
    return [
        Row(
            name="yaml-cold",
            work=f"{count} YAML documents never seen",
            unit="s",
            ours=median(cold),
            peers={"CSafeLoader": median(safe)},
            goals=[Goal(against="CSafeLoader", most=1.0)],
            checked="the same values as CSafeLoader's, strictly",
            note="in two worker processes, their start included",
        ),
        Row(
            name="yaml-known",
            work=f"{count} YAML documents of known blobs",
            unit="ms",
            ours=median(warm) * 1000,
            peers={"orjson": median(floor) * 1000},
            goals=[Goal(against="orjson", most=1.5)],
            checked="the same values as cold",
        ),
    ]


def _document(number: int) -> str:
    """A Deployment as people write it."""
    return f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: app-{number}
  labels: {{app: app-{number}, tier: backend}}  # flow style, too
spec:
  replicas: 3
  selector:
    matchLabels: {{app: app-{number}}}
  template:
    metadata:
      labels:
        app: app-{number}
    spec:
      containers:
        - name: app
          image: "registry.example.org/shop/app-{number}:1.2.3"
          args: ["--port", "8000", "--verbose"]
          ports:
            - {{name: http, containerPort: 8000}}
          env:
            - name: GREETING
              value: "hello from {number}"
          readinessProbe:
            httpGet: {{path: /ready, port: http}}
            periodSeconds: 2
          resources:
            requests: {{cpu: 10m, memory: 32Mi}}
            limits: {{memory: 64Mi}}
"""
