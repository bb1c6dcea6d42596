"""mm4 under systemd, beside the Postfix that systemd runs: all that it does still works, and no restart is noticed."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from harness import wait_for
from hosts import Host, host

FOLDER = Path(__file__).parent
UNITS = ("mm4.service", "mm4.socket", "mm4-expire.service", "mm4-expire.timer")
EXPOSURE = {"mm4.service": 2.0, "mm4-expire.service": 2.5}
"""The most that `systemd-analyze security` may find."""

NORTH = "+447700900123"
"""A number that the reach list has; the others come past it to ENUM, which has none, and to number portability."""

YAML = """
local:
  domain: mms.gw.example
  system_address: system@mms.gw.example
  region: DE
  numbers: ["+491511"]
  clients: [127.0.0.9/32]
peers:
  north:
    dialect: 3gpp
    domains: [mms.north.example]
    networks: [127.0.0.21/32]
    next_hop: "[127.0.0.21]:2525"
routes:
  - {reach: reach/north.csv, peer: north}
  - {enum: {zone: e164.example, servers: ["127.0.0.1:5353"]}}
  - {http: {url: "http://127.0.0.1:8099/{digits}", json: operator}}
service: {listen: "127.0.0.1:2600", workers: 2, metrics: "127.0.0.1:9464"}
cdr: {rotate: {records: 1}}
"""


@dataclass
class Seen:
    """What tests/docker/traffic.py saw."""

    replies: dict[str, int]
    taken: list[str]
    answered: dict[str, list[str]]
    longest: float
    code: int | None
    seconds: float | None
    received: list[str]


class Gateway:
    """A host with mm4 as its units run it."""

    def __init__(self, on: Host) -> None:
        self.on = on

    def configure(self, text: str = YAML) -> None:
        self.on.put("/etc/mm4/mm4.yaml", text, 0o640)
        self.on.run("chgrp mm4 /etc/mm4/mm4.yaml")

    def traffic(self, *arguments: str) -> Seen:
        said = self.on.run(f"python3 /root/traffic.py {shlex.join(arguments)} 2>/root/traffic.err || cat /root/traffic.err")
        return Seen(**json.loads(said))

    def show(self, unit: str, *names: str) -> dict[str, str]:
        said = self.on.run(f"systemctl show {unit} --property={','.join(names)}")
        return dict(line.split("=", 1) for line in said.splitlines())

    def stored(self) -> list[str]:
        """The transactions in the subscriber's Maildir, one for each file."""
        said = self.on.run("cd /var/lib/mm4/maildir && grep -rhio '^x-mms-transaction-id:.*' 491511000001/new", codes=(0, 1, 2))
        return re.findall(r'"([^"]+)"', said)

    def nothing_is_lost(self, seen: Seen, *, once: bool = True) -> None:
        """Each message that was taken is delivered and answered, `once` or more."""
        assert seen.taken
        assert {name: set(seen.answered.get(name, ())) for name in seen.taken} == {name: {"Ok"} for name in seen.taken}

        def delivered() -> bool:
            return set(seen.taken) <= set(self.stored())

        wait_for(delivered, "all messages in the Maildir")
        if once:
            stored = self.stored()
            assert {(len(seen.answered[name]), stored.count(name)) for name in seen.taken} == {(1, 1)}


@pytest.fixture(scope="module")
def gateway(client: docker.DockerClient, suites: Any) -> Iterator[Gateway]:
    """On Debian 13; that systemd 252 of Debian 12 takes the same units is seen by test_by_hand and test_operators."""
    suite = suites("trixie")
    with host(client, suite.image, f"mm4-units-{suite.name}-{os.getpid()}", hostname="gw.example") as on:
        on.put_folder(suite.wheels, "/root/wheels")
        on.run(
            "python3 -m venv /opt/mm4/versions/1 && /opt/mm4/versions/1/bin/pip install --quiet --no-index "
            "--find-links /root/wheels 'mm4-milter[postgresql]' && ln -s versions/1 /opt/mm4/current && "
            "ln -s /opt/mm4/current/bin/mm4 /usr/local/bin/mm4"
        )
        # As docs/units.md says.
        on.run(
            "set -e; cd /opt/mm4/current/lib/python3*/site-packages/mm4/systemd; install -d /etc/sysusers.d; "
            "install -m 644 mm4*.service mm4*.socket mm4*.timer /etc/systemd/system; "
            "install -m 644 sysusers.conf /etc/sysusers.d/mm4.conf; install -m 644 tmpfiles.conf /etc/tmpfiles.d/mm4.conf; "
            "systemd-sysusers mm4.conf; systemd-tmpfiles --create mm4.conf; systemctl daemon-reload"
        )
        on.put("/root/traffic.py", (FOLDER / "traffic.py").read_bytes())
        on.put("/etc/mm4/reach/north.csv", f"prefix\n{NORTH[1:]}\n")
        it = Gateway(on)
        it.configure()
        on.run("systemctl enable --now mm4.service mm4-expire.timer && mm4 postfix wire")
        yield it


