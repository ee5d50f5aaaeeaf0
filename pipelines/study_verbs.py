"""The verbs that train a recipe many times: crossval, ensemble, ablate, tune. See :mod:`.cli`."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from . import results
from .arguments import Directory, Positional, RecipeName, UsageError, changed_recipe
from .terminal import load_tensorflow, new_console, print_json


def crossval(
    recipe: RecipeName,
    /,
    *,
    folds: int = 5,
    repeats: int = 1,
    random_splits: int = 0,
    run_dir: Directory = None,
    json: bool = False,
    overrides: tyro.conf.Suppress[dict[str, str] | None] = None,
) -> None:
    """Cross-validate a recipe: each example is predicted by a model that has not seen it.

    Args:
        recipe: a recipe's name or JSON file.
        folds: in how many parts the training examples are dealt.
        repeats: how often they are dealt anew.
        random_splits: random splits to train on too, whose mean test score it is compared with.
        run_dir: where the study goes; by default runs/crossval-RECIPE-K.
        json: print JSON.
    """
    load_tensorflow()
    from . import studies
    from .crossval import crossval as crossval_
    from .crossval import sentence

    result = _study(crossval_, recipe, overrides, json, folds, repeats,
                    random_splits=random_splits, directory=run_dir)  # fmt: skip
    if result is not None:
        console = new_console()
        shown = {"mean of folds": result["mean_of_folds"], "out of fold": result["out_of_fold"]}
        console.print(results.metrics_table(shown))
        lines = [f"study: {result['directory']}"]
        memory = result["resident_mib"]
        if len(memory) > 2 and all(memory):
            lines.insert(0, f"resident memory after fold 2: {memory[1]:.0f} MiB, after the last: "
                         f"{memory[-1]:.0f} MiB")  # fmt: skip
        if result["random_splits"]:
            lines.insert(0, sentence(result, studies.usual(result["scores"])))
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)


def ensemble(
    recipes: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="RECIPE...")] = (),
    /,
    *,
    members: int = 5,
    by: Literal["seed", "fold", "snapshot"] = "seed",
    runs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN...")] = (),
    combine: Literal["probabilities", "logits", "validation"] = "probabilities",
    run_dir: Directory = None,
    json: bool = False,
    overrides: tyro.conf.Suppress[dict[str, str] | None] = None,
) -> None:
    """Train a recipe, or several, more than once and export all models as one.

    Args:
        recipes: recipes' names or JSON files; leave them out with --runs.
        members: how many of each recipe.
        by: what they differ in: seed, validation fold, or snapshots of one training in cycles.
        runs: instead of recipes: finished runs on the same data.
        combine: mean of probabilities, of logits, or weighted by the validation split.
        run_dir: where the ensemble goes; by default runs/ensemble-RECIPE-K.
        json: print JSON.
    """
    if runs and overrides:
        raise UsageError(f"--{next(iter(overrides))}: the recipes of --runs stay as they are")
    load_tensorflow()
    from .ensemble import ensemble as ensemble_

    result = _study(ensemble_, recipes, overrides, json, members, by=by, runs=runs, combine=combine,
                    directory=run_dir)  # fmt: skip
    if result is not None:
        console = new_console()
        shown = {"all together": result["metrics"], "gain over a member": result["gain"]}
        console.print(results.metrics_table(shown))
        if "disagreement" in result:
            console.print(
                f"two members disagree on {result['disagreement']:.1%} of the {result['split']} "
                "split",
                highlight=False,
            )
        if combine == "validation":
            weights = ", ".join(f"{weight:.3f}" for weight in result["weights"])
            console.print(f"weights found on validation: {weights}", highlight=False)
        console.print(
            f"exported to {result['export']}; its answers differ from the mean of the members by "
            f"up to {result['export_error']:.1e}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def ablate(
    recipe: RecipeName,
    /,
    *,
    vary: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=A,B")],
    seeds: int = 5,
    grid: bool = False,
    tune_each: Annotated[str | None, tyro.conf.arg(metavar="KEY=A,B")] = None,
    metric: str | None = None,
    run_dir: Directory = None,
    json: bool = False,
    overrides: tyro.conf.Suppress[dict[str, str] | None] = None,
) -> None:
    """Train variants of a recipe on the same seeds and say what each contributes.

    Args:
        recipe: a recipe's name or JSON file.
        vary: the first value is the base of the comparison; may be given several times.
        seeds: runs of each variant.
        grid: all combinations of several --vary, instead of one change at a time.
        tune_each: choose this key for every variant, on the validation split of the first seed.
        metric: what is compared; by default the task's usual one.
        run_dir: where the study goes; by default runs/ablate-RECIPE-K.
        json: print JSON.
    """
    load_tensorflow()
    from . import studies
    from .ablate import ablate as ablate_

    result = _study(ablate_, recipe, overrides, json, vary, seeds, directory=run_dir,
                    metric=metric, grid=grid, tune_each=tune_each)  # fmt: skip
    if result is not None:
        console = new_console()
        console.print(studies.heading(result), highlight=False)
        for row in result["variants"]:
            console.print(f"  {row['verdict']}", highlight=False, soft_wrap=True)
        if result["curve"] and result["curve"]["verdicts"]:
            lines = result["curve"]["lines"]
            console.print(f"at each value, from {lines[0]['name']} there:", highlight=False)
            for verdict in result["curve"]["verdicts"]:
                console.print(f"  {verdict}", highlight=False, soft_wrap=True)
        console.print(f"study: {result['directory']}", highlight=False)


def tune(
    recipe: RecipeName,
    /,
    *,
    trials: int | None = None,
    hours: float | None = None,
    tuner: Literal["bayesian", "hyperband", "random", "grid"] = "bayesian",
    space: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=FORM")
    ] = (),
    objective: str | None = None,
    folds: int | None = None,
    run_dir: Directory = None,
    role: Literal["chief", "worker"] | None = None,
    chief: Annotated[str, tyro.conf.arg(metavar="HOST:PORT")] = "127.0.0.1:8765",
    json: bool = False,
    overrides: tyro.conf.Suppress[dict[str, str] | None] = None,
) -> None:
    """Search for better settings of a recipe, on its validation split.

    Forms of a space: int(1,8), int(16,128,step=16), float(0,0.5), log(1e-4,1e-1), choice(a,b); with
    a condition: 'KEY=log(1e-3,1) if algorithm.optimizer.name in sgd,momentum'.

    Args:
        recipe: a recipe's name or JSON file.
        trials: how many in all; those of an interrupted search count.
        hours: begin no trial later than this.
        tuner: how trials are chosen.
        space: what is searched; may be given several times; by default what the recipe declares.
        objective: a recorded validation quantity, by default the task's usual one.
        folds: score each trial on so many validation folds instead of one split.
        run_dir: where the search goes; by default runs/tune-RECIPE-K.
        role: share a search: one chief, and workers with the same arguments and directory.
        chief: where the chief listens. Whoever reaches the port can take part.
        json: print JSON.
    """
    load_tensorflow()
    from .tune import tune as tune_

    result = _study(tune_, recipe, overrides, json, trials, hours=hours, tuner=tuner, space=space,
                    objective=objective, folds=folds, directory=run_dir, role=role,
                    chief=chief)  # fmt: skip
    if result is None:
        return
    if role == "worker":
        new_console().print(f"trained {result['trials']} trials", highlight=False)
        return
    console, best, start = new_console(), result["best"], result["start"]
    known = start is not None and start["score"] is not None
    console.print(
        f"best of {len(result['trials'])} trials: number {best['trial']}, {result['objective']} "
        f"{best['score']:.4g}"
        + (f", the recipe as it stands {start['score']:.4g}" if known else ""),
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for key, value in best["values"].items():
        console.print(f"  {key} {value}", highlight=False, soft_wrap=True)
    for row in result["trials"]:
        if row["error"]:
            console.print(f"trial {row['trial']} failed: {row['error']}", highlight=False,
                          soft_wrap=True)  # fmt: skip
    console.print(f"epochal train {result['best_recipe']}", highlight=False, soft_wrap=True)


VERBS = {"crossval": crossval, "ensemble": ensemble, "ablate": ablate, "tune": tune}


def _study(function, recipe, overrides, as_json: bool, *arguments, **options):
    """Runs a study of many runs with progress; prints it as JSON and returns None, if asked."""
    if isinstance(recipe, tuple):
        changed = [changed_recipe(one, overrides) for one in recipe]
    else:
        changed = changed_recipe(recipe, overrides)
    from .progress import on_terminal
    from .run import plain

    with on_terminal(stderr=as_json) as progress:
        result = plain(function(changed, *arguments, callbacks=[progress], **options))
    if as_json:
        print_json(result)
        return None
    return result
