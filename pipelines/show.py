"""What ``epochal show`` prints: a recipe's four slots, a model's table, a run's outcome."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..models.hints import did_you_mean
from . import recipes
from .recipe import Choice, Recipe, RecipeError, keys


def show_recipe(recipe: Recipe, console: Console, *, with_keys: bool, as_json: bool) -> None:
    """The header, the four slots, and for a CSV file its columns; or every key with its meaning."""
    if as_json:
        sys.stdout.write(recipe.to_json())
        return
    if with_keys:
        _show_keys(recipe, console)
        return
    if header := recipes.describe(recipe.name):
        console.print(header + "\n", highlight=False, markup=False)
    defaults = {slot: _defaults(getattr(recipe, slot)) for slot in ("data", "algorithm")}
    for slot in ("data", "model", "loss", "algorithm"):
        value = getattr(recipe, slot)
        if isinstance(value, Choice):
            console.print(Text.assemble((f"{slot:<10}", "bold"), f" {value}"))
            continue
        console.print(Text(slot, "bold"))
        for key, field in value:
            if key not in defaults[slot] or field != defaults[slot][key]:
                console.print(f"  {key:<22} {_short(field)}", highlight=False, markup=False)
    console.print(Text.assemble((f"{'seed':<10}", "bold"), f" {recipe.seed}"))
    if recipe.data.source.startswith(("csv:", "series:")):
        _show_columns(recipe, console)


def _defaults(part) -> dict[str, Any]:
    return {
        name: field.default
        for name, field in type(part).model_fields.items()
        if not field.is_required()
    }


def _short(value: Any) -> str:
    if hasattr(value, "model_dump") and not isinstance(value, Choice):
        return ", ".join(f"{k}={v}" for k, v in value)
    return str(value)


def _show_keys(recipe: Recipe, console: Console) -> None:
    from . import choices

    rows: list[tuple[str, ...]] = []
    kinds = {"model": "models", "loss": "losses", "algorithm.optimizer": "optimizers",
             "algorithm.schedule": "schedules"}  # fmt: skip
    for key, (kind, meaning) in keys().items():
        value = _lookup(recipe, key)
        rows.append((key, kind, _short(value), meaning))
        if key in kinds:
            choice = _lookup(recipe, key)
            for option, default in choices.options(kinds[key], choice.name).items():
                required = default is inspect.Parameter.empty
                shown = choice.options.get(option, "(must be given)" if required else default)
                rows.append((f"{key}.{option}", "option", str(shown), f"of {choice.name}"))
    if not console.is_terminal and "COLUMNS" not in os.environ:  # in a pipe: a line for each key
        wide = max(len(row[0]) for row in rows)
        for key, *cells in rows:
            console.print(
                f"{key:<{wide}}  {'  '.join(cells)}", highlight=False, markup=False, soft_wrap=True
            )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    # types and values are short but for a few, which would leave no room for the meaning
    widths = {"type": max(6, console.width // 8), "value": max(8, console.width // 5)}
    for column in ("key", "type", "value", "meaning"):
        table.add_column(
            column, overflow="fold", no_wrap=column == "key", max_width=widths.get(column)
        )
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def _lookup(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part, None)
    return value


def _show_columns(recipe: Recipe, console: Console) -> None:
    from .data.source import SourceError, open_source

    try:
        source = open_source(recipe.data)
    except SourceError as error:
        console.print(f"\ncolumns: {error}", highlight=False, markup=False)
        return
    console.print()
    print_columns(source.about["columns"], source.target_name, console)


def print_columns(columns: dict[str, dict], target: str, console: Console) -> None:
    """A table's columns: type, missing values, range or categories, meaning."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    fields = list(dict.fromkeys(field for column in columns.values() for field in column))
    for column in ("column", *fields):
        table.add_column(column, overflow="fold")
    for name, column in columns.items():
        shown = f"{name} (target)" if name == target else name
        table.add_row(shown, *(_cell(column.get(field)) for field in fields))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} ({v})" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def show_model(
    name: str,
    console: Console,
    *,
    input_shape: tuple[int, ...] | None,
    num_classes: int | None,
    options: dict[str, str],
    as_json: bool,
) -> None:
    """The table for running a model in one's head: shapes, parameters, multiply-adds, memory."""
    from ..models import registry
    from . import choices
    from .recipe_base import literal, parse_choice

    choice = Choice.model_validate(parse_choice(name))
    if choice.name not in registry.MODELS:
        known = [*recipes.list_recipes(), *registry.MODELS]
        hint = did_you_mean(name, known, 0.4)
        raise RecipeError(f"There is no recipe, model or run directory {name!r}.{hint}")
    from ..models.summary import table

    entry = registry.MODELS[choice.name]
    options = {key.removeprefix("model."): literal(value) for key, value in options.items()}
    choice = Choice(name=choice.name, **(choice.options | options))
    choices.check("models", choice)
    given = {"input_shape": input_shape, "num_classes": num_classes}
    arguments = entry.example | {k: v for k, v in given.items() if v is not None} | choice.options
    try:
        model = registry.create_model(choice.name, **arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{choice.name}: {error}") from None
    summary = table(model)
    if as_json:
        totals = ("parameters", "trainable", "multiply_adds", "activation_bytes")
        content = dataclasses.asdict(summary) | {
            "total": {name: getattr(summary, name) for name in totals}
        }
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return
    shown = ", ".join(f"{k}={v}" for k, v in arguments.items())
    console.print(f"{choice.name}({shown})\n{entry.paper}\n", highlight=False, markup=False)
    console.print(summary.to_text(), highlight=False, markup=False, soft_wrap=True)


def show_weights(path: str, console: Console, *, as_json: bool) -> None:
    """What a file of published weights looks like."""
    from ..models.checkpoints import identify

    found = identify(path)
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found), indent=2) + "\n")
    else:
        console.print(f"{path}: {found} ({found.source}'s names)", highlight=False, soft_wrap=True)


def show_run(path: str, console: Console, *, as_json: bool) -> None:
    """A run's outcome: the model card where it is finished, else how far it has come."""
    from .run import Run

    run = Run(path)
    if as_json:
        content = {"recipe": run.recipe.model_dump(mode="json"), "finished": run.finished}
        content |= {"dataset": run.dataset} if (run.path / "dataset.json").is_file() else {}
        content |= {"metrics": run.metrics} if run.finished else {"history": run.history}
        sys.stdout.write(json.dumps(content, indent=2, default=str) + "\n")
        return
    card = run.path / "README.md"
    if card.is_file():
        from rich.markdown import Markdown

        console.print(Markdown(card.read_text()))
    else:
        console.print(
            f"{run.recipe.name}: {len(run.history)} epochs done; {run.state}", highlight=False
        )
    columns = run.dataset.get("about", {}).get("columns") if run.finished else None
    if columns:
        print_columns(columns, run.dataset["target"], console)
