"""What must never delete: an error is not emptiness, much is held for a person, and labels prove nothing."""

import json
import shutil
from collections.abc import Callable

from gitsync.model import Json
from tests.faults.rig import NAME, Case, Report, Rig, Scenario
from tests.faults.sample import Sample

PROMISE = "nothing is deleted by mistake"


def uids(case: Case, name: str = NAME) -> dict[tuple[str, str], str]:
    return {key: obj["metadata"]["uid"] for key, obj in case.labelled(name).items()}


def nothing_is_pruned(rig: Rig, report: Report) -> None:
    """One after another in one repository; each time it says why, and heals when the cause is gone."""
    with rig.case("guards") as case:
        case.start()
        head = case.repository.head
        case.served(head)
        before = uids(case)

        def refused_for(name: str, act: Callable[[], None], *words: str) -> None:
            with report.scenario(PROMISE, name) as row:
                act()

                def says() -> Json | None:
                    status = case.status()
                    text = json.dumps(status)
                    refused = case.condition("Ready")["status"] == "False"
                    return status if refused and all(word in text for word in words) else None

                status = case.until(says, f"the status says {words}")
                row["says"] = case.condition("Ready")["message"][:300]
                assert str(status["revision"]).endswith(head)
                assert uids(case) == before
                case.repository.git("reset", "--quiet", "--hard", head)
                case.repository.push("--force")
                case.until(lambda: case.condition("Ready")["status"] == "True", "it is healthy again")
                assert case.status()["sync"] == "Synced"
                assert uids(case) == before
                case.check_whole(head)

        def remove_path() -> None:
            shutil.rmtree(case.repository.path / "manifests")
            case.repository.commit("Lose the manifests")
            case.repository.push()

        def comments_only() -> None:
            for file in (case.repository.path / "manifests").iterdir():
                file.unlink()
            case.repository.write("manifests/all.yaml", "# nothing\n---\n# at all\n")
            case.repository.commit("Comment everything out")
            case.repository.push()

        def delete_branch() -> None:
            case.repository.git("push", "--quiet", "origin", "--delete", "main")

        def rewrite() -> None:
            case.repository.git("checkout", "--quiet", "--orphan", "other")
            case.repository.git("rm", "-r", "--quiet", "--cached", ".")
            Sample(version="9").write(case.repository.path)
            case.repository.commit("Another history")
            case.repository.git("push", "--quiet", "--force", "origin", "other:main")
            case.repository.git("checkout", "--quiet", "--force", "main")

        bare = rig.host.root / f"{case.repository.name}.git"
        hidden = bare.with_suffix(".hidden")

        refused_for("a vanished path", remove_path, "manifests")
        refused_for("a path with comments only", comments_only, "only comments")
        _delete_allowed(bare)
        refused_for("a deleted branch", delete_branch, "main")
        refused_for("an unrelated force-push", rewrite, "UnrelatedHistory", "gitsync approve")

        with report.scenario(PROMISE, "a repository that is gone") as row:
            bare.rename(hidden)
            failing = "the failed fetch is said"
            row["says"] = case.until(lambda: case.condition("Ready")["status"] == "False", failing)
            row["says"] = case.condition("Ready")["message"][:300]
            assert uids(case) == before
            hidden.rename(bare)
            case.until(lambda: case.condition("Ready")["status"] == "True", "it is healthy again")
            assert uids(case) == before


def _delete_allowed(bare: object) -> None:
    with open(f"{bare}/config", "a") as config:
        config.write("[receive]\n\tdenyDeleteCurrent = ignore\n")


def much_is_held(rig: Rig, report: Report) -> None:
    with rig.case("held") as case:
        case.sample.maps = {f"many-{number}": {} for number in range(8)}
        case.start()
        first = case.push("Many")
        case.served(first)
        with report.scenario(PROMISE, "more than max(5, 20%) of the objects gone: held until approved") as row:
            before = uids(case)
            case.sample.maps, case.sample.version = {"many-0": {}}, "2"
            sha = case.push("Drop seven of eleven")
            case.until(lambda: "ApprovalRequired" in json.dumps(case.status()), "it is held")
            row["says"] = case.condition("Ready")["message"][:300]
            case.until(lambda: "2" in case.page(), "what is no deletion is deployed")
            assert set(uids(case)) == set(before)
            case.gitsync("approve", NAME)
            case.until(lambda: len(uids(case)) == 4, "they are deleted once approved")
            case.served(sha)
            case.check_whole(sha)
        with report.scenario(PROMISE, "five of them gone: deleted without a question"):
            case.sample.maps = {f"many-{number}": {} for number in range(6)}
            case.served(case.push("Five more"))
            case.sample.maps = {"many-0": {}}
            sha = case.push("Five less")
            case.served(sha)
            case.check_whole(sha)


