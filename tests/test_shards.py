"""Shards and their merge: whatever the number of shards and workers, and however often interrupted, the same bytes."""

import collections
import itertools
import json
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import sentencepiece
from conftest import ENVIRONMENT, LLAMA2, ROOT, call, needs_shared, sentences, snapshot, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset

import merge_datasets
import preprocess_mono
import preprocess_parallel
from llamax import merge, shards, sources
from llamax.files import InputError
from llamax.indexed import writing_dataset
from preprocess_parallel import Pair, swapped


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 4 KiB, so that a small corpus has many."""
    monkeypatch.setattr(sources, "PIECE_BYTES", 4096)


def documents(n, seed=0):
    """Documents of several languages, of which about one in five repeats an earlier one."""
    rng = random.Random(seed)
    made = []
    for i in range(n):
        if made and rng.random() < 0.2:
            made.append(rng.choice(made))
        else:
            lang = rng.choice(["en", "fr", "zh"])
            made.append({"text": " ".join(sentences(lang, 1 + i % 3, 1000 * seed + i)), "lang": lang})
    return made


def read(prefix):
    """[ids of each document] by stock IndexedDataset."""
    dataset = IndexedDataset(str(prefix))
    ends = dataset.document_indices.tolist()
    return [np.concatenate([dataset.get(i) for i in range(a, b)]).tolist() for a, b in itertools.pairwise(ends)]


def manifest(prefix):
    return json.loads((prefix.parent / f"{prefix.name}.json").read_text())


def rejected(prefix):
    """[(line, reason)] of a dataset's rejects."""
    path = prefix.parent / f"{prefix.name}.rejects.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(row["line"], row["reason"]) for row in rows]


def outcome(folder):
    return {name: data for name, data in snapshot(folder).items() if name.startswith("d") and "-of-" not in name}


ALL = ("--dedup", "--valid-fraction", 0.1, "--near-dedup", 0.7)


@pytest.mark.parametrize("kind", ["mono", "connected", "split"])
def test_shards_and_workers_do_not_matter(kind, small_pieces, tmp_path, tokenizer_model, monkeypatch):
    """1, 2 and 7 shards, 1 and 2 workers, and shards that a run makes of itself: every file of the result is equal."""
    if kind == "mono":
        module, options = preprocess_mono, ["--block-size", 16, *ALL]
        records = documents(900)
        parts = [write_jsonl(tmp_path / f"{i}.jsonl", records[i::2]) for i in (0, 1)]
        (tmp_path / "1.jsonl").write_bytes((tmp_path / "1.jsonl").read_bytes() + b"{broken\n")
        options += ["--max-reject-rate", 0.5]
    else:
        module, options = preprocess_parallel, ["--format", kind, "--repeat-below", 80, *ALL]
        both = zip(documents(500, 1), documents(500, 2), strict=True)
        records = [{"src": a["text"], "tgt": b["text"], "src_lang": a["lang"], "tgt_lang": b["lang"]} for a, b in both]
        if kind == "connected":
            for record in records[::5]:
                record["loss"] = "target"
        parts = [write_jsonl(tmp_path / "0.jsonl", records + records[:60])]
    common = ["--input", *parts, "--tokenizer-model", tokenizer_model, *options]
    results = {}
    for count, workers in ((1, 1), (1, 2), (2, 2), (7, 1), (7, 2)):
        folder = tmp_path / f"{count}-{workers}"
        for number in random.Random(count).sample(range(count), count):
            call(module, *common, "--output-prefix", folder / "d", "--shard", f"{number}/{count}", workers=workers)
        prefixes = sorted(folder.glob("d-*-of-*.json"))
        assert len(prefixes) == count
        merge = [str(folder / "d"), "--max-reject-rate", "0.5"]
        monkeypatch.setattr(
            sys, "argv", ["merge_datasets.py", "--input", *map(str, prefixes), "--output-prefix", *merge]
        )
        merge_datasets.main()
        results[count, workers] = outcome(folder)
    monkeypatch.setattr(shards, "SHARD_BYTES", 10_000)
    call(module, *common, "--output-prefix", tmp_path / "own" / "d")
    results["own"] = outcome(tmp_path / "own")
    assert not (tmp_path / "own" / "d.parts").exists()
    first = results[1, 1]
    tags = {"d.tags", "d_valid.tags"}
    assert {"d.bin", "d.idx", "d.json", "d.keys", "d.rejects.jsonl", "d_valid.bin", *tags} <= first.keys()
    for name, result in results.items():
        assert result == first, name
    whole = manifest(tmp_path / "1-1" / "d")
    assert whole["rejects"]["duplicate"] > 50 and whole["rejects"]["near-duplicate"] > 5
    if kind != "mono":
        assert whole["repeated"] and len(whole["repeated"]) < len(whole["counts"])


