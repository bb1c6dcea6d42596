"""What goes into Postfix: the tables that follow from the YAML, and the text of main.cf and master.cf.

`tables` is pure: a configuration in, file names and texts out. `write` puts them on disk, each in one step, so
that Postfix never reads half a table; where nothing changed nothing is touched. Postfix reads these tables once
a process, hence a change needs `postfix reload`. The reference files lie in the package, or in the
repository's postfix/ folder.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Literal, TypeAlias

from ..gateway.config import Config
from ..gateway.entries import Endpoint, domain_of
from ..gateway.identity import pinned
from ..gateway.internet import INTERNET
from ..gateway.localside import Local, LocalSide
from ..gateway.names import MAILDIR_DOMAIN, PRIVATE_DOMAIN, RESPONDER_DOMAIN
from ..gateway.outgoing import Tls
from ..protocol.errors import ConfigError, PostfixError
from .passwords import is_password_table, passwords
from .paused import paused_peers
from .services import filled, main_block, master_block, service_of
from .synced import sync_folder

__all__ = [
    "CONSTANT",
    "PAUSED",
    "PRESENT",
    "Wiring",
    "folder_of",
    "main_lines",
    "master_lines",
    "members",
    "message_size",
    "peer_services",
    "reference",
    "replace_file",
    "settings",
    "stale",
    "tables",
    "turn",
    "write",
]

Wiring: TypeAlias = Literal["gateway", "service"]

CONSTANT = ("access", "commands", "generic", "status")
"""Tables that are the same for every configuration."""

PRESENT = ("transport_maps", "virtual_alias_maps", "fast_flush_domains", "smtpd_recipient_restrictions")
"""Parameters of an operator's main.cf that the wiring `service` adds to instead of replacing them."""

PAUSED = "mm4: paused by the operator"
"""Why mail for a paused peer waits, as `mailq` shows it."""

_HEAD = "# Written by `mm4 postfix maps` from the YAML file: edit that, not this.\n"
_SECRET = 0o600
_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")
_POSTFIX_SIZE = 10_240_000  # Postfix's own default of message_size_limit
_GROWTH = 1.4  # what our headers may add before cleanup, which counts again, refuses a message


def folder_of(config: Config) -> Path:
    """Where the tables lie: the folder mm4/ in the instance's configuration folder."""
    return Path(config.folders.postfix) / "mm4"


