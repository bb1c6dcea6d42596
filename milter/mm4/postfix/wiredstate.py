"""The record of a wiring, `wired.json` beside the tables: what was written, and the bytes that stood there before.

It is for root alone, in a folder of root: what `unwire` writes from it into main.cf and master.cf must not be anybody
else's to choose, and main.cf may hold what is not for everybody.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ..protocol.errors import PostfixError
from . import maps
from .obstacles import Mode
from .services import BEGIN, END
from .wiredfiles import Members

__all__ = ["STATE", "State", "digest", "read_state", "write_state"]

STATE = "wired.json"

_PART = re.compile(rb"(?ms)^" + re.escape(BEGIN.encode()) + rb"\n.*?^" + END.encode() + rb"\n")


@dataclass
class State:
    """What an earlier run has written, and what stood there before it."""

    mode: Mode
    made_folder: bool
    new_tables: list[str]
    before: dict[str, str]
    """File name to its earlier bytes, in base64."""
    after: dict[str, str]
    """File name to the SHA-256 of what was written."""
    members: dict[str, Members]
    settled: bool = False
    """Whether Postfix has read it and every probe was good: a run that was killed has to be gone through again."""


def read_state(path: Path) -> State | None:
    """The record; None where there is none. Raises PostfixError where it cannot be read."""
    try:
        return State(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PostfixError(f"{path}: {error.strerror}; run as root") from None
    except (ValueError, TypeError):
        raise PostfixError(
            f"{path} cannot be read: move it away, then mm4 takes out what it knows to be its own"
        ) from None


def write_state(path: Path, state: State) -> None:
    """Write the record in one step. Raises OSError."""
    maps.replace_file(path, json.dumps(asdict(state), indent=1) + "\n", secret=True)


def digest(data: bytes) -> str:
    """Of all but what `mm4 postfix maps` keeps up to date in it."""
    return hashlib.sha256(_PART.sub(b"", data)).hexdigest()
