"""Image files of every kind against Pillow: what becomes of each, and of those that are broken."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from epochal.pipelines.data import SourceError, load
from epochal.pipelines.data.decode import decode_rgb, jpeg_window
from epochal.pipelines.recipe import Data

RNG = np.random.default_rng(0)
PHOTO = Image.fromarray(load_sample_images().images[0][150:251, 300:417])  # 117 x 101
GRAY = PHOTO.convert("L")
ALPHA = Image.fromarray(RNG.integers(0, 256, (101, 117)).astype(np.uint8))


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(content, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


JPEGS = {
    "full colour": encoded(PHOTO, "JPEG", quality=95, subsampling=0),
    "colour at half": encoded(PHOTO, "JPEG", quality=80, subsampling=2),
    "colour at half across": encoded(PHOTO, "JPEG", quality=80, subsampling=1),
    "progressive": encoded(PHOTO, "JPEG", quality=80, progressive=True),
    "gray": encoded(GRAY, "JPEG", quality=80),
}
FILES = JPEGS | {
    "gray PNG": encoded(GRAY, "PNG"),
    "palette": encoded(PHOTO.quantize(64), "PNG"),
    "one bit": encoded(GRAY.convert("1"), "PNG"),
    "BMP": encoded(PHOTO, "BMP"),
    "gray BMP": encoded(GRAY, "BMP"),
    "palette BMP": encoded(PHOTO.quantize(200), "BMP"),
    "WebP": encoded(PHOTO, "WEBP", lossless=True),
    "GIF": encoded(PHOTO.quantize(64), "GIF"),
}


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_of_pillow(kind):
    graph = tf.function(decode_rgb, input_signature=[tf.TensorSpec([], tf.string)])
    wanted = opened(FILES[kind])
    np.testing.assert_array_equal(decode_rgb(FILES[kind]), wanted)
    np.testing.assert_array_equal(graph(FILES[kind]), wanted)


def test_transparency_is_dropped():
    colour = Image.merge("RGBA", (*PHOTO.split(), ALPHA))
    np.testing.assert_array_equal(decode_rgb(encoded(colour, "PNG")), PHOTO)
    gray = Image.merge("LA", (GRAY, ALPHA))
    np.testing.assert_array_equal(decode_rgb(encoded(gray, "PNG"))[..., 0], GRAY)
    looked_up = PHOTO.quantize(64)
    content = encoded(looked_up, "PNG", transparency=3)
    np.testing.assert_array_equal(decode_rgb(content), looked_up.convert("RGB"))


def test_sixteen_bits_are_scaled_and_rounded():
    levels = np.arange(65536).reshape(256, 256)
    content = encoded(Image.fromarray(levels.astype(np.uint16)), "PNG")
    got = decode_rgb(content).numpy()
    wanted = np.floor(levels / 257 + 0.5)
    np.testing.assert_array_equal(got, np.repeat(wanted[..., None], 3, -1))
    assert (wanted != levels >> 8).mean() > 0.2  # the upper eight bits are something else
    colours = RNG.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    deep = tf.io.encode_png(colours)
    np.testing.assert_array_equal(decode_rgb(deep), np.floor(colours / 257 + 0.5))
    deep = tf.io.encode_png(np.concatenate([colours, colours[..., :1]], -1))  # and alpha
    np.testing.assert_array_equal(decode_rgb(deep), np.floor(colours / 257 + 0.5))


def test_cmyk_jpegs_are_converted():
    content = encoded(PHOTO.convert("CMYK"), "JPEG", quality=95)
    error = np.abs(decode_rgb(content).numpy().astype(int) - opened(content))
    assert error.max() <= 1
    # and look like the photo
    assert np.abs(decode_rgb(content).numpy().astype(int) - np.asarray(PHOTO)).mean() < 3


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((8, 6), level, np.uint8)) for level in (10, 200, 30)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode_rgb(content).numpy() == 10).all()
    assert decode_rgb(content).shape == (8, 6, 3)


def test_orientation_in_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show it"
    content = encoded(PHOTO, "JPEG", quality=95, exif=exif)
    np.testing.assert_array_equal(decode_rgb(content), opened(content))
    assert decode_rgb(content).shape == (101, 117, 3)


@pytest.mark.parametrize("kind", JPEGS)
def test_a_window_has_the_pixels_of_the_whole(kind):
    content = JPEGS[kind]
    whole = opened(content)

    @tf.function(input_signature=[tf.TensorSpec([4], tf.int32)], autograph=False)
    def window(box):
        height, width, read = jpeg_window(content)
        return read(*tf.unstack(box)), height, width

    # every phase of the blocks of 8 and 16, and the borders
    boxes = [(0, 0, 101, 117), (100, 116, 1, 1), (0, 0, 1, 1), (84, 0, 17, 117)]
    boxes += [(k % 23 + k // 3, k + 7, 3 + k % 40, 1 + (5 * k) % 50) for k in range(60)]
    for top, left, height, width in boxes:
        got, *size = window(tf.constant([top, left, height, width]))
        assert size == [101, 117]
        np.testing.assert_array_equal(got, whole[top : top + height, left : left + width])


@pytest.fixture
def folder(tmp_path):
    """Two classes of small and large images of unequal sizes and kinds."""
    for name, level in (("a", 60), ("b", 180)):
        place = tmp_path / name
        place.mkdir()
        for number, (height, width) in enumerate(((5, 9), (12, 3), (40, 30), (20, 20))):
            image = Image.fromarray(np.full((height, width, 3), (level, 30, 90), np.uint8))
            image.save(place / f"{number}.png")
        image.convert("CMYK").save(place / "cmyk.jpg", quality=95)
    return tmp_path


WHOLE = {"validation_fraction": 0, "test_fraction": 0}


def test_images_smaller_than_a_crop(folder):
    """random_crop fills up with zeros on all sides; what resizes makes them larger."""
    for chain, filled in (
        ("random_crop(16)", True),
        ("random_resized_crop(16)", False),
        ("resize_shorter(16)|central_crop(16)", False),
        ("resize_shorter(18)|random_crop(16)", False),
    ):
        data = load(Data(source=f"folder:{folder}", ops=chain, batch_size=10, **WHOLE))
        assert data.input_shape == (16, 16, 3)
        x, y = next(iter(data.split("train")))
        random, ids = next(iter(data.train(0)))
        for images, labels in ((x, y), (random, ids)):
            for image, label in zip(images.numpy(), labels.numpy(), strict=True):
                zeros = (image == 0).all(-1)
                assert (np.abs(image[~zeros] - (60 + 120 * label, 30, 90)) <= 3).all()
                assert zeros.any() <= filled
        if filled:  # 5 x 9 in the middle of 16 x 16
            inside = x.numpy()[0].any(-1)
            assert inside[5:10, 3:12].all()
            assert inside.sum() == 45


def test_what_cannot_be_decoded_is_named_or_skipped(folder):
    cut = folder / "a" / "cut.jpg"
    cut.write_bytes(encoded(PHOTO.convert("CMYK"), "JPEG")[:-300])
    (folder / "b" / "lossy.webp.png").write_bytes(b"RIFF....WEBPVP8 broken")
    source = {"source": f"folder:{folder}", "ops": "resize(8)", **WHOLE}
    with pytest.raises(SourceError, match=r"2 of 12 images.*cut.jpg \(corrupt.*lossy.webp.png"):
        load(Data(**source))
    data = load(Data(**source, skip_corrupt=True))
    assert data.sizes == {"train": 10}
    assert len(data.about["skipped_files"]) == 2
