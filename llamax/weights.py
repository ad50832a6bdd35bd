"""Llama's weights between Hugging Face's layout and megatron.core's.

linear_qkv   for each key/value group: its queries, then its key, then its value, along the output dimension
linear_fc1   gate, then up
norms, output projections and embeddings one to one; the vocabulary is padded with zero rows

Whatever the size of a model, conversion has one tensor of it in memory at a time: HFWeights and CheckpointWeights read
it, write_hf_weights and import_weights write it.
"""

import functools
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from megatron.core import parallel_state
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from llamax.files import InputError, read_json, replacing, write_json
from llamax.model import padded_vocab_size
from llamax.records import Progress

SHARD_BYTES = 5_000_000_000  # of one safetensors file, as transformers splits them
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_LAYERS = "decoder.layers."
_OF_SAFETENSORS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TO_SAFETENSORS = {dtype: name for name, dtype in _OF_SAFETENSORS.items()}


def hf_shapes(shape):
    """{name: size} of the tensors of a Llama in a Hugging Face folder, in the order transformers writes them."""
    hidden, ffn, d = shape.hidden_size, shape.ffn_hidden_size, shape.kv_channels
    heads, groups = shape.num_attention_heads, shape.num_query_groups
    of_layer = {
        "self_attn.q_proj": (heads * d, hidden),
        "self_attn.k_proj": (groups * d, hidden),
        "self_attn.v_proj": (groups * d, hidden),
        "self_attn.o_proj": (hidden, heads * d),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    sizes = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for i in range(shape.num_layers):
        sizes |= {f"model.layers.{i}.{name}.weight": size for name, size in of_layer.items()}
    sizes["model.norm.weight"] = (hidden,)
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocab_size, hidden)
    return sizes


def megatron_sizes(shape):
    """{key: size} of the tensors of a Llama in a sharded checkpoint; those of the layers are one tensor there, whose
    first dimension is the layer."""
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    queries, groups = shape.num_attention_heads * shape.kv_channels, shape.num_query_groups * shape.kv_channels
    of_layer = {
        "self_attention.linear_qkv.layer_norm_weight": (hidden,),
        "self_attention.linear_qkv.weight": (queries + 2 * groups, hidden),
        "self_attention.linear_proj.weight": (hidden, queries),
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        "mlp.linear_fc1.weight": (2 * ffn, hidden),
        "mlp.linear_fc2.weight": (hidden, ffn),
    }
    sizes = {"embedding.word_embeddings.weight": (padded_vocab_size(shape.vocab_size), hidden)}
    sizes |= {_LAYERS + name: (shape.num_layers, *size) for name, size in of_layer.items()}
    sizes["decoder.final_layernorm.weight"] = (hidden,)
    if not shape.tied:
        sizes["output_layer.weight"] = sizes["embedding.word_embeddings.weight"]
    return sizes


class HFWeights:
    """The tensors of a Hugging Face folder, read piece by piece from its safetensors files."""

    def __init__(self, folder):
        self.folder = Path(folder)
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            self.file_of = self._read_index(index)
        elif (self.folder / "model.safetensors").is_file():
            with self._open("model.safetensors") as file:
                self.file_of = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise InputError(
                f"--hf-model {folder}: no model.safetensors and no index; expected safetensors weights "
                "(pickle files are not read), or give --init-weights to start from random ones"
            )
        self.opened = {}

    @staticmethod
    def _read_index(path):
        index = read_json(path, "--hf-model")
        files = index.get("weight_map") if isinstance(index, dict) else None
        # A name and not a path: an index from elsewhere must not lead out of its folder.
        if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
            raise InputError(f"--hf-model {path}: no weight_map of tensors and file names; fetch the file again")
        return files

    def _open(self, name):
        if not (self.folder / name).is_file():
            raise InputError(f"--hf-model {self.folder / name}: missing, though the index names it; fetch the file")
        try:
            return safe_open(self.folder / name, framework="pt")
        except (OSError, SafetensorError) as error:
            raise InputError(f"--hf-model {self.folder / name}: {error}; fetch the file again") from None

    def _slice(self, name, size):
        """safetensors' view of a tensor, of which nothing is read yet and whose whole size must be `size`."""
        if name not in self.file_of:
            raise InputError(f"--hf-model {self.folder}: holds no tensor {name}; is it a Llama of this config.json?")
        file = self.file_of[name]
        if file not in self.opened:
            self.opened[file] = self._open(file).__enter__()
        try:
            tensor = self.opened[file].get_slice(name)
        except SafetensorError:
            raise InputError(
                f"--hf-model {self.folder / file}: holds no tensor {name}, though the index says so; fetch it again"
            ) from None
        found = tuple(tensor.get_shape())
        if found != tuple(size):
            raise InputError(f"--hf-model {self.folder}: {name} has shape {found}, config.json says {tuple(size)}")
        return tensor

    def part(self, name, size, rows=slice(None), columns=slice(None)):
        """Rows and columns of a tensor, whose whole size must be `size`."""
        tensor = self._slice(name, size)
        return tensor[rows] if len(size) == 1 else tensor[rows, columns]

    def fill(self, name, out):
        """Copy tensor `name`, whose size must be out's, to `out`."""
        out.copy_(self.part(name, out.shape))

    def check(self, shape):
        """Raise InputError unless the folder holds all tensors of a Llama in their sizes, and no others."""
        expected = hf_shapes(shape)
        for name, size in expected.items():
            self._slice(name, size)
        # The frequencies of RoPE, which old folders hold, and the output rows of a tied model follow from the rest.
        known = re.compile(r".*rotary_emb\.inv_freq" + (r"|lm_head\.weight" if shape.tied else ""))
        for name in self.file_of:
            if name not in expected and not known.fullmatch(name):
                raise InputError(f"--hf-model {self.folder}: holds {name}, which no Llama of this config.json has")

    def dtype(self, shape):
        """The dtype that the weights are stored in, or float32, in which each fits, where there are several."""
        names = {self._slice(name, size).get_dtype() for name, size in hf_shapes(shape).items()}
        if not names <= set(_OF_SAFETENSORS):
            raise InputError(
                f"--hf-model {self.folder}: has weights of type {', '.join(sorted(names))}, expected "
                f"{', '.join(_OF_SAFETENSORS)}; quantised models cannot be trained: take the original"
            )
        return _OF_SAFETENSORS[names.pop()] if len(names) == 1 else torch.float32


