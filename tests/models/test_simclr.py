"""SimCLR against NumPy: NT-Xent by a double loop, replicas, heads, counts, collapse."""

import json
import random
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from epochal.models import create_model, registry
from epochal.models.contrastive import NTXent
from epochal.models.simclr import HEADS, SimCLR, projection_head

SHAPE = (8, 8, 1)


def small(**options) -> SimCLR:
    known = {"encoder": "resnet20", "encoder_options": {"width": 4}, "projection": 6, "seed": 0}
    return SimCLR(SHAPE, **known | options)


def views(n=6, seed=0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2, *shape)).astype(np.float32)


def by_loops(first, second, temperature) -> np.ndarray:
    """Equation 1 for all 2N views, in float64; the sum of an image's two, [N]."""
    z = np.concatenate([first, second]).astype(np.float64)
    n, losses = len(first), np.zeros(len(z))
    for i in range(2 * n):
        likeness = {}
        for k in range(2 * n):
            if k != i:
                cosine = z[i] @ z[k] / np.linalg.norm(z[i]) / np.linalg.norm(z[k])
                likeness[k] = np.exp(cosine / temperature)
        assert len(likeness) == 2 * n - 1  # the partner and 2N - 2 negatives
        losses[i] = -np.log(likeness[(i + n) % (2 * n)] / sum(likeness.values()))
    return losses[:n] + losses[n:]


# --- The loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_equation_1(temperature):
    draw = np.random.default_rng(1)
    first = draw.normal(size=(7, 5)).astype(np.float32)
    second = (first + draw.normal(size=(7, 5))).astype(np.float32)
    loss = NTXent(temperature)
    wanted = by_loops(first, second, temperature)
    np.testing.assert_allclose(loss.call(first, second), wanted, rtol=2e-5)
    np.testing.assert_allclose(loss.call(second, first), wanted, rtol=2e-5)
    assert float(loss(first, second)) == pytest.approx(wanted.mean(), rel=1e-5)
    # only directions count
    np.testing.assert_allclose(loss.call(3 * first, 0.1 * second), wanted, rtol=2e-5)


def test_nt_xent_in_closed_form():
    alike = np.ones((4, 3), np.float32)
    assert float(NTXent()(alike, alike)) == pytest.approx(2 * np.log(7), rel=1e-6)
    apart = np.eye(4, dtype=np.float32)  # partners alike, all else at right angles
    wanted = 2 * np.log(1 + 6 * np.exp(-2))
    assert float(NTXent(0.5)(apart, apart)) == pytest.approx(wanted, rel=1e-5)


def test_nt_xent_is_a_keras_loss_that_knows_its_task():
    loss = registry.get("loss", "nt-xent")(temperature=0.2)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.temperature == 0.2
    assert loss.task == registry.MODELS["simclr"].task
    np.testing.assert_array_equal(loss.predict(np.ones((2, 3)))["embedding"], np.ones((2, 3)))
    with pytest.raises(ValueError, match="temperature"):
        NTXent(0)


