"""A dialect file: everything that it may not say is told with its line and the reason, and the rest is taken."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fake import req
from mm4.postfix.settings import read_dialect
from mm4.protocol import dialect as tables
from mm4.protocol.dialect import builtin, builtin_names
from mm4.protocol.dialectfile import checked, parse_dialect
from mm4.protocol.dialecttable import FieldRow, PduRow, StatusRow, Table, TypeRow
from mm4.protocol.errors import ConfigError, DialectError
from mm4.protocol.headers import Header
from mm4.protocol.located import models
from mm4.protocol.reader import read
from mm4.protocol.writer import write

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "dialects.md").read_text("utf-8")
NAME = "/etc/mm4/harbour.yaml"

# Line numbers of what the cases below change: 1 name, 5 types, 7 fields, 11 statuses, 13 pdus.
GOOD = """\
name: harbour
extends: bare-ids
title: An invented operator
version: "6.3.0"
types:
  MM4_forward.REQ: {written: MM4_FORWARD.REQ, source: a trace}
fields:
  priority: {header: X-Mms-Prio, spellings: {Urgent: High}, source: a trace}
  message_class: {values: [Personal, Advertisement, Informational, Auto, Test], source: a trace}
  sender: {aliases: [X-Mms-Sender-Address], source: a trace}
statuses:
  Ok: {spellings: [Fine], source: a trace}
pdus:
  MM4_delivery_report.RES:
    - {field: message_type, presence: mandatory, source: a trace}
    - {field: mms_version, presence: mandatory, source: a trace}
    - {field: transaction_id, presence: mandatory, source: a trace}
    - {field: message_id, presence: optional, source: a trace}
    - {field: status_code, presence: mandatory, source: a trace}
"""
RES = "  MM4_forward.RES:"
REQ = "  MM4_forward.REQ:"

# A whole REQ, for cases that take one row from it; its rows stand on lines 15 to 24.
ROWS = """\
  MM4_read_reply_report.REQ:
    - {field: mms_version, presence: mandatory, source: x}
    - {field: message_type, presence: mandatory, source: x}
    - {field: transaction_id, presence: mandatory, source: x}
    - {field: message_id, presence: mandatory, source: x}
    - {field: sender, presence: mandatory, source: x}
    - {field: recipients, presence: mandatory, source: x}
    - {field: ack_request, presence: optional, source: x}
    - {field: originator_system, presence: optional, complete: true, source: x}
    - {field: read_status, presence: mandatory, source: x}
"""
WHOLE = GOOD[: GOOD.index("  MM4_delivery")] + ROWS

PRIORITY = "  priority: {header: X-Mms-Prio, spellings: {Urgent: High}, source: a trace}"
CLASS = "  message_class: {values: [Personal, Advertisement, Informational, Auto, Test], source: a trace}"
BYTES = "ids are compared byte for byte: a dialect may name their header, nothing else"
THERE_ARE = "3gpp, 3gpp-r4, bare-ids, mbuni, minimal-res, mixed-body, tyntec"


def problems(text: str, name: str = NAME) -> list[str]:
    with pytest.raises(DialectError) as caught:
        parse_dialect(text, name)
    assert all(p.isprintable() for p in caught.value.problems)
    return caught.value.problems


def changed(old: str, new: str, text: str = GOOD) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def instead(row: str) -> str:
    """The table with another row of `fields` for priority's, on line 8."""
    return changed(PRIORITY, "  " + row)


