"""Runs one command, then ends whatever it left: ``python -I -S reaper.py PARENT COMMAND…``. Standard library only.

A chroot build has no process namespace: a daemon that a RUN starts in a session of its own outlives both its step and
a kill of the builder's process group. This parent adopts such strays (PR_SET_CHILD_SUBREAPER) and kills them, and it
is told when gitsync itself dies (PR_SET_PDEATHSIG), so that no build goes on without anybody waiting for it.

On SIGTERM the command's group gets SIGTERM once, and everything SIGKILL after GRACE seconds.
"""

import ctypes
import os
import signal
import sys

GRACE = 5.0
_PDEATHSIG, _SUBREAPER = 1, 36


def main(parent: int, argv: list[str]) -> int:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
        libc.prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked to be told
            return 128 + signal.SIGTERM

    def on_term(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, GRACE, 0.2)
        os.killpg(0, signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGALRM, _kill_children)
    command = os.posix_spawnp(argv[0], argv, os.environ, setsigmask=[], setsigdef=[signal.SIGTERM, signal.SIGALRM])
    code = 0
    while True:
        try:
            child, status = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if child == command:
            code = os.waitstatus_to_exitcode(status)
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.2)  # from here on only strays are left
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    if code < 0:  # end as the command ended
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _kill_children(*_: object) -> None:
    """Only direct ones: theirs become ours when they die, and the timer comes again."""
    me = str(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = file.read().rpartition(")")[2].split()[1]
                if parent == me:
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                continue


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
