"""Per-token losses of every entry of a dataset, by what training computes:

    python entry_losses.py HF PREFIX SEQ_LENGTH CACHE OUT

OUT: for each packing, {ids of the entry: losses of its tokens from the second on}.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamax import runtime  # isort: skip
import torch

import pretrain_llamax
from llamax.data import build_datasets
from llamax.model import build_model, read_shape
from llamax.weights import load_hf_weights


def main():
    hf, prefix, seq_length, cache, out = sys.argv[1:]
    found = {}
    args = argparse.Namespace(
        data_path=[prefix], valid_data_path=None, split="1,0,0", seed=1, seq_length=int(seq_length), bf16=False,
        data_cache_path=cache, tensor_model_parallel_size=1, pipeline_model_parallel_size=1,
        distributed_timeout_minutes=5,
    )  # fmt: skip
    runtime.initialize(args)
    shape = read_shape(hf)
    model = build_model(shape, args, args.seq_length)
    load_hf_weights(model, hf, shape)
    for args.packing in ("inside", "none"):
        data, *_ = build_datasets(args, shape.vocab_size, None, 0)
        losses_of = found[args.packing] = {}
        for row in torch.utils.data.DataLoader(data, batch_size=8):
            segments = row["segments"]
            with torch.no_grad():
                losses, _ = pretrain_llamax.forward_step(iter([dict(row)]), model)
            for b in range(len(segments)):
                for segment in range(int(segments[b].max()) + 1):
                    here = segments[b] == segment
                    ids = (*row["tokens"][b][here].tolist(), int(row["labels"][b][here][-1]))
                    losses_of[ids] = losses[b][here].tolist()
    torch.save(found, out)


if __name__ == "__main__":
    main()
