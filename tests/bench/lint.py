"""How long `mm4 lint` takes for 10,000 PDUs, as files and as one mbox, in JSON and for people.

Each figure is a whole run of the command, its start included.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness import forward_req

from .figures import spread
from .part import Asked, Part, Target, say, table, turns

__all__ = ["GOAL", "PER_BROKEN", "lint", "measure", "pdus"]

GOAL = 10.0
"""Seconds for 10,000 PDUs, whatever they lie in and whatever is printed."""
PER_BROKEN = 10
"""One PDU in so many has no transaction id, so that problems are told too."""

_PICTURE = b"R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7R0lGODlhAQABAIAAAAAA\r\n"


def pdus(folder: Path, count: int, size: int) -> tuple[list[str], str]:
    """`count` REQs of about `size` kB below `folder`: the files' names, and that of an mbox with all of them."""
    names = []
    body = _PICTURE * max(1, (size * 1000 - 1300) // len(_PICTURE))
    mbox = folder / "all.mbox"
    with mbox.open("wb") as together:
        for n in range(count):
            ids = (f'"t-{n}@mms.north.example"', f'"m-{n}@mms.north.example"')
            drop = ("X-Mms-Transaction-ID",) if n % PER_BROKEN == 0 else ()
            message = forward_req(ids=ids, to=f"+491511{n:06d}", body=body, drop=drop)
            name = folder / f"{n:05d}.eml"
            name.write_bytes(message)
            names.append(name.name)
            together.write(b"From ann@mms.north.example Thu Nov 12 02:28:01 2026\r\n" + message + b"\r\n")
    return names, mbox.name


def measure(folder: Path, files: Sequence[str], count: int, *options: str) -> float:
    """Seconds that `mm4 lint` takes for these files, which hold `count` PDUs. Raises AssertionError."""
    begun = time.monotonic()
    with (folder / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "mm4", "lint", *options, *files], cwd=folder, stdout=out, check=False
        )
    seconds = time.monotonic() - begun
    text = (folder / "out").read_text()
    broken = text.count('"valid": false') if "--json" in options else text.count(": MM4_forward.REQ: invalid")
    assert done.returncode == 1, f"exit {done.returncode}"
    assert broken == (count + PER_BROKEN - 1) // PER_BROKEN, f"{broken} of {count} found invalid"
    return seconds


def lint(asked: Asked) -> Part:
    """PDUs of 40 kB in each form, in turn. Raises AssertionError where a run finds something else than was put there."""
    count, size = asked.many(10_000, 100), 40
    files, mbox = pdus(asked.folder, count, size)
    given = {"one mbox": [mbox], f"{count:,} files": files}
    printed = {"JSON": ["--json"], "for people": []}
    seconds: dict[str, dict[str, list[float]]] = {what: {form: [] for form in printed} for what in given}
    kinds = [(what, form) for what in given for form in printed]
    for number in range(1, asked.rounds + 1):
        for what, form in turns(kinds, number):
            seconds[what][form].append(measure(asked.folder, given[what], count, *printed[form]))
            say(f"lint, round {number}, {what}, {form}: {seconds[what][form][-1]:.1f} s")
    worst = max(statistics.median(values) for each in seconds.values() for values in each.values())
    lines = [
        f"{count:,} PDUs of {size} kB, one in {PER_BROKEN} of them invalid; the whole run of the command.", "",
        *table(
            ["PDUs in", *printed],
            [[what, *(f"{spread(values, 1)} s" for values in each.values())] for what, each in seconds.items()],
        ),
    ]  # fmt: skip
    target = Target(f"`mm4 lint` of {count:,} PDUs", f"< {GOAL:.0f} s", f"{worst:.1f} s", worst < GOAL)
    return Part("mm4 lint", lines, [target], dict(seconds))
