"""Early stopping, divergence, plateaus and averaged weights, inside real ``fit`` calls."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import optimizers
from epochal.models.callbacks import EarlyStopping, ReduceOnPlateau, StopOnDivergence, SwapEMA

NAN = float("nan")
X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


def small_model(optimizer=None, **kwargs):
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse", **kwargs)
    return model


class Script(keras.callbacks.Callback):
    """Records a scripted quantity, and every epoch's weights, before the callbacks after it."""

    def __init__(self, values, name="val_loss"):
        super().__init__()
        self.values, self.name, self.weights, self.ran = values, name, {}, []

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]
        self.weights[epoch] = self.model.get_weights()
        self.ran.append(epoch)


def script(values, callback, name="val_loss", model=None, **fit):
    model = model or small_model()
    recorded = Script(values, name)
    model.fit(X, Y, epochs=len(values), verbose=0, callbacks=[recorded, callback], **fit)
    return model, recorded


def assert_weights(model, expected):
    for got, want in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(got, want)


class TestEarlyStopping:
    def test_stops_after_patience_and_restores_all_weights(self):
        early = EarlyStopping(patience=2)
        model, recorded = script([3.0, 2.0, 2.0, 2.5, 1.0], early)
        assert recorded.ran == [0, 1, 2, 3]  # 1.0 is never seen
        assert (early.best, early.best_epoch, early.stopped_epoch) == (2.0, 1, 3)
        assert early.reason == "val_loss did not improve on 2 (epoch 2) for 2 epochs"
        assert_weights(model, recorded.weights[1])
        # Batch-norm statistics are among them, and moved in between.
        assert not np.array_equal(recorded.weights[1][4], recorded.weights[3][4])

    def test_restores_the_best_also_when_all_epochs_ran(self):
        early = EarlyStopping(patience=10)
        model, recorded = script([3.0, 1.0, 2.0], early)
        assert early.reason is None
        assert early.stopped_epoch is None
        assert_weights(model, recorded.weights[1])

    def test_nan_and_infinity_are_never_better(self):
        early = EarlyStopping(patience=3)
        model, recorded = script([NAN, 5.0, -math.inf, 4.0, NAN], early)
        assert (early.best, early.best_epoch) == (4.0, 3)
        assert_weights(model, recorded.weights[3])
        early = EarlyStopping("val_accuracy", patience=3)
        _, recorded = script([math.inf, 0.5, NAN, 0.4], early, "val_accuracy")
        assert (early.best, early.best_epoch, recorded.ran) == (0.5, 1, [0, 1, 2, 3])

    def test_never_finite(self):
        early = EarlyStopping(patience=2)
        model, recorded = script([NAN, NAN, 1.0], early)
        assert recorded.ran == [0, 1]
        assert early.best is None
        assert early.reason == "val_loss was never finite in 2 epochs"
        assert_weights(model, recorded.weights[1])  # nothing better is known: left as they are

    @pytest.mark.parametrize(
        ("monitor", "mode"),
        [
            ("val_loss", "min"),
            ("val_accuracy", "max"),
            ("val_sparse_categorical_accuracy", "max"),
            ("val_acc", "max"),
            ("val_r2", "max"),
            ("val_auc", "max"),
            ("val_top5", "max"),
            ("val_top_5_accuracy", "max"),
            ("val_mae", "min"),
            ("val_vacancy_error", "min"),
        ],
    )
    def test_mode(self, monitor, mode):
        early = EarlyStopping(monitor)
        assert early.mode == mode
        script([2.0, 1.0, 3.0], early, monitor)
        assert early.best_epoch == (1 if mode == "min" else 2)

    def test_min_delta(self):
        early = EarlyStopping(patience=2, min_delta=0.5)
        _, recorded = script([3.0, 2.75, 2.6, 1.0], early)
        assert recorded.ran == [0, 1, 2]
        assert early.best == 3.0
        early = EarlyStopping(patience=2, min_delta=0.5, mode="max")
        _, recorded = script([3.0, 3.75, 3.8, 9.0], early)
        assert (early.best, early.best_epoch) == (9.0, 3)

    def test_epochs_before_the_start_are_neither_best_nor_waited_for(self):
        early = EarlyStopping(patience=2, start_from_epoch=3)
        model, recorded = script([1.0, 5.0, 5.0, 3.0, 2.0, 2.5, 2.5, 0.0], early)
        assert recorded.ran == [0, 1, 2, 3, 4, 5, 6]
        assert (early.best, early.best_epoch, early.stopped_epoch) == (2.0, 4, 6)
        assert_weights(model, recorded.weights[4])
        early = EarlyStopping(patience=2, start_from_epoch=3)
        model, recorded = script([1.0, 5.0], early)  # ends before the start: the last weights stay
        assert early.best_epoch is None
        assert_weights(model, recorded.weights[1])

    def test_before_the_start_a_quantity_need_not_be_recorded_in_every_epoch(self):
        early, model = EarlyStopping(patience=1, start_from_epoch=3), small_model()
        options = {"validation_data": (X, Y), "validation_freq": [1, 4, 5], "verbose": 0}
        model.fit(X, Y, epochs=5, callbacks=[early], **options)
        assert early.best_epoch >= 3

    def test_unknown_quantity_is_refused_and_names_what_is_recorded(self):
        model = small_model(metrics=["mae"])
        with pytest.raises(ValueError, match=r"'val_los', which is not recorded.*loss, mae, val_l"):
            model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=[EarlyStopping("val_los")])
        with pytest.raises(ValueError, match="validation data"):
            model.fit(X, Y, verbose=0, callbacks=[EarlyStopping()])

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_resumes_its_patience(self, when):
        """5, 4, 6 | 6, 6: the count goes on over the cut, whenever the state is set."""
        first = EarlyStopping(patience=3)
        _, recorded = script([5.0, 4.0, 6.0], first)
        state = json.loads(json.dumps(first.get_state()))
        assert state == {
            "best": 4.0,
            "best_epoch": 1,
            "wait": 1,
            "stopped_epoch": None,
            "reason": None,
        }
        second = EarlyStopping(patience=3)

        class Restore(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                if when == "after":
                    second.set_state(state)
                    second.best_weights = first.best_weights

        if when == "before":
            second.set_state(state)
            second.best_weights = first.best_weights
        model, rest = small_model(), Script([None] * 3 + [6.0, 6.0, 1.0])
        callbacks = [rest, second, Restore()]
        model.fit(X, Y, epochs=6, initial_epoch=3, verbose=0, callbacks=callbacks)
        assert rest.ran == [3, 4]
        assert (second.stopped_epoch, second.best_epoch) == (4, 1)
        assert_weights(model, recorded.weights[1])

    def test_a_new_fit_starts_afresh(self):
        early = EarlyStopping(patience=2)
        script([1.0, 2.0, 2.0], early)
        assert early.reason
        _, recorded = script([9.0, 8.0, 7.0], early)
        assert recorded.ran == [0, 1, 2]
        assert (early.best, early.reason) == (7.0, None)

    def test_bad_arguments_and_states(self):
        bads = ({"patience": 0}, {"mode": "down"}, {"min_delta": -1.0}, {"start_from_epoch": -1})
        for bad in bads:
            with pytest.raises(ValueError, match=next(iter(bad))):
                EarlyStopping(**bad)
        with pytest.raises(ValueError, match="best_epoch"):
            EarlyStopping().set_state({"best": 1.0})


class TestStopOnDivergence:
    def dataset(self, bad_step, value=NAN):
        """Batches of one example without end, whose target is not finite at one step."""

        def example(i):
            y = tf.where(tf.equal(i, bad_step), tf.constant([value]), tf.constant([1.0]))
            return tf.ones([3]), y

        return tf.data.Dataset.range(10_000).map(example).batch(1)

    def fit(self, bad_step, value=NAN, **compile_options):
        # No batch norm, and a rate of 0, so that only the one loss is not finite.
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.0), "mse", **compile_options)
        stop = StopOnDivergence()
        data = self.dataset(bad_step, value)
        model.fit(data, epochs=5, steps_per_epoch=8, verbose=0, callbacks=[stop])
        return model, stop

    @pytest.mark.parametrize(("value", "word"), [(NAN, "nan"), (math.inf, "infinite")])
    def test_names_quantity_step_and_epoch(self, value, word):
        model, stop = self.fit(18, value)  # counted from 0: the 19th step, the 3rd of epoch 3
        assert stop.reason == f"loss became {word} at step 19 (epoch 3)"
        assert int(model.optimizer.iterations) == 19
        assert len(model.history.epoch) == 3

    def test_blocks_of_steps_give_a_range(self):
        model, stop = self.fit(18, steps_per_execution=4)
        assert stop.reason == "loss became nan at one of the steps 17 to 20 (epoch 3)"
        assert int(model.optimizer.iterations) == 20

    def test_finite_losses_pass(self):
        model, stop = self.fit(-1)
        assert stop.reason is None
        assert int(model.optimizer.iterations) == 40
        assert stop.get_state() == {"reason": None}

    def test_early_stopping_restores_the_weights_before_the_divergence(self):
        model = small_model()
        y = Y.copy()
        early, stop = EarlyStopping("loss"), StopOnDivergence()
        spoil = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: epoch == 2 and model.layers[0].kernel.assign(
                np.full((3, 4), NAN)
            )
        )  # fmt: skip
        recorded = Script([0.0] * 5, "unused")
        model.fit(X, y, epochs=5, verbose=0, callbacks=[spoil, recorded, early, stop])
        assert stop.reason == "loss became nan at step 3 (epoch 3)"
        assert early.best_epoch == 1
        assert_weights(model, recorded.weights[1])


