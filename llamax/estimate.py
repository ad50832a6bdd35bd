"""What a training run needs before it is started: parameters, memory of a GPU, FLOPs, time.

Imports neither torch nor megatron.core. `shape` is a llamax.model.LlamaShape; `args` has Megatron's names. In
formulas, h is the hidden size, f the MLP's, a the heads, g the key/value groups, d the channels of a head, v the
vocabulary, s the sequence length, b the micro-batch size, tp the tensor-parallel size.
"""

import argparse

GIB = 2**30
FP32 = 4  # bytes

# Dense tensor-core peaks in TFLOP/s: (part of torch.cuda.get_device_name, bf16, fp8), from the data sheets named; where
# one gives a figure with sparsity, half of it. The first that matches counts, so that longer names come first.
_PEAKS = (
    ("GB200", 2500, 5000),  # NVIDIA GB200 NVL72
    ("B200", 2250, 4500),  # NVIDIA HGX B200
    ("H200 NVL", 835.5, 1670.5),  # NVIDIA H200
    ("H200", 989.5, 1979),  # NVIDIA H200 (SXM); GH200 is the same
    ("H100 NVL", 835.5, 1670.5),  # NVIDIA H100
    ("H100 PCIe", 756.5, 1513),  # NVIDIA H100
    ("H100", 989.5, 1979),  # NVIDIA H100 (SXM)
    ("A100", 312, None),  # NVIDIA A100 (SXM and PCIe)
    ("A40", 149.7, None),  # NVIDIA A40
    ("A30", 165, None),  # NVIDIA A30
    ("L40S", 362.05, 733),  # NVIDIA L40S
    ("V100-PCIE", 112, None),  # NVIDIA V100; fp16, there is no bf16
    ("V100", 125, None),  # NVIDIA V100 (SXM2); fp16
    ("MI355X", 2516.6, 5033.2),  # AMD Instinct MI355X
    ("MI325X", 1307.4, 2614.9),  # AMD Instinct MI325X
    ("MI300X", 1307.4, 2614.9),  # AMD Instinct MI300X
    ("MI300A", 980.6, 1961.2),  # AMD Instinct MI300A
    ("MI250X", 191.5, None),  # AMD Instinct MI250X: 383 for a card, which is two devices
    ("MI250", 181.05, None),  # AMD Instinct MI250: 362.1 for a card, which is two devices
)

# Bytes of a GPU that no tensor accounts for, a round figure, not measured here: the CUDA context with the kernels of
# torch and Transformer Engine is about 0.6 GiB, cuBLAS' workspaces under 0.1, and NCCL keeps some 0.1 to 0.3 for each
# of the groups a rank talks in (tensor, pipeline, data parallel, model parallel, all).
CUDA_BYTES = 2 * GIB

_LAYERS = {"cpu": "torch on the CPU", "gpu": "torch's own layers", "engine": "Transformer Engine's layers"}


def peak_flops(device_name, fp8=False):
    """The dense peak of a GPU in FLOP/s, bf16 or fp8, by torch.cuda.get_device_name(); None if it is not known."""
    for name, bf16_peak, fp8_peak in _PEAKS:
        if name in device_name:
            peak = fp8_peak if fp8 else bf16_peak
            return peak and peak * 1e12
    return None


def parameters(shape):
    """{part: number of parameters} of the whole model, without padding of the vocabulary. Tied: no output."""
    h, vocabulary = shape.hidden_size, shape.vocab_size * shape.hidden_size
    queries, keys = (n * shape.kv_channels for n in (shape.num_attention_heads, shape.num_query_groups))
    return {
        "embedding": vocabulary,
        "attention": shape.num_layers * h * (2 * queries + 2 * keys),  # query, output; key, value
        "mlp": shape.num_layers * 3 * h * shape.ffn_hidden_size,  # gate, up, down
        "norms": (2 * shape.num_layers + 1) * h,
        "output": 0 if shape.tied else vocabulary,
    }


def flops_per_token(shape, seq_length):
    """Model FLOPs of one token's forward and backward pass, by the convention of PaLM, appendix B (arXiv 2204.02311).

    6 for each parameter of a matrix multiplication (2 forward, 4 backward; the output layer counts, the embedding's
    look-up does not), and 12 · layers · a · d · s for attention's scores and values, in full although half is masked.
    What recomputation adds is not counted, nor padding of the vocabulary.
    """
    count = parameters(shape)
    matrices = count["attention"] + count["mlp"] + count["embedding"]  # the output layer has the embedding's size
    attention = shape.num_layers * shape.num_attention_heads * shape.kv_channels * seq_length
    return 6 * matrices + 12 * attention