# What is wrong, the line, the place, the whole text.
REFUSED: list[tuple[str, int, str, str]] = [
    # the head
    (changed("name: harbour", "name: harbour\nnam: x"), 2, "nam", "unknown key; did you mean name?"),
    (changed("name: harbour", "name: Harbour"), 1, "name", "'Harbour' is no dialect name: 1 to 30 of a-z, 0-9 and -, and not all"),
    (changed("name: harbour", "name: all"), 1, "name", "'all' is no dialect name: 1 to 30 of a-z, 0-9 and -, and not all"),
    (changed("name: harbour", "name: 7"), 1, "name", "expects a quoted string, found 7"),
    (changed("name: harbour", "name: tyntec"), 1, "name", "'tyntec' is built in; give yours a name of its own"),
    (changed("extends: bare-ids\n", ""), 1, "extends", f"has to be given: one of {THERE_ARE}"),
    (changed("extends: bare-ids", "extends: bare_ids"), 2, "extends", "there is no dialect 'bare_ids'; did you mean bare-ids?"),
    (changed("extends: bare-ids", "extends: klingon"), 2, "extends", f"there is no dialect 'klingon'; there are: {THERE_ARE}"),
    (changed("extends: bare-ids", "extends: ./other.yaml"), 2, "extends", f"there is no dialect './other.yaml'; there are: {THERE_ARE}"),
    (changed("title: An invented operator\n", ""), 1, "title", "has to be given"),
    (changed('"6.3.0"', '"6.3"'), 4, "version", "'6.3' is no version of three numbers, for example \"5.5.0\""),
    (changed('"6.3.0"', "6.3"), 4, "version", "expects a quoted string, found 6.3"),
    (changed('version: "6.3.0"', "ids: loose"), 4, "ids", "expects 'quoted' or 'bare', found 'loose'"),
    (changed("statuses:", "colour: red\nstatuses:"), 11, "colour", "unknown key; known here: name, extends, title, version, ids, types, fields, statuses, pdus"),
    (changed("statuses:\n", "statuses:\n  Ok: {spellings: [Good], source: x}\n"), 13, "statuses.Ok", "stands here twice (line 12); keep one"),
    # message types
    (changed("MM4_forward.REQ:", "MM4_forwrd.REQ:"), 6, "types.MM4_forwrd.REQ", "there is no message type 'MM4_forwrd.REQ': a dialect spells types, it makes none; did you mean MM4_forward.REQ?"),
    (changed("source: a trace}\nfields", "answer: MM4_forward.RES, source: a trace}\nfields"), 6, "types.MM4_forward.REQ.answer", "what a message type is answered with is 3GPP's, not the dialect's"),
    (changed("MM4_FORWARD.REQ", "MM4_FORWARD.RES"), 6, "types.MM4_forward.REQ.written", "'MM4_FORWARD.RES' is no spelling of it: letters, digits, . _ and -, and REQ at its end"),
    (changed("MM4_FORWARD.REQ", "'MM4 forward REQ'"), 6, "types.MM4_forward.REQ.written", "'MM4 forward REQ' is no spelling of it: letters, digits, . _ and -, and REQ at its end"),
    (changed("MM4_FORWARD.REQ", "MM4_Read_Report.REQ"), 6, "types.MM4_forward.REQ.written", "'MM4_Read_Report.REQ' is read as MM4_read_reply_report.REQ already"),
    (changed("written: MM4_FORWARD.REQ", "aliases: [MM4-delivery-report-REQ]"), 6, "types.MM4_forward.REQ.aliases[0]", "'MM4-delivery-report-REQ' is read as MM4_delivery_report.REQ already"),
    (changed("{written: MM4_FORWARD.REQ, source: a trace}", "{written: MM4_FORWARD.REQ}"), 6, "types.MM4_forward.REQ.source", "has to be given"),
    # fields
    (instead("priorty: {header: X-Mms-Prio, source: x}"), 8, "fields.priorty", "there is no field 'priorty'; did you mean priority?"),
    (instead("priority: {heder: X-Mms-Prio, source: x}"), 8, "fields.priority.heder", "unknown key; did you mean header?"),
    (instead("priority: {header: X-Mms-Prio}"), 8, "fields.priority.source", "has to be given"),
    (instead("priority: X-Mms-Prio"), 8, "fields.priority", "expects keys with values, found 'X-Mms-Prio'"),
    (instead("priority: {header: [X-Mms-Prio], source: x}"), 8, "fields.priority.header", "expects a quoted string, found ['X-Mms-Prio']"),
    (instead("priority: {kind: text, source: x}"), 8, "fields.priority.kind", "not the dialect's to say: the gateway knows what kind of value a field holds"),
    (instead("priority: {default: High, source: x}"), 8, "fields.priority.default", "not the dialect's to say: TS 23.140 says what holds where a value is not known"),
    (instead("priority: {strict: true, source: x}"), 8, "fields.priority.strict", "not the dialect's to say: whether an unknown value is an error follows from what the field decides"),
    (instead("recipients: {also: [Bcc], source: x}"), 8, "fields.recipients.also[0]", "Bcc is a header of mail itself; a field of MM4 cannot have it"),
    (instead("recipients: {also: [X-Mms-To], source: x}"), 8, "fields.recipients.also", "not the dialect's to say: the gateway knows which headers make one list"),
    (instead("sender_header: {form: unindexed, source: x}"), 8, "fields.sender_header.form", "unindexed is a form of indexed_addresses; sender_header is address"),
    (instead("previously_sent_by: {form: bare, source: x}"), 8, "fields.previously_sent_by.form", "bare is a form of address and addresses; previously_sent_by is indexed_addresses"),
    (instead("recipients: {form: short, source: x}"), 8, "fields.recipients.form", "expects 'bare' or 'unindexed', found 'short'"),
    # ids
    *((instead(f"transaction_id: {{{key}: {value}, source: x}}"), 8, f"fields.transaction_id.{key}", BYTES)
      for key, value in (("lenient", "true"), ("strict", "true"), ("kind", "id"), ("default", "x"), ("values", "[x]"),
                         ("spellings", "{a: b}"), ("form", "bare"), ("also", "[X-Mms-Id]"))),
    (instead("message_id: {lenient: true, source: x}"), 8, "fields.message_id.lenient", BYTES),
    (instead("message_id: {kind: text, source: x}"), 8, "fields.message_id.kind", BYTES),
    # what must be readable
    (instead("sender: {lenient: true, source: x}").replace("  sender: {aliases: [X-Mms-Sender-Address], source: a trace}\n", ""), 8, "fields.sender.lenient", "sender has to be readable: an originator that cannot be read is answered Error-sending-address-unresolved"),
    (instead("status_code: {lenient: true, source: x}"), 8, "fields.status_code.lenient", "status_code has to be readable: an unknown status is no success"),
    (instead("mm_status: {lenient: true, source: x}"), 8, "fields.mm_status.lenient", "mm_status has to be readable: the report says nothing else"),
    (instead("read_status: {lenient: true, source: x}"), 8, "fields.read_status.lenient", "read_status has to be readable: the report says nothing else"),
    (instead("message_type: {lenient: true, source: x}"), 8, "fields.message_type.lenient", "message_type has to be readable: nothing else tells what the mail is"),
    (instead("mms_version: {lenient: true, source: x}"), 8, "fields.mms_version.lenient", "mms_version has to be readable: every PDU names its version"),
    (instead("forward_counter: {lenient: true, source: x}"), 8, "fields.forward_counter.lenient", "forward_counter has to be readable: it ends loops"),
    (instead("previously_sent_by: {lenient: true, source: x}"), 8, "fields.previously_sent_by.lenient", "previously_sent_by has to be readable: it ends loops"),
    # header names
    (instead("priority: {header: 'X-Mms Prio', source: x}"), 8, "fields.priority.header", "'X-Mms Prio' is no header name: 1 to 70 printable US-ASCII characters without colon"),
    (instead("priority: {header: 'X-Mms-Prio:', source: x}"), 8, "fields.priority.header", "'X-Mms-Prio:' is no header name: 1 to 70 printable US-ASCII characters without colon"),
    (instead("priority: {header: X-Mms-Größe, source: x}"), 8, "fields.priority.header", "'X-Mms-Größe' is no header name: 1 to 70 printable US-ASCII characters without colon"),
    (instead("priority: {header: '', source: x}"), 8, "fields.priority.header", "'' is no header name: 1 to 70 printable US-ASCII characters without colon"),
    *((instead(f"priority: {{header: {header}, source: x}}"), 8, "fields.priority.header", f"{header} is a header of mail itself; a field of MM4 cannot have it")
      for header in ("Received", "DKIM-Signature", "Return-Path", "bcc", "Message-ID", "Content-Transfer-Encoding", "Resent-To", "Priority")),
    (instead("priority: {aliases: [X-Mms-Prio, List-Id], source: x}"), 8, "fields.priority.aliases[1]", "List-Id is a header of mail itself; a field of MM4 cannot have it"),
    (instead("priority: {header: Subject, source: x}"), 8, "fields.priority.header", "Subject is the name of subject already: two fields cannot share a header"),
    (instead("priority: {header: x-mms-status-code, source: x}"), 8, "fields.priority.header", "x-mms-status-code is the name of status_code already: two fields cannot share a header"),
    (instead("priority: {aliases: [X-Mms-Sender-Address], source: x}"), 10, "fields.sender.aliases[0]", "X-Mms-Sender-Address is the name of priority already: two fields cannot share a header"),
    (instead("date: {header: X-Mms-Date, source: x}"), 8, "fields.date.header", "mail needs Date, so date stays there; aliases name where it is read too"),
    (changed("aliases: [X-Mms-Sender-Address]", "header: X-Mms-Sender-Address"), 10, "fields.sender.header", "mail needs From, so sender stays there; aliases name where it is read too"),
    # enumerations
    (changed(CLASS, CLASS.replace("Auto, ", "")), 9, "fields.message_class.values", "Auto is missing: a dialect may add values, not take any away"),
    (instead("mm_status: {values: [Retrieved], source: x}"), 8, "fields.mm_status.values", "these are what the gateway reports; a peer's other word goes into spellings"),
    (instead("read_status: {values: [Read, 'Deleted without being read', Seen], source: x}"), 8, "fields.read_status.values", "these are what the gateway reports; a peer's other word goes into spellings"),
    (instead("subject: {values: [x], source: x}"), 8, "fields.subject.values", "subject is no enumeration but text"),
    (instead("ack_request: {spellings: {Ja: 'Yes'}, source: x}"), 8, "fields.ack_request.spellings", "ack_request is no enumeration but flag"),
    (instead("priority: {spellings: {Urgent: Top}, source: x}"), 8, "fields.priority.spellings.Urgent", "'Top' is none of Low, Normal, High"),
    (instead("priority: {spellings: {low: High}, source: x}"), 8, "fields.priority.spellings.low", "'low' is read as Low already"),
    (instead("mm_status: {spellings: {Forwarded-To-MMBox: Retrieved}, source: x}"), 8, "fields.mm_status.spellings.Forwarded-To-MMBox", "'Forwarded-To-MMBox' is read as Forwarded already"),
    (instead("priority: {spellings: {Urgent: 3}, source: x}"), 8, "fields.priority.spellings.Urgent", "expects a quoted string, found 3"),
    # statuses
    (changed("  Ok: {", "  Okay: {"), 12, "statuses.Okay", "there is no request status 'Okay': a dialect spells codes, it makes none; did you mean Ok?"),
    (changed("spellings: [Fine]", "number: 128"), 12, "statuses.Ok.number", "not the dialect's to say: a number means one status everywhere"),
    (changed("[Fine]", "['129']"), 12, "statuses.Ok.spellings[0]", "'129' is read as Error-unspecified already"),
    (changed("[Fine]", "[Error_Service_Denied]"), 12, "statuses.Ok.spellings[0]", "'Error_Service_Denied' is read as Error-service-denied already"),
    (changed("[Fine]", "['-']"), 12, "statuses.Ok.spellings[0]", "'-' holds no letter or digit"),
    (changed("[Fine], source: a trace", "[Fine]"), 12, "statuses.Ok.source", "has to be given"),
    # PDUs
    (changed("  MM4_delivery_report.RES:", "  MM4_delivery.RES:"), 14, "pdus.MM4_delivery.RES", "there is no message type 'MM4_delivery.RES'; did you mean MM4_delivery_report.RES?"),
    (changed("field: status_code, ", "field: statuscode, ").replace("    - {field: statuscode", "    - {field: status_code, presence: mandatory, source: x}\n    - {field: statuscode"), 20, "pdus.MM4_delivery_report.RES[5].field", "there is no field 'statuscode'; did you mean status_code?"),
    (GOOD + "    - {field: message_id, presence: optional, source: x}\n", 20, "pdus.MM4_delivery_report.RES[5].field", "message_id has a row already; keep one"),
    (GOOD + "    - {field: date, presence: often, source: x}\n", 20, "pdus.MM4_delivery_report.RES[5].presence", "expects 'mandatory', 'conditional' or 'optional', found 'often'"),
    (GOOD + "    - {field: date, source: x}\n", 20, "pdus.MM4_delivery_report.RES[5].presence", "has to be given"),
    (GOOD + "    - {field: date, presence: optional}\n", 20, "pdus.MM4_delivery_report.RES[5].source", "has to be given"),
    (GOOD + "    - {presence: optional, source: x}\n", 20, "pdus.MM4_delivery_report.RES[5].field", "has to be given"),
    (GOOD + "    - {field: date, presence: optional, source: x, complet: true}\n", 20, "pdus.MM4_delivery_report.RES[5].complet", "unknown key; did you mean complete?"),
    (GOOD + "    - {field: date, presence: optional, complete: 1, source: x}\n", 20, "pdus.MM4_delivery_report.RES[5].complete", "expects yes or no, found 1"),
    (GOOD + "    - {field: expiry, presence: optional, complete: true, source: x}\n", 20, "pdus.MM4_delivery_report.RES[5].complete", "the gateway has no expiry to write where none was given"),
    (GOOD + "    - {field: expiry, presence: mandatory, source: x}\n", 20, "pdus.MM4_delivery_report.RES[5].presence", "the gateway has no expiry to write into a RES"),
    (GOOD + "    - date\n", 20, "pdus.MM4_delivery_report.RES[5]", "expects keys with values, found 'date'"),
]  # fmt: skip