class TestReduceOnPlateau:
    def test_reduces_after_patience_down_to_the_floor(self):
        plateau = ReduceOnPlateau(factor=0.1, patience=2, min_learning_rate=0.002)
        model = small_model()
        rates = []
        spy = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: rates.append(float(model.optimizer.learning_rate))
        )
        recorded = Script([3.0, 3.0, NAN, 2.0, 2.0, 2.0, 2.0, 2.0])
        model.fit(X, Y, epochs=8, verbose=0, callbacks=[recorded, plateau, spy])
        expected = [0.05, 0.05, 0.005, 0.005, 0.005, 0.002, 0.002, 0.002]
        assert rates == pytest.approx(expected)
        assert json.loads(json.dumps(plateau.get_state())) == {
            "best": 2.0,
            "wait": 0,
            "reductions": 3,
        }

    def test_resumes_its_count(self):
        plateau = ReduceOnPlateau(patience=3)
        plateau.set_state({"best": 1.0, "wait": 2, "reductions": 0})
        model, _ = script([2.0], plateau)
        assert float(model.optimizer.learning_rate) == pytest.approx(0.005)

    def test_upwards_for_accuracy(self):
        model, _ = script(
            [0.1, 0.2, 0.3], ReduceOnPlateau("val_accuracy", patience=1), "val_accuracy"
        )
        assert float(model.optimizer.learning_rate) == pytest.approx(0.05)

    def test_refuses_a_schedule_and_an_unknown_quantity(self):
        model = small_model(keras.optimizers.SGD(optimizers.Cosine(0.1, 10)))
        with pytest.raises(ValueError, match="follows the schedule Cosine"):
            model.fit(X, Y, verbose=0, callbacks=[ReduceOnPlateau()])
        with pytest.raises(ValueError, match="'val_x', which is not recorded"):
            small_model().fit(X, Y, verbose=0, callbacks=[ReduceOnPlateau("val_x")])


