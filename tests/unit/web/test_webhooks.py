"""Who signed a webhook and what it is about: published payloads and vectors, and everything that must be refused.

The payloads are reduced to the fields that matter, with the values of the hosts' own documentation:
GitHub: docs.github.com "Webhook events and payloads" (push); GitLab: docs.gitlab.com "Webhook events" (push, tag push);
Gitea: docs.gitea.com "Webhooks"; Forgejo: forgejo.org/docs "Webhooks"; Bitbucket Cloud: support.atlassian.com "Event
payloads" (push); Bitbucket Data Center: confluence.atlassian.com "Event payload" (repo:refs_changed).
"""

import base64
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from gitsync.application import Ref
from gitsync.errors import Invalid
from gitsync.web.webhooks import Provider, Trigger, detect, normalise, parse, parse_secrets, verify

SECRET = "correct horse battery"
NOW = 1_700_000_000.0

GITHUB = {
    "ref": "refs/heads/main",
    "repository": {
        "full_name": "Codertocat/Hello-World",
        "html_url": "https://github.com/Codertocat/Hello-World",
        "git_url": "git://github.com/Codertocat/Hello-World.git",
        "ssh_url": "git@github.com:Codertocat/Hello-World.git",
        "clone_url": "https://github.com/Codertocat/Hello-World.git",
    },
}
GITLAB = {
    "object_kind": "push",
    "event_name": "push",
    "ref": "refs/heads/master",
    "project": {
        "web_url": "http://example.com/mike/diaspora",
        "git_ssh_url": "git@example.com:mike/diaspora.git",
        "git_http_url": "http://example.com/mike/diaspora.git",
    },
    "repository": {"url": "git@example.com:mike/diaspora.git", "homepage": "http://example.com/mike/diaspora"},
}
GITLAB_TAG = GITLAB | {"object_kind": "tag_push", "event_name": "tag_push", "ref": "refs/tags/v1.0.0"}
GITEA = {
    "secret": "",
    "ref": "refs/heads/develop",
    "repository": {
        "html_url": "http://localhost:3000/gitea/webhooks",
        "ssh_url": "ssh://gitea@localhost:2222/gitea/webhooks.git",
        "clone_url": "http://localhost:3000/gitea/webhooks.git",
    },
}
BITBUCKET = {
    "push": {
        "changes": [
            {"new": {"type": "branch", "name": "name-of-branch"}, "old": {"type": "branch", "name": "name-of-branch"}},
            {"new": {"type": "tag", "name": "v2"}, "old": None},
        ]
    },
    "repository": {"links": {"html": {"href": "https://bitbucket.org/team_name/repo_name"}}},
}
BITBUCKET_SERVER = {
    "eventKey": "repo:refs_changed",
    "repository": {
        "slug": "repository",
        "links": {"clone": [{"href": "ssh://git@bitbucket.example.com:7999/proj/repository.git", "name": "ssh"}]},
    },
    "changes": [{"ref": {"id": "refs/heads/master", "displayId": "master", "type": "BRANCH"}, "type": "UPDATE"}],
}
GENERIC = {
    "type": "push",
    "timestamp": "2026-05-01T12:00:00Z",
    "data": {"repository": "https://h/x.git", "ref": "main"},
}


