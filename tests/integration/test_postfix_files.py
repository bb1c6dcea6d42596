"""What goes into Postfix, in real private instances: a dedicated gateway and an operator's own Postfix."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import NextHop, free_port
from mm4.gateway.configfile import parse_config
from mm4.gateway.entries import parse_next_hop
from mm4.gateway.outgoing import Pace
from mm4.postfix import maps
from mm4.postfix import sandbox as private_postfix
from mm4.postfix.children import Child, leftovers
from mm4.postfix.instance import Instance
from mm4.postfix.update import update
from mm4.protocol.errors import PostfixError, UsageError

pytestmark = [
    pytest.mark.postfix,
    pytest.mark.skipif(os.geteuid() != 0, reason="Postfix's master starts as root"),
    pytest.mark.skipif(shutil.which("postconf", path="/usr/sbin:/sbin") is None, reason="Postfix is not installed"),
]

STANDIN = Path(__file__).with_name("standin.py")
LOCAL, STRANGER = "127.0.0.1", "127.0.0.99"
NUMBER = "+447700900199/TYPE=PLMN@mms.own.example"

# Each says the same: <tok@responder.mm4.invalid>, or another address in mm4.invalid.
SPELLINGS = [
    "tok@responder.mm4.invalid",
    "tok@responder.mm4.invalid.",
    "tok@RESPONDER.MM4.INVALID",
    "tok@Responder.mm4.Invalid.",
    "tok@sub.responder.mm4.invalid",
    '"tok"@responder.mm4.invalid',
    '"tok@responder.mm4.invalid"',
    "tok%responder.mm4.invalid",
    '"tok%responder.mm4.invalid"',
    "responder.mm4.invalid!tok",
    '"responder.mm4.invalid!tok"',
    "@mms.own.example:tok@responder.mm4.invalid",
    "x@mm4.invalid",
    "447700900101@maildir.mm4.invalid",
    "x@mms.p1.example.via-p1.mm4.invalid",
]




def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `what` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while True:
        if found := what():
            return found
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def yaml_text(more: str = "", service: str = "") -> str:
    return f"""
local:
  domain: mms.own.example
  system_address: system-user@mms.own.example
  numbers: ["+4477009001"]
  clients: [{LOCAL}/32]
peers:
  p1: {{domains: [mms.p1.example], networks: [127.0.0.11/32], next_hop: "[127.0.0.1]:{free_port()}", max_size: 1MB}}
  p2: {{domains: [mms.p2.example], networks: [127.0.0.12/32], next_hop: "nosuch.invalid:25", max_size: 300kB}}
routes:
  - {{prefix: "+", peer: p1}}
{service}
{more}
"""


class Sandbox:
    """`mm4 sandbox` as a process; `standin` puts a milter that accepts everything in the place of `mm4 serve`."""

    def __init__(self, folder: Path, *, standin: bool, port: int | None = None, refuse: bool = False) -> None:
        self.folder = folder
        self.port = port or free_port()
        yaml = folder.with_suffix(".yaml")
        yaml.write_text(yaml_text(service=f'service: {{submit: "127.0.0.1:{free_port()}"}}'))
        listen = f"127.0.0.1:{self.port}"
        command = ["-m", "mm4", "sandbox", "--config", str(yaml), "--dir", str(folder), "--listen", listen]
        if standin:
            serve = [sys.executable, str(STANDIN), str(folder / "queue/mm4"), *(["refuse"] if refuse else [])]
            command = ["-c", _WITH_STANDIN, str(yaml), str(folder), listen, json.dumps(serve)]
        environment = {**os.environ, "PYTHONPATH": str(Path(maps.__file__).parents[2])}
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        facts: dict[str, Any] = json.loads(line)
        return facts

    def ended(self) -> str:
        """What it says where it has to end by itself, with 78."""
        try:
            _, said = self.process.communicate(timeout=60)
        finally:
            self.stop()
        assert self.process.returncode == 78, said
        assert leftovers(self.folder) == [] or "a sandbox runs" in said
        return said

    def stop(self) -> tuple[int, str]:
        if self.process.poll() is not None:
            return self.process.returncode, ""
        self.process.terminate()
        _, said = self.process.communicate(timeout=90)
        return self.process.returncode, said


_WITH_STANDIN = """
import json, sys
from pathlib import Path
from mm4.postfix.sandbox import run
from mm4.protocol.errors import Mm4Error
config, folder, listen, serve = sys.argv[1:]
try:
    run(Path(config), Path(folder), [listen], None, lambda facts: print(json.dumps(facts), flush=True),
        serve=json.loads(serve))
