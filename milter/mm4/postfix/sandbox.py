"""A private Postfix with this gateway on loopback, from one YAML file, touching no file of the system.

The files are those of a dedicated gateway, filled in; everything lies in one folder. The sandbox is the parent of
Postfix's master and of `mm4 serve`: it restarts the latter as systemd would, and takes both along when it goes,
even when it is killed. On failure nothing that it started is left, and the error says what to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import pwd
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..gateway.config import Config
from ..gateway.configfile import parse_config, place
from ..gateway.peer import Peer
from ..gateway.routes import HttpRoute, ReachRoute
from ..protocol.dialect import is_file
from ..protocol.errors import ConfigError, PostfixError, UsageError
from . import maps
from .children import MARK, Child, Signals, stop_leftovers
from .instance import Instance, tool
from .probes import cannot_bind, free_port
from .settings import read_config

__all__ = ["Sandbox", "run"]

_READY = 60.0  # seconds until mail has to be taken; it is 1 to 2 on an idle machine
_POLL = 0.02
_STEADY = 30.0  # seconds after which a restart starts from the shortest wait again
_LONGEST_WAIT = 10.0
_LEAVE = 60.0  # seconds; a running end of message may take most of it
_SUN_PATH = 100  # bytes: what `mm4 serve` takes as the path of a UNIX socket
_FOLDER = re.compile(r"[\w./+@=~-]+\Z", re.ASCII)  # main.cf separates by blanks and commas, and expands $ and {}


def run(
    config: Path,
    folder: Path,
    listen: Sequence[str],
    source: str | None,
    announce: Callable[[dict[str, Any]], None],
    *,
    serve: Sequence[str] | None = None,
) -> None:
    """Run a sandbox until SIGTERM or SIGINT; `announce` is called once, when mail is taken.

    `serve` is the command of the daemon, `mm4 serve` by default. Raises UsageError (not root, folder), ConfigError
    (the YAML), PostfixError (no Postfix, port in use, start-up failed).
    """
    with Signals() as signals:
        sandbox = Sandbox(config, folder, listen, source, serve)
        with sandbox.lock():
            try:
                sandbox.prepare()
                sandbox.start(signals)
                if not signals.stop:
                    announce(sandbox.facts())
                sandbox.watch(signals)
            finally:
                sandbox.stop()


class Sandbox:
    """The folder, what is written into it, and the two processes."""

    def __init__(
        self, config: Path, folder: Path, listen: Sequence[str], source: str | None, serve: Sequence[str] | None = None
    ) -> None:
        if os.geteuid() != 0:
            raise UsageError(
                "mm4 sandbox has to run as root: Postfix's master starts as root, and its commands take a private "
                "configuration folder from root only"
            )
        tool("postfix")
        self.origin = config.absolute()
        self.folder = folder.resolve()
        self.listen = list(listen)
        self.source = source
        self.yaml = self.folder / "mm4.yaml"
        self.queue = self.folder / "queue"
        self.sockets = self.queue / "mm4"
        self.state = self.folder / "state"
        self.log = self.folder / "log"
        self.instance = Instance(self.folder / "postfix")
        self._serve = list(serve or (sys.executable, "-m", "mm4", "serve", "--config", str(self.yaml)))
        self._daemon: Child | None = None
        self._master: Child | None = None
        self._check_folder()

    def facts(self) -> dict[str, Any]:
        """What the caller needs to use it: the JSON line of `mm4 sandbox`."""
        return {
            "smtp": self.listen[0],
            "listen": self.listen,
            "config": str(self.yaml),
            "config_directory": str(self.instance.folder),
            "queue_directory": str(self.queue),
            "maildir": str(self.state / "maildir"),
            "log": str(self.log),
            "pid": os.getpid(),
        }

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only sandbox in this folder. Raises PostfixError that names the one that runs."""
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "sandbox.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"--dir {self.folder}: cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 20).decode().strip()
            os.close(descriptor)
            raise PostfixError(
                f"a sandbox runs in {self.folder} already, process {pid}: stop it (kill {pid}) or give another --dir"
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(descriptor)

    def prepare(self) -> None:
        """Stop what a killed sandbox left running here, then write every file. Raises ConfigError, PostfixError."""
        stop_leftovers(self.folder)
        config = self._write_yaml()
        self._probe_ports(config)
        account = pwd.getpwnam("postfix")
        self.instance.folder.mkdir(mode=0o755, exist_ok=True)
        self.queue.mkdir(mode=0o755, exist_ok=True)
        self.sockets.mkdir(mode=0o755, exist_ok=True)
        self.state.mkdir(mode=0o755, exist_ok=True)
        data = self.queue / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        os.chown(data, account.pw_uid, account.pw_gid)
        for name in ("milter", "responder", "maildir", "fingerprints"):
            (self.sockets / f"{name}.sock").unlink(missing_ok=True)
        maps.write(config, maps.folder_of(config))
        version4 = self.source and ipaddress.ip_address(self.source).version == 4
        main = maps.main_lines(
            config,
            "gateway",
            # Relative to the queue: master and tlsmgr open files there as user postfix, who cannot come from
            # the root folder where a folder above is 0700. Every Postfix process works in the queue folder.
            # 127.0.0.N is no interface's own address, and Postfix takes no other in inet_interfaces; where it listens
            # is said in master.cf.
            values={"DATA": "data", "SOURCE": self.source if version4 else None, "INTERFACES": "all"},
        )
        main += [
            "",
            "# --- What a sandbox has of its own",
            "# By this its processes are known, where it was killed and nothing else is left of it.",
            f"import_environment = {self.instance.defaults('import_environment')['import_environment']} {MARK}",
        ]
        if self.source and not version4:
            main.append(f"smtp_bind_address6 = {self.source}")
        log = [
            "# One log for Postfix and mm4, in the sandbox's folder.",
            f"maillog_file = {self.log}",
            f"maillog_file_prefixes = {self.folder}",
        ]
        maps.replace_file(self.instance.folder / "master.cf", "\n".join(maps.master_lines(config, "gateway")) + "\n")
        # At first without the log: postsuper names a queue file that a kill left half made, does so as user postfix,
        # who cannot write there, and ends.
        self._write_main(main)
        for said in self.instance.check():
            self._note(said)
        self._write_main(main + log)

    def _write_main(self, lines: Sequence[str]) -> None:
        maps.replace_file(self.instance.folder / "main.cf", "\n".join(lines) + "\n")

    def start(self, signals: Signals) -> None:
        """Start `mm4 serve`, then Postfix, and wait until both take connections; or until a signal comes.

        The daemon comes first: what an earlier run left in the queue is tried once at start, and then minutes later.
        Raises ConfigError where the daemon refuses the configuration, PostfixError where either does not come up.
        """
        since = self.log.stat().st_size if self.log.exists() else 0
        self._daemon = self._child(self._serve)
        self._await(signals, since, lambda: _accepts(self.sockets / "milter.sock"), "mm4 serve", self._daemon)
        if signals.stop:
            return
        master = Path(self.instance.values("daemon_directory")["daemon_directory"]) / "master"
        self._master = self._child([str(master), "-c", str(self.instance.folder)])
        self._await(signals, since, lambda: all(map(_greets, self.listen)), "Postfix", self._master)

    def watch(self, signals: Signals) -> None:
        """Until a signal: start the daemon again when it dies. Raises where Postfix dies or it cannot go on."""
        wait, since, due = 0.5, time.monotonic(), 0.0
        while not signals.stop:
            if self._master and self._master.gone():
                raise PostfixError(f"Postfix's master has stopped (exit {self._master.code}); see {self.log}")
            if self._daemon and self._daemon.gone():
                if self._daemon.code == ConfigError.exit_code:
                    raise ConfigError(f"mm4 serve refuses {self.yaml}: {self._tail(0)}")
                wait = 0.5 if time.monotonic() - since > _STEADY else min(wait * 2, _LONGEST_WAIT)
                self._note(f"mm4 serve has stopped (exit {self._daemon.code}), starts again in {wait:g} s")
                self._daemon.stop(0)
                self._daemon, due = None, time.monotonic() + wait
            if self._daemon is None and time.monotonic() >= due:
                self._daemon, since = self._child(self._serve), time.monotonic()
            signals.wait(1.0 if self._daemon else max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        """End what was started: Postfix first, so that nobody is left for the daemon to answer."""
        for child, patience in ((self._master, 10.0), (self._daemon, _LEAVE)):
            if child:
                child.stop(patience)
        self._master = self._daemon = None
        stop_leftovers(self.folder)

    def _check_folder(self) -> None:
        if not _FOLDER.match(str(self.folder)):
            raise UsageError(
                f"--dir {str(self.folder)!r}: main.cf cannot hold this path; use letters, digits and . _ + @ = ~ - only"
            )
        longest = self.sockets / "responder.sock"
        excess = len(os.fsencode(longest)) - _SUN_PATH
        if excess > 0:
            raise UsageError(f"--dir {self.folder}: too long by {excess} bytes for the socket {longest}")

    def _write_yaml(self) -> Config:
        """The effective file: the given one with what a sandbox decides, every path absolute."""
        given, text = read_config(self.origin)
        raw: dict[str, Any] = yaml.safe_load(text)
        service = dict(raw.get("service") or {})
        service["listen"] = self.listen if len(self.listen) > 1 else self.listen[0]
        service.setdefault("submit", f"127.0.0.1:{free_port()}")
        # Postfix stops first: nobody is left who would have to be answered 421.
        service.setdefault("drain", "0s")
        if given.service.tls is not None:
            service["tls"] = given.service.tls.model_dump(exclude_none=True)
        raw["service"] = service
        raw["folders"] = {
            "state": str(self.state),
            "sockets": str(self.sockets),
            "postfix": str(self.instance.folder),
        }
        raw["store"] = given.store if "store" in raw else f"sqlite:///{self.folder / 'mm4.db'}"
        if given.cdr is not None and given.cdr.folder is not None:
            raw["cdr"]["folder"] = given.cdr.folder
        _absolute_routes(raw.get("routes"), given)
        for name, peer in given.peers.items():
            _absolute_files(raw["peers"][name], peer)
        head = f"# Written by `mm4 sandbox` from {self.origin}: edit that, not this.\n"
        effective = head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
        config = parse_config(effective, str(self.yaml))
        maps.replace_file(self.yaml, effective)
        return config

    def _where(self, key: str) -> str:
        """The place of a key that stands in the given file; the option's own name otherwise."""
        given, text = read_config(self.origin)
        if key == "service.submit" and "submit" in given.service.model_fields_set:
            return place(text, str(self.origin), key) + ":"
        return key

    def _probe_ports(self, config: Config) -> None:
        listen = [("--listen", endpoint) for endpoint in config.service.listen]
        for key, endpoint in (*listen, ("service.submit", config.service.submit)):
            host, port = _split(endpoint)
            problem = cannot_bind(host, port)
            if problem is None:
                continue
            raise PostfixError(
                f"{self._where(key)} {endpoint}: {problem}; `ss -ltnp 'sport = :{port}'` names the process that "
                "has it: stop that, or choose another port"
            )
        if self.source and (problem := cannot_bind(self.source, 0)):
            raise UsageError(f"--source {self.source}: {problem}; it has to be an address of this host")

    def _child(self, command: Sequence[str]) -> Child:
        package = str(Path(__file__).resolve().parents[2])  # the daemon is this very code, whatever is installed
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        return Child(command, self.folder, self.log, {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"})

    def _await(self, signals: Signals, since: int, ready: Callable[[], bool], name: str, child: Child) -> None:
        end = time.monotonic() + _READY
        while not signals.stop and not ready():
            if child.gone():
                said = self._tail(since)
                if child.code == ConfigError.exit_code and child is self._daemon:
                    raise ConfigError(f"mm4 serve refuses {self.yaml}: {said}")
                # A master that cannot begin has no log yet, and says it to a terminal only.
                hint = f"; `{' '.join(child.command)} -d` may say more" if child is self._master else ""
                raise PostfixError(f"{name} did not start (exit {child.code}){hint}: {said}")
            if time.monotonic() > end:
                raise PostfixError(f"{name} took no connection for {_READY:g} s: {self._tail(since)}")
            signals.wait(_POLL)

    def _tail(self, since: int) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(since, os.fstat(file.fileno()).st_size - 4000))
                said = file.read().decode(errors="replace").strip()
        except OSError:
            said = ""
        last = "\n".join(said.splitlines()[-8:])
        return f"{self.log} ends with\n{last}" if last else f"{self.log} says nothing"

    def _note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%b %d %H:%M:%S')} mm4 sandbox[{os.getpid()}]: {text}\n")


def _split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _greets(endpoint: str) -> bool:
    host, port = _split(endpoint)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    try:
        with socket.create_connection((host, port), timeout=2.0) as probe:
            greeted = probe.recv(3) == b"220"
            probe.sendall(b"QUIT\r\n")  # a lost connection would stand in the log
            return greeted
    except OSError:
        return False


def _absolute_files(raw: dict[str, Any], peer: Peer) -> None:
    """Files that a peer's entry names lie beside the given YAML, not beside the effective one."""
    if is_file(peer.dialect):
        raw["dialect"] = peer.dialect
    if isinstance(raw.get("tls"), dict):
        raw["tls"] |= {key: str(getattr(peer.tls, key)) for key in ("ca", "certificate", "key") if key in raw["tls"]}
    if peer.login is not None:
        raw["login"]["password_file"] = peer.login.password_file


def _absolute_routes(routes: Any, given: Config) -> None:
    """What routes name by a path lies beside the given YAML, not beside the effective one."""
    for raw, route in zip(routes or (), given.routes, strict=True):
        if isinstance(route, ReachRoute):
            raw["reach"] = route.reach
        elif isinstance(route, HttpRoute) and route.http.ca is not None:
            raw["http"]["ca"] = route.http.ca
