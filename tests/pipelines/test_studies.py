"""Studies of many runs: intervals, ablations, cross-validation, ensembles."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from epochal.pipelines import ablate as verb
from epochal.pipelines import canvas, crossval, ensemble, members, paired, studies, train, tune
from epochal.pipelines.cli import _main
from epochal.pipelines.data import SourceError, load
from epochal.pipelines.data.splits import deal, in_time
from epochal.pipelines.predict import predict
from epochal.pipelines.recipe import Algorithm, Choice, Data, Recipe, RecipeError
from epochal.pipelines.run import Run, RunError
from epochal.pipelines.together import mean_answer, stack
from epochal.pipelines.verify import ask_alone

module = __import__("importlib").import_module("epochal.pipelines.ablate")


def iris(**algorithm) -> Recipe:
    return Recipe(
        name="iris",
        data=Data(source="builtin:iris", ops="standardize", batch_size=16),
        model=Choice(name="mlp", hidden=[8]),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.02), **({"epochs": 4} | algorithm)
        ),
    )


def test_the_interval_of_paired_differences_is_students():
    scores, base = [0.9, 0.8, 0.85], [0.8, 0.75, 0.82]
    found = paired.difference(scores, base)
    assert found.mean == pytest.approx(0.06)
    # t(0.975, 2) = 4.302653, s = 0.0360555
    half = 4.302653 * 0.0360555 / 3**0.5
    assert (found.low, found.high) == pytest.approx((0.06 - half, 0.06 + half), abs=1e-6)
    assert not found.is_clear
    assert np.isnan(paired.difference([1.0], [0.5]).low)
    with pytest.raises(ValueError, match="equal lengths"):
        paired.difference([1.0, 2.0], [1.0])


def test_in_a_comparison_of_equals_the_interval_covers_zero_as_often_as_it_says():
    draw = np.random.default_rng(0)
    shared = draw.normal(0, 0.05, (1000, 5))  # a seed's luck, common to both
    one, two = (shared + draw.normal(0.9, 0.01, (1000, 5)) for _ in range(2))
    covered = [not paired.difference(a, b).is_clear for a, b in zip(one, two, strict=True)]
    assert 0.93 <= np.mean(covered) <= 0.97
    # and what it would be without the pairing: far wider
    paired_width = np.mean([np.ptp([d.low, d.high]) for d in map(paired.difference, one, two)])
    apart = np.mean([np.ptp([d.low, d.high]) for d in map(paired.difference, one, two[:, ::-1])])
    assert paired_width < 0.4 * apart


def test_verdicts_claim_no_more_than_the_interval():
    better = paired.Difference(0.01, 0.004, 0.016, 5)
    words = paired.verdict("radam", better, "points", True, 100)
    assert words == "radam: +1 points [+0.4, +1.6], better"
    assert "worse" in paired.verdict("x", better, "", False, 1)
    unclear = paired.Difference(0.01, -0.001, 0.02, 5)
    assert "no difference shown with 5 seeds" in paired.verdict("x", unclear, "", True, 1)
    assert "no claim" in paired.verdict("x", paired.Difference(1, np.nan, np.nan, 1), "", True, 1)


def test_values_are_split_outside_of_brackets():
    text = "sgd(learning_rate=0.1, nesterov=True),adam,mlp(hidden=[8, 8]),'a,b'"
    assert [part.strip() for part in module.split_values(text)] == [
        "sgd(learning_rate=0.1, nesterov=True)", "adam", "mlp(hidden=[8, 8])", "'a,b'",
    ]  # fmt: skip


def test_variants_one_at_a_time_and_as_a_grid():
    vary = ["algorithm.optimizer=sgd(learning_rate=0.1),adam", "model.hidden=(4,),(8,),(16,)"]
    single = module.variants(iris(), vary)
    assert len(single) == 1 + 1 + 2
    assert single[0].name == "sgd(learning_rate=0.1), hidden (4,)"
    assert single[1].name == "adam(learning_rate=0.001), hidden (4,)"  # the documented default
    assert single[3].recipe.model.options["hidden"] == [16]
    assert len(module.variants(iris(), vary, grid=True)) == 6
    with pytest.raises(RecipeError, match="nothing to compare"):
        module.variants(iris(), ["seed=1"])
    with pytest.raises(RecipeError, match="Did you mean"):
        module.variants(iris(), ["algorithm.optimiser=sgd,adam"])
    with pytest.raises(RecipeError, match="no 'warp' among the optimizers"):
        module.variants(iris(), ["algorithm.optimizer=adam,warp"])
    with pytest.raises(RecipeError, match="twice"):
        module.variants(iris(), ["loss=cross-entropy,cross-entropy"])


def test_a_variant_is_named_with_the_rate_that_it_is_trained_with():
    def names(vary, tuned=None):
        return [variant.name for variant in module.variants(iris(), [vary], tune_each=tuned)]

    # iris has adam(learning_rate=0.02); the name that changes takes its own documented default
    assert names("algorithm.optimizer.name=adam,sgd") == [
        "adam(learning_rate=0.02)", "sgd(learning_rate=0.01)",
    ]  # fmt: skip
    rates = "algorithm.optimizer.learning-rate=0.1,0.01"
    two = "algorithm.optimizer=sgd,sgd(momentum=0.9)"
    assert names(two) == ["sgd(learning_rate=0.01)", "sgd(learning_rate=0.01, momentum=0.9)"]
    assert names(two, rates) == ["sgd", "sgd(momentum=0.9)"]
    with pytest.raises(RecipeError, match="both set algorithm.optimizer.learning_rate"):
        names(rates, rates)
    with pytest.raises(RecipeError, match="value occurs twice"):
        names("algorithm.weight-decay=0.1,1e-1")


def test_figures_call_a_variant_by_what_varies():
    def called(*vary, **options):
        return list(module.labels(module.variants(iris(), vary, **options)).values())

    rates = "algorithm.optimizer=sgd(learning_rate=0.1),adam"
    fixed = "data.batch-size=8"
    assert called(rates, fixed, "model.hidden=(4,),(8,)") == [
        "sgd(learning_rate=0.1), hidden (4,)", "adam(learning_rate=0.001)", "hidden (8,)",
    ]  # fmt: skip
    assert called(rates, fixed, "model.hidden=(4,),(8,)", grid=True)[3] == (
        "adam(learning_rate=0.001), hidden (8,)"
    )
    # "tanh" alone would be either: all are named whole, the fixed key still left out
    assert called("model.activation=relu,tanh", fixed, "name=relu,tanh") == [
        "relu, relu", "tanh, relu", "relu, tanh",
    ]  # fmt: skip


def test_long_labels_break_after_commas_and_bars():
    ops = "random_crop(8, padding=1)|standardize|random_erasing(0.5), mixup none"
    assert canvas.wrap(ops, 30).split("\n") == [
        "random_crop(8, padding=1)|", "standardize|", "random_erasing(0.5),", "mixup none",
    ]  # fmt: skip
    assert canvas.wrap(" three  words ", 6) == "three\nwords"
    assert canvas.wrap("x" * 12, 5) == "xxxxx\nxxxxx\nxx"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    place = tmp_path_factory.mktemp("study") / "ablation"
    vary = [
        "algorithm.optimizer=adam(learning_rate=0.02),sgd(learning_rate=1e-9),sgd(learning_rate=1e30)"
    ]
    return verb(iris(), vary, 3, directory=place)


def test_an_ablation_compares_seed_by_seed_and_goes_on_after_a_failure(study):
    base, frozen, failed = study["variants"]
    assert (study["metric"], study["split"], study["seeds"]) == ("accuracy", "test", 3)
    assert base["verdict"].startswith("adam(learning_rate=0.02): the base")
    gaps = np.subtract(frozen["scores"], base["scores"])
    assert frozen["difference"] == pytest.approx(gaps.mean())
    assert frozen["difference"] < 0
    assert base["parameters"] == frozen["parameters"] == 4 * 8 + 8 + 8 * 3 + 3
    assert "failed: iris: " in failed["verdict"]
    assert "Lower algorithm.optimizer.learning_rate" in failed["error"]
    place = module.Path(study["directory"])
    for seed in range(3):
        runs = [Run(place / studies.file_name(row["name"]) / f"seed-{seed}")
                for row in (base, frozen)]  # fmt: skip
        assert [run.recipe.seed for run in runs] == [seed, seed]
        assert runs[0].dataset["split_seed"] == runs[1].dataset["split_seed"]
    rows = list(csv.DictReader((place / "ablation.csv").open()))
    assert [row["name"] for row in rows] == [row["name"] for row in study["variants"]]
    assert json.loads((place / "ablation.json").read_text())["metric"] == "accuracy"
    assert (place / "ablation.png").stat().st_size > 5_000
    assert (place / "curves.png").stat().st_size > 5_000


def test_curves_over_seeds_leave_out_what_is_missing():
    seeds = [
        [{"val_return": 1.0}, {"val_return": 5.0}, {"val_return": 4.0}],
        [{"val_return": 3.0}, {"val_return": float("nan")}],
    ]
    epochs, lowest, mean, highest = studies.over_seeds(seeds, "val_return")
    assert epochs.tolist() == [1, 2, 3]
    assert lowest.tolist() == [1, 5, 4]
    assert mean.tolist() == [2, 5, 4]
    assert highest.tolist() == [3, 5, 4]
    assert np.isnan(studies.over_seeds([[{"loss": 1.0}]], "val_return")[2]).all()


def test_of_an_agent_the_return_is_compared_and_higher_is_better():
    recorded = {"return": 0, "episode_length": 0}
    assert studies.usual(recorded) == "return"
    assert studies.higher_is_better("return")


@pytest.mark.slow
def test_a_study_goes_on_and_another_is_refused(study, monkeypatch):
    vary = [
        "algorithm.optimizer=adam(learning_rate=0.02),sgd(learning_rate=1e-9),sgd(learning_rate=1e30)"
    ]
    again = verb(iris(), vary, 3, directory=study["directory"])
    assert [row.get("scores") for row in again["variants"]] == [
        row.get("scores") for row in study["variants"]
    ]
    more = verb(iris(), vary, 4, directory=study["directory"])  # one more seed of the same study
    assert more["variants"][0]["scores"][:3] == study["variants"][0]["scores"]
    with pytest.raises(RunError, match="another study: it differs in vary"):
        verb(iris(), ["loss=cross-entropy,focal"], 3, directory=study["directory"])


def test_tuning_each_variant_chooses_on_validation_alone(tmp_path, monkeypatch):
    class Blind(dict):
        """Metrics of a run that do not tell of the test split."""

        def __getitem__(self, key):
            assert key != "test", "the test split was read to choose"
            return super().__getitem__(key)

    scores = {0.5: 0.7, 0.02: 0.9, 0.001: 0.8}

    def one(recipe, folder, callbacks, data):
        rate = recipe.algorithm.optimizer.options["learning_rate"]
        tuning = "learning_rate=" in folder.name
        metrics = {"validation": {"accuracy": {"value": scores[rate]}}, "parameters": 1,
                   "wall_seconds": 1.0, "examples_per_second": 1.0,
                   "test": {"accuracy": {"value": 1 - scores[rate]}}}  # fmt: skip
        return SimpleNamespace(metrics=Blind(metrics) if tuning else metrics, history=[])

    monkeypatch.setattr(module, "_one", one)
    result = verb(
        iris(),
        ["algorithm.optimizer=adam,sgd"],
        2,
        directory=tmp_path / "tuned",
        tune_each="algorithm.optimizer.learning_rate=0.5,0.02,0.001",
    )
    assert [row["tuned"] for row in result["variants"]] == [
        {"algorithm.optimizer.learning_rate": "0.02"}
    ] * 2
    assert "chosen on validation" in result["variants"][0]["verdict"]


def test_a_metric_that_runs_do_not_have_is_refused_after_the_first_of_them(tmp_path, monkeypatch):
    trained = []

    def one(recipe, folder, callbacks, data):
        trained.append(folder)
        return SimpleNamespace(metrics={"test": {"accuracy": {"value": 1.0}}}, history=[])

    monkeypatch.setattr(module, "_one", one)
    with pytest.raises(studies.UnknownMetric, match="no metric 'bleu'; the runs have accuracy"):
        verb(iris(), ["loss=cross-entropy,focal"], 3, directory=tmp_path / "a", metric="bleu")
    assert len(trained) == 1


def test_the_command_line_says_what_a_change_brings(tmp_path, capsys):
    recipe = tmp_path / "iris.json"
    recipe.write_text(iris(epochs=2).to_json())
    arguments = ["ablate", str(recipe), "--vary", "loss=cross-entropy,focal", "--seeds", "2",
                 "--run-dir", str(tmp_path / "study")]  # fmt: skip
    assert _main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cross-entropy: the base, accuracy" in said
    assert "focal: " in said


# ---------------------------------------------------------------------------- cross-validation


def test_folds_are_even_stratified_and_keep_groups_together():
    labels = np.repeat([0, 1, 2], [50, 30, 25])
    own = deal(105, 5, 0, labels=labels)
    assert np.bincount(own).tolist() == [21] * 5
    for label, share in ((0, 10), (1, 6), (2, 5)):
        assert np.bincount(own[labels == label]).tolist() == [share] * 5
    assert (deal(105, 5, 1, labels=labels) != own).any()
    groups = np.random.default_rng(0).integers(0, 20, 105)
    own = deal(105, 4, 0, groups=groups)
    assert all(len(set(own[groups == group])) == 1 for group in np.unique(groups))
    assert np.ptp(np.bincount(own)) <= 3
    with pytest.raises(SourceError, match="needs? 30 examples of each class|too few has: b"):
        deal(60, 30, 0, labels=np.repeat([0, 1], [40, 20]), classes=("a", "b"))


def test_folds_by_time_learn_from_the_past_alone():
    for fold in range(4):
        train, test = in_time(100, 4, fold)
        assert train.max() + 1 == test.min()
        assert len(test) == 20
    assert in_time(100, 4, 3)[1].max() == 99


def test_a_fold_leaves_the_sources_own_test_alone():
    data = Data(source="python", folds=3, fold=1)
    x = np.arange(60, dtype=np.float32)[:, None]
    y = np.arange(60) % 2
    dataset = load(data, {"train": (x, y), "test": (x - 100, y)})
    assert dataset.raw("test", np.arange(dataset.sizes["test"]))["features"].min() >= 0
    rows = np.concatenate([dataset.rows(name) for name in ("train", "validation", "test")])
    assert sorted(rows) == list(range(60))


def test_a_task_without_single_predictions_is_refused_before_training(tmp_path):
    with pytest.raises(RecipeError, match="is for translation"):
        crossval("seq2seq-reverse", 3, directory=tmp_path / "folds")
    with pytest.raises(RecipeError, match="not translation"):
        ensemble("seq2seq-reverse", 2, directory=tmp_path / "folds")
    assert not (tmp_path / "folds").exists()


def test_every_example_is_predicted_once_by_a_stranger(tmp_path):
    result = crossval(iris(epochs=2), 3, 2, random_splits=2, directory=tmp_path / "folds")
    assert result["examples"] == 150
    assert len(result["scores"]["accuracy"]) == 6
    mean = result["mean_of_folds"]["accuracy"]
    assert mean["value"] == pytest.approx(np.mean(result["scores"]["accuracy"]))
    assert mean["low"] < mean["value"] < mean["high"]
    with np.load(tmp_path / "folds" / "out_of_fold.npz") as pooled:
        for repeat in (1, 2):
            assert pooled[f"row{repeat}"].tolist() == list(range(150))
            right = pooled[f"probabilities{repeat}"].argmax(axis=1) == pooled[f"target{repeat}"]
            by_fold = [right[pooled[f"fold{repeat}"] == fold].mean() for fold in range(3)]
            given = result["scores"]["accuracy"][3 * (repeat - 1) : 3 * repeat]
            assert given == pytest.approx(by_fold)
        assert (pooled["fold1"] != pooled["fold2"]).any()
    fold = Run(tmp_path / "folds" / "repeat-1" / "fold-2")
    statistics = fold.dataset["preprocess"]["states"][0]
    dataset = load(fold.recipe.data)
    seen = dataset.raw("train", np.arange(dataset.sizes["train"]))["features"]
    assert statistics["mean"]["features"] == pytest.approx(
        seen.mean(axis=0), rel=1e-4
    )  # of this fold's training rows
    memory = result["resident_mib"]
    assert len(memory) == 6
    assert memory[-1] == pytest.approx(memory[1], rel=0.1)
    others = result["random_splits"]["scores"]["accuracy"]
    runs = [Run(tmp_path / "folds" / f"random-{number}") for number in (1, 2)]
    assert [run.recipe.data.split_seed for run in runs] == [2, 3]  # 0 and 1 dealt the folds
    assert others == [run.metrics["test"]["accuracy"]["value"] for run in runs]
    compared = result["random_splits"]["compared"]["accuracy"]
    error = abs(others[0] - others[1]) / 2  # s / sqrt(2), s = gap / sqrt(2)
    assert compared["standard_error"] == pytest.approx(error)
    gap = result["out_of_fold"]["accuracy"]["value"] - np.mean(others)
    assert compared["distance"] == (pytest.approx(gap / error) if error else 0.0)
    page = (tmp_path / "folds" / "README.md").read_text()
    assert "standard errors apart" in page
    assert len([line for line in page.splitlines() if line.startswith("| 2 | ")]) == 3


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C at the beginning of this epoch, of all runs together."""

    def __init__(self, epoch):
        super().__init__()
        self.left = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_interrupted_cross_validation_goes_on_to_the_same_predictions(tmp_path):
    crossval(iris(), 3, directory=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # in the third epoch of the second fold
        crossval(iris(), 3, directory=tmp_path / "cut", callbacks=[Interrupt(7)])
    first = tmp_path / "cut" / "repeat-1" / "fold-1" / "model.keras"
    written = first.stat().st_mtime_ns
    crossval(iris(), 3, directory=tmp_path / "cut")
    assert first.stat().st_mtime_ns == written
    with (
        np.load(tmp_path / "whole" / "out_of_fold.npz") as whole,
        np.load(tmp_path / "cut" / "out_of_fold.npz") as cut,
    ):
        assert np.array_equal(whole["probabilities1"], cut["probabilities1"])
        assert np.array_equal(whole["row1"], cut["row1"])


def test_random_splits_are_refused_where_there_are_none(tmp_path):
    x = np.arange(60, dtype=np.float32)[:, None]
    fixed = {"train": (x, x[:, 0]), "test": (x - 100, x[:, 0])}
    recipe = Recipe(name="fixed", data=Data(source="python"), model=Choice(name="linear"),
                    loss=Choice(name="mse"), algorithm=Algorithm(epochs=1))  # fmt: skip
    with pytest.raises(RecipeError, match="the same for every data.split_seed"):
        crossval(recipe, 3, random_splits=5, directory=tmp_path / "folds", data=fixed)
    with pytest.raises(RecipeError, match="two random splits or more; got 1"):
        crossval(iris(), 3, random_splits=1, directory=tmp_path / "folds")
    assert not (tmp_path / "folds").exists()


# ------------------------------------------------------------------------------------ ensembles


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    place = tmp_path_factory.mktemp("together") / "ensemble"
    return ensemble(iris(), 3, directory=place)


def test_an_ensembles_export_is_the_mean_of_its_members(together):
    assert together["weights"] == pytest.approx([1 / 3] * 3)
    x = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)
    answer = ask_alone([together["export"]], [{"serving_default/features": x}])[0]
    members = [
        [list(one["probabilities"].values()) for one in predict(run, x)]
        for run in together["members"]
    ]
    mean = np.mean(members, axis=0)
    assert np.abs(answer["serving_default/probabilities"] - mean).max() < 1e-6
    assert answer["serving_default/label"].tolist() == [b"setosa", b"virginica"]
    assert (answer["serving_default/class_id"] == mean.argmax(axis=1)).all()


