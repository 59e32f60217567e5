"""Failpoints strike where and when they are told to, and only then; every name is really passed somewhere."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gitsync import failpoints


def run(value: str, code: str) -> subprocess.CompletedProcess[str]:
    program = f"from gitsync.failpoints import failpoint\n{code}\nprint('alive')"
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {failpoints.VARIABLE: value},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


THREE = "for _ in range(3): failpoint('record.saved')"


@pytest.mark.parametrize("value", ["", "record.cleaned", "record.saved@4"])
def test_nothing_happens_unless_asked(value: str) -> None:
    done = run(value, THREE)
    assert (done.returncode, done.stdout) == (0, "alive\n")


@pytest.mark.parametrize("value", ["record.saved", "record.saved=kill", "record.saved@3"])
def test_a_kill_is_a_kill(value: str) -> None:
    done = run(value, THREE)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
    assert done.stderr == "failpoint record.saved hit\n"


def test_a_pause_freezes_and_goes_on() -> None:
    began = time.monotonic()
    done = run("record.saved=pause:0.5", THREE)
    assert done.stdout == "alive\n"
    assert time.monotonic() - began >= 0.5


def test_an_unknown_name_is_an_error_at_start() -> None:
    done = run("record.svaed", "")
    assert done.returncode == 1
    assert "record.svaed" in done.stderr


def test_names_and_passages_agree() -> None:
    root = Path(failpoints.__file__).parent
    passed = {name for path in root.rglob("*.py") for name in re.findall(r'failpoint\("([^"]+)"\)', path.read_text())}
    assert passed == set(failpoints.NAMES)
