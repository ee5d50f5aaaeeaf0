"""Sources of text and pairs: what is read, what is refused, and splits that tear no group."""

import gzip

import numpy as np
import pytest

from epochal.pipelines.data import SourceError
from epochal.pipelines.data.generated import open_generated
from epochal.pipelines.data.source import open_source
from epochal.pipelines.data.splits import carve
from epochal.pipelines.data.text import pair_groups
from epochal.pipelines.recipe import Data


def opened(source: str, **options):
    return open_source(Data(source=source, **options))


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.tsv"
    rows = "".join(f"{'good' if i % 3 else 'bad'}\ttext number {i}\n" for i in range(9))
    path.write_text("label\ttext\n" + rows)
    return path


def test_a_table_of_text_and_labels(reviews):
    source = opened(f"text:{reviews}")
    rows = source.splits["train"]
    assert (source.kind, source.task, source.classes) == ("text", "classification", ("bad", "good"))
    assert rows.columns["text"][4] == "text number 4"
    assert rows.target.tolist() == [0, 1, 1] * 3
    assert source.target_name == "label"
    swapped = opened(f"text:{reviews}", text="label", target="text", task="language-model")
    assert swapped.task == "language-model"
    assert swapped.splits["train"].columns["text"][0] == "bad"


def test_plain_text_is_documents_in_order(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("\ufefffirst\nline two\r\n\n\n  \nsecond\n", encoding="utf-8")
    source = opened(f"text:{path}")
    assert source.task == "language-model"
    assert source.in_time
    assert list(source.splits["train"].columns["text"]) == ["first\nline two", "second"]
    packed = tmp_path / "story.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert list(opened(f"text:{packed}").splits["train"].columns["text"])[1] == "second"


def test_folders_of_text(tmp_path):
    for name, text in (("pos/a.txt", "fine"), ("pos/b.txt", "great"), ("neg/c.txt", "awful")):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    source = opened(f"text:{tmp_path}")
    assert source.classes == ("neg", "pos")
    assert list(source.splits["train"].columns["text"]) == ["awful", "fine", "great"]
    assert source.splits["train"].target.tolist() == [0, 1, 1]
    assert opened(f"text:{tmp_path}", task="language-model").task == "language-model"
    assert opened(f"text:{tmp_path / 'pos'}").task == "language-model"


def test_pairs_take_the_last_column_for_the_target(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('id,en,fr\n1,"Page 3, top",Page 3\n2,page 17 top!,Page 17\n3,Other,Autre\n')
    source = opened(f"pairs:{path}", text="en")
    rows = source.splits["train"]
    assert rows.columns["source"].tolist() == ["Page 3, top", "page 17 top!", "Other"]
    assert rows.columns["target"].tolist() == ["Page 3", "Page 17", "Autre"]
    first, second, third = rows.groups
    assert first == second != third


def test_texts_without_letters_are_groups_of_their_own():
    a, b, c = pair_groups(["12", "13", "a 1"])
    assert len({a, b, c}) == 3


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("text:nowhere.tsv", {}, "There is no nowhere.tsv"),
        ("text:{reviews}", {"target": "lable"}, "Did you mean 'label'"),
        ("text:{reviews}", {"text": "body"}, "no column 'body'"),
        ("pairs:{reviews}", {"target": "nothing"}, "no column 'nothing'"),
        ("text:{empty}", {}, "empty in 1 of 2 rows (row 2"),
        ("text:{latin}", {}, "line 2: byte 0xe9 is not UTF-8"),
        ("text:{blank}", {}, "nothing to learn"),
        ("builtin:reverse/0", {}, "1 to 1000"),
        ("builtin:dates/5", {}, "has no length"),
        ("builtin:revers", {}, "Did you mean 'reverse'"),
        ("text:@california-housing", {}, "holds table"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, reviews, source, options, words):
    (tmp_path / "empty.tsv").write_text("label\ttext\na\tfull\nb\t\n")
    (tmp_path / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    (tmp_path / "blank.txt").write_text(" \n\n")
    names = {name: tmp_path / f"{name}.txt" for name in ("latin", "blank")}
    source = source.format(reviews=reviews, empty=tmp_path / "empty.tsv", **names)
    with pytest.raises(SourceError) as error:
        opened(source, **options)
    assert words in str(error.value)


def test_generated_pairs_are_what_they_say_and_the_same_every_time():
    for name, change in (("copy", str), ("reverse", lambda w: w[::-1]), ("sort", sorted)):
        columns = open_generated(f"{name}/7").splits["train"].columns
        for source, target in zip(columns["source"][:50], columns["target"][:50], strict=True):
            assert target == "".join(change(source))
        lengths = {len(word) for word in columns["source"]}
        assert lengths == set(range(1, 8))
    once, twice = (open_generated("dates").about["fingerprint"] for _ in range(2))
    assert once == twice


def test_dates_are_days_that_occur_once():
    import datetime

    columns = open_generated("dates").splits["train"].columns
    days = set(columns["target"])
    assert len(days) == len(columns["target"]) == 20_000
    first = dict(zip(columns["source"], columns["target"], strict=True))
    for source, target in list(first.items())[:500]:
        day = datetime.date.fromisoformat(target)
        assert str(day.day) in source
        assert str(day.year) in source
        if "," in source and source[0] in "MTWFS" and "day" in source:
            assert source.startswith(("Mon", "Tues", "Wednes", "Thurs", "Fri", "Satur", "Sun"))
            assert source.split(",")[0] == f"{day:%A}"


def test_docstrings_are_prose_of_six_libraries():
    source = opened("builtin:docstrings")
    rows = source.splits["train"]
    assert source.classes == (
        "keras", "matplotlib", "numpy", "scikit-learn", "scipy", "tensorflow"
    )  # fmt: skip
    counts = np.bincount(rows.target)
    assert counts.min() > 300
    assert len(set(rows.columns["text"])) > 0.95 * len(rows)
    words = [len(text.split()) for text in rows.columns["text"]]
    assert min(words) >= 12
    assert max(words) < 120


def test_a_group_goes_into_one_split():
    draw = np.random.default_rng(0)
    groups = draw.integers(0, 120, 400)
    parts = carve(400, 3, validation_fraction=0.1, test_fraction=0.2, groups=groups)
    assert len(np.concatenate(list(parts.values()))) == 400
    owners = {name: set(groups[rows]) for name, rows in parts.items()}
    assert not owners["train"] & owners["test"]
    assert not owners["train"] & owners["validation"]
    assert not owners["validation"] & owners["test"]
    assert 80 <= len(parts["test"]) < 90
    again = carve(400, 3, validation_fraction=0.1, test_fraction=0.2, groups=groups)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    with pytest.raises(SourceError, match="near-duplicates"):
        carve(10, 0, test_fraction=0.5, groups=np.zeros(10, int))
