"""Where data come from: folders, images, arrays, datasets, TensorFlow Datasets; what is refused."""

import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from epochal.pipelines.data import SourceError, load
from epochal.pipelines.data.source import open_source
from epochal.pipelines.generated_samples import examples
from epochal.pipelines.recipe import Data

RNG = np.random.default_rng(0)


def picture(path, height=8, width=6, mode="RGB", seed=None, **options):
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode).save(path, **options)
    return pixels


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "owl"):
        for number in range(12):
            picture(tmp_path / name / f"{number:02d}.png", seed=number + 100 * (name == "owl"))
    return tmp_path


# --- builtin -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "classes", "first"),
    [
        ("iris", (150, 4), ("setosa", "versicolor", "virginica"), [5.1, 3.5, 1.4, 0.2]),
        ("wine", (178, 13), ("class_0", "class_1", "class_2"), [14.23, 1.71]),
        ("breast_cancer", (569, 30), ("malignant", "benign"), [17.99, 10.38]),
        ("diabetes", (442, 10), (), [59, 2, 32.1, 101]),
    ],
)
def test_builtin_features_are_in_their_own_units(name, shape, classes, first):
    source = open_source(Data(source=f"builtin:{name}"))
    rows = source.splits["train"]
    assert rows.columns["features"].shape == shape
    assert source.classes == classes
    np.testing.assert_allclose(rows.columns["features"][0, : len(first)], first, rtol=1e-6)
    assert len(source.about["columns"]) == shape[1]
    assert rows.target.dtype == (np.int64 if classes else np.float32)


# --- folders ---------------------------------------------------------------------------------


def test_folder_reads_in_order_with_ids_by_name(folder):
    data = load(Data(source=f"folder:{folder}", batch_size=5, ops="scale"))
    assert data.classes == ("cat", "owl")
    assert data.sizes == {"train": 17, "validation": 2, "test": 5}
    assert data.input_shape == (8, 6, 3)
    assert data.about["skipped"] == 0
    for name in data.sizes:
        raw = data.raw(name, range(data.sizes[name]))
        x = np.concatenate([x for x, _ in data.split(name)])
        np.testing.assert_allclose(x, raw["image"] / 255.0, atol=1e-6)
        labels = ["cat" if "/cat/" in path else "owl" for path in raw["path"]]
        assert [data.classes[i] for i in data.targets(name)] == labels
        with Image.open(raw["path"][0]) as image:
            assert np.array_equal(np.asarray(image), raw["image"][0])


def test_folder_stream_resumes_and_augments_by_example(folder):
    settings = Data(
        source=f"folder:{folder}", batch_size=7, ops="random_crop(6, padding=2)|flip_lr"
    )
    data = load(settings)
    whole = list(data.train(1).take(8).as_numpy_iterator())  # three epochs of 17 and more
    for (x, y), (a, b) in zip(load(settings).train(1, 4).take(4), whole[4:], strict=False):
        assert np.array_equal(x, a)
        assert np.array_equal(y, b)
    labels = np.concatenate([y for _, y in whole])[:51].reshape(3, 17)
    assert (np.sort(labels, 1) == np.sort(data.targets("train"))).all()


def test_folder_with_its_own_splits(folder):
    for number in range(3):
        picture(folder / "test" / "cat" / f"{number}.png")
        picture(folder / "test" / "owl" / f"{number}.png")
    for name in ("cat", "owl"):
        (folder / "train").mkdir(exist_ok=True)
        (folder / name).rename(folder / "train" / name)
    data = load(Data(source=f"folder:{folder}"))
    assert data.sizes == {"train": 22, "validation": 2, "test": 6}
    (folder / "test" / "owl").rename(folder / "test" / "owls")
    with pytest.raises(
        SourceError, match="'owls' is in .*test but not in training. Did you mean 'owl'"
    ):
        load(Data(source=f"folder:{folder}"))


