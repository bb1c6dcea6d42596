"""Docker for the tests in this folder: the engine that answers, else one of our own while these tests run."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.utils.build import exclude_paths

import engine
import hosts

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


def _pip() -> tuple[dict[str, Path], dict[str, str]]:
    """Files and build arguments by which pip in an image reaches the index that it reaches here."""
    arguments = {name: os.environ[name] for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL") if name in os.environ}
    trusted = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    if not trusted:
        return {}, arguments
    # A proxy on the way may have a certificate that only this machine knows.
    return {"host.pem": Path(trusted)}, {**arguments, "PIP_CERT": "/mm4/host.pem"}


@pytest.fixture(scope="session")
def trixie(client: docker.DockerClient) -> str:
    """Name of the image with Debian 13 and all that the tests need; run it with `repository()` as its volumes."""
    names = ["README.md", "LICENSE", "pyproject.toml", ".ci/setup", "milter/mm4/__init__.py", "milter/systemd", "postfix"]
    files, arguments = _pip()
    files |= {name: REPOSITORY / name for name in names}
    base = engine.base_image(client, "trixie")
    return engine.build(client, "mm4-tests:trixie", REPOSITORY / "tests/docker/Dockerfile", files, BASE=base, **arguments)


@pytest.fixture(scope="session")
def gateway(client: docker.DockerClient) -> str:
    """Name of the image that this checkout's Dockerfile makes on Debian 13, of what .dockerignore lets through."""
    ignored = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    files, arguments = _pip()
    files |= {name: REPOSITORY / name for name in exclude_paths(str(REPOSITORY), ignored) if (REPOSITORY / name).is_file()}
    base = engine.base_image(client, "trixie")
    return engine.build(client, "mm4-gateway-test:trixie", REPOSITORY / "Dockerfile", files, BASE=base, **arguments)


@pytest.fixture(scope="session")
def names(client: docker.DockerClient) -> str:
    """Name of the image with a name server."""
    dockerfile = REPOSITORY / "tests/docker/names/Dockerfile"
    return engine.build(client, "mm4-names:bookworm", dockerfile, {}, BASE=engine.base_image(client, "bookworm"))


@pytest.fixture(scope="session")
def database(client: docker.DockerClient) -> str:
    """Name of the image with a PostgreSQL."""
    dockerfile = REPOSITORY / "tests/docker/database/Dockerfile"
    return engine.build(client, "mm4-database:bookworm", dockerfile, {}, BASE=engine.base_image(client, "bookworm"))


class Suite:
    """One Debian: what a host and an installation there need."""

    def __init__(self, name: str, image: str, wheels: Path, version: str) -> None:
        self.name = name
        self.version = version
        """The version of mm4 in this checkout."""
        self.image = image
        """Runs as a host: systemd, Postfix, sshd (tests/docker/hosts.py)."""
        self.wheels = wheels
        """Folder on this machine with the wheels of mm4 and of all that it depends on, for this Debian's Python."""


class Suites:
    """The Debians, made when they are asked for."""

    def __init__(self, client: docker.DockerClient, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._made: dict[str, Suite] = {}
        self._wheel: Path | None = None

    def __call__(self, name: str) -> Suite:
        """The Debian called `name`: bookworm (12) or trixie (13)."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    @property
    def wheel(self) -> Path:
        """The wheel of this checkout, which every Python takes."""
        if self._wheel is None:
            self._wheel = hosts.wheel(self._folder)
        return self._wheel

    def _make(self, name: str) -> Suite:
        files, arguments = _pip()
        files["pyproject.toml"] = REPOSITORY / "pyproject.toml"
        base = engine.base_image(self._client, name)
        dockerfile = REPOSITORY / "tests/docker/host/Dockerfile"
        image = engine.build(self._client, f"mm4-host:{name}", dockerfile, files, target="host", BASE=base)
        builder = engine.build(self._client, f"mm4-wheels:{name}", dockerfile, files, target="wheels", BASE=base, **arguments)
        folder = self._folder / name
        folder.mkdir()
        wheels = hosts.unpack_wheels(self._client, builder, folder)
        shutil.copy(self.wheel, wheels)
        return Suite(name, image, wheels, self.wheel.name.split("-")[1])


@pytest.fixture(scope="session")
def suites(client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Suites:
    """`suites("bookworm")`: image and wheels of that Debian."""
    return Suites(client, tmp_path_factory.mktemp("suites"))


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> hosts.Key:
    """An SSH key of this run; `hosts.host(..., key=key)` lets its owner in."""
    return hosts.make_key(tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="session")
def repository() -> dict[str, dict[str, str]]:
    """Volumes that lay this checkout over the image's /mm4, not to be written; its .venv stays that of the image."""
    return {str(entry): {"bind": f"/mm4/{entry.name}", "mode": "ro"} for entry in REPOSITORY.glob("[!.]*")}