class CheckpointWeights:
    """The tensors of a sharded checkpoint under their Hugging Face names, whatever layout it was saved with."""

    def __init__(self, folder, shape):
        self.shape, self.reader = shape, FileSystemReader(folder)
        metadata = self.reader.read_metadata()
        self.reader.set_up_storage_reader(metadata, is_coordinator=True)
        self.stored = metadata.state_dict_metadata
        self._check(folder)

    def _check(self, folder):
        expected = megatron_sizes(self.shape)
        if self.shape.tied:
            expected["output_layer.weight"] = None
        for name, size in expected.items():
            found = tuple(self.stored[name].size) if name in self.stored else None
            if found != size:
                raise InputError(
                    f"--load {folder}: not a checkpoint of this model: {name} has shape {found}, config.json of "
                    f"--hf-model says {size}; give the --hf-model it was trained from"
                )

    def fill(self, name, out):
        """Copy tensor `name`, whose size is out's, to `out`; of the padded vocabulary its first rows."""
        if name == "model.embed_tokens.weight":
            return self._read("embedding.word_embeddings.weight", out)
        if name == "model.norm.weight":
            return self._read("decoder.final_layernorm.weight", out)
        if name == "lm_head.weight":
            return self._read("output_layer.weight", out)
        _, _, layer, *part, _ = name.split(".")
        layer, part = int(layer), part[-1]
        if part in ("q_proj", "k_proj", "v_proj"):
            return out.copy_(self._qkv(layer)[part].reshape(out.shape))
        key, row = {
            "o_proj": ("self_attention.linear_proj.weight", 0),
            "gate_proj": ("mlp.linear_fc1.weight", 0),
            "up_proj": ("mlp.linear_fc1.weight", self.shape.ffn_hidden_size),
            "down_proj": ("mlp.linear_fc2.weight", 0),
            "input_layernorm": ("self_attention.linear_qkv.layer_norm_weight", 0),
            "post_attention_layernorm": ("mlp.linear_fc1.layer_norm_weight", 0),
        }[part]
        return self._read(_LAYERS + key, out, layer, row)

    @functools.lru_cache(maxsize=1)  # noqa: B019  (the three are asked for one after the other)
    def _qkv(self, layer):
        shape, key = self.shape, _LAYERS + "self_attention.linear_qkv.weight"
        d, groups = shape.kv_channels, shape.num_query_groups
        stored = self.stored[key]
        qkv = torch.empty(stored.size[1:], dtype=stored.properties.dtype)
        self._read(key, qkv, layer)
        queries = shape.num_attention_heads // groups * d
        parts = qkv.view(groups, queries + 2 * d, -1).split([queries, d, d], dim=1)
        return dict(zip(("q_proj", "k_proj", "v_proj"), parts, strict=True))

    def _read(self, key, out, layer=None, row=0):
        """Fill `out` with the rows of a stored tensor (of a layer of it) from `row` on; with `layer`, the layers are
        its first dimension."""
        offsets = [row] + [0] * (out.dim() - 1)
        if layer is not None:
            out, offsets = out[None], [layer, *offsets]
        box = ChunkStorageMetadata(torch.Size(offsets), out.shape)
        items = create_read_items_for_chunk_list(key, self.stored[key], [box])

        def place(item):
            index = tuple(slice(o, o + n) for o, n in zip(item.dest_offsets, item.lengths, strict=True))
            return out[index]

        # What read_data asks of a LoadPlanner; the others plan loads of whole state dicts on many ranks.
        planner = SimpleNamespace(resolve_tensor=place, commit_tensor=lambda item, tensor: None)
        self.reader.read_data(LoadPlan(items), planner).wait()


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


