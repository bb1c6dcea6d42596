"""What in an operator's Postfix would make a wiring fail, or lose mail: found before anything is touched.

Each obstacle names the parameter with its line, what would happen, and the line to change.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal, TypeAlias

from ..gateway.config import Config
from ..gateway.entries import Endpoint, domain_of
from ..gateway.names import RESPONDER_DOMAIN, via
from ..protocol.errors import PostfixError
from . import checks, maps
from .cftext import list_items
from .instance import Instance
from .maincf import settings_of
from .mastercf import Service, services_of
from .probes import cannot_bind
from .shared import shared_line

__all__ = ["Files", "Mode", "Obstacle", "obstacles"]

Mode: TypeAlias = Literal["service", "clients", "all"]

_SERVES = {
    "mydestination": "delivers it to accounts of this host",
    "virtual_alias_domains": "sends it to aliases",
    "virtual_mailbox_domains": "delivers it to mailboxes",
    "relay_domains": "takes mail for it from everybody",
}
_CATCH_ALL = ("regexp", "pcre", "static", "cidr")  # a hit there need not mean this domain
_ANY = "0.0.0.0"  # noqa: S104 - compared, not bound

# What applies to every client of a shared line, and an MM4 line of its own turns off.
_CLIENTS_HAZARDS = {
    "content_filter": "takes the recipients that mm4 adds to the filter, past their transports",
    "smtpd_proxy_filter": "hands peers' mail on before the milter has rewritten it",
    "always_bcc": "sends a copy of every MMS to somebody",
    "sender_bcc_maps": "may send copies of MMS to somebody",
    "recipient_bcc_maps": "may send copies of MMS to somebody",
    "masquerade_domains": "rewrites the senders of MMS",
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why this Postfix is not touched: where it stands, what it would do, and the line to change."""

    where: str
    text: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}\n  change: {self.fix}"


@dataclass(frozen=True, slots=True)
class Files:
    """main.cf and master.cf without what mm4 has put there, and the endpoints that mm4's lines listen on by now."""

    main: str
    master: str
    listening: frozenset[str] = frozenset()


def obstacles(config: Config, mode: Mode, instance: Instance, files: Files) -> list[Obstacle]:
    """Everything that stands in the way of this mode; none is what one hopes for. Raises PostfixError."""
    found = [*_sockets(config, instance), *_ports(config, mode, instance, files)]
    if mode != "all":
        looked = _Look(config, instance, files)
        found += [*looked.domains(), *looked.tokens(), *looked.services()]
        if config.submit == "sendmail":
            found += [
                Obstacle(looked.where(finding.check), f"{finding.text}", "submit: smtp in the YAML")
                for finding in checks.hazards(instance)
                if not finding.ok
            ]
    if mode == "clients":
        found += looked.shared()
    return found


def _sockets(config: Config, instance: Instance) -> Iterator[Obstacle]:
    queue = instance.values("queue_directory")["queue_directory"]
    if PurePath(config.folders.sockets).parent != PurePath(queue):
        yield Obstacle(
            "folders.sockets",
            f"{config.folders.sockets} does not lie in {queue}, the queue folder of {instance.folder}, where its "
            "processes look for it",
            f"folders: {{sockets: {queue}/{PurePath(config.folders.sockets).name}}} in the YAML",
        )


def _ports(config: Config, mode: Mode, instance: Instance, files: Files) -> Iterator[Obstacle]:
    lines = [(service, _endpoint(service)) for service in services_of(files.master) if service.type == "inet"]
    interfaces = set(list_items(instance.values("inet_interfaces")["inet_interfaces"]))
    wanted = [("service.listen", endpoint) for endpoint in config.service.listen]
    for key, endpoint in [*wanted, ("service.submit", config.service.submit)]:
        if str(endpoint) in files.listening:
            continue
        taken = next((line for line, at in lines if at and _same(at, endpoint, interfaces)), None)
        if taken is not None and mode != "all":
            yield Obstacle(
                f"{instance.folder}/master.cf:{taken.line}: {taken.name} {taken.type}",
                f"listens on {endpoint}, {key} of the YAML",
                f"another port in {key}; or an address of its own for ordinary mail, in the place of `{taken.name}` "
                f"`192.0.2.9:{taken.name.rpartition(':')[2]}`",
            )
        elif taken is None and (problem := cannot_bind(endpoint.host, endpoint.port)):
            yield Obstacle(
                f"{key} {endpoint}", f"{problem}",
                f"stop what has it (`ss -ltnp 'sport = :{endpoint.port}'` names it), or another address or port",
            )  # fmt: skip


