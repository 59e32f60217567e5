"""What the end of a failed build's output means: only a step that itself said no speaks against the commit."""

from pathlib import Path

import pytest

from gitsync.errors import BuildFailed, GitsyncError, Invalid, Transient, Waiting
from gitsync.images.builder import BuildRequest, failure, push_failure
from gitsync.images.dockerfile import parse
from gitsync.images.process import Finished
from gitsync.model import Origin

RUN = "STEP 2/2: RUN make"
SAID_NO = 'Error: building at STEP "RUN make": while running runtime: exit status {code}'


def request() -> BuildRequest:
    dockerfile = parse(b"FROM base\nRUN make\n", origin=Origin(file="web/Dockerfile"))
    return BuildRequest(
        image="web", dockerfile=dockerfile, context=Path("/context"), push="r.example/web:1", scratch=Path("/scratch")
    )


@pytest.mark.parametrize(
    ("code", "lines", "kind", "reason"),
    [
        (1, [RUN, SAID_NO.format(code=1)], BuildFailed, "BuildFailed"),
        (2, [RUN, "make: *** [all] Error 2", "ERROR: did not complete successfully: exit code: 2"], BuildFailed,
         "BuildFailed"),
        (1, [RUN, SAID_NO.format(code=137)], Transient, "Unavailable"),
        (-9, [RUN], Transient, "Unavailable"),
        (1, [RUN, "process exited on killed signal"], Transient, "Unavailable"),
        (1, [RUN, "cc: no space left on device", SAID_NO.format(code=1)], Transient, "DiskFull"),
        (1, [RUN, "npm ERR! code EAI_AGAIN", SAID_NO.format(code=1)], Transient, "Unavailable"),
        (1, [RUN, "exec format error", SAID_NO.format(code=1)], BuildFailed, "BuildFailed"),
        (1, ["dockerfile parse error on line 2: unknown instruction: RNU"], BuildFailed, "BuildFailed"),
        (125, ["reading manifest 1 in r.example/base: manifest unknown"], Invalid, "UnknownBase"),
        (1, [f"ERROR: failed to solve: r.example/base@sha256:{'0' * 64}: not found"], Invalid, "UnknownBase"),
        (125, ["initializing source: unauthorized: authentication required"], Waiting, "RegistryLoginRefused"),
        (125, ["dial tcp: connection refused"], Transient, "Unavailable"),
        (1, [RUN, 'building at STEP "COPY a /": no such file'], BuildFailed, "BuildFailed"),
        (125, ["what nobody has seen before"], Transient, "Unavailable"),
        (1, [], Transient, "Unavailable"),
    ],
)  # fmt: skip
def test_whom_a_failed_build_speaks_against(code: int, lines: list[str], kind: type[GitsyncError], reason: str) -> None:
    error = failure(Finished(code=code, lines=tuple(lines)), request(), "buildah")
    assert (type(error), error.reason) == (kind, reason)
    assert error.origin is not None
    assert error.origin.file == "web/Dockerfile"
    assert error.origin.line == (2 if RUN in lines else 0)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("denied: requested access to the resource is denied", Waiting),
        ("no space left on device", Transient),
        ("exit status 1", Transient),
        ("manifest unknown", Transient),
    ],
)
def test_a_push_that_failed_is_nobodys_fault(line: str, kind: type[GitsyncError]) -> None:
    assert type(push_failure(Finished(code=1, lines=(line,)), request(), "buildah")) is kind
