"""Docker for the tests in this folder: the engine that answers, else one of our own while these tests run."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

import engine

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    """A Docker engine. One of our own is brought up only in CI, or where MM4_DOCKER asks for it."""
    found = engine.answering()
    if found:
        yield found
        return
    if not os.environ.get("CI") and not os.environ.get("MM4_DOCKER"):
        pytest.skip("no Docker engine answers; `make test-docker` installs one and has it run for the tests")
    if os.geteuid() != 0:
        pytest.skip("no Docker engine answers, and only root can start one")
    with engine.own_engine() as own:
        yield own


@pytest.fixture(scope="session")
def trixie(client: docker.DockerClient) -> str:
    """Name of the image with Debian 13 and all that the tests need; run it with `repository()` as its volumes."""
    names = ["README.md", "LICENSE", "pyproject.toml", ".ci/setup", "milter/mm4/__init__.py", "postfix"]
    files = {name: REPOSITORY / name for name in names}
    arguments = {name: os.environ[name] for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if name in os.environ}
    trusted = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    if trusted:  # a proxy on the way may have a certificate that only this machine knows
        files["host.pem"] = Path(trusted)
        arguments["PIP_CERT"] = "/mm4/host.pem"
    base = engine.base_image(client, "trixie")
    return engine.build(client, "mm4-tests:trixie", REPOSITORY / "tests/docker/Dockerfile", files, BASE=base, **arguments)


@pytest.fixture(scope="session")
def repository() -> dict[str, dict[str, str]]:
    """Volumes that lay this checkout over the image's /mm4, not to be written; its .venv stays that of the image."""
    return {str(entry): {"bind": f"/mm4/{entry.name}", "mode": "ro"} for entry in REPOSITORY.glob("[!.]*")}
