"""`mm4 explain` and the live gateway agree: replies, envelope, header edits and the RES, for the whole corpus.

Each message goes in from a peer of each dialect, and from our own side to a peer of each dialect; some go to several
sides at once. What explain
foretells is then held against what the SMTP client was told and what the next hops got. Only what is made anew for
each message is left out of account: tokens, ids made from them, and the time.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from harness import LOCAL, NORTH, SOUTH, STRANGER, Dialogue, Link, Mail, mm4
from mm4.cli.explain import explanation
from mm4.gateway.routing import Router
from mm4.postfix.seen import seen
from mm4.postfix.settings import read_config
from mm4.store import Store

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
CORPUS = sorted((Path(__file__).parents[2] / "corpus").glob("*/*.eml"))
RIGHT = next(path for path in CORPUS if path.stem.startswith("01-"))
PEER_SENDER, OUR_SENDER = "+447700900002/TYPE=PLMN@mms.north.example", "+491511000001/TYPE=PLMN@mms.gw.example"
WAYS = {
    "from-north": (NORTH, PEER_SENDER, "+4915110{:05}/TYPE=PLMN@mms.gw.example"),
    "from-south": (SOUTH, PEER_SENDER, "+4915110{:05}/TYPE=PLMN@mms.gw.example"),
    "to-north": (LOCAL, OUR_SENDER, "+44770090{:05}/TYPE=PLMN@mms.gw.example"),
    "to-south": (LOCAL, OUR_SENDER, "+336000{:05}/TYPE=PLMN@mms.gw.example"),
}
OURS, OTHER, THEIRS = (f"{n}/TYPE=PLMN@mms.gw.example" for n in ("+491511099001", "+491511099002", "+447700999001"))
OUR_SYSTEM = "system-user@mms.gw.example"

Headers = list[tuple[str, bytes]]
_numbers = count(10_000)


@dataclass(frozen=True)
class Case:
    """One message by one way, and no other message has its recipients."""

    message: bytes
    client: str
    mail_from: str
    rcpt: tuple[str, ...]


NORTHERNS, SOUTHERNS, OURS_TOO = "+44770090", "+336000", "+4915110"
SPLIT = (
    (NORTHERNS, SOUTHERNS, OURS_TOO, NORTHERNS), (SOUTHERNS, OURS_TOO, NORTHERNS), (OURS_TOO, SOUTHERNS, SOUTHERNS, NORTHERNS)
)  # fmt: skip
"""Recipients of one message, by how their numbers begin: each side is the first once."""


def by_way(message: bytes, way: str) -> Case:
    client, mail_from, rcpt = WAYS[way]
    return Case(message, client, mail_from, (rcpt.format(next(_numbers)),))


# Headers as no peer of the corpus writes them, made from a right message: what is a header is Postfix's decision.
CHANGES = {
    "blank-before-colon": (b"X-Mms-Ack-Request: Yes", b"X-Mms-Ack-Request :Yes"),
    "letter-case": (b"X-Mms-Ack-Request: Yes", b"x-mms-ACK-request:yes"),
    "twice": (b"X-Mms-Priority", b"X-Mms-Ack-Request: Yes\r\nX-Mms-Priority"),
    "folded-first": (b"X-Mms-Transaction-ID: ", b"X-Mms-Transaction-ID:\r\n\t"),
    # One: of several 3.7 takes each for a header, 3.10 the first (docs/knownissues.md).
    "mbox-line-first": (b"Date: ", b">From MAILER Thu Nov 12 02:28:01 2026\r\nDate: "),
    "mbox-line-later": (b"X-Mms-Priority", b"From MAILER Thu Nov 12 02:28:01 2026\r\nX-Mms-Priority"),
    "blank-first": (b"Date: ", b" \r\nDate: "),
    "byte-order-mark": (b"Date: ", b"\xef\xbb\xbfDate: "),
    "line-without-colon": (b"X-Mms-Priority", b"no header at all\r\nX-Mms-Priority"),
    "header-ends-early": (b"X-Mms-Priority", b"\r\nX-Mms-Priority"),
    "name-with-8-bit": (b"X-Mms-Priority", b"X-\xe9: 1\r\nX-Mms-Priority"),
    "no-name": (b"X-Mms-Priority", b": nameless\r\nX-Mms-Priority"),
    "controls-in-subject": (b"X-Mms-Priority", b"Subject: a\x0bb\x7f\r\nX-Mms-Priority"),
    "bare-carriage-return": (b"X-Mms-Priority", b"X-Any: a\rb\r\nX-Mms-Priority"),
    "bare-line-feed": (b"X-Mms-Priority", b"X-Any: a\nX-Other: b\r\nX-Mms-Priority"),
    "nul": (b"X-Mms-Priority", b"X-Any: a\x00b\r\nX-Mms-Priority"),
    "fold-of-blanks": (b"X-Mms-Priority", b" stray fold\r\n  \r\nX-Mms-Priority"),
    "national-number": (b"To: +447700900101", b"To: 01511000001, +447700900101"),
    "long-header": (b"Date: ", b"X-Long: " + b"x" * 55_000 + b"\r\nDate: "),
    "long-line": (b"Date: ", b"X-Long: " + b"x" * 5_000 + b"\r\nDate: "),
}


def changed(name: str) -> bytes:
    content = RIGHT.read_bytes()
    old, new = CHANGES[name]
    assert old in content
    return content.replace(old, new, 1)


CASES = {
    **{f"{path.stem}-{way}": by_way(path.read_bytes(), way) for path in CORPUS for way in WAYS},
    **{f"{name}-{way}": by_way(changed(name), way) for name in CHANGES for way in ("from-north", "to-south")},
    "stranger": Case(RIGHT.read_bytes(), STRANGER, PEER_SENDER, (OURS,)),
    "null-sender": Case(RIGHT.read_bytes(), NORTH, "", ("+491511099003@mms.gw.example",)),
    "two-recipients": Case(RIGHT.read_bytes(), NORTH, PEER_SENDER, (OURS, OTHER)),
    "some-refused": Case(
        RIGHT.read_bytes(), NORTH, PEER_SENDER, ("+491511099004", THEIRS, "12345@mms.gw.example", OUR_SYSTEM)
    ),
    "all-refused": Case(RIGHT.read_bytes(), NORTH, PEER_SENDER, (THEIRS, "ann.example@mail.test")),
    "to-the-system": Case(RIGHT.read_bytes(), NORTH, PEER_SENDER, ("postmaster@mms.gw.example",)),
    "ours-null-sender": Case(RIGHT.read_bytes(), LOCAL, "", ("+447700999002@mms.gw.example",)),
    "ours-two-operators": Case(
        RIGHT.read_bytes(), LOCAL, OUR_SENDER, ("+447700999003", "+491511099005", "+33600099001@mms.gw.example")
    ),
    "ours-refused": Case(RIGHT.read_bytes(), LOCAL, OUR_SENDER, ("+999123456789@mms.gw.example", "12345")),
    "ours-inward": Case(RIGHT.read_bytes(), LOCAL, OUR_SENDER, ("+491511099006@mms.gw.example",)),
    **{
        f"{path.stem}-to-three": Case(
            path.read_bytes(), LOCAL, OUR_SENDER, tuple(f"{n}{next(_numbers)}@mms.gw.example" for n in SPLIT[i % 3])
        )
        for i, path in enumerate(CORPUS) if i % 4 == 0
    },
    **{
        f"{name}-to-three": Case(
            changed(name), LOCAL, OUR_SENDER, tuple(f"{n}{next(_numbers)}@mms.gw.example" for n in SPLIT[i % 3])
        )
        for i, name in enumerate(CHANGES)
    },
    "ours-national": Case(RIGHT.read_bytes(), LOCAL, "01511000001", ("01511099007",)),
}


def forward(message_id: bytes, flag: bytes, sender: str = "+447700900002") -> bytes:
    """A right forward.REQ with its own id, which asks for both reports or for none."""
    content = re.sub(rb"\+447700900002", sender.encode(), RIGHT.read_bytes())
    for header in (b"X-Mms-Delivery-Report", b"X-Mms-Read-Reply"):
        content = re.sub(header + b": [^\r\n]*", header + b": " + flag, content)
    return re.sub(b"X-Mms-Message-ID: [^\r\n]*", b"X-Mms-Message-ID: " + message_id, content)


def about(message_id: str, reporter: str, told: str, says: str, *, tyntec: bool = False) -> bytes:
    """A report about a message, a delivery report or a read report by what it says."""
    delivery = says.startswith("X-Mms-MM-Status-Code")
    kind = "MM4_Delivery_Report.REQ" if delivery else "MM4_Read_Report.REQ"
    if not tyntec:
        kind = "MM4_delivery_report.REQ" if delivery else "MM4_read_reply_report.REQ"
    names = ("X-Mms-MM1-Message-Type", "X-Mms-MMS-Version") if tyntec else ("X-Mms-Message-Type", "X-Mms-3GPP-MMS-Version")
    return (
        f"Date: Thu, 12 Nov 2026 02:28:01 +0200\r\nFrom: {reporter}/TYPE=PLMN\r\nTo: {told}/TYPE=PLMN\r\n"
        f"{names[0]}: {kind}\r\n{names[1]}: 5.5.0\r\nX-Mms-Transaction-ID: r-{message_id}-{next(_numbers)}\r\n"
        f"X-Mms-Message-ID: {message_id}\r\nX-Mms-Ack-Request: Yes\r\n{says}\r\n"
        "Sender: system-user@mms.north.example\r\n\r\n"
    ).encode()


RETRIEVED, READ = "X-Mms-MM-Status-Code: Retrieved", "X-Mms-Read-Status: Read"
US, NORTHERN, SOUTHERN = "+491511099100", "+447700999100", "+33600099100"
SYSTEMS = {NORTH: "system-user@mms.north.example", SOUTH: "system@mm4.tyntec.example", LOCAL: OUR_SYSTEM}

# What has to have gone through before the reports come, and the reports.
ORIGINALS = {
    "north-asks": Case(forward(b"north-asks", b"Yes"), NORTH, f"{NORTHERN}@mms.north.example", (US,)),
    "north-does-not": Case(forward(b"north-does-not", b"No"), NORTH, f"{NORTHERN}@mms.north.example", (US,)),
    "south-asks": Case(forward(b"south-asks", b"Yes"), SOUTH, f"{SOUTHERN}@mm4.tyntec.example", (US,)),
    "to-north": Case(forward(b"to-north", b"Yes", US), LOCAL, f"{US}@mms.gw.example", (NORTHERN,)),
    "to-south": Case(forward(b"to-south", b"No", US), LOCAL, f"{US}@mms.gw.example", (SOUTHERN,)),
}
PERSON = "+447700900002"
"""From of the message that they are made of; its To does not count."""


def reports() -> Iterator[tuple[str, Case]]:
    for name, says in (("delivery", RETRIEVED), ("read", READ)):
        for original, domain in (
            ("north-asks", "mms.north.example"), ("north-does-not", "mms.north.example"),
            ("south-asks", "mm4.tyntec.example"),
        ):  # fmt: skip
            ours = about(original, US, PERSON, says)
            yield f"{name}-of-{original}", Case(ours, LOCAL, OUR_SYSTEM, (f"{PERSON}@{domain}",))
            stranger = about(original, "+491511099199", PERSON, says)
            yield f"{name}-of-{original}-by-another", Case(stranger, LOCAL, OUR_SYSTEM, (f"{PERSON}@{domain}",))
        for original, client, reporter in (("to-north", NORTH, NORTHERN), ("to-south", SOUTH, SOUTHERN)):
            told, other = f"{US}@mms.gw.example", SOUTH if client == NORTH else NORTH
            # Each with ids of its own: none is a duplicate of another.
            for case, source, sender, rcpt in (
                ("", client, SYSTEMS[client], told), ("-to-our-system", client, "", OUR_SYSTEM),
                ("-by-another-peer", other, SYSTEMS[other], told),
            ):  # fmt: skip
                theirs = about(original, reporter, US, says, tyntec=client == SOUTH)
                yield f"{name}-of-{original}{case}", Case(theirs, source, sender, (rcpt,))


REPORTS = dict(reports())
CASES |= ORIGINALS | REPORTS


class Live:
    """All cases, sent to one gateway: what each client was told, and what came of it."""

    def __init__(self, link: Link, dialogues: dict[str, Dialogue], before: Path) -> None:
        self.link = link
        self.dialogues = dialogues
        config = read_config(link.gateway.config)[0]
        self.router = Router(config)
        self.store = Store.open(f"sqlite:///{before}", migrate=False, read_only=True)
        log = link.gateway.log()
        self.discarded = set(re.findall(r" (\w+): milter-discard: END-OF-MESSAGE", log))
        # The responder names what it submitted for a message, and each mail's top line the queue id it had with us.
        self._split: dict[str, list[str]] = {}
        for queue_id, sent in re.findall(r" queue_id=(\w+) token=\w+\.split peer=\S+ .*?sent=(\w+)", log):
            self._split.setdefault(queue_id, []).append(sent)
        self._submitted = dict(re.findall(r" queue_id=(\w+) token=\w+ peer=\S+ answer=\S+ .*?submitted=(\w+)", log))
        self._mails: dict[str, list[tuple[str, Mail]]] = {}
        for name, hop in link.hops.items():
            for mail in hop.mails:
                top = re.search(r"\sid (\w+)[;\s]", mail.header("Received") or "")
                assert top, mail.content[:500]
                self._mails.setdefault(top[1], []).append((name, mail))

    def delivered(self, queue_id: str) -> list[tuple[str, Mail]]:
        """Next hop and mail, of what left under this queue id."""
        return self._mails.get(queue_id, [])

    def split(self, queue_id: str) -> list[tuple[str, Mail]]:
        """The same, of the mails that were made of it for further sides."""
        return [found for sent in self._split.get(queue_id, ()) for found in self.delivered(sent)]

    def answers(self, queue_id: str) -> list[tuple[str, Mail]]:
        """The RES to the message of this queue id."""
        return self.delivered(self._submitted.get(queue_id, ""))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    before = tmp_path_factory.mktemp("before") / "mm4.db"
    with Link(YAML) as link, ThreadPoolExecutor(4) as pool:
        dialogues: dict[str, Dialogue] = {}
        for reports_now in (False, True):
            sent = {
                name: pool.submit(
                    link.gateway.send, case.message, source=case.client, mail_from=case.mail_from, rcpt=case.rcpt
                )
                for name, case in CASES.items()
                if (name in REPORTS) is reports_now
            }
            dialogues |= {name: future.result() for name, future in sent.items()}
            link.gateway.quiet(seconds=180)
            if not reports_now:
                # The store as the reports will find it: afterwards each would be a duplicate of itself.
                store = read_config(link.gateway.config)[0].store.removeprefix("sqlite:///")
                with sqlite3.connect(store) as now, sqlite3.connect(before) as copy:
                    now.backup(copy)
        made = Live(link, dialogues, before)
        yield made
        made.store.close()


def headers_of(content: bytes) -> Headers:
    return [(header.name, header.value.removeprefix(b" ")) for header in seen(content)]


def below_received(mail: Mail) -> Headers:
    """The headers as a next hop got them, without the lines that our Postfix put on top."""
    headers = headers_of(mail.content)
    while headers and headers[0][0] == "Received" and b"by mms.gw.example (Postfix" in headers[0][1]:
        del headers[0]
    return headers


def edited(headers: Headers, edits: list[list[Any]]) -> Headers:
    """The edits applied as a milter's are: by occurrence among the headers of that name as it saw them, from 1."""
    result: list[tuple[str, bytes] | None] = list(headers)
    added: Headers = []
    for op, name, occurrence, value in edits:
        if op == "add":
            added.append((name, value.encode()))
            continue
        index = [i for i, header in enumerate(headers) if header[0].lower() == name.lower()][occurrence - 1]
        assert result[index] == headers[index], f"{name} {occurrence} is edited twice"
        result[index] = (name, value.encode()) if op == "change" else None
    return [header for header in result if header is not None] + added


