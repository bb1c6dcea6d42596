"""Mail to local.domain that is none of ours: to the postmaster that the configuration names, else into a Maildir.

What is sent on has the null sender and a Delivered-To line, so it neither bounces nor comes round twice.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ..gateway.routing import Router
from .attempts import Attempts
from .lmtp import Envelope
from .maildir import store_in
from .mailpath import split_address

__all__ = ["Strays"]

_HEADER_BYTES = 64_000
"""Where a mark of ours is looked for: it stands in front of all that was there."""


class Strays:
    """Keeps or sends on what nobody claims. `folder` is the Maildir."""

    def __init__(self, attempts: Attempts, router: Router, folder: Path) -> None:
        self._attempts = attempts
        self._router = router
        self._folder = folder

    def update(self, router: Router) -> None:
        """Take over what a reload may change."""
        self._router = router

    async def take(
        self, envelope: Envelope, recipient: str, data: bytes, said: dict[str, object], deadline: float
    ) -> int:
        """Send the mail on, or keep it; gives the level of its log line, whose keys go into `said`.

        Raises SubmissionError or OSError at the deadline: then Postfix brings it again.
        """
        said |= {"from": envelope.mail_from, "to": recipient}
        local = self._router.local_of(split_address(recipient)[1])
        postmaster = local.postmaster_to if local is not None else None
        mark = f"Delivered-To: {recipient}".encode("utf-8", "replace")
        if postmaster is not None and not _marked(data, mark):
            mail = mark + b"\r\n" + data
            said["submitted"] = await self._attempts.retried(
                lambda: self._attempts.submit("", postmaster, mail), deadline
            )
            said |= {"why": "to the postmaster", "postmaster": postmaster}
            return logging.INFO
        path = await self._attempts.retried(
            lambda: self._attempts.asked(
                "the Maildir of unclaimed mail", store_in, self._folder, envelope.mail_from, recipient, data
            ),
            deadline,
        )
        said |= {"why": "unclaimed", "file": path.name}
        return logging.WARNING


def _marked(data: bytes, mark: bytes) -> bool:
    """Whether this very mail was sent on before."""
    head = data[:_HEADER_BYTES].replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    return mark.lower() in head.lower().split(b"\n")