def hexdigest(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def standard(body: bytes, *, key: bytes, at: float = NOW, identity: str = "msg_1") -> dict[str, str]:
    content = f"{identity}.{int(at)}.".encode() + body
    signature = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return {"webhook-id": identity, "webhook-timestamp": str(int(at)), "webhook-signature": f"v1,{signature}"}


def headers(provider: Provider, body: bytes, event: str = "push") -> dict[str, str]:
    """As the host sends them, with all it adds for the receivers of others."""
    digest = hexdigest(body)
    gitea = {
        "X-Gitea-Event": event, "X-Gitea-Signature": digest, "X-GitHub-Event": event, "X-Gogs-Event": event,
        "X-Hub-Signature-256": f"sha256={digest}", "X-Hub-Signature": "sha1=0", "X-Gogs-Signature": digest,
    }  # fmt: skip
    return {
        Provider.GITHUB: {"X-GitHub-Event": event, "X-Hub-Signature-256": f"sha256={digest}"},
        Provider.GITLAB: {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": SECRET},
        Provider.GITEA: gitea,
        Provider.FORGEJO: gitea | {"X-Forgejo-Event": event, "X-Forgejo-Signature": digest},
        Provider.BITBUCKET: {"X-Event-Key": event, "X-Hub-Signature": f"sha256={digest}"},
        Provider.GENERIC: standard(body, key=SECRET.encode()),
    }[provider]


def encoded(payload: Any) -> bytes:
    return json.dumps(payload).encode()


@pytest.mark.parametrize(
    ("provider", "event", "payload", "repository", "refs"),
    [
        (Provider.GITHUB, "push", GITHUB, "github.com/codertocat/hello-world", {"refs/heads/main"}),
        (Provider.GITLAB, "", GITLAB, "example.com/mike/diaspora", {"refs/heads/master"}),
        (Provider.GITLAB, "", GITLAB_TAG, "example.com/mike/diaspora", {"refs/tags/v1.0.0"}),
        (Provider.GITEA, "push", GITEA, "localhost/gitea/webhooks", {"refs/heads/develop"}),
        (Provider.FORGEJO, "push", GITEA, "localhost/gitea/webhooks", {"refs/heads/develop"}),
        (Provider.BITBUCKET, "repo:push", BITBUCKET, "bitbucket.org/team_name/repo_name",
         {"refs/heads/name-of-branch", "refs/tags/v2"}),
        (Provider.BITBUCKET, "repo:refs_changed", BITBUCKET_SERVER, "bitbucket.example.com/proj/repository",
         {"refs/heads/master"}),
        (Provider.GENERIC, "", GENERIC, "h/x", {"refs/heads/main"}),
        (Provider.GENERIC, "", {"repositories": ["https://h/x"]}, "h/x", set[str]()),
    ],
)  # fmt: skip
def test_published_payloads(
    provider: Provider, event: str, payload: dict[str, Any], repository: str, refs: set[str]
) -> None:
    body = encoded(payload)
    given = headers(provider, body, event)
    assert detect(given) is provider
    assert verify(given, body, ("another secret", SECRET), now=NOW) is provider
    assert verify({k.upper(): v for k, v in given.items()}, body, (SECRET,), now=NOW) is provider
    assert parse(provider, given, body) == Trigger(repositories=frozenset({repository}), refs=frozenset(refs))


@pytest.mark.parametrize("provider", list(Provider))
def test_unsigned_altered_or_signed_with_something_else(provider: Provider) -> None:
    body = encoded(GITHUB)
    given = headers(provider, body)
    assert verify(given, body, (SECRET,), now=NOW) is provider
    assert verify(given, body, ("another secret",), now=NOW) is None
    assert verify(given, body, (), now=NOW) is None
    assert verify(given, body, ("",), now=NOW) is None
    if provider is not Provider.GITLAB:  # its token signs nothing; its newer signature does, see below
        assert verify(given, body + b" ", (SECRET,), now=NOW) is None
    for name in given:
        if "ignature" in name or "oken" in name:
            assert verify(given | {name: ""}, body, (SECRET,), now=NOW) in (None, provider)
    bare = {k: v for k, v in given.items() if "ignature" not in k and "oken" not in k}
    assert verify(bare, body, (SECRET,), now=NOW) is None
    assert (
        verify(
            given | dict.fromkeys((k for k in given if "ignature" in k or "oken" in k), "é\udcff"),
            body,
            (SECRET,),
            now=NOW,
        )
        is None
    )


def test_only_the_senders_own_signature_counts() -> None:
    """A stale X-Hub-Signature-256 beside a wrong signature of Gitea's own does not help."""
    body = encoded(GITEA)
    for provider, name in ((Provider.GITEA, "X-Gitea-Signature"), (Provider.FORGEJO, "X-Forgejo-Signature")):
        assert verify(headers(provider, body) | {name: "0" * 64}, body, (SECRET,), now=NOW) is None


def test_nothing_that_names_no_sender() -> None:
    assert detect({"Content-Type": "application/json"}) is None
    assert verify({"X-Hub-Signature": "sha1=abc"}, b"{}", (SECRET,), now=NOW) is None


def test_github_published_vector() -> None:
    """docs.github.com, "Validating webhook deliveries"."""
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    given = {"X-Hub-Signature-256": signature}
    assert verify(given, b"Hello, World!", ("It's a Secret to Everybody",), now=NOW) is Provider.GITHUB


STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STANDARD = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}


@pytest.mark.parametrize(
    ("changes", "now", "accepted"),
    [
        ({}, 1614265330, True),
        ({}, 1614265330 + 299, True),
        ({}, 1614265330 - 299, True),
        ({}, 1614265330 + 301, False),
        ({}, 1614265330 - 301, False),
        ({"webhook-id": "msg_other"}, 1614265330, False),
        ({"webhook-id": ""}, 1614265330, False),
        ({"webhook-timestamp": "1614265331"}, 1614265330, False),
        ({"webhook-timestamp": "nan"}, 1614265330, False),
        ({"webhook-timestamp": "-1"}, 1614265330, False),
        ({"webhook-signature": STANDARD["webhook-signature"].replace("v1", "v2")}, 1614265330, False),
        ({"webhook-signature": f"v1,AAAA v1a,BBBB {STANDARD['webhook-signature']}"}, 1614265330, True),
        ({"webhook-signature": "v1,"}, 1614265330, False),
        ({"x-gitlab-event": "Push Hook"}, 1614265330, True),
        ({"x-gitlab-event": "Push Hook", "x-gitlab-token": STANDARD_SECRET, "webhook-id": "x"}, 1614265330, False),
    ],
)
def test_standard_webhooks_published_vector(changes: dict[str, str], now: float, accepted: bool) -> None:
    """github.com/standard-webhooks/standard-webhooks, the example; GitLab's signing token is the same."""
    nameless = standard(b"{}", key=SECRET.encode(), identity="")
    assert verify(nameless, b"{}", (SECRET,), now=NOW) is None
    found = verify(STANDARD | changes, b'{"test": 2432232314}', ("other secret", STANDARD_SECRET), now=now)
    assert (found is not None) is accepted


@pytest.mark.parametrize(
    ("provider", "event", "payload"),
    [
        (Provider.GITHUB, "ping", {"zen": "Keep it logically awesome.", "repository": GITHUB["repository"]}),
        (Provider.GITHUB, "issues", GITHUB),
        (Provider.GITLAB, "", {"object_kind": "merge_request", "project": GITLAB["project"]}),
        (Provider.GITEA, "create", GITEA),
        (Provider.BITBUCKET, "diagnostics:ping", {"test": True}),
    ],
)
def test_pings_and_other_events(provider: Provider, event: str, payload: dict[str, Any]) -> None:
    body = encoded(payload)
    assert parse(provider, headers(provider, body, event), body) is None


def test_form_encoded_payload() -> None:
    body = urlencode({"payload": json.dumps(GITHUB)}).encode()
    given = headers(Provider.GITHUB, body) | {"Content-Type": "application/x-www-form-urlencoded"}
    assert verify(given, body, (SECRET,), now=NOW) is Provider.GITHUB
    assert parse(Provider.GITHUB, given, body) == parse(Provider.GITHUB, headers(Provider.GITHUB, b""), encoded(GITHUB))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"3", b'"x"', b"\xff\xfe", b"{}", b"[" * 100_000, b'{"repository": null}',
        b'{"repository": []}', b'{"repository": {"clone_url": 3}}', b'{"repository": {"clone_url": ""}}',
        b'{"repository": {"clone_url": "https://[::1"}}', b'{"data": {"repository": {"a": 1}}}',
        b'{"changes": 3, "push": 3}',
        b'{"push": {"changes": [3, {"new": 3}]}, "changes": [{"ref": 3}, 3]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("provider", "event"),
    [(Provider.GITHUB, "push"), (Provider.GITLAB, ""), (Provider.GENERIC, ""), (Provider.BITBUCKET, "repo:push")],
)
def test_malformed_payloads_are_invalid_and_nothing_worse(provider: Provider, event: str, body: bytes) -> None:
    given = headers(provider, body, event)
    if provider is Provider.GITLAB and body.startswith(b"{") and len(body) > 1:
        assert parse(provider, given, body) is None  # without object_kind it is no push
        return
    with pytest.raises(Invalid) as caught:
        parse(provider, given, body)
    assert caught.value.doing == "reading a webhook's payload"


