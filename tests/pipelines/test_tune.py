"""Hyper-parameter search: the oracle on known functions, and whole searches on iris."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import keras_tuner
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from threadpoolctl import threadpool_limits

from epochal.pipelines import Recipe, Run, RunError, override, tune
from epochal.pipelines.cli import _main
from epochal.pipelines.hyperband import bracket_rungs
from epochal.pipelines.oracle import Oracle
from epochal.pipelines.recipe import Algorithm, Choice, Data, RecipeError
from epochal.pipelines.space import Space
from epochal.pipelines.surrogate import Surrogate, normal_scores

# ---------------------------------------------------------------------------- known functions


def branin(point):
    """Three minima of 0.397887."""
    x, y = point["x"], point["y"]
    bow = y - 5.1 / (4 * np.pi**2) * x * x + 5 / np.pi * x - 6
    return bow**2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(x) + 10


_A = np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14],
               [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]])  # fmt: skip
_P = 1e-4 * np.array([[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
                      [2348, 1451, 3522, 2883, 3047, 6650],
                      [4047, 8828, 8732, 5743, 1091, 381]])  # fmt: skip


def hartmann6(point):
    """Minimum -3.32237."""
    x = np.array([point[f"x{i}"] for i in range(6)])
    return -np.exp(-np.sum(_A * (x - _P) ** 2, axis=1)) @ [1, 1.2, 3, 3.2]


def training(point):
    """Like a training: six kinds, a rate of which too much fails or diverges. Minimum 0."""
    kind, rate = point["kind"], np.log10(point["rate"])
    if kind in ("c", "f") and rate > -1.5:
        raise RuntimeError("out of memory")
    if rate > -0.3:
        return float("inf")
    best = {"a": -3, "b": -1, "c": -2, "d": -4, "e": -2.5, "f": -3.5}[kind]
    floor = {"a": 0.3, "b": 0.5, "c": 0.0, "d": 0.8, "e": 0.6, "f": 0.2}[kind]
    return floor + 0.5 * (rate - best) ** 2 + 0.02 * abs(point["width"] - 12)


FUNCTIONS = {
    "branin": (branin, ["x=float(-5,10)", "y=float(0,15)"]),
    "hartmann6": (hartmann6, [f"x{i}=float(0,1)" for i in range(6)]),
    "training": (training, ["kind=choice(a,b,c,d,e,f)", "rate=log(1e-5,1)", "width=int(1,32)"]),
}


def oracle_of(name, tuner, directory, seed=0, trials=25, direction="min"):
    space = Space.parse(FUNCTIONS[name][1])
    made = Oracle(space, tuner, keras_tuner.Objective("loss", direction), trials, seed)
    made._set_project_dir(str(directory), "oracle")
    return made


def ask(oracle):
    trial = oracle.create_trial("one")
    return None if trial.status == "STOPPED" else trial


def tell(oracle, trial, function, sign=1):
    try:
        loss = function(trial.hyperparameters.values)
        oracle.update_trial(trial.trial_id, {"loss": sign * loss})
        trial.status = "COMPLETED"
    except RuntimeError as error:
        trial.status, trial.message = "FAILED", str(error)
    oracle.end_trial(trial)


def search(oracle, function, sign=1):
    """Points and scores, None for failures, in the order of the trials."""
    while trial := ask(oracle):
        tell(oracle, trial, function, sign)
    trials = [oracle.trials[name] for name in sorted(oracle.trials)]
    return [t.hyperparameters.values for t in trials], [t.score for t in trials]


def best_of(name, tuner, directory, seed):
    _, scores = search(oracle_of(name, tuner, directory, seed), FUNCTIONS[name][0])
    return min(score for score in scores if score is not None)


@pytest.mark.parametrize("name", ["branin", "hartmann6"])
def test_bayesian_search_beats_chance(name, tmp_path):
    best = {
        tuner: [best_of(name, tuner, tmp_path / f"{tuner}{seed}", seed) for seed in range(3)]
        for tuner in ("bayesian", "random")
    }
    assert np.mean(best["bayesian"]) < np.mean(best["random"])
    assert np.median(best["bayesian"]) < (0.5 if name == "branin" else -2.4)


def test_failures_are_reported_and_avoided_and_end_nothing(tmp_path):
    oracle = oracle_of("training", "bayesian", tmp_path, seed=1)
    oracle.start = {"kind": "a", "rate": 1.0, "width": 5}  # diverges
    points, scores = search(oracle, training)
    assert len(points) == 25
    causes = {t.message for t in oracle.trials.values() if t.status == "FAILED"}
    assert causes == {"out of memory", "loss is inf."}
    failed = np.array([score is None for score in scores])
    assert failed[:8].mean() > failed[12:].mean()
    assert all(t.score is None for t in oracle.trials.values() if t.status == "FAILED")


def test_no_point_is_proposed_twice_and_a_small_space_ends(tmp_path):
    space = Space.parse(["a=choice(x,y)", "b=int(1,4) if a in x"])
    for tuner in ("bayesian", "random", "grid"):
        oracle = Oracle(space, tuner, keras_tuner.Objective("loss", "min"), 50, 0)
        oracle._set_project_dir(str(tmp_path / tuner), "oracle")
        points, _ = search(oracle, lambda point: point.get("b", 2.5))
        assert len({json.dumps(p) for p in points}) == len(points) == 5
        assert oracle.stopped.startswith("all 5 points of the ")
    narrow = Space.parse(["a=float(1,1.013)"])  # 14 numbers of four digits
    oracle = Oracle(narrow, "bayesian", keras_tuner.Objective("loss", "min"), 50, 0)
    oracle._set_project_dir(str(tmp_path / "narrow"), "oracle")
    assert len(search(oracle, lambda point: point["a"])[0]) == 14
    points, _ = search(oracle_of("branin", "bayesian", tmp_path / "b"), lambda point: 1.0)
    assert len({json.dumps(p) for p in points}) == 25


def test_a_grid_covers_the_space_from_its_first_trials_on(tmp_path):
    points, _ = search(oracle_of("branin", "grid", tmp_path, trials=99), branin)
    assert len(points) == 25
    assert {p["x"] for p in points} == {-5, -1.25, 2.5, 6.25, 10}
    assert len({p["x"] for p in points[:9]}) >= 4


def test_a_seed_of_0_is_a_seed(tmp_path):
    runs = [
        search(oracle_of("training", "bayesian", tmp_path / str(i), seed, 12), training)
        for i, seed in enumerate([0, 0, 1])
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("tuner", ["bayesian", "random", "grid"])
def test_a_search_that_was_killed_proposes_what_it_would_have(tuner, tmp_path):
    whole = search(oracle_of("training", tuner, tmp_path / "whole", trials=16), training)
    again = oracle_of("training", tuner, tmp_path / "killed", trials=16)
    for trials_before_the_kill in (3, 4, 6):
        for _ in range(trials_before_the_kill):
            tell(again, ask(again), training)
        lost = ask(again)  # begun, and gone with its process
        again = oracle_of("training", tuner, tmp_path / "killed", trials=16)
        again.reload()
        resumed = ask(again)
        assert (resumed.trial_id, resumed.hyperparameters.values) == (
            lost.trial_id, lost.hyperparameters.values,
        )  # fmt: skip
        tell(again, resumed, training)
        assert again.start_order == sorted(again.start_order)
    assert search(again, training) == whole


def test_hyperband_trains_the_best_third_longer(tmp_path):
    rungs = bracket_rungs(iris(epochs=9))
    assert [(len(rung.trials), rung.epochs) for rung in rungs] == [
        (9, 1), (3, 3), (1, 9), (5, 3), (1, 9), (3, 9),
    ]  # fmt: skip
    space = Space.parse(["x=float(0,1)"])

    def made():
        oracle = Oracle(space, "hyperband", keras_tuner.Objective("loss", "min"), 25, 0,
                        rungs=rungs)  # fmt: skip
        oracle._set_project_dir(str(tmp_path), "oracle")
        return oracle

    def loss(point):
        if point["x"] > 0.9:
            raise RuntimeError("failed")
        return abs(point["x"] - 0.5) + 1 / point["algorithm.epochs"]

    oracle = made()
    for _ in range(11):
        tell(oracle, ask(oracle), loss)
    lost = ask(oracle)
    oracle = made()
    oracle.reload()
    points, scores = search(oracle, loss)
    assert oracle.trials[lost.trial_id].hyperparameters.values == lost.hyperparameters.values
    assert [p["algorithm.epochs"] for p in points[:13]] == [1] * 9 + [3] * 3 + [9]
    first = sorted((score, p["x"]) for score, p in zip(scores[:9], points, strict=False) if score)
    assert [p["x"] for p in points[9:12]] == [x for _, x in first[:3]]
    assert points[12]["x"] == first[0][1]
    assert points[22]["algorithm.epochs"] == 1  # the brackets begin again
    assert len({json.dumps(p, sort_keys=True) for p in points}) == 25
    with pytest.raises(RecipeError, match="must be 3 or more; iris has 2"):
        bracket_rungs(iris())


def test_what_is_better_upwards_is_searched_upwards(tmp_path):
    down = search(oracle_of("branin", "bayesian", tmp_path / "a", trials=14), branin)
    up = search(
        oracle_of("branin", "bayesian", tmp_path / "b", trials=14, direction="max"), branin, -1
    )
    assert down[0] == up[0]


def test_expected_improvement_is_the_closed_form_and_the_noise_is_found():
    x = np.linspace(0, 1, 12)[:, None]
    surrogate = Surrogate(x, np.sin(6 * x[:, 0]))
    at = np.array([[0.33], [0.77]])
    mean, deviation = surrogate.predict(at)
    best = surrogate.process.predict(x).min()
    draws = np.random.default_rng(0).normal(mean, deviation, (400_000, 2))
    expected = np.maximum(best - draws, 0).mean(axis=0)
    assert surrogate.expected_improvement(at) == pytest.approx(expected, rel=0.03, abs=1e-6)
    assert surrogate.expected_improvement(at)[1] > surrogate.expected_improvement(at)[0]
    assert surrogate.noise < 1e-3


def test_a_diverged_loss_does_not_flatten_the_others():
    losses = [0.3, 0.31, 0.35, 0.5, 2.3, 1e5]
    scores = normal_scores(losses)(losses)
    assert (np.diff(scores) >= 0).all()
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert scores[3] - scores[0] > 0.3  # plain standardisation: 1e-6


@pytest.mark.slow
def test_twenty_seeds_against_chance_and_kerastuners_own(tmp_path):
    better, no_worse = [], []
    for name in FUNCTIONS:
        ours, chance = (
            np.array([best_of(name, tuner, tmp_path / f"{name}{tuner}{s}", s) for s in range(20)])
            for tuner in ("bayesian", "random")
        )
        theirs = np.array([best_of_theirs(name, tmp_path / f"{name}{s}", s + 1) for s in range(6)])
        print(f"{name}: {ours.mean():.4f}, chance {chance.mean():.4f}, theirs {theirs.mean():.4f}")
        better.append(ours.mean() < chance.mean())
        slack = 2 * np.hypot(ours.std() / 20**0.5, theirs.std() / 6**0.5)
        no_worse.append(ours.mean() <= theirs.mean() + slack)
    assert sum(better) >= 2
    assert all(no_worse)


class Theirs(keras_tuner.oracles.BayesianOptimizationOracle):
    """As it is, with a process that predicts faster: it is asked for single points, 70,000 times a
    search, and most of the time went into checking them."""

    def _make_gpr(self):
        return QuickProcess(**super()._make_gpr().get_params(deep=False))


class QuickProcess(GaussianProcessRegressor):
    """scikit-learn's for a Matern 5/2 kernel of one length, and a single point at a time."""

    def fit(self, x, y):
        super().fit(x, y)
        self._inverse = np.linalg.inv(self.L_)
        self._scaled = self.X_train_ / self.kernel_.length_scale
        at = self.X_train_.mean(axis=0, keepdims=True) + 0.03
        for ours, its in zip(self.predict(at, True), super().predict(at, True), strict=True):
            np.testing.assert_allclose(ours, its, rtol=1e-6, atol=1e-9)
        return self

    def predict(self, x, return_std=False):
        gaps = self._scaled - x / self.kernel_.length_scale
        distance = np.sqrt(5 * np.einsum("ij,ij->i", gaps, gaps))
        near = (1 + distance + distance * distance / 3) * np.exp(-distance)
        mean = self._y_train_std * (near @ self.alpha_) + self._y_train_mean
        left = self._inverse @ near
        return np.array([mean]), self._y_train_std * np.sqrt(np.array([max(0, 1 - left @ left)]))


