"""The yearly sunspots: what statsmodels has, as a series with a year's step."""

from importlib import metadata

import numpy as np
import pytest

from epochal.pipelines import forecasts
from epochal.pipelines.data import SourceError, load, sunspots
from epochal.pipelines.recipe import Data
from epochal.pipelines.recipes import get_recipe


@pytest.fixture
def a_file(tmp_path, monkeypatch):
    """Its form with made-up numbers: the tests' environment need not have statsmodels."""
    path = tmp_path / "sunspots.csv"
    lines = (f"{1700 + i},{i / 2:g}\n" for i in range(309))
    path.write_text('"YEAR","SUNACTIVITY"\n' + "".join(lines))
    monkeypatch.setattr(sunspots, "_locate", lambda: (path, "0.0"))


def test_years_become_windows_of_a_series(a_file):
    data = load(get_recipe("lstm-sunspots").data)
    assert (data.kind, data.task, data.target_names) == ("series", "forecasting", ("sunspots",))
    assert (data.times[0], data.times[-1]) == (
        np.datetime64("1700-01-01"),
        np.datetime64("2008-01-01"),
    )
    # 62 rows test and 25 of the others validate; a window needs 11 rows of its split.
    assert data.sizes == {"train": 222 - 44 + 1, "validation": 15, "test": 52}
    first = data.raw("test", [0])["history"][0, :, 0]
    np.testing.assert_array_equal(first, np.arange(247 - 33, 247) / 2)
    np.testing.assert_array_equal(data.targets("test")[0, :, 0], np.arange(247, 258) / 2)
    assert list(forecasts.naive(data, "test")) == ["last_season"]
    assert data.seasonal_error(11) == pytest.approx([5.5])


def test_a_missing_library_and_a_wrong_target_are_said(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sunspots.metadata, "distribution", missing)
    with pytest.raises(SourceError, match=r"pip install 'epochal\[series\]'"):
        load(Data(source="builtin:sunspots", ops="standardize|window(33, 11)"))
    with pytest.raises(SourceError, match="has the column 'sunspots' alone"):
        load(Data(source="builtin:sunspots", target="year"))


def test_the_figures_are_those_of_the_library():
    pytest.importorskip("statsmodels")
    data = load(get_recipe("lstm-sunspots").data)
    values = data._readers["train"].truth[:, 0]
    assert len(values) == 309
    assert values[:4].tolist() == [5.0, 11.0, 16.0, 23.0]
    assert values.max() == pytest.approx(190.2)
    assert data.times[values.argmax()] == np.datetime64("1957-01-01")
