"""`mm4 lint` as an operator types it: what is said about a problem, every kind of file, every way to go wrong."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake import req
from mm4.cli.main import run
from mm4.protocol.advice import ADVICE
from mm4.protocol.dialect import builtin, builtin_names
from mm4.protocol.headers import MAX_HEADER_BYTES
from mm4.protocol.mailfile import PIECE, mails
from mm4.protocol.pdu import Problem
from mm4.protocol.reader import read_message

CORPUS = Path(__file__).parents[1] / "corpus"
GOOD = CORPUS / "peers" / "01-forward-req-quoted-ids.eml"
BAD = CORPUS / "malformed" / "20-no-transaction-id.eml"
POSTCAT = shutil.which("postcat", path=os.environ.get("PATH", "") + ":/usr/sbin") is not None


class Done:
    """What the command left: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Lint = Callable[..., Done]


@pytest.fixture
def lint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lint:
    """`mm4 lint` in this process, by the console script's own entry point; `stdin` is what is piped in."""

    def call(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["mm4", "lint", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))  # type: ignore[type-var]
        with pytest.raises(SystemExit) as left:
            run()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert isinstance(left.value.code, int)
        return Done(left.value.code, out, err)

    return call


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.eml"
        path.write_bytes(content)
        return path

    return write


Write = Callable[[bytes], Path]


def mail(*, end: bytes = b"\r\n", body: bytes = b"--b1--\r\n", **change: Any) -> bytes:
    """A forward.REQ as it stands in a file; keywords as in `fake.req`."""
    lines = [name.encode() + b": " + value + end for name, value in req(**change)]
    return b"".join(lines) + end + body


NO_ID = mail(drop=["X-Mms-Transaction-ID"])


def block(out: str, first: str) -> list[str]:
    """The lines of the one block that begins so, each without its blanks."""
    blocks = [[line.strip() for line in b.split("\n")] for b in out.split("\n\n")]
    (found,) = [b for b in blocks if b[0].startswith(first)]
    return found


# -- what is said


def test_a_missing_header_is_told_with_the_line_to_add(lint: Lint) -> None:
    done = lint(BAD, GOOD)
    assert (done.code, done.err) == (1, "")
    assert done.out.startswith(f"{BAD}: MM4_forward.REQ: invalid, a RES would say Error-message-format-corrupt\n\n")
    assert block(done.out, "error") == [
        "error    X-Mms-Transaction-ID is mandatory in MM4_forward.REQ",
        "asks     mandatory in MM4_forward.REQ: an id of 1 to 900 printable US-ASCII characters, in quotes or bare",
        'mend     add X-Mms-Transaction-ID: "<id>"',
        "source   TS 23.140 8.4.4",
    ]
    assert done.out.endswith(f"\n{GOOD}: MM4_forward.REQ: valid, a RES would say Ok\n2 read, 1 valid, 1 invalid\n")


def test_a_wrong_line_is_shown_as_it_stands_with_its_number(lint: Lint, file: Write) -> None:
    done = lint(file(mail(X_Mms_Priority="Hihg")))
    assert done.code == 0
    assert block(done.out, "warning") == [
        "warning  X-Mms-Priority: none of Low, Normal, High; read as Normal",
        "line 12  X-Mms-Priority: Hihg",
        "asks     conditional in MM4_forward.REQ: one of Low, Normal, High",
        "mend     X-Mms-Priority: High",
        "source   RFC 4356 2.1.3.2",
    ]
    assert done.out.splitlines()[-1] != "1 read, 1 valid, 0 invalid", "one message needs no sum"


def test_a_valid_message_takes_one_line(lint: Lint) -> None:
    assert lint(GOOD).out == f"{GOOD}: MM4_forward.REQ: valid, a RES would say Ok\n"


