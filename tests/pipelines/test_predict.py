"""Predictions from files, standard input and arrays; errors that say what to do."""

import csv
import io
import sys

import numpy as np
import pytest
from PIL import Image

from epochal.pipelines import predict
from epochal.pipelines.data import SourceError
from epochal.pipelines.predict import answers


@pytest.fixture
def stdin(monkeypatch):
    def give(content: bytes):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def _right(made, split, count):
    x = next(iter(made.dataset.split(split).unbatch().batch(count)))[0].numpy()
    return made.run.model.predict(x, verbose=0)


def test_images_from_files_stdin_and_arrays_agree(digits, tmp_path, stdin):
    images = digits.dataset.raw("test", [0, 1])["image"]
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    found = predict(digits.run.path, [str(p) for p in paths])
    logits = _right(digits, "test", 2)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for row, right, path in zip(found, p, paths, strict=True):
        assert row["input"] == str(path)
        assert row["label"] == str(right.argmax())
        assert row["probability"] == pytest.approx(right.max(), abs=1e-6)
        assert list(row["probabilities"]) == [str(i) for i in range(10)]
        assert list(row["probabilities"].values()) == pytest.approx(right.tolist(), abs=1e-6)
    stdin(paths[1].read_bytes())
    alone = predict(digits.run, "-")[0]
    assert alone["input"] == "standard input"
    assert alone["probabilities"] == pytest.approx(found[1]["probabilities"], abs=1e-6)
    for row, right in zip(predict(digits.run, images), found, strict=True):
        assert row["probabilities"] == pytest.approx(right["probabilities"], abs=1e-6)
    one = predict(digits.run, images[0])[0]
    assert one["probability"] == pytest.approx(found[0]["probability"], abs=1e-6)


def test_rows_of_a_table(housing, tmp_path, stdin):
    file = tmp_path / "rows.csv"
    raw = housing.dataset.raw("test", range(3))
    names = [*reversed(raw), "price $", "note"]  # another order, the target and one more
    with open(file, "w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(names)
        for i in range(3):
            values = ["" if v != v else v for v in (raw[n][i] for n in reversed(raw))]
            rows.writerow([*values, -1, "x"])
    mean, deviation = housing.dataset.target_scale
    right = _right(housing, "test", 3)[:, 0] * deviation + mean
    found = predict(housing.run, str(file))
    assert [row["input"] for row in found] == [1, 2, 3]
    assert [row["prediction"] for row in found] == pytest.approx(right.tolist(), rel=1e-5)
    assert all(row["stddev"] > 0 for row in found)
    stdin(file.read_bytes())
    assert predict(housing.run, "-") == found
    assert predict(housing.run, raw) == found


def test_features_by_name_by_order_and_as_arrays(diabetes, tmp_path):
    raw = diabetes.dataset.raw("test", range(4))["features"]
    found = predict(diabetes.run, raw)
    assert found[0]["quantiles"] == sorted(found[0]["quantiles"])
    assert found[0]["prediction"] == found[0]["quantiles"][1]
    names = diabetes.dataset.about["columns"]
    shuffled = tmp_path / "named.csv"
    order = np.arange(10)[::-1]
    with open(shuffled, "w", newline="") as out:
        csv.writer(out).writerows([[names[i] for i in order], *raw[:, order].tolist()])
    plain = tmp_path / "plain.csv"
    with open(plain, "w", newline="") as out:
        csv.writer(out).writerows([[f"c{i}" for i in range(10)], *raw.tolist()])
    for file in (shuffled, plain):
        values = [row["prediction"] for row in predict(diabetes.run, file)]
        assert values == pytest.approx([row["prediction"] for row in found], rel=1e-6)
    assert predict(diabetes.run, raw[0])[0]["prediction"] == pytest.approx(
        found[0]["prediction"], rel=1e-6
    )


def test_more_rows_than_a_batch_keep_their_order(arrays):
    x = np.zeros((600, 3), np.float32)
    x[:, 0] = np.linspace(-2, 2, 600)
    found = predict(arrays.run, x)
    logits = arrays.run.model.predict(x, verbose=0)[:, 0]
    positive = [row["probabilities"]["1"] for row in found]
    assert positive == pytest.approx((1 / (1 + np.exp(-logits))).tolist(), abs=1e-6)
    assert [row["input"] for row in found] == list(range(1, 601))


def test_answers_come_one_batch_at_a_time(digits, tmp_path):
    image = digits.dataset.raw("test", [0])["image"][0]
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield image

    stream = answers(digits.run, endless())
    next(stream)
    assert len(taken) == 256


def test_neighbors_are_listed(neighbors):
    raw = neighbors.dataset.raw("test", [0])["features"]
    row = predict(neighbors.run, raw)[0]
    assert [set(n) for n in row["neighbors"]] == [{"id", "distance"}] * 3
    stored = neighbors.dataset.raw("train", [row["neighbors"][0]["id"]])["features"][0]
    assert row["neighbors"][0]["distance"] == pytest.approx(
        float(np.linalg.norm(stored - raw[0])), abs=1e-5
    )


def test_image_errors(digits, tmp_path):
    good = tmp_path / "good.png"
    Image.new("L", (8, 8)).save(good)
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:40])
    with pytest.raises(SourceError, match="bad.png cannot be read as an image"):
        predict(digits.run, [good, bad])
    with pytest.raises(SourceError, match=r"no file .*god\.png.*Did you mean 'good.png'"):
        predict(digits.run, tmp_path / "god.png")
    with pytest.raises(SourceError, match="is a folder"):
        predict(digits.run, tmp_path)
    with pytest.raises(SourceError, match="uint8 arrays"):
        predict(digits.run, np.zeros((8, 8, 1), np.float32))


def test_table_errors(housing, diabetes, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("median incom,town,a-b,class\n1,Bonn,2,0\n")
    with pytest.raises(SourceError, match="no column 'median income'.*mean 'median incom'"):
        predict(housing.run, file)
    with pytest.raises(SourceError, match="'median income' is missing.*mean 'median_income'"):
        predict(housing.run, {"median_income": [1]})
    with pytest.raises(SourceError, match="is an image"):
        predict(housing.run, "photo.png")
    with pytest.raises(SourceError, match="takes 10 numbers a row; got an array .1, 3."):
        predict(diabetes.run, np.zeros(3))
    file.write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match=r"rows.csv has 2 columns.*takes 10 numbers"):
        predict(diabetes.run, file)
    missing = np.zeros((2, 10), np.float32)
    missing[1, 4] = np.nan
    with pytest.raises(SourceError, match="Row 2 has no answer: missing"):
        predict(diabetes.run, missing)
