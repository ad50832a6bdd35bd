"""Scores read from evaluate.py's folders or the authors' tables, and written as tables, pictures and one HTML page."""

import csv
import json
import math
from pathlib import Path

from llamax.files import InputError, existing_file, replacing
from llamax.languages import resolve
from llamax.report_figures import counts_png, matrix_png, seen_png
from llamax.report_page import page
from llamax.report_tables import (
    by_seen,
    counts,
    counts_csv,
    direction_matrix,
    matrix_csv,
    metrics_of,
    paper_languages,
    seen_csv,
    summary_csv,
)

FIELDS = ("src", "tgt", "metric", "score", "n", "signature")
PUBLISHED = ("spBLEU", "COMET")  # NAME.csv in a folder of the authors' results
MAY_LACK = {"R_src", "R_tgt"}  # the model that identifies languages does not know all of them


# Reading


def read_system(output):
    """The rows of a folder: of its scores.jsonl, else of the authors' spBLEU.csv and COMET.csv."""
    if not (output / "scores.jsonl").is_file():
        tables = [output / f"{metric}.csv" for metric in PUBLISHED if (output / f"{metric}.csv").is_file()]
        if tables:
            return [row for path in tables for row in read_published(path)]
    return read_scores(output)


def read_scores(output, complete=True):
    """The rows of OUTPUT/scores.jsonl; InputError if there are none, one is no score or stands there twice, or, where
    they must be `complete`, a direction lacks a metric that others have."""
    path = output / "scores.jsonl"
    if not path.is_file():
        raise InputError(f"--output {output}: no scores.jsonl in it; run evaluate.py score --output {output} first")
    rows, found = [], {}
    for number, line in enumerate(existing_file(path, "--output").read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            metrics = found.setdefault((row["src"], row["tgt"]), set())
            if row["metric"] in metrics:
                raise ValueError(f"a second {row['metric']} of {row['src']}-{row['tgt']}")
            metrics.add(row["metric"])
            if not math.isfinite(row["score"]):
                raise ValueError(f"score {row['score']}")
            rows.append({name: row[name] for name in FIELDS})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} line {number}: no score ({error!r}); run evaluate.py score again") from None
    if not rows:
        raise InputError(f"{path}: empty; run evaluate.py score again")
    expected = set.union(*found.values()) - MAY_LACK if complete else set()
    for (source, target), metrics in found.items():
        if missing := ", ".join(sorted(expected - metrics)):
            raise InputError(f"{path}: no {missing} of {source}-{target}; run evaluate.py score for it")
    return rows


def read_published(path):
    """Rows of a table as the authors publish theirs: `direct,af,am,…`, then `en-x` (out of English) and `x-en` (into
    it), `/` for a language into itself, nothing where no score is. The number of sentences is not known: n is None.

    A direction may stand in two rows, en-zh in en-x and in x-zh; InputError if they differ.
    """
    metric, remedy = path.stem, "take the file as it was published"
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *table = csv.reader(file)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise InputError(f"{path}: no table ({error}); {remedy}") from None
    if header[:1] != ["direct"]:
        raise InputError(f"{path} line 1: begins with {header[:1]}, expected direct,af,am,…; {remedy}")

    def resolved(codes, where):
        try:
            return [code if code == "x" else resolve(code).code for code in codes]
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    languages = resolved(header[1:], f"{path} line 1")
    scores = {}
    for number, (name, *cells) in ((number, row) for number, row in enumerate(table, 2) if row):
        where = f"{path} line {number}"
        sides = resolved(name.split("-"), where)
        if len(sides) != 2 or sides.count("x") != 1 or len(cells) != len(languages):
            raise InputError(
                f"{where}: {name!r} with {len(cells)} cells, expected en-x or x-en with {len(languages)}; {remedy}"
            )
        for code, cell in zip(languages, cells, strict=True):
            source, target = (code if side == "x" else side for side in sides)
            if cell == ("/" if source == target else ""):
                continue
            try:
                score = float(cell)
            except ValueError:
                score = math.nan
            if not math.isfinite(score) or source == target:
                raise InputError(f"{where}: {source}-{target} is {cell!r}, expected a score; {remedy}")
            if scores.setdefault((source, target), score) != score:
                raise InputError(f"{where}: {source}-{target} is {cell}, {scores[source, target]} before; {remedy}")
    if not scores:
        raise InputError(f"{path}: no scores in it; {remedy}")
    return [
        {"src": source, "tgt": target, "metric": metric, "score": score, "n": None, "signature": "published"}
        for (source, target), score in scores.items()
    ]


# Writing


def write_report(outputs, systems, html_path, samples=(), seen=None, threshold=10.0):
    """Write the tables and pictures of each system, and one page of all.

    In each of `outputs` that has scores.jsonl, and not into the authors' folders: matrix_METRIC.csv, summary_METRIC.csv
    and matrix_METRIC.png. Beside the page, under its name: *_counts.csv and .png, and, if some languages are unseen,
    *_seen.csv and, of two systems or more, .png. The same scores give the same bytes.

    Args:
        outputs: {name: folder} of the systems.
        systems: {name: rows as read_system gives them}; the first is what the others are compared with.
        html_path: of the page.
        samples: [(source, target, [(line number, (source, hypothesis of each system …, reference))])].
        seen: codes of the languages that pre-training saw; None: the paper's 102.
        threshold: score of the first metric (spBLEU if it is there) above which a direction is counted.

    Returns the paths, the page last.
    """
    html_path = Path(html_path)
    metrics = metrics_of(systems)
    metric = "spBLEU" if "spBLEU" in metrics else metrics[0]
    files, matrices = {}, {}
    for name, rows in systems.items():
        matrices[name] = {each: direction_matrix(rows, each) for each in metrics_of({name: rows})}
        if (outputs[name] / "scores.jsonl").is_file():
            for each, matrix in matrices[name].items():
                files[outputs[name] / f"matrix_{each}.csv"] = matrix_csv(matrix).encode("utf-8")
                files[outputs[name] / f"summary_{each}.csv"] = summary_csv(matrix).encode("utf-8")
                files[outputs[name] / f"matrix_{each}.png"] = matrix_png(matrix)
    pictures = {
        name: files.get(outputs[name] / f"matrix_{metric}.png") or matrix_png(found[metric])
        for name, found in matrices.items()
        if metric in found
    }

    def beside(ending):
        return html_path.with_name(f"{html_path.stem}_{ending}")

    counted = {name: counts(rows, metric, threshold) for name, rows in systems.items() if name in pictures}
    files[beside("counts.csv")] = counts_csv(counted).encode("utf-8")
    files[beside("counts.png")] = counts_png(counted, metric, threshold)
    seen = paper_languages() if seen is None else seen
    split = {name: by_seen(rows, metric, seen) for name, rows in systems.items() if name in pictures}
    if any(scores for groups in split.values() for scores in groups["unseen"].values()):
        files[beside("seen.csv")] = seen_csv(split).encode("utf-8")
        if len(split) > 1:
            files[beside("seen.png")] = seen_png(split, metric)
    else:
        split = {}
    figures = {"counts": files[beside("counts.png")], "seen": files.get(beside("seen.png"))}
    text = page(systems, metric, matrices, pictures, counted, threshold, split, figures, samples)
    files[html_path] = text.encode("utf-8")

    for path, content in files.items():  # nothing is written before all is made
        with replacing(path) as partial:
            partial.write_bytes(content)
    return list(files)
