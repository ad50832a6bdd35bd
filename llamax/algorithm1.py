"""Which languages, or language pairs, lack parallel data, and how much is to be made: Algorithm 1 of the paper.

    python augment.py plan --counts llamax_counts.csv --output plan.json
    python augment.py plan --input data/pairs data/more --by pair --high-resource en fr de zh --output plan.json

Algorithm 1 fills up what has fewer than 25,000 sentence pairs: so many English sentences as are missing are translated
by a translation model (`augment.py fill`). The paper leaves open what it is that has them. Both readings are here:

    language   |D_para^s|, as its symbol says: the pairs of a language with all others together. What a language lacks
               is made as pairs with English; English itself is never filled.
    pair       as section 2.1 and the place of the test inside the inner loop say: the pairs of two languages, for
               every two languages there are. Of a pair without English both sides are translations of one English
               sentence.

"No augmentation for translations involving high-resource languages" (section 2.2) is --high-resource; the paper does
not list them. English is none of them unless it is named: all that is made here is made from English.

Section 2.1 also repeats language pairs with fewer than 25,000 sentence pairs three times. preprocess_parallel.py does
that; the plan only tells where. It decides by what it is given, so make the filled pairs a dataset of their own, with
--repeat 1: a pair that the filling leaves below 25,000 would have its translations repeated, too.

PLAN is JSON: a row a language or pair with `pairs` (what there is), `repeat` (copies of its pairs; null where only
some of a language's pairs are repeated, or nobody knows), `sentences` (to translate), `into` (the languages) and
`fills` (the language pair that grows, named as in manifests).
"""

import collections
import csv
import itertools
import os
from pathlib import Path

from llamax.files import InputError, existing_file, fingerprint, read_json, require_same_origin, write_json
from llamax.languages import resolve
from llamax.shard_files import language_pair

FORMAT = 1  # raised when the same arguments would give another plan
SHOWN = 40  # rows of the printed table


def add_plan_arguments(parser):
    add = parser.add_argument
    counts = "CSV with the columns lang, para (sentence pairs by language), or src, tgt, pairs (by language pair)"
    add("--counts", metavar="FILE", help=counts)
    inputs = "instead: datasets of pairs, or their manifests; leave code-switched pairs out"
    add("--input", nargs="+", default=[], metavar="PREFIX", help=inputs)
    add("--by", choices=("language", "pair"), default="language", help="what is filled up (default %(default)s)")
    add("--minimum", type=int, default=25_000, metavar="N", help="sentence pairs to fill up to (default %(default)s)")
    add("--repeat", type=int, default=3, metavar="N", help="copies of pairs below it, 1 to 8 (default %(default)s)")
    add("--languages", nargs="+", default=[], metavar="CODE", help="languages to plan for, beside those counted")
    add("--high-resource", nargs="+", default=[], metavar="CODE", help="languages to leave alone, and their pairs")
    add("--output", required=True, metavar="PLAN", help="JSON for `augment.py fill`")


def check_args(args):
    """Raise one InputError with everything wrong; make languages codes and --input paths of manifests."""
    problems = []
    if bool(args.counts) == bool(args.input):
        problems.append("--counts and --input: give one of the two")
    if args.minimum < 1:
        problems.append(f"--minimum {args.minimum}: expected at least 1")
    if not 1 <= args.repeat <= 8:
        problems.append(f"--repeat {args.repeat}: expected 1 to 8")
    for name in ("languages", "high_resource"):
        try:
            setattr(args, name, sorted({resolve(code).code for code in getattr(args, name)}))
        except InputError as error:
            problems.append(f"--{name.replace('_', '-')}: {error}")
    args.input = [f"{prefix.removesuffix('.json')}.json" for prefix in args.input]
    if len({os.path.realpath(path) for path in args.input}) < len(args.input):
        problems.append("--input: a dataset is given twice; name every dataset once")
    try:
        for path in args.input:
            existing_file(path, "--input")
        if args.counts:
            existing_file(args.counts, "--counts")
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError("; ".join(problems))


