"""A recipe: the four elements of deep learning (data, model, loss, algorithm) and a seed.

Recipes are frozen, typed and validated, and round-trip through JSON. Everything that changes one
(the command line, ``ablate``, ``tune``, ``crossval``) goes through :func:`override`. This module
loads neither TensorFlow nor Keras; options of a named choice are checked where it is built.
"""

from __future__ import annotations

import ast
import difflib
import json
from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class RecipeError(ValueError):
    """A recipe, or a change to one, that makes no sense. The message says what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Choice(BaseModel):
    """A named part with its options, flat: ``{"name": "sgd", "learning_rate": 0.1}``.

    The options are the keyword arguments of the function or class that the name stands for;
    :func:`epochal.pipelines.choices.check` holds them against its signature.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        value = parse_choice(value) if isinstance(value, str) else value
        if isinstance(value, Choice):
            return value
        if not isinstance(value, dict):
            raise ValueError("expected a name, or an object with `name` and options")
        # JSON has no tuples: a recipe equals itself after a round trip.
        return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def __str__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.name}({arguments})" if arguments else self.name


def parse_choice(text: str) -> dict[str, Any]:
    """``"sgd(learning_rate=0.1)"`` -> ``{"name": "sgd", "learning_rate": 0.1}``; literals only."""
    name, parenthesis, rest = text.strip().partition("(")
    if not name or (parenthesis and not rest.endswith(")")):
        raise RecipeError(f"Cannot read {text!r}. Write a name, or name(option=value, ...).")
    try:
        call = ast.parse(f"_({rest[:-1]})" if parenthesis else "_()", mode="eval").body
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("options are given by name")
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise RecipeError(
            f"Cannot read the options of {text!r} ({error}). Write name(option=value, ...) with "
            "numbers, quoted strings, lists, True, False or None as values."
        ) from None
    return {"name": name.strip(), **options}


class Replay(_Strict):
    """What an agent does, remembers, and learns from. Steps are the agent's, those of all
    environments together; for Atari an agent's step is four of the game's frames."""

    capacity: Count = 50_000
    """Steps that are remembered and learnt from; the oldest go first."""
    start: Count = 1_000
    """Random steps at the beginning, before anything is learnt."""
    train_freq: Count = 4
    """Steps between learning: each training step of the recipe acts so often, with the weights as
    they are, and then learns."""
    updates: Count = 1
    """Minibatches, each an optimizer step, that are learnt from after `train_freq` steps."""
    environments: Count = 1
    """Environments that are played side by side; `train_freq` is a multiple of it."""
    epsilon_start: Share = 1.0
    """How often actions are random when learning begins."""
    epsilon_end: Share = 0.05
    """How often actions are random in the end."""
    epsilon_steps: Count = 10_000
    """Steps over which it goes from the one to the other, on a straight line."""
    discount: Share = 0.99
    """What a reward one step later counts."""
    n_step: Count = 1
    """Steps whose rewards are summed before the value of the state after them is taken."""
    sampling: Literal["uniform", "prioritized", "latest"] = "uniform"
    """Which steps are learnt from: any, those with large errors more often (Schaul et al. 2016), or
    always the newest, which is learning without replay."""
    priority_exponent: Share = 0.6
    """prioritized: alpha; 0 is uniform."""
    importance_exponent: Share = 0.4
    """prioritized: beta at the beginning of training; it rises to 1, where weights in the loss make
    up for the priorities."""
    stack: Count = 1
    """Frames of an observation, the newest and those before it."""
    clip_reward: bool = False
    """Learn from the sign of the reward only."""
    life_loss: bool = False
    """Atari: learn as if the game ended with each life."""
    sticky_actions: Share = 0.0
    """Atari: the chance that an action is replaced by the one before it."""
    test_epsilon: Share = 0.0
    """How often actions are random in validation and test."""
    validation_episodes: Count = 20
    """Episodes played after each epoch to find the best one."""
    test_episodes: Count = 100
    """Episodes played in the end, from other seeds."""

    @model_validator(mode="after")
    def _fits(self) -> Replay:
        if self.train_freq % self.environments:
            raise ValueError(
                f"train_freq ({self.train_freq}) must be a multiple of environments "
                f"({self.environments})"
            )
        return self


