"""llamax/estimate.py against hand-computed numbers, models that were built, tensors that lived, processes that trained.

As a script it is what the tests start: `layouts`, `tensors` or `training` (below).
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
from conftest import ROOT, sentences, stage, write_jsonl

sys.path.insert(0, str(ROOT))
from llamax import estimate


def shape_of(layers, hidden, ffn, heads, groups, channels, vocabulary, tied=False):
    return SimpleNamespace(num_layers=layers, hidden_size=hidden, ffn_hidden_size=ffn, num_attention_heads=heads,
                           num_query_groups=groups, kv_channels=channels, vocab_size=vocabulary, tied=tied)  # fmt: skip


LLAMA2_7B = shape_of(32, 4096, 11008, 32, 32, 128, 32_000)
LLAMA3_8B = shape_of(32, 4096, 14336, 32, 8, 128, 128_256)  # and 3.1
LLAMA32_1B = shape_of(16, 2048, 8192, 32, 8, 64, 128_256, tied=True)


def arguments(**changes):
    """What pretrain_llamax.py would be given; by default the paper's 24 A100 (slurm/pretrain.sh)."""
    defaults = {
        "seq_length": 512, "micro_batch_size": 32, "global_batch_size": 768, "train_iters": 1000,
        "tensor_model_parallel_size": 4, "pipeline_model_parallel_size": 1, "context_parallel_size": 1,
        "sequence_parallel": False, "use_distributed_optimizer": True, "bf16": True, "fp8_format": None,
        "recompute_granularity": None, "packing": "across",
    }  # fmt: skip
    assert changes.keys() <= defaults.keys()
    return argparse.Namespace(**{**defaults, **changes})


def needed(*args):
    return sum(estimate.memory(*args).values())


# The numbers of parameters


@pytest.mark.parametrize(
    ("shape", "by_hand", "total"),
    [
        (LLAMA2_7B, 2 * 32000 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096, 6_738_415_616),
        (
            LLAMA3_8B,
            2 * 128256 * 4096 + 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 4096,
            8_030_261_248,
        ),
        (
            LLAMA32_1B,
            128256 * 2048 + 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048) + 2048,
            1_235_814_400,
        ),
    ],
)
def test_parameters(shape, by_hand, total):
    assert sum(estimate.parameters(shape).values()) == by_hand == total


@pytest.mark.parametrize("shape", [LLAMA2_7B, LLAMA3_8B, LLAMA32_1B])
def test_parameters_are_those_of_transformers(shape):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=shape.num_layers, hidden_size=shape.hidden_size, intermediate_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads, num_key_value_heads=shape.num_query_groups,
        head_dim=shape.kv_channels, vocab_size=shape.vocab_size, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert sum(estimate.parameters(shape).values()) == sum(p.numel() for p in model.parameters())
    names = {"embedding": "embed_tokens", "attention": "self_attn", "mlp": "mlp", "norms": "norm", "output": "lm_head"}
    for part, name in names.items():
        found = sum(p.numel() for full_name, p in model.named_parameters() if name in full_name)
        assert estimate.parameters(shape)[part] == found, part


LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2)]  # tensor, pipeline


def layouts():
    """Four processes: {layout: parameters of each stage's model}, for an untied and a tied shape, as a line of JSON."""
    from llamax import runtime  # isort: skip
    import torch
    from megatron.core import parallel_state

    from llamax.model import build_model

    sizes = arguments(tensor_model_parallel_size=1, bf16=False)
    runtime.initialize(argparse.Namespace(**vars(sizes), seed=1, distributed_timeout_minutes=1))
    found = {}
    for tied in (False, True):
        for tensor, pipeline in LAYOUTS:
            parallel_state.destroy_model_parallel()
            parallel_state.initialize_model_parallel(tensor, pipeline)
            layout = arguments(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline, bf16=False)
            model = build_model(small_shape(tied=tied), layout, 64)
            rank = [parallel_state.get_pipeline_model_parallel_rank(), sum(p.numel() for p in model.parameters())]
            ranks = [None] * 4
            torch.distributed.all_gather_object(ranks, rank)
            stages = [{number for at, number in ranks if at == stage} for stage in range(pipeline)]
            found[f"{tied} {tensor} {pipeline}"] = [stage.pop() if len(stage) == 1 else None for stage in stages]
    if torch.distributed.get_rank() == 0:
        print("\n" + json.dumps(found))
    runtime.shutdown()


