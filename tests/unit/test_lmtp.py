"""The LMTP server over real UNIX sockets, and the Maildir handler behind it."""

from __future__ import annotations

import asyncio
import contextlib
import email
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mm4.postfix import lmtp, maildir
from mm4.postfix.lmtp import CHUNK, Envelope, LmtpServer
from mm4.postfix.maildir import Maildir
from mm4.postfix.mailpath import split_address
from mm4.protocol.errors import Reply

OK = Reply(250, "2.0.0", "Ok")


class Fake:
    """A handler that notes what it gets."""

    def __init__(self, wanted: int | None = None) -> None:
        self.got: list[tuple[Envelope, bytes]] = []
        self.limit = wanted
        self.gate: asyncio.Event | None = None
        self.failure: Exception | None = None

    def rcpt(self, envelope: Envelope, address: str) -> Reply:
        if address.startswith("boom"):
            raise RuntimeError("boom at rcpt")
        return Reply(550, "5.1.1", "No") if address.startswith("no") else OK

    def wanted(self, envelope: Envelope) -> int | None:
        return self.limit

    async def deliver(self, envelope: Envelope, data: bytes) -> list[Reply]:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.got.append((envelope, data))
        return [Reply(250, "2.0.0", f"Ok {n}") for n, _ in enumerate(envelope.recipients)]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> str:
        """One reply, the last line of a multi-line one; "" at EOF."""
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), 30)).decode()
            if line[3:4] != "-":
                return line.rstrip("\r\n")

    async def say(self, line: str) -> str:
        self.send(line.encode() + b"\r\n")
        return await self.reply()

    async def begin(self, *recipients: str) -> None:
        for line in ("LHLO mail.example.test", "MAIL FROM:<a@b.test>", *(f"RCPT TO:<{r}>" for r in recipients)):
            assert (await self.say(line)).startswith("250 ")
        assert (await self.say("DATA")).startswith("354 ")


class Serving:
    def __init__(self, server: LmtpServer, path: Path) -> None:
        self.server, self.path = server, path

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_unix_connection(str(self.path)))
        assert (await client.reply()).startswith("220 ")
        return client


@contextlib.asynccontextmanager
async def serving(handler: Any, folder: Path, **options: Any) -> AsyncIterator[Serving]:
    path = folder / "l.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        listener.setblocking(False)
        server = LmtpServer(listener, handler, **options)
        server.start()
        try:
            yield Serving(server, path)
        finally:
            await server.drain(0.1)


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(body(), 60)

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


def test_lhlo_offers_what_postfix_needs_and_no_size(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Fake(), tmp_path) as at:
            client = await at.connect()
            client.send(b"LHLO mail.example.test\r\nQUIT\r\n")
            said = (await client.reader.read()).decode().split("\r\n")
            offered = {line[4:] for line in said if line.startswith("250")} - {"mm4"}
            assert offered == {"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"}

    run(body)


