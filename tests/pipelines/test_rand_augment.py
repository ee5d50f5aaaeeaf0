"""RandAugment: each change against Pillow, which are drawn, and that no other is computed."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from epochal.pipelines.data import ops
from epochal.pipelines.data.ops.rand_augment import CHANGES
from epochal.pipelines.data.stream import Draws

RNG = np.random.default_rng(0)


def pictures():
    """Smooth colours, few and dark values, one value only, two values."""
    coarse = RNG.integers(0, 256, (2, 5, 4, 3)).astype(np.float32)
    fine = tf.image.resize(coarse, (31, 26), method="bicubic").numpy()
    fine = np.clip(fine + RNG.normal(size=fine.shape) * 3, 0, 255).astype(np.uint8)
    dark = RNG.integers(60, 75, (31, 26, 3)).astype(np.uint8)
    flat = np.full((31, 26, 3), 9, np.uint8)
    flat[..., 1] = RNG.integers(0, 2, (31, 26)) * 200
    return [*fine, dark, flat]


PICTURES = pictures()


def moved(image, *matrix):
    size, fill = image.size, (128,) * len(image.getbands())
    method, nearest = Image.Transform.AFFINE, Image.Resampling.NEAREST
    return image.transform(size, method, matrix, nearest, fillcolor=fill)


def reference(name, image, strength, sign):
    """The change as the paper's authors write it down for Pillow."""
    angle, amount = sign * 30 * strength, sign * 0.3 * strength
    factor = max(0.0, 1 + sign * 0.9 * strength)
    across, down = (round(sign * 150 / 331 * strength * side) for side in image.size)
    changes = {
        "identity": lambda: image,
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(angle, fillcolor=(128,) * 3),
        "shear_x": lambda: moved(image, 1, amount, 0, 0, 1, 0),
        "shear_y": lambda: moved(image, 1, 0, 0, amount, 1, 0),
        "translate_x": lambda: moved(image, 1, 0, across, 0, 1, 0),
        "translate_y": lambda: moved(image, 1, 0, 0, 0, 1, down),
        "solarize": lambda: ImageOps.solarize(image, max(0, round(256 * (1 - strength)))),
        "posterize": lambda: ImageOps.posterize(image, 8 - min(7, round(4 * strength))),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
    }
    return changes[name]()


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_equals_pillow(name):
    signature = [tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.float32)]
    for strength in (0.9, 0.35, 2.7):
        change = CHANGES[name]
        graph = tf.function(
            lambda image, sign, change=change, strength=strength: change(image, strength, sign),
            input_signature=signature,
            autograph=False,
        )
        for picture in PICTURES:
            for sign in (1.0, -1.0):
                wanted = np.asarray(reference(name, Image.fromarray(picture), strength, sign))
                got = graph(picture, sign).numpy()
                assert got.dtype == np.uint8
                if name == "rotate":  # Pillow rounds the matrix: pixels between two may differ
                    assert (got != wanted).any(-1).mean() < 0.01
                elif name in ("color", "contrast"):  # its luminance has more digits
                    limit = math.ceil(abs(1 - strength * 0.9)) + math.ceil(0.9 * strength)
                    assert np.abs(got.astype(int) - wanted).max() <= limit
                else:
                    np.testing.assert_array_equal(got, wanted)


def test_no_strength_changes_nothing():
    for name in set(CHANGES) - {"auto_contrast", "equalize"}:
        for sign in (1.0, -1.0):
            got = CHANGES[name](tf.constant(PICTURES[0]), 0.0, sign)
            np.testing.assert_array_equal(got, PICTURES[0])


def test_gray_images():
    gray = Image.fromarray(PICTURES[0]).convert("L")
    pixels = tf.constant(np.asarray(gray)[..., None])
    for name in ("auto_contrast", "equalize", "contrast", "sharpness", "shear_x", "color"):
        image = gray if name != "shear_x" else ImageChops.offset(gray, 0)
        wanted = np.asarray(reference(name, image, 0.5, 1.0))[..., None]
        assert np.array_equal(CHANGES[name](pixels, 0.5, 1.0), wanted), name


def run(chain, images, seed=0):
    step, entry = ops.build(chain, "image")[0]
    index = np.arange(len(images))

    def apply(images, index):
        draws = Draws(seed, index * 0, index)
        return entry.apply(images, *step.args, **step.kwargs, rng=draws)

    return next(tf.data.Dataset.from_tensors((images, index)).map(apply).as_numpy_iterator())


def both_ways(image, strength):
    """What each change makes of an image, with either sign: bytes -> (name, sign)."""
    image = tf.constant(image)
    return {
        CHANGES[name](image, strength, tf.constant(sign)).numpy().tobytes(): (name, sign)
        for name in CHANGES
        for sign in (1.0, -1.0)
    }


def test_every_change_is_drawn_equally_often_up_and_down():
    small = PICTURES[0][:24, :20]
    known = both_ways(small, 0.6)
    assert len(known) == 14 + 9  # five changes have no sign
    out = run("rand_augment(1, 6)", np.broadcast_to(small, (1400, *small.shape)))
    drawn = [known[image.tobytes()] for image in out]
    counts = np.array([sum(name == own for own, _ in drawn) for name in CHANGES])
    assert ((counts - 100) ** 2 / 100).sum() < 34.5  # 13 degrees of freedom, p = .001
    signs = [sign for name, sign in drawn if (name, -sign) in known.values()]
    assert 0.45 < np.mean(np.array(signs) > 0) < 0.55


def test_changes_follow_one_another():
    small = PICTURES[0][:24, :20]
    out = run("rand_augment(2, 9)", np.stack([small] * 40))
    firsts = both_ways(small, 0.9)
    firsts = [np.frombuffer(image, np.uint8).reshape(small.shape) for image in firsts]
    pairs = set().union(*(both_ways(image, 0.9) for image in firsts))
    found = {image.tobytes() for image in out}
    assert found <= pairs
    assert len(found) > 30


def test_only_what_is_drawn_is_computed():
    step, entry = ops.build("rand_augment(3)", "image")[0]

    @tf.function(autograph=False)
    def one(image, index):
        return entry.apply(image, *step.args, rng=Draws(0, index * 0, index))

    graph = one.get_concrete_function(
        tf.TensorSpec([1, 8, 8, 3], tf.uint8), tf.TensorSpec([1], tf.int64)
    ).graph
    kinds = [operation.type for operation in graph.get_operations()]
    assert sum(kind in ("Case", "StatelessCase") for kind in kinds) == 3
    # the moves lie inside the branches
    assert "ImageProjectiveTransformV3" not in kinds
