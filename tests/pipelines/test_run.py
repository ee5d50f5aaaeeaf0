"""The run directory: atomic files, locks, checkpoints by position, the recorded environment."""

import json
import os
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from epochal.pipelines import checkpoint, claim, environment, run
from epochal.pipelines import recipe as r


def test_write_atomic_replaces_or_leaves_alone(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    run.write_atomic(path, "old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        run.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_json_has_no_nan(tmp_path):
    run.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [np.float32(1.5), np.inf], 3: ()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None], "3": []}


def test_history_keeps_every_bit(tmp_path):
    rows = [{"epoch": 1, "step": 7, "loss": 0.1 + 0.2}, {"epoch": 2, "step": 14, "loss": 1e-300}]
    run.write_history(tmp_path / "history.csv", rows)
    assert run.read_history(tmp_path / "history.csv") == rows


def test_checkpoint_round_trip_and_damage(tmp_path):
    arrays = [np.arange(6, dtype="float32").reshape(2, 3), np.array(7, "int64")]
    path = tmp_path / "latest.npz"
    checkpoint.save_checkpoint(path, arrays, {"history": [{"loss": float("nan")}]})
    loaded, about = checkpoint.load_checkpoint(path)
    for ours, theirs in zip(arrays, loaded, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert np.isnan(about["history"][0]["loss"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(run.RunError, match="damaged"):
        checkpoint.load_checkpoint(path)
    assert checkpoint.load_checkpoint(tmp_path / "none.npz") is None


def test_assign_checks_every_shape_before_it_changes_anything(tmp_path):
    import keras

    variables = [keras.Variable(np.zeros(2)), keras.Variable(np.zeros((3, 2)))]
    with pytest.raises(run.RunError, match=r"\(2, 3\), \(3, 2\)"):
        checkpoint.assign(variables, [np.ones(2), np.ones((2, 3))], tmp_path)
    assert float(variables[0].numpy().sum()) == 0.0


def test_lock_is_exclusive_and_dies_with_its_process(tmp_path):
    holder = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from epochal.pipelines.claim import locked
        with locked(Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(run.RunError, match="Another process"), claim.locked(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    with claim.locked(tmp_path):
        pass


def test_another_recipe_shows_the_difference(tmp_path):
    def recipe(**algorithm):
        return r.Recipe(
            name="a", data=r.Data(source="builtin:iris"), model="mlp", loss="mse",
            algorithm=r.Algorithm(**algorithm),
        )  # fmt: skip

    run.write_atomic(tmp_path / "recipe.json", recipe(epochs=3).to_json())
    claim.check_same_recipe(tmp_path, recipe(epochs=3))
    with pytest.raises(run.RunError) as error:
        claim.check_same_recipe(tmp_path, recipe(epochs=4, optimizer="sgd(momentum=0.5)"))
    assert "algorithm.epochs: 3 -> 4" in str(error.value)
    assert "algorithm.optimizer.name: 'adam' -> 'sgd'" in str(error.value)
    assert "algorithm.optimizer.momentum: None -> 0.5" in str(error.value)


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(run.RunError, match="holds no run"):
        run.Run(tmp_path)
    with pytest.raises(run.RunError, match="does not exist"):
        run.Run(tmp_path / "nowhere")


def test_other_threads_or_versions_are_an_error_that_names_them():
    here = environment.describe()
    environment.restore(here)
    there = json.loads(json.dumps(here))
    there["packages"]["tensorflow"] = "1.0"
    there["threads"]["intra"] = 97
    with pytest.raises(run.RunError, match=r"tensorflow was '1\.0'.*threads was .*97"):
        environment.restore(there)
    environment.restore(there, strict=False)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    recipe = r.Recipe(
        name="t", data={"source": "builtin:iris"}, model="linear", loss="cross-entropy",
        algorithm={"epochs": 1},
    )  # fmt: skip
    run.write_atomic(tmp_path / "recipe.json", recipe.to_json())
    with pytest.raises(run.RunError, match=r"has no model.keras yet: training has not finished"):
        _ = run.Run(tmp_path).model
    run.write_json(tmp_path / "metrics.json", {"stop_reason": "diverged: loss is NaN"})
    with pytest.raises(run.RunError, match=r"has no model.keras: it diverged: loss is NaN"):
        _ = run.Run(tmp_path).model
    run.write_json(tmp_path / "metrics.json", {"stop_reason": "all 1 epochs done"})
    with pytest.raises(run.RunError, match=r"has lost its dataset.json"):
        _ = run.Run(tmp_path).dataset
    (tmp_path / "model.keras").write_bytes(b"PK no zip")
    with pytest.raises(run.RunError, match=r"model.keras is damaged"):
        _ = run.Run(tmp_path).model
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(run.RunError, match=r"recipe.json cannot be read: A recipe's file holds"):
        _ = run.Run(tmp_path).recipe
    (tmp_path / "recipe.json").write_text("[]")
    with pytest.raises(run.RunError, match=r"A recipe is a JSON object; this is list"):
        _ = run.Run(tmp_path).recipe
