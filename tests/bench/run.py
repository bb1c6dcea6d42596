"""`make bench`: what the gateway costs beside Postfix itself, part by part, as docs/performance.md has it.

Exit 0; 1 where a message, a row or an ack is missing, comes twice or waits; 2 wrong use. A target that is missed is no
failure of the bench: it stands in the table of targets.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import alone, endurance, lint, policy, reach, start, stores, traffic
from bench.figures import replaced
from bench.machine import machine_lines
from bench.part import Asked, Measure, Part, Wrong, say, table
from bench.sender import Refused

__all__ = ["PARTS", "Options", "arguments", "main", "measured", "page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
PARTS: Mapping[str, Measure] = {
    "sizes": traffic.sizes,
    "sessions": traffic.sessions,
    "wire": alone.wire,
    "workers": alone.workers,
    "stores": stores.stores,
    "memory": endurance.growth,
    "storm": endurance.storm,
    "start": start.start,
    "reach": reach.reach,
    "rules": policy.policy,
    "lint": lint.lint,
}
"""In the order of the page."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    only: tuple[str, ...]
    rounds: int
    messages: int
    short: bool
    json: Path | None
    write: bool


def arguments(argv: Sequence[str]) -> Options:
    """Read the command line; what is wrong with it ends with 2."""
    parser = argparse.ArgumentParser(description="What the gateway costs beside Postfix itself.")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help=f"with commas, of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, help="rounds in which all kinds take turns (5; 1 in the short form)")
    parser.add_argument("--messages", type=int, help="messages a run (400; 40 in the short form)")
    parser.add_argument("--short", action="store_true", help="a few messages of each, to see that all of it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--write", action="store_true", help="put it into docs/performance.md")
    given = vars(parser.parse_args(argv))
    given["only"] = tuple(given["only"].split(","))
    given["rounds"] = given["rounds"] or (1 if given["short"] else 5)
    given["messages"] = given["messages"] or (40 if given["short"] else 400)
    options = Options(**given)
    unknown = [name for name in options.only if name not in PARTS]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}")
    if min(options.rounds, options.messages) < 1:
        parser.error("rounds and messages are at least 1")
    if options.write and (options.short or set(options.only) != set(PARTS)):
        parser.error("--write takes the whole page: no --short, no --only")
    if options.write:
        replaced(PAGE.read_text(), "")  # that the page has its markers is known before minutes are spent
    return options


@contextlib.contextmanager
def places(options: Options) -> Iterator[Asked]:
    """The folders of a bench, which are gone after it."""
    # Not /tmp, which is memory on newer Debian: the queue and the store have to lie on a disk.
    folder = Path(tempfile.mkdtemp(prefix="mm4-bench-", dir="/var/tmp"))
    memory = Path(tempfile.mkdtemp(prefix="mm4-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        folder.chmod(0o755)
        shutil.chown(memory, "postfix")
        yield Asked(folder, memory, options.rounds, options.messages, options.short)
    except (Wrong, Refused, AssertionError):
        if os.environ.get("MM4_KEEP"):
            say(f"kept: {folder}")
            folder = memory
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)


def measured(asked: Asked, names: Sequence[str]) -> dict[str, Part]:
    """The parts, in the order of the page. Raises Wrong, Refused, AssertionError."""
    parts = {}
    for name in PARTS:
        if name in names:
            begun = time.monotonic()
            folder, memory = asked.folder / name, asked.memory / name
            folder.mkdir()
            memory.mkdir()
            shutil.chown(memory, "postfix")
            parts[name] = PARTS[name](replace(asked, folder=folder, memory=memory))
            for each in (folder, memory):
                shutil.rmtree(each, ignore_errors=True)
            say(f"{name}: {time.monotonic() - begun:.0f} s")
    return parts


def page(parts: Mapping[str, Part], head: Sequence[str]) -> str:
    """What stands between the markers of docs/performance.md."""
    targets = [target for part in parts.values() for target in part.targets]
    lines = [*head, ""]
    if targets:
        cells = [[t.what, t.goal, t.measured, "met" if t.met else "**missed**"] for t in targets]
        lines += ["### Targets", "", *table(["target", "goal", "measured", ""], cells), ""]
    for part in parts.values():
        lines += [f"### {part.title}", "", *part.lines, ""]
    return "\n".join(lines).rstrip()


def main(argv: Sequence[str]) -> int:
    """Run the bench; the exit code."""
    options = arguments(argv)
    if os.geteuid() != 0:
        print("bench: has to run as root, as a private Postfix does: sudo make bench", file=sys.stderr)
        return 2
    # What was started is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begun = time.monotonic()
    try:
        with places(options) as asked:
            machine = machine_lines(asked.folder)
            parts = measured(asked, options.only)
    except (Wrong, Refused, AssertionError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    minutes = (time.monotonic() - begun) / 60
    head = [
        f"Measured on {datetime.datetime.now(datetime.UTC):%Y-%m-%d} in {minutes:.0f} minutes: {options.rounds} rounds, "
        f"{options.messages} messages a run where nothing else is said.",
        "", *machine,
    ]  # fmt: skip
    text = page(parts, head)
    print(text)
    if options.json:
        kept = {"machine": machine, "options": asdict(options), "parts": {name: asdict(p) for name, p in parts.items()}}
        options.json.write_text(json.dumps(kept, indent=1, default=str))
    if options.write:
        PAGE.write_text(replaced(PAGE.read_text(), text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
