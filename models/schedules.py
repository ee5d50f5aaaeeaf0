"""Learning rates over the optimizer steps: constant, step, cosine, linear, one-cycle, inverse-sqrt.

Ordinary, serialisable Keras schedules: ``keras.optimizers.SGD(Cosine(0.1, steps=10_000))``. Step
numbers count optimizer updates from 0: the first update uses ``schedule(0)``, the last one
``schedule(steps - 1)``. A warm-up of ``w`` steps uses 1/w, 2/w, ..., 1 of the peak rate, so that no
update is spent at a rate of zero. After ``steps`` every schedule keeps its final value.

``plateau`` is a schedule name too, but no function of the step: it is a constant rate together with
:class:`epochal.models.callbacks.ReduceOnPlateau` (see :func:`needs_callback`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from .callbacks import ReduceOnPlateau
from .hints import did_you_mean

# Names as general as "Linear" get a name space of their own in saved files.
_register = keras.saving.register_keras_serializable("epochal.schedules")


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Common part: a peak rate, a length in optimizer steps, and the config of a saved file."""

    def __init__(self, learning_rate: float, steps: int | None, **options: Any):
        learning_rate = float(learning_rate)
        if not (math.isfinite(learning_rate) and learning_rate >= 0):
            raise ValueError(f"learning_rate must be finite and not negative, not {learning_rate}.")
        if steps is not None and steps < 1:
            raise ValueError(f"steps, the length of training, must be at least 1, not {steps}.")
        self.learning_rate = learning_rate
        self.steps = None if steps is None else int(steps)
        self._options = {"learning_rate": learning_rate, "steps": self.steps, **options}

    def __call__(self, step):
        """The rate (float32 scalar) of the update number ``step`` (integer scalar, from 0)."""
        return ops.multiply(self.learning_rate, self.factor(ops.cast(step, "float32")))

    def factor(self, step):
        """The share of ``learning_rate`` that update ``step`` (float32 scalar) uses."""
        return ops.ones_like(step)

    def get_config(self) -> dict[str, Any]:
        return dict(self._options)


@_register
class Constant(Schedule):
    """The same rate in every step. ``steps`` is accepted, for uniformity, and not used."""

    def __init__(self, learning_rate: float, steps: int | None = None):
        super().__init__(learning_rate, steps)


