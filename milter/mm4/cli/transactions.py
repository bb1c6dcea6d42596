"""`mm4 transactions`: what is known of every transaction, and what an operator does about one by hand."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ..gateway.config import Config
from ..gateway.names import TOKEN
from ..postfix.settings import read_config
from ..protocol.errors import Mm4Error, UsageError
from ..protocol.transaction import Direction, State
from .moments import since as since_callback
from .options import Columns, config_option, echo_json, json_option, printable, short, store_of
from .trace import number_of

__all__ = ["transactions"]

_TYPES = [f"{kind}.{half}" for kind in ("forward", "delivery_report", "read_reply_report") for half in ("REQ", "RES")]
_SECONDS = 30.0
"""Longest wait for the store to have written."""


class _Nothing(Mm4Error):
    """There is nothing that can be done about this ID: a negative finding."""

    exit_code = 1


_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def transactions() -> None:
    """List transactions, show one, and what can be done about one by hand.

    ID is a row id (of `list`), a message id, a transaction id, a queue id or a token.
    """


@transactions.command("list")
@config_option
@click.option("--peer", metavar="NAME", help="With this peer, or `local`.")
@click.option("--direction", type=click.Choice([d.value for d in Direction]), help="Came in, or went out.")
@click.option("--type", "type_", type=click.Choice(_TYPES, case_sensitive=False), help="This PDU.")
@click.option("--state", type=click.Choice([s.value for s in State]), help="In this state.")
@click.option("--number", metavar="NUMBER", help="Originator or recipient.")
@click.option("--since", metavar="WHEN", callback=since_callback,
              help="Recorded since then: a duration back from now (2h, 7d), or a date.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many, the newest.")
@json_option
def list_command(
    config_file: str, peer: str | None, direction: str | None, type_: str | None, state: str | None,
    number: str | None, since: datetime | None, limit: int | None, as_json: bool,
) -> int:  # fmt: skip
    """Transactions, newest first; every one unless something narrows them.

    Rows are printed as they are read, also while the gateway serves. Exit 1 where there is none.
    """
    from ..store.listing import Wanted  # noqa: PLC0415 - SQLAlchemy is slow to load

    config, _ = read_config(config_file)
    wanted = Wanted(
        peer=peer,
        direction=Direction(direction) if direction else None,
        type=f"MM4_{type_}" if type_ else None,
        state=State(state) if state else None,
        number=None if number is None else _number(number, config),
        since=since,
    )
    columns = Columns(
        "ID", "RECORDED", "DIR", "PEER", "TYPE", "STATE", "STATUS", "ORIGINATOR", "RECIPIENT", "MESSAGE ID",
        least=(8, 19, 3, 10, 21, 10, 8, 14, 14),
    )  # fmt: skip
    found = False
    with store_of(config.store) as store:
        for row in store.listed(wanted, limit):
            found = True
            if as_json:
                echo_json(row)
                continue
            columns.echo(
                row["id"], short(row["recorded_at"]), row["direction"], row["peer"], row["type"].removeprefix("MM4_"),
                row["state"], row["status"] or row["report"], row["originator"], row["recipient"], row["message_id"],
            )  # fmt: skip
    if not found and not as_json:
        click.echo("no such transaction")
    return 0 if found else 1


def _number(text: str, config: Config) -> str:
    number = number_of(text, config.home.region)
    if number is None:
        raise UsageError(f"--number {text}: is no number, for example +447700900101")
    return number


@transactions.command("show")
@click.argument("identifier", metavar="ID")
@config_option
@json_option
def show_command(identifier: str, config_file: str, as_json: bool) -> int:
    """Everything that is known of the transactions with this ID. Exit 1 where nobody knows it."""
    config, _ = read_config(config_file)
    with store_of(config.store) as store:
        rows = store.whole(identifier)
    for row in rows:
        if as_json:
            echo_json(row)
        else:
            _show(row)
    if not rows and not as_json:
        click.echo(printable(f"{identifier}: no such transaction"))
    return 0 if rows else 1


def _show(row: dict[str, Any]) -> None:
    for name, value in row.items():
        if name == "events":
            click.echo("events:")
            for event in value:
                more = " ".join(filter(None, (event["queue_id"], event["detail"])))
                click.echo(printable(f"  {event['at'][:23]}  {event['what']}  {more}").rstrip())
        elif name == "answer_text" and value is not None:
            click.echo("answer_text:")
            for line in value.splitlines():
                click.echo(printable(f"  {line}"))
        elif value is not None:
            click.echo(printable(f"{name}: {value}"))
    click.echo()


@transactions.command("retry")
@click.argument("identifier", metavar="ID")
@config_option
@json_option
def retry_command(identifier: str, config_file: str, as_json: bool) -> int:
    """Send the message with this ID again at once.

    What is in Postfix's queue is tried now. A REQ that has left it and was not answered is sent again from the copy
    that `ack.retry` keeps, with the same ids, as soon as the daemon's timer looks. Exit 1 where nothing can be sent
    again.
    """
    from ..postfix.instance import Instance  # noqa: PLC0415 - the command line starts quickly
    from ..store.upkeep import RETRIED  # noqa: PLC0415 - SQLAlchemy is slow to load

    config, _ = read_config(config_file)
    done: list[dict[str, Any]] = []
    with store_of(config.store, write=True) as store:
        rows = _known(store, identifier)
        tokens = _tokens(rows, identifier)
        queue = _in_queue(config, tokens, {row["queue_id"]: row["token"] for row in rows})
        for token in tokens:
            for queue_id in queue.get(token, ()):
                Instance(config.folders.postfix).deliver(queue_id)
                done.append({"token": token, "queue_id": queue_id, "what": "Postfix tries it now"})
            due = [row["id"] for row in rows if row["token"] == token and _retried(row, RETRIED)]
            # What is still in the queue would be sent twice.
            if token not in queue and due and _copy(config, token).exists():
                number = store.hurry(due, datetime.now(UTC)).result(_SECONDS)
                what = "due now, sent again from the copy" if number else "is being sent again just now"
                done.append({"token": token, "queue_id": None, "what": what})
    if not done:
        states = ", ".join(dict.fromkeys(row["state"] for row in rows))
        if any(_retried(row, RETRIED) for row in rows):
            why = "no copy of it is kept; ack.retry of its peer keeps one"
        elif any(row["state"] == State.FAILED for row in rows):
            why = "it was given up: its originator was told, who has to send it anew, and its copy is gone"
        else:
            why = "only a REQ of ours that nobody has answered is sent again"
        raise _Nothing(
            f"{identifier}: nothing can be sent again (state {states}): it is not in Postfix's queue, and {why}"
        )
    for one in done:
        if as_json:
            echo_json(one)
        else:
            click.echo(f"{one['queue_id'] or one['token']}: {one['what']}")
    return 0


def _retried(row: dict[str, Any], states: Iterable[State]) -> bool:
    return row["direction"] == Direction.OUT and row["state"] in states


def _copy(config: Config, token: str) -> Path:
    return Path(config.folders.state) / "spool" / token


def _known(store: Any, identifier: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.whole(identifier)
    if not rows:
        raise _Nothing(f"{identifier}: no such transaction")
    return rows


def _tokens(rows: list[dict[str, Any]], identifier: str) -> list[str]:
    """The tokens of the messages that an identifier names; itself last where it is a passing RES's."""
    tokens = list(dict.fromkeys(row["token"] for row in rows))
    return [*tokens, identifier] if TOKEN.match(identifier) and identifier not in tokens else tokens


