"""What config.json of Hugging Face's BERT and GPT-2 says, in options of our models, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .bert import BERT
from .gpt import GPT
from .weight_files import WeightsError, some

# Theirs -> ours. Of several names for one function the last is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
# What config.json calls our options, and what must stand there where our models have no choice.
_SIZES = {
    "bert": {
        "vocabulary_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden": "intermediate_size",
        "context": "max_position_embeddings",
        "segments": "type_vocab_size",
        "activation": "hidden_act",
        "epsilon": "layer_norm_eps",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
    },
    "gpt2": {
        "vocabulary_size": "vocab_size",
        "width": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "hidden": "n_inner",
        "context": "n_positions",
        "activation": "activation_function",
        "epsilon": "layer_norm_epsilon",
        "dropout": "resid_pdrop",
        "attention_dropout": "attn_pdrop",
    },
}
_DEFAULTS = {
    "bert": {"type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
             "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "gpt2": {"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
             "resid_pdrop": 0.1, "attn_pdrop": 0.1},
}  # fmt: skip
_FIXED = {
    "bert": {"position_embedding_type": "absolute", "is_decoder": False,
             "tie_word_embeddings": True},
    "gpt2": {"tie_word_embeddings": True, "scale_attn_weights": True,
             "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
}  # fmt: skip
_INTEGERS = ("vocabulary_size", "width", "layers", "heads", "hidden", "context", "segments")
_FRACTIONS = ("epsilon", "dropout", "attention_dropout")
CLASSES = {
    "encoder": "BertModel",
    "embedding": "BertModel",
    "mlm": "BertForMaskedLM",
    "pretraining": "BertForPreTraining",
    "classification": "BertForSequenceClassification",
    "tokens": "BertForTokenClassification",
}


def family_of(path: Path, config: dict[str, Any], names: list[str]) -> str:
    """ "bert" or "gpt2", on which config.json at ``path`` and the names of the tensors agree.

    ``names`` are canonical. Raises WeightsError.
    """
    looks = {"embeddings.word_embeddings.weight": "bert", "wte.weight": "gpt2"}
    seen = [family for name, family in looks.items() if name in names]
    said = config.get("model_type") or (seen[0] if seen else None)
    if said not in _SIZES:
        raise WeightsError(f"{path}: the family is {said!r}; read are 'bert' and 'gpt2'.")
    if seen != [said]:
        raise WeightsError(
            f"{path} says {said!r}, but the {len(names)} tensors are not called so ({some(names)})."
        )
    return said


def options_of(path: Path, config: dict[str, Any], family: str) -> dict[str, Any]:
    """The options of :class:`.BERT` or :class:`.GPT` in the config.json at ``path``.

    Raises WeightsError for what is missing, and for what our models don't have.
    """
    config = _DEFAULTS[family] | config
    if family == "gpt2":
        config.setdefault("n_positions", config.get("n_ctx"))
    for name, value in _FIXED[family].items():
        if config.get(name, value) != value:
            raise WeightsError(
                f"{path} has {name} = {config[name]!r}; this package's models have {value!r} alone."
            )
    given = {ours: config.get(theirs) for ours, theirs in _SIZES[family].items()}
    absent = [_SIZES[family][k] for k, v in given.items() if v is None and k != "hidden"]
    if absent:
        raise WeightsError(f"{path} lacks {', '.join(absent)}.")
    other = [k for k in _INTEGERS if type(given.get(k)) not in (int, type(None))]
    other += [k for k in _FRACTIONS if type(given[k]) not in (int, float)]
    if other:
        listed = ", ".join(f"{_SIZES[family][k]} = {given[k]!r}" for k in other)
        raise WeightsError(f"{path} has {listed}, where numbers have to stand.")
    if given["activation"] not in _ACTIVATIONS:
        raise WeightsError(
            f"{path} has the activation {given['activation']!r}; read are "
            f"{', '.join(_ACTIVATIONS)}."
        )
    given["activation"] = _ACTIVATIONS[given["activation"]]
    pad = config.get("pad_token_id")
    if pad is None and family == "gpt2":
        pad = config.get("eos_token_id", 50_256)
        pad = pad[0] if isinstance(pad, list) and pad else pad  # ends of several kinds
    known = isinstance(pad, int) and 0 <= pad < given["vocabulary_size"]
    return given | {"pad_id": pad if known else 0}


def updated(config: dict[str, Any], model: BERT | GPT) -> dict[str, Any]:
    """A directory's config.json for a model whose options may since have been given others.

    What says the same as before stays as it stands there.
    """
    family = "bert" if isinstance(model, BERT) else "gpt2"
    before, now = options_of(Path("config.json"), config, family), model.get_config()
    now = now | {"hidden": before["hidden"] and now["hidden"]}
    if now["attention_dropout"] is None:
        now["attention_dropout"] = now["dropout"]
    other = [ours for ours in _SIZES[family] if before[ours] != now[ours]]
    new = config_of(model) if other else {}
    names = [_SIZES[family][ours] for ours in other]
    names += ["embd_pdrop"] if family == "gpt2" and "dropout" in other else []
    return config | {name: new[name] for name in names}


def config_of(model: BERT | GPT) -> dict[str, Any]:
    """The config.json of a model. Raises WeightsError for one that the format cannot hold."""
    options = model.get_config()
    head = options.get("head")
    family = "bert" if isinstance(model, BERT) else "gpt2"
    if family == "gpt2" and (options["norm"] != "pre" or options["sparse_window"]):
        raise WeightsError(
            "This format holds GPT-2: norm='pre' and dense attention; the model has "
            f"norm={options['norm']!r}, sparse_window={options['sparse_window']!r}."
        )
    config = {"model_type": family, "architectures": [CLASSES.get(head, "GPT2LMHeadModel")]}
    config |= {theirs: options[ours] for ours, theirs in _SIZES[family].items()}
    name = _SIZES[family]["activation"]
    config[name] = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[options["activation"]]
    if options["attention_dropout"] is None:
        config[_SIZES[family]["attention_dropout"]] = options["dropout"]
    config |= {"pad_token_id": options["pad_id"], "initializer_range": 0.02, **_FIXED[family]}
    if family == "gpt2":
        config |= {"embd_pdrop": options["dropout"], "eos_token_id": options["pad_id"]}
    if head in ("classification", "tokens"):
        labels = [f"LABEL_{i}" for i in range(options["num_classes"])]
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    return config