MANDATORY = {
    "mms_version": "every PDU names its version",
    "message_type": "nothing else tells what the mail is",
    "transaction_id": "a RES finds its REQ by it",
    "message_id": "a report finds its message by it",
    "sender": "nobody could be answered or reported about",
    "read_status": "the report says nothing else",
}
PRESENT = MANDATORY | {
    "recipients": "the gateway writes it",
    "ack_request": "neither side could ask for a RES",
    "originator_system": "without it a peer answers to a subscriber's number",
}


@pytest.mark.parametrize(("text", "line", "place", "what"), REFUSED, ids=[f"{r[2]}: {r[3][:30]}" for r in REFUSED])
def test_what_a_dialect_may_not_say_is_refused_with_line_and_reason(
    text: str, line: int, place: str, what: str
) -> None:
    assert f"{NAME}:{line}: {place}: {what}" in problems(text)
    # One mistake is one problem, but where it is two.
    assert len(problems(text)) <= (2 if "also" in place else 1), problems(text)


@pytest.mark.parametrize("field", PRESENT)
def test_a_row_without_which_the_gateway_cannot_work_has_to_stand_there(field: str) -> None:
    rows = "".join(line for line in WHOLE.splitlines(keepends=True) if f"field: {field}," not in line)
    assert problems(rows) == [
        f"{NAME}:14: pdus.MM4_read_reply_report.REQ: a row for {field} is missing: {PRESENT[field]}"
    ]


