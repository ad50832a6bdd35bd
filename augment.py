"""Code-switched pseudo-parallel data from bilingual dictionaries (LLaMAX, section 2.1).

    python augment.py lexicon --muse en-fr=fr2.txt en-zh=zh2.txt --panlex eng_tam_lexicon.txt --list en_es.tsv \\
        --output data/lexicon.jsonl
    python augment.py pairs --lexicon data/lexicon.jsonl --input pairs.jsonl --output data/augmented.jsonl --workers 16

`lexicon` (step 1 of the paper) merges dictionaries that have English on one side into one entry an English head word:
hello_en, bonjour_fr, hallo_de, 你好_zh. The file holds one entry a line, all in lower case, sorted by head word:

    {"en": "hello", "translations": {"de": ["hallo"], "fr": ["bonjour", "salut"], "zh": ["你好"]}}

The translations of a word of language A in language B are the words of B in all entries that hold it, its English head
word being a word of an entry too: between English and B what the dictionaries say, between two others what shares a
head word. That one step is the paper's 1-hop, which it keeps (Table 10); 2-hop would repeat it through a third
language. A word may be its own translation; such identity pairs stay in the lexicon, and are counted.

`pairs` (step 2) puts the source in lower case, divides it into words, and replaces some of those that have a
translation other than themselves, each with probability --rate (the paper gives none): for each it draws one of the
languages that have a translation, then one of the translations there, both uniformly. The languages are all others of
the lexicon, as the paper has it ("translation from a different language"), or with --into target that of the pair's
target. The target side stays as it is and alone carries loss.
A source in which nothing is replaced is not written. What becomes of a pair depends on the pair, the options and the
seed, not on its place in the input or on the number of workers; the words replaced at a lower rate are among those
replaced at a higher one.

What a word is, and how words are joined again (the paper says: spaces, and jieba for Chinese):
- Written with spaces: what stands between two spaces. The spaces stay as they were, so that an entry of several
  words can replace one word but is never replaced.
- Chinese: what jieba says.
- Other languages without spaces (ja, km, lo, my, th …): from left to right the longest word of that language in the
  lexicon; what no word matches passes through. No word begins or ends inside a written syllable (before a vowel sign
  or tone mark, say) or inside a run of Latin letters and digits. Of a word that the lexicon lacks, a part may match.
- Punctuation and symbols around a word are not part of it, and stay around what replaces it.
- In text without spaces, a replacement from a language with spaces is set off by one space from letters and digits.
- Words are compared in Unicode's form NFC (the longest match takes the text as it is written); what is not replaced
  stays as it was written, in lower case.
"""

import collections
import functools
import hashlib
import itertools
import json
import logging
import os
import platform
import random
import re
import tempfile
import unicodedata
import warnings
from importlib.metadata import version
from pathlib import Path

from llamax.files import InputError, Parser, existing_file, fingerprint, read_json, replacing, require_same_origin, run
from llamax.languages import resolve
from llamax.records import Progress, Rejects, Unusable, json_object, map_blocks, parse_lines, read_blocks, usable_text
from preprocess_parallel import pair_of

FORMAT = 1  # raised when the same arguments would give other bytes
FORMS = ("muse", "panlex", "list")
CHINESE_SCRIPTS = ("Hans", "Hant", "Hani")

