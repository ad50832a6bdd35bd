"""Preprocessing: text and pairs to Megatron's indexed datasets, rejects, errors."""

import argparse
import itertools
import json
import os
import shutil

import numpy as np
import sentencepiece
from conftest import LLAMA2, SHARED, fails, needs_shared, sentences, snapshot, stage, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset

import preprocess_mono
from llamax.records import Block, parse_lines
from llamax.sources import Source

MONO, PARALLEL = "preprocess_mono.py", "preprocess_parallel.py"


def pairs(n, src="en", tgt="fr", seed=0, **fields):
    return [
        {"src": a, "tgt": b, "src_lang": src, "tgt_lang": tgt, **fields}
        for a, b in zip(sentences(src, n, seed), sentences(tgt, n, seed), strict=True)
    ]


def read_all(prefix):
    """(sequences, first sequence of each document, loss weights or None) by stock IndexedDataset."""
    dataset = IndexedDataset(str(prefix))
    sequences = [dataset.get(i).tolist() for i in range(len(dataset))]
    loss = IndexedDataset(f"{prefix}_loss") if os.path.exists(f"{prefix}_loss.idx") else None
    weights = loss and [loss.get(i).tolist() for i in range(len(loss))]
    return sequences, dataset.document_indices.tolist(), weights


@needs_shared
def test_all_of_ntrex_is_what_sentencepiece_says(tmp_path):
    """65 files with CRLF line ends, 129,805 lines: entries joined, BOS and EOS taken away, exactly its ids."""
    files = sorted((SHARED / "ntrex" / "NTREX-128").glob("newstest2019-*.txt"))
    assert len(files) == 65
    # Many of these languages are not among the paper's 102: EMMA-500's form of code names them.
    stage(MONO, "--input", *files, "--lang", "mul_Latn", "--tokenizer-model", LLAMA2, "--output-prefix", tmp_path / "n",
          "--block-size", 64, "--workers", 2)  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA2))
    dataset = IndexedDataset(str(tmp_path / "n"))
    assert dataset.sequence_lengths.max() == 64
    ids = np.fromfile(tmp_path / "n.bin", np.uint16).tolist()
    ends = np.concatenate([[0], np.cumsum(dataset.sequence_lengths)])[dataset.document_indices].tolist()
    text = "".join(path.read_bytes().decode("utf-8") for path in files)  # one file ends its lines with LF only
    lines = [line.removesuffix("\r") for line in text.split("\n")[:-1]]
    assert len(lines) == len(ends) - 1 == 129_805
    for line, expected, start, end in zip(lines, reference.encode(lines), ends[:-1], ends[1:], strict=True):
        assert ids[start:end] == [1, *expected, 2], line


def test_entries_are_cut_from_documents(tmp_path, tokenizer_model):
    texts = [sentences("en", 1)[0] * k for k in (1, 7, 3)]
    source = write_jsonl(tmp_path / "a.jsonl", [{"text": text, "lang": "en"} for text in texts])
    stage(MONO, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "d",
          "--block-size", 16)  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    sequences, documents, weights = read_all(tmp_path / "d")
    assert weights is None
    for i, text in enumerate(texts):
        mine = sequences[documents[i] : documents[i + 1]]
        assert [*itertools.chain(*mine)] == [1, *reference.encode(text), 2]
        assert [len(s) for s in mine[:-1]] == [16] * (len(mine) - 1)
    manifest = json.loads((tmp_path / "d.json").read_text())
    assert (manifest["documents"], manifest["sequences"]) == (3, len(sequences))
    assert manifest["tokens"] == sum(map(len, sequences)) and manifest["languages"] == ["en"]
    assert manifest["counts"]["en"]["records"] == 3 and manifest["counts"]["en"]["tokens"] == manifest["tokens"]


def test_nothing_depends_on_the_number_of_workers(tmp_path, tokenizer_model):
    source = write_jsonl(tmp_path / "a.jsonl", pairs(20_000))
    for workers in (1, 2):
        stage(PARALLEL, "--input", source, "--tokenizer-model", tokenizer_model, "--workers", workers,
              "--output-prefix", tmp_path / str(workers) / "d")  # fmt: skip
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")


