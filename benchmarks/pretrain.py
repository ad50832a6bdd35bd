"""Tokens a second of pretrain_llamax.py beside transformers' Trainer, on the same model, rows and optimizer.

    pip install -r requirements-test.txt -c constraints.txt
    python benchmarks/pretrain.py --output work/pretrain.json                  # a Llama of 58 M parameters, CPU, fp32
    python benchmarks/pretrain.py --device cuda --hidden-size 2048 --ffn-hidden-size 5504 --heads 16 --layers 16 \\
        --micro-batch-size 16 --output work/pretrain-cuda.json                 # one GPU, bf16: not tried yet
    python benchmarks/pretrain.py --device cuda --mfu --output work/mfu.json   # one GPU, ours alone: not tried yet

Real text becomes a Megatron dataset by preprocess_mono.py. pretrain_llamax.py reads it; Trainer gets the rows it reads,
in the same order, from memory. Both start from one Hugging Face folder of random weights, with AdamW, the learning rate
constant, attention on torch's scaled_dot_product_attention, one process. Each repetition runs both, in turn, in
processes of their own. Their losses in the warm-up steps must agree, or nothing is reported: it would not be the same
work.

What is counted: a step from its first row read to weights and learning rate changed; not logging, evaluation or saving
(there is none), nor the first steps (--warm-up). Ours is `tokens_per_second` of metrics.jsonl; Trainer's time runs from
its on_log of the step before to its on_step_end. A repetition's figure is tokens / seconds over its counted steps; the
result is the median of the repetitions. Beside each run stands how many cores other processes took meanwhile, the
hypervisor's steal included: a run where that is much has been disturbed.

fp32 is fp32 on both sides. In bf16, Trainer autocasts fp32 weights, its usual way; ours has bf16 weights beside fp32
main weights. --mfu: the deepest stack of Llama-2-7B's layers that fits the card, at 512 and 4,096 tokens a row. Model
FLOPs a token: llamax/estimate.py (PaLM, appendix B).
"""

import importlib.util
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamax.files import InputError, Parser, existing_file, existing_folder, read_json, run, write_json  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
TOLERANCE = {"cpu": 1e-3, "cuda": 2e-2}  # relative, of losses and gradient norms: fp32, bf16
LLAMA2_7B = {"hidden_size": 4096, "ffn_hidden_size": 11008, "heads": 32, "key_value_heads": 32}
ADAMW = {"weight_decay": 0.1, "adam_beta2": 0.95}
SEED = 1234