# A unit is what no word may begin or end inside of: a syllable as it is written, or a Latin word or number, which
# would otherwise lose its middle to a short loan word of the same letters. The text is in lower case.
_LATIN = "0-9a-z\u00df-\u00f6\u00f8-\u024f"
_MARKS = "".join(chr(c) for c in range(0x300, 0x10000) if unicodedata.category(chr(c))[0] == "M")
_FIRST = "\u0e40-\u0e44\u0ec0-\u0ec4"  # Thai and Lao vowels written before their consonant
_LAST = "\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3\u0ebd" + "ぁぃぅぇぉゃゅょゎァィゥェォャュョヮー"  # and after it
_STACK = "\u17d2\u1039"  # Khmer and Burmese: puts the next consonant under this one
_UNIT = re.compile(rf"(?:[{_LATIN}][{_MARKS}]*)+|[{_FIRST}]*.(?:[{_STACK}]\w|[{_LAST}{_MARKS}])*", re.DOTALL)


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    rate = "share of rejects that ends the run (default %(default)s)"

    lexicon = commands.add_parser("lexicon", help="merge dictionaries into one lexicon")
    add = functools.partial(lexicon.add_argument, nargs="+", action="extend", default=[], metavar="[A-B=]FILE")
    add("--muse", help="a word, a space or tab, a word; en-fr=FILE, or a file named en-fr.txt")
    add("--panlex", help="an entry, a tab, an entry; eng-fra=FILE, or a file named eng_fra_lexicon.txt")
    add("--list", help="any two columns with a tab between (GATITOS); en-bam_Latn=FILE, or a file named en_es.tsv")
    lexicon.add_argument("--output", required=True, metavar="LEXICON", help="and LEXICON.manifest.json beside it")
    lexicon.add_argument("--max-reject-rate", type=float, default=0.01, help=rate)

    pairs = commands.add_parser("pairs", help="code-switch the source of sentence pairs")
    add = pairs.add_argument
    add("--lexicon", required=True, help="what `augment.py lexicon` wrote")
    add("--input", nargs="+", required=True, metavar="FILE", help='.jsonl of {"src","tgt","src_lang","tgt_lang"}')
    add("--output", required=True, metavar="FILE", help="for preprocess_parallel.py; and FILE.manifest.json beside it")
    add("--seed", type=int, default=0, help="decides what is replaced and by what (default %(default)s)")
    add("--rate", type=float, default=0.5, help="of replacing a word that has a translation (default %(default)s)")
    into = "replace by any other language of the lexicon, or by the pair's target language (default %(default)s)"
    add("--into", choices=("any", "target"), default="any", help=into)
    both = 'use each pair with its sides exchanged too, unless its loss is "target"'
    add("--both-directions", action="store_true", help=both)
    add("--max-reject-rate", type=float, default=0.01, help=rate)
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores, here %(default)s)")
    args = parser.parse_args()
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
    if args.command == "lexicon" and not any(getattr(args, form) for form in FORMS):
        problems.append("--muse, --panlex, --list: none is given; name at least one dictionary, as in en-fr=FILE")
    if problems:
        raise InputError("; ".join(problems))
    if args.command == "pairs":
        args.lexicon = str(existing_file(args.lexicon, "--lexicon"))
        args.input = [str(existing_file(path, "--input")) for path in args.input]


def already_done(output, arguments, sources):
    """True if `output` is complete and was made from the same arguments and sources; False if it is not there.

    Raises InputError if it is there but is something else: an existing file is never overwritten.
    """
    if not os.path.lexists(output):
        return False
    remedy = f"choose another name or remove {output}*"
    if not Path(f"{output}.manifest.json").exists():
        raise InputError(
            f"--output {output}: exists, but no {output}.manifest.json that says this command wrote it; choose another "
            "name, or remove the file if nobody needs it"
        )
    manifest = read_json(f"{output}.manifest.json", "--output")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("arguments"), dict):
        raise InputError(f"--output {output}: {output}.manifest.json is not a manifest of this command; {remedy}")
    require_same_origin(manifest, {"format": FORMAT, "sources": sources, **arguments}, f"--output {output}", remedy)
    size = os.path.getsize(output)
    if size != manifest.get("bytes"):
        raise InputError(f"--output {output}: {size} bytes, its manifest says {manifest.get('bytes')}; {remedy}")
    return True


def write_manifest(path, output, **values):
    """Write the manifest of what `output` holds so far."""
    values = {"format": FORMAT, **values, "bytes": os.path.getsize(output)}
    values["versions"] = {
        "python": platform.python_version(),
        "unicode": unicodedata.unidata_version,
        "jieba": version("jieba"),
    }
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


# ---- step 1: the lexicon


def dictionary(form, value):
    """The source that "en-fr=FILE" or "FILE" stands for: its fingerprint with form and languages."""
    flag = f"--{form}"
    match = re.fullmatch(r"([^=/]+)=(.+)", value)
    if match and not Path(value).is_file():
        name, path = match.groups()
    else:
        name, path = Path(value).stem.removesuffix("_lexicon"), value
    languages = languages_of(name, f"{flag} {value}")
    path = existing_file(path, flag)
    return fingerprint(path) | {"form": form, "languages": languages}


def languages_of(name, given):
    """The codes that a name such as en-fr, eng_fra or en-bam_Latn joins; one must be English, the other not."""
    found, why = set(), ""
    for separator in re.finditer("[-_]", name):
        try:
            found.add((resolve(name[: separator.start()]).code, resolve(name[separator.end() :]).code))
        except InputError as error:
            why = why or f"{error}; "
    if len(found) != 1:
        raise InputError(
            f"{given}: {why}expected two languages with - between them, or a file named after them; write "
            "en-CODE=FILE, for instance en-fr=FILE or en-bam_Latn=FILE"
        )
    (languages,) = found
    if languages.count("en") != 1:
        raise InputError(
            f"{given}: is {languages[0]}-{languages[1]}, expected English on exactly one side, because entries are "
            "merged by their English word; leave this dictionary out"
        )
    return list(languages)


