"""Settings of the process: flags and ``GITSYNC_*`` environment variables, validated with all errors at once.

What concerns one Application stands in the Application. Here stands what the person who runs the service decides: where
images go, which builder makes them, what is listened on, what is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gitsync.errors import Invalid

BuilderName = Literal["auto", "buildah", "podman", "docker", "buildkit"]


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gitsync"


class Settings(BaseSettings):
    """One frozen object, made once in the command line and handed down. Durations are seconds, sizes bytes."""

    model_config = SettingsConfigDict(env_prefix="GITSYNC_", frozen=True, extra="forbid")

    # the cluster
    kubeconfig: Path | None = Field(None, description="kubeconfig file; default: KUBECONFIG, ~/.kube, in-cluster")
    context: str = Field("", description="context of the kubeconfig; default: its current one")
    namespace: str = Field("", description="follow Applications of this namespace only; default: of all namespaces")
    application: str = Field("", description="follow one Application, 'namespace/name', only")
    allow_exec_credentials: bool = Field(False, description="let a kubeconfig run an exec plugin to log in")
    default_service_account: str = Field(
        "", description="service account used for Applications that name none; default: gitsync's own rights"
    )

    # images
    registry: str = Field("", description="where images are pushed: host[:port][/prefix]")
    pull_registry: str = Field("", description="the same registry as nodes see it, if it differs from 'registry'")
    registry_auth_file: Path | None = Field(
        None, description="a .dockerconfigjson; default: the user's own container login"
    )
    insecure_registries: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="registry hosts spoken to over plain HTTP (loopback always is), separated by commas"
    )
    registry_mirrors: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict[str, str], description="mirrors for base images: docker.io=host:port, separated by commas"
    )
    builder: BuilderName = Field("auto", description="which backend builds images")
    buildkit_address: str = Field("", description="address of buildkitd, e.g. tcp://buildkitd.gitsync-buildkit:1234")
    build_timeout: float = Field(3600.0, gt=0, description="deadline of one image build")
    concurrent_builds: int = Field(1, ge=1, le=64, description="image builds at a time")

    # git
    allow_insecure_git: bool = Field(False, description="also file://, git:// and plain http:// repositories")
    fetch_timeout: float = Field(120.0, gt=0, description="deadline of one git fetch")
    interval: float = Field(60.0, ge=1, description="poll interval of Applications that name none")

    # the service
    cache_dir: Path = Field(default_factory=_cache_home, description="mirrors and build caches; may vanish at any time")
    listen: str = Field("127.0.0.1:8080", description="address of status, metrics and webhooks")
    public_status: bool = Field(False, description="let anyone who reaches the address read the status")
    api_token_file: Path | None = Field(None, description="file with the bearer token of the HTTP interface")
    webhook_secret_file: Path | None = Field(None, description="file with webhook secrets, one a line")
    leader_election: bool = Field(False, description="share the work safely with other replicas by a Lease")
    identity: str = Field(default_factory=lambda: os.uname().nodename, description="this replica's name")
    lease_namespace: str = Field("gitsync", description="namespace of the Lease")

    # output
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")

    @field_validator("insecure_registries", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("registry_mirrors", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if isinstance(value, str):
            pairs = [part.strip() for part in value.split(",") if part.strip()]
            if bad := [pair for pair in pairs if "=" not in pair]:
                raise ValueError(f"'{bad[0]}' is not of the form docker.io=host:port")
            return dict(pair.split("=", 1) for pair in pairs)
        return value

    @field_validator("registry", "pull_registry")
    @classmethod
    def _registry(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("takes host[:port][/prefix] without a scheme")
        if "@" in value:
            raise ValueError("takes no credentials; log in with your container tool or use a Secret")
        return value.rstrip("/")

    @field_validator("listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("takes HOST:PORT, e.g. 0.0.0.0:8080 or [::]:8080")
        return value

    @property
    def listen_host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def listen_port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @classmethod
    def load(cls, **flags: Any) -> Settings:
        """Flags win over the environment; ``None`` means that a flag was not given.

        ``Invalid`` names every wrong setting by flag and variable, without echoing values (one may be a secret).
        """
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            lines: list[str] = []
            for item in error.errors():
                name = str(item["loc"][0]) if item["loc"] else "settings"
                lines.append(f"--{name.replace('_', '-')} (GITSYNC_{name.upper()}): {item['msg']}")
            raise Invalid(
                "; ".join(lines), doing="reading settings", hint="see 'gitsync run --help'", reason="InvalidSettings"
            ) from error