class Masking(_Strict):
    """What BERT's pre-training hides, and whether it also asks which text follows which."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Of an example's tokens so many are hidden: 80% of these as [MASK], 10% as another piece, and
    10% only asked for."""
    whole_words: bool = False
    """Hide all pieces of a word or none."""
    next_sentence: bool = True
    """Ask too whether the second half of an example follows the first, as half of them do. Short
    documents have no two halves: false."""


class Data(_Strict):
    """Element 1: what is learnt from."""

    source: str
    """Where the examples come from: builtin:NAME, tfds:NAME[/CONFIG], folder:PATH, images:PATH,
    csv:PATH, series:PATH, text:PATH, pairs:PATH, or `python` for arrays given to `train`; gym:NAME
    is an environment to act in; labels:PATH has names of classes and no examples. `@name` in place
    of a path is a set of the catalogue."""
    ops: str = ""
    """Preprocessing as a chain, e.g. "random_crop(32, padding=4)|flip_lr|standardize". Random ops
    act in training; in evaluation and serving each takes its documented deterministic form."""
    batch_size: Count = 32
    """Examples in an optimizer step."""
    shuffle: bool = True
    """Whether each pass over the training split has an order of its own."""
    validation_fraction: Fraction = 0.1
    """Share of the training examples set apart for validation, where the source has no such
    split."""
    test_fraction: Fraction = 0.2
    """Share of all examples set apart for the test, where the source has no test split."""
    split: Literal["random", "time"] | None = None
    """How the validation and test splits are carved out: at random (in proportion to the classes),
    or by time: the first rows train, later ones validate, the last ones test. By default by time
    for series, else at random. Rows count in the order of the source."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Decides which examples go into which random split; independent of the training seed."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: cut the training examples into so many folds, of which one is the test
    split of a run; the source's own test split is left alone. By class or by group where there are
    such, or, where the split is by time, in order: what comes before a fold trains."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is the test split, counted from 0. split_seed decides which examples it has."""
    validation_folds: Annotated[int, Field(ge=2)] | None = None
    """Cut what the test leaves into so many folds, of which one is the validation split, in place
    of validation_fraction. Dealt as `folds` are; for sources without a validation split."""
    validation_fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is the validation split, counted from 0."""
    train_examples: Count | None = None
    """Use only so many examples of the training split: in proportion to the classes, or, where the
    split is by time, the latest. Of a series these are windows."""
    train_seed: Annotated[int, Field(ge=0)] | None = None
    """Decides which examples `train_examples` keeps, and nothing else; by default split_seed."""
    train_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """The same as a share: 0.01 is a hundredth of the training split. Validation and test stay
    whole."""
    target: str | None = None
    """csv, text and pairs: the column to predict; by default the last. series: the column to
    forecast, or several with commas between them."""
    group: str | None = None
    """csv: a column of names, of patients or shops say. Rows of one name stay together in one split
    or fold, so that no model is asked about what it has met; the column itself is no input."""
    season: Count | None = None
    """series: steps after which the series repeats itself, more or less; forecasts are measured
    against that repetition. By default a day, week or year, by the step of the time stamps."""
    text: str | None = None
    """text and pairs: the column that is read; by default `text`, else the first one that is not
    the target."""
    task: (
        Literal[
            "classification",
            "regression",
            "language-model",
            "masked-language-model",
            "generation",
            "representation",
        ]
        | None
    ) = None
    """csv, text and arrays: what to predict; by default inferred from the target. language-model:
    the text itself, token by token. masked-language-model: the text itself, what of it is hidden
    (`data.masking`). generation, of images and points: to make more of them; labels
    only count where the model is conditional. representation, of images: nothing; training sees two
    random views of each image, and labels, if there are any, only measure what was learnt."""
    context: Count | None = None
    """Language models: tokens of a training example. Documents are joined, an end token after each,
    and cut into such pieces, elsewhere in every epoch. masked-language-model: the most tokens of an
    example; longer documents are cut into several."""
    masking: Masking | None = None
    """masked-language-model: what is hidden; by default 15% of the tokens, with the question which
    text follows."""
    bucket_batches: Count = 1
    """Sequences of unequal length: in so many batches at a time the examples are sorted by length,
    so that a batch holds little padding. 1: no sorting."""
    standardize_target: bool = False
    """Regression: train on (y - mean) / standard deviation of the training targets. Metrics,
    predictions and exports stay in the target's own units."""
    skip_corrupt: bool = False
    """folder and images: leave out unreadable files and count them, instead of stopping."""
    mixup: Annotated[float, Field(gt=0.0)] | None = None
    """MixUp: the alpha of Beta(alpha, alpha), from which the share lambda is drawn that an example
    keeps of itself; the rest, of input and target, is another example's of its batch. In training
    only. 0.2 is usual on images, 8 and more against wrong labels."""
    cutmix: Annotated[float, Field(gt=0.0)] | None = None
    """CutMix, for images: alpha as in mixup, 1 is usual; what an example does not keep is a
    rectangle of another's pixels. With mixup too, each batch draws one of the two."""
    mix_per: Literal["batch", "example"] = "batch"
    """What a lambda of mixup and cutmix is drawn for: a whole batch, as their authors do, or each
    example."""
    shuffle_window: Count = 16_384
    """Streamed sets: examples held in memory for shuffling, after a seeded order of the shards."""
    replay: Replay | None = None
    """gym: how the environment is played, and what of that is learnt from."""
    cache_mib: Annotated[int, Field(ge=0)] = 2_048
    """tfds: a set that decodes to at most so many MiB is held in memory; larger ones stream."""

    @model_validator(mode="after")
    def _partners(self) -> Data:
        if self.train_fraction is not None and self.train_examples is not None:
            raise ValueError("give train_examples or train_fraction, not both")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} is none of folds={self.folds}, counted from 0")
        if self.validation_fold >= (self.validation_folds or 1):
            raise ValueError(
                f"validation_fold {self.validation_fold} is none of "
                f"validation_folds={self.validation_folds}, counted from 0"
            )
        if self.group is not None and (not self.source.startswith("csv:") or self.split == "time"):
            raise ValueError(
                f"group ({self.group!r}) is a column of a csv: table that is split at random; "
                f"source is {self.source!r}"
                + (" and split is 'time'" if self.split == "time" else "")
            )
        if self.batch_size == 1 and (self.mixup is not None or self.cutmix is not None):
            raise ValueError(
                "mixup and cutmix take the other example from the same batch: with a batch_size "
                "of 1 there is none"
            )
        return self


