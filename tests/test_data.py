"""Rows and loss masks: every token has the loss weight its record asked for, whatever the layout and the blend."""

import argparse
import collections
import functools
import itertools
import json
import logging
import mmap
import os
import resource
import signal

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import SENTENCES, call, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import preprocess_mono
import preprocess_parallel
from llamax import data as data_module
from llamax.data import SequentialSampler, attention_mask, build_datasets, order_digest, rows_per_source
from llamax.files import InputError
from llamax.indexed import read_manifest, writing_dataset


@pytest.fixture(autouse=True, scope="module")
def process_group():
    """megatron.core's blends ask for their rank."""
    logging.getLogger("megatron").setLevel(logging.CRITICAL)  # as llamax.runtime does
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def arguments(data_path, cache, **changes):
    values = {
        "data_path": [str(part) for part in data_path], "valid_data_path": None, "split": "100,0,0", "seed": 3,
        "seq_length": 32, "packing": "across", "data_cache_path": str(cache),
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def write_entries(prefix, entries, vocab_size, tags=None):
    """An indexed dataset of (ids, weights) entries, with a (kind, language) for each if `tags` has them."""
    with writing_dataset(prefix, vocab_size) as (writer, manifest):
        for i, (ids, weights) in enumerate(entries):
            tag = tags and ([tags[i]], np.zeros(1, np.uint16))
            writer.add(np.array(ids), [len(ids)], [1], np.array(weights, np.uint8), tag)
        manifest["arguments"] = {"tokenizer": {"file": "none", "blake2b": "0", "vocab_size": vocab_size}}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    datasets=st.lists(
        st.lists(st.tuples(st.integers(3, 33), st.integers(0, 33)), min_size=4, max_size=12), min_size=1, max_size=3
    ),
    layout=st.sampled_from(["across", "inside", "none"]),
    data=st.data(),
)
def test_every_label_has_the_weight_of_its_token(datasets, layout, data, tmp_path_factory):
    """Every token of the corpus has an id of its own, so that a row's labels say where they come from."""
    folder = tmp_path_factory.mktemp("rows")
    weight_of, before, blend, next_id = {}, {}, [], 0
    for number, lengths in enumerate(datasets):
        entries = []
        for length, context in lengths:
            ids = list(range(next_id, next_id + length))
            weights = [int(i >= context) for i in range(length)]
            weight_of.update(zip(ids, weights, strict=True))
            weight_of[ids[0]] = 0  # nothing in the entry predicts its first token
            before.update(zip(ids[1:], ids[:-1], strict=True))
            entries.append((ids, weights))
            next_id += length
        write_entries(folder / str(number), entries, vocab_size=60_000)
        blend += [data.draw(st.sampled_from([1, 2, 5])), folder / str(number)]
    rows = data.draw(st.integers(1, 30))
    train, *_ = build_datasets(arguments(blend, folder / "cache", packing=layout), 60_000, rows, 0)
    assert len(train) >= rows
    for i in range(rows):
        row = {name: tensor for name, tensor in train[i].items() if name != "dataset_id"}
        for place in range(32):
            token, label, weight = (row[name][place].item() for name in ("tokens", "labels", "loss_mask"))
            if "segments" in row and row["segments"][place] < 0:
                assert weight == 0  # padding
                continue
            assert weight == weight_of[label]
            if weight or layout != "across":
                assert before[label] == token


@pytest.mark.parametrize("layout", ["inside", "none"])
def test_one_epoch_has_every_entry_once(layout, tmp_path):
    lengths = np.random.default_rng(0).integers(2, 33, 500)
    entries = [([i] * n, [1] * n) for i, n in enumerate(lengths)]
    write_entries(tmp_path / "d", entries, vocab_size=60_000)
    train, *_ = build_datasets(arguments([tmp_path / "d"], tmp_path / "cache", packing=layout), 60_000, None, 0)
    seen = collections.Counter()
    for row in (train[i] for i in range(len(train))):
        seen.update(row["labels"][row["segments"] >= 0].tolist())
    assert seen == {i: n - 1 for i, n in enumerate(lengths)}
    if layout == "inside":
        assert sum(lengths - 1) / (len(train) * 32) > 0.94  # entries of 1 to 31 in rows of 32


