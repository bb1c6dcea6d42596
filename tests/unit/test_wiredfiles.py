"""main.cf and master.cf as text: what is read of them, what is put in, and that taking it out leaves no trace."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from mm4.gateway.config import Config
from mm4.postfix import maincf, mastercf
from mm4.postfix.cftext import block_of, insert_block, list_items, logical_lines, remove_block
from mm4.postfix.master import in_foreground, unit_of
from mm4.postfix.obstacles import Mode
from mm4.postfix.shared import shared_line
from mm4.postfix.wiredfiles import members_of, undone, wired

CONFIG = Config.model_validate({
    "local": {
        "domain": "mms.gw.example", "system_address": "system@mms.gw.example", "numbers": ["+491511"],
        "clients": ["127.0.0.1/32"],
    },
    "peers": {"north": {"domains": ["mms.north.example"], "networks": ["192.0.2.1/32"], "next_hop": "[192.0.2.1]:25"}},
})  # fmt: skip
DEFAULTS = {"smtpd_relay_restrictions": "permit_mynetworks, defer_unauth_destination"}


# -- lines and lists


def test_comments_and_empty_lines_do_not_end_a_logical_line() -> None:
    text = "a = 1,\n# no end\n\n  2,\n  # nor this\n\t3\nb=4"
    assert [(line.text, line.line) for line in logical_lines(text)] == [("a = 1,\n  2,\n\t3\n", 1), ("b=4", 7)]


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("", []),
        ("a, b c\n\td,,e", ["a", "b", "c", "d", "e"]),
        ("unix:a, { inet:b:1, default_action=accept }", ["unix:a", "{ inet:b:1, default_action=accept }"]),
        ("inline:{ { a b = c, d }, x=y }, hash:/e", ["inline:{ { a b = c, d }, x=y }", "hash:/e"]),
        ("${x ? {a, b} : {c}} d", ["${x ? {a, b} : {c}}", "d"]),
    ],
)
def test_a_list_is_split_outside_braces(value: str, items: list[str]) -> None:
    assert list_items(value) == items


# -- main.cf


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("x = a\n", "x = M, a\n"),
        ("x=a", "x=M, a"),
        ("x =\n", "x = M\n"),
        ("x =", "x = M"),
        ("x = \nb=1\n", "x = M \nb=1\n"),
        ("x =\n  # why\n  a,\n  b\n", "x =\n  # why\n  M, a,\n  b\n"),
        ("x\n = a\n", "x\n = M, a\n"),
        ("x = a\nx = b\n", "x = a\nx = M, b\n"),
        ("#x = a\nx = ${y ? {a} : {b}}\n", "#x = a\nx = M, ${y ? {a} : {b}}\n"),
        ("xx = 1\nx\t=\tinline:{a=b}\n", "xx = 1\nx\t=\tM, inline:{a=b}\n"),
        ("y = 1\n  x = no\nx = $y\n", "y = 1\n  x = no\nx = M, $y\n"),
        ("x = a # b\n", "x = M, a # b\n"),
    ],
)
def test_a_member_is_put_in_front_and_taken_out_again(text: str, becomes: str) -> None:
    assert maincf.put_first(text, "x", "M") == becomes
    assert maincf.take_out(becomes, "x", "M") == text


def test_a_member_that_an_operator_has_moved_is_taken_out() -> None:
    assert maincf.take_out("x = a, M, b\n", "x", "M") == "x = a, b\n"
    assert maincf.take_out("x = a b\ny = M, b\n", "x", "M") == "x = a b\ny = M, b\n"


# -- master.cf

MASTER = """\
smtp inet n - y - - smtpd
submission inet n - y - - smtpd -o syslog_name=postfix/submission
  -o { smtpd_recipient_restrictions = permit_sasl_authenticated,
# in between
     reject }
  -osmtpd_relay_restrictions=permit,reject -o smtpd_sender_restrictions=
  -o {a={ b, c }} -v
