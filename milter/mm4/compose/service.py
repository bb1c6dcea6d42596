"""The MM4 service as a local client reaches it: an SMTP dialogue in which each recipient has its own answer."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
import smtplib
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..gateway.config import Config
from ..gateway.identity import Client
from ..gateway.localside import Local
from ..gateway.outcomes import STRANGER, TOO_MANY_SIDES
from ..gateway.routing import Router
from ..protocol.errors import Mm4Error, Reply, SubmissionError
from .addressee import envelope

__all__ = ["Refused", "Service", "Unreachable", "new_id"]

_SECONDS = 120.0
"""Longest wait for one reply."""
_UNSURE = "broke off at the end of the message and may have it all the same; look (mm4 trace) before you repeat it"
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})\s+")


class Refused(Mm4Error):
    """The gateway refused the message as a whole; `reply` is what it said, `temporary` whether to try again."""

    exit_code = 1

    def __init__(self, where: str, code: int, text: str) -> None:
        found = _ENHANCED.match(text)
        self.reply = Reply(code, found[1] if found else "", text[found.end() :] if found else text)
        hint = "; is this host's address in local.clients?" if STRANGER.text in text else ""
        super().__init__(f"the gateway refused the message at {where}: {code} {text}{hint}")


class Unreachable(SubmissionError):
    """The MM4 service is down, or broke off."""

    exit_code = 1


def new_id(domain: str) -> str:
    """A message or transaction id that nobody else has: 96 random bits, then the MM4 domain."""
    return f"{secrets.token_hex(12)}@{domain}"


@dataclass(frozen=True, slots=True)
class Service:
    """Where the MM4 service listens, and who we are to it: `domain` stands behind numbers in the envelope.

    `region` (ISO 3166) completes national numbers; `source` is the address to connect from, for a host with several.
    """

    host: str
    port: int
    domain: str
    region: str | None = None
    source: str | None = None
    encrypted: bool = False
    """Whether the service takes nothing in clear (`service.tls.level`)."""

    @classmethod
    def of(cls, config: Config, local: Local | None = None) -> Service:
        """The service of a gateway on this host, by its configuration, for the first or another identity of it."""
        listen, home = config.service.listen[0], local or config.home
        address = ipaddress.ip_address(listen.host)
        host = listen.host
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
        encrypted = config.service.tls is not None and config.service.tls.level == "encrypt"
        return cls(host, listen.port, home.domain, home.region, _source(config, home, host), encrypted)

    def submit(self, message: bytes, sender: str, recipients: Iterable[str]) -> dict[str, str]:
        """Hand a message over; gives the replies to the recipients that were refused, by the address given.

        Addresses are as in `compose`; one with a domain keeps it. The sender of a report is nobody, the empty text (RFC
        4356 2.1.3.3): only so may it go to an originator to whom no route leads. `message` has CRLF line ends. What
        the gateway takes only in a further transaction (recipients of too many operators) goes in one. An empty result
        means that Postfix has it for all. Raises UsageError for what is no address, Refused where the gateway refuses
        the whole message, Unreachable where the service is down or breaks off; after these two nobody gets the
        message, unless Unreachable says otherwise.
        """
        mail_from = envelope(sender, self.domain, self.region) if sender else ""
        waiting: dict[str, list[str]] = {}
        for text in recipients:
            waiting.setdefault(envelope(text, self.domain, self.region), []).append(text)
        refused: dict[str, str] = {}
        handed_over = False
        with self._session() as smtp:
            while waiting:
                try:
                    replies = self._transaction(smtp, mail_from, waiting, message)
                except (Refused, Unreachable) as error:
                    # What went in an earlier transaction is on its way: the rest is told recipient by recipient.
                    if not handed_over:
                        raise
                    replies = dict.fromkeys(waiting, str(error))
                later = {address for address, reply in replies.items() if reply.startswith(_AGAIN)}
                accepted = len(replies) < len(waiting)
                handed_over |= accepted
                for address, reply in replies.items():
                    if address not in later or not accepted:
                        refused |= dict.fromkeys(waiting[address], reply)
                waiting = {a: texts for a, texts in waiting.items() if a in later} if accepted else {}
        return refused

    @contextlib.contextmanager
    def _session(self) -> Iterator[smtplib.SMTP]:
        source = (self.source, 0) if self.source else None
        with self._told("cannot be reached"):
            # The name is for EHLO, which says the address: smtplib would ask DNS for a name.
            smtp = smtplib.SMTP(self.host, self.port, "localhost", timeout=_SECONDS, source_address=source)
        try:
            with self._told("broke off"):
                _expect(smtp.ehlo(_literal(smtp)), "EHLO")
                if self.encrypted:
                    _expect(smtp.starttls(context=_own_service()), "STARTTLS")
                    _expect(smtp.ehlo(_literal(smtp)), "EHLO")
            yield smtp
        finally:
            # Whatever it says now changes nothing.
            with contextlib.suppress(OSError):
                smtp.quit()
            smtp.close()

    def _transaction(
        self, smtp: smtplib.SMTP, mail_from: str, recipients: Iterable[str], message: bytes
    ) -> dict[str, str]:
        """One MAIL with its RCPTs, and the message where one was taken; the replies to those that were not."""
        refused: dict[str, str] = {}
        accepted = False
        with self._told("broke off before it had the message"):
            size = f" SIZE={len(message)}" if smtp.has_extn("size") else ""
            _expect(smtp.docmd(f"MAIL FROM:<{mail_from}>{size}"), "MAIL")
            for recipient in recipients:
                code, text = smtp.docmd(f"RCPT TO:<{recipient}>")
                if 200 <= code < 300:
                    accepted = True
                else:
                    refused[recipient] = f"{code} {_text(text)}"
            if not accepted:
                smtp.rset()
        if accepted:
            with self._told(_UNSURE):
                try:
                    _expect(smtp.data(message), "end of data")
                except smtplib.SMTPDataError as error:
                    raise Refused("DATA", error.smtp_code, _text(error.smtp_error)) from None
        return refused

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        host = f"[{self.host}]" if ":" in self.host else self.host
        try:
            yield
        except smtplib.SMTPResponseException as error:
            reply = f"{error.smtp_code} {_text(error.smtp_error)}"
            raise Unreachable(f"the MM4 service at {host}:{self.port} {what}: it says {reply}") from None
        except OSError as error:  # smtplib's own errors are OSErrors too
            raise Unreachable(f"the MM4 service at {host}:{self.port} {what}: {error.strerror or error}") from None


_AGAIN = f"{TOO_MANY_SIDES.code} {TOO_MANY_SIDES.enhanced} "
"""Both the gateway and Postfix say so of a recipient that has to come in another transaction (RFC 5321 4.5.3.1.10)."""


def _own_service() -> ssl.SSLContext:
    """TLS to the gateway on this host: its certificate is for peers, by whatever name they know it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _literal(smtp: smtplib.SMTP) -> str:
    """Our own address as EHLO names it, which passes where a host name would be looked up."""
    own = smtp.sock.getsockname()[0] if smtp.sock else "127.0.0.1"
    return f"[IPv6:{own}]" if ":" in own else f"[{own}]"


def _text(reply: bytes | str) -> str:
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    return " ".join(text.split())


def _expect(answer: tuple[int, bytes], where: str) -> None:
    code, reply = answer
    if not 200 <= code < 300:
        raise Refused(where, code, _text(reply))


def _source(config: Config, local: Local, host: str) -> str | None:
    """The address to connect from: to a service on loopback, one that is in the identity's clients."""
    if not ipaddress.ip_address(host).is_loopback:
        return None
    side = Router(config).side(Client(host))
    if side is not None and side.peer is None and side.faces(local):
        return None
    for network in local.clients:
        if network.is_loopback and network.num_addresses == 1 and network.version == ipaddress.ip_address(host).version:
            return str(network.network_address)
    return None
