"""Rows and loss masks: every token has the loss weight its record asked for, whatever the layout and the blend."""

import argparse
import collections

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import SENTENCES, call, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import preprocess_mono
import preprocess_parallel
from llamax.data import SequentialSampler, attention_mask, build_datasets
from llamax.files import InputError
from llamax.indexed import writing_dataset


@pytest.fixture(autouse=True, scope="module")
def process_group():
    """megatron.core's blends ask for their rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def arguments(data_path, cache, **changes):
    values = {
        "data_path": [str(part) for part in data_path], "valid_data_path": None, "split": "100,0,0", "seed": 3,
        "seq_length": 32, "packing": "across", "data_cache_path": str(cache),
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def write_entries(prefix, entries, vocab_size):
    """An indexed dataset of (ids, weights) entries."""
    with writing_dataset(prefix, vocab_size) as (writer, manifest):
        for ids, weights in entries:
            writer.add(np.array(ids), [len(ids)], [1], np.array(weights, np.uint8))
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
    train, _ = build_datasets(arguments(blend, folder / "cache", packing=layout), 60_000, rows, 0)
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
    train, _ = build_datasets(arguments([tmp_path / "d"], tmp_path / "cache", packing=layout), 60_000, None, 0)
    seen = collections.Counter()
    for row in (train[i] for i in range(len(train))):
        seen.update(row["labels"][row["segments"] >= 0].tolist())
    assert seen == {i: n - 1 for i, n in enumerate(lengths)}
    if layout == "inside":
        assert sum(lengths - 1) / (len(train) * 32) > 0.7  # entries of 1 to 31 in rows of 32, first come, first placed


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
        rows, _ = build_datasets(args, reference.vocab_size(), None, 0)
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
        train, _ = build_datasets(arguments([tmp_path / "d"], tmp_path / "cache"), 60_000, 3, 0)
        assert train[0]["tokens"].max() == n - 1


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
    changed = bytearray((tmp_path / "d.bin").read_bytes())
    changed[0] ^= 1
    (tmp_path / "d.bin").write_bytes(changed)
    with pytest.raises(InputError, match="manifest expects"):
        build_datasets(arguments([tmp_path / "d"], tmp_path / "cache"), 60_000, 1, 0)
