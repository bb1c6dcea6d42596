"""Two operators and an ordinary mail server in a network of their own: name server, hosts, deployment, traffic."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import re
import secrets
import smtplib
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.errors import APIError
from docker.models.containers import Container
from docker.types import IPAMConfig, IPAMPool

from harness import forward_req, wait_for
from hosts import REPOSITORY, Host, Key, Said

__all__ = ["MM4_PORT", "Database", "Inventory", "Network", "Stream", "database", "delivered", "name_server", "network", "rows"]

MM4_PORT = 2525
"""Of the operators' own MM4 lines; their ordinary mail comes to 25."""


class Network:
    """A network of Docker's with addresses that stay through restarts of its hosts."""

    def __init__(self, client: docker.DockerClient, name: str, subnet: ipaddress.IPv4Network) -> None:
        self.client = client
        self.name = name
        pool = IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))
        self.docker = client.networks.create(name, driver="bridge", ipam=IPAMConfig(pool_configs=[pool]))
        self.subnet = subnet

    @property
    def here(self) -> str:
        """The address by which the hosts know this machine."""
        return str(self.subnet[1])

    def address(self, number: int) -> str:
        return str(self.subnet[number])

    def arguments(self, number: int, resolver: str | None = None) -> dict[str, Any]:
        """How a container is run with the address `number` of this network."""
        endpoint = self.client.api.create_endpoint_config(ipv4_address=self.address(number))
        arguments: dict[str, Any] = {"network": self.name, "networking_config": {self.name: endpoint}}
        return arguments | ({"dns": [resolver]} if resolver else {})

    @contextlib.contextmanager
    def cut(self, host: Host, number: int) -> Iterator[None]:
        """Nobody reaches `host`, and it reaches nobody."""
        self.docker.disconnect(host.container)
        try:
            yield
        finally:
            self.docker.connect(host.container, ipv4_address=self.address(number))


@contextlib.contextmanager
def network(client: docker.DockerClient, name: str) -> Iterator[Network]:
    """A network that overlaps with none of this machine's."""
    for _ in range(20):
        subnet = ipaddress.IPv4Network(f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}.0/24")
        with contextlib.suppress(APIError):
            made = Network(client, name, subnet)
            break
    else:
        raise AssertionError("no free network for the hosts in 10.200.0.0 to 10.249.255.0")
    try:
        yield made
    finally:
        made.docker.remove()


@contextlib.contextmanager
def name_server(network: Network, image: str, name: str, zones: Mapping[str, str]) -> Iterator[str]:
    """Address of a name server with `zones`: zone to the lines of its file below SOA and NS."""
    head = "$TTL 60\n@ IN SOA ns hostmaster 1 3600 600 86400 60\n@ IN NS ns\n"
    address = network.address(53)
    lines = ["server:", "  username: nsd", "  pidfile: ''", "  xfrdfile: ''", "  zonelistfile: ''", "remote-control:", "  control-enable: no"]
    files = {}
    for zone, records in zones.items():
        lines += ["zone:", f"  name: {zone}", f"  zonefile: /zones/{zone}.zone"]
        files[f"zones/{zone}.zone"] = f"{head}ns IN A {address}\n{records}"
    files["zones/nsd.conf"] = "\n".join(lines) + "\n"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.mtime = len(text.encode()), 0o644, int(time.time())  # NSD reads no zone of 1970
            tar.addfile(entry, io.BytesIO(text.encode()))
    container = network.client.containers.create(image, name=name, **network.arguments(53))
    try:
        assert container.put_archive("/", archive.getvalue())
        container.start()
        yield address
    finally:
        container.remove(force=True, v=True)


class Database:
    """A PostgreSQL that hosts of `network` share, at an address of its own."""

    def __init__(self, container: Container, address: str, password: str) -> None:
        self.container = container
        self.password = password
        self.url = f"postgresql://mm4:{password}@{address}/mm4?sslmode=require"

    def run(self, sql: str) -> str:
        """One statement as the superuser; what psql prints of its rows."""
        code, said = self.container.exec_run(["psql", "-XAtc", sql, "mm4"], user="postgres")
        assert code == 0, said
        return str(said.decode().strip())

    def ready(self) -> None:
        """Wait until it answers."""
        look = ["psql", "-XAtc", "SELECT 1", "mm4"]
        wait_for(lambda: self.container.exec_run(look, user="postgres").exit_code == 0, f"the answer of {self.container.name}", 120)


