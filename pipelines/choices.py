"""Names and options of a recipe -> Keras objects, checked against the signatures they stand for."""

from __future__ import annotations

import inspect
from typing import Any

from ..models import registry
from ..models.hints import did_you_mean
from .recipe import Choice, Recipe, RecipeError

# Arguments that the pipeline supplies: a recipe does not set them.
_SUPPLIED = {
    "models": {
        "input_shape", "num_classes", "include_top", "capacity", "task", "name", "dtype",
        "vocabulary_size", "target_vocabulary_size", "start_id", "end_id", "future_shape",
        "pad_id",
    },
    "losses": {"name", "reduction", "dtype"},
    "optimizers": {
        "name", "weight_decay", "weight_decay_exclude", "clipnorm", "clipvalue",
        "global_clipnorm", "use_ema", "ema_momentum", "ema_overwrite_frequency",
        "loss_scale_factor", "gradient_accumulation_steps", "layer_rates",
    },
    "schedules": {"name", "learning_rate", "peak", "steps", "total_steps"},
}  # fmt: skip

# What a loss is for, where the data's task has another name.
LOSS_TASKS = {
    "forecasting": "regression",
    "language-model": "classification",
    "masked-language-model": "classification",
    "translation": "classification",
    "control": "regression",
}


def options(kind: str, name: str) -> dict[str, Any]:
    """The options that ``kind`` (models, losses, optimizers, schedules) ``name`` takes.

    Returns option -> default (``inspect.Parameter.empty`` where it must be given).
    Raises RecipeError for an unknown name.
    """
    try:
        target = registry.get(kind, name)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    parameters = inspect.signature(target).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in _SUPPLIED[kind]
    }


def check(kind: str, choice: Choice) -> None:
    """Raises RecipeError where a choice names something unknown or an option it does not have."""
    known = options(kind, choice.name)
    for option in choice.options:
        if option not in known:
            hint = did_you_mean(option, known, 0.5)
            takes = ", ".join(known) or "no options"
            raise RecipeError(
                f"{choice.name!r} ({kind}) has no option {option!r}.{hint} It takes: {takes}."
            )


def check_recipe(recipe: Recipe) -> None:
    """Checks every named choice of a recipe, before any data is read."""
    from .data import ops

    check("models", recipe.model)
    check("losses", recipe.loss)
    check("optimizers", recipe.algorithm.optimizer)
    check("schedules", recipe.algorithm.schedule)
    try:
        ops.parse(recipe.data.ops)
    except ops.OpsError as error:
        raise RecipeError(f"`data.ops`: {error}") from None


def build_loss(choice: Choice):
    """The loss object of a recipe. Raises RecipeError for options out of range."""
    check("losses", choice)
    try:
        return registry.get("losses", choice.name)(**choice.options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"`loss` {choice}: {error}") from None


def fit_loss(loss, dataset) -> None:
    """Lets a loss see the training labels: what "balanced" class weights are made of.

    Raises RecipeError where there are no labels in memory.
    """
    if getattr(loss, "class_weights", None) is None:
        return
    if dataset.task != "classification":
        raise RecipeError(
            f"loss.class_weights weigh classes, and these data are for {dataset.task}. Leave them "
            "out."
        )
    loss.balance(dataset.targets("train"))


def losses(dataset, loss):
    """What a model is compiled with: the loss, of several outputs one for each."""
    return {"mlm": loss, "nsp": loss} if getattr(dataset, "next_sentence", False) else loss


def build_model(recipe: Recipe, dataset, loss):
    """The Keras model of a recipe, fitted to the shapes of its data and loss.

    The factory gets, of what the pipeline knows, the arguments that it takes: input_shape,
    num_classes (the width that the loss needs), capacity (training examples), task,
    vocabulary_size, and of forecasts future_shape.
    """
    check("models", recipe.model)
    factory = registry.get("models", recipe.model.name)
    try:
        num_outputs = loss.num_outputs(dataset.num_targets)
    except ValueError as error:
        raise RecipeError(f"`loss` {recipe.loss}: {error}") from None
    known = {
        "input_shape": dataset.input_shape,
        "num_classes": num_outputs,
        "capacity": dataset.sizes.get("train", 0),
        "task": dataset.task,
        "vocabulary_size": dataset.vocabulary_size,
        "future_shape": getattr(dataset, "future_shape", None),
        **getattr(dataset, "model_options", {}),
        "pad_id": getattr(dataset, "fill_id", 0),
    }
    takes = inspect.signature(factory).parameters
    if dataset.kind in ("text", "pairs") and "vocabulary_size" not in takes:
        raise RecipeError(
            f"`model` {recipe.model.name!r} does not read text. Choose one that does: "
            "`epochal list models` names lstm, transformer-small and others."
        )
    if known["pad_id"] and "pad_id" not in takes:
        raise RecipeError(
            f"`model` {recipe.model.name!r} takes id 0 for padding, and the vocabulary of data.ops "
            f"has a word there and fills rows up with id {known['pad_id']}. Choose a gpt or bert "
            "model, or a tokenizer that is learnt from the data, such as byte_bpe(8000)."
        )
    if dataset.task == "forecasting" and "future_shape" not in takes:
        raise RecipeError(
            f"The model {recipe.model.name!r} makes no forecasts. Choose lstm, gru or rnn."
        )
    if (registry.MODELS[recipe.model.name].task == "control") != (dataset.task == "control"):
        raise RecipeError(
            f"`model` {recipe.model.name!r} and `data.source` {recipe.data.source!r} do not go "
            "together: environments (gym:NAME) are for dqn-mlp, dqn-2013 and dqn-nature, and these "
            "are for environments."
        )
    if (registry.MODELS[recipe.model.name].task == "representation") != (
        dataset.task == "representation"
    ):
        raise RecipeError(
            f"`model` {recipe.model.name!r} and data for {dataset.task} do not go together: simclr "
            "is for data.task=representation, and this task is for simclr."
        )
    if dataset.task == "control" and known["num_classes"] != dataset.num_targets:
        raise RecipeError(
            f"`loss` {recipe.loss.name!r} needs several outputs for a value; DQN has one for each "
            "action. Choose huber, as its authors, or mse."
        )
    if (registry.MODELS[recipe.model.name].task == "generation") != (dataset.task == "generation"):
        raise RecipeError(
            f"`model` {recipe.model.name!r} and `data.task` {dataset.task!r} do not go together: "
            'set data.task to "generation" for gan and dcgan, and for no other model.'
        )
    if dataset.task == "generation" and recipe.algorithm.ema:
        raise RecipeError(
            "algorithm.ema averages the discriminator, which answers nothing. Set model.average, "
            "the running mean of the generator."
        )
    _check_text(recipe, dataset)
    try:
        supplied = {k: v for k, v in known.items() if k in takes}
        model = factory(**supplied, **recipe.model.options)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"`model` {recipe.model} on inputs of shape {dataset.input_shape}: {error}"
        ) from None
    if recipe.data.context is not None and "context" in takes:
        context = model.get_config()["context"]  # of weights, theirs
        if recipe.data.context > context:
            raise RecipeError(
                f"data.context is {recipe.data.context}, and `model` {recipe.model} sees {context} "
                f"tokens at most. Set data.context to {context} or less, or a longer model.context."
            )
    if dataset.kind == "text" and dataset.task == "classification" and "context" in takes:
        _check_longest(recipe, dataset, model.get_config()["context"])
    return model


