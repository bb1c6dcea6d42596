"""Addresses of every kind: how they are read, completed, given back and written."""

from __future__ import annotations

import pytest

from mm4.protocol.address import Kind, parse_address, split_list

E164, SHORT, EMAIL, SYSTEM, IPV4, IPV6, INVALID = (
    Kind.E164, Kind.SHORT_CODE, Kind.EMAIL, Kind.SYSTEM, Kind.IPV4, Kind.IPV6, Kind.INVALID,
)  # fmt: skip

READ = [
    ("+447700900101/TYPE=PLMN@mms.example", E164, "+447700900101", "mms.example"),
    ("+447700900101/TYPE=PLMN", E164, "+447700900101", None),
    ("+447700900101/type=plmn", E164, "+447700900101", None),
    ("+447700900101", E164, "+447700900101", None),
    ("+447700900101@mms.example", E164, "+447700900101", "mms.example"),
    ("  <+447700900101/TYPE=PLMN>  ", E164, "+447700900101", None),
    ('"Ann, of North" <+447700900101/TYPE=PLMN@mms.example>', E164, "+447700900101", "mms.example"),
    ("Jörg <+447700900101/TYPE=PLMN>", E164, "+447700900101", None),
    ("+44 (0) 7700-900.101", E164, "+447700900101", None),
    ("+447700900101/TYPE=PLMN (mobile (of Ann))", E164, "+447700900101", None),
    ('"+447700900101/TYPE=PLMN"@mms.example', E164, "+447700900101", "mms.example"),
    ("<@relay.example,@other.example:+447700900101/TYPE=PLMN@mms.example>", E164, "+447700900101", "mms.example"),
    ("447700900101", E164, "+447700900101", None),
    ("447700900101/TYPE=PLMN@mms.example", E164, "+447700900101", "mms.example"),
    ("+1234567", E164, "+1234567", None),
    ("+123456789012345", E164, "+123456789012345", None),
    ("123", SHORT, "123", None),
    ("12345/TYPE=PLMN", SHORT, "12345", None),
    ("12345678@mms.example", SHORT, "12345678", "mms.example"),
    ("Ann.Example@mail.example", EMAIL, "Ann.Example@mail.example", "mail.example"),
    ('"Ann" <ann@mail.example>', EMAIL, "ann@mail.example", "mail.example"),
    ('"ann"@mail.example', EMAIL, "ann@mail.example", "mail.example"),
    ('"ann example"@mail.example', EMAIL, '"ann example"@mail.example', "mail.example"),
    ("ann@[192.0.2.1]", EMAIL, "ann@[192.0.2.1]", "[192.0.2.1]"),
    ("PostMaster@mms.example", SYSTEM, "PostMaster", "mms.example"),
    ("SYSTEM-USER@mms.example", SYSTEM, "SYSTEM-USER", "mms.example"),
    ("system@mms.example", SYSTEM, "system", "mms.example"),
    ("mmsc@mms.example", SYSTEM, "mmsc", "mms.example"),
    ("admin@mms.example", SYSTEM, "admin", "mms.example"),
    ("PostMaster", SYSTEM, "PostMaster", None),
    ("anything", SYSTEM, "anything", None),
    ("192.0.2.33/TYPE=IPv4@mms.example", IPV4, "192.0.2.33", "mms.example"),
    ("192.0.2.33", IPV4, "192.0.2.33", None),
    ("2001:db8::1/TYPE=IPv6", IPV6, "2001:db8::1", None),
    ("[2001:DB8::1]", IPV6, "2001:db8::1", None),
    ("2001:db8::1/TYPE=IPV6@mms.example", IPV6, "2001:db8::1", "mms.example"),
]
NO_ADDRESS = [
    "", " ", "<>", "?", "a b", "joe@", "@mms.example", "+", "12", "+123456", "+1234567890123456", "1234567890123456",
    "+44770090010x", "0771234567890", "+447700900101/TYPE=IPV4", "192.0.2.33/TYPE=IPv6", "192.0.2.33/TYPE=PLMN",
    "192.0.2.333", "192.168.001.001", "+447700900101/TYPE=FAX", "fe80::1%eth0/TYPE=IPv6", "+447700900101@a..b",
    "+447700900101@-", "jo\xe4@mail.example", '"a"b"@mail.example', "+447700900101, +447700900102", "x" * 5000,
    "+447700900101\x00", "a@b@c d", "joe@mail.example\n", "<" * 100, "(" * 100, '"' * 100,
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "value", "domain"), READ, ids=[row[0] for row in READ])
def test_reads_every_kind(text: str, kind: Kind, value: str, domain: str | None) -> None:
    address = parse_address(text)
    assert (address.kind, address.value, address.domain) == (kind, value, domain)
    assert address.text == text, "what a peer wrote is kept as it stood"


@pytest.mark.parametrize("text", NO_ADDRESS, ids=[repr(text[:30]) for text in NO_ADDRESS])
def test_what_is_no_address_is_invalid(text: str) -> None:
    assert parse_address(text).kind is (EMAIL if text.endswith("\n") else INVALID)


