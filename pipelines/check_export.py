"""Asks SavedModels a question in a process that has TensorFlow alone.

    python -I check_export.py DIRECTORY REQUEST.npz ANSWER.npz [DIRECTORY REQUEST ANSWER ...]

Run as a file of its own: it imports the standard library, NumPy and TensorFlow, and refuses
everything that could lend a SavedModel what it lacks (Keras, which TensorFlow would import by
itself, this package, libraries of custom operations). REQUEST.npz holds ``SIGNATURE/INPUT`` arrays
(see :func:`pack`), ANSWER.npz gets ``SIGNATURE/OUTPUT`` for the whole batch, and
``SIGNATURE/OUTPUT#alone`` for every row asked by itself.
"""

import os
import sys

import numpy as np

REFUSED = ("keras", "tf_keras", "epochal", "tensorflow_text", "tensorflow_addons",
           "tensorflow_datasets", "keras_tuner")  # fmt: skip


def pack(arrays: dict) -> dict:
    """Arrays -> arrays that an .npz takes without pickle.

    Byte strings become two arrays, ``NAME#bytes`` (uint8, end to end) and ``NAME#lengths``
    (with the array's shape): NumPy's own byte strings would lose zeros at their ends.
    """
    packed = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind in "OSU":
            texts = [t.encode() if isinstance(t, str) else bytes(t) for t in array.ravel()]
            packed[f"{name}#bytes"] = np.frombuffer(b"".join(texts), np.uint8)
            lengths = np.array([len(text) for text in texts], np.int64)
            packed[f"{name}#lengths"] = lengths.reshape(array.shape)
        else:
            packed[name] = array
    return packed


def unpack(packed) -> dict:
    """What :func:`pack` was given, strings as bytes in object arrays."""
    arrays = {}
    for name in packed:
        if name.endswith("#bytes"):
            continue
        if name.endswith("#lengths"):
            stem = name.removesuffix("#lengths")
            ends = np.cumsum(packed[name].ravel())
            blob = packed[f"{stem}#bytes"].tobytes()
            texts = np.empty(len(ends), object)
            texts[:] = [
                blob[end - length : end]
                for end, length in zip(ends, packed[name].ravel(), strict=True)
            ]
            arrays[stem] = texts.reshape(packed[name].shape)
        else:
            arrays[name] = packed[name]
    return arrays


def ask(directory: str, request: dict) -> dict:
    """Loads a SavedModel and calls the signatures that the request names.

    Args:
        directory: the SavedModel.
        request: ``SIGNATURE/INPUT`` -> array [n, ...].

    Returns:
        ``SIGNATURE/OUTPUT`` -> array [n, ...], and the same with ``#alone`` from n requests of one
        row each.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(directory)  # kept: its functions do not keep it alive
    answer = {}
    for signature in dict.fromkeys(key.split("/")[0] for key in request):
        function = loaded.signatures[signature]
        inputs = {
            key.split("/", 1)[1]: value
            for key, value in request.items()
            if key.startswith(f"{signature}/")
        }
        rows = len(next(iter(inputs.values())))
        whole = function(**{name: tf.constant(value) for name, value in inputs.items()})
        alone = [
            function(**{name: tf.constant(value[i : i + 1]) for name, value in inputs.items()})
            for i in range(rows)
        ]
        for name, value in whole.items():
            answer[f"{signature}/{name}"] = value.numpy()
            answer[f"{signature}/{name}#alone"] = np.concatenate([a[name].numpy() for a in alone])
    return answer


def main(arguments: list) -> int:
    """Answers every DIRECTORY REQUEST ANSWER triple; 2 for wrong usage."""
    if not arguments or len(arguments) % 3:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # None: as if not installed. TensorFlow imports Keras by itself where it finds it.
    sys.modules.update(dict.fromkeys(REFUSED))
    for directory, request, answer in zip(*[iter(arguments)] * 3, strict=True):
        with np.load(request, allow_pickle=False) as file:
            answers = ask(directory, unpack(file))
        np.savez(answer, **pack(answers))
    present = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
    present = sorted(present & set(REFUSED))
    if present:
        print(f"imported although refused: {', '.join(present)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
