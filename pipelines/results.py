"""Metrics and answers as the terminal shows them."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

_BOUNDS = ("value", "low", "high")
_SHOWN = 4  # numbers of an embedding


def summary(run, console: Console) -> None:
    """How a run ended: why it stopped, its speed, its metrics, and where things are."""
    metrics = run.metrics
    console.print(
        f"stopped: {metrics['stop_reason']}"
        + (f"; best epoch {metrics['best_epoch']}" if metrics.get("best_epoch") else "")
        + (
            f"; {metrics['wall_seconds']:.0f} s, {metrics['examples_per_second']:,.0f} examples/s"
            if metrics["epochs"]
            else ""
        ),
        highlight=False,
        soft_wrap=True,
    )
    splits = {s: metrics[s] for s in ("validation", "test") if s in metrics}
    if splits:
        console.print(metrics_table(splits))
    if "untrained" in metrics:
        console.print(f"untrained: {metrics['untrained']}", highlight=False, soft_wrap=True)
    plots = f"   plots: {run.path / 'plots'}" if (run.path / "plots").is_dir() else ""
    console.print(f"run: {run.path}{plots}", highlight=False, soft_wrap=True)


def metrics_table(splits: dict[str, dict[str, dict[str, float | None]]]) -> Table:
    """One row a metric, one column a split; what could not be computed is a dash, and an interval
    of which neither end could be is left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    for split in splits:
        table.add_column(f"{split} [95% interval]")
    for name in dict.fromkeys(name for metrics in splits.values() for name in metrics):
        table.add_row(name, *(_interval(metrics.get(name)) for metrics in splits.values()))
    return table


def few_labels_table(result: dict[str, Any]) -> Group:
    """Mean accuracies of :func:`.few_labels.few_labels`, a row a number of labels, and how many of
    the tested images the encoder has seen."""
    rows = result["fractions"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("labels", *rows[0]["scores"]):
        table.add_column(column.replace("_", " "))
    for row in rows:
        means = [sum(scores) / len(scores) for scores in row["scores"].values()]
        table.add_row(f"{row['examples']:,}", *(f"{mean:.4f}" for mean in means))
    seen = "it is not known how many" if result["test_seen"] is None else f"{result['test_seen']:,}"
    note = f"{seen} of the {result['test_examples']:,} test images were among the unlabelled ones"
    return Group(table, Text(note))


def features(whose: dict[str, Any]) -> str:
    """Which network distances are by; see :func:`.sample_features.whose`."""
    learnt = "Inception v3" if whose["source"] is None else f"a classifier of {whose['source']}"
    return f"features: {whose['path']}, {learnt}, SHA-256 {whose['sha256'][:12]}…"


def _interval(metric: dict[str, float | None] | None) -> str:
    if metric is None:
        return ""
    value, low, high = ("-" if metric[k] is None else f"{metric[k]:.4f}" for k in _BOUNDS)
    return value if low == high == "-" else f"{value} [{low}, {high}]"


def answer(values: dict[str, Any]) -> str:
    """One prediction as a line, with the five best of many classes below it and the beginning of
    an embedding; other lists and the probabilities of all classes are left to --json."""
    line = "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
        if not isinstance(value, list | dict)
    )
    if "features" in values:  # of a generated point, which is all the answer
        line += "  " + " ".join(f"{value:.4g}" for value in values["features"])
    if "embedding" in values:
        numbers = values["embedding"]
        shown = " ".join(f"{value:.4g}" for value in numbers[:_SHOWN])
        more = f" … ({len(numbers)} numbers: --json)" if len(numbers) > _SHOWN else ""
        line += f"  embedding {shown}{more}"
    best = [f"  {one['probability']:.4f}  {one['label']}" for one in values.get("top5", ())]
    return "\n".join([line, *best])
