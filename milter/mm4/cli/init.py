"""`mm4 init`: a first configuration from a few answers, and what the peer has to be told."""

from __future__ import annotations

from pathlib import Path

import click

from ..gateway.configfile import parse_config
from ..protocol.dialect import builtin_names
from ..protocol.errors import UsageError
from .main import DEFAULT_CONFIG

__all__ = ["init"]

_TEMPLATE = """\
# Written by mm4 init. Every key: mm4 config example
local:
  domain: {domain}
  system_address: system-user@{domain}
  region: {region}
  numbers: [{numbers}]
  clients: [{clients}]
{delivery}peers:
  {peer}:
    domains: [{peer_domain}]
    system_address: system@{peer_domain}
    networks: [{peer_network}]
    next_hop: "{peer_next_hop}"
    dialect: {dialect}
routes:
  - {{prefix: "+", peer: {peer}}}
service: {{listen: "{listen}"}}
"""


@click.command()
@click.option("--output", default=DEFAULT_CONFIG, show_default=True, metavar="FILE", help="Where to write it.")
@click.option("--domain", prompt="Your MM4 domain (for example mms.mnc001.mcc262.gprs)")
@click.option("--region", prompt="Country of your numbers (ISO 3166, for example DE)")
@click.option("--numbers", prompt="Prefixes of your numbers, parted by commas (for example +491511,+491512)")
@click.option("--clients", prompt="Networks of your MMSC and applications", default="127.0.0.1/32")
@click.option("--mmsc", prompt="Where inbound MMS go, host:port of your MMSC (empty: Maildirs)", default="",
              show_default=False)  # fmt: skip
@click.option("--listen", prompt="Address and port where peers connect to you", default="127.0.0.1:2525")
@click.option("--peer", prompt="Name of your peer", default="tyntec")
@click.option("--dialect", prompt="Its dialect", type=click.Choice(builtin_names()), default="tyntec")
@click.option("--peer-domain", prompt="Its MM4 domain")
@click.option("--peer-network", prompt="Address from which it connects (for example 192.0.2.10/32)")
@click.option("--peer-next-hop", prompt="Where to send for it (for example [192.0.2.10]:25)")
def init(
    output: str, domain: str, region: str, numbers: str, clients: str, mmsc: str, listen: str, peer: str, dialect: str,
    peer_domain: str, peer_network: str, peer_next_hop: str,
) -> int:  # fmt: skip
    """Ask a few questions, write a first configuration, and print what the peer has to be told.

    Every question is an option too. A file that exists is left alone.
    """
    host, colon, port = mmsc.rpartition(":")
    if mmsc and not (colon and port.isdigit()):
        raise UsageError(f"--mmsc {mmsc!r}: write host:port, for example 127.0.0.1:2600")
    delivery = f'  deliver_to: "{{number}}@mmsc.{domain}"\n  next_hop: "[{host.strip("[]")}]:{port}"\n' if mmsc else ""
    text = _TEMPLATE.format(
        domain=domain, region=region, numbers=", ".join(f'"{n.strip()}"' for n in numbers.split(",")), clients=clients,
        delivery=delivery, peer=peer, dialect=dialect, peer_domain=peer_domain, peer_network=peer_network,
        peer_next_hop=peer_next_hop, listen=listen,
    )  # fmt: skip
    parse_config(text, output)
    try:
        with Path(output).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{output} exists and stays as it is; choose another --output") from None
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}") from None
    click.echo(f"""Wrote {output}. Next: mm4 serve, mm4 postfix wire, mm4 check.

What {peer} has to be told:
  MM4 domain               {domain}
  system address           system-user@{domain} (where their MM4_forward.RES go)
  connect to               {listen}, SMTP
  we connect from          the address of this host
  our numbers              {numbers}
  recipients we write      +E164/TYPE=PLMN@{peer_domain}
  dialect we write         {dialect}
  what we need             their originator system address in {peer_domain} in every REQ that asks for an ack""")
    return 0