def test_unequal_sizes_need_an_op_that_makes_them_equal(folder):
    picture(folder / "cat" / "big.jpg", 30, 20)
    with pytest.raises(SourceError, match=r"unequal sizes.*resize\(224, 224\)"):
        load(Data(source=f"folder:{folder}", ops="scale"))
    ops = "flip_lr|scale|standardize|random_crop(10, padding=1)|translate(1)|standardize"
    data = load(Data(source=f"folder:{folder}", ops=ops, batch_size=6))
    assert data.input_shape == (10, 10, 3)
    assert len(data.preprocess.states[2]["mean"]) == 3
    rows = [x for x, _ in data.split("train")]
    assert [len(x) for x in rows] == [6, 6, 6]
    # the second standardize sees the crops: they leave it with mean 0 and deviation 1
    whole = np.concatenate(rows)
    np.testing.assert_allclose(whole.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(whole.std((0, 1, 2)), 1, atol=1e-4)
    # serving the files gives the rows, bit for bit
    content = [tf.io.read_file(p).numpy() for p in data.raw("train", range(18))["path"]]
    serve = tf.function(data.preprocess.serve)
    assert np.array_equal(serve({"image_bytes": tf.constant(content)}), whole)
    a, b = (next(iter(data.train(0, start).skip(3 - start)))[0].numpy() for start in (0, 3))
    assert np.array_equal(a, b)


def test_broken_files_are_named_or_skipped_and_counted(folder):
    (folder / "cat" / "empty.png").write_bytes(b"")
    (folder / "owl" / "text.jpg").write_bytes(b"no image at all")
    whole = folder / "cat" / "cut.jpg"
    picture(whole, 64, 64)
    whole.write_bytes(whole.read_bytes()[:-400])
    with pytest.raises(SourceError) as error:
        load(Data(source=f"folder:{folder}"))
    message = str(error.value)
    assert "3 of 27 images" in message
    assert "empty.png (empty)" in message
    assert "text.jpg (not an image)" in message
    assert "cut.jpg (corrupt, or of a kind that is not read)" in message
    assert "--data.skip-corrupt" in message
    data = load(Data(source=f"folder:{folder}", skip_corrupt=True))
    assert sum(data.sizes.values()) == 24
    assert data.about["skipped"] == 3
    assert {os.path.basename(p) for p in data.about["skipped_files"]} == {
        "empty.png",
        "text.jpg",
        "cut.jpg",
    }


def test_formats_and_channels(tmp_path):
    for number in range(3):
        picture(tmp_path / "a" / f"{number}.png", mode="L")
        picture(tmp_path / "b" / f"{number}.bmp", mode="L")
        picture(tmp_path / "b" / f"{number}.GIF", mode="L")
    gif = [Image.fromarray(np.full((8, 6), level, np.uint8)) for level in (10, 200)]
    gif[0].save(tmp_path / "b" / "moving.gif", save_all=True, append_images=gif[1:])
    source = Data(source=f"folder:{tmp_path}", validation_fraction=0, test_fraction=0)
    data = load(source)
    assert data.input_shape == (8, 6, 1)  # every file is gray
    assert (data.raw("train", [9])["image"] == 10).all()  # the first frame
    picture(tmp_path / "a" / "colour.png", mode="RGBA")
    assert load(source).input_shape == (8, 6, 3)


def test_images_without_labels_at_any_depth(tmp_path):
    picture(tmp_path / "x.png")
    picture(tmp_path / "deep" / "er" / "y.jpg")
    (tmp_path / "notes.txt").write_text("not an image")
    source = open_source(Data(source=f"images:{tmp_path}"))
    assert source.task == "unlabelled"
    assert [os.path.basename(p) for p in source.splits["train"].columns["path"]] == [
        "x.png",
        "y.jpg",
    ]


def test_folders_that_cannot_be_used(folder):
    def refused(message, source=f"folder:{folder}"):
        with pytest.raises(SourceError, match=message):
            load(Data(source=source))

    refused(r"does not exist. Did you mean 'cat'", f"folder:{folder}/cats")
    refused("has no class folders", f"folder:{folder}/cat")
    refused("is a file", f"folder:{folder}/cat/00.png")
    (folder / "none").mkdir()
    refused("There are no images", f"images:{folder}/none")
    (folder / "none").rmdir()
    picture(folder / "one" / "only.png")
    refused(r"at least 3 examples of each class.*one \(1\)")
    (folder / "one" / "only.png").unlink()
    refused("one has no images")
    (folder / "one").rmdir()
    picture(folder / "train" / "cat" / "0.png")
    refused("mixes the split folders train with cat, owl")


# --- Python ------------------------------------------------------------------------------------


def arrays(n=30):
    return RNG.normal(size=(n, 3)).astype(np.float64), np.arange(n) % 3


def test_arrays_with_names_and_own_splits():
    x, _ = arrays()
    y = np.array(["red", "blue", "green"])[np.arange(30) % 3]
    data = load(Data(source="python"), {"train": (x, y), "test": (x[:4], y[:4])})
    assert data.classes == ("blue", "green", "red")
    assert data.targets("test").tolist() == [2, 0, 1, 2]
    assert data.sizes == {"train": 27, "validation": 3, "test": 4}
    np.testing.assert_allclose(data.raw("test", [1])["features"][0], x[1], rtol=1e-6)


def test_tasks_follow_the_labels_or_the_recipe():
    x, y = arrays()
    assert load(Data(source="python"), (x, y)).task == "classification"
    assert load(Data(source="python"), (x, y > 0)).classes == ("False", "True")
    assert load(Data(source="python"), (x, y * 0.5)).task == "regression"
    assert load(Data(source="python", task="regression"), (x, y)).task == "regression"
    assert load(Data(source="python"), (x, 3 * y[:, None] + 5)).classes == ("5", "8", "11")
    assert load(Data(source="python", task="classification"), (x, y * 2.0)).classes == (
        "0",
        "2",
        "4",
    )


@pytest.mark.parametrize("batched", [False, True])
def test_ready_made_datasets(batched):
    x = RNG.integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    y = np.arange(20) % 2
    ready = tf.data.Dataset.from_tensor_slices((x, y))
    data = load(
        Data(source="python", test_fraction=0), {"train": ready.batch(6) if batched else ready}
    )
    same = load(Data(source="python", test_fraction=0), (x, y))
    assert data.about["fingerprint"] == same.about["fingerprint"]
    assert data.kind == "image"
    other = load(Data(source="python", test_fraction=0), (x, 1 - y))
    assert other.about["fingerprint"] != same.about["fingerprint"]
    with pytest.raises(SourceError, match="never ends"):
        load(Data(source="python"), ready.repeat())
    with pytest.raises(SourceError, match="larger than data.cache_mib"):
        load(Data(source="python", cache_mib=0), ready)


def test_float_images_are_served_as_they_are():
    x = RNG.normal(size=(20, 4, 4, 1)).astype(np.float32)
    data = load(Data(source="python", ops="standardize"), (x, np.arange(20) % 2))
    assert data.preprocess.raw_signature()["image"].shape == (None, 4, 4, 1)
    served = data.preprocess.serve({"image": tf.constant(data.raw("test", [0, 1])["image"])})
    assert np.array_equal(served, next(iter(data.split("test")))[0][:2])


def test_arrays_that_cannot_be_used():
    x, y = arrays()

    def refused(message, given, **settings):
        with pytest.raises(SourceError, match=message):
            load(Data(source="python", **settings), given)

    bad = x.copy()
    bad[[4, 9], 1] = np.nan
    refused(r"NaN or infinite values in 2 of 30 rows \(row 4, 9", (bad, y))
    bad = x.copy()
    bad[7, 0] = 1e39  # finite, but not as float32
    refused(r"as float32.*row 7", (bad, y))
    refused(r"y of the train split.*row 3", (x, np.where(np.arange(30) == 3, np.inf, 0.5)))
    refused(
        "label.* that training lacks: 7", {"train": (x, y), "test": (x[:3], np.array([0, 7, 1]))}
    )
    refused("30 examples, but 29 targets", (x, y[:-1]))
    refused(r"\(30, 3\).*argmax", (x, np.eye(3)[y]))
    refused(r"x\[..., None\]", (np.zeros((30, 4, 4)), y))
    refused("1 or 3 channels", (np.zeros((30, 4, 4, 2), np.uint8), y))
    refused("fractions such as 0.5", (x, y * 0.5), task="classification")
    refused("not for train", {"test": (x, y)})
    refused("Did you mean 'validation'", {"train": (x, y), "valid": (x, y)})
    refused(r"shape \(2,\).*training \(3,\)", {"train": (x, y), "test": (x[:, :2], y)})
    refused("each class.*9 \\(1\\)", (x, np.where(np.arange(30) == 3, 9, 0)))
    refused(
        "All 30 training targets are 2",
        {"train": (x, y * 0.0 + 2)},
        standardize_target=True,
        validation_fraction=0,
        test_fraction=0,
    )
    with pytest.raises(SourceError, match="source is 'builtin:iris'"):
        load(Data(source="builtin:iris"), (x, y))


# --- TensorFlow Datasets -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A set of 60 training images in four record files and 8 test images, made offline."""
    tfds = pytest.importorskip("tensorflow_datasets")
    place = tmp_path_factory.mktemp("tfds")
    for name, side in (("tiny_shapes", 5), ("ragged_shapes", None), ("secret_shapes", 5)):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(side, side, 1)),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
            }
        )
        _prepare(tfds, name, features, side, place)
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Tensor(shape=(3,), dtype=np.float32), "label": np.float32}
    )
    _prepare(tfds, "tiny_numbers", features, 0, place)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
    )
    _prepare(tfds, "photos", features, 32, place)
    return place


