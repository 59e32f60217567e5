"""Image references, read as Docker reads them. Pure."""

import re
from dataclasses import dataclass

from gitsync.errors import Invalid

DOCKER_HUB = "docker.io"

_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_HOST = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """``host/path:tag@digest`` as written: absent parts are "". ``node:slim`` has no host; see ``normal``."""

    host: str = ""
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Without tag and digest, as written."""
        return f"{self.host}/{self.path}" if self.host else self.path

    @property
    def normal(self) -> "Reference":
        """With everything that Docker fills in: ``node`` → ``docker.io/library/node:latest``."""
        host = DOCKER_HUB if self.host in ("", "index.docker.io", "registry-1.docker.io") else self.host
        path = f"library/{self.path}" if host == DOCKER_HUB and "/" not in self.path else self.path
        return Reference(host=host, path=path, tag=self.tag or ("" if self.digest else "latest"), digest=self.digest)

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """Raises ``Invalid`` for what no registry would accept."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise Invalid(f"“{text}” is no image reference: after “@” a digest like sha256:… must follow")
    head, slash, tail = rest.partition("/")
    host = head if slash and (any(c in head for c in ".:[") or head == "localhost" or head != head.lower()) else ""
    path, colon, tag = (tail if host else rest).partition(":")
    if host and not _HOST.fullmatch(host):
        raise Invalid(f"“{text}” is no image reference: “{host}” is no registry host")
    if not _PATH.fullmatch(path) or len(path) > 255:
        raise Invalid(f"“{text}” is no image reference: its name is lower-case letters, digits, and . _ - / between")
    if colon and not _TAG.fullmatch(tag):
        raise Invalid(f"“{text}” is no image reference: “{tag}” is no tag")
    return Reference(host=host, path=path, tag=tag, digest=digest)
