"""What waits in a real Postfix queue is read by `mm4 lint`: by the path of its file, and through `postcat`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import LOCAL, Link, forward_req, mm4, new_ids, wait_for

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
IDS = new_ids()


@pytest.fixture(scope="module")
def waiting() -> Iterator[tuple[Link, Path]]:
    """A gateway, and the queue file of a REQ whose next hop does not answer: the milter has edited it."""
    with Link(YAML, ("mmsc",), north="[127.0.0.1]:1") as link:
        message = forward_req(sender="+491511000001", to="+447700900101", system="mmsc@mmsc.gw.example", ids=IDS)
        done = link.gateway.send(
            message.replace(b"X-Mms-Priority: Normal", b"X-Mms-Priority: Urgent"), source=LOCAL,
            mail_from="+491511000001/TYPE=PLMN@mms.gw.example", rcpt=("+447700900101/TYPE=PLMN@mms.gw.example",),
        )  # fmt: skip
        queue = Path(link.gateway.facts["queue_directory"])
        (file,) = wait_for(lambda: list(queue.glob(f"deferred/**/{done.queue_id}")), "a deferred message")
        yield link, file


def lint(*arguments: str, stdin: bytes | None = None) -> Any:
    done = mm4("lint", "--json", *arguments, check=False, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def postcat(link: Link, *arguments: str) -> bytes:
    command = ["postcat", "-c", link.gateway.facts["config_directory"], *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout


def sound(found: Any, text: bytes) -> None:
    assert (found["type"], found["valid"]) == ("MM4_forward.REQ", True)
    assert found["fields"]["transaction_id"] == IDS[0]
    assert found["fields"]["originator_system"] == "system-user@mms.gw.example", "as the milter left it"
    (problem,) = found["problems"]
    assert text.split(b"\n")[problem["line"] - 1].decode() == problem["found"] == "X-Mms-Priority: Urgent"


def test_a_queue_file_is_read_by_its_path(waiting: tuple[Link, Path]) -> None:
    link, file = waiting
    found = lint(str(file))
    assert found["file"] == str(file)
    sound(found, postcat(link, "-qh", file.name))


@pytest.mark.parametrize("options", ["-q", "-qh", "-bhq", "-qeh"])
def test_what_postcat_prints_is_read_from_a_pipe(waiting: tuple[Link, Path], options: str) -> None:
    link, file = waiting
    text = postcat(link, options, file.name)
    found = lint("-", stdin=text)
    assert ("message" in found) == ("e" in options or options == "-q")
    sound(found, text)


def test_a_queue_file_and_a_message_are_read_in_one_call(waiting: tuple[Link, Path], tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(forward_req())
    done = mm4("lint", str(waiting[1]), str(tmp_path / "a.eml"))
    assert done.stdout.endswith("2 read, 2 valid, 0 invalid\n")
