"""``python -m benchmarks [--scale 0.1] [--only NAME …]``, also known as ``make bench``."""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import apply, drift, parsing, reconcile, rest, watching
from benchmarks.figures import Row, table

Group = Callable[[float], Awaitable[Sequence[Row]]]
GROUPS: dict[str, Group] = {
    "parsing": parsing.run,
    "watching": watching.run,
    "apply": apply.run,
    "drift": drift.run,
    "reconcile": reconcile.run,
    "rest": rest.run,
}
REPORT = Path(__file__).parents[1] / "reports/bench.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size, e.g. 0.1 for a quick look")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="some groups alone")
    options = parser.parse_args()
    former: list[dict[str, Any]] = json.loads(REPORT.read_text())["rows"] if REPORT.exists() else []
    kept = {str(row["name"]): row for row in former}
    missed = 0
    for name in options.only:
        began, load = time.monotonic(), os.getloadavg()[0]
        rows = asyncio.run(_awaited(GROUPS[name], options.scale))
        print(table(rows), flush=True)
        print(f"  ({name}: {time.monotonic() - began:.0f} s, load {load:.1f})\n", file=sys.stderr)
        missed += sum(not row.met(goal) for row in rows for goal in row.goals)
        kept |= {row.name: row.json() | {"scale": options.scale, "load": round(load, 1)} for row in rows}
        REPORT.parent.mkdir(exist_ok=True)
        text = {"machine": {"cores": os.cpu_count(), "python": platform.python_version()}, "rows": list(kept.values())}
        REPORT.write_text(json.dumps(text, indent=1) + "\n")
    print(f"{missed} goals missed" if missed else "every goal met")
    return 0


async def _awaited(group: Group, scale: float) -> Sequence[Row]:
    return await group(scale)


if __name__ == "__main__":
    sys.exit(main())
