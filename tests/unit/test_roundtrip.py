"""What is written reads back as it was, in every dialect, whatever the values; and without a single warning."""

from __future__ import annotations

import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm4.protocol.address import SYSTEM_WORDS, Address, Kind
from mm4.protocol.dialect import Dialect, Field, builtin, builtin_names
from mm4.protocol.errors import ProtocolError
from mm4.protocol.headers import Header, join, split
from mm4.protocol.reader import read_message
from mm4.protocol.writer import Verbatim, write, write_value

THREE, TYNTEC = builtin("3gpp"), builtin("tyntec")
BARE = replace(THREE, name="bare", ids="bare")
REQ, RES = "MM4_forward.REQ", "MM4_forward.RES"

PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
LABEL = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)
DOMAIN = st.lists(LABEL, min_size=2, max_size=4).map(".".join)
DIGITS = st.text(string.digits, min_size=7, max_size=15)
ATOM = st.text(string.ascii_letters + "!#$%&'*+=?^_`{|}~.-", min_size=1, max_size=20).filter(
    lambda t: t.lower() not in SYSTEM_WORDS
)
QUOTED = st.text(string.ascii_letters + " ,:;<>@()", min_size=1, max_size=20).filter(lambda t: not t.isalpha())
SIDE = st.one_of(st.none(), DOMAIN)

ADDRESS: dict[Kind, st.SearchStrategy[Address]] = {
    Kind.E164: st.builds(lambda d, where: Address(Kind.E164, f"+{d}", where), DIGITS, SIDE),
    Kind.SHORT_CODE: st.builds(
        lambda d, where: Address(Kind.SHORT_CODE, d, where), st.text(string.digits, min_size=3, max_size=8), SIDE
    ),
    Kind.EMAIL: st.builds(
        lambda local, where: Address(Kind.EMAIL, f"{local}@{where}", where),
        st.one_of(ATOM, QUOTED.map('"{}"'.format)), DOMAIN,
    ),
    Kind.SYSTEM: st.one_of(
        st.builds(lambda w, where: Address(Kind.SYSTEM, w, where), st.sampled_from(sorted(SYSTEM_WORDS)), SIDE),
        st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True).map(lambda w: Address(Kind.SYSTEM, w, None)),
    ),
    Kind.IPV4: st.builds(lambda a, where: Address(Kind.IPV4, str(a), where), st.ip_addresses(v=4), SIDE),
    Kind.IPV6: st.builds(lambda a, where: Address(Kind.IPV6, str(a), where), st.ip_addresses(v=6), SIDE),
}  # fmt: skip
ANYBODY = st.one_of(*ADDRESS.values())
OFFSET = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda m: timezone(timedelta(minutes=m)))
MOMENT = st.datetimes(datetime(1970, 1, 2), datetime(9998, 12, 30), timezones=OFFSET)
DATE = MOMENT.map(lambda moment: moment.replace(microsecond=0))
# Controls are read as blanks and lone surrogates are no text.
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200)
ID = st.text(PRINTABLE, min_size=1, max_size=900)
INDEX = st.integers(0, 999_999)


def one_of(field: Field) -> st.SearchStrategy[Any]:
    """Every value that a field of this kind may have."""
    match field.kind:
        case "version":
            return st.tuples(*[st.integers(0, 999)] * 3).map(lambda v: "{}.{}.{}".format(*v))
        case "id":
            return ID
        case "address":
            return ANYBODY
        case "addresses":
            return st.lists(ANYBODY, min_size=1, max_size=25).map(tuple)
        case "media_type":
            return st.sampled_from(["multipart/related", "text/plain", "application/vnd.3gpp.mms-message", "x-a/b.c+d"])
        case "date":
            return DATE
        case "expiry":
            return st.one_of(DATE, st.integers(0, 9_999_999_999).map(lambda s: timedelta(seconds=s)))
        case "flag":
            return st.booleans()
        case "enumeration":
            return st.sampled_from(field.values)
        case "status":
            return st.sampled_from(sorted(THREE.statuses))
        case "text":
            return TEXT
        case "number":
            return st.integers(0, 999_999_999)
        case "indexed_addresses":
            return st.lists(st.tuples(INDEX, ANYBODY), min_size=1, max_size=6).map(tuple)
        case "indexed_dates":
            return st.lists(st.tuples(INDEX, DATE), min_size=1, max_size=6).map(tuple)
    raise AssertionError(f"no values for {field.kind}")


