"""One value of the configuration: how an address, a domain, a prefix, a network or an endpoint is judged.

Each is an annotated type for the sections in `config`; what is wrong with a value is a ValueError whose text says what
is expected.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, TypeAlias

import phonenumbers
from pydantic import AfterValidator, BeforeValidator

from .names import PRIVATE_DOMAIN
from .quantity import parse_duration, parse_size

__all__ = [
    "Domain",
    "Duration",
    "Endpoint",
    "FileName",
    "Fingerprint",
    "IPNetwork",
    "ListenOn",
    "NetworkName",
    "NextHop",
    "OrOff",
    "Prefix",
    "Region",
    "Size",
    "StoreUrl",
    "SystemAddress",
    "Text",
    "address_of",
    "domain_of",
    "fingerprint_of",
    "judged_domain",
    "one_or_many",
    "parse_next_hop",
]

IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)\Z")
_FILE = re.compile(r"[\w./+@=~-]+\Z", re.ASCII)  # main.cf separates by blanks and commas, and expands $ and {}
_NEXT_HOP = re.compile(r"(?:\[(?P<literal>[^\]\s]+)\]|(?P<name>[^\s:\[\]]+))(?::(?P<port>\d{1,5}))?\Z")


def domain_of(address: str) -> str:
    """The part behind the last `@`, in lower case."""
    return address.rpartition("@")[2].lower()


def parse_next_hop(text: str) -> tuple[str, int | None, bool]:
    """Host, port (None where not said) and whether it stood in brackets, which skips the MX look-up.

    Raises ValueError where Postfix could not use it.
    """
    match = _NEXT_HOP.match(text)
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise ValueError('a next hop is written as Postfix wants it: "[192.0.2.10]:25", "[host]:port" or "domain"')
    literal = match["literal"]
    return literal or match["name"], int(match["port"]) if match["port"] else None, literal is not None


def address_of(next_hop: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a next hop is; None where it is a name. Raises ValueError as `parse_next_hop`."""
    host, _, literal = parse_next_hop(next_hop)
    try:
        return ipaddress.ip_address(host.lower().removeprefix("ipv6:")) if literal else None
    except ValueError:
        return None


def _string(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        raise ValueError(
            f"has to be a quoted string: YAML read a {type(value).__name__} ({value!r}) here; "
            'put it in quotes, for example "+49160"'
        )
    return value


def judged_domain(text: str) -> str:
    """A domain name in lower case. Raises ValueError for what is none, and for the gateway's own name space."""
    labels = text.split(".")
    if len(text) > 253 or len(labels) < 2 or not all(_LABEL.match(label) for label in labels):
        raise ValueError(f"{text!r} is no domain name, for example mms.mnc001.mcc262.gprs")
    if ("." + text.lower()).endswith("." + PRIVATE_DOMAIN):
        raise ValueError(f"{PRIVATE_DOMAIN} is this gateway's own name space")
    return text.lower()


_PLAIN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.ASCII | re.IGNORECASE)
"""Local parts that are good without a question (RFC 5321 section 4.1.2, Dot-string), up to 64 octets."""


def _email(text: str) -> str:
    """email-validator judges what we are given to write; special-use domains are ours to allow (.gprs, .test)."""
    localpart, at, domain = text.rpartition("@")
    if not at:
        raise ValueError(f"{text!r} is no address, for example system-user@mms.mnc001.mcc262.gprs")
    judged_domain(domain)
    if len(localpart) <= 64 and _PLAIN.fullmatch(localpart):
        return f"{localpart}@{domain.lower()}"
    # As a rule it is plain, and the library takes as long to load as everything else of a configuration to read.
    from email_validator import EmailNotValidError, validate_email  # noqa: PLC0415

    try:
        # The domain is judged above (MM4 domains such as .gprs are not in DNS); the local part by the library.
        validate_email(f"{localpart}@mail.com", check_deliverability=False)
    except EmailNotValidError as error:
        raise ValueError(f"{text!r} is no address: {error}") from None
    return f"{localpart}@{domain.lower()}"


