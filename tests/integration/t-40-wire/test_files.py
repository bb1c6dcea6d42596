"""What `mm4 postfix wire` does to the files, and what it refuses to begin with: no Postfix runs, its tools read it all."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mm4.postfix.instance import Instance
from mm4.postfix.settings import read_config
from mm4.postfix.wiring import Outcome, Wiring
from mm4.protocol.errors import PostfixError
from ownpostfix import Operator, edited, settle

pytestmark = pytest.mark.postfix


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Operator:
    made = Operator(tmp_path_factory.mktemp("files"))
    made.instance.check()  # makes the queue's folders
    return made


@pytest.fixture
def operator(whole: Operator) -> Iterator[Operator]:
    """Every test gives the operator's files back to the byte, whatever it did."""
    before = whole.files()
    yield whole
    assert whole.files() == before


def wire(operator: Operator, mode: str | None = None, **arguments: bool) -> Outcome:
    config, _ = read_config(operator.yaml)
    outcome = Wiring(config).wire(mode, probe=False, **arguments)  # type: ignore[arg-type]
    settle(operator.etc / "main.cf")
    return outcome


def unwire(operator: Operator, **arguments: bool) -> Outcome:
    config, _ = read_config(operator.yaml)
    outcome = Wiring(config).unwire(**arguments)
    settle(operator.etc / "main.cf")
    return outcome


def test_check_and_diff_touch_nothing(operator: Operator) -> None:
    before = operator.files()
    text = operator.run("wire", "--check", "--diff", code=1)
    assert "+transport_maps=texthash:" in text
    assert "+smtpd_recipient_restrictions = check_recipient_access texthash:" in text
    assert "would be wired" in text
    assert operator.files() == before


def test_every_parameter_but_ours_is_what_it_was(operator: Operator) -> None:
    """Postfix's own reading of the files, before and after."""
    def parameters() -> set[str]:
        said = [subprocess.run(["postconf", "-c", str(operator.etc), option], capture_output=True, text=True, check=True)
                for option in ("-n", "-P", "-M")]  # fmt: skip
        assert [done.stderr for done in said if done.stderr] == []
        return {line for done in said for line in done.stdout.splitlines()}

    before = parameters()
    wire(operator)
    after = parameters()
    unwire(operator)
    tables = f"{operator.etc}/mm4"
    access = f"check_recipient_access texthash:{tables}/access"
    packed = access.replace(" ", ",")
    changed = {line.partition(" = ")[0]: line.partition(" = ")[2] for line in after - before}
    assert {name: value for name, value in changed.items() if "smtpd_recipient_restrictions" in name and "mm4" in value} == {
        "smtpd_recipient_restrictions": f"{access}, permit_mynetworks, reject_unauth_destination",
        f"127.0.0.1:{operator.ports['login']}/inet/smtpd_recipient_restrictions": f"{packed},permit_mynetworks, reject",
        f"127.0.0.1:{operator.ports['again']}/inet/smtpd_recipient_restrictions": f"{packed},$mua_recipient_restrictions",
        f"127.0.0.1:{operator.ports['listen']}/inet/smtpd_recipient_restrictions": access,
    }
    assert changed["transport_maps"] == f"texthash:{tables}/transport, inline:{{slow.example=retry:}}"
    assert changed["virtual_alias_maps"].startswith(f"regexp:{tables}/keep, inline:{{ {{ old@operator.example =")
    # What was there and is no more is a list that has one of ours in front now.
    lost = [line for line in before - after if "smtpd_recipient_restrictions" not in line]
    assert {line.partition(" = ")[0] for line in lost} == {"transport_maps", "virtual_alias_maps"}