def small_shape(**changes):
    from llamax.model import LlamaShape

    shape = {
        "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 160, "num_attention_heads": 8, "num_query_groups": 4,
        "kv_channels": 8, "vocab_size": 500, "max_position_embeddings": 512, "layernorm_epsilon": 1e-5,
        "rotary_base": 1e4, "rope_scaling_factor": None, "tied": False, "init_method_std": 0.02,
    }  # fmt: skip
    return LlamaShape(**{**shape, **changes})


def test_parameters_per_rank_are_those_of_built_models():
    built = json.loads(stage("tests/test_estimate.py", "layouts", ranks=4).splitlines()[-1])
    for tied in (False, True):
        for tensor, pipeline in LAYOUTS:
            layout = arguments(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline)
            expected = estimate.parameters_per_rank(small_shape(tied=tied), layout)
            assert built[f"{tied} {tensor} {pipeline}"] == expected, (tied, tensor, pipeline)


# FLOPs and peaks


def test_flops_per_token():
    # 6 · (6,738,415,616 - 131,072,000 of the embedding - 266,240 of norms) + 12 · 32 layers · 4096 · s
    assert estimate.flops_per_token(LLAMA2_7B, 512) == 39_642_464_256 + 805_306_368 == 40_447_770_624
    assert estimate.flops_per_token(LLAMA2_7B, 4096) == 39_642_464_256 + 6_442_450_944 == 46_084_915_200
    # tied: the output layer multiplies with the embedding; 32 heads of 64 channels
    matrices = 128256 * 2048 + 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert estimate.flops_per_token(LLAMA32_1B, 1024) == 6 * matrices + 12 * 16 * 2048 * 1024


@pytest.mark.parametrize(
    ("name", "bf16", "fp8"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, None),
        ("NVIDIA H100 80GB HBM3", 989.5e12, 1979e12),
        ("NVIDIA H100 PCIe", 756.5e12, 1513e12),
        ("NVIDIA H200", 989.5e12, 1979e12),
        ("NVIDIA H200 NVL", 835.5e12, 1670.5e12),
        ("NVIDIA GH200 480GB", 989.5e12, 1979e12),
        ("NVIDIA GB200", 2500e12, 5000e12),
        ("Tesla V100-SXM2-32GB", 125e12, None),
        ("AMD Instinct MI250X", 191.5e12, None),
        ("AMD Instinct MI300X", 1307.4e12, 2614.9e12),
        ("NVIDIA GeForce GTX 1080", None, None),
    ],
)
def test_peak_flops(name, bf16, fp8):
    assert estimate.peak_flops(name) == (bf16 and pytest.approx(bf16))
    assert estimate.peak_flops(name, fp8=True) == (fp8 and pytest.approx(fp8))


# Memory