def clean(text):
    """A dictionary's entry as it is stored and looked up."""
    return unicodedata.normalize("NFC", " ".join(text.lower().split()))


def parse_entry(line, form):
    """The two columns of a dictionary's line, or Unusable."""
    try:
        text = line.decode("utf-8").removeprefix("\ufeff")  # the byte order mark of Windows editors
    except UnicodeDecodeError as error:
        raise Unusable("invalid UTF-8", str(error)) from None
    # Some MUSE files separate by a space, some by a tab; those with a tab may have spaces inside an entry.
    columns = re.split(" +", text.strip(" ")) if form == "muse" and "\t" not in text else text.split("\t")
    if len(columns) != 2:
        raise Unusable("not two columns", f"found {len(columns)}: {text[:80]}")
    return tuple(usable_text(clean(column), f"column {i}") for i, column in enumerate(columns, 1))


def build_lexicon(args):
    # In an order of their own, so that the order in which they are named changes nothing.
    sources = [dictionary(form, value) for form in FORMS for value in getattr(args, form)]
    sources.sort(key=lambda source: (source["languages"], source["form"], source["blake2b"], source["path"]))
    if already_done(args.output, {}, sources):
        print(f"{args.output}: complete, nothing to do")
        return

    entries = {}  # {head: {language: {word: None}}}
    duplicates = 0
    rejects = Rejects(args.output)
    progress = Progress(sum(source["size"] for source in sources), "B", "reading dictionaries")
    for source in sources:
        usable = 0
        reverse = source["languages"][1] == "en"
        language = source["languages"][0 if reverse else 1]
        for block in read_blocks(source["path"]):
            pairs, _, rejected = parse_lines(block, functools.partial(parse_entry, form=source["form"]))
            rejects.add(len(pairs) + len(rejected), rejected)
            usable += len(pairs)
            for head, word in pairs:
                if reverse:
                    head, word = word, head
                words = entries.setdefault(head, {}).setdefault(language, {})
                duplicates += word in words
                words[word] = None
            progress.update(block.size)
        if not usable:  # in a small file this could hide below --max-reject-rate
            raise InputError(
                f"--{source['form']} {source['path']}: no line has two columns as this form separates them; check the "
                f"file, or name it as one of --{', --'.join(form for form in FORMS if form != source['form'])}"
            )
    progress.close()
    rejects.judge(args.max_reject_rate)

    words, pairs, identity = collections.defaultdict(set), collections.Counter(), collections.Counter()
    for head, translations in entries.items():
        for language, found in translations.items():
            words[language].update(found)
            pairs[language] += len(found)
            identity[language] += head in found
    with replacing(args.output, f"{args.output}.manifest.json") as (output, manifest):
        with open(output, "w", encoding="utf-8", newline="\n") as file:
            for head in sorted(entries):
                translations = {language: list(entries[head][language]) for language in sorted(entries[head])}
                file.write(json.dumps({"en": head, "translations": translations}, ensure_ascii=False) + "\n")
        write_manifest(
            manifest,
            output,
            kind="lexicon",
            heads=len(entries),
            languages={
                language: {"words": len(words[language]), "pairs": pairs[language], "identity": identity[language]}
                for language in sorted(words)
            },
            lines=rejects.records,
            duplicates=duplicates,
            rejects=dict(rejects.reasons),
            arguments={},
            sources=sources,
        )
    print(
        f"{args.output}: {len(entries):,} English head words, {pairs.total():,} translations into {len(words):,} "
        f"languages, {identity.total():,} of them identical to the head word; {duplicates:,} duplicates, "
        f"{rejects.reasons.total():,} rejects"
    )