def reference(name: str) -> str:
    """The text of a reference file, for example `gateway/main.cf`.

    Raises PostfixError where the installation is not complete.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "reference", here.parents[3] / "postfix"):
        try:
            return (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    raise PostfixError(f"{here.parent / 'reference' / name} is missing: install mm4-milter again")


def tables(config: Config, paused: Collection[str] = ()) -> dict[str, str]:
    """File name to text of every table that main.cf and master.cf name; `paused` are peers whose mail waits.

    Raises ConfigError where two parts of the configuration ask for two values of one row.
    """
    written = {name: _HEAD + reference(f"tables/{name}") for name in CONSTANT}
    written["transport"] = _HEAD + _transport(config, paused)
    written["peers"] = _HEAD + _clients(config)
    written["certificates"] = _HEAD + _certificates(config)
    written["keep"] = _HEAD + _keep(config)
    written["tls_policy"] = _HEAD + _tls_policy(config)
    return dict(sorted(written.items()))


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{key}\t{value}\n" for key, value in rows)


def _socket(config: Config, name: str) -> str:
    return f"unix:{_sockets(config)}/{name}.sock"


def _sockets(config: Config) -> str:
    return PurePath(config.folders.sockets).name


def _transport(config: Config, paused: Collection[str]) -> str:
    responder = f"mm4-responder:{_socket(config, 'responder')}"
    rows = {RESPONDER_DOMAIN: responder, MAILDIR_DOMAIN: f"mm4-maildir:{_socket(config, 'maildir')}"}
    rows |= {local.domain: responder for local in config.local}
    problems = []
    for key, to in _deliveries(config):
        if to.deliver_to is None or to.next_hop is None:
            continue
        domain, hop = domain_of(to.deliver_to), f"mm4-local:{to.next_hop}"
        if rows.setdefault(domain, hop) != hop:
            problems.append(
                f"{key}.next_hop: {domain} leads to {rows[domain].partition(':')[2]} already; Postfix "
                "chooses by domain, so give one of the two another domain in deliver_to"
            )
    if problems:
        raise ConfigError(problems)
    rows |= dict(_peer_row(config, name, name in paused) for name in config.peers)
    if config.mail.next_hop is not None:
        rows[f".via-{INTERNET}.{PRIVATE_DOMAIN}"] = f"mm4-out:{config.mail.next_hop}"
    text = "# Domain of the recipient, then the service and the next hop that carry it.\n" + _rows(rows.items())
    # Without this row mail to a peer that was taken out of the YAML would be looked up in DNS and bounce.
    return (
        f"{text}# What waits for a peer that the YAML no longer names keeps waiting.\n"
        f".{PRIVATE_DOMAIN}\tretry:4.4.4 mm4: no next hop of this name in the YAML\n"
    )


def _deliveries(config: Config) -> Iterator[tuple[str, Local | LocalSide]]:
    """Every system of ours that takes mail, with its place in the file."""
    for i, local in enumerate(config.local):
        for n, to in enumerate(local.deliveries):
            yield (f"local[{i}].sides[{n - 1}]" if n else f"local[{i}]"), to


def _peer_row(config: Config, name: str, paused: bool) -> tuple[str, str]:
    peer = config.peers[name]
    hop = f"retry:4.3.2 {PAUSED}" if paused else f"{service_of(name, peer)}:{peer.next_hop}"
    return f".via-{name}.{PRIVATE_DOMAIN}", hop


def turn(config: Config, folder: Path, name: str, *, paused: bool) -> bool:
    """Change one peer's row of the transport table in `folder`, and nothing else; False where it is so already.

    What else the YAML says by now stays for `mm4 postfix maps`. Raises PostfixError where there is no such row, or
    the table cannot be written.
    """
    path = folder / "transport"
    key, hop = _peer_row(config, name, paused)
    try:
        text = path.read_text("utf-8")
        row = re.compile(rf"^{re.escape(key)}\t.*$", re.MULTILINE)
        if row.search(text) is None:
            raise PostfixError(f"{path} has no row for {name}; mm4 postfix maps writes it")
        return replace_file(path, row.sub(lambda _: f"{key}\t{hop}", text))
    except OSError as error:
        raise PostfixError(f"{path}: {error.strerror}; run as root, mm4 postfix maps writes the tables") from error


def _clients(config: Config) -> str:
    owners = [(network, "local side") for local in config.local for network in local.clients]
    owners += [(network, f"peer {name}") for name, peer in config.peers.items() for network in peer.networks]
    # The first row that fits wins: the most specific network stands first, as it names the client.
    owners.sort(key=lambda row: (row[0].version, -row[0].prefixlen, int(row[0].network_address)))
    rows = {str(network): owner for network, owner in owners}
    return "# Who may connect to the MM4 line; who they are is decided by the milter.\n" + _rows(rows.items())


def _admitted(config: Config) -> str:
    """Restrictions that hold strangers off while the milter is away; who a client is, and whether it may, it says."""
    certificates = [c for peer in config.peers.values() for c in peer.certificates]
    kinds = {
        "permit_mynetworks": True,
        "permit_tls_all_clientcerts": any(c.subject for c in certificates),
        f"check_ccert_access texthash:{folder_of(config)}/certificates": pinned(config.peers),
        "permit_sasl_authenticated": any(peer.logins for peer in config.peers.values()),
        "reject": True,
    }
    return ", ".join(name for name, asked in kinds.items() if asked)


def _certificates(config: Config) -> str:
    pins = {c.fingerprint for peer in config.peers.values() for c in peer.certificates if c.fingerprint}
    return "# SHA-256 fingerprints of client certificates; whose they are is decided by the milter.\n" + _rows(
        (fingerprint, "OK") for fingerprint in sorted(pins)
    )


def _tls(config: Config) -> dict[str, str | None]:
    """TLS and SASL of the MM4 line; None where main.cf has the word."""
    tls, sasl = config.service.tls, config.service.sasl
    logins = any(peer.logins for peer in config.peers.values())
    asked = tls and any(peer.certificates for peer in config.peers.values())
    return {
        "TLS_LEVEL": tls.level if tls else None,
        "TLS_CHAIN": (f"{tls.key}, {tls.certificate}" if tls.key else tls.certificate) if tls else None,
        "TLS_CA": (tls.ca or "") if tls else None,
        "TLS_ASK": ("yes" if asked else "no") if tls else None,
        "ASKED": f"check_policy_service,{_socket(config, 'fingerprints')}" if pinned(config.peers) else "",
        "DELAYED": "no" if pinned(config.peers) else "yes",
        "SASL": "yes" if logins else "no",
        "SASL_TYPE": sasl.type if sasl and logins else None,
        "SASL_PATH": sasl.where if sasl and logins else None,
    }


def _keep(config: Config) -> str:
    # The @ is asked for: virtual_alias_domains is virtual_alias_maps by default, and a bare domain that had a
    # row here would become a domain of aliases.
    ours = "".join(f"|.+@{re.escape(domain)}" for domain in dict.fromkeys(local.domain for local in config.local))
    private = rf".+@([^@]+\.)?{re.escape(PRIVATE_DOMAIN)}"
    return (
        "# Private and local MM4 addresses stand for themselves; no alias behind this table may take them.\n"
        f"/^({private}{ours})$/\t${{1}}\n"
    )


def _tls_policy(config: Config) -> str:
    policies: dict[str, tuple[str, str]] = {}
    problems = []
    for name, peer in config.peers.items():
        # Postfix looks up in lower case.
        policy = _policy(peer.tls)
        other, there = policies.setdefault(peer.next_hop.lower(), (name, policy))
        if there != policy:
            problems.append(
                f"peers.{name}.tls: {policy}, but peers.{other} has {there} and the same next_hop "
                f"{peer.next_hop}; Postfix chooses by next hop, so give both the same"
            )
    if problems:
        raise ConfigError(problems)
    return "# Next hop as in the transport table, then the TLS level and what goes with it.\n" + _rows(
        (hop, policy) for hop, (_, policy) in policies.items()
    )


def _policy(tls: Tls) -> str:
    names = ":".join(tls.match) or "|".join(tls.fingerprints)
    return " ".join([tls.level, *([f"match={names}"] if names else []), *([f"tafile={tls.ca}"] if tls.ca else [])])


def stale(config: Config, folder: Path, secrets: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """File name to text of the tables in `folder` that are not as the YAML says; None for one that has to go.

    `secrets` are those of `passwords`; without them they are not looked at. Raises ConfigError as `tables`, and
    PostfixError where it cannot be read what is paused.
    """
    wanted = {**tables(config, paused_peers(config)), **(secrets or {})}
    found: dict[str, str | None] = {name: text for name, text in wanted.items() if not _says(folder / name, text)}
    if secrets is not None and folder.is_dir():
        # The password for a peer that is gone.
        there = sorted(path.name for path in folder.iterdir() if is_password_table(path.name))
        found |= {name: None for name in there if name not in secrets}
    return found


def _says(path: Path, text: str) -> bool:
    try:
        if is_password_table(path.name) and path.stat().st_mode & 0o7777 != _SECRET:
            return False
        return path.read_bytes() == text.encode("utf-8", "surrogateescape")
    except OSError:
        return False


def write(config: Config, folder: Path) -> list[str]:
    """Bring the tables in `folder` up to date; the names of those that changed, none where all were.

    Each is replaced in one step and is on disk before the next one; mode and owner stay. What the operator has paused
    stays paused. Raises ConfigError as `tables` and `passwords`, and PostfixError where the folder cannot be written.
    """
    changed = stale(config, folder, passwords(config))
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
        for name, text in changed.items():
            if text is None:
                (folder / name).unlink()
            else:
                replace_file(folder / name, text, secret=is_password_table(name))
    except OSError as error:
        raise PostfixError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; run as root, and see that "
            f"{folder.parent} is the configuration folder of a Postfix (folders.postfix)"
        ) from error
    return list(changed)


def replace_file(path: Path, text: str | bytes, *, secret: bool = False) -> bool:
    """Give `path` this text in one step; False, and nothing touched, where it has it already.

    A file that is there keeps mode and owner, a new one is 0644; a `secret` is ours and 0600. Raises OSError.
    """
    path = path.resolve()
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    try:
        present = None if secret else path.stat()
        if present and path.read_bytes() == data:
            return False
    except FileNotFoundError:
        present = None
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if present:
                os.fchown(file.fileno(), present.st_uid, present.st_gid)
            os.fchmod(file.fileno(), _SECRET if secret else present.st_mode & 0o7777 if present else 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(path.parent)
    return True


def message_size(config: Config) -> int | None:
    """The largest max_size in bytes, or None where a peer has none: then Postfix's own limit holds."""
    sizes = [peer.max_size for peer in config.peers.values()]
    known = [size for size in sizes if size is not None]
    return max(known) if known and len(known) == len(sizes) else None


