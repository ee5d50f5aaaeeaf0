import json
import os

import numpy as np
import pytest
import tensorflow as tf

from epochal.pipelines.data import catalog, load, ops
from epochal.pipelines.data.ops import OpsError, tabular
from epochal.pipelines.data.preprocess import Preprocess, numpy_columns, restore
from epochal.pipelines.recipe import Data

NAN = np.nan
TRAIN = {
    "age": np.float32([10, 20, NAN, 60]),
    "city": np.array(["Seoul", "", "Busan", "Seoul"], object),
    "size": np.float32([1, 2, 3, 4]),
}
SERVED = {
    "age": np.float32([NAN, 40, -5]),
    "city": np.array(["Busan", "Jeju", " "], object),
    "size": np.float32([NAN, 2.5, 100]),
}


def run(chain, train, served=None, kind="columns"):
    """Fits the chain on `train` and applies it to `served`; states go through JSON."""
    train = {name: np.asarray(column) for name, column in train.items()}
    inputs = {n: "string" if c.dtype.kind == "O" else "float32" for n, c in train.items()}
    if kind == "features":
        inputs = {"features": train["features"].shape[1]}
    preprocess = Preprocess(kind, chain, inputs)

    def apply(columns, stop):
        tensors = {name: tf.constant(column) for name, column in columns.items()}
        return numpy_columns(preprocess.run(tensors, stop=stop))

    preprocess.fit(lambda count: iter([apply(train, count)]))
    again = restore(json.loads(json.dumps(preprocess.to_dict(), allow_nan=False)))
    assert again.states == preprocess.states
    preprocess = again
    return apply(train if served is None else served, None)


