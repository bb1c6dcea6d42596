"""A milter that comes after the gateway's, as a virus scanner would: called as `later.py SOCKET`.

What it says at the end of a message stands in the message's own X-Test-Later header; without one it accepts.
"""

import os
import signal
import sys
from typing import Any

import Milter


class Later(Milter.Base):  # type: ignore[misc]
    """Does at the end of data what the message asks for."""

    @Milter.noreply  # type: ignore[untyped-decorator]
    def envfrom(self, *_: str) -> int:
        self.wish = ""
        return int(Milter.CONTINUE)

    @Milter.noreply  # type: ignore[untyped-decorator]
    def header(self, name: str, value: str) -> int:
        if name.lower() == "x-test-later":
            self.wish = value.strip()
        return int(Milter.CONTINUE)

    def eom(self) -> int:
        if self.wish == "hold":
            self.quarantine("looked at by hand")
        if self.wish in ("554", "451"):
            self.setreply(self.wish, f"{self.wish[0]}.7.1", "The later milter says no")
        verdicts: dict[str, Any] = {"554": Milter.REJECT, "451": Milter.TEMPFAIL, "discard": Milter.DISCARD}
        return int(verdicts.get(self.wish, Milter.ACCEPT))


if __name__ == "__main__":
    # Postfix connects as its own user.
    os.umask(0)
    Milter.factory = Later
    Milter.set_flags(Milter.QUARANTINE)
    # libmilter's signal thread ends the loop on SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Milter.runmilter("later", f"unix:{sys.argv[1]}", timeout=60)
