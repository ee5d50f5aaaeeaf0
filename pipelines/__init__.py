"""How models are trained, measured, searched, exported and served.

The functions below are the verbs of the command line; they load on first use, so that listing
recipes needs no TensorFlow.
"""

if __name__ != "epochal.pipelines":
    raise ImportError(
        "This folder is the package `epochal.pipelines`, not a top-level module. Install the "
        "project (`pip install -e .` in the checkout) and use `from epochal import pipelines`."
    )

import sys
from importlib import import_module
from types import ModuleType

_EXPORTS = {
    "Algorithm": ".recipe",
    "ablate": ".ablate",
    "crossval": ".crossval",
    "ensemble": ".ensemble",
    "Choice": ".recipe",
    "choose": ".prompting",
    "Data": ".recipe",
    "EarlyStopping": ".recipe",
    "Generation": ".generation",
    "Recipe": ".recipe",
    "RecipeError": ".recipe",
    "Run": ".run",
    "RunError": ".run",
    "evaluate": ".evaluate",
    "few_labels": ".few_labels",
    "few_shot": ".prompting",
    "export": ".export",
    "get_recipe": ".recipes",
    "likelihood": ".prompting",
    "list_recipes": ".recipes",
    "override": ".recipe",
    "predict": ".predict",
    "train": ".train",
    "tune": ".tune",
}
__all__ = sorted(_EXPORTS)


class _Package(ModuleType):
    """``epochal.pipelines.train`` is the verb, whoever imported the module of that name first."""

    def __setattr__(self, name, value):
        if isinstance(value, ModuleType) and _EXPORTS.get(name) == f".{name}":
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __getattr__(self, name):
        if name not in _EXPORTS:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(import_module(_EXPORTS[name], self.__name__), name)

    def __dir__(self):
        return sorted({*super().__dir__(), *_EXPORTS})


sys.modules[__name__].__class__ = _Package
