"""The responder's process: a child of `mm4 serve` with the inherited LMTP sockets, and the timers.

It serves responder.sock (tokens, bounces), maildir.sock (local delivery without an MMSC) and fingerprints.sock. The
sockets belong to the supervisor: while this process restarts, Postfix waits in their backlog instead of deferring for
minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

from ..gateway.config import Config
from ..gateway.configfile import parse_config
from ..gateway.logline import logline
from ..gateway.routing import Router
from ..protocol.errors import Mm4Error
from ..store.store import Store
from . import heap
from .attempts import SUBMIT_SECONDS
from .backlog import read_backlog
from .cdr import start_cdr_writer
from .control import say
from .express import Express
from .fingerprints import Fingerprints
from .lmtp import LmtpServer
from .logs import child_log
from .maildir import Maildir
from .metrics import Counters
from .postqueue import Postqueue
from .purger import Purger
from .responder import Responder
from .spool import Spool
from .submit import Submit, Submitter
from .timers import Timers

__all__ = ["main"]

log = logging.getLogger("mm4.responder")

T = TypeVar("T")

DRAIN_SECONDS = SUBMIT_SECONDS + 5.0
"""Time for running deliveries to end: longer than one submission, which would come twice if it were cut after Postfix
took it. Postfix keeps what is cut and brings it again."""
_CLOSE_SECONDS = 10.0
"""Time for the submitters to hang up. Both together are less than the supervisor's STOP_SECONDS."""


class _CurrentSubmitter:
    """The submitter of the configuration in force; a reload replaces it under running deliveries.

    `way` None is what the configuration says. Copies always take the private line: they carry the headers of others.
    """

    def __init__(self, config: Config, way: Literal["smtp"] | None = None) -> None:
        self.way = way
        self.use(config)

    def use(self, config: Config) -> None:
        folder = None if config.folders.postfix == "/etc/postfix" else Path(config.folders.postfix)
        endpoint = config.service.submit
        self.inner = Submitter(
            self.way or config.submit,
            config_directory=folder,
            address=(endpoint.host, endpoint.port) if endpoint else None,
        )

    async def submit(
        self, mail_from: str, rcpt_to: str | Sequence[str], message: bytes, envelope_id: str | None = None,
        notify: str | None = None,
    ) -> str:  # fmt: skip
        return await self.inner.submit(mail_from, rcpt_to, message, envelope_id, notify)

    async def within(self, work: Callable[[Submit], T]) -> T:
        return await self.inner.within(work)


def main(responder_descriptor: int, maildir_descriptor: int, fingerprints_descriptor: int) -> int:
    """Serve until told to drain. Returns the exit code."""
    child_log("mm4.responder")
    heap.settle()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return asyncio.run(_serve(responder_descriptor, maildir_descriptor, fingerprints_descriptor))
    except Mm4Error as fault:
        log.error(logline(responder="stopped", fault=str(fault)))
        return fault.exit_code


async def _commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _serve(responder_descriptor: int, maildir_descriptor: int, fingerprints_descriptor: int) -> int:
    commands = await _commands()
    first = await commands.readline()
    if not first:
        return 0
    command = json.loads(first)
    try:
        config = parse_config(command["config"], command["name"], command["dialects"])
        store = Store.open(config.store, migrate=False, charging=config.cdr is not None)
    except Mm4Error as error:
        say(error=str(error))
        return error.exit_code
    folder = None if config.folders.postfix == "/etc/postfix" else Path(config.folders.postfix)
    state = Path(config.folders.state)
    submitter, copier = _CurrentSubmitter(config), _CurrentSubmitter(config, "smtp")
    counters = Counters()
    spool = Spool(state / "spool", config.spool.quota)
    try:
        spool.open()
    except OSError as error:
        # Tokens and bounces are served all the same; each message that should be copied says so again.
        log.error(logline(why="no copies are kept", folder=state / "spool", error=error))
    responder = Responder(
        store=store,
        submitter=submitter,
        copier=copier,
        router=Router(config),
        unclaimed=state / "unclaimed",
        flush=Postqueue(folder),
        now=lambda: datetime.now(UTC),
        host=command["host"],
        counters=counters,
        spool=spool,
        express=Express(store, submitter, now=lambda: datetime.now(UTC)),
    )
    timers = Timers(
        store=store,
        submitter=copier,
        spool=spool,
        config=config,
        host=command["host"],
        now=lambda: datetime.now(UTC),
        counters=counters,
        told=responder.gave_up,
        look=read_backlog,
        purger=Purger(store, lambda: datetime.now(UTC), timedelta(seconds=config.retention)),
    )
    maildir = Maildir(state / "maildir")
    servers = [
        LmtpServer(_listener(responder_descriptor), responder, name=command["host"], lost=responder.missed),
        LmtpServer(_listener(maildir_descriptor), maildir, name=command["host"]),
    ]
    for server in servers:
        server.start()
    fingerprints = Fingerprints(_listener(fingerprints_descriptor))
    await fingerprints.start()
    responder.start()
    cdr = start_cdr_writer(config, store, command["host"])
    timers.start()
    say(ready=True)
    while line := await commands.readline():
        command = json.loads(line)
        if "config" in command:
            try:
                config = parse_config(command["config"], command["name"], command["dialects"])
            except Mm4Error as error:
                say(error=str(error))
                continue
            responder.update(Router(config))
            timers.update(config)
            submitter.use(config)
            copier.use(config)
            say(configured=True)
        if "drain" in command:
            break
    # In a thread: deliveries go on while a file of charging records is ended.
    ending = asyncio.create_task(asyncio.to_thread(cdr.stop)) if cdr is not None else None
    fingerprints.stop()
    await timers.stop()
    await responder.stop()
    await asyncio.gather(*(server.drain(DRAIN_SECONDS) for server in servers))
    if ending is not None:
        await ending
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(submitter.inner.close(), copier.inner.close()), _CLOSE_SECONDS)
    responder.close()
    maildir.close()
    store.close()
    os._exit(0)  # a thread that hangs in a dead sendmail or disk must not keep us


def _listener(descriptor: int) -> socket.socket:
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    os.set_inheritable(descriptor, False)
    return listener


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
