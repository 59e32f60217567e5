"""Bad luck: nothing is held against the commit, the old version serves, and it deploys unaided once healed."""

import json
import time
from collections.abc import Callable

from gitsync.model import Json
from tests.faults.rig import Case, Report, Rig, Scenario, seconds_since
from tests.faults.sample import incompressible

PROMISE = "bad luck is not held against a commit"


def wait_out(case: Case, row: Json, sha: str, heal: Callable[[], object], words: str, *, tries: int = 1) -> None:
    """Until the status explains itself and so many tries were in vain, and then until it deploys by itself."""
    good, before = case.good, case.pods()
    with case.asked() as answers:

        def says() -> str:
            ready = case.condition("Ready")
            text = f"{ready['reason']}: {ready['message']}"
            return text if ready["status"] != "True" and words in text else ""

        row["says"] = case.until(says, f"the status says {words}")[:300]
        if tries > 1:
            case.until(lambda: str(case.last.lines("stage failed")).count(sha) >= tries, f"{tries} tries were in vain")
        assert case.condition("Stalled")["status"] != "True", case.status()
        assert not case.record().quarantine
        assert case.good == good
        assert set(before) <= set(case.pods())
        heal()
        began = time.monotonic()
        case.served(sha)
        row["served_after"] = seconds_since(began)
    row["answers"] = dict(answers)
    assert set(answers) <= {"1", "2"}, answers
    assert not case.record().quarantine
    case.check_whole(sha)
    case.check_sample()
    case.check_built_once()


def started(case: Case, *options: str) -> None:
    case.start("", *options)
    case.served(case.repository.head)
    case.sample.version = "2"


def node_full(rig: Rig, report: Report) -> None:
    with rig.case("full") as case, report.scenario(PROMISE, "node full") as row:
        started(case)
        node = case.get("/api/v1/nodes")
        assert node is not None
        name = node["items"][0]["metadata"]["name"]
        resource = f"example.org~1{case.namespace}"

        def capacity(units: str) -> None:
            patch = [{"op": "add", "path": f"/status/capacity/{resource}", "value": units}]
            case.kubectl("patch", "node", name, "--subresource=status", "--type=json", "-p", json.dumps(patch))

        capacity("0")  # a resource of our own: no other pod of the node is in need of it
        wanted = {f"example.org/{case.namespace}": "1"}
        case.sample.container = {"resources": {"limits": wanted, "requests": wanted | {"cpu": "5m"}}}
        wait_out(case, row, case.push(), lambda: capacity("4"), "Insufficient")


def quota_exhausted(rig: Rig, report: Report) -> None:
    with rig.case("quota") as case, report.scenario(PROMISE, "quota exhausted") as row:
        started(case)
        case.kubectl("create", "quota", "tight", "--hard=pods=1")
        quota = f"/api/v1/namespaces/{case.namespace}/resourcequotas/tight"
        case.until(lambda: (case.get(quota) or {}).get("status", {}).get("used"), "the quota is counted")
        wait_out(case, row, case.push(), lambda: case.kubectl("delete", "quota", "tight"), "exceeded quota")


def quota_of_objects(rig: Rig, report: Report) -> None:
    with rig.case("objects") as case, report.scenario(PROMISE, "quota of objects exhausted") as row:
        started(case)
        case.kubectl("create", "quota", "tight", "--hard=count/configmaps=1")
        quota = f"/api/v1/namespaces/{case.namespace}/resourcequotas/tight"
        case.until(lambda: (case.get(quota) or {}).get("status", {}).get("used"), "the quota is counted")
        case.sample.maps = {"part-1": {}, "one-more": {"data": {"text": incompressible(1, characters=1000)}}}
        wait_out(case, row, case.push(), lambda: case.kubectl("delete", "quota", "tight"), "exceeded quota")


def missing_dependency(rig: Rig, report: Report) -> None:
    with rig.case("missing") as case, report.scenario(PROMISE, "a ConfigMap that somebody else will make") as row:
        started(case)
        case.sample.container = {"envFrom": [{"configMapRef": {"name": "from-elsewhere"}}]}
        create = ("create", "configmap", "from-elsewhere", "--from-literal=KEY=value")
        wait_out(case, row, case.push(), lambda: case.kubectl(*create), "from-elsewhere", tries=2)