def _in_queue(config: Config, tokens: list[str], queue_ids: dict[str, str]) -> dict[str, list[str]]:
    """Token and the queue ids under which its message is in Postfix's queue now. Raises PostfixError."""
    from ..postfix.instance import Instance  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.mailqueue import tokens_of  # noqa: PLC0415 - the command line starts quickly

    domains = [local.domain for local in config.local]
    found: dict[str, list[str]] = {}
    for message in Instance(config.folders.postfix).queue():
        here = [token for token in tokens_of(message, domains) if token in tokens]
        if not here and message["queue_id"] in queue_ids:
            here = [queue_ids[message["queue_id"]]]
        for token in here:
            found.setdefault(token, []).append(message["queue_id"])
    return found


@transactions.command("forget")
@click.argument("identifier", metavar="ID")
@config_option
@_yes_option
@click.option("--force", is_flag=True,
              help="Also a message that is owed an answer, or waits for one; never one that is in the queue.",
              )  # fmt: skip
@json_option
def forget_command(identifier: str, config_file: str, yes: bool, force: bool, as_json: bool) -> int:
    """Remove what is kept of the message with this ID: all its recipients and events. Asks before.

    A RES or a report that comes for it later finds nothing. Refused while it is in Postfix's queue, and, without
    --force, while an answer is owed or awaited. Exit 1 where it stays.
    """
    config, _ = read_config(config_file)
    with store_of(config.store, write=True) as store:
        rows = _known(store, identifier)
        tokens = list(dict.fromkeys(row["token"] for row in rows))
        queue = _in_queue(config, _tokens(rows, identifier), {row["queue_id"]: row["token"] for row in rows})
        if queue:
            there = ", ".join(dict.fromkeys(queue_id for ids in queue.values() for queue_id in ids))
            raise _Nothing(f"{identifier}: stays, it is in Postfix's queue as {there}; mm4 queue shows it")
        if not yes:
            for row in rows:
                what = f"{row['type']} {row['message_id']} to {row['recipient']}: {row['state']}"
                click.echo(printable(what), err=True)
            messages = "this message" if len(tokens) == 1 else f"these {len(tokens)} messages"
            click.confirm(f"Forget {messages}?", abort=True, err=True)
        stays = 0
        for token in tokens:
            reason = store.forget(token, force=force).result(_SECONDS)
            stays += reason is not None
            if reason is None:
                _copy(config, token).unlink(missing_ok=True)
            if as_json:
                echo_json({"token": token, "forgotten": reason is None, "reason": reason})
            elif reason is None:
                click.echo(f"{token}: forgotten")
            else:
                click.echo(f"{token}: stays, {reason}; --force removes it all the same", err=True)
    return 1 if stays else 0


