"""Preprocessing as a readable chain: ``"random_crop(32, padding=4)|flip_lr|standardize"``.

This module knows names, parses and checks chains, and loads no TensorFlow; the ops live in the
modules beside it that ``_MODULES`` names, registered with :func:`op`. ``TABLE`` is plain so that
``epochal list ops`` is instant; a test holds it against the code.

An op is a function of a whole batch and its literal arguments::

    @op("image", random=True)
    def flip_lr(images, probability: Share = 0.5, *, rng=None): ...

    @op("features", "columns", fit=_means)
    def standardize(columns, *, state): ...

- ``images`` is uint8 or float32 [n,h,w,c]; ``columns`` is a dict of tensors [n] or [n,f] (kind
  "features" is the one column "features"). An op returns the same form and depends on no row but
  a row's own. Ops on series, which have another form, are described in :mod:`.series`.
- ``fit`` learns from the training split only: ``fit(data, *same arguments) -> dict`` that JSON can
  hold. Image ops get an iterator over NumPy batches, tabular ops the dict of NumPy columns, both as
  the earlier ops of the chain leave them. The op receives the result as ``state``.
- An op on text (kind "text") is a factory, registered with ``makes``: it takes its arguments, and
  ``state`` if it learns, and returns a ``text.TextOp``, which runs on Python strings in training
  and as a graph in serving. Its ``fit`` gets the strings that the earlier ops leave, one after
  the other (there may be more than memory holds), and may go through them several times.
- A ``random`` op receives ``rng`` in training, whose draws ([n], one a row) are functions of the
  seed, the epoch, the example's index and the op's place in the chain; with ``rng=None``
  (evaluation, serving) it takes its deterministic form.
- An ``each`` op looks at its images one by one anyway. Files and records pass it so, in parallel,
  in training, and so do the ops before it.
- Annotations of the arguments are checked by pydantic before any data are read.
"""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ....models.hints import did_you_mean

# name -> (kinds of data it acts on, one line)
_IMAGE: dict[str, tuple[tuple[str, ...], str]] = {
    "scale": (("image",), "pixel values 0..255 to a range, by default 0..1"),
    "standardize": (("image",), "(x - mean) / standard deviation of training data"),
    "flatten": (("image",), "each image as one row of numbers"),
    "resize": (("image",), "images of this height and width"),
    "resize_shorter": (("image",), "the shorter side to this size, the other in proportion"),
    "central_crop": (("image",), "the middle of the image"),
    "pad": (("image",), "a border on all four sides"),
    "random_crop": (("image",), "a random window of the padded image; evaluation: the middle"),
    "random_resized_crop": (
        ("image",),
        "a random rectangle, resized to a square; evaluation: the middle of the resized image",
    ),
    "flip_lr": (
        ("image",),
        "mirror left and right at random; evaluation: nothing, or (average) both",
    ),
    "translate": (("image",), "move by random whole pixels; evaluation: nothing"),
    "cutout": (("image",), "blank a random square; evaluation: nothing"),
    "random_erasing": (("image",), "fill a random rectangle with noise; evaluation: nothing"),
    "color_jitter": (
        ("image",),
        "random brightness, contrast, saturation and hue; evaluation: nothing",
    ),
    "pca_noise": (
        ("image",),
        "add a random colour along training data's principal ones; evaluation: nothing",
    ),
    "rand_augment": (("image",), "a few of 14 random changes; evaluation: nothing"),
    "gaussian_blur": (("image",), "blur at random; evaluation: nothing"),
    "grayscale": (("image",), "one channel of luminance"),
    "random_grayscale": (("image",), "take the colour out at random; evaluation: nothing"),
    "rgb": (("image",), "three channels"),
}
_TABULAR: dict[str, tuple[tuple[str, ...], str]] = {
    "drop": (("columns",), "leave columns out"),
    "impute": (("features", "columns"), "fill in missing values with what training data show"),
    "one_hot": (("columns",), "a text column as one 0/1 column for each category"),
    "standardize": (
        ("features", "columns"),
        "(x - mean) / standard deviation of the training data",
    ),
    "log1p": (("features", "columns"), "log(1 + x)"),
    "clip": (("features", "columns"), "limit values to a range between two training quantiles"),
}
_TEXT: dict[str, tuple[tuple[str, ...], str]] = {
    "nfc": (("text",), "Unicode's composed form: é is one character"),
    "nfd": (("text",), "Unicode's decomposed form: é is e and an accent"),
    "nfkc": (("text",), "nfc, with ligatures, full-width letters and the like as plain ones"),
    "nfkd": (("text",), "nfd, with ligatures, full-width letters and the like as plain ones"),
    "strip_accents": (("text",), "nfd without non-spacing marks, as uncased BERT has it"),
    "lowercase": (("text",), "each character in lower case"),
    "collapse_spaces": (("text",), "each run of white space and control characters as one blank"),
    "characters": (("text",), "characters to ids, by the characters of the training data"),
    "bytes": (("text",), "the bytes of UTF-8 to ids; nothing is learnt or unknown"),
    "wordpiece": (("text",), "pieces of words to ids, longest first, as BERT has it"),
    "byte_bpe": (("text",), "merged bytes to ids, as GPT-2 has it"),
    "tokenizer_of": (("text",), "text to ids as a run, or published weights, have it"),
    "max_tokens": (("text",), "at most so many ids a row"),
    "enclose": (("text",), "a start before the ids of a row, an end behind them: [CLS] and [SEP]"),
}
_SERIES: dict[str, tuple[tuple[str, ...], str]] = {
    "calendar": (("series",), "time of day, day of week and of the year, as points on circles"),
    "known": (("series",), "columns whose future is known when a forecast is made"),
    "standardize": (("series",), "(x - mean) / standard deviation of the training rows"),
    "window": (("series",), "examples: so many steps of history, then the horizon"),
}
_ALL = (_IMAGE, _TABULAR, _TEXT, _SERIES)
TABLE: dict[str, tuple[tuple[str, ...], str]] = {
    name: (
        sum((part[name][0] for part in _ALL if name in part), ()),
        next(part[name][1] for part in _ALL if name in part),
    )
    for name in sorted({name for part in _ALL for name in part})
}
# kind of data -> modules with ops for it
_MODULES = {
    "image": ("image", "color", "blur", "erase", "rand_augment"),
    "features": ("tabular",),
    "columns": ("tabular",),
    "text": ("text",),
    "series": ("series",),
}
_REGISTRY: dict[tuple[str, str], Op] = {}  # (kind, name)


