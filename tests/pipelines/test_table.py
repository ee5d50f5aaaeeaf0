import gzip
import hashlib
import json
import logging
import os

import numpy as np
import pytest

from epochal.pipelines.data import catalog, load, table
from epochal.pipelines.data.source import SourceError
from epochal.pipelines.recipe import Data, RecipeError, override
from epochal.pipelines.recipes import get_recipe

needs_data = pytest.mark.skipif(
    not os.environ.get(catalog.VARIABLE), reason=f"{catalog.VARIABLE} is not set"
)


@pytest.fixture
def write(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"csv:{path}"

    return write


def open_text(write, text, name="table.csv", **data):
    return table.open_table(Data(source=write(text, name), **data))


def test_types_missing_values_and_target(write):
    text = (
        "age,city,zip,member,born,price\n"
        "30,Seoul,00713,true,2001-05-01,1.5\n"
        "NA, Busan ,10001,FALSE,,2.5\n"
        "-1e1,,00901,,1999-12-31,-4\n"
        "?,NA,00713,True,1999-12-31,0.25\n"
    )
    source = open_text(write, text)
    columns = source.splits["train"].columns
    assert list(source.splits) == ["train"]
    assert (source.kind, source.task, source.classes) == ("columns", "regression", ())
    assert source.target_name == "price"
    np.testing.assert_array_equal(columns["age"], np.float32([30, np.nan, -10, np.nan]))
    assert columns["age"].dtype == np.float32
    # NA may be a real category of text; only "" is missing there
    assert columns["city"].tolist() == ["Seoul", "Busan", "", "NA"]
    assert columns["zip"].tolist() == ["00713", "10001", "00901", "00713"]
    np.testing.assert_array_equal(columns["member"], np.float32([1, 0, np.nan, 1]))
    assert columns["born"].tolist()[:2] == ["2001-05-01", ""]
    assert list(columns) == ["age", "city", "zip", "member", "born"]
    target = source.splits["train"].target
    assert target.dtype == np.float32
    assert target.tolist() == [1.5, 2.5, -4, 0.25]


def test_about_explains_columns_and_is_json(write):
    text = "a,c,y\n1,red,0.5\n,red,1.5\n4,blue,2.5\n"
    source = open_text(write, text)
    about = json.loads(json.dumps(source.about, allow_nan=False))
    assert about["columns"]["a"] == {
        "type": "number",
        "missing": 1,
        "min": 1.0,
        "max": 4.0,
        "mean": 2.5,
    }
    assert about["columns"]["c"] == {
        "type": "text",
        "missing": 0,
        "categories": 2,
        "commonest": {"red": 2, "blue": 1},
    }
    assert about["columns"]["y"]["mean"] == 1.5
    assert about["rows"] == 3
    assert about["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("packed", [False, True])
def test_delimiters_bom_crlf_gzip_and_quotes(write, delimiter, packed):
    lines = ["name|note|y", '"Kim, ""K""; a\tb"|"two\r\nlines"|1.5', "Lee|plain|2", "", "Park||3"]
    text = "\ufeff" + "\r\n".join(line.replace("|", delimiter) for line in lines) + "\r\n"
    raw = text.encode()
    source = open_text(
        write, gzip.compress(raw) if packed else raw, "t.csv.gz" if packed else "t.csv"
    )
    columns = source.splits["train"].columns
    assert columns["name"].tolist() == ['Kim, "K"; a\tb', "Lee", "Park"]
    assert columns["note"].tolist() == ["two\r\nlines", "plain", ""]
    assert source.splits["train"].target.tolist() == [1.5, 2, 3]


def test_tsv_takes_the_tab_whatever_else_the_lines_hold(write):
    source = open_text(write, "x,1;2\ty,1;2\n1\t0.5\n2\t0.75\n3\t9\n", "t.tsv")
    assert source.target_name == "y,1;2"
    assert source.splits["train"].columns["x,1;2"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "task", "classes", "target"),
    [
        (["b", "a", "b"], "classification", ("a", "b"), [1, 0, 1]),
        (["10", "9", "10"], "classification", ("9", "10"), [1, 0, 1]),  # by value, not as text
        (["2.0", "-1", "2"], "classification", ("-1", "2"), [1, 0, 1]),
        (["True", "false", "true"], "classification", ("false", "true"), [1, 0, 1]),
        (["1", "2", "2.5"], "regression", (), [1, 2, 2.5]),
        (["830", "790", "1010", "790"], "regression", (), [830, 790, 1010, 790]),  # rents
        (["3", "1", "2"] * 3, "classification", ("1", "2", "3"), [2, 0, 1] * 3),
    ],
)
def test_task_is_inferred_from_the_target(write, values, task, classes, target):
    text = "x,y\n" + "".join(f"{i * i},{v}\n" for i, v in enumerate(values))
    source = open_text(write, text)
    assert (source.task, source.classes) == (task, classes)
    assert source.splits["train"].target.tolist() == target
    assert source.splits["train"].target.dtype == (np.int64 if classes else np.float32)


def test_more_than_twenty_integers_are_regression(write):
    def text(n):
        return "x,y\n" + "".join(f"0.{i},{i % n}\n" for i in range(60))

    assert open_text(write, text(20)).task == "classification"
    assert open_text(write, text(21)).task == "regression"
    asked = open_text(write, text(21), task="classification")
    assert asked.classes == tuple(map(str, range(21)))


def test_task_can_be_asked_for(write):
    text = "x,y,z\n1,1,a\n4,2,b\n2,3,a\n"
    asked = open_text(write, text, target="y", task="regression")
    assert asked.task == "regression"
    assert asked.splits["train"].target.tolist() == [1, 2, 3]
    assert list(asked.splits["train"].columns) == ["x", "z"]
    with pytest.raises(SourceError, match=r"regression, but the target 'z' holds text such as 'a'"):
        open_text(write, text, target="z", task="regression")
    with pytest.raises(SourceError, match=r"classification, but the target 'y'.* as 0\.5"):
        open_text(write, "x,y\n1,1\n2,0.5\n", task="classification")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"t\.csv is empty"),
        ("\n\n", r"t\.csv is empty"),
        ("a,b\n", r"header and no rows"),
        ("a\n1\n2\n", r"one column only \('a'\).*comma, tab, semicolon"),
        ("a,b,a\n1,2,3\n", r"more than one column is called 'a'"),
        ("a,,c\n1,2,3\n", r"column 2 of 3 has no name"),
        ("1.5,2\n3,4\n", r"no header.*1\.5, 2"),
        ("a,b\n1,2\n3\n4,5\n", r"line 3: expected 2 fields as in the header, found 1"),
        ("a,b\n1,2\n\n3,4,5\n", r"line 4: expected 2 fields .*found 3"),
        ('a,b\n"x\ny",2\n3,4,5\n', r"line 4: expected 2 fields .*found 3"),
        ('a,b\n1,"2\n3,4\n5,6\n', r"begins near line 2 is never closed"),
        ("a,b\n1,2\n3,\xff\n".encode("latin-1"), r"line 3: byte 0xff is not UTF-8.*iconv"),
        ("a,b\n1,2\n".encode("utf-16"), r"is UTF-16"),
        ("a,y\n1,0.5\n2,\n3,nan\n4,2\n", r"'y' is missing or not finite in 2 of 4 rows \(row 2, 3"),
        ("a,y\n1,0.5\n2,inf\n3,1\n", r"'y' is missing or not finite in 1 of 3 rows \(row 2;"),
        ("a,y\n1,u\n2,\n3,v\n", r"'y' is missing or not finite in 1 of 3 rows \(row 2;"),
        ("a,y\n1,7\n2,7\n", r"'y' is 7 in every row"),
        ("a,y\n1,\n2,\n", r"'y' has no value in any row"),
        ("a,y\n,1\n,2\n", r"beside the target 'y' no column has values"),
        ("a,y\n1,1\n-inf,2\n3,3\n", r"Column 'a' is infinite .* 1 of 3 rows \(row 2;"),
        ("a,y\n1,1\n1e39,2\n3,3\n", r"Column 'a' is infinite or beyond float32"),
    ],
)
def test_bad_tables_are_named(write, text, message):
    with pytest.raises(SourceError, match=message) as error:
        open_text(write, text, "t.csv")
    assert "\n" not in str(error.value)