@pytest.mark.parametrize("field", MANDATORY)
@pytest.mark.parametrize("presence", ["optional", "conditional"])
def test_what_is_mandatory_everywhere_stays_so(field: str, presence: str) -> None:
    text = changed(f"field: {field}, presence: mandatory", f"field: {field}, presence: {presence}", WHOLE)
    index = list(PRESENT).index(field) if field != "read_status" else 8
    assert problems(text) == [
        f"{NAME}:{15 + index}: pdus.MM4_read_reply_report.REQ[{index}].presence: {field} is mandatory in "
        f"MM4_read_reply_report.REQ: {MANDATORY[field]}"
    ]


def test_a_req_always_names_our_system() -> None:
    assert problems(changed("complete: true, ", "", WHOLE)) == [
        f"{NAME}:22: pdus.MM4_read_reply_report.REQ[7]: originator_system needs complete: true in "
        "MM4_read_reply_report.REQ: without it a peer answers to a subscriber's number"
    ]


@pytest.mark.parametrize("pdu", ["MM4_forward.REQ", "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ"])
def test_both_ids_stay_mandatory_in_a_message_and_its_report(pdu: str) -> None:
    text = GOOD[: GOOD.index("  MM4_delivery")] + f"  {pdu}:\n    - {{field: message_id, presence: optional, source: x}}\n"
    found = problems(text)
    assert f"{NAME}:14: pdus.{pdu}: a row for transaction_id is missing: a RES finds its REQ by it" in found
    assert (
        f"{NAME}:15: pdus.{pdu}[0].presence: message_id is mandatory in {pdu}: a report finds its message by it" in found
    )


