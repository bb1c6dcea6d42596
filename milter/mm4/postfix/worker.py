"""One milter worker: a child of `mm4 serve` with an inherited listening socket.

A worker that is told to drain accepts nobody any more, lets its sessions end, after a while by 421 at MAIL, and every
message that has begun come to its verdict; libmilter's own stop would cut them. Killed at any instant it loses nothing:
the client holds no 250 yet.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from ..gateway.configfile import parse_config
from ..gateway.logline import logline
from ..gateway.routing import Router
from ..protocol.errors import Mm4Error
from ..store.store import Store
from . import heap, milter
from .control import messages, say
from .logs import child_log
from .lookups import RouteLookups
from .metrics import Counters
from .runtime import EOM_SECONDS, Runtime

__all__ = ["main"]

_READING_THREADS = 4
"""Threads that read the store for libmilter's."""
_SETTLE_SECONDS = 0.5
"""Time for a session that was accepted to be counted."""
_FAREWELL_SECONDS = 2.0
"""Time in which sessions that go on too long hear 421 at their next MAIL: after us they would get 451 at each."""
_REPLY_SECONDS = 0.2
"""Time for libmilter to write the last reply after our callback has returned."""


def main(descriptor: int) -> int:
    """Serve until told to drain. Returns the exit code; 70 for a fault of ours."""
    log = child_log("mm4.milter")
    heap.settle()
    # These are the supervisor's to hear; libmilter would stop at once and cut running messages.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    commands = messages(sys.stdin)
    first = next(commands, None)
    if first is None:
        return 0
    try:
        config = parse_config(first["config"], first["name"], first["dialects"])
        store = Store.open(
            config.store, migrate=False, charging=config.cdr is not None, reading_threads=_READING_THREADS
        )
    except Mm4Error as error:
        say(error=str(error))
        return error.exit_code
    counters = Counters()
    lookups = RouteLookups(config, counters.lookup)
    lookups.read()
    lookups.watch()
    runtime = Runtime(Router(config), store, counters, host=first["host"], lookups=lookups)
    failure: list[BaseException] = []

    def serve() -> None:
        try:
            milter.serve(descriptor, runtime)
        except BaseException as error:
            failure.append(error)

    # libmilter's main loop has no business in the main thread: there it would take the signals over.
    server = threading.Thread(target=serve, name="libmilter", daemon=True)
    server.start()

    def control() -> None:
        for command in commands:
            if "config" in command:
                try:
                    config = parse_config(command["config"], command["name"], command["dialects"])
                    router = Router(config)
                    # In this order a route finds whom it asks; a message that began before may be told to come again.
                    lookups.use(config)
                    lookups.read()
                    runtime.router = router
                    say(configured=True)
                except Mm4Error as error:
                    say(error=str(error))
            if "drain" in command:
                _drain(runtime, descriptor, float(command["drain"]))
                return
        _drain(runtime, descriptor, 0.0)  # the supervisor is gone

    threading.Thread(target=control, name="control", daemon=True).start()
    say(ready=True)
    server.join()
    # libmilter stopped by itself: no thread left to serve with, or a socket that broke.
    log.error(logline(worker="libmilter stopped", fault=repr(failure[0]) if failure else None))
    store.close()
    return 70


def _drain(runtime: Runtime, descriptor: int, seconds: float) -> None:
    """Leave once no session is open. They may go on for `seconds`; then MAIL is 421, and messages come to their end."""
    milter.accept_nobody(descriptor)
    begun = time.monotonic()

    def passed() -> float:
        return time.monotonic() - begun

    time.sleep(_SETTLE_SECONDS)
    while runtime.connections > 0 and passed() < seconds:
        time.sleep(0.05)
    runtime.draining = True
    farewell = seconds + min(seconds, _FAREWELL_SECONDS)
    while runtime.messages > 0 and passed() < seconds + EOM_SECONDS:
        time.sleep(0.05)
    while runtime.connections > 0 and passed() < farewell:
        time.sleep(0.05)
    time.sleep(_REPLY_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
