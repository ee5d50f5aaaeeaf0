"""``epochal bench``: ours against what people use today, in one run on one machine.

A row of a benchmark times the same work on several sides: the same precision, batch and number of
threads (all cores, unless told otherwise). Sides run alternately, each time in a new process, so
that a drift of the machine's speed meets all of them; each process warms up before the clock
starts. A side that has a choice (XLA or not) first shows which of its settings is the faster one
and then runs with that. Reported are the medians and, pair by pair, the ratio to the peer with its
range.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from ...models.hints import did_you_mean
from ..recipe import RecipeError


@dataclass(frozen=True)
class Row:
    """One comparison: case and sides name functions of ``cases``; the first side is ours."""

    label: str
    case: str
    sides: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    settings: tuple[dict[str, Any], ...] = ({},)
    """Settings that every side may choose from."""
    own_settings: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)
    """Side -> what it may choose from in place of ``settings``."""
    together: bool = False
    """Differences smaller than what two processes differ by: one process times all sides in turn,
    and its case answers {"rates": {side: rate}}."""


_XLA = ({"jit": False}, {"jit": True})
_NO_XLA: dict[str, tuple[dict[str, Any], ...]] = {"PyTorch": ({},)}
_FIT = ("ours", "bare fit")
_RESNET = ("ours", "stock Keras layers")
_RESNET50 = ("ours", "keras.applications", "stock Keras layers", "PyTorch", "matrix products")
_THREE = ("ours", "stock Keras layers", "PyTorch")
_LSTM = ("ours", "stock Keras as it comes", "stock Keras layers", "PyTorch")
_KNN = ("ours", "faiss", "scikit-learn")
_DQN = ("ours", "stable-baselines3")
_DQN_LARGE = {"hidden": 256, "batch": 64, "every": 2, "between": 256}
_DQN_SMALL = {"hidden": 64, "batch": 32, "every": 4}
_THREADS = ({"threads": 1}, {"threads": 2})
_BLOCKS = tuple(one | {"between": n} for one in _THREADS for n in (4, 256))
_NET = {"net": "resnet20"}
_LANGUAGE = ("ours", "keras-hub", "Hugging Face")
_LIMIT = "reading the weights"
_HALF, _WORDS = {"precision": "mixed_bfloat16"}, {"task": "words"}
_XLA_THREADS = tuple(xla | threads for threads in _THREADS for xla in _XLA)


def _language(label: str, case: str, **options) -> Row:
    own = {"Hugging Face": _THREADS}  # PyTorch has no XLA
    return Row(label, case, _LANGUAGE, options, _XLA_THREADS, own)


def _decoding(batch: int, label: str, precision: str) -> Row:
    options = {"batch": batch, "precision": precision}
    own = {"ours": _THREADS, "Hugging Face": _THREADS, _LIMIT: ({},)}  # ours is a plain graph
    return Row(label, "generate", (*_LANGUAGE, _LIMIT), options, _XLA_THREADS, own)


_F32, _BF16 = {"policy": "float32"}, {"policy": "mixed_bfloat16"}

# name -> (one line, rows)
BENCHMARKS: dict[str, tuple[str, tuple[Row, ...]]] = {
    "train-loop": (
        "a step of the trainer (all its callbacks) against a bare model.fit, same data and model",
        (
            Row("MLP 784-512-256-10, batch 128", "train_loop", _FIT, together=True),
            Row("ResNet-20, batch 64, 8x8", "train_loop", _FIT, _NET, together=True),
        ),
    ),
    "input": (
        "JPEG files to batches: crop, mirror, RandAugment, against Keras's loader and layers",
        (Row("JPEG 500x375 to 224x224, batch 32", "input", ("ours", "Keras")),),
    ),
    "knn": (
        "k=5 among 60,000 x 784: queries/s against faiss IndexFlatL2 and scikit-learn",
        (
            Row("Fashion-MNIST, 60,000 x 784", "knn", _KNN, {"data": "fashion_mnist"}),
            Row("noise, 60,000 x 784", "knn", _KNN, {"data": "noise"}),
        ),
    ),
    "resnet20": (
        "a training step of ResNet-20, batch 128, against the same net of stock Keras layers",
        (
            Row("batch 128, 32x32x3, f32", "resnet20", _RESNET, _F32, _XLA),
            Row("batch 128, 32x32x3, bf16", "resnet20", _RESNET, _BF16, _XLA),
        ),
    ),
    "resnet50": (
        "a training step of ResNet-50, batch 8, 224x224, against Keras's, PyTorch's and the limit",
        (
            Row("batch 8, 224x224x3, f32", "resnet50", _RESNET50, _F32),
            Row("batch 8, 224x224x3, bf16", "resnet50", _RESNET50, _BF16),
        ),
    ),
    "lstm": (
        "a training step of an LSTM language model against stock Keras layers and PyTorch",
        (
            Row(
                "batch 32, 100 tokens, 2 x 256, f32",
                "lstm",
                _LSTM,
                settings=_XLA,
                own_settings={"stock Keras as it comes": ({"jit": "auto"},), **_NO_XLA},
            ),
        ),
    ),
    "transformer": (
        "a training step of a small Transformer against stock Keras layers and PyTorch",
        (
            Row(
                "batch 32, 32+32 tokens, 3+3 x 256, f32",
                "transformer",
                _THREE,
                settings=_XLA,
                own_settings=_NO_XLA,
            ),
        ),
    ),
    "bert": (
        "a training step of BERT 4x256 against keras-hub and Hugging Face on PyTorch",
        (
            _language("two classes, batch 16x128, f32", "bert"),
            _language("two classes, batch 16x128, bf16", "bert", **_HALF),
            _language("20 hidden words of 128, batch 16, f32", "bert", **_WORDS),
            _language("20 hidden words of 128, batch 16, bf16", "bert", **_WORDS, **_HALF),
        ),
    ),
    "gpt": (
        "a training step of GPT 6x384 against keras-hub and Hugging Face on PyTorch",
        (
            _language("batch 16x128, 30,522 ids, f32", "gpt"),
            _language("batch 16x128, 30,522 ids, bf16", "gpt", **_HALF),
        ),
    ),
    "generate": (
        "greedy decoding of GPT-2 small against both, and the limit that memory sets",
        (
            _decoding(1, "batch 1, f32", "float32"),
            _decoding(8, "batch 8, f32", "float32"),
            _decoding(1, "batch 1, bf16", "bfloat16"),
            _decoding(8, "batch 8, bf16", "bfloat16"),
        ),
    ),
    "dqn": (
        "acting and learning on CartPole and Pong against stable-baselines3, as many updates",
        (
            Row("256-256, batch 64, 1 in 2", "dqn", _DQN, _DQN_LARGE, _THREADS),
            Row("64-64, batch 32, 1 in 4", "dqn", _DQN, _DQN_SMALL, _BLOCKS),
            Row("the same, 4 steps at a time", "dqn", _DQN, _DQN_SMALL | {"between": 4}, _THREADS),
            Row("Atari, batch 32, 1 in 4", "dqn_atari", _DQN, settings=_THREADS),
        ),
    ),
    "dcgan": (
        "a training step of DCGAN, both players, against stock Keras layers and PyTorch",
        (Row("batch 64, 28x28x1, f32", "dcgan", _THREE),),
    ),
    "simclr": (
        "a training step of SimCLR with ResNet-20 against stock Keras layers and PyTorch",
        (Row("batch 128, 2 x 32x32x3, f32", "simclr", _THREE),),
    ),
    "decode": (
        "greedy decoding of 128 tokens with and without cached keys and values",
        (Row("Transformer 3+3 x 256, batch 8", "decode", ("ours", "without cache")),),
    ),
}
TABLE = {name: text for name, (text, _) in BENCHMARKS.items()}


class BenchError(RuntimeError):
    """A benchmark that could not run. The message says what to do."""


def run_benchmarks(
    names: tuple[str, ...],
    console: Console,
    *,
    as_json: bool = False,
    repeats: int = 5,
    threads: int | None = None,
    only: str = "",
) -> list[dict[str, Any]]:
    """Runs benchmarks and prints a table of each of their rows.

    Args:
        names: which; without any, all.
        console: where progress goes, and a table of each row as soon as it is done.
        as_json: print JSON instead.
        repeats: how often each side runs.
        threads: for each side; None: the libraries' own number.
        only: run the rows that have this in their label.

    Returns:
        One line a row and side: {"benchmark"} and what :func:`compare` gives.

    Raises:
        RecipeError: an unknown benchmark, or no row with such a label; before anything runs.
        BenchError: some could not run; the others have.
    """
    for name in names:
        if name not in BENCHMARKS:
            hint = did_you_mean(name, BENCHMARKS, 0.3)
            raise RecipeError(f"There is no benchmark {name!r}.{hint} There are: {list(TABLE)}.")
    chosen = {name: _rows(name, only) for name in names or BENCHMARKS}
    if not any(chosen.values()):
        labels = [row.label for name in chosen for row in _rows(name, "")]
        raise RecipeError(f"No row has {only!r} in its label. There are: {'; '.join(labels)}.")
    results, failed = [], []
    for name, rows in chosen.items():
        if not rows:
            continue
        if not as_json:
            console.print(f"{name}: {TABLE[name]}", highlight=False, soft_wrap=True)
        for row in rows:
            try:
                found = compare(
                    row, repeats, lambda line: _progress(console, as_json, line), threads
                )
            except BenchError as error:  # a peer that is not installed, say: the others go on
                console.print(f"{name}: {error}", highlight=False, soft_wrap=True)
                failed.append(name)
                continue
            results += [{"benchmark": name, **line} for line in found]
            if not as_json:
                console.print(_table(row.label, found))
    if as_json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    if failed:
        raise BenchError(f"These could not run to their end: {', '.join(dict.fromkeys(failed))}.")
    return results


def _table(label: str, found: list[dict[str, Any]]) -> Table:
    """What :func:`compare` gives for a row, narrow enough for 80 columns."""
    table = Table(title=label, title_justify="left", box=None, pad_edge=False)
    for column in ("side", "setting"):
        table.add_column(column)
    table.add_column(found[0]["unit"], justify="right")
    table.add_column("ours / side [range]")
    for line in found:
        table.add_row(
            line["side"],
            ", ".join(f"{k}={v}" for k, v in line["setting"].items()),
            _digits(line["median"]),
            f"{line['ratio']:.2f} [{line['low']:.2f}, {line['high']:.2f}]",
        )
    return table


def _digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _rows(name: str, only: str) -> list[Row]:
    return [row for row in BENCHMARKS[name][1] if only.lower() in row.label.lower()]


def compare(
    row: Row, repeats: int, say=lambda line: None, threads: int | None = None
) -> list[dict[str, Any]]:
    """Times the sides of a row alternately; rates, so that a ratio above 1 means ours is faster."""
    chosen = {}
    for side in row.sides:
        settings = row.own_settings.get(side, row.settings)
        tried = [(_child(row, side, s, threads, quick=True), s) for s in settings] if (
            len(settings) > 1
        ) else [({}, settings[0])]  # fmt: skip
        chosen[side] = max(tried, key=lambda pair: pair[0].get("rate", 0.0))[1]
    rates: dict[str, list[float]] = {side: [] for side in row.sides}
    unit = ""
    for repeat in range(repeats):
        if row.together:
            measured = _child(row, "", row.settings[0], threads)
            found = measured["rates"]
        else:
            measured = {side: _child(row, side, chosen[side], threads) for side in row.sides}
            found = {side: answer["rate"] for side, answer in measured.items()}
            measured = measured[row.sides[0]]
        unit = measured["unit"]
        for side, rate in found.items():
            rates[side].append(rate)
            say(f"{row.label} {repeat + 1}/{repeats} {side}: {_digits(rate)} {unit}")
    ours = rates[row.sides[0]]
    lines = []
    for side in row.sides:
        ratios = [a / b for a, b in zip(ours, rates[side], strict=True)]
        lines.append(
            {
                "row": row.label,
                "side": side,
                "setting": chosen[side],
                "median": statistics.median(rates[side]),
                "unit": unit,
                "ratio": statistics.median(ratios),
                "low": min(ratios),
                "high": max(ratios),
            }
        )
    return lines


def _child(
    row: Row, side: str, setting: dict[str, Any], threads: int | None, quick: bool = False
) -> dict[str, Any]:
    request = {"case": row.case, "side": side, "quick": quick, **row.options, **setting}
    process = subprocess.run(
        [sys.executable, "-m", "epochal.pipelines.bench.cases", json.dumps(request)],
        capture_output=True,
        text=True,
        env={**os.environ, **_threads(threads), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or ["no message"]
        raise BenchError(f"{row.label}, {side}: {lines[-1]}")
    time.sleep(0.5)  # let the processor settle
    return json.loads(process.stdout.strip().splitlines()[-1])


def _threads(number: int | None) -> dict[str, str]:
    """What the libraries of all sides read as their number of threads; by default their own."""
    names = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {} if number is None else dict.fromkeys(names, str(number))


def _progress(console: Console, quiet: bool, line: str) -> None:
    if not quiet:
        console.print(line, style="dim", highlight=False)
