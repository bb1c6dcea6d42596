"""An LMTP server (RFC 2033) on a listening UNIX socket that somebody else owns.

Postfix hands committed messages to it: tokens and bounces to the responder, local mail to the Maildirs.
DATA is read in large chunks, because reading a line at a time costs 12 ms per 400 kB message. A message
counts as delivered only when the handler has answered for each recipient; whatever goes wrong before that
(EOF, timeout, a fault of the handler) is a 4xx or a closed connection, and Postfix keeps the message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..protocol.errors import Reply
from .mailpath import read_path

__all__ = ["Envelope", "Handler", "LmtpServer"]

log = logging.getLogger("mm4.lmtp")

CHUNK = 256 * 1024
"""Bytes asked of the socket at once; asyncio itself reads no more than this in one go."""
GATHER_SECONDS = 0.001
"""Pause between two reads of one message."""
LINE_LIMIT = 8192
"""Octets of a command line. Postfix writes addresses of up to 2 kB; RFC 5321 4.5.3.1 asks for 512."""
RECIPIENT_LIMIT = 1000
"""Recipients of one transaction; further ones get 452 (RFC 5321 4.5.3.1.10)."""
ERROR_LIMIT = 20
"""Wrong commands in one session, after which it is closed with 421, as Postfix's smtpd does."""
TERMINATOR = b"\r\n.\r\n"
_END = re.compile(re.escape(TERMINATOR))
"""Its search takes a third of the time of bytes.find() where each line has CRLF."""

FAILED = Reply(451, "4.3.0", "Local error, try again later")
CLOSING = Reply(421, "4.3.2", "Service shutting down, try again later")


@dataclass(slots=True)
class Envelope:
    """One LMTP transaction. Addresses are without brackets, as Postfix wrote them; `mail_from` "" is null.

    `recipients` holds the accepted ones in their order. `size` is what the message took on the wire, in
    octets, also where the handler wanted only its beginning; it is 0 until the data have been read.
    """

    mail_from: str
    recipients: list[str] = field(default_factory=list)
    size: int = 0


class Handler(Protocol):
    """What the server asks of whom it serves. Any exception of a handler becomes a 451 and a logged error."""

    def rcpt(self, envelope: Envelope, address: str) -> Reply:
        """Judge one recipient; a positive reply makes the server add it to the envelope. Must not block."""

    def wanted(self, envelope: Envelope) -> int | None:
        """Say how many octets of the message `deliver` needs; None is all. The rest is read and dropped."""

    async def deliver(self, envelope: Envelope, data: bytes) -> list[Reply]:
        """Take the message; answer one reply for each of `envelope.recipients`, in their order.

        `data` is exactly what the client sent, dot-unstuffed, with its CRLF line ends.
        """


