"""kill -9 at every failpoint: after a restart the commit arrives whole, or what served before is back."""

import time
from collections.abc import Callable

from tests.faults.rig import Case, Report, Rig, Scenario, seconds_since
from tests.faults.sample import autoscaler, incompressible

Commit = Callable[[Case, str], str]
"""Pushes a commit of the given version; returns its sha."""


def change(case: Case, version: str) -> str:
    """A new image, a changed object, a new one, and one that goes."""
    case.sample.version = version
    case.sample.maps = {f"part-{version}": {}}
    return case.push(f"Version {version}")


def adopt(case: Case, version: str) -> str:
    """Two objects that somebody made with kubectl."""
    case.kubectl("create", "configmap", f"found-{version}", "--from-literal=key=old")
    case.sample.version = version
    case.sample.maps = {f"found-{version}": {}}
    return case.push(f"Take over found-{version}")


def scale(case: Case, version: str) -> str:
    """A Deployment whose replicas are an autoscaler's; and what ``replace`` needs to find."""
    case.sample.version, case.sample.replicas, case.sample.objects = version, None, [autoscaler()]
    case.sample.maps = {"frozen": {"immutable": True, "data": {"version": version}}}
    return case.push(f"Version {version}, scaled by the cluster")


def replace(case: Case, version: str) -> str:
    """An object that must be deleted and made anew."""
    case.sample.version = version
    case.sample.maps = {"frozen": {"immutable": True, "data": {"version": version}}}
    return case.push(f"Freeze {version}")


def grow(case: Case, version: str) -> str:
    """A Record that one Secret cannot hold."""
    case.sample.version = version
    number = int(version)
    case.sample.maps = {f"large-{part}": {"data": {"text": incompressible(10 * number + part)}} for part in range(2)}
    return case.push(f"Grow {version}")


def broken(case: Case, version: str) -> str:
    """A new object, a changed one, and pods that cannot start."""
    former = case.sample.version, case.sample.maps
    case.sample.version, case.sample.maps = version, {f"part-{version}": {}}
    case.sample.command = ("/nowhere",)
    sha = case.push(f"Break {version}")
    case.sample.version, case.sample.maps = former
    case.sample.command = ()
    return sha


LANES: dict[str, list[tuple[str, Commit]]] = {
    "rollout": [
        (point, change)
        for point in (
            "image.built",
            "image.pushed",
            "dryrun.done",
            "record.chunks-written",
            "record.saved",
            "apply.started",
            "apply.gate-open",
            "apply.object-sent",
            "apply.wave-sent",
            "record.saved@2",
            "wait.started",
            "wait.first-ready",
            "wait.ended",
        )
    ],
    "prune": [
        ("prune.started", change),
        ("prune.object-deleted", change),
        ("prune.ended", change),
        ("record.saved@4", change),
        ("apply.adopted", adopt),
        ("apply.replicas-claimed", scale),
        ("apply.replace-deleted", replace),
        ("record.chunk-written", grow),
        ("record.chunks-written@2", grow),
        ("record.cleaned", grow),
    ],
    "restore": [
        ("record.saved@2", broken),
        ("wait.started", broken),
        ("restore.started", broken),
        ("restore.object-applied", broken),
        ("restore.applied", broken),
        ("restore.object-removed", broken),
        ("restore.ended", broken),
    ],
}


def kill_and_restart(case: Case, point: str, commit: Commit, version: str, report: Report) -> None:
    """From a state that serves: a commit, a process that is killed at the point, and one that finds what it left."""
    with report.scenario("kill -9 at a failpoint", point) as row, case.asked() as answers:
        before, builds, good = case.sample.version, len(case.pushes()), case.good
        sha = commit(case, version)
        case.start(point).struck(point)
        row["hit"] = True
        restarted = time.monotonic()
        again = case.start()
        if commit is broken:
            case.refused(sha)
            row["restored_after"] = seconds_since(restarted)
            case.check_whole(good)
            case.check_sample(version=before)
            assert [entry.revision.sha for entry in case.record().quarantine][-1] == sha
        else:
            case.served(sha)
            row["served_after"] = seconds_since(restarted)
            case.check_whole(sha)
            case.check_sample()
        again.kill()
        case.check_built_once()
        row["builds"] = len(case.pushes()) - builds
        row["answers"] = dict(answers)
        assert set(answers) <= {before, version} - ({version} if commit is broken else set()), answers


def lane(name: str) -> Scenario:
    """One Application, one failpoint after another; a point that fails is told with the others' at the end."""

    def kill_at_each(rig: Rig, report: Report) -> None:
        errors: list[Exception] = []
        with rig.case(name, sync={"acceptInterruption": True}) as case:
            first = case.start()
            case.served(case.repository.head)
            first.kill()
            for number, (point, commit) in enumerate(LANES[name], start=2):
                try:
                    kill_and_restart(case, point, commit, str(number), report)
                except Exception as error:
                    error.add_note(f"at {point}")
                    errors.append(error)
                    case.end()
                    mend = case.start()
                    case.sample.version = f"{number}00"
                    case.served(case.push("Mend"))
                    mend.kill()
        if errors:
            raise ExceptionGroup(f"after a kill on the lane {name}", errors)

    return kill_at_each


def covered() -> set[str]:
    """The failpoints that some lane strikes at."""
    return {point.partition("@")[0] for points in LANES.values() for point, _ in points}
