"""The smtp services of single peers, and the parts of main.cf and master.cf that belong to them.

All peers share mm4-out; only what Postfix cannot say by a table (source address, login, certificate, TLS from the first
byte on, pace) gives a peer a service of its own, `mm4-out-NAME`: the lines of mm4-out, and a few more. They stand
between two lines of main.cf and master.cf that say so; without those lines the file is the operator's, and is only
compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..gateway.config import Config
from ..gateway.peer import Peer
from .passwords import password_table

__all__ = ["BEGIN", "END", "File", "compared", "filled", "main_block", "master_block", "service_of"]

BEGIN = "# BEGIN mm4: `mm4 postfix maps` rewrites what stands from here to the line END mm4"
END = "# END mm4"

SHARED = "mm4-out"
_OWN = re.compile(r"mm4-out-[a-z][a-z0-9-]{0,29}")
_PARAMETER = re.compile(r"(mm4-out-[a-z][a-z0-9-]{0,29}?)_(destination_(concurrency_limit|rate_delay))\Z")
_PACES = ("destination_concurrency_limit", "destination_rate_delay")


def service_of(name: str, peer: Peer) -> str:
    """The smtp service that carries mail to this peer."""
    tls, pace = peer.tls, peer.pace
    own = peer.source or peer.login or tls.certificate or tls.wrapper or pace.concurrency or pace.delay
    return f"{SHARED}-{name}" if own else SHARED


def master_block(config: Config, shared: Iterable[str], folder: Path) -> list[str]:
    """The lines of master.cf for peers with a service of their own; `shared` are those of mm4-out, `folder` holds the
    tables.
    """
    first, *options = [line for line in shared if not line.lstrip().startswith("#")]
    lines: list[str] = []
    for name, peer in config.peers.items():
        service = service_of(name, peer)
        if service == SHARED:
            continue
        own = list(_options(name, peer, folder))
        named = {option for _, option, _ in own}
        lines += ["", f"# To {name} alone: as {SHARED}, and as its entry in the YAML says."]
        lines.append(first.replace(SHARED, service, 1))
        lines += [option for option in options if not named & set(re.findall(r"\w+", option.partition("=")[0]))]
        for reason, option, value in own:
            lines += [f"  # {reason}", f"  -o {{ {option} = {value} }}"]
    return lines


def _options(name: str, peer: Peer, folder: Path) -> Iterable[tuple[str, str, str]]:
    """Reason, parameter and value of what the peer's service has beside the shared one's lines."""
    for source in peer.source:
        parameter = "smtp_bind_address6" if ":" in source else "smtp_bind_address"
        yield "The address by which the peer knows us.", parameter, source
    if peer.source:
        (version, *more) = sorted(peer.families)
        protocols = "all" if more else f"ipv{version}"
        yield "From no other: of another IP version there is none.", "inet_protocols", protocols
        yield "While the host does not have the address, mail waits (Postfix 3.7).", "smtp_bind_address_enforce", "yes"
    if peer.tls.certificate:
        files = [peer.tls.key, peer.tls.certificate] if peer.tls.key else [peer.tls.certificate]
        yield "Our certificate, which this peer asks for.", "smtp_tls_chain_files", ", ".join(filter(None, files))
    if peer.tls.wrapper:
        yield "TLS from the first byte on.", "smtp_tls_wrappermode", "yes"
        yield "Postfix asks for it with that; the table says more.", "smtp_tls_security_level", "encrypt"
    if peer.login:
        yield "We log in.", "smtp_sasl_auth_enable", "yes"
        table = f"texthash:{folder / password_table(name)}"
        yield "Read by root, before smtp(8) becomes postfix.", "smtp_sasl_password_maps", table
        yield "The password is the peer's, not a sender's.", "smtp_sender_dependent_authentication", "no"
        yield "Nobody on the line reads it.", "smtp_sasl_security_options", "noanonymous, noplaintext"
        yield "Under TLS it may be sent as it is.", "smtp_sasl_tls_security_options", "noanonymous"


def main_block(config: Config) -> list[str]:
    """The lines of main.cf for the paces of peers, which the queue manager reads."""
    lines: list[str] = []
    for name, peer in config.peers.items():
        service = service_of(name, peer)
        if peer.pace.concurrency and not peer.pace.delay:
            lines += ["", f"# To {name} no more connections at a time than its entry in the YAML says."]
            lines.append(f"{service}_{_PACES[0]} = {peer.pace.concurrency}")
        if peer.pace.delay:
            lines += ["", f"# To {name} one message at a time, with a pause after each."]
            lines.append(f"{service}_{_PACES[1]} = {peer.pace.delay}s")
    return lines


def filled(lines: Iterable[str], block: Iterable[str]) -> list[str]:
    """`lines` with `block` between the two lines that mark its place; behind all where they are not there."""
    lines = list(lines)
    if BEGIN not in lines or END not in lines[lines.index(BEGIN) :]:
        return [*lines, *block]
    begin = lines.index(BEGIN)
    end = lines.index(END, begin)
    inner = list(block)
    return [*lines[: begin + 1], *inner, *([""] if inner else []), *lines[end:]]


@dataclass(frozen=True, slots=True)
class File:
    """main.cf or master.cf beside what single peers need there."""

    text: str | None = None
    """What the file has to be, where it is ours to change; None where it is right, or the operator's."""
    lacking: tuple[str, ...] = ()
    """Lines that the operator has to write into it, those that stand there otherwise included."""
    surplus: tuple[str, ...] = ()
    """What of ours stands there and is needed no more: services, parameters."""


def compared(text: str, block: list[str]) -> File:
    """What has to be done about a file that says `text`, so that it says `block`."""
    lines = text.splitlines()
    if BEGIN in lines and END in lines[lines.index(BEGIN) :]:
        wanted = "\n".join(filled(lines, block)) + "\n"
        return File(text=None if wanted == text else wanted)
    there, needed = _entries(lines), _entries(block)
    wrong = [key for key, value in needed.items() if there.get(key) != value]
    lacking: list[str] = []
    for paragraph in "\n".join(block).strip("\n").split("\n\n"):
        if any(key in wrong for key in _entries(paragraph.splitlines())):
            lacking += ["", *paragraph.splitlines()]
    surplus = tuple(key for key in there if key not in needed and (_OWN.fullmatch(key) or _PARAMETER.match(key)))
    return File(lacking=tuple(lacking[1:]), surplus=surplus)


def _entries(lines: Iterable[str]) -> Mapping[str, str]:
    """Service or parameter to what the file says of it, without comments, and blanks as one."""
    found: dict[str, str] = {}
    key = None
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line[0].isspace():
            key = re.split(r"[\s=]", line, maxsplit=1)[0]
            found[key] = ""
        if key is not None:
            found[key] = " ".join((found[key] + " " + line).split())
    return found
