"""`mm4 check`: is everything there that a message needs, and would anything swallow or change an ack?

Nothing is changed and no mail is sent. Each finding says what is wrong and the exact line that mends it. Findings
marked as warnings do not make the check fail.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..gateway.answers import written_fields
from ..gateway.config import Config
from ..gateway.entries import parse_next_hop
from ..gateway.names import RESPONDER_DOMAIN
from ..gateway.routes import EnumRoute, Http, HttpRoute, ReachRoute
from ..gateway.routing import Router
from ..lookup.mx import reachable
from ..protocol.dialect import Dialect, is_file
from ..protocol.errors import ConfigError, LookupUnavailable, PostfixError
from . import maps
from .finding import Finding
from .instance import Instance
from .lookups import RouteLookups, check_files
from .passwords import passwords
from .paused import paused_peers
from .probes import listeners
from .stored import stored
from .update import files

__all__ = ["Finding", "check", "hazards", "options"]

_IDENTITY = ("smtpd_tls_", "smtpd_sasl_", "smtpd_sender_restrictions", "smtpd_delay_reject",
             "smtpd_relay_restrictions")  # fmt: skip

# Settings that reach mail handed to sendmail, each with what it would do to an ack.
_SENDMAIL_HAZARDS = {
    "masquerade_domains": "rewrites sender addresses",
    "canonical_maps": "rewrites addresses",
    "sender_canonical_maps": "rewrites sender addresses",
    "recipient_canonical_maps": "rewrites recipient addresses",
    "header_checks": "may change or drop headers",
    "mime_header_checks": "may change or drop headers",
    "body_checks": "may refuse the message",
    "always_bcc": "sends a copy of every ack to somebody",
    "sender_bcc_maps": "may send copies of acks",
    "recipient_bcc_maps": "may send copies of acks",
    "content_filter": "takes acks through a filter",
    "non_smtpd_milters": "lets other milters change or refuse acks",
    "smtp_header_checks": "may change or drop headers",
}


def check(config: Config) -> list[Finding]:
    """Everything that can be looked at from here, in the order in which a message meets it."""
    return [*_peers(config), *_routes(config), *stored(config), *_sockets(config), *_postfix(config)]


def _peers(config: Config) -> Iterator[Finding]:
    router = Router(config)
    try:
        paused = paused_peers(config)
    except PostfixError as error:
        yield Finding("peers", False, str(error), "run mm4 check as root, or as the user of mm4 serve")
        paused = {}
    for name, at in paused.items():
        yield Finding(
            f"peers.{name}", False, f"paused by the operator since {at.isoformat(timespec='seconds')}: its mail waits "
            "in the queue", f"mm4 peer resume {name}", warning=True,
        )  # fmt: skip
    for name, peer in config.peers.items():
        dialect = router.dialect(name)
        yield from _dialect(config, name, dialect)
        rows = dialect.pdus["MM4_forward.REQ"]
        asks = any(r.field == "originator_system" and r.presence != "optional" for r in rows)
        if not asks and peer.system_address is None:
            yield Finding(
                f"peers.{name}", False,
                f"the dialect {dialect.name} has no X-Mms-Originator-System: a REQ without one is acknowledged to its "
                "Sender or MAIL FROM, or refused",
                f"peers.{name}.system_address: system@{peer.domains[0]}", warning=True,
            )  # fmt: skip
        host, _, literal = parse_next_hop(peer.next_hop)
        if not literal:
            yield _next_hop(name, host)


def _dialect(config: Config, name: str, dialect: Dialect) -> Iterator[Finding]:
    path = config.peers[name].dialect
    if is_file(path):
        yield Finding(f"peers.{name}.dialect", True, f"{path}: {dialect.name}, {dialect.title}")
    lacking = [
        dialect.fields[field].header
        for field in ("sender", "date")
        if field not in written_fields("MM4_forward.RES", dialect, config.peers[name])
    ]
    if lacking and config.submit == "sendmail":
        yield Finding(
            f"peers.{name}.dialect", False,
            f"a RES in the dialect {dialect.name} has no {' and no '.join(lacking)}, which Postfix's sendmail adds",
            "submit: smtp in the YAML takes the private line, which adds nothing", warning=True,
        )  # fmt: skip


def _next_hop(name: str, domain: str) -> Finding:
    try:
        if reachable(domain):
            return Finding(f"peers.{name}.next_hop", True, f"{domain} is in DNS")
        return Finding(
            f"peers.{name}.next_hop", False, f"{domain} has no MX and no address: mail for {name} would bounce",
            f'peers.{name}.next_hop: "[address]:port" skips the look-up',
        )  # fmt: skip
    except LookupUnavailable as error:
        return Finding(f"peers.{name}.next_hop", False, str(error), "see /etc/resolv.conf", warning=True)


def _routes(config: Config) -> Iterator[Finding]:
    """Files that routes name, and whether those whom they ask are there."""
    wrong = dict(check_files(config))
    lookups = RouteLookups(config)
    for i, route in enumerate(config.routes):
        if isinstance(route, ReachRoute):
            problem = wrong.get(f"routes.{i}.reach")
            text = problem or f"{route.reach} can be read"
            fix = "mend that line; mm4 serve keeps its old list until then"
            yield Finding(f"routes[{i}].reach", not problem, text, fix if problem else None)
        elif isinstance(route, EnumRoute):
            yield _there(f"routes[{i}].enum", f"{route.enum.zone} is served", lookups.zone(route.enum).probe)
        elif isinstance(route, HttpRoute):
            yield _there(f"routes[{i}].http", "takes connections", partial(_probe, lookups, route.http))


def _probe(lookups: RouteLookups, asked: Http) -> None:
    lookups.service(asked).probe()


def _there(name: str, text: str, ask: Callable[[], None]) -> Finding:
    try:
        ask()
    except LookupUnavailable as error:
        return Finding(name, False, str(error), "until it answers, numbers that come to this row get 451", warning=True)
    return Finding(name, True, text)


def _sockets(config: Config) -> Iterator[Finding]:
    folder = Path(config.folders.sockets)
    if not folder.is_dir():
        yield Finding("sockets", False, f"there is no folder {folder}", f"install -d -o mm4 {folder}")
        return
    for path, ask in listeners(config):
        try:
            ask(path)
            yield Finding(path.name, True, "answers")
        except OSError as error:
            yield Finding(path.name, False, f"{path} does not answer: {error}", "systemctl start mm4")


def _postfix(config: Config) -> Iterator[Finding]:
    instance = Instance(config.folders.postfix)
    # Without Postfix nothing below can be looked at: PostfixError, which is a matter of set-up.
    version = instance.version()
    yield Finding("postfix", version >= (3, 4), f"version {version[0]}.{version[1]}", "Postfix 3.4 or later")
    yield from _tables(config)
    yield from _outgoing(config)
    yield from _services(config, instance)
    yield from _identities(config, instance)
    yield from _addresses(config, instance)
    if config.submit == "sendmail":
        yield from hazards(instance)


def _tables(config: Config) -> Iterator[Finding]:
    """Tables, and the services of single peers, beside what the YAML says."""
    folder = maps.folder_of(config)
    try:
        stale = sorted(maps.stale(config, folder))
        lacking = files(config)
    except PostfixError as error:
        yield Finding("tables", False, str(error), "run mm4 check as root, or as the user of mm4 serve")
        return
    except ConfigError as error:
        yield Finding("tables", False, str(error), "mend the YAML")
        return
    if stale:
        yield Finding("tables", False, f"not as the YAML says: {', '.join(stale)} in {folder}", "mm4 postfix maps")
    else:
        yield Finding("tables", True, f"{folder} is as the YAML says")
    for name, file in lacking.items():
        if file.text is not None or file.lacking:
            text = "the service or the pace of a peer is not as the YAML says: its mail waits, or goes another way"
            yield Finding(name, False, text, "mm4 postfix maps")


def _outgoing(config: Config) -> Iterator[Finding]:
    """Addresses and files that the entries of peers name, and that have to be on this host."""
    try:
        passwords(config)
    except ConfigError as error:
        hidden = os.geteuid() != 0
        yield Finding("passwords", False, str(error), "run mm4 check as root" if hidden else "mend it", warning=hidden)
    for name, peer in config.peers.items():
        for source in peer.source:
            if not _has(source):
                yield Finding(
                    f"peers.{name}.source", False, f"{source} is no address of this host: mail for {name} waits",
                    f"ip address add {source} dev ..., or another source",
                )  # fmt: skip
        for key in ("ca", "certificate", "key"):
            path = getattr(peer.tls, key)
            if path and not Path(path).is_file():
                yield Finding(f"peers.{name}.tls.{key}", False, f"there is no file {path}", "mend the path")
        if peer.tls.ca and Path(peer.tls.ca).is_file() and not _open_to_all(Path(peer.tls.ca)):
            yield Finding(
                f"peers.{name}.tls.ca", False,
                f"Postfix cannot read {peer.tls.ca} as user postfix: mail for {name} waits",
                "chmod a+r the file, and a+x the folders above it",
            )  # fmt: skip
        if peer.login and peer.tls.level in ("none", "may"):
            yield Finding(
                f"peers.{name}.login", False, f"with tls: {peer.tls.level} a peer that offers no TLS gets mail without "
                "the login, or none", f"peers.{name}.tls: encrypt", warning=True,
            )  # fmt: skip


def _open_to_all(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o004) and all(folder.stat().st_mode & 0o001 for folder in path.parents)


def _has(address: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _services(config: Config, instance: Instance) -> Iterator[Finding]:
    """The lines of master.cf without which a message would not come in, or an ack not go out."""
    services = {line.split()[0]: line for line in instance.services() if line.strip()}
    wanted = [*map(str, config.service.listen), str(config.service.submit), "mm4-responder", "mm4-out"]
    deliveries = [to for local in config.local for to in local.deliveries]
    wanted += sorted({"mm4-local" if to.deliver_to else "mm4-maildir" for to in deliveries})
    fix = "mm4 postfix wire"
    for name in wanted:
        short = name.removeprefix("0.0.0.0:")
        found = name in services or short in services
        text = "is there" if found else "there is no such service"
        yield Finding(f"master.cf {name}", found, text, None if found else fix)


def _identities(config: Config, instance: Instance) -> Iterator[Finding]:
    """Without these files, and options of the MM4 line, a peer known by certificate or login would be a stranger."""
    tls = config.service.tls
    for key in ("certificate", "key", "ca") if tls else ():
        path = getattr(tls, key)
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as error:
            yield Finding(
                f"service.tls.{key}", False, f"{path} cannot be read: {error.strerror}",
                "put the PEM file there; where it is, run mm4 check as root",
            )  # fmt: skip
    if not any(peer.certificates or peer.logins for peer in config.peers.values()):
        return
    lines = iter(maps.master_lines(config, "service"))
    ours = itertools.takewhile(lambda line: not line.startswith(str(config.service.submit)), lines)
    wanted = {k: v for k, v in options(" ".join(ours)).items() if k.startswith(_IDENTITY)}
    given = [options(line) for line in instance.services() for at in config.service.listen if _named(line, str(at))]
    lacking = [f"-o {{ {k} = {v} }}" for k, v in wanted.items() if any(line.get(k) != v for line in given)]
    if lacking:
        yield Finding(
            "identity", False, f"{len(lacking)} options of the MM4 line in master.cf are not as the YAML says: peers "
            "with certificates or logins are refused, or others let in by Postfix", "write there: " + " ".join(lacking),
        )  # fmt: skip
    else:
        yield Finding("identity", True, "the MM4 line asks for certificates and logins as the YAML says")


def _named(line: str, listen: str) -> bool:
    return line.split(" ", 1)[0] in (listen, listen.removeprefix("0.0.0.0:"))


def options(line: str) -> dict[str, str]:
    """The -o options in a line of master.cf."""
    found = re.findall(r"-o\s+(?:\{\s*(\w+)\s*=\s*((?:\{[^}]*\}|[^{}])*?)\s*\}|(\w+)=(\S*))", line)
    return {name or plain: " ".join(value.split()) or bare for name, value, plain, bare in found}


def _addresses(config: Config, instance: Instance) -> Iterator[Finding]:
    """Our domain must be nobody's but the responder's, and no alias may take a token."""
    values = instance.values(
        "mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains", "virtual_alias_maps",
        "recipient_canonical_maps", "canonical_maps",
    )  # fmt: skip
    for local in config.local:
        for name in ("mydestination", "virtual_alias_domains", "virtual_mailbox_domains"):
            if local.domain in values.get(name, "").lower().replace(",", " ").split():
                yield Finding(
                    name, False, f"{local.domain} is served by this Postfix: bounces would not reach the responder",
                    f"take {local.domain} out of {name}",
                )  # fmt: skip
    token = f"{'0' * 32}@{RESPONDER_DOMAIN}"
    for name in ("virtual_alias_maps", "recipient_canonical_maps", "canonical_maps"):
        for table in values.get(name, "").replace(",", " ").split():
            if ":" not in table or "{" in table:
                continue
            try:
                found = instance.lookup(table, token)
            except PostfixError as error:
                yield Finding(name, False, str(error), "mend the table", warning=True)
                continue
            if found == token:
                break  # an identity row stands in front: what follows cannot take it
            if found is not None:
                yield Finding(
                    name, False, f"{table} sends the responder's address to {found}: acks would be lost",
                    f"put regexp:{maps.folder_of(config)}/keep first in {name}",
                )  # fmt: skip


def hazards(instance: Instance) -> Iterator[Finding]:
    """What the operator's own settings would do to an ack that is handed to sendmail."""
    values = instance.values(*_SENDMAIL_HAZARDS, "authorized_submit_users")
    users = values.get("authorized_submit_users", "static:anyone")
    if not any(user.startswith("static:") or user == "mm4" for user in users.replace(",", " ").split()):
        # As postmulti sets it for every instance that it makes.
        yield Finding(
            "authorized_submit_users", False, f"authorized_submit_users = {users} lets mm4 hand nothing to sendmail",
            "submit: smtp in the YAML takes the private line, for which this does not count",
        )  # fmt: skip
    touched = {name: values[name] for name in _SENDMAIL_HAZARDS if values.get(name)}
    for name, value in touched.items():
        yield Finding(
            name, False, f"{name} = {value} {_SENDMAIL_HAZARDS[name]} handed to sendmail",
            "submit: smtp in the YAML takes the private line, which none of this touches",
        )  # fmt: skip
    if not touched:
        yield Finding("sendmail", True, "no setting of Postfix touches what sendmail submits")
