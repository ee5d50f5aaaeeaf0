"""The verbs that look something up: list, show. See :mod:`.cli`."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from . import listing
from .arguments import Positional, UsageError, changed_recipe
from .recipe import RecipeError
from .terminal import load_tensorflow, new_console, print_json

Kind = Literal["models", "recipes", "data", "ops", "losses", "optimizers", "schedules"]


def list_(
    what: Positional[Kind] = "recipes",
    pattern: Annotated[Positional[str], tyro.conf.arg(metavar="PATTERN")] = "*",
    /,
    *,
    json: bool = False,
) -> None:
    """List recipes, models, data sets, ops, losses, optimizers or schedules.

    Args:
        what: which table to list.
        pattern: a shell pattern the names must match, e.g. 'resnet*'.
        json: print JSON instead of a table.
    """
    rows = {n: row for n, row in listing.tables(what).items() if fnmatch.fnmatch(n, pattern)}
    if json:
        print_json(rows)
        return
    if not rows:
        raise RecipeError(f"No {what} match {pattern!r}. `epochal list {what}` names all.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    for column in next(iter(rows.values())):
        table.add_column(column)
    for name, row in rows.items():
        table.add_row(name, *(f"{v:,}" if isinstance(v, int) and v > 9999 else str(v)
                              for v in row.values()))  # fmt: skip
    new_console().print(table)


def show(
    name: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE|MODEL|RUN")],
    /,
    *,
    keys: bool = False,
    input_shape: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="SIZE...")] = None,
    num_classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    json: bool = False,
    overrides: tyro.conf.Suppress[dict[str, str] | None] = None,
) -> None:
    """Show a recipe, a model (the table for running it in one's head), a run, a file of weights.

    Args:
        name: a recipe, a recipe's JSON file, a model, a run directory, or a file of weights.
        keys: recipe or run: list every key with its type, value and meaning.
        input_shape: model: shape of one example, e.g. 32 32 3.
        num_classes: model: width of its output.
        json: print JSON.
    """
    from ..models import list_models
    from ..models.weight_files import SUFFIXES
    from . import show as show_module
    from .recipes import list_recipes
    from .run import Run

    console = new_console()
    known = name in (*list_recipes(), *list_models())
    is_run = Path(name, "recipe.json").is_file() or (Path(name).is_dir() and not known)
    is_recipe = not is_run and (name in list_recipes() or name.endswith(".json"))
    if (is_run or is_recipe) and (input_shape or num_classes):
        raise UsageError("--input-shape and --num-classes are for models")
    if is_run and overrides:
        raise UsageError(f"--{next(iter(overrides))}: a run's recipe stays as it is")
    if not (is_run or is_recipe) and keys:
        raise UsageError("--keys is for recipes and runs")
    if is_run and not keys:
        show_module.show_run(name, console, as_json=json)
    elif is_run or is_recipe:
        if keys:  # the options of each choice stand in its code
            load_tensorflow()
        recipe = Run(name).recipe if is_run else changed_recipe(name, overrides)
        show_module.show_recipe(recipe, console, with_keys=keys, as_json=json)
    elif Path(name).is_file() or Path(name).suffix.lower() in SUFFIXES:
        load_tensorflow()
        show_module.show_weights(name, console, as_json=json)
    else:
        load_tensorflow()
        show_module.show_model(
            name, console, input_shape=input_shape, num_classes=num_classes,
            options=overrides or {}, as_json=json,
        )  # fmt: skip


VERBS = {"list": list_, "show": show}
