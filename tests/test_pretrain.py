"""Training: the same losses in every parallel layout, exact resume, golden losses, errors."""

import json

import pytest
from conftest import fails, run_stage, sentences, snapshot, stage, write_jsonl


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer_model):
    """A blend of plain pairs, pairs with loss on the target only, and monolingual text."""
    folder = tmp_path_factory.mktemp("data")
    records = [
        {"src": a, "tgt": b, "src_lang": "en", "tgt_lang": "fr", "loss": loss}
        for loss in ("all", "target")
        for a, b in zip(sentences("en", 150), sentences("fr", 150), strict=True)
    ]
    model = "--tokenizer-model", tokenizer_model
    for name, part in (("pairs", records[:150]), ("augmented", records[150:])):
        source = write_jsonl(folder / f"{name}.jsonl", part)
        stage("preprocess_parallel.py", "--input", source, *model, "--output-prefix", folder / name)
    source = write_jsonl(folder / "mono.jsonl", [{"text": text, "lang": "th"} for text in sentences("th", 100)])
    stage("preprocess_mono.py", "--input", source, *model, "--output-prefix", folder / "mono", "--block-size", 48)
    return [2, folder / "pairs", 2, folder / "augmented", 1, folder / "mono"]


def train(folder, hf, data, *options, ranks=0):
    """Run pretrain_llamax.py; the losses by step."""
    stage("pretrain_llamax.py", "--hf-model", hf, "--data-path", *data, "--save", folder, "--seq-length", 64,
          "--packing", "inside", "--micro-batch-size", 2, "--global-batch-size", 8, "--train-iters", 20, "--lr", 1e-3,
          "--eval-interval", 10, "--eval-iters", 2, *options, ranks=ranks)  # fmt: skip
    return losses(folder)


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["tokens"] > 0 for row in rows if "tokens" in row)
    return {(row["iteration"], key): row[key] for row in rows for key in ("loss", "valid_loss") if key in row}


def parallel(tensor, pipeline):
    return "--tensor-model-parallel-size", tensor, "--pipeline-model-parallel-size", pipeline


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, hf_llama31, data):
    return train(tmp_path_factory.mktemp("one"), hf_llama31, data)


# Of the 20 steps of `uninterrupted`: a change that moves these changes what is trained.
GOLDEN = {1: 6.33314, 5: 5.39869, 10: 4.88294, 20: 4.52483}


def test_golden_losses(uninterrupted):
    steps = [loss for (_, key), loss in uninterrupted.items() if key == "loss"]
    assert len(steps) == 20 and steps[-1] < steps[0] - 0.5
    for step, loss in GOLDEN.items():
        assert abs(steps[step - 1] - loss) < 1e-3


@pytest.mark.parametrize(("tensor", "pipeline", "ranks"), [(2, 1, 2), (1, 2, 2), (2, 2, 4), (1, 1, 2)])
def test_losses_do_not_depend_on_the_layout(tensor, pipeline, ranks, uninterrupted, hf_llama31, data, tmp_path):
    found = train(tmp_path, hf_llama31, data, *parallel(tensor, pipeline), ranks=ranks)
    assert found.keys() == uninterrupted.keys()
    assert max(abs(found[key] - uninterrupted[key]) for key in found) < 1e-4


def test_resume_is_exact(uninterrupted, hf_llama31, data, tmp_path):
    train(tmp_path, hf_llama31, data, "--exit-interval", 10)
    assert max(step for step, _ in losses(tmp_path)) == 10
    assert train(tmp_path, hf_llama31, data, "--load", tmp_path) == uninterrupted  # to the last digit
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "20\n"
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["arguments"]["lr"] == 1e-3 and run["versions"]["megatron-core"] == "0.16.1"
    assert run["data"][str(data[1])]["xxh3_128"] == json.loads(data[1].with_suffix(".json").read_text())["xxh3_128"]
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert list((tmp_path / "tensorboard").glob("events*"))
    before = snapshot(tmp_path)
    fails("pretrain_llamax.py", "--hf-model", hf_llama31, "--data-path", *data, "--save", tmp_path, "--train-iters", 9,
          saying=["holds checkpoints", "--load"])  # fmt: skip
    assert snapshot(tmp_path) == before


def test_imported_weights_train_the_same(uninterrupted, hf_llama31, data, tmp_path):
    stage("convert_hf.py", "to-megatron", "--hf-model", hf_llama31, "--save", tmp_path / "m")
    found = train(tmp_path / "run", hf_llama31, data, "--pretrained-checkpoint", tmp_path / "m")
    assert found == uninterrupted


def test_bf16_runs_and_learns(hf_llama2, data, tmp_path):
    found = train(tmp_path, hf_llama2, data, "--bf16", "--packing", "across", ranks=2)
    assert found[20, "loss"] < found[1, "loss"] - 0.5
    stage("convert_hf.py", "to-hf", "--load", tmp_path, "--hf-model", hf_llama2, "--save", tmp_path / "hf",
          "--dtype", "bfloat16")  # fmt: skip


