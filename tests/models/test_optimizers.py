"""Every optimizer against a float64 transcription of its paper; decay, clipping, averages, saving.

The references below are written from the papers' algorithms, one variable at a time, and share
nothing with the code under test.
"""

import itertools
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import optimizers as O
from epochal.models import registry, schedules

STEPS = 14
NAMES = tuple(O.OPTIMIZERS)


# --- references ----------------------------------------------------------------------------------


def ref_sgd(w, grads, lr=0.01, momentum=0.0, nesterov=False):
    u, path = 0.0, []
    for g in grads:
        u = momentum * u - lr * g
        w = w + (momentum * u - lr * g if nesterov else u)
        path.append(w)
    return path


def ref_rmsprop(w, grads, lr=0.001, rho=0.9, momentum=0.0, epsilon=1e-7, centered=False):
    n = mean = delta = 0.0
    path = []
    for g in grads:  # Graves 2013, equations 38-41
        n = rho * n + (1 - rho) * g**2
        mean = rho * mean + (1 - rho) * g
        delta = momentum * delta - lr * g / np.sqrt(n - (mean**2 if centered else 0) + epsilon)
        w = w + delta
        path.append(w)
    return path


def ref_adam(w, grads, lr=0.001, beta_1=0.9, beta_2=0.999, epsilon=1e-7, amsgrad=False):
    m = v = top = 0.0
    path = []
    for t, g in enumerate(grads, 1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        top = np.maximum(top, v)
        rate = lr * math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        w = w - rate * m / (np.sqrt(top if amsgrad else v) + epsilon)
        path.append(w)
    return path


def ref_radam(
    w, grads, lr, beta_1=0.9, beta_2=0.999, epsilon=1e-7, threshold="paper", unrectified="momentum"
):
    m = v = 0.0
    path = []
    rho_inf = 2 / (1 - beta_2) - 1
    for t, g in enumerate(grads, 1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        m_hat = m / (1 - beta_1**t)
        rho = rho_inf - 2 * t * beta_2**t / (1 - beta_2**t)
        if rho > 4 if threshold == "paper" else rho >= 5:
            adaptive = math.sqrt(1 - beta_2**t) / (np.sqrt(v) + epsilon)
            r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            w = w - lr * r * m_hat * adaptive
        elif unrectified == "momentum":
            w = w - lr * m_hat
        path.append(w)
    return path


def ref_lars(
    w, grads, lr=0.3, momentum=0.9, trust=0.001, decay=0.0, divisor="sum-of-norms", nesterov=False
):
    v, path = 0.0, []
    norm = np.linalg.norm
    for g in grads:
        full = g + decay * w
        below = norm(full) if divisor == "norm-of-sum" else norm(g) + decay * norm(w)
        local = trust * norm(w) / below if norm(w) > 0 and below > 0 else 1.0
        v = momentum * v + lr * local * full
        w = w - (momentum * v + lr * local * full if nesterov else v)
        path.append(w)
    return path


def ref_lookahead(w, grads, sync_period=6, slow_step=0.5, **adam):
    """Adam's updates do not depend on the weights, so each one is a difference along its path."""
    fast = ref_adam(np.zeros_like(w), grads, **adam)
    updates = np.diff(np.stack([np.zeros_like(w), *fast]), axis=0)
    slow, path = w, []
    for t, update in enumerate(updates, 1):
        w = w + update
        if t % sync_period == 0:
            slow = slow + slow_step * (w - slow)
            w = slow
        path.append(w)
    return path


def ref_muon(w, grads, lr, momentum=0.95, nesterov=True):
    """By the singular values: the iteration is an odd polynomial, which acts on each by itself."""
    u, path = 0.0, []
    for g in grads:
        u = momentum * u + g
        left, s, right = np.linalg.svd(g + momentum * u if nesterov else u, full_matrices=False)
        s = s / (np.sqrt(np.sum(s**2)) + 1e-7)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        w = w - lr * max(1.0, w.shape[1] / w.shape[0]) ** 0.5 * (left * s) @ right
        path.append(w)
    return path


def grid(**values):
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]


CASES = [
    *((O.SGD, ref_sgd, o) for o in grid(momentum=[0.0, 0.5, 0.95], nesterov=[False, True])),
    (O.Momentum, lambda w, g, lr: ref_sgd(w, g, lr, 0.9), {}),
    (O.Nesterov, lambda w, g, lr: ref_sgd(w, g, lr, 0.9, True), {}),
    *(
        (O.RMSprop, ref_rmsprop, o)
        for o in grid(
            rho=[0.9, 0.95], momentum=[0.0, 0.9], epsilon=[1e-7, 0.01], centered=[False, True]
        )
    ),
    *(
        (O.Adam, ref_adam, o)
        for o in grid(
            beta_1=[0.5, 0.9], beta_2=[0.98, 0.999], epsilon=[1e-8, 1e-3], amsgrad=[False, True]
        )
    ),
    *(
        (O.RAdam, ref_radam, o)
        for o in grid(
            beta_1=[0.0, 0.9],
            beta_2=[0.5, 0.9, 0.999, 0.9999],
            threshold=["paper", "authors"],
            unrectified=["momentum", "skip"],
        )
    ),
    *(
        (O.LARS, ref_lars, o)
        for o in grid(
            momentum=[0.0, 0.9],
            trust=[0.001, 0.02],
            divisor=["sum-of-norms", "norm-of-sum"],
            nesterov=[False, True],
        )
    ),
    *((O.Lookahead, ref_lookahead, o) for o in grid(sync_period=[1, 4, 6], slow_step=[0.5, 0.8])),
    *((O.Muon, ref_muon, o) for o in grid(momentum=[0.0, 0.95], nesterov=[False, True])),
]


def data(seed=0):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(3, 2))
    # Gradients of very different sizes, signs that repeat, and one step of zeros.
    grads = rng.normal(size=(STEPS, 3, 2)) * 10.0 ** rng.integers(-2, 2, size=(STEPS, 1, 1)) + 0.3
    grads[7] = 0.0
    return w, grads


