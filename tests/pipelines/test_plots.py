"""Plots say what the arrays say, stay readable at any size, and appear whole."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from epochal.pipelines import pictures, plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, to look at their content."""
    kept = []
    write = FigureCanvasAgg.print_png

    def keep(canvas, *arguments, **options):
        kept.append(canvas.figure)
        write(canvas, *arguments, **options)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", keep)
    return kept


def test_learning_curves_show_both_splits_gaps_and_the_best_epoch(tmp_path, figures):
    rows = [
        {"epoch": 1, "step": 9, "accuracy": 0.1, "val_accuracy": 0.2, "loss": 2.0, "val_loss": 3.0,
         "learning_rate": 0.1},
        {"epoch": 2, "step": 18, "loss": 1.0, "val_loss": float("nan"), "accuracy": 0.5,
         "val_accuracy": 0.6, "learning_rate": 0.1},
        {"epoch": 3, "step": 27, "loss": 0.5, "val_loss": 2.5, "accuracy": 0.7,
         "val_accuracy": 0.4, "learning_rate": 0.1},
    ]  # fmt: skip
    plots.learning_curves(rows, tmp_path / "curves.png")
    loss, accuracy = figures[0].axes  # loss first; a constant learning rate has no panel
    assert [axes.get_title(loc="left") for axes in (loss, accuracy)] == ["loss", "accuracy"]
    training, validation, best = loss.get_lines()
    np.testing.assert_array_equal(training.get_xydata(), [[1, 2.0], [2, 1.0], [3, 0.5]])
    np.testing.assert_array_equal(validation.get_ydata(), [3.0, np.nan, 2.5])
    assert best.get_label() == "best 2.5, epoch 3"
    assert accuracy.get_lines()[2].get_label() == "best 0.6, epoch 2"  # larger is better
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]  # no temporary file


def test_learning_curves_use_a_logarithm_only_over_wide_positive_ranges(tmp_path, figures):
    for last in (0.01, 0.5, -1.0):
        rows = [{"epoch": i, "loss": v} for i, v in enumerate([1.0, last])]
        plots.learning_curves(rows, tmp_path / "c.png")
    assert [f.axes[0].get_yscale() for f in figures] == ["log", "linear", "linear"]
    plots.learning_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_learning_curves_show_both_answers_of_a_discriminator_in_one_panel(tmp_path, figures):
    rows = [{"epoch": i, "generator_loss": 0.7, "loss": 1.4, "d_fake": 0.4, "d_real": 0.6}
            for i in (1, 2)]  # fmt: skip
    plots.learning_curves(rows, tmp_path / "c.png")
    titles = [axes.get_title(loc="left") for axes in figures[0].axes]
    assert titles == ["loss", "generator loss", "the discriminator's answer"]
    lines = {line.get_label(): line.get_ydata()[0] for line in figures[0].axes[2].get_lines()}
    assert lines == {"real": 0.6, "generated": 0.4}
    plots.learning_curves([{"epoch": 1, "d_fake": 0.4}], tmp_path / "c.png")  # one of them alone
    assert [axes.get_title(loc="left") for axes in figures[1].axes] == ["d fake"]


def test_confusion_matrix_counts_and_shares(tmp_path, figures):
    counts = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    plots.confusion_matrix(counts, ["a", "b $x$", "c"], tmp_path / "c.png")
    axes = figures[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "8", (1, 0): "2", (0, 1): "1", (1, 1): "3"}  # (predicted, true)
    shares = np.square(axes.images[0].get_array())
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0.25, 0.75, 0], [0, 0, 0]], atol=1e-7)
    assert axes.get_title(loc="left") == "11 of 14 right"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", r"b \$x\$", "c"]


def test_two_hundred_classes_stay_readable(tmp_path, figures):
    counts = np.diag(np.full(200, 9))
    counts[7, 3], counts[120, 5] = 6, 2
    plots.confusion_matrix(counts, [f"class {i}" for i in range(200)], tmp_path / "c.png")
    matrix, pairs = figures[0].axes[:2]
    assert not matrix.texts
    assert len(matrix.get_xticks()) < 20
    names = [t.get_text() for t in pairs.get_yticklabels()]
    assert names == ["class 7 → class 3", "class 120 → class 5"]
    assert [bar.get_width() for bar in pairs.patches] == [6, 2]
    assert max(Image.open(tmp_path / "c.png").size) < 2_500


