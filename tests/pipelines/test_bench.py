"""The harness: sides alternate, ratios go pair by pair, and a quick real comparison runs."""

import io
import json
import subprocess

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from epochal.pipelines import bench
from epochal.pipelines.bench import (
    BENCHMARKS,
    BenchError,
    Row,
    cases,
    compare,
    games,
    run_benchmarks,
)
from epochal.pipelines.bench.input import photos
from epochal.pipelines.recipe import RecipeError


def test_ratios_are_of_pairs_and_sides_take_their_better_setting(monkeypatch):
    rates = {"ours": iter([4.0, 20.0, 8.0]), "peer": iter([2.0, 5.0, 8.0])}
    asked = []

    def child(row, side, setting, threads, quick=False):
        if quick:
            return {"rate": 1.0 + setting["jit"] * (1 if side == "ours" else -1), "unit": "/s"}
        asked.append((side, setting["jit"]))
        return {"rate": next(rates[side]), "unit": "/s"}

    monkeypatch.setattr(bench, "_child", child)
    row = Row("work", "case", ("ours", "peer"), settings=({"jit": False}, {"jit": True}))
    ours, peer = compare(row, 3)
    assert asked == [("ours", True), ("peer", False)] * 3
    assert (ours["median"], peer["median"]) == (8.0, 5.0)
    assert (peer["ratio"], peer["low"], peer["high"]) == (2.0, 1.0, 4.0)


def test_every_row_names_a_case():
    for _, rows in BENCHMARKS.values():
        for row in rows:
            assert row.case in cases.CASES
            assert len(row.sides) >= 2


def test_rows_are_chosen_by_their_label(monkeypatch):
    asked = []

    def child(row, side, setting, threads, quick=False):
        asked.append(row.label)
        return {"rate": 1.0, "unit": "/s"}

    monkeypatch.setattr(bench, "_child", child)
    console = Console(file=io.StringIO(), width=200)
    names = ("resnet20", "knn")  # which has no such row, and is passed over
    run_benchmarks(names, console, repeats=1, only="BF16")
    assert set(asked) == {"batch 128, 32x32x3, bf16"}
    asked.clear()
    with pytest.raises(RecipeError, match=r"No row has 'f8'.*batch 128, 32x32x3, f32; "):
        run_benchmarks(names, console, repeats=1, only="f8")
    assert not asked


def test_a_failing_side_is_named_and_the_others_go_on(monkeypatch, capsys):
    def child(row, side, setting, threads, quick=False):
        if row.case == "knn":
            raise BenchError("no faiss here")
        if row.together:
            return {"rates": dict.fromkeys(row.sides, 1.0), "unit": "/s"}
        return {"rate": 1.0, "unit": "/s"}

    monkeypatch.setattr(bench, "_child", child)
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(BenchError, match="knn"):
        run_benchmarks((), console, as_json=True, repeats=1)
    named = {line["benchmark"] for line in json.loads(capsys.readouterr().out)}
    assert named == set(BENCHMARKS) - {"knn"}
    assert "no faiss here" in console.file.getvalue()


def test_the_training_loop_case_runs():
    found = cases.train_loop("", quick=True)
    assert set(found["rates"]) == {"ours", "bare fit"}
    assert min(found["rates"].values()) > 0


