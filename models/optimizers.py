"""Element 4, the algorithm: optimizers as ordinary Keras objects, and :func:`build` for trainers.

| name | default rate | update (t counts from 1; g: gradient; m, v: running means) | paper |
|---|---|---|---|
| sgd | 0.01 | w -= lr g | Robbins and Monro 1951 |
| momentum | 0.01 | u = momentum u - lr g; w += u | Polyak 1964 |
| nesterov | 0.01 | u as above; w += momentum u - lr g | Sutskever 2013, section 2 |
| rmsprop | 0.001 | w -= lr g / sqrt(v + epsilon) | Hinton 2012; Graves 2013 |
| adam | 0.001 | w -= lr sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + epsilon) | Kingma 2014 |
| adamw | 0.001 | adam, with weight decay 0.01 by default | Loshchilov 2017 |
| radam | 0.001 | adam, rectified; its first steps go without v | Liu 2019, alg. 2 |
| lars | 0.3 | momentum at a rate for each layer, lr trust norm(w)/norm(g) | You 2017, alg. 1 |
| lookahead | `inner`'s | every k steps, from slow weights half-way to fast | Zhang 2019, alg. 1 |
| muon | 0.02 | nesterov's step made orthogonal; adam where there is no matrix | Jordan 2024 |

SGD and RMSprop are Keras's own updates. Keras's Adam computes its bias corrections in float32, by
which the first steps are off by about 1e-5 of their size: ours does that in float64. Down to
adamw the classes are defined in :mod:`.keras_optimizers`, the others in :mod:`.paper_optimizers`
and :mod:`.muon`.

All share **weight decay with an exclusion rule that survives saving**: ``weight_decay`` shrinks the
weights before each update, ``w -= lr * weight_decay * w`` (decoupled from the gradient; in LARS it
is part of the gradient, as in its paper), except for variables whose own name, or whose layer's
name, is in ``weight_decay_exclude``. These two are the last parts of ``variable.path``; the earlier
ones are not compared, because Keras forgets the name of an enclosing Sequential when a model is
saved and loaded. ``layer_rates`` gives layers learning rates of their own, {layer's name: factor},
as fine-tuning has them: the outermost layer of ``variable.path`` that is named counts, and its
decay goes with its rate. Further keyword arguments are those of every Keras optimizer:
``global_clipnorm``, ``use_ema``, ``ema_momentum``, ``name``, ...

Sparse gradients (of an embedding) are made dense first: Keras squares a row's several
contributions one by one, where the square of their sum is meant, in Adam's second moment and in
the norm for clipping alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from .keras_optimizers import EXCLUDE, SGD, Adam, AdamW, Momentum, Nesterov, RMSprop
from .muon import Muon
from .paper_optimizers import LARS, Lookahead, RAdam
from .schedules import (  # the classes and needs_callback are part of this module's names
    SCHEDULES,
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    OneCycle,
    Step,
    build_schedule,
    check_options,
    named,
    needs_callback,
    options_of,
    schedule_options,
)

__all__ = [
    "EXCLUDE",
    "LARS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "InverseSqrt",
    "Linear",
    "Lookahead",
    "Momentum",
    "Muon",
    "Nesterov",
    "OneCycle",
    "RAdam",
    "RMSprop",
    "Step",
    "build",
    "default_learning_rate",
    "needs_callback",
    "options",
    "schedule_options",
]

OPTIMIZERS: dict[str, type] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "radam": RAdam,
    "lars": LARS,
    "lookahead": Lookahead,
    "muon": Muon,
}


def build(
    name: str,
    options: dict[str, Any] | None = None,
    *,
    schedule: tuple[str, dict[str, Any]] = ("constant", {}),
    steps: int,
    weight_decay: float | None = None,
    weight_decay_exclude: Sequence[str] = EXCLUDE,
    clip_norm: float | None = None,
    ema: float | None = None,
    layer_rates: Mapping[str, float] | None = None,
) -> keras.optimizers.Optimizer:
    """The optimizer that a recipe describes.

    Args:
        name: a key of ``OPTIMIZERS``.
        options: its own options, see :func:`options`. ``learning_rate`` is the peak of the
            schedule; without it the optimizer's default applies.
        schedule: a key of ``SCHEDULES`` and its options. ``constant`` and ``plateau`` give a rate
            that can be assigned to; plateau needs the callback of :func:`needs_callback` as well.
        steps: optimizer steps of the whole training, the length of the schedule.
        weight_decay: None for the optimizer's default: none, but 0.01 for adamw.
        weight_decay_exclude: words, see the module.
        clip_norm: gradients are scaled down to at most this global L2 norm.
        ema: momentum of the average of the weights; it never overwrites them during training (use
            ``callbacks.SwapEMA`` to validate with it), only at the end of Keras's ``fit``.
        layer_rates: layer's name -> factor of its learning rate, see :func:`.finetune.layer_rates`.

    Raises:
        ValueError: unknown name or option (the nearest and all valid ones are named), or values
            that make no sense together.
    """
    chosen = dict(options or {})
    kind = named("optimizer", name, OPTIMIZERS)
    check_options(f"optimizer {name!r}", chosen, options_of(kind))
    for option in ("momentum", "rho", "beta_1", "beta_2"):
        if not 0.0 <= chosen.get(option, 0.0) < 1.0:
            raise ValueError(
                f"{option} is the share of a running mean that is kept, at least 0 and below 1; "
                f"not {chosen[option]!r}."
            )
    if weight_decay is not None:
        chosen["weight_decay"] = weight_decay
    default = default_learning_rate(chosen.get("inner", name))
    chosen["learning_rate"] = build_schedule(
        *schedule, learning_rate=chosen.get("learning_rate"), default=default, steps=steps
    )
    if ema is not None:
        chosen |= {"use_ema": True, "ema_momentum": float(ema), "ema_overwrite_frequency": None}
    return kind(
        **chosen,
        weight_decay_exclude=tuple(weight_decay_exclude),
        global_clipnorm=clip_norm,
        layer_rates=layer_rates,
    )


def options(name: str) -> dict[str, Any]:
    """The options that :func:`build` takes for an optimizer, with their defaults."""
    return options_of(named("optimizer", name, OPTIMIZERS))


def default_learning_rate(name: str) -> float:
    """The documented default of an optimizer; of lookahead's default inner one for lookahead."""
    found = options(name)
    return default_learning_rate(found["inner"]) if "inner" in found else found["learning_rate"]