def test_connected_pairs_directions_and_repetition(tmp_path, tokenizer_model):
    """Every copy is one of the two directions, about half each; small language pairs come three times."""
    many, few = pairs(1200), pairs(30, "en", "zh")
    source = write_jsonl(tmp_path / "a.jsonl", many + few)
    stage(PARALLEL, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "d",
          "--repeat-below", 1000)  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    sequences, _, weights = read_all(tmp_path / "d")
    assert weights is None and len(sequences) == 1200 + 3 * 30
    kept = 0
    expected = many + [record for record in few for _ in range(3)]
    for sequence, record in zip(sequences, expected, strict=True):
        forward, back = ([1, *reference.encode(f"{a} {b}"), 2]
                         for a, b in ((record["src"], record["tgt"]), (record["tgt"], record["src"])))  # fmt: skip
        assert sequence in (forward, back)
        kept += sequence == forward
    assert abs(kept / len(sequences) - 0.5) < 0.06  # four standard deviations
    manifest = json.loads((tmp_path / "d.json").read_text())
    assert manifest["repeated"] == ["en-zh"] and manifest["languages"] == ["en", "fr", "zh"]
    assert {pair: found["records"] for pair, found in manifest["counts"].items()} == {"en-fr": 1200, "en-zh": 30}
    assert sum(manifest["directions"].values()) == len(sequences)


def test_direction_depends_on_the_record_alone(tmp_path, tokenizer_model):
    records = pairs(300)
    for name, order in (("a", records), ("b", records[::-1])):
        source = write_jsonl(tmp_path / f"{name}.jsonl", order)
        stage(PARALLEL, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / name)
    forward, backward = (read_all(tmp_path / name)[0] for name in "ab")
    assert sorted(forward) == sorted(backward)


def test_target_only_pairs_keep_their_side_and_mask_their_source(tmp_path, tokenizer_model):
    records = pairs(200, "zh", "en", loss="target", origin="augment")
    source = write_jsonl(tmp_path / "a.jsonl", records)
    stage(PARALLEL, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "d",
          "--repeat", 1)  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    sequences, _, weights = read_all(tmp_path / "d")
    for sequence, mask, record in zip(sequences, weights, records, strict=True):
        assert sequence == [1, *reference.encode(f"{record['src']} {record['tgt']}"), 2]
        first = mask.index(1)
        assert mask == [0] * first + [1] * (len(mask) - first)
        # What has no loss is the source; what has is the target, with the space that its first token spans.
        assert reference.decode(sequence[1:first]).strip() == record["src"].strip()
        assert reference.decode(sequence[first:-1]).strip() == record["tgt"].strip()


def test_moses_pairs_equal_the_same_pairs_as_records(tmp_path, tokenizer_model):
    records = pairs(100)
    (tmp_path / "a.en").write_bytes("\r\n".join(r["src"] for r in records).encode() + b"\r\n")
    (tmp_path / "a.fr").write_bytes("\n".join(r["tgt"] for r in records).encode())
    source = write_jsonl(tmp_path / "a.jsonl", records)
    stage(PARALLEL, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "r")
    stage(PARALLEL, "--src", tmp_path / "a.en", "--tgt", tmp_path / "a.fr", "--src-lang", "en", "--tgt-lang", "fr",
          "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "m")  # fmt: skip
    assert (tmp_path / "r.bin").read_bytes() == (tmp_path / "m.bin").read_bytes()
    assert (tmp_path / "r.idx").read_bytes() == (tmp_path / "m.idx").read_bytes()


BROKEN = {
    b'{"text": "\xff", "lang": "en"}': "invalid UTF-8",
    b'{"text": "x", "lang": "en"': "invalid JSON",
    b'["x"]': "not an object",
    b'{"lang": "en"}': "missing field",
    b'{"text": 5, "lang": "en"}': "wrong type",
    b'{"text": " ", "lang": "en"}': "empty",
    b'{"text": "x", "lang": "qq"}': "unknown language",
    b'{"text": "x\\u0000", "lang": "en"}': "null character",
    b'{"text": "\\ud800", "lang": "en"}': "invalid UTF-8",
    b'{"text": "' + b"x" * 200 + b'", "lang": "en"}': "over-long",
}


def test_each_way_to_be_unusable_is_named_with_file_and_line(tmp_path, tokenizer_model):
    good = b'{"text": "the old farmer", "lang": "en"}'
    lines, expected = [], []
    for bad, reason in BROKEN.items():
        lines += [good, bad]
        expected.append((len(lines), reason))
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"\n".join(lines))
    stage(MONO, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "d",
          "--max-reject-rate", 0.6, "--max-chars", 100)  # fmt: skip
    rejects = [json.loads(line) for line in (tmp_path / "d.rejects.jsonl").read_text().splitlines()]
    assert [(r["line"], r["reason"]) for r in rejects] == expected
    assert {r["file"] for r in rejects} == {str(source)}
    assert len(read_all(tmp_path / "d")[0]) == len(BROKEN)
    fails(MONO, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "e",
          saying=["9 of 20 records (45.00%)", "--max-reject-rate"])  # fmt: skip
    assert not (tmp_path / "e.bin").exists() and not (tmp_path / "e.json").exists()


