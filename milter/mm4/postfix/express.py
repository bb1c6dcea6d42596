"""The answer as it nearly always goes: read, submitted and noted in one turn of one thread.

Step by step each of the three would be a way to a thread and back, which costs more than the step. Whatever is not
usual is left to the responder, which does the same with patience: another kind of message, one that has been answered,
a submission that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from ..gateway.names import answer_envelope
from ..protocol.errors import StoreError, SubmissionError
from ..protocol.transaction import Direction, Message
from .attempts import STORE_SECONDS, SUBMIT_SECONDS, Store
from .submit import Submit

__all__ = ["Express", "Turn"]

T = TypeVar("T")


class Turns(Protocol):
    """What is needed of `mm4.postfix.submit.Submitter`."""

    async def within(self, work: Callable[[Submit], T]) -> T:
        """Run `work` in a thread in which it can submit."""


@dataclass(slots=True)
class Turn:
    """What one turn came to. `message` is None for an unknown token."""

    message: Message | None = None
    submitted: str | None = None
    """The id under which Postfix took the answer ("" where it names none); None where it was not submitted."""
    noted: bool = False
    failure: SubmissionError | None = None


class Express:
    """Serves tokens of messages with an answer that is due.

    `now` is the clock (aware, UTC); `seconds` bound a turn, `note_seconds` the wait for the store in it.
    """

    def __init__(
        self, store: Store, submitter: Turns, *, now: Callable[[], datetime], seconds: float = SUBMIT_SECONDS,
        note_seconds: float = STORE_SECONDS,
    ) -> None:  # fmt: skip
        self._store = store
        self._submitter = submitter
        self._now = now
        self._seconds = seconds
        self._note_seconds = note_seconds

    async def turn(self, token: str, ids: list[str], remember: Callable[[str, str], None]) -> Turn:
        """Read the message with this token, and where nothing speaks against it submit its answer and note that.

        `ids` are the queue ids under which it came; `remember` is told, in the thread, what was submitted. Raises
        StoreError, also where the turn takes too long: then the thread may still submit.
        """
        work = self._submitter.within(lambda submit: self._work(token, ids, submit, remember))
        try:
            async with asyncio.timeout(self._seconds):
                return await work
        except TimeoutError:
            raise StoreError(f"neither the store nor Postfix has answered within {self._seconds:g} s") from None

    def _work(self, token: str, ids: list[str], submit: Submit, remember: Callable[[str, str], None]) -> Turn:
        message = self._store.message(token)
        turn = Turn(message)
        answer = message.answer if message is not None else None
        if message is None or answer is None or not _usual(message, ids):
            return turn
        try:
            turn.submitted = submit(answer.mail_from, answer.rcpt_to, answer.message, answer_envelope(token))
        except SubmissionError as error:
            turn.failure = error
            return turn
        remember(token, turn.submitted)
        try:
            self._store.answered(token, self._now(), turn.submitted or None).result(self._note_seconds)
            turn.noted = True
        except (StoreError, FutureTimeoutError):
            pass  # the responder notes it, with patience
        return turn


def _usual(message: Message, ids: list[str]) -> bool:
    """Whether nothing is due but a RES to a peer's REQ, which waits for nobody and is not out."""
    return (
        message.direction is Direction.IN
        and message.split is None
        and message.reply_to is None
        and message.answered_at is None
        and not (ids and message.queue_id and message.queue_id not in ids)
    )
