"""The line between the supervisor and its children: JSON objects, one a line, over stdin and stdout.

The supervisor sends `{"config": TEXT, "name": FILE, "dialects": {FILE: TEXT}, "host": NAME}` first and at every reload,
`{"drain": SECONDS}` to end: the texts that it has checked, whatever the files hold by then. A child answers
`{"ready": true}`, `{"configured": true}` or `{"error": TEXT}`. The end of stdin means that the supervisor is gone: the
child drains and goes too, so that no orphan serves an old configuration.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["messages", "say"]


def say(**message: Any) -> None:
    """One message to the supervisor. A supervisor that is gone is no error: stdin tells."""
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        pass


def messages(stream: TextIO) -> Iterator[dict[str, Any]]:
    """What the supervisor says, until it is gone."""
    for line in stream:
        yield json.loads(line)