LINE = st.one_of(
    st.sampled_from(
        [*BROKEN, b"", b" ", b"}", b"{", b"null", b'{"text":', b'"x"}', b'{"text": "a"} {"text": "b"}', b"\r"]
    ),
    st.builds(
        lambda text, lang, more: json.dumps({"text": text, **lang, **more}, ensure_ascii=False).encode("utf-8"),
        st.text(st.characters(codec="utf-8"), max_size=9),
        st.sampled_from([{}, {"lang": "fr"}, {"lang": "fra"}, {"lang": "en"}, {"lang": "qq"}, {"lang": None}]),
        st.sampled_from([{}, {"id": 7}, {"meta": {"a": [{"b": "}\n{"}]}}, {"text": "again"}]),
    ),
)


@given(lines=st.lists(LINE, max_size=6), end=st.sampled_from([b"", b"\n", b"\n\n"]), lang=st.sampled_from([None, "fr"]))
def test_lines_read_at_once_are_what_they_are_one_by_one(lines, end, lang):
    """Whatever is between the lines and in them: all that is taken at once is exactly what the parser takes."""
    data = b"\n".join(lines) + end
    source = Source("a.jsonl", "lines", "jsonl", len(data), {"lang": lang} if lang else {}, {})
    args = argparse.Namespace(max_chars=150)
    at_once = preprocess_mono.documents_at_once(data, source, args)
    rows = data.removesuffix(b"\n").split(b"\n")
    parse = preprocess_mono.document_parser(source, args, None)
    values, numbers, rejects = parse_lines(Block("a.jsonl", 1, rows, len(data)), parse)
    if at_once is not None:
        assert (at_once, numbers, rejects) == (values, list(range(1, len(rows) + 1)), [])
    elif values and not rejects and numbers == list(range(1, len(rows) + 1)):
        assert any(line[:1] != b"{" or line[-1:] != b"}" for line in rows), "slower than it need be"


def test_running_again_does_nothing_and_never_overwrites(tmp_path, tokenizer_model):
    source = write_jsonl(tmp_path / "a.jsonl", pairs(50))
    command = (PARALLEL, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "d")
    stage(*command)
    before = snapshot(tmp_path)
    assert "nothing to do" in stage(*command)
    fails(*command, "--seed", 7, saying=["exists, made with seed 0, now 7"])
    write_jsonl(source, pairs(51))
    fails(*command, saying=["other source files"])
    write_jsonl(source, pairs(50))
    assert snapshot(tmp_path) == before


def test_what_a_killed_run_left_does_not_count(tmp_path, tokenizer_model):
    """A loss mask without a manifest is of no complete dataset: it must not mask the one that comes after."""
    source = write_jsonl(tmp_path / "a.jsonl", pairs(50, loss="target"))
    model = "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "d"
    stage(PARALLEL, "--input", source, *model)
    (tmp_path / "d.json").unlink()
    write_jsonl(source, pairs(50))
    stage(PARALLEL, "--input", source, *model)
    assert read_all(tmp_path / "d")[2] is None


