"""Published weights: equal logits with independent forward passes, and what is refused.

The reference nets are plain NumPy with PyTorch's conventions: maps [n, c, h, w], kernels
[out, in, h, w], padding on both sides.
"""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from epochal.models import create_model
from epochal.models.checkpoints import WeightsError, identify, load_weights

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
SHAPE = (50, 65, 3)  # odd maps on the way down: sides of the padding show


# --- ResNet as torchvision and timm have it -----------------------------------------------------


def torch_resnet(depth, width=8, classes=7, seed=0):
    """A state dict with uneven weights and statistics."""
    random = np.random.default_rng(seed)
    state = {}

    def conv(name, inputs, outputs, kernel):
        shape = (outputs, inputs, kernel, kernel)
        values = random.normal(size=shape) * np.sqrt(2 / (inputs * kernel**2))
        state[f"{name}.weight"] = values.astype("float32")

    def norm(name, size):
        for part, low, high in (
            ("weight", 0.3, 1.2), ("bias", -0.5, 0.5),
            ("running_mean", -0.5, 0.5), ("running_var", 1e-6, 2.0),
        ):  # fmt: skip
            state[f"{name}.{part}"] = random.uniform(low, high, size).astype("float32")
        state[f"{name}.num_batches_tracked"] = np.int64(100)

    conv("conv1", 3, width, 7)
    norm("bn1", width)
    inputs = width
    for stage, count in enumerate(BLOCKS[depth]):
        filters = width * 2**stage
        outputs = filters if depth < 50 else 4 * filters
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            shapes = [(inputs, filters, 3), (filters, filters, 3)]
            if depth >= 50:
                shapes = [(inputs, filters, 1), (filters, filters, 3), (filters, outputs, 1)]
            for i, shape in enumerate(shapes, start=1):
                conv(f"{name}.conv{i}", *shape)
                norm(f"{name}.bn{i}", shape[1])
            if (stage > 0 and block == 0) or inputs != outputs:
                conv(f"{name}.downsample.0", inputs, outputs, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    state["fc.weight"] = random.normal(size=(classes, inputs)).astype("float32")
    state["fc.bias"] = random.normal(size=classes).astype("float32")
    return state


def convolve(x, weight, stride, padding, bias=None):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))[:, :, ::stride, ::stride]
    y = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
    return y if bias is None else y + bias[:, None, None]


def pool(x, kernel, stride, padding):
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    x = np.pad(x, border, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))
    return windows[:, :, ::stride, ::stride].max((-2, -1))


