"""Llama on megatron.core: a Hugging Face config.json becomes a GPTModel.

Transformer Engine's layers where it is installed and a GPU is there, megatron.core's own elsewhere, with attention
on torch.nn.functional.scaled_dot_product_attention (the local attention materialises the score matrix).
"""

import math
from dataclasses import dataclass

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from llamax.files import InputError, read_json
from llamax.runtime import has_transformer_engine

# megatron.core lets only the factor of Llama-3.1's RoPE scaling be chosen; the rest is fixed to Llama-3.1's values.
_FIXED_ROPE_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class LlamaShape:
    """What config.json says of a Llama, in megatron.core's names."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    vocab_size: int
    max_position_embeddings: int
    layernorm_epsilon: float
    rotary_base: float
    rope_scaling_factor: float | None  # None: no scaling
    tied: bool
    init_method_std: float


def read_shape(folder):
    """The LlamaShape of a Hugging Face folder; InputError if it is no Llama or one megatron.core cannot compute."""
    path = f"{folder}/config.json"
    config = read_json(path, "--hf-model")
    try:
        return shape_of(config)
    except KeyError as error:
        raise InputError(f"--hf-model {path}: no {error}, expected a Llama's config.json") from None
    except ValueError as error:
        raise InputError(f"--hf-model {path}: {error}") from None


def rope_of(config):
    """RoPE as transformers 5 writes it, {"rope_type", "rope_theta", …}, of a config.json of transformers 4 or 5."""
    rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    defaults = {"rope_type": rope.get("type", "default"), "rope_theta": config.get("rope_theta", 10000.0)}
    return {**defaults, **rope}


def shape_of(config):
    """The LlamaShape of a config.json, in the form of transformers 4 (rope_theta) or 5 (rope_parameters)."""
    if config.get("model_type") != "llama":
        raise ValueError(f"model_type {config.get('model_type')!r}, expected 'llama'")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ValueError(f"{key} is set; Llama has no biases")
    rope = rope_of(config)
    kind = rope["rope_type"]
    if kind not in ("default", "llama3"):
        raise ValueError(f"RoPE scaling {kind!r}, expected none or 'llama3'")
    if kind == "llama3":
        for key, value in _FIXED_ROPE_SCALING.items():
            if rope.get(key) != value:
                raise ValueError(f"RoPE scaling has {key} {rope.get(key)}; megatron.core computes {value} only")
    heads = config["num_attention_heads"]
    return LlamaShape(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        kv_channels=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        max_position_embeddings=config["max_position_embeddings"],
        layernorm_epsilon=config["rms_norm_eps"],
        rotary_base=rope["rope_theta"],
        rope_scaling_factor=rope["factor"] if kind == "llama3" else None,
        tied=config.get("tie_word_embeddings", False),
        init_method_std=config.get("initializer_range", 0.02),
    )


def check_layout(shape, args):
    """Raise InputError where the parallel sizes do not divide a Llama."""
    for size, name in ((shape.num_attention_heads, "attention heads"), (shape.num_query_groups, "key/value heads")):
        if size % args.tensor_model_parallel_size:
            raise InputError(
                f"--tensor-model-parallel-size {args.tensor_model_parallel_size}: does not divide the {size} {name}"
            )
    if shape.num_layers % args.pipeline_model_parallel_size:
        raise InputError(
            f"--pipeline-model-parallel-size {args.pipeline_model_parallel_size}: does not divide the "
            f"{shape.num_layers} layers"
        )


def transformer_config(shape, args):
    """megatron.core's TransformerConfig for a Llama.

    `args` has Megatron's names: tensor_model_parallel_size, pipeline_model_parallel_size, bf16, and optionally
    params_dtype (else bf16 decides), recompute_granularity, context_parallel_size, sequence_parallel, fp8_format and
    init_weights.
    """
    on_gpu = torch.cuda.is_available()
    engine = has_transformer_engine()
    dtype = getattr(args, "params_dtype", torch.bfloat16 if args.bf16 else torch.float32)
    recompute = getattr(args, "recompute_granularity", None)
    check_layout(shape, args)
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
        normalization="RMSNorm",
        layernorm_epsilon=shape.layernorm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=shape.init_method_std,
        calculate_per_token_loss=True,  # micro-batches have unequal numbers of tokens with loss
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        context_parallel_size=getattr(args, "context_parallel_size", 1),
        sequence_parallel=getattr(args, "sequence_parallel", False) and args.tensor_model_parallel_size > 1,
        fp8=getattr(args, "fp8_format", None),
        perform_initialization=getattr(args, "init_weights", False),  # else weights are read
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu_initialization=not on_gpu,
        batch_p2p_comm=on_gpu,
        bias_activation_fusion=engine,
        bias_dropout_fusion=engine,
        apply_rope_fusion=engine,
        masked_softmax_fusion=engine,
        gradient_accumulation_fusion=False,
        recompute_granularity=recompute,
        recompute_method="uniform" if recompute == "full" else None,
        recompute_num_layers=1 if recompute == "full" else None,
    )


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm for the layer spec; megatron.core's own refuses sequence parallelism.

    With it, each tensor-parallel rank norms its share of the positions, and megatron.core sums the gradients of the
    weights that say so.
    """

    def __init__(self, config, hidden_size, eps=1e-5, **unused):
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel


