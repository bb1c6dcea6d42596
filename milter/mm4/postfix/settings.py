"""The configuration and its dialect files on disk."""

from __future__ import annotations

import os
from pathlib import Path

from ..gateway.config import Config
from ..gateway.configfile import dialect_files, parse_config
from ..protocol.dialect import Dialect, builtin, is_file
from ..protocol.dialectfile import parse_dialect
from ..protocol.errors import ConfigError, DialectError

__all__ = ["read_config", "read_dialect"]


def read_config(path: str | os.PathLike[str]) -> tuple[Config, str]:
    """The configuration of a file and its text, the texts of the dialect files that it names included.

    Raises ConfigError, also where a file cannot be read.
    """
    file = Path(path).absolute()
    text = _text(file, ConfigError, "; mm4 init writes a first one")
    name = str(file)
    return parse_config(text, name, {path: _dialect_text(path) for path in dialect_files(text, name)}), text


def read_dialect(name: str) -> Dialect:
    """A dialect by the name of a built-in one, or by the path of a file that ends in .yaml or .yml.

    Raises DialectError, also where the file cannot be read.
    """
    if not is_file(name):
        return builtin(name)
    file = Path(name).absolute()
    return parse_dialect(_text(file, DialectError), str(file))


def _dialect_text(path: str) -> str | DialectError:
    try:
        return _text(Path(path), DialectError)
    except DialectError as error:
        return error


def _text(file: Path, error: type[ConfigError], where_missing: str = "") -> str:
    try:
        return file.read_text("utf-8")
    except OSError as wrong:
        hint = where_missing if isinstance(wrong, FileNotFoundError) else ""
        raise error(f"{file}: cannot be read: {wrong.strerror}{hint}") from None
    except UnicodeDecodeError as wrong:
        raise error(f"{file}: is not UTF-8 (byte {wrong.start})") from None
