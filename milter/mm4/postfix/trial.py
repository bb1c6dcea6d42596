"""`mm4 peer test`: the link to a peer opened as smtp(8) would with this YAML, up to RCPT and never a message.

Postfix has no way of trying a next hop without mail (`sendmail -bv` sends a report, and hides TLS and login), so what
it does is done here again: its order of addresses, its TLS levels, its rules for names in certificates, its choice of
SASL mechanisms. What main.cf says of names, addresses and authorities is asked of Postfix.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from ..gateway.config import Config
from ..gateway.entries import parse_next_hop
from ..gateway.names import strip_via
from ..gateway.routing import Router
from ..gateway.samples import originator_sample, recipient_sample
from ..gateway.template import fill
from ..lookup.mx import addresses, exchangers
from ..protocol.address import Address
from ..protocol.errors import ConfigError, LookupUnavailable, PostfixError
from . import certificate
from .conversation import Broken, Conversation, Reply
from .cures import ALERTS, ASK, CONNECTIONS, REFUSALS, UNWANTED
from .instance import Instance
from .passwords import read_password
from .paused import paused_peers
from .sasl import MECHANISMS, authenticate, without

__all__ = ["Step", "Trial"]

_SMTP = 25
_MOST_ADDRESSES = 5  # postconf(5), smtp_mx_address_limit
_LONGEST = 300
_ASKED = ("smtp_helo_name", "smtp_bind_address", "smtp_bind_address6", "smtp_tls_CAfile", "smtp_tls_CApath",
          "tls_append_default_CA", "inet_protocols")  # fmt: skip

@dataclass(frozen=True, slots=True)
class Step:
    """One step: `ok` is None for what could not be tried, and is no failure."""

    step: str
    ok: bool | None
    said: str
    address: str | None = None
    ms: int | None = None
    cure: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The object that `mm4 peer test --json` prints."""
        return asdict(self)


class _Over(Exception):
    """This address is done with; `settled` where Postfix would not try the next one either."""

    def __init__(self, settled: bool = False) -> None:
        self.settled = settled


