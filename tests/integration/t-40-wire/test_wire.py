"""`mm4 postfix wire`, `unwire` and `status` in an operator's own Postfix with its own milter, aliases and lines."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import pytest

from harness import NORTH, STRANGER, Mail, forward_req, mm4, new_ids, send, wait_for
from ownpostfix import Operator, edited, listens

pytestmark = pytest.mark.postfix


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with Operator(tmp_path_factory.mktemp("wire")).running() as made:
        yield made


@pytest.fixture(autouse=True)
def as_before(operator: Operator) -> Iterator[None]:
    """Every test gives the operator's files back to the byte, whatever it did."""
    before = operator.files()
    yield
    assert operator.files() == before


def ordinary(operator: Operator, rcpt: str = "postmaster@operator.example", *, source: str = STRANGER) -> Mail:
    """An ordinary message to a mailbox of the operator's, as it arrives there."""
    word = secrets.token_hex(8)
    message = f"From: a@b.example\r\nTo: {rcpt}\r\nSubject: {word}\r\n\r\nhello\r\n".encode()
    dialogue = send(operator.smtp("ordinary"), message, source=source, mail_from="a@operator.example", rcpt=(rcpt,))
    assert dialogue.code == 250, dialogue
    return operator.store.wait_for(word)[0]


def exchanged(operator: Operator, line: str) -> Mail:
    """A REQ of north's on this line: the MMSC has it and north has its RES. The REQ as the MMSC got it."""
    ids = new_ids()
    dialogue = send(operator.smtp(line), forward_req(ids=ids), source=NORTH)
    assert dialogue.code == 250, dialogue
    (answer,) = operator.north.wait_for(ids[0])
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    return operator.mmsc.wait_for(ids[0])[0]


def test_both_kinds_of_mail_pass_and_unwire_gives_everything_back(operator: Operator) -> None:
    before = operator.files()
    assert ordinary(operator).header("X-Test-Signed") == "yes"

    outcome = operator.told("wire")
    assert outcome["ok"], outcome
    assert outcome["applied"] == "reload"
    assert {str(operator.etc / "main.cf"), str(operator.etc / "master.cf")} <= set(outcome["changed"])
    probes = {probe["probe"]: probe["said"] for probe in outcome["probes"]}
    assert [name for name in probes if name.startswith("peer north at the milter, from 127.0.0.21")]
    assert [name for name in probes if name.startswith("peer north on the MM4 line")]
    assert "gone from the queue" in probes["an ordinary message to postmaster@operator.example"]
    operator.store.wait_for("mm4 is wired into this Postfix")

    exchanged(operator, "listen")
    # Ordinary mail meets what it met before: the operator's milter, his aliases, his lines.
    assert ordinary(operator, "old@operator.example").rcpt == ["new@operator.example"]
    assert ordinary(operator, "sales-de@operator.example").header("X-Test-Signed") == "yes"
    for line in ("ordinary", "login", "again"):
        assert operator.rcpt(line, "x@responder.mm4.invalid") == 554, line
        assert operator.rcpt(line, "postmaster@operator.example") == 250, line

    findings = mm4("check", "--config", str(operator.yaml), "--json", check=False).stdout.splitlines()
    wrong = [f["text"] for f in map(json.loads, findings) if not f["ok"] and not f["warning"]]
    assert wrong == []

    wired = operator.files()
    again = operator.told("wire")
    assert (again["changed"], again["applied"], again["probes"]) == ([], None, [])
    assert "nothing to change" in operator.run("wire", "--check")
    assert operator.files() == wired
    status = operator.told("status")
    assert (status["ok"], status["mode"], status["running"]) == (True, "service", True)

    assert operator.told("unwire", "--check", code=1)["changed"]
    assert operator.files() == wired
    (probe,) = operator.told("unwire", "--mailbox", "sales-de@operator.example")["probes"]
    assert probe["probe"].startswith("ordinary mail for sales-de@operator.example on ")
    assert operator.files() == before
    wait_for(lambda: not listens(operator.ports["listen"]), "the end of the MM4 line")
    assert ordinary(operator).header("X-Test-Signed") == "yes"
    assert "not wired" in operator.run("unwire")
    assert operator.told("status", code=1)["mode"] is None


def test_a_gateway_that_does_not_answer_is_named_and_can_be_done_without(operator: Operator) -> None:
    operator.leave()
    before = operator.files()
    try:
        said = operator.run("wire", code=78)
        assert "start the gateway first" in said
        assert operator.files() == before
        assert operator.told("wire", "--no-probe")["applied"] == "reload"
        assert operator.told("status", code=1)["ok"] is False
    finally:
        operator.serve()
    assert operator.told("status")["ok"]
    operator.told("unwire")


