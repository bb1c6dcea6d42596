"""Submission: against an SMTP server, and against programs that stand in for sendmail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP

from mm4.postfix import submit
from mm4.postfix.submit import Submitter
from mm4.protocol.errors import SubmissionError

MESSAGE = b"From: system-user@mms.test\r\nSubject: RES\r\n\r\n.\r\n..\r\n.x\r\n\r\nlast line\r\n"


class Sink:
    """What aiosmtpd calls; notes what arrives."""

    def __init__(self) -> None:
        self.got: list[tuple[str, list[str], bytes]] = []
        self.rcpt_reply = "250 2.1.5 Ok"

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:
        if self.rcpt_reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.rcpt_reply

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        mail_from = envelope.mail_from.replace("<>", "")  # aiosmtpd's null sender
        self.got.append((mail_from, list(envelope.rcpt_tos), envelope.original_content))
        return f"250 2.0.0 Ok: queued as 4Q{len(self.got)}"


class Net:
    """An SMTP server on loopback that counts and can cut its sessions."""

    def __init__(self) -> None:
        self.sink = Sink()
        self.sessions: list[SMTP] = []
        self.server: asyncio.Server | None = None
        self.address = ("127.0.0.1", 0)

    def _session(self) -> SMTP:
        session = SMTP(self.sink, hostname="sink.test", loop=asyncio.get_running_loop())
        self.sessions.append(session)
        return session

    async def __aenter__(self) -> Net:
        self.server = await asyncio.get_running_loop().create_server(self._session, *self.address)
        self.address = self.server.sockets[0].getsockname()[:2]
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self.server is not None
        self.server.close()

    def cut(self) -> None:
        for session in self.sessions:
            if session.transport is not None:
                session.transport.close()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body(), 60)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


# --- SMTP


def test_smtp_carries_the_bytes_and_gives_the_queue_id() -> None:
    async def body() -> None:
        async with Net() as net:
            submitter = Submitter("smtp", address=net.address)
            assert await submitter.submit("", "+447700900101/TYPE=PLMN@peer.test", MESSAGE) == "4Q1"
            assert await submitter.submit("s@mms.test", '"a b"@peer.test', MESSAGE[:-2]) == "4Q2"
            await submitter.close()
            first, second = net.sink.got
            assert first == ("", ["+447700900101/TYPE=PLMN@peer.test"], MESSAGE)
            assert second == ("s@mms.test", ['"a b"@peer.test'], MESSAGE)  # SMTP cannot carry an open last line
            assert len(net.sessions) == 1

    run(body)


def test_a_server_without_dsn_is_not_given_an_envid() -> None:
    async def body() -> None:
        async with Net() as net:  # answers 555 to a parameter that it does not offer
            submitter = Submitter("smtp", address=net.address)
            assert await submitter.submit("", "a@b.test", MESSAGE, "0123456789abcdef.answer") == "4Q1"
            await submitter.close()

    run(body)


def test_sessions_are_a_small_pool_and_are_recycled() -> None:
    async def body() -> None:
        async with Net() as net:
            submitter = Submitter("smtp", address=net.address, sessions=3, messages=5)
            ids = await asyncio.gather(*[submitter.submit("", "a@b.test", MESSAGE) for _ in range(30)])
            assert len(set(ids)) == 30
            assert 6 <= len(net.sessions) <= 8  # 30 mails, 5 a session, 3 sessions at a time
            await submitter.close()

    run(body)


def test_a_session_that_died_while_kept_is_replaced_silently() -> None:
    async def body() -> None:
        async with Net() as net:
            submitter = Submitter("smtp", address=net.address)
            for _ in range(3):
                await submitter.submit("", "a@b.test", MESSAGE)
                net.cut()
            assert len(net.sink.got) == len(net.sessions) == 3
            await submitter.close()

    run(body)


def test_an_idle_session_is_not_used_again_and_is_closed_meanwhile() -> None:
    async def body() -> None:
        async with Net() as net:
            submitter = Submitter("smtp", address=net.address, idle_seconds=0.02)
            await submitter.submit("", "a@b.test", MESSAGE)
            await until(lambda: net.sessions[0].transport is None or net.sessions[0].transport.is_closing())
            await submitter.submit("", "a@b.test", MESSAGE)
            assert len(net.sessions) == 2
            await submitter.close()

    run(body)


@pytest.mark.parametrize("reply", ["554 5.7.1 Access denied", "451 4.3.0 Later"])
def test_a_refused_recipient_is_temporary_and_the_next_mail_goes(reply: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with Net() as net:
            submitter = Submitter("smtp", address=net.address)
            net.sink.rcpt_reply = reply
            with pytest.raises(SubmissionError, match=reply) as raised:
                await submitter.submit("", "a@b.test", MESSAGE)
            assert raised.value.temporary
            net.sink.rcpt_reply = "250 Ok"
            assert await submitter.submit("", "a@b.test", MESSAGE) == "4Q1"
            await submitter.close()

    run(body)
    assert ("refused" in caplog.text) == reply.startswith("5")


def test_nobody_listening_and_nobody_answering_are_submission_errors() -> None:
    async def body() -> None:
        async with Net() as net:
            address = net.address
        submitter = Submitter("smtp", address=address)
        with pytest.raises(SubmissionError, match="refused"):
            await submitter.submit("", "a@b.test", MESSAGE)
        await submitter.close()
        streams: list[object] = []  # kept: from Python 3.13 on a writer that nobody has closes its connection
        silent = await asyncio.start_server(lambda *pair: streams.append(pair), "127.0.0.1", 0)
        submitter = Submitter("smtp", address=silent.sockets[0].getsockname()[:2], timeout=0.05)
        with pytest.raises(SubmissionError, match="no answer within"):
            await submitter.submit("", "a@b.test", MESSAGE)
        await submitter.close()
        silent.close()

    run(body)


def test_a_reply_that_trickles_in_for_ever_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async def trickle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while True:
                writer.write(b"2")
                await writer.drain()
                await asyncio.sleep(0.01)

    async def body() -> None:
        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        submitter = Submitter("smtp", address=server.sockets[0].getsockname()[:2], timeout=0.1)
        begun = time.monotonic()
        with pytest.raises(SubmissionError, match="no answer within"):
            await submitter.submit("", "a@b.test", MESSAGE)
        assert time.monotonic() - begun < 1.0
        await submitter.close()
        server.close()

    monkeypatch.setattr(submit, "_GRACE", 0.05)
    run(body)


def test_waiting_for_a_free_session_counts_towards_the_timeout() -> None:
    async def body() -> None:
        streams: list[object] = []  # kept: from Python 3.13 on a writer that nobody has closes its connection
        silent = await asyncio.start_server(lambda *pair: streams.append(pair), "127.0.0.1", 0)
        submitter = Submitter("smtp", address=silent.sockets[0].getsockname()[:2], timeout=0.1, sessions=1)
        begun = time.monotonic()
        jobs = [submitter.submit("", "a@b.test", MESSAGE) for _ in range(5)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert all(isinstance(result, SubmissionError) for result in results)
        assert time.monotonic() - begun < 1.0
        await submitter.close()
        silent.close()

    run(body)


@pytest.mark.parametrize("address", ["a@b.test> X", "a@b.test\r\nRSET", "a b@c.test", "grün@b.test", "a@b\0"])
def test_an_address_that_would_break_the_command_is_not_sent(address: str) -> None:
    async def body() -> None:
        submitter = Submitter("smtp", address=("127.0.0.1", 1))
        with pytest.raises(SubmissionError, match="not an address"):
            await submitter.submit("", address, MESSAGE)
        with pytest.raises(SubmissionError, match="not an address"):
            await submitter.submit(address, "a@b.test", MESSAGE)
        await submitter.close()

    run(body)


def test_a_closed_submitter_refuses() -> None:
    async def body() -> None:
        submitter = Submitter("smtp", address=("127.0.0.1", 1))
        await submitter.close()
        with pytest.raises(SubmissionError, match="closed"):
            await submitter.submit("", "a@b.test", MESSAGE)

    run(body)


def test_smtp_needs_an_address() -> None:
    with pytest.raises(ValueError, match="address"):
        Submitter("smtp")


# --- sendmail

STAND_IN = """\
import os, sys, time
folder, mode = {folder!r}, {mode!r}
with open(folder + "/started", "a") as file:
    file.write(" ".join(sys.argv[1:]) + " pid=" + str(os.getpid()) + "\\n")
