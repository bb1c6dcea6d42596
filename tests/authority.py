"""Certificates made for one test, and a Dovecot that knows logins: what real TLS and real SASL need.

The certificates come from openssl(1), each with its own key. Dovecot is Debian's, in a folder of its own, on a socket of
its own, and is stopped by its process id.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from harness import SECONDS, wait_for

__all__ = ["Authority", "Dovecot"]

# The first line of dovecot.conf, and where logins are: 2.3 of Debian 12, and from 2.4 of Debian 13 on.
_OLD = (
    "",
    "passdb {\n  driver = passwd-file\n  args = @users@\n}\n"
    "userdb {\n  driver = static\n  args = uid=65534 gid=65534 home=/nonexistent\n}\n",
)
_NEW = (
    "dovecot_config_version = 2.4.0\ndovecot_storage_version = 2.4.0\n",
    "passdb passwd-file {\n  passwd_file_path = @users@\n}\n"
    "userdb static {\n  fields {\n    uid = 65534\n    gid = 65534\n    home = /nonexistent\n  }\n}\n",
)


class Authority:
    """A certification authority in `folder`, and certificates by name: NAME.pem and NAME.key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl("req", "-x509", "-subj", "/CN=Roaming Exchange CA", "-keyout", "ca.key", "-out", "ca.pem")

    def issue(self, name: str, subject: str) -> str:
        """A certificate for the CN `subject` by this authority; its SHA-256 fingerprint."""
        self._openssl("req", "-subj", f"/O=Test/CN={subject}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                  "-days", "2", "-out", f"{name}.pem")  # fmt: skip
        return self.fingerprint(name)

    def self_signed(self, name: str, subject: str) -> str:
        """A certificate that nobody else vouches for; its SHA-256 fingerprint."""
        self._openssl("req", "-x509", "-subj", f"/CN={subject}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
        return self.fingerprint(name)

    def fingerprint(self, name: str) -> str:
        """As openssl prints it."""
        return self._run("x509", "-in", f"{name}.pem", "-noout", "-fingerprint", "-sha256").partition("=")[2].strip()

    def bundle(self, name: str, *parts: str) -> Path:
        """A file with the certificates of this authority and of others by name."""
        path = self.folder / name
        path.write_text("".join((self.folder / f"{part}.pem").read_text() for part in ("ca", *parts)))
        return path

    def context(self, name: str | None) -> ssl.SSLContext:
        """TLS of a client that shows this certificate, or none; whom it talks to does not matter to these tests."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if name is not None:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context

    def _openssl(self, command: str, *arguments: str) -> None:
        days = ("-days", "2") if "-x509" in arguments else ()
        self._run(command, *arguments, *days, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            ["openssl", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, f"openssl {' '.join(arguments)}: {done.stderr}"
        return done.stdout


class Dovecot:
    """Dovecot's authentication alone, with these logins and passwords."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mm4-dovecot-"))
        self.folder.chmod(0o755)
        self.socket = self.folder / "auth"
        (self.folder / "users").write_text("".join(f"{name}:{{PLAIN}}{word}\n" for name, word in passwords.items()))
        account, group = pwd.getpwnam("postfix"), grp.getgrnam("postfix")
        program = shutil.which("dovecot", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert program, "dovecot is not on this host: .ci/setup installs it"
        self.program = program
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        first, databases = _OLD if version.startswith("2.3.") else _NEW
        (self.folder / "dovecot.conf").write_text(
            f"{first}base_dir = {self.folder}/run\nstate_dir = {self.folder}/state\nlog_path = {self.folder}/log\n"
            "protocols =\nlisten = 127.0.0.1\nssl = no\nauth_mechanisms = plain login\nauth_verbose = yes\n"
            f"{databases.replace('@users@', f'{self.folder}/users')}"
            f"service auth {{\n  unix_listener {self.socket} {{\n"
            f"    mode = 0660\n    user = {account.pw_name}\n    group = {group.gr_name}\n  }}\n}}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Dovecot:
        self.process = subprocess.Popen(
            [self.program, "-F", "-c", str(self.folder / "dovecot.conf")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        wait_for(self._ready, "Dovecot's socket")
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            assert self.process.stdout is not None
            log = self.folder / "log"
            said = self.process.stdout.read().decode() + (log.read_text() if log.exists() else "")
            raise AssertionError(f"Dovecot did not start: {said}")
        return self.socket.exists()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(SECONDS)
            finally:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
