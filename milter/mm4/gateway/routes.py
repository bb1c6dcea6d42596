"""Where numbers go that we do not serve, as the configuration describes it: rows of eight kinds, told by their key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from ..protocol.located import suggest
from .entries import Duration, ListenOn, Prefix, Text, judged_domain
from .section import Section, place

__all__ = [
    "ELSE", "ROUTES", "DefaultRoute", "DomainRoute", "Enum", "EnumRoute", "Http", "HttpRoute", "PrefixRoute", "Range",
    "RangeRoute", "ReachRoute", "RegexRoute", "Route", "absolute", "named_peers", "plain_domain", "wrong_routes",
]  # fmt: skip

ELSE = "*"
"""In a table of answers: whatever else is answered."""

LOOKUP_SECONDS = 20
"""Seconds that all look-ups of one RCPT may take; Postfix gives up on the milter after 30 (milter_command_timeout)."""

_PLMN = re.compile(r"\bmnc(\d{2,3})\.mcc(\d{3})\.(?:gprs|3gppnetwork\.org)\Z")
_PARTLY = re.compile(r"\bmcc(\d{3})\.3gppnetwork\.org\Z")
_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[!-~]*)?\Z")
_ANSWER = re.compile(r"\*|\+[0-9]{1,15}|[0-9A-Fa-f]{1,20}")

_PEER = "Name of a peer."
_TIMEOUT = "How long one question may take; all of them together at most 20s."


def plain_domain(domain: str) -> str:
    """A domain in the one spelling by which domains are compared: an operator's own (TS 23.003 13, 19.2) has several.

    `mms.mnc01.mcc262.3gppnetwork.org` is `mms.mnc001.mcc262.gprs`: there a code of two digits has a zero before it.
    """
    domain = domain.rstrip(".").lower()
    plain = _PLMN.sub(lambda m: f"mnc{m[1]:0>3}.mcc{m[2]}.gprs", domain)
    return _PARTLY.sub(r"mcc\1.gprs", plain)


def _pattern(text: str) -> str:
    if not text.startswith("*."):
        return judged_domain(text)
    return "*." + judged_domain(text[2:])


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


def _whole_number(text: str) -> str:
    if not re.fullmatch(r"\+[0-9]{7,15}", text):
        raise ValueError(f'{text!r} is no E.164 number: write a plus and 7 to 15 digits, for example "+491511000000"')
    return text


def _url(text: str) -> str:
    if not _URL.match(text.replace("{number}", "").replace("{digits}", "")):
        raise ValueError(f'{text!r} is no address of a service, for example "http://127.0.0.1:8080/np/{{number}}"')
    if not re.search(r"/.*\{(number|digits)\}", text.partition("//")[2]):
        raise ValueError("the path needs {number} (with its plus) or {digits} where the number stands")
    return text


def _steps(text: str) -> str:
    if not all(text.split(".")) or re.search(r"\s", text):
        raise ValueError(f"{text!r} is no path to a value: keys with dots between, for example result.operator")
    return text


def _enum_answer(text: str) -> str:
    if not _ANSWER.fullmatch(text):
        judged_domain(text.removeprefix("*."))
    return plain_domain(text) if "." in text else text


class PrefixRoute(Section):
    """Numbers that begin so."""

    prefix: Prefix = Field(description='Beginning of the E.164 number; "+" is every number.')
    peer: Text = Field(description=_PEER)


class Range(Section):
    """Numbers of one length, from the first to the last."""

    model_config = ConfigDict(populate_by_name=False)

    first: Annotated[Text, AfterValidator(_whole_number)] = Field(alias="from", description="First number.")
    last: Annotated[Text, AfterValidator(_whole_number)] = Field(alias="to", description="Last number.")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if len(self.first) != len(self.last) or self.first > self.last:
            raise ValueError(place("to") + "from and to are numbers of one length, from the lower to the higher")
        return self


class RangeRoute(Section):
    """Numbers within a range; others of another length are none of it."""

    range: Range = Field(description="First and last number of the range, of one length.")
    peer: Text = Field(description=_PEER)


class RegexRoute(Section):
    """Numbers that a regular expression matches from the plus to the last digit."""

    regex: Annotated[Text, AfterValidator(_expression)] = Field(
        description="Regular expression (Python's) that the whole E.164 number matches, its plus included. Nothing "
        "keeps one that takes for ever from being written here; a number has at most 15 digits."
    )
    peer: Text = Field(description=_PEER)


class ReachRoute(Section):
    """Numbers that a list names; the longest prefix in it counts."""

    reach: Text = Field(
        description="CSV file, by its path from this file's folder: a head line with prefix,operator,mcc,mnc,peer "
        "(prefix first, of the others any). Read again when it changes; put a new one in its place by renaming."
    )
    peer: Text | None = Field(None, description="Peer of the rows that name none.")


class DomainRoute(Section):
    """Numbers that the local side addresses in the domain of their operator."""

    domain: Annotated[Text, AfterValidator(_pattern)] = Field(
        description="What stands behind the number in RCPT, where an MMSC found the operator itself; *.example is "
        "every domain below. mms.mncNNN.mccNNN.gprs and .3gppnetwork.org are one, with an MNC of 2 or 3 digits."
    )
    peer: Text = Field(description=_PEER)


class Enum(Section):
    """How ENUM is asked, and what its answers mean."""

    zone: Annotated[Text, AfterValidator(judged_domain)] = Field(
        description="Where numbers stand: e164.arpa, or your own."
    )
    servers: list[ListenOn] = Field(min_length=1, description="Who is asked, one after the other; nobody else is.")
    timeout: Annotated[Duration, Field(ge=1, le=LOOKUP_SECONDS)] = Field(2, description=_TIMEOUT)
    peers: dict[Annotated[str, AfterValidator(_enum_answer)], Text] = Field(
        default_factory=dict,
        description="Domain of a mailto, or beginning of a tel number (of its rn, where it has one), and the peer that "
        'is meant; "*" is everything else. A domain that is not here is looked for in the peers\' `domains`.',
    )


class EnumRoute(Section):
    """Numbers that ENUM knows (RFC 6116, RFC 4355: E2U+mms:mailto and E2U+mms:tel)."""

    enum: Enum = Field(description="How ENUM is asked, and what its answers mean.")


class Http(Section):
    """How a number portability service is asked, and what its answers mean."""

    url: Annotated[Text, AfterValidator(_url)] = Field(
        description="What is asked by GET; {number} is the number with its plus (%2B), {digits} without."
    )
    value: Annotated[Text, AfterValidator(_steps)] = Field(
        alias="json",
        description="Where in the JSON the value stands, keys with dots between; null there, and status 404, say that "
        "the number is not known, and the next row is asked."
    )
    timeout: Annotated[Duration, Field(ge=1, le=LOOKUP_SECONDS)] = Field(2, description=_TIMEOUT)
    cache: Duration = Field(3600, description="How long an answer is kept, one that the number is not known too.")
    ca: Text | None = Field(None, description="PEM file of the authorities for https. Default: the system's.")
    peers: dict[str, Text] = Field(
        default_factory=dict,
        description='Value and the peer that is meant; "*" is everything else. Left out: the value is a peer\'s name.',
    )


class HttpRoute(Section):
    """Numbers that a number portability service knows."""

    http: Http = Field(description="How the service is asked, and what its answers mean.")


class DefaultRoute(Section):
    """All other numbers."""

    default: Text = Field(description="Name of the peer for every number that no row before has; the last row.")


ROUTES: dict[str, type[Section]] = {
    "prefix": PrefixRoute,
    "range": RangeRoute,
    "regex": RegexRoute,
    "reach": ReachRoute,
    "domain": DomainRoute,
    "enum": EnumRoute,
    "http": HttpRoute,
    "default": DefaultRoute,
}
"""The kinds of rows, by the key that tells them."""


def _row_kind(value: Any) -> str:
    """The key that tells what kind of row this is; the first of them, and `prefix` where there is none."""
    if isinstance(value, Section):
        return next(key for key, model in ROUTES.items() if isinstance(value, model))
    return next((key for key in ROUTES if isinstance(value, dict) and key in value), "prefix")


def _one_kind(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kinds = [key for key in value if key in ROUTES]
    if len(kinds) > 1:
        raise ValueError(f"a row is of one kind, and this one has {' and '.join(kinds)}; write a row for each")
    if not kinds:
        strange = next((str(key) for key in value if key != "peer"), "")
        hint = suggest(strange, ROUTES) if strange else ""
        raise ValueError(f"a row needs one of {', '.join(ROUTES)}{hint if hint.startswith('; did') else ''}")
    return value


# The tags hold a blank, so that they cannot be taken for a key of the file.
Route: TypeAlias = Annotated[
    Annotated[PrefixRoute, Tag("prefix row")]
    | Annotated[RangeRoute, Tag("range row")]
    | Annotated[RegexRoute, Tag("regex row")]
    | Annotated[ReachRoute, Tag("reach row")]
    | Annotated[DomainRoute, Tag("domain row")]
    | Annotated[EnumRoute, Tag("enum row")]
    | Annotated[HttpRoute, Tag("http row")]
    | Annotated[DefaultRoute, Tag("default row")],
    Discriminator(lambda value: f"{_row_kind(value)} row"),
    BeforeValidator(_one_kind),
]


def named_peers(route: Route) -> Iterator[tuple[tuple[str, ...], str]]:
    """The peers that a row names, each with its place in the row."""
    match route:
        case DefaultRoute():
            yield ("default",), route.default
        case EnumRoute():
            yield from ((("enum", "peers", key), peer) for key, peer in route.enum.peers.items())
        case HttpRoute():
            yield from ((("http", "peers", key), peer) for key, peer in route.http.peers.items())
        case _:
            if route.peer is not None:
                yield ("peer",), route.peer


def wrong_routes(routes: list[Route], peers: dict[str, Any]) -> list[str]:
    """What is wrong with the rows among one another and with the peers, each with its place."""
    known = ", ".join(peers) or "none"
    problems = [
        place("routes", i, *key) + f"no peer is named {peer!r}; there are: {known}"
        for i, route in enumerate(routes)
        for key, peer in named_peers(route)
        if peer not in peers
    ]
    problems += [
        place("routes", i, "default") + "the rows behind this one are never asked; put it last"
        for i, route in enumerate(routes[:-1])
        if isinstance(route, DefaultRoute)
    ]
    seconds = 0
    for i, route in enumerate(routes):
        key: Literal["enum", "http"] = "enum" if isinstance(route, EnumRoute) else "http"
        asked = getattr(route, key, None)
        seconds += asked.timeout if asked else 0
        if asked and seconds - asked.timeout <= LOOKUP_SECONDS < seconds:
            problems.append(
                place("routes", i, key, "timeout") + f"the look-ups of one number may take {seconds}s up to this row; "
                f"Postfix waits 30 s for a recipient, so give them {LOOKUP_SECONDS}s in all"
            )
    return problems


def absolute(route: Route, base: PurePath) -> Route:
    """The row with the files that it names by their paths from `base`."""
    if isinstance(route, ReachRoute):
        return route.model_copy(update={"reach": str(base / route.reach)})
    if isinstance(route, HttpRoute) and route.http.ca is not None:
        return HttpRoute(http=route.http.model_copy(update={"ca": str(base / route.http.ca)}))
    return route