def test_json_has_the_keys_of_the_design_and_more(lint: Lint) -> None:
    done = lint("--json", BAD)
    (found,) = done.objects
    assert list(found) == ["file", "type", "dialect", "valid", "status", "problems", "advice", "fields"]
    assert found["problems"] == [
        {
            "field": "transaction_id", "header": "X-Mms-Transaction-ID", "severity": "error", "rule": "mandatory",
            "text": "X-Mms-Transaction-ID is mandatory in MM4_forward.REQ", "source": "TS 23.140 8.4.4", "line": None,
            "asks": "mandatory in MM4_forward.REQ: an id of 1 to 900 printable US-ASCII characters, in quotes or bare",
            "found": None, "mend": 'add X-Mms-Transaction-ID: "<id>"',
        }
    ]  # fmt: skip
    assert list(found["fields"]) == [
        "mms_version", "transaction_id", "message_id", "sender", "recipients", "originator_system", "ack_request",
        "delivery_report", "read_reply", "message_class", "priority", "sender_visibility", "date", "expiry", "subject",
        "forward_counter", "previously_sent", "content_type", "status_code", "status_text", "request_recipients",
        "mm_status", "read_status", "originator_rs_report", "mm_status_extension", "forward_to_originator_ua",
        "applic_id", "reply_applic_id", "aux_applic_info", "content_class", "drm_content", "adaptation_allowed",
        "mmsip_address", "forward_route", "return_route",
    ]  # fmt: skip
    assert found["fields"]["originator_rs_report"] is False
    assert found["fields"]["content_class"] is None


def test_a_further_flag_is_read(lint: Lint, file: Write) -> None:
    path = file(mail(**{"X_Mms_Originator_R/S_Delivery_Report": "Yes"}))
    assert lint("--json", path).objects[0]["fields"]["originator_rs_report"] is True


PAIRS = sorted(CORPUS.glob("*/*.eml"))
LINE = re.compile(r"[A-Za-z0-9/-]+: [^<]*\Z")


def mendable(problem: Problem) -> bool:
    """Whether what mends it can be put there without a thought: a line without a blank to fill in."""
    return problem.mend is not None and LINE.match(problem.mend) is not None and problem.line is not None


@pytest.mark.parametrize("dialect", ["3gpp", "tyntec"])
@pytest.mark.parametrize("path", PAIRS, ids=lambda p: p.stem)
def test_every_problem_of_the_corpus_says_how_to_mend_it_and_that_mends_it(path: Path, dialect: str) -> None:
    raw = path.read_bytes()
    pdu = read_message(raw, dialect)
    end = b"\n" if b"\n" in raw else b"\r"
    lines = raw.split(end)
    for problem in (*pdu.problems, *pdu.advice):
        assert problem.mend
        assert problem.asks
        assert "\n" not in problem.mend
        assert (problem.line is None) == (problem.found is None)
        if problem.line is not None and problem.found is not None:
            assert lines[problem.line - 1].decode("latin-1").startswith(problem.found.partition(":")[0])
        if not mendable(problem) or problem.rule == "one-value":
            continue
        assert problem.line is not None
        assert problem.mend is not None
        first = problem.line - 1
        after = next(n for n in range(first + 1, len(lines) + 1) if n == len(lines) or lines[n][:1] not in b" \t")
        mended = [*lines[:first], problem.mend.encode("ascii"), *lines[after:]]
        again = read_message(end.join(mended), dialect)
        # The very text may come back where several lines have the same fault; it does so once less.
        before, left = (
            sum((p.field, p.text) == (problem.field, problem.text) for p in (*read.problems, *read.advice))
            for read in (pdu, again)
        )
        assert left < before, (problem.text, problem.mend)


def test_an_id_that_stands_twice_names_both_lines(lint: Lint, file: Write) -> None:
    path = file(b'X-Mms-Transaction-ID: "other"\r\n' + mail())
    (problem,) = lint("--json", path).objects[0]["problems"]
    assert (problem["line"], problem["mend"]) == (9, "delete line 9, or line 1")