WORDS = sorted({word for text in SENTENCES.values() for word in text.split(" ")})
TEXT = st.lists(st.sampled_from([*WORDS, "🙂", "a:b", "<s>", "###"]), min_size=1, max_size=9).map(" ".join)
LOSS = st.sampled_from(["all", "target"])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mono=st.lists(TEXT, min_size=1, max_size=6), pairs=st.lists(st.tuples(TEXT, TEXT, LOSS), min_size=1, max_size=8))
def test_from_records_to_rows(mono, pairs, tokenizer_model, tmp_path_factory):
    """Mono, parallel and augmented records through the stages, packed and blended, against a slow reference."""
    folder = tmp_path_factory.mktemp("records")
    source = write_jsonl(folder / "mono.jsonl", [{"text": text, "lang": "en"} for text in mono])
    call(preprocess_mono, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", folder / "m",
         "--block-size", 10)  # fmt: skip
    records = [{"src": a, "tgt": b, "src_lang": "en", "tgt_lang": "fr", "loss": loss} for a, b, loss in pairs]
    source = write_jsonl(folder / "pairs.jsonl", records)
    call(preprocess_parallel, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", folder / "p",
         "--swap-probability", 0, "--repeat", 1)  # fmt: skip

    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    expected = collections.Counter()
    for text in mono:
        document = [1, *reference.encode(text), 2]
        for start in range(0, len(document), 10):
            entry = document[start : start + 10]
            if len(entry) > 1:
                expected[tuple(entry), tuple([1] * (len(entry) - 1))] += 1
    for src, tgt, loss in pairs:
        entry = [1, *reference.encode(f"{src} {tgt}"), 2]
        # A token is the source's as long as what it completes lies within "▁", the source and one space.
        spelled, context = b"", 0
        for token in entry[1:-1] if loss == "target" else []:
            piece = reference.id_to_piece(token)
            spelled += bytes([int(piece[3:5], 16)]) if reference.is_byte(token) else piece.replace("▁", " ").encode()
            if len(spelled) > len(f" {src} ".encode()):
                break
            context += 1
        weights = [int(i > context or loss == "all") for i in range(len(entry))]
        expected[tuple(entry), tuple(weights[1:])] += 1

    found = collections.Counter()
    for prefix in ("m", "p"):
        args = arguments([folder / prefix], folder / "cache", packing="inside", seq_length=512)
        rows, *_ = build_datasets(args, reference.vocab_size(), None, 0)
        for row in (rows[i] for i in range(len(rows))):
            for segment in range(int(row["segments"].max()) + 1):
                here = row["segments"] == segment
                tokens, labels = row["tokens"][here].tolist(), row["labels"][here].tolist()
                weights = tuple(int(w) for w in row["loss_mask"][here])
                if tokens:
                    found[(*tokens, labels[-1]), weights] += 1
    assert found == expected


def test_more_rows_do_not_change_the_first_ones(tmp_path):
    write_entries(tmp_path / "d", [([i] * 9, [1] * 9) for i in range(40)], vocab_size=60_000)
    for layout in ("inside", "none"):
        args = arguments([tmp_path / "d"], tmp_path / "cache", packing=layout)
        short, long = (build_datasets(args, 60_000, rows, 0)[0] for rows in (20, 200))
        for i in range(20):
            assert torch.equal(short[i]["tokens"], long[i]["tokens"])


def test_a_dataset_written_anew_is_not_read_with_the_old_index(tmp_path):
    for n in (9, 5):
        for name in ("d.bin", "d.idx", "d.json"):
            (tmp_path / name).unlink(missing_ok=True)
        write_entries(tmp_path / "d", [(list(range(n)), [1] * n)] * 40, vocab_size=60_000)
        train, *_ = build_datasets(arguments([tmp_path / "d"], tmp_path / "cache"), 60_000, 3, 0)
        assert train[0]["tokens"].max() == n - 1


def test_entries_cut_elsewhere_are_not_read_with_the_old_index(tmp_path):
    """Another --block-size gives the same .bin."""
    for size in (10, 5):
        for path in tmp_path.glob("d*"):
            path.unlink()
        entries = [(list(range(i, i + size)), [1] * size) for i in range(0, 400, size)]
        write_entries(tmp_path / "d", entries, vocab_size=60_000)
        args = arguments([tmp_path / "d"], tmp_path / "cache", packing="none")
        train, *_ = build_datasets(args, 60_000, None, 0)
        assert len(train) == 400 / size
        assert {int(train[i]["labels"].max()) for i in range(len(train))} == {ids[-1] for ids, _ in entries}