except Mm4Error as error:
    sys.stderr.write(f"{type(error).__name__}: {error}\\n")
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sandbox, dict[str, Any]]]:
    # A folder above that only root may enter, which is what pytest makes.
    folder = tmp_path_factory.mktemp("locked")
    folder.chmod(0o700)
    sandbox = Sandbox(folder / "box", standin=True)
    try:
        yield sandbox, sandbox.ready()
    finally:
        sandbox.stop()
        assert leftovers(folder / "box") == []


class Operator:
    """An operator's own Postfix as Debian ships it, with the wiring `service` added."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.queue, self.ordinary, self.mm4 = folder / "etc", folder / "queue", free_port(), free_port()
        self.submit = free_port()
        for made in (self.folder, self.queue, self.queue / "mm4", self.queue / "data"):
            made.mkdir(parents=True)
        account = pwd.getpwnam("postfix")
        os.chown(self.queue / "data", account.pw_uid, account.pw_gid)
        text = yaml_text(
            service=f'service: {{listen: "127.0.0.1:{self.mm4}", submit: "127.0.0.1:{self.submit}"}}',
            more=f"folders: {{postfix: {self.folder}, sockets: {self.queue / 'mm4'}, state: {folder / 'state'}}}",
        )
        self.config = parse_config(text, str(folder / "mm4.yaml"))
        master = _stock("master.cf.proto", "master.cf.dist").read_text()
        (self.folder / "master.cf").write_text(re.sub(r"(?m)^smtp(?=\s+inet)", f"127.0.0.1:{self.ordinary}", master))
        stock = _stock("main.cf.proto", "main.cf.dist").read_text()
        # What Debian's installation fills in stands empty there.
        kept = [line for line in stock.splitlines() if not re.match(r"(queue|data)_directory\b|\w+\s*=\s*$|\s", line)]
        (self.folder / "main.cf").write_text(
            "\n".join(kept) + f"\nqueue_directory = {self.queue}\ndata_directory = data\n"
            f"maillog_file = {folder / 'log'}\nmaillog_file_prefixes = {folder}\n"
        )
        self.instance = Instance(self.folder)
        self._edit(
            compatibility_level="3.6",
            inet_interfaces="127.0.0.1",
            myhostname="mx.operator.example",
            mydestination="operator.example",
            mynetworks=f"{LOCAL}/32",
            local_recipient_maps="",
            alias_maps="",
            virtual_alias_maps="regexp:{{/@(.*)/ catch@operator.example}}".replace("$", "$$"),
        )
        maps.write(self.config, maps.folder_of(self.config))
        lines = maps.main_lines(self.config, "service", present=self.instance.raw(*maps.PRESENT))
        self._edit(**maps.settings(lines))
        with (self.folder / "master.cf").open("a") as file:
            file.write("\n" + "\n".join(maps.master_lines(self.config, "service")) + "\n")

    def _edit(self, **values: str) -> None:
        pairs = [f"{name}={value}" for name, value in values.items()]
        subprocess.run(["postconf", "-c", str(self.folder), "-e", *pairs], check=True)


def _stock(*names: str) -> Path:
    places = [Path(folder, name) for folder, name in zip(("/etc/postfix", "/usr/share/postfix"), names, strict=True)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        pytest.skip(f"Debian's {names[0]} is not here")
    return found


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("operator")
    own = Operator(folder)
    log = folder / "log"
    own.instance.check()
    children = [
        Child([sys.executable, str(STANDIN), str(own.queue / "mm4")], folder, log, {}),
        Child(["/usr/lib/postfix/sbin/master", "-c", str(own.folder)], folder, log, {}),
    ]
    try:
        until((own.queue / "mm4/milter.sock").exists)
        for port in (own.ordinary, own.mm4, own.submit):
            until(lambda port=port: _greets(port))
        yield own
    finally:
        for child in reversed(children):
            child.stop(20.0)
        assert leftovers(folder) == []


def _greets(port: int) -> bool:
    try:
        smtplib.SMTP("127.0.0.1", port, timeout=5).quit()
    except OSError:
        return False
    return True


def session(port: int, source: str = LOCAL) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", port, timeout=30, source_address=(source, 0))
    client.ehlo("client.test")
    return client


def refused(port: int, spelling: str, source: str) -> tuple[int, bytes]:
    """The reply to RCPT, or to MAIL where that is refused already."""
    with session(port, source) as client:
        answer = client.mail("a@mms.own.example")
        return client.docmd(f"RCPT TO:<{spelling}>") if answer[0] == 250 else answer


# --- the dedicated gateway


def test_the_gateway_passes_postfix_check_below_a_folder_of_root_only(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    instance = Instance(gateway[1]["config_directory"])
    assert instance.check() == []
    assert instance.warnings() == []
    assert instance.running()
    log = Path(gateway[1]["log"]).read_text()
    assert not re.search(r"warning|fatal|panic", log), log


def test_everything_lies_in_the_folder(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    sandbox, facts = gateway
    assert facts["smtp"] == f"127.0.0.1:{sandbox.port}"
    assert facts["pid"] == sandbox.process.pid
    for key in ("config", "config_directory", "queue_directory", "maildir", "log"):
        assert Path(facts[key]).is_relative_to(sandbox.folder), key
    config = parse_config(Path(facts["config"]).read_text(), facts["config"])
    assert config.service.listen == [facts["smtp"]]
    assert config.store == f"sqlite:///{sandbox.folder}/mm4.db"
    assert config.folders.sockets == f"{sandbox.folder}/queue/mm4"


def test_the_mm4_line_offers_dsn_and_neither_chunking_nor_smtputf8(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    with session(gateway[0].port) as client:
        assert client.has_extn("dsn")
        assert not client.has_extn("chunking")
        assert not client.has_extn("smtputf8")
        assert client.esmtp_features["size"] == "1000000"
        assert client.docmd("MAIL FROM:<a@mms.own.example> SIZE=1000001")[0] == 552


@pytest.mark.parametrize("source", [LOCAL, "127.0.0.11"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_private_name_space_is_refused(gateway: tuple[Sandbox, dict[str, Any]], spelling: str, source: str) -> None:
    assert refused(gateway[0].port, spelling, source)[0] == 554


def test_strangers_are_refused_though_the_milter_accepts_them(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    code, text = refused(gateway[0].port, NUMBER, STRANGER)
    assert (code, b"Access denied" in text) == (554, True)


@pytest.mark.parametrize("address", [NUMBER, "+447700900199/TYPE=PLMN", "+447700900199/TYPE=PLMN@any.example"])
def test_the_milter_gets_to_see_every_number(gateway: tuple[Sandbox, dict[str, Any]], address: str) -> None:
    assert refused(gateway[0].port, address, "127.0.0.11")[0] == 250


def test_the_submission_line_is_for_this_host(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    config = parse_config(Path(gateway[1]["config"]).read_text(), gateway[1]["config"])
    port = int(config.service.submit.rpartition(":")[2])
    assert refused(port, "x@mms.p1.example.via-p1.mm4.invalid", LOCAL)[0] == 250
    assert refused(port, "x@mms.p1.example.via-p1.mm4.invalid", "127.0.0.11")[0] == 554


def test_what_cannot_go_out_waits_and_does_not_bounce(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    """A next hop without a name in DNS, a peer that the YAML no longer has, a responder that is away."""
    config = parse_config(Path(gateway[1]["config"]).read_text(), gateway[1]["config"])
    waiting = {
        "+447700900201@mms.p1.example.via-p1.mm4.invalid": "Connection refused",
        "+447700900202@mms.p2.example.via-p2.mm4.invalid": "look up host nosuch.invalid|not found",
        "+447700900203@mms.p3.example.via-gone.mm4.invalid": "no next hop of this name",
        f"{'ab' * 16}@responder.mm4.invalid": "responder.sock",
    }
    with session(int(config.service.submit.rpartition(":")[2])) as client:
        client.sendmail("system-user@mms.own.example", list(waiting), "From: a@b.example\r\n\r\nx\r\n")
    instance = Instance(gateway[1]["config_directory"])

    def reasons() -> dict[str, str] | None:
        found = {r["address"]: r.get("delay_reason", "") for m in instance.queue() for r in m["recipients"]}
        return found if all(found.get(address) for address in waiting) else None

    for address, reason in until(reasons).items():
        if address in waiting:
            assert re.search(waiting[address], reason), (address, reason)
    assert "status=bounced" not in Path(gateway[1]["log"]).read_text()


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ("RCPT TO:<a@b.example>", "RCPT TO:<a@b.example> NOTIFY=SUCCESS,FAILURE"),
        ("rcpt to:<a@b.example>", "rcpt to:<a@b.example> NOTIFY=SUCCESS,FAILURE"),
        ("Rcpt  To:  <a@b.example>  ", None),
        ("RCPT TO:<a> NOTIFY=NEVER", "RCPT TO:<a> NOTIFY=SUCCESS,FAILURE"),
        ("RCPT TO:<a> NOTIFY=", "RCPT TO:<a> NOTIFY=SUCCESS,FAILURE"),
        ("RCPT TO:<a> NOTIFY=BAD", "RCPT TO:<a> NOTIFY=SUCCESS,FAILURE"),
        ("RCPT TO:<a>\tNOTIFY=NEVER", "RCPT TO:<a>\tNOTIFY=SUCCESS,FAILURE"),
        (
            "RCPT TO:<a> notify=failure,delay ORCPT=rfc822;a",
            "RCPT TO:<a> notify=SUCCESS,FAILURE ORCPT=rfc822;a",
        ),
        ("RCPT TO:<a> ORCPT=rfc822;a NOTIFY=SUCCESS", "RCPT TO:<a> ORCPT=rfc822;a NOTIFY=SUCCESS,FAILURE"),
        ("RCPT TO:<a> ORCPT=rfc822;a", "RCPT TO:<a> ORCPT=rfc822;a NOTIFY=SUCCESS,FAILURE"),
        ("RCPT TO:<a> ORCPT=rfc822;NOTIFY=x", "RCPT TO:<a> ORCPT=rfc822;NOTIFY=x NOTIFY=SUCCESS,FAILURE"),
        (
            'RCPT TO:<"x> NOTIFY=NEVER"@b.example>',
            'RCPT TO:<"x> NOTIFY=NEVER"@b.example> NOTIFY=SUCCESS,FAILURE',
        ),
        ("RCPT TO:<@h.example:a@b.example>", "RCPT TO:<@h.example:a@b.example> NOTIFY=SUCCESS,FAILURE"),
        ("RCPT TO:a@b.example", None),
        ("MAIL FROM:<a@b.example>", None),
        ("NOOP RCPT TO:<a>", None),
    ],
)
def test_the_command_filter(gateway: tuple[Sandbox, dict[str, Any]], said: str, becomes: str | None) -> None:
    instance = Instance(gateway[1]["config_directory"])
    if said.endswith("  "):
        becomes = said.rstrip() + " NOTIFY=SUCCESS,FAILURE"
    assert instance.lookup(f"regexp:{instance.folder}/mm4/commands", said) == becomes


def test_kept_addresses_are_no_alias_domains(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    instance = Instance(gateway[1]["config_directory"])
    table = f"regexp:{instance.folder}/mm4/keep"
    assert instance.lookup(table, "tok@responder.mm4.invalid") == "tok@responder.mm4.invalid"
    assert instance.lookup(table, "system-user@mms.own.example") == "system-user@mms.own.example"
    assert instance.lookup(table, "responder.mm4.invalid") is None
    assert instance.lookup(table, "a@operator.example") is None


def test_the_suffix_of_the_next_hop_goes(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    instance = Instance(gateway[1]["config_directory"])
    table = f"regexp:{instance.folder}/mm4/generic"
    assert instance.lookup(table, "+447700900101/TYPE=PLMN@mms.p1.example.via-p1.mm4.invalid") == (
        "+447700900101/TYPE=PLMN@mms.p1.example"
    )
    assert instance.lookup(table, "+447700900101/TYPE=PLMN@mms.p1.example") is None


@pytest.mark.parametrize(
    ("status", "becomes"),
    [
        ("5.4.4 Host or domain name not found. Name service error for name=a.invalid type=A: Host not found", "4.4.4"),
        ("5.4.4 unable to look up host a.invalid: Name or service not known", "4.4.4"),
        ("5.4.6 mail for mms.p1.example loops back to myself", "4.4.6"),
        ("5.1.1 host 192.0.2.1[192.0.2.1] said: 550 5.1.1 unknown (in reply to RCPT TO command)", None),
        ("5.4.6 host 192.0.2.1[192.0.2.1] said: 554 5.4.6 mail for x loops back to myself", None),
    ],
)
def test_only_faults_of_this_host_are_made_temporary(
    gateway: tuple[Sandbox, dict[str, Any]], status: str, becomes: str | None
) -> None:
    instance = Instance(gateway[1]["config_directory"])
    found = instance.lookup(f"regexp:{instance.folder}/mm4/status", status)
    assert found == (becomes and becomes + status[5:])


def test_a_table_that_is_missing_is_named(gateway: tuple[Sandbox, dict[str, Any]]) -> None:
    with pytest.raises(PostfixError, match="absent"):
        Instance(gateway[1]["config_directory"]).lookup("texthash:/absent", "x")


# --- an operator's own Postfix


def test_the_service_passes_postfix_check(operator: Operator) -> None:
    assert [line for line in operator.instance.check() if "mm4" in line] == []
    assert operator.instance.warnings() == []
    assert any(line.split()[0] == "mm4-out" for line in operator.instance.services())


@pytest.mark.parametrize("spelling", [*SPELLINGS, "tok%responder.mm4.invalid@operator.example"])
def test_the_private_name_space_is_refused_on_the_ordinary_line(operator: Operator, spelling: str) -> None:
    assert refused(operator.ordinary, spelling, LOCAL)[0] == 554


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_private_name_space_is_refused_on_the_line_of_the_service(operator: Operator, spelling: str) -> None:
    assert refused(operator.mm4, spelling, "127.0.0.12")[0] == 554


def test_ordinary_mail_does_not_notice(operator: Operator) -> None:
    assert refused(operator.ordinary, "somebody@operator.example", STRANGER)[0] == 250
    assert refused(operator.ordinary, "somebody@elsewhere.example", STRANGER)[0] == 454
    with session(operator.ordinary) as client:
        assert client.has_extn("smtputf8")


def test_the_service_lets_in_peers_and_nobody_else(operator: Operator) -> None:
    assert refused(operator.mm4, NUMBER, "127.0.0.11")[0] == 250
    assert refused(operator.mm4, NUMBER, STRANGER)[0] == 554


def test_the_lines_that_an_operator_is_told_to_add_are_enough(operator: Operator) -> None:
    p1 = operator.config.peers["p1"].model_copy(update={"source": ["127.0.0.43"], "pace": Pace(concurrency=1)})
    config = operator.config.model_copy(update={"peers": {**operator.config.peers, "p1": p1}})
    told = update(config)
    assert told.changed == ("transport",)
    try:
        for name, lines in told.lacking:
            with (operator.folder / name).open("a") as file:
                file.write("\n" + "\n".join(lines) + "\n")
        assert (update(config).changed, update(config).lacking) == ((), ())
        assert operator.instance.warnings() == []
        operator.instance.reload()
        _, port, _ = parse_next_hop(p1.next_hop)
        with NextHop(port=port) as hop:
            subprocess.run(
                ["sendmail", "-C", str(operator.folder), "-i", "-f", "", "x@mms.p1.example.via-p1.mm4.invalid"],
                input=b"Subject: a word\n\n", check=True, timeout=30,
            )  # fmt: skip
            (mail,) = hop.wait_for("a word")
            assert (mail.client, mail.rcpt) == ("127.0.0.43", ["x@mms.p1.example"])
    finally:
        assert update(operator.config).changed == ("transport",)
        operator.instance.reload()


def test_a_catch_all_alias_takes_no_private_address(operator: Operator) -> None:
    """By sendmail(1), whose mail passes the operator's aliases whatever the MM4 line says."""
    token = f"{'cd' * 16}@responder.mm4.invalid"
    subprocess.run(
        ["sendmail", "-C", str(operator.folder), "-i", "-f", "system-user@mms.own.example", token],
        input="Subject: x\n\nx\n",
        text=True,
        check=True,
    )
    waits = until(lambda: [m for m in operator.instance.queue() if m["recipients"][0].get("delay_reason")])
    assert [r["address"] for r in waits[0]["recipients"]] == [token]


