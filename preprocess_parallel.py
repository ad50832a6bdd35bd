"""Sentence pairs to connected entries in Megatron's indexed format, with a loss mask where one is asked for.

LLaMAX, section 2.1: source and target are joined by one space, each pair keeps or swaps its sides with probability
0.5, language pairs with fewer than 25,000 sentence pairs are repeated three times, and the loss is on every token.
A pair that says `"loss": "target"` (code-switched pseudo-parallel data) is never swapped and learns its target only.

    python preprocess_parallel.py --input pairs.jsonl --tokenizer-model llama2 --output-prefix data/pairs
    python preprocess_parallel.py --src a.en --tgt a.fr --src-lang en --tgt-lang fr --tokenizer-model llama2 \\
        --output-prefix data/en-fr
    python preprocess_parallel.py --src lego/*/train.src --tgt lego/*/train.tgt --dedup --max-length-ratio 3 \\
        --lang-pattern '(?P<src_lang>[a-z]+)-(?P<tgt_lang>[a-z]+)/train' --tokenizer-model llama2 --output-prefix data/p
    sbatch --array=0-99 slurm/preprocess.sh        (a shard a task; then merge_datasets.py)

An entry is BOS, the ids of `src + " " + tgt` encoded once, EOS. The side is decided by a hash of seed, record and
copy, so that it depends neither on the order of the records nor on the number of workers or shards. With
--format split (Table 12), the two sides are two entries. Input is .jsonl, .tsv, .parquet, a dataset of the `datasets`
library (a folder, or hf:NAME[:CONFIG[:SPLIT]]) or aligned files, plain or .gz, .zst, .xz.
"""

import collections
import functools
import hashlib

import numpy as np

from llamax import shards
from llamax.dedup import record_key
from llamax.files import InputError, Parser, run
from llamax.records import Reject, Unusable, language_code, language_field, text_field
from llamax.shard_files import RECORD
from llamax.sources import find_sources, record_reader
from llamax.tokenizer import encode_entries, load_tokenizer


class Pair(collections.namedtuple("Pair", "src tgt src_lang tgt_lang loss origin")):
    """A sentence pair; `loss` is "all" or "target"."""

    __slots__ = ()

    @property
    def group(self):
        """Its languages as rejects and manifests have them: "en-fr"."""
        return f"{self.src_lang}-{self.tgt_lang}"

    @property
    def augmented(self):
        """Whether it is code-switched; `augment.py mono` has the loss on both sides and tells by `origin` alone."""
        return self.loss == "target" or self.origin.startswith("augment")


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--input", nargs="+", metavar="FILE", help='records of {"src", "tgt", "src_lang", "tgt_lang", "loss"}')
    add("--src", nargs="+", metavar="FILE", help="source side, one sentence a line (with --tgt, instead of --input)")
    add("--tgt", nargs="+", metavar="FILE", help="target side, line-aligned with --src, as many files")
    add("--src-lang", help="language code of the sources; may be left out where every record has its own")
    add("--tgt-lang", help="language code of the targets")
    add("--lang-pattern", metavar="REGEX",
        help="finds the languages in each path (of --src): a regular expression, (?P<src_lang>…)…")  # fmt: skip
    add("--format", choices=("connected", "split"), default="connected", help="entries a pair (default %(default)s)")
    add("--block-size", type=int, default=512, help="tokens; longer entries are rejects (default %(default)s)")
    add("--swap-probability", type=float, default=0.5, help="of swapping the sides of a pair (default %(default)s)")
    add("--repeat-below", type=int, default=25_000, help="language pairs with fewer sentence pairs are repeated")
    add(
        "--repeat",
        type=int,
        default=3,
        help="copies of those, 1 to 8, each with its own direction (default %(default)s)",
    )
    add("--seed", type=int, default=0, help="decides the directions (default %(default)s)")
    shards.add_arguments(parser, "src, tgt, src_lang, tgt_lang", pairs=True)
    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args):
    """Raise one InputError with everything wrong."""
    problems = shards.check(args)
    if args.input and (args.src or args.tgt):
        problems.append("--input and --src/--tgt: give one of the two")
    if not args.input and not (args.src and args.tgt):
        problems.append("--input is missing, or both of --src, --tgt")
    if args.src and args.tgt and len(args.src) != len(args.tgt):
        problems.append(f"--src: {len(args.src)} files, --tgt: {len(args.tgt)}; expected as many")
    if args.block_size < 4:
        problems.append(f"--block-size {args.block_size}: expected at least 4")
    if not 1 <= args.repeat <= 8:
        problems.append(f"--repeat {args.repeat}: expected 1 to 8")
    if not 0 <= args.swap_probability <= 1:
        problems.append(f"--swap-probability {args.swap_probability}: expected a share from 0 to 1")
    if problems:
        raise InputError("; ".join(problems))
    args.src_lang, args.tgt_lang = (code and language_code(code) for code in (args.src_lang, args.tgt_lang))