def run(optimizer, w, grads, name="kernel", dtype="float64"):
    variable = keras.Variable(w, dtype=dtype, name=name)
    path = []
    for g in grads:
        optimizer.apply([tf.constant(g, dtype)], [variable])
        path.append(variable.numpy())
    return path


@pytest.mark.parametrize(
    ("kind", "reference", "options"), CASES, ids=[f"{c[0].__name__}{c[2]}" for c in CASES]
)
def test_equals_the_paper_in_float64(kind, reference, options):
    w, grads = data()
    # The rate is held in float32: give the reference the very number.
    expected = reference(w, grads, lr=float(np.float32(0.02)), **options)
    got = run(kind(0.02, **options), w, grads)
    for t, (one, other) in enumerate(zip(got, expected, strict=True), 1):
        # The way from the start, not the weights: an error of a small step would hide in those.
        wrong, way = np.linalg.norm(one - other), np.linalg.norm(other - w)
        assert wrong <= 1e-6 * way + 1e-13, f"step {t}: off by {wrong}, way {way}"


@pytest.mark.parametrize("divisor", ["sum-of-norms", "norm-of-sum"])
def test_lars_decays_inside_the_gradient(divisor):
    w, grads = data(1)
    optimizer = O.LARS(0.5, divisor=divisor, weight_decay=0.1)
    expected = ref_lars(w, grads, float(np.float32(0.5)), decay=0.1, divisor=divisor)
    np.testing.assert_allclose(run(optimizer, w, grads), expected, rtol=1e-6)


