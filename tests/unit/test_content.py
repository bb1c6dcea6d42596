"""What is read of a body in passing: sizes and types to the byte, the same however it is cut, and nothing for ever."""

from __future__ import annotations

import email
import email.policy
import time
import tracemalloc
from dataclasses import replace
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm4.protocol.content import MAX_DEPTH, MAX_PARTS, Content, Scanner
from mm4.protocol.headers import Header, split


def scanned(message: bytes, chunk: int = 65_535, most: int | None = None) -> Content:
    headers, body, _ = split(message)
    scanner = Scanner(headers, most)
    for start in range(0, len(body), chunk):
        if not scanner.feed(body[start : start + chunk]):
            break
    return scanner.close()


def mail(content_type: str, body: bytes, *more: bytes) -> bytes:
    return b"\r\n".join((f"Content-Type: {content_type}".encode(), *more, b"", body))


def parts(*lines: str, boundary: str = "b") -> bytes:
    return mail(f"multipart/related; boundary={boundary}", "\r\n".join(lines).encode("latin-1"))


GIF = "Content-Type: image/gif"

# name, message, decoded size, types, problem
CASES: list[tuple[str, bytes, int, tuple[str, ...], str | None]] = [
    ("no type", b"Subject: x\r\n\r\nhello\r\n", 7, ("text/plain",), None),
    ("nothing", b"Subject: x\r\n\r\n", 0, ("text/plain",), None),
    ("base64 of the whole", mail("image/gif", b"QUJD\r\nRA==\r\n", b"Content-Transfer-Encoding: BASE64"), 4, ("image/gif",), None),
    ("quoted-printable", mail("text/plain", b"a=3Db=\r\nc\r\n", b"Content-Transfer-Encoding: quoted-printable"), 6, ("text/plain",), None),
    ("one part", parts("--b", GIF, "", "x", "--b--"), 1, ("image/gif",), None),
    ("an empty part", parts("--b", GIF, "", "--b--"), 0, ("image/gif",), None),
    ("a part without headers", parts("--b", "", "x", "--b--"), 1, ("text/plain",), None),
    ("preamble and epilogue", parts("not me", "--b", GIF, "", "x", "--b--", "nor me"), 1, ("image/gif",), None),
    ("blanks behind a delimiter", parts("--b \t", GIF, "", "x", "--b-- "), 1, ("image/gif",), None),
    ("no closing delimiter", parts("--b", GIF, "", "xy"), 2, ("image/gif",), None),
    ("a delimiter at the end without a line end", parts("--b", GIF, "", "x", "--b"), 1, ("image/gif",), None),
    ("what only looks like a delimiter", parts("--b", GIF, "", "--bx", "--b -", "--b--"), 11, ("image/gif",), None),
    ("a boundary that begins like the outer one",
     parts("--b", "Content-Type: multipart/mixed; boundary=b1", "", "--b1", GIF, "", "x", "--b1--", "--b--"), 1, ("image/gif",), None),
    ("an inner multipart left open",
     parts("--b", "Content-Type: multipart/mixed; boundary=i", "", "--i", GIF, "", "x", "--b", "Content-Type: a/b", "", "y", "--b--"),
     2, ("image/gif", "a/b"), None),
    ("a folded type", parts("--b", "Content-Type:", "\timage/gif;", " name=x", "", "x", "--b--"), 1, ("image/gif",), None),
    ("a comment behind the type", parts("--b", "Content-Type: IMAGE/gif (nice)", "", "x", "--b--"), 1, ("image/gif",), None),
    ("a type that is none", parts("--b", "Content-Type: picture", "", "x", "--b--"), 1, ("text/plain",), None),
    ("two types: the first counts", parts("--b", GIF, "Content-Type: a/b", "", "x", "--b--"), 1, ("image/gif",), None),
    ("a whole message inside", parts("--b", "Content-Type: message/rfc822", "", "A: b", "", "x", "--b--"), 9, ("message/rfc822",), None),
    ("a boundary in quotes", mail('multipart/mixed; boundary="a b(c)"', b"--a b(c)\r\n\r\nx\r\n--a b(c)--"), 1, ("text/plain",), None),
    ("a multipart of nothing", parts("text"), 0, (), "a multipart without a part"),
    ("a multipart closed at once", parts("--b--"), 0, (), "a multipart without a part"),
    ("an inner multipart of nothing", parts("--b", "Content-Type: multipart/mixed; boundary=i", "", "x", "--b--"), 0, (),
     "a multipart without a part"),
    ("no boundary", mail("multipart/mixed", b"--x\r\n\r\n"), 0, (), "a multipart/mixed without a boundary"),
    ("an empty boundary", mail('multipart/mixed; boundary=""', b"--\r\n\r\n"), 0, (), "a multipart/mixed without a boundary"),
    ("an encoded boundary", mail("multipart/mixed; boundary*=nosuch''%62", b"--b\r\n\r\nx"), 1, ("text/plain",), None),
    ("a type without end", mail("text/plain; a=" + "x" * 3000, b""), 0, (), "a Content-Type that is too long"),
    ("headers without end", parts("--b", "X: " + "x" * 9000), 0, (), "a part whose headers are too long"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "decoded", "types", "problem"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_a_body_holds(message: bytes, decoded: int, types: tuple[str, ...], problem: str | None) -> None:
    for chunk in (1, 2, 5, 65_535):
        found = scanned(message, chunk)
        assert (found.problem, found.types) == (problem, types)
        if problem is None:
            assert found.decoded == decoded


# -- as the standard library reads it

ENCODINGS = st.sampled_from(["base64", "quoted-printable", "8bit"])


@st.composite
def trees(draw: st.DrawFn, depth: int = 0) -> EmailMessage:
    message = EmailMessage(policy=email.policy.SMTP)
    if depth < 3 and draw(st.booleans()):
        message.make_mixed()
        for _ in range(draw(st.integers(1, 3))):
            message.attach(draw(trees(depth + 1)))
        return message
    kind = draw(st.sampled_from(["jpeg", "gif", "x-icon"]))
    message.set_content(draw(st.binary(max_size=300)), maintype="image", subtype=kind, cte="base64")
    return message


@given(trees(), st.integers(1, 50))
def test_sizes_and_types_are_those_of_the_standard_library(tree: EmailMessage, chunk: int) -> None:
    message = tree.as_bytes(policy=email.policy.SMTP)
    leaves = [part for part in email.message_from_bytes(message).walk() if not part.is_multipart()]
    found = scanned(message, chunk)
    assert found.problem is None
    assert found.decoded == sum(len(part.get_payload(decode=True)) for part in leaves)  # type: ignore[arg-type]
    assert set(found.types) == {part.get_content_type() for part in leaves}


def same_however_cut(message: bytes, chunk: int) -> None:
    one, other = scanned(message), scanned(message, chunk)
    if one.problem is not None:  # then it may have ended sooner
        one, other = (replace(found, wire=0, digest=None, decoded=0) for found in (one, other))
    assert one == other


@given(st.binary(max_size=400).map(lambda b: b.replace(b"x", b"\r\n--b")), st.integers(1, 40))
def test_whatever_comes_is_read_the_same_however_it_is_cut(body: bytes, chunk: int) -> None:
    message = mail("multipart/mixed; boundary=b", body)
    same_however_cut(message, chunk)


@given(st.lists(st.sampled_from([
    "--a", "--a--", "--b", "--b--", "", "Content-Type: multipart/x; boundary=a", "Content-Type: multipart/x; boundary=b",
    "Content-Transfer-Encoding: quoted-printable", "=", "x=3D=", "\r", "-", "--", " ",
]), max_size=25), st.integers(1, 9))  # fmt: skip
def test_lines_of_mime_in_any_order_are_read_the_same_however_they_are_cut(lines: list[str], chunk: int) -> None:
    same_however_cut(parts(*lines, boundary="a"), chunk)


# -- what somebody may send on purpose

DEEP = "\r\n".join(f"--{n}\r\nContent-Type: multipart/mixed; boundary={n + 1}\r\n" for n in range(5000))
HOSTILE = {
    "nested": (mail("multipart/mixed; boundary=0", DEEP.encode()), f"more than {MAX_DEPTH} multiparts within each other"),
    "many parts": (parts("--b\r\n\r\nx\r\n" * 100_000), f"more than {MAX_PARTS} parts"),
    "nearly delimiters": (parts("--b", "", "--bb\r\n" * 300_000), "too many lines that look like a boundary"),
    "nearly delimiters, deep inside": (
        mail("multipart/mixed; boundary=0", DEEP[: DEEP.index("--9\r")].encode() + b"--9\r\n\r\n" + b"--99\r\n" * 300_000),
        "too many lines that look like a boundary",
    ),
    "one line": (parts("--b", "", "-" * 3_000_000), None),
    "no line": (mail("multipart/mixed; boundary=b", b"\n" * 3_000_000), "a multipart without a part"),
    "dashes": (parts("--b", "", "--\r\n" * 700_000), None),
    "line ends": (parts("--b", "", "\r" * 1_000_000), None),
    "equal signs": (parts("--b", "Content-Transfer-Encoding: quoted-printable", "", "=" * 3_000_000), None),
    "many parameters": (parts("--b", f"Content-Type: multipart/x{';' * 900}; boundary=c", "", ""), "a Content-Type that is too long"),
    "long parameters": (
        parts(*(f"--b\r\nContent-Type: multipart/x{';a*0*=' * 39}{'x' * 1700}; boundary=c\r\n\r\n--c\r\n\r\nx" for _ in range(240))), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_costs_little_time_and_no_memory(name: str) -> None:
    message, problem = HOSTILE[name]
    headers, body, _ = split(message)
    chunks = [body[start : start + 65_535] for start in range(0, len(body), 65_535)]
    scanner = Scanner(headers)
    tracemalloc.start()
    try:
        begun = time.process_time()
        for chunk in chunks:
            if not scanner.feed(chunk):
                break
        found = scanner.close()
        taken = time.process_time() - begun
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.problem == problem
    assert taken < 5, f"{taken:.2f} s for {len(body)} bytes"
    assert peak < 1_000_000, f"{peak} bytes"


# -- bounds and digests

def test_nothing_more_is_wanted_beyond_the_bound() -> None:
    scanner = Scanner([Header("Content-Type", b"image/gif")], most=100)
    assert scanner.feed(b"x" * 50)
    assert not scanner.feed(b"x" * 50)
    found = scanner.close()
    assert (found.wire, found.digest) == (100 + len("Content-Type:image/gif") + 2 + 2, None)


def test_what_cannot_be_told_is_not_read_on_unless_its_size_counts() -> None:
    headers = [Header("Content-Type", b"multipart/mixed")]
    assert not Scanner(headers).feed(b"x")
    assert Scanner(headers, most=10_000).feed(b"x")


def test_the_digest_is_of_the_content_and_nothing_else() -> None:
    one = parts("--b", "Content-Type: application/smil", "", "<one/>", "--b", GIF, "Content-Transfer-Encoding: base64", "",
                "QUJD", "RUZH", "--b--")  # fmt: skip
    same = parts("--c", "Content-Type: application/smil", "", "<two/>", "--c", GIF, "X: y", "Content-Transfer-Encoding: base64",
                 "", "QUJDRUZH", "--c--", boundary="c")  # fmt: skip
    other = one.replace(b"RUZH", b"RUZI")
    assert scanned(one).digest == scanned(same).digest != scanned(other).digest
    assert scanned(one.replace(b"image/gif", b"image/png")).digest != scanned(one).digest
    assert scanned(parts("--b", "Content-Type: application/smil", "", "<one/>", "--b--")).digest is None
    assert scanned(mail("text/plain", b"\r\n")).digest is None
