"""How good language models and translations are, and what they write.

========================== =====================================================================
language model and translation, over all tokens, each given the true ones before it
``perplexity``             exp of the mean -log probability: between so many tokens it is unsure
``token_accuracy``         share of tokens that the model finds likeliest
translation, by beam search (4 beams, alpha 0.6) from the source alone
``exact_match``            share of answers that equal the target as it came, letter by letter
``bleu``                   BLEU of the whole split in percent, by sacreBLEU with its settings
``chrf``                   chrF2 in percent, by sacreBLEU; without an interval
``bleu_retrieval``, ...    the same of :mod:`.retrieval`: for each source the target of the training
                           source that looks most like it; not on the training split
========================== =====================================================================

BLEU and chrF need the extra ``text``; without it they are left out. Translated are the first
``MOST`` examples of a split.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from . import pictures_text, retrieval
from .intervals import intervals

log = logging.getLogger(__name__)

TASKS = ("language-model", "translation")
BEAM, ALPHA = 4, 0.6  # Vaswani et al. 2017, section 6.1
MOST = 2_000
SAMPLES = 3
CONTINUED = 200  # tokens of a language model's samples, as far as its context reaches
_ROWS = 64  # translated at a time, of similar length


def measure(model, dataset, split: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics of a split with 95% intervals, and a few samples.

    Returns:
        ({"split", "examples", "metrics", "samples": [{"source", "target", "translation",
        "retrieval"}] or [{"prompt", "text"}]}, {"nll" [n], "right" [n], "tokens" [n], and for
        translation "source", "target", "translation", "retrieval" [m]}).
    """
    found = score(model, dataset, split)
    metrics = intervals(_tokens(found), len(found["nll"]))
    result = {"split": split, "examples": len(found["nll"]), "metrics": metrics}
    if dataset.task != "translation":
        return result | {"samples": continue_text(model, dataset, split)}, found
    found |= translate(model, dataset, split)
    if split != "train":  # where each source would find itself
        found["retrieval"] = retrieval.translate(dataset, found["source"])
    for key, suffix in (("translation", ""), ("retrieval", "_retrieval")):
        if key in found:
            of_key = intervals(_translations(found, key), len(found[key]))
            if importlib.util.find_spec("sacrebleu") is not None:
                of_key["chrf"] = _chrf(found[key], found["target"])
            metrics |= {name + suffix: value for name, value in of_key.items()}
    shown = [key for key in ("source", "target", "translation", "retrieval") if key in found]
    rows = _spread(len(found["translation"]))
    result["samples"] = [{key: str(found[key][row]) for key in shown} for row in rows]
    return result, found


def score(model, dataset, split: str) -> dict[str, np.ndarray]:
    """Each example's sum of -log p (nats) over its tokens, and how many were found likeliest."""

    # Pieces of a language model's text are whole: where the end of text fills rows up, it is a
    # token there like any other.
    fill = None if dataset.task == "language-model" else dataset.preprocess.tokenizer.fill_id

    @tf.function(autograph=False, reduce_retracing=True)
    def answer(x, y):
        logits = tf.cast(model(x, training=False), tf.float32)
        real = tf.ones_like(y, tf.float32) if fill is None else tf.cast(y != fill, tf.float32)
        nll = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        right = tf.cast(tf.argmax(logits, axis=-1, output_type=y.dtype) == y, tf.float32)
        return tuple(tf.reduce_sum(v * real, axis=1) for v in (nll, right, tf.ones_like(nll)))

    parts = [answer(*batch) for batch in dataset.split(split)]
    return {
        name: np.concatenate([part[i].numpy() for part in parts]).astype(np.float64)
        for i, name in enumerate(("nll", "right", "tokens"))
    }


def translate(model, dataset, split: str) -> dict[str, np.ndarray]:
    """The answers to the first MOST sources, as strings: source, target, translation, each [m]."""
    count = min(MOST, dataset.sizes[split])
    raw = dataset.raw(split, np.arange(count))
    tokenizer = dataset.preprocess.tokenizer
    ids = dataset.preprocess.python(raw["source"])
    longest = dataset.preprocess.inputs["longest"]
    order = np.argsort([len(row) for row in ids], kind="stable")
    answers = np.empty(count, object)
    for start in range(0, count, _ROWS):
        rows = order[start : start + _ROWS]
        width = max(1, *(len(ids[row]) for row in rows)) if len(rows) > 1 else len(ids[rows[0]])
        source = np.full((len(rows), max(1, width)), tokenizer.fill_id, np.int32)
        for i, row in enumerate(rows):
            source[i, : len(ids[row])] = ids[row]
        # Not by a translator of its own, which would be traced again for each split.
        texts = tokenizer.decode(model.translate(source, BEAM, ALPHA, longest)["ids"]).numpy()
        answers[rows] = [text.decode() for text in texts]
    return {"source": raw["source"], "target": raw["target"], "translation": answers}


