"""Code-switched pseudo-parallel data from bilingual dictionaries, and Algorithm 1 (LLaMAX, sections 2.1 and 2.2).

    python augment.py lexicon --muse en-fr=fr2.txt en-zh=zh2.txt --panlex eng_tam_lexicon.txt --list en_es.tsv \\
        --output data/lexicon.jsonl
    python augment.py pairs --lexicon data/lexicon.jsonl --input pairs.jsonl --output data/augmented.jsonl --workers 16
    python augment.py mono --lexicon data/lexicon.jsonl --input fr.txt --lang fr --output data/mono-augmented.jsonl
    python augment.py reach --lexicon data/lexicon.jsonl --input ntrex/*.txt --lang-pattern 'ref.(?P<lang>[a-z]+)' \\
        --output data/reach.json
    python augment.py plan --counts llamax_counts.csv --output data/plan.json
    python augment.py fill --plan data/plan.json --english en.txt --mono mono/en.txt --model nllb --output fill.jsonl

`lexicon` (step 1 of the paper) merges dictionaries that have English on one side into one entry an English head word:
hello_en, bonjour_fr, hallo_de, 你好_zh (llamax/lexicon.py). Of several forms of dictionary for a language it takes the
one with more entities, different words of that language; --join takes all. A word may be its own translation; such
identity pairs stay in the lexicon and are counted, and so is noise.

`pairs` (step 2) puts the source in lower case, divides it into words (llamax/codeswitch.py), and replaces some of
those that have a translation other than themselves, each with probability --rate (the paper gives none): for each it
draws one of the languages that have a translation, then one of the translations there, both uniformly. The languages
are all others of the lexicon, as the paper has it ("translation from a different language"), or with --into target
that of the pair's target. The target side stays as it is and alone carries loss.

`mono` replaces every word that has a translation in monolingual text. Each line of a document is a sentence; the
changed and the original one form a pair, with the loss on both.

What nothing was replaced in is not written. What becomes of a record depends on it, the options and the seed, not on
its place in the input, the number of workers or of shards: the shards (--shard I/N, which writes
OUTPUT-0000I-of-0000N) one after the other are what a run without them writes.

`reach` tells which share of a corpus's words has an entry; `plan` and `fill` are Algorithm 1 (llamax/algorithm1.py,
llamax/filling.py): how many English sentences to translate into which languages, and their translation.
"""

import collections
import dataclasses
import functools
import json
import os
from pathlib import Path

import msgspec

from llamax import algorithm1, filling
from llamax.codeswitch import Switcher, jieba_cutter
from llamax.dictionaries import FORMS, find_dictionary, noise, read_dictionary
from llamax.files import InputError, Parser, existing_file, fingerprint, replacing, run
from llamax.lexicon import file_digest, index_of, load_lexicon, write_index
from llamax.outputs import already_done, write_manifest
from llamax.records import Progress, Rejects, language_code, map_blocks, parse_lines
from llamax.shards import parse_shard, shard_prefix
from llamax.sources import (
    add_fingerprints,
    check_aligned,
    find_sources,
    fingerprints,
    first_lines,
    pieces,
    ranges,
    read_piece,
    record_reader,
)
from preprocess_mono import document_parser
from preprocess_parallel import Pair, pair_of

