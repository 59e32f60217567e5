"""Builds with BuildKit through ``buildctl``: the directory is sent to a daemon, which builds and pushes.

The daemon's own configuration says from which registries it pulls by plain HTTP; for the push the request does.
"""

import json
import os
import shutil
from pathlib import Path

from gitsync.errors import GitsyncError, Transient
from gitsync.images import builder, process
from gitsync.images.builder import BuildRequest, Log


class Buildctl:
    name = "buildctl"

    def __init__(self, address: str = "", *, tls: Path | None = None, tool: str = "buildctl") -> None:
        """``address`` like ``tcp://buildkitd.gitsync-build:1234`` or ``unix:///run/buildkit/buildkitd.sock``.

        "" is BUILDKIT_HOST or buildctl's own default. ``tls`` is a directory with ca.crt, tls.crt and tls.key.
        """
        self._address = address or os.environ.get("BUILDKIT_HOST", "")
        self._tls = tls
        self._tool = tool

    async def available(self) -> str | None:
        if not shutil.which(self._tool):
            return "buildctl is not installed"
        try:
            finished = await process.run([*self._command(), "debug", "workers"], lambda line: None)
        except GitsyncError as error:
            return error.message
        where = self._address or "its default address"
        return f"no buildkitd answers at {where}: {' '.join(finished.lines)[:200]}" if finished.code else None

    async def build(self, request: BuildRequest, log: Log) -> str:
        async with builder.deadline(request, log) as note:
            # A directory of its own: all of it is sent, and the login must not be.
            folder = request.scratch / "dockerfile"
            folder.mkdir()
            request.write_dockerfile().rename(folder / "Dockerfile")
            await request.credentials.auth_file(request.hosts(), request.scratch)
            environ = {"DOCKER_CONFIG": str(request.scratch)}
            argv = self._build_argv(request, folder)
            finished = await process.run(argv, note, environ=environ)
            if finished.code:
                said = " ".join(finished.lines[-12:])
                if "failed to push" in said:
                    raise builder.push_failure(finished, request, self.name)
                raise builder.failure(finished, request, self.name)
        try:
            return str(json.loads((request.scratch / "metadata").read_bytes())["containerimage.digest"])
        except (OSError, ValueError, KeyError) as error:
            raise Transient("BuildKit told no digest", doing=f"pushing image {request.push}") from error

    def _command(self) -> list[str]:
        argv = [self._tool, *(["--addr", self._address] if self._address else [])]
        if self._tls:
            for flag, file in (("--tlscacert", "ca.crt"), ("--tlscert", "tls.crt"), ("--tlskey", "tls.key")):
                argv += [flag, str(self._tls / file)]
        return argv

    def _build_argv(self, request: BuildRequest, dockerfile: Path) -> list[str]:
        place = request.place
        output = ["type=image", f"name={request.push}", "push=true", "rewrite-timestamp=true"]
        output.append(f"oci-mediatypes={'true' if request.dockerfile.output_format == 'oci' else 'false'}")
        if request.access.plain(place.host):
            output.append("registry.insecure=true")
        argv = [*self._command(), "build", "--progress", "plain", "--frontend", "dockerfile.v0"]
        argv += ["--local", f"context={request.context}", "--local", f"dockerfile={dockerfile}"]
        argv += ["--opt", f"platform={','.join(request.platforms)}", "--opt", "build-arg:SOURCE_DATE_EPOCH=0"]
        argv += ["--opt", f"target={request.target}"] if request.target else []
        for name, value in request.args:
            argv += ["--opt", f"build-arg:{name}={value}"]
        return [*argv, "--output", ",".join(output), "--metadata-file", str(request.scratch / "metadata")]
