"""A reach list of a million rows, in order and shuffled: load time, memory, and a look-up.

Each figure is of a process of its own, and its own computing time: what else the machine does is not counted. As a
program it is that process: a worker's modules, the list, and the list once more, as when its file has changed.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from .figures import spread
from .part import Asked, Part, Target, Wrong, say, table, turns

__all__ = ["LOAD", "LOOKUP", "MEMORY", "measure", "reach", "write"]

TESTS = Path(__file__).resolve().parents[1]

LOAD = 2.0
"""Seconds for a million rows."""
MEMORY = 200.0
"""MB of a worker at its largest, Python, our own modules and the list that it has while it reads the new one included."""
LOOKUP = 10.0
"""Microseconds for a number."""

_ASKED = 100_000


def write(path: Path, rows: int, *, shuffled: bool) -> None:
    """A list of `rows` prefixes of 6 to 11 digits, as of many operators in many countries; some lie within others."""
    choice = random.Random(4)
    prefixes: set[str] = set()
    while len(prefixes) < rows:
        size = choice.randint(6, 11)
        prefixes.add(str(choice.randint(10 ** (size - 1), 10**size - 1)))
    order = sorted(prefixes)
    if shuffled:
        choice.shuffle(order)
    with path.open("w") as file:
        file.write("prefix,operator,mcc,mnc,peer\n")
        for n, prefix in enumerate(order):
            file.write(f"{prefix},Operator {n % 900},{200 + n % 550},{n % 90:02d},peer-{n % 20}\n")


def measure(path: Path) -> dict[str, float]:
    """`load` in seconds, `memory` in MB, `lookup` in microseconds, `found` as a share; in a process of its own."""
    command = [sys.executable, "-m", "bench.reach", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TESTS)
    return dict(json.loads(done.stdout))


def _one(path: str) -> dict[str, float]:
    import mm4.postfix.worker  # noqa: F401 - takes its memory
    from mm4.lookup.reach import Reach, read_reach

    def read() -> Reach:
        with open(path, encoding="utf-8", newline="") as file:
            return read_reach(file, path, [f"peer-{n}" for n in range(20)], None)

    begun = time.process_time()
    listed = read()
    load = time.process_time() - begun
    choice = random.Random(5)
    numbers = [f"+{choice.randint(10**10, 10**12 - 1)}" for _ in range(_ASKED)]
    begun = time.process_time()
    found = sum(listed.find(number) is not None for number in numbers)
    lookup = (time.process_time() - begun) / _ASKED * 1e6
    listed = read()  # until that one is there, the first one stays
    # Not ru_maxrss, which begins with what the parent had.
    largest = int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024 / 1e6
    return {"load": load, "memory": largest, "lookup": lookup, "found": found / _ASKED, "rows": len(listed)}


def reach(asked: Asked) -> Part:
    """Both orders in turn, round after round. Raises Wrong where a look-up finds something else than was put there."""
    rows = asked.many(1_000_000, 10_000)
    every: dict[str, list[dict[str, float]]] = {"sorted": [], "shuffled": []}
    for name in every:
        write(asked.folder / f"{name}.csv", rows, shuffled=name == "shuffled")
    for number in range(1, asked.rounds + 1):
        for name in turns(list(every), number):
            figures = measure(asked.folder / f"{name}.csv")
            if figures["rows"] != rows or not figures["found"]:
                raise Wrong(f"{rows} rows: {figures}")
            every[name].append(figures)
            say(f"reach, round {number}, {name}: {figures}")
    cells, found = [], []
    for name, of in every.items():
        load, size, lookup = ([each[what] for each in of] for what in ("load", "memory", "lookup"))
        cells.append([name, f"{spread(load, 2)} s", f"{spread(size, 0)} MB", f"{spread(lookup, 1)} us"])
        found.append([statistics.median(values) for values in (load, size, lookup)])
    goals = (("load", LOAD, "s"), ("memory", MEMORY, "MB"), ("a look-up", LOOKUP, "us"))
    targets = []
    for n, (what, goal, unit) in enumerate(goals):
        worst = max(each[n] for each in found)
        targets.append(
            Target(f"reach list of {rows:,} rows, {what}", f"< {goal:g} {unit}", f"{worst:.1f} {unit}", worst < goal)
        )
    lines = [
        f"{rows:,} rows, prefixes of 6 to 11 digits; the process's own computing time, and its memory at its largest, while "
        "it reads the list a second time and has a worker's modules and the first one.", "",
        *table(["order of the file", "load", "memory", "a look-up"], cells),
    ]  # fmt: skip
    return Part("Reach lists", lines, targets, every)


if __name__ == "__main__":
    print(json.dumps(_one(sys.argv[1])))