TAGS = [("mono", "en"), ("mono", "fr"), ("parallel", "en-fr"), ("augmented", "en-fr"), ("sft", "")]
SOME_TAGS = st.lists(st.sampled_from(TAGS), min_size=1, max_size=3)
LAYOUTS = st.sampled_from(["across", "inside", "none"])


def write_numbered(folder, datasets):
    """Datasets of entries of these lengths; every token has an id of its own. Returns [[ids of each entry]]."""
    made, next_id = [], 0
    for number, entries in enumerate(datasets):
        ends = np.cumsum([next_id, *(length for length, _ in entries)]).tolist()
        made.append([list(range(a, b)) for a, b in itertools.pairwise(ends)])
        next_id = ends[-1]
        # Tags that only one dataset uses, or one alone, too: it then has no .tags, or the manifest's only one.
        tags = [tag for _, tag in entries]
        write_entries(folder / str(number), [(ids, [1] * len(ids)) for ids in made[-1]], 60_000, tags)
    return made


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=LAYOUTS, split=st.booleans(), data=st.data())
def test_every_held_out_label_has_the_group_of_its_entry(layout, split, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    datasets = []
    for tags in data.draw(st.lists(SOME_TAGS, min_size=1, max_size=3)):
        entry = st.tuples(st.integers(2, 33), st.sampled_from(tags))
        datasets.append(data.draw(st.lists(entry, min_size=12, max_size=20)))
    made = write_numbered(folder, datasets)
    group_of = {i: tag for entries, all_ids in zip(datasets, made, strict=True)
                for (_, tag), ids in zip(entries, all_ids, strict=True) for i in ids}  # fmt: skip
    blend = [part for number in range(len(datasets)) for part in (data.draw(st.integers(1, 3)), folder / str(number))]
    if split:
        args, held_out = arguments(blend, folder / "cache", packing=layout, split="50,50,0"), datasets
    else:
        args = arguments(blend, folder / "cache", packing=layout, valid_data_path=[str(part) for part in blend[2:]])
        args.valid_data_path, held_out = args.valid_data_path or [str(folder / "0")], datasets[1:] or datasets[:1]
    train, valid, names = build_datasets(args, 60_000, 5, 10)
    assert names == sorted({tag for entries in held_out for _, tag in entries})
    assert len(train) >= 5 and len(valid) >= 10 and all("groups" not in train[i] for i in range(5))
    for row in (valid[i] for i in range(10)):
        assert row["groups"].dtype == torch.int32 and row["groups"].shape == (32,)
        filled = row.get("segments", torch.zeros(32)) >= 0
        assert (row["groups"][~filled] == -1).all()
        found = [names[i] for i in row["groups"][filled].tolist()]
        assert found == [group_of[label] for label in row["labels"][filled].tolist()]


def test_no_held_out_rows_no_groups(tmp_path):
    """Where none is wanted nothing is built, though the share has no entry."""
    write_entries(tmp_path / "d", [([1] * 9, [1] * 9)] * 3, vocab_size=60_000)
    for layout in ("across", "inside", "none"):
        for path in ([tmp_path / "d"], [1, tmp_path / "d"]):
            args = arguments(path, tmp_path / "cache", packing=layout, split="99,1,0")
            assert build_datasets(args, 60_000, 1, 0)[1:] == (None, [])
            args = arguments(path, tmp_path / "cache", packing=layout, valid_data_path=[str(tmp_path / "d")])
            assert build_datasets(args, 60_000, 1, 1)[2] == [("", "")]  # neither a kind nor a language is known


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 33), min_size=1, max_size=60),
    chunk=st.sampled_from([1, 3, 7, 1 << 16]),
    rows=st.integers(1, 60),
)
def test_rows_take_the_longest_that_fits(lengths, chunk, rows, tmp_path_factory):
    """Against a search through all entries that are left; one of one token takes no place, of 33 a whole row."""
    folder = tmp_path_factory.mktemp("rows")
    write_numbered(folder, [[(length, TAGS[0]) for length in lengths]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "_CHUNK", chunk)
        args = arguments([folder / "0"], folder / "cache", packing="inside")
        train, *_ = build_datasets(args, 60_000, rows, 0)
    expected, epoch = [], 0
    while len(expected) < rows:
        generator = np.random.Generator(np.random.PCG64([3, epoch]))
        order, epoch = generator.permutation(len(lengths)).tolist(), epoch + 1
        for at in range(0, len(order), chunk):
            left, here = order[at : at + chunk], []
            while left:
                row = [left.pop(0)]
                while fitting := [i for i in left if sum(lengths[j] - 1 for j in [*row, i]) <= 32]:
                    row.append(max(fitting, key=lambda i: lengths[i]))  # the first of equals
                    left.remove(row[-1])
                here.append(row)
            expected += [here[i] for i in generator.permutation(len(here))]
    bounds = itertools.pairwise(train.sample_index)
    assert [train.document_index[a:b].tolist() for a, b in bounds] == expected


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=LAYOUTS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), data=st.data())
def test_order_digests_are_equal_where_the_rows_are(layout, sizes, data, tmp_path_factory):
    """Of two runs that may differ in seed, datasets, weights and length."""
    folder = tmp_path_factory.mktemp("order")
    lengths = st.integers(2, 9).map(lambda length: (length, TAGS[0]))
    made = write_numbered(folder, [data.draw(st.lists(lengths, min_size=n, max_size=n)) for n in sizes])
    source_of = {i: str(folder / str(number)) for number, entries in enumerate(made) for ids in entries for i in ids}
    runs = []
    for _ in range(2):
        used = data.draw(st.permutations(range(len(sizes))))[: data.draw(st.integers(1, len(sizes)))]
        path = [part for i in used for part in (data.draw(st.sampled_from([1, 2, 1000])), folder / str(i))]
        if len(used) == 1:
            path = path[data.draw(st.integers(0, 1)) :]  # without a weight there is no blend
        args = arguments(path, folder / "cache", packing=layout, seq_length=9, seed=data.draw(st.integers(1, 2)))
        train, *_ = build_datasets(args, 60_000, data.draw(st.integers(1, 12)), 0)
        rows = [train[i] for i in range(len(train))]
        runs.append(([(row["tokens"].tolist(), row["labels"].tolist()) for row in rows], train))
    (one_rows, one), (other_rows, other) = runs
    for rows in range(1, min(len(one), len(other)) + 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data_module, "_CHUNK", data.draw(st.sampled_from([2, 1 << 16])))
            same = order_digest(one, rows) == order_digest(other, rows)
        assert same == (one_rows[:rows] == other_rows[:rows]), rows
    for rows, train in runs:
        middle = data.draw(st.integers(0, len(train)))
        expected = collections.Counter(source_of[labels[0]] for _, labels in rows)
        found = [collections.Counter(rows_per_source(train, stop, start))
                 for stop, start in ((len(train), 0), (middle, 0), (len(train), middle))]  # fmt: skip
        assert found[0] == expected and found[1] + found[2] == expected
    with pytest.raises(ValueError, match=rf"the digest of {len(one) + 1} rows of {len(one)}"):
        order_digest(one, len(one) + 1)


