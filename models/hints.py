"""Words for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" Did you mean 'x'?"``, to follow a sentence; "" where nothing known is near.

    Args:
        name: what was given.
        known: what there is.
        cutoff: how near it must be, from 0 to 1; see :func:`difflib.get_close_matches`.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""