# --- the sandbox's life


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose sockets fit into the 107 bytes that the system has for their paths."""
    with tempfile.TemporaryDirectory(prefix="mm4-test-") as name:
        yield Path(name)


def test_with_the_daemon_it_comes_up_and_leaves_nothing(short: Path) -> None:
    sandbox = Sandbox(short / "box", standin=False)
    try:
        facts = sandbox.ready()
        assert refused(sandbox.port, NUMBER, STRANGER)[0] in (550, 554)
    finally:
        code, said = sandbox.stop()
    assert (code, said) == (0, "")
    assert leftovers(short / "box") == []
    assert "serving=" in Path(facts["log"]).read_text()


def test_two_at_once_and_a_folder_that_only_root_may_enter(short: Path) -> None:
    boxes = [short / "one", short / "two"]
    for box in boxes:
        box.mkdir(mode=0o700)
    sandboxes = [Sandbox(box, standin=True) for box in boxes]
    try:
        assert {sandbox.ready()["pid"] for sandbox in sandboxes} == {s.process.pid for s in sandboxes}
    finally:
        codes = [sandbox.stop()[0] for sandbox in sandboxes]
    assert codes == [0, 0]


def test_after_a_kill_the_folder_can_be_used_again(short: Path) -> None:
    box = short / "box"
    first = Sandbox(box, standin=True)
    first.ready()
    first.process.kill()
    first.process.communicate()
    second = Sandbox(box, standin=True, port=first.port)
    try:
        assert second.ready()["pid"] == second.process.pid
    finally:
        second.stop()
    assert leftovers(box) == []


def test_after_a_kill_of_its_master_too_a_session_that_goes_on_is_ended(short: Path) -> None:
    box = short / "box"
    first = Sandbox(box, standin=True)
    first.ready()
    with socket.create_connection(("127.0.0.1", first.port), timeout=60) as client:
        assert client.recv(3) == b"220"
        (master,) = [pid for pid in leftovers(box) if Path(f"/proc/{pid}/comm").read_text() == "master\n"]
        # The master first, as it would be told to end its own. The one of the session would wait for its client.
        os.kill(master, signal.SIGKILL)
        first.process.kill()
        first.process.communicate()
        second = Sandbox(box, standin=True, port=first.port)
        try:
            second.ready()
        finally:
            second.stop()
    assert leftovers(box) == []


def test_after_a_kill_a_queue_file_that_is_half_made_is_in_nobodys_way(short: Path) -> None:
    box = short / "box"
    first = Sandbox(box, standin=True)
    first.ready()
    assert first.stop()[0] == 0
    # As cleanup names it until it is whole.
    half = box / "queue" / "incoming" / "21997.15711"
    half.write_bytes(b"")
    half.chmod(0o600)
    shutil.chown(half, "postfix")
    second = Sandbox(box, standin=True)
    second.ready()
    assert second.stop()[0] == 0
    assert "bogus file name: incoming/21997.15711" in (box / "log").read_text()


def test_a_process_of_somebody_else_in_the_folder_is_none_of_ours(short: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=short, env={}) as other:
        try:
            assert leftovers(short) == []
        finally:
            other.kill()


def test_a_second_one_in_the_same_folder_names_the_first(short: Path) -> None:
    first = Sandbox(short / "box", standin=True)
    try:
        first.ready()
        assert f"process {first.process.pid}" in Sandbox(short / "box", standin=True).ended()
    finally:
        assert first.stop()[0] == 0


def test_a_port_in_use_is_named(short: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port := free_port()))
        taken.listen()
        said = Sandbox(short / "box", standin=True, port=port).ended()
    assert f"127.0.0.1:{port}: Address already in use" in said
    assert f"ss -ltnp 'sport = :{port}'" in said


def test_a_daemon_that_dies_is_started_again(short: Path) -> None:
    sandbox = Sandbox(short / "box", standin=True)
    try:
        log = Path(sandbox.ready()["log"])
        pid = int(re.findall(r"standin: started, process (\d+)", log.read_text())[0])
        os.kill(pid, signal.SIGKILL)
        until(lambda: len(re.findall(r"standin: started", log.read_text())) == 2)
        assert "mm4 serve has stopped (exit -9), starts again in 1 s" in log.read_text()
        until(lambda: refused(sandbox.port, NUMBER, LOCAL)[0] == 250)
    finally:
        assert sandbox.stop()[0] == 0


def test_a_refused_configuration_ends_it(short: Path) -> None:
    said = Sandbox(short / "box", standin=True, refuse=True).ended()
    assert said.startswith("ConfigError: mm4 serve refuses")
    assert "standin: the configuration is refused" in said


def test_without_root_it_says_why(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:2]\n"
        "from mm4.postfix.sandbox import Sandbox\n"
        "from mm4.protocol.errors import UsageError\n"
        f"os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\n"
        "from pathlib import Path\n"
        "try: Sandbox(Path('/x.yaml'), Path('/x'), ['127.0.0.1:2525'], None)\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(maps.__file__).parents[2])], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("mm4 sandbox has to run as root: Postfix's master starts as root")


def test_a_folder_that_postfix_cannot_use_is_named(tmp_path: Path) -> None:
    for name, why in (("with blank", "main.cf cannot hold this path"), ("x" * 100, "too long by")):
        with pytest.raises(UsageError, match=why):
            private_postfix.Sandbox(tmp_path / "mm4.yaml", tmp_path / name, ["127.0.0.1:2525"], None)