def best_of_theirs(name, directory, seed):
    """KerasTuner's own Bayesian oracle on the same space."""
    space = keras_tuner.HyperParameters()
    for one in Space.parse(FUNCTIONS[name][1]).dimensions:
        if one.values:
            space.Choice(one.key, list(one.values))
        elif one.kind == "int":
            space.Int(one.key, one.low, one.high)
        else:
            sampling = "log" if one.kind == "log" else "linear"
            space.Float(one.key, one.low, one.high, sampling=sampling)
    oracle = Theirs(
        objective=keras_tuner.Objective("loss", "min"), max_trials=25, hyperparameters=space,
        seed=seed, max_consecutive_failed_trials=None,
    )  # fmt: skip
    oracle.verbose = 0
    oracle._set_project_dir(str(directory), "theirs")
    with threadpool_limits(1):  # as ours has it; more threads wait for each other
        _, scores = search(oracle, FUNCTIONS[name][0])
    return min(score for score in scores if score is not None and np.isfinite(score))


def test_a_search_in_one_dimension_is_drawn_step_by_step(tmp_path):
    from epochal.pipelines.tune_explained import draw_steps

    points = draw_steps(lambda x: np.sin(3 * x) + 0.1 * x**2, -3, 3, tmp_path / "gp.png", steps=4)
    assert (tmp_path / "gp.png").stat().st_size > 30_000
    assert len(points) == 4 + 4
    assert min(np.sin(3 * x) + 0.1 * x**2 for x in points) < -0.9  # minimum -0.974 at -0.512