def test_random_weights_by_flag_only(data, hf_llama2, tmp_path, tokenizer_model):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text((hf_llama2 / "config.json").read_text())
    common = "--hf-model", folder, "--data-path", *data, "--seq-length", 64, "--train-iters", 1, "--save"
    fails("pretrain_llamax.py", *common, tmp_path / "a", saying=["no model.safetensors", "--init-weights"])
    stage("pretrain_llamax.py", *common, tmp_path / "b", "--init-weights", "--micro-batch-size", 2)
    assert 5.5 < losses(tmp_path / "b")[1, "loss"] < 7  # log 500 = 6.2


def test_errors(data, hf_llama2, tmp_path):
    before = snapshot(tmp_path)
    script = "pretrain_llamax.py"
    good = "--hf-model", hf_llama2, "--save", tmp_path / "run", "--train-iters", 2
    fails(script, *good, "--data-path", *data, "--lr", -1, "--split", "1,2", "--tensor-model-parallel-size", 3,
          saying=["--lr -1", "--split 1,2", "--tensor-model-parallel-size 3"])  # fmt: skip
    fails(script, *good, "--data-path", *data, "--micro-batch-size", 3, "--global-batch-size", 4,
          saying=["--global-batch-size 4"])  # fmt: skip
    fails(script, "--hf-model", tmp_path / "none", "--save", tmp_path / "run", "--train-iters", 2, "--data-path", *data,
          saying=["--hf-model", "does not exist"])  # fmt: skip
    assert snapshot(tmp_path) == before
    fails(script, *good, "--data-path", tmp_path / "none", saying=["no complete dataset"])
    two = "--data-path", data[1], data[3]
    fails(script, *good, *two, saying=["valid share is shorter", "--split"])
    fails(script, *good, *two, "--split", "100,0,0", "--train-iters", 900, saying=["--train-iters 900", "one epoch"])


def test_a_resume_that_would_change_the_run_is_refused(data, hf_llama2, tmp_path):
    train(tmp_path, hf_llama2, data, "--exit-interval", 1)
    before = snapshot(tmp_path)
    fails("pretrain_llamax.py", "--hf-model", hf_llama2, "--data-path", *data, "--save", tmp_path, "--load", tmp_path,
          "--seq-length", 64, "--packing", "inside", "--micro-batch-size", 4, "--global-batch-size", 8,
          "--train-iters", 30, "--lr", 2e-3, saying=["--lr-decay-iters 30 (20)", "--lr 0.002 (0.001)"])  # fmt: skip
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before  # index caches of 30 steps may have come


def test_another_tokenizer_is_refused(data, hf_llama2, tmp_path, tokenizer_model):
    prefix = tmp_path / "other"
    for suffix in (".bin", ".idx"):
        prefix.with_suffix(suffix).write_bytes(data[1].with_suffix(suffix).read_bytes())
    manifest = json.loads(data[1].with_suffix(".json").read_text())
    manifest["arguments"]["tokenizer"]["blake2b"] = "0" * 32
    prefix.with_suffix(".json").write_text(json.dumps(manifest))
    fails("pretrain_llamax.py", "--hf-model", hf_llama2, "--save", tmp_path / "run", "--train-iters", 2, "--data-path",
          1, data[1], 1, prefix, saying=["another tokenizer"])  # fmt: skip


def test_all_ranks_end_when_one_finds_an_error(data, hf_llama2, tmp_path):
    result = run_stage("pretrain_llamax.py", "--hf-model", hf_llama2, "--save", tmp_path, "--train-iters", 2,
                       "--data-path", tmp_path / "none", ranks=2)  # fmt: skip
    assert result.returncode == 1
    ours = [line for line in result.stderr.splitlines() if line.startswith("pretrain_llamax.py: error")]
    assert len(ours) == 1 and "no complete dataset" in ours[0]


def test_what_there_is_to_watch(hf_llama2, blend, tmp_path):
    """Held-out loss by kind and language is that of the parts of the whole; consumed tokens by source add up."""
    held_out = "--valid-data-path", 1, blend[1], 1, blend[3]
    train(tmp_path, hf_llama2, blend, *held_out, "--eval-iters", 20, "--eval-interval", 20, "--log-interval", 5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if "valid_loss" in row][-1]
    names = {"mono", "mono/th", "mono/zh", "augmented", "augmented/en-fr"}
    assert {key.removeprefix("valid_loss/") for key in held_out if key.startswith("valid_loss/")} == names
    assert held_out["valid_loss/augmented"] == held_out["valid_loss/augmented/en-fr"]
    parts = sorted(held_out[f"valid_loss/{name}"] for name in ("mono/th", "mono/zh"))
    assert parts[0] < held_out["valid_loss/mono"] < parts[1]
    kinds = sorted(held_out[f"valid_loss/{name}"] for name in ("mono", "augmented"))
    assert kinds[0] < held_out["valid_loss"] < kinds[1]
    consumed = [row for row in rows if any(key.startswith("consumed_tokens/") for key in row)]
    assert [row["iteration"] for row in consumed] == [5, 10, 15, 20]
    for row in consumed:
        pairs, mono = (row[f"consumed_tokens/{blend[i]}"] for i in (1, 3))
        assert pairs + mono == row["iteration"] * 8 * 64
        assert abs(pairs - 2 * mono) <= 3 * 64  # the weights are 2 and 1
    steps = [row for row in rows if "loss" in row]
    assert all(row["tflops"] > 0 and "mfu" not in row and row["skipped_steps"] == 0 for row in steps)
