"""The `mm4` command: exit codes, JSON, and one clear line on stderr for whatever goes wrong. Never a traceback."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from aiosmtpd.controller import Controller

import mm4 as package
from fake import CONFIG, req
from harness import free_port
from mm4 import __version__
from mm4.cli import lint as lint_module
from mm4.cli.main import _COMMANDS, main, run
from mm4.postfix import instance as instance_module
from mm4.protocol.errors import Mm4Error
from mm4.protocol.headers import join
from mm4.protocol.transaction import Direction, Message, Transaction
from mm4.store.store import Store

CORPUS = Path(__file__).parents[1] / "corpus"
GOOD = CORPUS / "peers" / "01-forward-req-quoted-ids.eml"
BAD = CORPUS / "malformed" / "20-no-transaction-id.eml"


class Done:
    """What a command left: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        """The one object that was printed."""
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line on standard error, which says what is wrong."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("mm4: ")
        return lines[0].removeprefix("mm4: ")


Mm4 = Callable[..., Done]


@pytest.fixture
def mm4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mm4:
    """The command in this process, by the console script's own entry point."""
    monkeypatch.delenv("MM4_DEBUG", raising=False)
    log = logging.getLogger("mm4")
    monkeypatch.setattr(log, "handlers", log.handlers[:])  # serve sets it up for a process of its own
    monkeypatch.setattr(log, "propagate", log.propagate)
    monkeypatch.setattr(log, "level", log.level)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["mm4", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        code = left.value.code
        assert isinstance(code, int)
        return Done(code, out, err)

    return call


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A configuration whose store, sockets and Postfix lie in a folder of their own."""
    file = tmp_path / "mm4.yaml"
    file.write_text(CONFIG + "store: sqlite:///mm4.db\nfolders: {state: state, sockets: run, postfix: postfix}\n")
    return str(file)


def process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "mm4", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


# -- help and version


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands(main))


@pytest.mark.parametrize("path", [(), *ALL], ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(mm4: Mm4, path: tuple[str, ...], option: str) -> None:
    done = mm4(*path, option)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: mm4")
    assert len(done.out.splitlines()) >= 5


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    assert command.help
    options = [p for p in command.params if isinstance(p, click.Option)]
    # init's questions are their own explanation, and what is called --subject needs none.
    silent = [o.name for o in options if not o.help and not o.prompt and o.name != "subject"]
    assert silent == []


def test_the_list_of_commands_is_what_can_be_called(mm4: Mm4) -> None:
    out = mm4("--help").out
    for name in _COMMANDS:
        assert f"\n  {name} " in out


_LOADED = """
import sys
from mm4.cli.main import run
try:
    run()
finally:
    heavy = {"sqlalchemy", "pydantic", "yaml", "Milter", "asyncio", "phonenumbers"} & set(sys.modules)
    print(sorted(heavy), sorted(name for name in sys.modules if name.startswith("mm4.")))
"""


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--help"], None), (["-h"], None), ([], "mm4 s"), ([], "mm4 --v")],
    ids=["help", "h", "completion of a command", "completion of an option"],
)  # fmt: skip
def test_the_list_of_commands_loads_none_of_them(arguments: list[str], words: str | None) -> None:
    asked = {"_MM4_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "1"} if words else {}
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *arguments], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1]), **asked},
    )  # fmt: skip
    said, loaded = done.stdout.rstrip().rsplit("\n", 1)
    assert loaded == "[] ['mm4.cli', 'mm4.cli.main', 'mm4.protocol', 'mm4.protocol.errors']"
    wanted = {None: _COMMANDS, "mm4 s": ["serve", "send", "stats", "store", "sandbox"], "mm4 --v": ["--version"]}[words]
    assert [name for name in wanted if name not in said] == []


def test_the_version_names_what_it_stands_on(mm4: Mm4) -> None:
    done = mm4("--version")
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[0] == f"mm4 {__version__}"
    assert [line.split()[0] for line in lines] == ["mm4", "Python", "Postfix", "libmilter"]
    assert all(len(line.split()) > 1 for line in lines)


def test_the_version_says_so_where_there_is_no_postfix() -> None:
    done = process("--version", env={**os.environ, "PATH": "/nonexistent"})
    assert done.returncode == 0
    assert b"Postfix not installed (Debian package postfix)" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        "nonsense", "--nonsense", "lint", "lint --nonsense x", "lint --dialect klingon x", "lint --region XX x", "route",
        "explain x", "explain x --client 1 --mail-from a --rcpt b --size many", "trace", "config nonsense", "send",
        "sandbox", "sandbox --dir d --listen nowhere", "sandbox --dir d --source nobody", "postfix nonsense",
        "postfix show --wiring loose", "init --dialect klingon",
    ],
)  # fmt: skip
def test_wrong_use_is_2_and_says_how_it_is_right(mm4: Mm4, arguments: str) -> None:
    done = mm4(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: mm4")
    assert "\nError: " in done.err


# -- the configuration file


NEEDS_CONFIG = [
    ["config", "show"], ["check"], ["route", "+491511000001"], ["trace", "x"], ["serve"], ["postfix", "maps"],
    ["postfix", "show"], ["send", "--from", "+491511000001", "--to", "+447700900101", "--text", "hi"],
    ["explain", str(GOOD), "--client", "127.0.0.1", "--mail-from", "", "--rcpt", "x"],
]  # fmt: skip


WRONG = b"local:\n  domain: mms.gw.example\n  numbers: [+49]\n  system_address: x@mms.gw.example\n"
BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "No such file"),
    "folder": (None, "Is a directory"),
    "binary": (b"\xff\xfe\x00", "is not UTF-8 (byte 0)"),
    "empty": (b"", ":1: expects keys with values"),
    "wrong": (WRONG, ":3: local.numbers[0]: has to be a quoted string"),
}


@pytest.mark.parametrize("arguments", NEEDS_CONFIG, ids=lambda a: " ".join(a[:2]))
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_configuration_is_78_everywhere(mm4: Mm4, tmp_path: Path, kind: str, arguments: list[str]) -> None:
    file = tmp_path / "x.yaml"
    content, what = BAD_FILES[kind]
    if content is not None:
        file.write_bytes(content)
    elif kind == "folder":
        file.mkdir()
    done = mm4(*arguments, "--config", file)
    assert (done.code, done.out) == (78, "")
    assert str(file) in done.line
    assert what in done.line


def test_a_configuration_of_control_characters_is_78(mm4: Mm4, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"local:\n\x00\x01")
    done = mm4("config", "show", "--config", file)
    assert (done.code, done.line) == (78, f"{file}:2: not readable as YAML: a character that is no text")


def test_the_configuration_of_the_host_is_the_default(mm4: Mm4) -> None:
    if Path("/etc/mm4/mm4.yaml").exists():
        return
    done = mm4("config", "show")
    assert (done.code, "mm4 init writes a first one" in done.line) == (78, True)
    assert done.line.startswith("/etc/mm4/mm4.yaml: cannot be read")


def test_config_show_says_where_each_value_comes_from(mm4: Mm4, config: str) -> None:
    done = mm4("config", "show", "--config", config)
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if line.startswith("local.domain ")]
    assert line.split() == ["local.domain", "mms.gw.example", "(line", "2)"]
    shown = mm4("config", "show", "--json", "--config", config).json
    assert shown["peers.north.max_size"] == {"value": 1_000_000, "from": "line 14"}
    assert shown["peers.north.tls"] == {"value": "may", "from": "default"}


def test_the_example_is_the_file_in_docs(mm4: Mm4) -> None:
    done = mm4("config", "example")
    assert (done.code, done.out) == (0, (CORPUS.parents[1] / "docs" / "mm4.yaml").read_text())


# -- files


@pytest.mark.parametrize(("name", "what"), [("missing", "No such file or directory"), ("", "Is a directory")])
def test_a_file_that_cannot_be_read_is_2(mm4: Mm4, tmp_path: Path, config: str, name: str, what: str) -> None:
    path = tmp_path / name
    explain = ("explain", path, "--config", config, "--client", "127.0.0.1", "--mail-from", "", "--rcpt", "+447700900101")
    attach = ("send", "--config", config, "--from", "+491511000001", "--to", "+447700900101", "--attach", path)
    for arguments in (explain, attach):
        done = mm4(*arguments)
        assert (done.code, done.line) == (2, f"{path}: {what}")


# -- route


def test_route_says_where_a_number_goes_and_why(mm4: Mm4, config: str) -> None:
    done = mm4("route", "--config", config, "+447700900101")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == '+447700900101: north by routes[0]: prefix "+4477009001"'
    assert mm4("route", "--json", "--config", config, "+447700900101").json == {
        "number": "+447700900101", "peer": "north", "next_hop": "[192.0.2.1]:25",
        "rule": 'routes[0]: prefix "+4477009001"',
    }  # fmt: skip
    local = mm4("route", "--json", "--config", config, "01511 000001")
    assert (local.code, local.json["peer"], local.json["number"]) == (0, "local", "+491511000001")


def test_a_number_without_a_route_is_1(mm4: Mm4, config: str) -> None:
    done = mm4("route", "--config", config, "+33600000000")
    assert (done.code, done.out, done.err) == (1, "+33600000000: no route\n", "")
    done = mm4("route", "--json", "--config", config, "+33600000000")
    assert (done.code, done.json) == (1, {"number": "+33600000000", "peer": None, "next_hop": None, "rule": None})


@pytest.mark.parametrize("number", ["12345", "ann@mail.example", "", "+", "PostMaster", "+12", "\udcff"])
def test_what_is_no_number_is_wrong_use(mm4: Mm4, config: str, number: str) -> None:
    done = mm4("route", "--config", config, number)
    assert (done.code, done.out) == (2, "")
    assert "is no E.164 number: write a plus and 7 to 15 digits, for example +447700900101" in done.line


# -- explain


def explained(mm4: Mm4, config: str, *more: str, client: str = "192.0.2.1", file: object = GOOD) -> Done:
    return mm4(
        "explain", file, "--json", "--config", config, "--client", client, "--mail-from", "x@mms.north.example",
        "--rcpt", "+491511000001/TYPE=PLMN@mms.gw.example", *more,
    )  # fmt: skip


def test_explain_says_what_the_gateway_would_do(mm4: Mm4, config: str, tmp_path: Path) -> None:
    done = explained(mm4, config, "--rcpt", "+33600000000@mms.gw.example")
    assert (done.code, done.err) == (0, "")
    found = done.json
    assert (found["peer"], found["direction"]) == ("north", "in")
    assert (found["action"], found["smtp"]) == ("accept", "250 2.0.0 Ok")
    first, second = found["rcpt"]
    assert (first["smtp"], first["peer"], first["becomes"], first["next_hop"]) == (
        "250 2.1.5 Ok", "local", "+491511000001@mmsc.gw.example", "[127.0.0.1]:2600",
    )  # fmt: skip
    assert (second["smtp"], second["peer"], second["becomes"]) == ("550 5.1.1 Number not served here", None, None)
    assert found["edits"] == [["change", "X-Mms-Ack-Request", 1, "No"]]
    (response,) = found["responses"]
    assert (response["type"], response["status"]) == ("MM4_forward.RES", "Ok")
    assert response["to"] == "PostMaster@mms.north.example"
    assert response["message"].startswith("X-Mms-3GPP-MMS-Version: 5.5.0\r\n")
    assert found["splits"] == []
    assert not (tmp_path / "mm4.db").exists(), "nothing is kept"


def test_explain_says_what_each_of_several_sides_gets(mm4: Mm4, config: str) -> None:
    more = ("--rcpt", "+447700900101@mms.gw.example", "--rcpt", "+447700900201@mms.gw.example")
    done = explained(mm4, config, *more, client="127.0.0.1")
    found = done.json
    assert (done.code, found["action"], found["splits"]) == (0, "accept", ["north", "tyntec"])
    assert [r["peer"] for r in found["rcpt"]] == [side["peer"] for side in found["sides"]] == ["local", "north", "tyntec"]
    assert [[r["becomes"]] for r in found["rcpt"]] == [side["rcpt"] for side in found["sides"]]
    assert found["edits"] == found["sides"][0]["edits"]
    assert ["add", "X-Mms-MM1-Message-Type", 0, "MM4_Forward.REQ"] in found["sides"][2]["edits"]
    people = mm4(
        "explain", GOOD, "--config", config, "--client", "127.0.0.1", "--mail-from", "", "--rcpt", "+447700900101", *more[2:],
    )  # fmt: skip
    assert "envelope sender to north: " in people.out
    assert people.out.index("envelope sender to tyntec: ") < people.out.index("  add X-Mms-MM1-Message-Type: MM4_Forward.REQ")


@pytest.mark.parametrize(
    ("client", "more", "file", "action", "smtp"),
    [
        ("203.0.113.99", (), GOOD, "reject", "550 5.7.1 "),
        ("nobody", (), GOOD, "reject", "550 5.7.1 "),
        ("192.0.2.1", ("--size", "1000001"), GOOD, "reject", "552 5.3.4 "),
        ("192.0.2.1", (), CORPUS / "malformed" / "36-empty.eml", "reject", "554 5.6.0 "),
        ("198.51.100.1", (), BAD, "reject", "554 5.6.0 "),
        ("192.0.2.1", (), BAD, "accept", "250 2.0.0 "),
    ],
)
def test_explain_exits_1_where_it_would_refuse(
    mm4: Mm4, config: str, client: str, more: tuple[str, ...], file: Path, action: str, smtp: str
) -> None:
    done = explained(mm4, config, *more, client=client, file=file)
    assert (done.code, done.json["action"]) == (0 if action == "accept" else 1, action)
    assert done.json["smtp"].startswith(smtp)
    for key in ("peer", "direction", "mail_from", "rcpt", "edits", "responses", "splits"):
        assert key in done.json


def test_explain_for_people(mm4: Mm4, config: str) -> None:
    envelope = ("--client", "192.0.2.1", "--mail-from", "<>", "--rcpt", "<+491511000001>")
    done = mm4("explain", BAD, "--config", config, *envelope)
    assert done.code == 0
    assert "client: north" in done.out
    assert "answer: MM4_forward.RES Error-message-format-corrupt to PostMaster@mms.north.example" in done.out


REPORT = b"""\
From: +447700900101/TYPE=PLMN
To: +491511000001/TYPE=PLMN
Date: Thu, 12 Nov 2026 02:28:01 +0200
X-Mms-3GPP-MMS-Version: 5.5.0
X-Mms-Message-Type: MM4_delivery_report.REQ
X-Mms-Transaction-ID: r-1
X-Mms-Message-ID: m-1
X-Mms-Ack-Request: Yes
X-Mms-MM-Status-Code: Retrieved

"""


def test_explain_of_a_report_looks_the_message_up_where_it_is_told(mm4: Mm4, config: str, tmp_path: Path) -> None:
    report = tmp_path / "report.eml"
    report.write_bytes(REPORT)
    unknown = explained(mm4, config, file=report)
    assert (unknown.code, unknown.json["responses"][0]["status"]) == (0, "Error-message-not-found")
    store = tmp_path / "copy.db"
    sent = Transaction("t-1", "m-1", "+491511000001", "+447700900101", delivery_report=True)
    moment = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
    with Store.open(f"sqlite:///{store}") as opened:
        message = Message("0" * 32, Direction.OUT, "north", "MM4_forward.REQ", "4XyZ1", "gw", moment, (sent,))
        opened.record(message).result(30)
    before = store.read_bytes()
    known = explained(mm4, config, "--store", str(store), file=report)
    assert (known.code, known.json["responses"][0]["status"]) == (0, "Ok")
    assert known.json["rcpt"][0]["becomes"] == "+491511000001@mmsc.gw.example"
    assert store.read_bytes() == before
    missing = explained(mm4, config, "--store", f"{tmp_path}/none.db", file=report)
    assert (missing.code, missing.out) == (2, "")
    assert "--store: store" in missing.err


def test_explain_shows_where_a_report_really_goes(mm4: Mm4, config: str, tmp_path: Path) -> None:
    """To the peer that the message came from, not where the number's route leads."""
    report = tmp_path / "report.eml"
    swapped = REPORT.replace(b"+447700900101", b"x").replace(b"+491511000001", b"+447700900201").replace(b"x", b"+491511000001")
    report.write_bytes(swapped)
    came = Transaction("t-1", "m-1", "+447700900201", "+491511000001", delivery_report=True)
    moment = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
    with Store.open(f"sqlite:///{tmp_path}/mm4.db") as opened:
        message = Message("0" * 32, Direction.IN, "north", "MM4_forward.REQ", "4XyZ1", "gw", moment, (came,))
        opened.record(message).result(30)
    done = mm4(
        "explain", report, "--json", "--config", config, "--client", "127.0.0.1", "--mail-from",
        "system-user@mms.gw.example", "--rcpt", "+447700900201@mms.gw.example", "--store", f"{tmp_path}/mm4.db",
    )  # fmt: skip
    (recipient,) = done.json["rcpt"]
    assert (recipient["peer"], recipient["becomes"]) == ("north", "+447700900201/TYPE=PLMN@mms.north.example")
    assert recipient["next_hop"] == "[192.0.2.1]:25"


# -- trace


@pytest.fixture
def stored(config: str) -> str:
    """A configuration whose store knows one message."""
    transaction = Transaction("t-1", "m-1", "+447700900002", "+491511000001", ack_requested=True)
    moment = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
    message = Message("0" * 32, Direction.IN, "north", "MM4_forward.REQ", "4XyZ1", "gw", moment, (transaction,))
    with Store.open(f"sqlite:///{Path(config).parent}/mm4.db") as store:
        store.record(message).result(30)
    return config


@pytest.mark.parametrize("identifier", ["m-1", "t-1", "4XyZ1"])
def test_trace_finds_a_message_by_any_of_its_ids(mm4: Mm4, stored: str, identifier: str) -> None:
    done = mm4("trace", "--json", "--config", stored, identifier)
    assert (done.code, done.err) == (0, "")
    assert done.json["message_id"] == "m-1"
    (transaction,) = done.json["transactions"]
    assert {
        "peer", "direction", "type", "transaction_id", "recipient", "state", "status", "queue_id", "host", "events",
    } <= set(transaction)  # fmt: skip
    assert (transaction["peer"], transaction["direction"], transaction["queue_id"]) == ("north", "in", "4XyZ1")
    assert all({"at", "what", "queue_id"} <= set(event) for event in transaction["events"])
    text = mm4("trace", "--config", stored, identifier)
    assert "MM4_forward.REQ from north, recipient +491511000001" in text.out


def test_an_id_that_nobody_knows_is_1(mm4: Mm4, stored: str) -> None:
    for identifier in ("nobody", "", "'; DROP TABLE messages; --", "\udcff"):
        assert mm4("trace", "--config", stored, identifier).code == 1
        done = mm4("trace", "--json", "--config", stored, identifier)
        assert (done.code, done.json["transactions"]) == (1, [])


def test_a_store_that_is_not_there_is_named(mm4: Mm4, config: str) -> None:
    done = mm4("trace", "--config", config, "x")
    assert done.code == 78
    assert f"{Path(config).parent}/mm4.db: does not exist; start mm4 serve once" in done.line


# -- init

ANSWERS = {
    "domain": "mms.gw.example", "region": "DE", "numbers": "+491511, +491512", "clients": "127.0.0.1/32",
    "mmsc": "127.0.0.1:2600", "listen": "192.0.2.9:25", "peer": "north", "dialect": "3gpp",
    "peer-domain": "mms.north.example", "peer-network": "192.0.2.1/32", "peer-next-hop": "[192.0.2.1]:25",
}  # fmt: skip


def initialised(mm4: Mm4, output: Path, **change: str) -> Done:
    answers = {**ANSWERS, **{k.replace("_", "-"): v for k, v in change.items()}}
    return mm4("init", "--output", output, *(part for k, v in answers.items() for part in (f"--{k}", v)))


@pytest.mark.parametrize("mmsc", ["127.0.0.1:2600", "[2001:db8::1]:25", "mmsc.gw.example:25", ""])
def test_init_writes_a_file_that_loads(mm4: Mm4, tmp_path: Path, mmsc: str) -> None:
    output = tmp_path / "mm4.yaml"
    done = initialised(mm4, output, mmsc=mmsc)
    assert (done.code, done.err) == (0, "")
    assert "What north has to be told" in done.out
    shown = mm4("config", "show", "--json", "--config", output)
    assert shown.code == 0
    assert shown.json["local.numbers"]["value"] == ["+491511", "+491512"]


def test_init_leaves_a_file_that_exists_alone(mm4: Mm4, tmp_path: Path) -> None:
    output = tmp_path / "mm4.yaml"
    output.write_text("mine")
    done = initialised(mm4, output)
    assert (done.code, output.read_text()) == (2, "mine")
    assert "exists and stays as it is" in done.line
    assert initialised(mm4, tmp_path / "no" / "mm4.yaml").code == 2


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"domain": "gw"}, 78, "local.domain: 'gw' is no domain name"),
        ({"region": "XX"}, 78, "local.region: 'XX' is no ISO 3166 country"),
        ({"numbers": "491511"}, 78, "local.numbers[0]: '491511' is no number prefix"),
        ({"peer": "North"}, 78, "'North' is no peer name"),
        ({"peer_network": "127.0.0.1"}, 78, "127.0.0.1/32 stands at local.clients too"),
        ({"mmsc": "somewhere"}, 2, "--mmsc 'somewhere': write host:port, for example 127.0.0.1:2600"),
        ({"domain": "x\nfoo: [bar"}, 78, "not readable as YAML"),
    ],
)
def test_init_writes_nothing_that_does_not_load(
    mm4: Mm4, tmp_path: Path, change: dict[str, str], code: int, what: str
) -> None:
    output = tmp_path / "mm4.yaml"
    done = initialised(mm4, output, **change)
    assert done.code == code
    assert what in done.err
    assert not output.exists()