FORMAT = 2  # raised when the same arguments would give other bytes
SHOWN = 20  # languages in a printed table; the manifest has all


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    rate = "share of rejects that ends the run (default %(default)s)"

    lexicon = commands.add_parser("lexicon", help="merge dictionaries into one lexicon")
    add = functools.partial(lexicon.add_argument, nargs="+", action="extend", default=[], metavar="[A-B=]FILE")
    add("--muse", help="a word, a space or tab, a word; en-fr=FILE, or a file named en-fr.txt")
    add("--panlex", help="an entry, a tab, an entry; eng-fra=FILE, or a file named eng_fra_lexicon.txt")
    add("--list", help="any two columns with a tab between (GATITOS); en-bm=FILE, or a file named en_bm-Nkoo.tsv")
    add = lexicon.add_argument
    add("--join", action="store_true", help="all forms of dictionary for a language, not the one with more entities")
    add("--drop-noise", action="store_true", help="leave out what has no letter, brackets, or another script")
    add("--output", required=True, metavar="LEXICON", help="and LEXICON.index, LEXICON.manifest.json beside it")
    add("--max-reject-rate", type=float, default=0.01, help=rate)

    pairs = commands.add_parser("pairs", help="code-switch the source of sentence pairs")
    mono = commands.add_parser("mono", help="pairs of code-switched and original monolingual sentences")
    reach = commands.add_parser("reach", help="the share of words that have an entry, by language and corpus")
    for command, record in ((pairs, "src, tgt, src_lang, tgt_lang"), (mono, "text, lang"), (reach, "text, lang")):
        add = command.add_argument
        add("--lexicon", required=True, help="what `augment.py lexicon` wrote")
        add("--input", nargs="+", required=command is not pairs, metavar="FILE", help=f"records of {record}; any form")
        if command is pairs:
            add("--src", nargs="+", metavar="FILE", help="source side, a sentence a line (with --tgt, not --input)")
            add("--tgt", nargs="+", metavar="FILE", help="target side, line-aligned with --src, as many files")
            add("--src-lang", help="language code of the sources; may be left out where every record has its own")
            add("--tgt-lang", help="language code of the targets")
        else:
            add("--lang", help="language code; may be left out where every record has its own")
            add("--max-chars", type=int, default=10_000_000, help="longer documents are rejects (default %(default)s)")
        add("--lang-pattern", metavar="REGEX", help="finds the language(s) in each path: a regular expression, (?P<…)")
        add("--field", nargs="+", default=[], metavar="NAME=THEIRS", help=f"what the input calls {record}")
        add("--columns", nargs="+", metavar="NAME", help="columns of .tsv files (default: their first line says)")
        add("--output", required=True, metavar="FILE", help="and FILE.manifest.json beside it")
        if command is not reach:
            add("--shard", metavar="I/N", help="make only part I (from 0) of N; slurm/N: I is the array task's")
            add("--seed", type=int, default=0, help="decides what is replaced and by what (default %(default)s)")
            given = 0.5 if command is pairs else 1.0
            add("--rate", type=float, default=given, help="of replacing a word that has one (default %(default)s)")
            hops = "translations that share an entry, or also those through a third language (default %(default)s)"
            add("--hops", type=int, choices=(1, 2), default=1, help=hops)
        add("--max-reject-rate", type=float, default=0.01, help=rate)
        add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores, here %(default)s)")
    into = "replace by any other language of the lexicon, or by the pair's target language (default %(default)s)"
    pairs.add_argument("--into", choices=("any", "target"), default="any", help=into)
    both = 'use each pair with its sides exchanged too, unless its loss is "target"'
    pairs.add_argument("--both-directions", action="store_true", help=both)

    algorithm1.add_plan_arguments(commands.add_parser("plan", help="what Algorithm 1 gives every language"))
    filling.add_fill_arguments(commands.add_parser("fill", help="translate the English sentences of a plan"))
    args = parser.parse_args()
    if args.command not in ("plan", "fill"):
        check_args(args)
    return args