def pair_of(record, fields):
    """The Pair of a record, or Unusable. `fields` says what its languages are where it does not, or must be."""
    langs = [language_field(record, name, default=fields.get(name)) for name in ("src_lang", "tgt_lang")]
    try:
        for name, lang in zip(("src_lang", "tgt_lang"), langs, strict=True):
            if lang != fields.get(name, lang):
                raise Unusable("other language", f"{name} is {lang}, expected {fields[name]}")
        loss = record.get("loss", "all")
        if loss not in ("all", "target"):
            raise Unusable("wrong type", f'loss is {loss!r}, expected "all" or "target"')
        return Pair(text_field(record, "src"), text_field(record, "tgt"), *langs, loss, str(record.get("origin", "")))
    except Unusable as why:
        why.group = "-".join(langs)
        raise


def pair_parser(source, args, clean):
    """A function that gives the Pair of a row of the source, cleaned, or raises Unusable."""
    read = record_reader(source)

    def parse(row):
        pair = pair_of(read(row), source.fields)
        try:
            if pair.loss == "target" and args.format == "split":
                raise Unusable("no loss", "--format split: the source would be an entry of which nothing is learnt")
            if clean is not None:
                src, tgt = clean.pair(pair.src, pair.tgt, pair.src_lang, pair.tgt_lang, mixed=pair.loss == "target")
                pair = pair._replace(src=src, tgt=tgt)
        except Unusable as why:
            why.group = pair.group
            raise
        return pair

    return parse


def swapped(pair, copy, seed, probability):
    """Whether this copy of the pair swaps its sides: uniform in a hash of seed, record and copy."""
    if pair.loss == "target":
        return False
    key = "\x00".join((str(seed), str(copy), pair.src_lang, pair.tgt_lang, pair.src, pair.tgt)).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) < probability * 2**64


def same_record(pair):
    """What two pairs have in common that are the same record: a direction makes no difference, unless it is fixed."""
    sides = [(pair.src_lang, pair.src), (pair.tgt_lang, pair.tgt)]
    return (pair.loss, *sum(sides if pair.loss == "target" else sorted(sides), ()))


def encode_connected(pairs, args, tokenizer):
    """One entry a pair, in the direction of its first copy: (ids, lengths, loss or None, flips, first sides' lengths).
    Bit k of a pair's flips says whether copy k swaps its sides."""
    flips = [
        sum(swapped(pair, copy, args.seed, args.swap_probability) << copy for copy in range(args.repeat))
        for pair in pairs
    ]
    both = zip(pairs, flips, strict=True)
    sides = [(pair.tgt, pair.src) if flip & 1 else (pair.src, pair.tgt) for pair, flip in both]
    ids, lengths = encode_entries([f"{first} {second}" for first, second in sides], tokenizer)
    loss = None
    starts = np.cumsum(lengths) - lengths
    for i, pair in enumerate(pairs):
        if pair.loss == "target":
            # The target starts after the source and one space; a token that spans its first character belongs to it.
            entry = ids[starts[i] + 1 : starts[i] + lengths[i] - 1]
            context = 1 + tokenizer.first_token_of(len(pair.src) + 1, entry)
            loss = np.ones(len(ids), np.uint8) if loss is None else loss
            loss[starts[i] : starts[i] + context] = 0
    return ids, lengths, loss, flips, [len(first) for first, _ in sides]


