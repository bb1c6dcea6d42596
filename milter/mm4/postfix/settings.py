"""The configuration file on disk."""

from __future__ import annotations

import os
from pathlib import Path

from ..gateway.config import Config
from ..gateway.configfile import parse_config
from ..protocol.errors import ConfigError

__all__ = ["read_config"]


def read_config(path: str | os.PathLike[str]) -> tuple[Config, str]:
    """The configuration of a file and its text. Raises ConfigError, also where the file cannot be read."""
    file = Path(path).absolute()
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        hint = "; mm4 init writes a first one" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{file}: cannot be read: {error.strerror}{hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 (byte {error.start})") from None
    return parse_config(text, str(file)), text