def test_memory_of_the_papers_run_by_hand():
    """Llama-2-7B on 24 A100: TP 4, so 6 data-parallel ranks share the optimizer's state; 32 × 512 = 16,384 tokens."""
    rank = (2_147_483_648 + 4_328_521_728 + 2 * 131_072_000) // 4 + 266_240
    assert estimate.parameters_per_rank(LLAMA2_7B, arguments()) == [rank] == [1_684_803_584]
    stream = 16_384 * 4096 * 2
    norm = stream + 16_384 * 4
    attention = 2 * 4 * 1024 + 4 * 8  # query, key, value and output in bf16; 8 logarithms in fp32
    mlp = 2 * 3 * 2752  # gate, up and their product
    layer = 2 * (norm + stream) + 16_384 * (attention + mlp)
    assert estimate.memory(LLAMA2_7B, arguments(), 24, "engine") == {
        "weights": 2 * rank,
        "gradients": 4 * rank,
        "optimizer": 12 * (rank // 6),
        "activations": 32 * layer + norm + stream,
        "logits and loss": 16_384 * 8000 * (2 + 4),
        "CUDA and NCCL": 2 * 2**30,
    }
    assert layer == 942_276_608


def test_memory_falls_with_what_is_meant_to_lower_it():
    base = arguments(use_distributed_optimizer=False)
    sizes = [
        needed(LLAMA2_7B, argparse.Namespace(**{**vars(base), **change}), 24, "gpu")
        for change in (
            {},
            {"sequence_parallel": True},
            {"sequence_parallel": True, "use_distributed_optimizer": True},
            {"sequence_parallel": True, "use_distributed_optimizer": True, "recompute_granularity": "full"},
            {"sequence_parallel": True, "use_distributed_optimizer": True, "recompute_granularity": "full",
             "micro_batch_size": 8},
        )
    ]  # fmt: skip
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    # 1F1B: the first of 4 stages has as many layers in memory as one stage of all, unless there is but one micro-batch
    four = arguments(pipeline_model_parallel_size=4, tensor_model_parallel_size=1)
    one = arguments(tensor_model_parallel_size=1)
    ratio = [estimate.memory(LLAMA2_7B, x, 24, "engine")["activations"] for x in (four, one)]
    assert ratio[0] == pytest.approx(ratio[1], rel=0.02)
    fewer = arguments(pipeline_model_parallel_size=4, tensor_model_parallel_size=1, global_batch_size=6 * 32)
    assert estimate.memory(LLAMA2_7B, fewer, 24, "engine")["activations"] < ratio[0] / 3
    assert needed(LLAMA3_8B, arguments(context_parallel_size=2), 24, "engine") < needed(
        LLAMA3_8B, arguments(), 24, "engine"
    )
    eight_bits = estimate.memory(LLAMA2_7B, arguments(fp8_format="hybrid"), 24, "engine")
    assert eight_bits["weights"] == 2 * 1_684_803_584 + 2 * (2_147_483_648 + 4_328_521_728) // 4
    assert eight_bits["activations"] < estimate.memory(LLAMA2_7B, arguments(), 24, "engine")["activations"]


TENSORS = [
    {},
    {"bf16": True, "num_query_groups": 2, "vocab_size": 500},
    {"packing": "inside", "ffn_hidden_size": 256},
    {"recompute_granularity": "full", "num_layers": 6},
    {"recompute_granularity": "selective", "bf16": True},
    {"vocab_size": 8000},
    {"vocab_size": 8000, "tied": True, "micro_batch_size": 1},
]


def tensors():
    """[bytes of state, peak of a forward and backward pass beyond it] of each of TENSORS: all that torch allocates."""
    from llamax import runtime  # isort: skip
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter

    from llamax.model import build_model

    class Allocations(TorchDispatchMode):
        """Counts the bytes of all storages that are alive."""

        def __init__(self):
            super().__init__()
            self.alive = self.peak = 0
            self.seen = weakref.WeakSet()

        def free(self, size):
            self.alive -= size

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            for tensor in tree_iter(output):
                storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
                if storage is not None and storage not in self.seen:
                    self.seen.add(storage)
                    weakref.finalize(storage, self.free, storage.nbytes())
                    self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            return output

    found = []
    for case in TENSORS:
        shape, args = tensors_case(case)
        if not torch.distributed.is_initialized():
            runtime.initialize(argparse.Namespace(**vars(args), seed=1, distributed_timeout_minutes=1))
        ids = torch.randint(0, shape.vocab_size, (args.micro_batch_size, args.seq_length))
        mask = torch.ones(len(ids), 1, *2 * [args.seq_length], dtype=torch.bool).triu(1)
        mask[:, :, args.seq_length // 2 :, : args.seq_length // 2] = True  # two entries
        with Allocations() as allocations:
            model = build_model(shape, args, args.seq_length)
            config = model.config
            model = Float16Module(config, model) if args.bf16 else model
            model = DistributedDataParallel(config, DistributedDataParallelConfig(grad_reduce_in_fp32=True), model)
            dtype = torch.bfloat16 if args.bf16 else torch.float32
            optimizer = get_megatron_optimizer(OptimizerConfig(lr=1e-3, bf16=args.bf16, params_dtype=dtype), [model])
            for _ in range(2):  # Adam's moments come with the first step
                model.zero_grad_buffer()
                optimizer.zero_grad()
                gc.collect()
                state = allocations.peak = allocations.alive
                losses = model(ids, torch.arange(args.seq_length).expand_as(ids),
                               mask if args.packing == "inside" else None, labels=ids)  # fmt: skip
                losses.sum().backward()
                peak = allocations.peak - state
                del losses
                optimizer.step()
        found.append([state, peak])
        del model, optimizer
        gc.collect()
    print("\n" + json.dumps(found))
    runtime.shutdown()


def tensors_case(case):
    """(shape, arguments) of one of TENSORS."""
    args = {
        "seq_length": 64, "micro_batch_size": 8, "global_batch_size": 8, "tensor_model_parallel_size": 1, "bf16": False,
        "use_distributed_optimizer": False,
    }  # fmt: skip
    shape = {"num_layers": 3, "hidden_size": 256, "ffn_hidden_size": 768, "num_query_groups": 8, "kv_channels": 32,
             "vocab_size": 512}  # fmt: skip
    known = vars(arguments())
    args |= {key: value for key, value in case.items() if key in known}
    shape |= {key: value for key, value in case.items() if key not in known}
    return small_shape(**shape), arguments(**{**args, "global_batch_size": args["micro_batch_size"]})


def test_memory_is_that_of_the_tensors_alive():
    """State to a thousandth; activations and the rest of a step within 8 %."""
    found = json.loads(stage("tests/test_estimate.py", "tensors").splitlines()[-1])
    for case, (state, peak) in zip(TENSORS, found, strict=True):
        parts = estimate.memory(*tensors_case(case), 1, "cpu")
        expected_state = sum(parts.pop(part) for part in ("weights", "gradients", "optimizer"))
        assert state == pytest.approx(expected_state, rel=1e-3), case
        assert peak == pytest.approx(sum(parts.values()), rel=0.08), (case, parts)


def training(out, *options):
    """pretrain_llamax.py until its first checkpoint; writes to OUT.RANK how far its memory rose after start-up."""
    from llamax import runtime  # isort: skip
    from megatron.core import dist_checkpointing
    from megatron.core.optimizer import ChainedOptimizer

    import pretrain_llamax

    def memory():
        """Bytes of this process that no file backs: libraries loaded late do not count."""
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return 1024 * int(line.split()[1])

    samples, initialize = [], runtime.initialize

    def sample():
        while True:
            samples.append(memory())
            time.sleep(0.005)

    def started(args):
        initialize(args)
        samples.append(memory())
        threading.Thread(target=sample, daemon=True).start()

    def trained(*args, **kwargs):
        Path(f"{out}.{runtime.ranks()[0]}").write_text(str(max(samples) - samples[0]))
        os._exit(0)

    runtime.initialize = started
    ChainedOptimizer.sharded_state_dict = dist_checkpointing.save = trained
    sys.argv = ["pretrain_llamax.py", *options]
    pretrain_llamax.main()


@pytest.fixture(scope="module")
def text(tmp_path_factory, tokenizer_model):
    folder = tmp_path_factory.mktemp("text")
    source = write_jsonl(folder / "text.jsonl", [{"text": text, "lang": "fr"} for text in sentences("fr", 400)])
    stage("preprocess_mono.py", "--input", source, "--tokenizer-model", tokenizer_model, "--block-size", 64,
          "--output-prefix", folder / "text")  # fmt: skip
    return folder / "text"


# glibc serves blocks below a threshold, which rises to 32 MiB, from a heap that does not shrink: what activations leave
# there is not in the estimate (5 to 20 % of it all). The second case keeps the threshold low, to see activations alone.
@pytest.mark.parametrize(
    ("threshold", "rows", "ranks", "options"),
    [(None, 2, 0, ()), (4 * 2**20, 16, 0, ())],
    ids=["state", "activations"],
)
def test_memory_is_that_of_a_process(threshold, rows, ranks, options, text, tmp_path, monkeypatch):
    """At least 1 GiB of weights, gradients and optimizer state: within 15 % of what the process needs to train."""
    if threshold:
        monkeypatch.setitem(conftest.ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_", str(threshold))
    shape = shape_of(6, 1024, 2816, 16, 16, 64, 500)
    (tmp_path / "hf").mkdir()
    config = {
        "model_type": "llama", "num_hidden_layers": 6, "hidden_size": 1024, "intermediate_size": 2816,
        "num_attention_heads": 16, "vocab_size": 500, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    batch = rows * max(ranks, 1)
    stage("tests/test_estimate.py", "training", tmp_path / "peak", "--hf-model", tmp_path / "hf", "--init-weights",
          "--data-path", text, "--save", tmp_path / "run", "--seq-length", 64, "--micro-batch-size", rows,
          "--global-batch-size", batch, "--train-iters", 3, "--eval-interval", 0, *options, ranks=ranks)  # fmt: skip
    peak = max(int(path.read_text()) for path in tmp_path.glob("peak.*"))
    args = arguments(
        seq_length=64, micro_batch_size=rows, global_batch_size=batch, tensor_model_parallel_size=1, bf16=False,
        use_distributed_optimizer="--use-distributed-optimizer" in options,
    )  # fmt: skip
    parts = estimate.memory(shape, args, max(ranks, 1), "cpu")
    assert sum(parts[part] for part in ("weights", "gradients", "optimizer")) >= 2**30
    print(f"estimated {sum(parts.values()) / 2**20:.0f} MiB, measured {peak / 2**20:.0f} MiB")
    assert sum(parts.values()) == pytest.approx(peak, rel=0.15)


# The report


def report(args=None, world_size=24, gpu_memory_gib=80, **options):
    return estimate.report(LLAMA2_7B, args or arguments(), world_size, gpu_memory_gib, 312, 0.4, **options)


def test_report():
    text, problem = report(tokens_available=39_321_600)
    assert problem is None
    rows = dict(line.strip().split("  ", 1) for line in text.splitlines() if "  " in line.strip())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["embedding"] == "131,072,000" and rows["weights"] == "3.14 GiB"
    assert "6,738,415,616" in text and "of 80" in rows["sum"]
    assert rows["GPUs"] == "24: 6 data parallel × 4"
    assert rows["micro-batches a step"].startswith("4 of 32 rows")
    assert rows["tokens a step"].startswith("393,216")
    assert rows["tokens"] == "393,216,000, 10.00 epochs"
    # 393,216,000 tokens · 40,447,770,624 FLOPs = 1.59e19, at 24 · 312e12 · 0.4 a second: 5,310 s
    assert rows["FLOPs"] == "1.59e+19" and rows["time"].startswith("1.5 hours, at 40% of 312")
    assert rows["GPU hours"] == "35.4"


def test_what_does_not_fit_is_refused_with_what_helps():
    args = arguments(use_distributed_optimizer=False, tensor_model_parallel_size=1)
    text, problem = report(args)
    assert "6,738,415,616" in text and "\n" not in problem
    size = needed(LLAMA2_7B, args, 24, "engine") / 2**30
    assert f"needs {size:.1f} GiB and has 80;" in problem
    assert "the largest part is optimizer, 75.3 GiB" in problem
    fixed = needed(LLAMA2_7B, arguments(tensor_model_parallel_size=1), 24, "engine") / 2**30
    assert f"--use-distributed-optimizer ({fixed:.1f} GiB)" in problem
    for option in ("--tensor-model-parallel-size 2", "--micro-batch-size 16", "--recompute-granularity full"):
        assert option in problem
    assert "--sequence-parallel" not in problem  # one tensor-parallel rank


def test_options_in_use_are_not_recommended():
    args = arguments(micro_batch_size=1, recompute_granularity="full", sequence_parallel=True)
    problem = report(args, gpu_memory_gib=1)[1]
    assert "--tensor-model-parallel-size 8" in problem
    for option in ("--use-distributed-optimizer", "--micro-batch-size", "--recompute", "--sequence-parallel"):
        assert option not in problem
    args.global_batch_size = 1  # on 4 GPUs there is one data-parallel rank, and none to be more tensor parallel with
    assert report(args, world_size=4, gpu_memory_gib=1)[1].endswith("give more GPUs, or larger ones")


def test_torch_is_not_imported():
    code = "import sys, llamax.estimate; assert not {'torch', 'megatron'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


if __name__ == "__main__":
    {"layouts": layouts, "tensors": tensors, "training": training}[sys.argv[1]](*sys.argv[2:])
