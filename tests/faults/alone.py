"""What is taken away from the whole cluster: the registry, the API server, the git host. One scenario at a time."""

import signal
import time
from contextlib import ExitStack

from gitsync.model import Json
from tests.cluster.githost import Failure
from tests.faults.luck import PROMISE, started, wait_out
from tests.faults.rig import Report, Rig, Scenario, seconds_since

AWAY = 60  # seconds
DRAIN = 20
"""Seconds that an old pod serves on. What routes to it is blind, too: a kube-proxy that comes back is refused by
an API server that does not know its roles yet (seen), and pauses for seconds, while Deployments go on by themselves."""


def registry_down(rig: Rig, report: Report) -> None:
    with rig.case("pushing") as case, report.scenario(PROMISE, "registry down before the push") as row:
        started(case)
        rig.cluster.kill("registry", how=signal.SIGSTOP)
        try:
            sha = case.push()
            wait_out(
                case, row, sha, lambda: rig.cluster.kill("registry", how=signal.SIGCONT), rig.cluster.registry_host
            )
        finally:
            rig.cluster.kill("registry", how=signal.SIGCONT)


def registry_down_in_rollout(rig: Rig, report: Report) -> None:
    with rig.case("pulling") as case, report.scenario(PROMISE, "registry down during the rollout") as row:
        started(case)
        case.end()
        sha = case.push()
        case.start("record.saved").struck("record.saved")  # built and recorded, and nothing is pulled yet
        rig.cluster.kill("registry", how=signal.SIGSTOP)
        try:
            case.start()
            wait_out(case, row, sha, lambda: rig.cluster.kill("registry", how=signal.SIGCONT), "ContainerCreating")
        finally:
            rig.cluster.kill("registry", how=signal.SIGCONT)


def api_server_away(rig: Rig, report: Report) -> None:
    """One outage, and two Applications: one whose pods are being replaced, by a leader, and one that is not planned."""
    with ExitStack() as stack:
        cases = {
            "rollout": stack.enter_context(rig.case("api-rolls")),
            "render": stack.enter_context(rig.case("api-plans")),
        }
        rows: dict[str, Json] = {}
        for stage, case in cases.items():
            case.sample.container = {"lifecycle": {"preStop": {"exec": {"command": ["sleep", str(DRAIN)]}}}}
            case.sample.pod = {"terminationGracePeriodSeconds": DRAIN + 5}
            case.push("Drain longer")
            started(case, "--leader-election")
            rows[stage] = stack.enter_context(report.scenario(PROMISE, f"API server away for {AWAY} s at: {stage}"))
        answers = {stage: stack.enter_context(case.asked()) for stage, case in cases.items()}
        cases["rollout"].sample.command = ("sh", "-c", f"sleep {AWAY / 4:g}; exec httpd -f -p 8000 -h /www")
        cases["rollout"].sample.deadline = 2 * AWAY
        shas: dict[str, str] = {}
        for stage, case in cases.items():
            shas[stage] = sha = case.push()
            case.until(lambda case=case, stage=stage, sha=sha: case.last.began(stage, sha), f"its {stage} begins")
        rig.cluster.kill("kube-apiserver", how=signal.SIGSTOP)
        time.sleep(AWAY)
        rig.cluster.restart_apiserver()
        # One that has failed for a minute may pause for another (30 s, and as much again by chance) before it asks
        # again: pods that went away meanwhile would still get requests.
        rig.cluster.kill("kube-proxy")
        began = time.monotonic()
        for stage, case in cases.items():
            case.served(shas[stage])
            rows[stage]["served_after"] = seconds_since(began)
            case.check_whole(shas[stage])
            case.check_sample()
            assert not case.record().quarantine
            assert set(answers[stage]) <= {"1", "2"}, answers[stage]
            rows[stage]["answers"] = dict(answers[stage])
            case.check_built_once()


def git_host_fails(rig: Rig, report: Report) -> None:
    with rig.case("git") as case:
        started(case)
        before = case.labelled()
        for failure in (Failure.ERROR, Failure.HTML, Failure.SILENCE):
            with report.scenario(PROMISE, f"the git host answers {failure.value}") as row:
                rig.host.failure = failure
                try:
                    case.until(lambda: case.condition("Ready")["status"] == "False", "the failed fetch is said")
                    row["says"] = case.condition("Ready")["message"][:300]
                    assert set(case.labelled()) == set(before)
                finally:
                    rig.host.failure = Failure.NONE
                began = time.monotonic()
                case.until(lambda: case.condition("Ready")["status"] == "True", "it is healthy again")
                row["healed_after"] = seconds_since(began)
        case.check_whole(case.repository.head)


SCENARIOS: dict[str, Scenario] = {
    "registry": registry_down,
    "registry-in-rollout": registry_down_in_rollout,
    "api-server": api_server_away,
    "git-host": git_host_fails,
}
