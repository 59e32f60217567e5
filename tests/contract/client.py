"""A plain HTTP client for one API server: what the contract is written in. No Kubernetes library."""

import base64
import ssl
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import aiohttp
import orjson
import yaml

Json = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; ``body`` is ``{}`` when it is no JSON object."""

    code: int
    body: Json
    headers: Mapping[str, str]
    text: str = ""

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))

    @property
    def reason(self) -> str:
        return str(self.body.get("reason", ""))


def root_of(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


class Api:
    """One API server, and a namespace that belongs to the test."""

    def __init__(self, session: aiohttp.ClientSession, url: str, namespace: str) -> None:
        self._session = session
        self.url = url
        self.namespace = namespace

    def path(
        self, api_version: str, plural: str, name: str = "", sub: str = "", *, namespace: str | None = None
    ) -> str:
        """Path of a resource; ``namespace`` "" for a cluster-scoped one."""
        place = self.namespace if namespace is None else namespace
        middle = f"/namespaces/{place}" if place else ""
        return "/".join(part for part in (f"{root_of(api_version)}{middle}/{plural}", name, sub) if part)

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        media: str = "application/json",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        data = body if isinstance(body, (bytes, type(None))) else orjson.dumps(body)
        sent = {"Content-Type": media, "User-Agent": "contract/1", **(headers or {})}
        async with self._session.request(
            method, self.url + path, data=data, headers=sent, params=query or {}
        ) as response:
            raw = await response.read()
            try:
                found: Any = orjson.loads(raw)
            except orjson.JSONDecodeError:
                found = {}
            known = cast("Json", found) if isinstance(found, dict) else {}
            return Answer(response.status, known, response.headers, raw.decode(errors="replace"))

    async def get(self, path: str, **query: str) -> Answer:
        return await self.request("GET", path, query=query)

    async def post(self, path: str, body: Json, **query: str) -> Answer:
        return await self.request("POST", path, body, query=query)

    async def put(self, path: str, body: Json, **query: str) -> Answer:
        return await self.request("PUT", path, body, query=query)

    async def patch(self, path: str, body: Any, media: str = MERGE, **query: str) -> Answer:
        return await self.request("PATCH", path, body, media=media, query=query)

    async def delete(self, path: str, body: Json | None = None, **query: str) -> Answer:
        return await self.request("DELETE", path, body, query=query)

    async def apply(self, path: str, body: Json, manager: str, *, force: bool = False, **query: str) -> Answer:
        query |= {"fieldManager": manager} | ({"force": "true"} if force else {})
        return await self.request("PATCH", path, body, media=APPLY, query=query)

    @asynccontextmanager
    async def watch(self, path: str, **query: str) -> AsyncGenerator[AsyncIterator[Json]]:
        """The events of one watch, decoded; ends when the server ends it."""
        params = {"watch": "1", "timeoutSeconds": "30", **query}
        async with self._session.get(self.url + path, params=params) as response:

            async def events() -> AsyncIterator[Json]:
                async for line in response.content:
                    yield orjson.loads(line)

            yield events()


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach an API server, from a kubeconfig's current context."""

    url: str
    headers: Mapping[str, str]
    tls: ssl.SSLContext | bool

    @classmethod
    def read(cls, path: Path) -> Self:
        config = yaml.safe_load(path.read_text())

        def named(kind: str, name: str) -> Json:
            return next(each for each in config[f"{kind}s"] if each["name"] == name)[kind]

        context = named("context", config["current-context"])
        cluster, user = named("cluster", context["cluster"]), named("user", context["user"])
        headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        tls: ssl.SSLContext | bool = True
        if cluster["server"].startswith("https"):
            tls = ssl.create_default_context()
            if authority := cluster.get("certificate-authority-data"):
                tls.load_verify_locations(cadata=base64.b64decode(authority).decode())
            elif "certificate-authority" in cluster:
                tls.load_verify_locations(path.parent / cluster["certificate-authority"])
            if cluster.get("insecure-skip-tls-verify"):
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            if "client-certificate-data" in user:
                with tempfile.TemporaryDirectory() as scratch:
                    files = [Path(scratch) / name for name in ("certificate", "key")]
                    for file, key in zip(files, ("client-certificate-data", "client-key-data"), strict=True):
                        file.write_bytes(base64.b64decode(user[key]))
                    tls.load_cert_chain(files[0], files[1])
            elif "client-certificate" in user:
                tls.load_cert_chain(path.parent / user["client-certificate"], path.parent / user["client-key"])
        return cls(url=cluster["server"].rstrip("/"), headers=headers, tls=tls)

    @asynccontextmanager
    async def connect(self, namespace: str) -> AsyncGenerator[Api]:
        """A client with a new namespace of that name, which goes with it."""
        connector = aiohttp.TCPConnector(ssl=self.tls)
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(headers=self.headers, connector=connector, timeout=timeout) as session:
            api = Api(session, self.url, namespace)
            made = await api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
            assert made.code == 201, made.text
            try:
                yield api
            finally:
                await api.delete(f"/api/v1/namespaces/{namespace}")