REFUSALS = {
    "a domain in mydestination": ("mydestination = $mydomain, localhost", "mydestination = $mydomain, mms.gw.example",
                                  "take mms.gw.example out of mydestination"),
    "a domain in a table of mailbox domains": ("alias_database =", "virtual_mailbox_domains = inline:{mms.gw.example=x}",
                                               "take mms.gw.example out of virtual_mailbox_domains"),
    "a domain of aliases": ("alias_database =", "virtual_alias_domains = MMS.gw.example", "sends it to aliases"),
    "a parent in relay_domains": ("alias_database =", "relay_domains = gw.example", "out of relay_domains"),
    "the MMSC's domain is one of this host": ("mydestination = $mydomain, localhost",
                                              "mydestination = $mydomain, mmsc.gw.example", "go to the MMSC"),
    "a row of the operator's for it": ("transport_maps=inline:{slow.example=retry:}",
                                       "transport_maps=inline:{mmsc.gw.example=smtp:}", "which mm4's own row would hide"),
    "a canonical catch-all": ("alias_database =", "recipient_canonical_maps = regexp:{{/@/ all@operator.example}}",
                              "acks and bounces would be lost"),
    "a canonical domain": ("alias_database =", "canonical_maps = inline:{@mms.gw.example=@operator.example}",
                           "acks and bounces would be lost"),
    "masqueraded recipients": ("alias_database =", "masquerade_classes = envelope_recipient\nmasquerade_domains = gw.example",
                               "masquerade_domains = !mms.gw.example"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_stands_in_the_way_is_named_with_its_line(operator: Operator, case: str) -> None:
    old, new, says = REFUSALS[case]
    with edited(operator.etc / "main.cf", lambda text: text.replace(old, new)):
        last = new.splitlines()[-1]
        number = (operator.etc / "main.cf").read_text().splitlines().index(last) + 1
        before = operator.files()
        with pytest.raises(PostfixError) as refused:
            wire(operator)
        assert says in str(refused.value)
        assert f"{operator.etc}/main.cf:{number}: {last.partition('=')[0].strip()}" in str(refused.value)
        assert operator.files() == before


def test_a_refusal_ends_with_78_and_says_that_nothing_was_touched(operator: Operator) -> None:
    with edited(operator.yaml, lambda text: text.replace("/mm4\", state", "/../gw\", state")):
        said = operator.run("wire", code=78)
        assert f"folders: {{sockets: {operator.queue}/gw}} in the YAML" in said
        assert "nothing was touched" in said


def test_an_alias_for_everything_is_no_obstacle(operator: Operator) -> None:
    with edited(operator.etc / "main.cf", lambda text: text + "virtual_alias_maps = regexp:{{/@/ all@operator.example}}\n"):
        wire(operator)
        value = Instance(operator.etc).values("virtual_alias_maps")["virtual_alias_maps"]
        assert value.startswith(f"regexp:{operator.etc}/mm4/keep, ")
        unwire(operator)


def test_a_port_of_another_line_and_one_of_another_program_are_refused(operator: Operator) -> None:
    listen = f'listen: "127.0.0.1:{operator.ports["listen"]}"'
    with (
        edited(operator.yaml, lambda text: text.replace(listen, f'listen: "127.0.0.1:{operator.ports["ordinary"]}"')),
        pytest.raises(PostfixError, match=rf"master\.cf:2: 127\.0\.0\.1:{operator.ports['ordinary']} inet: listens on"),
    ):
        wire(operator)
    with socket.socket() as other:
        other.bind(("127.0.0.1", operator.ports["listen"]))
        other.listen(1)
        with pytest.raises(PostfixError, match=r"service\.listen .*Address already in use"):
            wire(operator)


def test_a_line_on_every_address_has_the_port_of_each(operator: Operator) -> None:
    listen = f'listen: "127.0.0.1:{operator.ports["listen"]}"'
    with (
        edited(operator.yaml, lambda text: text.replace(listen, 'listen: ["127.0.0.1:25", "[::1]:25"]')),
        edited(operator.etc / "master.cf", lambda text: "smtp inet n - y - - smtpd\n" + text),
        pytest.raises(PostfixError) as refused,
    ):
        wire(operator)
    # inet_interfaces has one of the two.
    assert str(refused.value).count("smtp inet: listens on") == 1
    assert f"{operator.etc}/master.cf:1: smtp inet: listens on 127.0.0.1:25, service.listen of the YAML" in str(refused.value)


def test_lines_put_in_by_hand_are_named(operator: Operator) -> None:
    by_hand = "mm4-out unix - - n - - smtp\n"
    with (
        edited(operator.etc / "master.cf", lambda text: text + by_hand),
        pytest.raises(PostfixError, match=r"master\.cf:\d+: mm4-out unix: is there already"),
    ):
        wire(operator)


@pytest.mark.parametrize("setting", ["non_smtpd_milters = $dkim_milter", "authorized_submit_users = !mm4, root"])
def test_sendmail_where_a_setting_would_change_or_refuse_an_ack_is_refused(operator: Operator, setting: str) -> None:
    with (
        edited(operator.yaml, lambda text: text.replace("submit: smtp\n", "submit: sendmail\n")),
        edited(operator.etc / "main.cf", lambda text: text + f"{setting}\n"),
        pytest.raises(PostfixError, match=rf"main\.cf:\d+: {re.escape(setting)}: .*\n  change: submit: smtp"),
    ):
        wire(operator)


CLIENTS = {
    "a copy of everything": ("main", "always_bcc = archive@operator.example", "copy of every MMS"),
    "a filter": ("main", "content_filter = scan:[127.0.0.1]:10025", "takes the recipients that mm4 adds to the filter"),
    "no milters": ("main", "receive_override_options = no_milters", None),
    "an alias of the MMSC's domain": ("main", "virtual_alias_maps = regexp:{{/@mmsc/ all@operator.example}}", "on a shared line"),
    "reports of success": ("yaml", "delivery_report: on_delivery", "needs Postfix's report of success"),
}


@pytest.mark.parametrize("case", CLIENTS)
def test_what_a_shared_line_cannot_give_is_refused(operator: Operator, case: str) -> None:
    where, new, says = CLIENTS[case]
    change: Callable[[str], str] = (
        (lambda text: f"{text}{new}\n") if where == "main" else (lambda text: text.replace("networks:", f"{new}\n    networks:"))
    )
    with edited(operator.etc / "main.cf" if where == "main" else operator.yaml, change):
        if says is None:  # every line here listens on loopback, where no peer comes in
            wire(operator, "clients")
            unwire(operator)
            return
        with pytest.raises(PostfixError, match=says):
            wire(operator, "clients")


def test_a_line_for_everybody_that_asks_no_milter_is_refused(operator: Operator) -> None:
    more = "192.0.2.25:2525 inet n - n - - smtpd\n  -o receive_override_options=no_address_mappings,no_milters\n"
    says = r"master\.cf:\d+: 192\.0\.2\.25:2525 inet: asks no milter .*\n  change: mm4 postfix wire --mode service"
    with edited(operator.etc / "master.cf", lambda text: text + more), pytest.raises(PostfixError, match=says):
        wire(operator, "clients")


def test_milters_of_the_operator_that_change_are_told(operator: Operator) -> None:
    wire(operator, "clients")
    rows = (operator.etc / "mm4" / "milters").read_text()
    assert "127.0.0.21/32\t{ unix:mm4/milter.sock, default_action=tempfail, connect_timeout=60s, content_timeout=60s }, { unix:signer.sock, " in rows
    with edited(operator.etc / "main.cf", lambda text: text.replace("dkim_milter = unix:signer.sock", "dkim_milter = inet:[::1]:8891")):
        outcome = wire(operator, None, dry=True)
        assert outcome.changed == [str(operator.etc / "mm4" / "milters")]
        assert "+127.0.0.21/32\t{ unix:mm4/milter.sock, default_action=tempfail, connect_timeout=60s, content_timeout=60s }, { inet:[::1]:8891," in outcome.diff
    unwire(operator)


def test_what_the_operator_edits_since_stays(operator: Operator) -> None:
    main, master = operator.etc / "main.cf", operator.etc / "master.cf"
    before = main.read_text(), master.read_text()
    wire(operator)
    main.write_text(main.read_text().replace("sales@operator", "shop@operator") + "delay_warning_time = 4h\n")
    master.write_text(master.read_text().replace("syslog_name=postfix/submission", "syslog_name=postfix/login"))
    assert wire(operator).changed == []
    master.write_text(master.read_text().replace("syslog_name=postfix/login", "syslog_name=postfix/mua"))
    outcome = unwire(operator)
    assert any("master.cf was edited since" in note for note in outcome.notes)
    assert main.read_text() == before[0].replace("sales@operator", "shop@operator") + "delay_warning_time = 4h\n"
    assert master.read_text() == before[1].replace("syslog_name=postfix/submission", "syslog_name=postfix/mua")
    main.write_text(before[0])
    master.write_text(before[1])


def test_another_yaml_is_wired_again_and_unwire_still_knows_the_first_files(operator: Operator) -> None:
    wire(operator)
    with edited(operator.yaml, lambda text: text.replace("mms.gw.example", "mms.gw2.example")):
        assert str(operator.etc / "main.cf") in wire(operator).changed
        assert "mms.gw.example" not in (operator.etc / "main.cf").read_text()
    assert wire(operator, "clients").mode == "clients"
    assert wire(operator, "all").mode == "all"
    assert (operator.etc / "main.cf").read_text().startswith("# Written by `mm4 postfix wire --mode all`")
    unwire(operator)


def test_a_whole_file_that_was_edited_is_not_lost(operator: Operator) -> None:
    main = operator.etc / "main.cf"
    wire(operator, "all")
    main.write_text(main.read_text() + "delay_warning_time = 4h\n")
    edited_text = main.read_text()
    with pytest.raises(PostfixError, match="was edited since mm4 wrote it whole"):
        unwire(operator)
    with pytest.raises(PostfixError, match="was edited since mm4 wrote it whole"):
        wire(operator, "service")
    assert any("main.cf.edited" in note for note in unwire(operator, force=True).notes)
    kept = operator.etc / "main.cf.edited"
    assert kept.read_text() == edited_text
    kept.unlink()


def test_a_lost_record_takes_out_what_is_known_to_be_ours(operator: Operator) -> None:
    before = (operator.etc / "main.cf").read_bytes(), (operator.etc / "master.cf").read_bytes()
    wire(operator)
    (operator.etc / "mm4" / "wired.json").unlink()
    unwire(operator)
    assert ((operator.etc / "main.cf").read_bytes(), (operator.etc / "master.cf").read_bytes()) == before
    for table in (operator.etc / "mm4").iterdir():
        table.unlink()
    (operator.etc / "mm4").rmdir()


@pytest.mark.parametrize("last", ["keep", "main.cf", "wired.json"])
def test_a_run_that_is_killed_in_the_middle_is_gone_through_again(
    operator: Operator, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before this file was written; the record comes first, and once more when all is well.

    The next run finishes it, though it may find every file as it should be, and unwire gives the first files back.
    """
    from mm4.postfix import maps

    real, written = maps.replace_file, set()

    class Killed(BaseException):
        pass

    def replace_file(path: Path, text: str | bytes, *, secret: bool = False) -> bool:
        if path.name == last and (last != "wired.json" or path.name in written):
            raise Killed
        written.add(path.name)
        return real(path, text, secret=secret)

    monkeypatch.setattr(maps, "replace_file", replace_file)
    monkeypatch.setattr(Wiring, "_back", lambda *_, **__: None)
    with pytest.raises(Killed):
        wire(operator)
    monkeypatch.undo()
    record = operator.etc / "mm4" / "wired.json"
    assert json.loads(record.read_text())["settled"] is False
    assert json.loads((operator.etc / "mm4" / "wired.json").read_text())["mode"] == "service"
    wire(operator)
    assert json.loads(record.read_text())["settled"] is True
    assert wire(operator).changed == []
    unwire(operator)


def test_a_run_that_is_interrupted_puts_everything_back(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    from mm4.postfix import maps

    real, interrupted = maps.replace_file, []

    def replace_file(path: Path, text: str | bytes, *, secret: bool = False) -> bool:
        if path.name == "main.cf" and not interrupted:
            interrupted.append(path)
            raise KeyboardInterrupt
        return real(path, text, secret=secret)

    before = operator.files()
    monkeypatch.setattr(maps, "replace_file", replace_file)
    with pytest.raises(KeyboardInterrupt):
        wire(operator)
    assert operator.files() == before


@pytest.mark.parametrize("mode", ["service", "all"])
def test_a_peer_with_a_service_of_its_own_comes_and_goes_by_maps(operator: Operator, mode: str) -> None:
    """`mm4 postfix maps` keeps its part of our lines; unwire gives back the first files all the same."""
    password = operator.folder / "password"
    password.write_text("s3cret-word\n")
    wire(operator, mode)
    own = f"login: {{user: us, password_file: {password}}}\n    tls: encrypt\n    pace: {{concurrency: 2}}\n    networks:"
    with edited(operator.yaml, lambda text: text.replace("networks:", own)):
        shown = operator.run("wire", "--check", "--diff", code=1)
        assert "mm4-out-north" in shown
        assert "s3cret-word" not in shown
        assert "main.cf" in operator.run("maps")
        assert "mm4-out-north_destination_concurrency_limit = 2" in (operator.etc / "main.cf").read_text()
        assert wire(operator).changed == []
        table = operator.etc / "mm4" / "password-north"
        assert table.stat().st_mode & 0o777 == 0o600
        table.unlink()
        assert wire(operator).changed == [str(table)]
        assert table.stat().st_mode & 0o777 == 0o600
    assert str(table) in wire(operator).changed
    assert not table.exists()
    with edited(operator.yaml, lambda text: text.replace("networks:", own)):
        operator.run("maps")
        unwire(operator)


def test_the_record_is_for_root_alone_and_a_folder_that_was_there_stays(operator: Operator) -> None:
    tables = operator.etc / "mm4"
    tables.mkdir()
    (tables / "notes").write_text("the operator's\n")
    wire(operator)
    assert (tables / "wired.json").stat().st_mode & 0o777 == 0o600
    unwire(operator)
    assert os.listdir(tables) == ["notes"]
    (tables / "notes").unlink()
    tables.rmdir()