@transactions.command("answer")
@click.argument("identifier", metavar="ID")
@config_option
@_yes_option
@json_option
def answer_command(identifier: str, config_file: str, yes: bool, as_json: bool) -> int:
    """Send the RES that was recorded for the message with this ID, by hand; again where it went out before.

    It goes to the byte as it was recorded, the way that `submit` says, and is noted in the life of the message. A RES
    Ok says that the message is safe here: see that it is before you send one that never went out. Asks before. Exit 1
    where none was recorded, or the message is still in the queue, where the daemon sends it.
    """
    config, _ = read_config(config_file)
    with store_of(config.store, write=True) as store:
        tokens = _tokens(_known(store, identifier), identifier)
        if tokens[-1] == identifier:  # a token names one message, which may be the RES that waits to go on
            tokens = [identifier]
        messages = [m for m in map(store.message, tokens) if m is not None and m.answer is not None]
        # A RES that waits for an MMSC's or a peer's word says nothing yet.
        messages = [m for m in messages if m.reply_to is None or m.answered_at is not None]
        if not messages:
            raise _Nothing(f"{identifier}: no RES was recorded for it")
        if len(messages) > 1:
            tokens_ = ", ".join(message.token for message in messages)
            raise _Nothing(f"{identifier}: several messages; name one by its token: {tokens_}")
        (message,) = messages
        if message.answered_at is None:
            queue = _in_queue(config, [message.token], {message.queue_id: message.token})
            if queue:
                there = ", ".join(queue[message.token])
                raise _Nothing(
                    f"{identifier}: is in Postfix's queue as {there} and is answered from there; "
                    f"mm4 transactions retry {message.token} tries it now"
                )
        answer = message.answer
        if not yes:
            _ask(message)
        submitted = _submit(config, answer)
        at = datetime.now(UTC)
        if message.answered_at is None:
            store.answered(message.token, at, submitted or None).result(_SECONDS)
        what = f"{answer.type} {answer.status} sent by hand"
        # A RES that passed through is seen in the life of what it answers.
        shown = message.token if message.transactions else message.copy_of or message.token
        store.event(shown, at, what, submitted or None, f"to {answer.rcpt_to}").result(_SECONDS)
    if as_json:
        echo_json({"token": message.token, "type": answer.type, "status": answer.status, "to": answer.rcpt_to,
                   "submitted": submitted or None})  # fmt: skip
    else:
        click.echo(printable(f"{what} to {answer.rcpt_to}, submitted as {submitted or 'a mail without an id'}"))
    return 0


def _ask(message: Any) -> None:
    answer = message.answer
    if message.answered_at is not None:
        before = f"it went out at {short(message.answered_at)} UTC, the peer gets it twice"
    elif message.accepted_at is not None:
        before = "it never went out; Postfix has taken the message"
    else:
        before = (
            "it never went out, and nothing shows that Postfix has kept the message: see in its log, by queue id "
            f"{message.queue_id}, that it was delivered"
        )
    click.echo(printable(f"{answer.type} {answer.status} to {answer.rcpt_to}: {before}"), err=True)
    click.confirm("Send it?", abort=True, err=True)


def _submit(config: Config, answer: Any) -> str:
    import asyncio  # noqa: PLC0415 - the command line starts quickly

    from ..postfix.submit import Submitter  # noqa: PLC0415 - the command line starts quickly

    own = config.folders.postfix != "/etc/postfix"
    endpoint = config.service.submit

    async def run() -> str:
        submitter = Submitter(
            config.submit,
            config_directory=Path(config.folders.postfix) if own else None,
            address=(endpoint.host, endpoint.port),
            sessions=1,
        )
        try:
            return await submitter.submit(answer.mail_from, answer.rcpt_to, answer.message)
        finally:
            await submitter.close()

    return asyncio.run(run())