def test_a_res_may_come_without_the_message_id_but_has_a_place_for_it() -> None:
    parse_dialect(GOOD, NAME)
    text = GOOD.replace("    - {field: message_id, presence: optional, source: a trace}\n", "")
    assert problems(text) == [
        f"{NAME}:14: pdus.MM4_delivery_report.RES: a row for message_id is missing: "
        "a REQ that named an id is answered with it"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1: expects keys with values: name, extends, title, version, ids, types, fields, statuses, pdus"),
        ("- name\n", "1: expects keys with values: name, extends, title, version, ids, types, fields, statuses, pdus"),
        ("name: [1\n", "2: not readable as YAML: expected ',' or ']', but got '<stream end>'"),
        ("\nname: \x07\n", "2: not readable as YAML: a character that is no text"),
        ("a: 1\n---\nb: 2\n", "2: not readable as YAML: but found another document"),
        ("fields: " + "[" * 5000, "1: not readable as YAML: nested too deeply"),
    ],
)
def test_a_file_that_is_no_table_is_told_so(text: str, problem: str) -> None:
    assert problems(text) == [f"{NAME}:{problem}"]


@pytest.mark.parametrize(
    "text", ["{}", "name:", "types: 3", "fields: []", "pdus: {MM4_forward.REQ: 3}", "pdus: {MM4_forward.REQ: []}",
             "statuses: {Ok: {spellings: [1]}}", "fields: {sender: {aliases: {a: b}}}", "types: {1: 2}"],
)  # fmt: skip
def test_a_table_of_any_shape_is_told_so(text: str) -> None:
    assert all(re.match(rf"{NAME}:1: \w", problem) for problem in problems(text))


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("extends: bare-ids", "extends: nothing").replace("X-Mms-Prio,", "Received,")
    text = text.replace(", source: a trace}\nstatuses", "}\nstatuses").replace("[Fine]", "['129']")
    text = text.replace("status_code, presence: mandatory", "status_code, presence: often")
    found = problems(text.replace("transaction_id, presence: mandatory", "transaction_id, presence: optional"))
    assert [problem.split(":")[1] for problem in found] == ["2", "8", "10", "12", "17", "19"]


