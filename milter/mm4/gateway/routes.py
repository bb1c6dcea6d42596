"""Where numbers go that we do not serve, as the configuration describes it."""

from __future__ import annotations

from pydantic import Field

from .entries import Prefix, Text
from .section import Section

__all__ = ["PrefixRoute"]


class PrefixRoute(Section):
    """Numbers that begin so go to this peer; the first route that fits wins."""

    prefix: Prefix = Field(description='Beginning of the E.164 number; "+" is every number.')
    peer: Text = Field(description="Name of a peer.")
