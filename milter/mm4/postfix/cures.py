"""What mends a link that does not come about, step by step: what `mm4 peer test` says beside each failure.

In braces: {hop} is the peer's next_hop, {address}, {port} and {source} are those of the connection, {helo} is our name.
"""

from __future__ import annotations

import errno

__all__ = ["ALERTS", "ASK", "CONNECTIONS", "REFUSALS", "UNWANTED"]

ASK = "ask the peer for its log of this connection"
UNWANTED = "it may want a certificate of ours, or not take the one it got: tls.certificate; its log says which"

CONNECTIONS = {
    errno.ECONNREFUSED: "nobody listens there: compare next_hop {hop} with the peer's document, port included",
    errno.ETIMEDOUT: "no way there, or the peer's firewall drops us: is the VPN up (ip route get {address}), and does "
    "the peer admit {source}?",
    errno.EADDRNOTAVAIL: "source {source} is no address of this host: ip address add {source} dev ...",
    errno.ENETUNREACH: "this host has no route: ip route get {address}",
    errno.EHOSTUNREACH: "this host has no route: ip route get {address}",
}  # fmt: skip
"""What mends a connection that does not come about."""

ALERTS = {
    "WRONG_VERSION_NUMBER": "the port does not speak TLS there: leave tls.wrapper out, or take the port that does",
    "CERTIFICATE": "what vouches for the peer's certificate belongs into tls.ca (the peer tells it); what it says is "
    "in: openssl s_client -starttls smtp -connect {address}:{port}",
    "UNKNOWN_CA": "the peer does not know who vouches for our certificate: give it the chain in tls.certificate",
    "CERTIFICATE_REQUIRED": "the peer wants a certificate of ours: tls.certificate and tls.key",
    "HANDSHAKE_FAILURE": "no version or cipher in common, or the peer wants a certificate of ours: tls.certificate",
}
"""What mends TLS, by the end of the library's word."""

REFUSALS = {
    "greeting": "the peer does not take connections from {source}: tell it this address, or set `source`",
    "EHLO": "the peer does not take the name {helo}: myhostname in main.cf, or tell the peer",
    "STARTTLS": "the peer offers TLS and does not do it now: ask the peer",
    "AUTH": "compare user and password file of `login` with what the peer gave you",
    "MAIL FROM": "compare addresses.sender, `source` and `login` with what the peer expects of our senders",
    "RCPT TO": "compare addresses.recipient and recipient_domain with the peer's document; a number that it serves: "
    "--to NUMBER",
    "RSET": "the peer is no full SMTP server; Postfix does without",
}
"""What mends a step that the peer refuses."""