@pytest.mark.parametrize(
    ("change", "field", "mend"),
    [
        ({"X_Mms_Transaction_ID": b"t\xe4"}, "transaction_id", 'X-Mms-Transaction-ID: "<id>"'),
        ({"X_Mms_Message_Type": "MM4_forwrad.REQ"}, "message_type", "X-Mms-Message-Type: MM4_forward.REQ"),
        ({"X_Mms_Message_Type": "MM4_frobnicate.REQ"}, "message_type", "X-Mms-Message-Type: <one of these>"),
        ({"X_Mms_Expiry": "tomorrow"}, "expiry", "X-Mms-Expiry: Thu, 19 Nov 2026 00:28:02 GMT"),
        ({"X_Mms_Ack_Request": "1"}, "ack_request", "X-Mms-Ack-Request: Yes"),
        ({"Date": "2026-11-12T02:28:01+02:00"}, "date", "Date: Thu, 12 Nov 2026 02:28:01 +0200"),
        ({"To": "?, +491511000001"}, "recipients", "To: +491511000001/TYPE=PLMN"),
        ({"X_Mms_Originator_System": "a;b"}, "originator_system",
         "X-Mms-Originator-System: system-user@mms.north.example"),
        ({"X_Mms_Read_Reply": ""}, "read_reply", "delete the line, or write X-Mms-Read-Reply: Yes"),
        ({"From": None}, "sender", "add From: +<number>/TYPE=PLMN"),
        ({"Content_Type": "nonsense"}, "content_type",
         'Content-Type: multipart/related; type="application/smil"; boundary="<boundary>"'),
    ],
)  # fmt: skip
def test_what_mends_it_is_a_line(change: dict[str, Any], field: str, mend: str) -> None:
    problems = read_message(mail(**change)).problems
    assert [p.mend for p in problems if p.field == field] == [mend]


def test_a_report_and_a_res_are_told_which_id_they_carry() -> None:
    for kind, words in (
        ("MM4_forward.RES", "<id of the REQ>"), ("MM4_delivery_report.REQ", "<id of the message reported>")
    ):  # fmt: skip
        pdu = read_message(mail(X_Mms_Message_Type=kind, X_Mms_Message_ID=None))
        (problem,) = [p for p in pdu.errors if p.field == "message_id"]
        assert problem.mend == f'add X-Mms-Message-ID: "{words}"'
    (problem,) = read_message(mail(X_Mms_Message_Type="MM4_read_reply_report.REQ")).errors
    assert problem.mend == "add X-Mms-Read-Status: Read"


def test_a_national_number_is_completed_in_its_region() -> None:
    (problem,) = read_message(mail(To="01511000001"), "3gpp", "DE").problems
    assert problem.mend == "To: +491511000001/TYPE=PLMN"


# -- advice


