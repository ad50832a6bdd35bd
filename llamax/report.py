"""Scores of all directions as a matrix (CSV and picture) and as one HTML page that needs no other file."""

import base64
import csv
import html
import io
import json
import statistics
from dataclasses import dataclass

from llamax.files import InputError, existing_file

METRICS = ("spBLEU", "chrF++")
FIELDS = ("src", "tgt", "metric", "score", "n", "signature")


def read_scores(output):
    """The rows of OUTPUT/scores.jsonl; InputError if there are none or a direction lacks one of METRICS."""
    path = output / "scores.jsonl"
    if not path.is_file():
        raise InputError(f"--output {output}: no scores.jsonl in it; run evaluate.py score --output {output} first")
    rows, found = [], {}
    for number, line in enumerate(existing_file(path, "--output").read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            found.setdefault((row["src"], row["tgt"]), set()).add(row["metric"])
            float(row["score"])
            rows.append({name: row[name] for name in FIELDS})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} line {number}: no score ({error!r}); run evaluate.py score again") from None
    if not rows:
        raise InputError(f"{path}: empty; run evaluate.py score again")
    for (source, target), metrics in found.items():
        if not metrics >= set(METRICS):
            missing = ", ".join(metric for metric in METRICS if metric not in metrics)
            raise InputError(f"{path}: no {missing} of {source}-{target}; run evaluate.py score again")
    return rows


def averages(rows):
    """{group: {metric: (mean, directions)}} over the groups that have directions."""
    groups = {
        "all": lambda source, target: True,
        "en-x": lambda source, target: source == "en",
        "x-en": lambda source, target: target == "en",
        "non-English": lambda source, target: "en" not in (source, target),
    }
    found = {}
    for group, member in groups.items():
        for metric in METRICS:
            scores = [row["score"] for row in rows if row["metric"] == metric and member(row["src"], row["tgt"])]
            if scores:
                found.setdefault(group, {})[metric] = (statistics.fmean(scores), len(scores))
    return found


@dataclass(frozen=True)
class Matrix:
    """Scores in the layout of the authors' tables: a row `en-x` or `x-en`, a column a language."""

    metric: str
    languages: list[str]
    scores: dict[tuple[str, str], float]
    rows: list[tuple[str, list[tuple[str, str]]]]  # (name, a direction for each language)


def direction_matrix(rows, metric):
    """The Matrix of a metric. It has the rows that are complete, and `a-x` for directions that are in none of them."""
    scores = {(row["src"], row["tgt"]): row["score"] for row in rows if row["metric"] == metric}
    languages = sorted({code for direction in scores for code in direction})
    rows, covered = [], set()
    for pivot in sorted(languages, key=lambda code: (code != "en", code)):
        out = [(pivot, code) for code in languages]
        into = [(code, pivot) for code in languages]
        for name, directions in ((f"{pivot}-x", out), (f"x-{pivot}", into)):
            if all(direction in scores or direction[0] == direction[1] for direction in directions):
                rows.append((name, directions))
                covered.update(directions)
    for source in sorted({source for source, target in scores if (source, target) not in covered}):
        rows.append((f"{source}-x", [(source, code) for code in languages]))
    return Matrix(metric, languages, scores, rows)


def matrix_csv(matrix):
    """The matrix as the authors publish theirs: two decimals, `/` for a language into itself, nothing where no score
    is, lines ended by \\r\\n."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["direct", *matrix.languages])
    for name, directions in matrix.rows:
        writer.writerow([name, *(cell(matrix, direction) for direction in directions)])
    return text.getvalue()


def cell(matrix, direction):
    if direction[0] == direction[1]:
        return "/"
    return f"{matrix.scores[direction]:.2f}" if direction in matrix.scores else ""


def matrix_png(matrix):
    """The matrix as a heat map, PNG bytes: source by target where most of these directions have a score, else the
    rows of the table."""
    import matplotlib
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sources, targets = (
        [code for code in matrix.languages if code in side] for side in map(set, zip(*matrix.scores, strict=True))
    )
    if 2 * len(matrix.scores) > len(sources) * len(targets) - len(set(sources) & set(targets)):
        names, columns = sources, targets
        cells = [[(source, target) for target in targets] for source in sources]
        labels = ["target", "source"]
    else:
        names, columns = [name for name, _ in matrix.rows], matrix.languages
        cells = [directions for _, directions in matrix.rows]
        labels = ["language x", "direction"]
    values = np.array([[matrix.scores.get(direction, np.nan) for direction in row] for row in cells])
    if len(columns) > 30 and len(columns) > 3 * len(names):  # a page is read downwards
        values, names, columns, labels = values.T, columns, names, labels[::-1]

    annotated = values.size <= 400
    height = max(2.5, values.shape[0] * (0.3 if values.shape[0] <= 30 else 0.2))
    width = max(2.5, values.shape[1] * (0.45 if annotated else 0.2))
    figure = Figure((width + 2.2, height + 1.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#dddddd")
    image = axes.imshow(
        np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=max(1.0, np.nanmax(values)), aspect="auto"
    )
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    figure.colorbar(image, ax=axes, label=matrix.metric, fraction=0.05, shrink=min(1, 5 / height))
    if annotated:
        middle = image.norm.vmax / 2
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(
                    x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color="w" if value < middle else "k"
                )
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})  # the same scores give the same bytes
    return file.getvalue()


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: left; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; height: auto }
code { overflow-wrap: anywhere }
summary { cursor: pointer; font-weight: 600; margin: .5em 0 }
"""


