"""Sentence pairs to connected entries in Megatron's indexed format, with a loss mask where one is asked for.

LLaMAX, section 2.1: source and target are joined by one space, each pair keeps or swaps its sides with probability
0.5, language pairs with fewer than 25,000 sentence pairs are repeated three times, and the loss is on every token.
A pair that says `"loss": "target"` (code-switched pseudo-parallel data) is never swapped and learns its target only.

    python preprocess_parallel.py --input pairs.jsonl --tokenizer-model llama2 --output-prefix data/pairs
    python preprocess_parallel.py --src a.en --tgt a.fr --src-lang en --tgt-lang fr --tokenizer-model llama2 \\
        --output-prefix data/en-fr

An entry is BOS, the ids of `src + " " + tgt` encoded once, EOS. The side is decided by a hash of seed, record and
copy, so that it depends neither on the order of the records nor on the number of workers.
"""

import collections
import functools
import hashlib
import itertools
import os

import numpy as np

from llamax.files import InputError, Parser, existing_file, fingerprint, run
from llamax.indexed import already_done, writing_dataset
from llamax.languages import resolve
from llamax.records import (
    Block,
    Progress,
    Reject,
    Rejects,
    Unusable,
    count_lines,
    json_object,
    language_field,
    map_blocks,
    parse_lines,
    plain_text,
    read_blocks,
    text_field,
)
from llamax.tokenizer import load_tokenizer

Pair = collections.namedtuple("Pair", "src tgt src_lang tgt_lang loss origin")


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--input", nargs="+", metavar="FILE", help='.jsonl of {"src","tgt","src_lang","tgt_lang","loss","origin"}')
    add("--src", metavar="FILE", help="source side, one sentence a line (with --tgt, instead of --input)")
    add("--tgt", metavar="FILE", help="target side, line-aligned with --src")
    add("--src-lang", help="language code of --src")
    add("--tgt-lang", help="language code of --tgt")
    add("--tokenizer-model", required=True, help="SentencePiece model, Llama-3 rank file, or the folder of one")
    add("--output-prefix", required=True, help="writes PREFIX.bin, PREFIX.idx, PREFIX.json (and PREFIX_loss.*)")
    add("--block-size", type=int, default=512, help="tokens; longer entries are rejects (default %(default)s)")
    add("--swap-probability", type=float, default=0.5, help="of swapping the sides of a pair (default %(default)s)")
    add("--repeat-below", type=int, default=25_000, help="language pairs with fewer sentence pairs are repeated")
    add("--repeat", type=int, default=3, help="copies of those, each with its own direction (default %(default)s)")
    add("--seed", type=int, default=0, help="decides the directions (default %(default)s)")
    add("--max-reject-rate", type=float, default=0.01, help="share of rejects that ends the run (default %(default)s)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores, here %(default)s)")
    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args):
    """Raise one InputError with everything wrong."""
    problems = []
    sides = [args.src, args.tgt, args.src_lang, args.tgt_lang]
    if args.input and any(sides):
        problems.append("--input and --src/--tgt: give one of the two")
    if not args.input and not all(sides):
        problems.append("--input is missing, or all of --src, --tgt, --src-lang, --tgt-lang")
    if args.block_size < 4:
        problems.append(f"--block-size {args.block_size}: expected at least 4")
    if args.repeat < 1:
        problems.append(f"--repeat {args.repeat}: expected at least 1")
    for flag in ("swap_probability", "max_reject_rate"):
        if not 0 <= getattr(args, flag) <= 1:
            problems.append(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected a share from 0 to 1")
    if args.workers < 1:
        problems.append(f"--workers {args.workers}: expected at least 1")
    if problems:
        raise InputError("; ".join(problems))
    if args.input:
        args.input = [str(existing_file(path, "--input")) for path in args.input]
        return
    args.src, args.tgt = str(existing_file(args.src, "--src")), str(existing_file(args.tgt, "--tgt"))
    args.src_lang, args.tgt_lang = resolve(args.src_lang).code, resolve(args.tgt_lang).code
    lines = count_lines(args.src), count_lines(args.tgt)
    if lines[0] != lines[1]:
        raise InputError(
            f"--src {args.src} has {lines[0]} lines, --tgt {args.tgt} has {lines[1]}; expected line-aligned files of "
            "the same length: find the lost line before going on"
        )


def parse_pair(line):
    """The Pair of a JSON line, or Unusable."""
    record = json_object(line)
    loss = record.get("loss", "all")
    if loss not in ("all", "target"):
        raise Unusable("wrong type", f'loss is {loss!r}, expected "all" or "target"')
    return Pair(
        text_field(record, "src"),
        text_field(record, "tgt"),
        language_field(record, "src_lang"),
        language_field(record, "tgt_lang"),
        loss,
        str(record.get("origin", "")),
    )


def aligned_blocks(args):
    """Blocks of --src whose lines are joined to those of --tgt by a null byte, which no usable text holds."""
    targets = itertools.chain.from_iterable(block.lines for block in read_blocks(args.tgt))
    for block in read_blocks(args.src):
        # An empty side must not make the line look blank: the null byte keeps it a record, later a reject.
        lines = [src + b"\x00" + next(targets) for src in block.lines]
        yield Block(block.path, block.first_line, lines, block.size)


def parse_aligned(line, src_lang, tgt_lang):
    """The Pair of a line of `aligned_blocks`, or Unusable."""
    if line.count(b"\x00") != 1:
        raise Unusable("null character", "src or tgt")
    src, tgt = (plain_text(side) for side in line.split(b"\x00"))
    return Pair(src, tgt, src_lang, tgt_lang, "all", "")


def input_blocks(args):
    """All blocks of the input, and the function that parses one of their lines."""
    if args.input:
        return (block for path in args.input for block in read_blocks(path)), parse_pair
    return aligned_blocks(args), functools.partial(parse_aligned, src_lang=args.src_lang, tgt_lang=args.tgt_lang)


def language_pair(pair):
    """Both languages, in one order for both directions."""
    return tuple(sorted((pair.src_lang, pair.tgt_lang)))


def swapped(pair, copy, seed, probability):
    """Whether this copy of the pair swaps its sides: uniform in a hash of seed, record and copy."""
    if pair.loss == "target":
        return False
    key = "\x00".join((str(seed), str(copy), pair.src_lang, pair.tgt_lang, pair.src, pair.tgt)).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) < probability * 2**64


