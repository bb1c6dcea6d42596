"""Runs on a host that is tested, with Debian's Python alone: the peers and the systems around a gateway, and its traffic.

    traffic.py KIND COUNT SESSIONS [COMMAND...]

KIND `in`: MMS from the peer north, one a session, SESSIONS at a time. With COUNT 0 they come until COMMAND, which starts
when ten are through, has ended and ten more are through. `out`: from our own side, to the numbers in place of COMMAND;
`away`: the same, and they expire before north takes mail. Prints what happened as one JSON object.
"""

from __future__ import annotations

import collections
import http.server
import json
import os
import re
import smtplib
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable

NORTH, OURS = "127.0.0.21", "127.0.0.9"
SECONDS = 60.0

received: list[str] = []


class Peer(socketserver.StreamRequestHandler):
    """The peer's own line, which keeps what comes."""

    def handle(self) -> None:
        self.wfile.write(b"220 north ESMTP\r\n")
        while line := self.rfile.readline():
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go\r\n")
                text = b""
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    text += line
                received.append(text.decode("latin-1"))
            self.wfile.write(b"250 ok\r\n")


class Nobody(socketserver.BaseRequestHandler):
    """A DNS that knows no name."""

    def handle(self) -> None:
        question, answerer = self.request
        answerer.sendto(question[:2] + b"\x85\x83" + question[4:6] + b"\0" * 6 + question[12:], self.client_address)


class Portability(http.server.BaseHTTPRequestHandler):
    """A number portability service that knows every number as north's."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"operator": "north"}')

    def log_message(self, *_: object) -> None: ...


class Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 100


def message(sender: str, to: str, ids: tuple[str, str], more: str = "") -> bytes:
    transaction, identity = ids
    head = f"""From: {sender}/TYPE=PLMN@mms.north.example
To: {to}/TYPE=PLMN@mms.gw.example
Date: {time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())}
MIME-Version: 1.0
X-Mms-3GPP-MMS-Version: 5.5.0
X-Mms-Message-Type: MM4_forward.REQ
X-Mms-Transaction-ID: "{transaction}"
X-Mms-Message-ID: "{identity}"
{more}Content-Type: text/plain

Good morning
"""
    return head.replace("\n", "\r\n").encode()


class Sessions:
    """What clients were told, and which messages were taken."""

    def __init__(self) -> None:
        self.replies: collections.Counter[str] = collections.Counter()
        self.taken: list[str] = []
        self.longest = 0.0

    def send(self, source: str, mail_from: str, to: str, text: bytes, transaction: str) -> None:
        """One session with one message."""
        begun, step = time.monotonic(), "connect"
        try:
            with smtplib.SMTP("127.0.0.1", 2600, timeout=SECONDS, source_address=(source, 0)) as client:
                client.ehlo()
                for step, line in (("mail", f"MAIL FROM:<{mail_from}>"), ("rcpt", f"RCPT TO:<{to}>"), ("data", "")):
                    code, said = client.docmd(line) if line else client.data(text)
                    self.replies[f"{step} {code}"] += 1
                    if code != 250:
                        print(step, code, said, file=sys.stderr)
                        break
                else:
                    self.taken.append(transaction)
        except (OSError, smtplib.SMTPException) as error:
            self.replies[f"{step} {type(error).__name__}"] += 1
        self.longest = max(self.longest, time.monotonic() - begun)

    def inward(self, name: str) -> None:
        more = "X-Mms-Ack-Request: Yes\nX-Mms-Originator-System: system@mms.north.example\n"
        text = message("+447700900002", "+491511000001", (f"t-{name}", f"m-{name}"), more)
        self.send(NORTH, "+447700900002/TYPE=PLMN@mms.north.example", "+491511000001/TYPE=PLMN@mms.gw.example", text, f"t-{name}")

    def outward(self, name: str, to: str, seconds: float) -> None:
        expiry = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(time.time() + seconds))
        text = message("+491511000001", to, (f"t-{name}", f"m-{name}"), f"X-Mms-Expiry: {expiry}\n")
        self.send(OURS, "+491511000001/TYPE=PLMN@mms.gw.example", f"{to}/TYPE=PLMN@mms.gw.example", text, f"t-{name}")


def until(done: Callable[[], bool], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)


def main(kind: str, count: int, sessions: int, rest: list[str]) -> None:
    servers: list[socketserver.BaseServer] = [
        socketserver.ThreadingUDPServer(("127.0.0.1", 5353), Nobody),
        http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Portability),
    ]
    if kind != "away":
        servers.append(Tcp((NORTH, 2525), Peer))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    seen, stop, unique = Sessions(), threading.Event(), f"{time.time_ns():x}"
    code, seconds = None, None

    def stream(n: int) -> None:
        for i in range(count) if count else iter(int, 1):
            if stop.is_set():
                return
            seen.inward(f"{unique}-{n}-{i if count else time.time_ns()}")
            if not count:
                time.sleep(0.05)

    if kind != "in":
        for to in rest:
            seen.outward(f"{unique}-{to[1:]}", to, 2 if kind == "away" else 3600)
        until(lambda: kind == "away" or len(received) >= len(seen.taken))
    else:
        threads = [threading.Thread(target=stream, args=(n,)) for n in range(sessions)]
        for thread in threads:
            thread.start()
        if not count:
            until(lambda: len(seen.taken) >= 10)
            begun = time.monotonic()
            code = subprocess.run(rest, stdout=sys.stderr, check=False).returncode
            seconds = time.monotonic() - begun
            before = len(seen.taken)
            until(lambda: len(seen.taken) >= before + 10)
            stop.set()
        for thread in threads:
            thread.join()
        until(lambda: set(seen.taken) <= set(answered()))
    print(json.dumps({
        "replies": seen.replies, "taken": seen.taken, "answered": answered(), "longest": round(seen.longest, 2),
        "code": code, "seconds": seconds and round(seconds, 2), "received": received,
    }), flush=True)
    os._exit(0)  # threads that still answer somebody


def answered() -> dict[str, list[str]]:
    """The status of every RES that came, by transaction."""
    found: dict[str, list[str]] = {}
    for text in list(received):
        transaction = re.search(r'(?mi)^X-Mms-Transaction-ID: *"?([^"\s]+)', text)
        status = re.search(r"(?mi)^X-Mms-Request-Status-Code: *(\S+)", text)
        if transaction and status:
            found.setdefault(transaction[1], []).append(status[1])
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
