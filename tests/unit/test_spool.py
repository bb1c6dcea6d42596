"""Copies to send again: whole and private on disk, within the quota, gone when nobody needs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mm4.postfix.spool import Spool, as_received

FIRST, SECOND = "a" * 32, "b" * 32
BODY = b"Subject: a\r\n\r\nReceived: in the body\r\n"
TOP = b"Received: from mmsc (mmsc [127.0.0.1])\r\n\tby gw (Postfix) with ESMTP id 4XyZ1\r\n\tfor <x>; Mon, 1 Jan 2024\r\n"
REQUEUED = b"Received: by gw (Postfix, from userid 102)\r\n\tid 4AbC9; Mon, 1 Jan 2024\r\n"
OLDER = b"Received: from handset by mmsc with SMTP id 7\r\n"


def opened(folder: Path, quota: int = 1000) -> Spool:
    spool = Spool(folder / "spool", quota)
    spool.open()
    return spool


@pytest.mark.parametrize(
    ("data", "left"),
    [
        (TOP + OLDER + BODY, OLDER + BODY),
        (REQUEUED + TOP + OLDER + BODY, OLDER + BODY),
        (REQUEUED + REQUEUED + TOP + BODY, BODY),
        (TOP + BODY, BODY),
        (BODY, BODY),
        (b"", b""),
        (TOP.replace(b"\r\n", b"\n") + OLDER, OLDER),
    ],
)
def test_the_lines_of_this_postfix_come_off_and_no_others(data: bytes, left: bytes) -> None:
    assert as_received(data) == left


@pytest.mark.parametrize("sender", ["", "+491511000001/TYPE=PLMN@mms.gw.example", "j\u00f6rg@mms.gw.example"])
def test_a_copy_comes_back_with_its_sender_to_the_byte(tmp_path: Path, sender: str) -> None:
    message = bytes(range(256)) * 2
    assert opened(tmp_path).keep(FIRST, sender, message)
    # In another process, too.
    assert opened(tmp_path).read(FIRST) == (sender, message)
    path = tmp_path / "spool" / FIRST
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_no_copy_is_kept_beyond_the_quota_and_a_removed_one_makes_room(tmp_path: Path) -> None:
    spool = opened(tmp_path, 300)
    assert spool.keep(FIRST, "a@b.test", b"x" * 200)
    assert not spool.keep(SECOND, "a@b.test", b"x" * 200)
    assert spool.tokens() == [FIRST]
    assert spool.read(SECOND) is None
    spool.remove([FIRST, SECOND])
    assert spool.used == 0
    assert spool.keep(SECOND, "a@b.test", b"x" * 200)
    assert os.listdir(tmp_path / "spool") == [SECOND]
    spool.quota = 0
    assert not spool.keep(FIRST, "a@b.test", b"")


def test_a_second_copy_of_a_message_is_the_first_and_counts_once(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.keep(FIRST, "a@b.test", b"one")
    used = spool.used
    assert spool.keep(FIRST, "a@b.test", b"one")
    assert spool.used == used == (tmp_path / "spool" / FIRST).stat().st_size


def test_what_is_there_at_the_start_counts_and_what_a_crash_cut_goes(tmp_path: Path) -> None:
    opened(tmp_path).keep(FIRST, "a@b.test", b"x" * 100)
    (tmp_path / "spool" / f"{SECOND}.tmp").write_bytes(b"cut")
    (tmp_path / "spool" / "README").write_bytes(b"somebody's")
    spool = opened(tmp_path, 200)
    assert spool.tokens() == [FIRST]
    assert spool.used > 100
    assert not spool.keep(SECOND, "a@b.test", b"x" * 100)
    assert sorted(os.listdir(tmp_path / "spool")) == ["README", FIRST]


@pytest.mark.parametrize("fault", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_nothing_and_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    spool = opened(tmp_path)

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if fault == "fsync" else Path, fault, broken)
        with pytest.raises(OSError, match="No space"):
            spool.keep(FIRST, "a@b.test", b"x")
    assert (spool.used, spool.tokens(), os.listdir(tmp_path / "spool")) == (0, [], [])
    assert spool.keep(FIRST, "a@b.test", b"x")


def test_a_file_that_is_no_copy_is_none(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    (tmp_path / "spool" / FIRST).write_bytes(b"torn")
    assert spool.read(FIRST) is None
