"""`mm4 peer`: the links as they are, one of them tried, and pausing one of them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import click

from ..gateway.config import Config
from ..postfix.settings import read_config
from ..protocol.address import Kind, parse_address
from ..protocol.errors import PostfixError, StoreError, UsageError
from .options import (
    Columns,
    config_option,
    echo_json,
    echo_rows,
    json_option,
    needs_root,
    printable,
    short,
    store_of,
)

__all__ = ["peer"]

_MOST_OWED = 10_000
"""Owed answers that are counted, the oldest."""


@click.group()
def peer() -> None:
    """List the peers, show and try one, pause one, let it go on.

    While a peer is paused Postfix keeps what goes to it in its queue, asks nobody, and says why in mailq; everything
    else flows, and what the peer sends is taken as ever. It stays paused over restarts, `mm4 postfix maps` and changes
    of the YAML. What waits longer than Postfix's maximal_queue_lifetime bounces all the same.
    """


@peer.command("list")
@config_option
@json_option
def list_command(config_file: str, as_json: bool) -> None:
    """The peers of the configuration: by what each is known, what waits for it, and which are paused since when.

    QUEUED are recipients in Postfix's queue on their way to the peer, OWED its messages whose RES has not gone out; a
    dash where the queue, or the store, cannot be read. One without a next hop is paused and no longer in the
    configuration; `resume` ends that.
    """
    from ..gateway.sheet import known_by  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.paused import paused_peers  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    paused = paused_peers(config)
    queued, owed = _queued(config), _owed(config)
    titles = ("PEER", "DIALECT", "NEXT HOP", "KNOWN BY", "QUEUED", "OWED", "PAUSED SINCE")
    columns = Columns(*titles, least=(10, 10, 22, 18))
    for name in dict.fromkeys([*config.peers, *paused]):
        at, link = paused.get(name), config.peers.get(name)
        known = known_by(link) if link else None
        waiting = None if queued is None else queued[name]
        due = None if owed is None else owed[name]
        if as_json:
            echo_json({
                "peer": name, "dialect": link and link.dialect, "next_hop": link and link.next_hop, "known_by": known,
                "queued": waiting, "owed": due, "paused_since": at and at.isoformat(),
            })  # fmt: skip
        else:
            columns.echo(name, link and link.dialect, link and link.next_hop, known, waiting, due, short(at))


def _queued(config: Config) -> Counter[str] | None:
    """Recipients in the queue, by peer."""
    from ..gateway.names import via_peer  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.instance import Instance  # noqa: PLC0415 - the command line starts quickly

    found: Counter[str] = Counter()
    try:
        for message in Instance(config.folders.postfix).queue():
            found.update(filter(None, (via_peer(recipient["address"]) for recipient in message["recipients"])))
    except PostfixError:
        return None
    return found


def _owed(config: Config) -> Counter[str] | None:
    """Messages whose RES is due, by peer."""
    try:
        with store_of(config.store) as store:
            return Counter(row["peer"] for row in store.owed_rows(datetime.now(UTC), _MOST_OWED))
    except StoreError:
        return None


@peer.command("show")
@click.argument("name", metavar="NAME")
@config_option
@json_option
def show_command(name: str, config_file: str, as_json: bool) -> None:
    """Everything about one link as it is effective, to lay beside the peer's own document. No secret is shown."""
    from ..gateway.sheet import sheet  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    _known(config, name)
    found = sheet(config, name)
    if as_json:
        echo_json({"peer": name, **{head: [{"what": k, "is": v} for k, v in rows] for head, rows in found.items()}})
        return
    click.echo(f"peer {name}")
    for head, rows in found.items():
        click.echo(f"\n{head}")
        echo_rows(rows or [("none", "")], indent=2)


@peer.command("test")
@click.argument("name", metavar="NAME")
@click.option("--to", "number", metavar="NUMBER", help="RCPT for this number of theirs. Left out: one that the first "
              "prefix or range of routes shows.")  # fmt: skip
@click.option("--timeout", "seconds", type=click.FloatRange(0.1, 300), default=30, show_default=True, metavar="SECONDS",
              help="Longest wait for one answer.")  # fmt: skip
@config_option
@json_option
def test_command(name: str, number: str | None, seconds: float, config_file: str, as_json: bool) -> int:
    """Open the link as Postfix would, up to RCPT, and say what works and what mends the rest. No message is sent.

    Next hop, address, TLS, login, SIZE, MAIL, RCPT, RSET by the YAML, and Postfix's name and authorities by its
    main.cf; whether Postfix's tables are those of the YAML says mm4 check. Where an address fails, the next one is
    tried, as Postfix does. Root reads the password and our key. Exit 1 where a step failed.
    """
    from ..postfix.trial import Step, Trial  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    _known(config, name)
    to = parse_address(number, config.home.region) if number is not None else None
    if to is not None and to.kind is not Kind.E164:
        raise UsageError(f"--to {number!r} is no E.164 number: a plus and 7 to 15 digits, for example +447700900101")

    def tell(step: Step) -> None:
        if as_json:
            echo_json({"peer": name, **step.as_json()})
            return
        verdict = {True: "ok", False: "failed", None: "-"}[step.ok]
        took = "" if step.ms is None else f"{step.ms} ms"
        click.echo(f"{verdict:<7} {step.step:<12} {took:>8}  {printable(step.said)}")
        if step.cure:
            click.echo(f"{'':30}{printable(step.cure)}")

    return 0 if Trial(config, name, to, tell, seconds).run() else 1


@peer.command("pause")
@click.argument("name", metavar="NAME")
@config_option
@json_option
def pause_command(name: str, config_file: str, as_json: bool) -> None:
    """Keep what goes to this peer in Postfix's queue, from now on. Only for root.

    Reloads Postfix; no session is cut.
    """
    from ..postfix.pausing import pause  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    _known(config, name)
    needs_root("mm4 peer pause")
    at = pause(config, name)
    if as_json:
        echo_json({"peer": name, "paused_since": at.isoformat()})
    else:
        click.echo(f"{name} is paused since {short(at)} UTC; mm4 peer resume {name} lets its mail go")


@peer.command("resume")
@click.argument("name", metavar="NAME")
@config_option
@json_option
def resume_command(name: str, config_file: str, as_json: bool) -> None:
    """Let mail for this peer flow again, and try at once what waits. Only for root.

    Reloads Postfix; no session is cut.
    """
    from ..postfix.paused import paused_peers  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.pausing import resume  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    if name not in paused_peers(config):  # one that the YAML no longer names may still be paused
        _known(config, name)
    needs_root("mm4 peer resume")
    waited = resume(config, name)
    if as_json:
        echo_json({"peer": name, "paused_since": None, "waited": waited})
    else:
        click.echo(f"{name} is served; {waited} messages that waited are tried now")


def _known(config: Config, name: str) -> None:
    if name not in config.peers:
        raise UsageError(f"{name} is no peer; there is: {', '.join(config.peers)}")
