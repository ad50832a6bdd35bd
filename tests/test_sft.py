"""Instruction tuning: prompts, masks, cuts, rejects, rows and steps, and runs to the end, interrupted or not.

SOAK=1 compares the losses of packed and one-example rows for all real examples, in ten parts, instead of for one in
a hundred.
"""

import argparse
import collections
import json
import os
import shutil
import sys

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import LLAMA2, SHARED, llama_folder, needs_shared, snapshot, stage, write_jsonl
from megatron.core.datasets.indexed_dataset import IndexedDataset
from training import losses, rows

from llamax.data import build_datasets, epoch_of
from llamax.files import InputError
from llamax.prompt_ids import PromptEncoder
from llamax.prompts import PROMPTS, alpaca_prompt, translation_prompt
from llamax.tokenizer import load_tokenizer
from sft_alpaca import encode_example, get_args, plan_steps, preprocess, read_examples, rows_a_step

PARTS = [(first, 10, 512) for first in range(10)] if int(os.environ.get("SOAK", "0")) else [(0, 100, 512)]
PARTS.append((0, 1, 1200))
ALPACA = SHARED / "alpaca" / "alpagasus_random_9k.json"


def test_prompts_are_those_of_their_authors():
    """LLaMAX's as its card has it, Stanford's as its train.py has it."""
    assert translation_prompt("a: {b}", "English", "Chinese Simpl") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n### Instruction:\nTranslate the following sentences from "
        "English to Chinese Simpl.\n### Input:\na: {b}\n### Response:"
    )
    assert alpaca_prompt("Name {three} colours.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "### Instruction:\nName {three} colours.\n### Response:"
    )
    assert alpaca_prompt("Sum up.", "a: {b}\n", "stanford") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nSum up.\n\n### Input:\na: {b}\n\n\n"
        "### Response:"
    )
    assert alpaca_prompt("Name {three} colours.", "", "stanford") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName {three} colours.\n\n### Response:"
    )


def arguments(hf, data, save, **changes):
    """What preprocess and plan_steps read of a run's arguments."""
    values = {
        "hf_model": str(hf), "data": [str(data)], "save": str(save), "prompt": "llamax", "over_long": "drop",
        "seq_length": 500, "max_reject_rate": 1.0, "valid_data_path": None, "split": "100,0,0", "seed": 1,
        "packing": "inside", "data_cache_path": str(save / "data_cache"),
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def entries(prefix):
    """[(ids, loss mask)] of a dataset."""
    ids, loss = IndexedDataset(prefix), IndexedDataset(f"{prefix}_loss")
    return [(ids.get(i).tolist(), loss.get(i).tolist()) for i in range(len(ids))]


def write_examples(path, *examples):
    keys = "instruction", "input", "output"
    path.write_text(json.dumps([dict(zip(keys, example, strict=True)) for example in examples]), encoding="utf-8")
    return path


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tuning_and_evaluation_feed_the_same_ids(prompt, hf_llama2, tmp_path):
    text = "the old farmer buys ### Response:\n a {red} lamp"
    instruction = "Translate the following sentences from English to Chinese Simpl."
    examples = write_examples(tmp_path / "one.json", (instruction, text, "老农民"))
    [(ids, loss)] = entries(preprocess(arguments(hf_llama2, examples, tmp_path / "sft", prompt=prompt)))
    tokenizer = load_tokenizer(hf_llama2)
    fed = {name: list(PromptEncoder(hf_llama2, name).encode(("en", "zh"), "one", [text])[0]) for name in PROMPTS}
    assert ids[: loss.index(1)] == fed[prompt] and 0 not in loss[len(fed[prompt]) :]
    assert tokenizer.decode(ids[len(fed[prompt]) : -1]) == "老农民" and ids[-1] == tokenizer.eos_id
    assert fed["llamax"] != fed["stanford"]


def entries_of_rows(args, prefix):
    """[(ids, loss mask)], as tuples, of the entries that the rows of one epoch are made of, and the rows."""
    args.data_path = [prefix]
    data, *_ = build_datasets(args, 32000, None, 0)
    found = []
    for row in data:
        tokens, labels, mask, segments = (row[name].numpy() for name in ("tokens", "labels", "loss_mask", "segments"))
        assert not mask[segments < 0].any()
        for segment in range(segments.max() + 1):
            here = segments == segment
            assert tokens[here][1:].tolist() == labels[here][:-1].tolist()
            found.append(((*tokens[here].tolist(), int(labels[here][-1])), (0, *mask[here].astype(int).tolist())))
    return found, len(data)


@needs_shared
def test_packed_rows_hold_what_rows_of_one_example_hold(tmp_path):
    """All real examples, against sentencepiece on prompt and response apart."""
    reference = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA2))
    expected = []
    for example in json.loads(ALPACA.read_text(encoding="utf-8")):
        if example["output"].strip():
            context = [1, *reference.encode(alpaca_prompt(example["instruction"], example["input"]))]
            # A character before the response, encoded and taken away again, leaves no dummy prefix.
            response = [*reference.encode("\n" + example["output"])[2:], 2]
            expected.append(((*context, *response), (0,) * len(context) + (1,) * len(response)))
    assert len(expected) == 9225
    args = arguments(tmp_path, ALPACA, tmp_path, seq_length=1200)
    shutil.copy(LLAMA2, tmp_path / "tokenizer.model")
    prefix = preprocess(args)
    manifest = json.loads((tmp_path / "data" / "alpaca.json").read_text())
    assert manifest["documents"] == 9225 and manifest["rejects"] == {"empty": 4}
    assert manifest["loss_tokens"] == sum(sum(loss) for _, loss in expected)
    for args.packing in ("none", "inside"):
        found, number = entries_of_rows(args, prefix)
        assert collections.Counter(found) == collections.Counter(expected)
        assert number == 9225 if args.packing == "none" else number < 9225 / 7


