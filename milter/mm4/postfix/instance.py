"""One Postfix instance, known by its configuration folder, through Postfix's own tools.

Every call runs one of Postfix's commands with `-c FOLDER`, so that no other instance on
the host is read or touched. What a tool says on failure is what the PostfixError says.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..protocol.errors import PostfixError

__all__ = ["Instance", "tool"]

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_TIMEOUT = 60.0  # seconds; `postfix check` on a large queue takes a few


def tool(name: str) -> str:
    """The full path of one of Postfix's commands. Raises PostfixError that names the package to install."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")
    if found is None:
        raise PostfixError(f"{name} is not on this host: install Postfix (Debian: apt-get install postfix)")
    return found


class Instance:
    """A Postfix whose main.cf and master.cf lie in `folder`."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def values(self, *names: str) -> dict[str, str]:
        """Values of main.cf parameters with macros expanded; of those set in main.cf where no name is given.

        Names that this Postfix does not know are left out. Raises PostfixError.
        """
        return self._parameters("-x", *(names or ("-n",)))

    def raw(self, *names: str) -> dict[str, str]:
        """As `values`, as written: `$relay_domains` stays. Raises PostfixError."""
        return self._parameters(*(names or ("-n",)))

    def defaults(self, *names: str) -> dict[str, str]:
        """As `raw`, what Postfix has where main.cf says nothing. Raises PostfixError."""
        return self._parameters("-d", *names)

    def _parameters(self, *arguments: str) -> dict[str, str]:
        pairs = (line.partition(" =") for line in self._run("postconf", *arguments).stdout.splitlines())
        return {name: value.strip() for name, equals, value in pairs if equals}

    def warnings(self) -> list[str]:
        """What postconf has to say about main.cf and master.cf: unknown or overridden parameters, syntax."""
        said = [self._run("postconf", option).stderr for option in ("-n", "-P", "-M")]
        return list(dict.fromkeys(line for text in said for line in text.splitlines() if line.strip()))

    def services(self) -> list[str]:
        """The lines of master.cf, one a service, in one line each. Raises PostfixError."""
        return self._run("postconf", "-Mf").stdout.replace("\n    ", " ").splitlines()

    def check(self) -> list[str]:
        """Run `postfix check`, which makes missing queue folders; its complaints. Raises PostfixError if it fails.

        They go to Postfix's log too.
        """
        # What it finds goes to the log alone, unless its stderr is a terminal.
        try:
            ours, theirs = os.openpty()
        except OSError:  # a container without devpts: what it finds is in the log, and the exit code is here
            return self._run("postfix", "check").stderr.splitlines()
        command = [tool("postfix"), "-c", str(self.folder), "check"]
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
            os.close(theirs)
            said = b""
            # A terminal whose other end is closed gives EIO, not an end of file.
            with contextlib.suppress(OSError):
                while part := terminal.read(4096):
                    said += part
            code = process.wait(_TIMEOUT)
        lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
        if code != 0:
            raise PostfixError(f"{' '.join(command)}: {'; '.join(lines) or f'exit {code}'}")
        return lines

    def version(self) -> tuple[int, int]:
        """Major and minor, for example (3, 7). Raises PostfixError."""
        text = self._run("postconf", "-d", "mail_version").stdout.partition("=")[2].strip()
        major, minor = text.split(".")[:2]
        return int(major), int(minor)

    def running(self) -> bool:
        """Whether this instance's master runs."""
        return self._run("postfix", "status", accept=(0, 1)).returncode == 0

    def reload(self) -> None:
        """Make a running instance read its files again; no session is cut. Raises PostfixError."""
        self._run("postfix", "reload")

    def flush(self, site: str) -> None:
        """Try what waits for `site` at once; only for domains in fast_flush_domains. Raises PostfixError."""
        self._run("postqueue", "-s", site)

    def queue(self) -> Iterator[dict[str, Any]]:
        """Every message in the queue, as `postqueue -j` writes it, one by one as it comes. Raises PostfixError."""
        command = [tool("postqueue"), "-c", str(self.folder), "-j"]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    yield json.loads(line.decode("utf-8", "replace"))
                code = process.wait(_TIMEOUT)
            finally:
                process.stdout.close()
                if process.poll() is None:  # whoever reads has seen enough
                    process.kill()
                    process.wait()
            if code != 0:
                said.seek(0)
                text = said.read().decode("utf-8", "replace").strip() or f"exit {code}"
                raise PostfixError(f"{' '.join(command)}: {text}")

    def deliver(self, queue_id: str) -> None:
        """Try one message at once, whatever its next try is planned for. Raises PostfixError."""
        self._run("postqueue", "-i", queue_id)

    def deliver_all(self) -> None:
        """Try everything that waits at once. Raises PostfixError."""
        self._run("postqueue", "-f")

    def hold(self, queue_id: str) -> bool:
        """Keep one message from being delivered until it is released; False where it is gone. Only for root."""
        return self._super("-h", queue_id)

    def release(self, queue_id: str) -> bool:
        """Take one message off hold, into the deferred queue; False where it was not on hold. Only for root."""
        return self._super("-H", queue_id)

    def content(self, queue_id: str) -> str:
        """Envelope and header of one message in the queue, by `postcat`. Only for root. Raises PostfixError."""
        return self._run("postcat", "-eh", "-q", queue_id).stdout

    def _super(self, option: str, queue_id: str) -> bool:
        # Exit 0 whether it found the message or not; only what it says tells.
        said = self._run("postsuper", option, queue_id).stderr
        return re.search(r"(Placed on hold|Released from hold): [1-9]", said) is not None

    def expire(self, queue_ids: Iterable[str]) -> None:
        """Have these messages returned to their senders at their next delivery; ids that are gone are passed over.

        Needs root and Postfix 3.5. Raises PostfixError.
        """
        self._run("postsuper", "-e", "-", given="".join(f"{queue_id}\n" for queue_id in queue_ids))

    def lookup(self, table: str, key: str) -> str | None:
        """What `table` (type:name) has for `key`, by `postmap -q`; None where it has nothing.

        Raises PostfixError where the table cannot be read.
        """
        done = self._run("postmap", "-q", key, table, accept=(0, 1))
        if done.returncode == 1 and done.stderr.strip():
            raise PostfixError(f"{table}: {done.stderr.strip()}")
        return done.stdout.rstrip("\n") if done.returncode == 0 else None

    def _run(
        self, name: str, *arguments: str, accept: Iterable[int] = (0,), given: str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [tool(name), "-c", str(self.folder), *arguments]
        try:
            done = subprocess.run(
                command,
                input=given,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PostfixError(f"{' '.join(command)} took more than {_TIMEOUT:g} s") from None
        if done.returncode not in accept:
            said = (done.stderr or done.stdout).strip() or f"exit {done.returncode}"
            raise PostfixError(f"{' '.join(command)}: {said}")
        return done
