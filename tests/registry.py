"""A real registry (Debian's ``docker-registry``) on loopback, with a login, for the length of a test."""

import asyncio
import base64
import gzip
import hashlib
import io
import json
import re
import secrets
import shutil
import signal
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import bcrypt

BUSYBOX = Path("/bin/busybox")
_APPLETS = ("sh", "echo", "sleep", "cat", "ls", "httpd", "setsid", "false", "true", "date", "kill", "mkdir", "touch")


class TestRegistry:
    """``async with TestRegistry(tmp_path, login=True) as r:`` then ``r.host``, ``r.username``, ``r.password``.

    ``requests("HEAD", r"/manifests/")`` counts what was asked of it; ``stop()`` and ``start()`` take it away for a
    while (same port, same content); ``push_image`` puts an image there without a builder.
    """

    __test__ = False

    def __init__(self, directory: Path, *, login: bool = True, address: str = "127.0.0.1", port: int = 0) -> None:
        self.username, self.password = ("gitsync", secrets.token_hex(8)) if login else ("", "")
        self.host = f"{address}:{port}"
        self._directory = directory / "registry"
        self._process: asyncio.subprocess.Process | None = None
        self._log = self._directory / "log"

    async def __aenter__(self) -> "TestRegistry":
        self._directory.mkdir(parents=True, exist_ok=True)
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(self._directory / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host, "secret": "for a test"},
        }
        if self.username:
            hashed = bcrypt.hashpw(self.password.encode(), bcrypt.gensalt(4)).decode().replace("$2a$", "$2b$", 1)
            (self._directory / "htpasswd").write_text(f"{self.username}:{hashed}\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(self._directory / "htpasswd")}}
        file = self._directory / "config.yml"
        file.write_text(json.dumps(config))
        before = self._text().count("listening on")
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                "docker-registry", "serve", str(file), stdout=log, stderr=log, start_new_session=True
            )
        async with asyncio.timeout(20):
            while len(found := re.findall(r'msg="listening on ([^"]+)"', self._text())) <= before:
                if self._process.returncode is not None:
                    raise RuntimeError(f"docker-registry ended: {self._text()[-2000:]}")
                await asyncio.sleep(0.02)
        self.host = found[-1]

    async def stop(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    def requests(self, method: str = "", path: str = "") -> int:
        """How many requests were answered whose method is this and whose path contains the expression."""
        lines = re.findall(r'^\S+ - \S* \[[^\]]*\] "(\S+) (\S+) HTTP', self._text(), re.MULTILINE)
        return sum(1 for verb, url in lines if method in ("", verb) and re.search(path, url))

    def dockerconfigjson(self) -> bytes:
        return json.dumps({"auths": {self.host: {"username": self.username, "password": self.password}}}).encode()

    async def push_image(
        self,
        name: str,
        tag: str,
        files: Mapping[str, bytes] | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        architecture: str = "amd64",
    ) -> str:
        """Puts a one-layer image under ``name:tag``: busybox with a shell, and ``files`` (path → content).

        Returns its digest. Equal arguments give an equal digest.
        """
        layer = _layer(files or {})
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "test"}],
        }
        packed, described = gzip.compress(layer, 1, mtime=0), json.dumps(document).encode()
        oci = "application/vnd.oci.image"
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": {"mediaType": f"{oci}.config.v1+json", "digest": _digest(described), "size": len(described)},
            "layers": [{"mediaType": f"{oci}.layer.v1.tar+gzip", "digest": _digest(packed), "size": len(packed)}],
        }
        async with self._session() as session:
            for blob in (packed, described):
                async with session.post(f"/v2/{name}/blobs/uploads/") as response:
                    response.raise_for_status()
                    place = response.headers["Location"]
                mark = "&" if "?" in place else "?"
                async with session.put(f"{place}{mark}digest={_digest(blob)}", data=io.BytesIO(blob)) as response:
                    response.raise_for_status()
            await self.put_manifest(name, tag, json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")
        return _digest(json.dumps(manifest).encode())

    async def put_manifest(self, name: str, tag: str, data: bytes, media_type: str) -> None:
        async with (
            self._session() as session,
            session.put(f"/v2/{name}/manifests/{tag}", data=data, headers={"Content-Type": media_type}) as response,
        ):
            response.raise_for_status()

    async def delete(self, name: str, digest: str) -> None:
        async with self._session() as session, session.delete(f"/v2/{name}/manifests/{digest}") as response:
            response.raise_for_status()

    def _session(self) -> aiohttp.ClientSession:
        login = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {login}"} if self.username else {}
        return aiohttp.ClientSession(f"http://{self.host}", headers=headers)

    def _text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def _layer(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for directory in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(entry)
        content = {"bin/busybox": Path(shutil.which("busybox") or BUSYBOX).read_bytes()}
        for path, data in {**content, **{path.lstrip("/"): data for path, data in files.items()}}.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for applet in _APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
