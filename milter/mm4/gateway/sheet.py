"""One link in words: what the peer does with us and we with it, as it is effective, to lay beside the peer's document.

Pure: what the host adds (whether the peer is paused) is the caller's. No password is in the configuration, and of a
look-up's address only the host is shown, since the rest may hold a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .config import Config
from .outgoing import Tls
from .peer import Peer
from .routes import EnumRoute, HttpRoute, ReachRoute, named_peers
from .routing import Router
from .samples import originator_sample, recipient_sample
from .template import fill

__all__ = ["known_by", "sheet"]

Rows = Iterator[tuple[str, str]]


def sheet(config: Config, name: str) -> dict[str, list[tuple[str, str]]]:
    """Heading to rows of label and text for one peer. Raises KeyError for what is no peer."""
    router = Router(config)
    return {
        "what the peer has to know of us": list(_ours(config, router, name)),
        "what it may send": list(_inward(config.peers[name])),
        "how we send": list(_outward(config, router, name)),
        "answers": list(_answers(config.peers[name])),
        "routes that lead there": list(_routes(config, name)),
    }


def known_by(peer: Peer) -> str:
    """By what kinds of things the peer is known, in a few words."""
    networks = "".join(map(str, peer.networks)) if len(peer.networks) < 2 else f"{len(peer.networks)} networks"
    kinds = ((networks, peer.networks), ("certificate", peer.certificates), ("login", peer.logins))
    return " + ".join(word for word, there in kinds if there)


def _ours(config: Config, router: Router, name: str) -> Rows:
    yield "connect to", ", ".join(map(str, config.service.listen))
    tls = config.service.tls
    yield "TLS there", {None: "as main.cf says", "may": "offered", "encrypt": "asked for"}[tls.level if tls else None]
    for local in router.identities(name):
        yield "our MM4 domain", local.domain
        yield "our system address", f"{local.system_address} (their RES and reports)"
        yield "our numbers", ", ".join(prefix for _, prefixes, _ in local.served() for prefix in prefixes)
        sample = originator_sample(local)
        if sample:
            yield "recipients there", f"for example {sample.write(local.domain)}; the number counts, not the domain"


def _inward(peer: Peer) -> Rows:
    yield "networks", ", ".join(map(str, peer.networks)) or "any"
    for one in peer.certificates:
        parts = (f"CN {one.subject}" if one.subject else "", f"SHA-256 {one.fingerprint}" if one.fingerprint else "")
        yield "certificate", " and ".join(filter(None, parts))
    if peer.logins:
        yield "login", " or ".join(peer.logins)
    yield "its domains", ", ".join(peer.domains)
    strict = peer.identity == "strict"
    yield "other domains", "refused (identity: strict)" if strict else "let pass and logged (identity: log)"
    if peer.region:
        yield "national numbers", f"read in {peer.region}"
    yield "numbers of ours", f"from it: {', '.join(peer.own_numbers)}" if peer.own_numbers else "none, as senders"
    yield "numbers of others", "through us to other peers (transit: yes)" if peer.transit else "refused (transit: no)"
    yield "PDUs", ", ".join(peer.pdus) if peer.pdus else "all"
    yield "dialect", peer.dialect
    yield from _limits(peer)
    yield "a violation", f"on_violation: {peer.on_violation}"


def _limits(peer: Peer) -> Rows:
    limits = {
        "largest message": peer.max_size and f"{peer.max_size} bytes on the wire, both ways",
        "largest content": peer.max_content and f"{peer.max_content} bytes decoded, both ways",
        "recipients": peer.max_recipients and f"{peer.max_recipients} a message, both ways",
        "content": _section(peer.content.model_dump(exclude_defaults=True)),
        "rate": _section(peer.rate.model_dump(exclude_defaults=True)),
        "flood": peer.flood and _section(peer.flood.model_dump(exclude_none=True)),
    }
    yield from ((name, text) for name, text in limits.items() if text)


def _section(values: Mapping[str, object]) -> str:
    said = {key: _section(value) if isinstance(value, dict) else value for key, value in values.items()}
    return "; ".join(f"{key} {', '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in said.items())


def _outward(config: Config, router: Router, name: str) -> Rows:
    peer = config.peers[name]
    yield "next hop", peer.next_hop
    yield "from", " and ".join(peer.source) or "any address of this host"
    yield "TLS", _tls(peer.tls)
    if peer.login:
        yield "login", f"user {peer.login.user}, the password stands in {peer.login.password_file}"
    if peer.pace.concurrency or peer.pace.delay:
        yield "pace", _section({k: v for k, v in peer.pace.model_dump().items() if v})
    for local in router.identities(name):
        sample = originator_sample(local)
        sender = fill(peer.addresses.sender, sample, domain=local.domain) if sample else None
        yield "MAIL FROM", f"for example {sender}" if sender else f"by {peer.addresses.sender}"
    to = recipient_sample(config, name)
    written = fill(peer.addresses.recipient, to, domain=peer.write_domain) if to else None
    form = f"by {peer.addresses.recipient}, domain {peer.write_domain}"
    yield "RCPT TO", f"for example {written}" if written else form
    yield "From, To, Cc", f"by {peer.addresses.header}" if peer.addresses.header else "as our side wrote them"
    yield "dialect", f"{peer.dialect}, version {router.dialect(name).version}"
    if peer.headers.drop:
        yield "without headers", ", ".join(peer.headers.drop)
    if peer.headers.add:
        yield "with headers", "; ".join(f"{key}: {value}" for key, value in peer.headers.add.items())


def _tls(tls: Tls) -> str:
    words = {
        "none": "never",
        "may": "where it is offered, whoever it is",
        "encrypt": "always, whoever it is",
        "fingerprint": f"always, with the certificate or key {' or '.join(tls.fingerprints)}",
        "verify": f"always, certificate for {' or '.join(tls.match) or 'the host'}",
        "secure": f"always, certificate for {' or '.join(tls.match) or 'the next hop or a name below it'}",
    }
    said = f"{words[tls.level]} ({tls.level})"
    if tls.level in ("verify", "secure"):
        said += f", vouched for by {tls.ca or 'the authorities of main.cf'}"
    if tls.wrapper:
        said += ", from the first byte on"
    return said + (f", showing {tls.certificate}" if tls.certificate else "")


def _answers(peer: Peer) -> Rows:
    yield "its REQs", "answered by the gateway" if peer.answers == "gateway" else "answered by the MMSC (answers: mmsc)"
    last = f", at last {peer.system_address}" if peer.system_address else ""
    yield "our RES goes to", f"its originator system, Sender or MAIL FROM, in its domains{last}"
    yield "MAIL FROM of RES", "our system address" if peer.mail_from == "system" else "null"
    res = peer.res.model_dump(exclude_none=True)
    if res:
        yield "headers of RES", ", ".join(f"{key} {'yes' if value else 'no'}" for key, value in res.items())
    ack = peer.ack
    again = f", sent again {ack.retry} times without one" if ack.retry else ""
    yield "our REQs", f"ask for a RES, overdue after {ack.timeout} s{again}" if ack.request else "ask for no RES"
    yield "delivery reports", f"delivery_report: {peer.delivery_report}"


def _routes(config: Config, name: str) -> Rows:
    for i, route in enumerate(config.routes):
        # What a list or an answer may name without the file saying so.
        may = isinstance(route, ReachRoute | EnumRoute) or (isinstance(route, HttpRoute) and not route.http.peers)
        named = name in {peer for _, peer in named_peers(route)}
        if not named and not may:
            continue
        if isinstance(route, HttpRoute):
            said = f"http {re.split('[/:]', route.http.url.partition('//')[2])[0]}"
        elif isinstance(route, EnumRoute):
            said = f"enum {route.enum.zone}"
        else:
            values = route.model_dump(by_alias=True, exclude={"peer"}).items()
            said = ", ".join(f"{k} {_section(v) if isinstance(v, dict) else v}" for k, v in values if k != "default")
        yield f"routes[{i}]", (said or "default: all other numbers") + ("" if named else ", where it names this peer")