def continue_text(model, dataset, split: str) -> list[dict[str, str]]:
    """What the model writes after the beginnings of three examples; temperature 0.8, seeded."""
    if not hasattr(model, "generate"):
        return []
    tokenizer = dataset.preprocess.tokenizer
    batch = next(iter(dataset.split(split).unbatch().batch(SAMPLES)))[0]
    prompt = batch[:, : max(1, batch.shape[1] // 4)]
    room = max(1, batch.shape[1] - prompt.shape[1])  # a context may be as long as the examples
    ids = model.generate(prompt, min(CONTINUED, room), temperature=0.8)["ids"]
    pairs = zip(tokenizer.decode(prompt).numpy(), tokenizer.decode(ids).numpy(), strict=True)
    return [{"prompt": a.decode(), "text": b.decode()} for a, b in pairs]


def report(model, dataset, found: dict[str, np.ndarray], directory: Path) -> None:
    """Draws what fits: accuracy by length, and where a translation looks."""
    if dataset.task != "translation":
        return
    lengths = np.array([len(row) for row in dataset.preprocess.python(found["source"])])
    right = found["translation"] == found["target"]
    pictures_text.accuracy_by_length(lengths, right, directory / "accuracy_by_length.png")
    if getattr(model, "attention", None) is None or not hasattr(model, "attend"):
        return
    tokenizer = dataset.preprocess.tokenizer
    shown = []
    for row in _spread(len(found["source"]), 2):
        source, target = (
            dataset.preprocess.python([found[key][row]])[0] for key in ("source", "translation")
        )
        if not source or not target:
            continue
        weights = model.attend(np.array([source]), np.array([[tokenizer.start_id, *target]]))
        names = [[tokenizer.vocabulary[i] for i in ids] for ids in (source, target)]
        shown.append((weights[0].numpy(), names[0], [*names[1], "(end)"]))
    if shown:
        pictures_text.attention(shown, directory / "attention.png")


def _spread(count: int, wanted: int = SAMPLES) -> list[int]:
    """Some rows, equally far apart: the same ones in every run."""
    return sorted({int(row) for row in np.linspace(0, count - 1, min(wanted, count))})


def _tokens(found: dict[str, np.ndarray]):
    def statistic(index: np.ndarray) -> dict[str, np.ndarray]:
        tokens = found["tokens"][index].sum(axis=-1)
        return {
            "perplexity": np.exp(found["nll"][index].sum(axis=-1) / tokens),
            "token_accuracy": found["right"][index].sum(axis=-1) / tokens,
        }

    return statistic


def _chrf(answers: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    import sacrebleu

    value = sacrebleu.CHRF().corpus_score(list(answers), [list(targets)]).score
    return {"value": value, "low": np.nan, "high": np.nan}


def _translations(found: dict[str, np.ndarray], key: str = "translation"):
    """Exact matches and BLEU of the answers ``found[key]``; no BLEU, which counts up to four words
    in a row, where no target has four."""
    exact = (found[key] == found["target"]).astype(np.float64)
    if importlib.util.find_spec("sacrebleu") is None:
        log.warning("BLEU and chrF are left out: pip install 'epochal[text]'")
        return lambda index: {"exact_match": exact[index].mean(axis=-1)}
    import sacrebleu

    bleu = sacrebleu.BLEU(effective_order=False)
    # BLEU is a function of sums over sentences: correct and possible n-grams, and both lengths.
    rows = []
    for answer, target in zip(found[key], found["target"], strict=True):
        one = bleu.corpus_score([answer], [[target]])
        rows.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    rows = np.array(rows, np.int64)
    if rows[:, 9].max() < 4:
        return lambda index: {"exact_match": exact[index].mean(axis=-1)}

    def statistic(index: np.ndarray) -> dict[str, np.ndarray]:
        sums = [rows[resample].sum(axis=0).tolist() for resample in index]
        scores = [
            sacrebleu.BLEU.compute_bleu(s[:4], s[4:8], s[8], s[9], smooth_method="exp").score
            for s in sums
        ]
        return {"exact_match": exact[index].mean(axis=-1), "bleu": np.array(scores)}

    return statistic