def check_args(args):
    """Raise one InputError with everything wrong."""
    problems = []
    for flag in ("rate", "max_reject_rate"):
        if not 0 <= getattr(args, flag, 0) <= 1:
            problems.append(f"--{flag.replace('_', '-')} {getattr(args, flag)}: expected a share from 0 to 1")
    if getattr(args, "workers", 1) < 1:
        problems.append(f"--workers {args.workers}: expected at least 1")
    if args.command == "lexicon":
        if not any(getattr(args, form) for form in FORMS):
            problems.append("--muse, --panlex, --list: none is given; name at least one dictionary, as in en-fr=FILE")
    else:
        if wrong := [pair for pair in args.field if "=" not in pair]:
            problems.append(f"--field {wrong[0]}: expected NAME=THEIRS")
        args.field = dict(pair.split("=", 1) for pair in args.field if "=" in pair)
        try:
            args.shard = parse_shard(args.shard) if getattr(args, "shard", None) else None
        except InputError as error:
            problems.append(str(error))
    if args.command == "pairs":
        aligned = [*(args.src or ()), *(args.tgt or ())]
        if bool(args.input) == bool(aligned) or len(args.src or ()) != len(args.tgt or ()):
            problems.append("--input, --src, --tgt: expected --input, or as many files of --src as of --tgt")
    if problems:
        raise InputError("; ".join(problems))
    if args.command != "lexicon":
        args.lexicon = str(existing_file(args.lexicon, "--lexicon"))
        for name in ("lang", "src_lang", "tgt_lang"):
            if getattr(args, name, None):
                setattr(args, name, language_code(getattr(args, name)))


# ---- step 1: the lexicon


def build_lexicon(args):
    # In an order of their own, so that the order in which they are named changes nothing.
    sources = [find_dictionary(form, value) for form in FORMS for value in getattr(args, form)]
    sources.sort(key=lambda source: (source["languages"], source["form"], source["blake2b"], source["path"]))
    arguments = {"join": args.join, "drop_noise": args.drop_noise}
    if already_done(args.output, FORMAT, arguments, sources):
        print(f"{args.output}: complete, nothing to do")
        return

    found = collections.defaultdict(lambda: collections.defaultdict(dict))  # {language: {form: {"head\tword": None}}}
    rejects, duplicates = Rejects(args.output), 0
    progress = Progress(sum(source["size"] for source in sources), "B", "reading dictionaries")
    for source in sources:
        (language,) = set(source["languages"]) - {"en"}
        pairs = found[language][source["form"]]
        before, lines = len(pairs), 0
        for head, word in read_dictionary(source, rejects, progress):
            pairs[f"{head}\t{word}"] = None
            lines += 1
        duplicates += before + lines - len(pairs)
    progress.close()
    rejects.judge(args.max_reject_rate)

    entries, languages = collections.defaultdict(dict), {}  # {head: {language: {word: None}}}
    for language in sorted(found):
        forms = found.pop(language)
        entities = {form: len({pair.partition("\t")[2] for pair in forms[form]}) for form in FORMS if form in forms}
        chosen = list(entities) if args.join else [max(entities, key=entities.get)]
        pairs = dict.fromkeys(pair for form in chosen for pair in forms[form])
        identity, faults, words = 0, collections.Counter(), set()
        for pair in pairs:
            head, _, word = pair.partition("\t")
            if fault := noise(word, language):
                faults[fault] += 1
                if args.drop_noise:
                    continue
            identity += head == word
            words.add(word)
            entries[head].setdefault(language, {})[word] = None
        languages[language] = {
            "dictionaries": chosen,
            "words": len(words),
            "pairs": len(pairs) - (sum(faults.values()) if args.drop_noise else 0),
            "identity": identity,
            "noise": dict(sorted(faults.items())),
            "left_out": {form: count for form, count in entities.items() if form not in chosen},
        }
    write_lexicon(args.output, entries, {
        "kind": "lexicon", "heads": len(entries), "languages": languages, "lines": rejects.records,
        "duplicates": duplicates, "rejects": dict(rejects.reasons), "arguments": arguments, "sources": sources,
    })  # fmt: skip

    largest = sorted(languages, key=lambda language: -languages[language]["words"])
    print(f"{'language':<10} {'dictionary':<14} {'entities':>9} {'pairs':>9} {'identity':>9} {'noise':>7}  left out")
    for language in largest[:SHOWN]:
        row = languages[language]
        left_out = ", ".join(f"{form} {count:,}" for form, count in row["left_out"].items())
        print(f"{language:<10} {'+'.join(row['dictionaries']):<14} {row['words']:>9,} {row['pairs']:>9,} "
              f"{row['identity']:>9,} {sum(row['noise'].values()):>7,}  {left_out}".rstrip())  # fmt: skip
    if len(largest) > SHOWN:
        print(f"… and {len(largest) - SHOWN} more languages in {args.output}.manifest.json")
    total = {name: sum(row[name] for row in languages.values()) for name in ("pairs", "identity")}
    faults = sum(sum(row["noise"].values()) for row in languages.values())
    print(
        f"{args.output}: {len(entries):,} English head words, {total['pairs']:,} translations into {len(languages):,} "
        f"languages, {total['identity']:,} of them identical to the head word; {faults:,} of noise "
        f"{'left out' if args.drop_noise else 'kept'}; {duplicates:,} duplicates, {rejects.reasons.total():,} rejects"
    )


