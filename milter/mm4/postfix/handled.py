"""What `mm4 check` says of a store that an operator has handled: restored or copied, and what follows for the queue."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from ..gateway.config import SHORTEST_RETENTION, Config
from ..protocol.errors import PostfixError
from ..store.schema import batches
from .finding import Finding
from .instance import Instance
from .mailqueue import Knowledge, tokens_of

__all__ = ["TOLD_FOR", "handled", "unknown"]

TOLD_FOR = timedelta(seconds=SHORTEST_RETENTION)
"""How long what was done to a store is told of: no retention removes it sooner."""
_NAMED = 5
"""Queue ids that are named."""


def handled(notes: list[dict[str, Any]]) -> Iterator[Finding]:
    """What was done to the store itself, and what follows. The rows of `Store.notes`, oldest first."""
    for note in notes:
        done = f"{note['what']} {note['at']:%Y-%m-%d %H:%M} UTC {note['detail']}"
        if note["what"] == "store copied":
            yield Finding(
                "store", False, f"{done}: what comes here now is not there",
                "name the copy as store: in the YAML and start mm4 anew; to stay here instead, drop the copy",
                warning=True,
            )  # fmt: skip
        else:
            yield Finding(
                "store", False, f"{done}: no message is lost, but of what came between it knows nothing. A RES of that "
                "time may be missing (the log says unknown token, with the queue id) or come twice, a RES to us finds "
                "no message, a REQ that comes again is delivered again",
                "nothing; before a RES is sent by hand see in the log whether it went out (submitted=)", warning=True,
            )  # fmt: skip


def unknown(config: Config, store: Knowledge) -> Iterator[Finding]:
    """Tokens in the queue that no row knows: the message is delivered, and its RES is in another store."""
    waiting: dict[str, str] = {}
    try:
        for entry in Instance(config.folders.postfix).queue():
            waiting |= dict.fromkeys(tokens_of(entry, ()), entry["queue_id"])
    except PostfixError:
        return  # whoever looks at Postfix says so
    known = {row["token"] for part in batches(list(waiting)) for row in store.by_queue(part, [])}
    strange = [queue_id for token, queue_id in waiting.items() if token not in known]
    if strange:
        more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
        yield Finding(
            "acks", False, f"{len(strange)} messages in Postfix's queue have a token that this store does not know: "
            f"they are delivered, but no RES is sent for them: queue id {', '.join(strange[:_NAMED])}{more}",
            "if a backup was restored, or store: names another store, and the one that knows them is at hand: put it "
            "back while mm4 serve is stopped (mm4 store restore FILE)", warning=True,
        )  # fmt: skip
