"""`--wait` of `mm4 send` and `mm4 report`: progress on a terminal, and what came of each recipient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from .moments import length
from .options import echo_rows

if TYPE_CHECKING:
    from ..compose import Outcome
    from ..gateway.config import Config

__all__ = ["as_json", "await_outcomes", "echo_outcomes", "wait_option", "wait_seconds"]

_UNANSWERED = 60
"""Seconds of `--wait` without a duration where no RES is due: Postfix takes no longer to take a message."""


def wait_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--wait [DURATION]`."""
    return click.option(
        "--wait", is_flag=False, flag_value="", metavar="[DURATION]", callback=length,
        help="Wait until every recipient's RES has come, and exit 1 unless all are Ok; at most DURATION (30s, 10m), "
        "or without one as long as their peers' ack.timeout.",
    )(command)  # fmt: skip


def wait_seconds(wait: int, config: Config, peers: Iterable[str]) -> int:
    """How long to wait for answers of these peers; `local` and those that are not asked for one give none."""
    asked = [config.peers[name].ack for name in peers if name in config.peers]
    longest = max((ack.timeout for ack in asked if ack.request), default=_UNANSWERED)
    return longest if wait < 0 else wait


def await_outcomes(look: Callable[[], tuple[Outcome, ...]], seconds: int) -> tuple[Outcome, ...]:
    """Wait, and show how far it is where standard error is a terminal. Ctrl-C ends the waiting, not the command."""
    from rich.console import Console  # noqa: PLC0415 - slow to load

    from ..compose import wait  # noqa: PLC0415 - the MIME library is slow to load

    seen: tuple[Outcome, ...] = ()
    console = Console(stderr=True)
    # Where it is no terminal rich would print a line.
    status = console.status("waiting for the RES") if console.is_terminal else None

    def progress(found: tuple[Outcome, ...]) -> None:
        nonlocal seen
        seen = found
        if status is not None:
            status.update(_progress(found))

    try:
        if status is not None:
            status.start()
        return wait(look, seconds, progress)
    except KeyboardInterrupt:
        return seen or look()
    finally:
        if status is not None:
            status.stop()


def _progress(found: Sequence[Outcome]) -> str:
    waiting = [outcome for outcome in found if not outcome.final]
    first = f", waiting for {waiting[0].recipient} ({waiting[0].peer or 'no peer yet'})" if waiting else ""
    return f"{len(found) - len(waiting)} of {len(found)} answered{first}"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """One recipient's object."""
    return {
        "recipient": outcome.recipient,
        "peer": outcome.peer,
        "state": outcome.state,
        "status": outcome.status,
        "final": outcome.final,
        "ok": outcome.ok,
    }


def echo_outcomes(found: Sequence[Outcome], identifier: str) -> None:
    """A line a recipient, for people, and where to read on if something is not well."""
    if found:
        echo_rows((o.recipient, o.peer or "", o.state or "unknown", _said(o)) for o in found)
    bad = sum(1 for outcome in found if not outcome.ok)
    if bad:
        click.echo(f"not Ok: {bad} of {len(found)}; mm4 trace {identifier} tells more", err=True)


def _said(outcome: Outcome) -> str:
    if outcome.state is None:
        return "not in the store"
    return outcome.status or ("" if outcome.final else "no RES in time")
