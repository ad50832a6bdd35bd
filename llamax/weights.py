"""Llama's weights between Hugging Face's layout and megatron.core's.

linear_qkv   for each key/value group: its queries, then its key, then its value, along the output dimension
linear_fc1   gate, then up
norms, output projections and embeddings one to one; the vocabulary is padded with zero rows
"""

import re
from pathlib import Path

import torch
from megatron.core import parallel_state
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llamax.files import InputError, read_json, replacing, write_json

SHARD_BYTES = 5_000_000_000  # of one safetensors file, as transformers splits them


class HFWeights:
    """The tensors of a Hugging Face folder, read piece by piece from its safetensors files."""

    def __init__(self, folder):
        self.folder = Path(folder)
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            self.file_of = read_json(index, "--hf-model").get("weight_map", {})
        elif (self.folder / "model.safetensors").is_file():
            with self._open("model.safetensors") as file:
                self.file_of = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise InputError(
                f"--hf-model {folder}: no model.safetensors and no index; expected safetensors weights "
                "(pickle files are not read), or give --init-weights to start from random ones"
            )
        self.opened = {}

    def _open(self, name):
        try:
            return safe_open(self.folder / name, framework="pt")
        except (OSError, SafetensorError) as error:
            raise InputError(f"--hf-model {self.folder / name}: {error}; fetch the file again") from None

    def part(self, name, shape, rows=slice(None), columns=slice(None)):
        """Rows and columns of a tensor, whose whole shape must be `shape`."""
        if name not in self.file_of:
            raise InputError(f"--hf-model {self.folder}: holds no tensor {name}; is it a Llama of this config.json?")
        file = self.file_of[name]
        if file not in self.opened:
            self.opened[file] = self._open(file).__enter__()
        tensor = self.opened[file].get_slice(name)
        found = tuple(tensor.get_shape())
        if found != tuple(shape):
            raise InputError(f"--hf-model {self.folder}: {name} has shape {found}, config.json says {tuple(shape)}")
        return tensor[rows] if len(shape) == 1 else tensor[rows, columns]

    def dtype(self, shape):
        """The dtype the weights are stored in (that of the final norm)."""
        return self.part("model.norm.weight", (shape.hidden_size,)).dtype


@torch.no_grad()
def load_hf_weights(model, folder, shape):
    """Copy a Hugging Face folder's weights into this rank's part of the model, reading only that part."""
    weights = HFWeights(folder)
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    for name, parameter in model.named_parameters():
        match = re.search(r"decoder\.layers\.(\d+)\.", name)
        if match:
            # Megatron numbers a pipeline stage's layers from 0; layer_number counts all of them from 1.
            name = name[: match.start(1)] + str(_decoder(model)[int(match[1])].layer_number - 1) + name[match.end(1) :]
        part = _hf_part(name, weights, shape, tp_rank, tp_size)
        parameter.zero_()  # rows of vocabulary padding stay zero
        parameter[: part.shape[0]].copy_(part)


def _decoder(model):
    while not hasattr(model, "decoder"):
        model = model.module
    return model.decoder.layers


