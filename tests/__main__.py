"""``python -m tests [pytest's arguments]``, also known as ``make test``: all that needs no Kubernetes.

Without arguments, three processes side by side: one has the sandbox, one what builds images, and one has the rest; the
first is shown while it runs, the others when they end. Much of the first two is waiting. With arguments, pytest as they
say.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from typing import IO

SANDBOX = ("tests/sandbox",)
BUILDS = ("tests/unit/images/test_backends.py", "tests/unit/images/test_build.py")
REST = ("tests/unit", "tests/contract", *(f"--ignore={place}" for place in BUILDS))
PYTEST = (sys.executable, "-m", "pytest")


def main(arguments: Sequence[str]) -> int:
    if arguments:
        return subprocess.run([*PYTEST, *arguments], check=False).returncode
    with beside(REST, "rest") as rest, beside(BUILDS, "builds") as builds:
        first = subprocess.run([*PYTEST, *SANDBOX], check=False).returncode
        codes = [first, builds.wait(), rest.wait()]
    return next(filter(None, codes), 0)


@contextlib.contextmanager
def beside(places: Sequence[str], name: str) -> Generator[subprocess.Popen[bytes]]:
    """A process of its own, waited for, whose output is shown at the end; a Ctrl-C reaches it."""
    told: IO[bytes]
    with tempfile.TemporaryFile() as told:
        command = [*PYTEST, "-o", f"cache_dir=.pytest_cache/{name}", *places]
        process = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True)
        try:
            yield process
            process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
            told.seek(0)
            sys.stdout.buffer.write(told.read())
            sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
