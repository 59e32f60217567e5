"""A commit that is to blame, at each stage: nothing of it stays, it never comes back, and the next one deploys."""

from collections.abc import Callable

from gitsync.model import Json
from tests.faults.rig import Case, Report, Rig, Scenario
from tests.faults.sample import Sample, deployment


def build(sample: Sample) -> None:
    sample.build = ("RUN false",)


def api_server(sample: Sample) -> None:
    sample.port = 82000


def probe(sample: Sample) -> None:
    sample.objects = [_side(probe="/missing")]


def crash(sample: Sample) -> None:
    sample.objects = [_side(command=("sh", "-c", "exit 3"))]


def _side(**fields: object) -> Json:
    """The second workload; the first one of a broken commit is all right."""
    return deployment("side", deadline=8, **fields)  # pyright: ignore[reportArgumentType] - fields of its own


BROKEN: dict[str, tuple[Callable[[Sample], None], str]] = {
    "build": (build, "images"),
    "api-server": (api_server, "plan"),
    "probe": (probe, "restore"),
    "crash": (crash, "restore"),
}


def broken_at(name: str) -> Scenario:
    def scenario(rig: Rig, report: Report) -> None:
        spoil, stage = BROKEN[name]
        with rig.case(name) as case, report.scenario("a broken commit", f"broken at: {name}") as row:
            case.sample.objects = [_side()]
            good = case.push("Two workloads")
            first = case.start()
            case.served(good)
            pods = case.pods()
            case.sample.version = "2"
            if stage == "restore":
                case.sample.page = "1"  # the page tells versions apart, and both of them are right
            kept = case.sample.objects
            spoil(case.sample)
            with case.asked() as answers:
                sha = case.push("Break it")
                status = case.refused(sha)
            row["answers"] = dict(answers)
            assert status["lastAttempt"]["stage"] == stage
            assert set(answers) == {"1"}
            case.check_whole(good)
            case.check_sample(version="1")
            if stage != "restore":
                assert case.pods() == pods
            builds, writes, pushes = case.builds(), case.writes(), case.pushes()
            first.stop()
            _is_not_tried_again(case, sha, good)
            row["builds_after_restart"] = case.builds() - builds
            row["writes_after_restart"] = len(case.writes()) - len(writes)
            assert (case.builds(), case.writes(), case.pushes()) == (builds, writes, pushes)
            case.sample = Sample(version="3", objects=kept, maps={"part-3": {}})
            case.served(case.push("Mend it"))
            case.check_whole(case.repository.head)
            case.check_sample()

    return scenario


def _is_not_tried_again(case: Case, sha: str, good: str) -> None:
    """A process that starts with an empty disk refuses the commit anew, or has nothing to do."""
    again = case.start(empty_disk=True)
    case.until(lambda: [line for line in again.lines("stage failed") if sha in str(line)], "it is refused again")
    case.until(lambda: case.status()["sync"] == "OutOfSync", "the status says so")
    assert str(case.status()["revision"]).endswith(good)


SCENARIOS: dict[str, Scenario] = {f"broken-{name}": broken_at(name) for name in BROKEN}