def precious_is_held(rig: Rig, report: Report) -> None:
    with rig.case("precious") as case:
        group = f"{case.namespace}.example.org"
        precious: dict[str, Json] = {
            "claim": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "kept"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": "by-hand",
                    "volumeName": f"{case.namespace}-kept",
                    "resources": {"requests": {"storage": "1Mi"}},
                },
            },
            "namespace": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{case.namespace}-extra"}},
            "definition": _definition(group),
        }
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{case.namespace}-kept"},
            "spec": {
                "capacity": {"storage": "1Mi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "by-hand",
                "hostPath": {"path": "/tmp/kept"},
            },
        }
        case.kubectl("apply", "-f", "-", stdin=json.dumps(volume))
        paths = {
            "claim": f"/api/v1/namespaces/{case.namespace}/persistentvolumeclaims/kept",
            "namespace": f"/api/v1/namespaces/{case.namespace}-extra",
            "definition": f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.{group}",
        }
        case.sample.objects = list(precious.values())
        case.start()
        try:
            case.served(case.push("Precious things"))
            for name, path in paths.items():
                with report.scenario(PROMISE, f"a {name} gone: held until approved") as row:
                    case.sample.objects = [each for each in case.sample.objects if each is not precious[name]]
                    case.sample.maps = {f"part-{name}": {}}
                    sha = case.push(f"Drop the {name}")
                    case.until(lambda sha=sha: sha in json.dumps(case.status()), "the commit is seen")
                    case.until(lambda: "ApprovalRequired" in json.dumps(case.status()), "it is held")
                    row["says"] = case.condition("Ready")["message"][:300]
                    live = case.get(path)
                    assert live is not None
                    assert "deletionTimestamp" not in live["metadata"]
                    case.gitsync("approve", NAME)
                    gone = case.until(lambda path=path: _going(case, path), f"the {name} goes once approved")
                    assert gone
                    case.served(sha)
        finally:
            for name in ("namespace", "definition"):
                obj = precious[name]
                case.kubectl("delete", obj["kind"].lower(), obj["metadata"]["name"], "--wait=false", check=False)
            case.kubectl("delete", "pv", f"{case.namespace}-kept", "--wait=false", check=False)


def _going(case: Case, path: str) -> bool:
    live = case.get(path)
    return live is None or "deletionTimestamp" in live["metadata"]


def _definition(group: str) -> Json:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


def labels_prove_nothing(rig: Rig, report: Report) -> None:
    with rig.case("labels") as case, report.scenario(PROMISE, "labels copied to a foreign object"):
        case.start()
        case.served(case.repository.head)
        case.kubectl("create", "configmap", "foreign", "--from-literal=key=value")
        labels = [f"gitsync.dev/application={NAME}", f"gitsync.dev/application-namespace={case.namespace}"]
        case.kubectl("label", "configmap", "foreign", *labels)
        foreign = uids(case)["ConfigMap", "foreign"]
        case.sample.version, case.sample.maps = "2", {}
        sha = case.push("Drop a part, so that something is pruned")
        case.served(sha)
        after = uids(case)
        assert ("ConfigMap", "part-1") not in after
        assert after["ConfigMap", "foreign"] == foreign
        assert "foreign" not in {item.ref.name for item in case.record().inventory}


def renamed_application(rig: Rig, report: Report) -> None:
    with rig.case("renamed") as case, report.scenario(PROMISE, "an Application that is renamed") as row:
        case.start()
        sha = case.repository.head
        case.served(sha)
        before, pods = uids(case), case.pods()
        with case.asked() as answers:
            case.kubectl("delete", "applications.gitsync.dev", NAME)
            case.follow("renamed")
            case.served(sha, name="renamed")
        row["answers"] = dict(answers)
        assert set(answers) == {"1"}
        assert uids(case, "renamed") == before
        assert case.pods() == pods
        case.check_whole(sha, "renamed")


SCENARIOS: dict[str, Scenario] = {
    "nothing-is-pruned": nothing_is_pruned,
    "much-is-held": much_is_held,
    "precious-is-held": precious_is_held,
    "labels": labels_prove_nothing,
    "renamed": renamed_application,
}