KEYS = ["name", "extends", "title", "version", "ids", "types", "fields", "statuses", "pdus", "MM4_forward.REQ",
        "MM4_forward.RES", "sender", "transaction_id", "priority", "Ok", "header", "kind", "aliases", "also", "values",
        "default", "spellings", "strict", "lenient", "form", "source", "written", "answer", "number", "field",
        "presence", "complete", "x"]  # fmt: skip
WORDS = [*KEYS, "bare-ids", "quoted", "bare", "mandatory", "5.5.0", "From", "", True, None, 1, 2.5]
ANYTHING = st.recursive(
    st.sampled_from(WORDS), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS[:9]), st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=4) | ANYTHING))
def test_whatever_stands_there_is_a_dialect_or_a_list_of_problems(table: dict[str, Any]) -> None:
    text = yaml.safe_dump(table)
    with contextlib.suppress(DialectError):
        parse_dialect(text, NAME)
    with contextlib.suppress(DialectError):
        checked(text, NAME, own=False)


# -- what is taken


def test_a_dialect_says_only_what_differs() -> None:
    dialect, base = parse_dialect(GOOD, NAME), builtin("bare-ids")
    assert (dialect.name, dialect.title, dialect.version, dialect.ids) == (
        "harbour", "An invented operator", "6.3.0", "bare",
    )  # fmt: skip
    assert dialect.fields["transaction_id"] == base.fields["transaction_id"]
    assert dialect.pdus["MM4_forward.RES"] == base.pdus["MM4_forward.RES"]
    assert dialect.answer_type("MM4_forward.REQ") == "MM4_forward.RES"
    lines = write(
        "MM4_delivery_report.RES", {"transaction_id": "t", "message_id": "m", "status_code": "Ok"}, dialect
    )
    assert lines == [
        ("X-Mms-Message-Type", "MM4_delivery_report.RES"),
        ("X-Mms-3GPP-MMS-Version", "6.3.0"),
        ("X-Mms-Transaction-Id", "t"),
        ("X-Mms-Message-Id", "m"),
        ("X-Mms-Request-Status-Code", "Ok"),
    ]