@needs_shared
@pytest.mark.parametrize(("first", "step", "length"), PARTS)
def test_packed_rows_have_the_losses_of_rows_of_one_example(first, step, length, tmp_path):
    """Of examples of at most 513 tokens, and of the 16 longer ones."""
    hf = llama_folder(tmp_path / "hf", LLAMA2, 32000, num_hidden_layers=2)
    tokenizer, args = load_tokenizer(LLAMA2), arguments(hf, tmp_path / "some.json", tmp_path, seq_length=1200)
    examples = [example for example in json.loads(ALPACA.read_text(encoding="utf-8")) if example["output"].strip()]
    chosen = [e for e in examples if (len(encode_example(e, tokenizer, args)[0]) > 513) == (length > 512)][first::step]
    (tmp_path / "some.json").write_text(json.dumps(chosen))
    prefix = preprocess(args)
    stage("tests/entry_losses.py", hf, prefix, length, tmp_path / "cache", tmp_path / "losses.pt")
    packed, alone = torch.load(tmp_path / "losses.pt", weights_only=True).values()
    of_examples = entries(prefix)
    assert len(of_examples) == len(chosen) == len(range(first, 16 if length > 512 else 9209, step))
    assert packed.keys() == alone.keys() == {tuple(ids) for ids, _ in of_examples}
    assert max(np.abs(np.subtract(packed[ids], alone[ids])).max() for ids in alone) < 1e-5


