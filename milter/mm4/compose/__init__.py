"""Sending MMS and reports from an application: composing, handing over, and waiting for the answers.

`compose` makes a forward.REQ, `delivery_report` and `read_report` the reports about one that was received, all as
bytes; `Service.submit` hands them to the MM4 service as a local client's mail. The gateway completes, addresses,
routes and records them; `outcomes` reads in its store what became of each recipient, `wait` until all is known.
docs/compose.md has examples. What is raised is from the tree in `mm4.protocol.errors`.
"""

from .message import compose
from .outcome import Outcome, outcomes, wait
from .part import Part, part_of_file, text_part
from .report import delivery_report, read_report
from .service import Refused, Service, Unreachable, new_id

__all__ = [
    "Outcome",
    "Part",
    "Refused",
    "Service",
    "Unreachable",
    "compose",
    "delivery_report",
    "new_id",
    "outcomes",
    "part_of_file",
    "read_report",
    "text_part",
    "wait",
]
