"""What a probe needs of this host itself."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from harness import free_port as port_of_a_test
from mm4.postfix.probes import free_port


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.12"])
def test_a_free_port_is_none_that_a_connection_gets_by_itself(host: str) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in {free_port(host) for _ in range(50)}:
        assert port < first
        with socket.socket() as listener:
            listener.bind((host, port))


def test_a_port_that_somebody_has_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken := port_of_a_test()))
        listener.listen()
        free = port_of_a_test()
        monkeypatch.setattr(random, "sample", lambda *_: [taken, free])
        assert free_port() == free
        monkeypatch.setattr(random, "sample", lambda *_: [taken])
        assert free_port() != taken


def test_an_address_of_another_host_has_none() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        free_port("192.0.2.1")
