"""Addresses of every kind that travels on MM4, and how they are written.

`+447700900101/TYPE=PLMN@domain`, with and without type and domain; short codes; e-mail; system addresses;
IPv4 and IPv6 (TS 23.140 4.4, mmSc practice). An E.164 number has to be possible (plus and 7 to 15 digits), not
assigned. What a peer wrote is never normalised: `text` stays as it stood.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

import phonenumbers

__all__ = ["Address", "Kind", "operator_of", "parse_address", "split_list"]

SYSTEM_WORDS = frozenset({"postmaster", "system-user", "system", "mmsc", "admin"})
"""Local parts of an operator's system, in any letter case; so is any other word without a domain."""

_TYPED = re.compile(r"(?P<body>.+?)/TYPE=(?P<type>[A-Za-z0-9]+)\Z", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"\+?[0-9]+\Z")
_SEPARATORS = re.compile(r"[ \t().-]")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")
_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+\Z")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?\Z")
_IPV4_SHAPE = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}\Z", re.ASCII)
_AREA_CODE = re.compile(r"\([0-9]+\)[0-9 ().-]+\Z")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\Z', re.DOTALL)
_GROUP = re.compile(r'\s*(?:"(?:[^"\\]|\\.)*"|[^"<>@:()\[\]]*):(?P<first>.*)\Z', re.DOTALL)
_OPERATOR = re.compile(
    r"(?:^|\.)mnc(?P<mnc>[0-9]{2,3})\.mcc(?P<mcc>[0-9]{3})\.(?:gprs|3gppnetwork\.org)\.?\Z", re.IGNORECASE | re.ASCII
)
_NESTING = re.compile(r'["<>()\\]')
_SEPARATOR = re.compile(r"[,;]")
_MAILBOX = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+(?:@[A-Za-z0-9_.:\[\]-]+)?\Z")
_DOTTED_LIST = re.compile(r"\+\d{7,15}(?:/TYPE=PLMN)?(?:\.\+\d{7,15}(?:/TYPE=PLMN)?)+\Z", re.IGNORECASE)


class Kind(enum.StrEnum):
    """What an address names."""

    E164 = "e164"
    SHORT_CODE = "short_code"
    EMAIL = "email"
    SYSTEM = "system"
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Address:
    """One address: `value` is `+` and digits for e164, digits for a short code, the whole address for e-mail,
    the local part as written for a system; `domain` is None where none stood; `text` is what stood there."""

    kind: Kind
    value: str
    domain: str | None
    text: str = ""

    @property
    def key(self) -> str:
        """What tells this addressee from others: the value alone, an e-mail address in lower case."""
        return self.value.lower() if self.kind in (Kind.EMAIL, Kind.SYSTEM) else self.value

    @property
    def number(self) -> str | None:
        """The E.164 number with its plus, or None."""
        return self.value if self.kind is Kind.E164 else None

    @property
    def completed(self) -> bool:
        """Whether an E.164 number stood there without its plus."""
        return self.kind is Kind.E164 and not (_bare(self.text) or "").lstrip('"').startswith("+")

    def as_given(self) -> str:
        """The address as it stood, without display name and comments; as we write it where that is no plain mailbox.

        Whoever named `+447700900101@mms.example` may know no mailbox of any other spelling.
        """
        bare = _bare(self.text)
        return bare if bare and _MAILBOX.match(bare) else self.write()

    def local_part(self) -> str:
        """The exact local part that we write: `+E164/TYPE=PLMN`, `12345/TYPE=PLMN`, `192.0.2.33/TYPE=IPv4`."""
        match self.kind:
            case Kind.E164 | Kind.SHORT_CODE:
                return f"{self.value}/TYPE=PLMN"
            case Kind.IPV4:
                return f"{self.value}/TYPE=IPv4"
            case Kind.IPV6:
                return f"{self.value}/TYPE=IPv6"
            case Kind.EMAIL:
                return self.value.rpartition("@")[0]
            case _:
                return self.value

    def write(self, domain: str | None = None) -> str:
        """The exact spelling, behind it `domain`, or the address's own one, or none."""
        if self.kind is Kind.EMAIL:
            return self.value
        behind = domain or self.domain
        return f"{self.local_part()}@{behind}" if behind else self.local_part()