def test_a_probe_that_fails_puts_everything_back(operator: Operator) -> None:
    """Root reaches the milter, and Postfix's own user does not: the MM4 line answers 451."""
    sockets = operator.queue / "mm4"
    before = operator.files()
    sockets.chmod(0o700)
    try:
        outcome = operator.told("wire", code=1)
    finally:
        sockets.chmod(0o755)
    assert not outcome["ok"]
    assert outcome["applied"] == "restart"
    failed = [probe for probe in outcome["probes"] if not probe["ok"]]
    assert ["451" in probe["said"] for probe in failed] == [True]
    assert operator.files() == before
    assert ordinary(operator).header("X-Test-Signed") == "yes"
    assert not listens(operator.ports["listen"])


def test_a_mailbox_that_takes_nothing_is_told_before_anything_is_touched(operator: Operator) -> None:
    said = operator.run("wire", "--mailbox", "x@slow.example", code=78)
    assert "--mailbox ADDRESS" in said


def test_peers_on_the_line_for_ordinary_mail(operator: Operator) -> None:
    outcome = operator.told("wire", "--mode", "clients")
    assert outcome["ok"], outcome
    assert [p for p in outcome["probes"] if p["probe"].startswith("peer north on the shared line")]
    for line in ("ordinary", "listen"):
        assert exchanged(operator, line).header("X-Test-Signed") == ("yes" if line == "ordinary" else None)
    assert ordinary(operator).header("X-Test-Signed") == "yes"
    # A peer relays nothing but MMS, a stranger nothing at all.
    assert operator.rcpt("ordinary", "someone@elsewhere.example", source=NORTH) == 550
    assert operator.rcpt("ordinary", "someone@elsewhere.example", source=STRANGER) == 454
    assert operator.rcpt("ordinary", "x@responder.mm4.invalid", source=NORTH) == 554
    assert operator.told("wire")["changed"] == []
    assert operator.told("status")["mode"] == "clients"
    operator.told("unwire")


def test_a_whole_gateway_and_back(operator: Operator) -> None:
    before = operator.files()
    outcome = operator.told("wire", "--mode", "all")
    assert (outcome["ok"], outcome["applied"]) == (True, "restart"), outcome
    exchanged(operator, "listen")
    assert not listens(operator.ports["ordinary"])
    assert operator.told("wire")["changed"] == []
    assert operator.told("unwire")["applied"] == "restart"
    assert operator.files() == before
    assert ordinary(operator).header("X-Test-Signed") == "yes"


def test_mail_of_ours_that_waits_keeps_it_wired(operator: Operator) -> None:
    operator.told("wire")
    operator.mmsc.reply_rcpt = "451 4.7.1 Later"
    ids = new_ids()
    try:
        assert send(operator.smtp("listen"), forward_req(ids=ids), source=NORTH).code == 250
        operator.north.wait_for(ids[0])
        assert "are in the queue" in operator.run("unwire", code=78)
    finally:
        operator.mmsc.reply_rcpt = "250 OK"
    operator.instance.deliver_all()
    operator.mmsc.wait_for(ids[0])
    wait_for(lambda: not list(operator.instance.queue()), "an empty queue")
    operator.told("unwire")


def test_a_postfix_that_is_down_is_wired_without_probes(operator: Operator) -> None:
    operator.stop()
    try:
        outcome = operator.told("wire")
        assert (outcome["ok"], outcome["applied"], outcome["probes"]) == (True, None, [])
        assert any("does not run" in note for note in outcome["notes"])
        operator.told("unwire")
    finally:
        operator.start()


def test_a_second_instance_is_wired_and_the_first_left_alone(
    operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("second")
    second = Operator(folder, more="multi_instance_name = postfix-mm4\nmulti_instance_enable = yes\n")
    wrapper = f"multi_instance_wrapper = postmulti -p --\nmulti_instance_directories = {second.etc}\n"
    log = operator.folder / "log"
    with edited(operator.etc / "main.cf", lambda text: text + wrapper), second.running():
        before, reloads = operator.files(), log.read_text().count(": reload -- ")
        own = second.files()
        assert second.told("wire")["ok"]
        exchanged(second, "listen")
        assert operator.files() == before
        assert log.read_text().count(": reload -- ") == reloads
        # And the first, where `postfix reload` without a folder would reload both.
        others = (folder / "log").read_text().count(": reload -- ")
        assert operator.told("wire")["ok"]
        exchanged(operator, "listen")
        operator.told("unwire")
        assert (folder / "log").read_text().count(": reload -- ") == others
        second.told("unwire")
        assert second.files() == own
        assert operator.files() == before