@_register
class Step(Schedule):
    """Multiplies the rate by ``factor`` at each boundary (ResNet, He et al. 2015, section 4.2).

    The paper's ResNet-110 starts at a tenth of the rate, until its training error is below 80%
    (about 400 steps): ``warmup_steps=400``.

    Args:
        learning_rate: the first rate.
        steps: optimizer steps of the whole training; needed where boundaries are shares.
        boundaries: increasing; an integer is a number of optimizer steps (the update with that
            number, counted from 0, is the first at the new rate), a float between 0 and 1 is a
            share of ``steps`` (rounded to the nearest step).
        factor: multiplies the rate at each boundary.
        warmup_steps: optimizer steps at the beginning at a constant, lower rate; before the first
            boundary.
        warmup_factor: multiplies the rate in these steps.
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int | None = None,
        boundaries: Sequence[float] = (0.5, 0.75),
        factor: float = 0.1,
        warmup_steps: int = 0,
        warmup_factor: float = 0.1,
    ):
        boundaries = list(boundaries)
        super().__init__(
            learning_rate,
            steps,
            boundaries=boundaries,
            factor=float(factor),
            warmup_steps=int(warmup_steps),
            warmup_factor=float(warmup_factor),
        )
        self._at = [self._as_step(boundary) for boundary in boundaries]
        if self._at != sorted(self._at):
            raise ValueError(f"boundaries must increase; given {boundaries} (steps {self._at}).")
        if not factor > 0:
            raise ValueError(f"factor must be above 0, not {factor}.")
        if warmup_steps < 0 or any(boundary < warmup_steps for boundary in self._at):
            raise ValueError(
                "warmup_steps must be at least 0 and no more than the steps before the first "
                f"boundary; given {warmup_steps}, with boundaries at {self._at}."
            )
        if not 0 < warmup_factor <= 1:
            raise ValueError(f"warmup_factor must be above 0 and at most 1, not {warmup_factor}.")
        self._factor = float(factor)
        self._warmup = int(warmup_steps), float(warmup_factor)

    def _as_step(self, boundary: float) -> int:
        if isinstance(boundary, float) and 0 < boundary < 1:
            if self.steps is None:
                raise ValueError(f"The boundary {boundary} is a share of `steps`: give `steps`.")
            return round(boundary * self.steps)
        if boundary != int(boundary) or boundary < 1:
            raise ValueError(
                f"A boundary is a whole number of steps or a share between 0 and 1, not {boundary}."
            )
        return int(boundary)

    def factor(self, step):
        result = ops.ones_like(step)
        for passed, boundary in enumerate(self._at, start=1):
            result = ops.where(step >= boundary, self._factor**passed, result)
        steps, factor = self._warmup
        return ops.where(step < steps, factor, result) if steps else result


class _Warmup(Schedule):
    """A linear warm-up, then ``decay(share)`` with ``share`` going from 0 to 1 at ``steps``."""

    def __init__(self, learning_rate: float, steps: int, warmup_steps: int, **options: Any):
        super().__init__(learning_rate, steps, warmup_steps=int(warmup_steps), **options)
        if not 0 <= warmup_steps < steps:
            raise ValueError(
                f"warmup_steps must be at least 0 and less than the {steps} steps of the "
                f"training, not {warmup_steps}."
            )
        self.warmup_steps = int(warmup_steps)

    def factor(self, step):
        after = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        decayed = self.decay(ops.clip(after, 0.0, 1.0))
        if not self.warmup_steps:
            return decayed
        return ops.where(step < self.warmup_steps, (step + 1) / self.warmup_steps, decayed)


@_register
class Cosine(_Warmup):
    """Half a cosine from the peak to ``final_fraction`` of it (SGDR, Loshchilov 2017, eq. 5).

    Args:
        learning_rate: the peak, reached by the last warm-up step.
        steps: optimizer steps of the whole training, warm-up included; the rate would reach its
            final value at update number ``steps``.
        warmup_steps: optimizer steps of the linear warm-up.
        final_fraction: the final rate as a share of the peak.
        cycles: half cosines of equal length, one after the other: each but the first begins with a
            jump back to the peak, a "warm restart". The end of each is a good model of its own
            (snapshot ensembles, Huang et al. 2017, eq. 2).
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int,
        warmup_steps: int = 0,
        final_fraction: float = 0.0,
        cycles: int = 1,
    ):
        if not 0 <= final_fraction <= 1:
            raise ValueError(f"final_fraction must lie between 0 and 1, not {final_fraction}.")
        if cycles != int(cycles) or not 1 <= cycles <= max(1, steps - warmup_steps):
            raise ValueError(
                f"cycles must be a whole number from 1 to the {steps - warmup_steps} steps that "
                f"they share, not {cycles}."
            )
        self.final_fraction, self.cycles = float(final_fraction), int(cycles)
        super().__init__(
            learning_rate,
            steps,
            warmup_steps,
            final_fraction=self.final_fraction,
            cycles=self.cycles,
        )

    def decay(self, share):
        if self.cycles > 1:  # the first step of a cycle may not fall short of it by rounding
            place = share * self.cycles + 1e-5
            last = place >= self.cycles
            share = ops.where(last, 1.0, ops.maximum(place - ops.floor(place) - 1e-5, 0.0))
        half_cosine = 0.5 * (1.0 + ops.cos(math.pi * share))
        return self.final_fraction + (1.0 - self.final_fraction) * half_cosine


@_register
class Linear(_Warmup):
    """A linear warm-up, then linearly to zero (BERT, Devlin et al. 2018, appendix A.2).

    Args:
        learning_rate: the peak, reached by the last warm-up step.
        steps: optimizer steps of the whole training, warm-up included; the rate would be zero at
            update number ``steps``.
        warmup_steps: optimizer steps of the warm-up.
    """

    def __init__(self, learning_rate: float, steps: int, warmup_steps: int = 0):
        super().__init__(learning_rate, steps, warmup_steps)

    def decay(self, share):
        return 1.0 - share


@_register
class OneCycle(Schedule):
    """One rise and one fall, both linear (Smith and Topin 2017; Smith 2018).

    The rate rises from peak / ``start_divisor`` to the peak, and falls to peak / ``final_divisor``
    at update number ``steps``. Differs from the paper: the momentum is not cycled, and the final
    "annihilation" is part of the fall, not a phase of its own.

    Args:
        learning_rate: the peak.
        steps: optimizer steps of the whole training.
        warmup_share: share of ``steps`` spent rising.
        start_divisor: peak over first rate.
        final_divisor: peak over final rate.
    """

    def __init__(
        self,
        learning_rate: float,
        steps: int,
        warmup_share: float = 0.3,
        start_divisor: float = 25.0,
        final_divisor: float = 10_000.0,
    ):
        super().__init__(
            learning_rate,
            steps,
            warmup_share=float(warmup_share),
            start_divisor=float(start_divisor),
            final_divisor=float(final_divisor),
        )
        if not 0 < warmup_share < 1:
            raise ValueError(f"warmup_share must lie between 0 and 1, not {warmup_share}.")
        if start_divisor < 1 or final_divisor < 1:
            raise ValueError(
                "start_divisor and final_divisor divide the peak rate and must be at least 1, "
                f"not {start_divisor} and {final_divisor}."
            )
        self._first, self._final = 1.0 / start_divisor, 1.0 / final_divisor
        self._top = warmup_share * steps

    def factor(self, step):
        up = self._first + (1.0 - self._first) * step / self._top
        fall = ops.clip((step - self._top) / (self.steps - self._top), 0.0, 1.0)
        return ops.where(step < self._top, up, self._final + (1.0 - self._final) * (1.0 - fall))


