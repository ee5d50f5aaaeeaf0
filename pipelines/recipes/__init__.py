"""Recipes by name. Each is a function that returns a Recipe; its docstring is the header:
hardware, minutes, the metric that was measured with its spread, and the command."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ...models.hints import did_you_mean
from ..recipe import Recipe, RecipeError

# one or two files a milestone
_MODULES = (
    "alexnet", "bert", "dqn", "gan", "gpt", "knn", "lstm", "mlp", "resnet", "resnet_imagenet",
    "seq2seq", "simclr", "transformer",
)  # fmt: skip
_FUNCTIONS: dict[str, Callable[[], Recipe]] = {}
_SPACES: dict[str, tuple[str, ...]] = {}


def recipe(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Registers ``mlp_digits`` as the recipe ``mlp-digits``."""
    _FUNCTIONS[function.__name__.replace("_", "-")] = function
    return function


def searches(*entries: str) -> Callable:
    """Declares what ``tune`` searches where it is told nothing else; see :mod:`..space`."""

    def declare(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
        _SPACES[function.__name__.replace("_", "-")] = entries
        return function

    return declare


def search_space(name: str) -> list[str]:
    """The entries that a recipe declares. Raises RecipeError where it declares none."""
    _functions()
    if name not in _SPACES:
        raise RecipeError(
            f"The recipe {name!r} declares no search space. Give one: --space "
            "'algorithm.optimizer.learning_rate=log(1e-4,1e-1)', once for each key."
        )
    return list(_SPACES[name])


def _functions() -> dict[str, Callable[[], Recipe]]:
    for module in _MODULES:
        import_module(f".{module}", __name__)
    return _FUNCTIONS


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of recipes that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_functions(), pattern))


def describe(name: str) -> str:
    """A recipe's header: what it is, hardware, minutes, measured metric, command."""
    if name not in _functions():
        return ""
    return inspect.cleandoc(_functions()[name].__doc__ or "")


def get_recipe(name: str) -> Recipe:
    """A recipe by name, or from a JSON file (a path that ends in ``.json``).

    Raises RecipeError, naming the nearest recipe, where there is none of that name.
    """
    if name.endswith(".json"):
        if not Path(name).is_file():
            raise RecipeError(f"There is no recipe file {name}.")
        try:
            return Recipe.from_json(Path(name).read_text())
        except (OSError, ValueError) as error:  # also a RecipeError, or bytes that are no text
            raise RecipeError(f"{name} cannot be read: {error}") from None
    file = Path(name, "recipe.json")
    functions = _functions()
    if name not in functions:
        if file.is_file():
            raise RecipeError(
                f"{name} is a run, not a recipe. `epochal train {file} --run-dir {name}` goes on "
                "with it; without --run-dir its recipe is trained anew."
            )
        hint = did_you_mean(name, functions, 0.4)
        raise RecipeError(f"There is no recipe {name!r}.{hint} `epochal list recipes` names all.")
    return functions[name]()
