"""Webhooks of git hosts: who signed it, and what it is about. Pure.

The signature is checked over the raw bytes before anything is parsed, and a secret is mandatory. What a payload says is
never believed: it only names a repository and refs, so that somebody looks there now instead of at the next poll. That
is why a replayed or reordered delivery does no harm.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from gitsync.application import Ref
from gitsync.errors import Invalid

TOLERANCE = 300.0  # seconds a Standard Webhooks timestamp may be off
SHORTEST_SECRET = 8
_MOST_URLS = 32
_SCP_LIKE = re.compile(r"(?:[^@/\s]+@)?([^:/@\s]+):(?!//)(\S+)")


class Provider(StrEnum):
    """Who sends. ``GENERIC`` is anything that signs by the Standard Webhooks specification."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"
    FORGEJO = "forgejo"
    BITBUCKET = "bitbucket"
    GENERIC = "generic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A push: ``repositories`` as ``normalise`` gives them, ``refs`` in full (``refs/heads/main``; empty: any)."""

    repositories: frozenset[str]
    refs: frozenset[str] = frozenset()

    def concerns(self, repository: str, ref: Ref) -> bool:
        """Whether an Application that follows this ref of this repository (any form of its URL) should look now."""
        if _followed(repository) not in self.repositories:
            return False
        if not self.refs or ref.kind == "commit":
            return True
        if ref.kind == "semver":
            return any(each.startswith("refs/tags/") for each in self.refs)
        return f"refs/{'heads' if ref.kind == 'branch' else 'tags'}/{ref.value}" in self.refs


def parse_secrets(text: str) -> tuple[str, ...]:
    """Secrets from a file, one a line; several while one is being replaced. Raises ``Invalid`` without the values."""
    secrets = tuple(line.strip() for line in text.splitlines() if line.strip())
    for number, secret in enumerate(secrets, start=1):
        if len(secret) < SHORTEST_SECRET:
            raise Invalid(f"webhook secret {number} is shorter than {SHORTEST_SECRET} characters", doing="reading")
        if secret.startswith("whsec_") and _key(secret) is None:
            raise Invalid(f"webhook secret {number} is not whsec_ followed by base64", doing="reading")
    return secrets


def normalise(repository: str) -> str:
    """One name for the https, ssh and html forms of a repository's URL: ``git.example.com/team/shop``.

    Coarse on purpose (no user, port or case): a match too many only makes somebody look once more.
    """
    text = repository.strip()
    if "://" in text:
        try:
            parts = urlsplit(text)
            host, path = parts.hostname or "", parts.path
        except ValueError:
            return ""
    elif match := _SCP_LIKE.fullmatch(text):
        host, path = match[1], match[2]
    else:
        host, path = "", text
    path = unquote(path).strip("/").removesuffix(".git").rstrip("/")
    return f"{host}/{path}".casefold() if path else ""


#: The same for the URLs of Applications, all of which every push is held against. Not for what a push says.
_followed = lru_cache(maxsize=8192)(normalise)


# ---------------------------------------------------------------- who signed it


def detect(headers: Mapping[str, str]) -> Provider | None:
    """Who claims to have sent this. Gitea and Forgejo also send GitHub's headers, so theirs come first."""
    names = {name.lower() for name in headers}
    for header, provider in (
        ("x-forgejo-event", Provider.FORGEJO),
        ("x-forgejo-signature", Provider.FORGEJO),
        ("x-gitea-event", Provider.GITEA),
        ("x-gitea-signature", Provider.GITEA),
        ("x-gitlab-event", Provider.GITLAB),
        ("x-gitlab-token", Provider.GITLAB),
        ("x-github-event", Provider.GITHUB),
        ("x-hub-signature-256", Provider.GITHUB),
        ("x-event-key", Provider.BITBUCKET),
        ("webhook-signature", Provider.GENERIC),
    ):
        if header in names:
            return provider
    return None


def verify(headers: Mapping[str, str], raw_body: bytes, secrets: Sequence[str], *, now: float) -> Provider | None:
    """The sender if one of the secrets signed these very bytes, else None. ``now`` is Unix time in seconds.

    Every secret is tried and every comparison is in constant time, so that time tells nothing about a secret.
    """
    given = {name.lower(): value for name, value in headers.items()}
    provider = detect(headers)
    if provider is None:
        return None
    if provider is Provider.GITLAB and "webhook-signature" not in given:
        # the host's older way: the secret itself; hashed so that its length does not show
        token = hashlib.sha256(given.get("x-gitlab-token", "").encode(errors="replace")).digest()
        matches = [hmac.compare_digest(token, hashlib.sha256(each.encode()).digest()) for each in secrets]
    elif provider in (Provider.GITLAB, Provider.GENERIC):
        matches = _standard(given, raw_body, secrets, now)
    else:
        header, prefix = {
            Provider.FORGEJO: ("x-forgejo-signature", ""),
            Provider.GITEA: ("x-gitea-signature", ""),
            Provider.GITHUB: ("x-hub-signature-256", "sha256="),
            Provider.BITBUCKET: ("x-hub-signature", "sha256="),
        }[provider]
        if provider is Provider.FORGEJO and header not in given:
            header = "x-gitea-signature"  # the name that Forgejo keeps for Gitea's receivers
        signature = given.get(header, "").encode(errors="replace")
        matches = [
            hmac.compare_digest(
                signature, prefix.encode() + hmac.digest(each.encode(), raw_body, "sha256").hex().encode()
            )
            for each in secrets
        ]
    return provider if any(matches) else None


