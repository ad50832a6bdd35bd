"""Run under torchrun by test_convert.py: save Hugging Face folders as checkpoints of a tensor- and pipeline-parallel
layout, each rank reading its part, as training does.

torchrun --nproc-per-node TP*PP tests/layouts.py TP PP HF_FOLDER SAVE [HF_FOLDER SAVE …]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamax import runtime  # isort: skip
from llamax import checkpoint
from llamax.model import build_model, read_shape
from llamax.weights import HFWeights, load_hf_weights

if __name__ == "__main__":
    tensor, pipeline, *folders = sys.argv[1:]
    args = argparse.Namespace(
        tensor_model_parallel_size=int(tensor), pipeline_model_parallel_size=int(pipeline), seed=1, bf16=False,
        distributed_timeout_minutes=1,
    )  # fmt: skip
    runtime.initialize(args)
    for folder, save in zip(folders[::2], folders[1::2], strict=True):
        shape = read_shape(folder)
        args.params_dtype = HFWeights(folder).dtype(shape)
        model = build_model(shape, args, shape.max_position_embeddings)
        load_hf_weights(model, folder, shape)
        checkpoint.Saver(save).save(1, checkpoint.sharded_state(model))
    runtime.shutdown()
