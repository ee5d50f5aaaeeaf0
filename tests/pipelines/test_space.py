"""Search spaces: what is read, which points there are, what is refused."""

import numpy as np
import pytest

from epochal.pipelines.recipe import RecipeError, override
from epochal.pipelines.recipes import get_recipe, search_space
from epochal.pipelines.space import Space

CONDITIONAL = (
    "algorithm.optimizer.learning_rate=log(1e-3,1) if algorithm.optimizer.name in sgd,momentum",
    "algorithm.optimizer.learning_rate=log(1e-5,1e-2) if algorithm.optimizer.name in adam",
    "algorithm.optimizer.name=choice(adam,sgd,momentum)",
)


def test_ranges_are_read_and_decoded_on_their_scales():
    space = Space.parse(
        ["a=int(2,10,step=4)", "b-c=float(-1,1)", "d=log(1e-4,1)", "e=choice(mlp(hidden=[8, 8]),x)"]
    )
    assert [dimension.key for dimension in space.dimensions] == ["a", "b_c", "d", "e"]
    assert space.decode([0, 0, 0, 0]) == {"a": 2, "b_c": -1, "d": 1e-4, "e": "mlp(hidden=[8, 8])"}
    assert space.decode([0.5, 0.5, 0.5, 0.5]) == {"a": 6, "b_c": 0, "d": 0.01, "e": "x"}
    assert space.decode([1, 1, 1, 1]) == {"a": 10, "b_c": 1, "d": 1, "e": "x"}
    assert space.decode([0.3, 1 / 3, 0.123456, 0])["d"] == 0.0003118  # four digits
    for shares in np.random.default_rng(0).random((50, 4)):
        point = space.decode(shares)
        assert space.decode(space.shares(point)) == point
        assert space.holds(point)
    assert not space.holds({"a": 3, "b_c": 0, "d": 0.01, "e": "x"})
    assert not space.holds({"a": 2, "b_c": 0, "d": 0.01})


def test_choices_have_no_order():
    space = Space.parse(["kind=choice(a,b,c)", "n=int(1,3)"])
    x = np.array([space.encode({"kind": kind, "n": 1}) for kind in "abc"])
    gaps = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert np.ptp(gaps[~np.eye(3, dtype=bool)]) == 0
    far, near = (space.encode({"kind": "a", "n": n})[-1] - x[0, -1] for n in (3, 2))
    assert far == pytest.approx(2 * near)


def test_a_condition_switches_a_key():
    space = Space.parse(CONDITIONAL)
    assert space.dimensions[0].key == "algorithm.optimizer.name"  # before what depends on it
    sgd, adam = space.decode([0.5, 1, 0.5]), space.decode([0, 0.5, 1])
    rate = "algorithm.optimizer.learning_rate"
    assert (sgd["algorithm.optimizer.name"], sgd[rate]) == ("sgd", 1)
    assert (adam["algorithm.optimizer.name"], adam[rate]) == ("adam", 0.01)
    changed = override(get_recipe("mlp-digits"), sgd)
    assert changed.algorithm.optimizer.options == {"learning_rate": 1.0}
    names = {point["algorithm.optimizer.name"]: point[rate] for point in space.corners()}
    assert set(names) == {"adam", "sgd", "momentum"}
    assert {point[rate] for point in space.corners()} >= {1e-3, 1, 1e-5, 1e-2}


def test_the_points_of_a_discrete_space_are_counted_with_their_conditions():
    space = Space.parse(["a=choice(x,y)", "b=int(1,4) if a in x"])
    assert space.size() == 4 + 1
    assert len(list(space.points(3))) == 3 + 1
    assert Space.parse(["a=choice(x,y)", "b=float(0,1)"]).size() is None
    assert len(list(Space.parse(["a=choice(x,y)", "b=float(0,1)"]).points(5))) == 2 * 5


def test_the_recipe_as_it_stands_is_a_point():
    recipe = get_recipe("mlp-digits")
    start = Space.parse(search_space("mlp-digits")).start(recipe)
    assert override(recipe, start) == recipe
    assert Space.parse(["algorithm.optimizer.learning_rate=log(0.1,1)"]).start(recipe) is None
    assert (
        Space.parse(["model.dropout=float(0,0.5)", "loss=choice(focal,mse)"]).start(recipe) is None
    )


@pytest.mark.parametrize(
    "name", ["mlp-digits", "mlp-fashion-mnist", "mlp-breast-cancer", "resnet20-digits"]
)
def test_declared_spaces_fit_their_recipes(name):
    from epochal.pipelines.choices import check_recipe

    recipe, space = get_recipe(name), Space.parse(search_space(name))
    for point in space.corners():
        check_recipe(override(recipe, point))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "nothing to search"),
        (["a"], "write KEY=FORM"),
        (["a=3"], "write KEY=FORM"),
        (["a=normal(0,1)"], "the forms are"),
        (["a=float(1,2,3)"], "the forms are"),
        (["a=float(2,1)"], "lower bound must lie below"),
        (["a=int(3,3)"], "single value is no search"),
        (["a=int(1,2.5)"], "whole numbers"),
        (["a=float(x,2)"], "bounds of float are numbers"),
        (["a=float(0,1e999)"], "lower bound must lie below"),
        (["a=log(0,1)"], "starts above 0"),
        (["a=int(1,4,step=9)"], "between 1 and 3"),
        (["a=choice(x)"], "two values or more"),
        (["a=choice(x,x)"], "each of them once"),
        (["a=int(1,2)", "a=int(3,4)"], "names a twice"),
        (["a=int(1,2) if b in x"], "no choice of the space"),
        (["b=choice(x,y)", "a=int(1,2) if b in z"], "one of x, y"),
        (["b=choice(x,y)", "a=int(1,2) if b"], "Cannot read the condition"),
        (["a=choice(x,y) if b in u", "b=choice(u,v) if a in x"], "leads back to itself"),
    ],
)
def test_what_makes_no_space_is_said(entries, words):
    with pytest.raises(RecipeError, match=words):
        Space.parse(entries)


def test_a_recipe_without_a_space_says_how_to_give_one():
    with pytest.raises(RecipeError, match="declares no search space.*--space"):
        search_space("linear-diabetes")