def test_order_digests_see_how_sources_take_turns(tmp_path):
    """At these weights the first five rows are three and two of the same ones, in another order."""
    write_numbered(tmp_path, [[(9, TAGS[0])] * 20] * 2)
    path = str(tmp_path / "0"), str(tmp_path / "1")
    builds = [build_datasets(arguments([weights[0], path[0], weights[1], path[1]], tmp_path / "cache"), 60_000, 5, 0)[0]
              for weights in ((2, 1), (3, 2))]  # fmt: skip
    assert [build.dataset_index[:5].tolist() for build in builds] == [[0, 1, 0, 0, 1], [0, 1, 0, 1, 0]]
    assert rows_per_source(builds[0], 5) == rows_per_source(builds[1], 5) == {path[0]: 3, path[1]: 2}
    assert order_digest(builds[0], 3) == order_digest(builds[1], 3)
    assert order_digest(builds[0], 5) != order_digest(builds[1], 5)


def test_order_digests_tell_datasets_apart_by_what_they_hold(tmp_path):
    """Not by where they are; the same entries with another loss are others."""
    digests = {}
    for name, weight in (("a", 1), ("b", 1), ("c", 0)):
        write_entries(tmp_path / name, [([i] * 9, [weight] * 4 + [1] * 5) for i in range(40)], vocab_size=60_000)
        train, *_ = build_datasets(arguments([tmp_path / name], tmp_path / "cache"), 60_000, 5, 0)
        digests[name] = order_digest(train, 5)
    assert digests["a"] == digests["b"] != digests["c"]


