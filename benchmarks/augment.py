"""Code-switching against a straightforward reading of the paper's step 2, in lines a second (LLaMAX, section 2.1).

    python benchmarks/augment.py --shared ../shared/data --folder work/augment

builds a lexicon of MUSE and GATITOS, collects the sentence pairs of NTREX-128 and TICO-19 whose source is in one of
its languages with spaces (and, apart, those with a Chinese source), and times `augment.py pairs` with two workers
against `reference` below, one process, on the same file. Ours is the whole command, start and loading included; of
the reference only the work is counted, loading not. Both outputs must be the same bytes.
"""

import argparse
import hashlib
import json
import random
import re
import statistics
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llamax.files import InputError  # noqa: E402
from llamax.languages import load, resolve  # noqa: E402

# ---- the reference


def read_lexicon(path):
    """({head: {language: words}}, {language: {word: heads}}) of a lexicon file."""
    with open(path, encoding="utf-8") as file:
        return index({entry["en"]: entry["translations"] for entry in map(json.loads, file)})


def index(entries):
    """The same of {head: {language: words}}, English left out."""
    entries = {head: {"en": [head], **translations} for head, translations in entries.items()}
    heads = {}
    for head, translations in entries.items():
        for language, words in translations.items():
            for word in words:
                heads.setdefault(language, {}).setdefault(word, []).append(head)
    return entries, heads


def translations_of(word, language, lexicon):
    """[(another language, the word's translations there)], both sorted, the word itself left out."""
    if isinstance(lexicon, Remembering):
        return lexicon.translations_of(word, language)
    entries, heads = lexicon
    found = {}
    for head in heads.get(language, {}).get(word, ()):
        for other, words in entries[head].items():
            if other != language:
                found.setdefault(other, set()).update(words)
    options = [(other, sorted(words - {word})) for other, words in sorted(found.items())]
    return [(other, words) for other, words in options if words]


def divide(text, language):
    """The words of a text and what is between them: by spaces, Chinese by jieba."""
    if language in ("zh", "zhtrad"):
        import jieba

        return jieba.lcut(text)
    return re.split(r"(\s+)", text)


def strip_punctuation(token):
    start, end = 0, len(token)
    while start < end and unicodedata.category(token[start])[0] in "PS":
        start += 1
    while start < end and unicodedata.category(token[end - 1])[0] in "PS":
        end -= 1
    return token[:start], token[start:end], token[end:]


def switch_source(record, lexicon, seed, rate):
    """The source of a pair with words replaced, and how many have a translation, how many were replaced."""
    language = record["src_lang"]
    key = "\x00".join((str(seed), language, record["tgt_lang"], record["src"], record["tgt"]))
    generator = random.Random(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()))
    spaced = language not in ("zh", "zhtrad")
    pieces, known, replaced = [], 0, 0
    for token in divide(record["src"].lower(), language):
        before, word, after = strip_punctuation(token)
        options = translations_of(unicodedata.normalize("NFC", word), language, lexicon) if word.strip() else []
        if options:
            known += 1
            chance, which_language, which_word = generator.random(), generator.random(), generator.random()
            if chance < rate:
                other, words = options[int(which_language * len(options))]
                word = words[int(which_word * len(words))]
                replaced += 1
                pieces += [(before, False), (word, not spaced and not unspaced(other)), (after, False)]
                continue
        pieces.append((token, False))
    text = ""
    set_off = False
    for piece, apart in pieces:
        if not piece:
            continue
        if text and (apart or set_off) and all(unicodedata.category(c)[0] in "LMN" for c in (text[-1], piece[0])):
            text += " "
        text += piece
        set_off = apart
    return text, known, replaced


def unspaced(language):
    return not resolve(language).spaces


def divisible(language):
    """Whether this reading knows how to divide a language into words."""
    return language in ("zh", "zhtrad") or not unspaced(language)


class Remembering:
    """A lexicon whose translations are looked up once a word: for a reading that is less plain, but faster."""

    def __init__(self, lexicon):
        self.lexicon, self.found = lexicon, {}

    def translations_of(self, word, language):
        if (word, language) not in self.found:
            self.found[word, language] = translations_of(word, language, self.lexicon)
        return self.found[word, language]


def reference(lexicon, lines, seed=0, rate=0.5):
    """Yield the lines that `augment.py pairs` writes for lines of pairs."""
    for line in lines:
        record = json.loads(line)
        text, _, replaced = switch_source(record, lexicon, seed, rate)
        if replaced:
            names = ("src", "tgt", "src_lang", "tgt_lang")
            record = {name: record[name] for name in names} | {"src": text, "loss": "target", "origin": "augment"}
            yield json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


