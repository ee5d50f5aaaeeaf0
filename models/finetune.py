"""Starting from learnt weights: features of inner layers, frozen stages, a new head.

These work by the names of layers. ``epochal show resnet50`` lists them; the layers of a stage share
the part before the first underscore: ``stem``, ``stage1``, ..., ``outputs``. A name here is that
of a layer or of such a group.

    model = create_model("resnet50", version="v1.5", weights="resnet50.safetensors")
    maps = features(model, ["stage3", "stage4"])       # [n, 14, 14, 1024] and [n, 7, 7, 2048]
    mine = new_head(model, num_classes=12)
    freeze(mine, "stage3")                             # stem to stage3 stay as they are

    create_model("resnet20", weights="runs/simclr-fashion-mnist-1")    # an encoder of SimCLR's
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras

from . import checkpoints
from .hints import did_you_mean


def layer_rates(model: keras.Model, decay: float) -> dict[str, float]:
    """Factors of the learning rate that fall by ``decay`` from each layer to the one below it.

    Layers with a number in their names (``block_3``, ``stage2_1_conv1``, ``fc6``) are counted from
    above, the parts of a stage as one: ``decay`` for the last, ``decay**2`` for the one before it,
    and so on; what stands before them has the smallest rate, what stands behind them, the head, 1.
    Howard and Ruder: Universal language model fine-tuning (2018), section 3.2, have 1 / 2.6.

    Returns:
        {layer's name: factor} of the layers with weights, for an optimizer's ``layer_rates``.

    Raises:
        ValueError: no layer has a number, or decay is out of range.
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"layer_decay is above 0 and at most 1; got {decay!r}.")
    names = [layer.name for layer in model.layers if layer.weights]
    numbered = [re.match(r"[a-z]+_?\d+", name) for name in names]
    groups = list(dict.fromkeys(match[0] for match in numbered if match))
    if not groups:
        raise ValueError(
            f"The layers of {model.name} ({', '.join(names[:6])}) have no numbers, by which "
            "layer_decay would know their order. Leave it out."
        )
    last = max(place for place, match in enumerate(numbered) if match)
    rates, depth = {}, 0
    for place, (name, match) in enumerate(zip(names, numbered, strict=True)):
        depth = groups.index(match[0]) + 1 if match else depth
        rates[name] = 1.0 if place > last else decay ** (len(groups) + 1 - depth)
    return rates


def features(model: keras.Model, names: str | Sequence[str]) -> keras.Model:
    """A model of the same layers and weights that gives inner outputs.

    Args:
        model: a functional model.
        names: of layers, or of groups (see the module), whose last output is meant.

    Returns:
        Model from the same inputs to one output (for one name) or a list of them, each in the
        layer's compute dtype.

    Raises:
        ValueError: a name that the model does not have; the nearest is named.
    """
    if isinstance(names, str):
        outputs = _last(model, names).output
    else:
        outputs = [_last(model, name).output for name in names]
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


def freeze(model: keras.Model, through: str) -> None:
    """No longer trains the layers up to and with this one: their weights stay as they are.

    Frozen batch normalisation uses and keeps its stored statistics, in training too. Compile the
    model after this: Keras fixes what is trained in the first step.

    Raises:
        ValueError: a name that the model does not have, or its last layer's.
    """
    last = model.layers.index(_last(model, through))
    if last == len(model.layers) - 1:
        raise ValueError(
            f"freeze={through!r} would leave nothing to train. Before the last layer come "
            f"{', '.join(_groups(model)[:-1])}."
        )
    for layer in model.layers[: last + 1]:
        layer.trainable = False


def unfreeze(model: keras.Model, since: str | None = None) -> None:
    """Trains all layers again, or those from the first of this name on. Compile after this.

    Raises ValueError for a name that the model does not have.
    """
    first = 0
    if since is not None:
        group = [layer for layer in model.layers if _belongs(layer, since)]
        first = model.layers.index(group[0] if group else _last(model, since))
    for layer in model.layers[first:]:
        layer.trainable = True


