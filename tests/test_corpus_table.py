"""The table of a corpus: every figure from manifests written by hand, its file and its picture."""

import csv
import json
import struct

import matplotlib.image
import pytest
import sentencepiece
from conftest import SHARED, fails, needs_shared, sentences, snapshot, stage, write_jsonl

from corpus_table import COLUMNS, Row
from llamax.languages import load


def dataset(prefix, kind, counts, tokenizer="a" * 32, **fields):
    """Write the manifest of a dataset, counts being {group: (records, tokens, words)}; returns the prefix."""
    counts = {group: dict(zip(("records", "tokens", "words"), found, strict=True)) for group, found in counts.items()}
    arguments = {"tokenizer": {"blake2b": tokenizer, "vocab_size": 32000, "file": "t.model", "kind": "sentencepiece"}}
    value = {"kind": kind, "arguments": arguments, "counts": counts, "rejected": {}, "rejects": {}, **fields}
    prefix.with_name(f"{prefix.name}.json").write_text(json.dumps(value))
    return prefix


def read_tsv(path):
    """{code: {column: text}} of a table's file, in its order."""
    with open(path, encoding="utf-8", newline="") as file:
        return {row["code"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def png_size(path):
    """(width, height) of a PNG whose picture can be read and is not blank."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = matplotlib.image.imread(path)
    size = struct.unpack(">II", data[16:24])
    assert pixels.shape[:2] == size[::-1] and pixels[..., :3].std() > 0.05
    return size


@pytest.fixture
def corpus(tmp_path):
    mono = {"fr": (100, 3200, 1000), "th": (10, 620, 400), "fao_Latn": (4, 48, 10), "wo": (0, 0, 0)}
    dataset(tmp_path / "mono", "mono", mono, rejected={"fr": 7, "af": 2, "": 30, "ka": 0})
    dataset(tmp_path / "more", "mono", {"fr": (50, 900, 200)})
    pairs = {"en-fr": (40, 9000, 800), "fr-th": (5, 300, 60), "en-fao_Latn": (2, 90, 20), "de-fr": (0, 0, 0)}
    directions = {"en-fr": 63, "fr-en": 57, "fr-th": 5, "fao_Latn-en": 6, "en-fao_Latn": 0}
    dataset(tmp_path / "pairs", "parallel", pairs, directions=directions, rejected={"en-fr": 3, "": 1})
    dataset(tmp_path / "again", "parallel", {"en-fr": (1, 20, 4)}, directions={"fr-en": 1})
    return [tmp_path / name for name in ("mono", "more.json", "pairs", "again")]


def test_every_figure(corpus, tmp_path):
    """Two manifests of a language are added; pairs and rejects count for both languages; BOS and EOS are no text."""
    printed = stage("corpus_table.py", "--input", *corpus, "--output", tmp_path / "out" / "table")
    found = read_tsv(tmp_path / "out" / "table.tsv")
    figures = {code: tuple(row.values())[3:] for code, row in found.items()}
    assert figures == {
        "fr": ("150", "4100", "3.17", "word", "46", "2", "10"),  # (4,100 - 300) / 1,200; en and th
        "th": ("10", "620", "1.50", "character", "5", "1", "0"),  # (620 - 20) / 400
        "fao_Latn": ("4", "48", "4.00", "word", "2", "1", "0"),
        "en": ("0", "0", "", "", "43", "2", "3"),
        "af": ("0", "0", "", "", "0", "0", "2"),
    }
    assert list(found) == ["fr", "th", "fao_Latn", "en", "af"]  # by monolingual records, then by pairs
    assert tuple(found["fr"].values())[:3] == ("fr", "French", "Indo-European-Romance")
    assert tuple(found["fao_Latn"].values())[:3] == ("fao_Latn", "fao_Latn", "")
    lines = printed.splitlines()
    assert lines[0].split() == " ".join(COLUMNS).split(" ")
    assert " ".join(lines[1].split()) == "fr French Indo-European-Romance 150 4,100 3.17 word 46 2 10"
    assert len({len(line) for line in lines[:6]}) == 1  # all end in a column that is flush right
    assert lines[6] == (
        "5 languages, 164 monolingual records, 48 pairs of 3 language pairs in 4 directions, 43 rejects"
    )
    assert lines[7].startswith("98 of the paper's 102 languages have none: am ar as ")
    assert len(lines[7].partition(": ")[2].split()) == 98 and " wo " in lines[7]


def test_datasets_of_the_preprocessing(tmp_path, tokenizer_model):
    """From text to the table, fertility against sentencepiece, pairs without their copies; mix.py reads the same."""
    texts = {"fr": sentences("fr", 50), "zh": [text.replace(" ", "") for text in sentences("zh", 50)]}
    records = [{"text": text, "lang": lang} for lang, found in texts.items() for text in found]
    source = write_jsonl(tmp_path / "mono.jsonl", records)
    both = zip(sentences("en", 30), texts["fr"], strict=False)
    pairs = [{"src": src, "tgt": tgt, "src_lang": "en", "tgt_lang": "fr"} for src, tgt in both]
    options = ("--tokenizer-model", tokenizer_model, "--workers", 1, "--output-prefix")
    stage("preprocess_mono.py", "--input", source, *options, tmp_path / "mono")
    stage("preprocess_parallel.py", "--input", write_jsonl(tmp_path / "p.jsonl", pairs), *options, tmp_path / "pairs")

    stage("corpus_table.py", "--input", tmp_path / "mono", tmp_path / "pairs", "--output", tmp_path / "table")
    found = read_tsv(tmp_path / "table.tsv")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    tokens = {lang: sum(len(ids) for ids in processor.encode(found)) for lang, found in texts.items()}
    words = {"fr": sum(len(text.split()) for text in texts["fr"]), "zh": sum(map(len, texts["zh"]))}
    for lang in texts:
        assert found[lang]["fertility"] == f"{tokens[lang] / words[lang]:.2f}"
        assert (found[lang]["mono"], found[lang]["mono tokens"]) == ("50", str(tokens[lang] + 100))
    assert [found[lang]["pairs"] for lang in ("fr", "en", "zh")] == ["30", "30", "0"]

    printed = stage("mix.py", "--input", tmp_path / "mono", tmp_path / "pairs", "--by", "natural")
    manifests = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("mono", "pairs")]
    assert printed.splitlines()[-2].split()[3] == f"{sum(manifest['tokens'] for manifest in manifests):,}"


def test_merged_dataset_of_text_and_pairs(tmp_path):
    counts = {"fr": (100, 3200, 1000), "en-fr": (40, 900, 800)}
    merged = dataset(tmp_path / "merged", "mixed", counts, directions={"en-fr": 20, "fr-en": 20})
    printed = stage("corpus_table.py", "--input", merged)
    assert printed.splitlines()[1].split()[3:] == ["100", "3,200", "3.00", "word", "40", "1", "0"]
    assert "2 languages, 100 monolingual records, 40 pairs of 1 language pairs in 2 directions" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["merged.json"]


def test_fertility():
    assert Row(mono=3, tokens=36, words=10).fertility == 3
    assert Row(pairs=5).fertility != Row(pairs=5).fertility  # NaN: no text


@needs_shared
def test_the_authors_corpus(tmp_path):
    """Their counts as manifests: the table has their figures, the picture a line for each of 101 languages."""
    with open(SHARED / "llamax_counts.csv", encoding="utf-8") as file:
        expected = {row["lang"]: row for row in csv.DictReader(file)}
    mono = {lang: (n, 30 * n, 10 * n) for lang, row in expected.items() if (n := int(row["mono"]))}
    # English with all: as many pairs as theirs for every other language, which then has 1 direction.
    pairs = {"-".join(sorted(("en", lang))): (int(row["para"]), 1, 1) for lang, row in expected.items() if lang != "en"}
    inputs = [dataset(tmp_path / "mono", "mono", mono), dataset(tmp_path / "pairs", "parallel", pairs)]
    printed = stage("corpus_table.py", "--input", *inputs, "--output", tmp_path / "table")
    assert "101 languages, 55,081,793 monolingual records, 368,232,459 pairs of 100 language pairs" in printed
    assert printed.endswith("\n1 of the paper's 102 languages have none: kea\n")
    found = read_tsv(tmp_path / "table.tsv")
    assert found.keys() == load().keys() - {"kea"}
    for code, row in found.items():
        assert row["mono"] == expected[code]["mono"]
        assert row["fertility"] == ("2.80" if int(row["mono"]) else "")
        assert row["family"] == load()[code].family
        if code != "en":
            assert (row["pairs"], row["directions"]) == (expected[code]["para"], "1")
    assert found["en"]["directions"] == "100"
    assert png_size(tmp_path / "table.png") == (800, 1736)


def test_picture_of_546_languages_has_columns(tmp_path):
    codes = [f"{a}{b}{c}_Tfng" for a in "bcdfghjk" for b in "aeiou" for c in "lmnprstvwxyzqh"][:546]
    assert len(codes) == 546
    mono = {code: (10**6 // (i + 1), 10**8, 10**7) for i, code in enumerate(codes)}
    output = tmp_path / "table"
    stage("corpus_table.py", "--input", dataset(tmp_path / "mono", "mono", mono), "--output", output)
    assert png_size(tmp_path / "table.png") == (3200, 2312)
    assert list(read_tsv(tmp_path / "table.tsv")) == codes


def test_the_same_data_give_the_same_files(corpus, tmp_path):
    """And only two of them, in place of what was there; the order of the inputs does not matter."""
    stage("corpus_table.py", "--input", *corpus, "--output", tmp_path / "out" / "table")
    first = snapshot(tmp_path / "out")
    assert sorted(first) == ["table.png", "table.tsv"]
    (tmp_path / "out" / "table.tsv").write_text("an earlier table")
    stage("corpus_table.py", "--input", *reversed(corpus), "--output", tmp_path / "out" / "table")
    assert snapshot(tmp_path / "out") == first


def test_language_with_rejects_only(tmp_path):
    """Nothing to draw, yet a table and a picture."""
    prefix = dataset(tmp_path / "mono", "mono", {}, rejected={"fr": 3})
    printed = stage("corpus_table.py", "--input", prefix, "--output", tmp_path / "table")
    assert printed.splitlines()[1].split() == ["fr", "French", "Indo-European-Romance", "0", "0", "0", "0", "3"]
    assert (tmp_path / "table.png").stat().st_size > 1000


def test_errors(corpus, tmp_path):
    other = dataset(tmp_path / "other", "mono", {"fr": (1, 3, 1)}, tokenizer="b" * 32)
    empty = dataset(tmp_path / "empty", "mono", {})
    unknown = dataset(tmp_path / "unknown", "mono", {"xx": (1, 3, 1)})
    old = dataset(tmp_path / "old", "mono", {"fr": (1, 3, "many")})
    before = snapshot(tmp_path)
    for inputs, saying in (
        ([*corpus, other], [f"--input {other}: made with another tokenizer", f"than {corpus[0]}"]),
        ([corpus[0], f"{corpus[0]}.json"], ["--input: a dataset is given twice"]),
        ([empty], [f"--input {empty}: no record of any language"]),
        ([unknown], ["language 'xx': not known"]),
        ([old], [f"--input {old}.json: no manifest that can be used"]),
        ([tmp_path / "nowhere"], ["nowhere.json: does not exist"]),
    ):
        fails("corpus_table.py", "--input", *inputs, "--output", tmp_path / "table", saying=saying)
    assert snapshot(tmp_path) == before
