"""Run under torchrun by test_model.py: logits of a Hugging Face folder's weights in megatron.core, saved to a file.

torchrun --nproc-per-node TP tests/logits.py HF_FOLDER IDS.pt OUT.pt
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamax import runtime  # isort: skip
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from llamax.model import build_model, read_shape
from llamax.weights import load_hf_weights

if __name__ == "__main__":
    folder, ids_file, out_file = sys.argv[1:]
    world = runtime.ranks()[1]
    args = argparse.Namespace(
        tensor_model_parallel_size=world, pipeline_model_parallel_size=1, seed=1, bf16=False,
        distributed_timeout_minutes=1,
    )  # fmt: skip
    runtime.initialize(args)
    shape = read_shape(folder)
    ids = torch.load(ids_file, weights_only=True)
    model = build_model(shape, args, ids.shape[1]).eval()
    load_hf_weights(model, folder, shape)
    with torch.no_grad():
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        logits = gather_from_tensor_model_parallel_region(model(ids, positions, None))
    if parallel_state.get_tensor_model_parallel_rank() == 0:
        torch.save(logits[..., : shape.vocab_size].clone(), out_file)
    runtime.shutdown()