# commented inet n - y - - smtpd
pickup unix n - y 60 1 /usr/lib/postfix/sbin/pickup
broken line
"""


def test_services_and_their_overrides_are_read() -> None:
    first, second, third = mastercf.services_of(MASTER)
    assert (first.name, first.type, first.program, first.line, first.overrides) == ("smtp", "inet", "smtpd", 1, ())
    assert {o.name: o.value.split() for o in second.overrides} == {
        "syslog_name": ["postfix/submission"],
        "smtpd_recipient_restrictions": ["permit_sasl_authenticated,", "reject"],
        "smtpd_relay_restrictions": ["permit,reject"],
        "smtpd_sender_restrictions": [],
        "a": ["{", "b,", "c", "}"],
    }
    assert (third.name, third.program, third.line) == ("pickup", "pickup", 9)


@pytest.mark.parametrize("name", ["smtpd_recipient_restrictions", "smtpd_relay_restrictions", "smtpd_sender_restrictions", "a"])
def test_an_override_gets_a_member_and_loses_it(name: str) -> None:
    override = next(o for o in mastercf.services_of(MASTER)[1].overrides if o.name == name)
    changed = mastercf.put_first(MASTER, override, "M")
    service = mastercf.services_of(changed)[1]
    assert list_items(service.value(name) or "") == ["M", *list_items(override.value)]
    assert {o.name for o in service.overrides} == {o.name for o in mastercf.services_of(MASTER)[1].overrides}
    assert mastercf.take_out(changed, frozenset([name]), "M") == MASTER


SMTPD = "n - y - -"


@pytest.mark.parametrize(
    ("master", "line"),
    [
        (f"smtp inet {SMTPD} smtpd\nsubmission inet {SMTPD} smtpd\n", "smtp"),
        (f"192.0.2.1:25 inet {SMTPD} smtpd\n", "192.0.2.1:25"),
        (f"10025 inet {SMTPD} smtpd\nsmtp inet {SMTPD} smtpd\n", "smtp"),
        (f"smtp inet {SMTPD} postscreen\nsmtpd pass - - y - - smtpd\n", "smtpd"),
        (f"#smtp inet {SMTPD} smtpd\nsmtps inet {SMTPD} smtpd -o smtpd_tls_wrappermode=yes\n", None),
        (f"submission inet {SMTPD} smtpd\n  -o smtpd_sasl_auth_enable=yes\n2500 inet {SMTPD} smtpd\n", "2500"),
        ("smtp unix - - y - - smtp\n", None),
    ],
)
def test_the_line_for_ordinary_mail_is_found(master: str, line: str | None) -> None:
    found = shared_line(mastercf.services_of(master))
    assert (found and found.name) == line


# -- both

names = st.sampled_from([
    "transport_maps", "virtual_alias_maps", "smtpd_recipient_restrictions", "fast_flush_domains", "smtpd_milter_maps",
    "smtpd_relay_restrictions", "smtpd_client_restrictions", "smtpd_milters", "mydestination", "my_own",
])  # fmt: skip
items = st.sampled_from([
    "hash:/etc/a", "$my_own", "${my_own}", "{ unix:a, b=c }", "inline:{ { k = v, w }, x=y }", "permit_mynetworks",
    "check_client_access", "!static:all", "a.example", "# no comment", "é", "regexp:{{/@x$$/ y}}", "=", "M",
])  # fmt: skip
gaps = st.sampled_from([" ", ", ", ",", "\n  ", ",\n\t", "\n# between\n  ", "\n\n  ", "  "])
fillers = st.sampled_from(["", "# comment\n", "\n", "   \n", "#x = y\n", "  # indented\n"])


@st.composite
def main_files(draw: st.DrawFn) -> str:
    text = draw(fillers)
    for _ in range(draw(st.integers(0, 6))):
        text += draw(names) + draw(st.sampled_from([" = ", "=", " =", "\t=\t", " =\n  "]))
        for index in range(draw(st.integers(0, 3))):
            text += (draw(gaps) if index else "") + draw(items)
        text += "\n" + draw(fillers)
    return text if draw(st.booleans()) else text.rstrip("\n")


@st.composite
def master_files(draw: st.DrawFn) -> str:
    text = draw(fillers)
    for index in range(draw(st.integers(0, 4))):
        program = draw(st.sampled_from(["smtpd", "cleanup", "/usr/lib/postfix/sbin/smtpd", "qmgr"]))
        kind = draw(st.sampled_from(["inet", "unix", "pass"]))
        text += f"s{index} {kind} n - n - - {program}"
        for _ in range(draw(st.integers(0, 4))):
            name, value = draw(names), draw(st.sampled_from(["", "a", "$b", "a,b", "inline:{x=y}"]))
            text += draw(st.sampled_from([" ", "\n  ", "\n# between\n\t"]))
            text += draw(st.sampled_from([f"-o {name}={value}", f"-o{name}={value}", f"-o {{ {name} = {value}, c d }}", f"-o {{{name}={value}}}"]))
        text += "\n" + draw(fillers)
    return text if draw(st.booleans()) else text.rstrip("\n")


@given(main_files(), master_files(), st.sampled_from(["service", "clients"]))
@settings(max_examples=200, deadline=None)
def test_what_is_wired_and_unwired_is_what_it_was(main: str, master: str, mode: Mode) -> None:
    done = wired(CONFIG, mode, main, master, DEFAULTS)
    assert undone_whole("main.cf", done.main, done.members) == main
    assert undone_whole("master.cf", done.master, done.members) == master
    # Without the record, too: what is ours is known by what it says.
    assert undone_whole("main.cf", done.main, members_of(CONFIG)) == main
    assert undone_whole("master.cf", done.master, members_of(CONFIG)) == master
    # A second time the same comes out, also where it keeps its place.
    again = wired(CONFIG, mode, undone("main.cf", done.main, done.members), undone("master.cf", done.master, done.members), DEFAULTS)
    assert again == done


def undone_whole(name: str, text: str, members: dict[str, dict[str, list[str]]]) -> str:
    return remove_block(undone(name, text, members))


@given(st.text(alphabet="ab\n# =", max_size=60), st.text(alphabet="ab\n# =", max_size=60))
def test_a_block_is_taken_out_of_whatever_stands_around_it(before: str, behind: str) -> None:
    inside = insert_block(before, ["x = 1", "# why"])
    assert remove_block(inside) == before
    assert remove_block(inside + behind) == before + behind
    assert "x = 1" in (block_of(inside + behind) or "")
    assert insert_block(inside + behind, ["y = 2"]).endswith(behind)
    assert remove_block(insert_block(inside + behind, ["y = 2"])) == before + behind


@pytest.mark.skipif(shutil.which("postconf", path="/usr/sbin:/sbin:/usr/bin") is None, reason="Postfix is not installed")
@given(main=main_files())
@settings(
    max_examples=20, deadline=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
def test_postfix_reads_the_same_but_for_ours(main: str) -> None:
    """Postfix's own parser as the judge: every list of the operator's goes on behind our members."""
    before = _read_by_postfix(main)
    assume(before is not None)  # a parameter that names itself: Postfix does not read it either way
    after = _read_by_postfix(wired(CONFIG, "service", main, "", DEFAULTS).main)
    assert before is not None
    assert after is not None
    for name, value in before.items():
        assert after[name] == value or after[name].endswith(f", {value}") or not value, name
    ours = {"transport_maps": "texthash:/etc/postfix/mm4/transport", "virtual_alias_maps": "regexp:/etc/postfix/mm4/keep",
            "smtpd_recipient_restrictions": "check_recipient_access texthash:/etc/postfix/mm4/access",
            "fast_flush_domains": "responder.mm4.invalid"}  # fmt: skip
    for name, member in ours.items():
        assert member in after[name], name
        if name in before:
            assert after[name].startswith(member), name


def _read_by_postfix(main: str) -> dict[str, str] | None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "master.cf").write_text("")
        path = Path(folder, "main.cf")
        path.write_text(main)
        os.utime(path, (0, 0))  # Postfix waits for a file that has just changed
        done = subprocess.run(["postconf", "-c", folder, "-n"], capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    pairs = (line.partition(" =") for line in done.stdout.splitlines())
    return {name: value.strip() for name, _, value in pairs if name != "config_directory"}


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/system-postfix.slice/postfix@-.service\n", "postfix@-.service"),
        ("12:pids:/system.slice/postfix.service\n0::/\n", "postfix.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", None),
        ("0::/system.slice/cron.service\n", None),
        ("0::/\n", None),
    ],
)
def test_the_unit_of_postfix_is_known_by_its_cgroup(cgroup: str, unit: str | None) -> None:
    assert unit_of(cgroup) == unit


@pytest.mark.parametrize(
    ("command", "foreground"),
    [
        (b"/usr/lib/postfix/sbin/master\0-w\0", False),
        (b"/usr/lib/postfix/sbin/master\0-c\0/etc/postfix-s\0", False),
        (b"/usr/lib/postfix/sbin/master\0-s\0", True),
        (b"/usr/lib/postfix/sbin/master\0-i\0", True),
    ],
)
def test_a_postfix_in_the_foreground_is_known_by_its_command(command: bytes, foreground: bool) -> None:
    assert in_foreground(command) is foreground
