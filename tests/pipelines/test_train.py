"""The trainer, in process, on tiny data: lengths, stops, errors, and what a run leaves behind."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from epochal.pipelines import recipe as r
from epochal.pipelines import run as run_module
from epochal.pipelines.checkpoint import load_checkpoint
from epochal.pipelines.plan import Plan
from epochal.pipelines.train import Diverged, train


def blobs(n=240, classes=3, seed=0):
    """Well separated clouds: any sound training gets nearly all of them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(n, 4)).astype("float32") + 4 * np.eye(4, dtype="float32")[y]
    return x, y


def recipe(model="mlp(hidden=[16])", loss="cross-entropy", data=None, seed=0, **algorithm):
    algorithm = {"optimizer": "adam(learning_rate=0.01)", "epochs": 6, **algorithm}
    if "steps" in algorithm:
        algorithm["epochs"] = None
    data = {"source": "python", "ops": "standardize", "batch_size": 16, **(data or {})}
    return r.Recipe(name="t", data=data, model=model, loss=loss, algorithm=algorithm, seed=seed)


def test_learns_and_reports(tmp_path):
    run = train(recipe(), tmp_path / "run", data=blobs())
    metrics = run.metrics
    assert metrics["test"]["accuracy"]["value"] > 0.95
    assert metrics["epochs"] == 6
    assert metrics["stop_reason"] == "all 6 epochs done"
    assert metrics["parameters"] == 4 * 16 + 16 + 16 * 3 + 3
    history = run.history
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    steps = -(-run.dataset["sizes"]["train"] // 16)
    assert [row["step"] for row in history] == [steps * e for e in range(1, 7)]
    assert history[-1]["loss"] < history[0]["loss"] / 2
    best = min(range(6), key=lambda e: history[e]["val_loss"])
    assert metrics["best_epoch"] == best + 1
    assert metrics["train"]["loss"] == history[best]["loss"]
    for name in ("learning_curves", "confusion_matrix"):
        assert (run.path / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    card = (run.path / "README.md").read_text()
    assert "| accuracy |" in card
    assert "- [confusion_matrix.png](plots/confusion_matrix.png): which class" in card
    assert "grad_cam.png" not in card  # a table has no images


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    runs = [
        train(recipe(model="mlp(hidden=[16], dropout=0.5)", seed=seed), tmp_path / n, data=blobs())
        for n, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    weights = [run.model.get_weights()[0] for run in runs]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.abs(weights[0] - weights[2]).max() > 1e-3
    assert runs[0].history == runs[1].history


def test_steps_may_end_in_the_middle_of_an_epoch(tmp_path):
    run = train(recipe(steps=25, steps_per_epoch=10), tmp_path / "run", data=blobs())
    assert [row["step"] for row in run.history] == [10, 20, 25]
    assert run.metrics["stop_reason"] == "all 25 steps done"


def test_steps_per_execution_gives_the_same_weights(tmp_path):
    one = train(recipe(steps=24, steps_per_epoch=8), tmp_path / "one", data=blobs())
    four = train(
        recipe(steps=24, steps_per_epoch=8, steps_per_execution=4), tmp_path / "four", data=blobs()
    )
    for a, b in zip(one.model.get_weights(), four.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert [row["step"] for row in four.history] == [8, 16, 24]
    with pytest.raises(r.RecipeError, match=r"steps_per_epoch \(9\) must be a multiple"):
        Plan(recipe(steps=18, steps_per_epoch=9, steps_per_execution=4), 10)


def test_averaged_weights_are_those_validated_and_kept(tmp_path):
    """The averages by hand, from the raw weights after every step."""
    momentum, averages = 0.5, []

    class Follow(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.average = self.model.trainable_variables[0].numpy().copy()

        def on_train_batch_end(self, batch, logs=None):
            new = self.model.trainable_variables[0].numpy()
            self.average = momentum * self.average + (1 - momentum) * new
            averages.append(self.average.copy())

    run = train(
        recipe(epochs=2, ema=momentum), tmp_path / "run", data=blobs(), callbacks=[Follow()]
    )
    steps = [row["step"] for row in run.history]
    kept = run.model.get_weights()[0]
    best = steps[run.metrics["best_epoch"] - 1]
    np.testing.assert_allclose(kept, averages[best - 1], atol=2e-5)
    value = run.metrics["validation"]["accuracy"]["value"]
    recorded = run.history[run.metrics["best_epoch"] - 1]["val_accuracy"]
    assert value == pytest.approx(recorded, abs=1e-6)


def test_plateau_lowers_the_rate(tmp_path):
    schedule = {"name": "plateau", "patience": 1, "factor": 0.5, "min_delta": 10.0}
    run = train(recipe(schedule=schedule, epochs=4), tmp_path / "run", data=blobs())
    rates = [row["learning_rate"] for row in run.history]
    assert rates[0] == pytest.approx(0.01)
    assert rates[-1] < 0.006


def test_divergence_names_quantity_step_and_epoch(tmp_path):
    x, y = blobs()
    wild = recipe(loss="mse", model="linear", optimizer="sgd(learning_rate=1e12)",
                  data={"task": "regression"})  # fmt: skip
    with pytest.raises(Diverged, match=r"loss became (nan|inf).* step \d+.*learning_rate"):
        train(wild, tmp_path / "run", data=(x, y.astype("float32")))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["stop_reason"].startswith("diverged: loss became")
    with pytest.raises(Diverged, match="holds this run, which diverged"):
        train(wild, tmp_path / "run", data=(x, y.astype("float32")))


def test_regression_metrics_are_in_the_targets_own_units(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)).astype("float32")
    y = 1e5 + 2e4 * x[:, 0] + 1e3 * rng.normal(size=300)
    data = {"standardize_target": True}
    run = train(recipe("linear", "mse", data, epochs=60), tmp_path / "run", data=(x, y))
    assert 600 < run.metrics["test"]["mae"]["value"] < 1_100  # 1e3 sqrt(2 / pi) = 798
    recorded = run.history[run.metrics["best_epoch"] - 1]["val_mae"]
    assert run.metrics["validation"]["mae"]["value"] == pytest.approx(recorded, rel=1e-4)


def test_mixed_precision_keeps_float32_weights_and_restores_the_policy(tmp_path):
    run = train(recipe(precision="mixed_bfloat16"), tmp_path / "run", data=blobs())
    assert keras.config.dtype_policy().name == "float32"
    assert run.metrics["test"]["accuracy"]["value"] > 0.95
    assert {str(w.dtype) for w in run.model.get_weights()} == {"float32"}


def test_knn_is_trained_by_the_same_trainer(tmp_path):
    x, y = blobs()
    data = {"shuffle": False, "validation_fraction": 0.0}
    run = train(
        recipe("knn(k=3)", "zero-one", data, epochs=1), tmp_path / "run", data=(x, y)
    )  # fmt: skip
    assert run.metrics["parameters"] == 0
    assert run.metrics["test"]["accuracy"]["value"] > 0.95
    assert "validation" not in run.metrics


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "mse"}, "'mse' is for regression"),
        ({"loss": "cross-entropy(label_smoothing=2)"}, "label_smoothing"),
        ({"model": "mlp(activation='gelo')"}, "gelo"),
        ({"model": "knn(k=100000)"}, "k must lie between"),
        ({"optimizer": "adam(beta_1=2)"}, "beta_1"),
        ({"early_stopping": r.EarlyStopping(monitor="val_acc")}, "Did you mean 'val_accuracy'"),
        ({"schedule": "plateau(monitor='val_los')"}, "Did you mean 'val_loss'"),
        ({"data": {"ops": "standardize|flip_lr"}}, "flip_lr"),
        ({"data": {"source": "pyton"}}, "pyton"),
    ],
)
def test_what_cannot_work_is_said_before_training(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train(recipe(**changes), tmp_path / "run", data=blobs())
    assert not (tmp_path / "run" / "history.csv").exists()
    # Nothing has begun: the mistake can be mended in the same directory.
    if "loss" in changes:
        mended = train(recipe(epochs=1), tmp_path / "run", data=blobs())
        assert mended.recipe.loss.name == "cross-entropy"


def test_early_stopping_may_start_after_a_share_of_the_epochs(tmp_path):
    early = r.EarlyStopping(patience=1, min_delta=100.0, start=0.5)  # no epoch is so much better
    run = train(recipe(early_stopping=early), tmp_path / "run", data=blobs())
    assert run.metrics["best_epoch"] == 4  # the first of the second half
    assert run.metrics["epochs"] == 5


def test_resuming_with_other_data_is_refused(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tmp_path / "run", data=blobs(), callbacks=[Stop()])
    with pytest.raises(run_module.RunError, match="not those of"):
        train(recipe(), tmp_path / "run", data=blobs(seed=9))
    whole = train(recipe(), tmp_path / "whole", data=blobs())
    resumed = train(recipe(), tmp_path / "run", data=blobs())
    assert resumed.history == whole.history
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_default_directories_count_up_and_resume_the_unfinished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe(epochs=2), data=blobs(), callbacks=[Stop()])
    assert train(recipe(epochs=2), data=blobs()).path.name == "t-1"
    assert train(recipe(epochs=2), data=blobs()).path.name == "t-2"


