"""How an address is written towards one side: a template with names in braces for what differs.

The exact spelling is `{number}/TYPE=PLMN@{domain}`; a link may want the digits alone, a national number, or the domain
of the number's own operator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated

import phonenumbers
from pydantic import AfterValidator

from ..protocol.address import Address, Kind
from .entries import Text, judged_domain

__all__ = ["NAMES", "DeliverTo", "HeaderForm", "RecipientForm", "SenderForm", "fill", "names_in"]

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "number": "the E.164 number with its plus, or the short code",
        "digits": "the same without plus",
        "national": "the number as it is dialled in its own country, trunk prefix included; a short code as it is",
        "domain": "the domain of the side",
        "mcc": "mobile country code of the number's operator, three digits, where a route tells it",
        "mnc": "mobile network code of the number's operator, three digits, where a route tells it",
    }
)
"""What may stand in braces."""

_SUBSCRIBER = frozenset({"number", "digits", "national"})
_NAME = re.compile(r"\{([^{}]*)\}")
_FORBIDDEN = re.compile(r"[^\x21-\x7e]|[<>(){}\[\],;:\\\"]")


def names_in(template: str) -> frozenset[str]:
    """The names that a template holds."""
    return frozenset(_NAME.findall(template))


def fill(template: str, address: Address, *, domain: str, operator: tuple[str, str] | None = None) -> str | None:
    """The address of a subscriber by a template; None where it needs the operator and nobody told who that is.

    `operator` is MCC and MNC. The address is an E.164 number or a short code.
    """
    needed = names_in(template)
    if operator is None and needed & {"mcc", "mnc"}:
        return None
    mcc, mnc = operator or ("", "")
    values = {
        "number": address.value,
        "digits": address.value.removeprefix("+"),
        "domain": domain,
        "mcc": mcc,
        # TS 23.003: always three digits in the domain of an operator.
        "mnc": mnc.zfill(3),
    }
    if "national" in needed:
        values["national"] = _national(address.value) if address.kind is Kind.E164 else address.value
    return _NAME.sub(lambda match: values[match[1]], template)


@lru_cache(maxsize=4096)
def _national(number: str) -> str:
    """The national form, digits only; the number without plus where its country is unknown."""
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return number.removeprefix("+")
    digits = re.sub(r"\D", "", phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.NATIONAL))
    bare = phonenumbers.national_significant_number(parsed)
    region = phonenumbers.region_code_for_country_code(parsed.country_code or 0)
    # A number that fits no pattern of its plan is formatted without its trunk prefix.
    if digits == bare and phonenumbers.ndd_prefix_for_region(region, True) == "0":
        return f"0{bare}"
    return digits


def _judged(text: str, example: str) -> str:
    """A template that can be filled. Raises ValueError."""
    unknown = sorted(names_in(text) - NAMES.keys())
    if unknown:
        raise ValueError(f"{{{unknown[0]}}} is no name; there are " + ", ".join(f"{{{name}}}" for name in NAMES))
    if _FORBIDDEN.search(_NAME.sub("", text)):
        raise ValueError(f"{text!r} holds a character that no address has here, for example {example!r}")
    if not names_in(text.partition("@")[0]) & _SUBSCRIBER:
        raise ValueError(f"{text!r} needs {{number}}, {{digits}} or {{national}} before the @, for example {example!r}")
    return text


def _with_domain(text: str, example: str) -> str:
    _judged(text, example)
    localpart, at, domain = text.rpartition("@")
    if not at:
        raise ValueError(f"{text!r} needs a domain, for example {example!r}")
    if names_in(domain) & _SUBSCRIBER:
        raise ValueError(f"{text!r}: a number stands before the @, for example {example!r}")
    # Three digits stand for what is filled in later.
    judged_domain(_NAME.sub(lambda match: "a.example" if match[1] == "domain" else "001", domain))
    return f"{localpart}@{domain}"


def _recipient(text: str) -> str:
    return _with_domain(text, "{number}/TYPE=PLMN@{domain}")


def _sender(text: str) -> str:
    text = _with_domain(text, "{number}/TYPE=PLMN@{domain}")
    if text.rpartition("@")[2] != "{domain}":
        raise ValueError(f"{text!r} has to end in @{{domain}}: bounces come home by our own domain")
    if "national" in names_in(text):
        raise ValueError(f"{text!r}: a sender's bounces find home by the E.164 number, so use {{number}} or {{digits}}")
    return text


def _header(text: str) -> str:
    if names_in(text) & {"mcc", "mnc"}:
        raise ValueError(f"{text!r}: a header names many operators' numbers, so it holds no {{mcc}} and no {{mnc}}")
    if "@" in text:
        return _with_domain(text, "{number}/TYPE=PLMN@{domain}")
    return _judged(text, "{number}/TYPE=PLMN")


def _deliver_to(text: str) -> str:
    example = "{number}@mmsc.example.net"
    _with_domain(text, example)
    if names_in(text) & {"domain", "mcc", "mnc"}:
        raise ValueError(f"{text!r}: only the number differs on the local side, for example {example!r}")
    return text


RecipientForm = Annotated[Text, AfterValidator(_recipient)]
SenderForm = Annotated[Text, AfterValidator(_sender)]
HeaderForm = Annotated[Text, AfterValidator(_header)]
DeliverTo = Annotated[Text, AfterValidator(_deliver_to)]
