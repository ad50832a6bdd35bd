"""Monolingual text to 512-token entries in Megatron's indexed format (LLaMAX, section 2.1).

A document is BOS, the ids of its whole text, EOS; it is cut into entries of --block-size tokens, which never cross
documents. Input is plain text, one document a line, .jsonl, .tsv, .parquet, or a dataset of the `datasets` library
(a folder, or hf:NAME[:CONFIG[:SPLIT]]), plain or .gz, .zst, .xz.

    python preprocess_mono.py --input fr.txt --lang fr --tokenizer-model llama2/tokenizer.model --output-prefix data/fr
    python preprocess_mono.py --input madlad/*.jsonl.gz --lang-pattern '(?P<lang>[a-z]+)_clean' --dedup \\
        --decontaminate flores101 --tokenizer-model llama2 --output-prefix data/mono --workers 16
    sbatch --array=0-99 slurm/preprocess.sh        (a shard a task; then merge_datasets.py)

writes data/fr.bin, data/fr.idx (open in stock megatron.core IndexedDataset) and the manifest data/fr.json, and names
what it could not use in data/fr.rejects.jsonl. Run again, it does only what is missing. All cleaning is off by default.
"""

import functools

import msgspec
import numpy as np

from llamax import shards
from llamax.dedup import record_key
from llamax.files import InputError, Parser, run
from llamax.records import Unusable, language_code, language_field, text_field
from llamax.shard_files import RECORD
from llamax.sources import find_sources, record_reader
from llamax.tokenizer import encode_entries, load_tokenizer


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="FILE", help="files, folders and hub names, in this order")
    add("--lang", help="language code (llamax/languages.tsv); may be left out where every record has its own")
    add("--lang-pattern", metavar="REGEX", help="finds the language in each path: a regular expression, (?P<lang>…)")
    add("--block-size", type=int, default=512, help="tokens an entry, at least 3 (default %(default)s)")
    add("--max-chars", type=int, default=10_000_000, help="longer documents are rejects (default %(default)s)")
    shards.add_arguments(parser, "text, lang", pairs=False)
    args = parser.parse_args()
    check_args(args)
    return args


def check_args(args):
    """Raise one InputError with everything wrong."""
    problems = shards.check(args)
    if args.block_size < 3:
        problems.append(f"--block-size {args.block_size}: expected at least 3")
    if args.max_chars < 1:
        problems.append(f"--max-chars {args.max_chars}: expected at least 1")
    if problems:
        raise InputError("; ".join(problems))
    args.lang = args.lang and language_code(args.lang)


def document_parser(source, args, clean):
    """A function that gives (text, language) of a row of the source, or raises Unusable; where --lang or the path says
    a language, another one is unusable."""
    read, expected, max_chars = record_reader(source), source.fields.get("lang"), args.max_chars

    def parse(row):
        record = read(row)
        lang = language_field(record, "lang", expected) if expected is None or "lang" in record else expected
        try:
            if expected is not None and lang != expected:
                raise Unusable("other language", f"{lang}, expected {expected}")
            text = text_field(record, "text")
            if len(text) > max_chars:
                raise Unusable("over-long", f"{len(text)} characters")
            if clean is not None:
                text = clean.text(text, lang)
        except Unusable as why:
            why.group = lang
            raise
        return text, lang

    return parse


class _Record(msgspec.Struct, gc=False):
    text: str
    lang: str | None = None


_records = msgspec.json.Decoder(_Record)


def documents_at_once(data, source, args):
    """What document_parser gives for each line of a .jsonl, in a third of the time, if all is well with all of them;
    otherwise None."""
    data = data.removesuffix(b"\n")
    characters = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    # One object a line: each begins with { and ends with }, and inside of an object no } is followed by a {.
    if data[:1] != b"{" or data[-1:] != b"}" or b"\\u0000" in data:
        return None
    if (characters[ends - 1] != ord("}")).any() or (characters[ends + 1] != ord("{")).any():
        return None
    try:
        records = _records.decode_lines(data)
        langs = {value: language_code(value) for value in {record.lang for record in records} - {None}}
    except (msgspec.MsgspecError, UnicodeDecodeError, InputError):
        return None
    expected = source.fields.get("lang")
    langs[None] = expected
    texts = [record.text for record in records]
    if (
        len(texts) != len(ends) + 1
        or not all(texts)
        or any(map(str.isspace, texts))
        or max(map(len, texts)) > args.max_chars
    ):
        return None
    if expected is not None and set(langs.values()) != {expected}:
        return None
    found = [langs[record.lang] for record in records]
    return None if None in found else list(zip(texts, found, strict=True))


def encode_documents(documents, lines, args, tokenizer, tools):
    """[(text, language)] as entries, with what the merge needs to know of each."""
    texts, langs = ([document[i] for document in documents] for i in (0, 1))
    keep, rejects, found = shards.decontaminate([texts], langs, lines, tools.evaluation)
    texts, langs, lines = ([column[i] for i in keep] if found else column for column in (texts, langs, lines))
    ids, lengths = encode_entries(texts, tokenizer)
    entries = -(-lengths // args.block_size)  # each document's number of entries, the last one maybe shorter
    entry_lengths = np.full(int(entries.sum()), args.block_size, np.int32)
    entry_lengths[np.cumsum(entries) - 1] = lengths - (entries - 1) * args.block_size

    records = np.zeros(len(texts), RECORD)
    groups, records["group"] = shards.numbered(langs)
    records["line"], records["sequences"] = lines, entries
    records["words"] = shards.count_words(texts, langs)
    if shards.needs_keys(args) and len(records):
        records["key"] = [record_key(lang, text) for text, lang in zip(texts, langs, strict=True)]
    signatures = tools.signer and tools.signer.signatures(texts)
    return shards.Encoded(ids, entry_lengths, entries, None, records, groups, rejects, signatures, found)


def main():
    args = get_args()
    tokenizer, tools = load_tokenizer(args.tokenizer_model), shards.Tools(args)
    fields = {"lang": args.lang} if args.lang else {}
    sources = find_sources(args.input, fields, args.field, args.columns, args.lang_pattern)
    for source in sources:
        if source.kind == "text" and "lang" not in source.fields:
            raise InputError(f"--lang: missing, and {source.path} is plain text, which does not say its language")
    arguments = {
        "lang": args.lang,
        "block_size": args.block_size,
        "max_chars": args.max_chars,
        **shards.arguments(args, tokenizer, tools),
    }
    parser = functools.partial(document_parser, args=args, clean=tools.clean)
    encode = functools.partial(encode_documents, args=args, tokenizer=tokenizer, tools=tools)
    at_once = None if tools.clean else functools.partial(documents_at_once, args=args)
    shards.preprocess(args, "mono", arguments, sources, parser, encode, tokenizer, at_once)


if __name__ == "__main__":
    run(main)