def is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def build_on_rank(rank, folder, results):
    """What a rank of two sees of the data in each layout."""
    logging.getLogger("megatron").setLevel(logging.CRITICAL)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for layout in ("across", "inside", "none"):
        held_out = [str(folder / "1"), str(folder / "0")]
        args = arguments([2, folder / "0", 1, folder / "1"], folder / "cache", packing=layout, valid_data_path=held_out)
        train, valid, names = build_datasets(args, 60_000, 200, 20)
        indices = [train.dataset_index, train.dataset_sample_index]
        for source in train.datasets:
            indices += [source.document_index, source.sample_index, source.shuffle_index]
        mapped = [is_mapped(index) for index in indices if isinstance(index, np.ndarray)]
        rows = [train[i]["tokens"].tolist() for i in range(200)], [valid[i]["groups"].tolist() for i in range(20)]
        results.put((layout, rank, mapped, rows, names, order_digest(train, 200)))
    results.close()
    results.join_thread()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_every_rank_maps_what_the_first_one_built(tmp_path):
    write_numbered(tmp_path, [[(2 + i % 30, TAGS[i % 3]) for i in range(n)] for n in (300, 70)])
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=build_on_rank, args=(rank, tmp_path, results)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    seen = sorted(results.get(timeout=300) for _ in range(6))
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    # Of the layout `none` no row needs to say where it begins.
    for one, other, indices in zip(seen[::2], seen[1::2], (8, 6, 4), strict=True):
        assert one[2] == other[2] == [True] * indices
        assert one[3:] == other[3:]


# Bytes at which a process is killed: in the first file of a dataset, in a later one, in one of the blend.
LIMITS = (100_000, 600_000, 1_200_000)


def kill_builders(arguments_of):
    """Build index caches, each in a process that is killed in the middle of writing a file."""
    logging.getLogger("megatron").setLevel(logging.CRITICAL)
    for args, limit in zip(arguments_of, LIMITS * 2, strict=True):
        if not (child := os.fork()):
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            build_datasets(args, 60_000, 200_000, 0)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXFSZ


def test_caches_of_killed_builds_are_absent(tmp_path):
    write_numbered(tmp_path, [[(33, TAGS[0])] * n for n in (1000, 500)])
    path = [1, tmp_path / "0", 1, tmp_path / "1"]
    cases = [(layout, seed) for layout in ("across", "inside") for seed in range(len(LIMITS))]
    killed, whole = ([arguments(path, tmp_path / cache, packing=layout, seed=seed) for layout, seed in cases]
                     for cache in ("killed", "whole"))  # fmt: skip
    process = torch.multiprocessing.get_context("spawn").Process(target=kill_builders, args=(killed,))
    process.start()
    process.join()
    assert process.exitcode == 0
    for args in zip(killed, whole, strict=True):
        builds = [build_datasets(one, 60_000, 200_000, 0)[0] for one in args]
        assert order_digest(builds[0], 200_000) == order_digest(builds[1], 200_000)
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("layout", ["across", "inside", "none"])
def test_a_cache_that_cannot_be_written_is_one_line(layout, tmp_path):
    write_numbered(tmp_path, [[(33, TAGS[0])] * 100])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match="check the path and the file system"):
            build_datasets(arguments([tmp_path / "0"], tmp_path / "cache", packing=layout), 60_000, 200_000, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["verified.json"]


def test_attention_stays_inside_entries():
    segments = torch.tensor([[0, 0, 1, 1, 1, -1]])
    allowed = ~attention_mask(segments)[0, 0]
    for i in range(6):
        for j in range(6):
            assert allowed[i, j] == (j <= i and segments[0, i] == segments[0, j])


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 6))
def test_ranks_share_the_global_order(micro, ranks, consumed_steps, steps):
    step = micro * ranks
    consumed, total = consumed_steps * step, (consumed_steps + steps) * step
    batches = [list(SequentialSampler(total, consumed, micro, rank, ranks)) for rank in range(ranks)]
    order = [i for group in zip(*batches, strict=True) for batch in group for i in batch]
    assert order == list(range(consumed, total))


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    write_entries(tmp_path / "d", [([1] * 50, [1] * 50)], vocab_size=60_000)
    with pytest.raises(InputError, match=r"tokenizer has 60000 tokens, the model 100"):
        build_datasets(arguments([tmp_path / "d"], tmp_path / "cache"), 100, 1, 0)
    with pytest.raises(InputError, match=r"--seq-length 32: .*an entry of 50 tokens; raise it to 49"):
        build_datasets(arguments([tmp_path / "d"], tmp_path / "cache", packing="none"), 60_000, 1, 0)
    with pytest.raises(InputError, match="no complete dataset"):
        build_datasets(arguments([tmp_path / "none"], tmp_path / "cache"), 60_000, 1, 0)
    with pytest.raises(InputError, match="its valid share has no entry"):
        build_datasets(arguments([1, tmp_path / "d"], tmp_path / "cache", split="99,1,0"), 60_000, 1, 1)
    changed = json.loads((tmp_path / "d.json").read_text())
    (tmp_path / "d.json").write_text(json.dumps(changed | {"format": 2}))
    with pytest.raises(InputError, match=r"d.json: format 2, expected 3; remove .*d\* and preprocess again"):
        build_datasets(arguments([tmp_path / "d"], tmp_path / "cache"), 60_000, 1, 0)


