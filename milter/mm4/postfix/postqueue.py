"""Asking Postfix to try at once what waits for one domain (`postqueue -s`), without blocking the event loop.

It fails with PostfixError, also when postqueue hangs: the caller asks again later, and nothing is lost meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from ..protocol.errors import PostfixError
from .instance import tool

__all__ = ["Postqueue"]


class Postqueue:
    """Flushes with `postqueue -s`; Postfix must list the domain in fast_flush_domains.

    `config_directory` None is the system's Postfix, `program` None its postqueue, also where PATH lacks it. A call
    raises PostfixError with what postqueue said, also when it does not end within `timeout` seconds; it is killed then.
    """

    def __init__(
        self, config_directory: Path | None = None, *, program: str | None = None, timeout: float = 10.0
    ) -> None:
        self._program = program
        self._options = () if config_directory is None else ("-c", str(config_directory))
        self._timeout = timeout

    async def __call__(self, domain: str) -> None:
        """Flush one domain."""
        program = self._program or tool("postqueue")
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *self._options,
                "-s",
                domain,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise PostfixError(f"cannot run {program}: {error}") from error
        try:
            _out, said = await asyncio.wait_for(process.communicate(), self._timeout)
        except TimeoutError:
            raise PostfixError(f"postqueue -s {domain} took more than {self._timeout:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            text = said.decode("utf-8", "replace").strip()
            raise PostfixError(f"postqueue -s {domain} ended with {process.returncode}: {text}")
