"""The shipped example, made from the schema's own descriptions, so that no key is documented twice.

Keys that have to be given stand there with an example; the others stand as comments with their default.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..protocol.located import models
from .config import Config
from .credentials import Certificate, Sasl
from .credentials import Tls as ServiceTls
from .host import Cdr, Folders, Service, Spool
from .internet import InternetMail
from .localside import Local, LocalSide
from .outgoing import Tls
from .peer import Peer
from .routes import ROUTES, Enum, Http, PrefixRoute, Range
from .section import Section

__all__ = ["example"]

_HEAD = """\
# mm4: configuration. Numbers, prefixes and addresses are quoted strings; sizes are 1kB, 1MB (10^6 bytes on the
# wire), durations 10s, 10m, 2h, 1d. A commented key shows its default. `mm4 check` tells what is wrong.
"""

# What the reader fills in first; every other value is the schema's default.
_EXAMPLES: dict[type[BaseModel], dict[str, str]] = {
    Local: {
        "domain": "mms.mnc001.mcc262.gprs",
        "system_address": "system-user@mms.mnc001.mcc262.gprs",
        "region": "DE",
        "numbers": '["+491511", "+491512"]',
        "clients": "[127.0.0.1/32]",
        "deliver_to": '"{number}@mmsc.example.net"',
        "next_hop": '"[127.0.0.1]:2600"',
    },
    Peer: {
        "dialect": "tyntec",
        "domains": "[mm4.tyntec.example]",
        "networks": "[192.0.2.10/32]",
        "next_hop": '"[192.0.2.10]:25"',
        "system_address": "system@mm4.tyntec.example",
        "max_size": "1MB",
    },
    Tls: {"level": "encrypt"},
    Service: {"listen": '"192.0.2.1:25"'},
}


# Sections of their own that are left out by default.
_EXPLAINED: dict[tuple[type[BaseModel], str], type[BaseModel]] = {
    (Peer, "certificates"): Certificate,
    (Service, "tls"): ServiceTls,
    (Service, "sasl"): Sasl,
}
_SIDES = (
    '{numbers: ["+4915119"], deliver_to: "{number}@app.example.net", next_hop: "[127.0.0.1]:2700"}',
    '{short_codes: ["12345"], maildir: yes}',
)

_ROUTES: dict[str, str] = {
    "prefix": '{prefix: "+44", peer: tyntec}',
    "range": '{range: {from: "+491601000000", to: "+491601999999"}, peer: tyntec}',
    "regex": '{regex: "[+]4916[02].*", peer: tyntec}',
    "reach": "{reach: reach/tyntec.csv, peer: tyntec}",
    "domain": "{domain: mms.mnc015.mcc234.gprs, peer: tyntec}",
    "enum": '{enum: {zone: e164.arpa, servers: ["192.0.2.53:53"], timeout: 2s, peers: {mms.other.example: tyntec}}}',
    "http": '{http: {url: "https://np.example.net/{digits}", json: operator.id, timeout: 2s, cache: 1h, ca: np.pem, '
    'peers: {"26201": tyntec}}}',
    "default": "{default: tyntec}",
}
"""A row of each kind; the last is in force, the others stand as comments."""


def example() -> str:
    """The documented example file, which the configuration reader takes as it is."""
    lines = [_HEAD]
    lines += _section("local", Config.model_fields["local"], _keys(Local))
    lines += _section("peers", Config.model_fields["peers"], ["tyntec:", *_indented(_keys(Peer))])
    lines += _section("routes", Config.model_fields["routes"], list(_routes()))
    lines += _section("service", Config.model_fields["service"], _keys(Service))
    lines += _section("mail", Config.model_fields["mail"], _keys(InternetMail), commented=True)
    for name in ("duplicates", "retention", "store", "submit"):
        info = Config.model_fields[name]
        lines += [*_comment(info.description or ""), f"# {name}: {_WRITTEN.get(name) or _plain(info.default)}", ""]
    lines += _section("cdr", Config.model_fields["cdr"], _keys(Cdr), commented=True)
    lines += _section("folders", Config.model_fields["folders"], _keys(Folders), commented=True)
    lines += _section("spool", Config.model_fields["spool"], _keys(Spool), commented=True)
    return "\n".join(lines).rstrip() + "\n"


_WITHIN = (Range, Enum, Http)


def _routes() -> Iterator[str]:
    peer = ""
    for kind, model in ROUTES.items():
        yield from _comment(model.__doc__ or "")
        keys = model.model_fields.items()
        told = [(key, info) for key, info in keys if info.description != peer]
        peer = peer or PrefixRoute.model_fields["peer"].description or ""
        yield from (line for key, info in told for line in _note(key, info, "   "))
        for section in _WITHIN:
            if any(info.annotation is section for _, info in keys):
                fields = section.model_fields.items()
                yield from (line for key, info in fields for line in _note(info.alias or key, info, "     "))
        yield f"{'' if kind == 'default' else '# '}- {_ROUTES[kind]}"


def _note(name: str, info: FieldInfo, indent: str) -> Iterator[str]:
    seconds = {"timeout": "2s", "cache": "1h"}
    written = "" if info.is_required() or name not in seconds else f" Default: {seconds[name]}."
    lines = textwrap.wrap(f"`{name}`: {info.description}{written}", 98 - len(indent))
    yield from (f"#{indent if not n else indent + '  '}{line}" for n, line in enumerate(lines))


def _section(name: str, info: FieldInfo, body: list[str], *, commented: bool = False) -> list[str]:
    mark = "# " if commented else ""
    return [*_comment(info.description or ""), f"{mark}{name}:", *_indented(body), ""]


def _keys(model: type[BaseModel]) -> list[str]:
    lines: list[str] = []
    chapters = model.CHAPTERS if issubclass(model, Section) else {}
    for name, info in model.model_fields.items():
        if name in chapters:
            lines += ["", f"# ---- {chapters[name]} ----"] if lines else [f"# ---- {chapters[name]} ----"]
        lines += _key(model, name, info) if not info.exclude else ()
    return lines


def _key(model: type[BaseModel], name: str, info: FieldInfo) -> Iterator[str]:
    yield from _comment(info.description or "")
    if name == "sides":
        yield from (line for key, inner in LocalSide.model_fields.items() for line in _note(key, inner, "   "))
        yield from (f"#   - {row}" for row in _SIDES)
    given = _EXAMPLES.get(model, {}).get(name)
    if given is not None:
        yield f"{name}: {given}"
    elif info.annotation is Tls:
        yield f"{name}:"
        yield from _indented(_keys(Tls))
    elif (section := next(models(info.annotation), None)) and name != "sides" and (model, name) not in _EXPLAINED:
        yield f"# {name}:"
        yield from _nested(section)
    else:
        explained = _EXPLAINED.get((model, name))
        yield from _bullets(explained) if explained else ()
        text = _WRITTEN.get(name) or _plain(info.get_default(call_default_factory=True))
        yield f"# {name}: {text}".rstrip()


def _bullets(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a section that is left out, each with what it means."""
    for name, info in model.model_fields.items():
        text = f"- {name}: {info.description}"
        yield from (f"#   {line}" for line in textwrap.wrap(text, 98, subsequent_indent="  "))


def _nested(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield from (f"#   {line[2:]}" for line in _comment(info.description or ""))
        section = next(models(info.annotation), None)
        if section is not None:
            yield f"#   {name}: {{{', '.join(section.model_fields)}}}"
            continue
        text = "" if info.is_required() else _WRITTEN.get(name)
        if text is None:
            text = _plain(info.get_default(call_default_factory=True))
        yield f"#   {name}: {text}".rstrip()


# Defaults of durations and sizes as the file writes them; the schema holds seconds and bytes.
_WRITTEN = {
    "drain": "5s", "timeout": "10m", "duplicates": "15d", "retention": "90d", "after": "1h", "quota": "1GB",
    "window": "1h",
}  # fmt: skip


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if value == []:
        return "[]"
    text = str(value)
    quoted = (":" in text and "/" not in text) or (isinstance(value, str) and "{" in text)
    return f'"{text}"' if quoted else text


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 100)]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" if line else line for line in lines]
