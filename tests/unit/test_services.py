"""The services of single peers, their tables, and the files that they stand in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mm4.gateway.config import Config
from mm4.postfix import maps
from mm4.postfix.services import BEGIN, END, compared, filled, main_block, service_of
from mm4.postfix.update import update
from mm4.protocol.errors import ConfigError, PostfixError

LOCAL = {"domain": "mms.own.example", "system_address": "s@mms.own.example", "numbers": ["+4477009001"]}
DIGEST = ":".join(["AB"] * 32)


def peer(**more: Any) -> dict[str, Any]:
    return {"domains": ["mms.p.example"], "networks": ["192.0.2.1/32"], "next_hop": "[192.0.2.1]:25", **more}


def config(folder: Path | None = None, **peers: dict[str, Any]) -> Config:
    folders = {"folders": {"postfix": str(folder)}} if folder else {}
    return Config.model_validate({"local": LOCAL, "peers": peers, **folders})


def options(lines: list[str]) -> dict[str, str]:
    """Parameters and values of one service, comments left out."""
    found = re.findall(r"(?m)^  -o (?:\{ )?(\w+) ?= ?(.*?)(?: \})?$", "\n".join(lines))
    return dict(found)


@pytest.mark.parametrize(
    ("more", "own"),
    [
        ({}, False),
        ({"tls": "encrypt"}, False),
        ({"tls": {"level": "fingerprint", "fingerprints": DIGEST}}, False),
        ({"tls": {"level": "secure", "match": "mx.p.example", "ca": "/ca.pem"}}, False),
        ({"local": "mms.own.example"}, False),
        ({"source": "192.0.2.9"}, True),
        ({"login": {"user": "u", "password_file": "/p"}}, True),
        ({"tls": {"level": "encrypt", "certificate": "/c.pem"}}, True),
        ({"tls": {"level": "encrypt", "wrapper": True}}, True),
        ({"pace": {"concurrency": 3}}, True),
        ({"pace": {"delay": "1s"}}, True),
    ],
    ids=str,
)
def test_only_what_no_table_says_takes_a_service_of_its_own(more: dict[str, Any], own: bool) -> None:
    made = config(p=peer(**more))
    name = "mm4-out-p" if own else "mm4-out"
    assert service_of("p", made.peers["p"]) == name
    assert f".via-p.mm4.invalid\t{name}:[192.0.2.1]:25" in maps.tables(made)["transport"]
    assert any(line.startswith("mm4-out-p ") for line in maps.peer_services(made)) is own


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"source": "192.0.2.9"},
         {"smtp_bind_address": "192.0.2.9", "inet_protocols": "ipv4", "smtp_bind_address_enforce": "yes"}),
        ({"source": "2001:db8::9", "next_hop": "mx.p.example"},
         {"smtp_bind_address6": "2001:db8::9", "inet_protocols": "ipv6", "smtp_bind_address_enforce": "yes"}),
        ({"source": ["2001:db8::9", "192.0.2.9"]},
         {"smtp_bind_address6": "2001:db8::9", "smtp_bind_address": "192.0.2.9", "inet_protocols": "all",
          "smtp_bind_address_enforce": "yes"}),
        ({"tls": {"level": "encrypt", "certificate": "/c.pem", "key": "/k.pem"}},
         {"smtp_tls_chain_files": "/k.pem, /c.pem"}),
        ({"tls": {"level": "encrypt", "certificate": "/c.pem"}}, {"smtp_tls_chain_files": "/c.pem"}),
        ({"tls": {"level": "encrypt", "wrapper": True}},
         {"smtp_tls_wrappermode": "yes", "smtp_tls_security_level": "encrypt"}),
        ({"login": {"user": "u", "password_file": "/p"}},
         {"smtp_sasl_auth_enable": "yes", "smtp_sasl_password_maps": "texthash:/etc/postfix/mm4/password-p",
          "smtp_sender_dependent_authentication": "no", "smtp_sasl_security_options": "noanonymous, noplaintext",
          "smtp_sasl_tls_security_options": "noanonymous"}),
        ({"pace": {"concurrency": 3}}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_a_service_of_its_own_is_mm4_out_and_what_the_entry_says(more: dict[str, Any], expected: dict[str, str]) -> None:
    lines = maps.peer_services(config(p=peer(**more)))
    block = maps.reference("service/master.cf").replace("@TABLES@", "/etc/postfix/mm4").partition("\nmm4-out ")[2]
    assert options(lines) == {**options(block.splitlines()), **expected}


def test_the_pace_stands_in_main_cf_for_the_queue_manager() -> None:
    made = config(p=peer(pace={"concurrency": 3}), q=peer(networks=["192.0.2.2/32"], pace={"delay": "2m"}))
    assert maps.settings(main_block(made)) == {
        "mm4-out-p_destination_concurrency_limit": "3", "mm4-out-q_destination_rate_delay": "120s",
    }  # fmt: skip
    assert maps.settings(main_block(made)).items() <= maps.settings(maps.main_lines(made, "gateway")).items()


@pytest.mark.parametrize(
    ("tls", "row"),
    [
        ("encrypt", "encrypt"),
        ({"level": "secure", "match": ["mx.p.example", ".p.example"]}, "secure match=mx.p.example:.p.example"),
        ({"level": "verify", "match": "nexthop", "ca": "/etc/ca.pem"}, "verify match=nexthop tafile=/etc/ca.pem"),
        ({"level": "fingerprint", "fingerprints": [DIGEST, "cd" * 32]},
         f"fingerprint match={DIGEST}|{':'.join(['CD'] * 32)}"),
    ],
    ids=str,
)  # fmt: skip
def test_tls_is_a_row_of_the_policy_table(tls: Any, row: str) -> None:
    assert maps.tables(config(p=peer(tls=tls)))["tls_policy"].endswith(f"\n[192.0.2.1]:25\t{row}\n")


def test_ipv6_next_hops_stand_in_brackets_everywhere() -> None:
    made = config(p=peer(next_hop="[2001:db8::1]:25", networks=["2001:db8::1"], source="2001:db8::9", tls="encrypt"))
    tables = maps.tables(made)
    assert "mm4-out-p:[2001:db8::1]:25" in tables["transport"]
    assert "[2001:db8::1]:25\tencrypt" in tables["tls_policy"]
    assert "2001:db8::1/128\tpeer p" in tables["peers"]


def test_every_address_has_its_mm4_line() -> None:
    made = Config.model_validate({"local": LOCAL, "service": {"listen": ["192.0.2.9:25", "[2001:db8::9]:25"]}})
    for wiring in ("gateway", "service"):
        blocks = "\n".join(maps.master_lines(made, wiring)).split("\n\n")  # type: ignore[arg-type]
        lines = [options(block.splitlines()) for block in blocks if re.search(r"(?m)^(192\.0\.2\.9|\[2001:db8::9\]):25 ", block)]
        assert len(lines) == 2
        assert lines[0] == lines[1]
        assert lines[0]["smtpd_client_restrictions"] == ""  # who may come in is asked at RCPT
        assert "  -o { smtpd_relay_restrictions = permit_mynetworks, reject }" in maps.master_lines(made, wiring)  # type: ignore[arg-type]
    assert maps.settings(maps.main_lines(made, "gateway"))["inet_interfaces"] == "192.0.2.9, 2001:db8::9"


def test_a_pause_and_its_end_keep_the_peers_own_service(tmp_path: Path) -> None:
    made = config(tmp_path, p=peer(source="192.0.2.9"))
    maps.write(made, tmp_path / "mm4")
    before = (tmp_path / "mm4" / "transport").read_text()
    assert maps.turn(made, tmp_path / "mm4", "p", paused=True)
    assert "mm4-out-p" not in (tmp_path / "mm4" / "transport").read_text()
    assert maps.turn(made, tmp_path / "mm4", "p", paused=False)
    assert (tmp_path / "mm4" / "transport").read_text() == before


# -- passwords


def with_login(folder: Path, password: bytes) -> Config:
    (folder / "secret").write_bytes(password)
    return config(folder, p=peer(login={"user": "gw", "password_file": str(folder / "secret")}))


@pytest.mark.parametrize(
    ("content", "password"),
    [(b"one\n", b"one"), (b"one", b"one"), (b"one\r\ntwo\n", b"one"), (b"a b:c#\\", b"a b:c#\\"), (b"\xe9\n", b"\xe9")],
)
def test_the_password_is_the_first_line_of_its_file(tmp_path: Path, content: bytes, password: bytes) -> None:
    made = with_login(tmp_path, content)
    assert "password-p" in maps.write(made, tmp_path / "mm4")
    table = tmp_path / "mm4" / "password-p"
    assert table.read_bytes().splitlines()[-1] == b"[192.0.2.1]:25\tgw:" + password
    assert table.stat().st_mode & 0o7777 == 0o600
    table.chmod(0o644)
    assert maps.write(made, tmp_path / "mm4") == ["password-p"]
    assert table.stat().st_mode & 0o7777 == 0o600
    assert maps.write(made, tmp_path / "mm4") == []


@pytest.mark.parametrize(("content", "why"), [(b"", "is empty"), (b"\n", "is empty"), (b" one\n", "begins or ends with a blank")])
def test_a_file_without_password_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"peers\.p\.login\.password_file: {tmp_path}/secret: its first line {why}"):
        maps.write(with_login(tmp_path, content), tmp_path / "mm4")


def test_a_password_file_that_is_missing_changes_nothing(tmp_path: Path) -> None:
    made = with_login(tmp_path, b"x")
    (tmp_path / "secret").unlink()
    (tmp_path / "master.cf").write_text(f"{BEGIN}\n{END}\n")
    with pytest.raises(ConfigError, match=r"password_file: .*: No such file or directory"):
        update(made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["master.cf"]
    assert (tmp_path / "master.cf").read_text() == f"{BEGIN}\n{END}\n"


def test_the_password_of_a_peer_that_is_gone_goes(tmp_path: Path) -> None:
    maps.write(with_login(tmp_path, b"x"), tmp_path / "mm4")
    gone = config(tmp_path, p=peer())
    assert maps.write(gone, tmp_path / "mm4") == ["transport", "password-p"]
    assert not (tmp_path / "mm4" / "password-p").exists()


# -- the operator's files and ours


def test_what_stands_between_the_marks_is_ours(tmp_path: Path) -> None:
    made = config(tmp_path, p=peer(source="192.0.2.9", pace={"concurrency": 2}))
    for name, head in (("master.cf", "smtp inet n - n - - smtpd\n"), ("main.cf", "myhostname = a.example\n")):
        (tmp_path / name).write_text(f"{head}{BEGIN}\nold\n{END}\n# tail\n")
        (tmp_path / name).chmod(0o640)
    seen = update(made, dry_run=True)
    assert seen.changed[:2] == ("main.cf", "master.cf")
    assert "old" in (tmp_path / "master.cf").read_text()
    assert not (tmp_path / "mm4").exists()
    assert update(made).changed == seen.changed
    text = (tmp_path / "master.cf").read_text()
    assert text.startswith("smtp inet n - n - - smtpd\n" + BEGIN)
    assert text.endswith(f"\n{END}\n# tail\n")
    assert "mm4-out-p " in text
    assert (tmp_path / "master.cf").stat().st_mode & 0o7777 == 0o640
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")}
    assert (update(made).changed, update(made).lacking) == ((), ())
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")} == before
    assert update(config(tmp_path, p=peer())).changed == ("main.cf", "master.cf", "transport")
    assert (tmp_path / "main.cf").read_text() == f"myhostname = a.example\n{BEGIN}\n{END}\n# tail\n"


def test_an_operators_file_is_compared_and_never_changed(tmp_path: Path) -> None:
    made = config(tmp_path, p=peer(source="192.0.2.9", pace={"concurrency": 2}))
    (tmp_path / "master.cf").write_text("smtp inet n - n - - smtpd\nmm4-out-gone unix - - n - - smtp\n")
    (tmp_path / "main.cf").write_text("mm4-out-gone_destination_rate_delay = 1s\n")
    seen = update(made)
    assert dict(seen.surplus) == {"master.cf": ("mm4-out-gone",), "main.cf": ("mm4-out-gone_destination_rate_delay",)}
    lacking = dict(seen.lacking)
    assert lacking["main.cf"][-1] == "mm4-out-p_destination_concurrency_limit = 2"
    assert lacking["master.cf"][1].startswith("mm4-out-p ")
    assert not {"master.cf", "main.cf"} & set(seen.changed)
    for name, lines in lacking.items():
        with (tmp_path / name).open("a") as file:
            file.write("\n".join(lines) + "\n")
    assert update(made).lacking == ()
    # However it is laid out.
    master = (tmp_path / "master.cf").read_text()
    (tmp_path / "master.cf").write_text(master.replace("  -o", "\n# why\n\t-o").replace("   unix  -  ", " unix -  "))
    assert update(made).lacking == ()
    (tmp_path / "master.cf").write_text(master.replace("192.0.2.9", "192.0.2.8"))
    assert dict(update(made).lacking).keys() == {"master.cf"}


def test_without_a_file_everything_is_lacking() -> None:
    block = maps.peer_services(config(p=peer(source="192.0.2.9")))
    assert compared("", block).lacking[1].startswith("mm4-out-p ")
    assert compared("", []).lacking == ()


def test_filling_twice_gives_the_same() -> None:
    lines = ["a", BEGIN, "old", END, "b"]
    once = filled(lines, ["", "new"])
    assert once == ["a", BEGIN, "", "new", "", END, "b"]
    assert filled(once, ["", "new"]) == once
    assert filled(once, []) == ["a", BEGIN, END, "b"]
    assert filled(["a"], ["", "new"]) == ["a", "", "new"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "main.cf").mkdir()
    with pytest.raises(PostfixError, match=r"main\.cf: cannot be read: Is a directory"):
        update(config(tmp_path, p=peer()))
