"""The rows of scores.jsonl: what a number was made from, so that it is not made again, and how they are made."""

import operator
from importlib.metadata import version
from pathlib import Path

from llamax import scoring
from llamax.comet import Comet
from llamax.files import InputError, fingerprint
from llamax.hypotheses import lines_digest, read_record
from llamax.languages import resolve
from llamax.offtarget import REPEATED, empty, repeated
from llamax.records import Progress
from llamax.report import read_scores
from llamax.significance import paired_bootstrap, signature
from llamax.testsets import read_lines

OFF_TARGET = ("R_src", "R_tgt")
COUNTS = {"empty": "lines:empty", "repeated": f"lines:repeated>{REPEATED}"}  # with their signatures
ORDER = (*scoring.METRICS, "COMET", *OFF_TARGET, *COUNTS)
JOB_DIRECTIONS = 128  # directions into one language that a process scores at a time: it prepares references once


def same_length(hypotheses, hypothesis_path, references, what):
    """Raise InputError unless the lines are as many as those of the references, `what`."""
    if len(hypotheses) != len(references):
        hint = f" (is --limit {len(hypotheses)} meant?)" if len(hypotheses) < len(references) else ""
        raise InputError(
            f"{hypothesis_path} has {len(hypotheses)} lines, {what} {len(references)}; a line of one must "
            f"translate the same line of the other{hint}"
        )


