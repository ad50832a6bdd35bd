"""The model against transformers."""

import pytest
import torch
from conftest import stage
from transformers import AutoModelForCausalLM

from llamax.model import padded_vocab_size, shape_of


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


def test_packed_entries_have_the_losses_of_each_alone(hf_llama31, blend, tmp_path):
    """Rows of several entries, of one, and transformers on each entry without padding: the same loss of every token."""
    stage("tests/entry_losses.py", hf_llama31, blend[1], 96, tmp_path / "cache", tmp_path / "losses.pt")
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
