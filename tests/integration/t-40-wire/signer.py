"""Stands in for the operator's DKIM signer: called as `signer.py SOCKET`, it marks every message that it sees."""

import os
import signal
import sys

import Milter


class Signer(Milter.Base):  # type: ignore[misc]
    """Adds X-Test-Signed."""

    def eom(self) -> int:
        self.addheader("X-Test-Signed", "yes")
        return int(Milter.ACCEPT)


if __name__ == "__main__":
    # Postfix connects as its own user.
    os.umask(0)
    Milter.factory = Signer
    Milter.set_flags(Milter.ADDHDRS)
    # libmilter's signal thread ends the loop on SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Milter.runmilter("signer", f"unix:{sys.argv[1]}", timeout=60)