def test_free_text_is_no_target(write):
    text = "x,y\n" + "".join(f"{i * i},words {i}\n" for i in range(30))
    with pytest.raises(SourceError, match=r"'y' has 30 different values in 30 rows"):
        open_text(write, text)


def test_missing_target_column_suggests_the_nearest(write):
    with pytest.raises(SourceError, match=r"no column 'pric'.*'price'.*columns are size, price"):
        open_text(write, "size,price\n1,2\n3,4\n", target="pric")


def test_missing_or_broken_files(write, tmp_path):
    write("a,b\n1,2\n", "houses.csv")
    with pytest.raises(SourceError, match=r"no file .*house\.csv.*'houses\.csv'"):
        table.open_table(Data(source=f"csv:{tmp_path}/house.csv"))
    with pytest.raises(SourceError, match=r"no table: expected .*\.tsv\.gz"):
        table.open_table(Data(source=f"csv:{tmp_path}/houses.xlsx"))
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    with pytest.raises(SourceError, match="not a whole gzip file"):
        open_text(write, whole[:-20], "cut.csv.gz")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        table.open_table(Data(source=f"csv:{tmp_path}/folder.csv"))


def test_columns_that_cannot_help_are_reported(write, caplog):
    text = "id,n,empty,typo,stamp,y\n" + "".join(
        f"k{i},{i + 5},,{'x' if i == 4 else i % 3},{1_700_000_000 + i * i},{i % 2}\n"
        for i in range(12)
    )
    with caplog.at_level(logging.WARNING):
        source = open_text(write, text)
    columns = source.splits["train"].columns
    assert list(columns) == ["id", "n", "typo", "stamp"]  # kept, but for the empty one
    notes = " ".join(source.about["notes"])
    assert "'id' is text that differs in every row" in notes
    assert "drop('id')" in notes
    assert "'n' numbers the rows one by one" in notes
    assert "'empty' has no value at all" in notes
    assert "'typo' is read as text because of 1 of 12 values, such as 'x' in row 5" in notes
    # the squares of 0..11 lie within 128 of 1.7e9's neighbours in float32: two values remain
    assert "'stamp': its 12 different values become 2 in float32" in notes
    assert "drop('id')" in caplog.text


