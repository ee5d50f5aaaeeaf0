"""The command line: the verbs of ``epochal.pipelines``.

The verbs stand in :mod:`.lookup_verbs`, :mod:`.run_verbs` and :mod:`.study_verbs`; here is what
turns a line of arguments into a call of one, and what is about the command itself.

Start-up, help, listing and completion load no TensorFlow. A verb's own flags are parsed by tyro
from its signature; ``--data.batch-size 64`` and other dotted keys go to ``override``.

Exit codes: 0 done, 1 an error that says what to do, 2 wrong usage, 130 interrupted, state saved.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro
from rich.table import Table

from ..models.hints import did_you_mean
from . import listing, lookup_verbs, run_verbs, study_verbs
from .arguments import Positional, UsageError, unknown_option
from .recipe import RecipeError, keys
from .terminal import heed_interrupts, new_console, say

_OF_RECIPES = ("train", "show", *study_verbs.VERBS)


def bench(
    names: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME...")] = (),
    /,
    *,
    repeats: int = 5,
    threads: int | None = None,
    only: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "",
    json: bool = False,
) -> None:
    """Time ours against a peer, alternately in child processes, and print medians and ratios.

    Args:
        names: which benchmarks; without any, all are run, which takes long.
        repeats: how often each side runs.
        threads: for each side; by default one a core.
        only: run the rows that have this in their label, f32 or bf16 for example.
        json: print JSON.
    """
    from .bench import run_benchmarks

    for name, value in (("repeats", repeats), ("threads", threads)):
        if value is not None and value < 1:
            raise RecipeError(f"--{name} must be at least 1; got {value}.")
    run_benchmarks(names, new_console(), as_json=json, repeats=repeats, threads=threads,
                   only=only)  # fmt: skip


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
    **lookup_verbs.VERBS,
    **run_verbs.VERBS,
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
    heed_interrupts()
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
        hint = did_you_mean(verb, VERBS)
        raise UsageError(f"there is no such verb.{hint} There are: {', '.join(VERBS)}")
    function = VERBS[verb]
    own, changes = _split_keys(function, arguments)
    if "overrides" in inspect.signature(function).parameters:
        function = functools.partial(function, overrides=changes)
        function.__doc__ = VERBS[verb].__doc__
    elif changes:
        raise unknown_option(function, next(iter(changes)))
    tyro.cli(function, args=own, prog=f"epochal {verb}", config=(tyro.conf.FlagCreatePairsOff,))


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
            "list": list(get_args(lookup_verbs.Kind)),
            **dict.fromkeys(_OF_RECIPES, list_recipes()),
            "show": [*list_recipes(), *list_models(), *runs],
            "completion": ["bash", "zsh"],
            "bench": list(listing.tables("benchmarks")),
        }.get(verb, runs)
    return []


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
