"""`mm4 --version`: mm4's version, and those of what it stands on."""

from __future__ import annotations

import platform
import subprocess

from .. import __version__

__all__ = ["version_lines"]


def version_lines() -> list[str]:
    """One line a component; what is not there says so."""
    python = platform.python_version()
    return [f"mm4 {__version__}", f"Python {python}", f"Postfix {_postfix()}", f"libmilter {_libmilter()}"]


def _postfix() -> str:
    try:
        done = subprocess.run(
            ["postconf", "-d", "-h", "mail_version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "not installed (Debian package postfix)"
    return done.stdout.strip()


def _libmilter() -> str:
    try:
        from ..postfix.milter import libmilter_version  # noqa: PLC0415 - needs the C library
    except ImportError as error:
        return f"not usable: {error}"
    return libmilter_version()
