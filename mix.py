"""How often each dataset is drawn from: manifests of the preprocessing to the --data-path of pretrain_llamax.py.

    python mix.py --input data/mono data/pairs data/switched --by natural
    python mix.py --input data/mono/*.json --by temperature --exponent 0.3 --max-epochs 4 --train-tokens 100e9
    python mix.py --input data/fr data/pairs code=data/python --by shares --share mono=30 parallel=50 code=20
    python mix.py --counts llamax_counts.csv --column mono --by temperature    # a plan, before there are datasets

prints what every source, and every language in it, will get, then the --data-path line to paste: W1 P1 W2 P2 …, a
weight being the dataset's share of rows, which with `--packing across` is its share of tokens.

    natural      by tokens, all seen equally often: the union of all parts (LLaMAX, Algorithm 1)
    temperature  by tokens**exponent, 0 staying 0: the smaller the exponent, the more often small sources are repeated
    shares       a fixed share a kind of source (EMMA-500's tables), inside a kind by tokens**exponent

--max-epochs caps how often a source is seen; what that leaves over goes to the sources below their caps in proportion
to their weights. With `shares` these are those of the same kind, and other kinds only when all of it is at the cap.
Tokens are the dataset's: with BOS, EOS, copies of small language pairs, and what --split will hold out. Megatron draws
evenly from a dataset; a language that shall have a rate of its own needs a dataset of its own.
"""

import argparse
import collections
import csv
import math
import os
import re
import shlex
from fractions import Fraction

from llamax.files import InputError, Parser, existing_file, read_json, run, write_json
from llamax.languages import resolve

EXPONENTS = {"natural": Fraction(1), "temperature": Fraction("0.3"), "shares": Fraction(1)}
COLUMNS = {"mono": ("mono", "sentences"), "para": ("parallel", "pairs")}  # of --counts: (kind, unit)
LISTED = 10  # of more language pairs in a source the table only says how many, unless --languages asks for them

# A dataset by its prefix, or a language of --counts; counts: tokens (sentences, pairs) {language or pair: n}
Source = collections.namedtuple("Source", "name kind counts count")


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--input", nargs="+", default=[], metavar="[KIND=]PREFIX", help="datasets, or their manifests "
        "PREFIX.json; KIND is what --share calls it (default: mono or parallel, as the manifest says)")  # fmt: skip
    add("--counts", metavar="FILE", help="instead: a CSV with the columns lang, mono (sentences) and para (pairs)")
    add("--column", choices=COLUMNS, help="the column of --counts to use (no default)")
    add("--by", choices=EXPONENTS, required=True, help="what the share of a source goes by (no default)")
    add("--exponent", type=number, metavar="X", help="0 (all alike) to 1 (by size); default: temperature 0.3, shares 1")
    shares = "of all tokens, for each kind of source, in percent or as fractions of 1 (with --by shares; no default)"
    add("--share", nargs="+", action="extend", type=kind_share, default=[], metavar="KIND=X", help=shares)
    add("--max-epochs", type=number, metavar="E", help="times a source is seen at most (default: no limit)")
    add("--train-tokens", type=number, metavar="N", help="tokens to draw, such as 100e9 (default: all there are)")
    add("--languages", action="store_true", help=f"list all language pairs (default: if a source has at most {LISTED})")
    add("--json", metavar="FILE", help="write the same for programs, shares as fractions of 1 (default: only print)")
    args = parser.parse_args()
    check_args(args)
    return args


