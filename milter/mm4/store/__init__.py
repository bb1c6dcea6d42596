"""What is remembered of MM4 transactions, so that every RES, report and bounce finds its request.

`Store` is the whole public surface. Whatever it cannot read or write is a `StoreError`, which is temporary:
the peer keeps the message and tries again.
"""

from .store import Store

__all__ = ["Store"]
