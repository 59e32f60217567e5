"""Logins to registries: from a ``kubernetes.io/dockerconfigjson`` Secret or from the user's own container tools.

A password never leaves this module except as an ``Authorization`` header or in an auth file of mode 600.
"""

import asyncio
import base64
import binascii
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gitsync.errors import Invalid, Transient
from gitsync.images.reference import DOCKER_HUB

_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HELPER_SECONDS = 20
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryCredentials:
    """Logins by ``host`` or ``host/path``. ``source`` says where they came from ("Secret shop/registry")."""

    source: str = ""
    logins: Mapping[str, Login] = field(default_factory=dict[str, Login], repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict[str, str])  # host → docker-credential-<name>; "": any host

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every value that must not come back in a message."""
        values = {each for login in self.logins.values() for each in (login.password, login.identity_token) if each} | {
            login.basic.removeprefix("Basic ") for login in self.logins.values() if login.password
        }
        return tuple(sorted(values))

    @classmethod
    def from_dockerconfigjson(cls, data: bytes, *, source: str) -> "RegistryCredentials":
        """The value of ``.dockerconfigjson``, which no error quotes. Helpers named in it are ignored."""
        document = _document(data, source)
        return cls(source=source, logins=_logins(document, source))

    @classmethod
    def from_login_files(cls, environ: Mapping[str, str] | None = None) -> "RegistryCredentials":
        """What ``docker login``, ``podman login`` and ``skopeo login`` left; earlier files win."""
        env = os.environ if environ is None else environ
        home = env.get("HOME", "")
        paths = [
            env.get("REGISTRY_AUTH_FILE", ""),
            env.get("XDG_RUNTIME_DIR", "") and f"{env['XDG_RUNTIME_DIR']}/containers/auth.json",
            f"/run/containers/{os.getuid()}/auth.json",
            home and f"{home}/.config/containers/auth.json",
            f"{env.get('DOCKER_CONFIG') or home + '/.docker'}/config.json" if env.get("DOCKER_CONFIG") or home else "",
        ]
        logins: dict[str, Login] = {}
        helpers: dict[str, str] = {}
        read: list[str] = []
        for path in filter(None, paths):
            try:
                with open(path, "rb") as file:
                    data = file.read(_LIMIT + 1)
            except OSError:
                continue
            document = _document(data, path)
            logins = _logins(document, path) | logins
            helpers = {_host(host): str(name) for host, name in _map(document, "credHelpers").items()} | helpers
            if isinstance(document.get("credsStore"), str):
                helpers.setdefault("", document["credsStore"])
            read.append(path)
        return cls(source=", ".join(read), logins=logins, helpers=helpers)

    async def login(self, host: str, path: str = "") -> Login | None:
        """The most specific login: ``host/team/app`` before ``host/team`` before ``host``; else a helper's."""
        host = _host(host)
        parts = [host, *path.split("/")] if path else [host]
        for length in range(len(parts), 0, -1):
            found = self.logins.get("/".join(parts[:length]))
            if found:
                return found
        helper = self.helpers.get(host) or self.helpers.get("")
        return await _ask(helper, host) if helper else None

    async def auth_file(self, hosts: Mapping[str, Sequence[str]], directory: Path) -> Path:
        """Writes the logins for ``hosts`` (host → paths) as ``config.json`` (mode 600) for a builder to read.

        Where the paths of a host have different logins, each is there; that of the last one counts for those builders
        that know one login per host.
        """
        auths: dict[str, Any] = {}
        for host, paths in hosts.items():
            logins = {path: login for path in paths if (login := await self.login(host, path))}
            entries = {path: _entry(login) for path, login in logins.items()}
            if len(set(logins.values())) > 1:
                auths |= {f"{host}/{path}": entry for path, entry in entries.items() if path}
            if entries:
                auths[host] = list(entries.values())[-1]
                if _host(host) == DOCKER_HUB:
                    auths["https://index.docker.io/v1/"] = auths[host]
        target = directory / "config.json"
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump({"auths": auths}, file)
        return target


def _entry(login: Login) -> dict[str, str]:
    if login.identity_token:
        return {"auth": _encode("<token>", ""), "identitytoken": login.identity_token}
    return {"auth": _encode(login.username, login.password)}


def _encode(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def _host(key: str) -> str:
    """``https://index.docker.io/v1/`` → ``docker.io``; a path that names a repository is kept."""
    bare = re.sub(r"^https?://", "", key).rstrip("/")
    bare = re.sub(r"/v[12]$", "", bare)
    host, slash, path = bare.partition("/")
    return (DOCKER_HUB if host in _HUB_NAMES else host) + slash + path


def _document(data: bytes, source: str) -> dict[str, Any]:
    if len(data) > _LIMIT:
        raise Invalid(f"{source} is larger than 1 MiB", doing="reading registry logins")
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        # `from None`: the parser's own error quotes what it read.
        raise Invalid(f"{source} is not a JSON object", doing="reading registry logins", hint="log in again") from None
    return cast(dict[str, Any], document)


def _map(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _logins(document: Mapping[str, Any], source: str) -> dict[str, Login]:
    found: dict[str, Login] = {}
    for key, value in _map(document, "auths").items():
        entry = cast(dict[str, Any], value) if isinstance(value, dict) else {}
        username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if entry.get("auth"):
            try:
                username, _, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                raise Invalid(
                    f"{source}: the auth of “{_host(key)}” is not base64 of user:password",
                    doing="reading registry logins",
                    hint="make it again with kubectl create secret docker-registry",
                ) from None
        token = str(entry.get("identitytoken") or "")
        if username or token:
            found[_host(key)] = Login(username, password.rstrip("\0"), token)
    return found


async def _ask(helper: str, host: str) -> Login | None:
    """One ``docker-credential-<helper> get``; the host goes in on stdin, the login comes back on stdout."""
    doing = f"asking docker-credential-{helper} for the login to {host}"
    if not _HELPER_NAME.fullmatch(helper):
        raise Invalid("the credential helper's name is not a plain word", doing="reading registry logins")
    question = ("https://index.docker.io/v1/" if host == DOCKER_HUB else host).encode()
    try:
        process = await asyncio.create_subprocess_exec(
            f"docker-credential-{helper}",
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LIMIT,
        )
    except OSError as error:
        raise Transient(f"it cannot be started: {error.strerror}", doing=doing, hint="install it, or log in") from error
    try:
        async with asyncio.timeout(_HELPER_SECONDS):
            output, _ = await process.communicate(question)
    except TimeoutError as error:
        raise Transient(f"no answer within {_HELPER_SECONDS} s", doing=doing) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        return None  # helpers exit with 1 when they know no login
    try:
        answer = json.loads(output)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise Transient("its answer is not a login", doing=doing) from None
    return Login("", "", secret) if username == "<token>" else Login(username, secret)
