"""`mm4 lint`: what PDUs break, why a peer would refuse or lose them, and what mends it."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import click
import phonenumbers

from ..postfix.settings import read_dialect
from ..protocol.dialect import Dialect, builtin, builtin_names, is_file
from ..protocol.errors import PostfixError, UsageError
from ..protocol.mailfile import PIECE, Mail, is_queue_file, mails
from ..protocol.pdu import Pdu, Problem, Severity
from ..protocol.reader import read_message
from .options import echo_json, json_option, printable

__all__ = ["lint", "read_bytes"]

ALL = "all"
_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", "advice": "cyan"}


def _region(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and value.upper() not in phonenumbers.SUPPORTED_REGIONS:
        raise click.BadParameter(f"{value!r} is no ISO 3166 country with a numbering plan, for example DE")
    return value and value.upper()


def _dialects(value: str) -> list[Dialect]:
    """The dialects that `--dialect` names: a built-in one, a file's, or all built-in ones. Raises DialectError."""
    if value == ALL:
        return [builtin(name) for name in builtin_names()]
    if value in builtin_names() or is_file(value):
        return [read_dialect(value)]
    raise click.BadParameter(
        f"there is no dialect {value!r}; there are: {', '.join([*builtin_names(), ALL])}, or the path of a .yaml file",
        param_hint="--dialect",
    )


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--dialect", default="3gpp", show_default=True, metavar="NAME|FILE|all",
              help=f"Whose rules: {', '.join(builtin_names())}, a dialect file's, or all in turn.")  # fmt: skip
@click.option(
    "--region", metavar="CC", callback=_region, help="Country in which national numbers are read, for example DE."
)
@json_option
def lint(files: tuple[str, ...], dialect: str, region: str | None, as_json: bool) -> int:
    """Read messages and say what they break, where that is written, and what mends it.

    A FILE is a message, an mbox, a queue file of Postfix, or what postcat prints of one; - is standard input.
    Exit 1 if any message is not valid MM4, 2 if a file cannot be read; the others are read all the same.
    """
    dialects = _dialects(dialect)
    tally = _Tally([d.name for d in dialects])
    for name in files:
        try:
            for mail in _mails(name):
                pdus = [read_message(mail.header, tables, region, mail.first_line) for tables in dialects]
                tally.add(pdus)
                if as_json:
                    for pdu in pdus:
                        echo_json(pdu.as_json(name, mail.number))
                else:
                    click.echo("\n".join(_report(name, mail, pdus)))
        except (UsageError, PostfixError) as error:
            tally.unreadable += 1
            click.echo(f"mm4: {error}", err=True)
    if not as_json and (tally.read > 1 or (tally.read and tally.unreadable)):
        click.echo("\n".join(tally.lines()))
    return 2 if tally.unreadable else 1 if any(tally.invalid.values()) else 0


@dataclass
class _Tally:
    """How many were read, and how many of them are invalid by each dialect."""

    dialects: Sequence[str]
    read: int = 0
    unreadable: int = 0
    invalid: dict[str, int] = field(default_factory=dict)

    def add(self, pdus: Sequence[Pdu]) -> None:
        self.read += 1
        for pdu in pdus:
            self.invalid[pdu.dialect] = self.invalid.get(pdu.dialect, 0) + (not pdu.valid)

    def lines(self) -> Iterator[str]:
        unreadable = f", {_count(self.unreadable, 'file')} not readable" if self.unreadable else ""
        for name in self.dialects:
            invalid = self.invalid.get(name, 0)
            by = f" by {name}" if len(self.dialects) > 1 else ""
            yield f"{self.read} read, {self.read - invalid} valid, {invalid} invalid{by}{unreadable}"


# -- files


