"""Published weights, read from local files into the models of this package.

| what | file | into |
|---|---|---|
| ResNet-18 to 152 of torchvision and timm | .safetensors, .npz | resnet18 ... resnet152, "v1.5" |
| AlexNet of torchvision (one tower) | .safetensors, .npz | alexnet-2014 |
| ResNet50, 101, 152 of keras.applications | .h5, .weights.h5 | resnet50, 101, 152, "v1" |

BERT and GPT-2 come as directories: see :mod:`.huggingface`.

Arrays are placed by name, every shape is compared, and nothing may be left over on either side
(PyTorch's ``num_batches_tracked`` alone is dropped). Files of a pickled format are refused: reading
one can run any code. What the two sources have of their own becomes ours exactly:

- PyTorch's kernels [out, in, h, w] become [h, w, in, out]; AlexNet's first dense layer reads maps
  flattened as [c, h, w] there and as [h, w, c] here, so its rows are put in the other order.
- keras.applications has biases b in its convolutions. The normalisation after them takes the mean
  away, so ``mean - b`` as moving mean does the same without them.
- keras.applications' nets take images as blue, green, red. The input channels of the first
  convolution are put in the other order: the model takes red, green, blue, as every source here
  gives them.
- Batch normalisation gets the source's constants: epsilon 1e-5 and 0.9 of the moving averages kept
  a step (PyTorch), 1.001e-5 and 0.99 (keras.applications).

v1 and v1.5 have equal shapes: which of them a file holds follows from where it comes from. So have
variants that differ in layers without weights, such as timm's resnetaa50 and resnetblur50, and
PyTorch files of the v1 layout: nothing in a file tells them from torchvision's ResNet-50.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from .weight_files import Arrays, WeightsError, float32, read, some

log = logging.getLogger(__name__)

_HEAD = "outputs"
_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_CONSTANTS = {"PyTorch": (1e-5, 0.9), "keras.applications": (1.001e-5, 0.99)}  # epsilon, momentum


@dataclass(frozen=True)
class Published:
    """What a file of weights, or a model, looks like: ``str()`` says it in words."""

    architecture: str
    """E.g. "ResNet-101", "AlexNet"."""
    version: str | None
    """"v1", "v1.5" or "v2"; None where there is one only."""
    classes: int | None
    """Outputs of the classifier; None without one."""
    source: str
    """Whose names the file has: "PyTorch" or "keras.applications"."""

    def __str__(self) -> str:
        version = f", {self.version} layout" if self.version else ""
        classes = f"{self.classes} classes" if self.classes else "no classifier"
        return f"{self.architecture}{version}, {classes}"


def identify(path: str | Path) -> Published:
    """What a file looks like: architecture, version, classes.

    >>> str(identify("resnet101.safetensors"))
    'ResNet-101, v1.5 layout, 1000 classes'

    Raises WeightsError for a file that cannot be read or holds no architecture known here.
    """
    return _open(Path(path))[0]


def load_weights(model: keras.Model, path: str | Path, head: bool = True) -> Published:
    """Reads published weights into a model; see the module. Load before compiling.

    Args:
        model: of :mod:`.resnet` or :mod:`.alexnet`, of the architecture that the file holds.
        path: a .safetensors, .npz, .h5 or .weights.h5 file.
        head: False leaves the file's classifier out; the model's own, if any, stays as it is.

    Returns:
        What the file holds.

    Raises:
        WeightsError: the file cannot be read, or does not fit the model; nothing is changed then.
    """
    path = Path(path)
    found, arrays, origin = _open(path)
    variables = {f"{la.name}/{v.name}": v for la in model.layers for v in la.weights}
    mine = Published(*_looks_like({k: tuple(v.shape) for k, v in variables.items()}, model), "")
    if not head:
        arrays = {k: v for k, v in arrays.items() if not k.startswith(f"{_HEAD}/")}
        variables = {k: v for k, v in variables.items() if not k.startswith(f"{_HEAD}/")}
    _check(path, found, arrays, origin, mine, variables, head)
    for name, variable in variables.items():
        variable.assign(arrays[name])
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon, layer.momentum = _CONSTANTS[found.source]
    log.info("weights of %s: %s", path, found)
    return found


def _check(
    path, found: Published, arrays: Arrays, origin, mine: Published, variables, head
) -> None:
    """Raises WeightsError where file and model differ in anything."""
    said = f"{path} looks like {found} ({found.source}'s names); the model is {mine}"
    if found.architecture != mine.architecture:
        raise WeightsError(f"{said}. {_differences(arrays, origin, variables)} {_build(found)}")
    if found.version != mine.version:
        why = "The shapes are equal, the answers would not be"
        if mine.version == "v2":
            why = "The layers are others"
        raise WeightsError(f"{said}. {why}: see epochal.models.resnet. {_build(found)}")
    if head and found.classes != mine.classes:
        raise WeightsError(
            f"{said}. Build it with num_classes={found.classes} (in a recipe the data say how "
            "many), or leave the file's classifier out: load_weights(..., head=False), or the "
            "model option new_head=True."
            if found.classes
            else f"{said}. Keep the model's own: load_weights(..., head=False), or the model "
            "option new_head=True."
        )
    difference = _differences(arrays, origin, variables)
    for first in {"stem_conv/kernel", "conv1/kernel"} & arrays.keys() & variables.keys():
        theirs, ours = arrays[first].shape[2], variables[first].shape[2]
        if theirs != ours:
            raise WeightsError(
                f"{said}. The file is for images of {theirs} channels, the model for {ours}: the "
                "op rgb makes three of one."
            )
    if difference:
        raise WeightsError(f"{said}, but built otherwise. {difference} {_build(found)}")


def _build(found: Published) -> str:
    from .registry import list_models

    name, _, width = found.architecture.partition(" of width ")
    name = "alexnet-2014" if name == "AlexNet" else name.lower().replace("-", "")
    if name not in list_models():
        return "This package has no such network."
    options = {"width": int(width or 0), "version": found.version, "num_classes": found.classes}
    given = "".join(f", {key}={value!r}" for key, value in options.items() if value)
    return f"Build the model that fits: create_model({name!r}{given})."


def _differences(arrays: Arrays, origin: dict[str, str], variables: dict[str, Any]) -> str:
    """What keeps file and model apart, in words; "" where nothing does."""
    extra = [origin[name] for name in arrays if name not in variables]
    missing = [name for name in variables if name not in arrays]
    other = [
        f"{origin[name]} becomes {_by(array.shape)}, the model has {_by(variables[name].shape)}"
        for name, array in arrays.items()
        if name in variables and array.shape != tuple(variables[name].shape)
    ]
    told = [
        (extra, "of the file's arrays have no place in the model"),
        (missing, "of the model's weights are not in the file"),
        (other, "differ in shape"),
    ]
    return " ".join(f"{len(names)} {what} ({some(names)})." for names, what in told if names)


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


# --- What it is, from names of ours and shapes ---------------------------------------------------


def _looks_like(
    shapes: dict[str, tuple[int, ...]], model: keras.Model | None = None
) -> tuple[str, str | None, int | None]:
    """(architecture, version if it is a model's, classes)."""
    classes = shapes[f"{_HEAD}/kernel"][-1] if f"{_HEAD}/kernel" in shapes else None
    if "fc6/kernel" in shapes:
        return "AlexNet", None, classes
    found = [re.fullmatch(r"stage(\d+)_(\d+)_conv(\d)/kernel", name) for name in shapes]
    convolutions = {match.groups() for match in found if match}
    if not convolutions or "stem_conv/kernel" not in shapes:
        return (model.name if model else "nothing known here"), None, classes
    width, standard = shapes["stem_conv/kernel"][-1], 64
    if not any(stage == "4" for stage, *_ in convolutions):
        standard = 16  # for CIFAR
    name = f"ResNet-{len(convolutions) + 2}"
    name += "" if width == standard else f" of width {width}"
    if shapes.get("stage1_1_conv2/kernel", (0, 0, width, width))[2:] != (width, width):
        name = f"ResNeXt or wide {name}"
    return name, _version(model) if model else None, classes


def _version(model: keras.Model) -> str | None:
    layers = {layer.name: layer for layer in model.layers}
    if "stage4_norm" in layers:
        return "v2"
    if "stage2_1_conv3" not in layers:
        return None
    return "v1.5" if layers["stage2_1_conv2"].strides[0] == 2 else "v1"


# --- A file, in our names ---------------------------------------------------


def _open(path: Path) -> tuple[Published, Arrays, dict[str, str]]:
    """(what it is, our names -> arrays as we hold them, our names -> the file's names)."""
    stored = read(path)
    if "layer1.0.conv1.weight" in stored:
        rename, source, version = _torch_resnet, "PyTorch", "v1.5"
    elif "features.0.weight" in stored and "classifier.1.weight" in stored:
        rename, source, version = _torch_alexnet, "PyTorch", None
    elif "conv2_block1_1_conv/kernel" in stored:
        rename, source, version = _keras_resnet, "keras.applications", "v1"
    else:
        raise WeightsError(
            f"{path} holds no architecture known here. Its {len(stored)} arrays are called "
            f"{some(list(stored))}; known are the names of torchvision's and timm's ResNets, of "
            "torchvision's AlexNet, and of keras.applications' ResNet50, 101 and 152."
        )
    arrays, origin, unknown = {}, {}, []
    for name, array in stored.items():
        ours = rename(name)
        if ours is not None:
            arrays[ours], origin[ours] = float32(path, name, array), name
        elif not name.endswith("num_batches_tracked"):
            unknown.append(name)
    arrays = _from_torch(arrays) if source == "PyTorch" else _without_biases(arrays)
    architecture, _, classes = _looks_like({name: array.shape for name, array in arrays.items()})
    if unknown:
        raise WeightsError(
            f"{path} has the names of a {architecture} ({source}), and {len(unknown)} more "
            f"({some(unknown)}): a variant that this package does not have. Take the weights of "
            "the plain architecture."
        )
    if "stage1_1_conv3/kernel" not in arrays and version == "v1.5":
        version = None  # blocks of two layers
    return Published(architecture, version, classes, source), arrays, origin


# --- The names of the sources: one of theirs -> ours, or None -------------------------------------


def _torch_resnet(name: str) -> str | None:
    module, _, attribute = name.rpartition(".")
    layer = {"conv1": "stem_conv", "bn1": "stem_norm", "fc": _HEAD}.get(module)
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)", module):
        stage, block, kind, number = match.groups()
        if kind == "downsample.":
            part = {"0": "shortcut", "1": "shortcut_norm"}.get(number, "?")
        else:
            part = ("conv" if kind == "conv" else "norm") + number
        layer = f"stage{stage}_{int(block) + 1}_{part}"
    if layer is None:
        return None
    if "norm" in layer:
        variable = _NORM.get(attribute)
    else:
        variable = {"weight": "kernel", "bias": "bias"}.get(attribute)
    return f"{layer}/{variable}" if variable else None