def _prefix(text: str) -> str:
    if not re.fullmatch(r"\+[0-9]{0,15}", text):
        raise ValueError(f'{text!r} is no number prefix: write a plus and digits in quotes, for example "+49160"')
    return text


def _network(value: str) -> IPNetwork:
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is no network: {error}; for example 192.0.2.10/32 or 2001:db8::/48") from None
    if network.version == 6 and network.subnet_of(_MAPPED):
        # Such a client is an IPv4 client, to Postfix and to us.
        host = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        raise ValueError(f"{value!r} is IPv4 in another form; write {host}/{network.prefixlen - 96}")
    return network


def fingerprint_of(text: str) -> str:
    """A SHA-256 fingerprint as Postfix writes it: 32 pairs of capital digits with colons. Raises ValueError."""
    digits = text.replace(":", "").upper()
    if not re.fullmatch(r"[0-9A-F]{64}", digits):
        raise ValueError(
            f"{text!r} is no SHA-256 fingerprint (32 pairs of hexadecimal digits): "
            "openssl x509 -in cert.pem -noout -fingerprint -sha256 prints it"
        )
    return ":".join(digits[i : i + 2] for i in range(0, 64, 2))


def _file(text: str) -> str:
    if not _FILE.match(text):
        raise ValueError(f"{text!r}: Postfix cannot be told this path; use letters, digits and . _ + @ = ~ - only")
    return text


def _store(text: str) -> str:
    # The text itself stays out of the message: it may hold a password.
    if not re.match(r"(sqlite:///|postgresql(\+psycopg)?://)[^\s]", text):
        raise ValueError(
            "a store is sqlite:////absolute/path/mm4.db, sqlite:///path from this file's folder, or "
            "postgresql://user@host/name"
        )
    return text


def _region(text: str) -> str:
    if text.upper() not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"{text.upper()!r} is no ISO 3166 country with a numbering plan, for example DE")
    return text.upper()


def _hop(text: str) -> str:
    host, _, literal = parse_next_hop(text)
    if literal and ":" in host and address_of(text) is None:
        raise ValueError(f'{text!r} holds no IPv6 address; it is written "[2001:db8::1]:25"')
    return text


Text = Annotated[str, BeforeValidator(_string)]
Domain = Annotated[Text, AfterValidator(judged_domain)]
SystemAddress = Annotated[Text, AfterValidator(_email)]
Prefix = Annotated[Text, AfterValidator(_prefix)]
NetworkName = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(lambda v: _network(_string(v)))]
Fingerprint = Annotated[Text, AfterValidator(fingerprint_of)]
FileName = Annotated[Text, AfterValidator(_file)]
"""A path that Postfix is told."""
Region = Annotated[Text, AfterValidator(_region)]
NextHop = Annotated[Text, AfterValidator(_hop)]
StoreUrl = Annotated[Text, AfterValidator(_store)]
# YAML reads the plain word off as false, which is what somebody who writes it here means.
OrOff = BeforeValidator(lambda value: "off" if value is False else value)
one_or_many = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
"""For keys that take one value or a list."""
Size = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[int, BeforeValidator(parse_duration)]


class Endpoint(str):
    """`address:port` to listen on or to connect to; IPv6 in brackets."""

    __slots__ = ()

    @property
    def host(self) -> str:
        """The address without brackets."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.rpartition(":")[2])


def _endpoint(value: Any) -> Endpoint:
    text = _string(value)
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    try:
        if not (colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError("no port")
        address = ipaddress.ip_address(host.strip("[]"))
        if (address.version == 6) != host.startswith("["):
            raise ValueError("IPv6 stands in brackets")
    except ValueError:
        raise ValueError(f'{value!r} is no address with a port such as "192.0.2.1:25" or "[2001:db8::1]:25"') from None
    return Endpoint(text)


ListenOn = Annotated[Endpoint, BeforeValidator(_endpoint)]