def read_counts(path):
    """({language: sentence pairs}, {language pair: sentence pairs} or None) of a CSV; the first from the second where
    the CSV has that."""
    totals, pairs = {}, collections.Counter()
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = reader.fieldnames or ()
            names = ("src", "tgt", "pairs") if "pairs" in columns else ("lang", "para")
            if not {*names} <= {*columns}:
                raise ValueError(f"columns {', '.join(columns) or 'none'}; expected lang, para or src, tgt, pairs")
            for row in reader:
                *codes, n = (row[name] for name in names)
                codes, n = [resolve(code).code for code in codes], int(n or "")
                if n < 0 or codes[0] in totals:
                    raise ValueError(f"{codes[0]} is there twice, or its count is below 0")
                if len(codes) == 2:
                    pairs[language_pair("-".join(codes))] += n
                else:
                    totals[codes[0]] = n
        except (InputError, ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
            raise InputError(f"--counts {path} line {reader.line_num or 1}: {error}; correct the file") from None
    return (totals, None) if "pairs" not in columns else (sum_by_language(pairs), pairs)


def read_manifests(paths):
    """The same of the manifests of datasets of pairs: their counts are of records, before they are repeated."""
    pairs = collections.Counter()
    for path in paths:
        manifest = read_json(path, "--input")
        try:
            found = {group: row["records"] for group, row in manifest["counts"].items() if "-" in group}
            if not found or not all(type(n) is int for n in found.values()):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise InputError(
                f"--input {path}: says of no language pair how many records there are, expected the manifest of a "
                "complete dataset of pairs, as preprocess_parallel.py or merge_datasets.py writes it; name that one"
            ) from None
        for group, n in found.items():
            pairs[language_pair(group)] += n
    return sum_by_language(pairs), pairs


def sum_by_language(pairs):
    """{language: sentence pairs}: the sum over the pairs a language is in."""
    totals = collections.Counter()
    for pair, n in pairs.items():
        for code in {*pair.split("-")}:
            totals[code] += n
    return dict(totals)


def rows_by_language(totals, pairs, minimum, repeat, high_resource=()):
    """The rows of the plan, one a language, sorted by code.

    Args:
        totals: {language: sentence pairs}.
        pairs: {language pair: sentence pairs} that they are sums of, or None.
        minimum: sentence pairs below which a language is filled up, and a language pair repeated.
        repeat: copies of the pairs that are repeated.
        high_resource: languages that are not filled.
    """
    small, large = collections.Counter(), collections.Counter()  # language pairs of each language
    for pair, n in (pairs or {}).items():
        if n:
            (small if n < minimum else large).update({*pair.split("-")})
    rows = []
    for code, n in sorted(totals.items()):
        lacks = max(0, minimum - n) if code != "en" and code not in high_resource else 0
        if pairs is None:
            copies = {"repeat": repeat if n < minimum else None}
        else:
            all_alike = None if small[code] else 1
            copies = {"repeat": all_alike if large[code] else repeat, "repeated_pairs": small[code]}
        rows.append({"language": code, "pairs": n, **copies, **_order([code], lacks)})
    return rows


def rows_by_pair(languages, pairs, minimum, repeat, high_resource=()):
    """The rows of the plan, one for every two languages, sorted."""
    rows = []
    for codes in itertools.combinations(sorted(languages), 2):
        n = pairs.get("-".join(codes), 0)
        lacks = 0 if {*codes} & {*high_resource} else max(0, minimum - n)
        copies = repeat if n < minimum else 1
        rows.append({"pair": "-".join(codes), "pairs": n, "repeat": copies, **_order(codes, lacks)})
    return rows


def _order(codes, sentences):
    """What is to be translated for a language or a pair."""
    fills = language_pair("-".join(codes if len(codes) == 2 else ["en", *codes]))
    return {"sentences": sentences, "into": [c for c in codes if c != "en"] if sentences else [], "fills": fills}


def plan(args):
    check_args(args)
    arguments = {key: getattr(args, key) for key in ("by", "minimum", "repeat", "languages", "high_resource")}
    sources = [fingerprint(path) for path in (args.input or [args.counts])]
    if os.path.lexists(args.output):
        remedy = f"choose another name or remove {args.output}"
        found = _read(args.output, "--output", f"exists, but is no plan; {remedy}")
        require_same_origin(
            found, {"format": FORMAT, "sources": sources, **arguments}, f"--output {args.output}", remedy
        )
        print(f"{args.output}: complete, nothing to do")
        return
    totals, pairs = read_manifests(args.input) if args.input else read_counts(args.counts)
    if args.by == "pair" and pairs is None:
        raise InputError(
            f"--by pair: {args.counts} counts by language; expected counts by language pair: give a table with the "
            "columns src, tgt, pairs, or --input PREFIX…"
        )
    totals = dict.fromkeys(args.languages, 0) | totals
    settings = args.minimum, args.repeat, args.high_resource
    if args.by == "pair":
        rows = rows_by_pair(totals, pairs, *settings)
    else:
        rows = rows_by_language(totals, pairs, *settings)
    summary = {
        args.by + "s": len(rows),
        "below_minimum": sum(row["pairs"] < args.minimum for row in rows),
        "filled": sum(row["sentences"] > 0 for row in rows),
        "sentences": sum(row["sentences"] for row in rows),
        "translations": sum(row["sentences"] * len(row["into"]) for row in rows),
        "largest": max((row["sentences"] for row in rows), default=0),
    }
    value = {"format": FORMAT, "kind": "plan", "arguments": arguments, "sources": sources, "summary": summary}
    write_json(args.output, value | {"rows": rows})
    print(_table(rows, args.by))
    print(
        f"{args.output}: {len(rows):,} {args.by}s, {summary['below_minimum']:,} with fewer than {args.minimum:,} "
        f"sentence pairs, {summary['filled']:,} to fill: {summary['sentences']:,} sentences, "
        f"{summary['translations']:,} translations; they may share English sentences, at least "
        f"{summary['largest']:,} different ones are needed"
    )


def _table(rows, name):
    """The rows that get something, the emptiest first, as text."""
    filled = sorted((row for row in rows if row["sentences"]), key=lambda row: (-row["sentences"], row["fills"]))
    lines = [(name, "pairs", "repeat", "sentences", "into")]
    for row in filled[:SHOWN]:
        repeat = "" if row["repeat"] is None else str(row["repeat"])
        lines.append((row[name], f"{row['pairs']:,}", repeat, f"{row['sentences']:,}", " ".join(row["into"])))
    lines = ["{:<17}  {:>12}  {:>6}  {:>9}  {}".format(*line) for line in lines]
    return "\n".join(lines + [f"and {len(filled) - SHOWN:,} more"] * (len(filled) > SHOWN))


def read_plan(path):
    """The rows of a plan that get something, or InputError if the file is no plan."""
    remedy = "make it with `augment.py plan`"
    found = _read(path, "--plan", f"is no plan; {remedy}")
    if found["format"] != FORMAT:
        raise InputError(f"--plan {path}: format {found['format']!r}, expected {FORMAT}; {remedy}")
    return [row for row in found["rows"] if row["sentences"]]


def _read(path, flag, otherwise):
    """The value of a plan's file, or an InputError that says `otherwise`."""
    value = read_json(Path(path), flag)
    try:
        usable = value["kind"] == "plan" and "format" in value and isinstance(value["arguments"], dict)
        for row in value["rows"]:
            into = [code for code in row["fills"].split("-") if code != "en"]
            usable &= type(row["sentences"]) is int and row["into"] == (into if row["sentences"] else [])
    except (KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise InputError(f"{flag} {path}: {otherwise}")
    return value