def test_the_gain_is_that_over_the_mean_member(together):
    whole = together["metrics"]["accuracy"]["value"]
    mean = np.mean([member["accuracy"] for member in together["of_members"]])
    gain = together["gain"]["accuracy"]
    assert gain["value"] == pytest.approx(whole - mean)
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert 0 <= together["disagreement"] < 0.5


def test_members_by_fold_share_the_test_and_validate_on_all_the_rest():
    trainings = members.plan([iris()], 3, "fold")
    assert [one.folder for one in trainings] == ["fold-1", "fold-2", "fold-3"]
    datasets = [load(one.recipe.data) for one in trainings]
    test = load(iris().data).rows("test").tolist()
    assert all(dataset.rows("test").tolist() == test for dataset in datasets)
    validated = np.concatenate([dataset.rows("validation") for dataset in datasets])
    assert sorted([*validated, *test]) == list(range(150))
    with pytest.raises(RunError, match="none on which weights could be found"):
        ensemble(iris(), 3, by="fold", combine="validation")


def test_members_of_several_recipes_each_have_a_place():
    other = iris().model_copy(update={"name": "other", "model": Choice(name="linear")})
    trainings = members.plan([iris(), other], 2, "seed")
    assert [(one.folder, one.recipe.model.name, one.recipe.seed) for one in trainings] == [
        ("iris/seed-0", "mlp", 0), ("iris/seed-1", "mlp", 1),
        ("other/seed-0", "linear", 0), ("other/seed-1", "linear", 1),
    ]  # fmt: skip
    with pytest.raises(RecipeError, match="iris is given twice"):
        members.plan([iris(), iris()], 2, "seed")
    torn = other.model_copy(update={"data": Data(source="builtin:iris", split_seed=5)})
    with pytest.raises(RunError, match="other is trained on other data, or split otherwise"):
        ensemble([iris(), torn], 2)
    with pytest.raises(RecipeError, match=r"3 snapshots .* iris has 4 epochs"):
        ensemble(iris(), 3, by="snapshot")