def test_the_units_are_well_formed_and_keep_what_is_not_needed_shut(gateway: Gateway) -> None:
    assert gateway.on.run(f"cd /etc/systemd/system && systemd-analyze verify {' '.join(UNITS)}") == ""
    for unit, most in EXPOSURE.items():
        said = gateway.on.run(f"systemd-analyze security --no-pager {unit} | tail -1")
        found = re.search(r"exposure level for \S+: ([0-9.]+)", said)
        assert found, said
        assert float(found[1]) <= most, said


def test_folders_belong_to_whom_they_should_and_postfix_does_not_mind(gateway: Gateway) -> None:
    said = gateway.on.run(
        "stat -c '%n %a %U:%G' /var/lib/mm4 /var/spool/postfix/mm4 /etc/mm4 /etc/mm4/secrets; "
        "postfix set-permissions; postfix check; stat -c '%n %a %U:%G' /var/spool/postfix/mm4"
    )
    assert said.splitlines() == [
        "/var/lib/mm4 750 mm4:mm4", "/var/spool/postfix/mm4 750 mm4:postfix", "/etc/mm4 750 root:mm4",
        "/etc/mm4/secrets 700 root:root", "/var/spool/postfix/mm4 750 mm4:postfix",
    ]  # fmt: skip
    assert "not owned" not in gateway.on.run("journalctl --no-pager -o cat | grep -i 'postfix.*warning'", codes=(0, 1))
    assert gateway.on.run("mm4 check")


def test_a_message_comes_through_with_its_res_by_sendmail_and_by_smtp(gateway: Gateway) -> None:
    gateway.nothing_is_lost(gateway.traffic("in", "2", "1"))
    gateway.configure(f"{YAML}submit: smtp\n")
    gateway.on.run("systemctl reload mm4")
    wait_for(lambda: "reload=done" in gateway.on.journal("mm4"), "the reload")
    seen = gateway.traffic("in", "2", "1")
    gateway.nothing_is_lost(seen)
    # By SMTP Postfix tells the queue id of a RES, by sendmail it cannot.
    assert "RES" in gateway.on.run(f"mm4 trace {seen.taken[0]}")
    gateway.configure()
    gateway.on.run("systemctl reload mm4")
    metrics = gateway.on.run("curl -s http://127.0.0.1:9464/metrics")
    assert re.search(r'mm4_messages_total\{[^}]*peer="north"[^}]*\} [1-9]', metrics)
    wait_for(lambda: gateway.on.run("ls /var/lib/mm4/cdr").strip(), "a file of charging records")


def test_look_ups_reach_whom_they_ask(gateway: Gateway) -> None:
    seen = gateway.traffic("out", "1", "1", NORTH, "+447700900456")
    assert seen.replies == {"mail 250": 2, "rcpt 250": 2, "data 250": 2}
    assert len(seen.received) == 2
    metrics = gateway.on.run("curl -s http://127.0.0.1:9464/metrics")
    for kind, result in (("reach", "found"), ("enum", "none"), ("http", "found")):
        assert re.search(rf'mm4_lookups_total\{{kind="{kind}",result="{result}"\}} [1-9]', metrics), metrics


def test_a_reload_of_a_file_with_a_mistake_fails_and_the_daemon_goes_on(gateway: Gateway) -> None:
    gateway.configure(YAML.replace('"+491511"', "+491511"))
    said = gateway.on.run("systemctl reload mm4", codes=(1,))
    assert "failed" in said.lower()
    assert "has to be a quoted string" in gateway.on.journal("mm4")
    gateway.configure()
    gateway.nothing_is_lost(gateway.traffic("in", "1", "1"))


def test_a_restart_under_traffic_is_not_noticed(gateway: Gateway) -> None:
    seen = gateway.traffic("in", "0", "4", "systemctl", "restart", "mm4")
    assert seen.code == 0
    assert seen.replies == dict.fromkeys(("mail 250", "rcpt 250", "data 250"), len(seen.taken))
    gateway.nothing_is_lost(seen)


