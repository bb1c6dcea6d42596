"""What the bench ran on, in words that fit any host: no names, no paths."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path

from cluster import binaries
from mm4.cli.version import version_lines

__all__ = ["machine_lines"]


def machine_lines(folder: Path) -> list[str]:
    """Processor, memory, the disk below `folder`, and versions, as list items."""
    memory = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) / 2**20
    kernel = re.match(r"[\d.]+", platform.release())
    bindings = [f"{name} {metadata.version(name)}" for name in ("pymilter", "psycopg")]
    versions = ", ".join([*version_lines(), *bindings, f"SQLite {sqlite3.sqlite_version}", *_postgresql()])
    return [
        f"- {len(os.sched_getaffinity(0))} cores ({_processor()}), {memory:.0f} GB of memory, {_disk(folder)}.",
        f"- {platform.system()} {kernel[0] if kernel else ''}, {versions}.",
    ]


def _processor() -> str:
    """Its model, or its kind where the kernel names no model."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _postgresql() -> list[str]:
    """The server that a `Cluster` starts; empty where there is none."""
    programs = binaries()
    if programs is None:
        return []
    said = subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, timeout=10, check=True)
    found = re.search(r"\d[\w.]*", said.stdout)
    return [f"PostgreSQL {found[0]}"] if found else []


def _disk(folder: Path) -> str:
    """File system, kind of device, and what a small write to it takes until it is safe."""
    device = os.stat(folder).st_dev
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    here = (m[2] for m in reversed(mounts) if os.path.exists(m[1]) and os.stat(m[1]).st_dev == device)
    system = next(here, "an unknown file system")
    link = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    kind = "no disk of its own"
    if link.exists():
        name = link.resolve().name
        rotational = link.resolve() / "queue" / "rotational"
        rotational = rotational if rotational.exists() else link.resolve().parent / "queue" / "rotational"
        spins = rotational.exists() and rotational.read_text().strip() == "1"
        kind = "virtual disk" if name.startswith(("vd", "xvd")) else "hard disk" if spins else "solid-state disk"
    return f"{system} on a {kind} where write and fsync of 4 kB take {_fsync(folder):.1f} ms"


def _fsync(folder: Path) -> float:
    """Milliseconds, median of 100."""
    times = []
    file = os.open(folder / "fsync", os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(100):
            begun = time.perf_counter()
            os.write(file, bytes(4096))
            os.fsync(file)
            times.append(time.perf_counter() - begun)
    finally:
        os.close(file)
        os.unlink(folder / "fsync")
    return 1000 * statistics.median(times)