def _hf_part(name, weights, shape, tp_rank, tp_size):
    """A rank's part of the megatron.core parameter `name` (layers numbered from 0 over all stages)."""
    hidden, ffn, d = shape.hidden_size, shape.ffn_hidden_size, shape.kv_channels
    heads, groups = shape.num_attention_heads, shape.num_query_groups

    def share(size):
        """This rank's range of `size` rows or columns."""
        return slice(size // tp_size * tp_rank, size // tp_size * (tp_rank + 1))

    layer = re.search(r"layers\.(\d+)\.", name)
    hf = f"model.layers.{layer[1]}." if layer else "model."
    if name.endswith(("word_embeddings.weight", "output_layer.weight")):
        from llamax.model import padded_vocab_size

        hf_name = "lm_head.weight" if "output_layer" in name and not shape.tied else "model.embed_tokens.weight"
        rows = share(padded_vocab_size(shape.vocab_size))
        rows = slice(min(rows.start, shape.vocab_size), min(rows.stop, shape.vocab_size))
        return weights.part(hf_name, (shape.vocab_size, hidden), rows)
    if name.endswith("final_layernorm.weight"):
        return weights.part("model.norm.weight", (hidden,))
    if name.endswith(("input_layernorm.weight", "linear_qkv.layer_norm_weight")):
        return weights.part(hf + "input_layernorm.weight", (hidden,))
    if name.endswith(("pre_mlp_layernorm.weight", "linear_fc1.layer_norm_weight")):
        return weights.part(hf + "post_attention_layernorm.weight", (hidden,))
    if name.endswith("linear_qkv.weight"):
        q = weights.part(hf + "self_attn.q_proj.weight", (heads * d, hidden), share(heads * d))
        k = weights.part(hf + "self_attn.k_proj.weight", (groups * d, hidden), share(groups * d))
        v = weights.part(hf + "self_attn.v_proj.weight", (groups * d, hidden), share(groups * d))
        mine = groups // tp_size
        return torch.cat([x.reshape(mine, -1, hidden) for x in (q, k, v)], dim=1).reshape(-1, hidden)
    if name.endswith("linear_proj.weight"):
        return weights.part(hf + "self_attn.o_proj.weight", (hidden, heads * d), columns=share(heads * d))
    if name.endswith("linear_fc1.weight"):
        gate = weights.part(hf + "mlp.gate_proj.weight", (ffn, hidden), share(ffn))
        return torch.cat([gate, weights.part(hf + "mlp.up_proj.weight", (ffn, hidden), share(ffn))])
    if name.endswith("linear_fc2.weight"):
        return weights.part(hf + "mlp.down_proj.weight", (hidden, ffn), columns=share(ffn))
    raise ValueError(f"no Hugging Face counterpart for {name}")


def hf_tensors(model, shape):
    """Yield (Hugging Face name, tensor) of a whole model (TP 1, PP 1), in the order transformers writes them."""
    parameters = dict(model.named_parameters())

    def first_of(*names):  # Transformer Engine's layers carry their norms inside the projection that follows
        return next(parameters[name] for name in names if name in parameters).data

    yield "model.embed_tokens.weight", parameters["embedding.word_embeddings.weight"].data[: shape.vocab_size]
    for i in range(shape.num_layers):
        mcore, hf = f"decoder.layers.{i}.", f"model.layers.{i}."
        d, groups = shape.kv_channels, shape.num_query_groups
        queries = shape.num_attention_heads // groups * d
        qkv = parameters[mcore + "self_attention.linear_qkv.weight"].data.view(groups, queries + 2 * d, -1)
        for name, part in zip("qkv", qkv.split([queries, d, d], dim=1), strict=True):
            yield f"{hf}self_attn.{name}_proj.weight", part.reshape(-1, shape.hidden_size)
        yield hf + "self_attn.o_proj.weight", parameters[mcore + "self_attention.linear_proj.weight"].data
        gate, up = parameters[mcore + "mlp.linear_fc1.weight"].data.chunk(2)
        yield hf + "mlp.gate_proj.weight", gate
        yield hf + "mlp.up_proj.weight", up
        yield hf + "mlp.down_proj.weight", parameters[mcore + "mlp.linear_fc2.weight"].data
        norms = mcore + "input_layernorm.weight", mcore + "self_attention.linear_qkv.layer_norm_weight"
        yield hf + "input_layernorm.weight", first_of(*norms)
        norms = mcore + "pre_mlp_layernorm.weight", mcore + "mlp.linear_fc1.layer_norm_weight"
        yield hf + "post_attention_layernorm.weight", first_of(*norms)
    yield "model.norm.weight", parameters["decoder.final_layernorm.weight"].data
    if not shape.tied:
        yield "lm_head.weight", parameters["output_layer.weight"].data[: shape.vocab_size]


def save_hf_weights(tensors, folder, dtype):
    """Write (name, tensor) pairs as safetensors of at most SHARD_BYTES, with an index where there are several."""
    folder = Path(folder)
    shards, size = [{}], 0
    for name, tensor in tensors:
        tensor = tensor.detach().to("cpu", dtype).contiguous().clone()
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        with replacing(folder / name) as partial:
            try:
                save_file(shard, partial, metadata={"format": "pt"})
            except SafetensorError as error:  # which hides the OSError
                raise InputError(
                    f"--save {folder / name}: {error}; free some space or choose another folder, then run again"
                ) from None
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