def test_a_killed_supervisor_comes_back_and_nothing_is_lost(gateway: Gateway) -> None:
    before = gateway.show("mm4", "MainPID", "NRestarts")
    seen = gateway.traffic("in", "0", "4", "systemctl", "kill", "--signal=KILL", "--kill-whom=main", "mm4")
    after = gateway.show("mm4", "MainPID", "NRestarts", "ActiveState")
    assert int(after["NRestarts"]) == int(before["NRestarts"]) + 1
    assert after["ActiveState"] == "active"
    # Only who was in the middle of something is told to come again.
    told = {reply for reply in seen.replies if not reply.endswith(" 250")}
    assert told <= {"mail 451", "rcpt 451", "data 451"}
    assert sum(seen.replies[reply] for reply in told) <= 4
    # A message that was being put into the Maildir, or a RES that was being sent, may be there twice.
    gateway.nothing_is_lost(seen, once=False)


def test_a_supervisor_that_hangs_is_started_anew(gateway: Gateway) -> None:
    gateway.on.put("/etc/systemd/system/mm4.service.d/short.conf", "[Service]\nWatchdogSec=4\n")
    gateway.on.run("systemctl daemon-reload && systemctl restart mm4")
    before = gateway.show("mm4", "MainPID", "NRestarts")
    try:
        gateway.on.run(f"kill -STOP {before['MainPID']}")

        def anew() -> bool:
            now = gateway.show("mm4", "MainPID", "ActiveState")
            return now["ActiveState"] == "active" and now["MainPID"] not in ("0", before["MainPID"])

        wait_for(anew, "a new supervisor")
        assert "Watchdog timeout" in gateway.on.journal("mm4")
        gateway.nothing_is_lost(gateway.traffic("in", "1", "1"))
    finally:
        gateway.on.run("rm -r /etc/systemd/system/mm4.service.d && systemctl daemon-reload")


def test_what_is_down_stays_down_until_it_is_started(gateway: Gateway) -> None:
    on, bad = gateway.on, {"ActiveState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
    on.run("timeout 60 systemctl stop mm4")
    assert "did not leave in time" not in on.journal("mm4")
    assert on.run("ls /var/spool/postfix/mm4") == ""
    assert gateway.traffic("in", "1", "1").replies == {"mail 451": 1}
    assert gateway.show("mm4", "ActiveState") == gateway.show("mm4.socket", "ActiveState") == {"ActiveState": "inactive"}
    try:
        gateway.configure(YAML.replace("dialect: 3gpp", "dialect: nonsense"))
        on.run("systemctl start mm4", codes=(1,))
        assert gateway.traffic("in", "1", "1").replies == {"mail 451": 1}
        assert gateway.show("mm4", *bad) == bad
        gateway.configure()
        on.put("/etc/systemd/system/mm4.socket.d/odd.conf", "[Socket]\nListenStream=/var/spool/postfix/mm4/odd.sock\n")
        on.run("systemctl daemon-reload")
        on.run("systemctl start mm4", codes=(1,))
        assert "/var/spool/postfix/mm4/odd.sock has no use here" in on.journal("mm4")
        assert gateway.show("mm4", *bad) == bad
    finally:
        gateway.configure()
        on.run("rm -rf /etc/systemd/system/mm4.socket.d && systemctl daemon-reload && systemctl start mm4")
    gateway.nothing_is_lost(gateway.traffic("in", "1", "1"))


def test_the_timer_returns_what_has_expired(gateway: Gateway) -> None:
    assert "mm4-expire.timer" in gateway.on.run("systemctl list-timers --no-pager")
    seen = gateway.traffic("away", "1", "1", NORTH)
    assert len(seen.taken) == 1

    def returned() -> bool:
        gateway.on.run("systemctl start mm4-expire.service")
        return NORTH in gateway.on.journal("mm4-expire")

    wait_for(returned, "the return of what has expired")
    wait_for(lambda: "bounced" in gateway.on.run(f"mm4 trace {seen.taken[0]}", codes=(0, 1)), "its bounce at home")
    owners = gateway.on.run("find /var/lib/mm4 ! -user mm4")
    assert owners == ""


def test_the_wiring_restarts_postfix_by_its_unit(gateway: Gateway) -> None:
    done = json.loads(gateway.on.run("mm4 postfix wire --mode all --json"))
    try:
        assert done["ok"]
        assert re.fullmatch(r"systemctl restart postfix(@-)?\.service", done["applied"])
        assert gateway.on.run("systemctl is-active postfix").strip() == "active"
        gateway.nothing_is_lost(gateway.traffic("in", "1", "1"))
    finally:
        undone = json.loads(gateway.on.run("mm4 postfix unwire --json --force"))
    assert undone["applied"] == done["applied"]
    assert gateway.on.run("systemctl --failed --no-legend") == ""
