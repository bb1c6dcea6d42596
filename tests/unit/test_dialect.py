"""The dialect tables: each row has its source and its field, and does what it says."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from fake import req
from mm4.protocol.address import Address, Kind
from mm4.protocol.dialect import Dialect, builtin, builtin_names, read_type
from mm4.protocol.dialecttable import PduRow
from mm4.protocol.errors import DialectError
from mm4.protocol.headers import Header
from mm4.protocol.pdu import Pdu
from mm4.protocol.reader import read
from mm4.protocol.values import READERS, WRITERS
from mm4.protocol.writer import write, write_value

NAMES = builtin_names()
KINDS = ("forward", "delivery_report", "read_reply_report")
SIX = tuple(f"MM4_{kind}.{way}" for kind in KINDS for way in ("REQ", "RES"))

# A good value for every field that a table may call mandatory.
GOOD = {
    "mms_version": b"5.5.0",
    "transaction_id": b'"t-1"',
    "message_id": b'"m-1"',
    "recipients": b"+491511000001/TYPE=PLMN",
    "sender": b"+447700900002/TYPE=PLMN",
    "content_type": b"text/plain",
    "date": b"Thu, 12 Nov 2026 02:28:01 +0200",
    "status_code": b"Ok",
    "mm_status": b"Retrieved",
    "read_status": b"Read",
}
HOPS = {
    "previously_sent_by": b"0, +447700900003/TYPE=PLMN",
    "previously_sent_date": b"0, Fri, 01 Apr 2005 06:02:03 GMT",
}
CORRUPT = "Error-message-format-corrupt"


def mandatory(dialect: Dialect, pdu: str) -> list[str]:
    return [row.field for row in dialect.pdus[pdu] if row.presence == "mandatory"]


def lines(dialect: Dialect, pdu: str, *, leave: str | None = None) -> list[Header]:
    """The least that this PDU may consist of, as the dialect writes it; `leave` names a field to leave out."""
    values = {**GOOD, "message_type": dialect.types[pdu].written.encode()}
    return [Header(dialect.fields[f].header, values[f]) for f in mandatory(dialect, pdu) if f != leave]


def headers(found: Any) -> list[Header]:
    return [Header(name, value) for name, value in found]


EVERY = [(name, pdu) for name in NAMES for pdu in builtin(name).pdus]
DEMANDED = [(name, pdu, field) for name in NAMES for pdu in SIX for field in mandatory(builtin(name), pdu)]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_its_source(name: str) -> None:
    dialect = builtin(name)
    rows = [*dialect.fields.values(), *dialect.types.values(), *(row for rows in dialect.pdus.values() for row in rows)]
    assert len(rows) > 60
    assert [row for row in rows if len(row.source) < 5] == []


@pytest.mark.parametrize(("name", "pdu"), EVERY)
def test_every_row_names_a_field_once(name: str, pdu: str) -> None:
    dialect = builtin(name)
    fields = [row.field for row in dialect.pdus[pdu]]
    assert set(fields) <= dialect.fields.keys()
    assert len(fields) == len(set(fields))
    assert {row.presence for row in dialect.pdus[pdu]} <= set(get_args(PduRow.model_fields["presence"].annotation))
    assert {"mms_version", "message_type", "transaction_id", "message_id"} <= set(fields)


@pytest.mark.parametrize("name", NAMES)
def test_every_pdu_of_the_six_has_rows_and_each_req_its_res(name: str) -> None:
    dialect = builtin(name)
    assert set(dialect.pdus) == set(dialect.types) == set(SIX)
    for pdu in SIX:
        assert dialect.answer_type(pdu) == (pdu.replace(".REQ", ".RES") if pdu.endswith("REQ") else None)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_a_kind_that_can_be_read_and_written(name: str) -> None:
    for field in builtin(name).fields.values():
        assert field.kind in READERS
        assert field.kind in WRITERS
        assert field.kind != "enumeration" or field.strict or field.default in (None, *field.values)


@pytest.mark.parametrize("name", NAMES)
def test_no_header_name_belongs_to_two_fields(name: str) -> None:
    owner: dict[str, str] = {}
    for field in builtin(name).fields.values():
        for header in field.headers:
            assert owner.setdefault(header.lower(), field.name) == field.name, header


@pytest.mark.parametrize(("name", "pdu"), EVERY)
def test_what_is_mandatory_is_enough(name: str, pdu: str) -> None:
    read_back = read(lines(builtin(name), pdu), name)
    assert read_back.problems == ()
    assert read_back.type == pdu


@pytest.mark.parametrize(("name", "pdu", "field"), DEMANDED)
def test_every_mandatory_row_is_demanded(name: str, pdu: str, field: str) -> None:
    dialect = builtin(name)
    found = read(lines(dialect, pdu, leave=field), name)
    assert not found.valid
    (problem,) = found.errors
    assert (problem.field, problem.rule) == (field, "mandatory")
    assert problem.header in (dialect.fields[field].header, None)
    if field == "message_type":
        assert (found.type, found.status) == (None, CORRUPT)
    else:
        assert found.status == (None if pdu.endswith("RES") else CORRUPT)
        assert problem.source == dialect.row_of[pdu, field].source, "the operator is told where that is written"


@pytest.mark.parametrize(("name", "pdu", "field"), [row for row in DEMANDED if row[2] != "message_type"])
def test_an_unreadable_mandatory_value_is_one_error_and_not_two(name: str, pdu: str, field: str) -> None:
    dialect = builtin(name)
    header = dialect.fields[field].header
    if dialect.fields[field].kind == "enumeration" and not dialect.fields[field].strict:
        return  # the default holds
    found = read([Header(header, b"\x01?"), *lines(dialect, pdu, leave=field)], name)
    assert [(p.field, p.rule) for p in found.errors] == [(field, "readable")]


def test_the_tables_that_tyntecs_document_gives() -> None:
    three, tyntec = builtin("3gpp"), builtin("tyntec")
    # Step 1 calls eight mandatory and Content-Type the sixth header; Step 2 calls six mandatory.
    assert mandatory(tyntec, "MM4_forward.REQ") == [
        "mms_version", "message_type", "transaction_id", "message_id", "recipients", "content_type", "sender", "date",
    ]  # fmt: skip
    assert mandatory(tyntec, "MM4_forward.RES") == [
        "mms_version", "message_type", "transaction_id", "message_id", "status_code", "content_type",
    ]  # fmt: skip
    assert mandatory(three, "MM4_forward.RES") == [
        "mms_version", "message_type", "transaction_id", "message_id", "status_code",
    ]  # fmt: skip
    assert tyntec.pdus["MM4_delivery_report.REQ"] == three.pdus["MM4_delivery_report.REQ"]


# What a RES holds in the order in which it is written: the fields that the gateway writes of its own accord.
LONG_RES = [
    "mms_version", "message_type", "transaction_id", "message_id", "status_code", "sender", "recipients", "date",
    "content_type",
]  # fmt: skip
SHAPES = {
    "3gpp": LONG_RES,
    "3gpp-r4": LONG_RES,
    "tyntec": [*LONG_RES[:5], "content_type", "sender", "recipients", "date"],
    "mbuni": [
        "mms_version", "transaction_id", "message_type", "message_id", "status_code", "sender_header", "recipients",
    ],
    "bare-ids": [
        "date", "sender", "recipients", "subject", "content_type", "message_type", "originator_system", "mms_version",
        "request_recipients", "transaction_id", "message_id", "message_class", "status_code",
    ],
    "minimal-res": [
        "sender", "mms_version", "transaction_id", "message_type", "message_id", "status_code", "sender_header",
        "recipients",
    ],
}  # fmt: skip
SHAPES["mixed-body"] = SHAPES["bare-ids"]


@pytest.mark.parametrize("name", NAMES)
def test_the_shape_of_every_res(name: str) -> None:
    dialect = builtin(name)
    written = dialect.written("MM4_forward.RES") | {"message_id"}
    assert [row.field for row in dialect.pdus["MM4_forward.RES"] if row.field in written] == SHAPES[name]
    for pdu in ("MM4_delivery_report.RES", "MM4_read_reply_report.RES"):
        wanted = [f for f in SHAPES["3gpp" if name == "tyntec" else name] if f != "request_recipients"]
        written = dialect.written(pdu) | {"message_id"}
        assert [row.field for row in dialect.pdus[pdu] if row.field in written] == wanted
        assert "status_text" in [row.field for row in dialect.pdus[pdu]]


@pytest.mark.parametrize("name", NAMES)
def test_every_req_names_our_system_and_a_transaction(name: str) -> None:
    for pdu in SIX[::2]:
        assert {"transaction_id", "originator_system"} <= builtin(name).written(pdu)
        assert pdu == "MM4_forward.REQ" or "sender_header" in builtin(name).written(pdu)


RELEASE_6 = {
    "MM4_forward.REQ": {
        "applic_id", "reply_applic_id", "aux_applic_info", "content_class", "drm_content", "adaptation_allowed",
        "mmsip_address", "forward_route", "return_route",
    },
    "MM4_delivery_report.REQ": {
        "forward_to_originator_ua", "mm_status_extension", "applic_id", "reply_applic_id", "aux_applic_info",
    },
    "MM4_read_reply_report.REQ": {"applic_id", "reply_applic_id", "aux_applic_info"},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pdu", RELEASE_6)
def test_the_elements_of_release_6_have_their_place_but_in_release_4(name: str, pdu: str) -> None:
    fields = {row.field: row.presence for row in builtin(name).pdus[pdu]}
    found = RELEASE_6[pdu] & fields.keys()
    assert found == (set() if name == "3gpp-r4" else RELEASE_6[pdu])
    assert "mandatory" not in {fields[f] for f in found}
    later = {"originator_rs_report", "request_recipients"}
    assert not later & fields.keys() or name != "3gpp-r4"


@pytest.mark.parametrize(
    ("header", "text", "field", "value", "noted"),
    [
        ("X-Mms-MM-Status-Extension", b"Rejection-By-MMS-Recipient", "mm_status_extension", "Rejection-By-MMS-Recipient", None),
        ("X-Mms-MM-Status-Extension", b"Rejection-by-Other-RS", "mm_status_extension", "Rejection-By-Other-RS", "spelling"),
        ("X-Mms-MM-Status-Extension", b"Rejected-by-recipient", "mm_status_extension", "Rejection-By-MMS-Recipient", "spelling"),
        ("X-Mms-MM-Status-Extension", b"Rejected-by-other-MMSC", "mm_status_extension", "Rejection-By-Other-RS", "spelling"),
        ("X-Mms-MM-Status-Extension", b"Rejected-by-VAS-area-limit", "mm_status_extension", None, "listed"),
        ("X-Mms-Content-Class", b"megapixel", "content_class", "megapixel", None),
        ("X-Mms-Content-Class", b"hologram", "content_class", None, "listed"),
        ("X-Mms-Drm-Content", b"Yes", "drm_content", True, None),
        ("X-Mms-Adaptation-Allowed", b"perhaps", "adaptation_allowed", False, "spelling"),
        ("X-Mms-Forward-To-Originator-UA", b"Yes", "forward_to_originator_ua", True, None),
        ("X-Mms-Applic-ID", b"com.example.game", "applic_id", "com.example.game", None),
        ("X-Mms-Forward-Route", b"\xe4", "forward_route", "\xe4", "spelling"),
    ],
)
def test_an_element_of_release_6_is_read_and_never_makes_a_report_invalid(
    header: str, text: bytes, field: str, value: object, noted: str | None
) -> None:
    found = read([*lines(builtin("3gpp"), "MM4_delivery_report.REQ"), Header(header, text)])
    assert found.valid
    assert found.get(field) == value
    assert [(p.field, p.rule) for p in found.problems] == ([(field, noted)] if noted else [])


def test_a_value_outside_the_list_is_absent_and_is_not_written_back() -> None:
    dialect = builtin("3gpp")
    pdu = "MM4_delivery_report.REQ"
    found = read([*lines(dialect, pdu), Header("X-Mms-MM-Status-Extension", b"Because")])
    again = write(pdu, found.values, dialect)
    assert "X-Mms-MM-Status-Extension" not in dict(again)
    assert read([Header(name, value.encode()) for name, value in again]).problems == ()


HOP = (Address(Kind.E164, "+447700900003", None), Address(Kind.E164, "+447700900004", None))


def test_a_bare_form_is_written_without_the_type_and_both_forms_are_read() -> None:
    mixed, bare = builtin("mixed-body"), builtin("bare-ids")
    number, elsewhere = HOP[0], Address(Kind.SHORT_CODE, "12345", "mms.peer.example")
    assert write_value((number, elsewhere), mixed.fields["recipients"], mixed) == "+447700900003,\n 12345@mms.peer.example"
    assert write_value((number,), bare.fields["recipients"], bare) == "+447700900003/TYPE=PLMN"
    assert write_value((number,), bare.fields["request_recipients"], bare) == "+447700900003"
    assert write_value(number, mixed.fields["sender"], mixed) == "+447700900003/TYPE=PLMN"
    for text in (b"+447700900003", b"+447700900003/TYPE=PLMN"):
        assert read([Header("To", text), Header("X-Mms-Priority", b"Low")], mixed).recipients[0].value == number.value


def test_an_unindexed_hop_has_an_index_from_the_second_on() -> None:
    mixed, three = builtin("mixed-body"), builtin("3gpp")
    field = mixed.fields["previously_sent_by"]
    texts = [write_value((index, address), field, mixed) for index, address in enumerate(HOP)]
    assert texts == ["+447700900003/TYPE=PLMN", "1, +447700900004/TYPE=PLMN"]
    every = [Header("X-Mms-Forwarded-By", text.encode()) for text in texts]
    for dialect in (mixed, three):
        found = read(every, dialect).get("previously_sent_by")
        assert [(index, address.value) for index, address in found] == [(0, "+447700900003"), (1, "+447700900004")]


def test_mixed_bodys_ids_are_bare_and_mix_their_spelling() -> None:
    mixed = builtin("mixed-body")
    assert mixed.fields["transaction_id"].header == "X-Mms-Transaction-Id"
    assert mixed.fields["message_id"].header == "X-Mms-Message-ID"
    assert write_value("v1.+447700900003", mixed.fields["message_id"], mixed) == "v1.+447700900003"


def test_tyntecs_spelling_of_every_name() -> None:
    tyntec, three = builtin("tyntec"), builtin("3gpp")
    assert {f: row.header for f, row in tyntec.fields.items() if row.header != three.fields[f].header} == {
        "mms_version": "X-Mms-MMS-Version",
        "message_type": "X-Mms-MM1-Message-Type",
        "previously_sent_by": "X-Mms-Previously-Sent-By",
        "previously_sent_date": "Previously-sent-date-and-time",
    }
    assert {name: row.written for name, row in tyntec.types.items()} == {
        "MM4_forward.REQ": "MM4_Forward.REQ",
        "MM4_forward.RES": "MM4_Forward.RES",
        "MM4_delivery_report.REQ": "MM4_Delivery_Report.REQ",
        "MM4_delivery_report.RES": "MM4_Delivery_Report.RES",
        "MM4_read_reply_report.REQ": "MM4_Read_Report.REQ",
        "MM4_read_reply_report.RES": "MM4_Read_Report.RES",
    }


@pytest.mark.parametrize("reader", NAMES)
@pytest.mark.parametrize("writer", NAMES)
def test_every_dialect_reads_every_others_names(reader: str, writer: str) -> None:
    for pdu in SIX:
        dialect = builtin(writer)
        values = {**GOOD, **HOPS, "message_type": dialect.types[pdu].written.encode()}
        rows = [row.field for row in dialect.pdus[pdu] if row.field in values]
        every = [Header(dialect.fields[field].header, values[field]) for field in rows]
        found = read(every, reader)
        assert found.type == pdu
        assert found.valid, found.problems
        wanted = read(every, writer)
        assert found.values == wanted.values
        mine = builtin(reader)
        other = {f for f in rows if mine.fields[f].header.lower() != dialect.fields[f].header.lower()}
        other |= {"message_type"} if mine.types[pdu].written != dialect.types[pdu].written else set()
        assert {p.field for p in found.problems} == other


@pytest.mark.parametrize("reader", NAMES)
@pytest.mark.parametrize(
    ("spelling", "pdu"),
    [
        ("MM4_forward.REQ", "MM4_forward.REQ"),
        ("MM4_Forward.REQ", "MM4_forward.REQ"),
        ("MM4.Forward.REQ", "MM4_forward.REQ"),
        ("MM4_forward_REQ", "MM4_forward.REQ"),
        ("MM4_Forward.RES", "MM4_forward.RES"),
        ("MM4_Delivery_report.REQ", "MM4_delivery_report.REQ"),
        ("MM4_Read_reply_report.REQ", "MM4_read_reply_report.REQ"),
        ("MM4_Read_Report.REQ", "MM4_read_reply_report.REQ"),
        ("MM4.Delivery_Read.REQ", "MM4_read_reply_report.REQ"),
        ("MM4_Read_Report.RES", "MM4_read_reply_report.RES"),
        ("MM4_capability_negotiation.REQ", None),
        ("m-send-req", None),
        ("", None),
    ],
)
def test_a_type_is_read_in_every_spelling_that_was_seen(reader: str, spelling: str, pdu: str | None) -> None:
    assert read_type(spelling, builtin(reader)) == pdu


# Mbuni's pair: the MM1 version and the real one. Either may stand first.
PAIR = [Header("X-Mms-MMS-Version", b"1.0"), Header("X-Mms-3GPP-MMS-Version", b"5.5.0")]


def _with(pair: list[Header]) -> list[Header]:
    rest = headers(req(X_Mms_3GPP_MMS_Version=None))
    return [pair[0], *rest, pair[1]]


@pytest.mark.parametrize("pair", [PAIR, PAIR[::-1]], ids=["alias first", "alias last"])
@pytest.mark.parametrize(("name", "version"), [("3gpp", "5.5.0"), ("tyntec", "1.0")])
def test_a_fields_own_name_wins_over_an_alias(name: str, version: str, pair: list[Header]) -> None:
    found: Pdu = read(_with(pair), name)
    assert found.get("mms_version") == version
    assert found.valid, "two names are not two values"
    assert [p.name for p in found.found["mms_version"]] == [builtin(name).fields["mms_version"].header]
    assert [p.raw for p in found.beside["mms_version"]] == [b"5.5.0" if version == "1.0" else b"1.0"]


def test_of_two_aliases_the_first_line_holds() -> None:
    found = read([*headers(req(X_Mms_3GPP_MMS_Version=None)), Header("X-Mms-3GPP-Version", b"6.1.0"), PAIR[0]])
    assert found.get("mms_version") == "6.1.0"
    assert found.valid


def test_there_is_no_other_dialect() -> None:
    assert NAMES == ("3gpp", "3gpp-r4", "bare-ids", "mbuni", "minimal-res", "mixed-body", "tyntec")
    for name in ("klingon", "all", ""):
        with pytest.raises(DialectError, match=f"there is no dialect '{name}'; there are: 3gpp, 3gpp-r4, bare-ids"):
            builtin(name)


