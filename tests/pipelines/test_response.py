"""Curves over the numbers that a study varies: their points, their claims, and what is drawn."""

import json

import numpy as np
import pytest
from matplotlib import image
from scipy import stats

from epochal.pipelines import ablate_report, response
from epochal.pipelines.cli import _main
from epochal.pipelines.recipe import Algorithm, Choice, Data, Recipe

SHARE, WEIGHTS = "data.train-fraction", "model.weights"
SCRATCH = {"0.01": [0.52, 0.56, 0.54], "0.1": [0.70, 0.72, 0.71], "1": [0.80, 0.81, 0.82]}
LEARNT = {"0.01": [0.66, 0.69, 0.66], "0.1": [0.76, 0.78, 0.76], "1": [0.80, 0.82, 0.81]}


def rows():
    """As in a grid of shares and weights, the shares first."""
    return [
        {
            "name": f"train fraction {share}, {name}",
            "changes": {SHARE: share, WEIGHTS: value},
            "words": {SHARE: f"train fraction {share}", WEIGHTS: name},
            "scores": scores[share],
        }
        for share in SCRATCH
        for value, name, scores in (("none", "weights none", SCRATCH), ("runs/a", "runs/a", LEARNT))
    ]


def test_lines_over_the_numbers_and_differences_at_each():
    found = response.curve(rows(), "accuracy")
    assert found["key"] == SHARE
    first, second = found["lines"]
    assert (first["name"], second["name"]) == ("weights none", "runs/a")
    assert [point["x"] for point in second["points"]] == [0.01, 0.1, 1.0]
    point = second["points"][0]
    low, high = stats.t.interval(0.95, 2, np.mean(LEARNT["0.01"]), stats.sem(LEARNT["0.01"]))
    assert (point["low"], point["high"]) == pytest.approx((low, high))
    gaps = np.subtract(LEARNT["0.01"], SCRATCH["0.01"])  # seed by seed: less spread than either
    low, high = stats.t.interval(0.95, 2, gaps.mean(), stats.sem(gaps))
    assert point["difference"] == pytest.approx(gaps.mean())
    assert (point["difference_low"], point["difference_high"]) == pytest.approx((low, high))
    assert "difference" not in first["points"][0]
    assert [verdict.partition(":")[0] for verdict in found["verdicts"]] == [
        "train fraction 0.01", "train fraction 0.1", "train fraction 1",
    ]  # fmt: skip
    assert found["verdicts"][0].endswith(", better")
    assert "no difference shown with 3 seeds" in found["verdicts"][2]


def test_a_failed_variant_leaves_a_gap_and_words_make_no_curve():
    some = rows()
    del some[0]["scores"]
    found = response.curve(some, "accuracy")
    first, second = sorted(found["lines"], key=lambda line: line["name"], reverse=True)
    assert [point["x"] for point in first["points"]] == [0.1, 1.0]
    assert len(second["points"]) == 3
    words = [{**row, "changes": {WEIGHTS: row["changes"][WEIGHTS]}} for row in rows()]
    assert response.curve(words, "accuracy") is None
    assert response.numbers_of(["1e-3", "0.1", "3"]) == [0.001, 0.1, 3.0]
    assert response.numbers_of(["true", "false"]) is None
    assert response.numbers_of(["none", "0.1"]) is None
    assert response.numbers_of(["2", "2"]) is None


def test_the_report_of_a_study_shows_the_curve(tmp_path):
    recipe = Recipe(name="x", data=Data(source="builtin:iris"), model="mlp", loss="cross-entropy",
                    algorithm={"epochs": 1})  # fmt: skip
    studied = rows()
    for row in studied:
        row["runs"] = [
            {"test": {"accuracy": {"value": value}}, "parameters": 9, "wall_seconds": 1.0,
             "examples_per_second": 1.0} for value in row.pop("scores")
        ]  # fmt: skip
        row["histories"] = [[] for _ in row["runs"]]
    called = {row["name"]: row["name"] for row in studied}
    result = ablate_report.report(tmp_path, recipe, studied, called, 3, None)
    card = (tmp_path / "README.md").read_text()
    assert all(f"- {verdict}" in card for verdict in result["curve"]["verdicts"])
    assert "](response.png)" in card
    assert len(result["curve"]["verdicts"]) == 3
    picture = image.imread(tmp_path / "response.png")[..., :3]
    # The second line's colour is in both panels, the first one's in the left one alone.
    blue, orange = ([np.abs(picture - colour).max(axis=-1) < 0.02]
                    for colour in ((0.122, 0.467, 0.706), (1.0, 0.498, 0.055)))  # fmt: skip
    half = picture.shape[1] // 2
    assert blue[0][:, :half].sum() > 100
    assert orange[0][:, :half].sum() > 100
    assert orange[0][:, half:].sum() > 100
    assert not blue[0][:, half:].any()
    stored = json.loads((tmp_path / "ablation.json").read_text())
    assert stored["curve"]["lines"][1]["points"][0]["x"] == 0.01
    assert "words" not in stored["variants"][0]


@pytest.mark.slow
def test_one_command_gives_the_curve_over_label_shares(tmp_path, capsys):
    recipe = Recipe(
        name="iris",
        data=Data(source="builtin:iris", ops="standardize", batch_size=8),
        model=Choice(name="mlp", hidden=[8]),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(optimizer=Choice(name="adam", learning_rate=0.02), epochs=2),
    )
    (tmp_path / "iris.json").write_text(recipe.to_json())
    arguments = ["ablate", str(tmp_path / "iris.json"), "--grid", "--seeds", "2",
                 "--vary", "data.train-fraction=0.1,1", "--vary", "model.activation=relu,tanh",
                 "--run-dir", str(tmp_path / "study")]  # fmt: skip
    assert _main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "at each value, from relu there: train fraction 0.1: tanh: " in said
    assert "train fraction 1: tanh: " in said
    assert (tmp_path / "study" / "response.png").stat().st_size > 5_000
