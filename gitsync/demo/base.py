"""The base image of the sample where no registry can be reached: this machine's own node, with busybox for a shell.

Owns the bytes of that one image and its way into a registry. The same machine makes the same digest every time.
"""

import asyncio
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gitsync.errors import GitsyncError, Invalid, Transient
from gitsync.images import Registry
from gitsync.images.reference import parse_reference

NAME = "node:slim"
_PATIENCE = 5.0  # seconds in which a registry on the internet has to answer
_OCI = "application/vnd.oci.image"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


async def reachable() -> bool:
    """Whether the real one can be pulled: its own registry tells its digest in time."""
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(_PATIENCE):
            return bool(await Registry(session, deadline=_PATIENCE).resolve(NAME))
    except (GitsyncError, TimeoutError):
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """An assembled image: one layer as a plain tar. ``made_of`` is for people."""

    layer: Path
    digest: str
    made_of: str


def assemble(folder: Path) -> Base:
    """Put the layer into ``folder``. ``Invalid`` says what to install. Takes a second or two, and no network."""
    doing = f"assembling the base image {NAME}, which cannot be pulled"
    found = {name: shutil.which(name) for name in ("node", "busybox", "ldd")}
    if missing := [name for name, path in found.items() if path is None]:
        hint = "on Debian: apt-get install nodejs busybox-static; or reach Docker Hub"
        raise Invalid(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing", doing=doing, hint=hint)
    node, busybox = (Path(str(found[name])).resolve() for name in ("node", "busybox"))
    files = {path: path for program in (node, busybox) for path in (program, *libraries(program))}
    applets = _said(str(busybox), "--list").split()
    links = {f"bin/{name}": "busybox" for name in applets if name != "busybox"}
    links |= {"usr/local/bin/node": str(node)} if str(node) != "/usr/local/bin/node" else {}
    files[Path("/bin/busybox")] = files.pop(busybox)
    layer = folder / "base.tar"
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar:
        for path, source in sorted(files.items()):
            entry = tarfile.TarInfo(str(path).lstrip("/"))
            entry.mode, entry.size = 0o755, source.stat().st_size
            with source.open("rb") as content:
                tar.addfile(entry, content)
        for name, target in sorted(links.items()):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            tar.addfile(entry)
        entry = tarfile.TarInfo("tmp")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(entry)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Base(layer=layer, digest=f"sha256:{digest}", made_of=f"node {_said(str(node), '--version')} and busybox")


def libraries(program: Path) -> list[Path]:
    """The shared libraries that the loader would map for a program; none for a static one."""
    shown = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False, timeout=30).stdout
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", shown)]


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


async def offer(base: Base, host: str) -> None:
    """Push it to the registry at ``host`` under the name and tag that Docker Hub has it by."""
    place = parse_reference(NAME).normal
    machine = os.uname().machine
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {"Cmd": ["node"], "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [base.digest]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": f"gitsync demo: {base.made_of}"}],
    }
    described = json.dumps(config).encode()
    name = f"sha256:{hashlib.sha256(described).hexdigest()}"
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": {"mediaType": f"{_OCI}.config.v1+json", "digest": name, "size": len(described)},
        "layers": [
            {"mediaType": f"{_OCI}.layer.v1.tar", "digest": base.digest, "size": base.layer.stat().st_size},
        ],
    }
    try:
        async with aiohttp.ClientSession(f"http://{host}", raise_for_status=True) as session:
            with base.layer.open("rb") as layer:
                for digest, content in ((base.digest, layer), (name, io.BytesIO(described))):
                    async with session.post(f"/v2/{place.path}/blobs/uploads/") as response:
                        target = response.headers["Location"]
                    mark = "&" if "?" in target else "?"
                    async with session.put(f"{target}{mark}digest={digest}", data=content):
                        pass
            headers = {"Content-Type": manifest["mediaType"]}
            body = json.dumps(manifest).encode()
            async with session.put(f"/v2/{place.path}/manifests/{place.tag}", data=body, headers=headers):
                pass
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Transient(f"the demo's registry did not take it: {error}", doing=f"pushing {NAME}") from error
