"""Shards: independent parts of a corpus, each encoded to a dataset of its own, which `llamax.merge` joins.

A shard is a dataset PREFIX-00003-of-00100 (.bin, .idx, _loss.*, .tags, manifest last) and, beside it, .records, one row
for each record: what the decisions over the whole corpus need (deduplication, repetition, train or valid) and where the
record stands. No shard waits for another, and none of its bytes depends on the number of workers.
"""

import collections
import dataclasses
import functools
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from llamax import cleaning
from llamax.cleaning import Cleaning
from llamax.decontaminate import EvaluationSets
from llamax.dedup import Signer
from llamax.files import InputError, read_json
from llamax.indexed import already_done, writing_dataset
from llamax.languages import resolve
from llamax.merge import merge_shards, report_dataset
from llamax.records import Progress, Reject, Rejects, map_blocks, parse_lines
from llamax.shard_files import language_pair, tag_numbers, tags_of
from llamax.sources import (
    LinePiece,
    add_fingerprints,
    check_aligned,
    fingerprints,
    first_lines,
    pieces,
    ranges,
    read_piece,
)

SHARD_BYTES = 1 << 30  # of input: a run without --shard makes its own, so that it resumes after each


@dataclass
class Encoded:
    """What a worker makes of a piece of the corpus. Lines count from 1 at its beginning."""

    ids: np.ndarray  # of all sequences, BOS and EOS included
    lengths: np.ndarray  # tokens of each sequence
    documents: np.ndarray  # sequences of each document
    loss: np.ndarray | None  # 0 or 1 a token; None: 1 for all
    records: np.ndarray  # RECORD, one a record that could be used
    groups: list  # languages or language pairs, numbered by records["group"]
    rejects: list
    signatures: np.ndarray | None = None
    found: dict = dataclasses.field(default_factory=dict)  # records dropped, by test set
    source: int = 0
    lines: int = 0
    size: int = 0
    digest: int = 0


def add_arguments(parser, fields, pairs):
    """The options that both preprocessing scripts have. `fields` are those of a record, `pairs`: it is a pair."""
    add = parser.add_argument
    add("--field", nargs="+", default=[], metavar="NAME=THEIRS",
        help=f"what the input calls {fields}, where it is not that; a dot leads into nested fields")  # fmt: skip
    add("--columns", nargs="+", metavar="NAME", help="columns of .tsv files, in order (default: their first line says)")
    add("--tokenizer-model", required=True, help="SentencePiece model, Llama-3 rank file, or the folder of one")
    add("--output-prefix", required=True, help="writes PREFIX.bin, PREFIX.idx, PREFIX.json (_loss.*, .tags)")
    add("--shard", metavar="I/N",
        help="make only part I (from 0) of N, for merge_datasets.py; slurm/N: I is the array task's")  # fmt: skip
    add("--valid-fraction", type=float, default=0.0,
        help="share of records held out as PREFIX_valid, by a hash of the record (default %(default)s)")  # fmt: skip
    add("--dedup", action="store_true", help="drop records that occurred before, and write PREFIX.keys")
    add("--dedup-against", nargs="+", default=[], metavar="PREFIX",
        help="and those that are in datasets made earlier with --dedup")  # fmt: skip
    add("--near-dedup", type=float, default=0.0, metavar="J",
        help="drop records like earlier ones: a Jaccard similarity of J or more, estimated by MinHash")  # fmt: skip
    add("--decontaminate", nargs="+", default=[], metavar="[NAME=]PATH",
        help="drop records that hold a sentence of these files or folders of evaluation data, one a line")  # fmt: skip
    add("--decontaminate-ngram", type=int, metavar="N",
        help="and those that share N words in a row with such a sentence (GPT-3: 13)")  # fmt: skip
    add("--max-reject-rate", type=float, default=0.01, help="share of rejects that ends the run (default %(default)s)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores, here %(default)s)")
    cleaning.add_arguments(parser, pairs)


def check(args):
    """Resolve these options; returns what is wrong with them, as a list."""
    problems = []
    for name in ("valid_fraction", "near_dedup", "max_reject_rate"):
        if not 0 <= getattr(args, name) <= 1:
            problems.append(f"--{name.replace('_', '-')} {getattr(args, name)}: expected a share from 0 to 1")
    if args.workers < 1:
        problems.append(f"--workers {args.workers}: expected at least 1")
    if args.dedup_against and not args.dedup:
        problems.append("--dedup-against: needs --dedup")
    if args.decontaminate_ngram is not None and (args.decontaminate_ngram < 1 or not args.decontaminate):
        problems.append(f"--decontaminate-ngram {args.decontaminate_ngram}: expected 1 or more, and --decontaminate")
    if wrong := [pair for pair in args.field if "=" not in pair]:
        problems.append(f"--field {wrong[0]}: expected NAME=THEIRS")
    args.field = dict(pair.split("=", 1) for pair in args.field if "=" in pair)
    try:
        args.shard = args.shard and parse_shard(args.shard)
    except InputError as error:
        problems.append(str(error))
    return problems + cleaning.check(args)