def missing_application(rig: Rig, report: Report) -> None:
    with rig.case("depends") as case, report.scenario(PROMISE, "an Application that it depends on") as row:
        started(case)
        case.follow(sync={"dependsOn": [{"name": "base"}]})
        sha = case.push()
        other = {"path": "base"}
        case.repository.write("base/map.yaml", json.dumps(_map()))
        sha = case.push("A base")
        wait_out(case, row, sha, lambda: case.follow("base", source=other), "DependencyNotReady")


def _map() -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "base"}, "data": {"key": "value"}}


def image_pull_refused(rig: Rig, report: Report) -> None:
    with rig.case("pull") as case, report.scenario(PROMISE, "image pull refused") as row:
        started(case)
        pull = case.get(f"/api/v1/namespaces/{case.namespace}/secrets/pull")
        assert pull is not None
        case.kubectl("delete", "secret", "pull")
        kept = {key: pull[key] for key in ("data", "type")} | {"apiVersion": "v1", "kind": "Secret"}
        kept["metadata"] = {"name": "pull"}
        sha = case.push()
        wait_out(case, row, sha, lambda: case.kubectl("apply", "-f", "-", stdin=json.dumps(kept)), "ImagePull")


def with_account(case: Case) -> Callable[[str], object]:
    """Its objects are applied with an account's rights. Returns what grants those to read or to write, both given."""
    for name, verbs in {"reads": "get,list,watch", "writes": "create,update,patch,delete"}.items():
        case.kubectl("create", "role", name, f"--verb={verbs}", "--resource=*.*")
    case.kubectl("create", "serviceaccount", "deployer")
    subject = f"--serviceaccount={case.namespace}:deployer"

    def grant(name: str) -> object:
        return case.kubectl("create", "rolebinding", name, f"--role={name}", subject)

    for name in ("reads", "writes"):
        grant(name)
    case.follow(sync={"serviceAccountName": "deployer"})
    return grant


def take_right_at(case: Case, point: str) -> None:
    """A gitsync that loses the right to write while it stands at the failpoint."""
    process = case.start(f"{point}=pause:10")
    case.until(lambda: f"failpoint {point} hit" in process.text, f"it stands at {point}")
    case.kubectl("delete", "rolebinding", "writes")


def rights_revoked(rig: Rig, report: Report) -> None:
    with rig.case("rights", follow=False) as case:
        grant = with_account(case)
        started(case)
        case.end()
        with report.scenario(PROMISE, "rights revoked between the dry run and the first write") as row:
            sha = case.push()
            take_right_at(case, "record.saved")
            wait_out(case, row, sha, lambda: grant("writes"), 'deployer" cannot patch resource', tries=2)
        with report.scenario(PROMISE, "rights to read revoked: what cannot be listed is not gone") as row:
            case.sample.version, case.sample.maps, before = "1", {}, set(case.labelled())
            case.kubectl("delete", "rolebinding", "reads")

            def heal() -> None:
                assert set(case.labelled()) == before
                grant("reads")

            wait_out(case, row, case.push("One object less"), heal, 'deployer" cannot', tries=2)
        case.end()
        with report.scenario(PROMISE, "rights revoked before a restore") as row:
            good, kept = case.good, (case.sample.command, case.sample.version)
            case.sample.command, case.sample.version = ("/nowhere",), "3"
            sha = case.push("Break it")
            case.sample.command, case.sample.version = kept
            take_right_at(case, "restore.started")
            words = 'deployer" cannot patch resource'
            row["says"] = case.until(lambda: words in str(case.condition("Ready")["message"]) and words, "it says so")

            def failed() -> list[Json]:
                return [line for line in case.last.lines("stage failed") if line["stage"] == "restore"]

            case.until(lambda: len(failed()) > 1, "it was tried again in vain")
            attempt = case.record().attempt
            assert attempt is not None, "it counts as restored"
            grant("writes")
            began = time.monotonic()
            case.until(lambda: case.record().attempt is None, "it is restored")
            row["restored_after"] = seconds_since(began)
            case.refused(sha)
            case.check_whole(good)
            case.check_sample()


SCENARIOS: dict[str, Scenario] = {
    "rights-revoked": rights_revoked,
    "node-full": node_full,
    "quota": quota_exhausted,
    "quota-of-objects": quota_of_objects,
    "missing-dependency": missing_dependency,
    "missing-application": missing_application,
    "pull-refused": image_pull_refused,
}
