"""What is learnt: architectures, layers, losses and optimizers, as ordinary Keras objects.

``list_models``, ``model_card`` and ``create_model`` work by name. The modules (``losses``,
``optimizers``, ``layers``, ...) load on first use: importing this package loads no TensorFlow.
"""

if __name__ != "epochal.models":
    raise ImportError(
        "This folder is the package `epochal.models`, not a top-level module. Install the project "
        "(`pip install -e .` in the checkout) and use `from epochal import models`."
    )

from importlib import import_module
from types import ModuleType

from .registry import create_model, list_models, model_card

_MODULES = (
    "alexnet",
    "attention",
    "beam_search",
    "bert",
    "blocks",
    "callbacks",
    "checkpoints",
    "conformal",
    "contrastive",
    "decoding",
    "dqn",
    "dqn_snapshot",
    "embeddings",
    "finetune",
    "gan",
    "gan_losses",
    "gan_networks",
    "gpt",
    "hints",
    "huggingface",
    "huggingface_config",
    "huggingface_names",
    "keras_optimizers",
    "knn",
    "layers",
    "likelihoods",
    "loss_base",
    "losses",
    "lstm",
    "metrics",
    "mlp",
    "neighbors",
    "optimizers",
    "paper_optimizers",
    "pooling",
    "recurrent",
    "registry",
    "resnet",
    "resnet_cifar",
    "schedules",
    "seq2seq",
    "simclr",
    "spectral",
    "summary",
    "transformer",
    "vocabularies",
    "weight_files",
)
__all__ = ["create_model", "list_models", "model_card"]


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(f"module 'epochal.models' has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
