"""The model against transformers, and weights there and back."""

import json

import pytest
import torch
from conftest import fails, llama_folder, snapshot, stage
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llamax.files import InputError
from llamax.model import padded_vocab_size, read_shape, shape_of
from llamax.weights import HFWeights, save_hf_weights


@pytest.mark.parametrize("tensor_parallel", [1, 2])
@pytest.mark.parametrize("family", ["hf_llama2", "hf_llama31"])
def test_logits_are_those_of_transformers(family, tensor_parallel, request, tmp_path):
    folder = request.getfixturevalue(family)
    ids = torch.randint(0, 500, (3, 200), generator=torch.Generator().manual_seed(1))
    torch.save(ids, tmp_path / "ids.pt")
    stage("tests/logits.py", folder, tmp_path / "ids.pt", tmp_path / "out.pt", ranks=tensor_parallel)
    ours = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    assert theirs.abs().max() > 1
    assert (ours - theirs).abs().max() < 1e-5


TIED = {"tie_word_embeddings": True, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama2", torch.float16),  # what each family is published in
        ("llama31", torch.bfloat16),
        ("llama31", torch.float32),
        ("tied", torch.bfloat16),
    ],
)
def test_there_and_back_is_the_same_bytes(family, dtype, request, tmp_path, tokenizer_model):
    if family == "tied":
        folder = llama_folder(tmp_path / "tied", tokenizer_model, 500, **TIED)
    else:
        folder = request.getfixturevalue(f"hf_{family}")
    source = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(source)
    (source / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    stage("convert_hf.py", "to-megatron", "--hf-model", source, "--save", tmp_path / "megatron")
    stage("convert_hf.py", "to-hf", "--load", tmp_path / "megatron", "--hf-model", source, "--save", tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype == dtype
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == tokenizer_model.read_bytes()
    ids = torch.arange(40)[None] * 7 % 500
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (source, tmp_path / "back")]
    with torch.no_grad():
        assert torch.equal(*(model(ids).logits for model in models))


def test_weights_in_several_files(hf_llama2, tmp_path, monkeypatch):
    """What transformers splits is read, and what is split here transformers reads."""
    model = AutoModelForCausalLM.from_pretrained(hf_llama2)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    read = HFWeights(tmp_path / "theirs")
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.part(name, tensor.shape), tensor)
    monkeypatch.setattr("llamax.weights.SHARD_BYTES", 200_000)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_bytes((hf_llama2 / "config.json").read_bytes())
    save_hf_weights(model.state_dict().items(), tmp_path / "ours", torch.float32)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_exported_config_serves_transformers_4_and_5(hf_llama31, tmp_path):
    stage("convert_hf.py", "to-megatron", "--hf-model", hf_llama31, "--save", tmp_path / "m")
    stage("convert_hf.py", "to-hf", "--load", tmp_path / "m", "--hf-model", hf_llama31, "--save", tmp_path / "h")
    config = json.loads((tmp_path / "h" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500000.0
    assert config["rope_scaling"]["rope_type"] == "llama3" and config["rope_scaling"]["factor"] == 8.0
    assert shape_of(config) == shape_of(json.loads((hf_llama31 / "config.json").read_text()))


def test_config_of_either_transformers_gives_one_shape():
    base = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100,
        "num_attention_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    four = shape_of({**base, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **scaling}})
    five = shape_of({**base, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}})
    assert four == five and four.rope_scaling_factor == 8.0 and four.rotary_base == 5e5
    assert shape_of(base).rotary_base == 10000.0 and shape_of(base).num_query_groups == 4
    with pytest.raises(ValueError, match=r"low_freq_factor 2.0; megatron.core computes 1.0 only"):
        shape_of({**base, "rope_scaling": {"rope_type": "llama3", **scaling, "low_freq_factor": 2.0}})
    with pytest.raises(ValueError, match="'linear'"):
        shape_of({**base, "rope_scaling": {"type": "linear", "factor": 2.0}})


def test_vocabulary_padding():
    assert [padded_vocab_size(n) for n in (1, 128, 500, 32_000, 128_256)] == [128, 128, 512, 32_000, 128_256]


def test_a_broken_folder_is_named(hf_llama2, tmp_path):
    shape = read_shape(hf_llama2)
    config = (hf_llama2 / "config.json").read_text()
    weights = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=r"no model\.safetensors and no index.*--init-weights"):
        HFWeights(tmp_path)
    tensors = load_file(hf_llama2 / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, weights)
    with pytest.raises(InputError, match=r"model\.norm\.weight has shape \(63,\), config.json says \(64,\)"):
        HFWeights(tmp_path).dtype(shape)
    del tensors["model.norm.weight"]
    save_file(tensors, weights)
    with pytest.raises(InputError, match=r"holds no tensor model\.norm\.weight"):
        HFWeights(tmp_path).dtype(shape)
    weights.write_bytes((hf_llama2 / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="fetch the file again"):
        HFWeights(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"llama"', '"gpt2"'))
    with pytest.raises(InputError, match="'gpt2', expected 'llama'"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_shape(tmp_path)


def test_errors_are_one_line_and_write_nothing(hf_llama2, tmp_path):
    script, save = "convert_hf.py", ("--save", tmp_path / "out")
    before = snapshot(tmp_path)
    fails(script, "to-megatron", "--hf-model", tmp_path / "none", *save, saying=["--hf-model", "does not exist"])
    fails(script, "to-hf", "--load", tmp_path, "--hf-model", hf_llama2, *save, saying=["holds no checkpoint"])
    fails(script, "to-megatron", "--hf-model", tmp_path, *save, saying=["config.json"])
    fails(script, "to-megatron", "--hf-model", hf_llama2, "--save", tmp_path, saying=["exists already"])
    assert snapshot(tmp_path) == before


def test_packed_entries_have_the_losses_of_each_alone(hf_llama31, blend, tmp_path):
    """Rows of several entries, of one, and transformers on each entry without padding: the same loss of every token."""
    stage("tests/entry_losses.py", hf_llama31, blend[1], tmp_path / "cache", tmp_path / "losses.pt")
    found = torch.load(tmp_path / "losses.pt", weights_only=True)
    assert found["inside"].keys() == found["none"].keys() and len(found["inside"]) == 200
    model = AutoModelForCausalLM.from_pretrained(hf_llama31, dtype=torch.float32)
    for ids, losses in found["inside"].items():
        ids = torch.tensor(ids)[None]
        with torch.no_grad():
            logits = model(ids[:, :-1]).logits
        alone = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="none")
        assert (torch.tensor(losses) - alone).abs().max() < 1e-5
        assert (torch.tensor(losses) - torch.tensor(found["none"][tuple(ids[0].tolist())])).abs().max() < 1e-5
