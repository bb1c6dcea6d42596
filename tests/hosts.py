"""Hosts as operators have them: a Debian with systemd, Postfix and sshd in a container, and the wheels to install there."""

from __future__ import annotations

import contextlib
import io
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError
from docker.models.containers import Container

from harness import wait_for

__all__ = ["REPOSITORY", "Host", "Key", "host", "make_key", "run_arguments", "unpack_wheels", "wheel"]

REPOSITORY = Path(__file__).parents[1]

SECONDS = 120.0
"""Longest wait for a host to be up, or for a command on it."""


class Key:
    """A pair of SSH keys of one test run."""

    def __init__(self, folder: Path) -> None:
        self.private = folder / "id_ed25519"
        self.public = folder / "id_ed25519.pub"


def make_key(folder: Path) -> Key:
    key = Key(folder)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", key.private], check=True)
    return key


class Said(str):
    """What a command printed, and its exit code."""

    code: int


class Host:
    """One running container with systemd as process 1. `put*` and `run` act as root."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.name = container.name

    def run(self, command: str, *, codes: tuple[int, ...] | None = (0,), user: str = "root", **environment: str) -> Said:
        """What `command`, a line of sh, prints on both outputs. AssertionError where its exit code is none of `codes`."""
        code, output = self.container.exec_run(["sh", "-c", command], user=user, environment=environment)
        said = Said(output.decode(errors="replace"))
        said.code = code
        assert codes is None or code in codes, f"{self.name}: {command}: exit {code}\n{said}"
        return said

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """A file of root's at `path`, whose folder is there or made."""
        self.put_files({path: content}, mode)

    def put_files(self, files: Mapping[str, str | bytes], mode: int = 0o644) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                entry = tarfile.TarInfo(path.lstrip("/"))
                entry.size, entry.mode, entry.mtime = len(data), mode, int(time.time())
                tar.addfile(entry, io.BytesIO(data))
        for folder in {str(Path(path).parent) for path in files}:
            self.run(f"mkdir -p {folder}")
        assert self.container.put_archive("/", archive.getvalue())

    def put_folder(self, source: Path, target: str) -> None:
        """The files right in `source`, into the folder `target`."""
        self.put_files({f"{target}/{file.name}": file.read_bytes() for file in source.iterdir() if file.is_file()})

    def address(self, network: str | None = None) -> str:
        """The IPv4 address in `network`; without it in the only one that the container is in."""
        self.container.reload()
        networks: dict[str, Any] = self.container.attrs["NetworkSettings"]["Networks"]
        if network is None:
            (only,) = networks.values()
            return str(only["IPAddress"])
        return str(networks[network]["IPAddress"])

    def boot(self) -> None:
        """Wait until systemd has started everything. AssertionError with what failed."""
        # Right after the start there may be no bus yet: "Failed to connect to bus".
        wait_for(lambda: self._state() in {"running", "degraded"}, f"the boot of {self.name}", SECONDS)
        assert self._state() == "running", self.run("systemctl --failed; journalctl -b --no-pager -p warning", codes=None)

    def _state(self) -> str:
        return self.run("systemctl is-system-running", codes=None).strip()

    def journal(self, unit: str, lines: int = 200) -> str:
        return self.run(f"journalctl --no-pager -o cat -n {lines} -u {unit}", codes=None)


def run_arguments(client: docker.DockerClient) -> dict[str, Any]:
    """What a container needs so that systemd boots in it, by the version of cgroups that the engine has."""
    arguments: dict[str, Any] = {"tmpfs": {"/run": "", "/run/lock": ""}, "detach": True}
    if client.info().get("CgroupVersion") == "2":
        # Its own branch of the tree has to be writable, which Docker gives to privileged containers only.
        return arguments | {"privileged": True, "cgroupns": "private"}
    volumes = {"/sys/fs/cgroup": {"bind": "/sys/fs/cgroup", "mode": "ro"}}
    return arguments | {"cap_add": ["SYS_ADMIN", "NET_ADMIN"], "security_opt": ["apparmor=unconfined"], "volumes": volumes}


@contextlib.contextmanager
def host(client: docker.DockerClient, image: str, name: str, key: Key | None = None, **more: Any) -> Iterator[Host]:
    """A host called `name` that has booted; gone at the end. `key` lets its owner in as root by ssh.

    The container's own name is longer, so that another run on this engine does not have it too.
    """
    arguments = run_arguments(client)
    arguments["volumes"] = {**arguments.get("volumes", {}), **more.pop("volumes", {})}
    own = f"{name}-{secrets.token_hex(3)}"
    container = client.containers.run(image, name=own, hostname=more.pop("hostname", name), **arguments, **more)
    try:
        it = Host(container)
        it.boot()
        it.run(f"postconf -e myhostname={container.attrs['Config']['Hostname']} && systemctl restart postfix")
        if key:
            it.put("/root/.ssh/authorized_keys", key.public.read_text(), 0o600)
        yield it
    finally:
        with contextlib.suppress(APIError):
            container.remove(force=True, v=True)


def unpack_wheels(client: docker.DockerClient, image: str, folder: Path) -> Path:
    """The folder /wheels of `image`, laid into `folder`."""
    container = client.containers.create(image)
    try:
        stream, _ = container.get_archive("/wheels")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
            tar.extractall(folder, filter="data")
    finally:
        container.remove(v=True)
    return folder / "wheels"


def wheel(folder: Path, version: str | None = None, revision: str | None = None) -> Path:
    """A wheel of this checkout in `folder`; `version` is another than its own, `revision` a further one of the schema."""
    with tempfile.TemporaryDirectory(prefix="mm4-wheel-") as scratch:
        tree = Path(scratch)
        for name in ("README.md", "LICENSE", "pyproject.toml"):
            shutil.copy(REPOSITORY / name, tree / name)
        for name in ("milter", "postfix"):
            shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        if version:
            init = tree / "milter/mm4/__init__.py"
            init.write_text(re.sub(r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"', init.read_text()))
        if revision:
            _further(tree / "milter/mm4/store", revision)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--wheel-dir", folder, tree]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob(f"mm4_milter-{version or '*'}-*.whl")
    return made


def _further(store: Path, revision: str) -> None:
    """A column that may be empty, and an index: what the revisions of a generation may add."""
    schema = store / "schema.py"
    text = schema.read_text()
    (before,) = re.findall(r'(?m)^REVISIONS = .*"(\d+)"\)$', text)
    text = re.sub(r'(?m)^(REVISIONS = .*)\)$', rf'\1, "{revision}")', text)
    column = '    Column("of_later", String()),\n    Index("ix_messages_of_later", "of_later"),\n'
    text = re.sub(r'(messages = Table\(\n    "messages",\n    metadata,\n)', lambda found: found[1] + column, text)
    assert revision in text
    assert column in text
    schema.write_text(text)
    (store / f"migrations/versions/r{revision}_later.py").write_text(f"""import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade():
    op.add_column("messages", sa.Column("of_later", sa.String()))
    op.create_index("ix_messages_of_later", "messages", ["of_later"])
""")
