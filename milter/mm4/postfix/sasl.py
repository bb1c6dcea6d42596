"""SMTP AUTH of a client (RFC 4954, 4616, 2195), in the mechanisms that peers offer."""

from __future__ import annotations

import base64
import hmac

from .conversation import Broken, Conversation, Reply

__all__ = ["MECHANISMS", "authenticate", "without"]

MECHANISMS = ("CRAM-MD5", "PLAIN", "LOGIN")
"""The best first; only the first may be used in clear."""


def authenticate(link: Conversation, mechanism: str, user: str, password: str) -> Reply:
    """Log in, and hear the last answer: 235 where it is done. Raises Broken."""
    name, secret = (text.encode("utf-8", "surrogateescape") for text in (user, password))
    if mechanism == "PLAIN":
        return link.command(f"AUTH PLAIN {_base64(_plain(name, secret))}")
    reply = link.command(f"AUTH {mechanism}")
    if reply.code != 334:
        return reply
    if mechanism == "LOGIN":
        reply = link.command(_base64(name))
        return link.command(_base64(secret)) if reply.code == 334 else reply
    try:
        challenge = base64.b64decode(reply.lines[0], validate=True)
        digest = hmac.new(secret, challenge, "md5").hexdigest()
    except ValueError as error:  # no base64; or a host that forbids MD5
        raise Broken(f"CRAM-MD5: {error}") from None
    return link.command(_base64(name + b" " + digest.encode()))


def _plain(name: bytes, secret: bytes) -> bytes:
    return b"\0" + name + b"\0" + secret


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def without(reply: Reply, password: str, user: str) -> Reply:
    """The reply, in which a strange server may have sent back what it got."""
    secret, name = (text.encode("utf-8", "surrogateescape") for text in (password, user))
    hidden = (password, _base64(secret), _base64(_plain(name, secret)))
    lines = []
    for line in reply.lines:
        for text in sorted(hidden, key=len, reverse=True):  # one may lie within another
            line = line.replace(text, "***")  # noqa: PLW2901 - one after the other
        lines.append(line)
    return Reply(reply.code, tuple(lines))
