"""How a prompt is continued: what ``epochal predict`` and the SavedModel let one choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from .data import SourceError

USUAL = 256  # new tokens of an answer where nobody says how many
_ENDLESS = 1_024  # new tokens, at most, of a model whose context does not end
_SPECS = {
    "prompt": tf.TensorSpec([None], tf.string, name="prompt"),
    "max_new_tokens": tf.TensorSpec([None], tf.int32, name="max_new_tokens"),
    "temperature": tf.TensorSpec([None], tf.float32, name="temperature"),
    "top_k": tf.TensorSpec([None], tf.int32, name="top_k"),
    "seed": tf.TensorSpec([None], tf.int64, name="seed"),
}
_MORE = {
    "top_p": tf.TensorSpec([None], tf.float32, name="top_p"),
    "repetition_penalty": tf.TensorSpec([None], tf.float32, name="repetition_penalty"),
    "stop": tf.TensorSpec([None, None], tf.string, name="stop"),
}


@dataclass(frozen=True)
class Generation:
    """Settings of an answer. Those of ``serving_default`` are the defaults.

    Raises:
        SourceError: one that is out of range.
    """

    max_new_tokens: int | None = None
    """At most so many; None: as many as fit into the context, and no more than ``USUAL``."""
    temperature: float = 0.8
    """Logits are divided by it; 0 takes the likeliest token each time."""
    top_k: int = 0
    """Draw among the so many likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """Above 1 what has been said becomes less likely (CTRL, section 4.1)."""
    seed: int = 0
    """The same seed and prompt give the same answer."""
    stop: Sequence[str] = ()
    """The answer ends before the first of these strings."""

    def __post_init__(self):
        if isinstance(self.stop, str):
            raise SourceError(f"stop has to be a sequence of strings; got {self.stop!r} alone.")
        checks = {
            "max_new_tokens": (self.most >= 1, "1 or more"),
            "temperature": (0 <= self.temperature < np.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (0 < self.repetition_penalty < np.inf, "above 0"),
            "stop": (all(self.stop), "strings that are not empty"),
        }
        for name, (right, wanted) in checks.items():
            if not right:
                raise SourceError(f"{name} has to be {wanted}; got {getattr(self, name)!r}.")

    @property
    def most(self) -> int:
        """What the graph is told, which ends by itself where the context does."""
        return USUAL if self.max_new_tokens is None else self.max_new_tokens

    def inputs(self, prompts: Sequence[bytes]) -> dict[str, tf.Tensor]:
        """What the signature ``generate_full`` takes, with the same settings for all prompts."""
        n = len(prompts)
        found: dict[str, Any] = self.filled(n, _SPECS | _MORE)
        stop = np.array([list(self.stop)] * n, object).reshape(n, len(self.stop))
        found["stop"] = tf.constant(stop, tf.string)
        return found | {"prompt": tf.constant(list(prompts), tf.string)}

    def filled(self, n, specs) -> dict[str, tf.Tensor]:
        """The numbers among these settings for n prompts, [n] each."""
        values = {**vars(self), "max_new_tokens": self.most}
        return {
            name: tf.fill([n], tf.constant(values[name], spec.dtype))
            for name, spec in specs.items()
            if name not in ("prompt", "stop")
        }


def functions(model, preprocess):
    """Three functions of a language model: ids [n, t] -> {"text": [n]} with the default settings,
    and the signatures ``generate`` and ``generate_full``, tf.functions of a dict."""
    tokenizer = preprocess.tokenizer
    end = tokenizer.end_id if tokenizer.end_id >= 0 else None
    run = model.generator(_longest(model), end, pieces=tokenizer.pieces)
    default = Generation()

    def write(x, settings):
        n = tf.shape(x)[0]
        for name in ("top_p", "repetition_penalty"):
            settings.setdefault(name, tf.fill([n], getattr(default, name)))
        settings.setdefault("stop", tf.fill([n, 0], ""))
        return {"text": tokenizer.finish(run(x, **settings)["text"])}

    def answer(x):
        return write(x, default.filled(tf.shape(x)[0], _SPECS))

    def generate(inputs):
        inputs = dict(inputs)
        return write(preprocess(inputs.pop("prompt")), inputs)

    plain, full = (
        tf.function(generate, input_signature=[specs], autograph=False)
        for specs in (_SPECS, _SPECS | _MORE)
    )
    return answer, {"generate": plain, "generate_full": full}


def check_prompts(run, prompts: Sequence[str], settings: Generation) -> None:
    """Raises SourceError for more tokens than the model writes, or than a prompt leaves room for in
    its context."""
    context = run.model.get_config().get("context")
    if context is None:
        if settings.most > _ENDLESS:
            raise SourceError(
                f"max_new_tokens can be {_ENDLESS:,} at most; got {settings.most:,}. Go on from "
                "the answer with another prompt."
            )
        return
    for prompt, ids in zip(prompts, run.preprocess.python(list(prompts)), strict=True):
        room = context - max(1, len(ids))
        shown = prompt if len(prompt) <= 40 else prompt[:39] + "…"
        if room < 1:
            raise SourceError(
                f"The prompt {shown!r} has {len(ids)} tokens, and the model's context has "
                f"{context}: there is no room for an answer. Shorten the prompt."
            )
        if settings.max_new_tokens is not None and settings.max_new_tokens > room:
            raise SourceError(
                f"The prompt {shown!r} has {len(ids)} tokens: of the model's context of {context} "
                f"there is room for {room} more, not {settings.max_new_tokens}. Ask for fewer, or "
                "shorten the prompt."
            )


def _longest(model) -> int:
    """New tokens in an answer, at most: a prompt has one at least."""
    context = model.get_config().get("context")
    return _ENDLESS if context is None else max(1, context - 1)
