"""The benchmark of instruction tuning in miniature: both sides do the same work, and other work is refused."""

import json
import math

import pytest
import sentencepiece
from conftest import run_stage, sentences, stage

from benchmarks.sft import check_same_work
from llamax.files import InputError
from llamax.prompts import alpaca_prompt

TINY = ("--layers", 2, "--hidden-size", 32, "--ffn-hidden-size", 64, "--heads", 4, "--key-value-heads", 2,
        "--seq-length", 400, "--micro-batch-size", 2, "--accumulation", 2, "--examples", 13, "--repetitions", 1,
        "--threads", 1)  # fmt: skip


@pytest.fixture
def alpaca(tmp_path):
    """13 examples of 1 to 13 sentences, two too long for a row, one without a response."""
    texts = [" ".join(sentences("en", i + 1, seed=i)) for i in range(13)] + ["7" * 300] * 2 + [""]
    examples = [{"instruction": f"Say {i}.", "input": "", "output": text} for i, text in enumerate(texts)]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(examples), encoding="utf-8")
    return path


def expected_lengths(path, tokenizer_model):
    """(tokens, response tokens) of the 13 that can be used."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    found = []
    for example in json.loads(path.read_text())[:13]:
        context = 1 + len(tokenizer.encode(alpaca_prompt(example["instruction"])))
        # A line feed before the response, encoded and taken away again, leaves no dummy prefix.
        response = len(tokenizer.encode("\n" + example["output"])[2:]) + 1
        found.append((context + response, response))
    return found


def test_both_sides_do_the_same_work(alpaca, tokenizer_model, tmp_path):
    output = tmp_path / "out.json"
    options = "--data", alpaca, "--tokenizer-model", tokenizer_model, "--output", output
    out = stage("benchmarks/sft.py", *options, *TINY)
    found = json.loads(output.read_text())
    assert json.loads(out.splitlines()[-1]) == {key: value for key, value in found.items() if key != "runs"}
    tokens, response = map(sum, zip(*expected_lengths(alpaca, tokenizer_model), strict=True))
    ours, theirs = (found["work"][side] for side in ("ours", "trainer"))
    counted = [theirs[f"counted_{what}"] for what in ("examples", "tokens", "loss_tokens")]
    assert counted == [13, tokens, response]
    assert theirs["fill"] == tokens / theirs["places"] < 1
    # A row of 400 holds one or two of 134 to 246 tokens: a pass has 7 or 8 rows, a step 4.
    assert ours["steps"] == 2 and ours["places"] == 2 * 4 * 400
    assert ours["examples_a_step"] in (4 * 13 / 7, 4 * 13 / 8)
    assert abs(theirs["examples_a_step"] - ours["examples_a_step"]) <= 1  # half a micro-batch
    assert theirs["steps"] == math.ceil(13 / theirs["examples_a_step"])
    assert ours["fill"] == (ours["counted_tokens"] - ours["counted_examples"]) / ours["places"]
    first = found["first_step"]
    assert first["loss_tokens"] == [response, response]
    for ours_found, theirs_found in (first["losses"], first["grad_norms"]):
        assert ours_found == pytest.approx(theirs_found, rel=1e-5)  # fp32, the same weights
    assert 5.5 < first["losses"][0] < 7  # log 500 = 6.2
    speeds = []
    for side, work in (("ours", ours), ("trainer", theirs)):
        [result] = found["runs"][side]
        assert len(result["losses"]) == 1 + work["steps"]
        assert sum(result["loss_tokens"][1:]) == work["counted_loss_tokens"]
        speeds.append(work["counted_tokens"] / sum(result["seconds"][1:]))
    assert found["ratio"] == pytest.approx(speeds[0] / speeds[1])
    assert found["reached"] == pytest.approx(found["ratio"] * theirs["fill"])


def test_other_work_is_refused():
    theirs = {"loss_tokens": [10], "losses": [6.0], "grad_norms": [0.5]}
    ours = {"loss_tokens": [10], "losses": [6.005], "grad_norms": [0.4996]}
    check_same_work({"ours": ours, "trainer": theirs}, "cpu")
    for name, value in (("loss_tokens", 11), ("losses", 6.01), ("grad_norms", 0.501), ("losses", float("nan"))):
        with pytest.raises(InputError, match=f"{name} {value}, Trainer's .*; not the same work"):
            check_same_work({"ours": {**theirs, name: [value]}, "trainer": theirs}, "cpu")


def test_errors(alpaca, tokenizer_model, tmp_path):
    good = "--tokenizer-model", tokenizer_model, "--output", tmp_path / "o.json", "--seq-length", 400
    for options, saying in (
        (("--data", tmp_path / "none"), "--data"),
        (("--data", alpaca, "--examples", 0), "--examples 0"),
        (("--data", alpaca, "--examples", 14), "13 usable examples"),
    ):
        result = run_stage("benchmarks/sft.py", *good, *options)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("sft.py: error: ") and saying in line
    assert not (tmp_path / "o.json").exists()