@pytest.mark.parametrize("size", [1, 2, 30])
def test_any_number_of_classes_is_drawn(tmp_path, size):
    plots.confusion_matrix(np.eye(size, dtype=int), ["a long name"] * size, tmp_path / "c.png")
    assert np.asarray(Image.open(tmp_path / "c.png")).std() > 5  # not blank


def test_calibration_curve_bins(tmp_path, figures):
    confidence = np.array([0.55, 0.6, 0.95, 1.0, 1.0, 0.0])
    correct = np.array([1, 0, 1, 1, 1, 0])
    plots.calibration_curve(confidence, correct, tmp_path / "c.png", bins=10)
    np.testing.assert_array_equal(plots.bin_of(confidence, 10), [5, 5, 9, 9, 9, 0])
    top, bottom = figures[0].axes
    points = top.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points, [[0, 0], [0.575, 0.5], [0.95 / 3 + 2 / 3, 1]])
    assert [bar.get_height() for bar in bottom.patches] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    # (0 + |1.15 - 1| + |2.95 - 3|) / 6
    assert top.get_title(loc="left") == "expected calibration error 0.033"


def test_intervals_of_shares_are_wilsons():
    low, high = plots.wilson(np.array([0.0, 0.5]), np.array([10, 10]))
    np.testing.assert_allclose(low, [0.0, 0.2366], atol=1e-4)
    np.testing.assert_allclose(high, [0.2775, 0.7634], atol=1e-4)


def test_worst_mistakes_shows_images_of_several_sizes(tmp_path, figures):
    images = [np.full((8, 8, 1), 3, np.uint8), np.zeros((20, 10, 3), np.uint8)]
    pictures.worst_mistakes(
        images, [("cat", 0.98, "dog"), ("x" * 40, 0.6, "y")], tmp_path / "w.png"
    )
    (axes,) = figures[0].axes
    first, second = axes.images
    assert first.get_array().shape == (8, 8)
    left, right, bottom, top = first.get_extent()
    assert right - left == pytest.approx(bottom - top)
    left, right, bottom, top = second.get_extent()  # twice as tall as wide, as it is
    assert 2 * (right - left) == pytest.approx(bottom - top)
    *_, truth, answer, _, cut = axes.texts
    assert (truth.get_text(), answer.get_text()) == ("dog", "cat (98%)")
    assert truth.get_position()[1] < first.get_extent()[3]
    assert answer.get_position()[1] > first.get_extent()[2]
    assert cut.get_text() == "x" * 14 + "… (60%)"
    pictures.worst_mistakes([], [], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_filters_share_one_scale_around_zero(tmp_path, figures):
    kernels = np.zeros((3, 2, 2, 1), np.float32)
    kernels[0, 0, 1], kernels[2, 1, 1] = -2.0, 0.5
    pictures.filters(kernels, tmp_path / "f.png", layer="conv", names=["a", "b", "c $x$"])
    (axes,) = figures[0].axes
    assert [image.get_clim() for image in axes.images] == [(-2, 2)] * 3
    np.testing.assert_array_equal(axes.images[2].get_array(), [[0, 0], [0, 0.5]])
    title, caption, *names = (text.get_text() for text in axes.texts)
    assert title == "weights of conv"
    assert caption == "3 of 2 x 2 x 1; blue is above 0, orange below, one scale up to ±2"
    assert names == ["a", "b", r"c \$x\$"]

    colours = np.zeros((1, 1, 2, 3), np.float32)
    colours[0, 0, 0] = [4.0, -2.0, 0.0]
    pictures.filters(colours, tmp_path / "f.png", layer="conv")
    shown = figures[1].axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, [[[1.0, 0.25, 0.5], [0.5, 0.5, 0.5]]])


def test_of_many_filters_the_largest_are_shown_in_their_order(tmp_path, figures):
    kernels = np.ones((100, 3, 3, 1), np.float32) * np.arange(1, 101)[:, None, None, None]
    kernels[[5, 50, 70, 90]] = 0.0
    pictures.filters(kernels, tmp_path / "f.png", layer="conv")
    (axes,) = figures[0].axes
    values = [image.get_array()[0, 0] for image in axes.images]
    assert values == [i + 1 for i in range(100) if i not in (5, 50, 70, 90)]
    assert "100 of 3 x 3 x 1, the 96 largest;" in axes.texts[1].get_text()
    assert max(Image.open(tmp_path / "f.png").size) < 1_300


