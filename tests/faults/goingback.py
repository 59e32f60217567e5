"""A person goes back to an earlier deployment, while automatic sync stays on."""

import time

from tests.faults.rig import NAME, Case, Report, Rig, Scenario, seconds_since

PROMISE = "a person may go back"


def release(case: Case, version: str) -> str:
    case.sample.version, case.sample.maps = version, {f"part-{version}": {}}
    sha = case.push(f"Version {version}")
    case.served(sha)
    return sha


def stays(case: Case, sha: str, version: str) -> None:
    """The newest commit is looked at, and refused."""
    case.until(lambda: case.condition("Ready")["reason"] == "Quarantined", "the newest commit is kept away")
    assert str(case.status()["revision"]).endswith(sha)
    case.check_whole(sha)
    case.check_sample(version=version)


def roll_back(rig: Rig, report: Report) -> None:
    with rig.case("back") as case:
        process = case.start()
        first = case.repository.head
        case.served(first)
        second, third = release(case, "2"), release(case, "3")
        bare = rig.host.root / f"{case.repository.name}.git"
        with report.scenario(PROMISE, "to the one before, with git down") as row, case.asked() as answers:
            hidden = bare.rename(bare.with_suffix(".hidden"))
            builds, began = case.builds(), time.monotonic()
            said = case.gitsync("rollback", NAME).stdout
            row["served_after"] = seconds_since(began)
            assert second in said
            case.check_whole(second)
            case.check_sample(version="2")
            assert set(case.labelled()) == {
                ("ConfigMap", "settings"), ("ConfigMap", "part-2"), ("Service", "web"), ("Deployment", "web"),
            }  # fmt: skip
            hidden.rename(bare)
            stays(case, second, "2")
            row["answers"] = dict(answers)
            assert set(answers) <= {"2", "3"}
        with report.scenario(PROMISE, "and it stays after a restart with an empty disk"):
            process.stop()
            case.start(empty_disk=True)
            case.until(lambda: third in case.last.text, "the newest commit is seen")
            stays(case, second, "2")
        with report.scenario(PROMISE, "to one that is named"):
            case.gitsync("rollback", NAME, first[:10])
            case.check_whole(first)
            case.check_sample(version="1")
            stays(case, first, "1")
        with report.scenario(PROMISE, "to one that is not kept: says which are") as row:
            refused = case.gitsync("rollback", NAME, "abcdef1", check=False)
            row["says"] = (refused.stdout + refused.stderr)[-300:]
            assert refused.returncode
            assert "kept are" in refused.stdout + refused.stderr
            case.check_whole(first)
        with report.scenario(PROMISE, "and the next commit deploys by itself"):
            release(case, "4")
            case.check_whole(case.repository.head)
            case.check_sample()
            assert case.builds() == builds + 1


SCENARIOS: dict[str, Scenario] = {"roll-back": roll_back}