def test_errors_are_one_line_and_leave_everything_as_it_was(tmp_path, tokenizer_model):
    source = tmp_path / "a.txt"
    source.write_text("\n".join(sentences("en", 10)) + "\n", encoding="utf-8")
    short = tmp_path / "b.txt"
    short.write_text("\n".join(sentences("fr", 9)) + "\n", encoding="utf-8")
    bad = tmp_path / "bad.txt"
    bad.write_bytes(source.read_bytes() + b"\xff\xfe\n")
    short_bad = tmp_path / "c.txt"
    short_bad.write_bytes(short.read_bytes() + b"\xff\n")
    before = snapshot(tmp_path)
    out = "--output-prefix", tmp_path / "out" / "d"
    model = "--tokenizer-model", tokenizer_model
    fails(
        MONO, "--input", tmp_path / "none", "--lang", "en", *model, *out, saying=["--input", "none", "does not exist"]
    )
    fails(MONO, "--input", source, "--lang", "xx", *model, *out, saying=["xx", "languages.tsv"])
    fails(MONO, "--input", source, *model, *out, saying=["--lang"])
    fails(
        MONO, "--input", source, "--lang", "en", "--tokenizer-model", source, *out, saying=["a.txt", "tokenizer.model"]
    )
    fails(MONO, "--input", source, "--lang", "en", *model, *out, "--block-size", 1, "--workers", 0,
          saying=["--block-size 1", "--workers 0"])  # fmt: skip
    fails(MONO, "--input", bad, "--lang", "en", *model, *out, saying=["1 of 11 records", "invalid UTF-8"])
    sides = "--src", source, "--tgt", short, "--src-lang", "en", "--tgt-lang", "fr"
    fails(PARALLEL, *sides, *model, *out, saying=["10 lines", "9"])
    fails(PARALLEL, "--input", source, *sides, *model, *out, saying=["give one of the two"])
    fails(PARALLEL, "--input", source, *model, *out, "--swap-probability", 2, saying=["--swap-probability 2"])
    fails(PARALLEL, "--input", tmp_path / "none", *model, *out, saying=["--input", "does not exist"])
    fails(PARALLEL, *sides[:6], "--tgt-lang", "xx", *model, *out, saying=["xx", "languages.tsv"])
    sides = "--src", source, "--tgt", short_bad, "--src-lang", "en", "--tgt-lang", "fr"
    fails(PARALLEL, *sides, *model, *out, saying=["1 of 10 records", "invalid UTF-8"])
    fails(PARALLEL, *sides, "--tokenizer-model", source, *out, saying=["tokenizer.model"])
    fails(MONO, "--block-size", "many", saying=["--block-size", "'many'"])
    shutil.rmtree(tmp_path / "out")
    assert snapshot(tmp_path) == before


@needs_shared
def test_test_sentences_are_dropped_and_nothing_else(tmp_path):
    """997 lines of Flores-101 dev, of all its languages in turn, as they are, in capitals, and with other punctuation,
    among 100,000 lines of NTREX, of which none is in Flores."""
    dev = [
        path.read_bytes().decode("utf-8").splitlines() for path in sorted((SHARED / "flores101" / "dev").glob("*.dev"))
    ]
    assert len(dev) == 102
    planted = [dev[i % 102][i] for i in range(997)]
    punctuation = str.maketrans(dict.fromkeys(",.!?\"'()。，、؟।", " ; "))
    planted += [line.upper() for line in planted] + [f"« {line.translate(punctuation)} »" for line in planted]
    ntrex = "".join(path.read_bytes().decode("utf-8") for path in sorted((SHARED / "ntrex/NTREX-128").glob("*.txt")))
    lines = [line for line in ntrex.replace("\r", "").split("\n") if line.strip()][:100_000]
    for i, line in enumerate(planted):
        lines.insert(33 * i, line)
    source = tmp_path / "a.txt"
    source.write_text("\n".join(lines), encoding="utf-8")
    stage(MONO, "--input", source, "--lang", "mul_Latn", "--tokenizer-model", LLAMA2, "--output-prefix", tmp_path / "d",
          "--decontaminate", SHARED / "flores101" / "devtest", f"dev={SHARED / 'flores101' / 'dev'}")  # fmt: skip
    rejects = [json.loads(line) for line in (tmp_path / "d.rejects.jsonl").read_text().splitlines()]
    found = {row["line"] for row in rejects}
    assert {(row["reason"], row["detail"]) for row in rejects} == {("in a test set", "dev")}
    assert found == {33 * i + 1 for i in range(len(planted))}
    manifest = json.loads((tmp_path / "d.json").read_text())
    assert manifest["test_sets"] == {"dev": 2991} and manifest["documents"] == 100_000


