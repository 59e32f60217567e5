"""What a benchmark says: seconds (or bytes), those of its peers, the goals, and what was checked."""

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """``least``: so many times better than the peer. ``most``: so many times the peer's figure, or an absolute one."""

    against: str = ""  # a peer; "" for an absolute goal
    least: float = 0.0
    most: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``ours`` and ``peers`` are in ``unit``; ``checked`` says what was found correct."""

    name: str
    work: str
    unit: str
    ours: float
    peers: Mapping[str, float] = field(default_factory=dict[str, float])
    goals: Sequence[Goal] = ()
    checked: str
    note: str = ""

    def met(self, goal: Goal) -> bool:
        return self.figure(goal) >= goal.least if goal.least else self.figure(goal) <= goal.most

    def figure(self, goal: Goal) -> float:
        if not goal.against:
            return self.ours
        peer = self.peers[goal.against]
        return peer / self.ours if goal.least else self.ours / peer

    def json(self) -> dict[str, Any]:
        goals = [
            {"against": goal.against, "figure": round(self.figure(goal), 3), "met": self.met(goal)}
            | ({"least": goal.least} if goal.least else {"most": goal.most})
            for goal in self.goals
        ]
        return {
            "name": self.name,
            "work": self.work,
            "unit": self.unit,
            "ours": self.ours,
            "peers": dict(self.peers),
            "goals": goals,
            "checked": self.checked,
            "note": self.note,
        }


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines: list[str] = []
    for row in rows:
        lines.append(f"{row.name}: {row.work}")
        figures = {"gitsync": row.ours, **row.peers}
        lines.append("    " + " · ".join(f"{who} {_plain(value)} {row.unit}" for who, value in figures.items()))
        for goal in row.goals:
            wanted = (
                f"≥ {goal.least:g}×" if goal.least else f"≤ {goal.most:g}" + ("×" if goal.against else f" {row.unit}")
            )
            sign = "met   " if row.met(goal) else "MISSED"
            times = "×" if goal.against else f" {row.unit}"
            against = (
                f" of {goal.against}" if goal.most and goal.against else f" than {goal.against}" if goal.against else ""
            )
            lines.append(f"    {sign} {_plain(row.figure(goal))}{times}{against} (goal {wanted})")
        lines.append(f"    checked: {row.checked}" + (f"; {row.note}" if row.note else ""))
    return "\n".join(lines)


def _plain(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def in_turns(rounds: int, **works: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """Median seconds of each, taken in turns so that a busy machine slows all of them."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(await timed(work))
    return {name: median(each) for name, each in taken.items()}
