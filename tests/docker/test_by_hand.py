"""docs/install.md, as an operator types it: its blocks are run as they stand, on a host that reaches no package index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

import hosts

from .conftest import REPOSITORY, Suites

BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```sh\n(.*?)```", (REPOSITORY / "docs/install.md").read_text(), re.DOTALL))

FILES = (
    "find /etc/postfix -type f -exec stat -c '%n %A %U:%G' {} + -exec sha256sum {} + | sort; "
    "find /etc /opt /usr/local /var/spool/postfix -maxdepth 4 -name '*mm4*' -not -path '/etc/mm4*'"
)
"""What there is of Postfix's, to the byte, and of mm4's."""


@pytest.fixture(scope="module")
def host(client: docker.DockerClient, suites: Suites) -> Iterator[hosts.Host]:
    suite = suites("bookworm")
    with hosts.host(client, suite.image, "mm4-by-hand") as host:
        host.put_folder(suite.wheels, "/root/wheels")
        host.put("/root/" + suites.wheel.name, suites.wheel.read_bytes())
        yield host


def typed(host: hosts.Host, block: str) -> hosts.Said:
    """What the block of that name prints, in /root; any command that fails ends it."""
    # What is installed already needs no index of Debian's either.
    return host.run(f"cd /root && set -eux\n{BLOCKS[block]}", PIP_NO_INDEX="1", PIP_FIND_LINKS="/root/wheels")


def test_the_page_leads_from_a_postfix_to_a_gateway_and_back(host: hosts.Host, suites: Suites, tmp_path: Path) -> None:
    assert set(BLOCKS) == {"install", "configure", "start", "upgrade", "rollback", "remove"}
    before = host.run(FILES)

    typed(host, "install")
    assert "mm4.other.example in every REQ" in typed(host, "configure")
    typed(host, "start")
    host.run("systemctl is-active mm4.service mm4.socket mm4-expire.timer && mm4 postfix status")
    assert host.run("stat -c '%U:%G %a' /etc/mm4/mm4.yaml /var/lib/mm4 /var/spool/postfix/mm4 /etc/mm4/secrets /etc/mm4").split("\n") == [
        "root:mm4 640", "mm4:mm4 750", "mm4:postfix 750", "root:root 700", "root:mm4 750", "",
    ]  # fmt: skip

    assert host.run("systemd-analyze verify /etc/systemd/system/mm4*.*") == ""
    exposure = re.search(r"exposure level for \S+: ([0-9.]+)", host.run("systemd-analyze security --no-pager mm4.service | tail -1"))
    assert exposure
    assert float(exposure[1]) <= 2.0

    old, new = re.findall(r"(?m)^version=(.*)$", BLOCKS["install"] + BLOCKS["upgrade"])
    assert old == suites.wheel.name.split("-")[1]
    made = hosts.wheel(tmp_path, new)
    host.put("/root/" + made.name, made.read_bytes())
    typed(host, "upgrade")
    assert new in host.run("mm4 --version")
    typed(host, "rollback")
    assert f"mm4 {old}\n" in host.run("mm4 --version")

    typed(host, "remove")
    assert host.run(FILES) == before
    host.run("test -e /var/lib/mm4/mm4.db && postfix status")
