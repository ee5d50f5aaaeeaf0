"""The model card of a run, its README.md."""

from __future__ import annotations

from typing import Any

from .recipe import Recipe


def run_card(
    recipe: Recipe,
    dataset,
    summary: dict[str, Any],
    drawn: dict[str, str],
    samples: list[dict[str, str]],
) -> str:
    """The model card: what was trained on what, how well it does, its pictures, its commands."""
    lines = [f"# {recipe.name}", ""]
    lines += [
        f"- data: `{recipe.data.source}` ("
        + (", ".join(f"{n:,} {split}" for split, n in dataset.sizes.items()) or "no examples")
        + f"), ops `{recipe.data.ops or 'none'}`"
        + "".join(
            f", {name} {value:g} a {recipe.data.mix_per}"
            for name in ("mixup", "cutmix")
            if (value := getattr(recipe.data, name)) is not None
        ),
        f"- model: `{recipe.model}`, {summary['parameters']:,} trainable parameters",
        *(
            [f"- weights at the start: `{weights['file']}`, SHA-256 `{weights['sha256']}`"]
            if (weights := summary.get("weights"))
            else []
        ),
        f"- loss: `{recipe.loss}`",
        f"- algorithm: `{recipe.algorithm.optimizer}`, schedule `{recipe.algorithm.schedule}`, "
        f"batch size {recipe.data.batch_size}"
        if summary["epochs"]
        else "- algorithm: none",
        f"- seed: {recipe.seed}",
        f"- stopped: {summary['stop_reason']}"
        + (f"; best epoch {summary['best_epoch']}" if summary["best_epoch"] else ""),
        "",
    ]
    measured = summary.get("test", summary.get("validation", {}))
    if measured:
        lines += ["| metric | validation | test (95% interval) |", "|---|---|---|"]
    for name in measured:
        cells = [
            "" if (m := summary.get(split, {}).get(name)) is None else _cell(m)
            for split in ("validation", "test")
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    if "untrained" in summary:
        lines += ["", f"untrained: {summary['untrained']}."]
    for sample in samples:
        lines += ["", *(f"> {key}: {' '.join(text.split())}  " for key, text in sample.items())]
    lines += ["", *(f"- [{name}](plots/{name}): {what}" for name, what in drawn.items()), ""]
    if "test" in summary:
        lines += ["The test split was used once, after training.", ""]
    lines += [
        "Commands: `epochal evaluate DIR`, `epochal predict DIR INPUT...`, `epochal export DIR`.",
        "",
    ]
    return "\n".join(lines)


def _cell(metric: dict[str, float]) -> str:
    value, low, high = (f"{metric[k]:.4g}" for k in ("value", "low", "high"))
    return value if low == high == "nan" else f"{value} [{low}, {high}]"
