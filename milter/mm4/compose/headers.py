"""The header block of what we compose: written by the protocol's own writer, in the 3GPP names.

The gateway renames and completes for the peer it goes to. It gives the transaction id of a forward.REQ too: only it
knows what it sends to whom.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..protocol.dialect import builtin, squash
from ..protocol.errors import UsageError
from ..protocol.writer import write

__all__ = ["enumerated", "head"]

_MSG_ID = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+\Z")


def head(pdu_type: str, values: Mapping[str, Any], unique: str) -> list[tuple[str, str]]:
    """Header lines of a PDU, and behind them what makes it a mail. Raises ProtocolError for what cannot be written.

    `unique` becomes the mail's Message-ID, where it may be one (RFC 5322 3.6.4): an MMS id may hold anything printable.
    """
    lines = write(pdu_type, values, builtin("3gpp"), partial=True)
    if _MSG_ID.match(unique):
        lines.append(("Message-ID", f"<{unique}>"))
    return [*lines, ("MIME-Version", "1.0")]


def enumerated(field: str, text: str) -> str:
    """One of the values of a field, given in any letter case. Raises UsageError that lists them."""
    row = builtin("3gpp").fields[field]
    known = {squash(value): value for value in row.values} | {squash(k): v for k, v in row.spellings.items()}
    found = known.get(squash(text))
    if found is None:
        raise UsageError(f"{text!r} cannot stand in {row.header}: one of {', '.join(row.values)}")
    return found
