"""DQN against NumPy: targets, clipping, terminal steps, RMSProp; shapes, counts, snapshots."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model
from epochal.models.dqn import DQN
from epochal.models.losses import Huber
from epochal.models.optimizers import RMSprop

FEATURES, ACTIONS = 3, 4


def small(**options) -> DQN:
    options = {"hidden": (8,), "seed": 0} | options
    return DQN((FEATURES,), ACTIONS, **options)


def element(updates=1, size=6, seed=0, **changes) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    rows = (updates, size)
    made = {
        "observation": draw.normal(size=(*rows, FEATURES)),
        "next_observation": draw.normal(size=(*rows, FEATURES)),
        "action": draw.integers(0, ACTIONS, rows).astype(np.int32),
        "reward": 3 * draw.normal(size=rows),  # some errors above 1, some below
        "bootstrap": 0.9 * (draw.random(rows) < 0.7),
        "weight": np.ones(rows),
        "returned": np.zeros(2),
        "epsilon": np.array(0.1),
    } | changes
    return {k: v if v.dtype == np.int32 else v.astype(np.float32) for k, v in made.items()}


def step(model, data) -> dict[str, float]:
    """One training step through Keras's own train function."""
    dataset = tf.data.Dataset.from_tensors(data)
    return model.fit(dataset, steps_per_epoch=1, shuffle=False, verbose=0).history


def values(weights, x):
    """The network of `small` in NumPy."""
    kernel_1, bias_1, kernel_2, bias_2 = weights
    return np.maximum(x @ kernel_1 + bias_1, 0) @ kernel_2 + bias_2


def target_of(q, target, data, double):
    """The TD target, step by step."""
    found = np.zeros(data["reward"][0].shape)
    for i, (reward, more) in enumerate(zip(data["reward"][0], data["bootstrap"][0], strict=True)):
        after = data["next_observation"][0, i]
        theirs = values(target, after)
        best = np.argmax(values(q, after)) if double else np.argmax(theirs)
        found[i] = reward if more == 0 else reward + more * theirs[best]
    return found


def gradient_of(q, target, data, reduction="mean"):
    """Of Huber's loss, with the error clipped to [-1, 1] as in the paper."""
    kernel_1, bias_1, kernel_2, bias_2 = (w.astype(np.float64) for w in q)
    gradients = [np.zeros_like(w) for w in (kernel_1, bias_1, kernel_2, bias_2)]
    size = len(target)
    for i in range(size):
        x, a = data["observation"][0, i], data["action"][0, i]
        before = x @ kernel_1 + bias_1
        hidden = np.maximum(before, 0)
        value = hidden @ kernel_2 + bias_2
        clipped = np.clip(value[a] - target[i], -1, 1) * data["weight"][0, i]
        clipped /= size if reduction == "mean" else 1
        gradients[2][:, a] += clipped * hidden
        gradients[3][a] += clipped
        back = clipped * kernel_2[:, a] * (before > 0)
        gradients[0] += np.outer(x, back)
        gradients[1] += back
    return gradients


@pytest.mark.parametrize(
    ("name", "shape", "actions", "count"),
    [
        ("dqn-2013", (84, 84, 4), 4, 677_172),
        ("dqn-nature", (84, 84, 4), 4, 1_686_180),
        ("dqn-nature", (84, 84, 4), 18, 1_684_128 + 513 * 18),
        ("dqn-mlp", (4,), 2, 120 * 4 + 10_284 + 85 * 2),
    ],
)
def test_parameters_are_the_papers(name, shape, actions, count):
    model = create_model(name, input_shape=shape, num_classes=actions)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == count
    assert model.q.output_shape == (None, actions)


def test_nature_has_3136_features_before_the_dense_layer():
    model = create_model("dqn-nature", input_shape=(84, 84, 4), num_classes=6)
    assert model.q.get_layer("flatten").output.shape == (None, 3136)
    assert model.q.input.dtype == "uint8"


