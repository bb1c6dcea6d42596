"""Each link of docs/links, loaded and run: an MMS both ways with its RES, and `mm4 peer test` against it.

The files are taken as they stand. What changes is what lies in another network: each address and next hop of a file
becomes one on loopback, by the tables here, and its TLS files and password are made for the test. docs/links/README.md
says so.
"""

from __future__ import annotations

import json
import re
import shutil
import smtplib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from harness import Dialogue, Link, NextHop, Sandbox, forward_req, mm4, new_ids, talk, wait_for

pytestmark = pytest.mark.postfix

DOCS = Path(__file__).parents[3] / "docs" / "links"
MMSC, PEER, SECOND, OWN = "127.0.0.31", "127.0.0.21", "127.0.0.22", "127.0.0.41"
OURS, THEIRS = "+491511000001", "+447700900002"
PASSWORD = "tr0ub4dor & three"

LOOPBACK = {
    "198.51.100.9:25": "127.0.0.1:2525",  # the sandbox puts its own there
    "10.20.0.10/32": f"{MMSC}/32",
    '"[10.20.0.10]:25"': '"@mmsc@"',
    "source: 198.51.100.9": f"source: {OWN}",
}
"""What is the same in every file."""


@dataclass(frozen=True)
class Case:
    """A file, what of it becomes loopback beside LOOPBACK, and who the peer is."""

    peer: str
    domain: str
    replace: dict[str, str]
    system: str
    tyntec: bool = False
    source: str | None = None


CASES = {
    "tyntec": Case("tyntec", "mm4.tyntec.example", {
        "192.0.2.10/32": f"{PEER}/32", "192.0.2.11/32": f"{SECOND}/32", '"[192.0.2.10]:25"': '"@peer@"',
    }, "system@mm4.tyntec.example", tyntec=True, source=OWN),
    "hub": Case("hub", "mm4.hub.example", {
        "203.0.113.0/28": f"{PEER}/32", '"[mx.hub.example]:2465"': '"@peer@"',
    }, "system@mm4.hub.example"),
    "grx": Case("north", "mms.mnc015.mcc234.gprs", {
        "192.0.2.32/28": f"{PEER}/32", "next_hop: mms.mnc015.mcc234.gprs ": 'next_hop: "@peer@" ',
    }, "system-user@mms.mnc015.mcc234.gprs", source=OWN),
    "mbuni": Case("north", "mms.north.example", {
        "192.0.2.32/28": f"{PEER}/32", '"[192.0.2.33]:25"': '"@peer@"',
    }, "system-user@mms.north.example"),
}  # fmt: skip


class Operator(NextHop):
    """The peer: takes mail, and answers each REQ that asks for it, from its own address and as it writes."""

    def __init__(self, case: Case, client: Tls | None, **options: Any) -> None:
        super().__init__(**options)
        self.case = case
        self.client = client
        self.gateway: Sandbox | None = None
        self.password = PASSWORD
        if client is not None:
            self.implicit = client.server
            self.options |= {
                "authenticator": self.authenticate, "auth_required": True, "auth_require_tls": False,
            }  # fmt: skip

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, way: str, given: Any) -> AuthResult:
        assert isinstance(given, LoginPassword)
        fits = (given.login, given.password) == (b"operator", self.password.encode())
        return AuthResult(success=fits, handled=False)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        reply = await super().handle_DATA(server, session, envelope)
        threading.Thread(target=self._answer, args=(self.mails[-1],), daemon=True).start()
        return reply

    def _answer(self, mail: Any) -> None:
        version, kind = (
            ("X-Mms-MMS-Version", "X-Mms-MM1-Message-Type") if self.case.tyntec
            else ("X-Mms-3GPP-MMS-Version", "X-Mms-Message-Type")
        )  # fmt: skip
        if not (mail.header(kind) or "").upper().endswith("FORWARD.REQ") or mail.header("X-Mms-Ack-Request") != "Yes":
            return
        content = (
            f"{version}: 5.5.0\r\n{kind}: MM4_{'F' if self.case.tyntec else 'f'}orward.RES\r\n"
            f"X-Mms-Transaction-ID: {mail.header('X-Mms-Transaction-ID')}\r\n"
            f"X-Mms-Message-ID: {mail.header('X-Mms-Message-ID')}\r\nX-Mms-Request-Status-Code: Ok\r\n"
            f"From: {self.case.system}\r\nContent-Type: text/plain\r\n\r\n"
        ).encode()
        to = mail.header("X-Mms-Originator-System")
        assert self.sends(content, self.case.system, to).code == 250

    def sends(self, content: bytes, mail_from: str, to: str) -> Dialogue:
        """A message of the peer over a connection that it opens."""
        assert self.gateway is not None
        host, _, port = self.gateway.smtp.rpartition(":")
        with smtplib.SMTP(host, int(port), timeout=60, source_address=(PEER, 0)) as client:
            if self.client is not None:
                client.starttls(context=self.client.shown)
            return talk(client, content, mail_from=mail_from, rcpt=(to,))