@st.composite
def values_of(draw: st.DrawFn, dialect: Dialect, pdu: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for row in dialect.pdus[pdu]:
        if row.field != "message_type" and (row.presence == "mandatory" or draw(st.booleans())):
            values[row.field] = draw(one_of(dialect.fields[row.field]))
    return values


def plain(value: Any) -> Any:
    """A value without the text from which it was read."""
    if isinstance(value, Address):
        return value.kind, value.value, value.domain
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


def check(dialect: Dialect, pdu: str, values: dict[str, Any]) -> None:
    message = join(write(pdu, values, dialect), b"body\r\n")
    assert message.isascii()
    found = read_message(message, dialect)
    assert found.problems == ()
    assert found.type == pdu
    wanted = {"message_type": pdu, "mms_version": dialect.version} | values
    assert {k: plain(v) for k, v in found.values.items()} == {k: plain(v) for k, v in wanted.items()}
    assert [p.occurrence for p in found.found["transaction_id"]] == [1]


OTHERS = [*(builtin(name) for name in builtin_names() if name not in ("3gpp", "tyntec")), BARE]


@pytest.mark.parametrize("dialect", [THREE, TYNTEC, *(pytest.param(d, marks=pytest.mark.slow) for d in OTHERS)], ids=lambda d: d.name)
@pytest.mark.parametrize("pdu", sorted(THREE.pdus))
def test_write_then_read_is_identity(dialect: Dialect, pdu: str) -> None:
    @given(values_of(dialect, pdu))
    def every(values: dict[str, Any]) -> None:
        check(dialect, pdu, values)

    every()


@pytest.mark.parametrize("kind", sorted(ADDRESS), ids=str)
def test_every_kind_of_address_survives_every_list(kind: Kind) -> None:
    @given(st.lists(ADDRESS[kind], min_size=1, max_size=8))
    def every(addresses: list[Address]) -> None:
        text = write_value(tuple(addresses), THREE.fields["recipients"], THREE)
        found = read_message(f"X-Mms-Priority: Low\r\nTo: {text}\r\n\r\n".encode())
        assert plain(found.recipients) == plain(tuple(addresses))

    every()


IDS = [
    '""', '"', "\\", '\\"', '"a', 'a"', '"a"', " a", "a ", "  ", '"a" "b"', "a,b", "<a>", "(", "=?utf-8?q?a?=",
    "~" * 900,
]  # fmt: skip


@pytest.mark.parametrize("identifier", IDS, ids=repr)
@pytest.mark.parametrize("dialect", [THREE, BARE], ids=lambda d: d.name)
def test_an_id_of_any_shape_survives(identifier: str, dialect: Dialect) -> None:
    values = {"transaction_id": identifier, "message_id": identifier, "status_code": "Ok"}
    found = read_message(join(write(RES, values, dialect), b""), dialect)
    assert (found.get("transaction_id"), found.get("message_id")) == (identifier, identifier)


@pytest.mark.parametrize("identifier", ["", "a" * 901, "a\x00", "a\tb", "a\nb", "\xe4", "\x7f"], ids=repr)
def test_what_is_no_id_is_never_written(identifier: str) -> None:
    values = {"transaction_id": identifier, "message_id": "m", "status_code": "Ok"}
    with pytest.raises(ProtocolError, match="X-Mms-Transaction-ID: expected an id"):
        write(RES, values, THREE)


@given(st.text(PRINTABLE + '"\\', max_size=60), st.sampled_from([THREE, TYNTEC]))
def test_an_id_is_echoed_byte_for_byte(text: str, dialect: Dialect) -> None:
    field = dialect.fields["transaction_id"]
    assert write_value(Verbatim(text), field, dialect) == text


@given(DATE)
def test_a_date_keeps_its_offset(moment: datetime) -> None:
    text = write_value(moment, THREE.fields["date"], THREE)
    found = read_message(f"X-Mms-Priority: Low\r\nDate: {text}\r\n\r\n".encode()).get("date")
    assert found.isoformat() == moment.isoformat()


def test_an_expiry_is_written_as_http_date() -> None:
    moment = datetime(2026, 11, 19, 2, 28, 2, tzinfo=timezone(timedelta(hours=2)))
    assert write_value(moment, THREE.fields["expiry"], THREE) == "Thu, 19 Nov 2026 00:28:02 GMT"
    assert write_value(timedelta(minutes=10), THREE.fields["expiry"], THREE) == "600"


VALUES = {
    "transaction_id": "t", "message_id": "m", "recipients": (Address(Kind.E164, "+491511000001", None),),
    "sender": Address(Kind.E164, "+447700900002", None), "content_type": "text/plain",
    "date": datetime(2026, 11, 12, 2, 28, 1, tzinfo=UTC), "priority": "High", "ack_request": True,
}  # fmt: skip


def test_the_names_the_order_and_the_letter_case_are_the_dialects() -> None:
    assert write(REQ, VALUES, THREE) == [
        ("X-Mms-3GPP-MMS-Version", "5.5.0"),
        ("X-Mms-Message-Type", "MM4_forward.REQ"),
        ("X-Mms-Transaction-ID", '"t"'),
        ("X-Mms-Message-ID", '"m"'),
        ("To", "+491511000001/TYPE=PLMN"),
        ("From", "+447700900002/TYPE=PLMN"),
        ("Content-Type", "text/plain"),
        ("Date", "Thu, 12 Nov 2026 02:28:01 +0000"),
        ("X-Mms-Priority", "High"),
        ("X-Mms-Ack-Request", "Yes"),
    ]
    assert write(REQ, VALUES, TYNTEC) == [
        ("X-Mms-MMS-Version", "5.5.0"),
        ("X-Mms-MM1-Message-Type", "MM4_Forward.REQ"),
        ("X-Mms-Transaction-ID", '"t"'),
        ("X-Mms-Message-ID", '"m"'),
        ("To", "+491511000001/TYPE=PLMN"),
        ("Content-Type", "text/plain"),
        ("From", "+447700900002/TYPE=PLMN"),
        ("Date", "Thu, 12 Nov 2026 02:28:01 +0000"),
        ("X-Mms-Priority", "High"),
        ("X-Mms-Ack-Request", "Yes"),
    ]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"sender": None}, "From is mandatory in MM4_forward.REQ"),
        ({"recipients": ()}, "To is mandatory"),
        ({"recipients": (Address(Kind.INVALID, "?", None, "?"),)}, "To: '\\?' is no address"),
        ({"priority": "Urgent"}, "X-Mms-Priority: 'Urgent' is none of Low, Normal, High"),
        ({"status_code": "Ok"}, "status_code has no place in MM4_forward.REQ"),
        ({"message_type": "MM4_nonsense.REQ"}, "X-Mms-Message-Type: .* is no message type"),
        ({"transaction_id": Verbatim("a\r\nTo: b")}, "X-Mms-Transaction-ID: .* is not printable US-ASCII"),
        ({"transaction_id": Verbatim("a\nTo: b")}, "X-Mms-Transaction-ID: a line end inside the value"),
        ({"transaction_id": Verbatim("a\n \nb")}, "X-Mms-Transaction-ID: a line end inside the value"),
        ({"transaction_id": Verbatim("\xe4")}, "X-Mms-Transaction-ID: .* is not printable US-ASCII"),
        ({"sender": Address(Kind.EMAIL, "a@b\r\nBcc: c@d", "d")}, "From: .* is not printable US-ASCII"),
    ],
)
def test_what_a_row_does_not_allow_is_an_error_that_names_the_header(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ProtocolError, match=what):
        write(REQ, VALUES | change, THREE)


def test_the_answer_to_a_req_without_ids_can_be_written() -> None:
    lines = write(RES, {"status_code": "Error-message-format-corrupt"}, THREE, partial=True)
    assert [name for name, _ in lines] == ["X-Mms-3GPP-MMS-Version", "X-Mms-Message-Type", "X-Mms-Request-Status-Code"]


NAME = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1)
VALUE = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), max_size=40)


@given(st.lists(st.tuples(NAME, VALUE), min_size=1, max_size=20), st.binary(max_size=200))
def test_split_gives_what_join_put_together(lines: list[tuple[str, str]], body: bytes) -> None:
    headers, rest, numbers = split(join(lines, body))
    assert headers == [Header(name, b" " + value.encode()) for name, value in lines]
    assert rest == body
    assert numbers == list(range(1, len(lines) + 1))
