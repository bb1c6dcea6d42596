"""`mm4 report`: tell the sender of a message that our side received what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ..gateway.config import Config
from ..gateway.identities import identity_of
from ..gateway.routing import Router
from ..postfix.settings import read_config
from ..protocol.address import Kind, parse_address
from ..protocol.errors import Mm4Error, StoreError, UsageError
from ..protocol.transaction import Direction, Original, State
from ..protocol.values import unquote
from .moments import moment
from .options import config_option, echo_json, json_option, store_of
from .waiting import await_outcomes, echo_outcomes, wait_option, wait_seconds

if TYPE_CHECKING:
    from ..compose import Outcome

__all__ = ["report"]


class _NothingReceived(Mm4Error):
    """There is no message to report about: a negative finding."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class _Report:
    """One report, ready to go: who reports, to whom, in which transaction."""

    reporter: str
    originator: str
    rcpt_to: str
    transaction_id: str
    message: bytes


@click.command()
@click.argument("kind", type=click.Choice(["delivery", "read"]))
@click.argument("message_id", metavar="MESSAGE-ID")
@config_option
@click.option("--status", required=True, metavar="STATUS",
              help="delivery: Expired, Retrieved, Rejected, Deferred, Indeterminate, Forwarded, Unrecognised or "
              "Unreachable; read: Read or Deleted.")  # fmt: skip
@click.option("--to", "recipient", metavar="NUMBER",
              help="The recipient of the message who reports. Left out: each of them.")  # fmt: skip
@click.option("--text", metavar="TEXT", help="A word for people (X-Mms-Status-Text).")
@click.option("--extension", metavar="VALUE", help="X-Mms-MM-Status-Extension of a delivery report (Release 6).")
@click.option("--date", metavar="DATE", callback=moment, help="When the message was handled or read. Left out: now.")
@wait_option
@json_option
def report(
    kind: str, message_id: str, config_file: str, status: str, recipient: str | None, text: str | None,
    extension: str | None, date: datetime | None, wait: int | None, as_json: bool,
) -> int:  # fmt: skip
    """Report about the message with this MESSAGE-ID, which our side received: a delivery or a read report.

    One report for each of its recipients, or for the one of --to, goes to the originator by way of the MM4 service.
    Where the originator asked for none it stays here (state suppressed). Exit 1 where there is no such message, a
    report is refused, the service is down, or, with --wait, a RES is an error or did not come in time.
    """
    config, _ = read_config(config_file)
    if extension is not None and kind != "delivery":
        raise UsageError("--extension belongs to a delivery report")
    message_id = unquote(message_id)
    with store_of(config.store) as store:
        originals = _received(store, message_id, recipient, config.home.region)
        reports = [
            _composed(config, original, kind, status, text, extension, date or datetime.now(UTC))
            for original in originals
        ]
        refused = _submitted(config, reports)
        sent = [one for one in reports if one.transaction_id not in refused]
        if not as_json:
            for one in reports:
                _echo_sent(one, refused.get(one.transaction_id))
        seconds = 0 if wait is None else wait_seconds(wait, config, [original.peer for original in originals])
        try:
            # Without --wait too: whether a report is kept back is known at once.
            found = _looked(store, sent, seconds)
        except StoreError:
            if as_json:
                echo_json({"message_id": message_id, "reports": [_as_json(one, refused, None) for one in reports]})
            raise
    by_report = dict(zip((one.transaction_id for one in sent), found, strict=True))
    if as_json:
        rows = [_as_json(one, refused, by_report.get(one.transaction_id)) for one in reports]
        echo_json({"message_id": message_id, "reports": rows})
    else:
        for one, outcome in zip(sent, found, strict=True):
            if outcome.state == State.SUPPRESSED:
                click.echo(f"suppressed, the report of {one.reporter}: {one.originator} asked for no {kind} report")
            elif wait is not None:
                echo_outcomes([outcome], one.transaction_id)
    return 1 if refused or (wait is not None and not all(outcome.ok for outcome in found)) else 0