class EarlyStopping(_Strict):
    """When to stop before the last epoch, and which epoch's weights to keep."""

    monitor: str = "val_loss"
    """A recorded quantity, e.g. val_loss or val_accuracy."""
    patience: Count = 10
    """Epochs without improvement after which training stops."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """The smallest change that counts as an improvement, in the monitored quantity's units."""
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the epochs that pass before the first that counts. A small validation split makes
    some epoch at a high learning rate look better than it is: let it count from where the rate has
    fallen."""


class Algorithm(_Strict):
    """Element 4: how the weights are found."""

    optimizer: Choice = Choice(name="adam")
    """An optimizer and its options; without learning_rate its documented default applies."""
    schedule: Choice = Choice(name="constant")
    """How the learning rate goes over the optimizer steps; the optimizer's learning_rate is the
    peak."""
    epochs: Annotated[int, Field(ge=0)] | None = None
    """Passes over the training split (exactly one of epochs and steps). 0: no training; the weights
    stay as they start, e.g. those of a file (model.weights)."""
    steps: Count | None = None
    """Optimizer steps (exactly one of epochs and steps). gym: training steps, each of
    `data.replay.train_freq` steps in the environments and `data.replay.updates` optimizer steps."""
    steps_per_epoch: Count | None = None
    """Optimizer steps between validations and checkpoints; by default one pass over the data."""
    early_stopping: EarlyStopping | None = None
    """Stop when validation no longer improves. The best epoch's weights are kept in any case."""
    weight_decay: Annotated[float, Field(ge=0.0)] | None = None
    """Decoupled weight decay: w -= learning_rate * weight_decay * w in every step. By default the
    optimizer's own: none, but 0.01 for adamw."""
    weight_decay_exclude: tuple[str, ...] = ("bias", "gamma", "beta")
    """Variables that have, or whose layer has, one of these names are not decayed."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Fine-tuning: each layer learns at so many times the rate of the one above it, the head at the
    full one; 0.8 is usual. Stages of a ResNet and blocks of a Transformer count as layers."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Scale the gradients of a step down to at most this global L2 norm."""
    conformal: bool = False
    """Forecasts with quantiles: after training, move each pair, such as 0.05 and 0.95, step by step
    of the horizon to where it holds the promised share of the validation split. Validation also
    chooses the epoch, so that its residuals are a little small; the test split plays no part."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Momentum of an exponential moving average of the weights, used to validate and to keep."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras's dtype policy. Weights and losses stay in float32."""
    jit: bool = False
    """Compile the training step with XLA. On CPUs it slows convolutions down."""
    steps_per_execution: Count = 1
    """Optimizer steps in one call into TensorFlow; more hide Python's overhead on small models."""

    @model_validator(mode="after")
    def _one_length(self) -> Algorithm:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self