def assert_columns(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        if found[name].dtype == object:
            assert found[name].tolist() == values, name
        else:
            assert found[name].dtype == np.float32, name
            np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_table_of_ops_is_in_step_with_the_code():
    for kind in ("columns", "features"):
        listed = {name for name, (kinds, _) in ops._TABULAR.items() if kind in kinds}
        ops.find("impute", kind)  # loads the module
        assert listed == {name for k, name in ops._REGISTRY if k == kind}
    for name, (kinds, line) in ops._TABULAR.items():
        assert ops.find(name, "columns").kinds == kinds
        assert getattr(tabular, name).__doc__.splitlines()[0].rstrip(".").lower() == line.lower()


def test_impute_takes_the_training_median_and_a_category():
    assert_columns(
        run("impute", TRAIN, SERVED),
        # medians: of 10, 20, 60; of 1, 2, 3, 4
        {"age": [20, 40, -5], "city": ["Busan", "Jeju", "missing"], "size": [2.5, 2.5, 100]},
    )


def test_impute_indicators_are_for_what_was_missing_in_training():
    assert_columns(
        run("impute(indicator=True)", TRAIN, SERVED),
        {
            "age": [20, 40, -5],
            "age_missing": [1, 0, 0],
            "city": ["Busan", "Jeju", "missing"],
            "city_missing": [0, 0, 1],
            "size": [2.5, 2.5, 100],
        },
    )


def test_impute_refuses_what_it_cannot_learn():
    with pytest.raises(OpsError, match=r"'a' has no value in the training split"):
        run("impute", {"a": np.float32([NAN, NAN])})
    with pytest.raises(OpsError, match=r"feature 1 has no value"):
        run("impute", {"features": np.float32([[1, NAN], [2, NAN]])}, kind="features")
    clash = {"a": np.float32([1, NAN]), "a_missing": np.float32([0, 1])}
    with pytest.raises(OpsError, match="'a_missing', which the table already has"):
        run("impute(indicator=True)", clash)


def test_standardize_columns():
    train = {
        "a": np.float32([1, 3, NAN]),  # mean 2, standard deviation 1
        "constant": np.float32([0.1, 0.1, 0.1]),
        "c": np.array(["x", "y", "x"], object),
    }
    served = {
        "a": np.float32([5, NAN]),
        "constant": np.float32([0.1, 7]),
        "c": np.array(["x", ""], object),
    }
    assert_columns(
        run("standardize", train, served), {"a": [3, NAN], "constant": [0, 0], "c": ["x", ""]}
    )


def test_standardize_works_far_from_zero():
    """Sums of squares in float32 would lose these deviations."""
    values = np.float32([100_000, 100_001, 100_002, 100_003])
    found = run("standardize", {"year": values})["year"]
    np.testing.assert_allclose(found, (np.arange(4) - 1.5) / np.sqrt(1.25), rtol=1e-6)


def test_standardize_features_by_position():
    train = {"features": np.float32([[0, 5, 1], [2, 5, 4]])}
    served = {"features": np.float32([[4, 5, 2.5]])}
    found = run("standardize", train, served, kind="features")
    np.testing.assert_allclose(found["features"], [[3, 0, 0]], atol=1e-7)


def test_impute_features_with_indicators():
    train = {"features": np.float32([[1, 5, NAN], [2, 7, 4], [9, 9, 6]])}
    served = {"features": np.float32([[NAN, NAN, NAN]])}
    plain = run("impute", train, served, kind="features")["features"]
    np.testing.assert_array_equal(plain, [[2, 7, 5]])
    flagged = run("impute(indicator=True)", train, served, kind="features")["features"]
    np.testing.assert_array_equal(flagged, [[2, 7, 5, 1]])


CITIES = {"city": np.array(["b", "a", "b", "c", "a", " b"], object), "n": np.float32(range(6))}
NEW = {"city": np.array(["c", "z", "b ", ""], object), "n": np.float32(range(4))}


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ("one_hot", [[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]),
        ("one_hot(other=True)", [[0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]),
        ("one_hot(min_count=2)", [[0, 0], [0, 0], [0, 1], [0, 0]]),
        ("one_hot(max_categories=1)", [[0], [0], [1], [0]]),
        ("one_hot(max_categories=1, other=True)", [[0, 1], [0, 1], [1, 0], [0, 1]]),
        ("one_hot('city')", [[0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]),
    ],
)
def test_one_hot(chain, expected):
    assert_columns(run(chain, CITIES, NEW), {"city": expected, "n": [0, 1, 2, 3]})


def test_one_hot_of_integer_codes():
    train = {"zone": np.float32([7, -1, 7, 3]), "x": np.float32([1, 2, 3, 4])}
    served = {"zone": np.float32([3, 5, NAN]), "x": np.float32([0, 0, 0])}
    found = run("one_hot(columns=('zone',))", train, served)
    assert_columns(found, {"zone": [[0, 1, 0], [0, 0, 0], [0, 0, 0]], "x": [0, 0, 0]})


def test_one_hot_refuses():
    with pytest.raises(OpsError, match=r"'city' has missing values.*Put `impute` before"):
        run("one_hot", {"city": np.array(["a", " "], object)})
    with pytest.raises(OpsError, match=r"1001 categories in 1001 training rows.*drop\('id'\)"):
        run("one_hot", {"id": np.array([f"k{i}" for i in range(1001)], object)})
    with pytest.raises(OpsError, match=r"no column 'cty'. Did you mean 'city'"):
        run("one_hot(columns=('cty',))", CITIES)
    with pytest.raises(OpsError, match=r"min_count=4 .*the commonest has 3"):
        run("one_hot(min_count=4)", CITIES)
    with pytest.raises(OpsError, match=r"'one_hot', min_count=0: .*greater than or equal to 1"):
        run("one_hot(min_count=0)", CITIES)
    with pytest.raises(OpsError, match=r"'one_hot' acts on columns, but the source gives features"):
        run("one_hot", {"features": np.float32([[1]])}, kind="features")


def test_one_hot_after_impute_has_a_slot_for_missing():
    found = run("impute|one_hot", TRAIN, SERVED)
    # Busan, Seoul, missing
    np.testing.assert_array_equal(found["city"], [[1, 0, 0], [0, 0, 0], [0, 0, 1]])


def test_log1p():
    train = {"a": np.float32([0, np.e - 1]), "lat": np.float32([-30, 20])}
    served = {"a": np.float32([np.e**2 - 1, NAN, -3]), "lat": np.float32([1, 2, 3])}
    assert_columns(
        run("log1p(columns=('a',))", train, served), {"a": [2, NAN, 0], "lat": [1, 2, 3]}
    )
    with pytest.raises(OpsError, match=r"column 'lat' goes down to -30"):
        run("log1p", train)
    with pytest.raises(OpsError, match="'city' holds text"):
        run("log1p('city')", CITIES)


def test_log1p_and_clip_of_features_by_position():
    train = {"features": np.float32([[0, -5], [1, 5], [2, 15]])}
    served = {"features": np.float32([[np.e - 1, 50]])}
    logged = run("log1p((0,))", train, served, kind="features")["features"]
    np.testing.assert_allclose(logged, [[1, 50]], rtol=1e-6)
    clipped = run("clip(0.25)", train, served, kind="features")["features"]
    np.testing.assert_allclose(clipped, [[1.5, 10]], rtol=1e-6)
    with pytest.raises(OpsError, match=r"2 is no position.*from 0 to 1"):
        run("clip(0.1, columns=(2,))", train, kind="features")


def test_clip_to_training_quantiles():
    train = {"a": np.float32([*range(101), NAN]), "b": np.float32(range(102))}
    served = {"a": np.float32([-7, 3.5, 1e9, NAN]), "b": np.float32([-7, 3.5, 1e9, 0])}
    found = run("clip(0.05, columns=('a',))", train, served)
    assert_columns(found, {"a": [5, 5, 95, NAN], "b": [-7, 3.5, 1e9, 0]})
    with pytest.raises(OpsError, match="quantile=0.5"):
        run("clip(0.5)", train)


def test_clip_leaves_one_hot_columns_alone():
    city = {"city": np.array(["a"] * 99 + ["b"], object), "n": np.float32(range(100))}
    found = run("one_hot|clip(0.05)", city)
    assert found["city"][:, 1].sum() == 1  # its 95% quantile is 0
    assert found["n"].max() < 99


def test_drop():
    found = run("drop('age', 'city')", TRAIN)
    assert list(found) == ["size"]
    with pytest.raises(OpsError, match=r"no column 'sise'. Did you mean 'size'"):
        run("drop('sise')", TRAIN)
    with pytest.raises(OpsError, match="leave at least one"):
        run("drop('age', 'city', 'size')", TRAIN)


CHAIN = "impute(indicator=True)|clip(0.1)|log1p('size')|one_hot(other=True)|standardize"


def test_equal_eagerly_in_a_function_in_tf_data_and_for_single_rows():
    inputs = {"age": "float32", "city": "string", "size": "float32"}
    preprocess = Preprocess("columns", CHAIN, inputs)

    def prefix(count):
        columns = {name: tf.constant(column) for name, column in TRAIN.items()}
        return iter([numpy_columns(preprocess.run(columns, stop=count))])

    preprocess.fit(prefix)
    served = {name: tf.constant(column) for name, column in SERVED.items()}
    eager = preprocess(served).numpy()
    # age, age_missing, city (Busan, Seoul, missing, other), city_missing, size
    assert eager.shape == (3, 8)
    assert np.isfinite(eager).all()
    traced = tf.function(
        preprocess.serve, input_signature=[preprocess.raw_signature()], autograph=False
    )
    np.testing.assert_array_equal(traced(served), eager)
    data = tf.data.Dataset.from_tensor_slices(served).batch(2).map(preprocess)
    np.testing.assert_array_equal(np.concatenate(list(data.as_numpy_iterator())), eager)
    for row in range(3):
        alone = preprocess({name: column[row : row + 1] for name, column in served.items()})
        np.testing.assert_array_equal(alone[0], eager[row])


def test_exports_without_lookup_tables(tmp_path):
    train = {"age": np.float32([1, NAN, 4]), "city": np.array(["a", "b", ""], object)}
    preprocess = Preprocess("columns", "impute|one_hot", {"age": "float32", "city": "string"})

    def prefix(count):
        columns = {name: tf.constant(column) for name, column in train.items()}
        return iter([numpy_columns(preprocess.run(columns, stop=count))])

    preprocess.fit(prefix)
    module = tf.Module()  # tracks nothing
    module.serve = tf.function(
        lambda raw: {"x": preprocess.serve(raw)}, input_signature=[preprocess.raw_signature()]
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    answer = loaded.serve({"age": tf.constant([NAN]), "city": tf.constant(["b"])})
    np.testing.assert_array_equal(answer["x"], [[2.5, 0, 1, 0]])


@pytest.fixture
def houses(tmp_path):
    """Writes a table of 60 rows; `change` alters rows by their number."""

    def write(name="houses.csv", change=()):
        rng = np.random.default_rng(7)
        lines = ["size,area,city,price"]
        for row in range(60):
            size, area = rng.normal(80, 20, 2).round(2)
            city = ["Seoul", "Busan", ""][row % 3]
            if row in change:
                size, area, city = 1e6, "", f"new{row}"
            lines.append(f"{size},{area if row % 7 else ''},{city},{row * 1.5 + 0.25}")
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n")
        return Data(source=f"csv:{path}", ops="impute(indicator=True)|one_hot|standardize")

    return write


def test_statistics_come_from_the_training_split_only(houses):
    before = load(houses())
    prices = {name: before.targets(name) for name in ("train", "validation", "test")}
    held_out = np.concatenate([prices["validation"], prices["test"]])
    rows = {round((price - 0.25) / 1.5) for price in held_out.tolist()}
    assert len(rows) == 60 - len(prices["train"]) > 10
    after = load(houses("other.csv", change=rows))
    assert after.preprocess.to_dict() == before.preprocess.to_dict()
    assert (
        after.input_shape == before.input_shape == (7,)
    )  # size, area and city (of 3), each of the latter with an indicator
    one_more = load(houses("third.csv", change={round((prices["train"][0] - 0.25) / 1.5)}))
    assert one_more.preprocess.to_dict() != before.preprocess.to_dict()


def test_training_columns_end_up_standardised(houses):
    data = load(houses())
    x = np.concatenate([x for x, _ in data.split("train").as_numpy_iterator()])
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("one_hot|standardize", "impute"),
        ("impute|standardize", "one_hot"),
        ("drop('city')", "impute"),
    ],
)
def test_missing_values_and_text_never_reach_the_model(houses, chain, message):
    data = houses().model_copy(update={"ops": chain})
    with pytest.raises(OpsError, match=message):
        load(data)


@pytest.mark.skipif(not os.environ.get(catalog.VARIABLE), reason=f"{catalog.VARIABLE} is not set")
def test_california_housing():
    chain = "clip(0.01)|log1p(('Population', 'AveOccup'))|standardize"
    data = load(Data(source="csv:@california-housing", ops=chain, standardize_target=True))
    assert data.input_shape == (8,)
    assert sum(data.sizes.values()) == 20_640
    x = np.concatenate([x for x, _ in data.split("train").as_numpy_iterator()])
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-3)
    assert np.abs(x).max() < 8  # AveOccup goes up to 1243 people a household
