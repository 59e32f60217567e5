"""What is taken away from the whole cluster: the registry, the API server, the git host. One scenario at a time."""

import signal
import time

from tests.cluster.githost import Failure
from tests.faults.luck import PROMISE, started, wait_out
from tests.faults.rig import Report, Rig, Scenario, seconds_since

AWAY = 20  # seconds


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
    with rig.case("api") as case:
        started(case)
        for name, signs in {"in mid-rollout": '"stage":"rollout"', "before the plan": '"stage":"render"'}.items():
            with report.scenario(PROMISE, f"API server away for {AWAY} s {name}") as row, case.asked() as answers:
                mark = len(case.last.text)
                sha = case.push()
                case.until(lambda mark=mark, signs=signs: signs in case.last.text[mark:], "it is under way")
                rig.cluster.kill("kube-apiserver", how=signal.SIGSTOP)
                time.sleep(AWAY)
                rig.cluster.restart_apiserver()
                began = time.monotonic()
                case.served(sha)
                row["served_after"] = seconds_since(began)
                case.check_whole(sha)
                case.check_sample()
                assert not case.record().quarantine
                assert all(answer.isdigit() for answer in answers), answers
            case.check_built_once()
            case.sample.version = "3"


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