def test_lars_trust_ratio_by_hand():
    # |w| = 5, |g| = 10, trust 0.01: local rate 0.005; a bias moves by the full rate instead.
    weight, bias = (
        keras.Variable([3.0, 4.0], name="kernel"),
        keras.Variable([3.0, 4.0], name="bias"),
    )
    gradient = tf.constant([6.0, 8.0])
    O.LARS(1.0, trust=0.01).apply([gradient, gradient], [weight, bias])
    np.testing.assert_allclose(weight.numpy(), [3 - 0.03, 4 - 0.04], rtol=1e-6)
    np.testing.assert_allclose(bias.numpy(), [3 - 6, 4 - 8], rtol=1e-6)
    # A weight that is all zeros has no norm to go by: it takes the plain step.
    zero = keras.Variable([0.0, 0.0], name="kernel")
    O.LARS(1.0, trust=0.01).apply([gradient], [zero])
    np.testing.assert_allclose(zero.numpy(), [-6, -8], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("beta_2", "threshold", "first"),
    [(0.999, "paper", 5), (0.999, "authors", 6), (0.9999, "paper", 5), (0.99999, "paper", 5)],
)
def test_radam_first_rectified_step(beta_2, threshold, first, dtype):
    optimizer = O.RAdam(1.0, beta_2=beta_2, threshold=threshold, unrectified="skip")
    path = run(optimizer, np.ones(2), np.ones((8, 2)), dtype=dtype)
    moved = [t for t, w in enumerate(path, 1) if w[0] != 1.0]
    assert moved[0] == first


def test_muon_takes_a_convolution_as_a_matrix_of_its_outputs():
    w, grads = np.zeros((3, 3, 2, 20)), np.random.default_rng(0).normal(size=(2, 3, 3, 2, 20))
    got = run(O.Muon(), w, grads)[-1]
    rows = ref_muon(w.reshape(18, 20), grads.reshape(2, 18, 20), float(np.float32(0.02)))[-1]
    np.testing.assert_allclose(got.reshape(18, 20), rows, rtol=1e-6, atol=1e-9)