def test_rows_for_prediction(write):
    path = write('city,extra,y,age\nSeoul,1,2,\n"",2,3,4\n', "new.csv").removeprefix("csv:")
    rows = table.read_rows(path, {"age": "number", "city": "text", "y": "text"})
    assert list(rows) == ["age", "city", "y"]
    np.testing.assert_array_equal(rows["age"], np.float32([np.nan, 4]))
    assert rows["city"].tolist() == ["Seoul", ""]
    assert rows["y"].tolist() == ["2", "3"]  # text in training stays text
    with pytest.raises(SourceError, match=r"no column 'ages'. Did you mean 'age'"):
        table.read_rows(path, {"ages": "number"})
    path = write("age,b\n1,2\nold,3\n", "bad.csv").removeprefix("csv:")
    with pytest.raises(SourceError, match=r"'age' takes numbers, found 'old' in row 2"):
        table.read_rows(path, {"age": "number"})
    codes = write("age,b\n007,2\n", "codes.csv").removeprefix("csv:")
    assert table.read_rows(codes, {"age": "number"})["age"].tolist() == [7]


def test_catalogue_names_and_images_are_told_apart():
    with pytest.raises(SourceError, match="holds images, not a table"):
        table.open_table(Data(source="csv:@cifar10"))


@needs_data
def test_california_housing():
    source = table.open_table(Data(source="csv:@california-housing"))
    rows = source.splits["train"]
    assert (source.task, source.target_name, len(rows)) == ("regression", "MedHouseVal", 20_640)
    assert list(rows.columns) == list(catalog.get("california-housing").columns)[:-1]
    np.testing.assert_allclose(rows.columns["AveOccup"].max(), 1243.3333, rtol=1e-6)
    np.testing.assert_allclose(rows.target.mean(dtype=np.float64), 2.0685582, rtol=1e-6)
    about = source.about
    assert about["columns"]["MedInc"]["unit"] == "10,000 dollars a year"
    assert about["licence"].startswith("none stated")
    assert about["notes"] == []