def write_lexicon(path, entries, values):
    """Write a lexicon, its index and its manifest."""
    with replacing(path, f"{path}.index", f"{path}.manifest.json") as (output, index, manifest):
        with open(output, "w", encoding="utf-8", newline="\n") as file:
            for head in sorted(entries):
                translations = {language: sorted(words) for language, words in sorted(entries[head].items())}
                file.write(json.dumps({"en": head, "translations": translations}, ensure_ascii=False) + "\n")
        write_index(index, index_of(entries, file_digest(output)))
        write_manifest(manifest, output, FORMAT, **values)


# ---- step 2: pairs


@dataclasses.dataclass
class Done:
    """What a worker makes of a piece of the corpus."""

    source: int
    read: int  # lines
    size: int  # bytes
    digest: int
    rejects: list
    counts: collections.Counter
    groups: collections.Counter = None  # pairs written, by direction
    lines: bytes = b""


def switch_pair(pair, switcher, args):
    """Yield (direction, the code-switched pair or None, its Switched) for each direction in which a pair is used."""
    uses = [pair]
    if args.both_directions and pair.loss != "target":  # its source is not a sentence to learn
        uses.append(pair._replace(src=pair.tgt, tgt=pair.src, src_lang=pair.tgt_lang, tgt_lang=pair.src_lang))
    for use in uses:
        target = use.tgt_lang if args.into == "target" else None
        if use.src_lang not in switcher.lexicon.number or (target and target not in switcher.lexicon.number):
            yield use.group, None, None
            continue
        done = switcher.switch(use.src, use.src_lang, target, (use.src_lang, use.tgt_lang, use.src, use.tgt))
        yield use.group, use._replace(src=done.text, loss="target", origin="augment"), done


def switch_document(document, switcher, args):
    """The same for each line of a document, (text, language): the changed and the original line form a pair."""
    text, lang = document
    for line in filter(None, map(str.strip, text.split("\n"))):
        if lang not in switcher.lexicon.number:
            yield f"{lang}-{lang}", None, None
            continue
        done = switcher.switch(line, lang, None, (lang, line))
        yield f"{lang}-{lang}", Pair(done.text, line, lang, lang, "all", "augment-mono"), done


def switch_piece(piece, sources, parser, switch):
    """One piece of the corpus, in a worker."""
    block = read_piece(piece, sources)
    values, _, rejects = parse_lines(block, parser(sources[piece.source]))
    counts, groups, lines = collections.Counter(records=len(values) + len(rejects)), collections.Counter(), []
    pairs = missing = unchanged = known = replaced = 0
    for value in values:
        for group, pair, done in switch(value):
            pairs += 1
            if done is None:
                missing += 1
                continue
            known += done.known
            replaced += done.replaced
            if not done.replaced:
                unchanged += 1
                continue
            groups[group] += 1
            lines.append(pair._asdict())
    counts.update(pairs=pairs, missing=missing, unchanged=unchanged, known=known, replaced=replaced)
    lines = _encode_lines(lines)
    return Done(piece.source, len(block.lines), block.size, block.digest, rejects, counts, groups, lines)