@needs_shared
def test_cleaning_drops_count_apart_from_broken_records(tmp_path, tokenizer_model):
    """Half of the pairs are dropped at the user's wish: that is no reason to stop; rejects are told by language."""
    en, fr, de = ((SHARED / "flores101" / "dev" / f"{code}.dev").read_text("utf-8").splitlines()
                  for code in ("eng", "fra", "deu"))  # fmt: skip
    records = [{"src": a, "tgt": b, "src_lang": "fr", "tgt_lang": "en"} for a, b in zip(fr, en, strict=True)][:50]
    records += [{"src": a, "tgt": b, "src_lang": "fr", "tgt_lang": "en"} for a, b in zip(de, en, strict=True)][50:80]
    records += [{"src": "x", "tgt": "x" * 99, "src_lang": "fr", "tgt_lang": "de"}] * 10
    records += [{"src": en[90], "tgt": en[90], "src_lang": "fr", "tgt_lang": "en"}]
    source = write_jsonl(tmp_path / "a.jsonl", records)
    stage(PARALLEL, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "d",
          "--lid-model", SHARED / "lid" / "lid.176.ftz", "--max-length-ratio", 3, "--drop-identical",
          "--block-size", 2048)  # fmt: skip
    manifest = json.loads((tmp_path / "d.json").read_text())
    assert manifest["rejects"] == {"wrong language": 30, "length ratio": 10, "identical sides": 1}
    assert manifest["rejected"] == {"de-fr": 10, "en-fr": 31}
    assert manifest["counts"]["en-fr"]["records"] == 50
    assert manifest["arguments"]["max_length_ratio"] == 3 and len(manifest["arguments"]["lid_model"]) == 32


def test_languages_from_paths_and_other_fields(tmp_path, tokenizer_model):
    """Lego-MT's layout: a folder a language pair, two aligned files; and a corpus with its own names."""
    for pair in ("en-fr", "fr-zh"):
        (tmp_path / pair).mkdir()
        for side, lang in zip(("src", "tgt"), pair.split("-"), strict=True):
            (tmp_path / pair / f"train.{side}").write_text("\n".join(sentences(lang, 30)) + "\n", encoding="utf-8")
    model = "--tokenizer-model", tokenizer_model, "--output-prefix"
    files = [sorted(tmp_path.glob(f"*/train.{side}")) for side in ("src", "tgt")]
    stage(PARALLEL, "--src", *files[0], "--tgt", *files[1], "--lang-pattern",
          "(?P<src_lang>[a-z]+)-(?P<tgt_lang>[a-z]+)/train", *model, tmp_path / "d")  # fmt: skip
    counts = json.loads((tmp_path / "d.json").read_text())["counts"]
    assert {pair: found["records"] for pair, found in counts.items()} == {"en-fr": 30, "fr-zh": 30}
    source = write_jsonl(
        tmp_path / "a.jsonl", [{"content": text, "meta": {"language": "French"}} for text in sentences("fr", 9)]
    )
    stage(MONO, "--input", source, "--field", "text=content", "lang=meta.language", *model, tmp_path / "m")
    assert json.loads((tmp_path / "m.json").read_text())["counts"]["fr"]["records"] == 9
