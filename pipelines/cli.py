"""The command line: the verbs of ``epochal.pipelines``.

Start-up, help, listing and completion load no TensorFlow. A verb's own flags are parsed by tyro
from its signature; ``--data.batch-size 64`` and other dotted keys go to ``override``.

Exit codes: 0 done, 1 an error that says what to do, 2 wrong usage, 130 interrupted, state saved.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from . import listing, results, study_verbs
from .arguments import Directory, Positional, RecipeName, RunName, UsageError, changed_recipe
from .recipe import RecipeError, keys
from .terminal import load_tensorflow, log_to, new_console, print_json, say

_OF_RECIPES = ("train", "show", *study_verbs.VERBS)
_KINDS = ("models", "recipes", "data", "ops", "losses", "optimizers", "schedules")


def list_(
    what: Positional[
        Literal["models", "recipes", "data", "ops", "losses", "optimizers", "schedules"]
    ] = "recipes",
    pattern: Annotated[Positional[str], tyro.conf.arg(metavar="PATTERN")] = "*",
    /,
    *,
    json: bool = False,
) -> None:
    """List recipes, models, data sets, ops, losses, optimizers or schedules.

    Args:
        what: which table to list.
        pattern: a shell pattern the names must match, e.g. 'resnet*'.
        json: print JSON instead of a table.
    """
    import fnmatch

    rows = {n: row for n, row in listing.tables(what).items() if fnmatch.fnmatch(n, pattern)}
    if json:
        print_json(rows)
        return
    if not rows:
        raise RecipeError(f"No {what} match {pattern!r}. `epochal list {what}` names all.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    for column in next(iter(rows.values())):
        table.add_column(column)
    for name, row in rows.items():
        table.add_row(name, *(f"{v:,}" if isinstance(v, int) and v > 9999 else str(v)
                              for v in row.values()))  # fmt: skip
    new_console().print(table)


def show(
    name: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE|MODEL|RUN")],
    /,
    *,
    keys: bool = False,
    input_shape: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="SIZE...")] = None,
    num_classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    json: bool = False,
    overrides: tyro.conf.Suppress[dict[str, str] | None] = None,
) -> None:
    """Show a recipe, a model (the table for running it in one's head), a run, a file of weights.

    Args:
        name: a recipe, a recipe's JSON file, a model, a run directory, or a file of weights.
        keys: recipe or run: list every key with its type, value and meaning.
        input_shape: model: shape of one example, e.g. 32 32 3.
        num_classes: model: width of its output.
        json: print JSON.
    """
    from ..models import list_models
    from . import show as show_module
    from .recipes import list_recipes
    from .run import Run

    console = new_console()
    known = name in (*list_recipes(), *list_models())
    is_run = Path(name, "recipe.json").is_file() or (Path(name).is_dir() and not known)
    is_recipe = not is_run and (name in list_recipes() or name.endswith(".json"))
    if (is_run or is_recipe) and (input_shape or num_classes):
        raise UsageError("--input-shape and --num-classes are for models")
    if is_run and overrides:
        raise UsageError(f"--{next(iter(overrides))}: a run's recipe stays as it is")
    if not (is_run or is_recipe) and keys:
        raise UsageError("--keys is for recipes and runs")
    if is_run and not keys:
        show_module.show_run(name, console, as_json=json)
    elif is_run or is_recipe:
        if keys:  # the options of each choice stand in its code
            load_tensorflow()
        recipe = Run(name).recipe if is_run else changed_recipe(name, overrides)
        show_module.show_recipe(recipe, console, with_keys=keys, as_json=json)
    elif Path(name).is_file():
        load_tensorflow()
        show_module.show_weights(name, console, as_json=json)
    else:
        load_tensorflow()
        show_module.show_model(
            name, console, input_shape=input_shape, num_classes=num_classes,
            options=overrides or {}, as_json=json,
        )  # fmt: skip


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
    from .progress import TerminalProgress
    from .train import train as train_

    console = new_console(stderr=json)
    progress = TerminalProgress(console)
    with contextlib.closing(progress):
        log_to(console)
        run = train_(changed, run_dir, callbacks=[progress], allow_differences=allow_differences)
    if json:
        print_json({"run": str(run.path), **run.metrics})
    else:
        results.summary(run, console)


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
    seeds: int = 3,
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
        seeds: SimCLR: how often each comparison is repeated, with other labels.
        also: SimCLR: runs of other seeds, which are compared instead of repeating.
        json: print JSON.
    """
    if labels is not None or fraction:
        load_tensorflow()
        _few_labels([run, *also], labels, fraction or (1.0,), seeds, overrides, json)
        return
    if overrides:
        raise _unknown_option(evaluate, next(iter(overrides)))
    if also:
        raise UsageError("--also goes with --labels or --fraction")
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
    plots = Path(run) / "plots" / ("" if split == "test" else split)
    console.print(f"plots: {plots}", highlight=False)


def _few_labels(runs, labels, fractions, seeds, overrides, as_json: bool) -> None:
    from .few_labels import few_labels
    from .progress import TerminalProgress
    from .run import plain

    console = new_console(stderr=as_json)
    progress = TerminalProgress(console)
    with contextlib.closing(progress):
        log_to(console)
        result = few_labels(runs, labels, fractions, seeds, changes=overrides, callbacks=[progress])
    if as_json:
        print_json(plain(result))
        return
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
        max_new_tokens: language models: the most tokens of an answer, up to 256.
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


def export(run: RunName, /, *, to: Directory = None, format: Literal["saved-model"] = "saved-model",
           verify: bool = True, json: bool = False) -> None:  # fmt: skip
    """Write a SavedModel that takes raw inputs, and check it in a process with TensorFlow alone.

    Args:
        run: a run directory.
        to: where to; by default export/VERSION in the run directory.
        format: what to write.
        verify: load the result in a clean process and compare its answers with the model's.
        json: print JSON.
    """
    load_tensorflow()
    from .export import export as export_

    path = export_(run, to, format=format, verify=verify)
    if json:
        print_json({"export": str(path), "verified": verify})
    else:
        checked = ", answers checked in a process with TensorFlow alone" if verify else ""
        new_console().print(f"exported to {path}{checked}", highlight=False)


def bench(
    names: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME...")] = (),
    /,
    *,
    repeats: int = 5,
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Time ours against a peer, alternately in child processes, and print medians and ratios.

    Args:
        names: which benchmarks; without any, all are run, which takes long.
        repeats: how often each side runs.
        threads: for each side; by default one a core.
        json: print JSON.
    """
    from .bench import run_benchmarks

    for name, value in (("repeats", repeats), ("threads", threads)):
        if value is not None and value < 1:
            raise RecipeError(f"--{name} must be at least 1; got {value}.")
    run_benchmarks(names, new_console(), as_json=json, repeats=repeats, threads=threads)


def completion(shell: Positional[Literal["bash", "zsh"]] = "bash", /) -> None:
    """Print a completion script: eval "$(epochal completion bash)".

    Args:
        shell: which shell it is for.
    """
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    sys.stdout.write(
        start + "_epochal() {\n"
        '  COMPREPLY=($(compgen -W "$(epochal complete-words "${COMP_WORDS[@]:1:COMP_CWORD}")" '
        '-- "${COMP_WORDS[COMP_CWORD]}"))\n'
        "}\ncomplete -o default -F _epochal epochal\n"
    )


VERBS = {
    "list": list_,
    "show": show,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    **study_verbs.VERBS,
    "bench": bench,
    "completion": completion,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``epochal`` command. Always ends by SystemExit."""
    sys.exit(_main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["complete-words"]:
        print("\n".join(_complete(arguments[1:])))
        return 0
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        _help()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("epochal"))
        return 0
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        _dispatch(arguments[0], arguments[1:])
    except KeyboardInterrupt:
        again = "; the same command goes on from the last complete epoch"
        resumes = arguments[0] in ("train", *study_verbs.VERBS) or {"--labels", "--fraction"} & {
            *arguments
        }
        say("interrupted" + again * bool(resumes))
        return 130
    except UsageError as error:
        usage = f"epochal {arguments[0]}" if arguments[0] in VERBS else "epochal"
        say(f"epochal {arguments[0]}: {error}. `{usage} --help` shows the usage.")
        return 2
    except BrokenPipeError:  # `epochal list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        known = type(error).__module__.startswith("epochal.") or isinstance(error, ImportError)
        prefix = "" if known else f"unexpected {type(error).__name__} (--debug shows where): "
        say(f"error: {prefix}{error}")
        return 1
    return 0


def _dispatch(verb: str, arguments: list[str]) -> None:
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"there is no such verb.{hint} There are: {', '.join(VERBS)}")
    function = VERBS[verb]
    own, changes = _split_keys(function, arguments)
    if "overrides" in inspect.signature(function).parameters:
        function = functools.partial(function, overrides=changes)
        function.__doc__ = VERBS[verb].__doc__
    elif changes:
        raise _unknown_option(function, next(iter(changes)))
    tyro.cli(function, args=own, prog=f"epochal {verb}", config=(tyro.conf.FlagCreatePairsOff,))


def _unknown_option(function, name: str) -> UsageError:
    flags = [name.replace("_", "-") for name in inspect.signature(function).parameters]
    near = difflib.get_close_matches(name, flags, n=1)
    hint = f" (did you mean --{near[0]}?)" if near else ""
    return UsageError(f"unknown option --{name}{hint}")


def _split_keys(function, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """A verb's own arguments, and the ``--key value`` pairs that change its recipe."""
    flags = {name.replace("_", "-") for name in inspect.signature(function).parameters}
    own, changes = [], {}
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.removeprefix("--").partition("=")
        plain = key.replace("_", "-")
        if (
            argument == "-h"
            or not argument.startswith("--")
            or argument == "--"
            or plain in flags | {"help"}
            or plain.removeprefix("no-") in flags
        ):
            own.append(argument)
        else:
            value = value if equals else next(rest, None)
            if value is None:
                raise UsageError(f"--{key} needs a value")
            changes[key] = value
    return own, changes


def _complete(words: list[str]) -> list[str]:
    """Words that may stand where the last of ``words`` stands."""
    if len(words) <= 1:
        return list(VERBS)
    verb, last = words[0], words[-1]
    if last.startswith("--"):
        function = VERBS.get(verb)
        parameters = inspect.signature(function).parameters.values() if function else ()
        flags = [p.name.replace("_", "-") for p in parameters if p.kind is p.KEYWORD_ONLY]
        dotted = [k.replace("_", "-") for k in keys()] if verb in _OF_RECIPES else []
        return [f"--{flag}" for flag in [*flags, *dotted] if flag != "overrides"]
    if len(words) == 2:
        from ..models import list_models
        from .recipes import list_recipes

        runs = [str(p.parent) for p in Path("runs").glob("*/recipe.json")]
        return {
            "list": list(_KINDS),
            **dict.fromkeys(_OF_RECIPES, list_recipes()),
            "show": [*list_recipes(), *list_models(), *runs],
            "completion": ["bash", "zsh"],
            "bench": list(listing.tables("benchmarks")),
        }.get(verb, runs)
    return []


def _as_interrupt(signum, frame):
    raise KeyboardInterrupt


def _help() -> None:
    console = new_console()
    console.print(
        "usage: epochal VERB ...\n\nData, model, loss, algorithm: train, measure, export and "
        "serve the architectures of 2012-2020.\n",
        highlight=False,
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for verb, function in VERBS.items():
        table.add_row(f"  {verb}", inspect.cleandoc(function.__doc__).splitlines()[0])
    console.print(table)
    console.print(
        "\n`epochal VERB --help` shows a verb's options; --debug shows tracebacks.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