def say(text):
    os.write(1, text.encode() + b"\\r\\n")
if mode == "75":
    sys.stderr.write("sendmail: fatal: cannot open main.cf\\n")
    sys.exit(75)
if mode == "hang":
    time.sleep(60)
say("220 gw ESMTP")
source, count = os.fdopen(0, "rb"), 0
while line := source.readline():
    verb = line[:4].upper()
    if verb == b"MAIL" and count and mode == "421":
        say("421 4.4.2 gw Error: timeout exceeded")
        break
    if verb == b"QUIT":
        say("221 Bye")
        break
    if verb != b"DATA":
        say("250 2.0.0 Ok")
        continue
    say("354 go on")
    lines = []
    while (line := source.readline()) not in (b".\\r\\n", b""):
        lines.append(line)
    if not line or mode == "dies":
        sys.exit(1)
    if mode == "hang at dot":
        time.sleep(60)
    count += 1
    with open(folder + "/got", "ab") as file:
        file.write(b"".join(lines) + b"=====")
    say("250 2.0.0 Ok: queued as M" + str(count))
"""


class StandIn:
    """A program in sendmail's place; `mode` says what is wrong with it."""

    def __init__(self, folder: Path, mode: str = "fine") -> None:
        self.folder = folder
        self.path = folder / "sendmail"
        self.path.write_text(f"#!{sys.executable} -S\n" + STAND_IN.format(folder=str(folder), mode=mode))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def started(self) -> list[str]:
        path = self.folder / "started"
        return path.read_text().splitlines() if path.exists() else []

    def pids(self) -> list[int]:
        return [int(line.rpartition("=")[2]) for line in self.started()]

    def got(self) -> list[bytes]:
        return (self.folder / "got").read_bytes().split(b"=====")[:-1]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_sendmail_is_kept_and_reaped(tmp_path: Path) -> None:
    async def body() -> None:
        program = StandIn(tmp_path)
        submitter = Submitter(sendmail=str(program.path), config_directory=Path("/etc/pf"), messages=2)
        assert [await submitter.submit("", "a@b.test", MESSAGE) for _ in range(3)] == ["M1", "M2", "M1"]
        await submitter.close()
        assert [line.partition(" pid")[0] for line in program.started()] == ["-C /etc/pf -bs"] * 2
        assert program.got() == [MESSAGE.replace(b"\r\n.", b"\r\n..")] * 3  # dot-stuffed, nothing else
        assert all(map(gone, program.pids()))

    run(body)