def test_a_directory_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(run_module.RunError, match="other files"):
        train(recipe(), tmp_path, data=blobs())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_recipe_file_that_the_user_wrote_is_not_overwritten(tmp_path):
    mine = recipe(epochs=1).to_json()
    (tmp_path / "recipe.json").write_text(mine)
    with pytest.raises(run_module.RunError, match=r"seed: 0 -> 3"):
        train(recipe(epochs=1, seed=3), tmp_path, data=blobs())
    assert (tmp_path / "recipe.json").read_text() == mine


def test_where_nothing_can_be_written_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(run_module.RunError, match="Cannot write to runs/t-1"):
        train(recipe(), data=blobs())


_FULL = """
import resource, signal, sys
sys.path.insert(0, {folder!r})
from test_train import blobs, recipe
import keras
from epochal.pipelines.train import train
class Fill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == {epoch}:  # from now on no file may grow past 2 kB, as on a full disk
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
try:
    train(recipe(), {directory!r}, data=blobs(), callbacks=[Fill()])
except RuntimeError as error:
    sys.exit(str(error))
"""


def test_a_full_disk_loses_nothing(tmp_path):
    """A real one: the process may not write files past a size from the fourth epoch on."""
    directory = str(tmp_path / "run")
    code = _FULL.format(folder=os.path.dirname(__file__), epoch=3, directory=directory)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "checkpoint of epoch 4 could not be written" in result.stderr
    about = load_checkpoint(tmp_path / "run" / "checkpoints" / "latest.npz")[1]
    assert len(about["history"]) == 3
    resumed = train(recipe(), tmp_path / "run", data=blobs())
    assert resumed.history == train(recipe(), tmp_path / "whole", data=blobs()).history


@pytest.mark.slow
def test_drop_path_and_frozen_layers_resume_bit_equal(tmp_path):
    """What stochastic depth draws is restored, and so is which layers train."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    x = np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3)).astype("uint8")
    options = {"data": (x, np.arange(96) % 3)}
    chosen = {"name": "resnet18", "width": 2, "drop_path": 0.5, "freeze": "stage1"}
    residual = recipe(model=chosen, data={"ops": "flip_lr|scale"}, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(residual, tmp_path / "run", callbacks=[Stop()], **options)
    resumed = train(residual, tmp_path / "run", **options)
    whole = train(residual, tmp_path / "whole", **options)
    assert resumed.history == whole.history
    for a, b in zip(whole.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
