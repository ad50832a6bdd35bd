"""Corpora in all their forms: what is read is the same, however a corpus is stored and cut into shards."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd
from conftest import SHARED, needs_shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamax import sources
from llamax.files import InputError
from llamax.records import Unusable

LINES = st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=30)
ENDS = st.sampled_from([b"\n", b"\r\n"])


def rows(found, shards=1):
    """All (path, line number, row) that the shards of a corpus give, in order, and the fingerprints of its files."""
    out, parts_of_files = [], []
    for shard in range(shards):
        parts = sources.ranges(found, shard, shards)
        sources.check_aligned(parts)
        base = sources.first_lines(parts)
        for piece in sources.pieces(found, shard, shards):
            block = piece.read()
            out += [(block.path, base[piece.source] + i, row) for i, row in enumerate(block.lines, block.first_line)]
            base[piece.source] += len(block.lines)
        parts_of_files += sources.fingerprints(parts)
    return out, sources.add_fingerprints(parts_of_files)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 7 bytes: every place is one where something is cut."""
    monkeypatch.setattr(sources, "PIECE_BYTES", 7)
    sources._target_offsets.cache_clear()


def split(data):
    """The lines of a file, by another way than the module's."""
    lines = data.split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    if lines and lines[0][:3] == b"\xef\xbb\xbf":
        lines[0] = lines[0][3:]
    return [line[:-1] if line[-1:] == b"\r" else line for line in lines]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(st.tuples(LINES, ENDS, st.booleans()), min_size=1, max_size=4), shards=st.integers(1, 9))
def test_lines_do_not_depend_on_where_files_are_cut(files, shards, small_pieces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    expected = []
    for i, (lines, end, complete) in enumerate(files):
        data = end.join(lines) + (end if complete else b"")
        (folder / f"{i}.txt").write_bytes(data)
        expected += [(str(folder / f"{i}.txt"), n, line) for n, line in enumerate(split(data), 1)]
    found = sources.find_sources([str(folder / f"{i}.txt") for i in range(len(files))], {"lang": "en"})
    whole, prints = rows(found)
    assert whole == expected
    cut, cut_prints = rows(found, shards)
    assert cut == whole
    assert [one["size"] for one in prints] == [source.size for source in found]
    assert cut_prints == prints


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(LINES.map(b"".join), LINES.map(b"".join)), max_size=25), end=ENDS,
       complete=st.tuples(st.booleans(), st.booleans()), shards=st.integers(1, 9))  # fmt: skip
def test_aligned_lines_stay_together(pairs, end, complete, shards, small_pieces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    texts = []
    for side in (0, 1):
        texts.append(end.join(pair[side] for pair in pairs) + (end if complete[side] and pairs else b""))
        (folder / f"a.{side}").write_bytes(texts[side])
        (folder / f"a.{side}.gz").write_bytes(gzip.compress(texts[side]))
    sides = [split(text) for text in texts]
    for suffix in ("", ".gz"):
        found = sources.find_sources([f"{folder}/a.0{suffix}"], {}, targets=[f"{folder}/a.1{suffix}"])
        if len(sides[0]) != len(sides[1]):  # an empty last line without an end is no line
            with pytest.raises(InputError, match=f"has {len(sides[0])} lines.*has {len(sides[1])}"):
                rows(found)
            continue
        whole, prints = rows(found)
        assert [row for _, _, row in whole] == list(zip(*sides, strict=True))
        cut, cut_prints = rows(found, shards)
        assert cut == whole
        assert {one["path"]: one for one in cut_prints} == {one["path"]: one for one in prints}


def test_a_changed_byte_changes_the_fingerprint(small_pieces, tmp_path):
    file = tmp_path / "a.txt"
    prints = set()
    for data in (b"abc\ndef\nghi\n", b"abc\ndef\nghj\n", b"ghi\nabc\ndef\n", b"abc\ndef\nghi"):
        file.write_bytes(data)
        prints.add(rows(sources.find_sources([str(file)], {}), 2)[1][0]["xxh3_128"])
    assert len(prints) == 4


COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd.compress}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files(suffix, small_pieces, tmp_path):
    """Also such as are several streams one after the other, as `cat a.gz b.gz` makes them."""
    data = "\n".join(["été", "", "x" * 50, "最后"]).encode()
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(COMPRESS[suffix](data[:20]) + COMPRESS[suffix](data[20:]))
    found = sources.find_sources([str(file)], {"lang": "en"})
    assert [row.decode() for _, _, row in rows(found, 3)[0]] == ["été", "", "x" * 50, "最后"]
    file.write_bytes(COMPRESS[suffix](data)[:-6])
    with pytest.raises(InputError, match=r"a\.txt.*does not decompress.*cut off"):
        rows(found)
    file.write_bytes(bz2.compress(data))
    with pytest.raises(InputError, match=r"a\.txt.*does not decompress"):
        rows(found)