def number(text):
    """A decimal number, exactly: 0.3 is 3/10, so that nothing below suffers from rounding."""
    if not re.fullmatch(r"(\d+\.?\d*|\.\d+)(e\+?\d{1,2})?", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a decimal number such as 0.3 or 100e9")
    return Fraction(text)


def kind_share(text):
    kind, _, share = text.rpartition("=")
    if not kind:
        raise argparse.ArgumentTypeError(f"{text!r}: expected KIND=X such as code=15.0")
    return kind, number(share)


def check_args(args):
    """Raise one InputError with everything wrong; make --input [(KIND or None, prefix)] and --share {kind: share}."""
    args.input = [re.fullmatch(r"(?s)(?:([\w-]+)=)?(.*?)(?:\.json)?", text).groups() for text in args.input]
    exponent = EXPONENTS[args.by] if args.exponent is None else args.exponent
    shares, given = dict(args.share), sum(share for _, share in args.share)
    # Published shares are rounded: those of EMMA-500's mono mix sum to 99.9.
    whole = any(abs(given / whole - 1) <= Fraction("0.005") for whole in (1, 100))
    manifests = [os.path.realpath(f"{prefix}.json") for _, prefix in args.input]
    read = [*manifests, os.path.realpath(args.counts or "")]
    checks = (
        (bool(args.input) == bool(args.counts), "--input and --counts: give one of the two"),
        (bool(args.counts) != bool(args.column), "--counts and --column: give both or neither"),
        (args.by == "natural" and args.exponent is not None, "--exponent: natural has none; use --by temperature"),
        (exponent > 1, f"--exponent {float(exponent):g}: expected from 0 to 1"),
        ((args.by == "shares") != bool(shares), "--share and --by shares: give both or neither"),
        (len(shares) < len(args.share), "--share: a kind is given twice"),
        (shares and not whole, f"--share: the sum is {float(given):g}, expected 1 or 100 within 0.5 %"),
        (args.max_epochs == 0, "--max-epochs: expected above 0"),
        (args.train_tokens is not None and args.train_tokens < 1, "--train-tokens: expected at least 1"),
        (len(set(manifests)) < len(manifests), "--input: a dataset is given twice"),
        (args.json and os.path.realpath(args.json) in read, f"--json {args.json}: is read here; choose another name"),
    )
    if problems := [message for wrong, message in checks if wrong]:
        raise InputError("; ".join(problems))
    args.exponent, args.share = exponent, shares


def read_manifests(prefixes):
    """The manifests of datasets made with one tokenizer, or InputError."""
    manifests, tokenizers = [], []
    for prefix in prefixes:
        manifest = read_json(f"{prefix}.json", "--input")
        try:
            tokenizers.append(manifest["arguments"]["tokenizer"]["blake2b"])
            counts = [row[key] for row in manifest["counts"].values() for key in ("records", "tokens", "words")]
            if manifest["kind"] not in ("mono", "parallel", "mixed") or not all(isinstance(n, int) for n in counts):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            wanted = "a preprocess script's, with the counts of each language; an older version's: preprocess again"
            raise InputError(f"--input {prefix}.json: no manifest that can be used, expected {wanted}") from None
        if tokenizers[-1] != tokenizers[0]:
            raise InputError(
                f"--input {prefix}: made with another tokenizer (BLAKE2b {tokenizers[-1]}) than {prefixes[0]} "
                f"({tokenizers[0]}); preprocess both with the model's own"
            )
        manifests.append(manifest)
    return manifests


def read_sources(inputs):
    """The Source of each (KIND or None, prefix)."""
    sources = []
    for (kind, prefix), manifest in zip(inputs, read_manifests([prefix for _, prefix in inputs]), strict=True):
        counts = {group: found["tokens"] for group, found in manifest["counts"].items()}
        sources.append(Source(prefix, kind or manifest["kind"], counts, sum(counts.values())))
    return sources


def read_counts(path, column):
    """The Source of each language of a CSV."""
    sources = {}
    with open(existing_file(path, "--counts"), encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                code, count = resolve(row.get("lang")).code, int(row.get(column) or "")
                if code in sources or count < 0:
                    raise ValueError(f"{code} is there twice or below 0")
                sources[code] = Source(code, COLUMNS[column][0], {code: count}, count)
        except (InputError, ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
            raise InputError(f"--counts {path} line {reader.line_num}: {error}; correct lang or {column}") from None
    return list(sources.values())


def fill(total, sizes, weights, max_epochs):
    """Parts of `total` in proportion to weights, none above its cap, size * max_epochs (None: no caps): [Fraction].

    If the total grew from 0, parts would reach their caps in the order of size / weight. Taken in that order, each
    gets what its weight gives it of what is left, or its cap; once one stays below its cap, so do all after it.
    """
    parts, rest = [Fraction(0)] * len(weights), sum(weights)
    for i in sorted((i for i, weight in enumerate(weights) if weight), key=lambda i: sizes[i] / weights[i]):
        part = total * weights[i] / rest
        parts[i] = part if max_epochs is None else min(part, sizes[i] * max_epochs)
        total, rest = total - parts[i], rest - weights[i]
    return parts


def mix(sources, exponent, shares=None, max_epochs=None, total=None):
    """What is drawn of each source, {name: Fraction}, `total` in all (None: as much as there is). `shares` is {kind:
    share}, whatever their sum, or nothing. All numbers are int or Fraction."""
    if shares and shares.keys() != {source.kind for source in sources}:
        named, found = (", ".join(sorted(names)) for names in (shares, {source.kind for source in sources}))
        raise InputError(f"--share: names {named}; expected the kinds of the sources: {found} (0 for none of a kind)")
    shares = shares or {None: Fraction(1)}
    pools = [[source for source in sources if kind in (None, source.kind)] for kind in shares]
    sizes = [sum(source.count for source in pool) for pool in pools]
    if empty := [kind for kind, size in zip(shares, sizes, strict=True) if shares[kind] and not size]:
        raise InputError(f"{empty[0] or 'all sources'}: nothing to draw from, every count is 0; leave it out")
    usable = sum(size for size, share in zip(sizes, shares.values(), strict=True) if share)
    total = Fraction(usable if total is None else total)
    if max_epochs and usable * max_epochs < total:
        raise InputError(
            f"--max-epochs {float(max_epochs):g}: gives at most {math.floor(usable * max_epochs):,}, wanted are "
            f"{int(total):,}; raise it to {math.ceil(100 * total / usable) / 100} or lower --train-tokens"
        )
    drawn = {}
    for part, pool in zip(fill(total, sizes, list(shares.values()), max_epochs), pools, strict=True):
        counts = [source.count for source in pool]
        weights = [Fraction(n**exponent) if n else 0 for n in counts]  # 0**0 is 1
        drawn.update(zip((source.name for source in pool), fill(part, counts, weights, max_epochs), strict=True))
    return drawn


def report(sources, drawn, unit):
    """What is printed, as a value for JSON: kinds, sources, and the languages in them, the largest first."""
    total, counts, kinds, rows = sum(drawn.values()), collections.Counter(), collections.Counter(), []

    def amounts(count, amount):
        epochs = float(amount / count) if count else None
        return {"count": count, "share": float(amount / total), "drawn": float(amount), "epochs": epochs}

    for source in sources:
        counts[source.kind] += source.count
        kinds[source.kind] += drawn[source.name]
    for source in sorted(sources, key=lambda s: (-kinds[s.kind], s.kind, -drawn[s.name], -s.count, s.name)):
        row = {"kind": source.kind, "source": source.name, **amounts(source.count, drawn[source.name])}
        epochs = drawn[source.name] / (source.count or 1)
        languages = sorted(source.counts.items(), key=lambda item: (-item[1], item[0]))
        rows.append({**row, "languages": {name: amounts(n, n * epochs) for name, n in languages}})
    path = [word for row in rows if row["drawn"] for word in (f"{row['share']:.10g}", row["source"])]
    totals = {kind: amounts(counts[kind], amount) for kind, amount in kinds.most_common()}
    totals["all kinds"] = amounts(counts.total(), total)
    return {"unit": unit, "sources": rows, "totals": totals, "data_path": path if unit == "tokens" else []}


def table(mixed, all_pairs):
    """A report() as text: a row a source and, if it has several, its languages; then the totals."""

    def line(kind, source, language, row):
        epochs = "-" if row["epochs"] is None else f"{row['epochs']:,.3f}"
        return [kind, source, language, f"{row['count']:,}", f"{row['share']:.4%}", f"{row['drawn']:,.0f}", epochs]

    lines = []
    for row in mixed["sources"]:
        names = list(row["languages"])
        what = "pairs" if any("-" in name for name in names) else "languages"
        lines.append(line(row["kind"], row["source"], names[0] if len(names) == 1 else f"{len(names):,} {what}", row))
        if len(names) > 1 and (what == "languages" or len(names) <= LISTED or all_pairs):
            lines += [line("", "", f"  {name}", row["languages"][name]) for name in names]
    lines += [line("total", kind, "", row) for kind, row in mixed["totals"].items()]
    return aligned(["kind", "source", "language", mixed["unit"], "share", "drawn", "epochs"], lines, texts=3)


def aligned(header, rows, texts):
    """A table as text, the first `texts` columns flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    places = "  ".join(f"{{:{'<' if i < texts else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(places.format(*row).rstrip() for row in (header, *rows))


def main():
    args = get_args()
    sources = read_counts(args.counts, args.column) if args.counts else read_sources(args.input)
    drawn = mix(sources, args.exponent, args.share, args.max_epochs, args.train_tokens)
    mixed = report(sources, drawn, COLUMNS[args.column][1] if args.counts else "tokens")
    if args.json:
        write_json(args.json, mixed)
    print(table(mixed, args.languages))
    if mixed["data_path"]:
        print(f"--data-path {shlex.join(mixed['data_path'])}")


if __name__ == "__main__":
    run(main)