REPORT: dict[str, Any] = {"X_Mms_Message_Type": "MM4_delivery_report.REQ", "X_Mms_MM_Status_Code": "Retrieved"}
ADVISED: list[tuple[dict[str, Any], int, str]] = [
    ({"X_Mms_Originator_System": None}, 10, "add X-Mms-Originator-System: system-user@mms.north.example"),
    ({"X_Mms_Originator_System": None, "Sender": None}, 9,
     "add X-Mms-Originator-System: system-user@<your domain>"),
    ({"X_Mms_Originator_System": "PostMaster"}, 11, "X-Mms-Originator-System: PostMaster@mms.north.example"),
    ({"X_Mms_Originator_System": "+447700900002@mms.north.example"}, 11,
     "X-Mms-Originator-System: system-user@mms.north.example"),
    ({**REPORT, "X_Mms_Originator_System": None, "Sender": None}, 9,
     "add Sender: +447700900002/TYPE=PLMN@<your domain>"),
    ({"X_Mms_Read_Reply": "Yes", "Sender": None}, 2, "add Sender: +447700900002/TYPE=PLMN@mms.north.example"),
    ({"X_Mms_Transaction_ID": "<t-1@x.example>"}, 8, 'X-Mms-Transaction-ID: "t-1@x.example"'),
    ({"X_Mms_Message_ID": '"<m-1@x.example>"'}, 9, 'X-Mms-Message-ID: "m-1@x.example"'),
    ({"X_Mms_Message_Type": "MM4_forward.RES", "X_Mms_Request_Status_Code": "Ok", "X_Mms_Transaction_ID": "001"}, 8,
     'send the REQ with X-Mms-Transaction-ID: "<id>"'),
    ({"Content_Type": "multipart/related"}, 5, 'Content-Type: multipart/related; boundary="<boundary>"'),
    ({"Content_Type": 'multipart/related; Boundary="a?b";\r\n\tstart="<smil>"'}, 5,
     'Content-Type: multipart/related; start="<smil>"; boundary="----=_Part_1"'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line", "mend"), ADVISED)
def test_what_breaks_no_row_and_yet_goes_wrong_is_advised(
    lint: Lint, file: Write, change: dict[str, Any], line: int, mend: str
) -> None:
    path = file(mail(**change))
    (found,) = lint("--json", path).objects
    (advice,) = found["advice"]
    assert (found["valid"], found["problems"]) == (True, [])
    assert (advice["severity"], advice["line"], advice["mend"]) == ("warning", line, mend)
    out = lint(path).out
    assert f"  mend     {mend}" in out
    assert "\N{REPLACEMENT CHARACTER}" not in out


def test_every_row_of_advice_is_given_by_one_of_these_messages() -> None:
    given = {p.text for change, _, _ in ADVISED for p in read_message(mail(**change)).advice}
    assert given == {row.text for row in ADVICE}


@pytest.mark.parametrize(
    "change",
    [
        {}, {"X_Mms_Ack_Request": "No", "X_Mms_Originator_System": None, "Sender": None},
        {"X_Mms_Expiry": "Sun, 06 Nov 1994 08:49:37 GMT"}, {"Content_Type": "text/plain"},
        {**REPORT, "X_Mms_Originator_System": None}, {"Content_Type": 'multipart/related; boundary="----=_Part_1_2.3"'},
        {"X_Mms_Delivery_Report": "Yes"}, {"X_Mms_Message_Type": "MM4_x.REQ", "X_Mms_Originator_System": None},
    ],
)  # fmt: skip
def test_there_is_no_advice_on_what_is_well(change: dict[str, Any]) -> None:
    assert read_message(mail(**change)).advice == ()


def test_advice_is_told_apart_from_what_is_broken(lint: Lint, file: Write) -> None:
    done = lint(file(mail(X_Mms_Originator_System=None)))
    assert done.code == 0
    assert block(done.out, "advice")[1] == "line 10  X-Mms-Ack-Request: Yes"


# -- one file, many messages


FROM = b"From ann@mms.north.example Thu Nov 12 02:28:01 2026"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_mbox_gives_one_object_a_message(lint: Lint, file: Write, end: bytes) -> None:
    mid = mail(end=end, body=b"Hello" + end, X_Mms_Priority="Urgent")
    path = file(FROM + end + mail(end=end, body=b"") + end + FROM + end + mid + end + FROM + end + NO_ID)
    done = lint("--json", path)
    assert done.code == 1
    assert [(o["file"], o["message"], o["valid"]) for o in done.objects] == [
        (str(path), 1, True), (str(path), 2, True), (str(path), 3, False)
    ]  # fmt: skip
    assert list(done.objects[0])[:2] == ["file", "message"]
    (problem,) = done.objects[1]["problems"]
    number = path.read_bytes().split(end).index(b"X-Mms-Priority: Urgent") + 1
    assert (problem["line"], problem["found"]) == (number, "X-Mms-Priority: Urgent")
    shown = lint(path)
    assert f"{path}, message 3: MM4_forward.REQ: invalid" in shown.out
    assert shown.out.endswith("3 read, 2 valid, 1 invalid\n")


def test_from_in_a_body_parts_nothing(lint: Lint, file: Write) -> None:
    body = b"A line\r\nFrom here on it is a body.\r\n\r\n>From here too\r\n\r\n From here\r\nfrom here\r\n"
    path = file(FROM + b"\r\n" + mail(body=body) + b"\r\n" + FROM + b"\r\n" + mail(body=body))
    assert [o["valid"] for o in lint("--json", path).objects] == [True, True]
    alone = file(mail(body=b"\r\n\r\n" + FROM + b"\r\n" + NO_ID))
    (only,) = lint("--json", alone).objects
    assert only["valid"]
    assert "message" not in only


@pytest.mark.slow
def test_an_mbox_of_ten_thousand_with_a_broken_one_names_it(lint: Lint, file: Write) -> None:
    good = FROM + b"\n" + mail(end=b"\n", body=b"x\n\n")
    path = file(good * 7654 + FROM + b"\n" + NO_ID + b"\n" + good * 2345)
    done = lint("--json", path)
    assert done.code == 1
    assert [o["message"] for o in done.objects] == list(range(1, 10_001))
    assert [o["message"] for o in done.objects if not o["valid"]] == [7655]


def test_messages_of_an_mbox_may_be_empty_or_nonsense(lint: Lint, file: Write) -> None:
    path = file(FROM + b"\n\n" + FROM + b"\n\n\n" + FROM + b"\nno header\n\n" + FROM)
    assert [(o["message"], o["fields"]) for o in lint("--json", path).objects] == [(n, {}) for n in range(1, 5)]


def postcat_text(*messages: bytes) -> bytes:
    """What `postcat -q` prints of queue files that hold these messages."""
    texts = []
    for number, message in enumerate(messages):
        name = b"deferred/8/4jZPGM3lXTzJ9V%d" % number
        texts.append(
            b"*** ENVELOPE RECORDS %b ***\nmessage_size:            1248\nsender: +447700900002/TYPE=PLMN@x.example\n"
            b"named_attribute: log_helo_name=[127.0.0.1]\nrecipient: a@b.example\n"
            b"*** MESSAGE CONTENTS %b ***\n%b\n*** HEADER EXTRACTED %b ***\nnamed_attribute: x=y\n"
            b"*** MESSAGE FILE END %b ***\n" % (name, name, message.replace(b"\r\n", b"\n"), name, name)
        )
    return b"".join(texts)


def test_what_postcat_prints_is_read_with_its_marks_and_without(lint: Lint) -> None:
    marked = postcat_text(mail(), mail(X_Mms_Priority="Urgent"), NO_ID)
    done = lint("--json", "-", stdin=marked)
    assert [(o["file"], o["message"], o["valid"]) for o in done.objects] == [
        ("-", 1, True), ("-", 2, True), ("-", 3, False)
    ]  # fmt: skip
    (problem,) = done.objects[1]["problems"]
    assert marked.split(b"\n")[problem["line"] - 1] == b"X-Mms-Priority: Urgent"
    (plain,) = lint("--json", "-", stdin=mail().replace(b"\r\n", b"\n") + b"\n").objects
    assert plain["valid"]
    assert "message" not in plain


def test_a_body_cannot_fake_what_postcat_marks(lint: Lint) -> None:
    inner = postcat_text(NO_ID).replace(b"4jZPGM3lXTzJ9V0", b"guessed")
    done = lint("--json", "-", stdin=postcat_text(mail(body=inner), mail()))
    assert [o["valid"] for o in done.objects] == [True, True]


@pytest.mark.parametrize("cut", [1, 2, 5, 7, 9, 12])
def test_what_postcat_prints_may_end_anywhere(lint: Lint, cut: int) -> None:
    lines = postcat_text(mail()).split(b"\n")
    done = lint("--json", "-", stdin=b"\n".join(lines[:cut]))
    assert (done.code, len(done.objects), done.err) == (1, 1, "")


# -- queue files


def queue_file(message: bytes) -> bytes:
    """A queue file of Postfix: records of a type, a length and data."""

    def record(kind: bytes, data: bytes = b"") -> bytes:
        assert len(data) < 128
        return kind + bytes([len(data)]) + data

    head = record(b"T", b"1795621691 509749") + record(b"S", b"a@b.example") + record(b"R", b"c@d.example")
    sizes = b"%15d %15d %15d %15d %15d %15d" % (len(message), 97 + len(head), 1, 0, len(message), 0)
    lines = b"".join(record(b"N", line) for line in message.replace(b"\r\n", b"\n").split(b"\n"))
    return record(b"C", sizes) + head + record(b"M") + lines + record(b"X") + record(b"E")


needs_postcat = pytest.mark.skipif(not POSTCAT, reason="Debian's postfix is not installed")


@needs_postcat
def test_a_queue_file_is_read_by_its_path(lint: Lint, file: Write) -> None:
    queued, maildrop = file(queue_file(NO_ID)), file(queue_file(mail())[97:])
    done = lint("--json", queued, maildrop)
    assert (done.code, done.err) == (1, "")
    assert [(o["file"], o["valid"], "message" in o) for o in done.objects] == [
        (str(queued), False, False), (str(maildrop), True, False)
    ]  # fmt: skip


@needs_postcat
@pytest.mark.parametrize(("size", "what"), [(98, "without a mail"), (250, "postcat cannot read")])
def test_a_queue_file_that_is_cut_is_named(lint: Lint, file: Write, size: int, what: str) -> None:
    path = file(queue_file(mail())[:size])
    done = lint("--json", path, GOOD)
    assert (done.code, len(done.objects)) == (2, 1)
    (line,) = done.err.splitlines()
    assert line.startswith(f"mm4: {path}: a queue file ")
    assert what in line


def test_a_queue_file_without_postcat_says_what_to_install(
    lint: Lint, file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("mm4.postfix.instance._SBIN", "/nonexistent")
    done = lint(file(queue_file(mail())), GOOD)
    assert done.code == 2
    assert done.err == "mm4: postcat is not on this host: install Postfix (Debian: apt-get install postfix)\n"
    assert f"{GOOD}: MM4_forward.REQ: valid" in done.out


def test_a_queue_file_from_a_pipe_says_how_to_read_it(lint: Lint) -> None:
    done = lint("-", stdin=queue_file(mail()))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("mm4: -: a queue file of Postfix: give its path, or pipe ")


@pytest.mark.parametrize(
    "beginning",
    [b"", b"C", b"Cc: 123456789012345 1", b"T: 1795621691 5", b"To: a", b"C_" + b"x" * 95, b"T\x111795621691", b"\0" * 40],
)
def test_what_looks_almost_like_a_queue_file_is_a_message(lint: Lint, file: Write, beginning: bytes) -> None:
    assert lint("--json", file(beginning)).code == 1


# -- many files, and those that cannot be read


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(lint: Lint, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    done = lint(GOOD, missing, BAD, tmp_path, GOOD)
    assert done.code == 2
    assert done.err.splitlines() == [
        f"mm4: {missing}: No such file or directory",
        f"mm4: {tmp_path}: Is a directory: name the files in it, for example {tmp_path}/*",
    ]
    assert done.out.endswith("3 read, 2 valid, 1 invalid, 2 files not readable\n")
    done = lint("--json", missing, GOOD)
    assert (done.code, len(done.objects)) == (2, 1)
    assert lint(missing).out == ""


def test_a_file_that_fails_while_it_is_read_is_2(lint: Lint) -> None:
    done = lint("/proc/self/mem", GOOD)
    assert done.code == 2
    assert done.err.startswith("mm4: /proc/self/mem: ")
    assert "1 read" in done.out


def test_standard_input_is_read(lint: Lint) -> None:
    (found,) = lint("--json", "-", stdin=GOOD.read_bytes()).objects
    assert (found["file"], found["valid"]) == ("-", True)
    assert lint("-").code == 1
    assert [o["message"] for o in lint("--json", "-", stdin=FROM + b"\n\n" + FROM + b"\n").objects] == [1, 2]


def test_the_objects_come_as_the_messages_do() -> None:
    command = [sys.executable, "-m", "mm4", "lint", "--json", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for number in range(1, 4):
            # A message is known to be over when the next one begins.
            running.stdin.write(FROM + b"\n" + mail() + b"\n" + (FROM + b"\n\n" if number == 1 else b""))
            running.stdin.flush()
            assert json.loads(running.stdout.readline())["message"] == number
        running.stdin.close()
        assert running.wait(60) == 1


def test_a_reader_that_goes_away_is_no_fault(file: Write) -> None:
    command = [sys.executable, "-m", "mm4", "lint", str(file((FROM + b"\n" + NO_ID + b"\n") * 3000))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(10)
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) in (1, 141)


def test_a_program_that_pipes_into_it_can_write_all(tmp_path: Path) -> None:
    script = tmp_path / "pipe"
    script.write_text(
        'set -o pipefail; { cat "$1"; head -c 5000000 /dev/zero; } | "$2" -m mm4 lint -; echo "${PIPESTATUS[0]}"'
    )
    done = subprocess.run(["bash", script, GOOD, sys.executable], capture_output=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == b"0"


# -- dialects


def test_all_dialects_give_an_object_each(lint: Lint) -> None:
    done = lint("--json", "--dialect", "all", GOOD, BAD)
    assert [(Path(o["file"]), o["dialect"]) for o in done.objects] == [
        (path, name) for path in (GOOD, BAD) for name in builtin_names()
    ]
    assert done.code == 1


def test_the_dialect_in_which_a_message_is_right_stands_first(lint: Lint) -> None:
    path = CORPUS / "malformed" / "154-tyntec-res-without-content-type.eml"
    done = lint("--dialect", "all", path)
    rows = [line for line in done.out.splitlines() if re.match(r"  [a-z0-9-]+ +(in)?valid ", line)]
    assert done.code == 1
    assert {row.split()[0] for row in rows} == set(builtin_names())
    order = [row.split()[1] for row in rows]
    assert order == sorted(order, reverse=True), "valid first"
    assert order[0] == "valid"
    by_name = {row.split()[0]: row for row in rows}
    assert "0 errors, 0 warnings" in by_name["3gpp"]
    assert "1 error, 3 warnings" in by_name["tyntec"]
    missing = block(done.out, "error    Content-Type is mandatory")
    assert missing[1].split()[0] == "by"
    assert "tyntec" in missing[1]
    assert "3gpp" not in missing[1]


def test_what_all_dialects_say_alike_stands_once(lint: Lint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm4.cli.lint._dialects", lambda _: [builtin("3gpp"), builtin("tyntec")])
    found = block(lint("--dialect", "all", BAD).out, "error    X-Mms-Transaction-ID is mandatory")
    assert not any(line.startswith("by ") for line in found)


def test_the_sum_is_told_for_each_dialect(lint: Lint) -> None:
    lines = lint("--dialect", "all", GOOD, GOOD).out.splitlines()
    assert lines[-len(builtin_names()) :] == [f"2 read, 2 valid, 0 invalid by {name}" for name in builtin_names()]


def test_dialects_that_mend_it_in_other_ways_are_named(
    lint: Lint, file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = replace(builtin("3gpp"), name="bare", ids="bare")
    monkeypatch.setattr("mm4.cli.lint._dialects", lambda _: [builtin("3gpp"), builtin("tyntec"), bare])
    found = block(lint("--dialect", "all", file(NO_ID)).out, "error    X-Mms-Transaction-ID is mandatory")
    assert [line for line in found if line.startswith("mend")] == [
        'mend     add X-Mms-Transaction-ID: "<id>" (by 3gpp, tyntec)', "mend     add X-Mms-Transaction-ID: <id> (by bare)",
    ]  # fmt: skip


def test_a_dialect_file_gives_the_rules(lint: Lint, file: Write, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\nextends: 3gpp\ntitle: One that wants an expiry\nfields:\n"
        "  expiry: {header: X-Own-Expiry, source: page 9}\n"
    )
    done = lint("--json", "--dialect", str(own), GOOD)
    assert (done.code, json.loads(done.out)["dialect"]) == (0, "own")
    assert "this dialect writes X-Own-Expiry" in lint("--dialect", str(own), GOOD).out
    own.write_text(own.read_text().replace("X-Own-Expiry", "To"))
    wrong = lint("--dialect", str(own), GOOD)
    assert (wrong.code, wrong.out) == (78, "")
    assert "own.yaml:5: fields.expiry.header: To is the name of recipients already" in wrong.err
    assert lint("--dialect", str(tmp_path / "none.yaml"), GOOD).code == 78


def test_an_unknown_dialect_names_those_that_there_are(lint: Lint) -> None:
    done = lint("--dialect", "klingon", GOOD)
    assert (done.code, done.out) == (2, "")
    assert all(name in done.err for name in (*builtin_names(), "klingon", "all"))


# -- whatever a peer wrote


EVIL = b"\x1b]0;owned\x07\x9b31m\r\x08\x7f\xc2\x9b1m"


def test_what_a_peer_wrote_does_not_steer_the_terminal(lint: Lint, file: Write) -> None:
    names = ("X_Mms_Transaction_ID", "To", "Subject", "Date", "X_Mms_Priority")
    evil: dict[str, Any] = dict.fromkeys(names, EVIL)
    for change in (evil, {**evil, "X_Mms_Message_Type": b"MM4_x.REQ" + EVIL}, {"Content_Type": b"multipart/x" + EVIL}):
        path = file(mail(**change))
        for arguments in ([path], ["--json", path], ["--dialect", "all", path]):
            done = lint(*arguments)
            assert all(c.isprintable() or c == "\n" for c in done.out), arguments
    assert json.loads(lint("--json", file(mail(X_Mms_Priority=EVIL))).out)["problems"][0]["found"].startswith(
        "X-Mms-Priority: \x1b]0;owned\x07\x9b31m"
    )


def test_colour_is_for_terminals(file: Write) -> None:
    path = file(NO_ID)
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        command = [sys.executable, "-m", "mm4", "lint", str(path)]
        done = subprocess.run(command, stdout=theirs, timeout=60, check=False)
        os.close(theirs)
        shown = b""
        while b"source" not in shown:
            shown += terminal.read(4096)
    assert done.returncode == 1
    assert b"\x1b[31minvalid\x1b[0m" in shown
    assert b"\x1b[31merror" in shown
    plain = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert b"\x1b" not in plain.stdout


def test_bytes_of_any_kind_are_no_fault(lint: Lint, file: Write) -> None:
    nul = b"\x00" * 100
    contents = (
        b"", nul, secrets.token_bytes(5000), b"\n" * 5000, b"a" * 100_000, b"From ", b"From \n" + nul, b"*** ",
        b"*** ENVELOPE RECORDS " + nul + b" ***\n" + nul, FROM + b"\n" + nul * 9 + b"\n\n" + FROM + nul,
    )  # fmt: skip
    for content in contents:
        path = file(content)
        for arguments in (["--json", path], [path]):
            done = lint(*arguments)
            assert (done.code, done.err) == (1, "")
            assert done.out


def pieces(*parts: tuple[bytes, int]) -> Iterator[bytes]:
    """Lines as a file gives them: at most PIECE bytes at a time."""
    for part, times in parts:
        for _ in range(times):
            for start in range(0, len(part), PIECE):
                yield part[start : start + PIECE]


@pytest.mark.parametrize("where", ["header", "body"])
@pytest.mark.parametrize("beginning", [b"", FROM + b"\n"], ids=["eml", "mbox"])
def test_a_line_of_50_megabytes_is_passed_over(where: str, beginning: bytes) -> None:
    lines = [(line, 1) for line in mail(end=b"\n", body=b"").splitlines(keepends=True)]
    lines = lines if where == "body" else [(b"X-Junk: ", 1), *lines]
    long = (b"a" * PIECE, 50_000_000 // PIECE)
    at = len(lines) if where == "body" else 1
    stream = pieces(*([(beginning, 1)] if beginning else []), *lines[:at], long, (b"\n", 1), *lines[at:])
    (found,) = mails(stream)
    assert len(found.header) < 3 * MAX_HEADER_BYTES
    pdu = read_message(found.header)
    assert (pdu.valid, pdu.mm4) == (where == "body", where == "body"), "over 2 MB of header is cut before the rest"


def test_the_end_of_a_long_line_is_no_blank_line(lint: Lint, file: Write) -> None:
    head = b"X-Junk: "
    for end in (b"\n", b"\r\n"):
        long = head + b"a" * (PIECE - len(head)) + end
        path = file(FROM + b"\n" + long + mail())
        assert [o["valid"] for o in lint("--json", path).objects] == [True]
        body = file(FROM + b"\n" + mail(body=b"a" * PIECE + end + b"From here\n"))
        assert len(lint("--json", body).objects) == 1
