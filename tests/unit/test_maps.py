"""The tables and the text for main.cf and master.cf that follow from the configuration."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from mm4.gateway.config import Config
from mm4.postfix import maps
from mm4.protocol.errors import ConfigError, PostfixError

LOCAL = {
    "domain": "mms.own.example",
    "system_address": "system-user@mms.own.example",
    "numbers": ["+4477009001"],
    "clients": ["127.0.0.1/32", "192.0.2.0/24"],
}
WITH_MMSC = {**LOCAL, "deliver_to": "{number}@mmsc.own.example", "next_hop": "[127.0.0.1]:2600"}


def peer(number: int, **more: Any) -> dict[str, Any]:
    return {
        "domains": [f"mms.p{number}.example"],
        "networks": [f"192.0.2.{number}/32"],
        "next_hop": f"[192.0.2.{number}]:25",
        **more,
    }


def config(local: Any = None, **more: Any) -> Config:
    values = {"local": local or LOCAL, "peers": {"p1": peer(1), "p2": peer(2, tls="encrypt")}, **more}
    return Config.model_validate(values)


def rows(text: str) -> list[tuple[str, str]]:
    pairs = (line.split("\t", 1) for line in text.splitlines() if not line.startswith("#"))
    return [(key, value) for key, value in pairs]


def test_every_table_says_who_writes_it() -> None:
    for name, text in maps.tables(config()).items():
        assert text.startswith("# Written by `mm4 postfix maps`"), name
        assert text.endswith("\n"), name


def test_there_is_a_table_for_every_name_in_main_cf_and_master_cf() -> None:
    certificate = {"subject": "mm4.p3.example", "fingerprint": "AB" * 32}
    tls = {"tls": {"certificate": "/etc/mm4/gw.pem", "ca": "/etc/mm4/ca.pem"}}
    pinned = config(peers={"p1": peer(1), "p3": peer(3, certificates=[certificate])}, service=tls)
    named = set()
    for wiring in ("gateway", "service"):
        text = "\n".join([*maps.main_lines(pinned, wiring), *maps.master_lines(pinned, wiring)])
        named |= set(re.findall(r"(?:texthash|regexp|cidr):/etc/postfix/mm4/(\w+)", text))
    assert named == set(maps.tables(pinned))


def test_one_transport_row_a_next_hop() -> None:
    assert rows(maps.tables(config(WITH_MMSC))["transport"]) == [
        ("responder.mm4.invalid", "mm4-responder:unix:mm4/responder.sock"),
        ("maildir.mm4.invalid", "mm4-maildir:unix:mm4/maildir.sock"),
        ("mms.own.example", "mm4-responder:unix:mm4/responder.sock"),
        ("mmsc.own.example", "mm4-local:[127.0.0.1]:2600"),
        (".via-p1.mm4.invalid", "mm4-out:[192.0.2.1]:25"),
        (".via-p2.mm4.invalid", "mm4-out:[192.0.2.2]:25"),
        (".mm4.invalid", "retry:4.4.4 mm4: no next hop of this name in the YAML"),
    ]


def test_one_domain_with_two_next_hops_is_an_error() -> None:
    other = {**WITH_MMSC, "domain": "mms.two.example", "system_address": "system@mms.two.example", "numbers": ["+4477009002"]}
    with pytest.raises(ConfigError, match=r"local\[1\]\.next_hop: mmsc\.own\.example leads to \[127\.0\.0\.1\]:2600"):
        maps.tables(config([WITH_MMSC, {**other, "next_hop": "[127.0.0.1]:2601"}]))


def test_the_most_specific_network_stands_first() -> None:
    assert rows(maps.tables(config())["peers"]) == [
        ("127.0.0.1/32", "local side"),
        ("192.0.2.1/32", "peer p1"),
        ("192.0.2.2/32", "peer p2"),
        ("192.0.2.0/24", "local side"),
    ]


def test_ipv6_networks_are_listed() -> None:
    text = maps.tables(config(peers={"p1": peer(1, networks=["2001:db8::/32", "2001:db8::5/128"])}))["peers"]
    assert rows(text)[-2:] == [("2001:db8::5/128", "peer p1"), ("2001:db8::/32", "peer p1")]


@pytest.mark.parametrize(
    "address",
    [
        "ab12@responder.mm4.invalid",
        "447700900101@maildir.mm4.invalid",
        "a@b.example.via-p1.mm4.invalid",
        "a@mm4.invalid",
        "system-user@mms.own.example",
    ],
)
def test_private_and_local_addresses_keep_themselves(address: str) -> None:
    [(pattern, result)] = rows(maps.tables(config())["keep"])
    match = re.match(pattern.strip("/"), address)
    assert match is not None
    assert match[1] == address
    assert result == "${1}"


@pytest.mark.parametrize("address", ["responder.mm4.invalid", "a@mmsXown.example", "a@xmm4.invalid", "a@other.example"])
def test_nothing_else_is_kept(address: str) -> None:
    [(pattern, _)] = rows(maps.tables(config())["keep"])
    assert re.match(pattern.strip("/"), address) is None


def test_tls_policy_is_by_next_hop() -> None:
    assert rows(maps.tables(config())["tls_policy"]) == [("[192.0.2.1]:25", "may"), ("[192.0.2.2]:25", "encrypt")]


def test_two_tls_levels_for_one_next_hop_are_an_error() -> None:
    same = peer(2, tls="encrypt", next_hop="[192.0.2.1]:25")
    with pytest.raises(ConfigError, match=r"peers\.p2\.tls: encrypt, but peers\.p1 has may"):
        maps.tables(config(peers={"p1": peer(1), "p2": same}))


def test_the_sockets_are_named_from_the_queue_folder() -> None:
    folders = {"sockets": "/srv/queue/gw", "postfix": "/srv/etc", "state": "/srv/state"}
    gateway = config(folders=folders)
    assert "mm4-responder:unix:gw/responder.sock" in maps.tables(gateway)["transport"]
    assert any("unix:gw/milter.sock" in line for line in maps.master_lines(gateway, "service"))
    assert maps.settings(maps.main_lines(gateway, "gateway"))["queue_directory"] == "/srv/queue"
    assert maps.folder_of(gateway) == Path("/srv/etc/mm4")


def test_message_size_follows_from_the_peers_only_where_all_have_one() -> None:
    some = config(peers={"p1": peer(1, max_size="1MB"), "p2": peer(2)})
    every = config(peers={"p1": peer(1, max_size="1MB"), "p2": peer(2, max_size="300kB")})
    assert maps.message_size(some) is None
    assert maps.message_size(config(peers={})) is None
    assert maps.message_size(every) == 1_000_000
    assert maps.settings(maps.main_lines(every, "gateway"))["message_size_limit"] == "1400000"
    assert "  -o message_size_limit=1000000" in maps.master_lines(every, "service")
    assert not [line for line in maps.master_lines(some, "service") if "-o message_size_limit" in line]


@pytest.mark.parametrize("wiring", ["gateway", "service"])
def test_no_placeholder_is_left(wiring: maps.Wiring) -> None:
    lines = [*maps.main_lines(config(), wiring), *maps.master_lines(config(), wiring)]
    assert not [line for line in lines if re.search(r"@[A-Z_]+@", line)]


def test_the_service_has_the_lines_of_the_gateway() -> None:
    gateway, service = maps.reference("gateway/master.cf"), maps.reference("service/master.cf")
    assert service.partition("\n\n")[2].strip() in gateway


def test_every_line_of_the_reference_files_has_a_reason() -> None:
    """Every block begins with a comment, and in master.cf every service and every option stands under one."""
    for name in ("gateway/main.cf", "service/main.cf", "gateway/master.cf", "service/master.cf"):
        reasoned = False
        for line in maps.reference(name).splitlines():
            if not line.strip():
                reasoned = False
            elif line.lstrip().startswith("#"):
                reasoned = True
            else:
                assert reasoned, (name, line)


def test_what_an_operator_has_stays_behind_ours() -> None:
    present = {
        "transport_maps": "hash:/etc/postfix/transport",
        "virtual_alias_maps": "hash:/etc/aliases",
        "fast_flush_domains": "$relay_domains",
        "smtpd_recipient_restrictions": "permit_mynetworks, reject_unauth_destination",
    }
    once = maps.settings(maps.main_lines(config(), "service", present=present))
    assert once["transport_maps"] == "texthash:/etc/postfix/mm4/transport, hash:/etc/postfix/transport"
    assert once["virtual_alias_maps"] == "regexp:/etc/postfix/mm4/keep, hash:/etc/aliases"
    assert once["smtpd_recipient_restrictions"] == (
        "check_recipient_access texthash:/etc/postfix/mm4/access, permit_mynetworks, reject_unauth_destination"
    )
    assert maps.settings(maps.main_lines(config(), "service", present=once)) == once


def test_without_anything_present_no_comma_is_left() -> None:
    values = maps.settings(maps.main_lines(config(), "service"))
    assert values["transport_maps"] == "texthash:/etc/postfix/mm4/transport"
    assert values["smtpd_recipient_restrictions"] == "check_recipient_access texthash:/etc/postfix/mm4/access"


def test_writing_again_touches_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "mm4"
    assert maps.write(config(), folder) == sorted(maps.tables(config()))
    before = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}
    assert maps.write(config(), folder) == []
    assert {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()} == before


def test_only_what_changed_is_written_and_keeps_its_mode(tmp_path: Path) -> None:
    maps.write(config(), tmp_path)
    (tmp_path / "transport").chmod(0o640)
    moved = {"p1": peer(1, next_hop="[192.0.2.9]:25"), "p2": peer(2, tls="encrypt")}
    changed = maps.write(config(peers=moved), tmp_path)
    assert changed == ["tls_policy", "transport"]
    assert (tmp_path / "transport").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "peers").stat().st_mode & 0o777 == 0o644
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(maps.tables(config()))


def test_a_failed_write_leaves_the_old_table_and_no_scraps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps.write(config(), tmp_path)
    before = (tmp_path / "transport").read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "transport"))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PostfixError, match="transport: cannot be written: No space left on device"):
        maps.write(config(WITH_MMSC), tmp_path)
    assert (tmp_path / "transport").read_text() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(maps.tables(config()))


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old\n")
    link.symlink_to(real)
    assert maps.replace_file(link, "new\n")
    assert link.is_symlink()
    assert real.read_text() == "new\n"


def test_a_missing_postfix_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PostfixError, match=r"absent is the configuration folder of a Postfix"):
        maps.write(config(), tmp_path / "absent" / "mm4")
