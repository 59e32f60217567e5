"""A push is seen within a second if the git host tells of it, by the next poll if not, and never by a forged call."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from gitsync.web.webhooks import Provider
from tests.e2e.world import WEBHOOK_SECRET, Project, World, eventually
from tests.unit.web import test_webhooks as published

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a host publishes of its webhook (``tests/unit/web`` names the sources), and its repository there."""

    provider: Provider
    payload: Mapping[str, Any]
    host: str
    repository: str
    branch: str

    def body(self, project: Project) -> bytes:
        """The published payload, but for the address of the repository."""
        text = json.dumps(self.payload)
        url = re.match(r"https?://([^:/]+)(?::\d+)?/(.*?)(?:\.git)?$", project.repository.url)
        assert url, project.repository.url
        here = rf"{re.escape(self.host)}(:\d+)?([:/]){re.escape(self.repository)}"
        body, count = re.subn(here, rf"{url[1]}\1\g<2>{url[2]}", text)
        assert count, f"{self.provider}'s payload does not name {self.repository}"
        return body.encode()

    def headers(self, body: bytes) -> dict[str, str]:
        signed = published.headers(self.provider, body)
        if self.provider is Provider.GENERIC:
            signed = published.standard(body, key=WEBHOOK_SECRET.encode(), at=time.time())
        return {"Content-Type": "application/json"} | signed


DELIVERIES = [
    Delivery(provider=Provider.GITHUB, payload=published.GITHUB, host="github.com",
             repository="Codertocat/Hello-World", branch="main"),
    Delivery(provider=Provider.GITLAB, payload=published.GITLAB, host="example.com",
             repository="mike/diaspora", branch="master"),
    Delivery(provider=Provider.GITEA, payload=published.GITEA, host="localhost",
             repository="gitea/webhooks", branch="develop"),
    Delivery(provider=Provider.FORGEJO, payload=published.GITEA, host="localhost",
             repository="gitea/webhooks", branch="develop"),
    Delivery(provider=Provider.GENERIC, payload=published.GENERIC, host="h",
             repository="x", branch="main"),
]  # fmt: skip


def fetches(project: Project) -> list[float]:
    return [at for at, repository in project.world.host.fetches if repository == project.repository.name]


def refused(world: World, provider: Provider) -> float:
    wanted = {'outcome="unauthorized"', f'provider="{provider.value}"'}
    return sum(
        value
        for name, value in world.metrics().items()
        if name.startswith("gitsync_webhook") and wanted <= set(re.findall(r'\w+="[^"]*"', name))
    )


@pytest.mark.parametrize("delivery", DELIVERIES, ids=[each.provider.value for each in DELIVERIES])
def test_a_signed_delivery_triggers_within_a_second_and_a_forged_one_is_counted(
    world: World, delivery: Delivery
) -> None:
    with world.project(name="settings", branch=delivery.branch) as project:
        first = push(project, "one")
        project.follow(interval="2h")
        project.wait_for(first)
        eventually(lambda: time.monotonic() - fetches(project)[-1] > 3, "nobody looks at the repository any more")

        second = push(project, "two")
        body = delivery.body(project)
        signed = delivery.headers(body)
        unsigned = {name: value for name, value in signed.items() if not re.search("ignature|oken", name)}
        wrong = {name: value[:-4] + "0000" if name not in unsigned else value for name, value in signed.items()}
        looked, counted = len(fetches(project)), refused(world, delivery.provider)
        forged = [(body, wrong)]
        if delivery.provider is not Provider.GITLAB:  # whose token signs nothing
            forged.append((body.replace(b"refs", b"REFS") + b" ", signed))
        for altered, headers in forged:
            assert world.post("/webhook", altered, headers) == 401
        assert world.post("/webhook", body, unsigned) == 401
        counted_now = refused(world, delivery.provider)
        assert counted_now >= counted + len(forged)
        time.sleep(2)  # twice as long as a real one needs
        assert len(fetches(project)) == looked

        posted = time.monotonic()
        assert world.post("/webhook", body, signed) == 202
        eventually(lambda: len(fetches(project)) > looked, "the repository is fetched", every=0.01)
        assert fetches(project)[looked] - posted < 1
        project.wait_for(second)
        assert project.kubectl("get", "configmap", "settings", "-o", "jsonpath={.data.value}") == "two"


def test_without_a_webhook_the_poll_finds_the_commit(world: World) -> None:
    with world.project(name="settings") as project:
        first = push(project, "one")
        project.follow(interval="5s")
        project.wait_for(first)
        second = push(project, "two")
        project.wait_for(second, seconds=30)
        assert project.kubectl("get", "configmap", "settings", "-o", "jsonpath={.data.value}") == "two"


def push(project: Project, value: str) -> str:
    """A commit that sets the one value that the repository has."""
    manifest = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{value: {value}}}\n"
    project.repository.write("manifests/settings.yaml", manifest)
    sha = project.repository.commit(f"Say {value}")
    project.repository.push()
    return sha
