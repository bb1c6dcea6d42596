"""The mail in one of Postfix's queue files, by Postfix's own `postcat`: the format is nobody else's.

It runs with an empty main.cf: a queue file is read the same way whichever instance wrote it, and on a host whose
Postfix is not set up.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from ..protocol.errors import PostfixError
from .instance import tool

__all__ = ["header_of"]

_TIMEOUT = 60.0


def header_of(path: str) -> bytes:
    """The header of the mail in the queue file `path`, as Postfix would send it, edits of milters included.

    Raises PostfixError, which names the file, where there is no postcat or it finds no mail in it.
    """
    program = tool("postcat")
    with tempfile.TemporaryDirectory(prefix="mm4-postcat-") as folder:
        main_cf = Path(folder) / "main.cf"
        main_cf.touch()
        # Postfix waits up to two seconds for a file that may still be being written.
        os.utime(main_cf, (0, 0))
        try:
            done = subprocess.run(
                [program, "-c", folder, "-h", str(Path(path).absolute())],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise PostfixError(f"{path}: postcat took more than {_TIMEOUT:g} s") from None
    if done.returncode != 0:
        said = "; ".join(done.stderr.decode("utf-8", "replace").splitlines()) or f"exit {done.returncode}"
        raise PostfixError(f"{path}: a queue file that postcat cannot read ({said}); it may be cut")
    if not done.stdout.strip():
        raise PostfixError(f"{path}: a queue file without a mail; Postfix may be writing it, or it is cut")
    return done.stdout
