"""The daemon's listening sockets: its own, those that systemd holds, and a worker that accepts nobody any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mm4.gateway.configfile import parse_config
from mm4.gateway.example import example
from mm4.postfix.listening import listeners
from mm4.postfix.milter import accept_nobody
from mm4.postfix.serve import _Supervisor
from mm4.protocol.errors import ConfigError

NAMES = ("milter.sock", "responder.sock")
WHERE = "mm4.yaml:7: folders.sockets"


def _at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    return listener


@pytest.fixture
def held(tmp_path: Path) -> Iterator[list[socket.socket]]:
    """As systemd would give them, in another order."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_at(tmp_path / name)) for name in reversed(NAMES)]


def test_without_systemd_they_are_made_for_everybody_and_block_nobody(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).touch()  # what a killed daemon left
    made = listeners(tmp_path, NAMES, [], WHERE)
    for name, listener in made.items():
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666
        assert not listener.getblocking()
        listener.close()
    assert list(made) == list(NAMES)


def test_those_of_systemd_are_told_apart_by_their_paths(tmp_path: Path, held: list[socket.socket]) -> None:
    another = tmp_path.parent / f"{tmp_path.name}-link"
    another.symlink_to(tmp_path)
    before = {name: (tmp_path / name).stat().st_ino for name in NAMES}
    found = listeners(another, NAMES, held, WHERE)
    assert {name: Path(listener.getsockname()).name for name, listener in found.items()} == dict(zip(NAMES, NAMES, strict=True))
    assert {name: (tmp_path / name).stat().st_ino for name in NAMES} == before


def test_one_that_is_lacking_is_named_with_the_cure(tmp_path: Path, held: list[socket.socket]) -> None:
    with pytest.raises(ConfigError) as error:
        listeners(tmp_path, NAMES, held[:1], WHERE)
    assert str(error.value).startswith(f"{WHERE}: the sockets that systemd gave do not fit: {tmp_path}/milter.sock is lacking.")
    assert "ListenStream=" in str(error.value)


def test_those_of_another_folder_and_of_another_kind_are_named(tmp_path: Path, held: list[socket.socket]) -> None:
    (tmp_path / "other").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "other" / NAMES[0]))  # does not listen
        with pytest.raises(ConfigError) as error:
            listeners(tmp_path / "other", NAMES, [*held, tcp, silent], WHERE)
    for text in (f"{tmp_path}/milter.sock", "'127.0.0.1'", f"{tmp_path}/other/milter.sock"):
        assert text in str(error.value).partition("has no use here")[0]


_CHILD = """
import os, subprocess, sys
from mm4.postfix.listening import held_by_systemd
from mm4.protocol.errors import ConfigError
given = [int(n) for n in sys.argv[2:]]
for n, descriptor in enumerate(given):
    os.dup2(descriptor, 3 + n)
os.environ |= {"LISTEN_PID": sys.argv[1] or str(os.getpid()), "LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": "a:b"}
try:
    held = held_by_systemd()
except ConfigError as error:
    sys.exit(str(error))
print([os.path.basename(s.getsockname()) for s in held], [s.getblocking() or s.get_inheritable() for s in held])
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def _given(pid: str, descriptors: list[int]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CHILD, pid, *map(str, descriptors)]
    return subprocess.run(command, pass_fds=descriptors, capture_output=True, text=True, check=False)


def test_what_systemd_says_is_for_one_process_alone(held: list[socket.socket]) -> None:
    # Clear of 3 and 4, where they are put.
    copies = [os.dup(os.dup(os.dup(listener.fileno()))) for listener in held]
    assert _given("", copies).stdout.splitlines() == ["['responder.sock', 'milter.sock'] [False, False]", "[]"]
    assert _given("1", copies).stdout.splitlines() == ["[] []", "[]"]


def test_a_descriptor_that_is_no_socket_is_named(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        done = _given("", [os.dup(os.dup(file.fileno()))])
    assert "descriptor 3, which systemd gave, is no socket" in done.stderr


def test_who_connects_to_a_worker_that_leaves_waits_for_the_next(tmp_path: Path) -> None:
    with _at(tmp_path / "s") as kept, socket.socket(fileno=os.dup(kept.fileno())) as worker:
        accept_nobody(worker.fileno())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            with pytest.raises(BlockingIOError):
                worker.accept()
            next_, _ = kept.accept()
            next_.close()


def test_the_watchdog_is_fed_while_every_child_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.setblocking(False)

    async def fed() -> None:
        text = example()
        supervisor = _Supervisor("mm4.yaml", parse_config(text, "mm4.yaml", {}), text)
        child = SimpleNamespace(ready=asyncio.Event())
        supervisor.children = [child]  # type: ignore[list-item]
        task = asyncio.create_task(supervisor._say_alive())
        await asyncio.sleep(0.25)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        manager.settimeout(60)
        child.ready.set()
        # One that is not ready at one look must not be the end: there are more before systemd's time is over.
        assert await asyncio.to_thread(manager.recv, 100) == await asyncio.to_thread(manager.recv, 100) == b"WATCHDOG=1"
        task.cancel()

    with manager:
        asyncio.run(fed())
