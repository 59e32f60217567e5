"""A newer commit comes while an older one is on its way: the newest wins, and something always ships."""

import itertools
import os
import time
from collections.abc import Callable
from datetime import datetime

from tests.faults.rig import Case, Process, Report, Rig, Scenario, seconds_since
from tests.faults.sample import Sample

PROMISE = "the newest commit wins"
STREAM = float(os.environ.get("GITSYNC_FAULTS_STREAM", "600"))
EVERY = float(os.environ.get("GITSYNC_FAULTS_EVERY", "20"))
"""Seconds that commits keep coming, and between two of them."""
START = EVERY + 5
"""Seconds that a pod takes to become ready: each commit is followed by the next one before it serves."""
LONGEST = 180
"""Seconds in which something must be deployed."""
SLOW_BUILD = float(os.environ.get("GITSYNC_FAULTS_BUILD", "60"))

WRITING = ("record", "rollout", "prune", "restore", "report")


def build_slowly(sample: Sample) -> None:
    sample.build = (f"RUN sleep {SLOW_BUILD:.0f}",)


def hang(sample: Sample) -> None:
    sample.probe, sample.deadline = "/missing", 60


def crash(sample: Sample) -> None:
    sample.command, sample.pod = ("/nowhere",), {}


OVERTAKEN: dict[str, tuple[Callable[[Sample], None], str]] = {
    "build": (build_slowly, "STEP 2/"),
    "dry-run": (lambda sample: None, '"stage":"plan"'),
    "rollout": (hang, '"stage":"rollout"'),
    "restore": (crash, '"stage":"restore"'),
}
"""How the older commit is made to take long, and what the log says when it is time to push the newer one."""


def overtaken(name: str) -> Scenario:
    def scenario(rig: Rig, report: Report) -> None:
        slow_down, sign = OVERTAKEN[name]
        with rig.case(f"over-{name}") as case, report.scenario(PROMISE, f"B is pushed while A is at: {name}") as row:
            process = case.start()
            case.served(case.repository.head)
            case.sample.version = "2"
            began = time.monotonic()
            case.served(case.push("B alone"))
            row["alone"] = alone = seconds_since(began)

            mark = len(process.text)
            case.sample.version, case.sample.maps = "3", {"part-1": {}, "of-a": {}}
            slow_down(case.sample)
            older = case.push("A")
            case.until(lambda: sign in process.text[mark:], f"A is at {name}")
            case.sample = Sample(version="4", maps={"part-1": {}})
            with case.asked() as answers:
                began = time.monotonic()
                newer = case.push("B")
                case.served(newer)
                row["overtaking"] = overtaking = seconds_since(began)
            row["ratio"] = round(overtaking / alone, 2)
            row["answers"] = dict(answers)
            assert set(answers) <= {"2", "3", "4"}, answers
            assert not wrote_after(process, older, newer), "something of A was done after B began"
            case.check_whole(newer)
            case.check_sample()
            if name == "build":
                assert overtaking < SLOW_BUILD, "A's build was waited for"
                assert len(case.pushes()) == 3, "A's image was finished"

    return scenario


def wrote_after(process: Process, older: str, newer: str) -> list[str]:
    """Writing stages of the older commit that were begun after the newer one's first."""
    begun = [
        (str(line["revision"]).rpartition(":")[2], str(line["stage"]))
        for line in process.lines("stage begins")
        if line["stage"] in WRITING
    ]
    first = next(number for number, (sha, _) in enumerate(begun) if sha == newer)
    return [stage for sha, stage in begun[first:] if sha == older]


def stream(rig: Rig, report: Report) -> None:
    with rig.case("stream") as case, report.scenario(PROMISE, f"a commit every {EVERY:g} s for {STREAM:g} s") as row:
        process = case.start()
        case.served(case.repository.head)
        case.sample.command = ("sh", "-c", f"sleep {START:g}; exec httpd -f -p 8000 -h /www")
        case.sample.deadline = 4 * round(START)
        began, number, sha = time.monotonic(), 1, case.repository.head
        with case.asked() as answers:
            while time.monotonic() - began < STREAM:
                number += 1
                case.sample.version = str(number)
                sha = case.push()
                time.sleep(max(0.0, began + (number - 1) * EVERY - time.monotonic()))
            row["commits"] = number - 1
            began = time.monotonic()
            case.served(sha)
            row["last_served_after"] = seconds_since(began)
        pauses = between_deployments(case, process)
        row["deployments"], row["longest_without"] = len(pauses), max(pauses)
        row["versions_served"] = len(answers)
        assert all(answer.isdigit() for answer in answers), answers
        assert row["deployments"] < row["commits"], "nothing was overtaken: this stream shows nothing"
        assert row["longest_without"] <= LONGEST
        case.check_whole(sha)
        case.check_sample()


def between_deployments(case: Case, process: Process) -> list[float]:
    """Seconds from one deployment to the next."""
    assert process.running, case.last.tail()
    at = [datetime.fromisoformat(str(line["timestamp"])) for line in process.lines("deployed")]
    return [round((later - earlier).total_seconds(), 1) for earlier, later in itertools.pairwise(at)]


SCENARIOS: dict[str, Scenario] = {
    **{f"overtaken-{name}": overtaken(name) for name in OVERTAKEN},
    "stream": stream,
}