class Scorer:
    """Scores hypotheses of a test set with sacrebleu's metrics, a fastText model and COMET.

    Args:
        tests: the TestSet; limit: only its first so many lines, or None.
        metrics: of scoring.METRICS; models: {"spBLEU" or "spBLEU200": SentencePiece file or None}.
        identifier: an Identifier, or None: no off-target rates.
        comet: (Python of its environment, model), or None: no COMET.
    """

    def __init__(self, tests, limit, metrics, models, identifier=None, comet=None):
        self.tests, self.limit, self.metrics, self.models = tests, limit, metrics, models
        self.identifier, self.comet = identifier, comet
        # What a number depends on beside the lines. This loads the models: before processes are started.
        self.made_with = {
            **{
                metric: [*made, version("sacrebleu")] for metric, made in scoring.model_digests(metrics, models).items()
            },
            **COUNTS,
            **(dict.fromkeys(OFF_TARGET, identifier.signature) if identifier else {}),
        }
        if comet:
            model = comet[1]
            self.made_with["COMET"] = fingerprint(model)["blake2b"] if Path(model).is_file() else str(model)

    def references(self, direction):
        return [lines[: self.limit] for lines in self.tests.references(direction)]

    def lines(self, direction, path, references):
        """The lines of a hypotheses file, as many as the references have."""
        lines, reference = read_lines(path), self.tests.files(direction)[1][0]
        same_length(lines, path, references[0], f"the reference of {'-'.join(direction)}, {reference},")
        return lines

    def prepared(self, direction, metrics):
        return scoring.References(self.references(direction), metrics, resolve(direction[1]), self.models)

    def plan(self, hypotheses, output):
        """(rows that are kept, {SRC-TGT: what its rows are made from}, jobs) of {direction: file}.

        Rows in OUTPUT of the same lines, made with the same, are kept, also those of metrics not asked for now. A job
        is (metrics, [(direction, file)]) with the same references.
        """
        old_rows, old = kept_scores(output)
        rows, made_from, jobs, sources, references = [], {}, {}, {}, []
        for direction in sorted(hypotheses, key=lambda direction: direction[::-1]):  # a reference file is read once
            name, key = "-".join(direction), self.tests.source_key(direction)
            if key not in sources:
                sources[key] = lines_digest(self.tests.source(direction))
            found = self.tests.references(direction)
            if len(found) != len(references) or not all(map(operator.is_, found, references)):
                references, digests = found, [*map(lines_digest, found)]
            texts = [fingerprint(hypotheses[direction])["blake2b"], self.limit, sources[key], *digests]
            made = old.get(name, {})
            made = made.get("metrics", {}) if made.get("texts") == texts else {}
            there = {*OFF_TARGET, *(row["metric"] for row in old_rows.get(name, []))}  # rates may be left out
            kept = [m for m in made if m in there and made[m] == self.made_with.get(m, made[m])]
            rows += [row for row in old_rows.get(name, []) if row["metric"] in kept]
            made_from[name] = {"texts": texts, "metrics": {metric: made[metric] for metric in kept} | self.made_with}
            if missing := tuple(metric for metric in self.made_with if metric not in kept):
                jobs.setdefault((missing, direction[1], *digests), []).append((direction, hypotheses[direction]))
        cut = [
            (missing, some[i : i + JOB_DIRECTIONS])
            for (missing, *_), some in jobs.items()
            for i in range(0, len(some), JOB_DIRECTIONS)
        ]
        return rows, made_from, cut

    def recognise(self, directions):
        """Learn how well the identifier knows the languages of the directions, from the test set; its caveats."""
        if not self.identifier:
            return []
        lines = {}
        for direction in directions:
            if direction[1] not in lines:
                lines[direction[1]] = self.references(direction)[0]
        for direction in directions:
            if direction[0] not in lines:
                lines[direction[0]] = self.tests.source(direction)[: self.limit]
        self.known = {code: self.identifier.recognised(some, code) for code, some in sorted(lines.items())}
        return self.identifier.caveats(list(self.known.values()))

    def score(self, job):
        """The rows of a job, but for COMET's."""
        metrics, directions = job
        prepared = self.prepared(directions[0][0], [metric for metric in metrics if metric in scoring.METRICS])
        references, rows = self.references(directions[0][0]), []
        for direction, path in directions:
            lines = self.lines(direction, path, references)
            found = prepared.rows(lines)
            for name, count in (("empty", empty), ("repeated", repeated)):
                if name in metrics:
                    found.append({"metric": name, "score": count(lines), "n": len(lines), "signature": COUNTS[name]})
            if set(OFF_TARGET) <= set(metrics):
                found += self.identifier.rows(lines, *(self.known[code] for code in direction))
            rows += [{"src": direction[0], "tgt": direction[1], **row} for row in found]
        return rows

    def score_with_comet(self, jobs):
        """COMET's rows of all jobs that lack them: by one process, which loads it once."""
        directions = [pair for metrics, some in jobs if "COMET" in metrics for pair in some]
        if not directions:
            return []
        rows, progress = [], Progress(len(directions), " directions", "COMET", scale=False)
        with Comet(*self.comet) as comet:
            for direction, path in directions:
                references = self.references(direction)
                sources = self.tests.source(direction)[: self.limit]
                row, _ = comet.score(sources, self.lines(direction, path, references), references[0])
                rows.append({"src": direction[0], "tgt": direction[1], **row})
                progress.update(1)
        progress.close()
        return rows

    def compare(self, job, samples, seed):
        """Rows of paired bootstrap, one a metric. job: (direction, (file of one system, file of the other))."""
        direction, paths = job
        prepared, references = self.prepared(direction, self.metrics), self.references(direction)
        a, b = (prepared.statistics(self.lines(direction, path, references)) for path in paths)
        rows = []
        for metric in self.metrics:

            def score_of(sums, metric=metric):
                return prepared.score_of(metric, sums)

            found = paired_bootstrap(a[metric], b[metric], score_of, samples, seed)
            found["signature"] = signature(prepared.signatures[metric], samples, seed)
            rows.append({"src": direction[0], "tgt": direction[1], "metric": metric, **found})
        return rows


def kept_scores(output):
    """({SRC-TGT: rows}, {SRC-TGT: what they were made from}) of an earlier run."""
    if not (output / "score.json").is_file() or not (output / "scores.jsonl").is_file():
        return {}, {}
    try:
        made_from, rows = read_record(output / "score.json", "made_from"), {}
        for row in read_scores(output, complete=False):
            rows.setdefault(f"{row['src']}-{row['tgt']}", []).append(row)
    except InputError:  # damaged: all is scored again
        return {}, {}
    return rows, made_from