@pytest.mark.parametrize("content", [b"", b"a\r\n", b".\r\n\r\n..\r\n.x\r\n\r\n", b"x\r\n.\n\n.\r.\r\r\n"])
def test_data_come_exactly_with_a_chunk_border_at_every_place(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        handler = Fake()
        stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
        wire = stuffed + b".\r\nQUIT\r\n"
        async with serving(handler, tmp_path) as at:
            for cut in range(len(wire) + 1):
                client = await at.connect()
                await client.begin("x@y.test")
                client.send(wire[:cut])
                await client.writer.drain()
                for _ in range(3):  # lets the server take the first piece alone; exact whether it does or not
                    await asyncio.sleep(0)
                client.send(wire[cut:])
                assert await client.reply() == "250 2.0.0 Ok 0"
                assert (await client.reply()).startswith("221 ")
                client.writer.close()
        assert [data for _, data in handler.got] == [content] * (len(wire) + 1)
        assert {envelope.size for envelope, _ in handler.got} == {len(stuffed)}

    # One octet a read: every border is met, whatever the kernel makes of the client's pieces.
    run(body)
    monkeypatch.setattr(lmtp, "CHUNK", 1)
    run_one_by_one(tmp_path / "one", content)


def run_one_by_one(folder: Path, content: bytes) -> None:
    folder.mkdir()

    async def body() -> None:
        handler = Fake()
        async with serving(handler, folder) as at:
            client = await at.connect()
            await client.begin("x@y.test")
            client.send((b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\nNOOP\r\n")
            assert await client.reply() == "250 2.0.0 Ok 0"
            assert await client.reply() == "250 2.0.0 Ok"
        assert handler.got[0][1] == content

    run(body)


def test_everything_pipelined_two_messages_and_quit_in_one_write(tmp_path: Path) -> None:
    async def body() -> None:
        handler = Fake()
        names = (b"a@b.test", b"no@b.test", b"c@d.test")
        recipients = b"".join(b"RCPT TO:<%s>\r\n" % name for name in names)
        one = b"MAIL FROM:<> BODY=8BITMIME SMTPUTF8\r\n" + recipients + b"DATA\r\n"
        async with serving(handler, tmp_path) as at:
            client = await at.connect()
            client.send(b"LHLO x\r\n" + one + b"first\r\n.\r\n" + one + b".\r\nQUIT\r\n")
            said = (await client.reader.read()).decode()
        codes = [line[:3] for line in said.split("\r\n") if line and line[3] == " "]
        transaction = ["250", "250", "550", "250", "354", "250", "250"]
        assert codes == ["250", *transaction, *transaction, "221"]
        assert [(e.mail_from, e.recipients, d) for e, d in handler.got] == [
            ("", ["a@b.test", "c@d.test"], b"first\r\n"),
            ("", ["a@b.test", "c@d.test"], b""),
        ]

    run(body)


@pytest.mark.parametrize("line", [b".line of text\r\n", b".\r\n"], ids=["text", "nothing but dots"])
@pytest.mark.parametrize("chunk", [CHUNK, 4098])
def test_a_handler_that_wants_the_top_gets_the_top_while_all_is_read(
    tmp_path: Path, line: bytes, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmtp, "CHUNK", chunk)
    monkeypatch.setattr(lmtp, "GATHER_SECONDS", 0)

    async def body() -> None:
        handler = Fake(wanted=4096)
        content = line * 40_000
        async with serving(handler, tmp_path) as at:
            client = await at.connect()
            await client.begin("x@y.test")
            stuffed = content.replace(b"\r\n.", b"\r\n..")
            client.send(b"." + stuffed + b".\r\n")
            assert (await client.reply()).startswith("250 ")
            assert handler.got[0][1] == content[:4096]
            assert handler.got[0][0].size == len(stuffed) + 1

    run(body)


def test_garbage_and_overlong_lines_are_answered_and_the_session_lives(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Fake(), tmp_path) as at:
            client = await at.connect()
            for garbage in (b"\x00\xff\xfe\x80", b"", b"A" * 9000, b"B" * 400_000, b"EHLO x", b"RCPT TO:<a@b>"):
                client.send(garbage + b"\r\n")
                assert (await client.reply())[:3] in {"500", "503"}
            assert (await client.say("noop")).startswith("250 ")
            await client.begin("x@y.test")
            client.send(b"still works\r\n.\r\n")
            assert (await client.reply()).startswith("250 ")
            for _ in range(20):
                client.send(b"?\r\n")
            rest = (await asyncio.wait_for(client.reader.read(), 30)).decode()
            assert rest.rstrip().endswith("421 4.7.0 Too many errors")

    run(body)


def test_what_cannot_be_read_at_mail_or_rcpt_is_never_refused_for_good(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Fake(), tmp_path) as at:
            client = await at.connect()
            await client.say("LHLO x")
            assert (await client.say("MAIL nonsense")).startswith("451 ")
            assert (await client.say("MAIL FROM:<a@b.test>")).startswith("250 ")
            assert (await client.say("RCPT TO:<>")).startswith("451 ")
            assert (await client.say("RCPT TO:<boom@b.test>")).startswith("451 ")
            assert (await client.say("DATA")).startswith("503 ")
            assert (await client.say("RSET")).startswith("250 ")
            assert (await client.say("MAIL FROM:<a@b.test>")).startswith("250 ")

    run(body)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("<+447700900101/TYPE=PLMN@mms.example.test>", "+447700900101/TYPE=PLMN@mms.example.test"),
        ("<UPPER+tag=x@Example.TEST> NOTIFY=NEVER", "UPPER+tag=x@Example.TEST"),
        ('<"a > b \\" @ c"@d.test>', '"a > b \\" @ c"@d.test'),
        ("<@relay.test,@other.test:a@b.test>", "a@b.test"),
        ("  < a@b.test > ORCPT=rfc822;x", "a@b.test"),
        ("a@b.test", "a@b.test"),
        ("<postmaster>", "postmaster"),
        ("<grün@b.test>", "grün@b.test"),
    ],
)
def test_recipients_are_read_in_every_spelling(tmp_path: Path, written: str, address: str) -> None:
    async def body() -> None:
        handler = Fake()
        async with serving(handler, tmp_path) as at:
            client = await at.connect()
            client.send(f"lhlo x\r\nmail from:<>\r\nRcpt To:{written}\r\ndata\r\n.\r\nQUIT\r\n".encode())
            await client.reader.read()
        assert handler.got[0][0].recipients == [address]

    run(body)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("a@B.Test.", ("a", "b.test")),
        ('"a@b\\"c"@d.test', ('a@b"c', "d.test")),
        ('"a@b"', ("a@b", "")),
        ("a@b@c.test", ("a@b", "c.test")),
        ("none", ("none", "")),
        ("", ("", "")),
    ],
)
def test_split_address(address: str, parts: tuple[str, str]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("failure", [RuntimeError("secret"), ValueError("secret")])
def test_a_fault_of_the_handler_is_451_for_each_recipient_and_logged(
    tmp_path: Path, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        handler = Fake()
        handler.failure = failure
        async with serving(handler, tmp_path) as at:
            client = await at.connect()
            await client.begin("a@b.test", "c@d.test")
            client.send(b"x\r\n.\r\n")
            for _ in range(2):
                reply = await client.reply()
                assert reply.startswith("451 4.3.0 ")
                assert "secret" not in reply
            handler.failure = None
            await client.begin("a@b.test")  # the session is as good as before
            client.send(b"x\r\n.\r\n")
            assert (await client.reply()).startswith("250 ")

    run(body)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_client_that_goes_away_leaves_nothing_delivered_and_the_server_alive(tmp_path: Path) -> None:
    async def body() -> None:
        handler = Fake()
        async with serving(handler, tmp_path) as at:
            (await at.connect()).writer.close()
            cut = await at.connect()
            await cut.begin("x@y.test")
            cut.send(b"half a message\r\n.")
            cut.writer.close()
            reset = await at.connect()
            await reset.begin("x@y.test")
            reset.writer.transport.abort()
            await until(lambda: at.server.sessions == 0)
            assert handler.got == []
            assert (await (await at.connect()).say("NOOP")).startswith("250 ")

    run(body)


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        (b"", 1),
        (b"LHLO mail.example.test\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\n", 1),
        (b"LHLO mail.example.test\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nDATA\r\nhalf", 1),
        (b"LHLO mail.example.test\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nDATA\r\n.\r\nQUIT\r\n", 0),
        (b"LHLO mail.example.test\r\n", 0),  # how a cached session of Postfix's ends
    ],
)
def test_a_client_that_goes_before_it_was_served_is_told_of(tmp_path: Path, said: bytes, lost: int) -> None:
    async def body() -> None:
        told: list[bool] = []
        async with serving(Fake(), tmp_path, lost=lambda: told.append(True)) as at:
            client = await at.connect()
            client.send(said)
            await client.writer.drain()
            client.writer.write_eof()
            await client.reader.read()
            await until(lambda: at.server.sessions == 0)
        assert len(told) == lost

    run(body)