def test_many_urls_are_cut() -> None:
    found = parse(Provider.GENERIC, {}, encoded({"repositories": [f"https://h/{n}" for n in range(10_000)]}))
    assert found is not None
    assert len(found.repositories) == 32


# ---------------------------------------------------------------- which Applications


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.com/team/shop.git",
        "https://git.example.com/team/shop",
        "https://git.example.com/team/shop/",
        "https://user:pw@Git.Example.COM:8443/Team/Shop.git",
        "ssh://git@git.example.com:2222/team/shop.git",
        "git@git.example.com:team/shop.git",
        "git.example.com:team/shop",
        "http://git.example.com/team%2Fshop.git/",
    ],
)
def test_forms_of_one_url(url: str) -> None:
    assert normalise(url) == "git.example.com/team/shop"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://git.example.com/team/other.git", "git.example.com/team/other"),
        ("https://example.com/team/shop.git", "example.com/team/shop"),
        ("file:///srv/git/shop.git", "/srv/git/shop"),
        ("/srv/git/shop.git", "/srv/git/shop"),
        ("https://[::1]:3000/a/b.git", "::1/a/b"),
        ("https://[::1", ""),
        ("https://git.example.com", ""),
        ("", ""),
    ],
)
def test_other_urls(url: str, expected: str) -> None:
    assert normalise(url) == expected


