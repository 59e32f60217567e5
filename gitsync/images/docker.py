"""Builds with the docker command line and whatever daemon it talks to (DOCKER_HOST or its own default).

The daemon's own settings say which registries speak plain HTTP. With the buildx plugin it is BuildKit, without it
the daemon's first builder, which knows neither heredocs nor ``--link``.
"""

import os
import re
import shutil
from pathlib import Path

from gitsync.errors import GitsyncError, Transient
from gitsync.failpoints import failpoint
from gitsync.images import builder, process
from gitsync.images.builder import BuildRequest, Log
from gitsync.images.dockerfile import FRONTEND, HEREDOC, LINK, STOCK_FRONTEND

_PUSHED = re.compile(r"digest: (sha256:[0-9a-f]{64})")


class Docker:
    name = "docker"

    def __init__(self, host: str = "") -> None:
        """``host`` like ``unix:///run/docker.sock``; "" is DOCKER_HOST or docker's own default."""
        self._host = host or os.environ.get("DOCKER_HOST", "")

    async def available(self) -> str | None:
        if not shutil.which("docker"):
            return "docker is not installed"
        try:
            finished = await process.run(
                ["docker", "version", "--format", "{{.Server.Version}}"], lambda line: None, environ=self._environ()
            )
        except GitsyncError as error:
            return error.message
        return f"no docker daemon answers: {' '.join(finished.lines)[:200]}" if finished.code else None

    async def build(self, request: BuildRequest, log: Log) -> str:
        buildkit = await self._has_buildkit()
        self._refuse(request, buildkit)
        async with builder.deadline(request, log) as note:
            dockerfile = request.write_dockerfile()
            await request.credentials.auth_file(request.hosts(), request.scratch)
            environ = self._environ(request.scratch) | {"DOCKER_BUILDKIT": "1" if buildkit else "0"}
            argv = self._build_argv(request, dockerfile, buildkit)
            finished = await process.run(argv, note, environ=environ)
            if finished.code:
                raise builder.failure(finished, request, self.name)
            failpoint("image.built")
            finished = await process.run(["docker", "push", request.push], note, environ=environ)
            pushed = [match[1] for line in finished.lines if (match := _PUSHED.search(line))]
            if finished.code:
                raise builder.push_failure(finished, request, self.name)
            if not pushed:
                raise Transient("docker push told no digest", doing=f"pushing image {request.push}")
        return pushed[-1]

    def _build_argv(self, request: BuildRequest, dockerfile: Path, buildkit: bool) -> list[str]:
        argv = ["docker", "build", "--platform", request.platforms[0], "--file", str(dockerfile), "--tag", request.push]
        argv += ["--progress", "plain", "--provenance=false"] if buildkit else ["--force-rm"]
        argv += ["--target", request.target] if request.target else []
        if buildkit:
            argv += ["--build-arg", "SOURCE_DATE_EPOCH=0"]
        for name, value in request.args:
            argv += ["--build-arg", f"{name}={value}"]
        return [*argv, "--", str(request.context)]

    def _environ(self, config: Path | None = None) -> dict[str, str]:
        found = {"DOCKER_HOST": self._host} if self._host else {}
        for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONTEXT"):
            if name in os.environ and not self._host:
                found[name] = os.environ[name]
        return found | ({"DOCKER_CONFIG": str(config)} if config else {})

    async def _has_buildkit(self) -> bool:
        finished = await process.run(["docker", "buildx", "version"], lambda line: None, environ=self._environ())
        return finished.code == 0

    def _refuse(self, request: BuildRequest, buildkit: bool) -> None:
        for feature in request.dockerfile.features:
            if not buildkit and feature.name in (HEREDOC, LINK):
                able = "docker with its buildx plugin, or buildctl"
                raise builder.unsupported(request, "docker without buildx", feature.name, feature.line, able)
            if not buildkit and feature.name == FRONTEND and not STOCK_FRONTEND.fullmatch(request.dockerfile.syntax):
                what = f"the frontend {request.dockerfile.syntax}"
                raise builder.unsupported(request, "docker without buildx", what, feature.line, "buildctl")
        if len(request.platforms) > 1:
            what = f"several platforms in one build ({', '.join(request.platforms)})"
            raise builder.unsupported(request, self.name, what, 0, "BuildKit (buildctl)")
