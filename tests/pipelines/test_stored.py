"""Corpora larger than memory: the same streams from files, what is refused, and bounded memory."""

import gzip
import os
import re
import resource
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from filelock import FileLock

from epochal.pipelines.data import OpsError, SourceError, load, stored, text
from epochal.pipelines.data.source import fingerprint, open_source
from epochal.pipelines.data.text import _documents
from epochal.pipelines.data.tokens import TextPreprocess
from epochal.pipelines.recipe import Data

SPLITS = {"validation_fraction": 0.2, "test_fraction": 0.2}
GAPS = {"task": "masked-language-model", "ops": "wordpiece(90, mask=True)", "context": 24,
        "bucket_batches": 3}  # fmt: skip
LONG = {"ops": "lowercase|bytes", "context": 16}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EPOCHAL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shards(tmp_path):
    """The pattern of three files of 60 documents, one of them packed."""
    draw = np.random.default_rng(0)

    def document():
        words = (
            "".join(map(chr, draw.integers(97, 107, size))) for size in draw.integers(1, 6, 30)
        )
        return " ".join(words) + "."

    for i in range(3):
        text = "\n\n".join(document() for _ in range(60))
        (tmp_path / f"shard-{i}.txt").write_text(text)
    last = tmp_path / "shard-2.txt"
    (tmp_path / "shard-2.txt.gz").write_bytes(gzip.compress(last.read_bytes()))
    last.unlink()
    return f"text:{tmp_path}/shard-*.txt*"


def opened(source, mib, **settings):
    return load(Data(source=source, batch_size=8, cache_mib=mib, **SPLITS, **settings))


def values(stream):
    return [[v.numpy() for v in tf.nest.flatten(batch)] for batch in stream]


@pytest.mark.parametrize("settings", [LONG, pytest.param(GAPS, marks=pytest.mark.slow)])
def test_streams_from_files_are_those_from_memory(shards, cache, settings, monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 700)  # several blocks
    memory = opened(shards, 64, **settings)
    assert not cache.exists()
    files = opened(shards, 0, **settings)
    assert files._readers["train"].ids["text"].place is not None
    assert memory._readers["train"].ids["text"].place is None
    assert files._readers["train"].ids["text"].values.dtype == tf.uint16
    assert files.sizes == memory.sizes
    assert files.about == memory.about
    for one, other in (
        (files.train(5, start_step=7).take(6), memory.train(5).take(13).skip(7)),
        (files.split("train"), memory.split("train")),
    ):
        for a, b in zip(values(one), values(other), strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
                assert x.dtype == y.dtype
    assert list(files.raw("test", [2, 0])["text"]) == list(memory.raw("test", [2, 0])["text"])


def test_what_was_stored_is_not_made_again_unless_a_file_changes(shards, cache, tmp_path):
    first = opened(shards, 0, **LONG)
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert {path.name.partition("-")[0] for path in cache.iterdir() if path.is_dir()} == {
        "texts", "ids", "fingerprint"
    }  # fmt: skip
    assert [p for p in cache.iterdir() if p.is_dir() and p.name.startswith(".")] == []
    assert opened(shards, 0, **LONG).sizes == first.sizes
    assert made == {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    with open(tmp_path / "shard-0.txt", "a") as file:
        file.write("\n\nand one more")
    source = open_source(Data(source=shards, cache_mib=0, **LONG))
    assert source.about["rows"] == 181
    assert "and one more" in set(source.splits["train"].columns["text"])


def test_stored_texts_are_read_like_an_array(tmp_path):
    texts = ["", "eins", "둘 zwei", "", "\ud7a3" * 5, ""]
    found = stored.StoredTexts(tmp_path / "texts", lambda: iter(texts))
    assert list(found) == texts
    assert len(found) == 6
    assert found[2] == "둘 zwei"
    assert list(found[np.array([4, 0, 2])]) == [texts[4], "", texts[2]]
    assert list(found[1:4]) == texts[1:4]
    array = np.array(texts, object)
    assert stored.fingerprint_of({"text": found}) == fingerprint({"text": array})


def test_documents_end_at_empty_lines_as_a_split_of_the_whole_text_has_it(tmp_path):
    draw = np.random.default_rng(1)
    for number in range(300):
        text = "x" + "".join(draw.choice(["\n", " ", "\t", "a", "\r\n", "\r", "é"], 40))
        path = tmp_path / f"{number}.txt"
        path.write_bytes(("\ufeff" * (number % 2) + text).encode())
        parts = re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n"))
        assert list(_documents(path)) == [p.strip("\n") for p in parts if p.strip()]


def test_what_is_not_whole_is_refused_by_name(shards, cache):
    opened(shards, 0, **LONG)
    file = next(cache.glob("ids-*/values.bin"))
    os.truncate(file, file.stat().st_size - 2)
    with pytest.raises(SourceError, match=r"ids-\w+ is not whole \(values.bin has .* Delete it"):
        opened(shards, 0, **LONG)
    for damaged in cache.glob("texts-*/index.json"):
        damaged.write_text("{")
    with pytest.raises(SourceError, match=r"texts-\w+ is not whole"):
        opened(shards, 0, **LONG)


def test_a_full_disk_leaves_nothing_half_made(shards, cache):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, before[1]))
    try:
        with pytest.raises(SourceError, match=r"cannot be written: .* EPOCHAL_CACHE_DIR"):
            opened(shards, 0, **LONG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in cache.iterdir() if path.is_dir()]  # hidden ones too
    assert opened(shards, 0, **LONG).sizes["train"]


