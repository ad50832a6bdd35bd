"""Monolingual text to 512-token entries in Megatron's indexed format (LLaMAX, section 2.1).

A document is BOS, the ids of its whole text, EOS; it is cut into entries of --block-size tokens, which never cross
documents. Input is one document a line: plain text (`.txt` or any other name) or `{"text", "lang"}` records (`.jsonl`).

    python preprocess_mono.py --input fr.txt --lang fr --tokenizer-model llama2/tokenizer.model --output-prefix data/fr
    python preprocess_mono.py --input part-*.jsonl --tokenizer-model llama2 --output-prefix data/mono --workers 16

writes data/fr.bin, data/fr.idx (open in stock megatron.core IndexedDataset) and the manifest data/fr.json, and names
what it could not use in data/fr.rejects.jsonl. Run again, it does nothing if the dataset is complete.
"""

import collections
import functools
import os

import numpy as np

from llamax.files import InputError, Parser, existing_file, fingerprint, run
from llamax.indexed import already_done, writing_dataset
from llamax.languages import resolve
from llamax.records import (
    Progress,
    Rejects,
    Unusable,
    json_object,
    language_field,
    map_blocks,
    parse_lines,
    plain_text,
    read_blocks,
    text_field,
)
from llamax.tokenizer import load_tokenizer


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="text, one document a line, or .jsonl records")
    add("--lang", help="language code (llamax/languages.tsv); may be left out where every record has its own")
    add("--tokenizer-model", required=True, help="SentencePiece model, Llama-3 rank file, or the folder of one")
    add("--output-prefix", required=True, help="writes PREFIX.bin, PREFIX.idx, PREFIX.json")
    add("--block-size", type=int, default=512, help="tokens an entry, at least 3 (default %(default)s)")
    add("--max-chars", type=int, default=10_000_000, help="longer documents are rejects (default %(default)s)")
    add("--max-reject-rate", type=float, default=0.01, help="share of rejects that ends the run (default %(default)s)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores, here %(default)s)")
    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args):
    """Raise one InputError with everything wrong."""
    problems = []
    if args.block_size < 3:
        problems.append(f"--block-size {args.block_size}: expected at least 3")
    if args.max_chars < 1:
        problems.append(f"--max-chars {args.max_chars}: expected at least 1")
    if not 0 <= args.max_reject_rate <= 1:
        problems.append(f"--max-reject-rate {args.max_reject_rate}: expected a share from 0 to 1")
    if args.workers < 1:
        problems.append(f"--workers {args.workers}: expected at least 1")
    if args.lang is None and not all(path.endswith(".jsonl") for path in args.input):
        problems.append("--lang: missing; plain text does not say its language")
    if problems:
        raise InputError("; ".join(problems))
    args.input = [str(existing_file(path, "--input")) for path in args.input]
    if args.lang is not None:
        args.lang = resolve(args.lang).code


def parse_text(line, lang, max_chars):
    """(text, lang) of a line of plain text."""
    text = plain_text(line)
    if len(text) > max_chars:
        raise Unusable("over-long", f"{len(text)} characters")
    return text, lang


def parse_record(line, lang, max_chars):
    """(text, lang) of a JSON line; where --lang is given, a record of another language is unusable."""
    record = json_object(line)
    text = text_field(record, "text")
    if len(text) > max_chars:
        raise Unusable("over-long", f"{len(text)} characters")
    found = language_field(record, "lang", default=lang)
    if lang is not None and found != lang:
        raise Unusable("other language", f"{found}, --lang is {lang}")
    return text, found


def encode_block(block, args, tokenizer):
    """One block of lines as arrays for DatasetWriter.add, with its counts per language and its rejects."""
    parse = parse_record if block.path.endswith(".jsonl") else parse_text
    values, numbers, rejects = parse_lines(block, lambda line: parse(line, args.lang, args.max_chars))
    ids, offsets = tokenizer.encode_batch([text for text, _ in values])
    lengths = np.diff(offsets) + 2  # with BOS and EOS
    ends = np.cumsum(lengths)
    document = np.empty(int(lengths.sum()), ids.dtype)
    inside = np.ones(len(document), bool)
    inside[ends - lengths] = inside[ends - 1] = False
    document[ends - lengths], document[ends - 1] = tokenizer.bos_id, tokenizer.eos_id
    document[inside] = ids
    entries = -(-lengths // args.block_size)  # each document's number of entries, the last one maybe shorter
    entry_lengths = np.full(int(entries.sum()), args.block_size)
    entry_lengths[np.cumsum(entries) - 1] = lengths - (entries - 1) * args.block_size
    languages = collections.Counter(lang for _, lang in values)
    return document, entry_lengths, entries, languages, len(numbers) + len(rejects), rejects, block.size


def main():
    args = get_args()
    tokenizer = load_tokenizer(args.tokenizer_model)
    sources = [fingerprint(path) for path in args.input]
    arguments = {
        "lang": args.lang,
        "tokenizer": tokenizer.manifest(),
        "block_size": args.block_size,
        "max_chars": args.max_chars,
    }
    if already_done(args.output_prefix, arguments, sources):
        print(f"{args.output_prefix}: complete, nothing to do")
        return

    rejects = Rejects(args.output_prefix)
    languages = collections.Counter()
    progress = Progress(sum(source["size"] for source in sources), "B", "tokenizing")
    encode = functools.partial(encode_block, args=args, tokenizer=tokenizer)
    blocks = (block for path in args.input for block in read_blocks(path))
    with writing_dataset(args.output_prefix, tokenizer.vocab_size) as (writer, manifest):
        for document, entry_lengths, entries, found, records, rejected, size in map_blocks(
            encode, blocks, args.workers
        ):
            writer.add(document, entry_lengths, entries)
            languages += found
            rejects.add(records, rejected)
            progress.update(size)
        progress.close()
        rejects.judge(args.max_reject_rate)
        manifest.update(
            kind="mono",
            languages=dict(sorted(languages.items())),
            arguments=arguments,
            sources=sources,
            rejects=dict(rejects.reasons),
        )
    print(
        f"{args.output_prefix}: {manifest['documents']:,} documents, {manifest['sequences']:,} entries, "
        f"{manifest['tokens']:,} tokens; {sum(rejects.reasons.values()):,} rejects"
    )


if __name__ == "__main__":
    run(main)
