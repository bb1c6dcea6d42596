"""Hosts as network namespaces, and networks between them whose cables a test can cut. Needs root and Debian's iproute2.

A namespace is there as long as a process holds it, which ends with the tests, even where they are killed. What is in
it goes with it, and with an interface the other end of its cable. The tests' own namespace gets one interface for
each network that they join, and nothing else there is touched.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import secrets
import socket
import subprocess

from harness import SECONDS, wait_for

__all__ = ["NEEDS", "Cable", "Host", "Network", "possible"]

NEEDS = "needs network namespaces of its own and cables between them: CAP_SYS_ADMIN, CAP_NET_ADMIN, iproute2"


def possible() -> bool:
    """Whether a namespace can be made here, and a cable in it."""
    trial = ["unshare", "--net", "ip", "link", "add", "name", "one", "type", "veth", "peer", "name", "other"]
    return subprocess.run(trial, check=False, capture_output=True).returncode == 0


class Host:
    """A network namespace with nothing but its own loopback. `wrapper` begins a command that is to run there."""

    def __enter__(self) -> Host:
        # It says what it hears, and ends when nobody is left who could speak to it.
        hold = ["unshare", "--net", "cat"]
        self._holder = subprocess.Popen(
            hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert self._holder.stdin
        assert self._holder.stdout
        assert self._holder.stderr
        with contextlib.suppress(BrokenPipeError):
            self._holder.stdin.write(b"\n")
        assert self._holder.stdout.read(1) == b"\n", self._holder.stderr.read().decode()
        self.pid = self._holder.pid
        self.wrapper = _inside(self.pid)
        self.interfaces = (f"eth{number}" for number in itertools.count())
        _run(*self.wrapper, "ip", "link", "set", "dev", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.communicate(timeout=SECONDS)


class Cable:
    """What ties a host, which has `address` there, to a network."""

    def __init__(self, switch: Host, port: str, address: str) -> None:
        self.address = address
        self._switch = switch
        self._port = port

    def cut(self) -> None:
        """Whatever is sent vanishes. Neither end is told: each finds its interface up."""
        _run(*self._switch.wrapper, "ip", "link", "set", "dev", self._port, "nomaster")

    def mend(self) -> None:
        """All is well again. What was on the way comes now, if it is sent again."""
        _run(*self._switch.wrapper, "ip", "link", "set", "dev", self._port, "master", "switch")


class Network:
    """A switch in a namespace of its own, and a subnet. Nobody is on it who was not connected."""

    def __init__(self) -> None:
        self.subnet = _unused()
        self._switch = Host()
        self._numbers = itertools.count(1)
        self._here: list[str] = []

    def __enter__(self) -> Network:
        self._switch.__enter__()
        _run(*self._switch.wrapper, "ip", "link", "add", "name", "switch", "up", "type", "bridge")
        return self

    def __exit__(self, *_: object) -> None:
        self._switch.__exit__()
        for name in self._here:
            wait_for(lambda: name not in dict(map(reversed, socket.if_nameindex())), f"the end of {name}")  # noqa: B023

    def connect(self, host: Host) -> Cable:
        """Tie a host to it."""
        return self._cable(host.pid, next(host.interfaces), 1)[0]

    def join(self, count: int) -> list[str]:
        """Addresses of the tests themselves, on one interface."""
        self._here.append(f"mm4-{secrets.token_hex(4)}")
        return [cable.address for cable in self._cable(os.getpid(), self._here[-1], count)]

    def _cable(self, process: int, interface: str, count: int) -> list[Cable]:
        numbers = list(itertools.islice(self._numbers, count))
        port, inside = f"port{numbers[0]}", _inside(process)
        peer = ("peer", "name", interface, "netns", str(process))
        _run("ip", "link", "add", "name", port, "netns", str(self._switch.pid), "type", "veth", *peer)
        cables = [Cable(self._switch, port, str(self.subnet[number])) for number in numbers]
        for cable in cables:
            _run(*inside, "ip", "address", "add", f"{cable.address}/{self.subnet.prefixlen}", "dev", interface)
        _run(*inside, "ip", "link", "set", "dev", interface, "up")
        _run(*self._switch.wrapper, "ip", "link", "set", "dev", port, "master", "switch", "up")
        return cables


def _unused() -> ipaddress.IPv4Network:
    """A subnet that overlaps with no route from here."""
    routes = json.loads(_run("ip", "-json", "-4", "route", "show", "table", "all"))
    taken = [ipaddress.IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    for _ in range(20):
        subnet = ipaddress.IPv4Network(f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}.0/24")
        if not any(map(subnet.overlaps, taken)):
            return subnet
    raise AssertionError("no free network for the hosts in 10.200.0.0 to 10.249.255.0")


def _inside(process: int) -> tuple[str, ...]:
    return "nsenter", f"--net=/proc/{process}/ns/net"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
