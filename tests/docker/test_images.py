"""The images that the other tests here run in: made beside the tests on this machine, which mostly wait, so that they are there."""

from __future__ import annotations

import re
from pathlib import Path

import docker

from .conftest import Suites


def test_each_image_has_what_it_is_for(client: docker.DockerClient, suites: Suites, gateway: str, names: str, trixie: str) -> None:
    for name, release in (("bookworm", "12"), ("trixie", "13")):
        suite = suites(name)
        assert _runs(client, suite.image, "cat /etc/debian_version").startswith(release)
        pymilter = [wheel.name for wheel in Path(suite.wheels).glob("pymilter-*.whl")]
        python = _runs(client, suite.image, "python3 -V").split()[1]
        major, minor = re.findall(r"\d+", python)[:2]
        assert [f"-cp{major}{minor}-" in wheel for wheel in pymilter] == [True]
    assert "3.10" in _runs(client, trixie, "postconf -hd mail_version")
    assert _runs(client, names, "command -v nsd").strip()
    assert client.images.get(gateway).attrs["Config"]["Healthcheck"]


def _runs(client: docker.DockerClient, image: str, command: str) -> str:
    return client.containers.run(image, ["-c", command], entrypoint="sh", remove=True, network_mode="none").decode()
