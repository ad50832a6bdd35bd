"""Convert a Llama between Hugging Face's folder and megatron.core's sharded checkpoint, and what else makes one folder
of another.

    python convert_hf.py to-hf --load work/run --hf-model llama2-7b --save work/hf
    python convert_hf.py to-megatron --hf-model llama2-7b --save work/megatron
    python convert_hf.py average --load run/iter_0000800 run/iter_0000900 --hf-model llama2-7b --save work/mean
    python convert_hf.py extend-vocabulary --hf-model llama2-7b --input ro.txt --new-tokens 800 --save work/llama2-ro
    python convert_hf.py card --hf-model work/hf --scores work/out

A checkpoint of any tensor- and pipeline-parallel layout can be exported, and an imported one trained with any. One
process, no GPU, one tensor in memory at a time. Exported folders carry --hf-model's tokenizer and generation config,
a config.json that transformers 4 and 5 read, llamax.json (what the model was made from) and a model card, README.md.
"""

import contextlib
import os
import shutil
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # conversion needs no GPU, and a model may be larger than one

from llamax import runtime  # isort: skip  (first: it silences megatron.core's warnings at import)
import torch

from llamax import checkpoint, provenance, vocabulary
from llamax.files import (
    InputError,
    Parser,
    existing_file,
    existing_folder,
    read_json,
    run,
    scratch_folder,
    write_json,
)
from llamax.model import build_model, read_shape, rope_of
from llamax.prompts import MODEL_RECORD
from llamax.report import read_scores
from llamax.tokenizer import load_tokenizer, write_hf_tokenizer
from llamax.weights import DTYPES, CheckpointWeights, HFWeights, hf_shapes, import_weights, write_hf_weights

CARRIED = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
           "chat_template.jinja", "generation_config.json", "LICENSE", "LICENSE.txt", "USE_POLICY.md", "Notice",
           "NOTICE")  # fmt: skip
VERIFIED_TOKENS = 512  # of a line of --verify
TOLERANCE = 1e-3  # of logits, relative to the largest: both sides compute in fp32, in another order


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, about, hf_model="folder whose config and tokenizer it has"):
        add = commands.add_parser(name, help=about, description=about).add_argument
        add("--hf-model", required=True, metavar="DIR", help=hf_model)
        if name != "card":
            add("--save", required=True, metavar="DIR", help="folder to make; must not exist")
        return add

    add = command("to-hf", "checkpoint to Hugging Face folder")
    add("--load", required=True, metavar="DIR", help="a --save folder of training (its newest), or an iter_… of it")
    add("--dtype", choices=DTYPES, help="of the weights (default: config.json's, else float32)")
    add("--verify", metavar="FILE", help="compare the logits of these lines of text with those of transformers, in "
        "fp32; holds both models in memory")  # fmt: skip
    add = command("to-megatron", "Hugging Face folder to checkpoint", "folder with config and safetensors")
    add("--verify", metavar="FILE", help="as for to-hf")
    add = command("average", "the mean of the weights of several checkpoints, as a Hugging Face folder")
    add("--load", required=True, nargs="+", metavar="DIR", help="--save or iter_… folders of training, or Hugging Face "
        "folders, two or more")  # fmt: skip
    add("--dtype", choices=DTYPES, help="as for to-hf")
    add = command("extend-vocabulary", "add tokens learnt from text to a Llama-2 vocabulary", "folder to extend")
    add("--input", required=True, nargs="+", metavar="FILE", help="text of the language, a sentence or document a line")
    add("--new-tokens", required=True, type=int, metavar="N", help="how many; the first of many are those of few")
    add = command("card", "write the model card of an exported folder anew, with scores", "exported folder")
    add("--scores", nargs="+", default=[], metavar="DIR", help="--output folders of evaluate.py")
    args = parser.parse_args()
    existing_folder(args.hf_model, "--hf-model")
    if "save" in args and Path(args.save).exists():
        raise InputError(f"--save {args.save}: exists already; choose another folder or remove it")
    if getattr(args, "verify", None):
        existing_file(args.verify, "--verify")
    if args.command == "average" and len(args.load) < 2:
        raise InputError("--load: one folder; expected two or more to average")
    args.tensor_model_parallel_size = args.pipeline_model_parallel_size = 1
    args.seed, args.bf16, args.distributed_timeout_minutes = 0, False, 10
    return args


@contextlib.contextmanager
def making(save):
    """Yield a temporary folder that gets its name `save` at the end; after a failure it is removed."""
    with scratch_folder(save) as partial:
        yield partial
        partial.rename(save)


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


def dtype_of(args, config):
    """The name of the dtype to export in."""
    dtype = getattr(args, "dtype", None) or config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise InputError(
            f"--hf-model {args.hf_model}/config.json: dtype {dtype!r}, expected one of {', '.join(DTYPES)}"
        )
    return dtype


