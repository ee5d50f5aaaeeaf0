"""The epoch-making architectures of deep learning, 2012-2020, on Keras and TensorFlow.

``epochal.models`` holds what is learnt (architectures, layers, losses, optimizers), as ordinary
Keras objects; ``epochal.pipelines`` holds how (data, recipes, training, evaluation, export).
The names below load on first use, so that ``import epochal`` stays free of TensorFlow.
"""

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "create_model": "epochal.models",
    "list_models": "epochal.models",
    "model_card": "epochal.models",
    "Recipe": "epochal.pipelines",
    "ablate": "epochal.pipelines",
    "crossval": "epochal.pipelines",
    "ensemble": "epochal.pipelines",
    "evaluate": "epochal.pipelines",
    "export": "epochal.pipelines",
    "get_recipe": "epochal.pipelines",
    "list_recipes": "epochal.pipelines",
    "override": "epochal.pipelines",
    "predict": "epochal.pipelines",
    "train": "epochal.pipelines",
    "tune": "epochal.pipelines",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'epochal' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
