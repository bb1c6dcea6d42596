"""`mm4 explain`: what the gateway would do with a message, by the very code that Postfix drives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..gateway.edits import Edit
from ..gateway.entries import fingerprint_of
from ..gateway.matching import Lookups, NoLookups
from ..gateway.names import strip_via
from ..gateway.routing import Router
from ..gateway.verdict import Action, Recipient, Verdict
from ..postfix.lookups import RouteLookups
from ..postfix.runtime import History, Runtime
from ..postfix.seen import body_of, seen
from ..postfix.session import Session
from ..postfix.settings import read_config
from ..protocol.errors import Reply, StoreError, UsageError
from .lint import read_bytes
from .options import config_option, echo_json, json_option, store_of

__all__ = ["Shown", "explain", "explanation"]

_CHUNK = 65_535
"""Bytes that Postfix hands over at once (MILTER_CHUNK_SIZE)."""


@click.command()
@click.argument("file")
@config_option
@click.option("--client", required=True, metavar="IP", help="Address of the client.")
@click.option("--mail-from", required=True, metavar="ADDRESS", help="Envelope sender; empty for null.")
@click.option(
    "--rcpt", "rcpts", required=True, multiple=True, metavar="ADDRESS", help="Envelope recipient; again for more"
)
@click.option("--size", type=int, metavar="BYTES", help="What the client says with SIZE= at MAIL.")
@click.option("--sasl", "login", metavar="NAME", help="SASL login of the client.")
@click.option(
    "--tls-subject", "subject", metavar="CN",
    help="CN of its TLS certificate, where service.tls.ca vouches for that.",
)
@click.option("--tls-fingerprint", "fingerprint", metavar="SHA256", help="Fingerprint of its TLS certificate.")
@click.option("--store", "store_file", metavar="FILE", help="Look earlier messages up in this store, read only.")
@json_option
def explain(
    file: str, config_file: str, client: str, mail_from: str, rcpts: tuple[str, ...], size: int | None,
    login: str | None, subject: str | None, fingerprint: str | None, store_file: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Say what the gateway would do with the message in FILE (- is standard input).

    Without --store it judges as if the message were the first, so that a report is about a message that nobody knows.
    Nothing is stored or sent. Exit 1 where it would be refused by SMTP.
    """
    config, _ = read_config(config_file)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(_opened(store_file)) if store_file else None
        known = Shown(login, subject, _fingerprint(fingerprint) if fingerprint else None)
        message, lookups = read_bytes(file), RouteLookups(config)
        result = explanation(Router(config), message, client, mail_from, rcpts, size, store, known, lookups)
    if as_json:
        echo_json(result)
    else:
        _print(result)
    return 0 if result["action"] in ("accept", "discard", "hold") else 1


def _opened(name: str) -> Any:
    """The store in a file, or at a URL, for reading. Raises UsageError."""
    try:
        return store_of(name if "://" in name else f"sqlite:///{Path(name).absolute()}")
    except StoreError as error:
        raise UsageError(f"--store: {error}") from None


def _fingerprint(text: str) -> str:
    try:
        return fingerprint_of(text)
    except ValueError as error:
        raise UsageError(f"--tls-fingerprint: {error}") from None


@dataclass(frozen=True, slots=True)
class Shown:
    """What a client showed of itself beside its address."""

    login: str | None = None
    subject: str | None = None
    fingerprint: str | None = None


