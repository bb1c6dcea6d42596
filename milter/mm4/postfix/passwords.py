"""The passwords by which we log in to peers: from the files that the YAML names into tables that only root can read.

One table a peer, so that two peers behind one next hop have each their own. smtp(8) reads it before it gives up root.
"""

from __future__ import annotations

from pathlib import Path

from ..gateway.config import Config
from ..gateway.outgoing import Login
from ..protocol.errors import ConfigError

__all__ = ["is_password_table", "password_table", "passwords", "read_password"]

_HEAD = "# Written by `mm4 postfix maps` from a password file that the YAML names: next hop, then user and password.\n"
_PREFIX = "password-"


def password_table(name: str) -> str:
    """The file name of the table with the password for this peer."""
    return _PREFIX + name


def is_password_table(name: str) -> bool:
    """Whether a file of this name holds a password."""
    return name.startswith(_PREFIX)


def passwords(config: Config) -> dict[str, str]:
    """File name to text of the tables with the passwords for peers, which only root may read.

    Raises ConfigError where a file that should hold one cannot be read, or does not.
    """
    found, problems = {}, []
    for name, peer in config.peers.items():
        if peer.login is None:
            continue
        try:
            password = read_password(name, peer.login)
        except ConfigError as error:
            problems += error.problems
            continue
        found[password_table(name)] = f"{_HEAD}{peer.next_hop}\t{peer.login.user}:{password}\n"
    if problems:
        raise ConfigError(problems)
    return found


def read_password(name: str, login: Login) -> str:
    """The password for this peer, from its file. Raises ConfigError."""
    file = login.password_file
    where = f"peers.{name}.login.password_file: {file}"
    try:
        # Bytes that are no UTF-8 go through as they are.
        password = Path(file).read_text("utf-8", "surrogateescape").split("\n", 1)[0].rstrip("\r")
    except OSError as error:
        raise ConfigError([f"{where}: {error.strerror}; root reads it"]) from None
    if not password or password != password.strip():
        what = "begins or ends with a blank, which a table of Postfix cannot hold" if password else "is empty"
        raise ConfigError([f"{where}: its first line {what}"])
    return password
