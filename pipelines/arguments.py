"""What the verbs of the command line take: kinds of arguments, and a recipe with its changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from .recipe import Recipe, override

Positional = tyro.conf.Positional
# What help and errors call an argument, in place of its type.
RunName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
RecipeName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
Directory = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]


class UsageError(Exception):
    """The command line makes no sense; exit code 2."""


def changed_recipe(name: str, overrides: dict[str, str] | None) -> Recipe:
    """A recipe by name or from a JSON file, with dotted keys changed."""
    from .recipes import get_recipe

    return override(get_recipe(name), overrides or {})
