"""systemd's readiness protocol (sd_notify(3)): one datagram to the socket that the service manager named."""

from __future__ import annotations

import contextlib
import os
import socket
import time

__all__ = ["notify"]


def notify(state: str) -> None:
    """Tell systemd, where there is one. Reloading carries the clock, as Type=notify-reload asks."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if state == "RELOADING=1":
        state += f"\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
