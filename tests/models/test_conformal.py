"""Conformalized quantile regression: the correction by hand, and the layer that carries it."""

import keras
import numpy as np
import pytest

from epochal.models import conformal
from epochal.models.losses import Quantile


def test_widening_is_the_right_order_statistic():
    # Distances from the interval [0, 10], negative inside: -1, 2, 3, -4, 0.5, -5, -2, -3, -0.5
    truth = np.array([1.0, 12.0, -3.0, 6.0, 10.5, 5.0, 2.0, 7.0, 9.5])
    low, high = np.zeros(9), np.full(9, 10.0)
    # ceil(10 * 0.9) = 9: the largest. ceil(10 * 0.5) = 5: the middle one.
    assert conformal.widening(low, high, truth, 0.9) == 3.0
    assert conformal.widening(low, high, truth, 0.5) == -1.0
    assert conformal.needed(0.9) == 9
    with pytest.raises(ValueError, match="by 9 examples or more; got 8"):
        conformal.widening(low[1:], high[1:], truth[1:], 0.9)


def test_each_step_has_a_widening_of_its_own_and_new_truths_lie_inside():
    draw = np.random.default_rng(0)
    spread = np.array([1.0, 3.0])
    truth = draw.normal(size=(40_000, 2)) * spread
    low, high = (np.broadcast_to(bound, (20_000, 2)) for bound in (-1.0, 1.0))
    by = conformal.widening(low, high, truth[:20_000], 0.9)
    np.testing.assert_allclose(by, 1.645 * spread - 1, atol=0.12)
    new = truth[20_000:]
    inside = (low - by <= new) & (new <= high + by)
    np.testing.assert_allclose(inside.mean(axis=0), 0.9, atol=0.01)


def test_pairs_are_those_that_add_up_to_one():
    found = conformal.pairs([0.05, 0.1, 0.25, 0.5, 0.75, 0.95])
    assert [(i, j) for i, j, _ in found] == [(0, 5), (2, 4)]
    assert [level for *_, level in found] == pytest.approx([0.9, 0.5])
    assert conformal.pairs([0.5, 0.9]) == []


def test_the_layer_sorts_and_then_shifts_and_is_saved(tmp_path):
    inputs = keras.Input((2, 6))  # two steps, two targets of three quantiles
    layer = conformal.ShiftQuantiles([0.05, 0.5, 0.95])
    model = keras.Model(inputs, layer(inputs))
    layer.shift.assign([[-1, 0, 2, -3, 0, 4], [-5, 0, 6, -7, 0, 8]])
    x = np.array([[[3, 1, 2, 0, 0, -1], [5, 5, 4, 1, 2, 3]]], np.float32)
    right = np.array([[[0, 2, 5, -4, 0, 4], [-1, 5, 11, -6, 2, 11]]], np.float32)
    np.testing.assert_array_equal(model(x), right)
    assert not model.trainable_weights
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), right)
    # What the loss reads of it: the sorted quantiles, moved.
    answer = Quantile([0.05, 0.5, 0.95]).predict(model(x))
    np.testing.assert_array_equal(answer["prediction"], right[..., [1, 4]])


def test_what_moves_inwards_stops_at_the_median():
    inputs = keras.Input((1, 5))
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    layer = conformal.ShiftQuantiles(quantiles)
    model = keras.Model(inputs, layer(inputs))
    layer.shift.assign([[6, 1, 0, -1, -6]])
    x = np.array([[[0, 2, 4, 6, 9]]], np.float32)
    right = [3, 3, 4, 5, 5]  # 6 stops at 3, 3 at 5
    np.testing.assert_array_equal(model(x)[0, 0], right)
    np.testing.assert_array_equal(Quantile(quantiles).predict(model(x))["prediction"], [[4.0]])
