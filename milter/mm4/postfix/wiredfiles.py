"""main.cf and master.cf with mm4 in them, and without: what each wiring writes, and its exact inverse.

Pure: texts in, texts out. A list that the operator has set gets one member in front, in his own line; a parameter
that he has not set, and every service of ours, stands in a block at the end.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from ..gateway.config import Config
from . import maincf, maps, mastercf
from .cftext import empty_block, insert_block, list_items
from .obstacles import Mode
from .services import BEGIN, END, filled, main_block
from .shared import RESTRICTIONS, member_of, shared_line

__all__ = ["Members", "Wired", "members_of", "undone", "whole", "wired"]

Members = dict[str, list[str]]
"""Parameter to what was put in front of its list, the longest first."""

_ALWAYS = ("smtpd_recipient_restrictions", "smtpd_milter_maps")
"""Overrides in master.cf that need our member even where they are empty: an empty one hides main.cf's."""

_KEPT = re.compile(
    r"(multi_instance_\w+|maillog_\w+|syslog_\w+|(command|daemon|data|meta|shlib|manpage|readme|sample|html)_directory"
    r"|mail_owner|setgid_group|default_privs|(sendmail|newaliases|mailq)_path|smtpd_tls_\w+|tls_\w+)\Z"
)
"""Settings that a dedicated gateway keeps: which instance this is, where its parts lie, where it logs, certificates."""


@dataclass(frozen=True, slots=True)
class Wired:
    """Both files with mm4 in them, and what was put in front of lists, by file."""

    main: str
    master: str
    members: dict[str, Members] = field(default_factory=dict)


def members_of(config: Config) -> dict[str, Members]:
    """Everything that a wiring of this configuration may have put in front of a list, where no record says it."""
    main: Members = {}
    for name, member in _wanted(config, "clients").items():
        main[name] = [member]
    for name, member in _wanted(config, "service").items():
        main.setdefault(name, []).append(member)
    return {
        "main.cf": main,
        "master.cf": {name: [_packed(member) for member in found] for name, found in main.items()},
    }


def undone(name: str, text: str, members: Mapping[str, Members]) -> str:
    """The file `name` without anything of ours but an empty block, which keeps its place; all else to the byte."""
    text = empty_block(text)
    for parameter, found in members.get(name, {}).items():
        for member in found:
            if name == "main.cf":
                text = maincf.take_out(text, parameter, member)
            else:
                text = mastercf.take_out(text, frozenset([parameter]), member)
    return text


def wired(config: Config, mode: Mode, main: str, master: str, defaults: Mapping[str, str]) -> Wired:
    """Both files with the wiring `service` or `clients` in them; an empty block in `main` or `master` is filled.

    `defaults` are Postfix's own values of lists that main.cf does not set and that must not be lost.
    """
    wanted = _wanted(config, mode)
    members: dict[str, Members] = {"main.cf": {}, "master.cf": {}}
    settings = maincf.settings_of(main)
    missing: dict[str, str] = {}
    for name, member in wanted.items():
        if name not in settings:
            missing[name] = member
        elif not _has(settings[name].value, member):
            main = maincf.put_first(main, name, member)
            members["main.cf"][name] = [member]
    main = insert_block(main, _main_block(config, mode, missing, settings.keys(), defaults))
    shared = shared_line(mastercf.services_of(master)) if mode == "clients" else None
    for override, member in _overrides(config, mode, master, shared):
        master = mastercf.put_first(master, override, member)
        found = members["master.cf"].setdefault(override.name, [])
        found[:] = sorted({*found, member}, key=lambda text: -len(text))
    # The services of single peers come last, between the lines that `mm4 postfix maps` looks for.
    lines, own = maps.master_lines(config, "service"), maps.peer_services(config)
    master = insert_block(master, [*lines[: len(lines) - len(own)], *filled([BEGIN, END], own)])
    return Wired(main, master, members)