class LmtpServer:
    """Serve LMTP on `listener` until `drain`.

    `listener` is a listening, non-blocking UNIX socket; it stays open when the server ends, because its
    backlog is what keeps Postfix waiting instead of deferring while this process restarts. `idle_seconds`
    bounds each wait for the client. `lost` is called when a client was gone before it was served, as it is
    after waiting too long: then Postfix has deferred what it brought. Give it a running event loop: construct,
    then `start`.
    """

    def __init__(
        self,
        listener: socket.socket,
        handler: Handler,
        *,
        name: str = "mm4",
        idle_seconds: float = 300.0,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        if listener.gettimeout() != 0:
            raise ValueError("the listening socket must be non-blocking: others may accept from it too")
        self.handler = handler
        self.name = name
        self.idle_seconds = idle_seconds
        self.lost = lost
        self._listener = listener
        self._sessions: dict[asyncio.Task[None], _Session] = {}
        self._resume: asyncio.TimerHandle | None = None
        self._serving = False
        self.draining = False

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    def start(self) -> None:
        """Begin to accept. Must be called from the thread of the running event loop."""
        self._serving = True
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        # No task: one that is cancelled between accept(2) and its next step would drop the connection.
        loop = asyncio.get_running_loop()
        for _ in range(64):
            try:
                connection, _peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Mostly EMFILE. The socket stays readable, so that without a pause the loop would spin.
                log.error("cannot accept a connection, pausing: %s", error)
                loop.remove_reader(self._listener.fileno())
                self._resume = loop.call_later(0.5, self.start)
                return
            connection.setblocking(False)
            session = _Session(self, connection)
            task = loop.create_task(session.run())
            self._sessions[task] = session
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._sessions.pop(task, None)
        if not task.cancelled() and (error := task.exception()):
            log.error("an LMTP session failed", exc_info=error)

    async def drain(self, seconds: float = 10.0) -> bool:
        """Stop accepting, close idle sessions with 421, let running transactions end within `seconds`.

        What is still running then is cut without a reply, so that Postfix keeps it. Returns whether
        everything ended by itself. Connections not yet accepted stay in the socket's backlog.
        """
        self.draining = True
        if self._resume is not None:
            self._resume.cancel()
        if self._serving:
            self._serving = False
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
        if not self._sessions:
            return True
        tasks = list(self._sessions)
        for session in self._sessions.values():
            session.hurry()
        _done, running = await asyncio.wait(tasks, timeout=seconds)
        for task in running:
            task.cancel()
        if running:
            log.warning("cut %d LMTP session(s) still running after %s s", len(running), seconds)
            await asyncio.wait(running, timeout=1.0)
        return not running


class _Close(Exception):
    """The session ends here, with this reply if there is one."""

    def __init__(self, reply: Reply | None = None) -> None:
        super().__init__(str(reply))
        self.reply = reply


class _Session:
    """One connection. Replies are gathered and sent when the next read would wait, as pipelining wants it."""

    def __init__(self, server: LmtpServer, connection: socket.socket) -> None:
        self._server = server
        self._handler = server.handler
        self._connection = connection
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._envelope: Envelope | None = None
        self._greeted = False
        self._errors = 0
        self._waiting = False
        self._since: float | None = None
        """When the wait for the client began that goes on; None while it waits for us."""

    def hurry(self) -> None:
        """End the session now if it only waits for a command outside of a transaction."""
        if self._waiting and self._envelope is None:
            self._reply(CLOSING)
            self._writer.write(b"".join(self._out))
            self._out.clear()
            self._writer.close()  # the pending read gets EOF

    async def run(self) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self._connection, limit=CHUNK)
        self._reader, self._writer = reader, writer
        self._look()
        try:
            self._out.append(f"220 {self._server.name} LMTP\r\n".encode())
            while await self._command():
                pass
        except _Close as closing:
            if closing.reply is not None:
                self._reply(closing.reply)
        except OSError:
            return  # the client is gone; nothing was promised to it that it has not read
        finally:
            self._next_look.cancel()
            if not self._greeted or self._envelope is not None:
                self._server.lost()
            with contextlib.suppress(OSError):
                if self._out and not writer.is_closing():
                    writer.write(b"".join(self._out))
                writer.close()
                # The last reply is mostly gone by now; else wait for it, for the process may end after us.
                if writer.transport.get_write_buffer_size():
                    async with asyncio.timeout(1.0):
                        await writer.wait_closed()

    # --- reading and writing

    async def _fill(self) -> bytes:
        """Send what is due, then wait for more input; b"" is EOF."""
        if self._server.draining and self._envelope is None:
            raise _Close(CLOSING)
        self._since = asyncio.get_running_loop().time()
        try:
            if self._out:
                self._writer.write(b"".join(self._out))
                self._out.clear()
                await self._writer.drain()
            self._waiting = True
            return await self._reader.read(CHUNK)
        except TimeoutError:
            raise _Close(Reply(421, "4.4.2", "Timeout, closing connection")) from None
        finally:
            self._waiting, self._since = False, None

    def _look(self) -> None:
        """End a session that has waited for too long.

        One timer a session: one for each wait would cost more than the wait.
        """
        loop = asyncio.get_running_loop()
        patience = self._server.idle_seconds
        left = patience if self._since is None else self._since + patience - loop.time()
        if left > 0:
            self._next_look = loop.call_later(left, self._look)
        elif self._waiting:
            self._reader.set_exception(TimeoutError())
        else:
            self._writer.transport.abort()  # it does not take our replies

    def _reply(self, reply: Reply) -> None:
        text = reply.text.replace("\r", " ").replace("\n", " ")
        self._out.append(f"{reply.code} {reply.enhanced} {text}\r\n".encode("utf-8", "replace"))

    def _refuse(self, code: int, enhanced: str, text: str) -> None:
        self._errors += 1
        if self._errors > ERROR_LIMIT:
            raise _Close(Reply(421, "4.7.0", "Too many errors"))
        self._reply(Reply(code, enhanced, text))

    async def _line(self) -> bytes | None:
        """Read one command line without its end; None is EOF, b"" also stands for one that was too long."""
        scanned, overlong = 0, False
        while (end := self._buffer.find(b"\n", scanned)) < 0:
            if len(self._buffer) > LINE_LIMIT:
                overlong = True
                self._buffer.clear()
            scanned = len(self._buffer)
            chunk = await self._fill()
            if not chunk:
                return None
            self._buffer += chunk
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        return b"" if overlong or len(line) > LINE_LIMIT else line

    async def _data(self, wanted: int | None) -> tuple[bytes, int] | None:
        """Read up to the lone dot. Returns (the octets wanted, unstuffed; size on the wire), None at EOF.

        What the client pipelined behind the dot stays in the buffer. At most the last four octets seen
        can begin a terminator, so these are carried over to the next chunk.
        """
        kept: list[bytes] = []
        have = size = 0
        # CRLF and two dots lose one of them.
        enough = None if wanted is None else wanted * 4 // 3 + 4
        # The CRLF of the DATA command: it makes a dot in the very first line look like any other.
        tail = b"\r\n"
        chunk = bytes(self._buffer)
        self._buffer.clear()
        while True:
            piece = tail + chunk
            found = _END.search(piece) if b"." in piece else None  # none in base64
            end = found.start() if found else -1
            cut = end + 2 if end >= 0 else max(len(piece) - len(TERMINATOR) + 1, 0)
            size += cut
            if cut and (enough is None or have < enough):
                kept.append(piece[: cut if enough is None else min(cut, enough - have)])
                have += len(kept[-1])
            if end >= 0:
                self._buffer += piece[end + len(TERMINATOR) :]
                break
            tail = piece[cut:]
            if len(chunk) < CHUNK:
                # The client writes a few kilobytes at a time: let them gather, rather than be woken for each.
                await asyncio.sleep(GATHER_SECONDS)
            chunk = await self._fill()
            if not chunk:
                return None
        data = b"".join(kept).replace(b"\r\n.", b"\r\n")[2:]
        return (data if wanted is None else data[:wanted]), size - 2

    # --- commands

    async def _command(self) -> bool:
        """Serve one command; False ends the session."""
        line = await self._line()
        if line is None:
            return False
        verb, _, argument = line.decode("utf-8", "surrogateescape").partition(" ")
        match verb.upper():
            case "LHLO":
                self._greeted, self._envelope = True, None
                name = self._server.name
                offers = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")
                lines = [f"250-{text}\r\n" for text in (name, *offers[:-1])] + [f"250 {offers[-1]}\r\n"]
                self._out.append("".join(lines).encode())
            case "MAIL":
                self._mail(argument)
            case "RCPT":
                self._rcpt(argument)
            case "DATA":
                return await self._transaction()
            case "RSET":
                self._envelope = None
                self._reply(Reply(250, "2.0.0", "Ok"))
            case "NOOP":
                self._reply(Reply(250, "2.0.0", "Ok"))
            case "VRFY":
                self._reply(Reply(252, "2.0.0", "Send some mail, I'll try my best"))
            case "QUIT":
                self._reply(Reply(221, "2.0.0", "Bye"))
                return False
            case "HELO" | "EHLO":
                self._refuse(500, "5.5.1", "This is LMTP, say LHLO")  # RFC 2033 4.1
            case _:
                self._refuse(500, "5.5.2", "Command not recognized")
        return True

    def _mail(self, argument: str) -> None:
        if self._server.draining:
            raise _Close(CLOSING)
        if not self._greeted:
            return self._refuse(503, "5.5.1", "Say LHLO first")
        if self._envelope is not None:
            return self._refuse(503, "5.5.1", "Nested MAIL command")
        keyword, _, rest = argument.partition(":")
        address = read_path(rest) if keyword.strip().upper() == "FROM" else None
        if address is None:
            # 4xx: what we cannot read may be a fault of ours, and a 5xx would lose the message.
            return self._refuse(451, "4.5.2", "Cannot read the sender, expected FROM:<address>")
        self._envelope = Envelope(address)
        return self._reply(Reply(250, "2.1.0", "Ok"))

    def _rcpt(self, argument: str) -> None:
        envelope = self._envelope
        if envelope is None:
            return self._refuse(503, "5.5.1", "Need MAIL first")
        keyword, _, rest = argument.partition(":")
        address = read_path(rest) if keyword.strip().upper() == "TO" else None
        if not address:
            return self._refuse(451, "4.5.2", "Cannot read the recipient, expected TO:<address>")
        if len(envelope.recipients) >= RECIPIENT_LIMIT:
            return self._reply(Reply(452, "4.5.3", "Too many recipients"))
        try:
            reply = self._handler.rcpt(envelope, address)
        except Exception:
            log.exception("the handler failed at RCPT of %s", ascii(address))
            reply = FAILED
        if reply.positive:
            envelope.recipients.append(address)
        return self._reply(reply)

    async def _transaction(self) -> bool:
        """DATA: read the message, have it delivered, one reply a recipient. False ends the session."""
        envelope = self._envelope
        if envelope is None or not envelope.recipients:
            self._refuse(503, "5.5.1", "Need accepted recipients first")
            return True
        try:
            wanted = self._handler.wanted(envelope)
        except Exception:
            log.exception("the handler failed at DATA")
            self._reply(FAILED)
            self._envelope = None
            return True
        self._out.append(b"354 End data with <CR><LF>.<CR><LF>\r\n")
        read = await self._data(wanted)
        if read is None:
            log.info("EOF inside of DATA, nothing delivered: from=%s", ascii(envelope.mail_from))
            return False
        data, envelope.size = read
        count = len(envelope.recipients)
        try:
            replies = await self._handler.deliver(envelope, data)
            if len(replies) != count:
                raise RuntimeError(f"{len(replies)} replies for {count} recipients")
        except Exception:
            log.exception("delivery failed: from=%s recipients=%d", ascii(envelope.mail_from), count)
            replies = [FAILED] * count
        for reply in replies:
            self._reply(reply)
        self._envelope = None
        return True