def _prepare(tfds, name, features, side, place):
    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(
                features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, manager):
            hidden = "secret" in self.name
            return {"train": self._rows(60), "test": self._rows(8, hidden)}

        def _generate_examples(self):
            raise AssertionError("unused")

        def _rows(self, n, hidden=False):
            for number in range(n):
                if side == 0:
                    yield number, {"image": np.float32([number, 1, 2]), "label": number / 2}
                    continue
                size = side or 5 + number % 3
                image = np.full((size, size, 1), number, np.uint8)
                if size == 32:  # photographs: noise
                    image = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
                yield number, {"image": image, "label": -1 if hidden else number % 2}

    Tiny.name = name
    builder = Tiny(data_dir=place)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=4, try_download_gcs=False)
    )


@pytest.fixture
def prepared(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))


STREAMED = {"cache_mib": 0, "source": "tfds:tiny_shapes"}


def numbers(batches):
    return np.concatenate([x[:, 0, 0, 0] for x, *_ in batches]).astype(int)


def test_a_small_set_is_held_in_memory(prepared):
    data = load(Data(source="tfds:tiny_shapes"))
    assert data.sizes == {"train": 54, "validation": 6, "test": 8}
    assert data.classes == ("even", "odd")
    assert sorted(numbers(data.split("test").as_numpy_iterator())) == list(range(8))
    assert np.bincount(data.targets("validation")).tolist() == [3, 3]
    seen = numbers(data.split("train").as_numpy_iterator())
    assert np.array_equal(seen % 2, data.targets("train"))


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_a_split_whose_labels_were_never_published_is_left_out(prepared, cache_mib):
    """As ImageNet's test split: its labels are -1."""
    data = load(Data(source="tfds:secret_shapes", cache_mib=cache_mib, test_fraction=0.0))
    assert data.sizes == {"train": 54, "validation": 6}


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_some_positions_of_a_split(prepared, cache_mib):
    data = load(Data(source="tfds:tiny_shapes", cache_mib=cache_mib, batch_size=4))
    whole = numbers(data.split("train").as_numpy_iterator())
    positions = np.array([0, 7, 8, 30, 31, 53])
    some = numbers(data.split("train", positions).as_numpy_iterator())
    np.testing.assert_array_equal(some, whole[positions])


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_what_generators_are_held_against_is_a_random_choice(prepared, cache_mib):
    """With its labels, in random order, always the same."""
    data = load(Data(source="tfds:tiny_shapes", task="generation", cache_mib=cache_mib))
    images, labels = examples(data, "train", 20)
    assert images.dtype == np.uint8
    found = images[:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(labels, found % 2)
    assert len(set(found)) == 20
    whole = list(numbers(data.split("train").as_numpy_iterator()))
    places = [whole.index(number) for number in found]
    assert max(places) > 20  # not the first ones
    assert places != sorted(places)
    again, same = examples(data, "train", 20)
    np.testing.assert_array_equal(again, images)
    np.testing.assert_array_equal(same, labels)
    assert len(examples(data, "train", 100)[0]) == data.sizes["train"]


@pytest.mark.parametrize("cache_mib", [0, 100])
def test_jpeg_files_of_a_set_are_decoded_as_when_served(prepared, tfds_dir, cache_mib):
    """TFDS by itself takes the fast transform, whose pixels are others."""
    import tensorflow_datasets as tfds

    data = load(Data(source="tfds:photos", cache_mib=cache_mib))
    seen = np.concatenate([x for x, *_ in data.split("test").as_numpy_iterator()])
    builder = tfds.builder_from_directory(str(tfds_dir / "photos" / "1.0.0"))
    skip = {"image": tfds.decode.SkipDecoding()}
    files = [row["image"].numpy() for row in builder.as_dataset("test", decoders=skip)]
    served = [data.preprocess.decode(tf.constant(content)).numpy() for content in files]
    np.testing.assert_array_equal(sorted(map(bytes, seen.astype("uint8"))),
                                  sorted(map(bytes, served)))  # fmt: skip
    theirs = [row["image"].numpy() for row in builder.as_dataset("test")]
    assert any((a != b).any() for a, b in zip(served, theirs, strict=True))


def test_a_large_set_streams_without_overlap(prepared):
    data = load(Data(**STREAMED, batch_size=7, shuffle_window=10))
    assert data.sizes == {"train": 54, "validation": 6, "test": 8}
    split = {name: numbers(data.split(name).as_numpy_iterator()) for name in data.sizes}
    assert sorted([*split["train"], *split["validation"]]) == list(range(60))
    for name, values in split.items():
        assert np.array_equal(values % 2, data.targets(name))
    order = numbers(data.train(0).take(24).as_numpy_iterator())[: 3 * 54].reshape(3, 54)
    assert (np.sort(order, 1) == np.sort(split["train"])).all()
    assert len({tuple(epoch) for epoch in order}) == 3
    assert np.array_equal(numbers(data.train(0).take(3).as_numpy_iterator()), order[0][:21])
    # an epoch starts in files of its own choice: ten of 54 in the window, four files of 15
    starts = {tuple(sorted(numbers(data.train(s).take(1).as_numpy_iterator()))) for s in range(6)}
    assert len(starts) >= 4
    picked = data.raw("validation", [4, 1])["image"]
    assert picked[:, 0, 0, 0].tolist() == split["validation"][[4, 1]].tolist()


def test_a_streamed_set_resumes_at_any_step(prepared):
    settings = Data(
        **STREAMED,
        batch_size=7,
        shuffle_window=10,
        ops="random_crop(5, padding=1)|flip_lr|standardize",
    )
    data = load(settings)
    whole = list(data.train(2).take(20).as_numpy_iterator())  # two and a half epochs
    fresh = load(settings)
    tf.random.set_seed(5)  # must not matter
    for start in (1, 7, 8, 17):
        for (x, y), (a, b) in zip(fresh.train(2, start).take(2), whole[start:], strict=False):
            assert np.array_equal(x, a)
            assert np.array_equal(y, b)
    inner = np.concatenate([x for x, _ in data.split("train")])
    assert inner.mean() == pytest.approx(0, abs=1e-5)
    # what an example becomes depends on it, not on the way it came
    held = load(settings.model_copy(update={"cache_mib": 99}))
    assert held.about["fingerprint"] == data.about["fingerprint"]


def test_a_streamed_set_in_its_own_order_and_a_subset(prepared):
    data = load(Data(**STREAMED, batch_size=9, shuffle=False, train_examples=18))
    assert data.sizes == {"train": 18, "validation": 6, "test": 8}
    order = numbers(data.train(0).take(4).as_numpy_iterator()).reshape(2, 18)
    assert np.array_equal(order[0], order[1])
    assert np.array_equal(order[0], numbers(data.split("train").as_numpy_iterator()))


def test_numbers_are_held_in_memory(prepared):
    data = load(Data(source="tfds:tiny_numbers"))
    assert (data.task, data.kind, data.input_shape) == ("regression", "features", (3,))
    raw = data.raw("train", range(54))["features"]
    np.testing.assert_array_equal(raw[:, 0] / 2, data.targets("train"))
    with pytest.raises(SourceError, match="Only images stream; raise data.cache_mib"):
        load(Data(source="tfds:tiny_numbers", cache_mib=0))


def test_images_of_unequal_size_stream(prepared):
    with pytest.raises(SourceError, match="unequal sizes"):
        load(Data(source="tfds:ragged_shapes"))
    data = load(Data(source="tfds:ragged_shapes", ops="resize(4)|standardize", batch_size=8))
    assert data.input_shape == (4, 4, 1)
    raw = data.raw("test", range(8))["image"]
    assert sorted({len(image) for image in raw}) == [5, 6, 7]
    encoded = [tf.io.encode_png(image).numpy() for image in raw]
    served = data.preprocess.serve({"image_bytes": tf.constant(encoded)})
    assert np.array_equal(served, next(iter(data.split("test")))[0])


def test_what_is_not_prepared_is_said_and_never_downloaded(prepared, tfds_dir):
    with pytest.raises(SourceError, match=r"Did you mean 'tiny_shapes'.*tfds build tiny_shape "):
        load(Data(source="tfds:tiny_shape"))
    assert not (tfds_dir / "tiny_shape").exists()
    shard = next((tfds_dir / "tiny_shapes" / "1.0.0").glob("*train*00002*"))
    shard.rename(shard.with_suffix(".away"))
    with pytest.raises(SourceError, match="1 of 4 files of tfds:tiny_shapes are missing"):
        load(Data(source="tfds:tiny_shapes"))
    shard.with_suffix(".away").rename(shard)


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")),
    reason="TFDS_DATA_DIR is not set to a directory with mnist",
)
def test_mnist():
    data = load(Data(source="tfds:mnist", ops="scale", batch_size=100))
    assert data.sizes == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert data.targets("test")[:5].tolist() != [0] * 5
    assert data.input_shape == (28, 28, 1)
    x = next(iter(data.train(0)))[0].numpy()
    assert 0.10 < x.mean() < 0.16  # the known mean is .1307