def test_an_idle_session_is_closed_with_421(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving(Fake(), tmp_path, idle_seconds=0.02) as at:
            client = await at.connect()
            assert (await client.reply()).startswith("421 4.4.2 ")
            assert await client.reply() == ""

    run(body)


def test_drain_closes_idle_sessions_and_lets_deliveries_end(tmp_path: Path) -> None:
    async def body() -> None:
        handler = Fake()
        handler.gate = asyncio.Event()
        async with serving(handler, tmp_path) as at:
            idle, open_, busy = [await at.connect() for _ in range(3)]
            await idle.say("LHLO x")
            await open_.say("LHLO x")
            await open_.say("MAIL FROM:<>")
            await busy.begin("x@y.test")
            busy.send(b"body\r\n.\r\nMAIL FROM:<a@b.test>\r\n")
            draining = asyncio.create_task(at.server.drain(5))
            assert (await idle.reply()).startswith("421 ")
            assert await idle.reply() == ""
            late = socket.socket(socket.AF_UNIX)
            late.connect(str(at.path))  # waits in the backlog for the next process
            assert (await open_.say("RCPT TO:<p@q.test>")).startswith("250 ")
            assert (await open_.say("DATA")).startswith("354 ")
            open_.send(b"z\r\n.\r\n")
            handler.gate.set()
            assert (await busy.reply()).startswith("250 ")
            assert (await busy.reply()).startswith("421 ")
            assert (await open_.reply()).startswith("250 ")
            assert (await open_.reply()).startswith("421 ")
            assert await draining
            assert len(handler.got) == 2
            at.server.draining = False
            at.server.start()  # the listening socket outlived the drain
            late.setblocking(False)
            said = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(late, 100), 30)
            assert said.startswith(b"220 ")
            late.close()

    run(body)


