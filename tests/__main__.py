"""``python -m tests [pytest's arguments]``, also known as ``make test``: all that needs no Kubernetes.

Without arguments, two processes side by side: one has all tests that use containers, which look at mounts and processes
of the whole machine, the other has the rest, and is shown when it ends. With arguments, pytest as they say.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

CONTAINERS = ("tests/sandbox", "tests/unit/images")
PLACES = ("tests/unit", "tests/contract", "tests/sandbox")


def main(arguments: Sequence[str]) -> int:
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        return subprocess.run([*pytest, *arguments], check=False).returncode
    others = [place for place in PLACES if place not in CONTAINERS]
    others += [f"--ignore={place}" for place in CONTAINERS]
    with tempfile.TemporaryFile() as told:
        beside = [*pytest, "-o", "cache_dir=.pytest_cache/beside", *others]
        second = subprocess.Popen(beside, stdout=told, stderr=told, start_new_session=True)
        try:
            first = subprocess.run([*pytest, *CONTAINERS], check=False).returncode
            code = second.wait()
        finally:
            if second.poll() is None:
                os.killpg(second.pid, signal.SIGINT)
                second.wait()
            told.seek(0)
            sys.stdout.buffer.write(told.read())
            sys.stdout.flush()
    return first or code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