def read_bytes(name: str) -> bytes:
    """A file whole, or standard input for -. Raises UsageError."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None


def _mails(name: str) -> Iterator[Mail]:
    """The mails of a file, or of standard input for -. Raises UsageError, PostfixError."""
    try:
        if name == "-":
            yield from _mails_of(name, sys.stdin.buffer)
            # A program that pipes into us may take it ill that nobody reads its last lines.
            while sys.stdin.buffer.read(PIECE):
                pass
        else:
            with open(name, "rb") as file:
                yield from _mails_of(name, file)
    except IsADirectoryError:
        raise UsageError(f"{name}: Is a directory: name the files in it, for example {name.rstrip('/')}/*") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror or error}") from None


def _mails_of(name: str, file: BinaryIO) -> Iterator[Mail]:
    first = file.readline(PIECE)
    if not is_queue_file(first):
        return mails(itertools.chain([first], iter(functools.partial(file.readline, PIECE), b"")))
    if name == "-":
        raise UsageError("-: a queue file of Postfix: give its path, or pipe what `postcat -bh FILE` prints of it")
    from ..postfix.postcat import header_of  # noqa: PLC0415 - rarely needed

    return iter([Mail(header_of(name))])


# -- for people


def _report(name: str, mail: Mail, pdus: Sequence[Pdu]) -> list[str]:
    """The lines about one mail: one where there is nothing to say, a block for each problem else."""
    where = printable(name) + (f", message {mail.number}" if mail.number is not None else "")
    told = next((pdu for pdu in pdus if pdu.type), pdus[0])
    kind = told.type or (printable(repr(told.type_text[:60])) if told.type_text else "no MM4 type")
    if len(pdus) == 1:
        lines = [f"{where}: {kind}: {_state(told)}{_answer(told)}"]
    else:
        lines = [f"{where}: {kind}", *_table(pdus)]
    blocks = _blocks(pdus)
    for label, told_by in blocks:
        lines += ["", *_block(label, told_by, len(pdus))]
    return [*lines, ""] if blocks else lines


def _state(pdu: Pdu) -> str:
    return click.style("valid", fg="green") if pdu.valid else click.style("invalid", fg="red")


def _answer(pdu: Pdu) -> str:
    return f", a RES would say {pdu.status}" if pdu.status else ""


def _table(pdus: Sequence[Pdu]) -> Iterator[str]:
    """A line a dialect, the one in which the mail is right first."""
    width = max(len(pdu.dialect) for pdu in pdus)
    for pdu in sorted(pdus, key=lambda p: (not p.valid, len(p.errors), len(p.problems))):
        warnings = len(pdu.problems) - len(pdu.errors)
        counts = f"{_count(len(pdu.errors), 'error')}, {_count(warnings, 'warning')}"
        gap = "    " if pdu.valid else "  "
        yield f"  {pdu.dialect:{width}}  {_state(pdu)}{gap}{counts}{_answer(pdu)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


_Told = list[tuple[str, Problem]]
"""One problem as several dialects tell it: the name of each, and its words."""


def _blocks(pdus: Sequence[Pdu]) -> list[tuple[str, _Told]]:
    """Label and problem; what several dialects say alike stands once."""
    found: dict[tuple[object, ...], tuple[str, _Told]] = {}
    parts: tuple[tuple[Callable[[Pdu], Sequence[Problem]], str | None], ...] = (
        (lambda pdu: pdu.errors, None),
        (lambda pdu: [p for p in pdu.problems if p.severity != Severity.ERROR], None),
        (lambda pdu: pdu.advice, "advice"),
    )
    for part, label in parts:
        for pdu in pdus:
            for problem in part(pdu):
                key = (label, problem.severity, problem.rule, problem.field, problem.line, problem.text)
                found.setdefault(key, (label or problem.severity, []))[1].append((pdu.dialect, problem))
    return list(found.values())


def _block(label: str, told: _Told, dialects: int) -> Iterator[str]:
    """What is wrong, the line, what is asked, what mends it, and where that is written."""
    problem = told[0][1]
    header = problem.header
    text = problem.text if header is None or problem.text.startswith(header) else f"{header}: {problem.text}"
    names = list(dict.fromkeys(name for name, _ in told))
    mends: dict[str | None, list[str]] = {}
    for name, one in told:
        mends.setdefault(one.mend, []).append(name)
    rows = (
        (label, text),
        ("by", ", ".join(names) if len(names) < dialects else None),
        (f"line {problem.line}" if problem.line else "found", problem.found),
        ("asks", problem.asks),
        *(("mend", f"{mend} (by {', '.join(by)})" if len(mends) > 1 else mend) for mend, by in mends.items()),
        ("source", problem.source),
    )
    width = max(7, *(len(name) for name, value in rows if value))
    for name, value in rows:
        if value:
            colour = _COLOURS.get(name) if name == label else None
            shown = click.style(f"{name:{width}}", fg=colour) if colour else f"{name:{width}}"
            # A tab is what many fold with.
            yield f"  {shown}  {printable(value.expandtabs(1))}"