def write_folder(args, folder, config, dtype, sizes, fill, stages, carried=CARRIED):
    """Write a Hugging Face folder: weights that `fill` gives, what goes with them, and what they were made from."""
    write_hf_weights(folder, sizes, DTYPES[dtype], fill)
    write_json(folder / "config.json", config_for_both(config, dtype))
    for name in carried:
        if (Path(args.hf_model) / name).is_file():
            shutil.copyfile(Path(args.hf_model) / name, folder / name)
    model = folder / "tokenizer.model"
    if model.is_file() and not (folder / "tokenizer.json").is_file() and load_tokenizer(model).kind == "sentencepiece":
        write_hf_tokenizer(model, folder)
    provenance.write(folder, stages, Path(args.save).name, parameters(sizes))


def parameters(sizes):
    return sum(torch.Size(size).numel() for size in sizes.values())


def to_hf(args):
    """Export a checkpoint."""
    shape = read_shape(args.hf_model)
    config = read_json(f"{args.hf_model}/config.json", "--hf-model")
    iteration, folder = checkpoint.required(args.load)
    weights, dtype = CheckpointWeights(folder, shape), dtype_of(args, config)
    stages = provenance.of_training(folder.parent, iteration)
    with making(args.save) as partial:
        write_folder(args, partial, config, dtype, hf_shapes(shape), weights.fill, stages)
        if args.verify:
            verify(args, folder, partial, shape, DTYPES[dtype])
    print(f"{args.save}: step {iteration} of {folder.parent} as {dtype}")


def to_megatron(args):
    """Import --hf-model as iteration 0 of a training folder."""
    shape = read_shape(args.hf_model)
    weights = HFWeights(args.hf_model)
    weights.check(shape)
    dtype = weights.dtype(shape)  # so that no bit changes on the way
    with making(args.save) as partial:
        checkpoint.Saver(partial).save_weights(0, lambda folder: import_weights(folder, weights, shape, dtype))
        stages = provenance.of_model(args.hf_model)
        if stages:
            write_json(partial / MODEL_RECORD, {"stages": stages})
        if args.verify:
            verify(args, checkpoint.folder_of(partial, 0), args.hf_model, shape, dtype)
    print(f"{checkpoint.folder_of(args.save, 0)}: {parameters(hf_shapes(shape)):,} parameters")