def main_lines(
    config: Config,
    wiring: Wiring,
    *,
    present: Mapping[str, str] | None = None,
    values: Mapping[str, str | None] | None = None,
) -> list[str]:
    """main.cf for this wiring with the configuration's values, line by line with the reasons.

    `gateway` is a whole file, `service` what is added. `present` holds what an operator's main.cf says now for
    the names in PRESENT; `values` replaces placeholders (None leaves their lines out). Raises PostfixError.
    """
    lines = _render(reference(f"{wiring}/main.cf"), {**_values(config, present or {}), **(values or {})})
    return filled(lines, main_block(config))


def master_lines(config: Config, wiring: Wiring, *, values: Mapping[str, str | None] | None = None) -> list[str]:
    """master.cf for this wiring with the configuration's values, line by line; arguments as `main_lines`."""
    text = _for_each_listen(reference(f"{wiring}/master.cf"), config)
    lines = _render(text, {**_values(config, {}), **(values or {})})
    return filled(lines, peer_services(config))


def peer_services(config: Config) -> list[str]:
    """The lines of master.cf for peers with a service of their own; empty where all share mm4-out."""
    shared = next(block for block in reference("service/master.cf").split("\n\n") if re.search("(?m)^mm4-out ", block))
    return master_block(config, _render(f"\n\n{shared}", _values(config, {})), folder_of(config))


