"""Instruction tuning: prompts, masks, rejects, and a run to the end."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
from conftest import LLAMA2, SHARED, fails, needs_shared, stage
from megatron.core.datasets.indexed_dataset import IndexedDataset

from llamax.prompts import alpaca_prompt, translation_prompt
from llamax.tokenizer import load_tokenizer
from sft_alpaca import encode_example


def test_prompts_are_llamax_own_bytes():
    assert translation_prompt("a: {b}", "English", "Chinese Simpl") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n### Instruction:\nTranslate the following sentences from "
        "English to Chinese Simpl.\n### Input:\na: {b}\n### Response:"
    )
    assert alpaca_prompt("Name {three} colours.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "### Instruction:\nName {three} colours.\n### Response:"
    )


@needs_shared
def test_ids_and_masks_of_real_examples():
    """Against sentencepiece on prompt and response apart: the response continues, without a dummy prefix."""
    tokenizer = load_tokenizer(LLAMA2)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA2))
    examples = json.loads((SHARED / "alpaca" / "alpagasus_random_9k.json").read_text())
    examples = [example for example in examples if example["output"].strip()]
    assert len(examples) == 9225
    for example in examples[::50]:
        ids, context = encode_example(example, tokenizer, 10_000)
        prompt = alpaca_prompt(example["instruction"], example["input"])
        assert ids[:context] == [1, *reference.encode(prompt)]
        # A character before the response, encoded and taken away again, leaves no dummy prefix.
        after = reference.encode("\n" + example["output"])[2:]
        assert ids[context:] == [*after, 2]


@pytest.fixture
def examples(tmp_path):
    good = [{"instruction": f"Say {i}.", "input": "now" * (i % 2), "output": f"the {i}"} for i in range(40)]
    bad = [5, {"instruction": "x", "input": ""}, {"instruction": "x", "input": "", "output": " "},
           {"instruction": 1, "input": "", "output": "x"},
           {"instruction": "x", "input": "", "output": "long " * 500}]  # fmt: skip
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(good + bad))
    return path


def test_a_run(examples, hf_llama2, tmp_path):
    command = ("sft_alpaca.py", "--hf-model", hf_llama2, "--data", examples, "--save", tmp_path / "sft",
               "--seq-length", 200, "--global-batch-size", 8, "--lr", 1e-3)  # fmt: skip
    fails(*command, saying=["5 of 45 records", "over-long 1", "--max-reject-rate"])
    stage(*command, "--max-reject-rate", 0.2, "--num-train-epochs", 2, "--split", "80,20,0", ranks=2)
    rows = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["iteration"] for row in rows) == 2 * 32 // 8
    held_out = [row["valid_loss"] for row in rows if "valid_loss" in row]
    assert held_out[-1] < held_out[0]
    rejects = [json.loads(line) for line in (tmp_path / "sft/data/alpaca.rejects.jsonl").read_text().splitlines()]
    reasons = ["not an object", "missing field", "empty", "wrong type", "over-long"]
    assert [(r["line"], r["reason"]) for r in rejects] == list(enumerate(reasons, 41))
    # The loss is on the response and EOS only.
    ids, loss = (IndexedDataset(str(tmp_path / "sft" / "data" / name)) for name in ("alpaca", "alpaca_loss"))
    tokenizer = load_tokenizer(hf_llama2)
    for i in range(40):
        assert tokenizer.decode(ids.get(i)[loss.get(i) == 1][:-1]) == f"the {i}"
        assert ids.get(i)[-1] == tokenizer.eos_id and np.all(np.diff(loss.get(i).astype(int)) >= 0)


def test_a_tokenizer_larger_than_the_model_is_refused(examples, hf_llama2, tmp_path):
    folder = tmp_path / "small"
    shutil.copytree(hf_llama2, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    fails("sft_alpaca.py", "--hf-model", folder, "--data", examples, "--save", tmp_path / "sft",
          "--max-reject-rate", 0.2, "--global-batch-size", 4, saying=["has 500 tokens, the model 300"])  # fmt: skip


def test_errors(examples, hf_llama2, tmp_path):
    common = "sft_alpaca.py", "--hf-model", hf_llama2, "--save", tmp_path / "sft", "--data"
    fails(*common, tmp_path / "none.json", saying=["--data", "does not exist"])
    fails(*common, examples, "--num-train-epochs", 0, "--max-reject-rate", 3,
          saying=["--num-train-epochs 0", "--max-reject-rate 3"])  # fmt: skip
    (tmp_path / "half.json").write_text('[{"instruction": "x"')
    fails(*common, tmp_path / "half.json", "--global-batch-size", 4, saying=["half.json", "not valid JSON"])
    (tmp_path / "latin1.json").write_bytes('[{"instruction": "é"}]'.encode("latin-1"))
    fails(
        *common, tmp_path / "latin1.json", "--global-batch-size", 4, saying=["latin1.json", "not valid JSON", "utf-8"]
    )
    (tmp_path / "surrogate.json").write_text(r'[{"instruction": "half \ud800", "input": "", "output": "x"}]')
    fails(*common, tmp_path / "surrogate.json", "--global-batch-size", 4, saying=["1 of 1 records", "invalid UTF-8 1"])
    (tmp_path / "object.json").write_text("{}")
    fails(*common, tmp_path / "object.json", "--global-batch-size", 4, saying=["expected a list of examples"])