def operator_of(domain: str | None) -> tuple[str, str] | None:
    """MCC and MNC, three digits each, of the operator whose domain this is (TS 23.003 and GSMA IR.34 forms
    `mms.mnc001.mcc262.gprs` and `...3gppnetwork.org`); None for any other.
    """
    match = _OPERATOR.search(domain or "")
    return (match["mcc"], match["mnc"].zfill(3)) if match else None


def split_list(text: str) -> list[str]:
    """The members of an address list: commas (and semicolons) outside quotes, angles and comments part them.

    One encoder joins numbers with full stops; such a list is split too. Of a group (`Friends: a, b;`) the
    members count. Takes time in proportion to the length.
    """
    result: list[str] = []
    for member in (m.strip() for m in (_parts(text) if _NESTING.search(text) else _SEPARATOR.split(text))):
        group = _GROUP.match(member) if ";" in text and not _is_ipv6(member) else None
        if group is not None:
            member = group["first"].strip()  # noqa: PLW2901 - its name is not an address
        if _DOTTED_LIST.match(member):
            result += ["+" + part for part in re.split(r"\.?\+", member)[1:]]
        elif member:
            result.append(member)
    return result


def _parts(text: str) -> list[str]:
    """What stands between the separators that no quotes, angles or comments hide."""
    members: list[str] = []
    current: list[str] = []
    quoted = escaped = False
    depth = angle = 0
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\" and (quoted or depth):
            escaped = True
        elif character == '"' and not depth:
            quoted = not quoted
        elif not quoted and character == "(":
            depth += 1
        elif not quoted and character == ")" and depth:
            depth -= 1
        elif not quoted and not depth and character in "<>":
            angle = character == "<"
        elif not quoted and not depth and not angle and character in ",;":
            members.append("".join(current))
            current = []
            continue
        current.append(character)
    members.append("".join(current))
    return members


def parse_address(text: str, region: str | None = None) -> Address:
    """One address of any kind; `Kind.INVALID` where it is none. Never raises.

    `region` is the ISO 3166 country in which a number without plus is completed.
    """
    # What is kept must be short, or a peer could fill the memory with addresses.
    return (_parse_kept if len(text) <= _LONGEST_KEPT else _parse)(text, region)


def _parse(text: str, region: str | None) -> Address:
    invalid = Address(Kind.INVALID, text.strip(), None, text)
    bare = _bare(text)
    if bare is None or not bare.isascii() or len(bare) > 1000:
        return invalid
    localpart, at, domain = bare.rpartition("@")
    if not at:
        localpart, domain = bare, ""
    elif not _DOMAIN.match(domain) and not _is_literal(domain):
        return invalid
    quoted = _QUOTED.match(localpart)
    inner = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else localpart
    typed = _TYPED.match(inner)
    body, kind = (typed["body"], typed["type"].upper()) if typed else (inner, "")
    found = _typed(body, kind, region) if kind else _untyped(body, domain or None, region)
    if found is not None:
        value = f"{inner}@{domain}" if found[0] is Kind.EMAIL else found[1]
        return Address(found[0], value, domain or None, text)
    if quoted and domain and not kind and _number(inner, region) is None and inner.isprintable():
        # A local part that needs its quotes: they belong to the address.
        return Address(Kind.EMAIL, f"{localpart}@{domain}", domain, text)
    return invalid


_LONGEST_KEPT = 120
_parse_kept = lru_cache(maxsize=4096)(_parse)


