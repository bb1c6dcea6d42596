"""A host is the one that it was: the name in the state folder counts, and not the one that the system has by now."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mm4.postfix.hostname import host_of, keep_host


def test_the_name_of_the_first_start_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "first")
    assert host_of(tmp_path) == "first"
    monkeypatch.setattr(socket, "gethostname", lambda: "second")
    assert host_of(tmp_path) == "second", "nothing is kept before the daemon has started"
    assert keep_host(tmp_path) == "second"
    monkeypatch.setattr(socket, "gethostname", lambda: "third")
    assert (host_of(tmp_path), keep_host(tmp_path)) == ("second", "second")
    (tmp_path / "host").write_text("\n")
    assert keep_host(tmp_path) == "third", "an empty file is none"