@needs_data
def test_catalogue_decides_the_target():
    source = table.open_table(Data(source="csv:@clothing-reviews"))
    assert (source.target_name, source.classes, len(source.splits["train"])) == (
        "label",
        ("0", "1"),
        22_641,
    )
    np.testing.assert_allclose(source.splits["train"].target.mean(), 0.819, atol=5e-4)


def test_rows_of_a_group_stay_together_and_the_group_is_no_input(write):
    patients = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 6))
    lines = [f"p{patient},{i},{'ill' if patient % 3 else 'well'}"
             for i, patient in enumerate(patients)]  # fmt: skip
    source = write("\n".join(["patient,dose,state", *lines]))
    plain = load(Data(source=source, ops="drop('patient')|standardize"))
    mixed = [set(patients[plain.rows(split)]) for split in plain.sizes]
    assert mixed[0] & mixed[1]
    assert mixed[0] & mixed[2]
    dataset = load(Data(source=source, ops="standardize", group="patient"))
    apart = [set(patients[dataset.rows(split)]) for split in ("train", "validation", "test")]
    assert sum(map(len, apart)) == len(set.union(*apart)) == 20
    assert list(dataset.raw("test", np.arange(1))) == ["dose"]
    tested = []
    for fold in range(4):
        one = load(Data(source=source, ops="standardize", group="patient", folds=4, fold=fold))
        seen, asked = (set(patients[one.rows(split)]) for split in ("train", "test"))
        assert not seen & asked
        tested += sorted(asked)
    assert sorted(tested) == list(range(20))


def test_what_can_be_no_group_is_named(write):
    text = "who,dose,state\na,1,x\n,2,y\nb,3,x\n"
    for group, message in (
        ("state", "is the target"),
        ("whom", "Did you mean 'who'"),
        ("who", "missing in 1 of 3 rows .row 2"),
    ):
        with pytest.raises(SourceError, match=message):
            open_text(write, text, group=group)
    with pytest.raises(RecipeError, match="csv: table that is split at random"):
        override(get_recipe("mlp-digits"), {"data.group": "who"})


def test_a_series_is_split_by_time_and_any_table_can_be(tmp_path):
    file = tmp_path / "growth.csv"
    file.write_text("month,sales\n" + "".join(f"{i},{i / 2}\n" for i in range(40)))
    data = Data(source=f"csv:{file}", ops="standardize", split="time", validation_fraction=0.25)
    dataset = load(data)
    assert dataset.sizes == {"train": 24, "validation": 8, "test": 8}
    assert dataset.targets("test").tolist() == [i / 2 for i in range(32, 40)]
    assert dataset.targets("validation").tolist() == [i / 2 for i in range(24, 32)]
    # what is learnt about the columns is learnt from the past
    assert dataset.preprocess.states[0]["mean"] == {"month": 11.5}
    assert dataset.describe()["split"] == "time"
    random = load(data.model_copy(update={"split": None}))
    assert random.describe()["split"] == "random"
    assert random.targets("test").tolist() != dataset.targets("test").tolist()


@needs_data
def test_a_series_of_the_catalogue_tests_on_the_end_of_the_year():
    data = Data(source="csv:@electricity-demand", ops="drop('timestamp')|standardize")
    dataset = load(data)
    whole = table.open_table(data).splits["train"]
    assert np.array_equal(dataset.targets("test"), whole.target[-3504:])
    assert dataset.describe()["split"] == "time"
    assert not any("random split" in note for note in dataset.about["notes"])
