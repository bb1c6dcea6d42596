"""The `mm4` command: loads a command's module only when that command is called, and ends every run with an exit code.

0 fine, 1 a negative finding, 2 wrong use, 70 a fault of ours, 78 bad configuration. Never a traceback, unless
MM4_DEBUG is set in the environment.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback

import click
from click.shell_completion import CompletionItem

from ..protocol.errors import Mm4Error

__all__ = ["DEFAULT_CONFIG", "main", "run"]

DEFAULT_CONFIG = "/etc/mm4/mm4.yaml"

# Command, module and one line of help: the module is loaded when the command is called.
_COMMANDS = {
    "serve": ("serve", "Run the daemon: supervisor, milter workers, responder."),
    "init": ("init", "Ask a few questions and write a first configuration."),
    "config": ("config", "Show the effective configuration, or the documented example."),
    "check": ("check", "Check configuration, store, sockets and Postfix; print what is wrong and what mends it."),
    "health": ("health", "Whether milter, responder and Postfix answer now."),
    "lint": ("lint", "Read PDUs and say what they break, and what mends it."),
    "explain": ("explain", "Say what the gateway would do with a message. No side effect."),
    "route": ("route", "Say where a number goes, and which rule says so."),
    "send": ("send", "Compose an MMS and submit it."),
    "report": ("report", "Report about a message received: delivered, read."),
    "trace": ("trace", "The whole life of a message, or the messages of a number."),
    "cdr": ("cdr", "Charging records."),
    "expire": ("expire", "Return what is past its X-Mms-Expiry and still in Postfix's queue (root)."),
    "transactions": ("transactions", "List transactions, show one, send again, forget."),
    "stats": ("stats", "Counts by peer, type and state; what waits, what is overdue."),
    "queue": ("queue", "The mail queue with peer and transaction; hold, show and release one message."),
    "store": ("store", "The store: its state, schema, backup, restore, copy to PostgreSQL."),
    "peer": ("peer", "List peers; show, try, pause and resume one."),
    "postfix": ("postfix", "Postfix's tables and wiring."),
    "sandbox": ("sandbox", "A private Postfix with this gateway on loopback."),
    "demo": ("demo", "Two sandboxes exchange an MMS and its reports; shows what crosses."),
}


_HELP = ["-h", "--help"]


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"{__package__}.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        # Its own, not only the group's: a command keeps the help option of its first call, whoever made that.
        command.context_settings.setdefault("help_option_names", _HELP)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        fitting = [name for name in _COMMANDS if name.startswith(incomplete)]
        found = [CompletionItem(name, help=_COMMANDS[name][1]) for name in fitting]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .version import version_lines  # noqa: PLC0415 - asks Postfix, which other commands need not

        click.echo("\n".join(version_lines()))
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": _HELP, "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
              help="Versions of mm4, Python, Postfix and libmilter.")  # fmt: skip
def main() -> None:
    """MM4, the interface between MMS operators, for the Postfix you run."""


def run() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's charset lacks is shown escaped.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main(prog_name="mm4", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Abort:
        click.echo("mm4: interrupted", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except Mm4Error as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            click.echo(f"mm4: {line}", err=True)
        _detail()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"mm4: {where}{error.strerror or error}", err=True)
        _detail()
        sys.exit(70)
    except Exception as error:
        click.echo(f"mm4: a fault of mm4 itself: {error!r}; MM4_DEBUG=1 shows where", err=True)
        _detail()
        sys.exit(70)
    sys.exit(code if isinstance(code, int) else 0)


def _detail() -> None:
    if os.environ.get("MM4_DEBUG"):
        traceback.print_exc()