def test_every_side_is_told_the_number_of_threads(monkeypatch):
    seen = []

    def process(command, env, **_):
        seen.append({name: env.get(name) for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")})
        return subprocess.CompletedProcess(command, 0, '{"rate": 1.0, "unit": "/s"}', "")

    monkeypatch.setattr(bench.subprocess, "run", process)
    monkeypatch.setattr(bench.time, "sleep", lambda seconds: None)
    compare(Row("work", "case", ("ours", "peer")), 2, threads=3)
    assert seen == [{"TF_NUM_INTRAOP_THREADS": "3", "OMP_NUM_THREADS": "3"}] * 4


def test_the_dqn_case_runs():
    options = {"hidden": 16, "batch": 8, "every": 4, "between": 256, "threads": 1}
    found = cases.CASES["dqn"]("ours", quick=True, **options)
    assert found["unit"] == "environment steps/s"
    assert 10 < found["rate"] < 1e6


@pytest.mark.parametrize("side", ["ours", pytest.param("Keras", marks=pytest.mark.slow)])
def test_the_input_case_runs(side):
    found = cases.CASES["input"](side, quick=True)
    assert found["unit"] == "images/s"
    assert 1 < found["rate"] < 1e5


def test_the_photos_of_the_input_case_differ(tmp_path):
    photos(tmp_path, 8)
    files = sorted(tmp_path.glob("*/*.jpg"))
    assert [file.parent.name for file in files] == ["0"] * 4 + ["1"] * 4
    assert {Image.open(file).size for file in files} == {(500, 375)}
    assert len({file.read_bytes() for file in files}) == 8


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dcgan", "simclr"])
def test_the_sides_train_the_same_weights(case):
    """Every side runs, and learns as many weights as the others."""
    pytest.importorskip("torch")
    for side in ("ours", "stock Keras layers", "PyTorch"):
        found = cases.CASES[case](side, quick=True)
        assert found["unit"] == "images/s"
        assert 1 < found["rate"] < 1e6
    keras_nets = [getattr(games, f"_{side}_{case}")() for side in ("our", "stock")]
    counts = [sum(int(np.prod(w.shape)) for w in net.trainable_weights) for net in keras_nets]
    shape = (2, 28, 28, 1) if case == "dcgan" else (2, 2, 32, 32, 3)
    _, learnt = getattr(games, f"_torch_{case}")(np.zeros(shape, "float32"))
    assert counts == [sum(weight.numel() for weight in learnt)] * 2


def test_pytorchs_step_of_a_dcgan_moves_all_and_works_out_no_more_than_that():
    """The generator's step leaves the discriminator's gradients as its own step made them."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1)).astype("float32")
    step, learnt = games._torch_dcgan(images)
    before = [weight.detach().clone() for weight in learnt]
    own = []
    adam = torch.optim.Adam.step

    def watched(self, *arguments):
        assert self.defaults["fused"]
        own.append([w.grad.clone() for group in self.param_groups for w in group["params"]])
        return adam(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", watched)
        step()
    of_d, of_g = own
    assert len(of_d) + len(of_g) == len(learnt)
    for weight, slope in zip(learnt[len(of_g) :], of_d, strict=True):
        assert torch.equal(weight.grad, slope)
    for weight, old in zip(learnt, before, strict=True):
        assert weight.ndim == 1 or not torch.equal(weight, old)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("generate", {"batch": 2}),
        pytest.param("gpt", {"precision": "mixed_bfloat16"}, marks=pytest.mark.slow),
        pytest.param("bert", {"task": "classification"}, marks=pytest.mark.slow),
        pytest.param("bert", {"task": "words"}, marks=pytest.mark.slow),
    ],
)
def test_the_language_cases_run(case, options):
    import keras

    try:
        found = cases.CASES[case]("ours", quick=True, tiny=True, **options)
    finally:
        keras.config.set_dtype_policy("float32")
    assert found["unit"] == "tokens/s"
    assert 0.1 < found["rate"] < 1e7


def test_the_limit_of_decoding_counts_the_bytes_of_a_step(monkeypatch):
    """GPT-2 small reads 123.65M weights a token, all but the positions: 494.6 MB in float32."""
    from epochal.pipelines.bench import decoding

    monkeypatch.setattr(decoding, "_bytes_per_second", lambda gigabytes: 20e9)
    limit = decoding.generate("reading the weights", quick=True)["rate"]
    assert limit == pytest.approx(20e9 / (4 * (124_439_808 - 1024 * 768)))
    half = decoding.generate("reading the weights", quick=True, batch=8, precision="bfloat16")
    assert half["rate"] == pytest.approx(16 * limit)
