"""Convert a Llama between Hugging Face's folder and megatron.core's sharded checkpoint.

    python convert_hf.py to-hf --load work/run --hf-model llama2-7b --save work/hf
    python convert_hf.py to-megatron --hf-model llama2-7b --save work/megatron

A checkpoint of any tensor- and pipeline-parallel layout can be exported, and an imported one trained with any. The
exported folder carries --hf-model's tokenizer and generation config, and a config.json that transformers 4 and 5 read.
"""

import shutil
from pathlib import Path

from llamax import runtime  # isort: skip  (first: it silences megatron.core's warnings at import)
import torch

from llamax import checkpoint
from llamax.files import InputError, Parser, existing_folder, read_json, run, write_json
from llamax.model import build_model, read_shape, rope_of
from llamax.weights import HFWeights, hf_tensors, load_hf_weights, save_hf_weights

CARRIED = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    to_hf = commands.add_parser("to-hf", help="checkpoint to Hugging Face folder")
    to_hf.add_argument("--load", required=True, metavar="DIR", help="a --save folder of training (its newest)")
    to_hf.add_argument("--hf-model", required=True, metavar="DIR", help="folder whose config and tokenizer it has")
    to_hf.add_argument("--save", required=True, metavar="DIR", help="folder to make; must not exist")
    to_hf.add_argument("--dtype", choices=DTYPES, help="of the weights (default: config.json's, else float32)")
    to_megatron = commands.add_parser("to-megatron", help="Hugging Face folder to checkpoint")
    to_megatron.add_argument("--hf-model", required=True, metavar="DIR")
    to_megatron.add_argument("--save", required=True, metavar="DIR", help="folder to make; must not exist")
    args = parser.parse_args()
    existing_folder(args.hf_model, "--hf-model")
    if Path(args.save).exists():
        raise InputError(f"--save {args.save}: exists already; choose another folder or remove it")
    # One process, in the dtype of the weights themselves, so that no bit changes on the way.
    args.tensor_model_parallel_size = args.pipeline_model_parallel_size = 1
    args.seed, args.bf16, args.distributed_timeout_minutes = 0, False, 10
    return args


def config_for_both(config, dtype):
    """A config.json for transformers 4, which reads rope_theta, rope_scaling and torch_dtype, and 5, which reads
    rope_parameters and dtype: 4 would silently fall back to theta 10000 without its own keys."""
    rope = rope_of(config)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        **config,
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def to_hf(args):
    """Export the newest checkpoint of --load."""
    shape = read_shape(args.hf_model)
    config = read_json(f"{args.hf_model}/config.json", "--hf-model")
    iteration, folder = checkpoint.required(args.load)
    dtype = args.dtype or config.get("dtype") or config.get("torch_dtype") or "float32"
    model = build_model(shape, args, sequence_length=shape.max_position_embeddings)
    state = checkpoint.load(folder, checkpoint.sharded_state(model))
    model.load_state_dict(state["model"])

    save = Path(args.save)
    partial = save.with_name(f".{save.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_hf_weights(hf_tensors(model, shape), partial, DTYPES[dtype])
        write_json(partial / "config.json", config_for_both(config, dtype))
        for name in CARRIED:
            if (Path(args.hf_model) / name).is_file():
                shutil.copyfile(Path(args.hf_model) / name, partial / name)
        partial.rename(save)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{save}: step {iteration} of {args.load} as {dtype}")


def to_megatron(args):
    """Import --hf-model as iteration 0 of a training folder."""
    shape = read_shape(args.hf_model)
    args.params_dtype = HFWeights(args.hf_model).dtype(shape)
    model = build_model(shape, args, sequence_length=shape.max_position_embeddings)
    load_hf_weights(model, args.hf_model, shape)
    checkpoint.Saver(args.save).save(0, checkpoint.sharded_state(model))
    print(f"{checkpoint.folder_of(args.save, 0)}: {sum(p.numel() for p in model.parameters()):,} parameters")


def main():
    args = get_args()
    runtime.initialize(args)
    {"to-hf": to_hf, "to-megatron": to_megatron}[args.command](args)
    runtime.shutdown()


if __name__ == "__main__":
    run(main)
