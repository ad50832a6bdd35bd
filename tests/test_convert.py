"""Conversion: bytes there and back for each family and layout, both transformers, averages, what is refused."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT, LLAMA31_ROPE, ROOT, fails, llama_folder, snapshot, stage, write_jsonl
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamax.files import InputError
from llamax.model import read_shape, shape_of
from llamax.tokenizer import load_tokenizer
from llamax.weights import CheckpointWeights, HFWeights, hf_shapes, write_hf_weights

# Each family as it is published, in small: dtype, and what differs from Llama-2.
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "rope_parameters": LLAMA31_ROPE}
FAMILIES = {
    "llama-2": (torch.float16, {}),
    "llama-3": (torch.bfloat16, {**GROUPED, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
    "llama-3.1": (torch.bfloat16, GROUPED),
    "llama-3.2": (torch.bfloat16, {**GROUPED, "tie_word_embeddings": True, "head_dim": 16}),
}
TRANSFORMERS_4 = Path(sys.prefix) / "transformers4"  # the Makefile installs it there


def same_bytes(before, after):
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.fixture(scope="session")
def families(tmp_path_factory, tokenizer_model):
    """{family: Hugging Face folder}, as transformers saves them."""
    folders = {}
    for family, (dtype, changes) in FAMILIES.items():
        folder = llama_folder(tmp_path_factory.mktemp(family) / "random", tokenizer_model, 500, **changes)
        folders[family] = folder.parent / family
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folders[family])
        shutil.copy(tokenizer_model, folders[family] / "tokenizer.model")
    return folders


@pytest.fixture(scope="session")
def there_and_back(families, tmp_path_factory):
    """{family: folder exported from what was imported from it}."""
    out = tmp_path_factory.mktemp("converted")
    (out / "text.txt").write_text("the old farmer buys a red lamp\nle vieux fermier achète\n", encoding="utf-8")
    for family, folder in families.items():
        megatron = out / f"{family}-megatron"
        stage("convert_hf.py", "to-megatron", "--hf-model", folder, "--save", megatron)
        says = stage("convert_hf.py", "to-hf", "--load", megatron, "--hf-model", folder, "--save", out / family,
                     "--verify", out / "text.txt")  # fmt: skip
        assert "differ by at most 0 (" in says, says  # fp32, one process: the same sums
    return {family: out / family for family in families}


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_is_the_same_bytes(family, families, there_and_back):
    source, back = families[family], there_and_back[family]
    same_bytes(load_file(source / "model.safetensors"), load_file(back / "model.safetensors"))
    for name in ("tokenizer.model", "generation_config.json"):
        assert (back / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2)])
def test_a_checkpoint_of_any_layout_gives_the_same_bytes(tensor, pipeline, families, tmp_path):
    pairs = [path for family, folder in families.items() for path in (folder, tmp_path / family)]
    stage("tests/layouts.py", tensor, pipeline, *pairs, ranks=tensor * pipeline)
    for family, folder in families.items():
        shape = read_shape(folder)
        weights, found = CheckpointWeights(tmp_path / family / "iter_0000001", shape), {}
        for name, size in hf_shapes(shape).items():
            found[name] = torch.empty(size, dtype=FAMILIES[family][0])
            weights.fill(name, found[name])
        same_bytes(load_file(folder / "model.safetensors"), found)


def test_both_transformers_compute_the_same_logits(families, there_and_back, tmp_path):
    folders = [str(folder) for folder in [*families.values(), *there_and_back.values()]]
    for version, path in (("5", ""), ("4", TRANSFORMERS_4)):
        text = tmp_path / "text.txt"
        text.write_text("the old farmer buys\n  le vieux   fermier \nчужой <s> 老农民", encoding="utf-8")
        command = [sys.executable, ROOT / "tests/logits_transformers.py", version, text, tmp_path / version, *folders]
        result = subprocess.run(command, env={**ENVIRONMENT, "PYTHONPATH": str(path)}, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    five, four = (torch.load(tmp_path / version, weights_only=True) for version in "54")
    tokenizer = load_tokenizer(families["llama-2"])
    expected = [[tokenizer.bos_id, *tokenizer.encode(line)] for line in text.read_text(encoding="utf-8").split("\n")]
    for source, back in zip(families.values(), there_and_back.values(), strict=True):
        logits = five[str(source)]["logits"]
        assert logits.abs().max() > 1
        # The folder that transformers 5 wrote has no rope_theta, for want of which 4 computes something else.
        for found in (five[str(back)], four[str(back)]):
            assert torch.equal(logits, found["logits"]) and found["ids"][:2] == expected[:2]


def test_config_serves_transformers_4_and_5(there_and_back, families):
    config = json.loads((there_and_back["llama-3.1"] / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["rope_scaling"]["rope_type"] == "llama3" and config["rope_scaling"]["factor"] == 8.0
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert shape_of(config) == read_shape(families["llama-3.1"])


def test_an_imported_checkpoint_can_be_trained(families, blend, tmp_path):
    """megatron.core reads what torch's writer wrote: the same losses as from the folder itself."""
    stage("convert_hf.py", "to-megatron", "--hf-model", families["llama-3.1"], "--save", tmp_path / "m")
    losses = []
    for start in ([], ["--pretrained-checkpoint", tmp_path / "m" / "iter_0000000"]):
        save = tmp_path / f"run{len(start)}"
        stage("pretrain_llamax.py", "--hf-model", families["llama-3.1"], *start, "--data-path", *blend, "--save", save,
              "--seq-length", 32, "--micro-batch-size", 2, "--train-iters", 2)  # fmt: skip
        rows = map(json.loads, (save / "metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if "loss" in row])
    assert len(losses[0]) == 2 and losses[0] == losses[1]


def test_weights_in_several_files(hf_llama2, tmp_path, monkeypatch):
    """What transformers splits is read, and what is split here transformers reads."""
    model = AutoModelForCausalLM.from_pretrained(hf_llama2)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    shape, read, state = read_shape(hf_llama2), HFWeights(tmp_path / "theirs"), model.state_dict()
    read.check(shape)
    for name, tensor in state.items():
        assert torch.equal(read.part(name, tensor.shape), tensor)
    monkeypatch.setattr("llamax.weights.SHARD_BYTES", 200_000)
    (tmp_path / "ours").mkdir()
    shutil.copy(hf_llama2 / "config.json", tmp_path / "ours")
    write_hf_weights(tmp_path / "ours", hf_shapes(shape), torch.float32, lambda name, out: out.copy_(state[name]))
    files = sorted((tmp_path / "ours").glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    for file in files:
        assert file.stat().st_size < 200_000 + 5000
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_extended_vocabulary(families, tmp_path):
    """Rows of new tokens are the mean of those of the tokens that spelled them; old tokens' logits stay what they were;
    transformers, sentencepiece and gigatoken give one encoding."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["старый фермер на рынке", "фермер и лампа, лампа на рынке"] * 5), encoding="utf-8")
    for family in ("llama-2", "llama-3.2"):  # with output rows of its own, and tied
        source, folder = families[family], tmp_path / family
        says = stage("convert_hf.py", "extend-vocabulary", "--hf-model", source, "--input", text, "--new-tokens", 20,
                     "--save", folder)  # fmt: skip
        before, after = (float(re.search(rf"{what} ([0-9.]+)[,;]", says)[1]) for what in ("--input", "now"))
        assert after < before
        old, new = load_tokenizer(source), load_tokenizer(folder)
        weights, extended = (load_file(path / "model.safetensors") for path in (source, folder))
        assert new.vocab_size == json.loads((folder / "config.json").read_text())["vocab_size"] == 520
        for name, tensor in weights.items():
            assert torch.equal(extended[name][: len(tensor)], tensor) and extended[name].dtype == tensor.dtype
        for name in {"model.embed_tokens.weight", "lm_head.weight"} & weights.keys():
            for i in range(500, 520):
                spelled = old.encode_continuation(new.reference.id_to_piece(i).replace("▁", " "))
                mean = weights[name][spelled].float().mean(dim=0).to(weights[name].dtype)
                assert len(spelled) > 1 and torch.equal(extended[name][i], mean)
        ids = torch.arange(3, 103)[None]
        with torch.no_grad():
            logits = [AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (source, folder)]
        assert torch.equal(logits[0], logits[1][..., :500])
        theirs = AutoTokenizer.from_pretrained(folder)
        for line in ("фермер  и лампа", " the old farmer на рынке <", "x"):
            assert theirs(line)["input_ids"] == [1, *new.reference.encode(line)] == [1, *new.encode(line)]
    fails("convert_hf.py", "extend-vocabulary", "--hf-model", families["llama-2"], "--input", text, "--new-tokens",
          10_000, "--save", tmp_path / "x", saying=["text.txt", "new tokens, expected 10,000"])  # fmt: skip
    added = tmp_path / "added"
    shutil.copytree(families["llama-2"], added)
    (added / "added_tokens.json").write_text('{"<pad>": 500}')
    fails("convert_hf.py", "extend-vocabulary", "--hf-model", added, "--input", text, "--new-tokens", 5,
          "--save", tmp_path / "x", saying=["vocab_size 500", "<pad> are added"])  # fmt: skip


def test_average(families, tmp_path):
    """Of a folder and two checkpoints, against the mean computed from the files; one step is taken by its folder."""
    source = families["llama-3.1"]
    other = tmp_path / "other"
    shutil.copytree(source, other)
    weights = load_file(source / "model.safetensors")
    save_file({name: tensor * 2 + 1 for name, tensor in weights.items()}, other / "model.safetensors")
    for folder in (source, other):
        stage("convert_hf.py", "to-megatron", "--hf-model", folder, "--save", tmp_path / f"m-{folder.name}")
    stage("convert_hf.py", "average", "--load", source, tmp_path / "m-llama-3.1", tmp_path / "m-other/iter_0000000",
          "--hf-model", source, "--save", tmp_path / "mean", "--dtype", "float32")  # fmt: skip
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    for name, tensor in weights.items():
        expected = (2 * tensor.float() + (tensor * 2 + 1).float()) / 3
        assert mean[name].dtype == torch.float32 and (mean[name] - expected).abs().max() < 1e-6
    stages = json.loads((tmp_path / "mean" / "llamax.json").read_text())["stages"]
    assert stages[-1]["script"] == "convert_hf.py average" and len(stages[-1]["from"]) == 3
    fails("convert_hf.py", "average", "--load", source, "--hf-model", source, "--save", tmp_path / "x",
          saying=["--load", "two or more"])  # fmt: skip


def test_what_is_damaged_is_named_and_nothing_is_written(families, there_and_back, tmp_path):
    source, hf = families["llama-2"], tmp_path / "hf"
    shutil.copytree(source, hf)
    weights, config = load_file(hf / "model.safetensors"), (hf / "config.json").read_text()
    index, name = hf / "model.safetensors.index.json", "model.layers.3.mlp.up_proj.weight"

    def refused(saying):
        with pytest.raises(InputError, match=saying) as error:
            HFWeights(hf).check(shape := read_shape(hf)) or HFWeights(hf).dtype(shape)
        assert "\n" not in str(error.value)

    # a Hugging Face folder in two files
    names = sorted(weights)
    for part in (0, 1):
        save_file({name: weights[name] for name in names[part::2]}, hf / f"part{part}.safetensors")
    (hf / "model.safetensors").unlink()
    files = {"weight_map": {name: f"part{i % 2}.safetensors" for i, name in enumerate(names)}}
    index.write_text(json.dumps(files))
    HFWeights(hf).check(read_shape(hf))
    part = (hf / "part1.safetensors").read_bytes()
    (hf / "part1.safetensors").unlink()
    refused(r"part1\.safetensors: missing")
    before = snapshot(tmp_path)
    fails("convert_hf.py", "to-megatron", "--hf-model", hf, "--save", tmp_path / "out", saying=["part1.safetensors"])
    assert snapshot(tmp_path) == before
    (hf / "part1.safetensors").write_bytes(part[:-100])
    refused(r"part1\.safetensors: .*fetch the file again")
    (hf / "part1.safetensors").write_bytes(part)
    index.write_text(json.dumps(files)[:-1])
    refused(r"index\.json: not valid JSON")
    index.write_text(
        json.dumps({"weight_map": {**files["weight_map"], "lm_head.weight": "../model/part0.safetensors"}})
    )
    refused(r"index\.json: .*file names")
    index.write_text(json.dumps({"weight_map": {**files["weight_map"], names[0]: "part1.safetensors"}}))
    refused(rf"part1\.safetensors: holds no tensor {names[0]}, though the index says so")

    # in one file
    for path in hf.glob("*.safetensors*"):
        path.unlink()
    torch.save(weights, hf / "pytorch_model.bin")
    refused("pickle files are not read")
    before = snapshot(tmp_path)
    fails("convert_hf.py", "to-megatron", "--hf-model", hf, "--save", tmp_path / "out", saying=["pickle"])
    assert snapshot(tmp_path) == before
    for changes, saying in (
        ({name: weights[name][:-1].clone()}, rf"{name} has shape \(159, 64\), config.json says \(160, 64\)"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, r"holds .*q_proj\.bias, which no Llama"),
        ({name: weights[name].to(torch.int8)}, "has weights of type F16, I8.*quantised"),
    ):
        save_file({**weights, **changes}, hf / "model.safetensors")
        refused(saying)
    save_file({key: value for key, value in weights.items() if key != name}, hf / "model.safetensors")
    refused(f"holds no tensor {name}; is it a Llama of this config.json")
    (hf / "config.json").write_text(config[:-10])
    refused(r"config\.json: not valid JSON")
    (hf / "config.json").write_text(config.replace('"llama"', '"gpt2"'))
    refused("'gpt2', expected 'llama'")

    # a checkpoint
    megatron = tmp_path / "megatron"
    shutil.copytree(there_and_back["llama-2"].with_name("llama-2-megatron"), megatron)
    deep = dataclasses.replace(read_shape(source), num_layers=5)
    with pytest.raises(InputError, match=r"has shape \(4, 64\), config.json of --hf-model says \(5, 64\)"):
        CheckpointWeights(megatron / "iter_0000000", deep)
    [data] = (megatron / "iter_0000000").glob("*.distcp")
    data.write_bytes(data.read_bytes()[:-1])
    before = snapshot(tmp_path)
    for load, saying in ((megatron, "no complete and undamaged"), (megatron / "iter_0000000", "complete.json says")):
        fails("convert_hf.py", "to-hf", "--load", load, "--hf-model", source, "--save", tmp_path / "out",
              saying=[saying])  # fmt: skip
    assert snapshot(tmp_path) == before


def test_verify_finds_another_model(families, tmp_path):
    """A config.json of which transformers computes other logits: said, and nothing is written."""
    stage("convert_hf.py", "to-megatron", "--hf-model", families["llama-3"], "--save", tmp_path / "m")
    (tmp_path / "text.txt").write_text("the old farmer\n")
    other = tmp_path / "other"
    shutil.copytree(families["llama-3"], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    fails("convert_hf.py", "to-hf", "--load", tmp_path / "m", "--hf-model", other, "--save", tmp_path / "hf",
          "--verify", tmp_path / "text.txt", saying=["--verify", "differ by at most"])  # fmt: skip
    assert not (tmp_path / "hf").exists() and not list(tmp_path.glob(".*"))


def test_the_card_tells_what_a_model_was_made_from(hf_llama2, blend, tmp_path):
    """Through pre-training, export, tuning from the export, export, scores."""
    examples = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(40)]
    (tmp_path / "alpaca.json").write_text(json.dumps(examples))
    common = "--seq-length", 100, "--micro-batch-size", 2, "--eval-interval", 0
    stage("pretrain_llamax.py", "--hf-model", hf_llama2, "--data-path", *blend, "--save", tmp_path / "run", *common,
          "--train-iters", 2, "--lr", 1e-3)  # fmt: skip
    stage("convert_hf.py", "to-hf", "--load", tmp_path / "run", "--hf-model", hf_llama2, "--save", tmp_path / "hf")
    stage("sft_alpaca.py", "--hf-model", tmp_path / "hf", "--data", tmp_path / "alpaca.json", "--save",
          tmp_path / "sft", *common, "--prompt", "stanford", "--global-batch-size", 8, "--seq-length", 200)  # fmt: skip
    stage("convert_hf.py", "to-hf", "--load", tmp_path / "sft", "--hf-model", hf_llama2, "--save", tmp_path / "tuned")
    record = json.loads((tmp_path / "tuned" / "llamax.json").read_text())
    assert record["prompt"] == "stanford"
    assert [stage["script"] for stage in record["stages"]] == ["pretrain_llamax.py", "sft_alpaca.py"]
    first, second = record["stages"]
    assert (first["from"], second["from"]) == (str(hf_llama2), str(tmp_path / "hf"))
    assert first["step"] == 2 and first["settings"]["lr"] == 1e-3 and second["settings"]["prompt"] == "stanford"
    for prefix in blend[1::2]:
        manifest = json.loads(prefix.with_suffix(".json").read_text())
        for key in ("tokens", "languages", "xxh3_128"):
            assert first["data"][str(prefix)][key] == manifest[key]
    scores = [{"src": s, "tgt": t, "metric": m, "score": score, "n": 10, "signature": "v:2"}
              for s, t, score in (("en", "fr", 10.0), ("fr", "en", 21.0), ("en", "th", 20.0))
              for m in ("spBLEU", "chrF++")]  # fmt: skip
    (tmp_path / "out").mkdir()
    write_jsonl(tmp_path / "out" / "scores.jsonl", scores)
    stage("convert_hf.py", "card", "--hf-model", tmp_path / "tuned", "--scores", tmp_path / "out")
    card = (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")
    assert "| all | spBLEU | 3 | 17.00 | v:2 |" in card and "| en-x | spBLEU | 2 | 15.00 | v:2 |" in card
    assert 'language: ["en", "fr", "th", "zh"]' in card and "prompt stanford" in card and "lr 0.001" in card
    assert "alpaca.json" in card and "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}" in card
    assert json.loads((tmp_path / "tuned" / "llamax.json").read_text()) == record


def test_errors_are_one_line_and_write_nothing(hf_llama2, tmp_path):
    script, save = "convert_hf.py", ("--save", tmp_path / "out")
    before = snapshot(tmp_path)
    fails(script, "to-megatron", "--hf-model", tmp_path / "none", *save, saying=["--hf-model", "does not exist"])
    fails(script, "to-hf", "--load", tmp_path, "--hf-model", hf_llama2, *save, saying=["holds no checkpoint"])
    fails(script, "to-megatron", "--hf-model", tmp_path, *save, saying=["config.json"])
    fails(script, "to-megatron", "--hf-model", hf_llama2, "--save", tmp_path, saying=["exists already"])
    assert snapshot(tmp_path) == before
