import gzip
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from epochal.pipelines.data import catalog
from epochal.pipelines.data.source import SourceError

needs_data = pytest.mark.skipif(
    not os.environ.get(catalog.VARIABLE), reason=f"{catalog.VARIABLE} is not set"
)

# Three block groups as StatLib writes them.
STATLIB = """\
-122.230000,37.880000,41.000000,880.000000,129.000000,322.000000,126.000000,8.325200,452600.000000
-120.5,36.0,10.0,100.0,20.0,60.0,20.0,2.5,500001.0

-121.240000,39.370000,16.000000,2785.000000,616.000000,1387.000000,530.000000,2.388600,89400.000000
"""


def test_every_entry_is_complete():
    names = {
        "clothing-reviews",
        "nsmc",
        "chatbot-ko",
        "help-en-ko",
        "help-en-fr",
        "california-housing",
        "electricity-demand",
        "cifar10",
    }
    assert set(catalog.SETS) == names
    for name, entry in catalog.SETS.items():
        assert len(entry.sha256) == 64, name
        assert entry.licence, name
        assert entry.origin, name
        assert entry.kind in ("table", "text", "pairs", "series", "images"), name
        assert entry.target in entry.columns if entry.columns else entry.target is None, name
    assert len({entry.sha256 for entry in catalog.SETS.values()}) == len(names)
    assert catalog.rows()["california-housing"]["rows"] == 20_640


def test_loads_no_tensorflow():
    program = (
        "import sys, epochal.pipelines.data.catalog as c, epochal.pipelines.data.table; c.rows();"
        "print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(SourceError, match=r"no data set 'california_housin'.*'california-housing'"):
        catalog.get("@california_housin")


def test_unset_variable_and_missing_file_say_where_the_set_comes_from(tmp_path):
    with pytest.raises(SourceError) as unset:
        catalog.locate("nsmc", env={})
    with pytest.raises(SourceError) as missing:
        catalog.locate("nsmc", env={catalog.VARIABLE: str(tmp_path)})
    for error in (unset, missing):
        for word in ("e9t/nsmc", "CC0", "nsmc_ko_reviews.tsv.gz", catalog.VARIABLE):
            assert word in str(error.value)
    assert "not set" in str(unset.value)
    assert str(tmp_path) in str(missing.value)


def test_another_file_of_the_same_name_is_refused(tmp_path):
    content = b"label\ttext\n1\tgood\n"
    (tmp_path / "nsmc_ko_reviews.tsv.gz").write_bytes(gzip.compress(content))
    with pytest.raises(SourceError, match=r"SHA-256 is [0-9a-f]{64}, expected f7e702fa"):
        catalog.locate("nsmc", env={catalog.VARIABLE: str(tmp_path)})


def test_verified_once_and_again_after_a_change(tmp_path, monkeypatch):
    file = tmp_path / "small.csv"
    file.write_text("a,b\n1,2\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = catalog.Entry("table", file.name, digest, 1, "t", "o", "l", {})
    monkeypatch.setitem(catalog.SETS, "small", entry)
    env = {catalog.VARIABLE: str(tmp_path)}
    assert catalog.locate("@small", env) == file
    with monkeypatch.context() as patch:  # no second digest of an unchanged file
        patch.setattr(catalog.hashlib, "file_digest", None)
        assert catalog.locate("small", env) == file
    file.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(SourceError, match="not the file"):
        catalog.locate("small", env)


def test_california_housing_from_statlib(tmp_path):
    (tmp_path / "cal_housing.data").write_text(STATLIB)
    out = tmp_path / "california_housing.csv.gz"
    catalog.convert_california_housing(tmp_path / "cal_housing.data", out)
    lines = gzip.decompress(out.read_bytes()).decode().splitlines()
    assert lines[0] == (
        "MedInc,HouseAge,AveRooms,AveBedrms,Population,AveOccup,Latitude,Longitude,MedHouseVal"
    )
    # 100 rooms, 20 bedrooms, 60 people and 20 households: 5, 1 and 3 a household
    assert lines[2] == "2.5,10.0,5.0,1.0,60.0,3.0,36.0,-120.5,5.00001"
    assert len(lines) == 4
    first = [float(field) for field in lines[1].split(",")]
    np.testing.assert_allclose(first[2], 880 / 126, rtol=1e-15)
    np.testing.assert_allclose(first[-1], 4.526, rtol=1e-15)


@pytest.mark.parametrize("line", ["1,2,3", "1,2,3,4,5,6,0,8,9", "1,2,3,4,x,6,7,8,9"])
def test_statlib_line_that_cannot_be_read_is_named(tmp_path, line):
    (tmp_path / "cal_housing.data").write_text(STATLIB + line + "\n")
    with pytest.raises(SourceError, match=r"cal_housing\.data, line 5: expected nine numbers"):
        catalog.convert_california_housing(tmp_path / "cal_housing.data", tmp_path / "out.gz")


@needs_data
@pytest.mark.parametrize("name", catalog.SETS)
def test_files_at_hand_are_the_known_ones(name):
    path = catalog.locate(name)
    entry = catalog.get(name)
    assert path.name == entry.file
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            header = next(lines).rstrip("\n").split("\t" if ".tsv" in path.name else ",")
            assert header == list(entry.columns)
            assert sum(1 for _ in lines) == entry.rows


@needs_data
def test_the_converter_reproduces_the_file_from_the_totals(tmp_path):
    """Totals recovered from the averages, written as StatLib does, give an accepted file."""
    original = np.loadtxt(catalog.locate("california-housing"), delimiter=",", skiprows=1)
    income, age, rooms, bedrooms, people, size, latitude, longitude, value = original.T
    homes = np.round(people / size)
    totals = [np.round(rooms * homes), np.round(bedrooms * homes), people, homes]
    statlib = np.stack([longitude, latitude, age, *totals, income, np.round(value * 1e5)], axis=1)
    np.savetxt(tmp_path / "cal_housing.data", statlib, fmt="%.6f", delimiter=",")
    out = tmp_path / "california_housing.csv.gz"
    catalog.convert_california_housing(tmp_path / "cal_housing.data", out)
    assert catalog.locate("california-housing", {catalog.VARIABLE: str(tmp_path)}) == out
    again = np.loadtxt(out, delimiter=",", skiprows=1)
    np.testing.assert_array_equal(again.astype(np.float32), original.astype(np.float32))