def test_duplicates_repetition_and_held_out_records_against_a_reference(small_pieces, tmp_path, tokenizer_model):
    """Every entry, in order: what is dropped, what is repeated and in which direction."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    rng, records = random.Random(0), []
    for i in range(600):
        src, tgt = rng.choice([("en", "fr"), ("fr", "en"), ("en", "zh")])
        records.append((sentences(src, 1, i)[0], sentences(tgt, 1, i)[0], src, tgt, rng.choice(["all", "target"])))
        if i % 3 == 0:
            a, b, c, d, loss = rng.choice(records)
            records.append((b, a, d, c, loss) if rng.random() < 0.5 else (a, b, c, d, loss))
    source = write_jsonl(
        tmp_path / "a.jsonl",
        [dict(zip(("src", "tgt", "src_lang", "tgt_lang", "loss"), r, strict=True)) for r in records],
    )
    seen, kept, dropped = set(), [], []
    for line, (src, tgt, src_lang, tgt_lang, loss) in enumerate(records, 1):
        sides = ((src_lang, src), (tgt_lang, tgt))
        key = (loss, sides if loss == "target" else frozenset(sides))
        (dropped if key in seen else kept).append((line, Pair(src, tgt, src_lang, tgt_lang, loss, "")))
        seen.add(key)
    counts = collections.Counter(frozenset((pair.src_lang, pair.tgt_lang)) for _, pair in kept)
    limit = max(counts.values())
    assert min(counts.values()) < limit < sum(len({p[2], p[3]} & {"fr"}) for p in records), counts
    expected = []
    for _, pair in kept:
        for copy in range(3 if counts[frozenset((pair.src_lang, pair.tgt_lang))] < limit else 1):
            sides = (pair.tgt, pair.src) if swapped(pair, copy, 5, 0.5) else (pair.src, pair.tgt)
            expected.append([1, *reference.encode(" ".join(sides)), 2])
    common = ("--input", source, "--tokenizer-model", tokenizer_model, "--seed", 5, "--repeat-below", limit, "--dedup")
    call(preprocess_parallel, *common, "--output-prefix", tmp_path / "d")
    assert read(tmp_path / "d") == expected
    assert rejected(tmp_path / "d") == [(line, "duplicate") for line, _ in dropped]
    found = manifest(tmp_path / "d")
    directions = collections.Counter()
    for _, pair in kept:
        for copy in range(3 if counts[frozenset((pair.src_lang, pair.tgt_lang))] < limit else 1):
            names = (pair.src_lang, pair.tgt_lang)
            directions["-".join(names[::-1] if swapped(pair, copy, 5, 0.5) else names)] += 1
    assert found["directions"] == dict(directions)
    assert {k: v["records"] for k, v in found["counts"].items()} == {"-".join(sorted(k)): v for k, v in counts.items()}
    assert sum(v["tokens"] for v in found["counts"].values()) == found["tokens"] == sum(map(len, expected))

    call(preprocess_parallel, *common, "--valid-fraction", 0.3, "--output-prefix", tmp_path / "v")
    train, valid = read(tmp_path / "v"), read(tmp_path / "v_valid")
    assert 0.2 < len(valid) / len(expected) < 0.4
    assert sorted(train + valid) == sorted(expected)
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    source.write_text("".join(lines[line - 1] for line, _ in kept[::-1]), encoding="utf-8")
    call(preprocess_parallel, *common, "--valid-fraction", 0.3, "--output-prefix", tmp_path / "r")
    assert sorted(read(tmp_path / "r_valid")) == sorted(valid)  # which does not depend on the order


@needs_shared
def test_a_swapped_copy_that_is_too_long_keeps_its_side(tmp_path):
    """The two directions of a pair may differ in length by a token."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA2))
    both = [
        (a + x, y + b) for a in sentences("en", 9) for b in sentences("fr", 9) for x in ("", " ") for y in ("", " ")
    ]
    sizes = [[len(reference.encode(f"{x} {y}")) + 2 for x, y in (pair, pair[::-1])] for pair in both]
    pair, (forward, back) = next((p, s) for p, s in zip(both, sizes, strict=True) if s[0] != s[1])
    limit = min(forward, back)
    chosen = None
    for seed in range(100):  # one whose first copy fits and whose second one would not
        flips = [swapped(Pair(*pair, "en", "fr", "all", ""), copy, seed, 0.5) for copy in (0, 1)]
        if flips == ([False, True] if forward == limit else [True, False]):
            chosen = seed
            break
    record = dict(zip(("src", "tgt", "src_lang", "tgt_lang"), (*pair, "en", "fr"), strict=True))
    source = write_jsonl(tmp_path / "a.jsonl", [record])
    call(preprocess_parallel, "--input", source, "--tokenizer-model", LLAMA2, "--output-prefix", tmp_path / "d",
         "--seed", chosen, "--repeat", 2, "--block-size", limit)  # fmt: skip
    fits = pair if forward == limit else pair[::-1]
    assert read(tmp_path / "d") == [[1, *reference.encode(" ".join(fits)), 2]] * 2