class Tools:
    """What the options ask for, None for what they do not: `clean`, a Cleaning; `evaluation`, an EvaluationSets;
    `signer`, a Signer. Made before the workers, which share them."""

    def __init__(self, args):
        clean = Cleaning(args)
        self.clean = clean if clean.active else None
        if clean.unchecked:
            print(f"--lid-model: does not know {', '.join(clean.unchecked)}; these stay unchecked", file=sys.stderr)
        self.evaluation = EvaluationSets(args.decontaminate, args.decontaminate_ngram) if args.decontaminate else None
        self.signer = Signer() if args.near_dedup else None


def arguments(args, tokenizer, tools):
    """What the bytes of a dataset depend on, of these options, for its manifest."""
    earlier = [[prefix, read_json(f"{prefix}.json", "--dedup-against")["xxh3_128"]] for prefix in args.dedup_against]
    return {
        "tokenizer": tokenizer.manifest(),
        "field": args.field,
        "columns": args.columns,
        "lang_pattern": args.lang_pattern,
        "valid_fraction": args.valid_fraction,
        "dedup": args.dedup,
        "dedup_against": earlier,
        "near_dedup": args.near_dedup,
        "decontaminate": tools.evaluation and tools.evaluation.fingerprint(),
        "decontaminate_ngram": args.decontaminate_ngram,
        **cleaning.arguments(args),
    }


def count_words(texts, langs):
    """The words of each text, one more than its spaces and line ends; its other characters where its language's script
    has no spaces between words."""
    spaces = [text.count(" ") + text.count("\n") for text in texts]
    spaced = {lang: resolve(lang).spaces for lang in set(langs)}
    if all(spaced.values()):
        return [n + 1 for n in spaces]
    return [n + 1 if spaced[lang] else len(text) - n for text, lang, n in zip(texts, langs, spaces, strict=True)]


def numbered(groups):
    """(the different values of a list, in order of appearance; the number of each element among them)."""
    different = list(dict.fromkeys(groups))
    if len(different) == 1:
        return different, 0
    number = {group: i for i, group in enumerate(different)}
    return different, [number[group] for group in groups]


def needs_keys(args):
    return args.dedup or args.valid_fraction > 0


def parse_shard(value):
    """The (number, count) of --shard I/N, or of slurm/N, whose number is that of the array task."""
    match = re.fullmatch(r"(\d+|slurm)/(\d+)", value)
    if not match:
        raise InputError(f"--shard {value}: expected I/N with I from 0 to N - 1, or slurm/N in a job array")
    number, count = match[1], int(match[2])
    if number == "slurm":
        number = os.environ.get("SLURM_ARRAY_TASK_ID")
        if number is None:
            raise InputError("--shard slurm/N: SLURM_ARRAY_TASK_ID is not set; start a job array, or give I/N")
    if not int(number) < count:
        raise InputError(f"--shard {number}/{count}: expected a number below {count}; the first is 0")
    return int(number), count


def shard_prefix(prefix, number, count):
    return f"{prefix}-{number:05d}-of-{count:05d}"