def test_snapshots_are_the_ends_of_the_cycles_of_one_training(tmp_path):
    recipe = iris(ema=0.9, early_stopping={"patience": 1})
    trainings = members.plan([recipe], 2, "snapshot")
    assert trainings[0].recipe.algorithm.ema is trainings[0].recipe.algorithm.early_stopping is None
    with pytest.raises(KeyboardInterrupt):
        members.train_all(trainings, tmp_path, [Interrupt(4)], None)
    first = (tmp_path / "cycles" / "snapshots" / "cycle-1.keras").stat().st_mtime_ns
    found = members.train_all(trainings, tmp_path, [], None)
    assert [run.file for run in found] == ["snapshots/cycle-1.keras", "snapshots/cycle-2.keras"]
    assert (tmp_path / "cycles" / found[0].file).stat().st_mtime_ns == first
    history = found[0].history
    rates = [row["learning_rate"] for row in history]  # after each epoch: middle, end, middle, end
    assert rates == pytest.approx([0.01, 0.02, 0.01, 0.0], rel=1e-3, abs=1e-6)
    dataset = load(recipe.data)
    x, y = next(iter(dataset.split("validation").unbatch().batch(99)))
    for run, epoch in zip(found, (2, 4), strict=True):
        loss = float(run.loss(y, run.model(x)))
        assert loss == pytest.approx(history[epoch - 1]["val_loss"], rel=1e-4)


