"""What datasets hold, language by language, as a table and a picture (LLaMAX, Table 9).

    python corpus_table.py --input data/mono data/pairs --output report/corpus

prints a row a language, the largest first, and writes it to report/corpus.tsv with a picture, report/corpus.png:

    mono, mono tokens   monolingual records (sentences or documents), and their tokens with BOS and EOS
    fertility           tokens per word of monolingual text (per character where the script has no spaces), without BOS
                        and EOS, which are two tokens a record
    pairs, directions   sentence pairs the language is in, copies left out, and how many languages they are with: its
                        directions as Table 9 counts them, each pair being read both ways
    rejects             records rejected or dropped; a pair is a reject of both its languages
"""

import collections
import math
import os
from dataclasses import dataclass, field

from llamax.files import InputError, Parser, replacing, run
from llamax.languages import load, resolve
from mix import aligned, read_manifests

COLUMNS = ("code", "name", "family", "mono", "mono tokens", "fertility", "per", "pairs", "directions", "rejects")
UNITS = {True: "word", False: "character"}  # that fertility is per, by whether words are separated by spaces
ROWS = 140  # languages one below the other in the picture; more go into further columns


@dataclass
class Row:  # what there is of one language
    mono: int = 0
    tokens: int = 0
    words: int = 0  # characters where the script has no spaces
    pairs: int = 0
    partners: set = field(default_factory=set)
    rejects: int = 0

    @property
    def fertility(self):
        return (self.tokens - 2 * self.mono) / self.words if self.words else math.nan


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PREFIX", help="datasets of one tokenizer, or their manifests")
    add("--output", metavar="NAME", help="write NAME.tsv and NAME.png (default: only print)")
    args = parser.parse_args()
    args.input = [prefix.removesuffix(".json") for prefix in args.input]
    if len({os.path.realpath(f"{prefix}.json") for prefix in args.input}) < len(args.input):
        raise InputError("--input: a dataset is given twice; name every dataset once")
    return args


def count(manifests):
    """{Language: Row} of the languages that have data or rejects, largest first."""
    rows = collections.defaultdict(Row)
    for manifest in manifests:
        for group, found in manifest["counts"].items():
            codes = set(group.split("-"))
            for code in codes if found["records"] else ():
                row = rows[resolve(code)]
                if "-" not in group:
                    row.mono += found["records"]
                    row.tokens += found["tokens"]
                    row.words += found["words"]
                else:
                    row.pairs += found["records"]
                    row.partners |= codes - {code}
        for group, rejects in manifest.get("rejected", {}).items():
            for code in set(group.split("-")) if group and rejects else ():  # "" is the unknown language
                rows[resolve(code)].rejects += rejects
    return dict(sorted(rows.items(), key=lambda item: (-item[1].mono, -item[1].pairs, item[0].code)))


def cells(language, row):
    """The values of a row of the table, as COLUMNS has them."""
    fertility = (f"{row.fertility:.2f}", UNITS[language.spaces]) if row.words else ("", "")
    about = language.code, language.name, language.family
    return [*about, row.mono, row.tokens, *fertility, row.pairs, len(row.partners), row.rejects]


def draw(rows, path):
    """Bars, a line a language: monolingual records and pairs on one logarithmic scale, and fertility."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = math.ceil(len(rows) / ROWS)
    height = math.ceil(len(rows) / columns)
    figure = Figure((8 * columns, 0.16 * height + 1.2), dpi=100, layout="constrained")
    most = max(max(row.mono, row.pairs) for row in rows.values())
    highest = max((row.fertility for row in rows.values() if row.words), default=1)
    colours = {True: "#440154", False: "#e08214"}  # by whether there are spaces
    grid = figure.subplots(1, 3 * columns, squeeze=False, width_ratios=[3, 3, 2] * columns)[0]
    for i, axes in enumerate(grid):
        part, panel = list(rows.items())[i // 3 * height :][:height], i % 3
        values = [(row.mono, row.pairs, row.fertility)[panel] for _, row in part]
        colour = ("#31688e", "#35b779", [colours[language.spaces] for language, _ in part])[panel]
        bars = axes.barh(range(len(part)), values, color=colour, height=0.75)
        texts = [f"{n:{',' if panel < 2 else '.2f'}}" if n > 0 else "" for n in values]  # NaN is not
        axes.bar_label(bars, texts, fontsize=6, padding=2)
        scale = {"xscale": "log", "xlim": (0.8, 20 * most + 10)} if panel < 2 else {"xlim": (0, 1.3 * highest)}
        axes.set(ylim=(height - 0.4, -0.6), axisbelow=True, **scale)
        axes.set_title(("monolingual records", "sentence pairs", "fertility")[panel], fontsize=9, pad=18, y=1)
        names = [" ".join(dict.fromkeys((language.name, language.code))) for language, _ in part]
        axes.set_yticks(*((range(len(part)), names) if panel == 0 else ([],)))
        axes.tick_params(labelsize=7, top=True, labeltop=True, left=False)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["left", "right"]].set_visible(False)
    handles = [Patch(color=colours[spaces], label=f"tokens per {unit}") for spaces, unit in UNITS.items()]
    figure.legend(handles=handles, loc="outside lower right", fontsize=7, ncols=2, frameon=False)
    figure.savefig(path, format="png", metadata={"Software": None})  # the same data give the same bytes


def summary(rows, manifests):
    """Two lines about the whole, in which pairs and their rejects count once."""
    records, directions, rejects = collections.Counter(), set(), 0
    for manifest in manifests:
        records.update({group: found["records"] for group, found in manifest["counts"].items()})
        directions.update(name for name, n in manifest.get("directions", {}).items() if n)
        rejects += sum(manifest.get("rejected", {}).values())
    pairs = {group: n for group, n in records.items() if n and "-" in group}
    missing = [code for code, language in load().items() if language not in rows]
    return (
        f"{len(rows):,} languages, {records.total() - sum(pairs.values()):,} monolingual records, "
        f"{sum(pairs.values()):,} pairs of {len(pairs):,} language pairs in {len(directions):,} directions, "
        f"{rejects:,} rejects\n"
        f"{len(missing)} of the paper's {len(load())} languages have none: {' '.join(missing)}".removesuffix(": ")
    )


def main():
    args = get_args()
    manifests = read_manifests(args.input)
    rows = count(manifests)
    if not rows:
        raise InputError(f"--input {args.input[0]}: no record of any language; name datasets that hold some")
    table = [cells(language, row) for language, row in rows.items()]
    if args.output:
        with replacing(f"{args.output}.tsv", f"{args.output}.png") as (tsv, png):
            tsv.write_text("".join("\t".join(map(str, line)) + "\n" for line in (COLUMNS, *table)), encoding="utf-8")
            draw(rows, png)
    print(aligned(COLUMNS, [[f"{x:,}" if isinstance(x, int) else x for x in line] for line in table], texts=3))
    print(summary(rows, manifests))


if __name__ == "__main__":
    run(main)