def preprocess(args, kind, arguments, sources, parser, encode, tokenizer, at_once=None):
    """A whole preprocessing stage: one shard of the corpus, or all of them and their merge.

    Args:
        args: its output_prefix, shard (None or (number, count)), workers, max_reject_rate, near_dedup.
        kind: "mono" (a document is a record) or "parallel" (a document is a sequence).
        arguments: everything that the bytes depend on, but for the sources.
        sources: the corpus, from find_sources.
        parser: function of a Source that gives a function of its rows, which gives a value or raises Unusable.
        encode: function of ([values], [lines]) that gives an Encoded.
        at_once: function of (bytes, Source) that gives the values of all lines of a .jsonl at once, or None if some
            line needs the parser; it must give what the parser gives.
    """
    encode = functools.partial(_encode_piece, sources=sources, parser=parser, at_once=at_once, encode=encode)
    listing = json.dumps([[source.path, source.size] for source in sources])
    of_shard = arguments | {
        "corpus": xxhash.xxh3_128_hexdigest(listing.encode("utf-8"))
    }  # shards of another one do not fit
    job = functools.partial(_encode_shard, kind=kind, arguments=of_shard, encode=encode, tokenizer=tokenizer,
                            workers=args.workers)  # fmt: skip
    if args.shard:
        number, count = args.shard
        prefix = shard_prefix(args.output_prefix, number, count)
        parts = ranges(sources, number, count)
        check_aligned(parts)
        if Path(f"{prefix}.json").exists() and already_done(prefix, of_shard, fingerprints(parts)):
            print(f"{prefix}: complete, nothing to do")
            return
        manifest = job(prefix, sources, parts, number, count)
        rejects = sum(manifest["rejects"].values())
        print(f"{prefix}: {manifest['records']:,} records, {manifest['tokens']:,} tokens; {rejects:,} rejects")
        return

    parts = ranges(sources, 0, 1)
    check_aligned(parts)
    if Path(f"{args.output_prefix}.json").exists():
        already_done(args.output_prefix, arguments, add_fingerprints(fingerprints(parts)))
        print(f"{args.output_prefix}: complete, nothing to do")
        return
    folder = Path(f"{args.output_prefix}.parts")
    count = max(1, -(-sum(source.size for source in sources) // SHARD_BYTES))
    prefixes = []
    for number in range(count):
        prefix = shard_prefix(folder / "part", number, count)
        prefixes.append(prefix)
        parts = ranges(sources, number, count)
        try:
            if Path(f"{prefix}.json").exists() and already_done(prefix, of_shard, fingerprints(parts)):
                continue
        except InputError:  # of an earlier run, whose input or options were others
            Path(f"{prefix}.json").unlink()
        job(prefix, sources, parts, number, count)
    manifest = merge_shards(prefixes, args.output_prefix, tokenizer, args.max_reject_rate)
    shutil.rmtree(folder)
    print(report_dataset(args.output_prefix, manifest))


def _encode_shard(prefix, sources, parts, number, count, kind, arguments, encode, tokenizer, workers):
    """Encode one shard; returns its manifest."""
    rejects = Rejects(prefix)
    rejected, test_sets = collections.Counter(), collections.Counter()
    groups, base, digests = {}, first_lines(parts), collections.Counter()
    progress = Progress(sum(stop - start for _, _, start, stop in parts), "B", f"tokenizing {number + 1}/{count}")
    signatures = ["signatures"] if arguments["near_dedup"] else []
    with writing_dataset(prefix, tokenizer.vocab_size, ["records", *signatures]) as (writer, manifest):
        for done in map_blocks(encode, pieces(sources, number, count), workers):
            first = base.setdefault(done.source, 0)
            base[done.source] += done.lines
            done.records["line"] += first
            done.records["source"] = done.source
            tags = np.repeat(tag_numbers(done.records), done.records["sequences"])
            writer.add(done.ids, done.lengths, done.documents, done.loss, (tags_of(kind, done.groups), tags))
            numbers = [groups.setdefault(group, len(groups)) for group in done.groups]
            done.records["group"] = np.array(numbers, np.uint32)[done.records["group"]]
            writer.add_also("records", done.records.data)
            if signatures:
                writer.add_also("signatures", done.signatures.data)
            moved = [dataclasses.replace(reject, line=reject.line + first) for reject in done.rejects]
            rejects.add(len(done.records) + len(moved), moved)
            rejected.update(language_pair(reject.group) for reject in moved)
            test_sets.update(done.found)
            if sources[done.source].form == "lines":
                digests[done.source] += done.digest
            progress.update(done.size)
        progress.close()
        manifest.update(
            kind=kind,
            shard=[number, count],
            records=rejects.records - sum(rejects.reasons.values()),
            read=rejects.records,
            groups=list(groups),
            paths={number: source.path for number, source, _, _ in parts},
            arguments=arguments,
            sources=fingerprints(parts, digests),
            rejects=dict(rejects.reasons),
            rejected=dict(rejected),
            test_sets=dict(test_sets),
            bytes_read=sum(stop - start for _, _, start, stop in parts),
            tokenizer_path=str(tokenizer.path.resolve()),
        )
    return manifest


def _encode_piece(piece, sources, parser, at_once, encode):
    """One piece of the corpus, in a worker."""
    source, known = sources[piece.source], ()
    if at_once is not None and isinstance(piece, LinePiece) and source.kind == "jsonl" and not source.names:
        data, digest = known = piece.read_bytes()
        values = at_once(data, source)
        if values is not None:
            done = encode(values, range(1, len(values) + 1))
            done.rejects = [dataclasses.replace(reject, path=piece.path) for reject in done.rejects]
            done.source, done.lines, done.size, done.digest = (
                piece.source,
                len(values),
                piece.stop - piece.start,
                digest,
            )
            return done
    block = read_piece(piece, sources, *known)
    values, lines, rejects = parse_lines(block, parser(source))
    done = encode(values, lines)
    rejects += [dataclasses.replace(reject, path=block.path) for reject in done.rejects]
    done.rejects = sorted(rejects, key=lambda reject: reject.line)
    done.source, done.lines, done.size, done.digest = piece.source, len(block.lines), block.size, block.digest
    return done


def decontaminate(columns, groups, lines, evaluation):
    """What test sets hold: (indices of the records that none does, rejects, {test set: records}).

    Args:
        columns: the texts of all records, then their second texts if they are pairs; none may be in a test set.
        groups, lines: the records' languages or language pairs, and where they stand.
        evaluation: an EvaluationSets, or None.
    """
    if evaluation is None or not lines:
        return range(len(lines)), [], {}
    held = [next(filter(None, names), None) for names in zip(*map(evaluation.find, columns), strict=True)]
    rejects = [
        Reject("", line, "in a test set", name, group)
        for line, name, group in zip(lines, held, groups, strict=True)
        if name
    ]
    counts = collections.Counter(filter(None, held))
    return [i for i, name in enumerate(held) if name is None], rejects, dict(counts)
