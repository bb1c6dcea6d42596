"""`mm4 queue`: Postfix's queue with peer and transaction beside each token, and one message held, shown, released."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..gateway.config import Config
from ..postfix.settings import read_config
from ..protocol.errors import Mm4Error, StoreError
from .options import Columns, config_option, echo_json, json_option, needs_root, printable, short, store_of

if TYPE_CHECKING:
    from ..postfix.instance import Instance
    from ..postfix.mailqueue import Entry

__all__ = ["queue"]


class _NotQueued(Mm4Error):
    """Nothing in the queue has this ID: a negative finding."""

    exit_code = 1


@click.group(invoke_without_command=True)
@config_option
@click.option("--peer", metavar="NAME", help="Only what goes to this peer, or came from it.")
@json_option
@click.pass_context
def queue(context: click.Context, config_file: str, peer: str | None, as_json: bool) -> int:
    """Postfix's mail queue, a line a recipient: peer, message id, transaction id, state, and why it waits.

    KIND is `message`; `token`, by which the responder learns that a message is kept and sends its RES; `answer`, a RES
    of ours (known by its queue id, with submit: smtp); `bounce`, on its way home. A recipient is shown as the next hop
    sees it.
    """
    if context.invoked_subcommand is not None:
        return 0
    config, _ = read_config(config_file)
    columns = Columns(
        "QUEUE ID", "QUEUE", "ARRIVED", "SIZE", "KIND", "PEER", "SENDER", "RECIPIENT", "STATE", "MESSAGE ID",
        "TRANSACTION ID", "REASON", least=(12, 8, 19, 7, 7, 10, 30, 30, 9, 20, 20),
    )  # fmt: skip
    for entry in _entries(config):
        if peer is not None and entry.peer != peer:
            continue
        if as_json:
            echo_json(entry.as_json())
        else:
            columns.echo(
                entry.queue_id, entry.queue, short(entry.arrival), entry.size, entry.kind, entry.peer,
                entry.sender or "<>", entry.recipient, entry.state, entry.message_id, entry.transaction_id,
                entry.reason,
            )  # fmt: skip
    return 0


@queue.command("hold")
@click.argument("identifier", metavar="ID")
@config_option
@json_option
def hold_command(identifier: str, config_file: str, as_json: bool) -> None:
    """Keep the message with this ID in the queue until it is released. Only for root.

    ID is a queue id, a message id, a transaction id or a token. All of the message is held, its RES too where that has
    not gone out. Exit 1 where nothing in the queue has this ID.
    """
    instance, found = _found(config_file, identifier, "mm4 queue hold")
    for queue_id in found:
        _tell(as_json, queue_id, "held", instance.hold(queue_id) or found[queue_id][0].queue == "hold")


@queue.command("release")
@click.argument("identifier", metavar="ID")
@config_option
@json_option
def release_command(identifier: str, config_file: str, as_json: bool) -> None:
    """Release the message with this ID from hold, and try it at once. Only for root.

    ID as for hold. What was not held is tried at once, too. Exit 1 where nothing in the queue has this ID.
    """
    instance, found = _found(config_file, identifier, "mm4 queue release")
    for queue_id in found:
        instance.release(queue_id)
        # postsuper alone leaves it in the deferred queue, for minutes.
        instance.deliver(queue_id)
        _tell(as_json, queue_id, "released", True)


@queue.command("show")
@click.argument("identifier", metavar="ID")
@config_option
@json_option
def show_command(identifier: str, config_file: str, as_json: bool) -> None:
    """What is known of the message with this ID, and its envelope and header as Postfix keeps them. Only for root.

    ID as for hold. `postcat -q` with the queue id has the body too. Exit 1 where nothing in the queue has this ID.
    """
    instance, found = _found(config_file, identifier, "mm4 queue show")
    for queue_id, entries in found.items():
        content = instance.content(queue_id)
        if as_json:
            echo_json({"queue_id": queue_id, "recipients": [entry.as_json() for entry in entries], "content": content})
            continue
        for entry in entries:
            for name, value in entry.as_json().items():
                if value is not None:
                    click.echo(printable(f"{name}: {value}"))
            click.echo()
        for line in content.splitlines():
            click.echo(printable(line.expandtabs()))


def _tell(as_json: bool, queue_id: str, what: str, done: bool) -> None:
    if as_json:
        echo_json({"queue_id": queue_id, what: done})
    else:
        click.echo(f"{queue_id}: {what if done else 'has left the queue meanwhile'}")


def _entries(config: Config, store: Any = None) -> Iterator[Entry]:
    from ..postfix.instance import Instance  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.mailqueue import queued  # noqa: PLC0415 - the command line starts quickly

    with contextlib.ExitStack() as stack:
        if store is None:
            store = stack.enter_context(_store(config))
        domains = [local.domain for local in config.local]
        yield from queued(Instance(config.folders.postfix).queue(), store, domains)


@contextlib.contextmanager
def _store(config: Config) -> Iterator[Any]:
    """The store, or None: the queue has to be seen also while the store is away."""
    try:
        store = store_of(config.store)
    except StoreError as error:
        click.echo(printable(f"mm4: without message ids and states: {error}"), err=True)
        yield None
        return
    with store:
        yield store


def _found(config_file: str, identifier: str, what: str) -> tuple[Instance, dict[str, list[Entry]]]:
    """Queue id and entries of every message in the queue that has this ID. Raises _NotQueued, UsageError."""
    from ..postfix.instance import Instance  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.mailqueue import named  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    needs_root(what)
    with _store(config) as store:
        tokens = {row["token"] for row in store.whole(identifier)} if store else set()
        found: dict[str, list[Entry]] = {}
        for entry in named(_entries(config, store), identifier, tokens):
            found.setdefault(entry.queue_id, []).append(entry)
    if not found:
        known = "; it has left the queue, mm4 trace tells its life" if tokens else ""
        raise _NotQueued(f"{identifier}: nothing in the queue has this ID{known}")
    return Instance(config.folders.postfix), found