def _standard(given: Mapping[str, str], raw_body: bytes, secrets: Sequence[str], now: float) -> list[bool]:
    """The Standard Webhooks specification: ``v1,<base64>`` over ``id.timestamp.body``, and a fresh timestamp."""
    identity, timestamp = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    fresh = bool(re.fullmatch(r"[0-9]{1,12}", timestamp)) and abs(now - int(timestamp)) <= TOLERANCE
    content = f"{identity}.{timestamp}.".encode(errors="replace") + raw_body
    signatures = [each.encode(errors="replace") for each in given.get("webhook-signature", "").split(" ")[:16]]
    matches: list[bool] = []
    for secret in secrets:
        expected = b"v1," + base64.b64encode(hmac.digest(_key(secret) or secret.encode(), content, "sha256"))
        matches += [hmac.compare_digest(expected, each) and fresh and bool(identity) for each in signatures]
    return matches


def _key(secret: str) -> bytes | None:
    if not secret.startswith("whsec_"):
        return None
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True) or None
    except (binascii.Error, ValueError):
        return None


# ---------------------------------------------------------------- what it is about


def parse(provider: Provider, headers: Mapping[str, str], raw_body: bytes) -> Trigger | None:
    """What a verified delivery is about; None for a ping and for events that are no push. ``Invalid`` if malformed."""
    given = {name.lower(): value for name, value in headers.items()}
    payload = _json(given, raw_body)
    event = next(
        (
            given[name].lower()
            for name in ("x-forgejo-event", "x-gitea-event", "x-gitlab-event", "x-github-event", "x-event-key")
            if name in given
        ),
        "",
    )
    match provider:
        case Provider.GITLAB:
            event = str(payload.get("object_kind") or payload.get("event_name") or event)
            if event not in ("push", "tag_push", "repository_update"):
                return None
            urls = _texts(payload, ("project", "repository"), ("git_http_url", "git_ssh_url", "web_url", "homepage"))
            refs = _refs(payload.get("ref"))
        case Provider.BITBUCKET:
            if event not in ("repo:push", "repo:refs_changed"):
                return None
            urls, refs = _bitbucket(payload)
        case Provider.GENERIC:
            data = _mapping(payload.get("data")) or payload
            urls = [str(data["repository"])] if isinstance(data.get("repository"), str) else []
            urls += [each for each in _sequence(data.get("repositories")) if isinstance(each, str)]
            refs = _refs(data.get("ref"))
        case _:
            if event != "push":
                return None
            urls = _texts(payload, ("repository",), ("clone_url", "ssh_url", "html_url", "git_url"))
            refs = _refs(payload.get("ref"))
    repositories = frozenset(normalise(url) for url in urls[:_MOST_URLS]) - {""}
    if not repositories:
        raise Invalid("names no repository", doing="reading a webhook's payload")
    return Trigger(repositories=repositories, refs=refs)


def _json(given: Mapping[str, str], raw_body: bytes) -> dict[str, Any]:
    if given.get("content-type", "").lower().startswith("application/x-www-form-urlencoded"):
        # the other content type that GitHub and Gitea offer
        try:
            fields = parse_qs(raw_body.decode(), max_num_fields=8)
        except ValueError:
            fields = {}
        raw_body = fields.get("payload", [""])[0].encode(errors="replace")
    try:
        payload: object = orjson.loads(raw_body)
    except orjson.JSONDecodeError:
        raise Invalid("is no JSON", doing="reading a webhook's payload") from None
    if not isinstance(payload, dict):
        raise Invalid("is no JSON object", doing="reading a webhook's payload")
    return cast("dict[str, Any]", payload)


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _sequence(value: object) -> Sequence[object]:
    return cast("Sequence[object]", value) if isinstance(value, list) else ()


def _texts(payload: Mapping[str, Any], parents: Iterable[str], names: Iterable[str]) -> list[str]:
    found = [_mapping(payload.get(parent)).get(name) for parent in parents for name in names]
    return [each for each in found if isinstance(each, str)]


def _refs(*values: object) -> frozenset[str]:
    return frozenset(
        each if each.startswith("refs/") else f"refs/heads/{each}" for each in values if isinstance(each, str) and each
    )


def _bitbucket(payload: Mapping[str, Any]) -> tuple[list[str], frozenset[str]]:
    """Cloud puts changes below ``push`` and a page's link on the repository; Data Center has both at the top."""
    repository = _mapping(payload.get("repository"))
    links = _mapping(repository.get("links"))
    pages = [links.get("html"), *_sequence(links.get("clone"))]
    urls = [_mapping(each).get("href") for each in pages]
    refs: set[str] = set()
    for change in _sequence(_mapping(payload.get("push")).get("changes")):
        for side in ("new", "old"):
            end = _mapping(_mapping(change).get(side))
            kind = "tags" if end.get("type") == "tag" else "heads"
            if isinstance(end.get("name"), str):
                refs.add(f"refs/{kind}/{end['name']}")
    for change in _sequence(payload.get("changes")):
        identity = _mapping(_mapping(change).get("ref")).get("id")
        if isinstance(identity, str):
            refs.add(identity)
    return [each for each in urls if isinstance(each, str)], frozenset(refs)
