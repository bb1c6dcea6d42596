"""`mm4 send`: compose an MMS and hand it to the MM4 service as a local client."""

from __future__ import annotations

import secrets
import smtplib
from datetime import UTC, datetime

import click
from email_validator import EmailNotValidError, validate_email

from ..gateway.config import Config
from ..gateway.routing import Router
from ..postfix.settings import read_config
from ..protocol.address import Kind, parse_address
from ..protocol.errors import Mm4Error, SubmissionError, UsageError
from .options import config_option, echo_json, json_option

__all__ = ["Refused", "send", "submit"]


class Refused(Mm4Error):
    """The gateway refused the message: a negative finding, not a wrong use of the command."""

    exit_code = 1


@click.command()
@config_option
@click.option("--from", "sender", required=True, metavar="NUMBER", help="Who sends: a number with its plus.")
@click.option("--to", "recipients", required=True, multiple=True, metavar="NUMBER", help="Who receives; again for more")
@click.option("--subject", metavar="TEXT")
@click.option("--text", metavar="TEXT", help="A text part.")
@click.option("--attach", "files", multiple=True, metavar="FILE", help="A picture or other file; again for more.")
@click.option("--delivery-report", is_flag=True, help="Ask for delivery reports.")
@click.option("--read-reply", is_flag=True, help="Ask for read reports.")
@json_option
def send(
    config_file: str, sender: str, recipients: tuple[str, ...], subject: str | None, text: str | None,
    files: tuple[str, ...], delivery_report: bool, read_reply: bool, as_json: bool,
) -> int:  # fmt: skip
    """Compose an MMS and submit it to the MM4 service (service.listen), from an address in local.clients.

    Prints the message id, by which `mm4 trace` finds it.
    """
    from ..compose import compose, part_of_file, text_part  # noqa: PLC0415 - the MIME library is slow to load

    config, _ = read_config(config_file)
    parts = [part_of_file(file) for file in files] + ([text_part(text)] if text is not None else [])
    if not parts:
        raise UsageError("nothing to send: give --text or --attach")
    message_id = f"{secrets.token_hex(12)}@{config.home.domain}"
    message = compose(
        sender, list(recipients), parts, message_id=message_id, now=datetime.now(UTC), subject=subject,
        region=config.home.region, delivery_report=delivery_report, read_reply=read_reply,
    )  # fmt: skip
    refused = submit(config, sender, recipients, message)
    if as_json:
        echo_json({"message_id": message_id, "refused": refused})
    else:
        click.echo(message_id)
        for address, reply in refused.items():
            click.echo(f"refused {address}: {reply}", err=True)
    return 1 if refused else 0


def submit(config: Config, sender: str, recipients: tuple[str, ...], message: bytes) -> dict[str, str]:
    """Hand a message to the MM4 service; what was refused, by recipient. Raises SubmissionError, Refused."""
    service = config.service.listen
    mail_from = _envelope(config, sender)
    refused: dict[str, str] = {}
    try:
        with smtplib.SMTP(service.host, service.port, timeout=60, source_address=_source(config)) as smtp:
            smtp.ehlo()
            _expect(smtp.docmd(f"MAIL FROM:<{mail_from}> SIZE={len(message)}"), "MAIL")
            accepted = 0
            for recipient in recipients:
                code, reply = smtp.docmd(f"RCPT TO:<{_envelope(config, recipient)}>")
                if 200 <= code < 300:
                    accepted += 1
                else:
                    refused[recipient] = f"{code} {reply.decode('utf-8', 'replace')}"
            if accepted:
                _expect(smtp.data(message), "end of data")
    except (OSError, smtplib.SMTPException) as error:
        raise SubmissionError(f"the MM4 service at {service} cannot be reached: {error}") from None
    return refused


def _expect(answer: tuple[int, bytes], where: str) -> None:
    code, reply = answer
    if not 200 <= code < 300:
        raise Refused(f"the gateway refused the message at {where}: {code} {reply.decode('utf-8', 'replace')}")


def _source(config: Config) -> tuple[str, int] | None:
    """The address to connect from: with the service on loopback, one that is in local.clients."""
    side = Router(config).side("127.0.0.1")
    if side is not None and side.peer is None:
        return None
    for network in config.home.clients:
        if network.is_loopback and network.num_addresses == 1:
            return str(network.network_address), 0
    return None


def _envelope(config: Config, text: str) -> str:
    """The envelope address of a number as a local client writes it; e-mail stays, if it is any."""
    address = parse_address(text, config.home.region)
    if address.kind is Kind.EMAIL:
        try:
            validate_email(address.value, check_deliverability=False, test_environment=True)
        except EmailNotValidError as error:
            raise UsageError(f"{text!r} is no address: {error}") from None
        return address.value
    if address.kind in (Kind.INVALID, Kind.SYSTEM):
        raise UsageError(f"{text!r} is no address: a number such as +447700900101, a short code or e-mail")
    return address.write(config.home.domain)
