"""Recipes: validation, JSON, and the one function that changes them."""

import pytest

from epochal.pipelines import choices
from epochal.pipelines.recipe import (
    Algorithm,
    Choice,
    Data,
    EarlyStopping,
    Recipe,
    RecipeError,
    keys,
    override,
)
from epochal.pipelines.recipe_base import parse_choice
from epochal.pipelines.recipes import describe, get_recipe, list_recipes


def small() -> Recipe:
    return Recipe(
        name="small",
        data=Data(source="builtin:digits", ops="standardize|flatten"),
        model="mlp(hidden=(8, 4), activation='tanh')",
        loss="cross-entropy(label_smoothing=0.1)",
        algorithm=Algorithm(epochs=3, optimizer=Choice(name="adam", learning_rate=0.01)),
    )


def test_json_round_trip_is_equal_for_every_recipe():
    for recipe in [small(), *map(get_recipe, list_recipes())]:
        assert Recipe.from_json(recipe.to_json()) == recipe


def test_text_choice_becomes_name_and_options():
    assert small().model.name == "mlp"
    assert small().model.options == {"hidden": [8, 4], "activation": "tanh"}
    assert parse_choice("sgd") == {"name": "sgd"}


@pytest.mark.parametrize(
    "text", ["sgd(0.1)", "sgd(lr=", "sgd(lr=open('x'))", "(lr=1)", "sgd(**{})"]
)
def test_choice_text_takes_only_named_literals(text):
    with pytest.raises(RecipeError, match=r"Write .*name"):
        parse_choice(text)


def test_new_name_drops_old_options_in_any_order_of_keys():
    for changes in (
        {"algorithm.optimizer.name": "sgd", "algorithm.optimizer.learning_rate": "0.5"},
        {"algorithm.optimizer.learning_rate": "0.5", "algorithm.optimizer.name": "sgd"},
        {"algorithm.optimizer": "sgd(learning_rate=0.5)"},
    ):
        assert override(small(), changes).algorithm.optimizer.options == {"learning_rate": 0.5}
    assert override(small(), {"algorithm.optimizer.name": "sgd"}).algorithm.optimizer.options == {}


def test_same_name_keeps_options():
    changed = override(small(), {"algorithm.optimizer.name": "adam"})
    assert changed.algorithm.optimizer.options == {"learning_rate": 0.01}


def test_epochs_and_steps_replace_each_other():
    changed = override(small(), {"algorithm.steps": "100"})
    assert (changed.algorithm.steps, changed.algorithm.epochs) == (100, None)
    assert override(changed, {"algorithm.epochs": 2}).algorithm.steps is None
    with pytest.raises(RecipeError, match="exactly one"):
        override(small(), {"algorithm.steps": 3, "algorithm.epochs": 3})


def test_optional_group_switches_on_and_off():
    changed = override(small(), {"algorithm.early-stopping.patience": "3"})
    assert changed.algorithm.early_stopping == EarlyStopping(patience=3)
    assert override(changed, {"algorithm.early_stopping": "none"}).algorithm.early_stopping is None


def test_text_values_are_read_by_type():
    changed = override(
        small(),
        {
            "data.batch-size": "64",
            "data.shuffle": "false",
            "algorithm.weight_decay_exclude": "bias, gamma",
            "model.hidden": "(16,)",
            "model.activation": "relu",
            "algorithm.clip_norm": "1e-1",
        },
    )
    assert changed.data.batch_size == 64
    assert changed.data.shuffle is False
    assert changed.algorithm.weight_decay_exclude == ("bias", "gamma")
    assert changed.model.options == {"hidden": [16], "activation": "relu"}
    assert changed.algorithm.clip_norm == 0.1


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("algorithm.epocs", "algorithm.epochs"),
        ("epochs", "algorithm.epochs"),
        ("data.batchsize", "data.batch_size"),
        ("algorithm.optimiser.learning_rate", "algorithm.optimizer"),
    ],
)
def test_unknown_key_names_the_nearest(key, nearest):
    with pytest.raises(RecipeError, match=f"Did you mean '{nearest}"):
        override(small(), {key: "3"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.batch_size", "0"),
        ("data.validation_fraction", "1.0"),
        ("algorithm.weight_decay", "-1"),
        ("algorithm.precision", "float8"),
        ("algorithm.ema", "1"),
        ("seed", "-1"),
        ("data.task", "clustering"),
    ],
)
def test_value_out_of_range_names_key_and_value(key, value):
    with pytest.raises(RecipeError) as error:
        override(small(), {key: value})
    assert f"`{key}`" in str(error.value)
    assert value in str(error.value)


def test_unknown_field_in_json_is_refused():
    text = small().to_json().replace('"batch_size"', '"batchsize"')
    with pytest.raises(RecipeError, match=r"no key 'data\.batchsize'.*data\.batch_size"):
        Recipe.from_json(text)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [('"name": "small"', '"name": "../x"', "`name`"), ('"name": "mlp"', '"nme": "mlp"', "model")],
)
def test_bad_json_names_the_field(old, new, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.from_json(small().to_json().replace(old, new))
    broken = {**small().model_dump(), "loss": None}
    with pytest.raises(RecipeError, match="`loss`.*expected a name"):
        Recipe(**broken)


def test_every_key_has_type_and_docstring():
    table = keys()
    assert table["algorithm.early_stopping.patience"][0] == "int"
    assert table["algorithm.precision"][0] == "float32|mixed_bfloat16|mixed_float16"
    assert all(kind and meaning for kind, meaning in table.values())


def test_options_are_held_against_signatures():
    with pytest.raises(RecipeError, match="no option 'hiden'. Did you mean 'hidden'"):
        choices.check_recipe(override(small(), {"model.hiden": 3}))
    with pytest.raises(RecipeError, match="no option 'weight'.*It takes"):
        choices.check_recipe(override(small(), {"algorithm.optimizer.weight": 3}))
    with pytest.raises(RecipeError, match="cross-entropy"):
        choices.check_recipe(override(small(), {"loss": "crossentropy"}))
    with pytest.raises(RecipeError, match=r"data\.ops.*standardize"):
        choices.check_recipe(override(small(), {"data.ops": "standardise"}))


def test_every_recipe_passes_its_checks_and_has_a_header():
    for name in list_recipes():
        recipe = get_recipe(name)
        assert recipe.name == name
        choices.check_recipe(recipe)
        header = describe(name)
        assert "CPU cores" in header
        assert f"epochal train {name}" in header


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'mlp-digits'"):
        get_recipe("mlp-digts")
    with pytest.raises(RecipeError, match="no recipe file"):
        get_recipe("nowhere.json")
