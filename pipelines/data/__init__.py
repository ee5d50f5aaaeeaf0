"""Element 1: what is learnt from. ``load(recipe.data)`` gives splits, streams and preprocessing."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dataset import Dataset, load
    from .ops import OpsError
    from .preprocess import Preprocess
    from .source import Rows, Source, SourceError

# loaded on first use, so that listing ops or sets loads no TensorFlow
_HOMES = {
    "Dataset": "dataset",
    "load": "dataset",
    "Preprocess": "preprocess",
    "OpsError": "ops",
    "Rows": "source",
    "Source": "source",
    "SourceError": "source",
}
__all__ = ["Dataset", "OpsError", "Preprocess", "Rows", "Source", "SourceError", "load"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
