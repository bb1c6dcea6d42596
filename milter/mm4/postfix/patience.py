"""How long is waited for the store or the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from ..protocol.errors import StoreError

__all__ = ["within"]

T = TypeVar("T")


async def within(seconds: float, step: Awaitable[T]) -> T:
    """What the step gives; StoreError where it takes longer. A thread that hangs in it is left to itself."""
    try:
        async with asyncio.timeout(seconds):
            return await step
    except TimeoutError:
        raise StoreError(f"no answer from the store in {seconds:g} s") from None