# ------------------------------------------------------------------------------- whole searches

RATE = "algorithm.optimizer.learning_rate"
SPACE = [f"{RATE}=log(1e-3,1)", "model.hidden=choice([4],[8])"]


def iris(**algorithm) -> Recipe:
    return Recipe(
        name="iris",
        data=Data(source="builtin:iris", ops="standardize", batch_size=16),
        model=Choice(name="mlp", hidden=[8]),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.02), **({"epochs": 2} | algorithm)
        ),
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    place = tmp_path_factory.mktemp("found") / "search"
    return tune(iris(), 4, space=SPACE, tuner="random", directory=place)


def test_trials_are_runs_and_the_best_is_a_recipe(found):
    place = Path(found["directory"])
    assert found["objective"] == "val_accuracy"
    assert found["trials"][0]["values"] == {RATE: 0.02, "model.hidden": "[8]"}  # as it stands
    assert found["start"] == found["trials"][0]
    for number, row in enumerate(found["trials"], 1):
        run = Run(place / f"trial-{number:03d}")
        assert run.recipe == override(iris(), row["values"])
        kept = run.history[run.metrics["best_epoch"] - 1]
        assert row["score"] == kept["val_accuracy"]
    assert found["best"]["score"] == max(row["score"] for row in found["trials"])
    best = Recipe.from_json(Path(found["best_recipe"]).read_text())
    assert best == override(iris(), found["best"]["values"])
    rows = list(csv.DictReader((place / "tune.csv").open()))
    assert [float(row["val_accuracy"]) for row in rows] == [r["score"] for r in found["trials"]]
    assert json.loads((place / "tune.json").read_text()) == found
    for plot in ("progress", "parallel", "importance"):
        assert (place / "plots" / f"{plot}.png").stat().st_size > 5_000


