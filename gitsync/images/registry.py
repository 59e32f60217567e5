"""A client of OCI registries: resolve, read, retag. The only place of this package that speaks HTTP.

Only the registry's own 404 means "not there". Whatever else goes wrong is an error with a class that says whether to
retry: a registry that is away must never look like one that has nothing.
"""

import hashlib
import io
import json
import os
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, cast
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from gitsync.errors import Invalid, Transient, Waiting
from gitsync.images.credentials import Login, RegistryCredentials
from gitsync.images.reference import DOCKER_HUB, Reference, parse_reference

MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_LIMIT = 4 << 20  # the distribution specification's own limit for manifests
_REDIRECTS = 3
_CHALLENGE = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How registries are reached. ``insecure`` hosts (``host[:port]``) speak plain HTTP; loopback always does.

    ``mirrors`` maps a registry to the host that serves its images instead (``docker.io`` → ``mirror.example:5000``).
    """

    insecure: frozenset[str] = frozenset()
    mirrors: Mapping[str, str] = field(default_factory=dict[str, str])

    def plain(self, host: str) -> bool:
        return host in self.insecure or _loopback(host)

    def locate(self, text: str) -> Reference:
        """The place that a reference as people write it is read from: filled in, mirror applied."""
        normal = parse_reference(text).normal
        host = self.mirrors.get(normal.host, normal.host)
        return Reference(host=host, path=normal.path, tag=normal.tag, digest=normal.digest)


def proxy_for(url: URL, environ: Mapping[str, str]) -> str | None:
    """The proxy to reach a URL through, as builders read the environment: loopback never, NO_PROXY with networks.

    (aiohttp's own reading of it knows no networks, and takes logins from ~/.netrc along.)
    """

    def given(name: str) -> str:
        return environ.get(name) or environ.get(name.upper()) or ""

    proxy, host = given(f"{url.scheme}_proxy"), (url.host or "").lower()
    proxy = proxy if not proxy or "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")) or _loopback(_authority(url)):
        return None
    for entry in (word.strip().lower() for word in given("no_proxy").split(",")):
        name, _, port = entry.rpartition(":") if re.search(r"[^:]:\d+$", entry) else (entry, "", "")
        if port and port != str(url.port):
            continue
        bare = name.removeprefix("*").removeprefix(".")
        if entry == "*" or (bare and (host == bare or host.endswith(f".{bare}"))) or _within(host, name):
            return None
    return proxy


def _within(host: str, network: str) -> bool:
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _loopback(host: str) -> bool:
    name = URL(f"http://{host}").host or ""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest, an index or an image's configuration. ``digest`` is that of the bytes received."""

    digest: str
    media_type: str
    content: dict[str, Any]
    data: bytes = field(repr=False)


class Registry:
    """Reads and tags images with one set of credentials. Cheap; the session is shared and owned by the caller.

    Every method raises ``Waiting`` (login refused, too many requests), ``Transient`` (unreachable, 5xx, an answer
    that is no registry's) or ``Invalid`` (the name is refused).
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        credentials: RegistryCredentials | None = None,
        access: Access | None = None,
        deadline: float = 30.0,
    ) -> None:
        self._session = session
        self._credentials = credentials or RegistryCredentials()
        self._access = access or Access()
        self._timeout = aiohttp.ClientTimeout(total=deadline, connect=min(10.0, deadline))
        self._tokens: dict[tuple[str, str, str], tuple[str, float]] = {}  # (host, path, actions) → header, until

    async def resolve(self, reference: str) -> str | None:
        """The digest of a tag (or of the digest itself, when it is there); None if the registry has no such image."""
        place = self._access.locate(reference)
        status, headers, _ = await self._ask("HEAD", place, _manifest_path(place))
        if status == 404:
            return None
        digest = headers.get("Docker-Content-Digest", "")
        if re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            return digest
        document = await self.manifest(reference)  # the header is optional; the bytes tell
        return document.digest if document else None

    async def manifest(self, reference: str) -> Document | None:
        """The manifest or index of an image, its bytes checked against the digest when the reference has one."""
        place = self._access.locate(reference)
        return await self._document(place, _manifest_path(place), place.digest)

    async def platforms(self, reference: str) -> tuple[str, ...]:
        """``("linux/amd64", "linux/arm64/v8", …)``; empty if the registry has no such image."""
        document = await self.manifest(reference)
        if document is None:
            return ()
        if "manifests" in document.content:
            entries = cast(list[dict[str, Any]], document.content["manifests"])
            found = (_platform(cast(dict[str, Any], entry.get("platform") or {})) for entry in entries)
            return tuple(sorted({name for name in found if name and not name.startswith("unknown/")}))
        place = self._access.locate(reference)
        config = str(cast(dict[str, Any], document.content.get("config") or {}).get("digest") or "")
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", config):
            raise Transient("its manifest names no configuration", doing=f"reading image {place}")
        content = await self._document(place, f"blobs/{config}", config)
        name = _platform(content.content) if content else ""
        return (name,) if name else ()

    async def tag(self, reference: str, digest: str, new_tag: str) -> None:
        """Gives the image ``digest`` of ``reference``'s repository another tag: no layer moves."""
        base = self._access.locate(reference)
        document = await self.manifest(f"{base.name}@{digest}")
        if document is None:
            raise Invalid(f"there is no image {digest}", doing=f"tagging {base.name}:{new_tag}")
        place = Reference(host=base.host, path=base.path, tag=new_tag)
        await self._ask("PUT", place, _manifest_path(place), body=document.data, media_type=document.media_type)

    # ------------------------------------------------------------------ requests

    async def _document(self, place: Reference, path: str, expected: str) -> Document | None:
        status, headers, data = await self._ask("GET", place, path)
        if status == 404:
            return None
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if expected and digest != expected:
            raise Transient(f"the registry sent other bytes ({digest})", doing=f"reading image {place}")
        try:
            content = json.loads(data)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise _no_registry(place)
        return Document(
            digest=digest,
            media_type=headers.get("Content-Type", "").partition(";")[0],
            content=cast(dict[str, Any], content),
            data=data,
        )

    async def _ask(
        self, method: str, place: Reference, path: str, *, body: bytes | None = None, media_type: str = ""
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request, logged in if asked to. Returns 2xx and 404; the rest is raised."""
        host = "registry-1.docker.io" if place.host == DOCKER_HUB else place.host
        url = URL(f"{'http' if self._access.plain(host) else 'https'}://{host}/v2/{place.path}/{path}")
        actions = "pull,push" if method == "PUT" else "pull"
        headers = {"Accept": ", ".join(MANIFESTS) if path.startswith("manifests/") else "*/*"} | (
            {"Content-Type": media_type} if media_type else {}
        )
        doing = f"{'tagging' if body else 'reading'} image {place}"
        known, until = self._tokens.get((place.host, place.path, actions), ("", 0.0))
        authorization = known if time.monotonic() < until else ""
        for attempt in (1, 2):
            status, answer, data = await self._send(method, url, headers, authorization, body, doing)
            if status != 401 or attempt == 2:
                break
            authorization = await self._authorize(answer, place, actions, doing)
            if not authorization:
                break
        if 200 <= status < 300 or (status == 404 and not body):
            html = answer.get("Content-Type", "").startswith("text/html")
            if status == 404 and (html or (data and not _is_error(data))):
                raise _no_registry(place)
            return status, answer, data
        raise self._refusal(status, answer, data, place, doing)

    async def _send(
        self, method: str, url: URL, headers: Mapping[str, str], authorization: str, body: bytes | None, doing: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Follows redirects (registries hand blobs to object stores) without taking the login along to another host."""
        try:
            for _ in range(_REDIRECTS + 1):
                sent = {**headers, "Authorization": authorization} if authorization else dict(headers)
                content = io.BytesIO(body) if body is not None else None
                async with self._session.request(
                    method,
                    url,
                    headers=sent,
                    data=content,
                    allow_redirects=False,
                    timeout=self._timeout,
                    proxy=proxy_for(url, os.environ),
                ) as response:
                    if response.status in (301, 302, 303, 307, 308) and body is None:
                        target = url.join(URL(response.headers.get("Location", "")))
                        if target.origin() != url.origin():
                            authorization = ""
                            if target.scheme != "https" and not self._access.plain(_authority(target)):
                                raise Transient(f"redirected to {target.scheme}://{target.host}", doing=doing)
                        url = target
                        continue
                    data = b""
                    while chunk := await response.content.read(65536):
                        data += chunk
                        if len(data) > _LIMIT:
                            raise Transient("the answer is larger than 4 MiB", doing=doing)
                    return response.status, response.headers, data
            raise Transient(f"redirected more than {_REDIRECTS} times", doing=doing)
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            hint = f"if {url.host} speaks plain HTTP, list it as an insecure registry"
            raise Transient(f"no trusted TLS connection to {_authority(url)}", doing=doing, hint=hint) from error
        except TimeoutError as error:
            raise Transient(f"no answer from {_authority(url)} in time", doing=doing) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or type(error).__name__
            hint = "check its name and port, and that a connection from here may reach it"
            raise Transient(f"{_authority(url)} cannot be reached: {why}", doing=doing, hint=hint) from error

    # ------------------------------------------------------------------ login

    async def _authorize(self, answer: Mapping[str, str], place: Reference, actions: str, doing: str) -> str:
        """The header that answers a challenge: Basic, or a token from the realm. "" when we have no login for it."""
        login = await self._credentials.login(place.host, place.path)
        scheme, _, rest = answer.get("WWW-Authenticate", "").partition(" ")
        if scheme.lower() == "basic":
            header, lifetime = (login.basic if login and not login.identity_token else ""), 3600.0
        elif scheme.lower() == "bearer":
            header, lifetime = await self._token(dict(_CHALLENGE.findall(rest)), login, place, actions, doing)
        else:
            return ""
        self._tokens[(place.host, place.path, actions)] = header, time.monotonic() + lifetime
        return header

    async def _token(
        self, challenge: Mapping[str, str], login: Login | None, place: Reference, actions: str, doing: str
    ) -> tuple[str, float]:
        realm = URL(challenge.get("realm", ""))
        registry = URL(f"http://{place.host}")
        # A login goes over TLS only, or in plain text to the very host that is declared to speak it.
        if realm.scheme != "https" and not (realm.host == registry.host and self._access.plain(place.host)):
            raise Transient(
                f"the registry sends logins to {realm.scheme}://{realm.host}, which is not safe", doing=doing
            )
        scope = f"repository:{place.path}:{actions}"
        query = {"service": challenge.get("service", ""), "scope": scope}
        if login and login.identity_token:
            form = query | {
                "grant_type": "refresh_token",
                "refresh_token": login.identity_token,
                "client_id": "gitsync",
            }
            body = urlencode(form).encode()
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            status, answer, data = await self._send("POST", realm, headers, "", body, doing)
        else:
            basic = login.basic if login else ""
            status, answer, data = await self._send("GET", realm.update_query(query), {}, basic, None, doing)
        if status != 200:
            raise self._refusal(status, answer, data, place, doing)
        try:
            content = json.loads(data)
            token = str(content.get("token") or content["access_token"])
            lifetime = min(float(content.get("expires_in") or 60), 3600.0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Transient("the registry's token service sent no token", doing=doing) from None
        return f"Bearer {token}", max(0.0, lifetime - 10)

    def _refusal(
        self, status: int, answer: Mapping[str, str], data: bytes, place: Reference, doing: str
    ) -> Transient | Invalid:
        said = _said(data)
        if status in (401, 403):
            source = self._credentials.source
            return Waiting(
                f"registry {place.host} refuses access to {place.path} ({status}{said})",
                retry_after=60.0,
                doing=doing,
                hint=f"check the login in {source}" if source else f"log in to {place.host}: no login is set",
                reason="RegistryLoginRefused",
            )
        if status == 429:
            wait = answer.get("Retry-After", "")
            seconds = min(max(float(wait), 1.0), 3600.0) if wait.isdecimal() else 60.0
            return Waiting(f"registry {place.host} is sent too much (429)", retry_after=seconds, doing=doing)
        if status in (400, 405, 413, 415):
            return Invalid(f"registry {place.host} refuses the request ({status}{said})", doing=doing)
        return Transient(f"registry {place.host} answered {status}{said}", doing=doing)


def _manifest_path(place: Reference) -> str:
    return f"manifests/{place.digest or place.tag}"


def _platform(entry: Mapping[str, Any]) -> str:
    parts = (entry.get("os"), entry.get("architecture"), entry.get("variant"))
    return "/".join(str(part) for part in parts if part)


def _authority(url: URL) -> str:
    return url.host_port_subcomponent or "nowhere"


def _is_error(data: bytes) -> bool:
    try:
        return "errors" in json.loads(data)
    except (ValueError, TypeError):
        return False


def _no_registry(place: Reference) -> Transient:
    return Transient(
        f"the answer of {place.host} is not a registry's",
        doing=f"reading image {place}",
        hint="check the registry's address",
    )


def _said(data: bytes) -> str:
    """The registry's own words, shortened: ``: NAME_INVALID invalid repository name``."""
    try:
        error = json.loads(data)["errors"][0]
        text = f"{error.get('code', '')} {error.get('message', '')}".strip()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return ""
    return ": " + re.sub(r"[^\x20-\x7e]+", " ", text)[:200]