def _received(store: Any, message_id: str, recipient: str | None, region: str | None) -> list[Original]:
    """What our side received under this id, a row a recipient. Raises _NothingReceived that says what there is."""
    known = store.originals(message_id)
    inward = [original for original in known if original.direction is Direction.IN]
    if not inward:
        if known:
            raise _NothingReceived(f"{message_id} went out from here; its recipients report, not we")
        refused = any(row["direction"] == "in" and row["state"] == State.REFUSED for row in store.trace(message_id))
        raise _NothingReceived(
            f"{message_id} was refused here, nobody received it" if refused
            else f"{message_id}: no message with this id was received; mm4 trace shows what is known of an id"
        )  # fmt: skip
    if recipient is not None:
        key = parse_address(recipient, region).key
        named = [original for original in inward if parse_address(original.recipient).key == key]
        if not named:
            numbers = ", ".join(dict.fromkeys(original.recipient for original in inward))
            raise _NothingReceived(f"{recipient} is no recipient of {message_id}; there is: {numbers}")
        inward = named
    senders = {(original.peer, original.originator): original for original in inward}
    if len(senders) > 1:
        told = ", ".join(f"{originator} ({peer})" for peer, originator in senders)
        cure = "name one recipient with --to" if recipient is None else "which of them is meant cannot be said here"
        raise _NothingReceived(f"{message_id} came from several originators: {told}; {cure}")
    # Newest first: a message that came twice is reported once a recipient.
    return list({original.recipient: original for original in reversed(inward)}.values())


def _composed(
    config: Config, original: Original, kind: str, status: str, text: str | None, extension: str | None, date: datetime
) -> _Report:
    from ..compose import delivery_report, new_id, read_report  # noqa: PLC0415 - the MIME library is slow to load
    from ..compose.addressee import envelope  # noqa: PLC0415 - email-validator is slow to load

    local = identity_of(original.recipient, Router(config))
    peer = config.peers.get(original.peer)
    if peer is None and original.peer != "local":
        raise _NothingReceived(f"{original.message_id} came from {original.peer}, which is no peer any more")
    try:
        rcpt_to = envelope(original.originator, peer.write_domain if peer else local.domain)
        if peer and parse_address(rcpt_to).kind is Kind.EMAIL:
            # Whose domain need not be the peer's: the gateway knows where the message came from.
            rcpt_to = local.system_address
    except UsageError:
        raise _NothingReceived(
            f"{original.message_id} came from {original.originator!r}, to whom no report can go"
        ) from None
    transaction_id = new_id(local.domain)
    common: dict[str, Any] = {
        "message_id": original.message_id, "transaction_id": transaction_id, "date": date, "text": text
    }  # fmt: skip
    who = (original.recipient, original.originator, status)
    if kind == "delivery":
        message = delivery_report(*who, extension=extension, **common)
    else:
        message = read_report(*who, **common)
    return _Report(original.recipient, original.originator, rcpt_to, transaction_id, message)


def _submitted(config: Config, reports: list[_Report]) -> dict[str, str]:
    """What was refused, by transaction id. Raises Refused or Unreachable where that befalls the first."""
    from ..compose import Refused, Service, Unreachable  # noqa: PLC0415 - the MIME library is slow to load

    router = Router(config)
    refused: dict[str, str] = {}
    for index, one in enumerate(reports):
        try:
            service = Service.of(config, identity_of(one.reporter, router))
            replies = service.submit(one.message, "", (one.rcpt_to,))
        except (Refused, Unreachable) as error:
            if index == 0:
                raise
            replies = {one.rcpt_to: str(error)}
        if replies:
            refused[one.transaction_id] = replies[one.rcpt_to]
    return refused


def _looked(store: Any, sent: list[_Report], seconds: int) -> tuple[Outcome, ...]:
    """The outcome of each report that went out, in order."""
    from ..compose import outcomes  # noqa: PLC0415 - the MIME library is slow to load

    def look() -> tuple[Outcome, ...]:
        return tuple(o for one in sent for o in outcomes(store, one.transaction_id, (one.originator,)))

    return await_outcomes(look, seconds) if seconds and sent else look()


def _echo_sent(one: _Report, refused: str | None) -> None:
    if refused is None:
        click.echo(one.transaction_id)
    else:
        click.echo(f"refused the report of {one.reporter}: {refused}", err=True)


def _as_json(one: _Report, refused: dict[str, str], outcome: Outcome | None) -> dict[str, Any]:
    return {
        "recipient": one.reporter,
        "originator": one.originator,
        "transaction_id": one.transaction_id,
        "refused": refused.get(one.transaction_id),
        "peer": outcome and outcome.peer,
        "state": outcome and outcome.state,
        "status": outcome and outcome.status,
    }