def test_a_batch_of_one_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"batch of 1 has no others.*batch_size"):
        NTXent()(np.ones((1, 3)), np.ones((1, 3)))
    for_any = tf.function(NTXent().call, [tf.TensorSpec([None, 3])] * 2, autograph=False)
    assert for_any(tf.ones((2, 3)), tf.ones((2, 3))).shape == 2
    with pytest.raises(tf.errors.InvalidArgumentError, match="batch of 1 has no others"):
        for_any(tf.ones((1, 3)), tf.ones((1, 3)))
    with pytest.raises(ValueError, match="second ones; got"):
        NTXent().call(np.ones((4, 3)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="two views of each image"):
        small().project(tf.ones((4, 8, 8, 1)))


# --- Networks -------------------------------------------------------------------------------------


def trainable(model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def test_counts_of_the_paper():
    assert trainable(projection_head(2048, 128, 2)) == 2048**2 + 2 * 2048 + 2048 * 128 + 128
    assert trainable(projection_head(2048, 128, 2)) == 4_460_672
    assert trainable(projection_head(2048, 128, 1)) == 262_272
    assert small(head=None).head is small(head="none").head is None  # a command line's none
    assert registry.MODELS["simclr"].parameters == 23_508_032 + 4_460_672


def test_the_head_is_linear_norm_relu_linear_norm():
    head = projection_head(5, 3, 2, seed=0)
    x = np.random.default_rng(0).normal(size=(9, 5))
    kernel_1, kernel_2 = (np.array(w) for w in head.get_weights() if w.ndim == 2)
    assert kernel_1.std() < 0.02

    def norm(y):
        return (y - y.mean(axis=0)) / np.sqrt(y.var(axis=0) + 1e-5)

    wanted = norm(np.maximum(norm(x @ kernel_1), 0) @ kernel_2)
    np.testing.assert_allclose(head(x, training=True), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_every_trainable_weight_gets_a_gradient(head):
    model = small(head=head)
    with tf.GradientTape() as tape:
        loss = NTXent()(*model.project(tf.constant(views()), training=True))
    for weight, gradient in zip(
        model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True
    ):
        assert np.abs(gradient).max() > 0, weight.path
    width = model.width if head == "none" else 6
    assert model.project(tf.constant(views()))[0].shape == (6, width)


def test_the_output_is_the_encoder_s_and_takes_images_one_by_one():
    model = small()
    images = views()[:, 0]
    found = model(images)
    assert found.shape == (6, 16)
    assert model.compute_output_shape((6, *SHAPE)) == (6, 16)
    np.testing.assert_array_equal(found, model.encoder(images))
    first, second = model.project(tf.constant(views()))
    np.testing.assert_allclose(first, model.head(model.encoder(images)), rtol=1e-5, atol=1e-6)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize(
    ("encoder", "options", "width"),
    [("mlp", {"hidden": [7]}, 7), ("resnet18", {"stem": "small", "width": 2}, 16)],
)
def test_other_networks_of_the_registry(encoder, options, width):
    assert small(encoder=encoder, encoder_options=options).width == width


def test_options_that_make_no_sense():
    for options, message in (
        ({"head": "round"}, "one of nonlinear, linear, none"),
        ({"head_layers": 1}, "2 or more layers"),
        ({"encoder": "resnet21"}, "Did you mean"),
        ({"encoder": "simclr"}, "no encoder of images"),
        ({"encoder": "lstm"}, "no encoder of images|shape|dim"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**{"encoder_options": {}} | options)
    with pytest.raises(ValueError, match=r"takes images \[h, w, c\]"):
        SimCLR((64,), "mlp")


# --- Training -------------------------------------------------------------------------------------


def compiled(model, **options):
    model.compile(keras.optimizers.SGD(0.1), NTXent(0.5), **options)
    return model


def test_a_step_goes_down_the_gradient_and_records():
    model = compiled(small(head="linear"))
    data = views()
    weights = [np.array(v) for v in model.trainable_weights]
    with tf.GradientTape() as tape:
        first, second = model.project(tf.constant(data), training=True)
        loss = NTXent(0.5)(first, second)
    gradients = tape.gradient(loss, model.trainable_weights)
    first, second = first.numpy(), second.numpy()
    logs = model.fit(tf.data.Dataset.from_tensors(data), verbose=0).history
    for new, old, gradient in zip(model.trainable_weights, weights, gradients, strict=True):
        np.testing.assert_allclose(new, old - 0.1 * gradient, rtol=1e-4, atol=1e-4)
    assert logs["loss"][0] == pytest.approx(by_loops(first, second, 0.5).mean(), rel=1e-4)
    z = first / np.linalg.norm(first, axis=1, keepdims=True)
    assert logs["spread"][0] == pytest.approx(np.sqrt(6) * z.std(axis=0).mean(), rel=1e-4)
    assert 0 < logs["contrast_entropy"][0] <= np.log(11) + 1e-5
    z = np.concatenate([z, second / np.linalg.norm(second, axis=1, keepdims=True)])
    likeness = z @ z.T - 9 * np.eye(12)
    right = (likeness.argmax(axis=1) == (np.arange(12) + 6) % 12).mean()
    assert logs["contrast_accuracy"][0] == pytest.approx(right)


def test_it_learns_to_find_partners_and_labels_are_not_looked_at():
    """Views are noisy copies of an image."""
    draw = np.random.default_rng(0)
    images = draw.normal(size=(64, 1, *SHAPE))
    data = (images + 0.5 * draw.normal(size=(64, 2, *SHAPE))).astype(np.float32)
    model = small(encoder="mlp", encoder_options={"hidden": [32]})
    model.compile(keras.optimizers.Adam(0.003), NTXent(0.2))
    stream = tf.data.Dataset.from_tensors((data, np.zeros(64))).repeat()
    logs = model.fit(stream, steps_per_epoch=60, epochs=2, verbose=0).history
    assert logs["loss"][1] < logs["loss"][0] - 0.2
    assert logs["contrast_accuracy"][1] > 0.95
    found = model.evaluate(tf.data.Dataset.from_tensors(data), return_dict=True, verbose=0)
    assert found["contrast_accuracy"] > 0.9


def test_a_collapse_is_told():
    model = compiled(small(encoder="mlp", encoder_options={"hidden": [8]}, head="none"))
    bias = next(v for v in model.encoder.trainable_weights if v.path.endswith("bias"))
    bias.assign(np.linspace(1e4, 2e4, 8))  # whatever the image, nearly the same embedding
    logs = model.fit(tf.data.Dataset.from_tensors(views()), verbose=0).history
    assert logs["spread"][0] < 0.01
    assert logs["loss"][0] == pytest.approx(2 * np.log(11), abs=0.01)
    assert "collapsed" in model.trouble({"spread": logs["spread"][0]})
    assert model.trouble({"spread": 0.5}) is None


def test_saving_and_loading(tmp_path):
    model = compiled(small())
    model.fit(tf.data.Dataset.from_tensors(views()), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    images = views()[:, 0]
    np.testing.assert_array_equal(again(images), model(images))
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.options == model.options


def test_a_saved_model_keeps_its_precision(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled(small())
        model.fit(tf.data.Dataset.from_tensors(views()), verbose=0)
        model.save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert keras.config.dtype_policy().name == "float32"
    assert again.dtype_policy.name == "mixed_bfloat16"
    for network in (again.encoder, again.head):
        assert {layer.compute_dtype for layer in network.layers[1:]} == {"bfloat16"}
    images = views()[:, 0]
    np.testing.assert_array_equal(again(images), model(images))
    full = small()
    full.set_weights(model.get_weights())
    assert (full(images).numpy() != model(images).numpy()).any()
    assert small(dtype="mixed_bfloat16").encoder.compute_dtype == "bfloat16"


def test_files_without_precision_and_seed_are_loaded_as_they_were(tmp_path):
    model = small()
    model.save(tmp_path / "new.keras")
    with (
        zipfile.ZipFile(tmp_path / "new.keras") as new,
        zipfile.ZipFile(tmp_path / "old.keras", "w") as old,
    ):
        for name in new.namelist():
            content = new.read(name)
            if name == "config.json":
                config = json.loads(content)
                del config["config"]["dtype"]
                config["config"]["seed"] = None
                content = json.dumps(config).encode()
            old.writestr(name, content)
    before = random.getstate()
    again = keras.models.load_model(tmp_path / "old.keras", compile=False)
    assert random.getstate() == before
    assert again.options["seed"] == 0
    assert again.dtype_policy.name == "float32"
    np.testing.assert_array_equal(again(views()[:, 0]), model(views()[:, 0]))


@pytest.mark.parametrize(
    ("encoder", "options"),
    [("resnet20", {"width": 4}), ("resnet18", {"stem": "small", "width": 2, "drop_path": 0.2}),
     ("mlp", {"hidden": [7]})],
)  # fmt: skip
def test_the_network_before_training_can_be_built_again(encoder, options):
    keras.utils.set_random_seed(3)
    model = small(encoder=encoder, encoder_options=options, seed=None)
    other = small(encoder=encoder, encoder_options=options, seed=None)
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    again = SimCLR.from_config(model.get_config())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002
    kernels = [
        [w for w in one.get_weights() if w.ndim > 1 and w.std() > 0]
        for one in (model, again, other)
    ]
    assert len(kernels[0]) > 2
    for one, same, different in zip(*kernels, strict=True):
        np.testing.assert_array_equal(one, same)
        assert (one != different).any()
    keras.utils.set_random_seed(3)
    assert small(encoder=encoder, encoder_options=options, seed=None).options == model.options


def test_a_saved_model_needs_no_file_that_its_encoder_started_from(tmp_path):
    small().save(tmp_path / "start.keras")
    options = {"width": 4, "weights": str(tmp_path / "start.keras"), "freeze": "stage1"}
    model = small(encoder_options=options, seed=5)
    for one, other in zip(model.encoder.get_weights(), small().encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    model.save(tmp_path / "model.keras")
    (tmp_path / "start.keras").unlink()
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert again.options["encoder_options"] == {"width": 4, "freeze": "stage1"}
    assert (
        len(again.trainable_weights)
        == len(model.trainable_weights)
        < len(small().trainable_weights)
    )
    np.testing.assert_array_equal(again(views()[:, 0]), model(views()[:, 0]))


def test_a_step_in_bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled(small())
        logs = model.fit(tf.data.Dataset.from_tensors(views()), verbose=0).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(logs["loss"][0])
    assert model(views()[:, 0]).dtype == tf.float32


REPLICAS = """
import numpy as np, keras, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from epochal.models.contrastive import NTXent
from epochal.models.simclr import SimCLR

data = np.random.default_rng(0).normal(size=(8, 2, 4, 4, 1)).astype(np.float32)

def trained(strategy):
    with strategy.scope():  # without batch normalisation, which knows its own replica only
        model = SimCLR((4, 4, 1), "mlp", {"hidden": [6]}, head="none", seed=0)
        model.compile(keras.optimizers.SGD(0.5), NTXent(0.5))
    stream = tf.data.Dataset.from_tensor_slices(data).batch(8, drop_remainder=True).repeat()
    logs = model.fit(stream, steps_per_epoch=3, epochs=2, verbose=0).history
    return logs, [np.array(v) for v in model.get_weights()]

logs, weights = trained(tf.distribute.get_strategy())
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
logs2, weights2 = trained(two)
for one, other in zip(weights, weights2, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
for name in ("loss", "contrast_accuracy", "contrast_entropy"):
    np.testing.assert_allclose(logs[name], logs2[name], rtol=1e-5)
alone = [np.array(v) for v in SimCLR((4, 4, 1), "mlp", {"hidden": [6]}, head="none", seed=0)
         .get_weights()]
assert max(np.abs(a - b).max() for a, b in zip(alone, weights, strict=True)) > 1e-2

z = np.random.default_rng(1).normal(size=(2, 8, 4)).astype(np.float32)
cuts = ((0, 3), (3, 8))  # unequal parts
parts = [two.experimental_distribute_values_from_function(
    lambda context, view=view: tf.constant(view[slice(*cuts[context.replica_id_in_sync_group])])
) for view in z]

def compared(first, second):
    loss = NTXent(0.5)
    with tf.GradientTape() as tape:
        tape.watch(first)
        losses = loss.call(first, second)
        total = tf.reduce_sum(losses)
    logits, partners = loss.scores(first, second)
    return losses, tape.gradient(total, first), tf.reshape(partners, [2, -1])[0]

found = tf.function(lambda *views: two.run(compared, views), autograph=False)(*parts)
whole = compared(*map(tf.constant, z))
for own, all_of_them in zip(found, whole, strict=True):
    own = np.concatenate([part.numpy() for part in two.experimental_local_results(own)])
    np.testing.assert_allclose(own, all_of_them, rtol=1e-5, atol=1e-6)
assert whole[2].numpy().tolist() == list(range(8))
print("equal")
"""


def test_two_replicas_learn_what_one_with_the_whole_batch_does():
    done = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True)
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]


def test_the_row_of_the_registry_builds():
    model = create_model("simclr", input_shape=(32, 32, 3), encoder_options={"stem": "small"})
    assert model.width == 2048
    assert trainable(model.head) == 4_460_672