@_register
class InverseSqrt(Schedule):
    """A linear warm-up, then proportional to 1/sqrt(t), t = step + 1.

    With a peak rate: ``learning_rate * min(t / warmup_steps, sqrt(warmup_steps / t))``. With
    ``d_model`` instead, the Transformer's ``d_model**-0.5 * min(t**-0.5, t * warmup_steps**-1.5)``
    (Vaswani et al. 2017, eq. 3), which is the same curve with a peak of
    ``(d_model * warmup_steps)**-0.5``.

    Args:
        learning_rate: the peak; None where ``d_model`` is given (exactly one of the two).
        steps: accepted, for uniformity, and not used: the curve has no end.
        warmup_steps: optimizer steps of the warm-up, at least 1.
        d_model: width of the Transformer.
    """

    def __init__(
        self,
        learning_rate: float | None = None,
        steps: int | None = None,
        warmup_steps: int = 4_000,
        d_model: int | None = None,
    ):
        if (learning_rate is None) == (d_model is None):
            raise ValueError(
                "The inverse-sqrt schedule takes its peak from exactly one of learning_rate and "
                f"d_model; given learning_rate={learning_rate}, d_model={d_model}."
            )
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1, not {warmup_steps}.")
        if d_model is not None and d_model < 1:
            raise ValueError(f"d_model must be at least 1, not {d_model}.")
        peak = learning_rate if d_model is None else (d_model * warmup_steps) ** -0.5
        super().__init__(peak, steps, warmup_steps=int(warmup_steps), d_model=d_model)
        self.warmup_steps = int(warmup_steps)

    def factor(self, step):
        t = step + 1.0
        return ops.minimum(t / self.warmup_steps, ops.sqrt(self.warmup_steps / t))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return config if config["d_model"] is None else {**config, "learning_rate": None}


SCHEDULES: dict[str, type] = {
    "constant": Constant,
    "step": Step,
    "cosine": Cosine,
    "linear": Linear,
    "one-cycle": OneCycle,
    "inverse-sqrt": InverseSqrt,
    "plateau": ReduceOnPlateau,
}


def build_schedule(
    name: str,
    options: dict[str, Any] | None = None,
    *,
    learning_rate: float | None,
    default: float,
    steps: int,
) -> float | Schedule:
    """What an optimizer takes as its learning rate.

    Args:
        name: a key of ``SCHEDULES``.
        options: its options, see :func:`schedule_options`.
        learning_rate: the peak, or None for ``default`` (or the peak that ``d_model`` implies).
        default: the optimizer's default rate.
        steps: optimizer steps of the whole training.

    Returns:
        A number for ``constant`` and ``plateau``, which leaves the rate open to assignment.

    Raises:
        ValueError: an unknown name or option, or one out of range.
    """
    kind, options = named("schedule", name, SCHEDULES), dict(options or {})
    check_options(f"schedule {name!r}", options, schedule_options(name))
    if learning_rate is None and options.get("d_model") is None:
        learning_rate = default
    if kind in (Constant, ReduceOnPlateau):
        return learning_rate
    return kind(learning_rate=learning_rate, steps=steps, **options)


def needs_callback(
    schedule: str, options: dict[str, Any] | None = None
) -> keras.callbacks.Callback | None:
    """The callback that a schedule is made of (plateau), to be given to ``fit``; else None."""
    named("schedule", schedule, SCHEDULES)
    check_options(f"schedule {schedule!r}", options or {}, schedule_options(schedule))
    return ReduceOnPlateau(**(options or {})) if schedule == "plateau" else None


def schedule_options(name: str) -> dict[str, Any]:
    """The options that :func:`build_schedule` takes for a name, with their defaults."""
    found = options_of(named("schedule", name, SCHEDULES))
    return {k: v for k, v in found.items() if k not in ("learning_rate", "steps")}


def named(kind: str, name: str, table: dict[str, type]) -> type:
    """A row of a table. Raises ValueError naming the nearest and all known names."""
    if name not in table:
        hint = did_you_mean(name, table, 0.5)
        raise ValueError(f"There is no {kind} {name!r}.{hint} Known: {', '.join(table)}.")
    return table[name]


def options_of(kind: type) -> dict[str, Any]:
    """Named arguments of a class and their defaults, but for what :func:`optimizers.build` adds."""
    return {
        p.name: p.default
        for p in inspect.signature(kind).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "weight_decay"
    }


def check_options(what: str, given: dict[str, Any], allowed: dict[str, Any]) -> None:
    """Raises ValueError for an unknown option, naming the nearest and all valid ones."""
    for name in given:
        if name not in allowed:
            hint = did_you_mean(name, allowed, 0.5)
            listed = ", ".join(f"{k}={v!r}" for k, v in allowed.items()) or "none"
            raise ValueError(f"The {what} has no option {name!r}.{hint} Its options: {listed}.")