def _torch_alexnet(name: str) -> str | None:
    module, _, attribute = name.rpartition(".")
    layer = {
        "features.0": "conv1",
        "features.3": "conv2",
        "features.6": "conv3",
        "features.8": "conv4",
        "features.10": "conv5",
        "classifier.1": "fc6",
        "classifier.4": "fc7",
        "classifier.6": _HEAD,
    }.get(module)
    variable = {"weight": "kernel", "bias": "bias"}.get(attribute)
    return f"{layer}/{variable}" if layer and variable else None


def _keras_resnet(name: str) -> str | None:
    module, _, variable = name.partition("/")
    layer = {"conv1_conv": "stem_conv", "conv1_bn": "stem_norm"}.get(module)
    if module in ("predictions", "probs"):
        layer = _HEAD
    if match := re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", module):
        stage, block, number, kind = match.groups()
        if number == "0":
            part = "shortcut" if kind == "conv" else "shortcut_norm"
        else:
            part = ("conv" if kind == "conv" else "norm") + number
        layer = f"stage{int(stage) - 1}_{block}_{part}"
    return f"{layer}/{variable}" if layer else None


# --- The values of the sources -> ours ------------------------------------------------------------


def _from_torch(arrays: Arrays) -> Arrays:
    found = {}
    for name, array in arrays.items():
        if array.ndim == 4:  # [out, in, h, w]
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:
            array = array.T
        found[name] = array
    if {"conv5/kernel", "fc6/kernel"} <= found.keys():  # fc6 reads flattened maps [c, h, w]
        kernel, channels = found["fc6/kernel"], found["conv5/kernel"].shape[-1]
        side = math.isqrt(len(kernel) // channels)
        if channels * side**2 == len(kernel):
            maps = kernel.reshape(channels, side, side, -1)
            found["fc6/kernel"] = maps.transpose(1, 2, 0, 3).reshape(kernel.shape)
    return found


def _without_biases(arrays: Arrays) -> Arrays:
    """Takes each convolution's bias out of the moving mean after it; red comes first."""
    found = dict(arrays)
    for name in arrays:
        layer, _, variable = name.partition("/")
        norm = f"{layer}_norm" if layer.endswith("shortcut") else layer.replace("conv", "norm")
        mean = f"{norm}/moving_mean"
        if variable == "bias" and layer != _HEAD and mean in arrays:
            found[mean] = arrays[mean] - found.pop(name)
    if "stem_conv/kernel" in found:
        found["stem_conv/kernel"] = found["stem_conv/kernel"][:, :, ::-1]
    return found