def whole(config: Config, main: str, data: str) -> tuple[str, str]:
    """Both files of a dedicated gateway; `main` is what stood there, `data` its data folder."""
    lines = maps.main_lines(config, "gateway", values={"DATA": data})
    written = maps.settings(lines)
    kept = [
        f"{name} = {' '.join(setting.value.split())}"
        for name, setting in maincf.settings_of(main).items()
        if _KEPT.match(name) and name not in written
    ]
    if kept:
        lines += ["", "# --- Kept from the main.cf that stood here", "", *kept]
    head = "# Written by `mm4 postfix wire --mode all` from the YAML file: edit that, not this.\n"
    return (
        head + "\n".join(lines) + "\n",
        head + "\n".join(maps.master_lines(config, "gateway")) + "\n",
    )


def _wanted(config: Config, mode: Mode) -> dict[str, str]:
    wanted = {name: ", ".join(found) for name, found in maps.members(config).items()}
    if mode == "clients":
        wanted["smtpd_milter_maps"] = member_of(config, "smtpd_milter_maps")
        for name in RESTRICTIONS:
            own = wanted.get(name)
            wanted[name] = f"{own}, {member_of(config, name)}" if own else member_of(config, name)
    return wanted


def _packed(member: str) -> str:
    """As `-o name=value` holds it: without blanks. A restriction and its table may stand with a comma, too."""
    return re.sub(r"[,\s]+", ",", member)


def _has(value: str, member: str) -> bool:
    """Whether the list begins with it already; one that an operator has put further on is put in front once more."""
    items, ours = list_items(value), list_items(member)
    return items[: len(ours)] == ours


def _main_block(
    config: Config, mode: Mode, missing: Mapping[str, str], present: Container[str], defaults: Mapping[str, str]
) -> list[str]:
    """What main.cf does not set yet: the paragraphs of the reference, each with its reason."""
    lines: list[str] = []
    # The paces of peers come last, between the lines that `mm4 postfix maps` looks for.
    paces = main_block(config)
    rows = maps.main_lines(config, "service")
    text = "\n".join(rows[: len(rows) - len(paces)])
    for paragraph in text.strip("\n").split("\n\n"):
        kept = []
        for line in paragraph.split("\n"):
            name = line.partition("=")[0].strip()
            if line.startswith("#"):
                kept.append(line)
            elif name in missing:
                value = ", ".join(filter(None, (missing[name], _kept_default(line))))
                kept.append(f"{name} = {value}")
            elif name not in maps.PRESENT and name not in present:
                kept.append(line)
        if any(not line.startswith("#") for line in kept):
            lines += [*kept, ""]
    if mode == "clients":
        lines += ["# Peers on a line that they share with ordinary mail: by their networks they meet the gateway."]
        if "smtpd_milter_maps" in missing:
            lines.append(f"smtpd_milter_maps = {missing['smtpd_milter_maps']}")
        # The other lists are empty where main.cf does not set them: nothing there keeps a peer out.
        if "smtpd_relay_restrictions" in missing:
            default = defaults.get("smtpd_relay_restrictions", "")
            value = ", ".join(filter(None, (missing["smtpd_relay_restrictions"], default)))
            lines.append(f"smtpd_relay_restrictions = {value}")
        lines.append("")
    return [*lines, *filled([BEGIN, END], paces)]


def _kept_default(line: str) -> str:
    """What the reference keeps of Postfix's own value: $virtual_maps, $relay_domains."""
    return ", ".join(item for item in list_items(line.partition("=")[2]) if item.startswith("$"))


def _overrides(
    config: Config, mode: Mode, master: str, shared: mastercf.Service | None
) -> list[tuple[mastercf.Override, str]]:
    """The overrides that would hide what main.cf says now, from the end of the file to its beginning."""
    service, clients = _wanted(config, "service"), _wanted(config, mode)
    found = []
    for line in mastercf.services_of(master):
        is_shared = shared is not None and (line.name, line.type) == (shared.name, shared.type)
        last = {override.name: override for override in line.overrides}
        for name, override in last.items():
            wanted = clients if is_shared or name == "smtpd_milter_maps" else service
            restricts = name.startswith("smtpd_")
            if name not in wanted or (restricts and PurePath(line.program).name != "smtpd"):
                continue
            if not override.value and name not in _ALWAYS and not (is_shared and name == "smtpd_relay_restrictions"):
                continue
            member = _packed(wanted[name])
            if not _has(override.value, member):
                found.append((override, member))
    return sorted(found, key=lambda pair: -pair[0].begins)