class Tls:
    """What the hub's certificates are, by the names that the file gives them, in `folder`."""

    def __init__(self, folder: Path) -> None:
        for name in ("hub", "tls"):
            (folder / name).mkdir()
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "hub" / "ca.pem"))
        (folder / "hub" / "ca.pem").chmod(0o644)
        own = self.authority.issue_cert("mms.operator.example")
        own.private_key_pem.write_to_path(str(folder / "tls" / "own.key"))
        own.cert_chain_pems[0].write_to_path(str(folder / "tls" / "own.pem"))
        (folder / "hub" / "password").write_text(PASSWORD + "\n")
        (folder / "hub" / "password").chmod(0o600)
        theirs = self.authority.issue_cert("mx.hub.example", common_name="mx.hub.example")
        self.server = served(theirs)
        self.shown = ssl.create_default_context(cafile=str(folder / "hub" / "ca.pem"))
        self.shown.check_hostname = False
        theirs.configure_cert(self.shown)


def served(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """TLS of a server that has this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def loopback(text: str, case: Case) -> str:
    """The file with every address of another network replaced, and nothing else."""
    for old, new in {**LOOPBACK, **case.replace}.items():
        assert old in text or old == "source: 198.51.100.9", f"{old} stands there no more"
        text = text.replace(old, new)
    assert re.findall(r"^[^#\n]*\b(?!127\.)\d+\.\d+\.\d+\.\d+", text, re.MULTILINE) == []
    return text


class Run:
    """A gateway with the YAML of one link, between an MMSC and the peer."""

    def __init__(self, name: str, tls: Path) -> None:
        self.name = name
        self.case = CASES[name]
        self.tls = Tls(tls) if name == "hub" else None
        self.peer = Operator(self.case, self.tls)
        text = loopback((DOCS / f"{name}.yaml").read_text("utf-8"), self.case)
        self.link = Link(text, {"mmsc": NextHop(), "peer": self.peer})
        self.gateway = self.link.gateway
        self.peer.gateway = self.gateway
        if self.tls:
            for folder in ("hub", "tls"):
                shutil.copytree(tls / folder, self.gateway.folder / folder)
                (self.gateway.folder / folder).chmod(0o755)
        self.ours = str(yaml.safe_load(text)["local"]["domain"])

    def tried(self, *options: str, config: str | None = None) -> tuple[int, dict[str, dict[str, Any]]]:
        """`mm4 peer test`: exit code, and the steps by name."""
        done = mm4(
            "peer", "test", self.case.peer, "--to", THEIRS, "--timeout", "5", "--json",
            "--config", config or self.gateway.config, *options, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done.returncode, {step["step"]: step for step in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module", params=list(CASES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    made = Run(request.param, tmp_path_factory.mktemp("tls"))
    with made.link:
        yield made


def failing(steps: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, step in steps.items() if step["ok"] is False]


def test_every_file_of_the_folder_is_run() -> None:
    assert {path.stem for path in DOCS.glob("*.yaml")} == set(CASES)


def test_an_mms_goes_out_and_its_res_comes_in(run: Run) -> None:
    ids = new_ids(run.ours)
    content = forward_req(ids=ids, sender=OURS, to=THEIRS, system=None, drop=("Sender",))
    dialogue = run.gateway.send(
        content, source=MMSC, mail_from=f"{OURS}/TYPE=PLMN@{run.ours}", rcpt=(f"{THEIRS}/TYPE=PLMN@{run.ours}",)
    )
    assert dialogue.code == 250
    (mail,) = run.peer.wait_for(ids[1])
    assert (mail.mail_from, mail.rcpt) == (f"{OURS}/TYPE=PLMN@{run.ours}", [f"{THEIRS}/TYPE=PLMN@{run.case.domain}"])
    assert mail.client == (run.case.source or "127.0.0.1")
    answered = wait_for(lambda: [t for t in run.gateway.trace(ids[0]) if t["state"] == "answered"], "the RES")
    assert [(t["peer"], t["status"]) for t in answered] == [(run.case.peer, "Ok")]


def test_an_mms_comes_in_and_gets_its_res(run: Run) -> None:
    ids = new_ids(run.case.domain)
    system = None if run.case.tyntec else run.case.system
    content = forward_req(ids=ids, sender=THEIRS, to=OURS, system=system, drop=("Sender",), tyntec=run.case.tyntec)
    # Who the client is comes from what it shows: the hub's certificate and network, the others' network.
    assert run.peer.sends(content, f"{THEIRS}/TYPE=PLMN@{run.case.domain}", f"{OURS}/TYPE=PLMN@{run.ours}").code == 250
    (inside,) = run.link.mmsc.wait_for(ids[1])
    form = yaml.safe_load(Path(run.gateway.config).read_text())["local"]["deliver_to"]
    assert inside.rcpt == [form.format(number=OURS)]
    assert inside.header("X-Mms-Ack-Request") == "No"
    (answer,) = run.peer.wait_for(ids[1])
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    assert answer.rcpt in ([run.case.system], [f"{THEIRS}/TYPE=PLMN@{run.case.domain}"])


def test_the_link_as_it_stands_is_all_well(run: Run) -> None:
    code, steps = run.tried()
    assert (code, failing(steps)) == (0, [])
    expected = ["connect", "greeting", "EHLO", "SIZE", "MAIL FROM", "RCPT TO", "RSET", "QUIT"]
    assert [name for name in steps if name in expected] == expected
    assert ("AUTH" in steps and "TLS" in steps) is (run.name == "hub")
    assert f"<{THEIRS}/TYPE=PLMN@{run.case.domain}>" in steps["RCPT TO"]["said"]
    if run.case.source:
        assert steps["connect"]["said"].endswith(f"from {run.case.source}")


def test_check_finds_nothing_wrong(run: Run) -> None:
    done = mm4("check", "--json", "--config", run.gateway.config, check=False)
    assert [f for f in map(json.loads, done.stdout.splitlines()) if not f["ok"] and not f["warning"]] == []


def test_what_is_broken_is_named(run: Run) -> None:
    """One after the other at the peer's side, with TLS from the first byte on and in clear."""
    if run.name in ("grx", "mbuni"):
        return  # opened as the first
    hop = run.peer
    hop.refused.add(f"{THEIRS}/TYPE=PLMN@{run.case.domain}")
    code, steps = run.tried()
    hop.refused.clear()
    assert (code, failing(steps)) == (1, ["RCPT TO"])
    assert "550 5.1.1 No such number" in steps["RCPT TO"]["said"]
    hop.stop()
    code, steps = run.tried()
    assert (code, failing(steps)) == (1, ["connect"])
    assert "next_hop" in steps["connect"]["cure"]
    hop.options["data_size_limit"] = 1000
    hop.start()
    code, steps = run.tried()
    assert (code, failing(steps)) == (1, ["SIZE"])
    assert "max_size" in steps["SIZE"]["cure"]
    hop.options["data_size_limit"] = 0
    if run.name == "hub":
        hop.password = "another"
        code, steps = run.tried()
        assert (code, failing(steps)) == (1, ["AUTH"])
        hop.password = PASSWORD
        hop.stop()
        wrong = {
            "of another authority": served(trustme.CA().issue_cert("mx.hub.example")),
            "for another name": served(run.tls.authority.issue_cert("mx.other.example")),  # type: ignore[union-attr]
        }
        for context in wrong.values():
            hop.implicit = context
            hop.start()
            code, steps = run.tried()
            assert (code, failing(steps)) == (1, ["certificate"])
            hop.stop()
        hop.start()
        # What Postfix says of the last of them.
        dialogue = run.gateway.send(
            forward_req(ids=new_ids(run.ours), sender=OURS, to=THEIRS, system=None, drop=("Sender",)), source=MMSC,
            mail_from=f"{OURS}/TYPE=PLMN@{run.ours}", rcpt=(f"{THEIRS}/TYPE=PLMN@{run.ours}",),
        )  # fmt: skip
        run.gateway.wait_log(rf"{dialogue.queue_id}: .*status=deferred.*Server certificate not verified")
        hop.stop()
        hop.implicit = None
        hop.start()
        code, steps = run.tried()
        assert (code, failing(steps)) == (1, ["TLS"])
        assert "tls.wrapper" in steps["TLS"]["cure"]
    else:
        raw = yaml.safe_load(Path(run.gateway.config).read_text())
        raw["peers"][run.case.peer]["tls"] = "encrypt"
        changed = run.gateway.folder / "encrypt.yaml"
        changed.write_text(yaml.safe_dump(raw))
        hop.stop()
        hop.start()
        code, steps = run.tried(config=str(changed))
        assert (code, failing(steps)) == (1, ["STARTTLS"])