@torch.no_grad()
def verify(args, checkpoint_folder, hf_folder, shape, dtype):
    """Compare the logits of a checkpoint in megatron.core and of a folder in transformers on the lines of --verify, in
    fp32; `dtype` is the folder's, to which the checkpoint's weights are rounded."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = load_tokenizer(args.hf_model)
    given = Path(args.verify).read_bytes().decode("utf-8", errors="replace")  # any text will do
    lines = [line for line in given.split("\n") if line.strip()]
    if not lines:
        raise InputError(f"--verify {args.verify}: no line with text; give some")
    args.params_dtype = torch.float32
    ours = build_model(shape, args, VERIFIED_TOKENS).eval()
    ours.load_state_dict(checkpoint.load(checkpoint_folder, checkpoint.sharded_state(ours))["model"])
    for parameter in ours.parameters():
        parameter.copy_(parameter.to(dtype))
    theirs = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32).eval()
    difference = largest = same = places = 0
    for line in lines:
        ids = torch.tensor([tokenizer.bos_id, *tokenizer.encode(line)][:VERIFIED_TOKENS])[None]
        found = ours(ids, torch.arange(ids.shape[1])[None], None)[..., : shape.vocab_size]
        expected = theirs(ids).logits
        difference = max(difference, (found - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
        same += (found.argmax(-1) == expected.argmax(-1)).sum().item()
        places += ids.numel()
    text = f"logits of {places:,} places differ by at most {difference:.2g} (the largest is {largest:.3g})"
    if not difference <= TOLERANCE * largest:
        raise InputError(
            f"--verify {args.verify}: {text}, expected {TOLERANCE:g} of it; checkpoint and folder are two models"
        )
    print(f"verified: {text}; the most probable token is the same at {same:,} of them")


def average(args):
    """The mean of several checkpoints or folders, computed in fp32."""
    shape = read_shape(args.hf_model)
    config = read_json(f"{args.hf_model}/config.json", "--hf-model")
    sources, histories, names = [], [], []
    for path in args.load:
        if (Path(path) / "config.json").is_file():
            source = HFWeights(path)
            source.check(shape)
            source.dtype(shape)  # quantised weights have no mean
            histories.append(provenance.of_model(path))
            names.append(path)
        else:
            iteration, folder = checkpoint.required(path)
            source = CheckpointWeights(folder, shape)
            histories.append(provenance.of_training(folder.parent, iteration))
            names.append(str(folder))
        sources.append(source)

    def fill(name, out):
        mean, one = torch.zeros(out.shape), torch.empty(out.shape)
        for source in sources:
            source.fill(name, one)
            mean += one
        out.copy_(mean.div_(len(sources)))

    stages = [*histories[-1], {"script": "convert_hf.py average", "from": names}]
    dtype = dtype_of(args, config)
    with making(args.save) as partial:
        write_folder(args, partial, config, dtype, hf_shapes(shape), fill, stages)
    print(f"{args.save}: the mean of {len(sources)} as {dtype}")


def extend_vocabulary(args):
    """Add tokens learnt from text; each new embedding and output row is the mean of those of the tokens that spelled
    it (section 3.1, Table 1)."""
    shape = read_shape(args.hf_model)
    config = read_json(f"{args.hf_model}/config.json", "--hf-model")
    weights = HFWeights(args.hf_model)
    weights.check(shape)
    tokenizer = load_tokenizer(args.hf_model)
    beyond = added_tokens(args.hf_model, tokenizer.vocab_size)
    if tokenizer.vocab_size != shape.vocab_size or beyond:
        raise InputError(
            f"--hf-model {args.hf_model}: config.json has vocab_size {shape.vocab_size}, tokenizer.model "
            f"{tokenizer.vocab_size} tokens{f', and {beyond} are added' if beyond else ''}; new tokens would take the "
            "places of what is not in tokenizer.model: take the model without that"
        )
    tokens = vocabulary.learn_tokens(tokenizer, args.input, args.new_tokens)
    sizes = hf_shapes(shape)
    extended = {"model.embed_tokens.weight", "lm_head.weight"} & sizes.keys()
    sizes |= dict.fromkeys(extended, (shape.vocab_size + len(tokens), shape.hidden_size))

    def fill(name, out):
        if name not in extended:
            return weights.fill(name, out)
        old, new = out.split([shape.vocab_size, len(tokens)])
        weights.fill(name, old)
        for row, token in zip(new, tokens, strict=True):
            row.copy_(old[list(token.spelled_by)].float().mean(dim=0))

    dtype = {value: name for name, value in DTYPES.items()}[weights.dtype(shape)]
    config = {**config, "vocab_size": shape.vocab_size + len(tokens)}
    stage = {
        "script": "convert_hf.py extend-vocabulary",
        "from": str(args.hf_model),
        "settings": {"new_tokens": len(tokens), "input": " ".join(Path(path).name for path in args.input)},
    }
    stages = [*provenance.of_model(args.hf_model), stage]
    carried = [name for name in CARRIED if name not in ("tokenizer.model", "tokenizer.json")]
    with making(args.save) as partial:
        vocabulary.write_tokenizer(tokenizer, tokens, partial / "tokenizer.model")
        write_folder(args, partial, config, dtype, sizes, fill, stages, carried)
        after = vocabulary.fertility(load_tokenizer(partial), args.input)
    before = vocabulary.fertility(tokenizer, args.input)
    print(f"{args.save}: {shape.vocab_size:,} + {len(tokens):,} tokens; tokens a word of --input {before[0]:.3f}, now "
          f"{after[0]:.3f}; a character {before[1]:.3f}, now {after[1]:.3f}")  # fmt: skip


def added_tokens(folder, size):
    """The tokens that a Hugging Face folder adds to the `size` ones of its tokenizer.model."""
    added, path = {}, Path(folder) / "added_tokens.json"
    if path.is_file():
        added |= read_json(path, "--hf-model")
    path = Path(folder) / "tokenizer_config.json"
    if path.is_file():
        decoder = read_json(path, "--hf-model").get("added_tokens_decoder", {})
        added |= {token["content"]: int(number) for number, token in decoder.items()}
    return " ".join(sorted(token for token, number in added.items() if number >= size))


def card(args):
    """Write llamax.json and README.md of an exported folder anew, with scores."""
    scores = [row for folder in args.scores for row in read_scores(existing_folder(folder, "--scores"))]
    sizes = hf_shapes(read_shape(args.hf_model))
    name = Path(args.hf_model).resolve().name
    provenance.write(args.hf_model, provenance.of_model(args.hf_model), name, parameters(sizes), scores)
    print(f"{args.hf_model}/README.md: {len(scores)} scores")


def main():
    args = get_args()
    runtime.initialize(args)
    commands = {"to-hf": to_hf, "to-megatron": to_megatron, "average": average,
                "extend-vocabulary": extend_vocabulary, "card": card}  # fmt: skip
    try:
        commands[args.command](args)
    finally:  # also after an error: gloo's threads abort a process that ends without
        runtime.shutdown()


if __name__ == "__main__":
    run(main)
