"""A recipe: the four elements of deep learning (data, model, loss, algorithm) and a seed.

Recipes are frozen, typed and validated, and round-trip through JSON. Everything that changes one
(the command line, ``ablate``, ``tune``, ``crossval``) goes through :func:`override`. This module
loads neither TensorFlow nor Keras; options of a named choice are checked where it is built.

The slot ``data`` stands in :mod:`.recipe_data`, what all slots are made of in :mod:`.recipe_base`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from .recipe_base import Choice, Count, RecipeError, Strict, literal, parse_choice
from .recipe_data import Data, Masking, Replay
from .recipe_keys import explain, group_of, is_optional, keys_of, unknown_key

__all__ = [
    "Algorithm",
    "Choice",
    "Data",
    "EarlyStopping",
    "Masking",
    "Recipe",
    "RecipeError",
    "Replay",
    "keys",
    "override",
]


class EarlyStopping(Strict):
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


class Algorithm(Strict):
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


class Recipe(Strict):
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
            raise RecipeError(explain(type(self), error, fields.get("name", "?"))) from None

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
        if part not in node or group_of(model, part) is None:
            raise RecipeError(unknown_key(Recipe, key))
        model = group_of(model, part)
        if node[part] is None:  # an optional group that is off is switched on by its first key
            node[part] = model().model_dump()
        node = node[part]
        if model is Choice and depth < len(parents) - 1:
            raise RecipeError(unknown_key(Recipe, key))
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
        raise RecipeError(unknown_key(Recipe, key))
    if isinstance(value, str) and value.lower() == "none" and is_optional(model, leaf):
        value = None
    group = group_of(model, leaf)
    if group is Choice and isinstance(value, str):
        value = parse_choice(value)
    elif group is not None and isinstance(value, BaseModel):
        value = value.model_dump()
    elif isinstance(value, str) and "tuple" in str(model.model_fields[leaf].annotation):
        value = tuple(part.strip() for part in value.split(",") if part.strip())
    node[leaf] = value


def keys() -> dict[str, tuple[str, str]]:
    """Every dotted key of a recipe -> (type, docstring). Options of choices are not listed here."""
    return keys_of(Recipe)
