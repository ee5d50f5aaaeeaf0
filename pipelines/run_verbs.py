"""The verbs that make one run and act on it: train, evaluate, predict, export. See :mod:`.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from . import results
from .arguments import (
    Directory,
    Positional,
    RecipeName,
    RunName,
    UsageError,
    changed_recipe,
    unknown_option,
)
from .terminal import load_tensorflow, new_console, print_json


def train(
    recipe: RecipeName,
    /,
    *,
    run_dir: Directory = None,
    allow_differences: bool = False,
    json: bool = False,
    overrides: tyro.conf.Suppress[dict[str, str] | None] = None,
) -> None:
    """Train a recipe, or resume an unfinished run of it.

    Any key of the recipe can be changed: --seed 1 --algorithm.epochs 3 --model.hidden '(64, 64)'.
    `epochal show RECIPE --keys` lists them.

    Args:
        recipe: a recipe's name or JSON file.
        run_dir: where the results go; by default runs/RECIPE-K.
        allow_differences: resume although other versions or threads give other bits.
        json: print the final metrics as JSON.
    """
    changed = changed_recipe(recipe, overrides)
    load_tensorflow()
    from .progress import on_terminal
    from .train import train as train_

    with on_terminal(stderr=json) as progress:
        run = train_(changed, run_dir, callbacks=[progress], allow_differences=allow_differences)
    if json:
        print_json({"run": str(run.path), **run.metrics})
    else:
        results.summary(run, new_console())


def evaluate(
    run: RunName,
    /,
    *,
    split: Literal["test", "validation", "train"] = "test",
    video: bool = False,
    features: Directory = None,
    against: Annotated[str | None, tyro.conf.arg(metavar="RUN|tf-idf")] = None,
    labels: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None,
    fraction: Annotated[tuple[float, ...], tyro.conf.arg(metavar="SHARE...")] = (),
    seeds: int | None = None,
    also: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN...")] = (),
    json: bool = False,
    overrides: tyro.conf.Suppress[dict[str, str] | None] = None,
) -> None:
    """Measure a run on a split, with 95% intervals and pictures.

    With --labels or --fraction, of a SimCLR run: what few labels are worth with its representation
    and without; keys of the supervised recipes can be changed, e.g. --algorithm.steps 500.

    Args:
        run: a run directory.
        split: which examples; test is for the end, after every choice.
        video: for environments: draw an episode too, as a GIF.
        features: for generators of images: the run of a classifier of such images, or a file of
            Inception's weights.
        against: another run on the same examples, or for text the baseline tf-idf or
            tf-idf-characters: print the differences, with intervals of the pairs.
        labels: SimCLR: where labels are, e.g. folder:PATH; by default the run's own source.
        fraction: SimCLR: shares of the training images that keep their labels, e.g. 0.01 0.1.
        seeds: SimCLR: how often each comparison is repeated, with other labels; by default 3.
        also: SimCLR: runs of other seeds, which are compared instead of repeating.
        json: print JSON.
    """
    few = labels is not None or bool(fraction)
    if overrides and not few:
        raise unknown_option(evaluate, next(iter(overrides)))
    if few:
        _refuse("does nothing with --labels or --fraction, which compare accuracies on the test "
                "split: leave it out", split=split != "test", video=video,
                features=features is not None, against=against is not None)  # fmt: skip
        _refuse("does nothing with --also, whose runs are the repeats: leave one of the two out",
                seeds=bool(also) and seeds is not None)  # fmt: skip
        load_tensorflow()
        repeats = 3 if seeds is None else seeds
        _few_labels([run, *also], labels, fraction or (1.0,), repeats, overrides, json)
        return
    _refuse("goes with --labels or --fraction: give one of these, or leave it out",
            also=bool(also), seeds=seeds is not None)  # fmt: skip
    load_tensorflow()
    from .evaluate import evaluate as evaluate_
    from .run import plain

    result = plain(evaluate_(run, split, None, video, features, against))
    if json:
        print_json(result)
        return
    console = new_console()
    columns = {split: result["metrics"]}
    if against is not None:
        other = result["against"]
        columns |= {other["against"]: other["metrics"], "difference": other["difference"]}
    console.print(results.metrics_table(columns))
    if "untrained" in result:
        console.print(f"untrained: {result['untrained']}", highlight=False, soft_wrap=True)
    if "features" in result:
        console.print(results.features(result["features"]), highlight=False, soft_wrap=True)
    plots = Path(run) / "plots" / ("" if split == "test" else split)
    console.print(f"plots: {plots}", highlight=False)


def _refuse(reason: str, **given: bool) -> None:
    """Raises UsageError for the first option that is given."""
    for name, there in given.items():
        if there:
            raise UsageError(f"--{name} {reason}")


def _few_labels(runs, labels, fractions, seeds, overrides, as_json: bool) -> None:
    from .few_labels import few_labels
    from .progress import on_terminal
    from .run import plain

    with on_terminal(stderr=as_json) as progress:
        result = few_labels(runs, labels, fractions, seeds, changes=overrides, callbacks=[progress])
    if as_json:
        print_json(plain(result))
        return
    console = new_console()
    console.print(results.few_labels_table(result))
    for row in result["fractions"]:
        console.print(row["verdict"], highlight=False, soft_wrap=True)


def predict(
    run: RunName,
    inputs: Annotated[
        Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="INPUT...", help_behavior_hint="(at least one)"),
    ],
    /,
    *,
    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    stop: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = (),
    score: bool = False,
    json: bool = False,
) -> None:
    """Answer for image files, the rows of a CSV file, or standard input (-); for seeds of samples.

    Args:
        run: a run directory.
        inputs: image files, one CSV file with a header, or - for standard input; of generators
            seeds such as 0 1 2, or SEED:CLASS; of language models prompts, or files of such.
        max_new_tokens: language models: the most tokens of an answer; by default 256, fewer where
            the context ends.
        temperature: language models: 0 takes the likeliest token each time; by default 0.8.
        top_k: language models: draw among the so many likeliest tokens.
        top_p: language models: draw among the likeliest tokens with this probability together.
        repetition_penalty: language models: above 1 what has been said becomes less likely.
        seed: language models: the same one gives the same answer; by default 0.
        stop: language models: the answer ends before this text; may be given several times.
        score: language models: how likely the texts are, in place of what follows them.
        json: print one JSON object a line.
    """
    if not inputs:
        raise UsageError("give image files, a CSV file, or - for standard input")
    given = {
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "repetition_penalty": repetition_penalty, "seed": seed,
        "stop": stop or None,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if score and given:
        first = next(iter(given)).replace("_", "-")
        raise UsageError(f"--score writes nothing: leave --{first} out")
    load_tensorflow()
    from .generation import Generation
    from .predict import answers, scores
    from .run import plain

    asked = list(inputs) if len(inputs) > 1 else inputs[0]
    settings = Generation(**given) if given else None
    for answer in scores(run, asked) if score else answers(run, asked, settings):
        if json:
            print_json(plain(answer), indent=None)
        else:
            new_console().print(results.answer(answer), highlight=False, soft_wrap=True)


def export(run: RunName, /, *, to: Directory = None, verify: bool = True, json: bool = False,
           format: Literal["saved-model", "huggingface"] = "saved-model") -> None:  # fmt: skip
    """Write a SavedModel that takes raw inputs, and check it in a process with TensorFlow alone.

    Or, of a BERT or GPT, a directory that Hugging Face's libraries load, with its tokenizer.

    Args:
        run: a run directory.
        to: where to; by default export/VERSION, or huggingface, in the run directory.
        format: what to write.
        verify: load the result and compare it with the model (a SavedModel in a clean process).
        json: print JSON.
    """
    load_tensorflow()
    from .export import export as export_

    path = export_(run, to, format=format, verify=verify)
    if json:
        print_json({"export": str(path), "verified": verify})
    else:
        how = {"saved-model": "answers checked in a process with TensorFlow alone"}
        checked = f", {how.get(format, 'read back and compared')}" if verify else ""
        new_console().print(f"exported to {path}{checked}", highlight=False)


VERBS = {"train": train, "evaluate": evaluate, "predict": predict, "export": export}