class OpsError(ValueError):
    """A chain that cannot be read or built. The message says what to do."""


@dataclass(frozen=True)
class Op:
    """A registered op."""

    name: str
    kinds: tuple[str, ...]
    apply: Callable[..., Any]
    fit: Callable[..., dict[str, Any]] | None = None
    random: bool = False
    sets_size: bool = False
    each: bool = False
    of_window: Callable[..., Any] | None = None
    makes: bool = False
    takes: str = "strings"
    gives: str = "strings"


def op(
    *kinds: str,
    fit: Callable[..., dict[str, Any]] | None = None,
    random: bool = False,
    sets_size: bool = False,
    each: bool = False,
    of_window: Callable[..., Any] | None = None,
    makes: bool = False,
    takes: str = "strings",
    gives: str = "strings",
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as an op for these kinds of data; see the module's docstring.

    Args:
        fit: learns ``state`` from the training split.
        random: the op takes ``rng``.
        sets_size: images leave the op with one height and width, whatever they had.
        each: the op looks at images one by one; see the module's docstring.
        of_window: a random op in the form ``of_window(read, height, width, *arguments, rng=rng)``,
            for a source of which it is cheaper to read a part: ``read(top, left, height, width)``
            gives uint8 [h,w,c]. The result, [1,...], is that of the op on the whole image.
        makes: the function takes no batch: it makes the op from its arguments (and ``state``).
        takes: "strings" or "ids", what an op on text acts on.
        gives: what it leaves; tokenizers turn strings into ids.
        name: in the chain; by default the function's.
    """

    def register(function):
        known_as = name or function.__name__
        entry = Op(
            known_as, kinds, function, fit, random, sets_size, each, of_window, makes, takes, gives
        )
        for kind in kinds:
            _REGISTRY[kind, entry.name] = entry
        return function

    return register


def find(name: str, kind: str) -> Op:
    """The op of this name for data of kind "image", "features", "columns" or "text". OpsError."""
    for module in _MODULES[kind]:
        import_module(f".{module}", __package__)
    if (kind, name) not in _REGISTRY:
        fitting = sorted(n for k, n in _REGISTRY if k == kind)
        if name in TABLE:
            kinds = " and ".join(TABLE[name][0])
            reason = f"The op {name!r} acts on {kinds}, but the source gives {kind}."
        else:
            hint = did_you_mean(name, fitting, 0.5)
            reason = f"There is no op {name!r}.{hint}"
        raise OpsError(f"{reason} Ops for {kind}: {', '.join(fitting)}.")
    return _REGISTRY[kind, name]


def build(chain: str, kind: str) -> list[tuple[Step, Op]]:
    """Parses a chain and checks names, kinds, arguments and, for text, the order. OpsError."""
    built = []
    left = "strings"
    for step in parse(chain):
        entry = find(step.name, kind)
        built.append((check(step, entry), entry))
        if entry.takes != left:
            names = sorted(n for (k, n), e in _REGISTRY.items() if k == kind and e.takes != e.gives)
            where = "after" if entry.takes == "ids" else "before"
            raise OpsError(
                f"The op {step.name!r} acts on {entry.takes}, but in {chain!r} it gets {left}. Put "
                f"it {where} the tokenizer ({', '.join(names)})."
            )
        left = entry.gives
    return built


def check(step: Step, entry: Op) -> Step:
    """The step with its arguments checked against the op's signature. OpsError."""
    from pydantic import TypeAdapter, ValidationError

    # the first parameter is the batch, but of factories; state and rng are not the user's
    parameters = [
        p
        for p in list(inspect.signature(entry.apply).parameters.values())[not entry.makes :]
        if p.name not in ("state", "rng")
    ]
    usage = f"{step.name}({', '.join(_show(p) for p in parameters)})"
    try:
        bound = inspect.Signature(parameters).bind(*step.args, **step.kwargs)
    except TypeError as error:
        wrong = [k for k in step.kwargs if k not in {p.name for p in parameters}]
        hint = did_you_mean(wrong[0], [p.name for p in parameters]) if wrong else ""
        raise OpsError(f"Op {step.name!r}: {error}.{hint} Use {usage}.") from None
    hints = typing.get_type_hints(entry.apply, include_extras=True)
    for parameter in parameters:
        if parameter.name not in bound.arguments or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        value = bound.arguments[parameter.name]
        try:
            adapter = TypeAdapter(hints.get(parameter.name, Any))
            bound.arguments[parameter.name] = adapter.validate_python(value)
        except ValidationError as error:
            what = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise OpsError(
                f"Op {step.name!r}, {parameter.name}={value!r}: {what}. Use {usage}."
            ) from None
    return Step(step.name, bound.args, bound.kwargs)


def _show(parameter: inspect.Parameter) -> str:
    star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return f"{star}{parameter.name}{default}"


@dataclass(frozen=True)
class Step:
    """One op of a chain: its name and literal arguments."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def parse(chain: str) -> tuple[Step, ...]:
    """``"pad(4)|flip_lr"`` -> steps. Arguments are Python literals. Raises OpsError."""
    steps = []
    for text in filter(None, (part.strip() for part in _split(chain))):
        try:
            node = ast.parse(text, mode="eval").body
            call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
            if not isinstance(call.func, ast.Name):
                raise ValueError("not a name")
            args = tuple(ast.literal_eval(a) for a in call.args)
            kwargs = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            if None in kwargs:
                raise ValueError("`**` is not allowed")
        except (SyntaxError, ValueError) as error:
            raise OpsError(
                f"Cannot read the op {text!r} in the chain {chain!r} ({error}). Write ops as "
                "name or name(literal, option=literal), separated by `|`."
            ) from None
        name = call.func.id
        if name not in TABLE:
            hint = did_you_mean(name, TABLE, 0.5)
            raise OpsError(f"There is no op {name!r}.{hint} `epochal list ops` names them all.")
        steps.append(Step(name, args, kwargs))
    return tuple(steps)


def _split(chain: str) -> list[str]:
    """Splits at `|` outside of quotes."""
    parts, quote, start = [], None, 0
    for position, character in enumerate(chain):
        if quote:
            quote = None if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "|":
            parts.append(chain[start:position])
            start = position + 1
    return [*parts, chain[start:]]