@pytest.mark.parametrize("other", builtin_names())
def test_it_reads_every_built_in_ones_names_and_they_stay_as_they_are(other: str) -> None:
    before = builtin(other)
    dialect = parse_dialect(GOOD, NAME)
    assert builtin(other) is before
    for name, field in before.fields.items():
        assert {h.lower() for h in field.headers} <= {h.lower() for h in dialect.fields[name].headers}
    assert before.type_names.items() <= dialect.type_names.items()
    assert before.status_names.items() <= dialect.status_names.items()
    assert "x-mms-prio" not in before.by_header


def test_its_names_and_words_are_read() -> None:
    dialect = parse_dialect(GOOD, NAME)
    more = [
        Header("X-Mms-Prio", b"urgent"), Header("X-Mms-Message-Class", b"Test"),
        Header("X-Mms-Sender-Address", b"+447700900002/TYPE=PLMN"),
    ]  # fmt: skip
    lines = req(X_Mms_Message_Class=None, X_Mms_Priority=None, From=None, X_Mms_Message_Type="mm4.forward.req")
    found = read([*(Header(n, v) for n, v in lines), *more], dialect)
    assert found.valid, found.problems
    assert (found.dialect, found.get("priority"), found.get("message_class")) == ("harbour", "High", "Test")
    assert found.get("sender").value == "+447700900002"
    res = [Header("X-Mms-Message-Type", b"MM4_forward.RES"), Header("X-Mms-Request-Status-Code", b"fine")]
    assert read(res, dialect).get("status_code") == "Ok"


@pytest.mark.parametrize("base", builtin_names())
def test_every_built_in_dialect_can_be_extended_without_a_change(base: str) -> None:
    own = parse_dialect(f"name: own\nextends: {base}\ntitle: own\n", NAME)
    wanted = builtin(base)
    assert (own.version, own.ids, own.types, own.fields, own.statuses, own.pdus) == (
        wanted.version, wanted.ids, wanted.types, wanted.fields, wanted.statuses, wanted.pdus,
    )  # fmt: skip


@pytest.mark.parametrize("name", builtin_names())
def test_the_built_in_tables_pass_the_same_checks(name: str) -> None:
    text = (Path(tables.__file__).parent / "dialects" / f"{name}.yaml").read_text("utf-8")
    checked(text, f"{name}.yaml", own=False)
    with pytest.raises(DialectError, match="is built in; give yours a name of its own"):
        checked(text, f"{name}.yaml")


# -- files


