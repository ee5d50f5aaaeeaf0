"""What an ablation leaves: its table, its pictures and the card that sums it up."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from . import paired, response, studies
from .recipe import Recipe
from .run import RunError, write_atomic, write_json


def report(
    place: Path,
    recipe: Recipe,
    rows: list[dict[str, Any]],
    labels: dict[str, str],
    seeds: int,
    metric: str | None,
) -> dict[str, Any]:
    """Compares the variants with the first of them and writes what :func:`.ablate.ablate` returns.

    Args:
        place: the study's directory.
        recipe: that the variants are made of.
        rows: of each variant its ``name``, ``changes`` and their ``words``, the metrics (``runs``)
            and histories of all seeds, or an ``error``.
        labels: what figures call each variant, by its name.
        seeds: runs of each variant.
        metric: as for :func:`.ablate.ablate`.

    Raises:
        RunError: nothing can be compared.
        UnknownMetric: one that the runs do not have.
    """
    done = [row for row in rows if "error" not in row]
    if not done:
        raise RunError(
            f"Every variant of the study failed; the first one: {rows[0]['error']} The runs are in "
            f"{place}."
        )
    split = studies.compared_split(done[0]["runs"][0], metric)
    name = metric or studies.usual(done[0]["runs"][0][split])
    better = studies.higher_is_better(name)
    unit, scale = studies.unit_of(name)
    base = rows[0] if "error" not in rows[0] else None
    histories = {row["name"]: row.pop("histories") for row in rows}
    for row in rows:
        runs = row.pop("runs")
        if "error" in row:
            row["verdict"] = f"{row['name']}: failed: {row['error']}"
            continue
        row["scores"] = [run[split][name]["value"] for run in runs]
        row["mean"] = float(np.mean(row["scores"]))
        row["parameters"] = runs[0]["parameters"]
        row["seconds"] = float(np.median([run["wall_seconds"] for run in runs]))
        row["rate"] = float(np.median([run["examples_per_second"] for run in runs]))
        if base is None:
            row["verdict"] = f"{row['name']}: {name} {row['mean']:.4g}; the base failed"
        elif row is base:
            row["verdict"] = f"{row['name']}: the base, {name} {row['mean']:.4g}"
        else:
            found = paired.difference(row["scores"], base["scores"])
            row |= {"difference": found.mean, "low": found.low, "high": found.high}
            row["time_ratio"] = base["rate"] / row["rate"] if row["rate"] else float("nan")
            row["verdict"] = (
                paired.verdict(row["name"], found, unit, better, scale)
                + f"; {_pace(row['time_ratio'])}"
            )
        if "tuned" in row:
            chosen = ", ".join(f"{k.rsplit('.', 1)[-1]}={v}" for k, v in row["tuned"].items())
            row["verdict"] += f" (chosen on validation: {chosen})"
    curve = response.curve(rows, name)
    for row in rows:
        del row["words"]
    result = {
        "recipe": recipe.name,
        "metric": name,
        "split": split,
        "seeds": seeds,
        "variants": rows,
        "curve": curve,
        "directory": str(place),
    }
    write_json(place / "ablation.json", result)
    write_atomic(place / "ablation.csv", _csv(rows))
    write_atomic(place / "README.md", _card(result))
    studies.draw_differences(result, labels, place / "ablation.png")
    if curve is not None:
        response.draw(curve, name, place / "response.png")
    curves = {labels[row["name"]]: histories[row["name"]] for row in rows if "scores" in row}
    studies.draw_curves(curves, name, place / "curves.png")
    return result


def _pace(ratio: float) -> str:
    """How much longer a step takes; within 5% nothing is claimed."""
    if not np.isfinite(ratio) or abs(ratio - 1) < 0.05:
        return "as fast"
    return f"{abs(ratio - 1):.0%} {'slower' if ratio > 1 else 'faster'}"


def _csv(rows: list[dict[str, Any]]) -> str:
    columns = ("name", "mean", "difference", "low", "high", "time_ratio", "parameters", "error")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, "scores"])
    for row in rows:
        scores = " ".join(f"{score:.6g}" for score in row.get("scores", ()))
        writer.writerow([*(row.get(column, "") for column in columns), scores])
    return text.getvalue()


def _card(result: dict[str, Any]) -> str:
    lines = [
        f"# What changes in {result['recipe']}",
        "",
        f"{studies.heading(result)}.",
        "",
        *(f"- {row['verdict']}" for row in result["variants"]),
        *_curve_lines(result["curve"]),
        "",
        "![differences](ablation.png)",
        "![training](curves.png)",
        "",
    ]
    return "\n".join(lines)


def _curve_lines(curve: dict[str, Any] | None) -> list[str]:
    if curve is None:
        return []
    told = [f"- {verdict}" for verdict in curve["verdicts"]]
    first = f"At each {curve['key']}, from {curve['lines'][0]['name']} there:"
    return ["", *([first, "", *told, ""] if told else []), "![over its values](response.png)"]
