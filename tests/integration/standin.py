"""In the place of `mm4 serve`, for tests of Postfix's side alone: a milter that accepts everything.

Called as `standin.py SOCKETS [refuse]`. It ends on SIGTERM; with `refuse` at once, as for a bad configuration.
"""

import os
import signal
import sys
from pathlib import Path

import Milter

if __name__ == "__main__":
    sockets = Path(sys.argv[1])
    if "refuse" in sys.argv[2:]:
        sys.stderr.write("standin: the configuration is refused\n")
        sys.exit(78)
    os.umask(0)
    Milter.factory = Milter.Base
    Milter.set_exception_policy(Milter.TEMPFAIL)
    # libmilter's signal thread ends the loop on SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stderr.write(f"standin: started, process {os.getpid()}\n")
    Milter.runmilter("standin", f"unix:{sockets / 'milter.sock'}", timeout=60)
