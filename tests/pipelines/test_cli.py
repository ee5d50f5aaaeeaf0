"""The command line, in process: verbs, keys, exit codes, messages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from epochal.pipelines import cli
from epochal.pipelines.cli import _complete, _main, _split_keys
from epochal.pipelines.run_verbs import train

ASK = Path(cli.__file__).with_name("ask.py")
TINY = ["--algorithm.epochs", "2", "--data.train-examples", "200", "--model.hidden", "(8,)"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cli") / "run"
    assert _main(["train", "mlp-digits", "--run-dir", str(directory), *TINY]) == 0
    return directory


def said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_flags_of_the_verb_and_keys_of_the_recipe_are_told_apart():
    own, changes = _split_keys(
        train, ["mlp-digits", "--run-dir", "x", "--json", "--seed=3", "--data.batch-size", "64"]
    )
    assert own == ["mlp-digits", "--run-dir", "x", "--json"]
    assert changes == {"seed": "3", "data.batch-size": "64"}


def test_train_leaves_the_run_directory_of_the_contract(run_dir):
    names = {p.name for p in run_dir.iterdir()}
    assert {
        "recipe.json", "environment.json", "dataset.json", "history.csv", "metrics.json",
        "README.md", "model.keras", "checkpoints", "tensorboard", "plots",
    } <= names  # fmt: skip
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["stop_reason"] == "all 2 epochs done"
    assert metrics["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert set(metrics["train"]) == {"loss", "accuracy"}
    test = metrics["test"]["accuracy"]
    assert 0 <= test["low"] <= test["value"] <= test["high"] <= 1
    assert len((run_dir / "history.csv").read_text().splitlines()) == 3


def test_a_finished_run_is_returned_and_another_recipe_refused(run_dir, capsys):
    before = (run_dir / "model.keras").stat().st_mtime_ns
    assert _main(["train", "mlp-digits", "--run-dir", str(run_dir), *TINY]) == 0
    assert (run_dir / "model.keras").stat().st_mtime_ns == before
    capsys.readouterr()
    assert _main(["train", "mlp-digits", "--run-dir", str(run_dir), "--seed", "5", *TINY]) == 1
    assert "seed: 0 -> 5" in said(capsys)


def test_evaluate_repeats_the_final_test_figures(run_dir, capsys):
    assert _main(["evaluate", str(run_dir), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert result["metrics"]["accuracy"] == metrics["test"]["accuracy"]


def test_show_run_and_model_and_keys(run_dir, capsys, monkeypatch):
    assert _main(["show", str(run_dir)]) == 0
    assert "mlp-digits" in said(capsys)
    assert _main(["show", "linear", "--input-shape", "3", "--num-classes", "2", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["total"]["parameters"] == 3 * 2 + 2
    assert table["total"]["multiply_adds"] == 3 * 2
    assert _main(["show", "mlp-digits", "--keys"]) == 0
    text = said(capsys)
    assert "model.hidden" in text
    assert "algorithm.early_stopping.patience" in text
    monkeypatch.delenv("COLUMNS", raising=False)  # in a pipe each key has one line
    assert _main(["show", "mlp-digits", "--keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("algorithm.jit "))
    assert line.split()[1:3] == ["bool", "False"]
    assert line.endswith("slows convolutions down.")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trian"], 2, "Did you mean 'train'"),
        (["train", "mlp-digts"], 1, "Did you mean 'mlp-digits'"),
        (["train", "mlp-digits", "--algorithm.epocs", "3"], 1, "algorithm.epochs"),
        (["train", "mlp-digits", "--algorithm.epochs"], 2, "needs a value"),
        (["train", "mlp-digits", "--algorithm.epochs", "-1"], 1, "`algorithm.epochs`"),
        (["train", "mlp-digits", "--data.ops", "standardise"], 1, "Did you mean 'standardize'"),
        (["train", "mlp-digits", "--data.source", "builtin:digit"], 1, "digits"),
        (["train", "mlp-digits", "--data.source", "csv:/no/such.csv",
          "--data.ops", "impute"], 1, "/no/such.csv"),
        (["train", "mlp-digits", "--algorithm.early-stopping.monitor", "x"], 1, "val_accuracy"),
        (["evaluate", "/no/such/run"], 1, "does not exist"),
        (["evaluate", "/tmp", "--splt", "x"], 2, "(did you mean --split?)"),
        (["evaluate", "/tmp", "--also", "/tmp"], 2, "--also goes with --labels or --fraction"),
        (["evaluate", "/tmp", "--seeds", "3"], 2, "--seeds goes with --labels or --fraction"),
        (["evaluate", "/tmp", "--fraction", "0.1", "--split", "validation"], 2,
         "--split does nothing with --labels or --fraction"),
        (["evaluate", "/tmp", "--labels", "folder:x", "--features", "/tmp"], 2,
         "--features does nothing with --labels or --fraction"),
        (["evaluate", "/tmp", "--fraction", "0.1", "--against", "x"], 2, "--against does nothing"),
        (["evaluate", "/tmp", "--fraction", "0.1", "--video"], 2, "--video does nothing"),
        (["evaluate", "/tmp", "--fraction", "0.1", "--seeds", "3", "--also", "/tmp"], 2,
         "--seeds does nothing with --also"),
        (["evaluate", str(ASK)], 1, "is a file, not the directory of a run"),
        (["predict", "/tmp"], 2, "give image files"),
        (["show", "linear", "--keys"], 2, "for recipes and runs"),
        (["show", "mlp-digits", "--num-classes", "3"], 2, "for models"),
        (["show", "resnet20", "--input-shape", "3"], 1, "resnet20: input_shape must be"),
        (["list", "models", "no*"], 1, "No models match"),
        (["show", "resnet-20"], 1, "Did you mean 'resnet20'"),
        (["bench", "nothing"], 1, "There is no benchmark"),
    ],
)  # fmt: skip
def test_mistakes_end_with_one_paragraph(arguments, code, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _main(arguments) == code
    text = said(capsys)
    assert words in text
    assert "Traceback" not in text
    assert "unexpected" not in text


def test_a_run_is_known_by_its_directory_alone(run_dir, capsys, monkeypatch):
    monkeypatch.chdir(run_dir.parent)
    Path("linear").mkdir()  # no run: the name of the model
    assert _main(["show", "linear", "--input-shape", "3", "--num-classes", "2"]) == 0
    assert _main(["show", "run", "--keys"]) == 0
    assert "model.hidden" in said(capsys)
    for arguments, code, words in (
        (["show", "run", "--seed", "3"], 2, "a run's recipe stays as it is"),
        (["evaluate", "rum"], 1, "does not exist. Did you mean 'run'?"),
        (["evaluate", "run/recipe.json"], 1, "its folder is one"),
        (["train", "run"], 1, "`epochal train run/recipe.json --run-dir run` goes on"),
        (["train", "run/metrics.json"], 1, "run/metrics.json cannot be read: Recipe '?' is not"),
        (["train", "run/model.keras.json"], 1, "There is no recipe file"),
    ):
        assert _main(arguments) == code
        assert words in said(capsys)


def test_json_has_no_nan_and_tables_a_dash(run_dir, capsys, monkeypatch):
    from epochal.pipelines import evaluate as verb

    found = {"split": "test", "examples": 1, "metrics": {"r2": {"value": 0.5, "low": np.nan}}}
    found["metrics"]["r2"]["high"] = 0.75
    monkeypatch.setattr(sys.modules[verb.__module__], "evaluate", lambda *_, **__: found)
    assert _main(["evaluate", str(run_dir), "--json"]) == 0
    r2 = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["metrics"]["r2"]
    assert r2 == {"value": 0.5, "low": None, "high": 0.75}
    assert _main(["evaluate", str(run_dir)]) == 0
    assert "0.5000 [-, 0.7500]" in said(capsys)
    found["metrics"]["r2"]["high"] = np.inf  # no interval at all is not shown as one
    assert _main(["evaluate", str(run_dir)]) == 0
    assert "0.5000" in (shown := said(capsys))
    assert "[-" not in shown


def test_interrupted_work_that_does_not_go_on_does_not_say_so(run_dir, capsys, monkeypatch):
    from epochal.pipelines import evaluate as verb

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[verb.__module__], "evaluate", interrupted)
    assert _main(["evaluate", str(run_dir)]) == 130
    assert said(capsys) == "interrupted"


def test_a_reader_that_has_enough_is_no_error():
    command = f"set -o pipefail; {sys.executable} -m epochal.pipelines.cli list ops | true"
    subprocess.run(["bash", "-c", command], check=True, env={**os.environ, "COLUMNS": "1000"})


def test_answers_come_one_by_one(run_dir, capsys, tmp_path):
    from PIL import Image

    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    Image.new("L", (8, 8)).save(files[0])
    many = [files[0]] * 256  # a batch
    assert _main(["predict", str(run_dir), *many, files[1], "--json"]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["input"] for line in lines] == many
    assert "There is no file" in captured.err


def test_debug_shows_the_traceback(capsys):
    with pytest.raises(ValueError, match="no recipe"):
        _main(["train", "nothing", "--debug"])


def test_completion_knows_recipes_keys_and_verbs():
    assert "mlp-digits" in _complete(["train", ""])
    assert "--algorithm.weight-decay" in _complete(["train", "mlp-digits", "--algo"])
    assert "evaluate" in _complete(["ev"])


def test_interrupt_saves_and_resumes(tmp_path):
    """SIGINT in the middle: exit code 130; the same command goes on and finishes."""
    command = [sys.executable, "-m", "epochal.pipelines.cli", "train", "mlp-digits",
               "--run-dir", str(tmp_path / "run"), "--algorithm.epochs", "400",
               "--algorithm.early-stopping", "none"]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # tests that were started in a shell's background have it ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.time() + 60
    while not (tmp_path / "run" / "history.csv").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "goes on from the last complete epoch" in output
    from epochal.pipelines.checkpoint import load_checkpoint
    from epochal.pipelines.run import Run

    done = len(load_checkpoint(tmp_path / "run" / "checkpoints" / "latest.npz")[1]["history"])
    assert 1 <= done < 400
    assert not Run(tmp_path / "run").finished


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_drops_still_stops(number, tmp_path, monkeypatch, capsys):
    """A signal that arrives within ``__del__``, whose exceptions Python does not pass on."""
    import keras

    class Dropped:
        def __del__(self):
            signal.raise_signal(number)

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            Dropped()

    monkeypatch.setattr(keras.callbacks.History, "on_epoch_begin", on_epoch_begin)
    # A shell starts what it puts into the background with SIGINT ignored, and so it would stay.
    before = signal.signal(number, signal.default_int_handler)
    try:
        assert _main(["train", "mlp-digits", "--run-dir", str(tmp_path)]) == 130
    finally:
        signal.signal(number, before)
    assert "goes on from the last complete epoch" in said(capsys)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


def test_export_and_predict_from_a_relative_directory(run_dir, capsys, monkeypatch, tmp_path):
    """As a user types it: the checker's process stands elsewhere."""
    from PIL import Image
    from sklearn.datasets import load_digits

    monkeypatch.chdir(run_dir.parent)
    assert _main(["export", "run", "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported == {"export": "run/export/1", "verified": True}
    # The script that needs TensorFlow alone: the export's own example, then a file.
    digit = (load_digits().images[0] / 16 * 255).round().astype("uint8")
    Image.fromarray(digit).save("digit.png")
    assert _main(["predict", "run", "digit.png", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    from epochal.pipelines.run import Run

    run = Run("run")
    outputs = run.model(run.preprocess(digit[None, ..., None])).numpy()[0]
    assert answer["label"] == str(outputs.argmax())
    softmax = np.exp(outputs - outputs.max())
    assert answer["probability"] == pytest.approx(softmax.max() / softmax.sum(), rel=1e-5)
    ask = [sys.executable, "-I", str(ASK), "run/export", "digit.png"]
    for command, name in ((ask[:-1], "the example in run/export/1"), (ask, "digit.png")):
        said_alone = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said_alone.startswith(name)
        assert "alone" in said_alone
    assert f"label {answer['label']}, probability {answer['probability']:.4f}" in said_alone
