"""`mm4 send`: compose an MMS and hand it to the MM4 service as a local client."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..gateway.config import Config
from ..gateway.identities import identity_of
from ..gateway.routing import LOCAL, Router
from ..postfix.lookups import RouteLookups
from ..postfix.settings import read_config
from ..protocol.address import parse_address
from ..protocol.errors import LookupUnavailable, StoreError, UsageError
from .moments import expiry as read_expiry
from .options import config_option, echo_json, json_option, store_of
from .waiting import as_json as outcome_json
from .waiting import await_outcomes, echo_outcomes, wait_option, wait_seconds

if TYPE_CHECKING:
    from ..compose import Outcome, Part

__all__ = ["send"]

_CLASSES = ["personal", "advertisement", "informational", "auto"]


def _choice(*values: str) -> click.Choice[str]:
    return click.Choice(values, case_sensitive=False)


@click.command()
@config_option
@click.option("--from", "sender", required=True, metavar="NUMBER", help="Who sends: a number with its plus.")
@click.option("--to", "recipients", multiple=True, metavar="NUMBER", help="Who receives; again for more.")
@click.option("--to-file", metavar="FILE", help="Who receives, one a line, # begins a comment; - is standard input.")
@click.option("--subject", metavar="TEXT")
@click.option("--text", "texts", multiple=True, metavar="TEXT",
              help="A text; - is standard input. Again for more: each stands with one --attach, in order.")  # fmt: skip
@click.option("--attach", "files", multiple=True, metavar="FILE", help="A picture or other file; again for more.")
@click.option("--smil", "smil_file", metavar="FILE",
              help="The presentation, which names attachments as cid:NAME or NAME, the text as text.txt. Left out: "
              "one slide for each picture with its text.")  # fmt: skip
@click.option("--expiry", metavar="WHEN", callback=read_expiry,
              help="How long it may be delivered: 7d, seconds, or a date.")  # fmt: skip
@click.option("--priority", type=_choice("low", "normal", "high"), default="normal", show_default=True,
              help="How urgent it is.")  # fmt: skip
@click.option("--class", "message_class", type=_choice(*_CLASSES), default="personal", show_default=True,
              help="What kind of message it is.")  # fmt: skip
@click.option("--visibility", type=_choice("show", "hide"), default="show", show_default=True,
              help="Whether the recipient may see who sent it.")  # fmt: skip
@click.option("--delivery-report", is_flag=True, help="Ask for delivery reports.")
@click.option("--read-reply", is_flag=True, help="Ask for read reports.")
@wait_option
@json_option
def send(
    config_file: str, sender: str, recipients: tuple[str, ...], to_file: str | None, subject: str | None,
    texts: tuple[str, ...], files: tuple[str, ...], smil_file: str | None, expiry: timedelta | datetime | None,
    priority: str, message_class: str, visibility: str, delivery_report: bool, read_reply: bool, wait: int | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Compose an MMS and submit it to the MM4 service (service.listen), from an address in local.clients.

    Prints the message id, by which `mm4 trace` finds it. Exit 1 where a recipient or the message is refused, the
    service is down, or, with --wait, a RES is an error, a recipient bounced, or one got no RES in time.
    """
    from ..compose import Service, compose, new_id, outcomes  # noqa: PLC0415 - the MIME library is slow to load

    config, _ = read_config(config_file)
    region = config.home.region
    if to_file == "-" and "-" in texts:
        raise UsageError("--to-file and --text both read standard input; give one of them a file or the words")
    if texts.count("-") > 1:
        raise UsageError("--text - reads standard input once")
    numbers = [*recipients, *(_numbers(to_file, region) if to_file is not None else ())]
    if not numbers:
        raise UsageError("no recipient: give --to or --to-file")
    parts = list(_parts(texts, files))
    if not parts:
        raise UsageError("nothing to send: give --text or --attach")
    local = identity_of(sender, Router(config))
    message_id = new_id(local.domain)
    message = compose(
        sender, numbers, parts, message_id=message_id, now=datetime.now(UTC), subject=subject, region=region,
        delivery_report=delivery_report, read_reply=read_reply, expiry=expiry, priority=priority,
        message_class=message_class, visibility=visibility,
        smil=None if smil_file is None else _text_of(smil_file),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        # Before anything is sent: a store that cannot be read is told while there is nothing to lose.
        store = stack.enter_context(store_of(config.store)) if wait is not None else None
        refused = Service.of(config, local).submit(message, sender, numbers)
        for address, reply in refused.items():
            click.echo(f"refused {address}: {reply}", err=True)
        sent = [number for number in dict.fromkeys(numbers) if number not in refused]
        if sent and not as_json:
            click.echo(message_id)
        found: tuple[Outcome, ...] = ()
        try:
            if store is not None and sent:
                seconds = wait_seconds(wait or 0, config, _peers(config, sent))
                found = await_outcomes(lambda: outcomes(store, message_id, sent, region), seconds)
        except StoreError:
            if as_json:
                # The id is all that leads back to what was sent.
                echo_json({"message_id": message_id, "refused": refused})
            raise
    if as_json:
        answer: dict[str, Any] = {"message_id": message_id, "refused": refused}
        echo_json(answer if store is None else answer | {"recipients": [outcome_json(o) for o in found]})
    else:
        echo_outcomes(found, message_id)
    return 1 if refused or not all(outcome.ok for outcome in found) else 0


def _peers(config: Config, numbers: list[str]) -> set[str]:
    """The sides that these numbers go to; every peer where a look-up that fails now keeps that from being known."""
    router, lookups = Router(config), RouteLookups(config)
    try:
        routes = [router.route(parse_address(number, config.home.region), lookups=lookups) for number in numbers]
    except LookupUnavailable:
        return {LOCAL, *config.peers}
    return {route.side for route in routes if route is not None}


def _parts(texts: tuple[str, ...], files: tuple[str, ...]) -> Iterator[Part]:
    """A text and a file by turns, so that they share a slide."""
    from ..compose import part_of_file, text_part  # noqa: PLC0415 - the MIME library is slow to load

    for text, file in zip_longest(texts, files):
        if text is not None:
            yield text_part(_text_of("-") if text == "-" else text)
        if file is not None:
            yield part_of_file(file)


def _text_of(file: str) -> str:
    """A text file, or standard input for `-`."""
    name = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: is not UTF-8 (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if not text.strip():
        raise UsageError(f"{name}: is empty")
    return text


def _numbers(file: str, region: str | None) -> Iterator[str]:
    """The recipients in a file. Raises UsageError that names the line."""
    from ..compose.addressee import addressee  # noqa: PLC0415 - email-validator is slow to load

    name = "standard input" if file == "-" else file
    found = False
    for count, line in enumerate(_text_of(file).split("\n"), 1):
        # A # may stand in an e-mail address: a comment begins the line, or stands behind a blank.
        words = line.split()
        comment = next((i for i, word in enumerate(words) if word.startswith("#")), len(words))
        text = " ".join(words[:comment])
        if not text:
            continue
        found = True
        try:
            addressee(text, region)
        except UsageError as error:
            raise UsageError(f"{name}:{count}: {error}") from None
        yield text
    if not found:
        raise UsageError(f"{name}: names no recipient; write one number a line")