def records(found):
    """The records of all rows of a corpus, as its readers make them."""
    return [sources.record_reader(found[0])(row) for _, _, row in rows(found)[0]]


RECORDS = [{"text": f"text {i} ü", "lang": "en" if i % 2 else "fr"} for i in range(2500)]


def test_every_form_holds_the_same_records(tmp_path):
    import datasets

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS), encoding="utf-8")
    header = "text\tlang\n"
    body = "".join(f"{r['text']}\t{r['lang']}\n" for r in RECORDS)
    (tmp_path / "a.tsv").write_text(header + body, encoding="utf-8")
    (tmp_path / "b.tsv").write_text(body, encoding="utf-8")
    table = pyarrow.Table.from_pylist(RECORDS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "part.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    for name in ("a.jsonl", "a.parquet", "saved", "folder"):
        assert records(sources.find_sources([str(tmp_path / name)], {})) == RECORDS, name
    assert records(sources.find_sources([str(tmp_path / "b.tsv")], {}, columns=["text", "lang"])) == RECORDS
    found = sources.find_sources([str(tmp_path / "a.tsv")], {})
    assert found[0].columns == ("text", "lang") and found[0].header == b"text\tlang"
    assert records(found)[1:] == RECORDS  # the stages leave the header out


def test_fields_by_other_names_and_inside_of_others(tmp_path):
    """As the OPUS-100 datasets have them."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"translation": {"en": "a house", "fr": "une maison"}, "x.y": "dotted"}\n{"translation": {}}\n')
    names = {"src": "translation.en", "tgt": "translation.fr", "origin": "x.y"}
    first, second = records(sources.find_sources([str(file)], {}, names))
    assert (first["src"], first["tgt"], first["origin"]) == ("a house", "une maison", "dotted")
    assert "src" not in second


def test_languages_from_paths(tmp_path):
    for name in ("madlad_fra_clean.txt", "madlad_zh_clean.txt"):
        (tmp_path / name).write_text("x\n")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    found = sources.find_sources(paths, {}, pattern=r"madlad_(?P<lang>[a-z]+)_clean")
    assert [source.fields for source in found] == [{"lang": "fr"}, {"lang": "zh"}]
    with pytest.raises(InputError, match=r"--lang-pattern 'nllb_.*madlad_fra"):
        sources.find_sources(paths, {}, pattern=r"nllb_(?P<lang>[a-z]+)")


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(InputError, match=r"a\.parquet: no Parquet file that can be read"):
        rows(sources.find_sources([str(tmp_path / "a.parquet")], {}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: `datasets` cannot read it"):
        rows(sources.find_sources([str(tmp_path / "empty")], {}))
    with pytest.raises(InputError, match=r"none: does not exist.*hf:NAME"):
        sources.find_sources([str(tmp_path / "none")], {})
    (tmp_path / "a.tsv").write_text("a\tb\nc\n")
    found = sources.find_sources([str(tmp_path / "a.tsv")], {}, columns=["text", "lang"])
    with pytest.raises(Unusable, match="1 columns, expected 2"):
        records(found)


@needs_shared
def test_tico_as_it_comes():
    """37 real .tsv files without a header, their languages in their names."""
    files = sorted(map(str, (SHARED / "tico19").glob("*.tsv")))
    pattern = r"(?P<src_lang>en)-(?P<tgt_lang>[a-z]+)(-[A-Z]+)?\.tsv"
    found = sources.find_sources(files[:3], {}, columns=["src", "tgt"], pattern=pattern)
    assert [source.fields["tgt_lang"] for source in found] == ["ar", "bn", "ku"]
    assert len(records(found)) == 3 * 3071
    assert records(found)[0]["src"] == "about how long have these symptoms been going on?"
