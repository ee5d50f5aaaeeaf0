"""Keras callbacks for ``fit``: early stopping, divergence, plateaus, averaged weights.

Each keeps its state in ``get_state()``, a dict of JSON values, and takes it back by ``set_state``.
State that was set, before ``fit`` or after its ``on_train_begin``, is what the next (or running)
``fit`` continues from; a ``fit`` without it starts afresh. Epochs are Keras's numbers, from 0, in
attributes and state; messages count from 1, as Keras's progress lines do.
"""

from __future__ import annotations

import math
import re
from typing import Any

import keras
from keras import ops

_UPWARDS = re.compile(r"(^|_)(acc|accuracy|auc|r2|precision|recall|f1|bleu|iou|return|top\d*)(_|$)")


class _Stateful(keras.callbacks.Callback):
    """State over a resumed training; subclasses list their JSON-able attributes with start values.

    Keras calls ``on_train_begin`` in every fit, which would reset what a resumed run has just set.
    """

    _start: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed

    def __init__(self):
        super().__init__()
        self._resumed = False
        self._reset()

    def _reset(self) -> None:
        for name, value in self._start.items():
            setattr(self, name, value)

    def get_state(self) -> dict[str, Any]:
        """The state as a dict of JSON values."""
        return {name: getattr(self, name) for name in self._start}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that :meth:`get_state` gave. Raises ValueError for any other."""
        if set(state) != set(self._start):
            raise ValueError(
                f"The state of {type(self).__name__} has the keys {sorted(self._start)}; given: "
                f"{sorted(state)}."
            )
        for name, value in state.items():
            setattr(self, name, value)
        self._resumed = True

    def on_train_begin(self, logs=None):
        if not self._resumed:
            self._reset()

    def on_train_end(self, logs=None):
        self._resumed = False


class _Monitor(_Stateful):
    """Follows one recorded quantity. NaN and infinity never count as better."""

    def __init__(self, monitor: str, patience: int, min_delta: float, mode: str):
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode is one of auto, min, max; not {mode!r}.")
        if patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, not {patience}.")
        if not min_delta >= 0:
            raise ValueError(f"min_delta must not be negative, not {min_delta}.")
        self.monitor, self.patience, self.min_delta = monitor, int(patience), float(min_delta)
        if mode == "auto":
            mode = "max" if _UPWARDS.search(monitor) else "min"
        self.mode = mode
        super().__init__()

    def _reset(self) -> None:
        super()._reset()
        self._seen = False

    def _read(self, logs: dict[str, Any] | None) -> float | None:
        """This epoch's value. None where a quantity seen before was not recorded this time."""
        logs = logs or {}
        if self.monitor in logs:
            self._seen = True
            return float(logs[self.monitor])
        if self._seen or self.best is not None or self.wait:
            return None
        hint = ""
        if self.monitor.startswith("val_") and not any(key.startswith("val_") for key in logs):
            hint = " There are no validation results: give `fit` validation data."
        raise ValueError(
            f"{type(self).__name__} monitors {self.monitor!r}, which is not recorded. Recorded: "
            f"{', '.join(sorted(logs)) or 'nothing'}.{hint}"
        )

    def _better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta


class EarlyStopping(_Monitor):
    """Stops when the monitored quantity no longer improves, and always keeps the best weights.

    Differs from Keras's callback of this name: NaN and infinity never count as better; the best
    epoch's weights are put back at the end in every case, also when training ran to its last
    epoch; a quantity that is not recorded is an error; the state survives a resume; and the
    weights kept are those that validation saw, which matters when :class:`SwapEMA` validates with
    averaged weights.

    Args:
        monitor: a recorded quantity, e.g. "val_loss".
        patience: epochs without improvement after which training stops, at least 1.
        min_delta: the smallest change that counts, in the quantity's units.
        mode: "min" or "max"; "auto": up for accuracy, AUC, R2, precision, recall, returns and such,
            down for everything else.
        start_from_epoch: epochs that pass before the first that counts, as in Keras: none of them
            is the best, none is waited for. Early epochs at a high learning rate are noisy, and
            the luckiest of them can look better than any that follows. Where training ends among
            them, the last epoch's weights stay.

    Attributes:
        best: the best value so far; None where none counted or was finite.
        best_epoch: its epoch, from 0.
        best_weights: ``model.get_weights()`` of that epoch, batch-norm statistics included. Not
            part of the state: after ``set_state``, whoever resumes a training assigns it.
        wait: epochs since then.
        stopped_epoch: the epoch after which training was stopped, from 0, else None.
        reason: why, in words; None where training was not stopped by this callback. A resumed
            training whose state has a reason is over: don't call ``fit`` again.

    Raises:
        ValueError: at the end of the first epoch, where ``monitor`` is not recorded.
    """

    _start = {  # noqa: RUF012
        "best": None,
        "best_epoch": None,
        "wait": 0,
        "stopped_epoch": None,
        "reason": None,
    }

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        start_from_epoch: int = 0,
    ):
        if start_from_epoch < 0:
            raise ValueError(f"start_from_epoch must not be negative, not {start_from_epoch}.")
        self.start_from_epoch = int(start_from_epoch)
        super().__init__(monitor, patience, min_delta, mode)

    def _reset(self) -> None:
        super()._reset()
        self.best_weights = None
        self._validated = None

    def on_epoch_begin(self, epoch, logs=None):
        self._validated = None

    def on_test_batch_begin(self, batch, logs=None):
        # Every callback's on_test_begin has run, so an average that is swapped in for validation
        # is in the model now, and will be out again at the end of the epoch.
        if batch == 0 and _ema_optimizer(self.model) is not None:
            self._validated = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        value = self._read(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        if self._better(value):
            self.best, self.best_epoch, self.wait = value, epoch, 0
            self.best_weights = self._validated or self.model.get_weights()
        else:
            self.wait += 1
        self._validated = None
        if self.wait >= self.patience:
            self.stopped_epoch = epoch
            epochs = f"{self.wait} epoch{'s' if self.wait > 1 else ''}"
            self.reason = (
                f"{self.monitor} was never finite in {epochs}"
                if self.best is None
                else f"{self.monitor} did not improve on {self.best:.6g} (epoch "
                f"{self.best_epoch + 1}) for {epochs}"
            )
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        if self.best_weights is not None:
            self.model.set_weights(self.best_weights)


class StopOnDivergence(_Stateful):
    """Stops when the loss of a step is NaN or infinite, and says which step it was.

    Keras reports running means within an epoch; once a step's loss is not finite, neither is the
    mean, so the first such report names the step. With ``steps_per_execution`` > 1 reports come
    once a block and the reason names the block. All losses are watched: ``loss`` and ``*_loss``.

    A model can know more signs: where it has a method ``trouble(logs)``, that is asked after each
    epoch, and answers a reason to stop, or None.

    A callback that acts on batches makes Keras turn every step's logs into Python numbers (on a CPU
    about 4 microseconds a quantity, and 1 for the check; on a GPU it waits for the step).

    Attributes:
        reason: e.g. "loss became nan at step 123 (epoch 4)", or None. Steps are optimizer steps
            since the start of training, epochs this training's, both from 1.
    """

    _start = {"reason": None}  # noqa: RUF012

    def _reset(self) -> None:
        super()._reset()
        self._epoch, self._first = 0, 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self._first = batch

    def on_train_batch_end(self, batch, logs=None):
        if self.reason is None and logs:
            for name, value in logs.items():
                if not math.isfinite(value) and (name == "loss" or name.endswith("_loss")):
                    self._stop(batch, name, value)
                    return

    def on_epoch_end(self, epoch, logs=None):
        found = getattr(self.model, "trouble", lambda logs: None)(logs or {})
        if self.reason is None and found:
            self.reason = f"{found} in epoch {epoch + 1}"
            self.model.stop_training = True

    def _stop(self, batch: int, name: str, value: float) -> None:
        optimizer = getattr(self.model, "optimizer", None)
        last = int(optimizer.iterations) if optimizer is not None else batch + 1
        first = last - max(batch - self._first, 0)
        where = f"step {last}" if first == last else f"one of the steps {first} to {last}"
        what = "nan" if math.isnan(value) else "infinite"
        self.reason = f"{name} became {what} at {where} (epoch {self._epoch + 1})"
        self.model.stop_training = True


class ReduceOnPlateau(_Monitor):
    """Multiplies the learning rate by ``factor`` when a quantity no longer improves.

    The rate itself is an optimizer variable, which a checkpoint of the optimizer holds.

    Args:
        monitor: a recorded quantity, e.g. "val_loss".
        factor: multiplies the rate, in (0, 1).
        patience: epochs without improvement before each reduction, at least 1.
        min_delta: the smallest change that counts, in the quantity's units.
        min_learning_rate: the rate goes no lower.
        mode: as for :class:`EarlyStopping`.

    Attributes:
        best: the best value so far, None where none was finite.
        wait: epochs since the best or the last reduction.

    Raises:
        ValueError: an unknown ``monitor`` (at the end of the first epoch), or an optimizer whose
            rate is a schedule.
    """

    _start = {"best": None, "wait": 0, "reductions": 0}  # noqa: RUF012

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 5,
        min_delta: float = 0.0,
        min_learning_rate: float = 0.0,
        mode: str = "auto",
    ):
        if not 0 < factor < 1:
            raise ValueError(f"factor must lie between 0 and 1, not {factor}.")
        if not min_learning_rate >= 0:
            raise ValueError(f"min_learning_rate must not be negative, not {min_learning_rate}.")
        self.factor, self.min_learning_rate = float(factor), float(min_learning_rate)
        super().__init__(monitor, patience, min_delta, mode)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        optimizer = _unwrapped(self.model.optimizer)
        rate = optimizer._learning_rate
        if not isinstance(rate, keras.Variable):
            raise ValueError(
                "ReduceOnPlateau needs an optimizer with a plain learning rate; this one follows "
                f"the schedule {type(rate).__name__}. Use one of the two."
            )

    def on_epoch_end(self, epoch, logs=None):
        value = self._read(logs)
        if value is None:
            return
        if self._better(value):
            self.best, self.wait = value, 0
            return
        self.wait += 1
        if self.wait >= self.patience:
            optimizer = _unwrapped(self.model.optimizer)
            rate = float(ops.convert_to_numpy(optimizer.learning_rate))
            optimizer.learning_rate = max(rate * self.factor, min(rate, self.min_learning_rate))
            self.wait = 0
            self.reductions += 1


