"""What must not go live: the old version goes on serving, and status, Event and log say what, where and what to do."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.e2e.world import Json, Project, World

pytestmark = pytest.mark.e2e

GREETING = "Hello Kubernetes!\n"


@dataclass(slots=True)
class Answers:
    """What the Service answered while somebody kept asking: texts, and errors by their class."""

    seen: dict[str, int] = field(default_factory=dict[str, int])

    def note(self, text: str) -> None:
        self.seen[text] = self.seen.get(text, 0) + 1


@contextmanager
def asking(project: Project) -> Generator[Answers]:
    """One request after another, each on a connection of its own."""
    answers, stop = Answers(), threading.Event()
    address = project.world.service_ip(project.namespace, "hello")

    def ask() -> None:
        while not stop.wait(0.05):
            try:
                answers.note(project.get("hello", address=address))
            except OSError as error:
                answers.note(type(error).__name__)

    thread = threading.Thread(target=ask, name="asking")
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def serving(project: Project) -> str:
    """Follow the project until its first commit serves; returns that."""
    project.follow()
    first = project.repository.head
    project.wait_for(first)
    assert project.get("hello") == GREETING
    return first


def refuse(project: Project, message: str) -> tuple[Json, Answers]:
    """Push what must be refused; the status once it was, and what the Service answered meanwhile."""
    sha = project.repository.commit(message)
    with asking(project) as answers:
        project.repository.push()
        status = project.wait_stalled(sha)
    return status, answers


def assert_said_everywhere(project: Project, status: Json, *, stage: str, reason: str, words: list[str]) -> None:
    """The status, one Event and one line of the log name the stage and have all of the words."""
    attempt = status["lastAttempt"]
    assert (attempt["stage"], attempt["reason"]) == (stage, reason), attempt
    stalled, ready = project.condition("Stalled"), project.condition("Ready")
    assert (stalled["status"], stalled["reason"]) == ("True", reason)
    assert ready["status"] == "False"
    (event,) = [each for each in project.events() if each["reason"] == reason]
    assert event["type"] == "Warning"
    assert event["note"].startswith(f"{stage} of ")
    (line,) = [each for each in project.log() if each["message"] == "stage failed"]
    assert (line["stage"], line["reason"], line["level"]) == (stage, reason, "warning")
    for where, text in {
        "status": attempt["message"],
        "Stalled": stalled["message"],
        "Event": event["note"],
        "log": line["error"],
    }.items():
        missing = [word for word in words if word not in text]
        assert not missing, f"{where} does not say {missing}: {text}"


def line_of(project: Project, file: str, text: str) -> str:
    """``file:line`` of the first line that has this text."""
    lines = (project.repository.path / file).read_text().splitlines()
    return f"{file}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


def test_a_build_that_fails_changes_nothing_and_a_fix_goes_live(world: World) -> None:
    with world.project("hello") as hello:
        first = serving(hello)
        pods, writes = hello.pods(app="hello"), hello.writes()
        hello.repository.edit("hello/Dockerfile", "COPY hello.js .", "COPY hello.js .\nRUN node missing.js")
        status, answers = refuse(hello, "Break the build")
        place = line_of(hello, "hello/Dockerfile", "RUN")
        assert_said_everywhere(
            hello,
            status,
            stage="images",
            reason="BuildFailed",
            words=["kubetm/hello", place, "RUN node missing.js", "Cannot find module"],
        )
        assert set(answers.seen) == {GREETING}
        assert status["revision"].endswith(first)
        assert (hello.pods(app="hello"), hello.writes(), len(hello.pushes())) == (pods, writes, 1)

        hello.repository.edit("hello/Dockerfile", "RUN node missing.js", "RUN node --check hello.js")
        fix = hello.repository.commit("Repair the build")
        hello.repository.push()
        hello.wait_for(fix)
        assert hello.get("hello") == GREETING
        assert len(hello.pushes()) == 2


def test_an_object_that_the_api_server_refuses_keeps_all_nine_from_being_written(world: World) -> None:
    with world.project("hello") as hello:
        first = serving(hello)
        writes = hello.writes()
        for number in range(1, 7):
            hello.repository.write(f"manifests/part-{number}.yaml", _config_map(f"part-{number}"))
        hello.repository.edit("hello/hello.js", "Hello Kubernetes!", "Never seen")
        hello.repository.edit("manifests/service.yaml", "port: 8200", "port: 82000")
        status, answers = refuse(hello, "Ask for a port that is none")
        assert_said_everywhere(
            hello,
            status,
            stage="plan",
            reason="Refused",
            words=[f"Service/{hello.namespace}/hello", "manifests/service.yaml:", "spec.ports[0].port", "65535"],
        )
        assert set(answers.seen) == {GREETING}
        assert status["revision"].endswith(first)
        assert hello.writes() == writes, "the audit log shows no write of the refused revision"
        dry_runs = _dry_runs(hello)
        assert dry_runs["services/hello"] == 422
        assert len([name for name in dry_runs if name.startswith("configmaps/part-")]) == 6
        assert "part-1" not in hello.kubectl("get", "configmaps", "-o", "name")


def test_a_version_that_is_never_ready_is_taken_back_while_the_old_one_serves(world: World) -> None:
    with world.project("hello") as hello:
        hello.repository.edit(
            "manifests/deployment.yaml", "progressDeadlineSeconds: 120", "progressDeadlineSeconds: 15"
        )
        hello.repository.commit("Wait less")
        hello.repository.push()
        first = serving(hello)
        pods = hello.pods(app="hello")
        hello.repository.edit("manifests/deployment.yaml", "path: /ready, port: http", "path: /ready, port: 9999")
        hello.repository.edit("hello/hello.js", "Hello Kubernetes!", "Never seen")
        place = line_of(hello, "manifests/deployment.yaml", "readinessProbe")
        status, answers = refuse(hello, "Probe a port where nobody listens")
        assert_said_everywhere(
            hello,
            status,
            stage="restore",
            reason="RolloutFailed",
            words=[
                f"Deployment/{hello.namespace}/hello (hello@{hello.repository.head[:7]} {place} ",
                ".containers[0].readinessProbe",
                "readinessProbe does not pass",
                "push a fix",
            ],
        )
        assert set(answers.seen) == {GREETING}
        assert status["revision"].endswith(first)
        assert (status["sync"], status["health"]) == ("OutOfSync", "Healthy")
        assert hello.pods(app="hello") == pods
        (entry,) = status["quarantined"]
        assert entry["revision"].endswith(hello.repository.head)


def _config_map(name: str) -> str:
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  key: value\n"


def _dry_runs(project: Project) -> dict[str, int]:
    """``resource/name`` → the API server's status, of everything that was tried and not written in the namespace."""
    return {
        f"{event['objectRef']['resource']}/{event['objectRef'].get('name', '')}": event["responseStatus"]["code"]
        for event in project.world.cluster.audit_events()
        if event["objectRef"].get("namespace") == project.namespace and "dryRun=" in event["requestURI"]
    }
