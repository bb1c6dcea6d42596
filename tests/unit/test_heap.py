"""Memory that is used again."""

from __future__ import annotations

import subprocess
import sys

READS = """
import resource, sys
from mm4.postfix import heap
if "settled" in sys.argv:
    heap.settle()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def read():
    a, b = bytearray(256 * 1024), bytearray(300_000)
read()
before = faults()
for _ in range(100):
    read()
print(faults() - before)
"""


def faults_of(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", READS, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_settled_process_takes_no_new_pages_for_each_large_read() -> None:
    assert faults_of("settled") < 500 < faults_of()
