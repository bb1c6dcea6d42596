"""The Ansible collection against hosts in containers: each of molecule's scenarios, as `molecule test` runs it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.transport import UnixHTTPAdapter

import hosts

pytestmark = pytest.mark.skipif(not find_spec("molecule"), reason="the extra `ansible` is not installed: make test-docker")

COLLECTION = hosts.REPOSITORY / "ansible"
SECONDS = 900


def _docker_arguments(client: docker.DockerClient) -> str:
    """What `docker run` needs so that systemd boots (hosts.run_arguments, as the docker command spells it)."""
    given: dict[str, Any] = dict(hosts.run_arguments(client))
    given.pop("detach")
    words = [f"--tmpfs={path}" for path in given.pop("tmpfs")]
    words += [f"--volume={path}:{at['bind']}:{at['mode']}" for path, at in given.pop("volumes", {}).items()]
    words += [f"--cap-add={name}" for name in given.pop("cap_add", [])]
    words += [f"--security-opt={option}" for option in given.pop("security_opt", [])]
    words += ["--privileged"] * given.pop("privileged", False)
    words += [f"--cgroupns={given.pop('cgroupns')}"] if "cgroupns" in given else []
    assert not given, f"not known how docker run spells {given}"
    return shlex.join(words)


def _url(client: docker.DockerClient) -> str:
    """Where the engine answers, as the docker command wants it."""
    pool = client.api.get_adapter(client.api.base_url)
    return f"unix://{pool.socket_path}" if isinstance(pool, UnixHTTPAdapter) else str(client.api.base_url).replace("http", "tcp", 1)


def _broken(wheel: Path) -> Path:
    """The wheel in place of `wheel` whose `mm4 serve` ends at once."""
    bytes_ = {}
    with zipfile.ZipFile(wheel) as whole:
        for entry in whole.infolist():
            bytes_[entry] = whole.read(entry)
    with zipfile.ZipFile(wheel, "w") as broken:
        for entry, data in bytes_.items():
            broken.writestr(entry, b'raise SystemExit("out of order")\n' if entry.filename == "mm4/postfix/serve.py" else data)
    return wheel


@pytest.fixture(scope="module")
def environment(client: docker.DockerClient, suites: Any, key: hosts.Key, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the scenarios ask for, and a place of their own for all that the tools write."""
    home = tmp_path_factory.mktemp("molecule")
    (home / "broken").mkdir()
    tools = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "ANSIBLE_HOME": str(home),
        "NO_COLOR": "1",
    }
    build = ["ansible-galaxy", "collection", "build", "--output-path", home]
    subprocess.run(build, cwd=COLLECTION, env=tools, check=True)
    (archive,) = home.glob("*.tar.gz")
    subprocess.run(["ansible-galaxy", "collection", "install", "--offline", archive, "-p", home / "collections"], env=tools, check=True)
    return {
        **tools,
        "DOCKER_HOST": _url(client),
        "MM4_MOLECULE_PREFIX": f"mm4-a-{os.getpid()}",
        "MM4_MOLECULE_RUN": _docker_arguments(client),
        "MM4_MOLECULE_KEY": str(key.private),
        "MM4_MOLECULE_BROKEN": str(_broken(hosts.wheel(home / "broken", "99.2"))),
        **{f"MM4_MOLECULE_IMAGE_{name.upper()}": suites(name).image for name in ("bookworm", "trixie")},
        **{f"MM4_MOLECULE_WHEELS_{name.upper()}": str(suites(name).wheels) for name in ("bookworm", "trixie")},
    }


@pytest.mark.parametrize("scenario", ["default", "existing_milters", "uninstall"])
def test_the_scenario_passes(scenario: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["molecule", "test", "--scenario-name", scenario], cwd=COLLECTION, env=environment,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