class Lexicon:
    """Multilingual entries, and the words of each language that lead to them."""

    def __init__(self, entries):
        """Args: entries: {head: {language: words}}; what is looked up is expected to have gone through clean()."""
        self.entries = entries
        self.heads = collections.defaultdict(dict)  # {language: {word: [heads]}}, English left out
        for head, translations in entries.items():
            for language, words in translations.items():
                for word in words:
                    self.heads[language].setdefault(word, []).append(head)
        self.languages = {code: resolve(code) for code in sorted({"en", *self.heads})}
        self.chinese = {code for code, row in self.languages.items() if row.script in CHINESE_SCRIPTS}
        # {language: (words, {first character: lengths, longest first})} where words are found by longest match
        self.matched = {}
        for code, row in self.languages.items():
            if not row.spaces and code not in self.chinese:
                words = {word for word in self.heads[code] if inner(word) == (0, len(word))}
                lengths = collections.defaultdict(set)
                for word in words:
                    lengths[word[0]].add(len(word))
                self.matched[code] = words, {first: sorted(n, reverse=True) for first, n in lengths.items()}
        self.options = functools.lru_cache(maxsize=1 << 16)(self._options)  # frequent words are most of a text

    def _options(self, word, source, target=None):
        """The translations of a word of language `source` in `target`, or in every other language: ((language,
        words), …), the word itself left out."""
        found = collections.defaultdict(dict)
        for head in (word,) if source == "en" else self.heads.get(source, {}).get(word, ()):
            for language, words in [*self.entries.get(head, {}).items(), ("en", (head,))]:
                if language != source and target in (None, language):
                    found[language].update(dict.fromkeys(words))
        for words in found.values():
            words.pop(word, None)
        return tuple((language, tuple(words)) for language, words in sorted(found.items()) if words)


def load_lexicon(path):
    """The Lexicon of a file, or InputError if it is none."""
    entries = {}
    remedy = "expected what `augment.py lexicon` writes; make it of your dictionaries with that command"
    for block in read_blocks(path):
        for number, line in enumerate(block.lines, block.first_line):
            try:
                entry = json.loads(line.decode("utf-8"))
                head, translations = entry["en"], entry["translations"]
                strings = [head, *itertools.chain.from_iterable(translations.values())]
                usable = all(isinstance(words, list) for words in translations.values())
                usable = usable and all(isinstance(word, str) and word for word in strings)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                usable = False
            if not usable:
                found = line[:40].decode("utf-8", errors="replace")
                raise InputError(f"--lexicon {path} line {number}: found {found!r}, {remedy}")
            if head in entries:
                raise InputError(f"--lexicon {path} line {number}: a second entry for {head!r}, {remedy}")
            entries[head] = translations
    if not entries:
        raise InputError(f"--lexicon {path}: empty, {remedy}")
    try:
        return Lexicon(entries)
    except InputError as error:
        raise InputError(f"--lexicon {path}: {error}") from None


# ---- step 2: the pairs


def inner(token):
    """(start, end) of a token without the punctuation and symbols around it."""
    start, end = 0, len(token)
    if token.isalnum():
        return start, end
    while start < end and unicodedata.category(token[start])[0] in "PS":
        start += 1
    while start < end and unicodedata.category(token[end - 1])[0] in "PS":
        end -= 1
    return start, end


