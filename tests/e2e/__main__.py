"""``python -m tests.e2e [pytest's arguments]``, also known as ``make e2e``: all tests on a real Kubernetes.

On a new machine it installs system packages (Debian, as root), compiles Kubernetes once, assembles base images and
builds gitsync's own image; all of that is kept outside the tree. Then it runs the tests. One that is skipped counts as
failed: what cannot run here is said, and nothing is left out in silence.
"""

import sys
import time
from collections.abc import Callable

import pytest

from tests.cluster import baseimages, binaries, packages
from tests.e2e import world

_PLACES = ("tests/e2e", "tests/faults")
_OPTIONS = ("--durations=15", "--durations-min=1", "--color=yes" if sys.stdout.isatty() else "--color=no", "-v")


class _NoSkips:
    """Turns a run with skipped tests into a failed one."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)


def _prepare() -> None:
    steps: list[tuple[str, Callable[[], object]]] = [
        ("system packages", packages.install),
        ("Kubernetes, etcd, CoreDNS and BuildKit", lambda: binaries.find(*binaries.NODE_SETS, binaries.BUILDKIT)),
        ("base images", baseimages.assemble),
        ("gitsync's own image", world.build_image),
    ]
    for what, step in steps:
        print(f"{what} …", file=sys.stderr, flush=True)
        started = time.monotonic()
        step()
        print(f"{what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    try:
        _prepare()
    except (packages.PackageError, binaries.BinaryError, baseimages.ImageError) as error:
        print(f"the end-to-end tests cannot run here: {error}", file=sys.stderr)
        return 1
    named = any(not each.startswith("-") and "tests/" in each for each in arguments)
    places = [] if named else [each for each in _PLACES if list((world.ROOT / each).glob("test_*.py"))]
    watch = _NoSkips()
    code = int(pytest.main([f"--rootdir={world.ROOT}", *_OPTIONS, *arguments, *places], plugins=[watch]))
    if watch.skipped:
        print(f"skipped, which counts as failed here: {', '.join(watch.skipped)}", file=sys.stderr)
    return code or (1 if watch.skipped else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