def new_head(model: keras.Model, num_classes: int, seed: int | None = None) -> keras.Model:
    """The same layers and weights under a new linear layer for other classes.

    Args:
        model: a model whose last layer is the linear layer ``outputs``.
        num_classes: number of outputs.
        seed: of the new weights, which start as the old layer's did; None draws them from
            ``keras.utils.set_random_seed``.

    Returns:
        A model that shares all layers but the last with the old one.

    Raises:
        ValueError: the model has no such layer.
    """
    old = _last(model, "outputs")
    config = old.get_config() | {"units": num_classes, "trainable": True}
    if "seed" in config["kernel_initializer"]["config"]:
        config["kernel_initializer"]["config"]["seed"] = seed
    outputs = keras.layers.Dense.from_config(config)(old.input)
    return keras.Model(model.input, outputs, name=model.name)


def start_from(
    model: keras.Model, weights: str | None, new_head: bool, through: str | None
) -> keras.Model:
    """What the options ``weights``, ``new_head`` and ``freeze`` of a model mean; returns the model.

    Args:
        model: just built.
        weights: a file of published weights, see :mod:`.checkpoints`; or a SimCLR run (its
            directory, or its ``model.keras``), see :func:`take_encoder`; None for none.
        new_head: leave the file's classifier out.
        through: the last layer or group to freeze; None for none.

    Raises:
        ValueError: weights that do not fit, or options that make no sense together.
    """
    if new_head and weights is None:
        raise ValueError("new_head leaves a file's classifier out: give `weights` with it.")
    if weights is not None and _is_run(weights):
        take_encoder(model, weights)
    elif weights is not None:
        has_head = any(layer.name == "outputs" for layer in model.layers)
        checkpoints.load_weights(model, weights, head=has_head and not new_head)
    if through is not None:
        freeze(model, through)
    return model


def take_encoder(model: keras.Model, path: str | os.PathLike) -> None:
    """Starts a model from what SimCLR has learnt: the follow-up where few images have labels.

    Every layer gets the weights of the encoder's layer of the same name, normalisation statistics
    included; the last layer, which the encoder lacks, stays as it starts.

    Args:
        model: of the architecture and options that the encoder has.
        path: the directory of a SimCLR run, or its ``model.keras``.

    Raises:
        ValueError: there is no such file, it holds no SimCLR, or layers or shapes differ.
    """
    from .simclr import SimCLR

    file = Path(path) / "model.keras" if Path(path).is_dir() else Path(path)
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is no Keras model. Give the directory of a SimCLR run.")
    found = keras.models.load_model(file, compile=False)
    if not isinstance(found, SimCLR):
        raise ValueError(f"{file} holds a {type(found).__name__}, not a SimCLR with an encoder.")
    theirs = {layer.name: layer for layer in found.encoder.layers if layer.weights}
    ours = {layer.name: layer for layer in model.layers[:-1] if layer.weights}
    for name in theirs.keys() ^ ours.keys():
        raise ValueError(_differs(file, found, model, f"one of them has no layer {name!r}"))
    for name, layer in ours.items():
        shapes = [[tuple(w.shape) for w in one.weights] for one in (theirs[name], layer)]
        if shapes[0] != shapes[1]:
            raise ValueError(_differs(file, found, model, f"{name!r} has {shapes[0]}, {shapes[1]}"))
        layer.set_weights(theirs[name].get_weights())


def _differs(file: Path, found, model: keras.Model, what: str) -> str:
    options = found.options
    return (
        f"The encoder of {file} ({options['encoder']} {options['encoder_options'] or ''}, images "
        f"{list(options['input_shape'])}) does not fit into {model.name}: {what}. Use the same "
        "network, options and images."
    )


def _is_run(weights: str | os.PathLike) -> bool:
    return Path(weights).suffix == ".keras" or (Path(weights) / "model.keras").is_file()


def _belongs(layer: keras.Layer, group: str) -> bool:
    return layer.name == group or layer.name.split("_")[0] == group


def _groups(model: keras.Model) -> list[str]:
    names = [layer.name for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    return list(dict.fromkeys(name.split("_")[0] for name in names))


def _last(model: keras.Model, name: str) -> keras.Layer:
    """The layer of this name, or the last of this group: Keras keeps layers in graph order."""
    for layer in reversed(model.layers):
        if layer.name == name:
            return layer
    for layer in reversed(model.layers):
        if _belongs(layer, name):
            return layer
    groups = _groups(model)
    hint = did_you_mean(name, [*groups, *(la.name for la in model.layers)])
    raise ValueError(
        f"The model {model.name!r} has no layer or group {name!r}.{hint} Its groups are "
        f"{', '.join(groups)}."
    )
