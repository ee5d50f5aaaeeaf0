"""Rows of ``epochal list``: what can stand in each slot. Loads no TensorFlow."""

from __future__ import annotations

from typing import Any


def tables(what: str) -> dict[str, dict[str, Any]]:
    """Rows of `epochal list WHAT`: name -> columns. Loads no TensorFlow."""
    from ..models import registry

    if what == "models":
        return {
            name: {
                "year": entry.year,
                "parameters": entry.parameters,
                "what it is": entry.summary,
            }
            for name, entry in registry.MODELS.items()
        }
    if what == "recipes":
        from . import recipes

        return {
            name: {"what it is": recipes.describe(name).splitlines()[0]}
            for name in recipes.list_recipes()
        }
    if what == "data":
        from .data import catalog

        return catalog.rows()
    if what == "ops":
        from .data import ops

        return {n: {"acts on": ", ".join(k), "what it does": t} for n, (k, t) in ops.TABLE.items()}
    if what == "benchmarks":
        from . import bench

        return {name: {"what it times": text} for name, text in bench.TABLE.items()}
    table = getattr(registry, what.upper())
    return {name: {"what it is": row[-1]} for name, row in sorted(table.items())}