class CausalAttention(MegatronModule):
    """Core attention on torch's scaled_dot_product_attention, in place of megatron.core's DotProductAttention.

    Takes query [s, b, heads, d], key and value [s, b, groups, d] of this tensor-parallel rank; gives [s, b, heads·d].
    `attention_mask` [b, 1, s, s] is True where a query may not look (megatron.core's sense); None means causal.
    """

    def __init__(self, config, layer_number, attn_mask_type, attention_type, **unused):
        super().__init__(config=config)
        self.scale = unused.get("softmax_scale") or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self, query, key, value, attention_mask, attn_mask_type=None, attention_bias=None, packed_seq_params=None
    ):
        s, b, heads, d = query.shape
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, heads, s, d]
        context = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            scale=self.scale,
            enable_gqa=key.shape[1] != heads,
        )
        return context.permute(2, 0, 1, 3).reshape(s, b, heads * d)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        return {}  # no parameters


class _CrossEntropy(torch.autograd.Function):
    """Losses [s, b] of logits [s, b, v] of which the first `kept` count. Overwrites the logits, as megatron.core's
    cross-entropy does, which passes over them twice as often."""

    @staticmethod
    def forward(ctx, logits, labels, kept):
        ctx.dtype = logits.dtype
        logs = logits.detach().float()
        logs[..., kept:] = -math.inf
        torch.log_softmax(logs, -1, out=logs)
        ctx.save_for_backward(logs, labels)
        return -logs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx, grad):
        logs, labels = ctx.saved_tensors
        softmax, labels = logs.exp_(), labels.unsqueeze(-1)
        softmax.scatter_add_(-1, labels, softmax.new_tensor(-1.0).expand(labels.shape))
        return softmax.mul_(grad.unsqueeze(-1)).to(ctx.dtype), None, None


class Llama(GPTModel):
    """GPTModel whose padded vocabulary rows take no part in the loss.

    The vocabulary is padded so that tensor-parallel ranks share it evenly. Left alone, the padding's logits would
    take probability mass and be trained.
    """

    def __init__(self, *args, true_vocab_size, **kwargs):
        super().__init__(*args, **kwargs)
        self.true_vocab_size = true_vocab_size

    def compute_language_model_loss(self, labels, logits):
        if parallel_state.get_tensor_model_parallel_world_size() == 1:
            labels = labels.transpose(0, 1).contiguous()
            return _CrossEntropy.apply(logits, labels, self.true_vocab_size).transpose(0, 1).contiguous()
        # logits [s, b, v/tp]: this rank holds rows first … first + v/tp
        first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
        kept = max(self.true_vocab_size - first, 0)
        if kept < logits.shape[-1]:
            padding = torch.arange(logits.shape[-1], device=logits.device) >= kept
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        return super().compute_language_model_loss(labels, logits)


def padded_vocab_size(vocab_size, multiple=128):
    """The vocabulary size the model is built with. It does not depend on the tensor-parallel size (up to 128), so
    that a checkpoint can be read with another one."""
    return -(-vocab_size // multiple) * multiple


_PARTITIONED = {
    tensor_parallel.ColumnParallelLinear: 0,
    tensor_parallel.VocabParallelEmbedding: 0,
    tensor_parallel.RowParallelLinear: 1,
}


def build_model(shape, args, sequence_length):
    """This rank's part of the model: its pipeline stage's layers, its tensor-parallel share. On the current device."""
    config = transformer_config(shape, args)
    engine = has_transformer_engine()
    layer = (
        get_gpt_layer_with_transformer_engine_spec() if engine else get_gpt_layer_local_spec(normalization="RMSNorm")
    )
    # Transformer Engine's causal attention ignores the mask that keeps attention inside an entry.
    if not engine or getattr(args, "packing", None) == "inside":
        layer.submodules.self_attention.submodules.core_attention = CausalAttention
    if engine:
        spec = layer
    else:
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = RMSNorm
        spec = TransformerBlockSubmodules([layer] * get_num_layers_to_build(config), layer_norm=RMSNorm)
    model = Llama(
        config,
        spec,
        vocab_size=padded_vocab_size(shape.vocab_size),
        max_sequence_length=sequence_length,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="rope",
        rotary_base=shape.rotary_base,
        rope_scaling=shape.rope_scaling_factor is not None,
        rope_scaling_factor=shape.rope_scaling_factor or 8.0,
        true_vocab_size=shape.vocab_size,
    )
    # Left out with the initialisation; without them, the gradient norm would count one tensor-parallel rank only.
    for module in model.modules():
        dimension = _PARTITIONED.get(type(module))
        if dimension is not None and module.weight is not None and not hasattr(module.weight, "tensor_model_parallel"):
            tensor_parallel.set_tensor_model_parallel_attributes(module.weight, True, dimension, stride=1)
    for parameter in model.parameters():
        tensor_parallel.set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
    return model.cuda() if torch.cuda.is_available() else model