def test_small_texts_need_no_cache(shards, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setenv("EPOCHAL_CACHE_DIR", "/" + "x" * 300)  # which stat() refuses
    assert opened(shards, 64, **LONG).sizes["train"]
    with pytest.raises(SourceError, match=r"cannot be written: File name too long"):
        opened(shards, 0, **LONG)
    monkeypatch.setenv("EPOCHAL_CACHE_DIR", "~nobody-of-this-name/cache")
    with pytest.raises(SourceError, match="home directory is not known"):
        opened(shards, 0, **LONG)
    assert not list(Path().glob("~*"))


def test_other_code_makes_its_own_files(monkeypatch):
    found = [stored.directory("ids", ["a"])]
    for where, name, other in (
        (stored, "_FORMAT", -1),
        (stored, "__version__", "99"),
        (stored.unicodedata, "unidata_version", "99"),
        (stored.metadata, "version", lambda name: f"99 of {name}"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(where, name, other)
            found.append(stored.directory("ids", ["a"]))
    assert len({*found}) == 5
    assert stored.directory("ids", ["a"]) == found[0]


def blocks():
    yield {"ids": np.arange(50_000)}


def test_all_is_synced_before_it_takes_its_name(cache, monkeypatch):
    synced, missing = {}, []
    fsync, rename = os.fsync, os.rename

    def note_sync(handle):
        synced[os.readlink(f"/proc/self/fd/{handle}")] = os.fstat(handle).st_size
        fsync(handle)

    def note_rename(old, new):
        paths = [Path(old), *Path(old).iterdir()]
        missing.append([p.name for p in paths if synced.get(str(p)) != p.stat().st_size])
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    stored.arrays(cache / "ids-1", blocks)
    assert missing == [[]]


def test_what_dead_processes_left_goes_and_other_hosts_are_let_alone(cache, monkeypatch):
    monkeypatch.setattr(stored.platform, "node", lambda: "here")
    left, other, neighbour = (
        cache / name for name in (".ids-1-here-abc", ".ids-1-there-abc", ".ids-12-here-abc")
    )
    for path in (left, other, neighbour):
        path.mkdir(parents=True)

    def while_another_host_publishes():
        yield from blocks()
        stored._write(cache / "copy", blocks)
        os.rename(cache / "copy", cache / "ids-1")

    found = stored.arrays(cache / "ids-1", while_another_host_publishes)
    np.testing.assert_array_equal(found["ids"], np.arange(50_000))
    assert {p for p in cache.iterdir() if p.is_dir()} == {cache / "ids-1", other, neighbour}
    assert (cache / "ids-1").stat().st_mode & 0o777 == 0o755


def test_who_waits_for_another_process_says_so(cache, caplog):
    caplog.set_level("INFO")
    cache.mkdir()
    lock = FileLock(cache / ".ids-1.lock")
    lock.acquire()
    with ThreadPoolExecutor() as pool:
        try:
            found = pool.submit(stored.arrays, cache / "ids-1", blocks)
            end = time.monotonic() + 20
            while "waiting for another process that writes" not in caplog.text:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert not (cache / "ids-1").exists()
        finally:
            lock.release()
        assert len(found.result()["ids"]) == 50_000


def test_arrays_in_memory_are_not_all_there_twice():
    def many():
        for _ in range(16):
            yield {name: np.zeros(2**16, np.uint8) for name in ("one", "two", "three")}

    tracemalloc.start()
    try:
        found = stored.arrays(None, many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(len(array) for array in found.values()) == 3 * 2**20
    assert peak < 5 * 2**20  # 6 MiB where they are


def test_plain_texts_are_read_once_for_an_error_and_tables_as_texts(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(text, "_documents", lambda path: read.append(path) or _documents(path))
    (tmp_path / "a.txt").write_bytes(b"fine\n\nna\xefve\n")
    with pytest.raises(SourceError, match="line 3"):
        opened(f"text:{tmp_path}/*.txt", 64, **GAPS)
    assert len(read) == 1
    words = "\n".join(f"{i}.5\tone and {i} make more" for i in range(60))
    (tmp_path / "numbers.tsv").write_text(f"number\ttext\n{words}\n")
    masking = {"masking": {"next_sentence": False}, "target": "number"}
    assert opened(f"text:{tmp_path}/numbers.tsv", 64, **GAPS, **masking).sizes["train"]


def test_a_single_document_is_told_where_documents_end(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n" * 50)
    with pytest.raises(SourceError, match="1 document.s., which end at empty lines, cannot be"):
        opened(f"text:{tmp_path}/a.txt", 64, **LONG)


def test_what_cannot_be_read_is_said(shards, tmp_path):
    with pytest.raises(SourceError, match=r"No file is called .*none-\*"):
        opened(f"text:{tmp_path}/none-*.txt", 0, **LONG)
    (tmp_path / "shard-1.txt").write_text(" \n\n")
    with pytest.raises(SourceError, match=r"shard-1.txt is empty"):
        opened(shards, 0, **LONG)
    (tmp_path / "shard-1.txt").write_bytes(b"fine\n\nna\xefve\n")
    with pytest.raises(SourceError, match=r"shard-1.txt, line 3: byte 0xef is not UTF-8"):
        opened(shards, 0, **LONG)


def test_an_op_that_refuses_says_where(monkeypatch):
    monkeypatch.setattr(stored, "BLOCK", 4)
    chain = TextPreprocess("text", 'bytes|max_tokens(3, overflow="refuse")', {"task": ""})
    rows = chain.through(lambda: ["abc", "ab", "abc", "abcd"])
    with pytest.raises(OpsError, match=r"the 2 texts behind the first 2: .* row 1 has 4 ids"):
        list(rows)
    with pytest.raises(OpsError, match=r"^Of the first 2 texts: .* 4 ids, and 1 of 2 rows"):
        list(chain.through(lambda: ["a", "abcd", "abcd"]))
    with pytest.raises(OpsError, match=r"^max_tokens.* 1 of 2 rows"):  # of all there are
        list(chain.through(lambda: ["a", "abcd"]))
    assert [len(row) for row in chain.through(lambda: ["abc", "ab", "c"])] == [3, 2, 1]


@pytest.mark.slow
@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set")
def test_text_of_tfds_in_files_is_that_in_memory():
    settings = {"source": "tfds:tiny_shakespeare", "ops": "characters", "context": 64}
    files, memory = (load(Data(cache_mib=mib, **settings)) for mib in (0, 64))
    assert isinstance(files._readers["train"].rows.columns["text"], stored.StoredTexts)
    assert (files.about, files.sizes) == (memory.about, memory.sizes)
    for one, other in zip(files.train(1).take(3), memory.train(1).take(3), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


MEASURED = '''
import re, sys, threading, time
from pathlib import Path
from epochal.pipelines.data import load
from epochal.pipelines.recipe import Data

def resident():
    """MiB of memory that belongs to this process alone: what is mapped from files does not."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1024

def use(source, mib):
    data = load(Data(source=source, ops="bytes", context=128, batch_size=64, cache_mib=mib))
    for batch in data.train(0).take(300):
        pass
    for batch in data.split("test"):
        pass

use(f"text:{sys.argv[1]}/small.txt", 0)  # what libraries need at all
before = peak = resident()
def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
use(f"text:{sys.argv[1]}/big-*.txt", int(sys.argv[2]))
print(peak - before)
'''


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """64 MB of text in four shards, 128 MB of ids; what is held in memory is far less."""
    draw = np.random.default_rng(0)
    letters = draw.integers(97, 123, 4_000_000, np.uint8)
    letters[::6] = ord(" ")
    letters[::501], letters[1::501] = ord("\n"), ord("\n")
    (tmp_path / "small.txt").write_bytes(letters[:200_000].tobytes())
    for i in range(4):
        (tmp_path / f"big-{i}.txt").write_bytes(np.tile(np.roll(letters, i), 4).tobytes())

    def grown(mib):
        command = [sys.executable, "-c", MEASURED, str(tmp_path), str(mib)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    assert grown(1) < 40
    ids = next(p for p in Path(os.environ["EPOCHAL_CACHE_DIR"]).glob("ids-*/values.bin")
               if p.stat().st_size > 1e8)  # fmt: skip
    assert ids.stat().st_size > 3 * 40 * 2**20
    assert grown(1_000) > 200  # the measure does see what lies in memory