# ---- the corpus


def real_pairs(shared):
    """Yield pair records X → English of NTREX-128 and TICO-19, for the languages that have a file in either."""
    ntrex = shared / "ntrex" / "NTREX-128"
    english = lines_of(ntrex / "newstest2019-src.eng.txt")
    for row in load().values():
        path = ntrex / f"newstest2019-ref.{row.ntrex}.txt"
        if row.ntrex and row.code != "en" and path.is_file():
            yield from ((row.code, src, tgt) for src, tgt in zip(lines_of(path), english, strict=True))
    for path in sorted((shared / "tico19").glob("en-*.tsv")):
        try:
            code = resolve(path.stem.split("-")[1]).code
        except InputError:  # ti_ER and the like
            continue
        for line in lines_of(path):
            tgt, _, src = line.partition("\t")
            if src.strip() and tgt.strip():
                yield code, src, tgt


def lines_of(path):
    return [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")]


def write_pairs(path, pairs, repeat=1):
    """Write records of (source language, source, English target); returns how many. A repetition has another target,
    and so other random numbers."""
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for number in range(repeat):
            for lang, src, tgt in pairs:
                tgt = tgt + " " * number
                record = {"src": src, "tgt": tgt, "src_lang": lang, "tgt_lang": "en"}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    return count


def build_lexicon(shared, output):
    """`augment.py lexicon` of all of MUSE and GATITOS."""
    names = {"sw2": "sv", "jp2": "ja"}
    muse = [f"en-{names.get(p.stem, p.stem[:-1])}={p}" for p in sorted((shared / "muse").glob("*2.txt"))]
    lists = sorted((shared / "gatitos").glob("en_*.tsv"))
    command = [sys.executable, ROOT / "augment.py", "lexicon", "--muse", *muse, "--list", *lists]
    subprocess.run([*command, "--output", output], check=True, stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared" / "data", help="public dictionaries and text"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "work" / "augment", help="for the files made")
    parser.add_argument("--repeat", type=int, default=1, help="times the text is repeated (default %(default)s)")
    parser.add_argument("--only", choices=("with spaces", "Chinese"), help="(default: both)")
    parser.add_argument("--remember", action="store_true", help="let the reference remember translations")
    parser.add_argument("--runs", type=int, default=3, help="median of so many (default %(default)s)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lexicon_file = args.folder / "lexicon.jsonl"
    build_lexicon(args.shared, lexicon_file)
    lexicon = read_lexicon(lexicon_file)
    print(f"lexicon: {len(lexicon[0]):,} entries, {len(lexicon[1])} languages")

    pairs = [pair for pair in real_pairs(args.shared) if pair[0] in lexicon[1]]
    parts = {
        "with spaces": [pair for pair in pairs if resolve(pair[0]).spaces],
        "Chinese": [pair for pair in pairs if pair[0] in ("zh", "zhtrad")],
    }
    for name, part in parts.items():
        if args.only not in (None, name):
            continue
        source = args.folder / f"{name.split()[-1]}.jsonl"
        # There is little Chinese: so much that starting is not most of the time.
        count = write_pairs(source, part, args.repeat * (10 if name == "Chinese" else 1))
        ours, theirs = [], []
        for _ in range(args.runs):
            output = source.with_suffix(".out")
            for path in args.folder.glob(f"{output.name}*"):
                path.unlink()
            start = time.perf_counter()
            command = [sys.executable, ROOT / "augment.py", "pairs", "--lexicon", lexicon_file, "--input", source]
            subprocess.run([*command, "--output", output, "--workers", "2"], check=True, stdout=subprocess.DEVNULL)
            ours.append(time.perf_counter() - start)
            expected = source.with_suffix(".reference")
            with open(source, encoding="utf-8", newline="\n") as lines, open(expected, "w", encoding="utf-8") as file:
                if name == "Chinese":
                    divide("", "zh")  # its dictionary is loaded
                start = time.perf_counter()
                file.writelines(reference(Remembering(lexicon) if args.remember else lexicon, lines))
                theirs.append(time.perf_counter() - start)
            assert output.read_bytes() == expected.read_bytes(), f"{output} and {expected} differ"
        ours, theirs = statistics.median(ours), statistics.median(theirs)
        print(f"{name}: {count:,} pairs in {len({lang for lang, _, _ in part})} languages; ours {ours:.2f} s "
              f"({count / ours:,.0f} pairs/s), reference {theirs:.2f} s ({count / theirs:,.0f} pairs/s): "
              f"{theirs / ours:.2f} times")  # fmt: skip


if __name__ == "__main__":
    main()
