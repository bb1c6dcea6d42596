"""`mm4 peer`: the links as Postfix serves them now, and pausing one of them."""

from __future__ import annotations

import click

from ..gateway.config import Config
from ..postfix.settings import read_config
from ..protocol.errors import UsageError
from .options import Columns, config_option, echo_json, json_option, needs_root, short

__all__ = ["peer"]


@click.group()
def peer() -> None:
    """List the peers, pause one, let it go on.

    While a peer is paused Postfix keeps what goes to it in its queue, asks nobody, and says why in mailq; everything
    else flows, and what the peer sends is taken as ever. It stays paused over restarts, `mm4 postfix maps` and changes
    of the YAML. What waits longer than Postfix's maximal_queue_lifetime bounces all the same.
    """


@peer.command("list")
@config_option
@json_option
def list_command(config_file: str, as_json: bool) -> None:
    """The peers of the configuration, and which are paused since when.

    One without a next hop is paused and no longer in the configuration; `resume` ends that.
    """
    from ..postfix.paused import paused_peers  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    paused = paused_peers(config)
    columns = Columns("PEER", "DIALECT", "NEXT HOP", "PAUSED SINCE", least=(10, 10))
    for name in dict.fromkeys([*config.peers, *paused]):
        at, link = paused.get(name), config.peers.get(name)
        dialect, next_hop = (link.dialect, link.next_hop) if link else (None, None)
        if as_json:
            since = at and at.isoformat()
            echo_json({"peer": name, "dialect": dialect, "next_hop": next_hop, "paused_since": since})
        else:
            columns.echo(name, dialect, next_hop, short(at))


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
