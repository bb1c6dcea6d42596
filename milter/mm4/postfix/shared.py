"""Wiring `clients`: peers come to a line that takes ordinary mail too.

By their networks they meet our milter, and the operator's own; every other client meets what it met before. The
tables here follow from the YAML and from the operator's milters, so that both need `mm4 postfix wire` again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

from ..gateway.config import Config
from ..gateway.entries import IPNetwork
from ..protocol.errors import PostfixError
from . import maps
from .cftext import list_items
from .instance import Instance
from .mastercf import Service

__all__ = ["RESTRICTIONS", "TABLES", "member_of", "shared_line", "shared_tables"]

TABLES = ("milters", "shared")
"""Tables that this wiring alone has."""

RESTRICTIONS = (
    "smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions", "smtpd_relay_restrictions",
    "smtpd_recipient_restrictions", "smtpd_data_restrictions", "smtpd_end_of_data_restrictions",
)  # fmt: skip
"""Rules for ordinary mail that peers are let past: MM4 domains are not in public DNS, and the milter judges them."""

_HEAD = "# Written by `mm4 postfix wire` from the YAML file and main.cf: edit those, not this.\n"


def shared_line(services: Iterable[Service]) -> Service | None:
    """The smtpd that takes ordinary mail from outside: behind postscreen, on port 25, else the first that asks for
    neither TLS nor a login. None where there is none."""
    services = list(services)
    behind = next((s for s in services if s.type == "pass" and s.program == "smtpd"), None)
    if behind and any(s.program == "postscreen" and s.type == "inet" for s in services):
        return behind
    open_ = [
        s for s in services
        if s.type == "inet" and s.program == "smtpd"
        and s.value("smtpd_tls_wrappermode") != "yes"
        and s.value("smtpd_tls_security_level") != "encrypt"
        and s.value("smtpd_sasl_auth_enable") != "yes"
    ]  # fmt: skip
    usual = [s for s in open_ if s.name.rpartition(":")[2] in ("smtp", "25")]
    return next(iter([*usual, *open_]), None)


def member_of(config: Config, name: str) -> str:
    """What this wiring puts in front of the list `name`."""
    folder = maps.folder_of(config)
    return f"cidr:{folder}/milters" if name == "smtpd_milter_maps" else f"check_client_access cidr:{folder}/shared"


def shared_tables(config: Config, instance: Instance, line: Service) -> dict[str, str]:
    """File name to text of the tables of this wiring: the milters of each peer network, and the leave to pass.

    Raises PostfixError where the operator's own smtpd_milter_maps cannot be repeated for a network.
    """
    ours = (
        f"{{ unix:{PurePath(config.folders.sockets).name}/milter.sock, default_action=tempfail, connect_timeout=60s, "
        "content_timeout=60s }"
    )
    networks = {network: name for name, peer in config.peers.items() for network in peer.networks}
    ordered = sorted(networks, key=lambda n: (n.version, -n.prefixlen, int(n.network_address)))
    usual = _of_line(instance, line, "smtpd_milters")
    milters, access = [], []
    for network in ordered:
        own = _by_map(config, instance, line, network)
        others = ", ".join(list_items(usual if own is None else "" if own.upper() == "DISABLE" else own))
        milters.append(f"{network}\t{', '.join(filter(None, (ours, others)))}\n")
        access.append(f"{network}\tOK\n")
    why = "# Peers meet the gateway, and the milters that every other client meets.\n"
    leave = "# Peers are judged by the gateway, not by the rules for ordinary mail.\n"
    return {"milters": f"{_HEAD}{why}{''.join(milters)}", "shared": f"{_HEAD}{leave}{''.join(access)}"}


def _by_map(config: Config, instance: Instance, line: Service, network: IPNetwork) -> str | None:
    """What the operator's own table of milters says of this network; None where it says nothing."""
    for table in list_items(_of_line(instance, line, "smtpd_milter_maps")):
        if table == member_of(config, "smtpd_milter_maps"):
            continue
        if network.prefixlen != network.max_prefixlen:
            raise PostfixError(
                f"smtpd_milter_maps: {table} may say something else for each address of {network}: list the peer's "
                "addresses one by one in the YAML, or mm4 postfix wire --mode service"
            )
        found = instance.lookup(table, str(network.network_address))
        if found is not None:
            return found
    return None


def _of_line(instance: Instance, line: Service, name: str) -> str:
    """What a parameter is on this line, with the names in it replaced by their values: a table expands none."""
    value = line.value(name)
    if value is None:
        return instance.values(name).get(name, "")
    names = re.findall(r"\$[{(]?(\w+)[)}]?", value)
    found = instance.values(*names) if names else {}
    return re.sub(r"\$[{(]?(\w+)[)}]?", lambda match: found.get(match[1], ""), value)