@contextlib.contextmanager
def database(network: Network, image: str, name: str, number: int) -> Iterator[Database]:
    """An empty database of the role `mm4`, by TLS and a password."""
    password = secrets.token_urlsafe(12)
    arguments = network.arguments(number)
    container = network.client.containers.run(image, name=name, detach=True, environment={"MM4_PASSWORD": password}, **arguments)
    try:
        made = Database(container, network.address(number), password)
        made.ready()
        yield made
    finally:
        container.remove(force=True, v=True)


class Inventory:
    """An Ansible inventory of hosts that are let in by `key`, in `folder`, and the playbooks of this checkout."""

    def __init__(self, folder: Path, key: Key, hosts: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        ssh = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        common = {
            "ansible_user": "root", "ansible_ssh_private_key_file": str(key.private), "ansible_ssh_common_args": ssh,
            "ansible_python_interpreter": "/usr/bin/python3",
        }  # fmt: skip
        self.file = folder / "inventory.yml"
        self.file.write_text(yaml.safe_dump({"mm4": {"hosts": {name: dict(own) for name, own in hosts.items()}, "vars": common}}))
        # A collection is found below ansible_collections/NAMESPACE/NAME.
        collection = folder / "collections/ansible_collections/mm4"
        collection.mkdir(parents=True)
        (collection / "mm4").symlink_to(REPOSITORY / "ansible")

    def play(self, playbook: str, *arguments: str, codes: Sequence[int] = (0,), **variables: Any) -> Said:
        """What ansible-playbook says of `playbook` of the collection. AssertionError where its exit code is none of `codes`."""
        command = [
            Path(sys.executable).with_name("ansible-playbook"), "-i", self.file, f"mm4.mm4.{playbook}",
            "-e", json.dumps(variables), *arguments,
        ]  # fmt: skip
        environment = {
            **os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.folder / "collections"), "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_HOME": str(self.folder / "home"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=60s", "ANSIBLE_LOCALHOST_WARNING": "0", "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        said = Said(done.stdout + done.stderr)
        said.code = done.returncode
        assert done.returncode in codes, f"{playbook}: exit {done.returncode}\n{said[-12000:]}"
        return said


class Stream:
    """MMS from one operator's own side to numbers of the other, one after the other, until told to end.

    As an MMSC does, a message that is put off or cut goes again, with the same ids.
    """

    def __init__(self, gateway: str, sender: str, to: str, domain: str, pause: float = 0.1) -> None:
        self.gateway = gateway
        self.sender = sender
        self.to = to
        self.domain = domain
        self.pause = pause
        self.accepted: list[str] = []
        """Message ids that the gateway said 250 to."""
        self.put_off: list[str] = []
        """What it said otherwise, or how the connection ended."""
        self.refused: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def goes_on(self, more: int = 20, seconds: float = 120.0) -> None:
        """Wait until `more` further messages are accepted."""
        target = len(self.accepted) + more
        wait_for(lambda: self.refused or len(self.accepted) >= target, f"{more} more messages by {self.gateway}", seconds)
        assert not self.refused, self.refused

    def _run(self) -> None:
        while not self._end.is_set():
            unique = secrets.token_hex(8)
            message = forward_req(
                sender=self.sender, to=self.to, ids=(f"t-{unique}@{self.domain}", f"m-{unique}@{self.domain}"), system=None
            )
            while not self._send(message, unique):
                if self._end.is_set():
                    return  # not accepted: nobody promised anything
                time.sleep(0.2)
            self.accepted.append(f"m-{unique}@{self.domain}")
            time.sleep(self.pause)

    def _send(self, message: bytes, unique: str) -> bool:
        try:
            with smtplib.SMTP(self.gateway, MM4_PORT, timeout=60) as client:
                client.sendmail(f"{self.sender}@{self.domain}", [f"{self.to}@{self.domain}"], message)
        except (OSError, smtplib.SMTPException) as error:
            (self.refused if re.search(r"\b5\d\d\b.*5\.\d", str(error)) else self.put_off).append(f"{unique}: {error}")
            return False
        return True


def delivered(host: Host, number: str) -> list[str]:
    """Message ids of the MMS in a subscriber's Maildir, of each copy."""
    folder = f"/var/lib/mm4/maildir/{number.lstrip('+')}/new"
    found = host.run(f"cd {folder} 2>/dev/null && grep -rih '^X-Mms-Message-ID:' .", codes=None)
    return [line.partition(":")[2].strip().strip('"') for line in found.splitlines()]


def rows(host: Host, *options: str) -> list[dict[str, Any]]:
    """What `mm4 transactions list` knows there."""
    said = host.run(f"mm4 transactions list --json --limit 100000 {' '.join(options)}", codes=(0, 1))
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]
