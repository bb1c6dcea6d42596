"""`mm4 peer list` and `show`: one link in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mm4.cli.peer import peer as command
from mm4.gateway.config import Config
from mm4.gateway.outgoing import Tls
from mm4.gateway.peer import Peer
from mm4.gateway.sheet import known_by, sheet
from recorder import called

REPOSITORY = Path(__file__).parents[2]
LINKS = sorted((REPOSITORY / "docs" / "links").glob("*.yaml"))
DIGEST = ":".join(["AB"] * 32)

EVERYTHING: dict[str, Any] = {
    "dialect": "tyntec", "domains": ["mms.p.example", "mms.q.example"], "recipient_domain": "mms.r.example",
    "addresses": {"recipient": "{digits}@{domain}", "sender": "{digits}@{domain}", "header": "{digits}"}, "region": "GB",
    "networks": ["192.0.2.1/32", "192.0.2.2/32"], "certificates": [{"subject": "mm4.p.example", "fingerprint": DIGEST}],
    "logins": ["north"], "next_hop": "[mx.p.example]:2465", "source": ["192.0.2.9", "2001:db8::9"],
    "tls": {"level": "secure", "match": "mx.p.example", "ca": "/ca.pem", "certificate": "/own.pem", "key": "/own.key", "wrapper": True},
    "login": {"user": "gateway", "password_file": "/secret"}, "pace": {"concurrency": 3}, "system_address": "sys@mms.q.example",
    "mail_from": "null", "mms_version": "6.5.0", "res": {"date": False}, "headers": {"drop": ["X-Tool"], "add": {"X-Via": "gw"}},
    "pdus": ["MM4_forward.REQ", "MM4_forward.RES"], "max_size": "300kB", "max_content": "200kB", "max_recipients": 7,
    "content": {"refuse": ["text/html"]}, "rate": {"second": 5, "originator": {"day": 17}}, "flood": {"limit": 11, "action": "hold"},
    "on_violation": "reject", "identity": "strict", "own_numbers": ["+4915110"], "transit": True, "delivery_report": "off",
    "answers": "mmsc", "ack": {"request": True, "timeout": "3m", "retry": 4}, "local": ["mms.own.example"],
}  # fmt: skip
SHOWN = {
    "domains": "mms.p.example, mms.q.example", "recipient_domain": "@mms.r.example", "addresses": "by {digits}", "region": "read in GB",
    "networks": "192.0.2.1/32, 192.0.2.2/32", "certificates": f"CN mm4.p.example and SHA-256 {DIGEST}", "logins": "north",
    "next_hop": "[mx.p.example]:2465", "source": "192.0.2.9 and 2001:db8::9",
    "tls": "certificate for mx.p.example (secure), vouched for by /ca.pem, from the first byte on, showing /own.pem",
    "login": "user gateway", "pace": "concurrency 3", "system_address": "sys@mms.q.example", "mail_from": "null",
    "mms_version": "version 6.5.0", "res": "date no", "headers": "X-Via: gw", "pdus": "MM4_forward.REQ, MM4_forward.RES",
    "max_size": "300000 bytes", "max_content": "200000 bytes", "max_recipients": "7 a message", "content": "refuse text/html",
    "rate": "second 5", "flood": "limit 11", "on_violation": "on_violation: reject", "identity": "refused (identity: strict)",
    "own_numbers": "+4915110", "transit": "transit: yes", "delivery_report": "delivery_report: off", "answers": "answers: mmsc",
    "ack": "overdue after 180 s, sent again 4 times", "dialect": "tyntec", "local": "mms.own.example",
}  # fmt: skip


def config(**more: Any) -> Config:
    return Config.model_validate({
        "local": [
            {"domain": "mms.own.example", "system_address": "s@mms.own.example", "numbers": ["+491511"]},
            {"domain": "mms.two.example", "system_address": "s@mms.two.example", "numbers": ["+491512"]},
        ],
        "peers": {"p": {**EVERYTHING, **more}, "other": {"domains": ["o.example"], "networks": ["192.0.2.7/32"], "next_hop": "o.example"}},
        "routes": [
            {"prefix": "+4477", "peer": "p"}, {"prefix": "+33", "peer": "other"},
            {"http": {"url": "https://np.example:8/q?key=hush&n={digits}", "json": "a", "peers": {"1": "p"}}},
            {"enum": {"zone": "e164.arpa", "servers": ["127.0.0.1:53"]}}, {"default": "p"},
        ],
        "service": {"tls": {"certificate": "/gw.pem", "ca": "/ca.pem"}, "sasl": {}},
    })  # fmt: skip


def text_of(made: Config, name: str = "p") -> str:
    return "\n".join(f"{label}\t{text}" for rows in sheet(made, name).values() for label, text in rows)


def test_every_key_of_a_peer_is_in_it() -> None:
    assert set(SHOWN) == set(Peer.model_fields)
    text = text_of(config())
    assert [key for key, shown in SHOWN.items() if shown not in text] == []
    assert "mms.two.example" not in text


def test_the_routes_that_lead_there_and_no_key_of_a_service() -> None:
    rows = sheet(config(), "p")["routes that lead there"]
    assert rows == [
        ("routes[0]", "prefix +4477"), ("routes[2]", "http np.example"), ("routes[3]", "enum e164.arpa, where it names this peer"),
        ("routes[4]", "default: all other numbers"),
    ]  # fmt: skip
    assert "hush" not in text_of(config())


@pytest.mark.parametrize("level", ["none", "may", "encrypt", "fingerprint", "verify", "secure"])
def test_every_level_of_tls_has_its_words(level: str) -> None:
    tls = {"level": level, **({"fingerprints": DIGEST} if level == "fingerprint" else {})}
    assert Tls.model_validate(tls).level == level
    assert f"({level})" in text_of(config(tls=tls))


def test_by_what_a_peer_is_known() -> None:
    assert known_by(config().peers["p"]) == "2 networks + certificate + login"
    assert known_by(config().peers["other"]) == "192.0.2.7/32"


@pytest.mark.parametrize("path", LINKS, ids=lambda p: p.stem)
def test_show_of_each_documented_link(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = {"tyntec": "tyntec", "hub": "hub"}.get(path.stem, "north")
    done = called(monkeypatch, capsys, "peer", "show", name, "--config", path)
    assert done.code == 0
    assert "what the peer has to know of us\n  connect to" in done.out
    whole = called(monkeypatch, capsys, "peer", "show", name, "--config", path, "--json").json
    assert whole["peer"] == name
    assert {"what": "next hop", "is": re.search(r'^    next_hop: "?([^ "]+)', path.read_text(), re.MULTILINE)[1]} in whole["how we send"]  # type: ignore[index]
    assert called(monkeypatch, capsys, "peer", "show", "nobody", "--config", path).code == 2


def test_the_page_of_the_links_names_each_file_and_leads_somewhere() -> None:
    page = (REPOSITORY / "docs" / "links" / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+\.yaml)\)", page)) == {path.name for path in LINKS}
    for target in re.findall(r"\]\(([^)#:]+)\)", page):
        assert (REPOSITORY / "docs" / "links" / target).exists(), target
    assert {"list", "show", "test", "pause", "resume"} == set(command.commands)
