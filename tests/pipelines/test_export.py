"""SavedModels answer as the Keras model does, in a process that has TensorFlow alone."""

import base64
import json

import numpy as np
import pytest
import tensorflow as tf

from epochal.pipelines import check_export
from epochal.pipelines import export as verb
from epochal.pipelines.export import FORBIDDEN, operations
from epochal.pipelines.run import RunError
from epochal.pipelines.served import examples, input_names
from epochal.pipelines.verify import ask_alone, verify

NAMES = ("digits", "housing", "diabetes", "arrays", "neighbors")


@pytest.fixture(scope="session")
def made(request):
    return {name: request.getfixturevalue(name) for name in NAMES}


@pytest.fixture(scope="session")
def exported(made, tmp_path_factory):
    """name -> directory; not verified: the tests do that, all in one process."""
    base = tmp_path_factory.mktemp("exports")
    return {
        name: verb(m.run, to=base / name, verify=False, data=m.arrays) for name, m in made.items()
    }


@pytest.fixture(scope="session")
def asked(made, exported):
    """name -> (request rows, x, answers of the process with TensorFlow alone)."""
    rows = {name: examples(m.run, m.arrays, count=3) for name, m in made.items()}
    requests = [
        {f"serving_default/{k}": v for k, v in raw.items()} | {"tensor/x": x}
        for raw, x in rows.values()
    ]
    answers = ask_alone(list(exported.values()), requests)
    return {name: (*rows[name], a) for name, a in zip(rows, answers, strict=True)}


def _softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_images_answer_as_keras_on_the_evaluation_pipeline(made, asked):
    run = made["digits"].run
    rows, x, answer = asked["digits"]
    assert rows["image_bytes"][0].startswith(b"\x89PNG")
    right = _softmax(run.model.predict(x, verbose=0))
    for signature in ("serving_default", "tensor"):
        np.testing.assert_allclose(answer[f"{signature}/probabilities"], right, atol=1e-6)
        assert answer[f"{signature}/class_id"].tolist() == right.argmax(1).tolist()
        assert answer[f"{signature}/class_id"].dtype == np.int64
        labels = [str(i).encode() for i in right.argmax(1)]
        assert answer[f"{signature}/label"].tolist() == labels


def test_tables_answer_in_the_targets_units(made, asked):
    m = made["housing"]
    rows, x, answer = asked["housing"]
    assert set(rows) == {"median_income", "town", "a-b", "class_"}
    mean, deviation = m.dataset.target_scale
    assert deviation > 5  # else the test could not tell
    outputs = m.run.model.predict(x, verbose=0)
    np.testing.assert_allclose(
        answer["serving_default/prediction"], outputs[:, 0] * deviation + mean, rtol=1e-5
    )
    stddev = (np.log1p(np.exp(outputs[:, 1] + np.log(np.e - 1))) + 1e-3) * deviation
    np.testing.assert_allclose(answer["serving_default/stddev"], stddev, rtol=1e-4)


def test_quantiles_and_single_logits(made, asked):
    m = made["diabetes"]
    _, x, answer = asked["diabetes"]
    mean, deviation = m.dataset.target_scale
    right = np.sort(m.run.model.predict(x, verbose=0), axis=1) * deviation + mean
    np.testing.assert_allclose(answer["serving_default/quantiles"], right, rtol=1e-5)
    np.testing.assert_allclose(answer["tensor/prediction"], right[:, 1], rtol=1e-5)
    _, x, answer = asked["arrays"]
    positive = 1 / (1 + np.exp(-made["arrays"].run.model.predict(x, verbose=0)[:, 0]))
    found = answer["serving_default/probabilities"]
    np.testing.assert_allclose(found, np.stack([1 - positive, positive], 1), atol=1e-6)