def test_sendmail_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def body() -> None:
        program = StandIn(tmp_path, "75")
        submitter = Submitter(sendmail=str(program.path))
        with pytest.raises(SubmissionError, match=r"ended with status 75: sendmail: fatal: cannot open main\.cf"):
            await submitter.submit("", "a@b.test", MESSAGE)
        await submitter.close()
        submitter = Submitter(sendmail=str(tmp_path / "none"))
        with pytest.raises(SubmissionError, match="No such file"):
            await submitter.submit("", "a@b.test", MESSAGE)
        await submitter.close()
        assert all(map(gone, program.pids()))

    run(body)


@pytest.mark.parametrize("mode", ["hang", "hang at dot"])
def test_a_hanging_sendmail_is_killed(tmp_path: Path, mode: str) -> None:
    async def body() -> None:
        program = StandIn(tmp_path, mode)
        submitter = Submitter(sendmail=str(program.path), timeout=1.0)
        with pytest.raises(SubmissionError, match="no answer within 1 s, killed"):
            await submitter.submit("", "a@b.test", MESSAGE)
        assert all(map(gone, program.pids()))
        assert program.pids()
        await submitter.close()

    run(body)


def test_a_sendmail_that_went_away_while_idle_is_replaced_once(tmp_path: Path) -> None:
    async def body() -> None:
        program = StandIn(tmp_path, "421")
        submitter = Submitter(sendmail=str(program.path))
        for _ in range(3):
            assert await submitter.submit("", "a@b.test", MESSAGE) == "M1"
        assert len(program.pids()) == len(program.got()) == 3
        await submitter.close()

    run(body)


def test_a_sendmail_that_dies_with_the_message_is_an_error_and_not_tried_twice(tmp_path: Path) -> None:
    async def body() -> None:
        program = StandIn(tmp_path, "dies")
        submitter = Submitter(sendmail=str(program.path))
        with pytest.raises(SubmissionError, match="ended with status 1"):
            await submitter.submit("", "a@b.test", MESSAGE)
        assert len(program.pids()) == 1
        await submitter.close()

    run(body)
