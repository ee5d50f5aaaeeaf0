"""GANs against NumPy: losses, the gradient penalty, who learns what in a step; counts and sizes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model, gan_losses, registry
from epochal.models.gan import GAN
from epochal.models.gan_networks import halvings
from epochal.models.optimizers import SGD, Adam
from epochal.models.spectral import SpectralConv2D, SpectralDense

LOSSES = ("minimax", "non-saturating", "least-squares", "hinge", "wasserstein-gp")


def points(**options) -> GAN:
    settings = {"hidden": (8,), "discriminator_hidden": (8,), "pieces": 1, "noise_size": 3}
    return GAN((2,), **settings | {"seed": 0} | options)


def images(side=8, **options) -> GAN:
    """Of 8x8 pixels: the discriminator has one layer, which is not normalised; of 16x16 two."""
    settings = {"filters": 4, "discriminator_filters": 4, "noise_size": 5, "normalization": "batch"}
    return GAN((side, side, 1), convolutional=True, **settings | {"seed": 0} | options)


def fit(model, x, y=None, steps=1):
    data = tf.data.Dataset.from_tensors(x if y is None else (x, y)).repeat()
    return model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0).history


def sigmoid(d):
    return 1 / (1 + np.exp(-d))


TRANSCRIBED = {  # real, fake, generator, from the papers' formulas
    "minimax": (
        lambda d: -np.log(sigmoid(d)),
        lambda d: -np.log(1 - sigmoid(d)),
        lambda d: np.log(1 - sigmoid(d)),
    ),
    "non-saturating": (
        lambda d: -np.log(sigmoid(d)),
        lambda d: -np.log(1 - sigmoid(d)),
        lambda d: -np.log(sigmoid(d)),
    ),
    "least-squares": (
        lambda d: (d - 1) ** 2 / 2,
        lambda d: d**2 / 2,
        lambda d: (d - 1) ** 2 / 2,
    ),
    "hinge": (lambda d: np.maximum(0, 1 - d), lambda d: np.maximum(0, 1 + d), lambda d: -d),
    "wasserstein-gp": (lambda d: -d, lambda d: d, lambda d: -d),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_transcriptions(name):
    loss = registry.get("loss", name)()
    d = np.linspace(-6, 6, 25)
    for ours, theirs in zip((loss.real, loss.fake, loss.generator), TRANSCRIBED[name], strict=True):
        np.testing.assert_allclose(ours(d), theirs(d), rtol=1e-4, atol=1e-5)
    y = (np.arange(25) % 2).astype(np.float32)
    expected = np.where(y == 1, TRANSCRIBED[name][0](d), TRANSCRIBED[name][1](d)).mean()
    assert float(loss(y[:, None], d[:, None])) == pytest.approx(expected, rel=1e-4)
    again = type(loss).from_config(loss.get_config())
    assert again.penalty == loss.penalty == (10.0 if name == "wasserstein-gp" else 0.0)


def test_a_sure_discriminator_leaves_minimax_without_a_slope():
    d = tf.constant([-20.0])
    slopes = {}
    for name in ("minimax", "non-saturating"):
        with tf.GradientTape() as tape:
            tape.watch(d)
            value = registry.get("loss", name)().generator(d)
        slopes[name] = float(tape.gradient(value, d)[0])
    assert abs(slopes["minimax"]) < 1e-8
    assert slopes["non-saturating"] == pytest.approx(-1)


def test_the_gradient_penalty_equals_finite_differences():
    draw = np.random.default_rng(0)
    w1, w2 = draw.normal(size=(6, 5)), draw.normal(size=(5, 1))
    real, fake, share = draw.normal(size=(4, 3, 2)), draw.normal(size=(4, 3, 2)), draw.random(4)

    def critic(x):
        return np.tanh(x.reshape(len(x), -1) @ w1) @ w2

    step, total = 1e-5, 0.0
    for i in range(4):
        x = share[i] * real[i] + (1 - share[i]) * fake[i]
        slope = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[place] += step
            down[place] -= step
            slope[place] = (critic(up[None]) - critic(down[None])).item() / (2 * step)
        total += (np.sqrt((slope**2).sum()) - 1) ** 2

    def graph(x):
        return tf.tanh(tf.reshape(x, [4, -1]) @ w1.astype("float32")) @ w2.astype("float32")

    found = gan_losses.gradient_penalty(
        graph, *(tf.constant(v, tf.float32) for v in (real, fake, share))
    )
    assert float(found) == pytest.approx(total / 4, rel=1e-4)


def test_the_penalty_reaches_the_critics_weights_at_slope_zero():
    model = points()
    for weight in model.discriminator.trainable_weights:
        weight.assign(tf.zeros_like(weight))
    with tf.GradientTape() as tape:
        x = tf.ones([3, 2])
        value = gan_losses.gradient_penalty(model.discriminator, x, -x, tf.fill([3], 0.5))
    assert float(value) == pytest.approx(1, abs=1e-4)
    for gradient in tape.gradient(value, model.discriminator.trainable_weights):
        assert gradient is None or np.isfinite(gradient.numpy()).all()


@pytest.mark.parametrize("build", [points, images])
def test_each_player_learns_by_its_own_gradient_alone(build):
    """With rates of 0 for the one, the other moves and the one stays."""
    x = np.random.default_rng(0).uniform(0, 255, (6, *build().options["input_shape"]))
    for still, moving, rates in (
        ("generator", "discriminator", {"critic_steps": 2}),
        ("discriminator", "generator", {}),
    ):
        model = build(**rates)
        model.compile(SGD(0.1), gan_losses.NonSaturating())
        if still == "discriminator":  # its own step is left out
            model._teach_discriminator = lambda x, labels: None
        before = {
            name: [w.numpy() for w in getattr(model, name).trainable_weights]
            for name in (still, moving)
        }
        fit(model, x.astype(np.float32))
        for w, old in zip(getattr(model, still).trainable_weights, before[still], strict=True):
            np.testing.assert_array_equal(w.numpy(), old, err_msg=w.path)
        changed = [
            np.abs(w.numpy() - old).max() > 0
            for w, old in zip(getattr(model, moving).trainable_weights, before[moving], strict=True)
        ]
        assert sum(changed) >= len(changed) // 2


def test_a_step_of_the_discriminator_equals_its_transcription():
    """One logistic unit on points: the gradient of equation 1, both halves."""
    model = points(discriminator_hidden=(), seed=3)
    weights = np.array([[0.4], [-0.7]], np.float32)
    model.discriminator.set_weights([weights, np.array([0.2], np.float32)])
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    state = model.noise_seed.state.numpy()
    z = model.noise(5)
    model.noise_seed.state.assign(state)
    made = model.generator(z).numpy()
    model.compile(SGD(0.5), gan_losses.Minimax())
    history = fit(model, x)
    real, fake = x @ weights + 0.2, made @ weights + 0.2
    slope = -(x * (1 - sigmoid(real))).mean(0) + (made * sigmoid(fake)).mean(0)
    after = model.discriminator.get_weights()[0][:, 0]
    np.testing.assert_allclose(after, weights[:, 0] - 0.5 * slope, rtol=1e-5)
    assert history["d_real"][0] == pytest.approx(sigmoid(real).mean(), rel=1e-5)
    assert history["d_fake"][0] == pytest.approx(sigmoid(fake).mean(), rel=1e-5)


def test_the_generator_steps_once_for_several_of_the_critic():
    model = points(critic_steps=3)
    model.compile(Adam(0.01), gan_losses.WassersteinGP())
    fit(model, np.ones((4, 2), np.float32), steps=7)
    assert int(model.optimizer.iterations) == 7
    assert int(model.generator_steps) == int(model.generator_optimizer.iterations) == 2


def test_the_generators_rate_follows_the_discriminators():
    model = points(generator_rate=0.25)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.01])
    model.compile(SGD(schedule), gan_losses.Hinge())
    fit(model, np.ones((4, 2), np.float32), steps=4)
    assert float(model.generator_optimizer.learning_rate) == pytest.approx(0.0025)


def test_a_discriminator_that_has_won_is_told():
    model = points()
    model.compile(SGD(0.1), gan_losses.NonSaturating())
    assert "has won: it knows every sample" in model.trouble({"loss": 0.009})
    assert model.trouble({"loss": 0.02}) is None
    model.compile(SGD(0.1), gan_losses.WassersteinGP())  # its loss has no least value
    assert model.trouble({"loss": -3.0}) is None
    assert points(normalization=None).options["normalization"] == "none"


def test_samples_come_from_the_running_mean():
    model = points(average=0.5)
    model.compile(SGD(0.5), gan_losses.NonSaturating())
    x = np.random.default_rng(0).normal(3, 1, (8, 2)).astype(np.float32)
    mean = [w.numpy() for w in model.generator.variables]
    for step in range(1, 4):
        fit(model, x)
        kept = min(0.5, (1 + step) / (10 + step))
        pairs = zip(mean, model.generator.variables, strict=True)
        mean = [kept * m + (1 - kept) * w.numpy() for m, w in pairs]
    for found, expected in zip(model.mean_generator.variables, mean, strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    z = np.ones((1, 3), np.float32)
    assert np.abs(model(z) - model.generator(z)).max() > 0
    assert len(model.trainable_weights) == 8  # the mean is none of them


@pytest.mark.parametrize(
    ("name", "shape", "generator", "discriminator"),
    [
        ("gan", (28, 28, 1), 2_503_984, 1_231_441),
        ("dcgan", (64, 64, 3), 18_872_323, 4_316_545),
        ("dcgan", (32, 32, 3), 4_935_171, 1_034_113),
        ("dcgan", (28, 28, 1), 2_090_241, 213_121),
    ],
)
def test_parameters(name, shape, generator, discriminator):
    model = create_model(name, input_shape=shape)
    for player, count in ((model.generator, generator), (model.discriminator, discriminator)):
        assert sum(int(np.prod(w.shape)) for w in player.trainable_weights) == count
    assert model.generator.output_shape == (None, *shape)


def test_dcgan_begins_at_4x4_and_keeps_norms_from_the_ends():
    model = create_model("dcgan", input_shape=(64, 64, 3))
    sizes = [layer.output.shape[1:] for layer in model.generator.layers if "up_" in layer.name]
    assert sizes == [(8, 8, 512), (16, 16, 256), (32, 32, 128), (64, 64, 3)]
    assert model.generator.get_layer("maps").output.shape == (None, 4, 4, 1024)
    names = [layer.name for layer in model.discriminator.layers]
    assert names[1:5] == ["down_1", "leaky_1", "down_2", "norm_2"]
    assert model.generator.layers[-2].name == "up_4"  # nothing between it and tanh
    assert [halvings(side) for side in (64, 32, 28, 8, 12, 7, 6)] == [4, 3, 2, 1, 1, 0, 0]


def test_weights_start_as_in_dcgan():
    kernel = create_model("dcgan", input_shape=(32, 32, 3), seed=1).generator.get_layer("up_1")
    assert float(np.std(kernel.kernel)) == pytest.approx(0.02, rel=0.01)


def test_images_are_sampled_in_their_own_values():
    model = images()
    z = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    made = model(z).numpy()
    np.testing.assert_allclose(made, (model.generator(z) + 1) * 127.5, rtol=1e-6)
    assert made.min() >= 0
    assert made.max() <= 255
    model = images(normalization="none")
    pixels = np.full((2, 8, 8, 1), 255, np.uint8)
    np.testing.assert_allclose(
        model.logits(pixels), model.discriminator(np.ones((2, 8, 8, 1), np.float32))
    )


@pytest.mark.parametrize("build", [points, images])
def test_a_normalised_discriminator_is_asked_as_it_was_trained(build):
    """By the statistics of the batch, which it does not keep."""
    several = {"side": 16} if build is images else {"discriminator_hidden": (8, 8)}
    model = build(normalization="batch", **several)
    model.compile(Adam(0.01), gan_losses.NonSaturating())
    x = np.random.default_rng(0).uniform(0, 255, (16, *model.options["input_shape"]))
    x = x.astype(np.float32)
    fit(model, x, steps=3)
    before = [w.numpy() for w in model.variables]
    found = [said(x).numpy() for said in (model.logits, tf.function(model.logits))]
    for w, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(w.numpy(), old, err_msg=w.path)
    scaled = x / 127.5 - 1 if x.ndim == 4 else x
    asked = [model.discriminator(scaled, training=training).numpy() for training in (True, False)]
    for said in found:
        np.testing.assert_allclose(said, asked[0], rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - asked[1]).max() > 0.01


@pytest.mark.parametrize("build", [points, images])
def test_a_condition_reaches_both_players(build):
    model = build(conditional=True, num_classes=3)
    shape = model.options["input_shape"]
    z = np.ones((3, model.options["noise_size"]), np.float32)
    ids = np.arange(3)
    made = model([z, tf.constant(ids)]).numpy()
    assert np.abs(made[0] - made[1]).max() > 0
    said = model.logits(np.zeros((3, *shape), np.float32), ids).numpy()
    assert len(np.unique(said)) == 3
    model.compile(Adam(0.01), gan_losses.NonSaturating())
    assert np.isfinite(fit(model, np.zeros((3, *shape), np.float32), ids)["loss"]).all()


@pytest.mark.parametrize("layer", ["dense", "convolution"])
def test_spectral_normalisation_divides_by_the_largest_singular_value(layer):
    # Seeded: how fast the iteration gets there depends on the second singular value.
    options = {"kernel_initializer": keras.initializers.GlorotUniform(0), "use_bias": False}
    if layer == "dense":
        made, x = SpectralDense(4, spectral_seed=0, **options), np.ones((1, 6), np.float32)
    else:
        made = SpectralConv2D(4, 3, spectral_seed=0, **options)
        x = np.ones((1, 3, 3, 2), np.float32)
    made.build(x.shape)
    before = made.kernel.numpy()
    for _ in range(60):
        made(x, training=True)
    np.testing.assert_array_equal(made.kernel.numpy(), before)
    sigma = np.linalg.svd(before.reshape(-1, 4), compute_uv=False)[0]
    right = (x.reshape(1, -1) @ before.reshape(-1, 4)) / sigma
    np.testing.assert_allclose(np.ravel(made(x)), np.ravel(right), rtol=1e-4)
    u = made.u.numpy()
    made(x)
    np.testing.assert_array_equal(made.u.numpy(), u)  # inference changes nothing


def test_the_gradient_passes_through_the_division():
    """W / sigma does not change with the scale of W: the gradient is orthogonal to W."""
    layer = SpectralDense(3, spectral_seed=0, use_bias=False)
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    layer.build(x.shape)
    for _ in range(60):
        layer(x, training=True)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(tf.square(layer(x)))
    gradient = tape.gradient(value, layer.kernel.value).numpy()
    assert abs((gradient * layer.kernel.numpy()).sum()) < 1e-4 * np.abs(gradient).max()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("non-saturating", {"average": 0.9}),
        ("wasserstein-gp", {"normalization": "layer", "critic_steps": 2}),
        ("hinge", {"normalization": "spectral"}),
    ],
)
def test_lower_precision_saving_and_loading(policy, loss, options, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = images(side=16, **options)
        model.compile(Adam(1e-3, beta_1=0.5), registry.get("loss", loss)())
        x = np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 1)).astype(np.float32)
        assert np.isfinite(list(fit(model, x, steps=3).values())).all()
        model.save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)  # in its own policy
    assert again.dtype_policy.name == policy
    assert {layer.dtype_policy.name for layer in again.discriminator.layers} >= {policy}
    z = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(again(z), model(z))
    assert again(z).dtype == tf.float32
    for ours, theirs in (
        (getattr(m, name).variables for m in (model, again))
        for name in ("generator", "discriminator")
    ):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


def test_layer_normalisation_is_over_an_example_and_scaled_by_channel():
    model = images(side=16, normalization="layer", discriminator_filters=3)
    norm = model.discriminator.get_layer("norm_2")
    draw = np.random.default_rng(0)
    gamma, beta = draw.normal(size=(2, 6))
    norm.set_weights([gamma, beta])
    x = draw.normal(2, 3, size=(5, 4, 4, 6)).astype(np.float32)
    mean, variance = (of(x, axis=(1, 2, 3), keepdims=True) for of in (np.mean, np.var))
    right = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    np.testing.assert_allclose(norm(x), right, rtol=1e-4, atol=1e-5)


def layers_of(model) -> list[str]:
    """The policy of each layer of both players."""
    return [
        layer.dtype_policy.name
        for player in (model.generator, model.discriminator)
        for layer in player.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]


@pytest.mark.parametrize("build", [points, images])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer", "spectral"])
def test_every_layer_has_the_policy_that_is_asked_for(build, normalization):
    options = {"normalization": normalization, "conditional": True, "num_classes": 2, "pieces": 2}
    options |= {"side": 16} if build is images else {"discriminator_hidden": (8, 8)}
    by_argument = layers_of(build(dtype="mixed_bfloat16", **options))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        by_default = layers_of(build(**options))
    finally:
        keras.config.set_dtype_policy("float32")
    assert by_argument == by_default
    assert by_argument.count("float32") == 2  # what each answers


def test_a_file_from_before_policies_were_saved_loads():
    model = images()
    config = model.get_config()
    del config["dtype"]
    again = GAN.from_config(config)
    assert again.dtype_policy.name == "float32"
    z = np.ones((2, 5), np.float32)
    np.testing.assert_array_equal(again(z), model(z))  # of the same seed


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="cannot make 7x7: take even sides"):
        GAN((7, 7, 1), convolutional=True)
    with pytest.raises(ValueError, match="use gan, not dcgan"):
        GAN((2,), convolutional=True)
    with pytest.raises(ValueError, match="two classes or more"):
        GAN((2,), conditional=True)
    with pytest.raises(ValueError, match="normalization must be one of"):
        GAN((2,), normalization="group")
    for name, count in (("critic_steps", 0), ("pieces", 0), ("noise_size", 2.5), ("filters", 0)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of 1 or more"):
            GAN((2,), **{name: count})
    for width in (0, (16, 0), "16"):
        with pytest.raises(ValueError, match="widths of the hidden layers"):
            GAN((2,), hidden=width)
    with pytest.raises(ValueError, match="average"):
        GAN((2,), average=1.0)
    with pytest.raises(ValueError, match="batch normalisation mixes them"):
        images().compile(Adam(), gan_losses.WassersteinGP())
    with pytest.raises(ValueError, match="takes a loss of gan_losses"):
        points().compile(Adam(), keras.losses.MeanSquaredError())
