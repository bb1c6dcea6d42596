"""Many rows in a store at once, as the gateway would have written them over months: messages that are over and done."""

from __future__ import annotations

from sqlalchemy import text

from mm4.store import Store
from mm4.store.database import Database

__all__ = ["MESSAGE_ID", "fill"]

MESSAGE_ID = "mfilled-{0}@mms.gw.example"
"""The message id of a filled row by its number, from 0 on, in seven digits."""

_NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {last}) "
              "SELECT i, lower(hex(randomblob(16))) AS token, printf('%07d', i) AS name FROM n",
    "postgresql": "SELECT i, md5(random()::text || i) AS token, lpad(i::text, 7, '0') AS name "
                  "FROM generate_series(0, {last}) AS n(i)",
}  # fmt: skip
"""A number, a token as random as ours, and the number in seven digits."""
_ANSWER = (
    b'X-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: MM4_forward.RES\r\nX-Mms-Transaction-ID: "t"\r\n'
    b'X-Mms-Message-ID: "m"\r\nX-Mms-Request-Status-Code: Ok\r\nFrom: system-user@mms.gw.example\r\n'
    b"To: PostMaster@mms.north.example\r\nDate: Thu, 26 Nov 2026 01:12:08 +0000\r\n"
    b"Content-Type: text/plain; charset=us-ascii\r\nMessage-ID: <03f9ccbf68237746e67370bd0e4ed17d@mms.gw.example>\r\n"
    b"MIME-Version: 1.0\r\n\r\n" + b" " * 60
)
_MESSAGES = (
    "INSERT INTO messages (token, direction, peer, type, queue_id, host, recorded_at, accepted_at, answered_at,"
    " answer_to, answer_from, answer_type, answer_status, answer_text, source, digest, size)"
    " SELECT token, :direction, 'north', 'MM4_forward.REQ', '4F' || name, 'gw', :at, :at, :at,"
    " 'PostMaster@mms.north.example.via-north.mm4.invalid', 'system-user@mms.gw.example', 'MM4_forward.RES', 'Ok',"
    " :answer, :source, token, 40000 FROM filling"
)
# The first seven characters of a transaction id are random, as those are with which the messages of a run begin.
_TRANSACTIONS = (
    "INSERT INTO transactions (token, peer, direction, type, transaction_id, message_id, originator, recipient, state,"
    " status, ack_requested, delivery_report, read_reply, updated_at, attempts)"
    " SELECT token, 'north', :direction, 'MM4_forward.REQ', substr(token, 1, 7) || '-filled@mms.gw.example',"
    " 'mfilled-' || name || '@mms.gw.example', :originator, :recipient, 'answered', 'Ok', :yes, :yes, :no, :at, 0 "
    "FROM filling"
)


def fill(url: str, count: int, *, sent: bool = False) -> None:
    """`count` messages into the store at `url`, which is made where it is not: from the peer north to us, or `sent` to it.

    Those that were sent ask for delivery reports.
    """
    Store.open(url).close()
    ours, theirs = "+491511000001", "+447700900101"
    values = {
        "direction": "out" if sent else "in", "source": "local" if sent else "north", "answer": _ANSWER,
        "at": "2026-11-22 10:00:00+00" if url.startswith("postgresql") else "2026-11-22 10:00:00.000000",
        "originator": ours if sent else theirs, "recipient": theirs if sent else ours, "yes": True, "no": False,
    }  # fmt: skip
    engine = Database.parse(url, 60, read_only=False).engine("migrator")
    with engine.begin() as connection:
        numbers = _NUMBERS[connection.dialect.name].format(last=count - 1)
        connection.execute(text(f"CREATE TEMPORARY TABLE filling AS {numbers}"))
        for statement in (_MESSAGES, _TRANSACTIONS):
            needed = {name: value for name, value in values.items() if f":{name}" in statement}
            connection.execute(text(statement), needed)
        connection.execute(text("DROP TABLE filling"))
        connection.execute(text("ANALYZE"))  # as a database has done by itself after such a time
    engine.dispose()