def _endpoint(service: Service) -> tuple[str | None, int] | None:
    """Host (None: every address of inet_interfaces) and port of an inet service."""
    host, colon, port = service.name.rpartition(":")
    try:
        number = int(port) if port.isdigit() else socket.getservbyname(port, "tcp")
    except OSError:
        return None
    return (host.strip("[]") if colon and host else None), number


def _same(at: tuple[str | None, int], endpoint: Endpoint, interfaces: set[str]) -> bool:
    host, port = at
    if port != endpoint.port:
        return False
    if host is None:
        loopback = "loopback-only" in interfaces and endpoint.host in ("127.0.0.1", "::1")
        return bool(interfaces & {"all", endpoint.host, f"[{endpoint.host}]"}) or loopback or endpoint.host == _ANY
    return host in (endpoint.host, _ANY, "::") or endpoint.host in (_ANY, "::")


class _Look:
    """Looks at one operator's Postfix: its parameters as they hold, with macros expanded."""

    _NAMES = (
        *_SERVES, "parent_domain_matches_subdomains", "virtual_alias_maps", "canonical_maps",
        "recipient_canonical_maps", "masquerade_domains", "masquerade_classes", "transport_maps",
    )  # fmt: skip

    def __init__(self, config: Config, instance: Instance, files: Files) -> None:
        self.config = config
        self.instance = instance
        self.files = files
        self.settings = settings_of(files.main)
        self.values = instance.values(*self._NAMES)
        members = maps.members(config)
        self.own = {*members["transport_maps"], *members["virtual_alias_maps"]}

    def where(self, name: str) -> str:
        """The parameter as the operator wrote it, with its line."""
        setting = self.settings.get(name)
        if setting is None:
            return f"{name} (not in {self.instance.folder}/main.cf: Postfix's default)"
        return f"{self.instance.folder}/main.cf:{setting.line}: {name} = {' '.join(setting.value.split())}"

    def domains(self) -> Iterator[Obstacle]:
        """Our domain must be nobody's but the responder's; that of the local side nobody's of ordinary mail."""
        inward = {domain: "deliver_to" for local in self.config.local for domain in local.delivery_domains}
        wanted = {**inward, **{local.domain: "domain" for local in self.config.local}}
        for domain, key in wanted.items():
            for name, does in _SERVES.items():
                if name == "relay_domains" and key == "deliver_to":
                    continue
                if self._holds(name, domain):
                    why = (
                        "bounces would not come home to mm4"
                        if key == "domain"
                        else "its ordinary mail would go to the MMSC"
                    )
                    yield Obstacle(
                        self.where(name), f"{domain} (local.{key}) is served by this Postfix, which {does}: {why}",
                        f"take {domain} out of {name}, or another domain in local.{key}",
                    )  # fmt: skip
            for table in self._tables("transport_maps"):
                if table.partition(":")[0] not in _CATCH_ALL and self._lookup(table, domain) is not None:
                    yield Obstacle(
                        self.where("transport_maps"), f"{table} has a row for {domain} (local.{key}), which mm4's own "
                        "row would hide", f"take {domain} out of {table.partition(':')[2]}",
                    )  # fmt: skip

    def tokens(self) -> Iterator[Obstacle]:
        """No canonical map may change what comes home; aliases cannot, behind the table of mm4."""
        home = self.config.home
        peer = next(iter(self.config.peers), "peer")
        token = "0" * 32
        addresses = [
            f"{token}@{RESPONDER_DOMAIN}", f"{token}@{home.domain}", home.system_address,
            via(f"+447700900000/TYPE=PLMN@{home.domain}", peer),
        ]  # fmt: skip
        for name in ("canonical_maps", "recipient_canonical_maps"):
            for table in self._tables(name):
                for address in addresses:
                    found = self._rewritten(table, address)
                    if found is not None:
                        yield Obstacle(
                            self.where(name), f"{table} makes {found} of {address}: acks and bounces would be lost",
                            f"a row in {table.partition(':')[2]} that leaves @{domain_of(address)} as it is, or "
                            f"take {table} out of {name}",
                        )  # fmt: skip
                        break
        if "envelope_recipient" in list_items(self.values.get("masquerade_classes", "")):
            for masqueraded in list_items(self.values.get("masquerade_domains", "")):
                if home.domain.endswith(f".{masqueraded.lower()}"):
                    yield Obstacle(
                        self.where("masquerade_domains"), f"{masqueraded} is made of {home.domain} in recipients: "
                        "bounces would not come home", f"masquerade_domains = !{home.domain}, ...",
                    )  # fmt: skip

    def services(self) -> Iterator[Obstacle]:
        """Lines of ours that somebody put in by hand: they would be there twice."""
        text = "\n".join(maps.master_lines(self.config, "service"))
        ours = {(service.name, service.type) for service in services_of(text)}
        for service in services_of(self.files.master):
            if (service.name, service.type) in ours and service.name.startswith("mm4-"):
                yield Obstacle(
                    f"{self.instance.folder}/master.cf:{service.line}: {service.name} {service.type}",
                    "is there already, and not by mm4 postfix wire",
                    "take out the lines that `mm4 postfix show` printed; mm4 postfix wire writes them",
                )

    def shared(self) -> Iterator[Obstacle]:
        """What a line that peers share with ordinary mail cannot give them."""
        line = shared_line(services_of(self.files.master))
        if line is None:
            yield Obstacle(
                f"{self.instance.folder}/master.cf", "has no smtpd line for ordinary mail that peers could come to",
                "mm4 postfix wire --mode service",
            )  # fmt: skip
            return
        for name, does in _CLIENTS_HAZARDS.items():
            value = line.value(name)
            if value is None:
                value = self.instance.values(name).get(name, "")
            if value:
                yield Obstacle(self.where(name), f"on a shared line it {does}", "mm4 postfix wire --mode service")
        for service in services_of(self.files.master):
            options = service.value("receive_override_options")
            if options is None:
                options = self.instance.values("receive_override_options").get("receive_override_options", "")
            host = (_endpoint(service) or (None, 0))[0] if service.type == "inet" else None
            outside = host is None or not (host == "::1" or host.startswith("127."))
            if service.program == "smtpd" and outside and "no_milters" in list_items(options):
                yield Obstacle(
                    f"{self.instance.folder}/master.cf:{service.line}: {service.name} {service.type}",
                    "asks no milter (receive_override_options = no_milters): a peer could relay through it",
                    "mm4 postfix wire --mode service, or an address on loopback for this line",
                )
        for name, peer in self.config.peers.items():
            if peer.certificates or peer.logins:
                yield Obstacle(
                    f"peers.{name}", "is known by a certificate or a login: Postfix asks for its milters by client "
                    "address only", "mm4 postfix wire --mode service",
                )  # fmt: skip
            if peer.delivery_report == "on_delivery":
                yield Obstacle(
                    f"peers.{name}.delivery_report", "on_delivery needs Postfix's report of success, which the "
                    "command filter of an MM4 line asks for",
                    "delivery_report: on_report for this peer, or mm4 postfix wire --mode service",
                )  # fmt: skip
        deliveries = [to.deliver_to for local in self.config.local for to in local.deliveries if to.deliver_to]
        for deliver_to in deliveries:
            address = deliver_to.replace("{number}", "+447700900000")
            for table in self._tables("virtual_alias_maps"):
                found = self._rewritten(table, address)
                if found is not None:
                    yield Obstacle(
                        self.where("virtual_alias_maps"), f"on a shared line {table} makes {found} of {address}",
                        f"a row in {table.partition(':')[2]} that leaves @{domain_of(address)} as it is",
                    )  # fmt: skip

    def _tables(self, name: str) -> list[str]:
        """The operator's own tables in a list, without the proxy that reads them for Postfix's processes."""
        items = list_items(self.values.get(name, ""))
        return [item.removeprefix("proxy:") for item in items if ":" in item and item not in self.own]

    def _lookup(self, table: str, key: str) -> str | None:
        try:
            return self.instance.lookup(table, key)
        except PostfixError:
            return None  # a server that is away now, a table not made yet: `mm4 check` names it

    def _rewritten(self, table: str, address: str) -> str | None:
        """What the table makes of an address, by the keys that Postfix asks for; None where it leaves it."""
        for key in (address, f"@{domain_of(address)}"):
            found = self._lookup(table, key)
            if found is not None:
                kept = found.lower() in (address.lower(), f"@{domain_of(address)}")
                return None if kept else found
        return None

    def _holds(self, name: str, domain: str) -> bool:
        parents = name in list_items(self.values.get("parent_domain_matches_subdomains", ""))
        for item in list_items(self.values.get(name, "")):
            pattern, negative = item.removeprefix("!"), item.startswith("!")
            if pattern in self.own:
                continue
            if pattern.startswith("/"):
                found = any(self._fits(word, domain, parents) for word in _words_of(Path(pattern)))
            elif ":" in pattern:
                found = self._lookup(pattern.removeprefix("proxy:"), domain) is not None
            else:
                found = self._fits(pattern, domain, parents)
            if found:
                return not negative
        return False

    @staticmethod
    def _fits(pattern: str, domain: str, parents: bool) -> bool:
        pattern = pattern.lower()
        return domain == pattern or (pattern.startswith(".") and domain.endswith(pattern)) or (
            parents and domain.endswith(f".{pattern}")
        )


def _words_of(path: Path) -> list[str]:
    try:
        return list_items("\n".join(line.partition("#")[0] for line in path.read_text("utf-8", "replace").splitlines()))
    except OSError:
        return []