def add_options(parser):
    """The options that benchmarks/sft.py has as well."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cpu: fp32; cuda: bf16 (default %(default)s)")
    add("--layers", type=int, default=8, help="(default %(default)s)")
    add("--hidden-size", type=int, default=512, help="(default %(default)s)")
    add("--ffn-hidden-size", type=int, default=1376, help="(default %(default)s)")
    add("--heads", type=int, default=8, help="(default %(default)s)")
    add("--key-value-heads", type=int, help="(default: as many as --heads)")
    add("--seq-length", type=int, default=512, help="tokens a row (default %(default)s)")
    add("--micro-batch-size", type=int, default=4, help="rows computed at once (default %(default)s)")
    add("--accumulation", type=int, default=1, help="micro-batches a step (default %(default)s)")
    add("--lr", type=float, default=1e-4, help="learning rate, constant (default %(default)s)")
    add("--warm-up", type=int, default=3, help="first steps, not timed (default %(default)s)")
    add("--repetitions", type=int, default=5, help="of both sides (default %(default)s)")
    add("--huge-pages", action="store_true", help="give both sides huge pages (THP_MEM_ALLOC_ENABLE=1), which torch "
        "does not ask for by itself")  # fmt: skip
    add("--threads", type=int, default=os.cpu_count(), help="of each side (default %(default)s)")
    add("--tokenizer-model", default=str(SHARED / "tokenizers" / "llama2.tokenizer.model"), metavar="FILE",
        help="(%(default)s)")  # fmt: skip
    add("--output", required=True, metavar="FILE", help="writes all figures as JSON")


def check_options(args, *counts):
    """InputError where one of these options cannot be, nor one of the numbers `counts` below 1."""
    existing_file(args.tokenizer_model, "--tokenizer-model")
    counts = ("warm_up", "repetitions", "threads", "micro_batch_size", "accumulation", *counts)
    for name in counts:
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1")
    args.key_value_heads = args.key_value_heads or args.heads


def need_accelerate():
    if importlib.util.find_spec("accelerate") is None:
        raise InputError("Trainer needs accelerate; pip install -r requirements-test.txt -c constraints.txt")


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add_options(parser)
    add = parser.add_argument
    add("--steps", type=int, default=12, help="timed steps (default %(default)s)")
    add("--text", default=str(SHARED / "ntrex" / "NTREX-128"), metavar="DIR", help="folder of .txt files (%(default)s)")
    add("--mfu", action="store_true", help="model FLOPs utilisation of as many of Llama-2-7B's layers as fit, ours "
        "alone (cuda)")  # fmt: skip
    add("--peak-tflops", type=float, help="of the GPU in bf16, for --mfu (default: by its name)")
    args = parser.parse_args()
    check_options(args, "steps")
    existing_folder(args.text, "--text")
    if not args.mfu:
        need_accelerate()
    elif args.device != "cuda":
        raise InputError("--mfu: is of a GPU; add --device cuda")
    return args


# ---- one run, in a process of its own: {"losses", "grad_norms", "seconds"} of each step


def train_ours(script, settings, *words, **options):
    """One run of pretrain_llamax.py or sft_alpaca.py (`script`: the module), with these options besides the common
    ones. Also found: "loss_tokens"."""
    from llamax.checkpoint import Saver

    Saver.save = lambda *_: None  # the one after the last step: a 7B's is 100 GB
    options = {
        "hf_model": settings["model"], "save": settings["folder"], "split": "100,0,0", "eval_interval": 0,
        "seq_length": settings["seq_length"], "micro_batch_size": settings["micro_batch_size"],
        "train_iters": settings["warm_up"] + settings["steps"], "lr": settings["lr"], "lr_decay_style": "constant",
        "lr_warmup_fraction": 0, "loss_spike_factor": 0, "grad_spike_factor": 0, "clip_grad": 1.0, "seed": SEED,
        "data_cache_path": settings["cache"], **options,
    }  # fmt: skip
    options = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    sys.argv = [f"{script.__name__}.py", *options, *words, *["--bf16"] * (settings["device"] == "cuda")]
    script.main()
    lines = (Path(settings["folder"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    places = read_json(f"{settings['folder']}/run.json")["arguments"]["global_batch_size"] * settings["seq_length"]
    return {
        "losses": [row["loss"] for row in rows],
        "grad_norms": [row["grad_norm"] for row in rows],
        "loss_tokens": [row["tokens"] for row in rows],
        "seconds": [places / row["tokens_per_second"] for row in rows],
    }


def train_trainer(settings, rows, collate=None, **options):
    """One run of Trainer on `rows`, in their order."""
    import torch
    import transformers

    on_gpu = settings["device"] == "cuda"
    found = {"losses": [], "grad_norms": [], "seconds": []}

    class Clock(transformers.TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            if on_gpu:  # the losses are awaited in logging, which is not counted: wait here
                torch.cuda.synchronize()
            found["seconds"].append(time.perf_counter() - self.start)

        def on_log(self, *_, logs, **__):
            if "loss" in logs:
                found["losses"].append(logs["loss"])
                found["grad_norms"].append(logs["grad_norm"])
            self.start = time.perf_counter()

    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=torch.float32, attn_implementation="sdpa"
    )
    arguments = transformers.TrainingArguments(
        output_dir=settings["folder"],
        per_device_train_batch_size=settings["micro_batch_size"],
        gradient_accumulation_steps=settings["accumulation"],
        max_steps=settings["warm_up"] + settings["steps"],
        learning_rate=settings["lr"],
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        max_grad_norm=1.0,
        seed=SEED,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    given = {"train_dataset": rows, "data_collator": collate, "callbacks": [Clock()]}
    transformers.Trainer(model=model, args=arguments, **given).train()
    return found


def ours(settings):
    import pretrain_llamax

    words = ["--data-path", "1", settings["data"], *["--init-weights"] * settings["mfu"]]
    rows = settings["micro_batch_size"] * settings["accumulation"]
    return train_ours(pretrain_llamax, settings, *words, global_batch_size=rows, **ADAMW)


def trainer(settings):
    import torch

    rows = torch.load(settings["rows"], weights_only=True)
    # shift_labels, the labels of rows of which every token has one, count as an unused column.
    return train_trainer(settings, rows, remove_unused_columns=False, **ADAMW)


def one_run(side, settings_file, output):
    settings = read_json(settings_file)
    write_json(output, {"ours": ours, "trainer": trainer}[side](settings))


# ---- what both sides read


def make_model(args, vocab_size, folder, weights=True):
    """A Hugging Face folder of a random Llama, or its config.json alone."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.ffn_hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.key_value_heads,
        max_position_embeddings=args.seq_length,
        rms_norm_eps=1e-5,
    )
    if weights:
        torch.manual_seed(SEED)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)