def test_muon_is_adam_where_there_is_no_hidden_matrix():
    """Biases, stacks of matrices, embeddings, and the layer that is named outputs."""
    w, grads = data()
    expected = ref_adam(w, grads, float(np.float32(0.02)) * 0.05)[-1]
    head = keras.layers.Dense(2, name="outputs", dtype="float64")
    head.build((None, 3))
    head.kernel.assign(w)
    optimizer = O.Muon()
    for g in grads:
        optimizer.apply([tf.constant(g)], [head.kernel])
    np.testing.assert_allclose(head.kernel.numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(run(O.Muon(), w, grads, name="embeddings")[-1], expected, rtol=1e-8)
    stack = run(O.Muon(), w[None], grads[:, None])[-1]
    np.testing.assert_allclose(stack[0], expected, rtol=1e-8)
    free = run(O.Muon(adam_layers=()), w, grads, name="embeddings")[-1]
    np.testing.assert_allclose(free, ref_muon(w, grads, float(np.float32(0.02)))[-1], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_is_decoupled_and_spares_what_is_excluded(name):
    w, grads = data(2)
    rate, decay = float(np.float32(0.01)), 0.1
    plain = run(O.build(name, {"learning_rate": 0.01}, steps=9), w, grads[:1])[0]
    for variable, share in (("kernel", rate * decay), ("bias", 0.0), ("gamma", 0.0)):
        if name == "lars":
            continue
        if name == "adamw":  # has a decay of its own, unless one is given
            plain = run(O.build("adam", {"learning_rate": 0.01}, steps=9), w, grads[:1])[0]
        optimizer = O.build(name, {"learning_rate": 0.01}, steps=9, weight_decay=decay)
        got = run(optimizer, w, grads[:1], name=variable)[0]
        if name == "lookahead":  # k = 6: the first step is the inner optimizer's
            assert optimizer.sync_period == 6
        np.testing.assert_allclose(got, plain - share * w, rtol=1e-9, atol=1e-12)
    assert O.AdamW().weight_decay == 0.01
    assert O.Adam().weight_decay is None


class TestExclusion:
    def model(self):
        inner = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3, name="projection")], name="encoder"
        )
        return keras.Sequential(
            [
                keras.Input((4,)),
                inner,
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.Dense(2, name="bias_like"),
            ],
            name="bias",
        )

    @pytest.mark.parametrize("name", NAMES)
    def test_survives_saving(self, name, tmp_path):
        """Zero gradients: whatever moves, moves by the decay. Numbers, before and after."""
        model = self.model()
        optimizer = O.build(
            name,
            {"learning_rate": 0.5},
            steps=9,
            weight_decay=0.5,
            weight_decay_exclude=("bias", "gamma", "projection"),
        )
        model.compile(optimizer, "mse")
        optimizer.build(model.trainable_variables)
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        for m in (model, loaded):
            variables = m.trainable_variables
            for v in variables:
                v.assign(keras.ops.ones_like(v))
            m.optimizer.apply([keras.ops.zeros_like(v) for v in variables], variables)
            moved = {"/".join(v.path.split("/")[-2:]): v.numpy().ravel()[0] for v in variables}
            # LARS: |g| = 0, so the trust ratio is 0.001 |w| / (0.5 |w|) and the step 0.5 of that.
            kept = 1 - 0.5 * 0.002 * 0.5 if name == "lars" else 0.75
            assert moved == {
                "projection/kernel": 1.0,
                "projection/bias": 1.0,
                "norm/gamma": 1.0,
                "norm/beta": pytest.approx(kept),
                "bias_like/kernel": pytest.approx(kept),
                "bias_like/bias": 1.0,
            }

    def test_words_are_whole_names(self):
        assert O.SGD(weight_decay_exclude="bias").weight_decay_exclude == ("bias",)
        for name, decays in (("bias", False), ("bias_2", True), ("unbiased", True)):
            got = run(O.SGD(0.5, weight_decay=0.5), np.ones(1), np.zeros((1, 1)), name=name)
            assert got[0][0] == (0.75 if decays else 1.0), name

    def test_a_word_that_names_nothing_is_logged(self, caplog):
        run(O.SGD(weight_decay=0.1, weight_decay_exclude=("bais",)), np.ones(1), np.zeros((1, 1)))
        assert "bais" in caplog.text


def test_gradients_of_repeated_embedding_rows_are_added_before_they_are_squared():
    """Two contributions of 1 and 2 to one row are a gradient of 3: Adam's first step is lr."""
    table = keras.Variable(np.ones((3, 1)), dtype="float32", name="embeddings")
    sparse = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([1, 1]), tf.constant([3, 1]))
    for kind in (O.Adam, O.RMSprop, O.RAdam, O.LARS, O.SGD, O.Lookahead):
        got, expected = [], []
        for gradient, out in ((sparse, got), (tf.convert_to_tensor(sparse), expected)):
            table.assign(np.ones((3, 1)))
            kind(0.1, global_clipnorm=1.5).apply([gradient], [table])
            out.append(table.numpy())
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_adam_moves_every_used_row_of_an_embedding_by_its_rate(jit):
    embedding = keras.layers.Embedding(5, 2, embeddings_initializer="ones")
    model = keras.Sequential([keras.Input((3,), dtype="int32"), embedding, keras.layers.Flatten()])
    model.compile(O.Adam(0.1), "mse", jit_compile=jit)
    # Row 2 is used three times, with contributions of different sizes; rows 0 and 4 never.
    model.train_on_batch(np.array([[2, 2, 1], [2, 3, 3]]), np.array([[0.0] * 6, [0.9] * 6]))
    moved = 1 - embedding.embeddings.numpy()
    np.testing.assert_allclose(
        moved, [[0, 0], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [0, 0]], rtol=1e-4
    )


