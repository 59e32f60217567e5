"""Images without a builder: reproducible layers and OCI layouts, from files and Debian packages.

Owns the bytes: sorted paths, no times, so that the same input has the same digest. Knows nothing of registries.
"""

import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Folders of the root that are links into /usr, whatever a package still says."""
_UNWANTED = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/")


@dataclass(slots=True)
class Layer:
    """A tree of files in the making. A path that is added twice is the latter."""

    entries: dict[str, tuple[tarfile.TarInfo, bytes | Path]] = field(
        default_factory=dict[str, tuple[tarfile.TarInfo, bytes | Path]]
    )
    status: dict[str, str] = field(default_factory=dict[str, str])
    """Debian package → its paragraph of /var/lib/dpkg/status."""

    def directory(self, path: str, *, mode: int = 0o755, owner: int = 0) -> None:
        self._add(path, tarfile.DIRTYPE, b"", mode=mode, owner=owner)

    def file(self, path: str, content: bytes | str | Path, *, mode: int = 0o644, owner: int = 0) -> None:
        content = content.encode() if isinstance(content, str) else content
        self._add(path, tarfile.REGTYPE, content, mode=mode, owner=owner)

    def link(self, path: str, target: str) -> None:
        self._add(path, tarfile.SYMTYPE, b"", mode=0o777, target=target)

    def tree(self, source: Path, path: str) -> None:
        """A folder of this machine, with its modes and links, owned by root."""
        for each in sorted(source.rglob("*")):
            there = f"{path}/{each.relative_to(source)}"
            if each.is_symlink():
                self.link(there, os.readlink(each))
            elif each.is_dir():
                self.directory(there)
            elif each.is_file():
                self.file(there, each, mode=each.stat().st_mode & 0o755)

    def package(self, deb: Path) -> None:
        """Unpack a Debian package as dpkg would, and record it as installed; its scripts are kept, not run."""
        control = _members(deb, "--ctrl-tarfile")
        paragraph = control["control"].decode()
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        name = fields["Package"]
        head, rest = paragraph.split("\n", 1)
        self.status[name] = f"{head}\nStatus: install ok installed\n{rest}"
        known_as = f"{name}:{fields['Architecture']}" if fields.get("Multi-Arch") == "same" else name
        listed = ["/."]

        def take(info: tarfile.TarInfo, content: bytes) -> None:
            path = _merged(info.name)
            if not path or path in _MERGED:
                return
            listed.append(f"/{path}")
            if path.startswith(_UNWANTED) and not path.endswith("/copyright"):
                return
            if info.isdir() and path in self.entries:
                return
            if info.islnk():
                info.linkname = _merged(info.linkname)
            self._add(path, info.type, content, mode=info.mode, owner=info.uid, group=info.gid, target=info.linkname)

        _read(deb, "--fsys-tarfile", take)
        self.file(f"var/lib/dpkg/info/{known_as}.list", "\n".join(listed) + "\n")
        for member, content in control.items():
            if member not in ("control", "."):
                self.file(f"var/lib/dpkg/info/{known_as}.{member}", content, mode=0o755)

    def capability(self, path: str, number: int) -> None:
        """Give a program one capability (capabilities(7): its bit) in place of its set-user-ID bit."""
        info = self.entries[path][0]
        info.mode &= 0o777
        value = struct.pack("<IIIII", 0x02000001, 1 << number, 0, 0, 0)
        info.pax_headers = {"SCHILY.xattr.security.capability": value.decode("utf-8", "surrogateescape")}

    def _add(
        self,
        path: str,
        kind: bytes,
        content: bytes | Path,
        *,
        mode: int,
        owner: int = 0,
        group: int = -1,
        target: str = "",
    ) -> None:
        path = path.strip("/")
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.uid, info.linkname = kind, mode, owner, target
        info.gid = owner if group < 0 else group
        info.size = content.stat().st_size if isinstance(content, Path) else len(content)
        self.entries[path] = (info, content)

    def write(self, target: IO[bytes]) -> None:
        """A plain tar, sorted; folders that nobody named are left to whoever unpacks it."""
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
            # A hard link must follow what it names.
            for _, (info, content) in sorted(self.entries.items(), key=lambda each: (each[1][0].islnk(), each[0])):
                if not info.isreg():
                    tar.addfile(info)
                elif isinstance(content, Path):
                    with content.open("rb") as source:
                        tar.addfile(info, source)
                else:
                    tar.addfile(info, io.BytesIO(content))


def _merged(path: str) -> str:
    path = str(PurePosixPath("/", path)).strip("/")
    first, _, rest = path.partition("/")
    return f"usr/{path}" if first in _MERGED and rest else path


def _members(deb: Path, part: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def take(info: tarfile.TarInfo, content: bytes) -> None:
        if info.isreg():
            found[PurePosixPath(info.name).name] = content

    _read(deb, part, take)
    return found


def _read(deb: Path, part: str, take: Callable[[tarfile.TarInfo, bytes], None]) -> None:
    with subprocess.Popen(["dpkg-deb", part, str(deb)], stdout=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        with tarfile.open(fileobj=cast(IO[bytes], unpacking.stdout), mode="r|") as tar:
            for info in tar:
                source = tar.extractfile(info) if info.isreg() else None
                take(info, source.read() if source else b"")
    if unpacking.returncode:
        raise RuntimeError(f"dpkg-deb {part} {deb} exited with {unpacking.returncode}")


class Layout:
    """An OCI layout folder with several images that share blobs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._manifests: list[dict[str, Any]] = []
        (directory / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def layer(self, layer: Layer) -> dict[str, Any]:
        """Store a layer; returns what ``image`` wants."""
        partial = self.directory / "blobs/partial"
        # The file name is left out of the gzip header, and the time is zero: same tree, same digest.
        with (
            partial.open("wb") as raw,
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
        ):
            plain = _Hashing(packed)
            layer.write(cast(IO[bytes], plain))
        descriptor = self._adopt(partial, "application/vnd.oci.image.layer.v1.tar+gzip")
        return {"descriptor": descriptor, "diff": f"sha256:{plain.digest.hexdigest()}"}

    def image(self, name: str, layers: Sequence[dict[str, Any]], config: dict[str, Any]) -> str:
        """Add an image under a name (``library/busybox:latest``); returns its digest."""
        body = {
            "architecture": _architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [each["diff"] for each in layers]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tests/cluster"} for _ in layers],
        }
        media_type = "application/vnd.oci.image.manifest.v1+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": self._blob(body, "application/vnd.oci.image.config.v1+json"),
            "layers": [each["descriptor"] for each in layers],
        }
        descriptor = self._blob(manifest, media_type)
        self._manifests.append(descriptor | {"annotations": {"org.opencontainers.image.ref.name": name}})
        index = {"schemaVersion": 2, "manifests": self._manifests}
        (self.directory / "index.json").write_text(json.dumps(index))
        return descriptor["digest"]

    def _blob(self, content: dict[str, Any], media_type: str) -> dict[str, Any]:
        partial = self.directory / "blobs/partial"
        partial.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))
        return self._adopt(partial, media_type)

    def _adopt(self, partial: Path, media_type: str) -> dict[str, Any]:
        with partial.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        size = partial.stat().st_size
        partial.rename(self.directory / "blobs/sha256" / digest)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


class _Hashing:
    """A file that is written once, and its digest."""

    def __init__(self, target: gzip.GzipFile) -> None:
        self.target = target
        self.digest = hashlib.sha256()
        self._position = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self._position += len(data)
        return self.target.write(data)

    def tell(self) -> int:
        return self._position


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