def explanation(
    router: Router, message: bytes, client: str, mail_from: str, rcpts: tuple[str, ...], size: int | None = None,
    history: History | None = None, shown: Shown = Shown(), lookups: Lookups | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The object that `mm4 explain --json` prints; `history` tells of earlier messages, `lookups` what routes ask."""
    session = Session(Runtime(router, history=history, lookups=lookups or NoLookups(), quiet=True))
    session.connect(client)
    session.identify(shown.subject, shown.login, shown.fingerprint)
    reply = session.mail(f"<{mail_from.strip('<>')}>", (f"SIZE={size}",) if size is not None else ())
    side = session.side
    result: dict[str, Any] = {
        "peer": side.name if side else None,
        "direction": None if side is None else "in" if side.peer else "out",
    }
    if not reply.positive:
        action = Action.TEMPFAIL if reply.temporary else Action.REJECT
        return result | _outcome(action, reply) | _nothing(mail_from)
    recipients = []
    for rcpt in rcpts:
        before = len(session.recipients)
        answer = session.rcpt(f"<{rcpt.strip('<>')}>")
        accepted = session.recipients[before] if len(session.recipients) > before else None
        recipients.append(_recipient(rcpt, answer, accepted))
    if not session.recipients:
        last = recipients[-1]["smtp"]
        refused = _outcome(Action.TEMPFAIL if last.startswith("4") else Action.REJECT, None) | {"smtp": last}
        return result | refused | _nothing(mail_from) | {"rcpt": recipients}
    for header in seen(message):
        session.header(header.name, header.value)
    body = body_of(message)
    for start in range(0, len(body), _CHUNK):
        if not session.body(body[start : start + _CHUNK]):
            break
    verdict = session.verdict()
    _redirect(recipients, verdict)
    return result | _verdict(verdict, mail_from, recipients)


def _outcome(action: Action, reply: Reply | None) -> dict[str, Any]:
    return {"action": str(action), "smtp": str(reply)}


def _nothing(mail_from: str) -> dict[str, Any]:
    return {"mail_from": mail_from, "rcpt": [], "edits": [], "responses": [], "splits": [], "sides": [],
            "reason": None}  # fmt: skip


def _recipient(rcpt: str, reply: Reply, accepted: Recipient | None) -> dict[str, Any]:
    where = accepted.destination if accepted else None
    return {
        "address": rcpt,
        "smtp": str(reply),
        "peer": where.side if where else None,
        "becomes": strip_via(where.becomes) if where and where.becomes else None,
        "next_hop": where.next_hop if where else None,
    }


def _redirect(recipients: list[dict[str, Any]], verdict: Verdict) -> None:
    """A report goes to the originator of its message and nobody else, whatever its envelope says."""
    (target, *others) = verdict.everybody or (None,)
    where = target.destination if target is not None and not others else None
    if where is None or where.becomes is None or strip_via(where.becomes) in {r["becomes"] for r in recipients}:
        return
    for recipient in recipients:
        if recipient["peer"] is not None:
            recipient |= {"peer": where.side, "becomes": strip_via(where.becomes), "next_hop": where.next_hop}


def _verdict(verdict: Verdict, mail_from: str, recipients: list[dict[str, Any]]) -> dict[str, Any]:
    forwarded = {strip_via(address) for address, _ in verdict.added}
    sides = [_side(part.side, part.targets, part.mail_from, part.edits) for part in verdict.splits if part.targets]
    forwarded |= {address for side in sides for address in side["rcpt"]}
    if verdict.splits and verdict.targets and verdict.mail_from is not None:
        destination = verdict.targets[0].destination
        name = destination.side if destination else ""
        sides.insert(0, _side(name, verdict.targets, verdict.mail_from, verdict.edits))
    for recipient in recipients:
        if verdict.deleted and recipient["becomes"] not in forwarded:
            recipient["becomes"] = recipient["next_hop"] = None
    return _outcome(verdict.action, verdict.reply) | {
        "mail_from": verdict.mail_from if verdict.mail_from is not None else mail_from,
        "rcpt": recipients,
        "edits": [edit.as_json() for edit in verdict.edits],
        "responses": [
            {
                "to": strip_via(answer.rcpt_to),
                "mail_from": answer.mail_from,
                "type": answer.type,
                "status": answer.status,
                "message": answer.message.decode("ascii"),
            }
            for answer in verdict.answers
        ],
        "splits": [part.side for part in verdict.splits if part.targets],
        "sides": sides,
        "reason": verdict.reason,
    }


def _side(name: str, targets: Iterable[Recipient], mail_from: str, edits: Iterable[Edit]) -> dict[str, Any]:
    """What one of several sides gets: its edits are of the message as it came."""
    becomes = (target.destination.becomes for target in targets if target.destination)
    rcpt = list(dict.fromkeys(strip_via(address) for address in becomes if address))
    return {"peer": name, "mail_from": mail_from, "rcpt": rcpt, "edits": [edit.as_json() for edit in edits]}


def _print(result: dict[str, Any]) -> None:
    click.echo(f"client: {result['peer'] or 'a stranger'}")
    for recipient in result["rcpt"]:
        click.echo(f"RCPT {recipient['address']}: {recipient['smtp']}")
        if recipient["becomes"]:
            click.echo(f"  goes to {recipient['peer']} as {recipient['becomes']}, next hop {recipient['next_hop']}")
    reason = f" ({result['reason']})" if result["reason"] else ""
    click.echo(f"verdict: {result['action']}, {result['smtp']}{reason}")
    for side in result["sides"] or [result]:
        to = f" to {side['peer']}" if result["sides"] else ""
        click.echo(f"envelope sender{to}: {side['mail_from'] or '<>'}")
        for op, header, occurrence, value in side["edits"]:
            number = f"[{occurrence}]" if occurrence else ""
            click.echo(f"  {op} {header}{number}" + (f": {value}" if value is not None else ""))
    for response in result["responses"]:
        sender = response["mail_from"] or "<>"
        click.echo(f"answer: {response['type']} {response['status']} to {response['to']} from {sender}")
        click.echo("  " + response["message"].rstrip().replace("\r\n", "\n  "))
