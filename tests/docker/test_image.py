"""The container image: two gateways, as docs/containers/compose.yaml has them, exchange MMS and are killed.

The compose file is read and its services are started through the engine's API, each key of it by name: what this does
not know fails. Only names, the subnet, and what restarts a container by itself are this run's own.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker.errors import APIError
from docker.models.containers import Container

import mm4
from harness import wait_for

CONTAINERS = Path(__file__).parents[2] / "docs/containers"
PREFIX = "172.31.25."
"""Of the addresses in compose.yaml and the YAMLs."""

NORTH, SOUTH = "+447700900002", "+491511000001"

KEYS = {
    "image", "build", "stop_grace_period", "restart", "cap_drop", "cap_add", "security_opt", "networks", "volumes",
}  # fmt: skip


class Operator:
    """One service of the compose file: containers that come and go, and what outlives them."""

    def __init__(self, name: str, service: dict[str, Any], image: str, network: Any, address: str, folder: Path) -> None:
        assert service.keys() <= KEYS, f"this test does not know {service.keys() - KEYS} of compose.yaml"
        self.name, self.service, self.image, self.network, self.address = name, service, image, network, address
        self.folder = folder
        """Mounted as /etc/mm4."""
        self.volumes: dict[str, str] = {}
        mount, *volumes = service["volumes"]
        assert mount == f"./{name}:/etc/mm4:ro"
        for volume in volumes:
            source, target = volume.split(":")
            self.volumes[f"{network.name}-{source}"] = target
        self.container: Container | None = None

    @property
    def api(self) -> docker.DockerClient:
        return self.network.client

    def up(self) -> None:
        """A new container, with a host name that no container before it had. Returns when it is healthy."""
        service, second = self.service, 10**9
        binds = {name: {"bind": target, "mode": "rw"} for name, target in self.volumes.items()}
        self.container = self.api.containers.create(
            self.image, name=f"{self.network.name}-{self.name}-{secrets.token_hex(3)}",
            cap_drop=service["cap_drop"], cap_add=service["cap_add"], security_opt=service["security_opt"],
            volumes={**binds, str(self.folder): {"bind": "/etc/mm4", "mode": "ro"}},
            # The image's own check, more often.
            healthcheck={"interval": 2 * second, "retries": 1},
        )  # fmt: skip
        self.api.networks.get("bridge").disconnect(self.container)
        self.network.connect(self.container, ipv4_address=self.address)
        self.container.start()

    def health(self) -> str:
        assert self.container
        self.container.reload()
        assert self.container.status == "running", self.log()
        return str(self.container.attrs["State"]["Health"]["Status"])

    def healthy(self) -> None:
        wait_for(lambda: self.health() == "healthy", f"{self.name} healthy")

    def run(self, *command: str, codes: tuple[int, ...] = (0,)) -> str:
        assert self.container
        code, output = self.container.exec_run(list(command))
        assert code in codes, f"{self.name}: {command}: exit {code}\n{output.decode(errors='replace')}\n{self.log()}"
        return output.decode(errors="replace")

    def signal(self, signal: str, program: str) -> None:
        """Send a signal to every process whose command line fits the regular expression `program`."""
        # As [x]: the shell's own command line holds the expression.
        look = f"[{program[0]}]{program[1:]}"
        self.run("sh", "-c", f"for p in /proc/[0-9]*; do grep -qsa '{look}' $p/cmdline && kill -{signal} ${{p#/proc/}}; done; true")

    def log(self) -> str:
        return self.container.logs().decode(errors="replace") if self.container else ""

    def send(self, sender: str, to: str, *more: str) -> str:
        """The message id."""
        return str(json.loads(self.run("mm4", "send", "--from", sender, "--to", to, "--text", "x", "--json", *more))["message_id"])

    def trace(self, message_id: str) -> list[dict[str, Any]]:
        said = self.run("mm4", "trace", "--json", message_id, codes=(0, 1))
        return list(json.loads(said)["transactions"]) if said.startswith("{") else []

    def answers(self, message_id: str) -> list[str]:
        """What the transaction's events say of answers, once it is answered Ok."""
        def look() -> list[str]:
            # What was deferred while the other side was away would wait for a minute.
            self.run("postqueue", "-f")
            found = self.trace(message_id)
            if [(t["state"], t["status"]) for t in found] != [("answered", "Ok")]:
                return []
            return [event["what"] for event in found[0]["events"]]

        return wait_for(look, f"{message_id} answered Ok at {self.name}")

    def maildir(self, number: str) -> list[str]:
        """The message ids of what the subscriber has."""
        said = self.run("sh", "-c", f"cat /var/lib/mm4/maildir/{number[1:]}/new/* 2>/dev/null; true")
        return re.findall(r"(?m)^X-Mms-Message-ID: \"?([^\s\"]+)", said)

    def ended(self, seconds: float = 60) -> int:
        """The exit code."""
        assert self.container
        return int(self.container.wait(timeout=seconds)["StatusCode"])

    def gone(self) -> None:
        """Throw the container away, and keep its volumes."""
        if self.container:
            self.container.remove(force=True)
            self.container = None


