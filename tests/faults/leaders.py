"""Several gitsyncs, one writer: killed as it takes or gives up the lease, frozen before it applies, started at once."""

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from gitsync.model import Json
from tests.faults.rig import Case, Process, Report, Rig, Scenario, seconds_since

FAILPOINTS = {"lease.acquired", "lease.released"}
FROZEN = 60  # seconds; a lease is anybody's after 15


def kubeconfig_of(case: Case, account: str) -> Path:
    """A kubeconfig that logs in as a service account of its own, so that the audit log tells replicas apart."""
    case.kubectl("create", "serviceaccount", account)
    subject = f"--serviceaccount={case.namespace}:{account}"
    case.kubectl("create", "clusterrolebinding", f"{case.namespace}-{account}", "--clusterrole=cluster-admin", subject)
    token = case.kubectl("create", "token", account).strip()
    view = ["config", "view", "--flatten", "--minify", "-o", "json"]
    config: Json = json.loads(case.cluster.kubectl(*view))
    config["users"] = [{"name": account, "user": {"token": token}}]
    config["contexts"][0]["context"]["user"] = account
    path = case.work / f"kubeconfig-{account}"
    path.write_text(json.dumps(config))
    return path


class Replica:
    """One of several gitsyncs that follow the same Application."""

    def __init__(self, case: Case, name: str) -> None:
        self.case, self.name = case, name
        self.user = f"system:serviceaccount:{case.namespace}:{name}"
        self._variables: Mapping[str, str] = {
            "KUBECONFIG": str(kubeconfig_of(case, name)),
            "GITSYNC_IDENTITY": name,
            "GITSYNC_CACHE_DIR": str(case.work / "caches" / name),
        }

    def start(self, failpoint: str = "") -> Process:
        return self.case.start(failpoint, "--leader-election", environment=self._variables)


def holder(case: Case) -> str:
    lease = case.get(f"/apis/coordination.k8s.io/v1/namespaces/{case.namespace}/leases/gitsync")
    return str((lease or {}).get("spec", {}).get("holderIdentity") or "")


def writers(case: Case, *replicas: Replica) -> list[str]:
    """Who wrote, one after another; a name that comes twice wrote, was followed, and wrote again."""
    names = {replica.user: replica.name for replica in replicas}
    turns: list[str] = []
    for user, _, _ in case.writes(users=names):
        if turns[-1:] != [names[user]]:
            turns.append(names[user])
    return turns


def kill_at_the_lease(rig: Rig, report: Report) -> None:
    with rig.case("lease") as case:
        one, two = Replica(case, "one"), Replica(case, "two")
        with report.scenario("kill -9 at a failpoint", "lease.acquired") as row:
            one.start("lease.acquired").struck("lease.acquired")
            row["hit"], began = True, time.monotonic()
            other = two.start()  # another identity: it has to wait until the lease has expired
            case.served(case.repository.head)
            row["served_after"] = seconds_since(began)
            case.check_whole(case.repository.head)
        other.kill()
        with report.scenario("kill -9 at a failpoint", "lease.released") as row:
            leaving = one.start("lease.released")
            case.until(lambda: holder(case) == "one", "the first leads")
            case.sample.version = "2"
            sha = case.push()
            case.until(lambda: leaving.began("rollout", sha), "the rollout begins")
            leaving.send(signal.SIGTERM)
            leaving.struck("lease.released")
            row["hit"], began = True, time.monotonic()
            two.start()
            case.served(sha)
            row["served_after"] = seconds_since(began)
            case.check_whole(sha)
            case.check_sample()
        case.check_built_once()


def two_at_once(rig: Rig, report: Report) -> None:
    with rig.case("replicas") as case:
        one, two = Replica(case, "one"), Replica(case, "two")
        with report.scenario("one writer", "two replicas started at once") as row:
            processes = {"one": one.start(), "two": two.start()}
            case.served(case.repository.head)
            case.check_whole(case.repository.head)
            row["writers"] = first = writers(case, one, two)
            assert first == [holder(case)]
        with report.scenario("one writer", "the leader is killed, the other goes on") as row:
            former = holder(case)
            case.sample.version = "2"
            sha = case.push()
            case.until(lambda: processes[former].began("rollout", sha), "the rollout begins")
            processes[former].kill()
            began = time.monotonic()
            case.served(sha)
            row["served_after"] = seconds_since(began)
            case.check_whole(sha)
            case.check_sample()
            row["writers"] = turns = writers(case, one, two)
            assert turns in ([former, holder(case)], [former]), turns
        case.check_built_once()


def frozen_at(point: str) -> Scenario:
    return lambda rig, report: frozen_leader(rig, report, point)


def frozen_leader(rig: Rig, report: Report, point: str) -> None:
    with rig.case("frozen") as case:
        one, two = Replica(case, "one"), Replica(case, "two")
        first = one.start()
        case.served(case.repository.head)
        first.stop()
        with report.scenario("one writer", f"the leader is frozen for {FROZEN} s at {point}") as row:
            case.sample.version = "2"
            sha = case.push()
            frozen = one.start(f"{point}=pause:{FROZEN}")
            case.until(lambda: holder(case) == "one", "the first leads")
            other = two.start()
            case.until(lambda: f"failpoint {point} hit" in frozen.text, "the leader freezes")
            began = time.monotonic()
            case.served(sha)
            row["served_after"] = seconds_since(began)
            case.check_whole(sha)
            before = case.writes(users=[one.user], apart_from=["leases"])
            assert time.monotonic() - began < FROZEN, "it has thawed: this shows nothing"
            time.sleep(FROZEN + 10 - (time.monotonic() - began))  # what does the first do when it thaws?
            assert frozen.running
            assert other.running
            assert case.writes(users=[one.user], apart_from=["leases"]) == before, "a former leader wrote"
            row["writers"] = turns = writers(case, one, two)
            assert turns in (["one", "two"], ["one"]), turns
            assert holder(case) == "two"
            case.check_whole(sha)
        with report.scenario("one writer", f"frozen at {point}, it leads again when the other is gone") as row:
            other.kill()
            case.sample.version = "3"
            sha = case.push()
            began = time.monotonic()
            case.served(sha)
            row["served_after"] = seconds_since(began)
            assert holder(case) == "one"
            assert frozen.running
            case.check_whole(sha)
            case.check_sample()
        case.check_built_once()


def stopped_process(rig: Rig, report: Report) -> None:
    with rig.case("stopped") as case:
        process = case.start()
        case.served(case.repository.head)
        with (
            report.scenario("a paused process", f"SIGSTOP for {FROZEN} s in mid-rollout") as row,
            case.asked() as answers,
        ):
            case.sample.version = "2"
            sha = case.push()
            case.until(lambda: process.began("rollout", sha), "the rollout begins")
            process.send(signal.SIGSTOP)
            time.sleep(FROZEN)
            process.send(signal.SIGCONT)
            began = time.monotonic()
            case.served(sha)
            row["served_after"] = seconds_since(began)
            case.check_whole(sha)
            assert set(answers) <= {"1", "2"}, answers
        case.check_built_once()


SCENARIOS: dict[str, Scenario] = {
    "lease": kill_at_the_lease,
    "two-replicas": two_at_once,
    "frozen-before-apply": frozen_at("apply.started"),
    "frozen-in-apply": frozen_at("apply.object-sent"),
    "stopped-process": stopped_process,
}