@pytest.mark.slow
def test_snapshots_of_two_recipes_from_the_command_line(tmp_path, capsys):
    names = []
    for name, model in (("net", "mlp"), ("line", "linear")):
        file = tmp_path / f"{name}.json"
        file.write_text(iris().model_copy(update={"name": name, "model": Choice(name=model)})
                        .to_json())  # fmt: skip
        names.append(str(file))
    place = tmp_path / "both"
    arguments = ["--members", "2", "--by", "snapshot", "--combine", "validation"]
    assert _main(["ensemble", *names, *arguments, "--run-dir", str(place)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "two members disagree on" in said
    assert "weights found on validation: " in said
    result = json.loads((place / "ensemble.json").read_text())
    assert [member.split("both/")[1] for member in result["members"]] == [
        f"{name}/cycles/snapshots/cycle-{cycle}.keras" for name in ("net", "line")
        for cycle in (1, 2)
    ]  # fmt: skip
    assert result["export_error"] < 1e-6


@pytest.mark.slow
def test_no_study_chooses_by_the_test_split(tmp_path):
    """Whatever the test split says, every choice is the same; only what is reported differs."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 4)).astype(np.float32)
    y = (x[:, 0] + 0.7 * draw.normal(size=300) > 0).astype(np.int64)
    right = {"train": (x[:200], y[:200]), "test": (x[200:], y[200:])}
    wrong = right | {"test": (x[200:], 1 - y[200:])}
    recipe = iris().model_copy(
        update={"name": "blind", "data": Data(source="python", validation_fraction=0.3)}
    )
    rate = "algorithm.optimizer.learning_rate"
    chosen, reported = [], []
    for name, data in (("right", right), ("wrong", wrong)):
        place = tmp_path / name
        search = tune(recipe, 3, space=[f"{rate}=log(1e-5,1)"], directory=place / "t", data=data)
        varied = verb(recipe, ["loss=cross-entropy,focal"], 1, directory=place / "a",
                      tune_each=f"{rate}=0.5,0.01,0.0001", data=data)  # fmt: skip
        other = train(recipe.model_copy(update={"name": "b", "seed": 9}), place / "b", data)
        runs = [search["best"]["directory"], other.path]
        together = ensemble(runs=runs, combine="validation", directory=place / "e", data=data)
        chosen.append([
            search["best"]["values"], [row["tuned"] for row in varied["variants"]],
            together["weights"].tolist(), other.metrics["best_epoch"],
        ])  # fmt: skip
        reported.append(together["metrics"]["accuracy"]["value"])
    assert chosen[0] == chosen[1]
    assert reported[0] > 0.6 > 0.4 > reported[1]


def test_finished_runs_on_one_split_may_be_of_different_recipes(together, tmp_path):
    other = verb.__globals__["train"](
        iris().model_copy(update={"model": Choice(name="linear")}), tmp_path / "linear"
    )
    result = ensemble(runs=[together["members"][0], other.path], combine="validation",
                      directory=tmp_path / "both")  # fmt: skip
    assert sum(result["weights"]) == pytest.approx(1)
    torn = iris().model_copy(update={"data": Data(source="builtin:iris", split_seed=5)})
    stranger = verb.__globals__["train"](torn, tmp_path / "stranger")
    with pytest.raises(RunError, match="other data, or split otherwise"):
        ensemble(runs=[other.path, stranger.path], directory=tmp_path / "no")


def test_stacking_finds_the_better_member():
    draw = np.random.default_rng(0)
    target = draw.integers(0, 2, 400)
    good = np.where(np.arange(2) == target[:, None], 0.9, 0.1)
    noise = draw.dirichlet([1, 1], 400)
    answers = [{"probabilities": noise}, {"probabilities": good}]
    assert stack(answers, target) == pytest.approx([0, 1], abs=0.02)
    both = mean_answer(answers, np.array([0.5, 0.5]), "logits")["probabilities"]
    product = np.sqrt(noise * good)
    assert both == pytest.approx(product / product.sum(axis=1, keepdims=True), rel=1e-4)


def test_what_makes_no_ensemble_is_said():
    with pytest.raises(RecipeError, match="two members"):
        ensemble(iris(), 1)
    with pytest.raises(RecipeError, match="probabilities, logits, validation"):
        ensemble(iris(), 2, combine="votes")
    for finished in (Path("runs/one"), [Path("runs/one"), Path("runs/two")]):
        with pytest.raises(RecipeError, match="finished runs go in runs="):
            ensemble(finished, 2)
    with pytest.raises(RecipeError, match="either a recipe"):
        ensemble()
    with pytest.raises(RecipeError, match="seed, fold, snapshot"):
        ensemble(iris(), 2, by="luck")