@pytest.fixture(scope="module")
def operators(client: docker.DockerClient, gateway: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Operator]]:
    """Both services, up and healthy; another test run at the same time has another subnet."""
    compose = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
    folder = tmp_path_factory.mktemp("containers")
    network, prefix = _network(client, compose["networks"]["mm4"]["ipam"]["config"][0]["subnet"])
    made: dict[str, Operator] = {}
    try:
        for name, service in compose["services"].items():
            shutil.copytree(CONTAINERS / name, folder / name)
            file = folder / name / "mm4.yaml"
            file.write_text(file.read_text().replace(PREFIX, prefix))
            address = service["networks"]["mm4"]["ipv4_address"]
            made[name] = Operator(name, service, gateway, network, address.replace(PREFIX, prefix), folder / name)
        for operator in made.values():
            operator.up()
        for operator in made.values():
            operator.healthy()
        yield made
    finally:
        for operator in made.values():
            operator.gone()
            for volume in operator.volumes:
                with contextlib.suppress(APIError):
                    client.volumes.get(volume).remove(force=True)
        network.remove()


def _network(client: docker.DockerClient, subnet: str) -> tuple[Any, str]:
    for number in [25, *range(100, 120)]:
        prefix = f"172.31.{number}."
        pool = docker.types.IPAMPool(subnet=subnet.replace(PREFIX, prefix))
        with contextlib.suppress(APIError):  # another run has it
            name = f"mm4-image-{secrets.token_hex(3)}"
            return client.networks.create(name, ipam=docker.types.IPAMConfig(pool_configs=[pool])), prefix
    raise AssertionError("no subnet is free")


def _both(operators: dict[str, Operator], do: Callable[[Operator], None]) -> None:
    for operator in operators.values():
        do(operator)


def test_two_operators_exchange_an_mms_both_ways(operators: dict[str, Operator]) -> None:
    north, south = operators["north"], operators["south"]
    for here, there, sender, to in ((north, south, NORTH, SOUTH), (south, north, SOUTH, NORTH)):
        message_id = here.send(sender, to, "--wait", "60s")
        assert there.answers(message_id)
        assert here.answers(message_id).count("answer received") == 1
        assert there.maildir(to) == [message_id]
    north.run("mm4", "check")
    assert "Mail queue is empty" in north.run("mailq")


def test_the_image_says_what_it_is_and_holds_nothing_of_the_machine_that_built_it(
    client: docker.DockerClient, gateway: str, operators: dict[str, Operator]
) -> None:
    labels = client.images.get(gateway).labels
    assert labels["org.opencontainers.image.version"] == mm4.__version__
    assert labels["org.opencontainers.image.licenses"] == "GPL-2.0-or-later"
    found = operators["north"].run("sh", "-c", "find / -xdev -name host.pem; command -v gcc pip; env; true")
    assert not re.search(r"host\.pem|gcc|/pip|PIP_", found), found


def test_health_is_what_the_gateway_answers(operators: dict[str, Operator]) -> None:
    south = operators["south"]
    south.signal("STOP", "mm4.postfix.answerer")
    wait_for(lambda: south.health() == "unhealthy", "unhealthy without a responder")
    assert "responder.sock: does not answer" in south.run("mm4", "health", codes=(1,))
    south.signal("CONT", "mm4.postfix.answerer")
    south.healthy()