def test_split_pairs_are_two_documents(tmp_path, tokenizer_model):
    """Table 12's split-parallel data."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    rows = list(zip(sentences("en", 20), sentences("fr", 20), strict=True))
    source = write_jsonl(tmp_path / "a.jsonl", [{"src": src, "tgt": tgt} for src, tgt in rows])
    langs = ("--src-lang", "en", "--tgt-lang", "fr")
    call(preprocess_parallel, "--input", source, *langs, "--format", "split", "--repeat", 2, "--tokenizer-model",
         tokenizer_model, "--output-prefix", tmp_path / "d")  # fmt: skip
    expected = [[1, *reference.encode(side), 2] for row in rows for _ in range(2) for side in row]
    assert read(tmp_path / "d") == expected


def test_duplicates_across_files_runs_and_languages(tmp_path, tokenizer_model):
    """The same text in another language is another record; what an earlier run has is dropped."""

    def run(name, texts, *options):
        source = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text, "lang": lang} for text, lang in texts])
        call(preprocess_mono, "--input", source, source, "--tokenizer-model", tokenizer_model, "--output-prefix",
             tmp_path / name, "--dedup", *options)  # fmt: skip
        return rejected(tmp_path / name)

    assert run("a", [("x", "en"), ("x", "fr"), ("y", "en")]) == [(1, "duplicate"), (2, "duplicate"), (3, "duplicate")]
    second = run("b", [("z", "en"), ("y", "en"), ("y", "fr")], "--dedup-against", tmp_path / "a")
    assert second == [(2, "duplicate"), (1, "duplicate"), (2, "duplicate"), (3, "duplicate")]
    assert len(read(tmp_path / "b")) == 2
    with pytest.raises(InputError, match=r"--dedup-against .*none"):
        run("c", [("z", "en")], "--dedup-against", tmp_path / "none")
    call(preprocess_mono, "--input", tmp_path / "a.jsonl", "--tokenizer-model", tokenizer_model, "--output-prefix",
         tmp_path / "plain")  # fmt: skip
    with pytest.raises(InputError, match=r"plain.keys; give a dataset that was made with --dedup"):
        run("d", [("z", "en")], "--dedup-against", tmp_path / "plain")


@pytest.mark.parametrize("options", [(), ("--dedup", "--valid-fraction", 0.2, "--near-dedup", 0.8)])
def test_pieces_without_a_record(options, small_pieces, tmp_path, tokenizer_model):
    """The end of a long line, and what cannot be used, may fill a whole piece."""
    long = " ".join(sentences("en", 400))
    broken = "{" * 9000
    mono = write_jsonl(tmp_path / "a.jsonl", [{"text": long, "lang": "en"}, {"text": "x", "lang": "en"}])
    parallel = write_jsonl(tmp_path / "b.jsonl", [{"src": long, "tgt": "x", "src_lang": "en", "tgt_lang": "fr"}] * 2)
    for module, source in ((preprocess_mono, mono), (preprocess_parallel, parallel)):
        source.write_text(f"{broken}\n{source.read_text()}{broken}\n")
        call(module, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / source.stem,
             "--block-size", 100_000, "--max-reject-rate", 0.5, *options)  # fmt: skip
        duplicates = [(3, "duplicate")] if options and module is preprocess_parallel else []
        assert rejected(tmp_path / source.stem) == [(1, "invalid JSON"), (4, "invalid JSON"), *duplicates]


def test_merging_names_what_is_missing(small_pieces, tmp_path, tokenizer_model, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", documents(300))
    common = ["--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", tmp_path / "d"]
    for number in (0, 2):
        call(preprocess_mono, *common, "--shard", f"{number}/4")

    def merge(*prefixes, output="d"):
        names = [str(tmp_path / prefix) for prefix in prefixes]
        monkeypatch.setattr(sys, "argv", ["x", "--input", *names, "--output-prefix", str(tmp_path / output)])
        merge_datasets.main()

    name = "d-0000{}-of-00004".format
    with pytest.raises(InputError, match=r"2 of 4 shards missing: 1,3; run them \(sbatch --array=1,3\)"):
        merge(name(0), name(2))
    with pytest.raises(InputError, match="give each once"):
        merge(name(0), name(0))
    for number in (1, 3):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        call(preprocess_mono, *common, "--shard", "slurm/4")
    merge(*map(name, range(4)))
    before = snapshot(tmp_path)
    merge(*map(name, range(4)))  # complete: nothing changes
    assert snapshot(tmp_path) == before
    with pytest.raises(InputError, match="expected a number below 4"):
        call(preprocess_mono, *common, "--shard", "4/4")
    call(preprocess_mono, *common[:-1], tmp_path / "e", "--block-size", 9, "--shard", "0/4")
    with pytest.raises(InputError, match="not made as"):
        merge(*map(name, range(3)), "e-00000-of-00004")

    call(preprocess_mono, *common[:-1], tmp_path / "f")
    assert (tmp_path / "f.bin").read_bytes() == (tmp_path / "d.bin").read_bytes()
    with pytest.raises(InputError, match="is a shard"):
        merge(name(0), "f", output="g")
    merge("f", "d", output="g")
    assert read(tmp_path / "g") == read(tmp_path / "f") * 2
    found, once = manifest(tmp_path / "g"), manifest(tmp_path / "f")
    assert found["tokens"] == 2 * once["tokens"] and found["counts"]["en"]["words"] == 2 * once["counts"]["en"]["words"]
    merge("f", "d", output="g")
    with pytest.raises(InputError, match="other source files"):
        merge("d", "f", output="g")


def test_merging_keeps_loss_masks(tmp_path, tokenizer_model, monkeypatch):
    """One dataset has a mask, the other has none: ones stand in for it."""
    pair = {"src": "the old farmer", "tgt": "le vieux fermier", "src_lang": "en", "tgt_lang": "fr"}
    for name, loss in (("a", "all"), ("b", "target")):
        source = write_jsonl(tmp_path / f"{name}.jsonl", [{**pair, "loss": loss}] * 2)
        call(preprocess_parallel, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix",
             tmp_path / name, "--repeat", 1)  # fmt: skip
    names = [str(tmp_path / name) for name in "aba"]
    monkeypatch.setattr(sys, "argv", ["x", "--input", *names, "--output-prefix", str(tmp_path / "d")])
    merge_datasets.main()
    mask = np.concatenate(read(tmp_path / "d_loss"))
    size = len(mask) // 6
    assert mask[: 2 * size].all() and mask[4 * size :].all() and not mask[2 * size : 4 * size].all()


MONO = st.tuples(st.just("mono"), st.sampled_from(["en", "fr", "zh"]))
PAIRS = st.one_of(
    st.tuples(st.just("parallel"), st.sampled_from(["en-fr", "fr-en", "en-zh"])),
    st.tuples(st.sampled_from(["augmented", "changed"]), st.sampled_from(["en-fr", "fr-fr"])),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mono=st.lists(MONO, min_size=1, max_size=12),
    pairs=st.lists(PAIRS, min_size=1, max_size=12),
    again=st.lists(st.integers(0, 11), max_size=3),
    count=st.integers(1, 3),
)
def test_every_sequence_has_the_tag_of_its_record(mono, pairs, again, count, tokenizer_model, tmp_path_factory):
    """Through the stages, dropped, repeated, held out, in shards, and merged with other datasets. Each record has a
    number that is in its text, on both sides of a pair."""
    folder = tmp_path_factory.mktemp("tags")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    expected = {}

    def text(number, lang):
        return f"w{number}x {sentences(lang, 1, number)[0]}"

    def texts(i):
        kind, lang = mono[i % len(mono)]
        expected[str(i)] = [kind, lang]
        return {"text": text(i, lang), "lang": lang}

    def both(i):
        kind, group = pairs[i % len(pairs)]
        src, tgt = group.split("-")
        # What "augment.py pairs" and "augment.py mono" write.
        said = {"augmented": {"loss": "target"}, "changed": {"loss": "all", "origin": "augment-mono"}}
        expected[str(100 + i)] = ["parallel" if kind == "parallel" else "augmented", "-".join(sorted((src, tgt)))]
        sides = {"src": text(100 + i, src), "tgt": text(100 + i, tgt)}
        return {**sides, "src_lang": src, "tgt_lang": tgt, **said.get(kind, {})}

    def check(prefix):
        found, path = manifest(prefix), prefix.parent / f"{prefix.name}.tags"
        assert path.exists() == (len(found["tags"]) > 1)
        if not found["sequences"]:  # of which megatron.core opens none
            assert found["tags"] == []
            return
        documents, dataset = read(prefix), IndexedDataset(str(prefix))
        sequences = np.diff(dataset.document_indices)
        numbers = np.fromfile(path, "<u2") if path.exists() else np.zeros(found["sequences"], int)
        names = [expected[re.search(r"w(\d+)x", reference.decode(ids))[1]] for ids in documents]
        assert found["tags"] == sorted(map(list, set(map(tuple, names))))
        assert [found["tags"][i] for i in numbers] == [
            name for name, n in zip(names, sequences, strict=True) for _ in range(n)
        ]

    model = "--tokenizer-model", tokenizer_model, "--dedup", "--valid-fraction", 0.3, "--output-prefix"
    for name, module, record, n, options in (
        ("m", preprocess_mono, texts, len(mono), ("--block-size", 12)),
        ("p", preprocess_parallel, both, len(pairs), ("--repeat-below", 4)),
    ):
        records = [record(i) for i in [*range(n), *(i for i in again if i < n)]]
        source = write_jsonl(folder / f"{name}.jsonl", records)
        for number in range(count):
            call(module, "--input", source, *model, folder / name, *options, "--shard", f"{number}/{count}")
        shards = [folder / f"{name}-{number:05d}-of-{count:05d}" for number in range(count)]
        merge.merge_shards(list(map(str, shards)), str(folder / name), None, 1)
        for prefix in (folder / name, folder / f"{name}_valid"):
            check(prefix)
    merge.merge_datasets([str(folder / name) for name in ("p_valid", "m", "m_valid", "p")], str(folder / "all"))
    check(folder / "all")


def test_more_tags_than_there_are_numbers(tmp_path):
    names = [("parallel", f"{i:05x}") for i in range(65_536)]

    def write(*spans):
        with writing_dataset(tmp_path / "d", 10) as (writer, _):
            for numbers in spans:
                ones = np.ones(len(numbers), np.int64)
                writer.add(ones, ones, ones, tags=(names, np.array(numbers)))

    with pytest.raises(InputError, match=r"d.tags: cannot number more than 65,535 languages"):
        write(range(65_536))
    assert not list(tmp_path.iterdir())
    write(range(60_000, 65_535), range(60_000))
    assert np.fromfile(tmp_path / "d.tags", "<u2").tolist() == [*range(60_000, 65_535), *range(60_000)]
    assert manifest(tmp_path / "d")["tags"] == list(map(list, names[:-1]))


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, tokenizer_model):
    """SIGKILL at 20 random moments: reading, spilling, merging; the rest of what was killed is cleared away."""
    source = write_jsonl(tmp_path / "a.jsonl", documents(60_000))
    command = [sys.executable, ROOT / "preprocess_mono.py", "--input", source, "--tokenizer-model", tokenizer_model,
               "--dedup", "--valid-fraction", "0.1", "--workers", "2", "--output-prefix"]  # fmt: skip
    start = time.monotonic()
    subprocess.run([*command, tmp_path / "whole" / "d"], check=True, env=ENVIRONMENT, capture_output=True)
    seconds = time.monotonic() - start
    killed = tmp_path / "killed" / "d"
    rng, kills = random.Random(0), 0
    while kills < 20:
        start = time.monotonic()
        process = subprocess.Popen([*command, killed], env=ENVIRONMENT, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            assert process.wait(rng.uniform(0.1, seconds)) == 0
            seconds = time.monotonic() - start
            for path in killed.parent.iterdir():  # it was done before: from the beginning again
                path.unlink()
        except subprocess.TimeoutExpired:
            kills += 1
            process.kill()  # the main process alone: its workers end with it
            process.wait()
    subprocess.run([*command, killed], check=True, env=ENVIRONMENT, capture_output=True)
    assert snapshot(killed.parent) == snapshot(tmp_path / "whole")
