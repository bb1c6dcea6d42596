"""An operator's own Postfix with ordinary mail, and `mm4 serve` beside it: private, on loopback, in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import smtplib
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import LOCAL, SECONDS, NextHop, free_port, mm4, wait_for
from mm4.postfix.instance import Instance

HERE = Path(__file__).parent / "integration" / "t-40-wire"


class Operator:
    """`more` is appended to main.cf. main.cf is a symbolic link, as configuration management leaves it."""

    def __init__(self, folder: Path, *, more: str = "") -> None:
        self.folder, self.etc, self.queue = folder, folder / "etc", folder / "queue"
        self.store, self.mmsc, self.north = NextHop(), NextHop(), NextHop()
        self.ports = {name: free_port() for name in ("ordinary", "login", "again", "listen", "submit")}
        for made in (self.etc, self.queue / "mm4", self.queue / "data", folder / "state", folder / "managed"):
            made.mkdir(parents=True)
        account = pwd.getpwnam("postfix")
        os.chown(self.queue / "data", account.pw_uid, account.pw_gid)
        managed = folder / "managed" / "main.cf"
        managed.write_text(self._filled("operator.cf") + more)
        managed.chmod(0o640)
        os.chown(managed, 0, account.pw_gid)
        (self.etc / "main.cf").symlink_to(managed)
        (self.etc / "master.cf").write_text(self._filled("operator_master.cf"))
        self.yaml = folder / "mm4.yaml"
        self.yaml.write_text(self._filled("mm4.yaml"))
        self.instance = Instance(self.etc)
        self.signer: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None

    def _filled(self, name: str) -> str:
        text = (HERE / name).read_text()
        values = {
            **{key: str(port) for key, port in self.ports.items()},
            "folder": str(self.folder), "etc": str(self.etc), "queue": str(self.queue),
            "store": self.store.hop, "mmsc": self.mmsc.hop, "north": self.north.hop,
        }  # fmt: skip
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        return text

    @contextlib.contextmanager
    def running(self) -> Iterator[Operator]:
        with self.store, self.mmsc, self.north:
            try:
                self.signer = subprocess.Popen([sys.executable, str(HERE / "signer.py"), str(self.queue / "signer.sock")])
                wait_for((self.queue / "signer.sock").exists, "the operator's milter")
                self.serve()
                self.start()
                yield self
            except BaseException:
                print((self.folder / "log").read_text()[-6000:] if (self.folder / "log").exists() else "", file=sys.stderr)
                raise
            finally:
                self.stop()
                self.leave()
                if self.signer:
                    self.signer.kill()
                    self.signer.wait(SECONDS)

    def start(self) -> None:
        self.postfix("start")
        wait_for(lambda: listens(self.ports["ordinary"]), "the operator's Postfix")

    def stop(self) -> None:
        if self.instance.running():
            self.postfix("stop")
            wait_for(lambda: not self.instance.running(), "the end of the operator's Postfix")

    def postfix(self, command: str) -> None:
        quiet = subprocess.DEVNULL  # a pipe would stay open in what is started
        subprocess.run(["postfix", "-c", str(self.etc), command], stdin=quiet, stdout=quiet, stderr=quiet, timeout=60, check=True)

    def serve(self) -> None:
        """Start `mm4 serve`."""
        for name in ("milter", "responder"):
            (self.queue / "mm4" / f"{name}.sock").unlink(missing_ok=True)
        with (self.folder / "serve.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "mm4", "serve", "--config", str(self.yaml)], stdout=log, stderr=log
            )
        wait_for((self.queue / "mm4" / "milter.sock").exists, "mm4 serve")

    def leave(self) -> None:
        """Stop `mm4 serve`."""
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(SECONDS)
            self.daemon = None

    def run(self, *arguments: str, code: int = 0) -> str:
        """`mm4 postfix ...` as an operator calls it, and what it says."""
        done = mm4("postfix", *arguments, "--config", str(self.yaml), check=False, timeout=180)
        log = (self.folder / "log").read_text()[-3000:] if (self.folder / "log").exists() else ""
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}\n{log}"
        return done.stdout + done.stderr

    def told(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The same with --json."""
        return dict(json.loads(self.run(*arguments, "--json", code=code)))

    def files(self) -> dict[str, tuple[Any, ...]]:
        """Everything in the configuration folder and where its links lead: content, mode, owner."""
        found = {}
        for path in [*self.etc.rglob("*"), *(self.folder / "managed").rglob("*")]:
            status = path.lstat()
            content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            found[str(path)] = (content, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, stat.S_IFMT(status.st_mode))
        return found

    def smtp(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def rcpt(self, line: str, address: str, *, source: str = LOCAL) -> int:
        """The code of the reply to RCPT on one of the lines."""
        with smtplib.SMTP("127.0.0.1", self.ports[line], timeout=SECONDS, source_address=(source, 0)) as client:
            client.ehlo("client.test")
            client.docmd("MAIL FROM:<a@operator.example>")
            return client.docmd(f"RCPT TO:<{address}>")[0]


def listens(port: int) -> bool:
    """Whether a line greets there."""
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=5):
            return True
    except OSError:
        return False


def settle(path: Path) -> None:
    """Give a file an old date: Postfix's tools wait for two seconds where one has just changed."""
    os.utime(path, (0, 0))


class edited:
    """A file changed, and afterwards as it was."""

    def __init__(self, path: Path, change: Callable[[str], str]) -> None:
        self.path, self.change = path, change

    def __enter__(self) -> None:
        self.text = self.path.read_text()
        assert self.change(self.text) != self.text
        self.path.write_text(self.change(self.text))
        settle(self.path)

    def __exit__(self, *_: object) -> None:
        self.path.write_text(self.text)
        settle(self.path)
