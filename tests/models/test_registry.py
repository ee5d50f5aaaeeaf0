"""The plain tables against the code they name."""

import importlib
import inspect
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from epochal.models import create_model, list_models, model_card, registry


def trainable(model) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def test_importing_and_listing_load_no_tensorflow():
    code = (
        "import sys, json, epochal.models as m; names = m.list_models(); dir(m);"
        "print(json.dumps([names, sorted({'tensorflow', 'keras'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, loaded = json.loads(done.stdout)
    assert "resnet20" in names
    assert loaded == []


def test_submodules_load_on_attribute_access():
    code = "import epochal.models as m; print(m.layers.FusedBatchNormalization.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "FusedBatchNormalization"


def test_another_import_name_says_how_to_install(tmp_path):
    package = importlib.import_module("epochal.models")
    source = package.__file__
    code = (
        "import importlib.util as u;"
        f"s = u.spec_from_file_location('models', {source!r}); s.loader.exec_module("
        "u.module_from_spec(s))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install" in done.stderr


def counted(name) -> int:
    """What the module's ``count`` says; other tests hold it against small built models."""
    build, entry = registry.get("model", name), registry.MODELS[name]
    count = importlib.import_module(f"epochal.models.{entry.module}").count
    options = {**getattr(build, "keywords", {}), **entry.example}
    takes = inspect.signature(count).parameters
    return count(**{key: value for key, value in options.items() if key in takes})


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_model_has_the_parameters_its_row_states(name):
    entry = registry.MODELS[name]
    options = dict(entry.example)
    if entry.parameters > 80_000_000:  # too large to build here
        assert counted(name) == entry.parameters
        return
    if "capacity" in options:
        options["capacity"] = 100  # weights that are not trained don't count
    model = create_model(name, **options)
    assert isinstance(model, keras.Model)
    assert trainable(model) == entry.parameters
    if not {"input_shape", "num_classes"} <= set(options):
        return
    shape = (2, *options["input_shape"])
    assert model.compute_output_shape(shape) == (2, options["num_classes"])


@pytest.mark.parametrize("kind", ["loss", "optimizer", "schedule"])
def test_every_row_names_something_that_exists(kind):
    table = {
        "loss": registry.LOSSES,
        "optimizer": registry.OPTIMIZERS,
        "schedule": registry.SCHEDULES,
    }[kind]
    for name, (_, symbol, line) in table.items():
        assert registry.get(kind, name).__name__ == symbol
        assert name == name.lower()
        assert "_" not in name
        assert line
    symbols = [symbol for _, symbol, _ in table.values()]
    assert len(set(symbols)) == len(symbols)


def test_patterns():
    assert list_models("resnet?0") == ["resnet50", "resnet20"]
    assert list_models("plain*") == [f"plain{depth}" for depth in (18, 34, 20, 32, 44, 56, 110)]
    assert list_models("*20") == ["resnet20", "plain20"]
    assert list_models("nothing*") == []


def test_unknown_names_and_options_get_the_nearest():
    with pytest.raises(ValueError, match="'resnet20'"):
        create_model("resnet-20")
    with pytest.raises(ValueError, match="no option 'widht'.*'width'"):
        create_model("resnet20", widht=8)
    with pytest.raises(ValueError, match="needs input_shape, num_classes; for example"):
        create_model("mlp")
    with pytest.raises(ValueError, match="'adam'"):
        registry.get("optimizer", "adm")
    with pytest.raises(ValueError, match="no kind 'activation'"):
        registry.get("activation", "relu")


def test_a_card_states_origin_size_options_and_deviations():
    card = model_card("resnet20")
    for part in ("# resnet20", "2015", "269,722", "`shortcut` = `'A'`", "Deviations"):
        assert part in card
    assert "(2015), section 4.2\n" in card  # the year once
    assert "`version` = `'v1'`" in model_card("resnet50")
    assert "`depth`" not in card  # fixed by the name