def _for_each_listen(text: str, config: Config) -> str:
    """The MM4 line once for each address; its reasons stand at the first."""
    [block] = [block for block in text.split("\n\n") if re.search("(?m)^@LISTEN@ ", block)]
    bare = "\n".join(line for line in block.splitlines() if not line.lstrip().startswith("#"))
    first, *more = map(str, config.service.listen)
    blocks = [block.replace("@LISTEN@", first)]
    blocks += [f"# --- The same at another address\n{bare}".replace("@LISTEN@", address) for address in more]
    return text.replace(block, "\n\n".join(blocks))


def settings(lines: Iterable[str]) -> dict[str, str]:
    """Names and values in the lines of a main.cf of ours (which has no continuation lines)."""
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def members(config: Config) -> dict[str, list[str]]:
    """What the wiring `service` puts into each list of PRESENT."""
    folder = folder_of(config)
    return {
        "transport_maps": [f"texthash:{folder}/transport"],
        "virtual_alias_maps": [f"regexp:{folder}/keep"],
        "smtpd_recipient_restrictions": [f"check_recipient_access texthash:{folder}/access"],
        "fast_flush_domains": [RESPONDER_DOMAIN, MAILDIR_DOMAIN, *dict.fromkeys(own.domain for own in config.local)],
    }


def _values(config: Config, present: Mapping[str, str]) -> dict[str, str | None]:
    size = message_size(config)
    submit = Endpoint(config.service.submit)
    hosts = {endpoint.host for endpoint in config.service.listen}
    folder = folder_of(config)
    locals_ = list(dict.fromkeys(local.domain for local in config.local))
    ours = members(config)
    defaults = {"virtual_alias_maps": "$virtual_maps", "fast_flush_domains": "$relay_domains"}
    return {
        "MYHOSTNAME": config.home.domain,
        "INTERFACES": "all" if hosts & {"0.0.0.0", "::"} else ", ".join(sorted(hosts)),  # noqa: S104 - read, not bound
        "QUEUE": str(PurePath(config.folders.sockets).parent),
        "DATA": "/var/lib/postfix",
        "SOURCE": None,
        "SOCKETS": _sockets(config),
        "TABLES": str(folder),
        "SIZE": str(math.ceil(size * _GROWTH) if size else _POSTFIX_SIZE),
        "MAX_SIZE": str(size) if size else None,
        "LOCAL_DOMAINS": ", ".join(locals_),
        "ADMITTED": _admitted(config),
        **_tls(config),
        "SUBMIT": str(submit),
        "SUBMIT_CLIENTS": f"[{submit.host}]/128" if ":" in submit.host else f"{submit.host}/32",
        **{name.upper(): _without(present.get(name, defaults.get(name, "")), ours[name]) for name in PRESENT},
    }


def _without(value: str, ours: list[str]) -> str:
    """What main.cf says now, less what an earlier wiring put there."""
    parts = [part.strip() for part in re.split(r",|\n", value)]
    return ", ".join(part for part in parts if part and part not in ours)


def _render(text: str, values: Mapping[str, str | None]) -> list[str]:
    _, _, body = text.partition("\n\n")  # the head explains the placeholders, which are filled now
    lines = []
    for line in body.splitlines():
        if line.lstrip().startswith("#"):
            lines.append(line)
            continue
        names = _PLACEHOLDER.findall(line)
        if any(values[name] is None for name in names):
            continue
        filled = _PLACEHOLDER.sub(lambda match: values[match[1]] or "", line)
        # A list that one of the values would have begun or ended.
        lines.append(re.sub(r"= ,\s*", "= ", filled).rstrip(", ") if names else filled)
    return lines