def parameters_per_rank(shape, args):
    """[parameters that one rank of a pipeline stage holds], by stage. The vocabulary is padded; norms are replicated
    over tensor-parallel ranks, all else is shared; tied embeddings are on the first and the last stage."""
    stages, tensor_parallel = args.pipeline_model_parallel_size, args.tensor_model_parallel_size
    count, vocabulary = parameters(shape), _padded_vocab_size(shape) * shape.hidden_size // tensor_parallel
    layers = (count["attention"] + count["mlp"]) // (stages * tensor_parallel)
    norms = 2 * shape.hidden_size * shape.num_layers // stages
    numbers = [layers + norms] * stages
    numbers[0] += vocabulary
    numbers[-1] += shape.hidden_size  # the final norm
    if stages > 1 or not shape.tied:
        numbers[-1] += vocabulary
    return numbers


def _padded_vocab_size(shape):
    from llamax.model import padded_vocab_size  # here, because it imports torch

    return padded_vocab_size(shape.vocab_size)


def memory(shape, args, world_size, backend):
    """{part: bytes} of the fullest rank when it is fullest; their sum is what it needs.

    `backend` computes the layers: "cpu", "gpu" (torch's own operations) or "engine" (Transformer Engine). What lives in
    tensors is counted, not what allocators lose between them (on the CPU, glibc some 5 to 20 % of it all, mostly by
    activations, whose blocks of less than 32 MiB it keeps), nor what gathering a checkpoint takes. The parts:

    weights        in the model's precision; with fp8, 8-bit copies of each matrix and of its transpose as well
    gradients      fp32 in either precision (grad_reduce_in_fp32), whole even with the distributed optimizer
    optimizer      Adam's two moments, fp32, and in bf16 the fp32 main weights; with the distributed optimizer each
                   data- and context-parallel rank has its share of them
    CUDA and NCCL  CUDA_BYTES, on a GPU

    and of what is there for a while, the largest that is there at once (`_moments`).
    """
    stages = range(args.pipeline_model_parallel_size)
    return max((_stage_memory(shape, args, world_size, backend, stage) for stage in stages), key=_total)


def _total(parts):
    return sum(parts.values())


def _stage_memory(shape, args, world_size, backend, stage):
    number = parameters_per_rank(shape, args)[stage]
    stages, tensor_parallel = args.pipeline_model_parallel_size, args.tensor_model_parallel_size
    data_parallel = world_size // (tensor_parallel * stages)  # context-parallel ranks have the same weights, too
    own = number // (data_parallel if args.use_distributed_optimizer else 1)  # parameters whose optimizer state it has
    state = {
        "weights": number * _width(args),
        "gradients": number * FP32,
        "optimizer": own * FP32 * (3 if args.bf16 else 2),
    }
    if args.fp8_format:
        count = parameters(shape)
        state["weights"] += 2 * (count["attention"] + count["mlp"]) // (tensor_parallel * stages)
    micro_batches = args.global_batch_size * args.context_parallel_size // (args.micro_batch_size * data_parallel)
    moments = _moments(shape, args, backend, stage, min(stages - stage, micro_batches))
    moments.append({"Adam's temporaries": _adam(shape, args, own, backend)})
    if backend == "cpu" and own < number:
        moments.append({"gloo's copy of the gradients": number * FP32})  # NCCL reduces and scatters in place
    rest = {} if backend == "cpu" else {"CUDA and NCCL": CUDA_BYTES}
    return state | max(moments, key=_total) | rest


def _width(args):
    """Bytes of a weight or an activation in the model's precision."""
    return 2 if args.bf16 else FP32


def _tokens(args):
    """Tokens of a micro-batch on one rank."""
    return args.micro_batch_size * args.seq_length // args.context_parallel_size


def _sharing(args):
    """How many tensor-parallel ranks share what is kept of the residual stream [s, b, h]."""
    return args.tensor_model_parallel_size if args.sequence_parallel else 1


