"""From the bytes of a CSV or TSV file to columns of text.

What is malformed (ragged rows, an open quote, another encoding) is named with its line. The fast
reader is pyarrow's; Python's own is asked only where a message needs a line number.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
import zlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from .source import SourceError, nearest

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon"}
_SNIFFED_RECORDS = 20
_BLOCK_BYTES = 1 << 24  # the longest record that can be read


def read_bytes(path: Path) -> tuple[bytes, bytes]:
    """(the file's bytes, the text's bytes: decompressed for .gz). Raises SourceError."""
    if not path.name.lower().endswith(ENDINGS):
        raise SourceError(f"{path} is no table: expected a file ending in {', '.join(ENDINGS)}.")
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        folder = path.parent
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise SourceError(
            f"There is no file {path}. {nearest(path.name, names)}Give the path of a CSV file "
            "(relative paths start at the working directory)."
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from None
    if path.suffix.lower() != ".gz":
        return stored, stored
    try:
        return stored, gzip.decompress(stored)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"{path} is not a whole gzip file ({error}). Was it cut short? Get it again."
        ) from None


def parse(raw: bytes, name: str) -> tuple[dict[str, pa.Array], str]:
    """Columns of text, trimmed of outer blanks, and the delimiter.

    Args:
        raw: UTF-8, with or without a byte order mark; a header, then at least one row. Quoted
            fields may hold delimiters and line ends; empty lines do not count.
        name: the file's name, for messages; ``.tsv`` decides for the tab, otherwise the delimiter
            (comma, tab or semicolon) is the one that cuts the first records evenly.

    Raises:
        SourceError: empty file, header only, one column, unnamed or doubled columns, a first row
            that is no header, ragged rows, an open quote, bytes that are not UTF-8.
    """
    _require_utf8(raw, name)
    delimiter = "\t" if re.search(r"\.tsv(\.gz)?$", name.lower()) else _sniff(raw)
    header = next(filter(None, _records(raw, delimiter)), [])
    header = [field.strip() for field in header]
    if not any(header):
        raise SourceError(f"{name} is empty. Expected a header line, then a line for each row.")
    _check_header(header, name)
    try:
        table = pacsv.read_csv(
            pa.BufferReader(raw),
            read_options=pacsv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            # Types are decided by the caller, column by column.
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys([*header], pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise SourceError(_why_unreadable(raw, delimiter, len(header), name, error)) from None
    if not table.num_rows:
        raise SourceError(f"{name} has a header and no rows below it.")
    columns = {
        column: pc.utf8_trim(values.cast(pa.string()).combine_chunks(), characters=" \t\r\n\v\f")
        for column, values in zip(header, table.columns, strict=True)
    }
    # pyarrow takes a quote that is never closed as if it were closed at the end of the file.
    last = table.columns[-1][-1].as_py()
    if "\n" in str(last) and not raw.rstrip(b"\r\n").endswith(b'"'):
        raise SourceError(
            f"{name}: a quoted field that begins near line {_open_quote_line(raw, delimiter)} is "
            'never closed. Close it with ", and write a quotation mark inside a field twice.'
        )
    return columns, delimiter


def _require_utf8(raw: bytes, name: str) -> None:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise SourceError(f"{name} is UTF-16. Save it as UTF-8.")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{name}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8. Save the file as "
            "UTF-8, for instance with `iconv -f CP949 -t UTF-8` (Korean) or `iconv -f CP1252 -t "
            "UTF-8` (Western European)."
        ) from None


def _records(raw: bytes, delimiter: str) -> csv.reader:
    csv.field_size_limit(max(csv.field_size_limit(), len(raw) + 1))
    lines = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig", newline="")
    return csv.reader(lines, delimiter=delimiter)


def _sniff(raw: bytes) -> str:
    """The delimiter that cuts the first records into equally many fields, the most of them."""

    def score(delimiter: str) -> tuple[bool, int]:
        records = itertools.islice(filter(None, _records(raw, delimiter)), _SNIFFED_RECORDS)
        lengths = [len(record) for record in records]
        first = lengths[0] if lengths else 0
        return first > 1 and set(lengths) == {first}, first

    return max(DELIMITERS, key=score)  # the comma where nothing tells them apart


def _check_header(header: list[str], name: str) -> None:
    if len(header) == 1:
        raise SourceError(
            f"{name} has one column only ({header[0]!r}). Expected at least two, separated by "
            f"{', '.join(DELIMITERS.values())}."
        )
    for position, column in enumerate(header, 1):
        if not column:
            raise SourceError(
                f"{name}: column {position} of {len(header)} has no name. Name it in the header, "
                "or leave it out (pandas writes its index so: use to_csv(index=False))."
            )
    doubled = [column for column, count in Counter(header).items() if count > 1]
    if doubled:
        raise SourceError(f"{name}: more than one column is called {doubled[0]!r}. Rename them.")
    if all(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", column) for column in header):
        raise SourceError(
            f"{name} has no header: its first line holds numbers ({', '.join(header[:4])}, …). "
            "Write the columns' names there."
        )


def _why_unreadable(
    raw: bytes, delimiter: str, expected: int, name: str, error: pa.ArrowInvalid
) -> str:
    records = _records(raw, delimiter)
    start = 1  # csv counts the line where a record ends
    for record in records:
        if record and len(record) != expected:
            return (
                f"{name}, line {start}: expected {expected} fields as in the header, found "
                f"{len(record)} ({DELIMITERS[delimiter]} separated). A field that contains the "
                "delimiter or a line end must stand in quotation marks."
            )
        start = records.line_num + 1
    return f"{name} cannot be read as {DELIMITERS[delimiter]} separated text: {error}."


def _open_quote_line(raw: bytes, delimiter: str) -> int:
    records, start = _records(raw, delimiter), 1
    last = start
    for _ in records:
        last, start = start, records.line_num + 1
    return last
