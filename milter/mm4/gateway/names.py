"""The name space mm4.invalid, which lives inside this Postfix only.

`<token>@responder.mm4.invalid` makes Postfix tell us that it kept a message;
`<token>.split@responder.mm4.invalid` brings us a message of which a further side has to get its own;
`<localpart>@<domain>.via-<peer>.mm4.invalid` chooses a peer's next hop (one transport row a peer) and is stripped
again by the generic map of mm4-out.
Postfix refuses the whole space at RCPT, so nobody outside can use it.
"""

from __future__ import annotations

import hashlib
import re

__all__ = [
    "MAILDIR_DOMAIN",
    "PEER_NAME",
    "PRIVATE_DOMAIN",
    "RESPONDER_DOMAIN",
    "SIDE_HEADER",
    "TOKEN",
    "answer_envelope",
    "is_private",
    "public_name",
    "split_name",
    "split_token",
    "strip_via",
    "via",
    "via_peer",
]

PRIVATE_DOMAIN = "mm4.invalid"
RESPONDER_DOMAIN = "responder.mm4.invalid"
MAILDIR_DOMAIN = "maildir.mm4.invalid"

SIDE_HEADER = "X-Mm4-Side"
"""On a bounce on its way to the responder: whose client brought it, and its queue id, which no client knows before."""

PEER_NAME = re.compile(r"[a-z][a-z0-9-]{0,29}\Z")
TOKEN = re.compile(r"[0-9a-f]{32}\Z")
_SPLIT = ".split"
_VIA = re.compile(r"\.via-([a-z][a-z0-9-]{0,29})\.mm4\.invalid\Z", re.IGNORECASE)


def public_name(token: str, purpose: str) -> str:
    """A name that follows from a token and does not tell it: tokens stay inside, ids made of them go out."""
    return hashlib.sha256(f"{purpose}:{token}".encode()).hexdigest()[:32]


def answer_envelope(token: str) -> str:
    """The ENVID of the RES to the message with this token: its bounce tells itself from one of the message."""
    return f"{token}.answer"


def split_name(token: str) -> str:
    """The local part by which the responder gets a message that it has to send to a further side."""
    return f"{token}{_SPLIT}"


def split_token(local: str) -> str | None:
    """The token in a local part that `split_name` made, in lower case; None where it is no such."""
    token = local.lower().removesuffix(_SPLIT)
    return token if token != local.lower() and TOKEN.match(token) else None


def via(address: str, peer: str) -> str:
    """The address that carries `address` (with a domain) to `peer`'s next hop."""
    return f"{address}.via-{peer}.{PRIVATE_DOMAIN}"


def strip_via(address: str) -> str:
    """`address` as the peer sees it: without the next-hop suffix."""
    return _VIA.sub("", address)


def via_peer(address: str) -> str | None:
    """The peer to whose next hop `address` leads; None where it has no suffix of ours."""
    match = _VIA.search(address)
    return match[1].lower() if match else None


def is_private(address: str) -> bool:
    """Whether the address lies in mm4.invalid, which nobody outside may use."""
    domain = address.rpartition("@")[2].rstrip(".").lower()
    return domain == PRIVATE_DOMAIN or domain.endswith("." + PRIVATE_DOMAIN)
