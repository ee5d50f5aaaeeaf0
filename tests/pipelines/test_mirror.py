"""flip_lr(average=True): answers are means over an image and its mirror image."""

import numpy as np
import pytest

from epochal.pipelines.data import load
from epochal.pipelines.data.ops import OpsError
from epochal.pipelines.data.preprocess import Preprocess
from epochal.pipelines.recipe import Data
from epochal.pipelines.served import Served, examples
from epochal.pipelines.supervised import predict_split


def _mean(model, x):
    def softmax(logits):
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    sides = (x, x[:, :, ::-1])
    return np.mean([softmax(model.predict(side, verbose=0)) for side in sides], axis=0)


@pytest.mark.parametrize("op", ["flip_lr(average=True)", "flip_lr(0.3, True)"])
def test_splits_and_exports_answer_with_the_mean_of_both_sides(digits, op):
    run = digits.run
    ops = f"{run.recipe.data.ops}|{op}"
    dataset = load(Data(**run.recipe.data.model_dump() | {"ops": ops}))
    x = np.concatenate([x for x, _ in dataset.split("validation")])
    right = _mean(run.model, x)
    one_side = predict_split(run.model, run.loss, load(run.recipe.data), "validation")
    assert np.abs(right - one_side["probabilities"]).max() > 0.1  # else the test could not tell
    found = predict_split(run.model, run.loss, dataset, "validation")
    assert set(found) == {"probabilities"}
    np.testing.assert_allclose(found["probabilities"], right, atol=1e-6)

    before = run.preprocess
    preprocess = Preprocess("image", ops, before.inputs, [*before.states, None])
    served = Served(run.model, run.loss, preprocess, run.dataset)
    raw, x = examples(run, count=3)
    for answer in (served.raw(raw), served.tensor(x)):
        np.testing.assert_allclose(answer["probabilities"], _mean(run.model, x), atol=1e-6)
        assert answer["class_id"].numpy().tolist() == _mean(run.model, x).argmax(1).tolist()


def test_without_average_nothing_changes(digits):
    before = digits.run.preprocess
    for op in ("flip_lr", "flip_lr(0.3)", "flip_lr(average=False)", "flip_lr(0.3, False)"):
        chain = f"{before.chain}|{op}"
        assert not Preprocess("image", chain, before.inputs).mirrored


def test_what_has_no_mirror_image_is_refused():
    with pytest.raises(OpsError, match=r"model's input \(64,\)\. Leave average out"):
        load(Data(source="builtin:digits", ops="flip_lr(average=True)|flatten"))
    with pytest.raises(OpsError, match="the task is generation"):
        load(Data(source="builtin:digits", ops="flip_lr(average=True)", task="generation"))