def _moments(shape, args, backend, stage, in_flight):
    """[{part: bytes}] of the moments in forward and backward passes at which a rank of a pipeline stage may be fullest.

    Activations are those of the micro-batches in flight, of which stage p of P has up to P - p (1F1B). Each keeps what
    its layers do (`_layer_activations`), or with full recomputation the input of each layer and, while it is
    recomputed, one layer in full. To that the last stage adds the final norm and the output layer's input, until they
    have been differentiated, and the others the output that they sent on.
    """
    stages, tensor_parallel = args.pipeline_model_parallel_size, args.tensor_model_parallel_size
    full, last = args.recompute_granularity == "full", stage == stages - 1
    width, tokens = _width(args), _tokens(args)
    stream = tokens * shape.hidden_size * width // _sharing(args)
    layer = _layer_activations(shape, args, backend)
    kept = in_flight * (shape.num_layers // stages * (stream if full else layer) + (0 if last else stream))
    vocabulary = _padded_vocab_size(shape) // tensor_parallel
    embedding = vocabulary * shape.hidden_size * width  # its gradient, or the output layer's
    tied = shape.tied and stages == 1

    # The MLP's backward pass: gradients of the residual stream (and what is gathered of it) and of gate and up, and of
    # the weights until they are in the buffer; a tied embedding's from the output layer waits for that of the look-up.
    f = shape.ffn_hidden_size // tensor_parallel
    gradients = width * (tokens * ((2 if args.sequence_parallel else 1) * shape.hidden_size + 2 * f))
    gradients += width * 2 * f * shape.hidden_size + (embedding if tied else 0)
    moments = [{"activations": kept + (layer if full else 0), "gradients of a layer": gradients}]
    if stage == 0:
        moments.append({"gradients of the embedding": embedding * (3 if tied else 1)})  # tied: two and their sum
    if last:
        # Logits [s, b, v/tp], in bf16 a copy in fp32, in which the softmax and then the gradient are computed, and, if
        # ranks share the vocabulary, a copy without its padding; or later the logits' gradient and the weight's.
        unpadded = tensor_parallel > 1 and _padded_vocab_size(shape) > shape.vocab_size
        copies = width + (width if unpadded else 0) + (FP32 if args.bf16 else 0)
        logits = max(tokens * vocabulary * copies, tokens * vocabulary * width + embedding)
        if args.sequence_parallel:
            logits += tokens * shape.hidden_size * width  # the output layer's whole input
        moments.append({"activations": kept + _norm(shape, args, backend) + stream, "logits and loss": logits})
    return moments


def _norm(shape, args, backend):
    """Bytes an RMSNorm keeps: its input [s, b, h] and one number a token. On the CPU torch has no fused one: input and
    normalised input, both in fp32."""
    width = 2 * FP32 if backend == "cpu" else _width(args)
    return _tokens(args) * (shape.hidden_size * width + FP32) // _sharing(args)


def _layer_activations(shape, args, backend):
    """Bytes that one layer keeps of one micro-batch on one rank.

    After Korthikanti et al. 2022 (arXiv 2205.05198), section 4: what each operation needs in its backward pass. Here
    there is no dropout and no mask of it, the MLP is SwiGLU, keys and values have g heads, and attention keeps its
    output and a logarithm a head and token in place of the score matrix. "selective" recomputation, which is of
    attention's core, therefore saves that logarithm only (and the masks of --packing inside).
    """
    tokens, width, tp = _tokens(args), _width(args), args.tensor_model_parallel_size
    product = 1 if args.fp8_format else width  # bytes of a matrix multiplication's kept input
    fused_attention = backend == "engine" and args.packing != "inside"  # else CausalAttention
    queries, keys = (n * shape.kv_channels // tp for n in (shape.num_attention_heads, shape.num_query_groups))
    heads, f = shape.num_attention_heads // tp, shape.ffn_hidden_size // tp

    norms = 2 * (_norm(shape, args, backend) + tokens * shape.hidden_size * product // _sharing(args))
    # Queries and keys turned by RoPE, the output, and the values: Transformer Engine copies them, else they are a view
    # that keeps alive the whole output of the query-key-value product.
    attention = width * (queries + keys + queries + (keys if fused_attention else queries + 2 * keys))
    if args.fp8_format:
        attention += queries  # the output projection's input
    if args.recompute_granularity != "selective":
        attention += FP32 * heads
        if args.packing == "inside":
            attention += width * args.seq_length  # a [b, 1, s, s] mask, as numbers to be added
    # Gate and up [2 f] and the input of the down projection; unfused also SiLU(gate) and up + 0.
    mlp = 2 * f * width + (f * product if backend == "engine" else 3 * f * width)
    return norms + tokens * (attention + mlp)


def _adam(shape, args, number, backend):
    """Bytes that a step of AdamW needs for `number` parameters: Transformer Engine's none; torch's on GPUs the square
    root of all second moments at once, on the CPU that of one matrix at a time and a quotient of it, while the last
    quotient (before the MLP's first matrix, that of the query-key-value matrix) is still there."""
    if backend == "engine":
        return 0
    if backend == "gpu":
        return FP32 * number
    attention = (shape.num_attention_heads + 2 * shape.num_query_groups) * shape.kv_channels
    rows = 2 * max(2 * shape.ffn_hidden_size, _padded_vocab_size(shape)) + attention
    return FP32 * min(rows * shape.hidden_size // args.tensor_model_parallel_size, 2 * number)


def report(shape, args, world_size, gpu_memory_gib, peak_tflops, mfu, tokens_available=None, backend="engine"):
    """(text, problem): a table of what a run on `world_size` GPUs of `gpu_memory_gib` needs, and one line if it does
    not fit, else None. `peak_tflops` is of one GPU, `mfu` the share of it that is reached, `tokens_available` the
    tokens of one epoch."""
    model_parallel = args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    data_parallel = world_size // model_parallel
    micro_batches = args.global_batch_size // (args.micro_batch_size * data_parallel)
    step_tokens = args.global_batch_size * args.seq_length
    tokens = step_tokens * args.train_iters
    flops = tokens * flops_per_token(shape, args.seq_length)
    seconds = flops / (world_size * peak_tflops * 1e12 * mfu)
    parts, count = memory(shape, args, world_size, backend), parameters(shape)
    needed = _total(parts) / GIB

    rows = [("parameters", ""), *((f"  {part}", f"{number:16,}") for part, number in count.items())]
    rows += [("  sum", f"{_total(count):16,}"), (f"memory of a GPU, {_LAYERS[backend]}", "")]
    rows += [(f"  {part}", f"{size / GIB:16.2f} GiB") for part, size in parts.items()]
    rows += [
        ("  sum", f"{needed:16.2f} GiB of {gpu_memory_gib:g}"),
        ("GPUs", f"{world_size:,}: {data_parallel:,} data parallel × {model_parallel:,}"),
        ("micro-batches a step", f"{micro_batches:,} of {args.micro_batch_size:,} rows on each data-parallel rank"),
        ("tokens a step", f"{step_tokens:,}: {args.global_batch_size:,} rows of {args.seq_length:,}"),
        ("steps", f"{args.train_iters:,}"),
        ("tokens", f"{tokens:,}" + (f", {tokens / tokens_available:.2f} epochs" if tokens_available else "")),
        ("FLOPs", f"{flops:.3g}"),
        ("time", f"{_duration(seconds)}, at {mfu:.0%} of {peak_tflops:g} TFLOP/s"),
        ("GPU hours", f"{seconds * world_size / 3600:,.1f}"),
    ]
    text = "\n".join(f"{name:24}{value}".rstrip() for name, value in rows)
    if needed <= gpu_memory_gib:
        return text, None
    largest = max(parts, key=parts.get)
    problem = (
        f"a GPU needs {needed:.1f} GiB and has {gpu_memory_gib:g}; the largest part is {largest}, "
        f"{parts[largest] / GIB:.1f} GiB"
    )
    remedies = [f"{option} ({size / GIB:.1f} GiB)" for option, size in _remedies(shape, args, world_size, backend)]
    remedy = "less is needed with " + ", ".join(remedies) if remedies else "give more GPUs, or larger ones"
    return text, f"{problem}; {remedy}"


def _duration(seconds):
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.1f} seconds"


def _remedies(shape, args, world_size, backend):
    """Options not in use that lower what a GPU needs, each with the bytes that it would need then."""
    tensor, half = 2 * args.tensor_model_parallel_size, max(args.micro_batch_size // 2, 1)
    ranks = tensor * args.pipeline_model_parallel_size * args.context_parallel_size
    changes = [
        ("--use-distributed-optimizer", {"use_distributed_optimizer": True}),
        (f"--micro-batch-size {half}", {"micro_batch_size": half}),
        ("--recompute-granularity full", {"recompute_granularity": "full"}),
    ]
    if shape.num_query_groups % tensor == 0 and world_size % ranks == 0:
        changes.append((f"--tensor-model-parallel-size {tensor}", {"tensor_model_parallel_size": tensor}))
    if args.tensor_model_parallel_size > 1 and args.seq_length % args.tensor_model_parallel_size == 0:
        changes.append(("--sequence-parallel", {"sequence_parallel": True}))
    now = _total(memory(shape, args, world_size, backend))
    for option, change in changes:
        changed = argparse.Namespace(**{**vars(args), **change})
        size = _total(memory(shape, changed, world_size, backend))
        if size < now:
            yield option, size
