"""Named places where a test may kill or freeze this process, to prove that a crash there loses nothing.

Off unless ``GITSYNC_FAILPOINT`` names one: ``record.saved`` (kill), ``record.saved@3`` (kill at the third passage),
``record.saved=pause:60`` (freeze the whole process for 60 s, as a stopped or starved one is). Standard library only.
A name stands for the moment just after what it says.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

VARIABLE = "GITSYNC_FAILPOINT"

#: Every failpoint of the program, in the order in which one deployment passes them.
NAMES: tuple[str, ...] = (
    "lease.acquired",
    "image.built",
    "image.pushed",
    "dryrun.done",
    "record.chunk-written",
    "record.chunks-written",
    "record.saved",
    "record.cleaned",
    "apply.started",
    "apply.adopted",
    "apply.replicas-claimed",
    "apply.replace-deleted",
    "apply.object-sent",
    "apply.gate-open",
    "apply.wave-sent",
    "wait.started",
    "wait.first-ready",
    "wait.ended",
    "prune.started",
    "prune.object-deleted",
    "prune.ended",
    "restore.started",
    "restore.object-applied",
    "restore.applied",
    "restore.object-removed",
    "restore.ended",
    "lease.released",
)


@dataclass(slots=True)
class _Armed:
    name: str
    passages: int  # still to go before it strikes
    pause: float  # seconds; 0 kills


def _parse(text: str) -> _Armed | None:
    if not text:
        return None
    point, _, action = text.partition("=")
    name, _, passage = point.partition("@")
    word, _, seconds = action.partition(":")
    if name not in NAMES or word not in ("", "kill", "pause"):
        raise ValueError(f"{VARIABLE}={text}: expected name[@passage][=kill|=pause:seconds], name one of {NAMES}")
    return _Armed(name, int(passage or 1), float(seconds or 60) if word == "pause" else 0.0)


_armed = _parse(os.environ.get(VARIABLE, ""))


def failpoint(name: str) -> None:
    """Strike here if the environment asked for it; otherwise nothing."""
    if _armed is None or _armed.name != name:
        return
    _armed.passages -= 1
    if _armed.passages:
        return
    os.write(2, f"failpoint {name} hit\n".encode())
    if _armed.pause:
        time.sleep(_armed.pause)  # blocks the event loop on purpose
    else:
        os.kill(os.getpid(), signal.SIGKILL)