@functools.cache
def jieba_cutter():
    """jieba's function from a text to its words, without what it logs and leaves behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what newer Pythons deprecate
        import jieba
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    # jieba would trust a cache that anyone, or another version of it, left in the shared temporary folder.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return tokenizer.lcut


def match_longest(text, words, lengths):
    """Yield (piece, whether it is a word) by longest match from left to right."""
    ends = {unit.end() for unit in _UNIT.finditer(text)}
    done = 0
    for unit in _UNIT.finditer(text):
        start = unit.start()
        if start < done:  # inside the word before
            continue
        for length in lengths.get(text[start], ()):
            if start + length in ends and text[start : start + length] in words:
                done = start + length
                yield text[start:done], True
                break
        else:
            done = unit.end()
            yield unit.group(), False


def split_words(text, language, lexicon):
    """Yield (piece, whether it is a word) of text in lower case; the pieces joined are the text."""
    if language in lexicon.matched:
        yield from match_longest(text, *lexicon.matched[language])
        return
    for token in jieba_cutter()(text) if language in lexicon.chinese else re.split(r"(\s+)", text):
        start, end = inner(token)
        yield token[:start], False
        yield token[start:end], not token.isspace()
        yield token[end:], False


def join_pieces(pieces):
    """The text of (piece, whether to set it off by spaces) pairs."""
    text, last_set_off = [], False
    for piece, set_off in pieces:
        if not piece:
            continue
        if (
            text
            and (set_off or last_set_off)
            and all(unicodedata.category(c)[0] in "LMN" for c in (text[-1][-1], piece[0]))
        ):
            text.append(" ")
        text.append(piece)
        last_set_off = set_off
    return "".join(text)


def code_switch(pair, lexicon, seed, rate, into):
    """(the source of the pair with words replaced, number of words with a translation, number replaced)."""
    key = "\x00".join((str(seed), pair.src_lang, pair.tgt_lang, pair.src, pair.tgt)).encode("utf-8")
    # Only random() is used: it alone gives the same numbers in all versions of Python.
    draw = random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())).random
    target = pair.tgt_lang if into == "target" else None
    pieces, known, replaced = [], 0, 0
    for piece, is_word in split_words(pair.src.lower(), pair.src_lang, lexicon):
        options = lexicon.options(unicodedata.normalize("NFC", piece), pair.src_lang, target) if is_word else ()
        if not options:
            pieces.append((piece, False))
            continue
        known += 1
        chance, which_language, which_word = draw(), draw(), draw()  # always three, so that rates nest
        if chance >= rate:
            pieces.append((piece, False))
            continue
        replaced += 1
        language, words = options[int(which_language * len(options))]
        pieces.append((words[int(which_word * len(words))], lexicon.languages[language].spaces))
    return join_pieces(pieces), known, replaced


def augment_block(block, args, lexicon):
    """(lines to write, counts, written pairs per direction, rejects, bytes read) of one block of the input."""
    pairs, _, rejects = parse_lines(block, lambda line: pair_of(json_object(line), {}))
    counts, directions, lines = collections.Counter(records=len(pairs) + len(rejects)), collections.Counter(), []
    for record in pairs:
        uses = [record]
        if args.both_directions and record.loss != "target":  # its source is not a sentence to learn
            uses.append(
                record._replace(src=record.tgt, tgt=record.src, src_lang=record.tgt_lang, tgt_lang=record.src_lang)
            )
        for pair in uses:
            counts["pairs"] += 1
            needed = {pair.src_lang, pair.tgt_lang} if args.into == "target" else {pair.src_lang}
            if not needed <= lexicon.languages.keys():
                counts["missing"] += 1
                continue
            src, known, replaced = code_switch(pair, lexicon, args.seed, args.rate, args.into)
            counts["known"] += known
            counts["replaced"] += replaced
            if not replaced:
                counts["unchanged"] += 1
                continue
            directions[f"{pair.src_lang}-{pair.tgt_lang}"] += 1
            value = pair._replace(src=src, loss="target", origin="augment")._asdict()
            lines.append(json.dumps(value, ensure_ascii=False) + "\n")
    return "".join(lines).encode("utf-8"), counts, directions, rejects, block.size


def augment_pairs(args):
    inputs = [fingerprint(path) for path in args.input]
    sources = [fingerprint(args.lexicon), *inputs]
    arguments = {
        "seed": args.seed,
        "rate": args.rate,
        "into": args.into,
        "both_directions": args.both_directions,
    }
    if already_done(args.output, arguments, sources):
        print(f"{args.output}: complete, nothing to do")
        return

    lexicon = load_lexicon(args.lexicon)
    if lexicon.chinese:
        jieba_cutter()  # loaded once, before the processes are forked
    counts, directions = collections.Counter(), collections.Counter()
    rejects = Rejects(args.output)
    progress = Progress(sum(source["size"] for source in inputs), "B", "augmenting")
    augment = functools.partial(augment_block, args=args, lexicon=lexicon)
    blocks = (block for path in args.input for block in read_blocks(path))
    with replacing(args.output, f"{args.output}.manifest.json") as (output, manifest):
        with open(output, "wb") as file:
            for lines, counted, found, rejected, size in map_blocks(augment, blocks, args.workers):
                file.write(lines)
                counts += counted
                directions += found
                rejects.add(counted["records"], rejected)
                progress.update(size)
        progress.close()
        rejects.judge(args.max_reject_rate)
        realised = counts["replaced"] / counts["known"] if counts["known"] else 0.0
        write_manifest(
            manifest,
            output,
            kind="pairs",
            records=rejects.records,
            pairs=directions.total(),
            directions=dict(sorted(directions.items())),
            nothing_replaced=counts["unchanged"] + counts["missing"],
            language_not_in_lexicon=counts["missing"],
            words_with_translation=counts["known"],
            words_replaced=counts["replaced"],
            rejects=dict(rejects.reasons),
            arguments=arguments,
            sources=sources,
        )
    print(
        f"{args.output}: {directions.total():,} pairs written of {counts['pairs']:,}, nothing replaced in "
        f"{counts['unchanged'] + counts['missing']:,} ({counts['missing']:,} for a language not in the lexicon); "
        f"{counts['replaced']:,} of {counts['known']:,} words with a translation replaced ({realised:.1%}, --rate "
        f"{args.rate:.1%}); {rejects.reasons.total():,} rejects"
    )


def main():
    args = get_args()
    {"lexicon": build_lexicon, "pairs": augment_pairs}[args.command](args)


if __name__ == "__main__":
    run(main)
