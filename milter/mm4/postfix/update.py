"""Bringing Postfix up to what the YAML says: tables, the services of single peers, and what has to follow.

Every file is replaced in one step, and only where it differs. What this changes takes effect with a reload, which cuts
no session; nothing of it needs a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..gateway.config import Config
from ..protocol.errors import PostfixError
from . import maps
from .passwords import passwords
from .services import File, compared, main_block

__all__ = ["Update", "files", "update"]


@dataclass(frozen=True, slots=True)
class Update:
    """What was changed, or would be."""

    folder: Path
    """Where the tables lie."""
    changed: tuple[str, ...] = ()
    """Tables, and main.cf and master.cf where they were ours to change."""
    lacking: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """File name and lines that the operator has to write into it: it is not ours."""
    surplus: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """File name, and services or parameters in it that are needed no more."""


def update(config: Config, *, dry_run: bool = False) -> Update:
    """Bring tables, main.cf and master.cf up to the YAML; with `dry_run` only say what would change.

    Raises ConfigError where the YAML asks for what Postfix cannot do, or names a password file that cannot be read;
    PostfixError where a file cannot be read or written.
    """
    folder = maps.folder_of(config)
    found = files(config)
    changed = [name for name, file in found.items() if file.text is not None]
    if dry_run:
        changed += maps.stale(config, folder, passwords(config))
    else:
        # Read before anything is written. Services stand before the rows that lead to them.
        passwords(config)
        for name in changed:
            _replace(folder.parent / name, found[name].text or "")
        changed += maps.write(config, folder)
    return Update(
        folder,
        tuple(changed),
        tuple((name, file.lacking) for name, file in found.items() if file.lacking),
        tuple((name, file.surplus) for name, file in found.items() if file.surplus),
    )


def files(config: Config) -> dict[str, File]:
    """What has to be done about main.cf and master.cf. Raises PostfixError where one cannot be read."""
    folder = maps.folder_of(config).parent
    wanted = {"main.cf": main_block(config), "master.cf": maps.peer_services(config)}
    return {name: _compared(folder / name, block) for name, block in wanted.items()}


def _compared(path: Path, block: list[str]) -> File:
    try:
        return compared(path.read_text("utf-8", "surrogateescape"), block)
    except FileNotFoundError:
        # Written by whoever sets Postfix up, from `mm4 postfix show`.
        return compared("", block)
    except OSError as error:
        raise PostfixError(f"{path}: cannot be read: {error.strerror}; run as root") from error


def _replace(path: Path, text: str) -> None:
    try:
        maps.replace_file(path, text)
    except OSError as error:
        raise PostfixError(f"{path}: cannot be written: {error.strerror}; run as root") from error