def count_block(block, parse):
    """(usable pairs per language pair, bytes read)."""
    pairs, _, _ = parse_lines(block, parse)
    return collections.Counter(language_pair(pair) for pair in pairs), block.size


def encode_block(block, parse, args, tokenizer, copies_of):
    """One block of lines as arrays for DatasetWriter.add, with its counts and rejects."""
    pairs, numbers, rejects = parse_lines(block, parse)
    records = len(pairs) + len(rejects)
    entries = []  # (pair, line, source text, target text)
    for pair, number in zip(pairs, numbers, strict=True):
        for copy in range(copies_of.get(language_pair(pair), 1)):
            flip = swapped(pair, copy, args.seed, args.swap_probability)
            entries.append((pair, number, *((pair.tgt, pair.src) if flip else (pair.src, pair.tgt))))

    ids, offsets = tokenizer.encode_batch([f"{src} {tgt}" for _, _, src, tgt in entries])
    tokens, losses, lengths, directions = [], [], [], collections.Counter()
    overlong = {}
    for i, (pair, number, src, _) in enumerate(entries):
        entry = [tokenizer.bos_id, *ids[offsets[i] : offsets[i + 1]].tolist(), tokenizer.eos_id]
        if len(entry) > args.block_size:
            overlong[number] = Reject(block.path, number, "over-long", f"{len(entry)} tokens")
            continue
        # The target starts after the source and one space; a token that spans its first character belongs to it.
        context = 1 + tokenizer.first_token_of(len(src) + 1, entry[1:-1]) if pair.loss == "target" else 0
        tokens.append(np.array(entry, np.int32))
        losses.append(np.arange(len(entry)) >= context)
        lengths.append(len(entry))
        directions["-".join((pair.src_lang, pair.tgt_lang) if src is pair.src else (pair.tgt_lang, pair.src_lang))] += 1
    arrays = None
    if lengths:
        arrays = np.concatenate(tokens), lengths, np.ones(len(lengths), np.int64), np.concatenate(losses)
    return arrays, directions, records, rejects + list(overlong.values()), block.size


def main():
    args = get_args()
    tokenizer = load_tokenizer(args.tokenizer_model)
    sources = [fingerprint(path) for path in (args.input or [args.src, args.tgt])]
    arguments = {
        "src_lang": args.src_lang,
        "tgt_lang": args.tgt_lang,
        "tokenizer": tokenizer.manifest(),
        "block_size": args.block_size,
        "swap_probability": args.swap_probability,
        "repeat_below": args.repeat_below,
        "repeat": args.repeat,
        "seed": args.seed,
    }
    if already_done(args.output_prefix, arguments, sources):
        print(f"{args.output_prefix}: complete, nothing to do")
        return

    # Which language pairs are small is known only once the whole corpus has been read.
    blocks, parse = input_blocks(args)
    size = sum(source["size"] for source in sources[: len(args.input or [args.src])])
    pairs = collections.Counter()
    progress = Progress(size, "B", "counting pairs")
    for found, read in map_blocks(functools.partial(count_block, parse=parse), blocks, args.workers):
        pairs += found
        progress.update(read)
    progress.close()
    copies_of = {key: args.repeat for key, n in pairs.items() if n < args.repeat_below}

    rejects = Rejects(args.output_prefix)
    directions = collections.Counter()
    progress = Progress(size, "B", "tokenizing")
    blocks, _ = input_blocks(args)
    encode = functools.partial(encode_block, parse=parse, args=args, tokenizer=tokenizer, copies_of=copies_of)
    with writing_dataset(args.output_prefix, tokenizer.vocab_size) as (writer, manifest):
        for arrays, found, records, rejected, read in map_blocks(encode, blocks, args.workers):
            if arrays:
                writer.add(*arrays)
            directions += found
            rejects.add(records, rejected)
            progress.update(read)
        progress.close()
        rejects.judge(args.max_reject_rate)
        manifest.update(
            kind="parallel",
            languages=sorted({lang for pair in pairs for lang in pair}),
            pairs={"-".join(pair): n for pair, n in sorted(pairs.items())},
            directions=dict(sorted(directions.items())),
            repeated=sorted("-".join(pair) for pair in copies_of),
            arguments=arguments,
            sources=sources,
            rejects=dict(rejects.reasons),
        )
    print(
        f"{args.output_prefix}: {sum(pairs.values()):,} pairs of {len(pairs):,} language pairs "
        f"({len(copies_of):,} repeated), {manifest['sequences']:,} entries, {manifest['tokens']:,} tokens, "
        f"{manifest['loss_tokens']:,} with loss; {sum(rejects.reasons.values()):,} rejects"
    )


if __name__ == "__main__":
    run(main)