def test_drain_is_bounded_and_cuts_without_a_reply(tmp_path: Path) -> None:
    async def body() -> None:
        handler = Fake()
        handler.gate = asyncio.Event()
        async with serving(handler, tmp_path) as at:
            busy = await at.connect()
            await busy.begin("x@y.test")
            busy.send(b"body\r\n.\r\n")
            assert not await at.server.drain(0.05)
            assert await busy.reply() == ""

    run(body)


def test_the_listening_socket_has_to_be_non_blocking(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(ValueError, match="non-blocking"):
        LmtpServer(listener, Fake())


# --- Maildir


def test_a_maildir_gets_the_message_with_two_headers_and_nothing_else(tmp_path: Path) -> None:
    picture = bytes(range(256)) * 20
    mail = email.message.EmailMessage()
    mail["Subject"] = "picture"
    mail.set_content("text\n.\n..\n")
    mail.add_attachment(picture, maintype="image", subtype="png", filename="a.png")
    wire = mail.as_bytes().replace(b"\n", b"\r\n")

    async def body() -> None:
        async with serving(Maildir(tmp_path / "m"), tmp_path) as at:
            client = await at.connect()
            client.send(
                b"LHLO x\r\nMAIL FROM:<tok@mms.example.test>\r\n"
                b"RCPT TO:<+447700900101/TYPE=PLMN@maildir.mm4.invalid>\r\n"
                b"RCPT TO:<447700900102@maildir.mm4.invalid>\r\nDATA\r\n"
            )
            for _ in range(5):
                assert (await client.reply())[0] in "23"
            client.send((b"\r\n" + wire).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\nQUIT\r\n")
            assert (await client.reply()).startswith("250 ")
            assert (await client.reply()).startswith("250 ")

    run(body)
    (stored,) = (tmp_path / "m/447700900101/new").iterdir()
    top, _, rest = stored.read_bytes().partition(b"\nSubject")
    assert top == (b"Return-Path: <tok@mms.example.test>\nDelivered-To: +447700900101/TYPE=PLMN@maildir.mm4.invalid")
    assert b"Subject" + rest == wire.replace(b"\r\n", b"\n")
    (attachment,) = email.message_from_bytes(stored.read_bytes(), policy=email.policy.default).iter_attachments()
    assert attachment.get_content() == picture
    assert stored.stat().st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "m/447700900102/new").iterdir())) == 1
    assert not list((tmp_path / "m").glob("*/tmp/*"))


@pytest.mark.parametrize(
    "local",
    ["../x", "..", "a", "", "+", "12", "1" * 21, "123/../4", "1234/TYPE=IPv4", "\u0661\u0662\u0663\u0664", "123\n"],
)
def test_a_maildir_takes_numbers_only(tmp_path: Path, local: str) -> None:
    reply = Maildir(tmp_path).rcpt(Envelope(""), f"{local}@maildir.mm4.invalid")
    assert (reply.code, reply.enhanced) == (550, "5.1.1")


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, 452), (errno.EDQUOT, 452), (errno.EACCES, 451), (errno.EIO, 451)]
)
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_disk_that_fails_is_temporary_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, call: str
) -> None:
    handler = Maildir(tmp_path)
    envelope = Envelope("", ["+447700900101@maildir.mm4.invalid"])
    assert asyncio.run(handler.deliver(envelope, b"first\r\n"))[0].code == 250

    def fail(*_args: object, **_named: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(maildir.os, call, fail)
        assert asyncio.run(handler.deliver(envelope, b"second\r\n"))[0].code == code
    assert len(list(tmp_path.glob("*/new/*"))) == 1
    assert not list(tmp_path.glob("*/tmp/*"))


def test_a_maildir_entry_is_synced_before_it_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(maildir.os, "fsync", note)
    path = maildir.store_in(tmp_path / "box", "", "x@y.test", b"a\r\n")
    assert synced[-2:] == [str(tmp_path / "box/tmp" / path.name), str(path.parent)]
    assert str(tmp_path) in synced  # the new folder's own entry
    assert path.read_bytes() == b"Return-Path: <>\nDelivered-To: x@y.test\na\n"