def test_a_dialect_is_read_by_name_or_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_dialect("tyntec") is builtin("tyntec")
    monkeypatch.chdir(tmp_path)
    for name in ("harbour.yaml", "harbour.yml"):
        Path(name).write_text(GOOD)
        assert read_dialect(name) == read_dialect(str(tmp_path / name)) == parse_dialect(GOOD, NAME)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing, folder, latin = tmp_path / "no.yaml", tmp_path / "a.yaml", tmp_path / "latin.yaml"
    folder.mkdir()
    latin.write_bytes(b"name: harbour\ntitle: Gr\xf6\xdfe\n")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(changed("[Fine]", "['129']"))
    for file, what in (
        (missing, f"{missing}: cannot be read: No such file or directory"),
        (folder, f"{folder}: cannot be read: Is a directory"),
        (latin, f"{latin}: is not UTF-8 (byte 23)"),
        (wrong, f"{wrong}:12: statuses.Ok.spellings[0]: '129' is read as Error-unspecified already"),
    ):
        with pytest.raises(DialectError) as caught:
            read_dialect(str(file))
        assert caught.value.problems == [what]
        assert caught.value.exit_code == ConfigError.exit_code == 78
    for name in ("klingon", "all"):
        with pytest.raises(DialectError, match=f"there is no dialect '{name}'"):
            read_dialect(name)


# -- the page


def test_the_example_of_the_page_loads_and_does_what_the_page_says() -> None:
    (text,) = re.findall(r"```yaml\n(name:.*?)```", PAGE, re.DOTALL)
    dialect = parse_dialect(text, "harbour.yaml")
    assert (dialect.name, dialect.ids, dialect.version) == ("harbour", "bare", "6.3.0")
    (wanted,) = re.findall(r"```\n(X-Mms-3GPP-MMS-Version: 6.*?)```", PAGE, re.DOTALL)
    values = {
        "transaction_id": "t-1", "message_id": "m-1", "status_code": "Ok", "request_recipients": None,
        "sender_header": read([Header("Sender", b"system-user@mms.gw.example"), Header("X-Mms-Priority", b"Low")]).get(
            "sender_header"
        ),
    }  # fmt: skip
    assert "".join(f"{name}: {value}\n" for name, value in write("MM4_forward.RES", values, dialect)) == wanted
    (problem,) = re.findall(r"^(/etc/mm4/harbour.yaml:.*)$", PAGE, re.MULTILINE)
    assert problems(changed("transaction_id: {header", "transaction_id: {lenient: true, header", text)) == [problem]


def test_every_built_in_dialect_stands_on_the_page() -> None:
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE.partition("## ")[0], re.MULTILINE) == list(builtin_names())


def test_every_key_stands_on_the_page_as_the_schema_describes_it() -> None:
    documented = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|$", PAGE.partition("## The keys")[2], re.MULTILINE))
    wanted = {key: info.description for key, info in Table.model_fields.items()}
    for section, model in (("types", TypeRow), ("fields", FieldRow), ("statuses", StatusRow), ("pdus", PduRow)):
        assert list(models(Table.model_fields[section].annotation)) == [model]
        wanted |= {f"{section}.{key}": info.description for key, info in model.model_fields.items()}
    assert documented == wanted


@pytest.mark.parametrize(
    "table",
    [
        "version:", "ids:", "fields: {expiry: {header: , source: s}}", "fields: {priority: {values: , source: s}}",
        "fields: {priority: {spellings: {Hot: }, source: s}}", "types: {MM4_forward.REQ: {written: , source: s}}",
        "statuses: {Ok: {spellings: , source: s}}", "pdus:", "fields: {date: {lenient: , source: s}}",
    ],
)  # fmt: skip
def test_a_key_without_a_value_is_refused_with_its_line(table: str) -> None:
    """Read as left out it would pass the checks, and break every message."""
    with pytest.raises(DialectError) as caught:
        parse_dialect(f"name: own\nextends: 3gpp\ntitle: own\n{table}\n", NAME)
    assert all(problem.startswith(f"{NAME}:4: ") for problem in caught.value.problems)


def test_a_lenient_field_that_stands_there_unreadable_is_a_warning() -> None:
    own = parse_dialect("name: own\nextends: 3gpp\ntitle: own\nfields:\n  date: {lenient: true, source: trace}\n", NAME)
    headers = [Header(name, value) for name, value in req(Date="yesterday")]
    found = read(headers, own)
    assert [(p.field, p.severity) for p in found.problems] == [("date", "warning")]
    missing = read([h for h in headers if h.name != "Date"], own)
    assert [(p.field, p.severity, p.rule) for p in missing.problems] == [("date", "error", "mandatory")]