def torch_forward(state, images):
    """Logits of torchvision's ResNet (stride in the 3x3) for images [n, h, w, 3]."""

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return convolve(x, weight, stride, weight.shape[-1] // 2)

    def norm(x, name):
        w, b, mean, var = (
            state[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * w + b

    def relu(x):
        return np.maximum(x, 0)

    x = images.astype("float64").transpose(0, 3, 1, 2)
    x = pool(relu(norm(conv(x, "conv1", 2), "bn1")), 3, 2, 1)
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            steps = (1, stride, 1) if f"{name}.conv3.weight" in state else (stride, 1)
            y = x
            for i, step in enumerate(steps, start=1):
                y = norm(conv(y, f"{name}.conv{i}", step), f"{name}.bn{i}")
                y = relu(y) if i < len(steps) else y
            if f"{name}.downsample.0.weight" in state:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = relu(x + y)
            block += 1
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def images(n=2, shape=SHAPE):
    return np.random.default_rng(3).normal(size=(n, *shape)).astype("float32")


@pytest.fixture(scope="module")
def state18():
    return torch_resnet(18)


@pytest.fixture(scope="module")
def file18(state18, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file({k: np.asarray(v) for k, v in state18.items()}, path)
    return path


def model18(**options):
    return create_model(
        "resnet18", **{"input_shape": SHAPE, "num_classes": 7, "width": 8} | options
    )


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_resnet18_of_torch_gives_equal_logits(state18, file18):
    model = model18(weights=str(file18))
    expected = torch_forward(state18, images())
    assert np.abs(expected).max() > 0.5
    close(model(images()), expected)


def test_resnet50_of_torch_from_npz(tmp_path):
    state = torch_resnet(50, width=4)
    np.savez(tmp_path / "resnet50.npz", **state)
    options = {"input_shape": SHAPE, "num_classes": 7, "width": 4}
    model = create_model("resnet50", **options, version="v1.5")
    found = load_weights(model, tmp_path / "resnet50.npz")
    assert str(found) == "ResNet-50 of width 4, v1.5 layout, 7 classes"
    close(model(images()), torch_forward(state, images()))

    wrong = create_model("resnet50", **options)
    before = wrong.get_weights()
    with pytest.raises(WeightsError, match=r"v1.5 layout.*model is ResNet-50 of width 4, v1 layout.*shapes are equal.*'resnet50', width=4, version='v1.5', num_classes=7\)"):  # fmt: skip  # noqa: E501
        load_weights(wrong, tmp_path / "resnet50.npz")
    for a, b in zip(before, wrong.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_the_classifier_the_head_stays(file18, state18):
    model = model18(num_classes=3)
    head = [w.numpy() for w in model.get_layer("outputs").weights]
    with pytest.raises(WeightsError, match=r"7 classes.*3 classes.*num_classes=7.*head=False"):
        load_weights(model, file18)
    load_weights(model, file18, head=False)
    for old, new in zip(head, model.get_layer("outputs").weights, strict=True):
        np.testing.assert_array_equal(old, new)
    stem = state18["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(model.get_layer("stem_conv").kernel, stem)
    same = model18(num_classes=3, weights=str(file18), new_head=True)
    maps = model18(include_top=False, weights=str(file18))
    assert np.array_equal(same.get_weights()[0], maps.get_weights()[0])


def test_the_constants_of_the_source_come_along(file18, tmp_path):
    model = model18()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon, layer.momentum = 0.1, 0.5
    load_weights(model, file18)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras").get_layer("stage4_2_norm2")
    assert (loaded.epsilon, loaded.momentum) == (1e-5, 0.9)


# --- keras.applications ---------------------------------------------------------------------------


def test_resnet50_of_keras_applications(tmp_path):
    """Both file formats; biases folded away, blue-green-red first convolution, epsilon 1.001e-5."""
    theirs = keras.applications.ResNet50(
        weights=None, classes=6, input_shape=(64, 64, 3), classifier_activation=None
    )
    random = np.random.default_rng(0)
    for weight in theirs.weights:
        name, values = weight.path.split("/")[-1], weight.numpy()
        if name in ("beta", "bias", "moving_mean"):
            values = random.uniform(-0.5, 0.5, values.shape)
        elif name in ("gamma", "moving_variance"):
            values = random.uniform(0.3, 1.5, values.shape)
        weight.assign(values)
    x = images(2, (64, 64, 3))
    expected = theirs(x[..., ::-1]).numpy()
    theirs.save_weights(tmp_path / "new.weights.h5")
    theirs.save(tmp_path / "old.h5")
    ours = create_model("resnet50", input_shape=(64, 64, 3), num_classes=6)
    for name in ("new.weights.h5", "old.h5"):
        ours.set_weights([np.zeros(w.shape) for w in ours.weights])
        found = load_weights(ours, tmp_path / name)
        assert str(found) == "ResNet-50, v1 layout, 6 classes"
        close(ours(x), expected)
    norm = ours.get_layer("stage2_1_shortcut_norm")
    assert (norm.epsilon, norm.momentum) == (1.001e-5, 0.99)
    with pytest.raises(WeightsError, match="v1 layout.*model is ResNet-50, v1.5 layout"):
        create_model("resnet50", version="v1.5", num_classes=6, weights=tmp_path / "old.h5")


# --- AlexNet --------------------------------------------------------------------------------------


def torch_alexnet(filters, hidden, classes, maps, seed=0):
    random = np.random.default_rng(seed)
    kernels, places = (11, 5, 3, 3, 3), (0, 3, 6, 8, 10)
    state = {}
    for place, kernel, inputs, outputs in zip(
        places, kernels, (3, *filters), filters, strict=False
    ):
        state[f"features.{place}"] = (outputs, inputs, kernel, kernel)
    state["classifier.1"] = (hidden, filters[-1] * maps**2)
    state["classifier.4"] = (hidden, hidden)
    state["classifier.6"] = (classes, hidden)
    found = {}
    for name, shape in state.items():
        weight = random.standard_normal(shape, "float32")
        found[f"{name}.weight"] = weight * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        found[f"{name}.bias"] = random.normal(size=shape[0]).astype("float32") * np.float32(0.1)
    return found


def alexnet_forward(state, images):
    """Logits of torchvision's AlexNet for images [n, h, w, 3]."""

    def conv(x, place, stride, padding):
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        return np.maximum(convolve(x, weight, stride, padding, bias), 0)

    x = images.transpose(0, 3, 1, 2)
    x = pool(conv(x, 0, 4, 2), 3, 2, 0)
    x = pool(conv(x, 3, 1, 2), 3, 2, 0)
    x = conv(conv(conv(x, 6, 1, 1), 8, 1, 1), 10, 1, 1)
    x = pool(x, 3, 2, 0).reshape(len(x), -1)
    for place in (1, 4, 6):
        x = x @ state[f"classifier.{place}.weight"].T + state[f"classifier.{place}.bias"]
        x = np.maximum(x, 0) if place != 6 else x
    return x


def stand_in_alexnet(side, filters, hidden, classes):
    """The layers of AlexNet's one-tower form by their names, small."""
    layers = keras.layers
    x = image = keras.Input((side, side, 3))
    x = layers.ZeroPadding2D(2)(x)
    for i, (size, kernel) in enumerate(zip(filters, (11, 5, 3, 3, 3), strict=True), start=1):
        options = {"strides": 4} if i == 1 else {"padding": "same"}
        x = layers.Conv2D(size, kernel, activation="relu", name=f"conv{i}", **options)(x)
        x = layers.MaxPooling2D(3, 2)(x) if i in (1, 2, 5) else x
    x = layers.Flatten()(x)
    for name in ("fc6", "fc7"):
        x = layers.Dense(hidden, "relu", name=name)(x)
    return keras.Model(image, layers.Dense(classes, name="outputs")(x))


def test_alexnet_of_torch_reads_its_maps_in_the_other_order(tmp_path):
    filters, side = (4, 6, 5, 7, 3), 96
    state = torch_alexnet(filters, 16, 5, maps=2)
    np.savez(tmp_path / "alexnet.npz", **state)
    model = stand_in_alexnet(side, filters, 16, 5)
    found = load_weights(model, tmp_path / "alexnet.npz")
    assert str(found) == "AlexNet, 5 classes"
    x = images(2, (side, side, 3))
    close(model(x), alexnet_forward(state, x))
    with pytest.raises(WeightsError, match=r"looks like AlexNet.*model is ResNet-18"):
        load_weights(model18(), tmp_path / "alexnet.npz")


def test_alexnet_2014_of_this_package(tmp_path):
    state = torch_alexnet((64, 192, 384, 256, 256), 4096, 1000, maps=6)
    save_file(state, tmp_path / "alexnet.safetensors")
    model = create_model("alexnet-2014", weights=str(tmp_path / "alexnet.safetensors"))
    x = images(1, (224, 224, 3))
    close(model(x), alexnet_forward(state, x))


# --- What a file looks like, and what is refused --------------------------------------------------


def outline(blocks, layers, classes=1000, head="fc", inner=(64, 64)):
    """Names of a torchvision ResNet with tiny arrays: enough to tell which it is."""
    state = {"conv1.weight": np.zeros((64, 3, 7, 7), "float16")}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            for i in range(1, layers + 1):
                state[f"layer{stage}.{block}.conv{i}.weight"] = np.zeros((1, 1, 1, 1), "float16")
    state["layer1.0.conv2.weight"] = np.zeros((*inner, 1, 1), "float16")
    if classes:
        state[f"{head}.weight"] = np.zeros((classes, 1), "float16")
    return state


@pytest.mark.parametrize(
    ("blocks", "layers", "classes", "words"),
    [
        ((3, 4, 6, 3), 2, 1000, "ResNet-34, 1000 classes"),
        ((3, 4, 23, 3), 3, 1000, "ResNet-101, v1.5 layout, 1000 classes"),
        ((3, 8, 36, 3), 3, None, "ResNet-152, v1.5 layout, no classifier"),
    ],
)
def test_a_file_is_recognised_by_its_names(blocks, layers, classes, words, tmp_path):
    np.savez(tmp_path / "w.npz", **outline(blocks, layers, classes))
    assert str(identify(tmp_path / "w.npz")) == words


def test_another_depth_says_which_and_what_differs(tmp_path):
    np.savez(tmp_path / "w.npz", **outline((3, 4, 23, 3), 3))
    model = create_model("resnet50", version="v1.5", width=4, input_shape=(32, 32, 3))
    with pytest.raises(WeightsError) as error:
        load_weights(model, tmp_path / "w.npz")
    text = str(error.value)
    assert "looks like ResNet-101, v1.5 layout, 1000 classes" in text
    assert "the model is ResNet-50 of width 4, v1.5 layout" in text
    # 17 blocks of three convolutions more
    assert "51 of the file's arrays have no place in the model (layer3.6.conv1.weight, " in text
    assert "create_model('resnet101', version='v1.5', num_classes=1000)" in text


def test_other_options_of_the_same_net_are_told(file18):
    with pytest.raises(WeightsError, match=r"no place in the model \(layer2.0.downsample.0.weight"):
        load_weights(model18(shortcut="A"), file18)
    with pytest.raises(WeightsError, match=r"1 differ in shape \(conv1.weight becomes 7x7x3x8, the model has 3x3x3x8\)"):  # fmt: skip  # noqa: E501
        load_weights(model18(stem="small"), file18)
    with pytest.raises(WeightsError, match="images of 3 channels, the model for 1: the op rgb"):
        load_weights(model18(input_shape=(32, 32, 1)), file18)
    with pytest.raises(WeightsError, match="layers are others|model is ResNet-18 of width 8, v2"):
        load_weights(model18(version="v2"), file18)
    with pytest.raises(ValueError, match="does not exist. Did you mean 'resnet18.safetensors'"):
        model18(weights=str(file18).replace("18", "8"))
    with pytest.raises(WeightsError, match="model is mlp"):
        load_weights(create_model("mlp", input_shape=(4,), num_classes=2), file18)


def test_variants_and_strangers_are_refused(state18, tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, **state18, **{"layer1.0.se.fc1.weight": np.zeros(3)})
    with pytest.raises(
        WeightsError, match=r"names of a ResNet-18 of width 8 .*1 more \(layer1.0.se"
    ):
        identify(path)
    np.savez(path, **{"blocks.0.attn.qkv.weight": np.zeros(3)})
    with pytest.raises(WeightsError, match="no architecture known here.*blocks.0.attn"):
        identify(path)
    np.savez(path, **state18 | {"layer1.0.conv1.weight": np.zeros((8, 8, 3, 3), "int8")})
    with pytest.raises(WeightsError, match="layer1.0.conv1.weight is of type int8"):
        identify(path)
    np.savez(path, **state18 | {"fc.bias": np.full(7, np.nan, "float32")})
    with pytest.raises(WeightsError, match="fc.bias holds values that are NaN or infinite"):
        identify(path)
    partial = {k: v for k, v in state18.items() if k != "layer4.1.bn2.running_var"}
    np.savez(path, **partial)
    with pytest.raises(WeightsError, match=r"1 of the model's weights are not in the file \(stage4_2_norm2/moving_variance\)"):  # fmt: skip  # noqa: E501
        load_weights(model18(), path)


@pytest.mark.parametrize("inner", [(128, 4), (128, 128)])  # ResNeXt-50 32x4d, wide ResNet-50-2
def test_other_families_of_the_same_names(inner, tmp_path):
    np.savez(tmp_path / "w.npz", **outline((3, 4, 6, 3), 3, inner=inner))
    model = create_model("resnet50", version="v1.5", width=4, input_shape=(32, 32, 3))
    with pytest.raises(WeightsError, match="looks like ResNeXt or wide ResNet-50.*has no such"):
        load_weights(model, tmp_path / "w.npz")
    np.savez(tmp_path / "w.npz", **outline((2, 2, 2, 2), 3))  # timm's
    with pytest.raises(WeightsError, match="looks like ResNet-26.*has no such network"):
        load_weights(model, tmp_path / "w.npz")


def test_bfloat16_and_capitals_are_read(state18, tmp_path):
    from ml_dtypes import bfloat16
    from safetensors.numpy import save_file

    halves = {k: v.astype(bfloat16) for k, v in state18.items() if v.dtype.kind == "f"}
    save_file(halves, tmp_path / "W.SAFETENSORS")
    model = model18()
    load_weights(model, tmp_path / "W.SAFETENSORS")
    kernel = model.get_layer("outputs").get_weights()[0]
    np.testing.assert_array_equal(kernel, halves["fc.weight"].T.astype("float32"))


@pytest.mark.parametrize("name", ["resnet50-11ad3fa6.PTH", "pytorch_model.bin", "best.pth.tar"])
def test_pickles_are_refused_with_the_lines_that_convert_them(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError) as error:
        identify(tmp_path / name)
    text = str(error.value)
    assert "weights_only=True" in text
    assert "save_file" in text
    code = text.partition('python -c "')[2].rpartition('"')[0]
    compile(code, "shown", "exec")
    assert repr(name) in code


def test_damaged_files(file18, tmp_path):
    whole = file18.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for content in (whole[:-10], whole[:100], b"version https://git-lfs.github.com/spec/v1", b""):
        cut.write_bytes(content)
        with pytest.raises(
            WeightsError, match=rf"cut.safetensors \({len(content):,} bytes\) is no"
        ):
            identify(cut)
    np.savez(tmp_path / "a.npz", x=np.zeros(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:600])
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    for name in ("cut.npz", "cut.h5"):
        with pytest.raises(WeightsError, match="is no whole"):
            identify(tmp_path / name)
    with pytest.raises(WeightsError, match="holds Python objects.*Save arrays of numbers"):
        identify(tmp_path / "objects.npz")
    with pytest.raises(WeightsError, match="is a folder"):
        identify(tmp_path)
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"no kind that is read: .safetensors, .npz, .h5"):
        identify(tmp_path / "w.onnx")
