"""`mm4 postfix wire`, `unwire` and `status` in an operator's own Postfix with its own milter, aliases and lines."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import NORTH, STRANGER, Mail, forward_req, new_ids, send, wait_for
from ownpostfix import Operator, listens

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

    wired = operator.files()
    again = operator.told("wire")
    assert (again["changed"], again["applied"], again["probes"]) == ([], None, [])
    assert "nothing to change" in operator.run("wire", "--check")
    assert operator.files() == wired
    status = operator.told("status")
    assert (status["ok"], status["mode"], status["running"]) == (True, "service", True)

    assert operator.told("unwire", "--check", code=1)["changed"]
    assert operator.files() == wired
    operator.told("unwire")
    assert operator.files() == before
    wait_for(lambda: not listens(operator.ports["listen"]), "the end of the MM4 line")
    assert ordinary(operator).header("X-Test-Signed") == "yes"
    assert "not wired" in operator.run("unwire")
    assert operator.told("status", code=1)["mode"] is None


def test_check_and_diff_touch_nothing(operator: Operator) -> None:
    before = operator.files()
    text = operator.run("wire", "--check", "--diff", code=1)
    assert "+transport_maps=texthash:" in text
    assert "+smtpd_recipient_restrictions = check_recipient_access texthash:" in text
    assert "would be wired" in text
    assert operator.files() == before


REFUSALS = {
    "a domain in mydestination": ("mydestination = $mydomain, localhost", "mydestination = $mydomain, mms.gw.example",
                                  "take mms.gw.example out of mydestination"),
    "a domain in a table of virtual domains": ("alias_database =", "virtual_mailbox_domains = inline:{mms.gw.example=x}",
                                               "take mms.gw.example out of virtual_mailbox_domains"),
    "a parent in relay_domains": ("alias_database =", "relay_domains = gw.example", "out of relay_domains"),
    "the MMSC's domain is one of mailboxes": ("mydestination = $mydomain, localhost",
                                              "mydestination = $mydomain, mmsc.gw.example", "go to the MMSC"),
    "a canonical catch-all": ("alias_database =", "recipient_canonical_maps = regexp:{{/@/ all@operator.example}}",
                              "acks and bounces would be lost"),
    "another queue folder": ("queue_directory = @queue@", "queue_directory = @queue@/../elsewhere", "folders: {sockets: "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_stands_in_the_way_is_named_with_its_line_and_nothing_is_touched(operator: Operator, case: str) -> None:
    old, new, says = (part.replace("@queue@", str(operator.queue)) for part in REFUSALS[case])
    with edited(operator.etc / "main.cf", lambda text: text.replace(old, new)):
        number = (operator.etc / "main.cf").read_text().splitlines().index(new) + 1
        before = operator.files()
        said = operator.run("wire", code=78)
        assert says in said
        assert f"main.cf:{number}: " in said or new.startswith("queue"), said
        assert "nothing was touched" in said
        assert operator.files() == before


class edited:  # noqa: N801 - reads as a word
    """A file changed, and afterwards as it was."""

    def __init__(self, path: Path, change: Callable[[str], str]) -> None:
        self.path, self.change = path, change

    def __enter__(self) -> None:
        self.text = self.path.read_text()
        assert self.change(self.text) != self.text
        self.path.write_text(self.change(self.text))

    def __exit__(self, *_: object) -> None:
        self.path.write_text(self.text)


def test_a_port_of_another_line_and_one_of_another_program_are_refused(operator: Operator) -> None:
    listen = f'listen: "127.0.0.1:{operator.ports["listen"]}"'
    with edited(operator.yaml, lambda text: text.replace(listen, f'listen: "127.0.0.1:{operator.ports["ordinary"]}"')):
        said = operator.run("wire", code=78)
        assert f"master.cf:2: 127.0.0.1:{operator.ports['ordinary']} inet: listens on" in said
    with edited(operator.yaml, lambda text: text.replace(listen, f'listen: "127.0.0.1:{operator.mmsc.port}"')):
        assert "Address already in use" in operator.run("wire", code=78)


def test_sendmail_where_a_setting_would_change_an_ack_is_refused(operator: Operator) -> None:
    with (
        edited(operator.yaml, lambda text: text.replace("submit: smtp\n", "submit: sendmail\n")),
        edited(operator.etc / "main.cf", lambda text: text + "non_smtpd_milters = $dkim_milter\n"),
    ):
        said = operator.run("wire", code=78)
        assert "submit: smtp in the YAML" in said
        assert "main.cf:" in said


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


def test_what_the_operator_edits_since_stays(operator: Operator) -> None:
    main, master = operator.etc / "main.cf", operator.etc / "master.cf"
    before = main.read_text(), master.read_text()
    operator.told("wire")
    main.write_text(main.read_text().replace("sales@operator", "shop@operator") + "delay_warning_time = 4h\n")
    master.write_text(master.read_text().replace("syslog_name=postfix/submission", "syslog_name=postfix/login"))
    again = operator.told("wire")
    assert again["changed"] == []
    master.write_text(master.read_text().replace("syslog_name=postfix/login", "syslog_name=postfix/mua"))
    outcome = operator.told("unwire")
    assert any("master.cf was edited since" in note for note in outcome["notes"])
    assert main.read_text() == before[0].replace("sales@operator", "shop@operator") + "delay_warning_time = 4h\n"
    assert master.read_text() == before[1].replace("syslog_name=postfix/submission", "syslog_name=postfix/mua")
    main.write_text(before[0])
    master.write_text(before[1])


def test_another_yaml_is_wired_again_and_unwire_still_knows_the_first_files(operator: Operator) -> None:
    operator.told("wire")
    with edited(operator.yaml, lambda text: text.replace("mms.gw.example", "mms.gw2.example")):
        outcome = operator.told("wire", "--no-probe")
        assert str(operator.etc / "main.cf") in outcome["changed"]
        assert "mms.gw.example" not in (operator.etc / "main.cf").read_text()
    operator.told("unwire")


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


def test_what_a_shared_line_cannot_give_is_refused(operator: Operator) -> None:
    with edited(operator.yaml, lambda text: text.replace("networks:", "delivery_report: on_delivery\n    networks:")):
        assert "peers.north.delivery_report: on_delivery needs" in operator.run("wire", "--mode", "clients", code=78)
    with edited(operator.etc / "main.cf", lambda text: text + "always_bcc = archive@operator.example\n"):
        assert "copy of every MMS" in operator.run("wire", "--mode", "clients", code=78)


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