class SwapEMA(_Stateful):
    """Validates with the optimizer's averaged weights (``use_ema=True``), trains with the raw ones.

    The averages are in the model from ``on_test_begin`` to ``on_test_end`` only; everything else at
    the end of an epoch (checkpoints, say) sees the raw weights, and :class:`EarlyStopping` keeps
    what validation saw. What batch normalisation has counted is not averaged: it is that of the raw
    weights. The exchange is exact: the bits of both sets return (Keras's
    ``SwapEMAWeights`` exchanges by sums, which round). Nothing is exchanged before the first
    update, when there is no average yet.

    Keras's ``fit`` puts the averages into the model for good at its end.

    Raises:
        ValueError: at the start of training, where the optimizer keeps no average.
    """

    _start = {}  # noqa: RUF012

    def _reset(self) -> None:
        super()._reset()
        self._swapped = False

    def on_train_begin(self, logs=None):
        self._back()  # an evaluation may have been broken off
        super().on_train_begin(logs)
        if _ema_optimizer(self.model) is None:
            raise ValueError(
                "SwapEMA needs an optimizer that averages the weights: compile the model with "
                "use_ema=True and ema_momentum, e.g. Adam(use_ema=True, ema_momentum=0.999)."
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._back()

    def on_test_begin(self, logs=None):
        if not self._swapped:
            self._swapped = self._exchange()

    def on_test_end(self, logs=None):
        self._back()

    def _back(self) -> None:
        if self._swapped:
            self._exchange()
            self._swapped = False

    def _exchange(self) -> bool:
        optimizer = _ema_optimizer(self.model)
        if optimizer is None or not optimizer.built or int(optimizer.iterations) == 0:
            return False
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
            if average is not None:
                raw = ops.convert_to_numpy(variable)
                variable.assign(average)
                average.assign(raw)
        return True


def _unwrapped(optimizer):
    """The optimizer inside a LossScaleOptimizer, which float16 training wraps around it."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _ema_optimizer(model):
    """The model's optimizer where it averages the weights, else None."""
    optimizer = _unwrapped(getattr(model, "optimizer", None))
    return optimizer if getattr(optimizer, "use_ema", False) else None