def test_a_search_goes_on_and_takes_more_trials_and_no_other_plan(found, monkeypatch, tmp_path):
    more = tune(iris(), 5, space=SPACE, tuner="random", directory=found["directory"])
    assert more["trials"][:4] == found["trials"]
    assert len(more["trials"]) == 5
    with pytest.raises(RunError, match="another study: it differs in tuner"):
        tune(iris(), 5, space=SPACE, tuner="grid", directory=found["directory"])


def test_the_test_split_is_not_read(monkeypatch, tmp_path):
    class Blind(dict):
        def __getitem__(self, key):
            assert key != "test", "the test split was read to choose"
            return super().__getitem__(key)

    metrics = Run.metrics.fget
    monkeypatch.setattr(Run, "metrics", property(lambda run: Blind(metrics(run))))
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda *a, **k: _blind(loads(*a, **k), Blind))
    result = tune(iris(epochs=1), 2, space=SPACE, tuner="random", directory=tmp_path / "blind")
    assert all(row["score"] is not None for row in result["trials"])
    with pytest.raises(AssertionError, match="test split was read"):
        Run(result["trials"][0]["directory"]).metrics["test"]


def _blind(value, kind):
    return kind(value) if isinstance(value, dict) and "test" in value else value


def test_an_interrupted_trial_goes_on(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        epochs = 0

        def on_epoch_begin(self, epoch, logs=None):
            self.epochs += 1
            if self.epochs == 4:  # the second epoch of the second trial
                raise KeyboardInterrupt

    arguments = {"space": SPACE, "tuner": "bayesian"}
    whole = tune(iris(), 3, directory=tmp_path / "whole", **arguments)
    with pytest.raises(KeyboardInterrupt):
        tune(iris(), 3, directory=tmp_path / "cut", callbacks=[Interrupt()], **arguments)
    resumed = tune(iris(), 3, directory=tmp_path / "cut", **arguments)
    for one, other in zip(whole["trials"], resumed["trials"], strict=True):
        assert (one["values"], one["score"]) == (other["values"], other["score"])
        assert Run(one["directory"]).history == Run(other["directory"]).history


def test_failing_trials_are_reported_with_their_cause(tmp_path, capsys):
    file = tmp_path / "iris.json"
    file.write_text(iris(epochs=1).to_json())
    space = "model.activation=choice(relu,no-such)"
    rate = f"{RATE}=choice(0.02,1e30)"
    arguments = ["tune", str(file), "--tuner", "grid", "--trials", "9", "--space", space]
    assert _main([*arguments, "--space", rate, "--run-dir", str(tmp_path / "s")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "failed: iris: loss became nan" in said
    assert "no-such" in said
    assert "Traceback" not in said
    assert f"epochal train {tmp_path / 's' / 'best.json'}" in said
    rows = list(csv.DictReader((tmp_path / "s" / "tune.csv").open()))
    assert sum(row["val_accuracy"] == "" for row in rows) == 3
    assert "all 4 points of the grid have been tried" in (tmp_path / "s" / "README.md").read_text()


def test_a_search_without_any_success_says_why(tmp_path):
    with pytest.raises(RunError, match="No trial has succeeded: all 2 .* loss became nan"):
        tune(iris(), 2, space=[f"{RATE}=log(1e30,1e32)"], directory=tmp_path / "s")


def test_folds_are_of_what_the_test_leaves(tmp_path):
    from epochal.pipelines.data import load

    result = tune(iris(epochs=1), 1, space=SPACE, tuner="random", folds=2, directory=tmp_path / "s")
    tests, seen, row = set(), [], result["trials"][0]
    runs = [Run(Path(row["directory"]) / f"fold-{fold}") for fold in (1, 2)]
    assert row["score"] == pytest.approx(np.mean([run.history[0]["val_accuracy"] for run in runs]))
    for run in runs:
        dataset = load(run.recipe.data)
        tests.add(tuple(dataset.rows("test")))
        seen += dataset.rows("validation").tolist()
    assert tests == {tuple(load(iris().data).rows("test"))}
    assert sorted([*seen, *tests.pop()]) == list(range(150))
    best = Recipe.from_json(Path(result["best_recipe"]).read_text())
    assert best == override(iris(epochs=1), result["best"]["values"])  # trains on one split again


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"space": ["algorithm.optimiser.learning_rate=log(1e-3,1)"]}, "Did you mean"),
        ({"space": ["algorithm.epochs=float(0.5,2.5)"]}, "algorithm.epochs"),
        ({"space": ["data.batch_size=choice(8,many)"]}, "batch_size"),
        ({"space": ["model.hiden=choice([4],[8])"]}, "Did you mean 'hidden'"),
        ({"space": ["algorithm.optimizer.name=choice(adam,warp)"]}, "no 'warp'"),
        ({"space": ["algorithm.epochs=int(2,2)"]}, "single value is no search"),
        ({"space": ["data.test_fraction=float(0,0.2)"]}, "cannot be searched"),
        ({"space": ["model.dropout=log(1e-3,0.5)", "seed=int(-1,1)"]}, "`seed`"),
        ({"space": ["loss=choice(cross-entropy,focal)"], "objective": "val_loss"}, "not compare"),
        ({"space": ["algorithm.epochs=int(1,3)"], "tuner": "hyperband"}, "leave it out"),
        ({"space": SPACE, "objective": "val_acc"}, "Did you mean 'val_accuracy'"),
        ({"space": SPACE, "objective": "accuracy"}, "no validation quantity"),
        ({"space": SPACE, "trials": None}, "needs an end"),
        ({"space": SPACE, "trials": 0}, "at least 1"),
        ({"space": SPACE, "folds": 1}, "at least 2"),
        ({"space": SPACE, "hours": -1.0}, "above 0"),
        ({"space": SPACE, "tuner": "magic"}, "bayesian, "),
        ({"space": SPACE, "role": "boss"}, "chief or worker"),
        ({"space": SPACE, "role": "worker", "chief": "nowhere"}, "HOST:PORT"),
        ({}, "declares no search space"),
    ],
)
def test_bad_input_is_named_before_anything_trains(arguments, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        tune(iris(), **({"trials": 3, "directory": tmp_path / "s"} | arguments))
    assert not list(tmp_path.glob("s/trial-*"))


# --------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_a_killed_worker_ends_nothing(tmp_path):
    file = tmp_path / "iris.json"
    file.write_text(iris(epochs=30).to_json())

    def start(role):
        return subprocess.Popen(
            [sys.executable, "-m", "epochal.pipelines.cli", "tune", str(file), "--trials", "4",
             "--tuner", "random", "--space", SPACE[0], "--space", SPACE[1], "--run-dir",
             str(tmp_path / "s"), "--role", role, "--chief", "127.0.0.1:18765", "--debug"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    chief = start("chief")
    doomed = start("worker")
    deadline = time.time() + 180
    while not list(tmp_path.glob("s/trial-001/checkpoints/latest.npz")):
        assert time.time() < deadline, chief.poll()
        time.sleep(0.2)
    doomed.send_signal(signal.SIGKILL)
    worker = start("worker")
    assert worker.wait(240) == 0, worker.stdout.read()
    assert chief.wait(60) == 0, chief.stdout.read()
    assert "fell silent" in chief.stdout.read()
    result = json.loads((tmp_path / "s" / "tune.json").read_text())
    assert [row["error"] for row in result["trials"]] == [None] * 4
    alone = tune(iris(epochs=30), 4, tuner="random", space=SPACE, directory=tmp_path / "alone")
    for one, other in zip(alone["trials"], result["trials"], strict=True):
        assert one["values"] == other["values"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