def test_what_is_too_long_is_dropped_or_cut(hf_llama2, tmp_path):
    tokenizer, length = load_tokenizer(hf_llama2), 200
    context = [tokenizer.bos_id, *tokenizer.encode(alpaca_prompt("Say it."))]
    one = len(tokenizer.encode_continuation("7"))
    room = length + 1 - len(context) - 1  # for a response and its EOS
    fits, over = "7" * (room // one), "7" * (room // one + 1)
    long_prompt = "7" * length
    path = write_examples(tmp_path / "a.json", ("Say it.", "", fits), ("Say it.", "", over), (long_prompt, "", "x"))
    args = arguments(hf_llama2, path, tmp_path / "drop", seq_length=length)
    [(ids, loss)] = entries(preprocess(args))
    assert len(ids) == len(loss) == length + 1 and ids[-1] == tokenizer.eos_id
    manifest = json.loads((tmp_path / "drop" / "data" / "alpaca.json").read_text())
    assert (manifest["rejects"], manifest["cut"]) == ({"over-long": 2}, 0)

    args = arguments(hf_llama2, path, tmp_path / "cut", seq_length=length, over_long="cut")
    whole, (ids, loss) = entries(preprocess(args))
    assert whole[0] == [*context, *tokenizer.encode_continuation(fits), tokenizer.eos_id]
    assert ids == [*context, *tokenizer.encode_continuation(over)] and len(ids) == length + 1
    assert loss == [0] * len(context) + [1] * (len(ids) - len(context))
    manifest = json.loads((tmp_path / "cut" / "data" / "alpaca.json").read_text())
    assert (manifest["rejects"], manifest["cut"]) == ({"over-long prompt": 1}, 1)


@pytest.mark.parametrize(("wanted", "micro", "ranks", "expected"), [
    (35.8, 4, 1, (4, 36)),
    (35.8, 4, 2, (3, 36)),  # fours would make 32
    (28.3, 4, 4, (1, 28)),
    (35.8, 4, 8, (4, 32)),  # 32 is the nearest for any
    (35.8, 4, 24, (1, 24)),
    (35.8, 4, 100, (1, 100)),
    (2.9, 4, 1, (3, 3)),
    (0.2, 4, 1, (1, 1)),
])  # fmt: skip
def test_rows_a_step(wanted, micro, ranks, expected):
    assert rows_a_step(wanted, micro, ranks) == expected


def test_an_epoch_has_every_example_once(hf_llama2, tmp_path):
    examples = [("Say it.", "", "now " * (i % 23 + 1)) for i in range(100)]
    args = arguments(hf_llama2, write_examples(tmp_path / "a.json", *examples), tmp_path, split="80,20,0")
    prefix = preprocess(args)
    assert epoch_of(argparse.Namespace(**{**vars(args), "packing": "none"}), prefix, 500) == (80, 80, 20)
    number, held, held_out = epoch_of(args, prefix, 500)
    found, rows_found = entries_of_rows(args, prefix)
    assert (number, held, held_out) == (rows_found, len(found), 20) and held == 80 and number < 40


def test_what_holds_no_example_out_has_no_held_out_loss(hf_llama2, tmp_path, capsys):
    path = write_examples(tmp_path / "a.json", *[("Say it.", "", str(i)) for i in range(40)])
    for split, line in (("99,1,0", "no held-out loss: --split 99,1,0 holds none of 40 examples out\n"), ("9,1,0", "")):
        args = arguments(hf_llama2, path, tmp_path, split=split, packing="none", global_batch_size=8, train_iters=None,
                         num_train_epochs=1.5, lr_decay_iters=None, eval_interval=5)  # fmt: skip
        prefix = preprocess(args)
        capsys.readouterr()
        plan_steps(args, prefix)
        assert capsys.readouterr().out == line
        assert args.eval_interval == (0 if line else 5)
        assert args.train_iters == args.lr_decay_iters == round(1.5 * (40 if line else 36) / 8)


def test_lines_are_read_like_a_list(hf_llama2, tmp_path):
    examples = [{"instruction": "Say it.", "input": "", "output": f"now\u2028{i}"} for i in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(examples))
    write_jsonl(tmp_path / "a.jsonl", examples)
    prefixes = [preprocess(arguments(hf_llama2, tmp_path / f"a.{end}", tmp_path / end)) for end in ("json", "jsonl")]
    assert entries(prefixes[0]) == entries(prefixes[1]) and len(entries(prefixes[0])) == 5

    lines = [json.dumps(examples[0]).encode(), b"", b"{", b"[1]", b'{"instruction": "\xff"}']
    (tmp_path / "b.jsonl").write_bytes(b"\r\n".join(lines))
    prefix = preprocess(arguments(hf_llama2, tmp_path / "b.jsonl", tmp_path / "b"))
    assert len(entries(prefix)) == 1
    reasons = [(3, "invalid JSON"), (4, "not an object"), (5, "invalid UTF-8")]
    assert rejects(tmp_path / "b") == reasons


def rejects(save):
    found = (save / "data" / "alpaca.rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["line"], row["reason"]) for row in map(json.loads, found)]


BAD = {  # examples that cannot be used, by the reason
    "not an object": 5,
    "missing field": {"instruction": "x", "input": ""},
    "empty": {"instruction": "x", "input": "", "output": " "},
    "wrong type": {"instruction": 1, "input": "", "output": "x"},
    "over-long": {"instruction": "x", "input": "", "output": "long " * 500},
}


@pytest.fixture
def examples(tmp_path):
    good = [{"instruction": f"Say {i}.", "input": "now" * (i % 2), "output": f"the {i}"} for i in range(40)]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([*good, *BAD.values()]))
    return path


@pytest.fixture
def command(examples, hf_llama2):
    """The command line of a short run, but for --save: 8 examples a step."""
    return ["sft_alpaca.py", "--hf-model", hf_llama2, "--data", examples, "--max-reject-rate", 0.2, "--seq-length", 500,
            "--global-batch-size", 8, "--split", "80,20,0", "--lr", 1e-3, "--eval-interval", 5, "--eval-iters", 1,
            "--save"]  # fmt: skip


def test_a_run(command, examples, hf_llama2, tmp_path):
    save = tmp_path / "sft"
    said = stage(*command, save, "--num-train-epochs", 2, ranks=2)
    args = arguments(hf_llama2, examples, save, split="80,20,0", seed=1234)
    in_an_epoch, *held = epoch_of(args, str(save / "data" / "alpaca"), 500)
    assert held == [32, 8] and in_an_epoch < 16
    batch = 2 * round(8 * in_an_epoch / 32 / 2)
    assert f"{batch} rows a step hold {batch * 32 / in_an_epoch:.1f} examples on average; micro" in said
    found = rows(save)
    assert max(row["iteration"] for row in found) == round(2 * in_an_epoch / batch)
    held_out = [row["valid_loss"] for row in found if "valid_loss" in row]
    assert held_out[-1] < held_out[0]
    assert rejects(save) == list(enumerate(BAD, 41))
    recorded = json.loads((save / "run.json").read_text(encoding="utf-8"))["arguments"]
    assert (recorded["prompt"], recorded["examples_a_step"], recorded["global_batch_size"]) == ("llamax", 8, batch)


def test_an_interrupted_run_ends_like_one_that_was_not(command, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stage(*command, whole)
    resumed = *command, parts, "--load", parts
    stage(*resumed, "--exit-interval", 4)
    assert max(row["iteration"] for row in rows(parts)) == 4
    stage(*resumed)
    assert losses(parts) == losses(whole) and max(losses(whole))[0] > 8


def test_a_run_with_other_data_is_refused(examples, hf_llama2, tmp_path):
    """So that no run goes on with what it did not begin with."""
    save = tmp_path / "sft"
    prefix = preprocess(arguments(hf_llama2, examples, save))
    before = snapshot(save)
    other = write_examples(tmp_path / "other.json", ("Say it.", "", "x"))
    for data, changes, found in (
        (examples, {"prompt": "stanford"}, "prompt 'llamax', now 'stanford'"),
        (examples, {"over_long": "cut"}, "over_long 'drop', now 'cut'"),
        (examples, {"seq_length": 512}, "seq_length 500, now 512"),
        (other, {}, "other source files"),
    ):
        with pytest.raises(InputError, match=f"--save {save}: .*{found}; give the same --data, --prompt, "):
            preprocess(arguments(hf_llama2, data, save, **changes))
    assert preprocess(arguments(hf_llama2, examples, save)) == prefix and snapshot(save) == before


def test_errors(command, examples, hf_llama2, tmp_path, monkeypatch):
    def refused(options, message):
        monkeypatch.setattr(sys, "argv", [*map(str, command), str(tmp_path / "sft"), *options])
        with pytest.raises(InputError, match=message):
            get_args()

    refused(["--data", str(tmp_path / "none.json")], "--data .*none.json: does not exist")
    refused(["--num-train-epochs", "0", "--max-reject-rate", "3"], "--num-train-epochs 0.0: .*--max-reject-rate 3.0: ")
    refused(["--packing", "none", "--global-batch-size", "6"], "--global-batch-size 6: expected a multiple of .* 4 × 1")
    refused(["--global-batch-size", "0", "--micro-batch-size", "0"], "--micro-batch-size 0: .*--global-batch-size 0: ")
    prefix = preprocess(arguments(hf_llama2, examples, tmp_path / "small"))
    with pytest.raises(InputError, match="has 500 tokens, the model 300"):
        epoch_of(arguments(hf_llama2, examples, tmp_path / "small"), prefix, 300)
    with pytest.raises(InputError, match=r"5 of 45 records .*over-long 1\b.* --max-reject-rate"):
        preprocess(arguments(hf_llama2, examples, tmp_path / "sft", max_reject_rate=0.1))
    assert not list((tmp_path / "sft" / "data").glob("alpaca.[!r]*"))
    for content, message in (
        (b'[{"instruction": "x"', "not valid JSON"),
        ('[{"instruction": "é"}]'.encode("latin-1"), "not valid JSON.*utf-8"),
        (b"{}", "found a JSON dict, expected a list of examples"),
    ):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(InputError, match=f"--data .*bad.json: {message}"):
            list(read_examples(str(tmp_path / "bad.json")))
    (tmp_path / "half.json").write_text(r'[{"instruction": "half \ud800", "input": "", "output": "x"}]')
    with pytest.raises(InputError, match="no usable record"):
        preprocess(arguments(hf_llama2, tmp_path / "half.json", tmp_path / "sft"))
    assert rejects(tmp_path / "sft") == [(1, "invalid UTF-8")]
