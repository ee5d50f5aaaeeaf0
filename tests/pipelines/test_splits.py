"""Splits: disjoint, complete, stratified, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epochal.pipelines.data.source import SourceError
from epochal.pipelines.data.splits import carve, hash_order

CLASSES = ("cat", "owl")


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    seed=st.integers(0, 2**63),
    validation=st.sampled_from([0.0, 0.01, 0.1, 0.3]),
    test=st.sampled_from([0.0, 0.01, 0.2, 0.5]),
    stratified=st.booleans(),
)
def test_never_overlap_and_lose_nothing(counts, seed, validation, test, stratified):
    labels = np.random.default_rng(len(counts)).permutation(np.repeat(range(len(counts)), counts))
    n = len(labels)
    parts = carve(
        n,
        seed,
        validation_fraction=validation,
        test_fraction=test,
        labels=labels if stratified else None,
    )
    together = np.concatenate(list(parts.values()))
    assert np.array_equal(np.sort(together), np.arange(n))
    for name, fraction, base in (
        ("test", test, n),
        ("validation", validation, n - len(parts.get("test", ()))),
    ):
        assert (name in parts) == (fraction > 0)
        if name not in parts:
            continue
        wanted = max(1, round(fraction * base))
        if not stratified:
            assert len(parts[name]) == min(wanted, base - 1 - (name == "test" and validation > 0))
            continue
        assert len(parts[name]) >= len(counts)
        assert abs(len(parts[name]) - wanted) <= len(counts)
        assert set(labels[parts[name]]) == set(range(len(counts)))
    if stratified:
        assert set(labels[parts["train"]]) == set(range(len(counts)))


def test_shares_are_proportional_to_the_example():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    parts = carve(1000, 3, validation_fraction=0.1, test_fraction=0.2, labels=labels)
    assert np.bincount(labels[parts["test"]]).tolist() == [140, 40, 20]
    assert np.bincount(labels[parts["validation"]]).tolist() == [56, 16, 8]
    assert np.bincount(labels[parts["train"]]).tolist() == [504, 144, 72]
    few = carve(1000, 3, train_examples=50, labels=labels)
    assert np.bincount(labels[few["train"]]).tolist() == [35, 10, 5]


def test_a_fraction_of_the_labels_leaves_validation_and_test_whole():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    settings_ = {"validation_fraction": 0.1, "test_fraction": 0.2, "labels": labels}
    whole = carve(1000, 3, **settings_)
    tenth = carve(1000, 3, train_fraction=0.1, **settings_)
    assert np.bincount(labels[tenth["train"]]).tolist() == [51, 14, 7]
    assert set(tenth["train"]) < set(whole["train"])
    for name in ("validation", "test"):
        assert tenth[name].tolist() == whole[name].tolist()
    assert carve(1000, 3, train_fraction=1.0, **settings_)["train"].tolist() == (
        whole["train"].tolist()
    )
    same = carve(1000, 3, train_fraction=0.1, **settings_)["train"]
    assert same.tolist() == tenth["train"].tolist()
    assert carve(1000, 4, train_fraction=0.1, **settings_)["train"].tolist() != same.tolist()
    with pytest.raises(
        SourceError, match=r"train_fraction is 0.002, which are 1 examples.*3 class"
    ):
        carve(1000, 3, train_fraction=0.002, **settings_)


def test_validation_and_subset_leave_the_test_alone():
    labels = np.arange(300) % 3
    whole = carve(300, 5, validation_fraction=0.2, test_fraction=0.2, labels=labels)
    other = carve(300, 5, test_fraction=0.2, train_examples=30, labels=labels)
    assert np.array_equal(whole["test"], other["test"])
    third = carve(300, 5, test_fraction=0.2, train_examples=30, train_seed=6, labels=labels)
    assert np.array_equal(third["test"], other["test"])
    assert np.bincount(labels[third["train"]]).tolist() == [10, 10, 10]
    assert not np.array_equal(third["train"], other["train"])
    same = carve(300, 5, test_fraction=0.2, train_examples=30, train_seed=5, labels=labels)
    assert np.array_equal(same["train"], other["train"])


def test_a_seed_gives_the_same_split_for_ever_and_another_seed_another():
    assert hash_order(10, 0, 1).tolist() == [5, 7, 0, 6, 1, 3, 4, 2, 8, 9]
    splits = [carve(200, seed, test_fraction=0.5)["test"] for seed in range(20)]
    common = [len(np.intersect1d(splits[0], other)) for other in splits[1:]]
    assert 40 < np.mean(common) < 60  # independent halves share a quarter of 200
    # validation is not the neighbourhood of test: the purposes have orders of their own
    order = [np.argsort(hash_order(2000, 0, purpose)) for purpose in (1, 2, 3)]
    assert abs(np.corrcoef(order[0], order[1])[0, 1]) < 0.08


def test_a_class_with_one_example_is_named():
    labels = np.array([0] * 30 + [1])
    with pytest.raises(SourceError, match=r"at least 3 examples of each class.*owl \(1\)"):
        carve(31, 0, validation_fraction=0.1, test_fraction=0.2, labels=labels, classes=CLASSES)
    assert len(carve(31, 0, labels=labels)["train"]) == 31  # nothing to split


def test_too_few_examples():
    with pytest.raises(SourceError, match="2 examples cannot be split"):
        carve(2, 0, validation_fraction=0.1, test_fraction=0.2)
    with pytest.raises(SourceError, match="only 8 examples"):
        carve(10, 0, test_fraction=0.2, train_examples=9)
    with pytest.raises(SourceError, match="5 classes"):
        carve(50, 0, train_examples=4, labels=np.arange(50) % 5)


def test_by_time_the_future_is_never_trained_on():
    parts = carve(100, 3, validation_fraction=0.25, test_fraction=0.2, by_time=True)
    assert parts["train"].tolist() == list(range(60))
    assert parts["validation"].tolist() == list(range(60, 80))
    assert parts["test"].tolist() == list(range(80, 100))
    assert carve(100, 7, test_fraction=0.2, train_examples=5, by_time=True)["train"].tolist() == [
        75, 76, 77, 78, 79,
    ]  # fmt: skip
