"""`mm4 serve`."""

from __future__ import annotations

import gc

import click

from .options import config_option

__all__ = ["serve"]


@click.command()
@config_option
def serve(config_file: str) -> int:
    """Run the daemon: supervisor, milter workers, responder.

    TERM stops it without cutting a message, HUP reads the configuration anew (a bad one is refused and the old one
    stays). Log lines go to stderr.
    """
    # Looking for garbage among the modules that are being loaded takes a tenth of the start; on again when they are.
    gc.disable()
    from ..postfix.serve import serve as run  # noqa: PLC0415 - loads the whole daemon

    return run(config_file)