def test_hup_takes_a_new_yaml_and_refuses_a_bad_one(operators: dict[str, Operator]) -> None:
    north = operators["north"]
    assert north.container
    file = north.folder / "mm4.yaml"
    good = file.read_text()
    file.write_text(good.replace("numbers:", "number:"))
    north.container.kill("HUP")
    wait_for(lambda: "Postfix goes on as it was" in north.log(), "the refusal")
    assert re.search(r"mm4\.yaml:\d+: local\.number\b", north.log()), north.log()
    assert "0.0.0.0:25: 220" in north.run("mm4", "health")
    file.write_text(good.replace('listen: "0.0.0.0:25"', 'listen: ["0.0.0.0:25", "0.0.0.0:2525"]'))
    north.container.kill("HUP")
    wait_for(lambda: "0.0.0.0:2525: 220" in north.run("mm4", "health", codes=(0, 1)), "the new line")
    wait_for(lambda: "reload=done" in north.log(), "the reload of mm4")
    file.write_text(good)


def test_a_second_container_on_the_same_volumes_ends_and_does_no_harm(client: docker.DockerClient, operators: dict[str, Operator]) -> None:
    north = operators["north"]
    volumes = {name: {"bind": target, "mode": "rw"} for name, target in north.volumes.items()}
    volumes[str(north.folder)] = {"bind": "/etc/mm4", "mode": "ro"}
    second = client.containers.run(north.image, detach=True, network_mode="none", volumes=volumes)
    try:
        assert second.wait(timeout=60)["StatusCode"] == 78
        assert "another gateway runs on the volume" in second.logs().decode()
    finally:
        second.remove(force=True)
    north.run("mm4", "health")


def test_killed_containers_and_new_ones_on_their_volumes_lose_nothing(operators: dict[str, Operator]) -> None:
    north, south = operators["north"], operators["south"]
    # The RES of the first message is due when south is killed: its Postfix has the message, its responder not yet.
    south.signal("STOP", "mm4.postfix.answerer")
    first = north.send(NORTH, SOUTH)
    wait_for(lambda: south.trace(first), "the message at south")
    wait_for(lambda: first not in north.run("postqueue", "-j") and "responder.mm4.invalid" in south.run("postqueue", "-j"), "its RES due")
    assert south.container
    assert north.container
    south.container.kill()
    south.gone()
    # The second one waits in north's queue.
    second = north.send(NORTH, SOUTH)
    wait_for(lambda: "via-south" in north.run("postqueue", "-j"), "the message waiting at north")
    north.container.kill()
    north.gone()
    _both(operators, Operator.up)
    _both(operators, Operator.healthy)
    for message_id in (first, second):
        def told(message_id: str = message_id) -> bool:
            south.run("postqueue", "-f")
            return north.answers(message_id).count("answer received") == 1

        wait_for(told, f"one RES for {message_id}")
        assert south.maildir(SOUTH).count(message_id) == 1
    for operator in operators.values():
        wait_for(lambda operator=operator: "Mail queue is empty" in operator.run("mailq"), "an empty queue")
    # The store goes on under the name of the first container.
    (transaction,) = north.trace(second)
    assert transaction["host"] == north.run("cat", "/var/lib/mm4/host").strip() != north.run("hostname").strip()


@pytest.mark.parametrize(("program", "named"), [("/bin/mm4.serve", "mm4 serve"), ("sbin/master", "Postfix")])
def test_where_one_part_dies_the_container_ends(operators: dict[str, Operator], program: str, named: str) -> None:
    south = operators["south"]
    assert south.container
    south.signal("KILL", program)
    assert south.ended() not in (0, 78), south.log()
    assert f"{named} ended with" in south.log()
    south.container.start()
    south.healthy()


def test_a_stop_is_orderly_and_short(operators: dict[str, Operator]) -> None:
    south = operators["south"]
    assert south.container
    since = time.monotonic()
    south.container.stop(timeout=60)
    assert south.ended() == 0
    assert time.monotonic() - since < 20
    said = south.log()
    assert said.rindex("stopping the Postfix mail system") < said.rindex("stopped=yes")


def test_a_bad_yaml_is_refused_with_its_line(client: docker.DockerClient, gateway: str, operators: dict[str, Operator], tmp_path: Path) -> None:
    good = (operators["north"].folder / "mm4.yaml").read_text()
    (tmp_path / "mm4.yaml").write_text(good.replace("numbers:", "number:"))
    line = next(n for n, text in enumerate(good.splitlines(), 1) if "numbers:" in text)
    tmp_path.chmod(0o755)
    container = client.containers.run(gateway, detach=True, network_mode="none", volumes={str(tmp_path): {"bind": "/etc/mm4", "mode": "ro"}})
    try:
        assert container.wait(timeout=60)["StatusCode"] == 78
        assert f"/etc/mm4/mm4.yaml:{line}: local.number" in container.logs().decode()
    finally:
        container.remove(force=True, v=True)