def test_clip_norm_is_global():
    # Norm over both variables: sqrt(9 + 16) = 5, clipped to 1: everything divided by 5.
    a, b = keras.Variable([0.0], name="a"), keras.Variable([0.0], name="b")
    optimizer = O.build("sgd", {"learning_rate": 1.0}, steps=5, clip_norm=1.0)
    optimizer.apply([tf.constant([3.0]), tf.constant([4.0])], [a, b])
    np.testing.assert_allclose([a.numpy()[0], b.numpy()[0]], [-0.6, -0.8], rtol=1e-6)
    optimizer.apply([tf.constant([0.3]), tf.constant([0.4])], [a, b])  # below the limit: as it is
    np.testing.assert_allclose([a.numpy()[0], b.numpy()[0]], [-0.9, -1.2], rtol=1e-6)


def test_ema_follows_without_touching_the_weights():
    w, grads = np.array([1.0, -2.0]), np.full((5, 2), 0.5)
    optimizer = O.build("sgd", {"learning_rate": 0.5}, steps=5, ema=0.8)
    path = run(optimizer, w, grads)
    np.testing.assert_allclose(path, ref_sgd(w, grads, 0.5))
    average = path[0]
    for weights in path[1:]:
        average = 0.8 * average + 0.2 * weights
    [kept] = optimizer._model_variables_moving_average
    np.testing.assert_allclose(kept.numpy(), average, rtol=1e-6)


# --- in a model ----------------------------------------------------------------------------------

X = np.random.default_rng(3).normal(size=(16, 4)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5], [0.0]], "float32")) ** 2


def compiled(optimizer, **kwargs):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, use_bias=False),  # batch norm leaves a bias only rounding noise
            keras.layers.BatchNormalization(),
            keras.layers.Activation("tanh"),
            keras.layers.Dense(1, dtype="float32"),
        ]
    )
    model.compile(optimizer, "mse", **kwargs)
    return model


def make(name):
    return O.build(
        name,
        {},
        schedule=("cosine", {"warmup_steps": 3}),
        steps=20,
        weight_decay=0.01,
        clip_norm=1.0,
        ema=0.9,
    )


