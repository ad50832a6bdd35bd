"""Memory and time of convert_hf.py on a random bfloat16 model of 3.2 billion parameters (Llama-3.2 3B's shape).

    python benchmarks/convert.py --folder work/convert                # 26 GB of disk, some minutes

Memory is what benchmarks/scale.py counts: the anonymous and shared pages of all processes of a command; mapped and
cached files are not in it. Times are of whole commands, `sync` included; beside them stand those of a plain copy of the
files that a command reads. Commands and copies take turns, --repetitions times: the times are medians, the memory the
greatest. Prints one JSON object. The exported tensors must have the bytes of the original, or nothing is reported.
"""

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scale import watch  # noqa: E402
from llamax.files import InputError, Parser, run, write_json  # noqa: E402

SEED = 1234


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--folder", required=True, metavar="DIR", help="where to work; removed in the end")
    add("--layers", type=int, default=28, help="fewer for a trial (default %(default)s)")
    add("--repetitions", type=int, default=3, help="of each command and copy (default %(default)s)")
    args = parser.parse_args()
    args.folder = Path(args.folder)
    if args.folder.exists():
        raise InputError(f"--folder {args.folder}: exists; it would be removed in the end: choose another one")
    return args


def make_model(layers, folder):
    """A Hugging Face folder of random weights; returns its parameters."""
    from llamax import runtime  # noqa: F401, I001  (first: it silences megatron.core's warnings at import)
    import torch

    from llamax.model import shape_of
    from llamax.weights import hf_shapes, write_hf_weights

    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "num_hidden_layers": layers, "num_attention_heads": 24, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "vocab_size": 128256,
        "tie_word_embeddings": True, "initializer_range": 0.02, "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    }  # fmt: skip
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(SEED)
    sizes = hf_shapes(shape_of(config))
    write_hf_weights(folder, sizes, torch.bfloat16, lambda name, out: out.normal_(0, 0.02, generator=generator))
    write_json(folder / "config.json", config)
    return sum(torch.Size(size).numel() for size in sizes.values())


def timed(command):
    """(seconds until all is on the disk, greatest memory in bytes) of a command."""
    start = time.perf_counter()
    memory = watch(command)[1] * 2**20
    subprocess.run(["sync"], check=True)
    return time.perf_counter() - start, memory


def measure(args):
    model, megatron, back, copy = (args.folder / name for name in ("model", "megatron", "back", "copy"))
    parameters = make_model(args.layers, model)
    size = 2 * parameters
    convert = [sys.executable, ROOT / "convert_hf.py"]
    steps = [
        ("to-megatron", [*convert, "to-megatron", "--hf-model", model, "--save", megatron], model),
        ("to-hf", [*convert, "to-hf", "--load", megatron, "--hf-model", model, "--save", back], megatron),
    ]
    seconds, memory = {}, {}
    for _ in range(args.repetitions):
        for name, command, source in steps:
            for what, run_it in ((name, command), (f"cp of what {name} reads", ["cp", "-r", source, copy])):
                took, most = timed(run_it)
                seconds.setdefault(what, []).append(took)
                memory[what] = max(memory.get(what, 0), most)
            shutil.rmtree(copy)
        for file in sorted(model.glob("*.safetensors")):
            subprocess.run(["cmp", file, back / file.name], check=True)
        shutil.rmtree(megatron)
        shutil.rmtree(back)
    print_result(parameters, size, seconds, memory, [name for name, *_ in steps])


def print_result(parameters, size, seconds, memory, names):
    found = {"parameters": parameters, "GB": round(size / 1e9, 2)}
    for name in names:
        own, copy = (statistics.median(seconds[what]) for what in (name, f"cp of what {name} reads"))
        found[name] = {
            "seconds per GB": round(own / size * 1e9, 2),
            "cp, seconds per GB": round(copy / size * 1e9, 2),
            "peak memory, GiB": round(memory[name] / 2**30, 2),
            "peak memory, share of size": round(memory[name] / size, 3),
        }
    print(json.dumps(found, indent=2))


def main():
    args = get_args()
    try:
        measure(args)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    run(main)
