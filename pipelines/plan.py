"""How long a recipe trains and by which optimizer; what is recorded, and what ends it early."""

from __future__ import annotations

import math

import keras

from ..models import callbacks, finetune, optimizers
from ..models.hints import did_you_mean
from . import choices
from .recipe import Recipe, RecipeError

# No loss of a game says which epoch is the best, and a representation is judged by probes, in the
# end: the last epoch's weights are kept, as in their papers.
UNVALIDATED = ("generation", "representation")


class Plan:
    """How many steps, in epochs of which length.

    ``algorithm.steps`` that is no multiple of the epoch's length makes the last epoch shorter.
    """

    def __init__(self, recipe: Recipe, steps_in_a_pass: int):
        algorithm = recipe.algorithm
        group = algorithm.steps_per_execution
        if algorithm.steps_per_epoch:
            self.steps_per_epoch = algorithm.steps_per_epoch
        else:  # rounded up, so that an epoch is whole calls into TensorFlow
            self.steps_per_epoch = -(-steps_in_a_pass // group) * group
        self.steps = algorithm.steps or algorithm.epochs * self.steps_per_epoch
        self.steps_per_epoch = min(self.steps_per_epoch, self.steps)
        self.epochs = -(-self.steps // self.steps_per_epoch) if self.steps else 0
        self.partial = self.epochs * self.steps_per_epoch != self.steps
        for name, value in (("steps_per_epoch", self.steps_per_epoch), ("steps", self.steps)):
            if value % group:
                raise RecipeError(
                    f"algorithm.{name} ({value}) must be a multiple of "
                    f"algorithm.steps_per_execution ({group})."
                )

    def last_step_callback(self) -> keras.callbacks.Callback:
        """Ends the last, shorter epoch at the last step."""
        plan = self

        class LastStep(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.remaining = plan.steps - epoch * plan.steps_per_epoch

            def on_train_batch_end(self, batch, logs=None):
                if batch + 1 >= self.remaining:
                    self.model.stop_training = True

        return LastStep()


def build_optimizer(recipe: Recipe, steps: int, model=None):
    """The optimizer of a recipe whose training takes ``steps``, for a model where its layers have
    rates of their own. Raises RecipeError."""
    algorithm = recipe.algorithm
    try:
        rates = None
        if algorithm.layer_decay is not None:
            rates = finetune.layer_rates(model, algorithm.layer_decay)
        return optimizers.build(
            algorithm.optimizer.name,
            algorithm.optimizer.options,
            schedule=(algorithm.schedule.name, algorithm.schedule.options),
            steps=steps,
            weight_decay=algorithm.weight_decay,
            weight_decay_exclude=algorithm.weight_decay_exclude,
            clip_norm=algorithm.clip_norm,
            ema=algorithm.ema,
            layer_rates=rates,
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"`algorithm` with {algorithm.optimizer} and schedule {algorithm.schedule}: {error}"
        ) from None


def schedule_callbacks(recipe: Recipe, dataset, loss) -> list:
    """What lowers the learning rate by what is recorded, where the schedule is such a one."""
    schedule = recipe.algorithm.schedule
    callback = optimizers.needs_callback(schedule.name, schedule.options)
    if callback is None:
        return []
    _check_recorded("algorithm.schedule.monitor", callback.monitor, dataset, loss)
    return [callback]


def early_stopping(recipe: Recipe, plan: Plan, dataset, loss):
    """Stops if the recipe says so; finds and keeps the best epoch in any case where one is."""
    settings = recipe.algorithm.early_stopping
    if settings is None:
        unvalidated = "validation" not in dataset.sizes or dataset.task in UNVALIDATED
        if plan.epochs <= 1 or unvalidated:
            return None
        monitor = "val_return" if dataset.task == "control" else "val_loss"
        return callbacks.EarlyStopping(monitor, patience=plan.epochs)
    _check_recorded("algorithm.early_stopping.monitor", settings.monitor, dataset, loss)
    return callbacks.EarlyStopping(
        settings.monitor,
        settings.patience,
        settings.min_delta,
        start_from_epoch=math.floor(settings.start * plan.epochs + 1e-9),  # 0.29 * 100 is 28.99
    )


def stop_reason(early, divergence, plan: Plan, epochs: int) -> str:
    """Why a training ended after so many epochs, in words."""
    if divergence.reason:
        return f"diverged: {divergence.reason}"
    if early is not None and early.reason:
        return f"early stopping: {early.reason}"
    if plan.steps == 0:
        return "no training asked for: the weights are those at the start"
    if epochs < plan.epochs:
        return f"stopped by a callback after {epochs} of {plan.epochs} epochs"
    return f"all {plan.steps} steps done" if plan.partial else f"all {epochs} epochs done"


def recorded_by(dataset, loss) -> list[str]:
    """What is recorded of a split each epoch: the loss and the metrics."""
    metrics = choices.build_metrics(dataset, loss)
    if not isinstance(metrics, dict):
        return ["loss", *(metric.name for metric in metrics)]
    named = [f"{output}_{one.name}" for output, several in metrics.items() for one in several]
    return ["loss", *(f"{output}_loss" for output in metrics), *named]


def _check_recorded(key: str, monitor: str, dataset, loss) -> None:
    recorded = recorded_by(dataset, loss)
    own = {
        "control": ["return"],
        "generation": ["loss", "generator_loss", "d_real", "d_fake"],
        "representation": ["loss", "contrast_accuracy", "contrast_entropy", "spread"],
    }
    recorded = own.get(dataset.task, recorded)
    if "validation" in dataset.sizes and dataset.task not in UNVALIDATED:
        recorded = [f"val_{name}" for name in recorded] + recorded
    if monitor not in recorded:
        hint = did_you_mean(monitor, recorded, 0.3)
        raise RecipeError(
            f"`{key}`: {monitor!r} is not recorded.{hint} This run records {', '.join(recorded)}."
        )