def damage(path):
    """Change one bit, and nothing else that can be seen from outside."""
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


FILES = ("d.bin", "d.idx", "d_loss.bin", "d_loss.idx", "d.tags")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(name, tmp_path):
    write_entries(tmp_path / "d", [([1] * 9, [0] * 4 + [1] * 5)] * 9, 60_000, tags=[("mono", "en"), ("mono", "fr")] * 5)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "d.json"}
    args, path = arguments([tmp_path / "d"], tmp_path / "cache"), tmp_path / name
    good, size = path.read_bytes(), path.stat().st_size
    damage(path)
    with pytest.raises(
        InputError, match=rf"{name}: {size} bytes, xxh3_128 \w+; its manifest expects {size} bytes, \w+;"
    ):
        build_datasets(args, 60_000, 1, 0)
    path.write_bytes(good[:-1])
    with pytest.raises(InputError, match=rf"{name}: {size - 1} bytes, .* its manifest expects {size} bytes"):
        build_datasets(args, 60_000, 1, 0)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: missing, though .*d.json is there"):
        build_datasets(args, 60_000, 1, 0)
    path.write_bytes(good)
    build_datasets(args, 60_000, 1, 0)


def test_a_loss_mask_of_another_dataset_is_not_taken_for_its_own(tmp_path):
    write_entries(tmp_path / "d", [([1] * 50, [1] * 50)], vocab_size=60_000)
    (tmp_path / "d_loss.idx").write_bytes(b"")
    with pytest.raises(InputError, match=r"d_loss.idx: not a file of the dataset that .*d.json tells of; remove it"):
        build_datasets(arguments([tmp_path / "d"], tmp_path / "cache"), 60_000, 1, 0)


def test_files_are_read_again_only_where_they_were_touched(tmp_path):
    """What is damaged without a trace shows whether a file was read."""
    for prefix in ("d", "e"):
        write_entries(tmp_path / prefix, [([1] * 50, [1] * 50)], vocab_size=60_000)
    args = arguments([1, tmp_path / "d", 1, tmp_path / "e"], tmp_path / "cache")
    cache = tmp_path / "cache" / "verified.json"
    refused = functools.partial(
        pytest.raises, InputError, match=r"d.bin: 100 bytes, xxh3_128 \w+; its manifest expects"
    )
    build_datasets(args, 60_000, 1, 0)
    good = (tmp_path / "d.bin").read_bytes()
    damage(tmp_path / "d.bin")
    build_datasets(args, 60_000, 1, 0)  # was not read
    with refused():  # without a cache all is read
        read_manifest(tmp_path / "d")
    known = cache.read_bytes()
    for damaged in (b"", b"{", b"[1]", b'{"x": ', b"\xff", known.replace(b'"', b"'")):
        cache.write_bytes(damaged)
        with refused():
            build_datasets(args, 60_000, 1, 0)
    cache.write_bytes(known)
    os.utime(tmp_path / "d.bin")
    with refused():
        build_datasets(args, 60_000, 1, 0)
    (tmp_path / "d.bin").write_bytes(good)
    build_datasets(args, 60_000, 1, 0)
    assert [path.name for path in cache.parent.glob(".*")] == []
    # What a manifest expects is part of what was verified: a new dataset with the stamps of the old one is read.
    changed = json.loads((tmp_path / "d.json").read_text())
    (tmp_path / "d.json").write_text(json.dumps(changed | {"xxh3_128": "0" * 32}))
    with refused():
        build_datasets(args, 60_000, 1, 0)