_encode_lines = msgspec.json.Encoder().encode_lines


def pair_rows(source):
    """A function that gives the Pair of a row of the source, or raises Unusable."""
    read = record_reader(source)
    return lambda row: pair_of(read(row), source.fields)


def load_switcher(lexicon, *options):
    """The Switcher of a lexicon file, with all that workers share: made before they are forked."""
    switcher = Switcher(load_lexicon(lexicon), *options)
    if switcher.chinese:
        jieba_cutter()
    return switcher


def map_corpus(args, work, sources, rejects, what):
    """Yield the Done of each piece of a corpus, or of the shard of --shard, in order; collect rejects on the way."""
    number, count = getattr(args, "shard", None) or (0, 1)
    parts = ranges(sources, number, count)
    lines = first_lines(parts)
    progress = Progress(sum(stop - start for _, _, start, stop in parts), "B", what)
    for done in map_blocks(work, pieces(sources, number, count), args.workers):
        before = lines.setdefault(done.source, 0)
        lines[done.source] += done.read
        moved = [dataclasses.replace(reject, line=reject.line + before) for reject in done.rejects]
        rejects.add(done.counts["records"], moved)
        yield done
        progress.update(done.size)
    progress.close()
    if rejects.records or count == 1:  # of many shards, one may be empty
        rejects.judge(args.max_reject_rate)


def switch_corpus(args):
    """The commands `pairs` and `mono`: one shard of a corpus, or all of it."""
    pairs = args.command == "pairs"
    names = ("src_lang", "tgt_lang") if pairs else ("lang",)
    fields = {name: getattr(args, name) for name in names if getattr(args, name)}
    targets = args.tgt if pairs else None
    inputs = args.input or args.src
    sources = find_sources(inputs, fields, args.field, args.columns, args.lang_pattern, targets)
    number, count = args.shard or (0, 1)
    parts = ranges(sources, number, count)
    check_aligned(parts)
    output = Path(args.output)
    if args.shard:
        output = output.with_name(shard_prefix(output.stem, number, count) + output.suffix)
    names = ("seed", "rate", "hops", *(("into", "both_directions") if pairs else ()))
    arguments = {"command": args.command, "shard": [number, count], "field": args.field, "columns": args.columns,
                 "fields": fields, "lang_pattern": args.lang_pattern, "corpus": [source.path for source in sources],
                 **{name: getattr(args, name) for name in names}}  # fmt: skip
    lexicon_file = fingerprint(args.lexicon)
    if os.path.lexists(output) and already_done(
        output, FORMAT, arguments, [lexicon_file, *add_fingerprints(fingerprints(parts))]
    ):
        print(f"{output}: complete, nothing to do")
        return

    switcher = load_switcher(args.lexicon, args.seed, args.rate, args.hops)
    switch = functools.partial(switch_pair if pairs else switch_document, switcher=switcher, args=args)
    parser = pair_rows if pairs else functools.partial(document_parser, args=args, clean=None)
    work = functools.partial(switch_piece, sources=sources, parser=parser, switch=switch)
    counts, groups, digests = collections.Counter(), collections.Counter(), collections.Counter()
    rejects = Rejects(output)
    with replacing(output, f"{output}.manifest.json") as (partial, manifest):
        with open(partial, "wb") as file:
            for done in map_corpus(args, work, sources, rejects, "augmenting"):
                file.write(done.lines)
                counts += done.counts
                groups += done.groups
                digests[done.source] += done.digest
        digests = {number: digest for number, digest in digests.items() if sources[number].form == "lines"}
        write_manifest(
            manifest,
            partial,
            FORMAT,
            packages=["jieba"],
            kind=args.command,
            records=rejects.records,
            pairs=groups.total(),
            directions=dict(sorted(groups.items())),
            nothing_replaced=counts["unchanged"] + counts["missing"],
            language_not_in_lexicon=counts["missing"],
            words_with_translation=counts["known"],
            words_replaced=counts["replaced"],
            rejects=dict(rejects.reasons),
            arguments=arguments,
            sources=[lexicon_file, *add_fingerprints(fingerprints(parts, digests))],
        )
    realised = counts["replaced"] / counts["known"] if counts["known"] else 0.0
    print(
        f"{output}: {groups.total():,} pairs written of {counts['pairs']:,}, nothing replaced in "
        f"{counts['unchanged'] + counts['missing']:,} ({counts['missing']:,} for a language not in the lexicon); "
        f"{counts['replaced']:,} of {counts['known']:,} words with a translation replaced ({realised:.1%}, --rate "
        f"{args.rate:.1%}); {rejects.reasons.total():,} rejects"
    )


