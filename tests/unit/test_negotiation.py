"""What the milter agrees on with Postfix, byte for byte on its socket: what is shown, and what is answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import Milter
import pytest

from fake import CONFIG

RULE = CONFIG.replace("    max_size: 1MB\n", "    max_size: 1MB\n    max_content: 300kB\n")
ALL = 0x1FFFFF
"""Every step that may be left out, and every reply (libmilter's mfdef.h)."""

# libmilter serves once a process; hence one of its own for each question.
ASK = """
import json, os, socket, struct, sys, threading
sys.path.insert(0, sys.argv[1])
from fake import Gateway
from mm4.postfix import milter
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[2])
listener.listen(5)
listener.setblocking(False)
gateway = Gateway(sys.stdin.read())
threading.Thread(target=milter.serve, args=(listener.fileno(), gateway.runtime), daemon=True).start()
client = socket.socket(socket.AF_UNIX)
client.settimeout(30)
client.connect(sys.argv[2])
offer = b"O" + struct.pack("!III", 6, 0x1FF, int(sys.argv[3]))
client.sendall(struct.pack("!I", len(offer)) + offer)
answer = client.makefile("rb")
said = answer.read(struct.unpack("!I", answer.read(4))[0])
print(json.dumps([struct.unpack("!III", said[1:13])[2], said[13:].decode()]), flush=True)
os._exit(0)
"""


def agreed(tmp_path: Path, config: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(Path(__file__).parents[1]), str(tmp_path / "m.sock"), str(ALL)],
        input=config, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps, macros = json.loads(done.stdout)
    return steps, macros


@pytest.mark.parametrize(("config", "bodies"), [(CONFIG, False), (RULE, True)], ids=["no rule", "a rule that needs bodies"])
def test_postfix_shows_only_what_is_looked_at_and_waits_only_where_something_is_said(
    tmp_path: Path, config: str, bodies: bool
) -> None:
    steps, macros = agreed(tmp_path, config)
    assert bool(steps & Milter.P_NOBODY) is not bodies
    for unseen in (Milter.P_NOHELO, Milter.P_NOUNKNOWN):
        assert steps & unseen
    for unanswered in (Milter.P_NR_HDR, Milter.P_NR_DATA, Milter.P_NR_EOH):
        assert steps & unanswered
    for looked_at in (Milter.P_NOMAIL, Milter.P_NORCPT, Milter.P_NOHDRS, Milter.P_NOEOH, Milter.P_NODATA, Milter.P_NR_RCPT):
        assert not steps & looked_at
    assert "{cert_subject} {auth_authen} {tls_version}" in macros
