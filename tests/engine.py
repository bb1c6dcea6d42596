"""A Docker engine for the tests and the images that they run in.

Our own engine has its own socket and folder, below the user's cache, so that no other engine sees its images and the
next run finds them. It runs while somebody uses it: test runs at the same time share it, and the last one stops it. As
any engine it leaves a bridge (docker0) and its iptables chains behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
from docker.errors import APIError, BuildError, DockerException, ImageNotFound
from docker.models.images import Image

from harness import wait_for

__all__ = ["answering", "base_image", "build", "own_engine"]

SECONDS = 60.0
"""Longest wait for the engine to come up, and to stop."""


def answering(url: str | None = None) -> docker.DockerClient | None:
    """A client of the engine at `url`, without it the one that `docker` would ask (DOCKER_HOST); None where none answers."""
    try:
        client = docker.DockerClient(url, timeout=600) if url else docker.from_env(timeout=600)
        client.ping()
    except DockerException:
        return None
    return client


@contextlib.contextmanager
def own_engine() -> Iterator[docker.DockerClient]:
    """An engine of our own, up for as long as any test run uses it. Raises AssertionError with its log."""
    folder = _cache()
    with (folder / "users").open("w") as users:
        with _alone(folder):
            client = answering(f"unix://{folder}/socket") or _start(folder)
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield client
        finally:
            client.close()
            with _alone(folder), contextlib.suppress(BlockingIOError):  # others use it: the last one stops it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop(int((folder / "pid").read_text()))


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mm4-docker"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _making(name: str) -> Iterator[None]:
    """One process at a time makes the image `name`; the next finds it made."""
    folder = _cache()
    with (folder / f"making-{name.replace(':', '-')}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(folder: Path) -> docker.DockerClient:
    socket, log = f"unix://{folder}/socket", folder / "log"
    command = ["dockerd", "--host", socket, "--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    found = wait_for(lambda: answering(socket) or process.poll() is not None, f"a Docker engine, see {log}", SECONDS)
    assert isinstance(found, docker.DockerClient), f"dockerd ended with {process.returncode}:\n{log.read_text()[-3000:]}"
    return found


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)

    def gone() -> bool:
        with contextlib.suppress(ChildProcessError):  # another process started it
            return os.waitpid(pid, os.WNOHANG)[0] == pid
        with contextlib.suppress(OSError):
            # Ended, and its parent, another process of this test run that has nothing to do any more, has not looked yet.
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return True

    wait_for(gone, f"the end of dockerd, process {pid}", SECONDS)


def base_image(client: docker.DockerClient, suite: str) -> str:
    """The name of a minimal Debian; made by debootstrap from the mirror of this machine's apt where it is not there."""
    name = f"mm4-debian:{suite}"
    with _making(name):
        if not _image(client, name):
            _bootstrap(client, name, suite)
    return name


def _bootstrap(client: docker.DockerClient, name: str, suite: str) -> None:
    sites = _run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages")
    mirror = re.search(r"^\S+/debian/?$", sites, re.MULTILINE)
    assert mirror, f"no Debian mirror in apt's configuration, which has: {' '.join(sites.split())}"
    with tempfile.TemporaryDirectory(prefix="mm4-debian-") as root:
        _run("debootstrap", "--variant=minbase", suite, root, mirror[0])
        # An image that is half written is thrown away: no package has to be on disk before the next.
        Path(root, "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        pack = ["tar", "-C", root, "--exclude=./var/cache/apt/archives/*.deb", "-c", "."]
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
            client.api.import_image_from_stream(tar.stdout, *name.split(":"))
        assert tar.returncode == 0


def build(
    client: docker.DockerClient, name: str, dockerfile: Path, files: Mapping[str, Path], target: str | None = None, **arguments: str
) -> str:
    """The name of the image that `dockerfile`, up to its stage `target`, makes of `files`, by their names in its context;
    quick where nothing changed.

    Raises AssertionError with what the build said.
    """
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for path, source in {**files, "Dockerfile": dockerfile}.items():
            tar.add(source.resolve(), path)
    context.seek(0)
    with _making(name):
        old = _image(client, name)
        try:
            new, _ = client.images.build(
                fileobj=context, custom_context=True, tag=name, target=target, buildargs=arguments, rm=True, forcerm=True
            )
        except BuildError as error:
            said = "".join(line.get("stream", "") for line in error.build_log)
            raise AssertionError(f"{name}: {error.msg}\n{said[-6000:]}") from error
        if old and old.id != new.id:
            with contextlib.suppress(APIError):  # in use by another test run
                client.images.remove(old.id)
    return name


def _image(client: docker.DockerClient, name: str) -> Image | None:
    try:
        return client.images.get(name)
    except ImageNotFound:
        return None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]}: exit {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}"
    return done.stdout