def test_feature_maps_show_the_most_active_channels_of_all_examples(tmp_path, figures):
    maps = np.zeros((2, 3, 3, 20), np.float32)
    maps[0, ..., 7], maps[1, ..., 4], maps[1, 0, 0, 11] = 1.0, 3.0, 5.0
    signed = np.zeros((2, 1, 1, 2), np.float32)
    signed[1, ..., 1] = -4.0
    examples = [pictures.Example(np.zeros((6, 6, 3), np.uint8), "cat", "dog")] * 2
    pictures.feature_maps(examples, {"relu": maps, "linear": signed}, tmp_path / "m.png")
    (axes,) = figures[0].axes
    labels = [text.get_text() for text in axes.texts][2:]
    assert labels[:4] == ["relu: 20 maps of 3 x 3", "4", "7", "11"]
    assert labels[9:] == ["linear: 2 maps of 1 x 1", "1", "0"]
    tiles = [image for image in axes.images if image.get_array().ndim == 2]  # not the examples
    assert len(tiles) == 2 * 8 + 2 * 2
    assert [float(tile.get_array().max()) for tile in tiles[:3]] == [0, 1, 0]  # the first example
    assert [float(tile.get_array().max()) for tile in tiles[8:11]] == [3, 0, 5]
    assert {tile.get_clim() for tile in tiles[:16]} == {(0, 5)}
    assert {tile.get_clim() for tile in tiles[16:]} == {(-4, 4)}


def test_heat_lies_over_the_image_in_its_own_scale():
    image = np.zeros((2, 2, 1), np.uint8)
    image[1, 1] = 9
    shown = pictures.overlay(image, np.array([[0.0, 0.0], [0.0, 0.004]]))
    assert shown.shape == (160, 160, 3)
    inferno = mpl.colormaps["inferno"]
    np.testing.assert_allclose(shown[0, 0], 0.6 * np.array(inferno(0.0)[:3]), atol=1e-6)
    bright = 0.4 + 0.6 * np.array(inferno(1.0)[:3])
    np.testing.assert_allclose(shown[-1, -1], bright, atol=1e-6)
    middle = 0.6 * np.array(inferno(0.25)[:3])  # bilinear: half of each direction
    np.testing.assert_allclose(shown[79, 79], middle, atol=0.02)
    nothing = pictures.overlay(image, np.zeros((4, 4)))
    np.testing.assert_allclose(nothing[-1, -1], 0.4 + 0.6 * np.array(inferno(0.0)[:3]), atol=1e-6)


def test_grad_cam_stands_right_ones_above_wrong_ones(tmp_path, figures):
    image = np.full((8, 4, 3), 7, np.uint8)
    examples = [
        pictures.Example(image, "cat", "cat", 0.9, True),
        pictures.Example(image, "cat", "a very long dog indeed", 0.8, False),
        pictures.Example(image, "owl", "dog", 0.7, False),
    ]
    heats = np.ones((3, 5, 5), np.float32)
    pictures.grad_cam(examples, heats, tmp_path / "g.png", layer="relu5")
    (axes,) = figures[0].axes
    place = {text.get_text(): text.get_position() for text in axes.texts}
    assert "the 5 x 5 maps of relu5" in axes.texts[1].get_text()
    assert place["right"][1] < place["cat (90%)"][1] < place["wrong, the surest first"][1]
    assert place["a very long do… (80%)"][1] == place["dog (70%)"][1] > place["owl"][1]
    assert len(axes.images) == 6
    left, right, bottom, top = axes.images[0].get_extent()
    assert (bottom - top) / (right - left) == pytest.approx(2)


def test_residuals(tmp_path, figures):
    plots.residuals(np.array([1.0, 4.0]), np.array([2.0, 2.0]), tmp_path / "r.png", name="price")
    first, second, third = figures[0].axes
    np.testing.assert_array_equal(first.collections[0].get_offsets(), [[2, 1], [2, 4]])
    np.testing.assert_array_equal(second.collections[0].get_offsets(), [[2, -1], [2, 2]])
    assert sum(bar.get_height() for bar in third.patches) == 2
    assert first.get_xlabel() == "predicted price"


def test_no_figure_is_kept_by_pyplot(tmp_path):
    from matplotlib._pylab_helpers import Gcf

    plots.residuals(np.zeros(3), np.ones(3), tmp_path / "r.png")
    assert Gcf.get_all_fig_managers() == []