@pytest.mark.parametrize("name", NAMES)
def test_saved_model_goes_on_as_if_uninterrupted(name, tmp_path):
    whole = compiled(make(name))
    for _ in range(5):  # Lookahead synchronises at step 6, after the load
        whole.train_on_batch(X, Y)
    whole.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is O.OPTIMIZERS[name]
    assert loaded.optimizer.get_config() == whole.optimizer.get_config()
    for _ in range(3):
        whole.train_on_batch(X, Y)
        loaded.train_on_batch(X, Y)
    assert int(loaded.optimizer.iterations) == 8
    for a, b in zip(whole.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    for a, b in zip(whole.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_plain(name):
    jitted, plain = compiled(make(name), jit_compile=True), compiled(make(name), jit_compile=False)
    for model in (jitted, plain):
        for _ in range(7):
            model.train_on_batch(X, Y)
    before = compiled(make(name)).get_weights()
    for a, b, start in zip(jitted.get_weights(), plain.get_weights(), before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert not np.array_equal(b, start)


@pytest.mark.parametrize("name", NAMES)
def test_mixed_bfloat16_keeps_float32_weights(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled(make(name))
        before = [w.copy() for w in model.get_weights()]
        model.train_on_batch(X, Y)
    finally:
        keras.config.set_dtype_policy("float32")
    for v, start in zip(model.weights, before, strict=True):
        assert v.dtype == "float32"
        assert np.isfinite(v.numpy()).all()
        assert not np.array_equal(v.numpy(), start), v.path
    slots = [v for v in model.optimizer.variables if len(v.shape)]
    assert {v.dtype for v in slots} == {"float32"}


def test_lookahead_starts_from_weights_assigned_after_it_was_built():
    """Pre-trained weights are often loaded after `compile` has built the optimizer."""
    variable = keras.Variable(np.zeros(2), dtype="float64", name="kernel")
    optimizer = O.Lookahead(0.1, inner="sgd", sync_period=2, slow_step=0.5)
    optimizer.build([variable])
    variable.assign([10.0, 10.0])
    for _ in range(2):
        optimizer.apply([tf.constant([1.0, 1.0], "float64")], [variable])
    np.testing.assert_allclose(variable.numpy(), [9.9, 9.9], rtol=1e-7)  # half of the way to 9.8


@pytest.mark.parametrize("inner", ["sgd", "momentum", "nesterov", "rmsprop", "adam", "radam"])
def test_lookahead_follows_its_inner_optimizer_between_synchronisations(inner):
    w, grads = data(4)
    fast = run(O.build(inner, {"learning_rate": 0.01}, steps=9), w, grads[:5])
    slow = O.build("lookahead", {"inner": inner, "learning_rate": 0.01}, steps=9)
    np.testing.assert_allclose(run(slow, w, grads[:5]), fast, rtol=1e-12)
    assert O.build("lookahead", {"inner": inner}, steps=9).learning_rate.numpy() == np.float32(
        O.default_learning_rate(inner)
    )


# --- schedules -----------------------------------------------------------------------------------


def at(schedule, *steps):
    return [float(schedule(step)) for step in steps]


def test_schedules_at_key_steps():
    approx = pytest.approx
    assert at(O.Constant(0.1, 9), 0, 8, 99) == approx([0.1] * 3)
    # He et al.: divided by 10 at 32k and 48k of 64k; update 32,000 is the first at the new rate.
    he = O.Step(0.1, 64_000, boundaries=(32_000, 48_000))
    assert at(he, 31_999, 32_000, 47_999, 48_000) == approx([0.1, 0.01, 0.01, 0.001])
    # ResNet-110: 400 steps at 0.01, and back to 0.1.
    deep = O.Step(0.1, 64_000, boundaries=(32_000, 48_000), warmup_steps=400)
    assert at(deep, 0, 399, 400, 31_999, 32_000) == approx([0.01, 0.01, 0.1, 0.1, 0.01])
    shares = O.Step(1.0, 30, boundaries=(0.5, 0.9), factor=0.5)
    assert at(shares, 14, 15, 26, 27) == approx([1, 0.5, 0.5, 0.25])
    # Warm-up 1/4 ... 4/4 of the peak, then half a cosine over 100 steps.
    cosine = O.Cosine(2.0, 104, warmup_steps=4, final_fraction=0.1)
    assert at(cosine, 0, 1, 3, 4) == approx([0.5, 1.0, 2.0, 2.0])
    assert at(cosine, 54, 29, 104, 500) == approx(
        [2 * (0.1 + 0.9 / 2), 2 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2), 0.2, 0.2]
    )
    assert at(O.Cosine(1.0, 10), 0, 5, 10) == approx([1.0, 0.5, 0.0], abs=1e-7)
    # Two warm-up steps, then three half cosines of four steps each.
    cycles = O.Cosine(1.0, 14, warmup_steps=2, cycles=3)
    once = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert at(cycles, *range(15)) == approx([0.5, 1.0, *once * 3, 0.0], abs=1e-4)
    long = O.Cosine(1.0, 70_000, cycles=7)
    assert at(long, *range(0, 70_000, 10_000)) == approx([1.0] * 7, abs=1e-4)
    linear = O.Linear(1.0, 14, warmup_steps=4)
    assert at(linear, 0, 3, 4, 9, 13, 14, 20) == approx([0.25, 1, 1, 0.5, 0.1, 0, 0], abs=1e-7)
    cycle = O.OneCycle(1.0, 100, warmup_share=0.2, start_divisor=10, final_divisor=1000)
    assert at(cycle, 0, 10, 20, 60, 100) == approx([0.1, 0.55, 1.0, (1 + 0.001) / 2, 0.001])
    # The Transformer's formula, t = step + 1.
    noam = O.InverseSqrt(d_model=512, warmup_steps=4_000)
    for t in (1, 2_000, 4_000, 16_000, 100_000):
        assert at(noam, t - 1)[0] == approx(512**-0.5 * min(t**-0.5, t * 4_000**-1.5), rel=1e-6)
    peak = O.InverseSqrt(0.001, warmup_steps=100)
    assert at(peak, 49, 99, 399) == approx([0.0005, 0.001, 0.0005])


@pytest.mark.parametrize(
    "schedule",
    [
        O.Constant(0.1),
        O.Step(0.1, 40, boundaries=(0.25, 30), factor=0.5, warmup_steps=4, warmup_factor=0.3),
        O.Cosine(0.1, 40, warmup_steps=3, final_fraction=0.2, cycles=2),
        O.Linear(0.1, 40, warmup_steps=3),
        O.OneCycle(0.1, 40),
        O.InverseSqrt(0.1, warmup_steps=5),
        O.InverseSqrt(d_model=16, warmup_steps=5),
    ],
    ids=lambda s: type(s).__name__,
)
def test_schedules_serialise_and_work_in_plain_keras(schedule):
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    steps = range(0, 45, 3)
    assert at(again, *steps) == at(schedule, *steps)
    variable = keras.Variable([1.0])
    optimizer = keras.optimizers.SGD(schedule)
    optimizer.apply([tf.constant([1.0])], [variable])
    expected = 1 - at(schedule, 0)[0]
    assert variable.numpy()[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: O.Cosine(0.1, 10, warmup_steps=10), "warmup_steps"),
        (lambda: O.Cosine(0.1, 10, warmup_steps=4, cycles=7), "the 6 steps"),
        (lambda: O.Cosine(0.1, 10, cycles=0), "cycles must be"),
        (lambda: O.Step(0.1, 10, boundaries=(0.9, 2)), "increase"),
        (lambda: O.Step(0.1, boundaries=(0.5,)), "share"),
        (lambda: O.Step(0.1, 10, boundaries=(2.5,)), "2.5"),
        (lambda: O.Step(0.1, 10, boundaries=(2, 5), warmup_steps=3), "before the first"),
        (lambda: O.Step(0.1, 10, warmup_steps=3, warmup_factor=0.0), "warmup_factor"),
        (lambda: O.Linear(-0.1, 10), "learning_rate"),
        (lambda: O.InverseSqrt(0.1, d_model=4), "exactly one"),
        (lambda: O.InverseSqrt(), "exactly one"),
        (lambda: O.SGD(float("nan")), "learning_rate"),
        (lambda: O.SGD(weight_decay=-1.0), "weight_decay"),
        (lambda: O.RAdam(threshold="authours"), "authors"),
        (lambda: O.LARS(divisor="sum"), "norm-of-sum"),
        (lambda: O.Lookahead(inner="lars"), "adam"),
        (lambda: O.Lookahead(inner_options={"beta1": 0.5}), "beta_1"),
        (lambda: O.Lookahead(sync_period=0), "sync_period"),
    ],
)
def test_values_out_of_range(make_it, words):
    with pytest.raises(ValueError, match=words):
        make_it()


# --- build ---------------------------------------------------------------------------------------


def test_build_names_the_nearest_and_all_valid_options():
    with pytest.raises(ValueError, match=r"Did you mean 'learning_rate'.*momentum=0\.9"):
        O.build("momentum", {"learning_rat": 1}, steps=5)
    with pytest.raises(ValueError, match=r"Did you mean 'radam'"):
        O.build("raddam", steps=5)
    with pytest.raises(ValueError, match=r"Did you mean 'warmup_steps'.*final_fraction=0\.0"):
        O.build("sgd", steps=5, schedule=("cosine", {"warmup": 3}))
    with pytest.raises(ValueError, match=r"Did you mean 'cosine'"):
        O.build("sgd", steps=5, schedule=("cosin", {}))
    with pytest.raises(ValueError, match=r"no option 'warmup_steps'.*Its options: none"):
        O.build("sgd", steps=5, schedule=("constant", {"warmup_steps": 3}))
    with pytest.raises(ValueError, match="exactly one"):
        O.build("adam", {"learning_rate": 1e-3}, steps=5, schedule=("inverse-sqrt", {"d_model": 8}))


def test_build_gives_schedules_their_peak_and_length():
    default = O.build("lars", steps=10, schedule=("linear", {}))
    assert float(default.learning_rate) == pytest.approx(0.3)
    given = O.build("adam", {"learning_rate": 1}, steps=10, schedule=("linear", {}))
    assert at(given._learning_rate, 0, 5, 10) == pytest.approx([1.0, 0.5, 0.0])
    noam = O.build("adam", steps=10, schedule=("inverse-sqrt", {"d_model": 8, "warmup_steps": 2}))
    assert at(noam._learning_rate, 1)[0] == pytest.approx(0.25)
    inner = O.build("lookahead", {"inner": "sgd"}, steps=10, schedule=("linear", {}))
    assert float(inner.learning_rate) == pytest.approx(0.01)
    for open_rate in ("constant", "plateau"):
        optimizer = O.build("sgd", steps=10, schedule=(open_rate, {}))
        optimizer.learning_rate = 0.125
        assert float(optimizer.learning_rate) == 0.125


def test_plateau_is_a_constant_rate_and_a_callback():
    callback = O.needs_callback("plateau", {"patience": 2, "factor": 0.5})
    assert (type(callback).__name__, callback.patience, callback.factor) == (
        "ReduceOnPlateau",
        2,
        0.5,
    )
    assert O.needs_callback("cosine", {"warmup_steps": 2}) is None
    with pytest.raises(ValueError, match="Did you mean 'patience'"):
        O.needs_callback("plateau", {"patients": 2})


REPLICAS = """
import keras, numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from epochal.models import losses, optimizers as O

x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
y = (x[:, 0] > 0).astype("int32")

def trained(make, strategy):
    with strategy.scope():
        dense = [keras.layers.Dense(n, kernel_initializer=keras.initializers.GlorotNormal(n))
                 for n in (7, 2)]
        model = keras.Sequential([keras.Input((5,)), *dense])
        model.compile(make(), losses.CrossEntropy())
    model.fit(x, y, batch_size=16, epochs=3, verbose=0, shuffle=False)
    return model.get_weights()

two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for make in (lambda: O.Adam(0.05), lambda: O.AdamW(0.05, weight_decay=0.1),
             lambda: O.Nesterov(0.05)):
    pairs = zip(trained(make, tf.distribute.get_strategy()), trained(make, two), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=1e-5)
print("equal")
"""


def test_two_replicas_are_updated_as_one():
    done = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


def test_documented_defaults():
    rates = {name: O.default_learning_rate(name) for name in NAMES}
    assert rates == {
        "sgd": 0.01,
        "momentum": 0.01,
        "nesterov": 0.01,
        "rmsprop": 0.001,
        "adam": 0.001,
        "adamw": 0.001,
        "radam": 0.001,
        "lars": 0.3,
        "lookahead": 0.001,
        "muon": 0.02,
    }
    for name, rate in rates.items():
        assert float(O.build(name, steps=1).learning_rate) == pytest.approx(rate)
        if name != "lookahead":
            assert f"| {name} | {rate} |" in O.__doc__


def test_registry_tables_agree():
    for kind, table in (("optimizers", O.OPTIMIZERS), ("schedules", schedules.SCHEDULES)):
        rows = getattr(registry, kind.upper())
        assert set(rows) == set(table)
        for name, symbol in table.items():
            assert registry.get(kind, name) is symbol