def test_init_asks_what_is_not_said() -> None:
    done = process("init", "--output", "/nonexistent/mm4.yaml", stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert b"Your MM4 domain" in done.stdout
    assert done.stderr.decode().strip().splitlines()[-1] == "mm4: interrupted"


# -- send


class Service(Controller):
    """An MM4 service that takes what it is given, or not."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, list[str], bytes]] = []
        self.rcpt, self.end = "250 OK", "250 OK"
        super().__init__(self, hostname="127.0.0.1", port=free_port(), ready_timeout=30)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if self.rcpt.startswith("250") or "900101" in address:
            envelope.rcpt_tos.append(address)
            return "250 OK"
        return self.rcpt

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.seen.append((envelope.mail_from, list(envelope.rcpt_tos), envelope.content))
        return self.end


@pytest.fixture
def service(config: str) -> Iterator[Service]:
    running = Service()
    running.start()
    text = Path(config).read_text()
    Path(config).write_text(text + f'service: {{listen: "127.0.0.1:{running.port}"}}\n')
    yield running
    running.stop()


SEND = ("send", "--from", "+491511000001", "--to", "+447700900101", "--config")


def test_send_hands_a_whole_mms_to_the_service(mm4: Mm4, config: str, service: Service, tmp_path: Path) -> None:
    picture = tmp_path / "my picture.png"
    picture.write_bytes(b"\x89PNG" + bytes(range(256)))
    content_of = ("--subject", "Grüße", "--text", "hallo", "--attach", picture)
    done = mm4(*SEND, config, "--to", "01511 000002", *content_of, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["refused"] == {}
    ((mail_from, recipients, content),) = service.seen
    assert mail_from == "+491511000001/TYPE=PLMN@mms.gw.example"
    assert recipients == ["+447700900101/TYPE=PLMN@mms.gw.example", "+491511000002/TYPE=PLMN@mms.gw.example"]
    assert done.json["message_id"].encode() in content
    assert content.isascii()


def test_a_recipient_that_is_refused_is_1_and_the_others_are_sent(mm4: Mm4, config: str, service: Service) -> None:
    service.rcpt = "550 5.1.1 Number not served here"
    done = mm4(*SEND, config, "--to", "+447700900102", "--text", "x", "--json")
    assert (done.code, done.json["refused"]) == (1, {"+447700900102": "550 5.1.1 Number not served here"})
    assert len(service.seen) == 1
    done = mm4(*SEND, config, "--to", "+447700900102", "--text", "x")
    assert (done.code, done.err) == (1, "refused +447700900102: 550 5.1.1 Number not served here\n")


def test_a_message_that_is_refused_is_1(mm4: Mm4, config: str, service: Service) -> None:
    service.end = "554 5.6.0 To is missing and cannot be completed"
    done = mm4(*SEND, config, "--text", "x")
    assert (done.code, done.out) == (1, "")
    assert "554 5.6.0 To is missing" in done.line


def test_a_service_that_is_away_is_named(mm4: Mm4, config: str) -> None:
    Path(config).write_text(Path(config).read_text() + f'service: {{listen: "127.0.0.1:{free_port()}"}}\n')
    done = mm4(*SEND, config, "--text", "x")
    assert done.code == 1
    assert "cannot be reached" in done.line


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "nothing to send: give --text or --attach"),
        (("--text", "x", "--to", "nobody"), "'nobody' is no address"),
        (("--text", "x", "--to", "+12"), "'+12' is no address"),
        (("--text", "x", "--to", "a@-"), "'a@-' is no address"),
        (("--text", "x", "--to", "PostMaster@mms.north.example"), "'PostMaster@mms.north.example' is no address"),
        (("--text", "x", "--to", "+447700900101\r\nDATA"), "is no address"),
        (("--text", "x", "--attach", "/proc/no such file"), "/proc/no such file: No such file or directory"),
    ],
)
def test_what_cannot_be_sent_is_wrong_use(mm4: Mm4, config: str, arguments: tuple[str, ...], what: str) -> None:
    done = mm4(*SEND, config, *arguments)
    assert (done.code, done.out) == (2, "")
    assert what in done.line


# -- serve and check


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Commands of Postfix in PATH, so that this file needs none on the host: nothing here runs one for its result."""
    if shutil.which("postqueue", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        return
    folder = tmp_path_factory.mktemp("sbin")
    for name in ("postqueue", "sendmail"):
        (folder / name).write_text("#!/bin/false\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ.get('PATH', '')}")


STORE_LINE = len(CONFIG.splitlines()) + 1
FOLDERS_LINE = STORE_LINE + 1


def test_serve_without_its_socket_folder_says_how_to_make_it(mm4: Mm4, config: str, tmp_path: Path) -> None:
    done = mm4("serve", "--config", config)
    assert done.code == 78
    assert done.line == (
        f"{config}:{FOLDERS_LINE}: folders.sockets: there is no folder {tmp_path}/run; make it: "
        f"install -d -o mm4 {tmp_path}/run"
    )


def test_serve_with_a_port_that_is_taken_names_it(config: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        text = Path(config).read_text() + f'service: {{metrics: "{endpoint}"}}\n'
        Path(config).write_text(text)
        # In a process of its own: prometheus_client counts differently ever after.
        done = process("serve", "--config", config)
    line = len(text.splitlines())
    assert done.returncode == 78
    assert done.stderr.decode().splitlines() == [
        f"mm4: {config}:{line}: service.metrics: cannot listen on {endpoint}: Address already in use; choose a free port"
    ]


def test_serve_with_a_state_folder_that_cannot_be_names_it(mm4: Mm4, config: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "state").write_text("a file")
    done = mm4("serve", "--config", config)
    assert done.code == 78
    assert done.line.startswith(f"{config}:{FOLDERS_LINE}: folders.state: {tmp_path}/state cannot be used: ")


def test_serve_with_a_store_that_cannot_be_names_it(mm4: Mm4, config: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    Path(config).write_text(Path(config).read_text().replace("sqlite:///mm4.db", "sqlite:///no/mm4.db"))
    done = mm4("serve", "--config", config)
    assert done.code == 78
    assert done.line.startswith(f"{config}:{STORE_LINE}: store: ")
    assert f"{tmp_path}/no" in done.line


def test_serve_with_a_socket_path_that_is_too_long_says_so(mm4: Mm4, config: str, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    Path(config).write_text(Path(config).read_text().replace("sockets: run", f"sockets: {long}"))
    done = mm4("serve", "--config", config)
    assert done.code == 78
    assert "is too long for a UNIX socket (100 bytes); choose a shorter folder" in done.line


def test_a_sandbox_of_a_bad_configuration_is_78(mm4: Mm4, tmp_path: Path) -> None:
    done = mm4("sandbox", "--dir", tmp_path / "d", "--config", tmp_path / "none.yaml")
    if os.geteuid() == 0:
        assert done.code == 78
        assert done.line.startswith(f"{tmp_path}/none.yaml: cannot be read")
    else:
        assert (done.code, "has to run as root" in done.line) == (2, True)


def test_serve_without_postfix_is_78(mm4: Mm4, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_module, "_SBIN", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    done = mm4("serve", "--config", config)
    assert done.code == 78
    assert done.line.startswith(f"{config}:1: submit: postqueue is not on this host: install Postfix")
    assert mm4("check", "--config", config).code == 78


def test_no_postfix_is_78_with_the_key_that_names_it(mm4: Mm4, config: str, tmp_path: Path) -> None:
    done = mm4("check", "--config", config)
    assert done.code == 78
    assert done.line.startswith(f"{config}:{FOLDERS_LINE}: folders.postfix: ")
    assert mm4("postfix", "maps", "--config", config).code == 78


# -- faults and broken pipes


def test_a_crash_is_70_and_one_line(mm4: Mm4, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(lint_module, "read_message", crash)
    done = mm4("lint", GOOD)
    assert (done.code, done.out) == (70, "")
    assert done.line == "a fault of mm4 itself: RuntimeError('boom'); MM4_DEBUG=1 shows where"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (KeyError("x"), 70), (AssertionError(), 70), (RecursionError(), 70), (MemoryError(), 70), (ImportError(), 70),
        (OSError(28, "No space left on device", "/x"), 70), (Mm4Error("z"), 70), (KeyboardInterrupt(), 1),
        (EOFError(), 1),
    ],
    ids=repr,
)  # fmt: skip
def test_whatever_is_raised_is_one_line(
    mm4: Mm4, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int
) -> None:
    def crash(*_: object) -> None:
        raise fault

    monkeypatch.setattr(lint_module, "read_message", crash)
    done = mm4("lint", GOOD)
    assert done.code == code
    assert done.err.strip().splitlines()[-1].startswith("mm4: ")


def test_a_traceback_is_there_for_who_asks() -> None:
    code = (
        "import sys; from mm4.cli import lint, main; lint.read_message = lambda *_: 1/0; "
        f"sys.argv = ['mm4', 'lint', {str(GOOD)!r}]; main.run()"
    )
    environment = {**os.environ, "MM4_DEBUG": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False, env=environment)
    assert done.returncode == 70
    assert b"Traceback" in done.stderr
    assert b"ZeroDivisionError" in done.stderr


def test_a_reader_that_goes_away_is_no_fault() -> None:
    command = [sys.executable, "-m", "mm4", "lint", "--json", *[str(GOOD)] * 500]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(10)
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) in (1, 141)


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "mm4", "config", "example"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (70, b"mm4: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_can_show_any_message(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / os.fsdecode(b"\xff.eml")
    message = join([(n, v.decode()) for n, v in req(Subject="=?utf-8?b?xYLDvA==?=")], b"")
    file.write_bytes(message)
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = process("lint", "--json", str(file), env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.decode(encoding))["fields"]["subject"] == "łü"
    if encoding == "ascii":
        assert process("lint", str(file), env=environment).returncode == 0