# ---- the lexicon's reach


def reach_piece(piece, sources, parser, switcher):
    """The counts (language, "words" or "known") of one piece of the corpus, in a worker."""
    block = read_piece(piece, sources)
    documents, _, rejects = parse_lines(block, parser(sources[piece.source]))
    counts = collections.Counter(records=len(documents) + len(rejects))
    for text, lang in documents:
        words, known = switcher.reach(text, lang)
        counts[lang, "words"] += words
        counts[lang, "known"] += known
    return Done(piece.source, len(block.lines), block.size, block.digest, rejects, counts)


def report_reach(args):
    fields = {"lang": args.lang} if args.lang else {}
    sources = find_sources(args.input, fields, args.field, args.columns, args.lang_pattern)
    arguments = {"command": "reach", "fields": fields, "field": args.field, "columns": args.columns,
                 "lang_pattern": args.lang_pattern}  # fmt: skip
    files = [fingerprint(args.lexicon), *add_fingerprints(fingerprints(ranges(sources, 0, 1)))]
    if already_done(args.output, FORMAT, arguments, files):
        print(f"{args.output}: complete, nothing to do")
        return
    switcher = load_switcher(args.lexicon)
    parser = functools.partial(document_parser, args=args, clean=None)
    work = functools.partial(reach_piece, sources=sources, parser=parser, switcher=switcher)
    counts, rejects = collections.Counter(), Rejects(args.output)
    for done in map_corpus(args, work, sources, rejects, "looking up"):
        path = sources[done.source].path
        counts.update({(path, *key): n for key, n in done.counts.items() if key != "records"})
    rows = []
    for path, lang in sorted({key[:2] for key in counts}):
        unit = "letters" if switcher.longest_match(lang) else "words"
        words, known = counts[path, lang, "words"], counts[path, lang, "known"]
        rows.append({"corpus": path, "language": lang, "unit": unit, "words": words, "with_entry": known,
                     "share": known / max(words, 1)})  # fmt: skip
    with replacing(args.output, f"{args.output}.manifest.json") as (output, manifest):
        output.write_text(json.dumps(rows, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        write_manifest(manifest, output, FORMAT, packages=["jieba"], kind="reach", rejects=dict(rejects.reasons),
                       arguments=arguments, sources=files)  # fmt: skip
    print(f"{'language':<10} {'of':<8} {'in all':>12} {'with entry':>12} {'share':>7}  corpus")
    for row in rows:
        print(f"{row['language']:<10} {row['unit']:<8} {row['words']:>12,} {row['with_entry']:>12,} "
              f"{row['share']:>7.1%}  {row['corpus']}")  # fmt: skip


def main():
    args = get_args()
    commands = {"lexicon": build_lexicon, "pairs": switch_corpus, "mono": switch_corpus, "reach": report_reach,
                "plan": algorithm1.plan, "fill": filling.fill}  # fmt: skip
    commands[args.command](args)


if __name__ == "__main__":
    run(main)
