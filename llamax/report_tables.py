"""Tables of scores: averages, the authors' matrices, directions above a threshold (LLaMAX, Figure 1), and seen against
unseen languages (Figure 4).

Rows are those of scores.jsonl: {"src", "tgt", "metric", "score", "n", "signature"}.
"""

import csv
import io
import statistics
from dataclasses import dataclass

from llamax.languages import load

# The languages that the authors' *_summary.csv average as `high`. All others are `low`.
HIGH = frozenset((
    "af", "ast", "bg", "bs", "ca", "cs", "da", "de", "en", "es", "fr", "gl", "hr", "hu", "id", "it", "ms", "nl", "no",
    "pl", "pt", "ro", "ru", "sl", "sv", "uk",
))  # fmt: skip
GROUPS = {
    "all": "all directions",
    "low": "a language that is not high-resource on at least one side",
    "high": "high-resource languages on both sides",
    "en-x": "out of English",
    "x-en": "into English",
    "non-English": "English on neither side",
}


def metrics_of(systems):
    """The metrics that {name: rows} have, in the order in which they appear."""
    return list(dict.fromkeys(row["metric"] for rows in systems.values() for row in rows))


def groups_of(source, target):
    """Those of GROUPS that a direction belongs to."""
    resource = "high" if source in HIGH and target in HIGH else "low"
    side = "en-x" if source == "en" else "x-en" if target == "en" else "non-English"
    return "all", resource, side


def averages(rows):
    """{group: {metric: (mean, directions)}} over the groups that have directions."""
    found = {group: {} for group in GROUPS}
    for row in rows:
        for group in groups_of(row["src"], row["tgt"]):
            found[group].setdefault(row["metric"], []).append(row["score"])
    return {
        group: {metric: (statistics.fmean(scores), len(scores)) for metric, scores in metrics.items()}
        for group, metrics in found.items()
        if metrics
    }


def key(row):
    return row["src"], row["tgt"], row["metric"]


def shared(systems):
    """{name: rows}, but only of the directions and metrics that every system has: their means can be compared."""
    common = set.intersection(*({key(row) for row in rows} for rows in systems.values()))
    return {name: [row for row in rows if key(row) in common] for name, rows in systems.items()}


def differences(rows, first):
    """Rows whose score is that of `rows` less that of `first`, where both have one."""
    scores = {key(row): row["score"] for row in first}
    return [{**row, "score": row["score"] - scores[key(row)]} for row in rows if key(row) in scores]


# Matrices


@dataclass(frozen=True)
class Matrix:
    """Scores in the layout of the authors' tables: a row `en-x` or `x-en`, a column a language."""

    metric: str
    languages: list[str]
    scores: dict[tuple[str, str], float]
    rows: list[tuple[str, list[tuple[str, str]]]]  # (name, a direction for each language)

    def dense(self):
        """Whether source by target would be filled for more than the half."""
        sources, targets = map(set, zip(*self.scores, strict=True))
        return 2 * len(self.scores) > len(sources) * len(targets) - len(sources & targets)


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

    def cell(direction):
        if direction[0] == direction[1]:
            return "/"
        return f"{matrix.scores[direction]:.2f}" if direction in matrix.scores else ""

    return csv_text(["direct", *matrix.languages], ([name, *map(cell, directions)] for name, directions in matrix.rows))


def summary(matrix):
    """[(row's name, mean over low, over high, over all languages)], as the authors' *_summary.csv: each language on the
    side x counts once, whatever the other side is; None where a row has no such language."""
    found = []
    for name, directions in matrix.rows:
        of_column = {
            code: matrix.scores[direction]
            for code, direction in zip(matrix.languages, directions, strict=True)
            if direction in matrix.scores
        }
        low = [score for code, score in of_column.items() if code not in HIGH]
        high = [score for code, score in of_column.items() if code in HIGH]
        found.append((name, *(statistics.fmean(scores) if scores else None for scores in (low, high, low + high))))
    return found


def summary_csv(matrix):
    """summary() as the authors publish theirs, `direct,low,high,all` with two decimals."""
    rows = ([name, *("" if mean is None else f"{mean:.2f}" for mean in means)] for name, *means in summary(matrix))
    return csv_text(["direct", "low", "high", "all"], rows)


def csv_text(header, rows):
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()


# Figure 1


@dataclass
class Count:
    """Of a language L, the directions whose score is above a threshold, and all that have a score."""

    into_above: int = 0  # X→L
    into: int = 0
    out_of_above: int = 0  # L→X
    out_of: int = 0


def counts(rows, metric, threshold):
    """{language code: Count} of a metric, in the order of the codes."""
    found = {}
    for row in rows:
        if row["metric"] != metric:
            continue
        above = row["score"] > threshold
        source, target = (found.setdefault(row[side], Count()) for side in ("src", "tgt"))
        source.out_of += 1
        source.out_of_above += above
        target.into += 1
        target.into_above += above
    return dict(sorted(found.items()))


def counts_csv(by_system):
    """A line a system and language of {system: counts()}."""
    header = ["system", "language", "X-L above", "X-L directions", "L-X above", "L-X directions"]
    return csv_text(
        header,
        (
            [name, code, count.into_above, count.into, count.out_of_above, count.out_of]
            for name, found in by_system.items()
            for code, count in found.items()
        ),
    )


# Figure 4


def paper_languages():
    """The codes of the paper's 102 languages, which LLaMAX's pre-training saw: those with a row in languages.tsv."""
    return frozenset(load())


def by_seen(rows, metric, seen):
    """{"seen" | "unseen": {"en-x" | "x-en": {language code: score}}} of the directions with English."""
    found = {group: {"en-x": {}, "x-en": {}} for group in ("seen", "unseen")}
    for row in rows:
        if row["metric"] == metric and "en" in (row["src"], row["tgt"]):
            side, code = ("en-x", row["tgt"]) if row["src"] == "en" else ("x-en", row["src"])
            found["seen" if code in seen else "unseen"][side][code] = row["score"]
    return found


def seen_csv(by_system):
    """A line a system and group of {system: by_seen()}: mean score and number of languages."""
    table = []
    for name, groups in by_system.items():
        for group, sides in groups.items():
            cells = [part for scores in sides.values() for part in (mean_text(scores.values()), len(scores))]
            table.append([name, group, *cells])
    return csv_text(["system", "languages", "en-x", "en-x languages", "x-en", "x-en languages"], table)


def mean_text(scores):
    """The mean with two decimals, or nothing of nothing."""
    return f"{statistics.fmean(scores):.2f}" if scores else ""