class Trial:
    """One peer. `tell` gets every step as it comes; `seconds` is the longest wait for one answer."""

    def __init__(
        self, config: Config, name: str, to: Address | None, tell: Callable[[Step], None], seconds: float
    ) -> None:
        self._config = config
        self._name = name
        self._peer = config.peers[name]
        self._to = to
        self._tell = tell
        self._seconds = seconds
        self._failed = False
        self._words: dict[str, object] = {"hop": self._peer.next_hop}
        self._address: str | None = None
        self._port = parse_next_hop(self._peer.next_hop)[1] or _SMTP
        self._main: dict[str, str] = {}

    def run(self) -> bool:
        """Whether all went well. Never raises for what the other side does."""
        self._look_here()
        for host, address in self._places():
            self._address = address
            self._words |= {"address": address, "port": self._port}
            if self._reach(host, address):
                break
        return not self._failed

    # -- what is told

    def _note(
        self, step: str, ok: bool | None, said: str, *, cure: str | None = None, since: float | None = None
    ) -> None:
        self._failed = self._failed or ok is False
        ms = None if since is None else round((time.monotonic() - since) * 1000)
        cure = cure.format_map(self._words) if cure and ok is False else None
        self._tell(Step(step, ok, said[:_LONGEST], self._address, ms, cure))

    @contextlib.contextmanager
    def _breaking(self, step: str, cure: str | None = None) -> Iterator[float]:
        """What breaks the conversation within is a failure of `step`, and the end of this address."""
        since = time.monotonic()
        try:
            yield since
        except Broken as error:
            self._end(step, error, since, cure)

    def _end(self, step: str, error: Broken, since: float, cure: str | None) -> NoReturn:
        known = next((text for word, text in ALERTS.items() if (error.alert or "").endswith(word)), None)
        if step == "connect":
            known = CONNECTIONS.get(error.number or 0)
        self._note(step, False, str(error), since=since, cure=known or cure or ASK)
        raise _Over from None

    # -- where it goes

    def _look_here(self) -> None:
        try:
            if at := paused_peers(self._config).get(self._name):
                until = f"Postfix sends nothing until mm4 peer resume {self._name}"
                self._note("paused", None, f"since {at.isoformat(timespec='seconds')}: {until}")
        except PostfixError:
            pass  # not root: whether it is paused changes nothing in what is tried
        try:
            self._main = Instance(self._config.folders.postfix).values(*_ASKED)
        except PostfixError:
            folder = self._config.folders.postfix
            self._note("postfix", None, f"{folder}/main.cf cannot be asked: tried under our MM4 domain's name")
        self._words["helo"] = self._helo = self._main.get("smtp_helo_name") or self._config.home.domain

    def _places(self) -> list[tuple[str, str]]:
        """Host and address of what Postfix would try, in its order."""
        host, _, literal = parse_next_hop(self._peer.next_hop)
        protocols = self._main.get("inet_protocols", "all")
        versions = [v for v in (6, 4) if "all" in protocols or f"ipv{v}" in protocols]
        versions = [v for v in versions if not self._peer.families or v in self._peer.families]
        since = time.monotonic()
        found: list[tuple[str, str]] = []
        try:
            hosts = [host] if literal else exchangers(host, seconds=self._seconds)
            for one in hosts:
                found += [(one, address) for address in addresses(one, versions, seconds=self._seconds)]
        except LookupUnavailable as error:
            cure = "see /etc/resolv.conf, and whether the DNS of the peer's network (GRX) is asked"
            self._note("next hop", False, str(error), since=since, cure=cure)
            return []
        family = "" if len(versions) > 1 else f" of IPv{versions[0]}" if versions else ""
        if not found:
            cure = "compare next_hop {hop} with the peer's document; [address]:port needs no look-up"
            self._note("next hop", False, f"{host} has no address{family}", since=since, cure=cure)
        elif found[0] != (host, host):
            said = ", ".join(f"{one} {address}" for one, address in found)
            self._note("next hop", True, f"{self._peer.next_hop}: {said}", since=since)
        return found[:_MOST_ADDRESSES]

    # -- one address

    def _reach(self, host: str, address: str) -> bool:
        """Whether this address decides, so that no other is tried."""
        try:
            self._session(host, address, plain=False)
        except _Over as over:
            return over.settled
        except _Plainly:
            # As Postfix: where TLS is not asked for, what it could not do with TLS it does without.
            try:
                self._session(host, address, plain=True)
            except _Over as over:
                return over.settled
        return True

    def _session(self, host: str, address: str, *, plain: bool) -> None:
        version = 6 if ":" in address else 4
        source = next((s for s in self._peer.source if (":" in s) == (version == 6)), None)
        source = source or self._main.get("smtp_bind_address6" if version == 6 else "smtp_bind_address") or None
        self._words["source"] = source or "this host"
        with self._breaking("connect") as since:
            link = Conversation(address, self._port, source, self._seconds)
        try:
            self._words["source"] = link.here
            self._note("connect", True, f"{address} port {self._port} from {link.here}", since=since)
            self._talk(link, host, plain)
        finally:
            link.close()

    def _talk(self, link: Conversation, host: str, plain: bool) -> None:
        if self._peer.tls.wrapper:
            self._secure(link, host, "TLS")
        slow = "ask the peer whether it admits {source}"
        if not self._peer.tls.wrapper:
            slow += "; a port that speaks TLS from the first byte on takes tls.wrapper: yes"
        with self._breaking("greeting", slow) as since:
            reply = link.answer()
        self._judge("greeting", reply, since)
        offered = self._hello(link)
        if not self._peer.tls.wrapper and not plain and self._start_tls(link, host, offered):
            offered = self._hello(link)
        self._log_in(link, offered)
        self._envelope(link, offered)

    def _judge(self, step: str, reply: Reply, since: float, *, settled: bool = False) -> None:
        """The reply is the step's outcome. Raises _Over where it is a refusal."""
        cure = REFUSALS[step]
        if not reply.positive and reply.code < 500:
            cure = f"temporary, says the peer: Postfix tries again; where it stays, {cure}"
        self._note(step, reply.positive, str(reply), since=since, cure=cure)
        if not reply.positive:
            raise _Over(settled=settled and reply.code >= 500)

    def _hello(self, link: Conversation) -> dict[str, str]:
        """Names to parameters of what is offered."""
        # With TLS 1.3 a client whose certificate is not taken, or lacks, hears of it by the next answer.
        with self._breaking("EHLO", UNWANTED if link.tls else ASK) as since:
            reply = link.command(f"EHLO {self._helo}")
            if reply.code >= 500:
                reply = link.command(f"HELO {self._helo}")
        name = next(iter(reply.lines[0].split()), "")
        if reply.positive and self._port == _SMTP and name.lower() == self._helo.lower():
            # smtp_proto.c: on port 25, who has our name is taken for us, and the mail bounces.
            self._note(
                "EHLO", False, f"{reply.code} {name}: it has our own name, and Postfix takes it for itself (mail loops "
                "back to myself)", since=since, cure="next_hop {hop} leads to this host, or both have one myhostname",
            )  # fmt: skip
            raise _Over(settled=True)
        self._judge("EHLO", reply, since)
        words = (line.replace("=", " ", 1).split(maxsplit=1) for line in reply.lines[1:])
        return {found[0].upper(): " ".join(found[1:]) for found in words if found}

    # -- TLS

    def _start_tls(self, link: Conversation, host: str, offered: dict[str, str]) -> bool:
        """Whether TLS runs now."""
        level = self._peer.tls.level
        if level == "none":
            return False
        if "STARTTLS" not in offered:
            self._note(
                "STARTTLS", level == "may", f"not offered{', and not asked for' * (level == 'may')} (tls: {level})",
                cure="mail for the peer waits: ask the peer for TLS; a port that speaks it from the first byte on "
                "takes tls.wrapper: yes; in clear, tls: may",
            )  # fmt: skip
            if level != "may":
                raise _Over
            return False
        try:
            with self._breaking("STARTTLS", ASK) as since:
                reply = link.command("STARTTLS")
            if not reply.positive:
                self._judge("STARTTLS", reply, since)
            self._secure(link, host, "STARTTLS")
        except _Over:
            if level == "may":
                raise _Plainly from None
            raise
        return True

    def _secure(self, link: Conversation, host: str, step: str) -> None:
        tls = self._peer.tls
        context = self._context(step)
        named = context.verify_mode == ssl.CERT_REQUIRED
        since = time.monotonic()
        try:
            link.start_tls(context)
        except Broken as error:
            distrusted = named and error.alert == "CERTIFICATE"
            self._end("certificate" if distrusted else step, error, since, "ask the peer which TLS it speaks")
        connection = link.tls
        assert connection is not None
        der = connection.getpeercert(binary_form=True) or b""
        cipher = connection.cipher() or ("no cipher",)
        own = ", our certificate at hand" if tls.certificate else ""
        self._note(step, True, f"{connection.version()} {cipher[0]}{own}", since=since)
        whole, key = certificate.fingerprints(der) if der else ("none", None)
        if tls.level == "fingerprint":
            ok = bool({whole, key} & set(tls.fingerprints))
            said = f"SHA-256 {whole}" if ok else f"SHA-256 {whole}, of its key {key}: neither is in tls.fingerprints"
            cure = "ask the peer, on another way than this, whether it has a new certificate; then tls.fingerprints"
            self._note("certificate", ok, said, cure=cure)
        elif named:
            ok, said = self._named(connection.getpeercert() or {}, host)
            cure = "is it the right host? tls.match takes the name that the peer says it has"
            self._note("certificate", ok, said, cure=cure)
        else:
            ok = True
            self._note("certificate", None, f"not judged (tls: {tls.level}); SHA-256 {whole}")
        if not ok:
            raise _Over

    def _named(self, told: dict[str, Any], host: str) -> tuple[bool, str]:
        tls = self._peer.tls
        wanted = tls.match or (["nexthop", "dot-nexthop"] if tls.level == "secure" else ["hostname"])
        next_hop = parse_next_hop(self._peer.next_hop)[0]
        found = certificate.names(told)
        ok = certificate.fits(found, wanted, host=host, next_hop=next_hop)
        shown = ", ".join(found) or "no name"
        if ok:
            return True, f"{shown}, until {told.get('notAfter', 'no date')}"
        return False, f"it is for {shown}, and not for {' or '.join(wanted)} (next hop {next_hop}, host {host})"

    def _context(self, step: str) -> ssl.SSLContext:
        """What Postfix would do TLS with."""
        tls = self._peer.tls
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED if tls.level in ("verify", "secure") else ssl.CERT_NONE
        # Postfix's floor; what is better is chosen anyway.
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("HIGH:MEDIUM:@SECLEVEL=0")
        if context.verify_mode == ssl.CERT_REQUIRED:
            with self._ours(step, "tls.ca" if tls.ca else "smtp_tls_CAfile and smtp_tls_CApath in main.cf"):
                self._authorities(context, tls.ca)
        if tls.certificate:
            with self._ours(step, "tls.certificate and tls.key"):
                # An empty password: openssl would ask the terminal for one.
                context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
        return context

    def _authorities(self, context: ssl.SSLContext, own: str | None) -> None:
        if own:
            # Postfix's tafile: each certificate in it is an anchor, whoever signed it.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.load_verify_locations(cafile=own)
            return
        file, folder = self._main.get("smtp_tls_CAfile"), self._main.get("smtp_tls_CApath")
        if file or folder:
            context.load_verify_locations(cafile=file or None, capath=folder or None)
        if not self._main or self._main.get("tls_append_default_CA") == "yes":
            context.set_default_verify_paths()

    @contextlib.contextmanager
    def _ours(self, step: str, key: str) -> Iterator[None]:
        """A file of ours that cannot be used fails `step`, on whatever address."""
        try:
            yield
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            as_root = "; root reads it" if isinstance(error, PermissionError) else ""
            self._note(step, False, f"{key}: {why}", cure=f"mend the file that {key} names{as_root}")
            raise _Over(settled=True) from None

    # -- login and envelope

    def _log_in(self, link: Conversation, offered: dict[str, str]) -> None:
        login = self._peer.login
        if login is None:
            return
        if "AUTH" not in offered:
            said = f"not offered {'under TLS' if link.tls else 'in clear'}: Postfix goes on without the login"
            self._note("AUTH", False, said, cure="ask the peer for a login, or for TLS before it; or leave `login` out")
            return
        words = offered["AUTH"].upper().split()
        usable = MECHANISMS if link.tls else MECHANISMS[:1]
        mechanism = next((m for m in usable if m in words), None)
        if mechanism is None:
            clear = "" if link.tls else " in clear, where a password is not sent readably (tls: encrypt)"
            said = f"offered is {' '.join(words) or 'nothing'}; this test speaks {', '.join(usable)}{clear}"
            self._note("AUTH", False, said, cure="ask the peer for PLAIN under TLS")
            raise _Over
        try:
            password = read_password(self._name, login)
        except ConfigError as error:
            self._note("AUTH", False, str(error), cure="run mm4 peer test as root, or mend the file")
            raise _Over(settled=True) from None
        with self._breaking("AUTH", ASK) as since:
            reply = authenticate(link, mechanism, login.user, password)
        said = f"{mechanism} as {login.user}: {without(reply, password, login.user)}"
        self._note("AUTH", reply.code == 235, said, since=since, cure=REFUSALS["AUTH"])
        if reply.code != 235:
            raise _Over

    def _envelope(self, link: Conversation, offered: dict[str, str]) -> None:
        peer = self._peer
        limit, largest = offered.get("SIZE"), peer.max_size
        size = int(limit) if limit and limit.isascii() and limit.isdigit() else 0
        fits = largest is None or not size or size >= largest
        if "SIZE" in offered:
            compared = f"max_size is {largest}" if largest else "no max_size in the YAML"
            cure = f"max_size: {size}B, so that larger messages are refused at once; or ask the peer for more"
            self._note("SIZE", fits, f"it takes {size or 'any number of'} bytes; {compared}", cure=cure)
        else:
            self._note("SIZE", None, "not offered")
        ours = Router(self._config).identities(self._name)[0]
        sample = originator_sample(ours)
        sender = fill(peer.addresses.sender, sample, domain=ours.domain) if sample else ours.system_address
        parameter = f" SIZE={largest}" if largest and fits and "SIZE" in offered else ""
        self._say(link, "MAIL FROM", f"MAIL FROM:<{sender}>{parameter}")
        recipient = self._recipient()
        if recipient is not None:
            self._say(link, "RCPT TO", f"RCPT TO:<{recipient}>")
        self._leave(link)

    def _recipient(self) -> str | None:
        to = self._to or recipient_sample(self._config, self._name)
        if to is None:
            self._note("RCPT TO", None, "not tried: no row of routes shows a number that goes there; --to NUMBER")
            return None
        becomes = Router(self._config).outward(to, self._name, "test").becomes
        if becomes is None:
            said = "not tried: addresses.recipient needs the operator: --to NUMBER@mms.mncNNN.mccNNN.gprs"
            self._note("RCPT TO", None, said)
            return None
        return strip_via(becomes)

    def _say(self, link: Conversation, step: str, command: str) -> None:
        with self._breaking(step, ASK) as since:
            reply = link.command(command)
        cure = REFUSALS[step]
        if reply.code == 530:
            cure = "the peer wants TLS (tls: encrypt) or a login (`login`) first"
        elif reply.code == 552:
            cure = "the peer takes no message of max_size: set it to what the peer's document says"
        elif 400 <= reply.code < 500:
            cure = f"temporary, says the peer: Postfix tries again; where it stays, {cure}"
        self._note(step, reply.positive, f"{command.partition(':')[2]}: {reply}", since=since, cure=cure)
        if not reply.positive:
            self._leave(link)
            raise _Over(settled=True)

    def _leave(self, link: Conversation) -> None:
        with self._breaking("RSET", REFUSALS["RSET"]) as since:
            reply = link.command("RSET")
        self._judge("RSET", reply, since, settled=True)
        since = time.monotonic()
        try:
            said = str(link.command("QUIT"))
        except Broken as error:
            said = str(error)  # it may go as it likes: Postfix does not wait for the answer
        self._note("QUIT", True, said, since=since)


class _Plainly(Exception):
    """The same address again, without TLS."""
