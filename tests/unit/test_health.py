"""`mm4 health` asks what Postfix asks: each socket and each MM4 line counts, and no YAML is read."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import free_port
from recorder import called

REPLIES = {
    "milter.sock": struct.pack("!I", 13) + b"O" + struct.pack("!III", 6, 0, 0),
    "responder.sock": b"220 gw LMTP\r\n",
    "fingerprints.sock": b"unknown\n\n",
    "the MM4 line": b"220 mms.gw.example ESMTP\r\n",
}


@contextlib.contextmanager
def answering(listener: socket.socket, reply: bytes) -> Iterator[None]:
    """Whoever connects to `listener` gets `reply`, and the end of the connection when he ends it."""
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.sendall(reply)
                    while reply and client.recv(1000):
                        pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: a UNIX socket's path may have 100 bytes."""
    made = Path(tempfile.mkdtemp(prefix="mm4-h-"))
    yield made
    shutil.rmtree(made)


@pytest.mark.skipif(shutil.which("postconf", path="/usr/sbin:/usr/bin") is None, reason="reads main.cf by Debian's postfix")
@pytest.mark.parametrize("wrong", [None, *REPLIES])
@pytest.mark.parametrize("pinned", [False, True], ids=["networks", "fingerprints"])
def test_each_part_that_does_not_answer_is_named(
    wrong: str | None, pinned: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    asked = "check_policy_service,unix:mm4/fingerprints.sock" if pinned else ""
    (folder / "mm4").mkdir()
    (folder / "main.cf").write_text(f"compatibility_level = 3.6\nqueue_directory = {folder}\n")
    (folder / "master.cf").write_text(
        "smtp inet n - n - - smtpd\n"
        f"0.0.0.0:{port} inet n - n - - smtpd\n"
        "  -o { smtpd_milters = { unix:mm4/milter.sock, default_action=tempfail } }\n"
        f"  -o smtpd_sender_restrictions={asked}\n"
    )
    with contextlib.ExitStack() as stack:
        for name, reply in REPLIES.items():
            if name.endswith(".sock"):
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(str(folder / "mm4" / name))
            else:
                listener = socket.socket()
                listener.bind(("127.0.0.1", port))
            stack.enter_context(answering(listener, b"" if name == wrong else reply))
        done = called(monkeypatch, capsys, "health", "--postfix", folder, "--json")
    found = json.loads(done.out)
    asked_of = [name for name in REPLIES if pinned or name != "fingerprints.sock"]
    assert [probe["ok"] for probe in found["probes"]] == [name != wrong for name in asked_of]
    assert all(name in probe["probe"] for name, probe in zip(asked_of, found["probes"], strict=True))
    assert (found["ok"], done.code) == ((False, 1) if wrong in asked_of else (True, 0))


def test_a_postfix_without_mm4_is_no_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "master.cf").write_text("smtp inet n - n - - smtpd\n")
    done = called(monkeypatch, capsys, "health", "--postfix", tmp_path)
    assert (done.code, done.err) == (78, f"mm4: {tmp_path}/master.cf has no MM4 line: mm4 postfix wire puts it there\n")
