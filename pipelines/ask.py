"""Asks an exported SavedModel, with TensorFlow alone: no keras, no epochal.

    python ask.py runs/demo/export [IMAGE ...]

Takes the newest version in the directory. Without images it sends the example request that the
export carries in signature.json. This file is what a server or a colleague without our package
needs; copy it.
"""

import base64
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def newest(path: Path) -> Path:
    """The SavedModel in ``path`` itself, or in its sub-directory with the highest number."""
    if (path / "saved_model.pb").is_file():
        return path
    versions = [p for p in path.glob("*") if p.name.isdigit()]
    if not versions:
        sys.exit(f"{path} holds no SavedModel.")
    return max(versions, key=lambda p: int(p.name))


def example(directory: Path) -> dict:
    """The first row of signature.json's example request; base64 becomes bytes."""
    request = json.loads((directory / "signature.json").read_text())["example"]["request"]
    row = request["instances"][0]
    return {
        name: [base64.b64decode(v["b64"]) if isinstance(v, dict) else v] for name, v in row.items()
    }


def main(path: str, *images: str) -> None:
    """Prints what the model answers to each image, or to the example."""
    directory = newest(Path(path))
    # Proof rather than need: an import of either package would fail now. (TensorFlow itself
    # imports keras where it finds it.)
    sys.modules["keras"] = sys.modules["epochal"] = None
    import tensorflow as tf

    model = tf.saved_model.load(str(directory))  # kept: a signature does not hold its model
    signature = model.signatures["serving_default"]
    inputs = {"image_bytes": [Path(i).read_bytes() for i in images]} if images else None
    inputs = inputs or example(directory)
    dtypes = {name: spec.dtype for name, spec in signature.structured_input_signature[1].items()}
    answer = signature(**{name: tf.constant(v, dtypes[name]) for name, v in inputs.items()})

    rows = len(next(iter(inputs.values())))
    for row in range(rows):
        name = images[row] if images else f"the example in {directory / 'signature.json'}"
        if "label" in answer:
            probability = float(tf.reduce_max(answer["probabilities"][row]))
            label = answer["label"][row].numpy().decode()
            print(f"{name}: label {label}, probability {probability:.4f}")
        else:
            values = {k: v[row].numpy().tolist() for k, v in answer.items()}
            print(f"{name}: {values}")
    print(f"answered by {directory} with TensorFlow {tf.__version__} alone")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