class _Importing(DefaultSavePlanner):
    """Gives torch's checkpoint writer one tensor after the other, each made when it is to be written."""

    def __init__(self, weights, shape, dtype):
        super().__init__(flatten_state_dict=False)
        self.weights, self.shape, self.sizes = weights, shape, megatron_sizes(shape)
        self.dtype = TensorProperties(dtype=dtype)
        elements = sum(torch.Size(size).numel() for size in self.sizes.values())
        self.progress = Progress(elements * dtype.itemsize, "B", "writing")

    def items(self):
        """What the checkpoint is to hold: a piece for each layer of each tensor."""
        for key, size in self.sizes.items():
            for layer in range(self.shape.num_layers) if key.startswith(_LAYERS) else [None]:
                offset, piece = ((layer,), (1, *size[1:])) if layer is not None else ((0,), size)
                offset = torch.Size(offset + (0,) * (len(size) - 1))
                data = TensorWriteData(ChunkStorageMetadata(offset, torch.Size(piece)), self.dtype, torch.Size(size))
                yield WriteItem(MetadataIndex(key, offset), WriteItemType.SHARD, tensor_data=data)
        for layer in range(self.shape.num_layers):  # of Transformer Engine, which looks for them: nothing
            for name in ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2"):
                key = f"{_LAYERS}{name}._extra_state/shard_{layer}_{self.shape.num_layers}"
                yield WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO)

    def resolve_data(self, item):
        key = item.index.fqn
        if item.type == WriteItemType.BYTE_IO:
            torch.save([None], state := io.BytesIO())
            return state
        name = key.replace(_LAYERS, f"{_LAYERS}{item.index.offset[0]}.")
        tensor = _hf_part(name, self.weights, self.shape, tp_rank=0, tp_size=1)
        piece = torch.zeros(item.tensor_data.chunk.sizes, dtype=self.dtype.dtype)
        piece.view(-1, *tensor.shape[1:])[: len(tensor)] = tensor  # rows of vocabulary padding stay zero
        self.progress.update(piece.nbytes)
        return piece


def import_weights(folder, weights, shape, dtype):
    """Write a Hugging Face folder's weights as a sharded checkpoint, one tensor in memory at a time.

    megatron.core's writer wants the whole model first, and copies half of it; torch's, below it, does not.

    Args:
        folder: to write to; megatron.core's own files of a checkpoint are there.
        weights: HFWeights, checked.
        dtype: of all tensors.
    """
    planner = _Importing(weights, shape, dtype)
    plans, metadata = planner.create_global_plan([SavePlan(list(planner.items()))])
    writer = FileSystemWriter(folder)
    writer.set_up_storage_writer(is_coordinator=True)
    [plan] = writer.prepare_global_plan([writer.prepare_local_plan(plans[0])])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])
    planner.progress.close()


def write_hf_weights(folder, sizes, dtype, fill):
    """Write safetensors of at most SHARD_BYTES, with an index where there are several, one tensor in memory at a time.

    Args:
        sizes: {name: size}, as `hf_shapes` gives them.
        dtype: of all tensors.
        fill: called with a name and an empty tensor of that size, which it fills.

    The library can only write tensors that are all in memory. The format: https://github.com/huggingface/safetensors
    """
    folder, width = Path(folder), dtype.itemsize
    total = sum(width * torch.Size(size).numel() for size in sizes.values())
    shards = [{}]
    for name, size in sizes.items():
        nbytes = width * torch.Size(size).numel()
        if shards[-1] and sum(shards[-1].values()) + nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = nbytes
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    progress = Progress(total, "B", "writing")
    for file, shard in zip(files, shards, strict=True):
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, nbytes in shard.items():
            offsets = [end, end := end + nbytes]
            header[name] = {"dtype": _TO_SAFETENSORS[dtype], "shape": list(sizes[name]), "data_offsets": offsets}
        text = json.dumps(header).encode("utf-8")
        text += b" " * (-len(text) % 8)
        with replacing(folder / file) as partial, open(partial, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name, nbytes in shard.items():
                tensor = torch.empty(sizes[name], dtype=dtype)
                fill(name, tensor)
                out.write(tensor.view(-1).view(torch.uint8).numpy().data)
                progress.update(nbytes)
    progress.close()
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
