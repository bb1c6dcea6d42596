"""The one tree of errors.

Every error knows three things: the SMTP reply that a client gets for it, the MM4 request status that a
RES would carry for it, and whether it is temporary. The peer is told the generic text of the reply; the
detail (`str(error)`) is for the log and for the operator. Our own failures are temporary: the peer keeps
the message and tries again.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ConfigError",
    "DialectError",
    "InternalError",
    "LookupUnavailable",
    "Mm4Error",
    "NoStoreError",
    "PostfixError",
    "ProtocolError",
    "ReachError",
    "Reply",
    "StoreError",
    "StoreRefused",
    "SubmissionError",
    "UsageError",
]


@dataclass(frozen=True, slots=True)
class Reply:
    """An SMTP reply: code, enhanced status code (RFC 3463) and one line of text."""

    code: int
    enhanced: str
    text: str

    @property
    def positive(self) -> bool:
        """Whether the client's command succeeded (2xx)."""
        return 200 <= self.code < 300

    @property
    def temporary(self) -> bool:
        """Whether the client shall try again (4xx)."""
        return 400 <= self.code < 500

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}"


class Mm4Error(Exception):
    """Root of the tree. Without anything more said it is a failure of ours, hence temporary."""

    reply = Reply(451, "4.3.0", "Local error, try again later")
    status: str | None = None
    """MM4 request status of a RES for this error; None where no RES may be sent."""
    exit_code = 70

    @property
    def temporary(self) -> bool:
        """Whether the same message may succeed later."""
        return self.reply.temporary


class ProtocolError(Mm4Error):
    """What a peer sent, or asked us to write, is no MM4."""

    reply = Reply(554, "5.6.0", "Malformed MM4 message")
    status = "Error-message-format-corrupt"
    exit_code = 1


class ConfigError(Mm4Error):
    """The configuration is wrong; the text holds one line a problem: file, line, key, what is expected."""

    exit_code = 78

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DialectError(ConfigError):
    """A dialect is wrong or missing; one line a problem, as in the configuration."""


class ReachError(ConfigError):
    """A reach list is wrong or missing; one line a problem, as in the configuration."""


class UsageError(Mm4Error):
    """The command was called with something it cannot use."""

    exit_code = 2


class StoreError(Mm4Error):
    """The store cannot be read or written now."""

    reply = Reply(451, "4.3.0", "Message store unavailable, try again later")


class NoStoreError(StoreError):
    """There is no store yet, or none that this version can use as it is: a matter of set-up."""

    exit_code = 78


class StoreRefused(StoreError):
    """What was asked for cannot be done with the store as it is now: a negative finding."""

    exit_code = 1


class LookupUnavailable(Mm4Error):
    """A question to another system (DNS, number portability) got no answer."""

    reply = Reply(451, "4.4.3", "Routing look-up unavailable, try again later")


class SubmissionError(Mm4Error):
    """Postfix did not take what we handed it; the message stays where it is and is tried again."""

    reply = Reply(451, "4.3.0", "Submission to Postfix failed, try again later")


class PostfixError(Mm4Error):
    """Postfix is missing, not running, or set up so that mm4 cannot work."""

    exit_code = 78


class InternalError(Mm4Error):
    """A fault of ours; never shown as a traceback, always temporary for the peer."""