@pytest.mark.parametrize(
    ("ref", "refs", "concerned"),
    [
        (Ref(branch="main"), {"refs/heads/main"}, True),
        (Ref(), {"refs/heads/main"}, True),
        (Ref(branch="main"), {"refs/heads/dev"}, False),
        (Ref(branch="main"), {"refs/tags/main"}, False),
        (Ref(branch="main"), {"refs/heads/dev", "refs/heads/main"}, True),
        (Ref(branch="main"), set[str](), True),
        (Ref(tag="v1"), {"refs/tags/v1"}, True),
        (Ref(tag="v1"), {"refs/heads/v1"}, False),
        (Ref(semver=">=1"), {"refs/tags/v9"}, True),
        (Ref(semver=">=1"), {"refs/heads/main"}, False),
        (Ref(commit="a" * 40), {"refs/heads/main"}, True),
    ],
)
def test_which_refs_concern_whom(ref: Ref, refs: set[str], concerned: bool) -> None:
    trigger = Trigger(repositories=frozenset({"h/x"}), refs=frozenset(refs))
    assert trigger.concerns("https://h/x.git", ref) is concerned
    assert trigger.concerns("https://h/y.git", ref) is False


# ---------------------------------------------------------------- secrets


def test_secrets_one_a_line() -> None:
    assert parse_secrets(f"\n first-secret \n{STANDARD_SECRET}\n") == ("first-secret", STANDARD_SECRET)
    assert parse_secrets("") == ()


@pytest.mark.parametrize("text", ["short", "long-enough\nshort", "whsec_not base64!", "whsec_"])
def test_weak_or_broken_secrets_are_refused_without_echo(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_secrets(text)
    assert not any(line in str(caught.value).replace("shorter", "") for line in text.splitlines())
