"""The training benchmark in miniature: both sides start from the same loss, and a difference is refused."""

import json
from argparse import Namespace

import pytest
from conftest import SENTENCES, run_stage, sentences, stage

from benchmarks.pretrain import check_losses
from llamax.files import InputError

TINY = ("--layers", 2, "--hidden-size", 32, "--ffn-hidden-size", 64, "--heads", 4, "--key-value-heads", 2,
        "--seq-length", 32, "--micro-batch-size", 2, "--accumulation", 2, "--warm-up", 2, "--steps", 2,
        "--repetitions", 1, "--threads", 1)  # fmt: skip


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for lang in SENTENCES:
        (folder / f"{lang}.txt").write_text("\n".join(sentences(lang, 40)) + "\n", encoding="utf-8")
    return folder


def test_both_sides_do_the_same_work(text, tokenizer_model, tmp_path):
    output = tmp_path / "out.json"
    out = stage(
        "benchmarks/pretrain.py", "--text", text, "--tokenizer-model", tokenizer_model, *TINY, "--output", output
    )
    found = json.loads(output.read_text())
    assert json.loads(out.splitlines()[-1]) == {key: value for key, value in found.items() if key != "runs"}
    ours, theirs = (found["runs"][side][0] for side in ("ours", "trainer"))
    assert len(ours["losses"]) == len(theirs["losses"]) == 4
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)  # fp32, the same weights, rows and updates
    assert 5.5 < ours["losses"][0] < 7  # log 500 = 6.2
    assert found["ratio"] == ours["tokens_per_second"] / theirs["tokens_per_second"] > 0
    assert found["machine"]["threads"] == 1 and found["machine"]["accelerate"]


def test_other_work_is_refused():
    args = Namespace(warm_up=2, device="cpu")
    theirs = [{"losses": [6.0, 5.0, 4.0]}]
    assert check_losses({"ours": [{"losses": [6.0, 5.004, 9.0]}], "trainer": theirs}, args) == pytest.approx(0.0008)
    with pytest.raises(InputError, match=r"step 2: loss 5\.01000, Trainer's 5\.00000; not the same work"):
        check_losses({"ours": [{"losses": [6.0, 5.01, 4.0]}], "trainer": theirs}, args)


def test_errors(text, tokenizer_model, tmp_path):
    good = "--tokenizer-model", tokenizer_model, "--output", tmp_path / "o.json"
    for options, saying in (
        (("--text", tmp_path / "none"), "--text"),
        (("--text", text, "--mfu"), "--device cuda"),
        (("--text", text, "--steps", 0), "--steps"),
    ):
        result = run_stage("benchmarks/pretrain.py", *good, *options)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("pretrain.py: error: ") and saying in line
