"""The counters, declared beside the code that counts, and the endpoint that Prometheus reads.

Several processes count into files below the state folder (prometheus_client's multiprocess mode), the supervisor
sums them up. docs/monitoring.md lists every metric; a test compares the two. Labels have fixed sets of values:
peers of the configuration, PDU types and codes of the tables; nothing that a peer can invent.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, multiprocess, start_http_server

from ..gateway.entries import Endpoint
from ..gateway.verdict import Verdict
from ..protocol.errors import Reply

__all__ = ["METRICS", "Counters", "expose"]

# Registered with no registry: in multiprocess mode the values live in files and are collected by the supervisor.
MESSAGES = Counter(
    "mm4_messages",
    "Messages that got a verdict, by peer, direction, PDU type, verdict and request status.",
    ("peer", "direction", "type", "verdict", "status"),
    registry=None,
)
REFUSED = Counter(
    "mm4_refused_commands",
    "MAIL and RCPT commands refused, by peer (stranger for an unknown client), command and SMTP code.",
    ("peer", "command", "code"),
    registry=None,
)
LOOKUPS = Counter(
    "mm4_lookups",
    "What routes asked, by kind (reach, enum, http) and result: found, none (nothing known), failed.",
    ("kind", "result"),
    registry=None,
)
EOM_SECONDS = Histogram(
    "mm4_eom_seconds",
    "Seconds from the end of a message to its committed verdict.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5, 20),
    registry=None,
)
ANSWERS = Counter(
    "mm4_answers",
    "Acknowledgements by what became of them: submitted, already (done before), deferred (left in the queue).",
    ("result",),
    registry=None,
)
BOUNCES = Counter("mm4_bounces", "Delivery status notifications that came home, by action.", ("action",), registry=None)
CDR_FILES = Counter(
    "mm4_cdr_files", "Files of charging records: closed, or failed (tried again).", ("result",), registry=None
)
CDR_RECORDS = Counter("mm4_cdr_records", "Charging records in closed files.", registry=None)

UNANSWERED = Counter(
    "mm4_unanswered",
    "Transactions whose RES did not come, by peer and what became of them: overdue, again (sent again), unsent "
    "(could not be sent again), failed (nothing more is done).",
    ("peer", "result"),
    registry=None,
)
COPIES = Counter(
    "mm4_copies",
    "Copies of messages that may have to be sent again: kept, full (no room by the quota), error (disk).",
    ("result",),
    registry=None,
)

NOTICES = Counter(
    "mm4_notices",
    "What originators were told of deliveries by the gateway itself, by PDU type and status.",
    ("type", "status"),
    registry=None,
)

LIMITED = Counter(
    "mm4_limited",
    "Messages over a limit of their peer, by peer and limit: second, day, the same of an originator, flood.",
    ("peer", "limit"),
    registry=None,
)

METRICS = (
    MESSAGES, REFUSED, LOOKUPS, EOM_SECONDS, ANSWERS, BOUNCES, CDR_FILES, CDR_RECORDS, UNANSWERED, COPIES, NOTICES,
    LIMITED,
)  # fmt: skip


class Counters:
    """Counts what sessions, the responder and the timers report."""

    def message(self, peer: str, verdict: Verdict, seconds: float) -> None:
        """One message has its verdict."""
        pdu = verdict.pdu
        kind = (pdu.type or ("unknown" if pdu.mm4 else "none")) if pdu else "none"
        MESSAGES.labels(peer, verdict.direction, kind, verdict.action, verdict.status or "none").inc()
        EOM_SECONDS.observe(seconds)
        if verdict.limit is not None:
            LIMITED.labels(peer, verdict.limit).inc()

    def refused(self, where: str, peer: str, reply: Reply) -> None:
        """A client was refused at MAIL or RCPT."""
        REFUSED.labels(peer, where, str(reply.code)).inc()

    def lookup(self, kind: str, result: str) -> None:
        """What a route asked, and whether something was found."""
        LOOKUPS.labels(kind, result).inc()

    def answer(self, result: str) -> None:
        """What became of an acknowledgement."""
        ANSWERS.labels(result).inc()

    def bounce(self, action: str) -> None:
        """A delivery status notification came home."""
        BOUNCES.labels(action).inc()

    def cdr_file(self, result: str, records: int) -> None:
        """A file of charging records was closed, with so many records, or failed."""
        CDR_FILES.labels(result).inc()
        CDR_RECORDS.inc(records)

    def unanswered(self, peer: str, result: str) -> None:
        """What became of a transaction whose RES did not come in time."""
        UNANSWERED.labels(peer, result).inc()

    def copy(self, result: str) -> None:
        """Whether a copy was kept of a message that may have to be sent again."""
        COPIES.labels(result).inc()

    def notice(self, type: str, status: str) -> None:
        """An originator was told what became of his message."""
        NOTICES.labels(type, status).inc()


def expose(endpoint: Endpoint, folder: str) -> None:
    """Serve the sum of all processes' counters at `/metrics`. Raises OSError where the port is taken."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    start_http_server(endpoint.port, addr=endpoint.host, registry=registry)
