"""Preprocessing as a readable chain: ``"random_crop(32, padding=4)|flip_lr|standardize"``.

This module knows names, parses chains, and loads no TensorFlow; the ops live in ``image`` and
``tabular`` beside it. ``TABLE`` is plain so that ``epochal list ops`` is instant; a test holds it
against the code.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass, field
from typing import Any

# name -> (kinds of data it acts on, one line)
TABLE: dict[str, tuple[tuple[str, ...], str]] = {}


class OpsError(ValueError):
    """A chain that cannot be read or built. The message says what to do."""


@dataclass(frozen=True)
class Step:
    """One op of a chain: its name and literal arguments."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def parse(chain: str) -> tuple[Step, ...]:
    """``"pad(4)|flip_lr"`` -> steps. Arguments are Python literals. Raises OpsError."""
    steps = []
    for text in filter(None, (part.strip() for part in _split(chain))):
        try:
            node = ast.parse(text, mode="eval").body
            call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
            if not isinstance(call.func, ast.Name):
                raise ValueError("not a name")
            args = tuple(ast.literal_eval(a) for a in call.args)
            kwargs = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            if None in kwargs:
                raise ValueError("`**` is not allowed")
        except (SyntaxError, ValueError) as error:
            raise OpsError(
                f"Cannot read the op {text!r} in the chain {chain!r} ({error}). Write ops as "
                "name or name(literal, option=literal), separated by `|`."
            ) from None
        name = call.func.id
        if name not in TABLE:
            near = difflib.get_close_matches(name, TABLE, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OpsError(f"There is no op {name!r}.{hint} `epochal list ops` names them all.")
        steps.append(Step(name, args, kwargs))
    return tuple(steps)


def _split(chain: str) -> list[str]:
    """Splits at `|` outside of quotes."""
    parts, quote, start = [], None, 0
    for position, character in enumerate(chain):
        if quote:
            quote = None if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "|":
            parts.append(chain[start:position])
            start = position + 1
    return [*parts, chain[start:]]