@pytest.mark.parametrize("double", [False, True])
def test_the_target_equals_its_transcription(double):
    model = small(double=double)
    model.target.set_weights([w + 0.3 * i for i, w in enumerate(model.q.get_weights(), 1)])
    q, target, data = model.q.get_weights(), model.target.get_weights(), element(size=40)
    found = model.td_target(
        data["reward"][0], data["bootstrap"][0], data["next_observation"][0]
    ).numpy()
    right = target_of(q, target, data, double)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)
    ended = data["bootstrap"][0] == 0
    assert 0 < ended.sum() < 40
    np.testing.assert_array_equal(found[ended], data["reward"][0][ended])
    if double:  # the test tells the two apart
        assert np.abs(right - target_of(q, target, data, False)).max() > 0.01


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_step_follows_the_clipped_error(reduction):
    model = small(reduction=reduction)
    weight = np.linspace(0.5, 1.0, 6)[None]
    before, data = model.q.get_weights(), element(weight=weight)
    target = target_of(before, before, data, False)
    error = [
        values(before, x)[a] - y
        for x, a, y in zip(data["observation"][0], data["action"][0], target, strict=True)
    ]
    assert np.abs(error).max() > 1 > np.abs(error).min()
    model.compile(keras.optimizers.SGD(0.1), Huber())
    step(model, data)
    for after, old, g in zip(
        model.q.get_weights(), before, gradient_of(before, target, data, reduction), strict=True
    ):
        np.testing.assert_allclose(after, old - 0.1 * g, rtol=1e-4, atol=1e-6)


def test_rmsprop_is_the_authors_formula():
    """g = .95 g + .05 dw; g2 = .95 g2 + .05 dw^2; w -= lr dw / sqrt(g2 - g^2 + .01)."""
    weight = keras.Variable(np.array([0.5, -1.0, 2.0], np.float32))
    optimizer = RMSprop(2.5e-4, rho=0.95, epsilon=0.01, centered=True)
    w = np.array([0.5, -1.0, 2.0])
    g, g2 = np.zeros(3), np.zeros(3)
    draw = np.random.default_rng(0)
    for _ in range(20):
        dw = draw.normal(size=3)
        g = 0.95 * g + 0.05 * dw
        g2 = 0.95 * g2 + 0.05 * dw**2
        w -= 2.5e-4 * dw / np.sqrt(g2 - g**2 + 0.01)
        optimizer.apply([tf.constant(dw, tf.float32)], [weight])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), w, rtol=1e-5)


def test_the_target_network_is_copied_every_so_many_gradient_steps():
    model = small(target_every=3)
    model.compile(keras.optimizers.SGD(0.1), Huber())
    start = model.q.get_weights()
    step(model, element(updates=2))
    for a, b in zip(model.target.get_weights(), start, strict=True):
        np.testing.assert_array_equal(a, b)
    third = small(target_every=3)
    third.compile(keras.optimizers.SGD(0.1), Huber())
    for data in (element(updates=2), element(updates=1, seed=1)):
        step(third, data)
    step(model, element(updates=2, seed=1))  # the third of its steps is the first of these two
    moved = [np.abs(a - b).max() for a, b in zip(model.target.get_weights(), start, strict=True)]
    assert min(moved) > 0
    for a, b in zip(third.target.get_weights(), third.q.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        np.abs(a - b).max() > 0
        for a, b in zip(model.target.get_weights(), model.q.get_weights(), strict=True)
    )
    assert int(model.updates) == model.count_updates() == 4


def test_a_block_of_minibatches_is_their_sequence():
    together, apart = small(target_every=2), small(target_every=2)
    for model in (together, apart):
        model.compile(keras.optimizers.Adam(0.01), Huber())
    data = element(updates=5)
    together.errors = tf.Variable(tf.zeros([5, 6]))
    step(together, data)
    shared = ("returned", "epsilon")
    for i in range(5):
        one = {k: v if k in shared else v[i : i + 1] for k, v in data.items()}
        if i == 4:
            x, a = one["observation"][0], one["action"][0]
            target = apart.td_target(
                one["reward"][0], one["bootstrap"][0], one["next_observation"][0]
            )
            value = tf.gather(apart(x), a, axis=1, batch_dims=1)
        step(apart, one)
    for a, b in zip(together.get_weights(), apart.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.errors[4], np.abs(target - value), rtol=1e-4, atol=1e-5)


