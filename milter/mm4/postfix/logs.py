"""Where log lines go: stderr, one line each, which systemd and the sandbox keep.

Under the journal a line carries no time, the journal has it; elsewhere it begins as Postfix's own lines do, so that
one file holds both and a queue id finds all of a message.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from datetime import datetime

__all__ = ["child_log", "set_up"]


class _Format(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self.bare = "JOURNAL_STREAM" in os.environ
        self.host = socket.gethostname().partition(".")[0]
        self.second, self.beginning = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = f"{record.name.replace('.', '/')}[{record.process}]: {level}{record.getMessage()}"
        if record.exc_info and record.levelno <= logging.DEBUG:
            text += "\n" + self.formatException(record.exc_info)
        if self.bare:
            return text
        second = int(record.created)
        if second != self.second:
            moment = datetime.fromtimestamp(second).astimezone()
            self.beginning = f"{moment:%b %e %H:%M:%S} {self.host}"
            self.second = second
        return f"{self.beginning} {text}"


def set_up() -> None:
    """Send every log line of this process to stderr; MM4_DEBUG in the environment adds tracebacks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format())
    root = logging.getLogger("mm4")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if os.environ.get("MM4_DEBUG") else logging.INFO)
    root.propagate = False


def child_log(name: str) -> logging.Logger:
    """The log of a child process, set up as the supervisor's."""
    set_up()
    return logging.getLogger(name)