class Recipe(_Strict):
    """Data, model, loss and algorithm: swap one and measure what it contributes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
    """What the recipe is called in reports and run directories: letters, digits, `-`, `_`, `.`."""
    data: Data
    """Element 1: what is learnt from."""
    model: Choice
    """Element 2: a name of `epochal list models` and its options."""
    loss: Choice
    """Element 3: a name of `epochal list losses` and its options."""
    algorithm: Algorithm
    """Element 4: how the weights are found."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Initialisation, order, augmentation and dropout are functions of it."""

    def __init__(self, **fields: Any):
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise RecipeError(_explain(error, fields.get("name", "?"))) from None

    def to_json(self) -> str:
        """The recipe as indented JSON; :meth:`from_json` reads it back to an equal recipe."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Reads :meth:`to_json`'s output. Raises RecipeError naming each bad field."""
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise RecipeError(f"A recipe's file holds JSON; this is none: {error}.") from None
        if not isinstance(fields, dict):
            raise RecipeError(f"A recipe is a JSON object; this is {type(fields).__name__}.")
        return cls(**fields)


def override(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A new recipe with dotted keys changed, e.g. ``{"algorithm.optimizer.name": "radam"}``.

    - A whole choice can be given as text: ``{"algorithm.optimizer": "sgd(learning_rate=0.1)"}``.
    - A new ``name`` drops the options of the old one; the order of the keys does not matter.
    - Setting ``algorithm.epochs`` clears ``algorithm.steps``, and the other way round.
    - Text values are read by the type of their field, so that a command line can pass strings;
      hyphens in keys count as underscores; "none" clears an optional field.

    Raises RecipeError for an unknown key (naming the nearest) or a value that does not fit.
    """
    tree = recipe.model_dump()
    normal = {key.replace("-", "_"): value for key, value in changes.items()}
    # Names first: they decide which options exist.
    for key in sorted(normal, key=lambda k: (k.count("."), not k.endswith(".name"), k)):
        _set(tree, key, normal[key])
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if normal.get(f"algorithm.{one}") is not None and f"algorithm.{other}" not in normal:
            tree["algorithm"][other] = None
    return Recipe(**tree)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node, model = tree, Recipe
    for depth, part in enumerate(parents):
        if part not in node or _nested(model, part) is None:
            raise RecipeError(_unknown(key))
        model = _nested(model, part)
        if node[part] is None:  # an optional group that is off is switched on by its first key
            node[part] = model().model_dump()
        node = node[part]
        if model is Choice and depth < len(parents) - 1:
            raise RecipeError(_unknown(key))
    if model is Choice:
        if leaf == "name":
            changed = parse_choice(value) if isinstance(value, str) else {"name": value}
            if changed["name"] != node["name"] or len(changed) > 1:
                node.clear()
                node.update(changed)
        else:
            node[leaf] = literal(value)
        return
    if leaf not in model.model_fields:
        raise RecipeError(_unknown(key))
    if isinstance(value, str) and value.lower() == "none" and _optional(model, leaf):
        value = None
    nested = _nested(model, leaf)
    if nested is Choice and isinstance(value, str):
        value = parse_choice(value)
    elif nested is not None and isinstance(value, BaseModel):
        value = value.model_dump()
    elif isinstance(value, str) and "tuple" in str(model.model_fields[leaf].annotation):
        value = tuple(part.strip() for part in value.split(",") if part.strip())
    node[leaf] = value


def _nested(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    if field not in model.model_fields:
        return None
    annotation = model.model_fields[field].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _optional(model: type[BaseModel], field: str) -> bool:
    return type(None) in getattr(model.model_fields[field].annotation, "__args__", ())


def literal(value: Any) -> Any:
    """Text from a command line as a Python literal where it is one: "0.1" -> 0.1, "relu" stays."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.capitalize() if value in ("true", "false", "none") else value)
    except (ValueError, SyntaxError):
        return value


def split_values(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes: "sgd(a=1, b=2),adam" -> two values."""
    parts, depth, quote, start = [], 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and not depth:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> dict[str, tuple[str, str]]:
    """Every dotted key of a recipe -> (type, docstring). Options of choices are not listed here."""
    found = {}
    for name, field in model.model_fields.items():
        nested = _nested(model, name)
        kind = "choice" if nested is Choice else _type_name(field)
        if nested is None or nested is Choice or _optional(model, name):
            found[prefix + name] = (kind, " ".join((field.description or "").split()))
        if nested not in (None, Choice):
            found |= keys(nested, f"{prefix}{name}.")
    return found


def _type_name(field) -> str:
    def words(annotation) -> str:
        arguments = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
        if getattr(annotation, "__metadata__", None):  # Annotated
            return words(annotation.__origin__)
        if get_origin(annotation) is Literal:
            return "|".join(arguments)
        if get_origin(annotation) is tuple:
            return "names, separated by commas"
        if arguments:  # X | None
            return " or ".join([*map(words, arguments), "none"])
        return annotation.__name__

    return words(field.annotation)


_ALL_KEYS = "`epochal show RECIPE --keys` lists all keys."


def _unknown(key: str) -> str:
    known = list(keys())
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:  # `--epochs` for `--algorithm.epochs`
        near = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"A recipe has no key {key!r}.{hint} {_ALL_KEYS}"


def _explain(error: ValidationError, name: str) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "recipe"
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            lines.append(_unknown(where).removesuffix(_ALL_KEYS).strip())
        elif item["type"] == "missing":
            lines.append(f"`{where}` is missing.")
        else:
            given = item.get("input")
            shown = "" if isinstance(given, dict) else f" (given: {given!r})"
            lines.append(f"`{where}`: {what}{shown}.")
    if any(item["type"] == "extra_forbidden" for item in error.errors()):
        lines.append(_ALL_KEYS)
    return f"Recipe {name!r} is not valid. " + " ".join(lines)