def encode_pairs(pairs, lines, args, tokenizer, tools):
    """Pairs as entries, with what the merge needs to know of each. A pair with an over-long entry is rejected."""
    columns = [[pair.src for pair in pairs], [pair.tgt for pair in pairs]]
    keep, rejects, found = shards.decontaminate(columns, [pair.group for pair in pairs], lines, tools.evaluation)
    pairs, lines = [pairs[i] for i in keep], [lines[i] for i in keep]
    if args.format == "connected":
        ids, lengths, loss, flips, first_chars = encode_connected(pairs, args, tokenizer)
        entries = 1  # a pair
    else:
        ids, lengths = encode_entries([side for pair in pairs for side in (pair.src, pair.tgt)], tokenizer)
        loss, flips, first_chars, entries = None, 0, 0, 2

    records = np.zeros(len(pairs), RECORD)
    groups, records["group"] = shards.numbered([pair.group for pair in pairs])
    records["line"], records["sequences"], records["flips"], records["first_chars"] = lines, entries, flips, first_chars
    records["augmented"] = [pair.augmented for pair in pairs]
    columns = [[getattr(pair, name) for pair in pairs] for name in Pair._fields[:4]]
    for texts, langs in zip(columns[:2], columns[2:], strict=True):
        records["words"] += np.array(shards.count_words(texts, langs), np.uint32)
    if shards.needs_keys(args) and len(records):
        records["key"] = [record_key(*same_record(pair)) for pair in pairs]
    longest = lengths.reshape(-1, entries).max(axis=1) if len(pairs) else lengths
    fits = longest <= args.block_size
    for i in np.flatnonzero(~fits).tolist():
        rejects.append(Reject("", lines[i], "over-long", f"{longest[i]} tokens", pairs[i].group))
    texts = ["\n".join(same_record(pair)) for pair, fit in zip(pairs, fits, strict=True) if fit]
    signatures = tools.signer and tools.signer.signatures(texts)
    if not fits.all():
        kept = np.repeat(fits, entries)
        tokens = np.repeat(kept, lengths)
        ids, lengths, records = ids[tokens], lengths[kept], records[fits]
        loss = None if loss is None else loss[tokens]
    documents = np.ones(len(lengths), np.int64)
    return shards.Encoded(ids, lengths, documents, loss, records, groups, rejects, signatures, found)


def main():
    args = get_args()
    tokenizer, tools = load_tokenizer(args.tokenizer_model), shards.Tools(args)
    fields = {"src_lang": args.src_lang, "tgt_lang": args.tgt_lang}
    fields = {name: lang for name, lang in fields.items() if lang}
    sources = find_sources(args.input or args.src, fields, args.field, args.columns, args.lang_pattern, args.tgt)
    for source in sources:
        if source.kind == "aligned" and len(source.fields) < 2:
            raise InputError(f"--src-lang, --tgt-lang: missing, and nothing else says the languages of {source.path}")
        if source.kind == "text":
            raise InputError(f"--input {source.path}: plain text, no pairs; expected .jsonl, .tsv, .parquet or --src")
    arguments = {
        "src_lang": args.src_lang,
        "tgt_lang": args.tgt_lang,
        "format": args.format,
        "block_size": args.block_size,
        "swap_probability": args.swap_probability,
        "repeat_below": args.repeat_below,
        "repeat": args.repeat,
        "seed": args.seed,
        **shards.arguments(args, tokenizer, tools),
    }
    parser = functools.partial(pair_parser, args=args, clean=tools.clean)
    encode = functools.partial(encode_pairs, args=args, tokenizer=tokenizer, tools=tools)
    shards.preprocess(args, "parallel", arguments, sources, parser, encode, tokenizer)


if __name__ == "__main__":
    run(main)