class TestSwapEMA:
    EPOCHS = 5

    def train(self, callbacks=(), ema=0.9, **fit):
        optimizer = optimizers.build("sgd", {"learning_rate": 0.05}, steps=50, ema=ema)
        model = small_model(optimizer)
        model.fit(X, Y, batch_size=8, shuffle=False, epochs=self.EPOCHS, verbose=0,
                  callbacks=list(callbacks), **fit)  # fmt: skip
        return model

    def averages_by_hand(self):
        """The average after each epoch, from the raw weights of a run that keeps none."""
        model = small_model(keras.optimizers.SGD(0.05))
        raw, average, epochs = [], None, []

        class Follow(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                nonlocal average
                now = [v.numpy().astype("float64") for v in model.trainable_variables]
                average = (
                    now
                    if average is None
                    else [0.9 * a + 0.1 * w for a, w in zip(average, now, strict=True)]
                )

            def on_epoch_end(self, epoch, logs=None):
                raw.append(model.get_weights())
                epochs.append([a.copy() for a in average])

        model.fit(X, Y, batch_size=8, shuffle=False, epochs=self.EPOCHS, verbose=0,
                  callbacks=[Follow()])  # fmt: skip
        return raw, epochs

    @pytest.mark.parametrize("early_first", [True, False])
    def test_validation_early_stopping_and_training_each_see_the_right_weights(self, early_first):
        raw, averages = self.averages_by_hand()
        early, swap, seen = EarlyStopping(patience=9), SwapEMA(), {}
        spy = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: seen.update({epoch: spy.model.get_weights()})
        )
        order = [early, swap] if early_first else [swap, early]
        model = self.train([*order, spy], validation_data=(X[:20], Y[:20]))
        losses = model.history.history["val_loss"]
        for epoch in range(self.EPOCHS):
            # Training went on from raw weights, bit for bit; checkpoints at epoch ends see them.
            for got, want in zip(seen[epoch], raw[epoch], strict=True):
                np.testing.assert_array_equal(got, want)
            # Validation saw the averages, with that epoch's batch-norm statistics.
            judge = small_model()
            judge.set_weights(raw[epoch])
            for v, a in zip(judge.trainable_variables, averages[epoch], strict=True):
                v.assign(a)
            expected = judge.evaluate(X[:20], Y[:20], verbose=0)
            assert losses[epoch] == pytest.approx(expected, rel=1e-4)
            plain = small_model()
            plain.set_weights(raw[epoch])
            assert expected != pytest.approx(plain.evaluate(X[:20], Y[:20], verbose=0), rel=1e-2)
        # The model ends with the best epoch's averages, and scores what was recorded.
        best = int(np.argmin(losses))
        assert (early.best_epoch, early.best) == (best, min(losses))
        for v, a in zip(model.trainable_variables, averages[best], strict=True):
            np.testing.assert_allclose(v.numpy(), a, rtol=1e-5, atol=1e-7)
        assert model.evaluate(X[:20], Y[:20], verbose=0) == pytest.approx(min(losses), rel=1e-5)

    def test_the_best_need_not_be_the_last(self):
        """Scripted values make epoch 2 the best: its averages are restored, not the last ones."""
        _, averages = self.averages_by_hand()
        early = EarlyStopping(patience=9)
        recorded = Script([3.0, 2.0, 1.0, 2.0, 3.0])
        model = self.train([recorded, SwapEMA(), early], validation_data=(X, Y))
        for v, a in zip(model.trainable_variables, averages[2], strict=True):
            np.testing.assert_allclose(v.numpy(), a, rtol=1e-5, atol=1e-7)

    def test_without_swap_validation_saw_raw_weights_and_these_are_kept(self):
        raw, _ = self.averages_by_hand()
        early = EarlyStopping(patience=9)
        recorded = Script([3.0, 2.0, 1.0, 2.0, 3.0])
        model = self.train([recorded, early], validation_data=(X, Y))
        assert_weights(model, raw[2])

    def test_fit_ends_with_the_averages(self):
        _, averages = self.averages_by_hand()
        model = self.train([SwapEMA()], validation_data=(X, Y))
        for v, a in zip(model.trainable_variables, averages[-1], strict=True):
            np.testing.assert_allclose(v.numpy(), a, rtol=1e-5, atol=1e-7)

    def test_nothing_is_swapped_before_the_first_update(self):
        model = small_model(optimizers.build("sgd", steps=5, ema=0.9))
        model.optimizer.build(model.trainable_variables)  # its averages are zeros
        expected = small_model().evaluate(X, Y, verbose=0)
        assert model.evaluate(X, Y, verbose=0, callbacks=[SwapEMA()]) == expected

    def test_a_broken_off_evaluation_is_undone(self):
        class Break(keras.callbacks.Callback):
            def on_test_batch_end(self, batch, logs=None):
                raise KeyboardInterrupt

        swap = SwapEMA()
        optimizer = optimizers.build("sgd", {"learning_rate": 0.05}, steps=50, ema=0.9)
        model = small_model(optimizer)
        last = Script([0.0] * 9, "unused")
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, Y, batch_size=8, shuffle=False, epochs=1, verbose=0,
                      validation_data=(X, Y), callbacks=[swap, Break()])  # fmt: skip
        model.fit(X, Y, batch_size=8, shuffle=False, epochs=2, initial_epoch=1, verbose=0,
                  validation_data=(X, Y), callbacks=[swap, last])  # fmt: skip
        raw, _ = self.averages_by_hand()
        for got, want in zip(last.weights[1], raw[1], strict=True):
            np.testing.assert_array_equal(got, want)

    def test_needs_an_averaging_optimizer(self):
        with pytest.raises(ValueError, match="use_ema=True"):
            small_model().fit(X, Y, verbose=0, callbacks=[SwapEMA()])