def _check_longest(recipe: Recipe, dataset, context: int) -> None:
    """Raises RecipeError where a text can have more tokens than a BERT has positions."""
    from .data.ops.text import Enclosed, MaxTokens

    longest = None
    for op in dataset.preprocess.modules:
        longest = min(longest or op.n, op.n) if isinstance(op, MaxTokens) else longest
        longest = longest + 2 if longest and isinstance(op, Enclosed) else longest
    if longest is None or longest > context:
        raise RecipeError(
            f"`model` {recipe.model} sees {context} tokens at most, and data.ops "
            f"{recipe.data.ops!r} lets through {longest or 'any number'}. End it with "
            f"max_tokens({context - 2})|enclose, or set a longer model.context."
        )


def _check_text(recipe: Recipe, dataset) -> None:
    """Raises RecipeError where a BERT is not for the task, and where a BERT or a language model
    starts from weights of other ids."""
    name, options_ = recipe.model.name, recipe.model.options
    reads_gaps = "masked-language-model" in registry.MODELS[name].task
    if dataset.task == "masked-language-model" and not reads_gaps:
        raise RecipeError(
            f"`model` {name!r} does not fill gaps in texts. Choose bert-tiny, another bert, or "
            "set data.task to language-model."
        )
    if reads_gaps and dataset.task not in ("masked-language-model", "classification"):
        raise RecipeError(
            f"`model` {name!r} looks to both sides, so it cannot do {dataset.task}. For a text "
            "itself set data.task to masked-language-model; lstm and gpt go on with texts."
        )
    tasks = registry.MODELS[name].task.split("/")
    if dataset.kind == "text" and dataset.task not in tasks and "language-model" in tasks:
        raise RecipeError(
            f"`model` {name!r} is not for {dataset.task} of texts. Choose a bert or an lstm, or "
            "set data.task to language-model."
        )
    if not reads_gaps and dataset.task != "language-model":
        return
    own = [key for key in getattr(dataset, "model_options", {}) if key in options_]
    if own:
        raise RecipeError(f"model.{own[0]} follows from data.masking. Leave it out.")
    if not isinstance(weights := options_.get("weights"), str):
        return
    from .data.ops.text import vocabulary_of

    theirs, ours = vocabulary_of(weights), dataset.preprocess.tokenizer.vocabulary
    if theirs is not None and theirs != ours:
        same = sum(a == b for a, b in zip(theirs, ours, strict=False))
        raise RecipeError(
            f"The ids of data.ops are those of another vocabulary ({len(ours):,} pieces) than the "
            f"weights of {weights} ({len(theirs):,}; {same:,} are equal): every word would mean "
            f"another. Let data.ops begin with tokenizer_of({weights!r})."
        )


def build_metrics(dataset, loss):
    """The quantities recorded each epoch beside the loss, in the target's own units; of several
    targets of a forecast, which have no unit in common, in their standard deviations. A list; of
    several outputs a dictionary of such."""
    from ..models import metrics

    if dataset.task == "classification":
        return [metrics.Accuracy(name="accuracy")]
    if dataset.task in ("language-model", "translation"):
        return [metrics.Accuracy(name="token_accuracy")]
    if dataset.task == "masked-language-model":  # Keras puts the output's name before: mlm_accuracy
        if not dataset.next_sentence:
            return [metrics.Accuracy(name="mlm_accuracy")]
        return {name: [metrics.Accuracy(name="accuracy")] for name in ("mlm", "nsp")}
    if dataset.task in ("regression", "forecasting"):
        scale = dataset.target_scale[1]
        if dataset.task == "forecasting":
            scale = scale[0] if len(scale) == 1 else 1.0
        return [
            metrics.MeanAbsoluteError(loss=loss, scale=scale, name="mae"),
            metrics.RootMeanSquaredError(loss=loss, scale=scale, name="rmse"),
        ]
    return []