def make_data(args, folder):
    """The Megatron dataset of all text files: (prefix, size of the vocabulary)."""
    files = sorted(Path(args.text).glob("*.txt"))
    if not files:
        raise InputError(f"--text {args.text}: no .txt file; expected a folder of text files")
    command = [sys.executable, ROOT / "preprocess_mono.py", "--input", *files, "--lang", "mul_Latn"]
    command += ["--tokenizer-model", args.tokenizer_model, "--workers", args.threads, "--output-prefix", folder / "d"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return str(folder / "d"), read_json(folder / "d.json")["arguments"]["tokenizer"]["vocab_size"]


def make_rows(args, data, vocab_size, folder):
    """The rows that pretrain_llamax.py reads, in its order, as Trainer takes them."""
    from llamax import runtime  # isort: skip  (first: it silences megatron.core's warnings at import)
    import torch

    from llamax.data import build_datasets

    logging.getLogger("megatron").setLevel(logging.CRITICAL)
    # Blending asks for the rank.
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    count = (args.warm_up + args.steps) * args.micro_batch_size * args.accumulation
    names = Namespace(data_path=["1", data], valid_data_path=None, split="100,0,0", seed=SEED, packing="across",
                      seq_length=args.seq_length, data_cache_path=str(folder / "cache"))  # fmt: skip
    dataset, *_ = build_datasets(names, vocab_size, count, 0)
    rows = []
    for i in range(count):
        row = dataset[i]
        labels = row["labels"].masked_fill(row["loss_mask"] == 0, -100)
        rows.append({"input_ids": row["tokens"], "labels": labels, "shift_labels": labels})
    runtime.shutdown()
    torch.save(rows, folder / "rows.pt")
    return str(folder / "rows.pt")


# ---- measuring


def cpu_seconds():
    """CPU seconds that (everybody, our ended children) used so far."""
    times, children = psutil.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    everybody = times.user + times.nice + times.system + getattr(times, "steal", 0.0)
    return everybody, children.ru_utime + children.ru_stime


def measure(script, side, settings):
    """What one run of a side of `script`, a benchmark's file, finds in a process of its own; "tokens_per_second" of its
    timed steps, which take settings["counted_tokens"]; "others". None if the GPU's memory is too small."""
    with tempfile.TemporaryDirectory() as out:
        write_json(f"{out}/settings.json", {**settings, "folder": f"{out}/run"})
        command = [sys.executable, script, "--one-run", side, f"{out}/settings.json", f"{out}/result.json"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings["threads"]), "HF_HUB_OFFLINE": "1"}
        if settings["huge_pages"]:
            environment["THP_MEM_ALLOC_ENABLE"] = "1"
        if settings["device"] == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        start, (everybody, children) = time.perf_counter(), cpu_seconds()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        wall, (everybody_now, children_now) = time.perf_counter() - start, cpu_seconds()
        if done.returncode:
            if settings.get("mfu") and "out of memory" in done.stderr:
                return None
            raise InputError(f"{side} fails: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        result = read_json(f"{out}/result.json")
    timed = result["seconds"][settings["warm_up"] :]
    assert len(timed) == settings["steps"] == len(result["losses"]) - settings["warm_up"], result
    result["tokens_per_second"] = settings["counted_tokens"] / sum(timed)
    result["others"] = max((everybody_now - everybody - (children_now - children)) / wall, 0.0)
    return result


def take_turns(script, repetitions, settings):
    """Run both sides in turn, settings[side] each; after each repetition yields {side: [what measure found]}."""
    runs = {"ours": [], "trainer": []}
    for repetition in range(repetitions):
        for side, results in runs.items():
            results.append(result := measure(script, side, settings[side]))
            print(f"{repetition + 1}/{repetitions} {side}: {result['tokens_per_second']:,.0f} tokens/s, "
                  f"loss {result['losses'][0]:.4f} to {result['losses'][-1]:.4f}, others took "
                  f"{result['others']:.2f} cores", flush=True)  # fmt: skip
        yield runs


def settings_of(args, made):
    """What a run is told."""
    tokens = args.steps * args.micro_batch_size * args.accumulation * args.seq_length
    return {**vars(args), **made, "counted_tokens": tokens}


def check_losses(runs, args):
    """InputError unless the losses of the warm-up steps are the same on both sides; the greatest difference."""
    pairs = [
        (step, a, b)
        for ours, theirs in zip(runs["ours"], runs["trainer"], strict=True)
        for step, (a, b) in enumerate(zip(ours["losses"][: args.warm_up], theirs["losses"], strict=False), 1)
    ]
    step, a, b = max(pairs, key=lambda pair: abs(pair[1] - pair[2]) / pair[2])
    if abs(a - b) > TOLERANCE[args.device] * b:
        raise InputError(f"step {step}: loss {a:.5f}, Trainer's {b:.5f}; not the same work, nothing to compare")
    return abs(a - b) / b


def compare(args, made):
    """Both sides in turn, --repetitions times, and the table."""
    from llamax import runtime  # noqa: F401  (first: it silences megatron.core's warnings at import)
    from llamax.estimate import flops_per_token
    from llamax.model import read_shape

    for runs in take_turns(__file__, args.repetitions, dict.fromkeys(("ours", "trainer"), settings_of(args, made))):
        difference = check_losses(runs, args)
    medians = {side: statistics.median(r["tokens_per_second"] for r in results) for side, results in runs.items()}
    print(f"\n{'':8} {'median tokens/s':>16} {'GFLOP/s':>9}  all")
    for side, results in runs.items():
        values = " ".join(f"{r['tokens_per_second']:,.0f}" for r in results)
        gflops = medians[side] * flops_per_token(read_shape(made["model"]), args.seq_length) / 1e9
        print(f"{side:8} {medians[side]:16,.0f} {gflops:9,.0f}  {values}")
    ratio = medians["ours"] / medians["trainer"]
    print(f"ours / Trainer: {ratio:.3f}; losses of the first {args.warm_up} steps differ by {difference:.1e} at most\n")
    return {"median": medians, "ratio": ratio, "loss_difference": difference, "runs": runs}


def utilisation(args, made, folder):
    """MFU of the deepest stack of Llama-2-7B's layers that fits the GPU, at both row lengths."""
    from llamax import runtime  # noqa: F401, I001  (first: it silences megatron.core's warnings at import)
    import torch

    from llamax.estimate import flops_per_token, peak_flops
    from llamax.model import read_shape

    name = torch.cuda.get_device_name()
    peak = 1e12 * args.peak_tflops if args.peak_tflops else peak_flops(name)
    if peak is None:
        raise InputError(f"--mfu: no peak known for {name}; give its dense bf16 figure with --peak-tflops")
    found = {}
    for seq_length in (512, 4096):
        fits, too_many, result, rate = 0, 33, None, 0.0
        while too_many - fits > 1:
            # All 32 first, then by halves.
            layers = 32 if too_many == 33 and not fits else (fits + too_many) // 2
            tried = Namespace(**{**vars(args), **LLAMA2_7B, "seq_length": seq_length, "layers": layers,
                                 "micro_batch_size": max(4096 // seq_length, 1)})  # fmt: skip
            with tempfile.TemporaryDirectory(dir=folder) as model:
                make_model(tried, made["vocab_size"], model, weights=False)
                tried_run = measure(__file__, "ours", settings_of(tried, {**made, "model": model}))
                flops = flops_per_token(read_shape(model), seq_length)
            print(f"{seq_length} tokens a row, {layers} layers: {'fits' if tried_run else 'out of memory'}", flush=True)
            if tried_run:
                fits, result, rate = layers, tried_run, tried_run["tokens_per_second"] * flops
            else:
                too_many = layers
        if result is None:
            raise InputError("--mfu: not even one layer fits the GPU")
        found[seq_length] = {"layers": fits, "mfu": rate / peak, "peak_tflops": peak / 1e12, **result}
        print(f"{seq_length} tokens a row, {fits} layers: {result['tokens_per_second']:,.0f} tokens/s, "
              f"{rate / 1e12:,.0f} TFLOP/s, MFU {100 * rate / peak:.1f} %", flush=True)  # fmt: skip
    return found


def machine(args):
    """What the figures depend on: versions, processor, date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    names = ["torch", "megatron-core", "transformers"]
    names += ["accelerate"] * (importlib.util.find_spec("accelerate") is not None)
    found = {"date": time.strftime("%Y-%m-%d"), "cpu": f"{cpu}, {os.cpu_count()} cores", "threads": args.threads,
             "python": platform.python_version(), **{name: version(name) for name in names}}  # fmt: skip
    if args.device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def main():
    if sys.argv[1:2] == ["--one-run"]:
        return one_run(*sys.argv[2:])
    args = get_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data, vocab_size = make_data(args, folder)
        made = {"data": data, "vocab_size": vocab_size, "cache": str(folder / "cache")}
        if args.mfu:
            figures = {"mfu": utilisation(args, made, folder)}
        else:
            make_model(args, vocab_size, folder / "model")
            made |= {"model": str(folder / "model"), "rows": make_rows(args, data, vocab_size, folder)}
            figures = compare(args, made)
    result = {"arguments": vars(args), "machine": machine(args), **figures}
    write_json(args.output, result)
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}))


if __name__ == "__main__":
    run(main)
