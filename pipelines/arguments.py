"""What the verbs of the command line take: kinds of arguments, and a recipe with its changes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
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


def unknown_option(verb: Callable, name: str) -> UsageError:
    """The error for an option that a verb lacks; names the nearest that it has."""
    flags = [name.replace("_", "-") for name in inspect.signature(verb).parameters]
    near = difflib.get_close_matches(name, flags, n=1)
    hint = f" (did you mean --{near[0]}?)" if near else ""
    return UsageError(f"unknown option --{name}{hint}")
