"""Which directory a run gets, and holding it: one process, one recipe, nobody else's files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from .recipe import Recipe
from .run import Run, RunError, write_atomic


@contextlib.contextmanager
def claimed(recipe: Recipe, run_dir: str | os.PathLike | None) -> Iterator[Path]:
    """The run directory, locked, holding this recipe and no other."""
    if run_dir is not None:
        directory = Path(run_dir)
        if directory.is_dir() and any(directory.iterdir()) and not _is_ours(directory):
            raise RunError(
                f"{directory} holds other files and no run. Give an empty or a new directory."
            )
        with _hold(directory, recipe):
            yield directory
        return
    for directory in _default_directories(recipe):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_hold(directory, recipe))
            except Busy:  # take the next number
                continue
            yield directory
            return


@contextlib.contextmanager
def _hold(directory: Path, recipe: Recipe) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(directory))
            # Without environment.json a recipe.json is not one that we wrote.
            written = (directory / "recipe.json").is_file()
            if written and (begun(directory) or not (directory / "environment.json").is_file()):
                check_same_recipe(directory, recipe)
            else:
                write_atomic(directory / "recipe.json", recipe.to_json())
        except OSError as error:
            raise RunError(
                f"Cannot write to {directory}: {error.strerror or error}. Give another --run-dir."
            ) from None
        yield


def begun(directory: Path) -> bool:
    """Whether there is anything to lose: until the first checkpoint a recipe may still change."""
    return any((directory / name).is_file() for name in ("checkpoints/latest.npz", "metrics.json"))


def _is_ours(directory: Path) -> bool:
    hidden = all(file.name.startswith(".") for file in directory.iterdir())  # a lock, say
    return hidden or (directory / "recipe.json").is_file()


def _default_directories(recipe: Recipe) -> Iterator[Path]:
    """runs/NAME-K: the last one if it is an unfinished run of this recipe, then new ones."""
    root = Path("runs")
    pattern = f"{recipe.name}-*"
    numbers = [int(p.name[len(recipe.name) + 1 :]) for p in root.glob(pattern)
               if p.name[len(recipe.name) + 1 :].isdigit()]  # fmt: skip
    last = max(numbers, default=0)
    if last:
        directory = root / f"{recipe.name}-{last}"
        with contextlib.suppress(RunError):
            found = Run(directory)
            if not found.finished and found.recipe == recipe:
                yield directory
    while True:
        last += 1
        yield root / f"{recipe.name}-{last}"


class Busy(RunError):
    """Another process trains in the directory."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the directory for this process. A dead process's lock is no lock (flock)."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise Busy(
            f"Another process is training in {directory}. Wait for it, stop it, or give another "
            "--run-dir."
        ) from None
    try:
        for leftover in directory.rglob(".*.tmp.*"):
            leftover.unlink()  # what a killed process was writing
        yield
    finally:
        lock.release()


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Lines `key: old -> new` for every value in which two recipes differ."""

    def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
        found = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                found |= flat(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = value
        return found

    a, b = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in {**a, **b} if a.get(k) != b.get(k)]


def check_same_recipe(path: Path, recipe: Recipe) -> None:
    """Raises RunError, showing the difference, where ``path`` holds a run of another recipe."""
    if differences := recipe_differences(Run(path).recipe, recipe):
        raise RunError(
            f"{path} holds a run of another recipe. It differs in "
            + "; ".join(differences)
            + ". Give another --run-dir, or repeat the recipe that stands there."
        )
