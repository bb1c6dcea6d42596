"""The first children of `mm4 serve` are forked: what they keep of the supervisor, and how they end without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from harness import wait_for

MILTER = Path(__file__).parents[2] / "milter"

SUPERVISOR = """
    import asyncio, json, os, signal, socket, sys, threading, types
    from mm4.postfix.forked import fork

    def main(*descriptors):
        signal.alarm(120)  # nothing stays of a test that fails
        told = {"pid": os.getpid(), "leads": os.getsid(0) == os.getpid(), "given": descriptors}
        told["open"] = sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))
        told["command"] = open("/proc/self/cmdline").read().rstrip("\\0")
        print(json.dumps(told), flush=True)
        return len(sys.stdin.read())

    stub = sys.modules["mm4.stub"] = types.ModuleType("mm4.stub")
    stub.main = main
    lock = os.open(sys.argv[1], os.O_RDONLY)
    first, second = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    print("said before", end="")  # once, however many are forked

    def forked():
        return fork([("mm4.stub", [first]), ("mm4.stub", [second])], [first, second], lock)

    async def tell(children):
        for child in children:
            await child.connect()
        told = [json.loads(await child.stdout.readline()) for child in children]
        print("\\n" + json.dumps({"descriptors": [first.fileno(), second.fileno()], "told": told}), flush=True)
        return children
"""


def _supervisor(tmp_path: Path, rest: str) -> subprocess.Popen[str]:
    script = textwrap.dedent(SUPERVISOR) + textwrap.dedent(rest)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(MILTER)},
    )  # fmt: skip


def _told(supervisor: subprocess.Popen[str]) -> dict[str, Any]:
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == "said before\n"
    told: dict[str, Any] = json.loads(supervisor.stdout.readline())
    return told


def test_a_child_keeps_its_own_socket_and_its_pipes_and_nothing_else(tmp_path: Path) -> None:
    with _supervisor(tmp_path, """
        children = forked()
        async def live():
            for child in await tell(children):
                child.stdin.write(b"four")
                child.stdin.close()
                print(await child.wait(), flush=True)
        asyncio.run(live())
    """) as supervisor:  # fmt: skip
        told = _told(supervisor)
        assert supervisor.stdout is not None
        assert supervisor.stdout.read() == "4\n4\n", "what it returns is its exit code"
    for number, one in zip(told["descriptors"], told["told"], strict=True):
        assert one["given"] == [number]
        assert one["open"] == [0, 1, 2, number]
        assert one["command"] == "mm4.stub"
        assert one["leads"], "a signal from a terminal is the supervisor's alone"


def test_a_supervisor_that_is_killed_leaves_no_child_without_the_end_of_its_input(tmp_path: Path) -> None:
    supervisor = _supervisor(tmp_path, """
        children = forked()
        async def live():
            await tell(children)
            await asyncio.sleep(600)
        asyncio.run(live())
    """)  # fmt: skip
    with supervisor:
        told = _told(supervisor)
        supervisor.kill()
    wait_for(lambda: not any(_lives(one["pid"]) for one in told["told"]), "both children to leave")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_that_is_killed_has_the_signal_for_its_end(tmp_path: Path) -> None:
    with _supervisor(tmp_path, """
        children = forked()
        async def live():
            first, second = await tell(children)
            first.kill()
            assert await first.stdout.read() == b""
            print(await first.wait(), second.returncode, flush=True)
        asyncio.run(live())
    """) as supervisor:  # fmt: skip
        _told(supervisor)
        assert supervisor.stdout is not None
        assert supervisor.stdout.read() == "-9 None\n"


def test_an_end_that_nobody_is_told_of_is_one_all_the_same(tmp_path: Path) -> None:
    with _supervisor(tmp_path, """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        children = forked()
        async def live():
            first, second = await tell(children)
            first.kill()
            assert await first.stdout.read() == b""
            print(await first.wait(), flush=True)
        asyncio.run(live())
    """) as supervisor:  # fmt: skip
        _told(supervisor)
        assert supervisor.stdout is not None
        assert supervisor.stdout.read() == "255\n"


def test_nothing_is_forked_beside_a_thread(tmp_path: Path) -> None:
    with _supervisor(tmp_path, """
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        print(forked(), flush=True)
    """) as supervisor:  # fmt: skip
        assert supervisor.stdout is not None
        assert supervisor.stdout.read() == "said before[None, None]\n"