@pytest.mark.parametrize(
    ("text", "region", "number"),
    [
        ("01511 000001", "DE", "+491511000001"),
        ("01511000001", "DE", "+491511000001"),
        ("00491511000001", "DE", "+491511000001"),
        ("491511000001", "DE", "+491511000001"),
        ("(01511) 000001", "DE", "+491511000001"),
        ("07700 900101", "GB", "+447700900101"),
        ("01511000001/TYPE=PLMN@mms.example", "DE", "+491511000001"),
        ("+491511000001", "GB", "+491511000001"),
        ("447700900101", "DE", "+447700900101"),
        ("4915112345678", "DE", "+4915112345678"),
        ("15112345678", "DE", "+4915112345678"),
        ("1511000001", "DE", "+491511000001"),
        ("500000001", "PL", "+48500000001"),
        ("48500000001", "PL", "+48500000001"),
        ("447700900101", "PL", "+447700900101"),
        ("2015550123", "US", "+12015550123"),
        ("0011447700900101", "AU", "+447700900101"),
    ],
)
def test_a_national_number_is_completed_by_the_region(text: str, region: str, number: str) -> None:
    address = parse_address(text, region)
    assert address.number == number
    assert address.completed == (not text.startswith("+"))


def test_without_a_region_a_national_number_is_none() -> None:
    assert parse_address("01511000001").kind is INVALID


@pytest.mark.parametrize("region", [None, "DE", "GB", "US", "DK"])
@pytest.mark.parametrize("digits", range(3, 9))
def test_a_short_code_is_never_completed(digits: int, region: str | None) -> None:
    code = "41418282"[:digits]
    for text in (code, f"{code}/TYPE=PLMN", f"{code}@mms.example"):
        address = parse_address(text, region)
        assert (address.kind, address.value, address.number) == (SHORT, code, None)


@pytest.mark.parametrize(("text", "kind", "value", "domain"), READ, ids=[row[0] for row in READ])
def test_what_is_written_reads_back(text: str, kind: Kind, value: str, domain: str | None) -> None:
    address = parse_address(text)
    for written in (address.write(), address.as_given()):
        again = parse_address(written)
        assert (again.kind, again.value, again.domain) == (kind, value, domain)
    behind = parse_address(address.write("mms.other.example"))
    if kind is SYSTEM and value == "anything":
        return  # without a domain any word names a system, with one only the known words do
    assert (behind.kind, behind.value) == (kind, value)
    assert behind.domain == (domain if kind is EMAIL else "mms.other.example")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("+447700900101", "+447700900101/TYPE=PLMN"),
        ("12345@mms.example", "12345/TYPE=PLMN@mms.example"),
        ("192.0.2.33", "192.0.2.33/TYPE=IPv4"),
        ("[2001:db8::1]", "2001:db8::1/TYPE=IPv6"),
        ("PostMaster@mms.example", "PostMaster@mms.example"),
        ("Ann <Ann@mail.example>", "Ann@mail.example"),
    ],
)
def test_writing_is_exact(text: str, written: str) -> None:
    assert parse_address(text).write() == written


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("<+447700900101@mms.example>", "+447700900101@mms.example"),
        ("The system <PostMaster@mms.example> (here)", "PostMaster@mms.example"),
        ("+44 7700 900101@mms.example", "+447700900101/TYPE=PLMN@mms.example"),
        ('"john doe"@mail.example', '"john doe"@mail.example'),
    ],
)
def test_an_address_is_given_back_as_it_stood_where_it_is_a_plain_mailbox(text: str, given: str) -> None:
    assert parse_address(text).as_given() == given


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", []),
        (" , ;,", []),
        ("a, b;c", ["a", "b", "c"]),
        ('"a, b" <c>, d', ['"a, b" <c>', "d"]),
        ('"a \\", b" <c>, d', ['"a \\", b" <c>', "d"]),
        ("a (x, (y, z)), b", ["a (x, (y, z))", "b"]),
        ("<a,b>, c", ["<a,b>", "c"]),
        ("+447700900101/TYPE=PLMN.+447700900102", ["+447700900101/TYPE=PLMN", "+447700900102"]),
        ("+447700900101.+447700900102,+447700900103", ["+447700900101", "+447700900102", "+447700900103"]),
        ("Friends: a, b;, c", ["a", "b", "c"]),
        ('"Fri:ends": a;', ["a"]),
        ("undisclosed-recipients:;", []),
        ("2001:db8::1/TYPE=IPv6; [2001:db8::2]; 2001:db8::3@x.example", [
            "2001:db8::1/TYPE=IPv6", "[2001:db8::2]", "2001:db8::3@x.example",
        ]),
    ],
)  # fmt: skip
def test_a_list_parts_at_commas_outside_quotes_angles_and_comments(text: str, members: list[str]) -> None:
    assert split_list(text) == members


def test_who_is_the_same_addressee() -> None:
    same = ("+447700900101", "<+447700900101/TYPE=PLMN@mms.example>", "447700900101")
    assert {parse_address(text).key for text in same} == {"+447700900101"}
    assert parse_address("Ann@Mail.example").key == parse_address("ann@mail.example").key
    assert parse_address("PostMaster@a.example").key == parse_address("postmaster").key
