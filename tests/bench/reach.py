"""`make bench`, third part: a reach list of a million rows, in order and shuffled: load time, memory, and a look-up.

Needs no root and no Postfix. Each figure is of a process of its own, and its own computing time: what else the machine
does is not counted. Exit 1 where a look-up finds something else than was put there.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["LOAD", "LOOKUP", "MEMORY", "measure", "write"]

LOAD = 2.0
"""Seconds for a million rows."""
MEMORY = 200.0
"""MB of the process at its largest, Python and our own modules included."""
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
    done = subprocess.run([sys.executable, __file__, "--one", str(path)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _one(path: str) -> dict[str, float]:
    import resource

    from mm4.lookup.reach import read_reach

    begun = time.process_time()
    with open(path, encoding="utf-8", newline="") as file:
        reach = read_reach(file, path, [f"peer-{n}" for n in range(20)], None)
    load = time.process_time() - begun
    choice = random.Random(5)
    numbers = [f"+{choice.randint(10**10, 10**12 - 1)}" for _ in range(_ASKED)]
    begun = time.process_time()
    found = sum(reach.find(number) is not None for number in numbers)
    lookup = (time.process_time() - begun) / _ASKED * 1e6
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"load": load, "memory": largest, "lookup": lookup, "found": found / _ASKED, "rows": len(reach)}


def main(argv: Sequence[str]) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description="What a reach list costs.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows (1000000)")
    parser.add_argument("--one", metavar="FILE", help="measure this file, print JSON")
    asked = parser.parse_args(argv)
    if asked.one:
        print(json.dumps(_one(asked.one)))
        return 0
    print(f"a reach list of {asked.rows} rows:\n\n| order | load | memory | a look-up |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="mm4-bench-", dir="/var/tmp") as name:
        path = Path(name) / "reach.csv"
        for shuffled in (False, True):
            write(path, asked.rows, shuffled=shuffled)
            figures = measure(path)
            if figures["rows"] != asked.rows or not figures["found"]:
                print(f"bench: {figures['rows']} rows were read, and {figures['found']:.0%} found", file=sys.stderr)
                return 1
            print(
                f"| {'shuffled' if shuffled else 'sorted'} | {figures['load']:.2f} s | {figures['memory']:.0f} MB "
                f"| {figures['lookup']:.1f} us |", flush=True,
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