def html_report(systems, pictures, samples):
    """The page: means, heat maps, all directions, signatures, samples.

    Args:
        systems: {name: rows of scores.jsonl}.
        pictures: {name: PNG bytes}.
        samples: [(source, target, [(line number, (source, hypothesis of each system …, reference))])].
    """
    names = list(systems)
    signatures = {}  # numbered in the order in which they appear
    for rows in systems.values():
        for row in rows:
            signatures.setdefault(row["signature"], len(signatures) + 1)
    title = "Translation scores: " + ", ".join(names)
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
        "<h2>Means</h2>",
        _means(systems),
        "<h2>spBLEU by direction</h2>",
    ]
    for name in names:
        data = base64.b64encode(pictures[name]).decode("ascii")
        parts.append(f'<h3>{html.escape(name)}</h3><img alt="heat map" src="data:image/png;base64,{data}">')
    if samples:
        parts.append("<h2>Samples</h2>")
        parts += [_sample(source, target, lines, names) for source, target, lines in samples]
    parts += ["<h2>All directions</h2>", _directions(systems, signatures), "<h2>Signatures</h2><ol>"]
    parts += [f"<li><code>{html.escape(signature)}</code></li>" for signature in signatures]
    parts.append("</ol></body></html>\n")
    return "\n".join(parts)


def _table(header, rows, numbers):
    """A table of cells that are HTML already; the columns from `numbers` on are right-aligned."""

    def line(cells, tag):
        marked = [f"<{tag}{' class=number' if i >= numbers else ''}>{text}</{tag}>" for i, text in enumerate(cells)]
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(line(cells, "td") for cells in rows)
    return f"<table><thead>{line(header, 'th')}</thead><tbody>\n{body}\n</tbody></table>"


def _means(systems):
    """Means of each group and system. Systems with other directions are not comparable: the number stands beside."""
    means = {name: averages(rows) for name, rows in systems.items()}
    groups = list(dict.fromkeys(group for found in means.values() for group in found))
    header = ["directions"]
    rows = [[group] for group in groups]
    for name, found in means.items():
        header += [html.escape(f"{name}: {heading}") for heading in ("n", *METRICS)]
        for row, group in zip(rows, groups, strict=True):
            values = found.get(group)
            row.append(str(max(n for _, n in values.values())) if values else "")
            row += [f"{values[metric][0]:.2f}" if values else "" for metric in METRICS]
    return _table(header, rows, 1)


def _directions(systems, signatures):
    scores = {(name, row["src"], row["tgt"], row["metric"]): row for name, rows in systems.items() for row in rows}
    directions = sorted({(source, target) for _, source, target, _ in scores})
    header = ["direction"]
    header += [html.escape(f"{name}: {heading}") for name in systems for heading in ("lines", *METRICS, "signatures")]
    table = []
    for source, target in directions:
        cells = [html.escape(f"{source}-{target}")]
        for name in systems:
            found = [scores.get((name, source, target, metric)) for metric in METRICS]
            cells.append(str(found[0]["n"]) if found[0] else "")
            cells += [f"{row['score']:.2f}" if row else "" for row in found]
            cells.append(", ".join(str(signatures[row["signature"]]) for row in found if row))
        table.append(cells)
    return _table(header, table, 1)


def _sample(source, target, lines, names):
    header = ["line", f"source ({source})", *names, f"reference ({target})"]
    # dir=auto: a browser finds the direction of Arabic or Hebrew by the text itself
    rows = [
        [str(number), *(f'<span dir="auto">{html.escape(text)}</span>' for text in texts)] for number, texts in lines
    ]
    table = _table([html.escape(text) for text in header], rows, len(header))
    return f"<details open><summary>{html.escape(f'{source}-{target}')}</summary>{table}</details>"