def codes(reply: tuple[int, str]) -> str:
    return f"{reply[0]} {reply[1].split()[0]}"


def nameless(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{32}\b", "TOKEN", text)


def timeless(headers: Headers) -> list[tuple[str, str]]:
    return [(name, "now" if name == "Date" else nameless(value.decode("latin-1"))) for name, value in headers]


def foretold(live: Live, case: Case) -> dict[str, Any]:
    # The corpus came as the first, and some of its reports would find what came after them.
    history = live.store if any(case is report for report in REPORTS.values()) else None
    return explanation(live.router, case.message, case.client, case.mail_from, case.rcpt, len(case.message), history)


@pytest.mark.parametrize("name", CASES)
def test_explain_and_the_live_gateway_agree(live: Live, name: str) -> None:
    case, dialogue = CASES[name], live.dialogues[name]
    said = foretold(live, case)

    assert said["peer"] == {NORTH: "north", SOUTH: "south", LOCAL: "local", STRANGER: None}[case.client]
    # What the client was told, in order, up to the last reply.
    if dialogue.mail[0] != 250:
        assert (said["action"], said["smtp"]) == ("reject", f"{dialogue.mail[0]} {dialogue.mail[1]}")
        return
    assert [recipient["smtp"][:9] for recipient in said["rcpt"]] == [codes(reply) for reply in dialogue.rcpt]
    if dialogue.data is None:
        assert said["action"] in ("reject", "tempfail")
        assert said["smtp"] == f"{dialogue.rcpt[-1][0]} {dialogue.rcpt[-1][1]}"
        return
    assert said["smtp"][:9] == codes(dialogue.data), (said, dialogue)
    if said["action"] in ("reject", "tempfail"):
        assert said["smtp"] == f"{dialogue.data[0]} {dialogue.data[1]}"
        assert said["responses"] == said["edits"] == []
        return
    # Postfix says `queued as` of a discarded message too; its log tells them apart.
    queue_id = dialogue.queue_id
    assert (queue_id in live.discarded) == (said["action"] == "discard")

    # The RES, to the byte.
    answers = live.answers(queue_id)
    assert [(hop, mail.rcpt) for hop, mail in answers] == [(said["peer"], [r["to"]]) for r in said["responses"]]
    for (_, mail), response in zip(answers, said["responses"], strict=True):
        assert mail.mail_from == response["mail_from"]
        assert timeless(below_received(mail)) == timeless(headers_of(response["message"].encode()))
        assert mail.content.partition(b"\r\n\r\n")[2] == response["message"].encode().partition(b"\r\n\r\n")[2]

    # The message: to whom, from whom, with which headers, and to nobody else.
    expected = {(r["next_hop"], r["becomes"]) for r in said["rcpt"] if r["becomes"] and said["action"] == "accept"}
    mails = live.delivered(queue_id) + live.split(queue_id)
    got = {(live.link.hops[hop].hop, to): mail for hop, mail in mails for to in mail.rcpt}
    assert got.keys() == expected
    assert len(mails) == (len(said["sides"]) or len({hop for hop, _ in expected}))
    for (_, to), mail in got.items():
        side = next((side for side in said["sides"] if to in side["rcpt"]), said)
        assert nameless(mail.mail_from) == nameless(side["mail_from"])
        wanted = edited(headers_of(case.message), side["edits"])
        made = any(edit[:2] == ["add", "Date"] for edit in side["edits"])
        show = timeless if made else lambda headers: [(n, nameless(v.decode("latin-1"))) for n, v in headers]
        assert show(below_received(mail)) == show(wanted)
    if said["sides"] and all(code[0] == 250 for code in dialogue.rcpt):
        assert said["splits"] == [side["peer"] for side in said["sides"]][1:]
        assert (said["mail_from"], said["edits"]) == (said["sides"][0]["mail_from"], said["sides"][0]["edits"])


def test_every_outcome_came_up(live: Live) -> None:
    """Else agreement would say little."""
    outcomes = {(foretold(live, case)["action"], foretold(live, case)["smtp"][:9]) for case in CASES.values()}
    assert outcomes >= {
        ("accept", "250 2.0.0"), ("discard", "250 2.0.0"), ("reject", "554 5.6.0"), ("reject", "550 5.1.1"),
        ("reject", "550 5.7.1"), ("reject", "550 5.1.0"),
    }  # fmt: skip
    statuses = {r["status"] for case in REPORTS.values() for r in foretold(live, case)["responses"]}
    assert statuses == {"Ok", "Error-message-not-found"}
    reasons = {foretold(live, case)["reason"] for case in REPORTS.values()}
    assert "the originator did not ask for this report" in reasons
    assert len(live.link.north.mails) > 100
    split = [said for name, case in CASES.items() if name.endswith("-to-three") for said in (foretold(live, case),)]
    assert sum(len(said["splits"]) == 2 for said in split) > 30


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("01-", "10-", "24-"))] + ["all-refused"])
def test_the_command_prints_what_was_compared(live: Live, name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = tmp_path / "message.eml"
    path.write_bytes(case.message)
    rcpt = [word for address in case.rcpt for word in ("--rcpt", address)]
    done = mm4(
        "explain", "--json", "--config", live.link.gateway.config, "--client", case.client, "--mail-from",
        case.mail_from, *rcpt, "--size", str(len(case.message)), str(path), check=False,
    )  # fmt: skip
    dates = re.compile(r'Date: [^"\\]*')
    printed = nameless(dates.sub("Date: now", json.dumps(json.loads(done.stdout), sort_keys=True)))
    compared = nameless(dates.sub("Date: now", json.dumps(foretold(live, case), sort_keys=True)))
    assert printed == compared
    assert done.returncode == (0 if foretold(live, case)["action"] == "accept" else 1)