def test_neighbors_are_named_with_their_distances(made, asked):
    m = made["neighbors"]
    _, x, answer = asked["neighbors"]
    stored = np.concatenate([x for x, _ in m.dataset.split("train").as_numpy_iterator()])
    distances = np.sqrt(np.square(x[:, None].astype(float) - stored).sum(-1))
    right = np.sort(distances, axis=1)[:, :3]
    np.testing.assert_allclose(answer["serving_default/distances"], right, atol=1e-5)
    ids = answer["serving_default/neighbor_ids"]
    assert ids.dtype == np.int64
    np.testing.assert_allclose(np.take_along_axis(distances, ids, 1), right, atol=1e-5)
    labels = m.dataset.targets("train")[ids]
    votes = np.stack([(labels == c).mean(1) for c in range(3)], 1)
    np.testing.assert_allclose(answer["serving_default/probabilities"], votes, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_rows_answer_does_not_depend_on_its_batch(asked, name):
    answer = asked[name][2]
    together = [key for key in answer if not key.endswith("#alone")]
    assert len(together) >= 4
    for key in together:
        if answer[key].dtype.kind == "f":
            np.testing.assert_allclose(answer[f"{key}#alone"], answer[key], rtol=1e-6, atol=1e-6)
        else:
            assert answer[f"{key}#alone"].tolist() == answer[key].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_core_operations_alone(exported, name):
    found = operations(exported[name])
    assert "MatMul" in found or name == "neighbors"
    assert not found & FORBIDDEN
    assert not [op for op in found if "Xla" in op or "PyFunc" in op]


def test_forbidden_operations_are_found_inside_functions(tmp_path):
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def inner(x):
        return tf.numpy_function(np.sin, [x], tf.float32)

    module.outer = tf.function(lambda x: inner(x) + 1, input_signature=inner.input_signature)
    tf.saved_model.save(module, str(tmp_path))
    assert operations(tmp_path) & FORBIDDEN


def test_functions_that_only_xla_may_run_are_found(tmp_path):
    module = tf.Module()
    inner = tf.function(lambda x: tf.sin(x) + 1, jit_compile=True)
    signature = [tf.TensorSpec([2], tf.float32)]
    module.outer = tf.function(lambda x: inner(x) * 2, input_signature=signature)
    tf.saved_model.save(module, str(tmp_path))
    assert operations(tmp_path) & FORBIDDEN == {"_XlaMustCompile"}


def test_directory(made, exported):
    directory = exported["digits"]
    assert directory.name == "1"
    labels = (directory / "assets" / "labels.txt").read_text().splitlines()
    assert labels == [str(i) for i in range(10)]
    assert not (exported["housing"] / "assets" / "labels.txt").exists()
    again = verb(made["arrays"].run.path, to=exported["arrays"].parent, verify=False,
                 data=made["arrays"].arrays)  # fmt: skip
    assert again.name == "2"
    assert sorted(p.name for p in again.parent.iterdir()) == ["1", "2"]  # nothing half-built


def test_signature_json_describes_and_its_request_works(made, exported):
    about = json.loads((exported["housing"] / "signature.json").read_text())
    inputs = about["signatures"]["serving_default"]["inputs"]
    assert inputs["median_income"] == {
        "dtype": "float32", "shape": [None], "column": "median income",
    }  # fmt: skip
    assert inputs["town"]["dtype"] == "string"
    assert about["signatures"]["tensor"]["inputs"]["x"]["shape"] == [None, 6]
    loaded = tf.saved_model.load(str(exported["housing"]))
    row = about["example"]["request"]["instances"][0]
    function = loaded.signatures["serving_default"]
    found = function(**{
        k: tf.constant([v], getattr(tf, inputs[k]["dtype"])) for k, v in row.items()
    })  # fmt: skip
    right = about["example"]["response"]["predictions"][0]
    assert found["prediction"].numpy()[0] == pytest.approx(right["prediction"], rel=1e-5)
    about = json.loads((exported["digits"] / "signature.json").read_text())
    image = about["example"]["request"]["instances"][0]["image_bytes"]["b64"]
    raw = made["digits"].dataset.raw("validation", [0])["image"][0]
    np.testing.assert_array_equal(tf.io.decode_png(base64.b64decode(image)), raw)
    assert about["labels"] == [str(i) for i in range(10)]


def test_names_of_inputs():
    names = {
        "MedInc": "MedInc",
        "median income": "median_income",
        "a-b": "a-b",
        "größe": "gro_e",
        "class": "class_",
        "self": "self_",
        "收入": "column_7",
        "x": "x",
        "X": "X_2",  # TensorFlow's names of operations do not differ in case
        "a b": "a_b_3",
        "a_b": "a_b_2",
        "1st": "1st",
        "_x": "x_3",
    }
    assert input_names(names) == names


def test_verify_passes_the_right_answers_and_names_a_wrong_output(made, exported, asked,
                                                                 monkeypatch):  # fmt: skip
    m = made["housing"]
    rows, x, answer = asked["housing"]
    monkeypatch.setitem(verify.__globals__, "examples", lambda run, data=None: (rows, x))
    monkeypatch.setitem(verify.__globals__, "ask_alone", lambda *_: [answer])
    verify(exported["housing"], m.run)
    wrong = dict(answer)
    wrong["serving_default/stddev"] = answer["serving_default/stddev"] + 0.01
    monkeypatch.setitem(verify.__globals__, "ask_alone", lambda *_: [wrong])
    with pytest.raises(RunError, match="'stddev' of signature 'serving_default' differs .* 0.01"):
        verify(exported["housing"], m.run)


def test_an_export_that_fails_leaves_nothing(made, tmp_path, monkeypatch):
    def broken(*_):
        raise RunError("it answers otherwise")

    monkeypatch.setitem(verify.__globals__, "ask_alone", broken)
    with pytest.raises(RunError, match="otherwise"):
        verb(made["arrays"].run, to=tmp_path, data=made["arrays"].arrays)
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_gone_are_replaced_by_made_up_rows(made, tmp_path):
    rows, x = examples(made["arrays"].run)  # no arrays given
    assert x is None
    assert rows["features"].shape == (4, 3)


def test_the_other_process_reports_its_failure(tmp_path):
    with pytest.raises(RunError, match="TensorFlow alone.*exit code 1"):
        ask_alone([tmp_path], [{"tensor/x": np.zeros(1)}])


def test_unknown_formats_are_refused(made):
    with pytest.raises(ValueError, match="no export format 'onnx'.*saved-model"):
        verb(made["arrays"].run, format="onnx")


def test_requests_survive_packing():
    arrays = {"a": np.array([b"x\0\0", b"", "é".encode()], object), "b": np.eye(2)}
    found = check_export.unpack(check_export.pack(arrays))
    assert found["a"].tolist() == [b"x\0\0", b"", "é".encode()]
    np.testing.assert_array_equal(found["b"], np.eye(2))
    assert check_export.main(["one"]) == 2