def _bare(text: str) -> str | None:
    """The address without display name, angles, comments and source route; None where nothing is left."""
    stripped = _without_comments(text.strip()).strip()
    if stripped.endswith(">") and "<" in stripped:
        stripped = stripped[stripped.rindex("<") + 1 : -1].strip()
        if stripped.startswith("@") and ":" in stripped:
            stripped = stripped.partition(":")[2]
    return stripped or None


def _without_comments(text: str) -> str:
    """The text without RFC 5322 comments, nested or not; as it is where a parenthesis stays open."""
    if "(" not in text or _AREA_CODE.match(text):
        return text
    kept: list[str] = []
    quoted = escaped = False
    depth = 0
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\" and (quoted or depth):
            escaped = True
        elif character == '"' and not depth:
            quoted = not quoted
        elif character == "(" and not quoted:
            depth += 1
        elif character == ")" and depth:
            depth -= 1
            continue
        if not depth:
            kept.append(character)
    return text if depth else "".join(kept)


def _typed(body: str, kind: str, region: str | None) -> tuple[Kind, str] | None:
    if kind == "PLMN":
        return _number(body, region)
    if kind in ("IPV4", "IPV6"):
        return _ip(body.strip("[]"), 4 if kind == "IPV4" else 6)
    return None


def _untyped(body: str, domain: str | None, region: str | None) -> tuple[Kind, str] | None:
    number = _number(body, region)
    if number is not None:
        return number
    if domain is None:
        return _ip(body.strip("[]"), None) or ((Kind.SYSTEM, body) if _WORD.match(body) else None)
    if body.lower() in SYSTEM_WORDS:
        return Kind.SYSTEM, body
    return (Kind.EMAIL, body) if _ATOM.match(body) and not re.match(r"[+]?\d+\Z", body) else None


def _number(body: str, region: str | None) -> tuple[Kind, str] | None:
    if _IPV4_SHAPE.match(body):
        return None
    digits = _SEPARATORS.sub("", body)
    if not _NUMBER.match(digits):
        return None
    if digits.startswith("+"):
        return (Kind.E164, digits) if 7 <= len(digits) - 1 <= 15 else None
    if 3 <= len(digits) <= 8:
        return Kind.SHORT_CODE, digits
    complete = _complete(digits, region)
    return (Kind.E164, complete) if complete else None


def _complete(digits: str, region: str | None) -> str | None:
    """A number without plus: national where it begins with 0, or is a mobile number of the region, or can be nothing
    else; international without its plus otherwise. Most plans are so open that nearly all digits are some national
    number, and what MMS systems send without plus is mostly international.
    """
    national = _parsed(digits, region) if region else None
    if national is not None and phonenumbers.is_possible_number(national):
        text: str = phonenumbers.format_number(national, phonenumbers.PhoneNumberFormat.E164)
        international = _parsed("+" + digits, None)
        other = international is not None and phonenumbers.is_possible_number(international)
        if 8 <= len(text) <= 16 and (digits.startswith("0") or not other or _is_mobile(national)):
            return text
    return "+" + digits if 9 <= len(digits) <= 15 and not digits.startswith("0") else None


def _is_mobile(number: phonenumbers.PhoneNumber) -> bool:
    kinds = (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE)
    return phonenumbers.number_type(number) in kinds


def _parsed(digits: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(digits, region)
    except phonenumbers.NumberParseException:
        return None


def _ip(body: str, version: int | None) -> tuple[Kind, str] | None:
    try:
        address = ipaddress.ip_address(body)
    except ValueError:
        return None
    if version not in (None, address.version) or "%" in body:  # an interface means nothing to another host
        return None
    return (Kind.IPV4 if address.version == 4 else Kind.IPV6), str(address)


def _is_literal(domain: str) -> bool:
    return domain.startswith("[") and domain.endswith("]") and _ip(domain[1:-1].removeprefix("IPv6:"), None) is not None


def _is_ipv6(member: str) -> bool:
    """Whether a member is an IPv6 address, whose first colon opens no group."""
    body = member.partition("@")[0].partition("/")[0].strip("[]")
    return body.count(":") > 1 and _ip(body, 6) is not None
