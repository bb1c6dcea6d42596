"""`make bench`, second part: how long `mm4 lint` takes for 10,000 PDUs, as files and as one mbox, in JSON and for people.

Needs no root and no Postfix. Each figure is a whole run of the command, its start included. Exit 1 where a run finds
something else than was put there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import forward_req

__all__ = ["GOAL", "PER_BROKEN", "measure", "pdus"]

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


def main(argv: Sequence[str]) -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description="How long mm4 lint takes.")
    parser.add_argument("--messages", type=int, default=10_000, help="PDUs (10000)")
    parser.add_argument("--size", type=int, default=40, help="kB each (40)")
    asked = parser.parse_args(argv)
    if min(asked.messages, asked.size) < 1:
        parser.error("messages and size are at least 1")
    with tempfile.TemporaryDirectory(prefix="mm4-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        files, mbox = pdus(folder, asked.messages, asked.size)
        print(f"mm4 lint, {asked.messages} PDUs of {asked.size} kB, one in {PER_BROKEN} invalid:")
        print("\n| PDUs in | JSON | for people |\n| --- | --- | --- |")
        for what, given in (("one mbox", [mbox]), (f"{asked.messages} files", files)):
            try:
                each = [measure(folder, given, asked.messages, *options) for options in (("--json",), ())]
            except AssertionError as error:
                print(f"bench: {what}: {error}", file=sys.stderr)
                return 1
            print(f"| {what} | {each[0]:.1f} s | {each[1]:.1f} s |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