def test_recorded_are_returns_of_finished_episodes_alone():
    model = small()
    model.compile(keras.optimizers.SGD(0.1), Huber())
    history = step(model, element(returned=np.array([30.0, 4.0])))
    assert history["return"] == [7.5]
    assert history["epsilon"] == [pytest.approx(0.1)]
    assert np.isnan(step(model, element())["return"][0])


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("pixels", [False, True])
def test_a_snapshot_answers_as_the_network(pixels, dueling):
    draw = np.random.default_rng(0)
    if pixels:
        model = DQN((12, 10, 2), 3, ((4, 4, 2), (6, 3, 1)), (16,), dueling)
        x = draw.integers(0, 256, (5, 12, 10, 2)).astype(np.uint8)
    else:
        model, x = small(hidden=(16, 8), dueling=dueling), draw.normal(size=(5, FEATURES))
    snapshot = model.snapshot()
    found = snapshot(x.astype(np.uint8 if pixels else np.float32))
    np.testing.assert_allclose(found, model(x), rtol=1e-4, atol=1e-5)
    model.q.set_weights([w + 1 for w in model.q.get_weights()])  # a copy, not a view
    np.testing.assert_array_equal(snapshot(x.astype(found.dtype if not pixels else x.dtype)), found)


def test_dueling_advantages_have_mean_zero():
    model = small(dueling=True)
    x = np.random.default_rng(0).normal(size=(7, FEATURES)).astype(np.float32)
    hidden = model.q.get_layer("value_hidden_1")(x)
    value = model.q.get_layer("value")(hidden)
    np.testing.assert_allclose(tf.reduce_mean(model(x), 1, keepdims=True), value, rtol=1e-4,
                               atol=1e-6)  # fmt: skip


def test_every_weight_learns_and_a_saved_model_answers_the_same(tmp_path):
    model = DQN((12, 12, 1), 3, ((4, 4, 2),), (16,), dueling=True, seed=1)
    model.compile(keras.optimizers.SGD(0.1), Huber())
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (2, 1, 16, 12, 12, 1)).astype(np.uint8)
    data = element(size=16, action=draw.integers(0, 3, (1, 16)).astype(np.int32))
    data |= {"observation": x[0], "next_observation": x[1]}
    before = model.q.get_weights()
    step(model, data)
    for variable, old in zip(model.q.weights, before, strict=True):
        moved = np.abs(keras.ops.convert_to_numpy(variable) - old).max()
        assert moved > 0, f"No gradient for {variable.path}"
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(again(x[0, 0]), model(x[0, 0]))
    assert int(again.updates) == 1


def test_one_step_in_bfloat16_and_one_compiled_by_xla():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small()
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile(keras.optimizers.Adam(0.01), Huber())
    assert np.isfinite(step(model, element(updates=2))["loss"][0])
    assert model.q.output.dtype == "float32"
    models = [small(target_every=2) for _ in range(2)]
    for jit, model in zip((False, True), models, strict=True):
        model.compile(keras.optimizers.Adam(0.01), Huber(), jit_compile=jit)
        step(model, element(updates=3))
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5,), {"convolutions": ((8, 3, 1),)}, "dqn-mlp"),
        ((5, 5), {}, r"\[5, 5\]"),
        ((10, 10, 4), {"convolutions": ((32, 8, 4), (64, 4, 2))}, "does not fit maps of 1x1"),
        ((5,), {"reduction": "max"}, "mean, sum"),
        ((5,), {"target_every": 0}, "1 or more"),
        ((5,), {"num_classes": 1}, "2 or more actions"),
    ],
)
def test_options_that_make_no_sense(shape, options, message):
    with pytest.raises(ValueError, match=message):
        DQN(shape, **({"num_classes": 2} | options))
