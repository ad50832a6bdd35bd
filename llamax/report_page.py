"""The report as one HTML page that needs no other file and no network: report_page.html with the scores in it.

Tables and pictures are HTML already; the heat map and the table of all directions are drawn by the script in the page,
of scores that stand in it once, as JSON.
"""

import base64
import html
import json
import re
from pathlib import Path

from llamax.files import InputError
from llamax.languages import resolve
from llamax.report_figures import lowest
from llamax.report_tables import GROUPS, HIGH, averages, differences, mean_text, metrics_of, shared, summary

TEMPLATE = Path(__file__).with_name("report_page.html")


def page(systems, metric, matrices, heat_maps, counted, threshold, split, figures, samples):
    """The page's HTML.

    Args:
        systems: {name: rows of scores}.
        metric: the one of heat_maps, counted and split.
        matrices: {name: {metric: Matrix}}.
        heat_maps: {name: PNG bytes}, shown where scripts do not run.
        counted: {name: report_tables.counts()}, with this threshold.
        split: {name: report_tables.by_seen()}, or {} where no language is unseen.
        figures: {"counts": PNG bytes, "seen": PNG bytes or None}.
        samples: [(source, target, [(line number, (source, hypothesis of each system …, reference))])].
    """
    signatures = {}  # numbered in the order in which they appear
    for rows in systems.values():
        for row in rows:
            signatures.setdefault(row["signature"], len(signatures) + 1)
    sections = {
        "systems": ("Systems", _systems(systems)),
        "averages": ("Averages", _averages(systems)),
        "rows": ("Averages of each row", _summaries(matrices)),
        "counts": (f"Directions above {threshold:g} {metric}", _counts(counted, figures["counts"], metric, threshold)),
    }
    if split:
        sections["seen"] = ("Seen and unseen languages", _seen(split, figures["seen"], metric))
    if samples:
        sections["samples"] = ("Samples", "\n".join(_sample(*sample, list(systems)) for sample in samples))
    sections["signatures"] = ("Signatures", _signatures(systems, signatures))
    values = {
        "title": text(f"Translation scores: {', '.join(systems) if len(systems) < 4 else f'{len(systems)} systems'}"),
        "links": " ".join(f'<a href="#{name}">{text(title)}</a>' for name, (title, _) in sections.items()),
        "pictures": "\n".join(f"<h3>{text(name)}, {text(metric)}</h3>{_image(png)}" for name, png in heat_maps.items()),
        "sections": "\n".join(
            f'<section id="{name}"><h2>{text(title)}</h2>\n{body}\n</section>'
            for name, (title, body) in sections.items()
        ),
        "data": script_json(data(systems, matrices, metric, signatures)),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)  # once: values may hold {{…}}


def text(value):
    """A string as HTML. A parser would take a carriage return for a line feed."""
    return html.escape(str(value)).replace("\r", "&#13;")


def script_json(value):
    """JSON for a <script> element, which ends at the first `</script`, whatever it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


# Data of the script


def data(systems, matrices, metric, signatures):
    """What the script draws: systems, languages, directions, and per metric and system a score a direction or null.

    Numbers have the two decimals of the tables. n and signature are one value where all directions have the same.
    """
    directions = sorted({(row["src"], row["tgt"]) for rows in systems.values() for row in rows})
    codes = sorted({code for direction in directions for code in direction})
    place = {direction: number for number, direction in enumerate(directions)}
    metrics = {each: {"systems": [None] * len(systems)} for each in metrics_of(systems)}
    for number, rows in enumerate(systems.values()):
        for each in metrics:
            of_metric = [row for row in rows if row["metric"] == each]
            if not of_metric:
                continue
            columns = {name: [None] * len(directions) for name in ("scores", "n", "signature")}
            for row in of_metric:
                at = place[row["src"], row["tgt"]]
                columns["scores"][at] = float(f"{row['score']:.2f}")
                columns["n"][at] = row["n"]
                columns["signature"][at] = signatures[row["signature"]]
            for name in ("n", "signature"):
                different = {row[name] for row in of_metric}
                if len(different) == 1:
                    columns[name] = columns[name][place[of_metric[0]["src"], of_metric[0]["tgt"]]]
            metrics[each]["systems"][number] = columns
    for each, found in metrics.items():
        scores = [score for system in found["systems"] if system for score in system["scores"] if score is not None]
        found["low"] = lowest(each, scores)
        found["high"] = max(found["low"] + 1, *scores)
    index = {code: number for number, code in enumerate(codes)}
    return {
        "systems": list(systems),
        "languages": [[*language(code), "high" if code in HIGH else "low"] for code in codes],
        "directions": [[index[source], index[target]] for source, target in directions],
        "metric": metric,
        "metrics": metrics,
        "rows": [[row for row, _ in found[metric].rows] if metric in found else [] for found in matrices.values()],
        "dense": any(found[metric].dense() for found in matrices.values() if metric in found),
    }


def language(code):
    """(code, name, family); a code that no table knows is its own name."""
    try:
        known = resolve(code)
    except InputError:
        return code, code, ""
    return code, known.name, known.family


# Sections


def table(header, rows, texts, heads=()):
    """A table that the script sorts by a click on its header.

    Args:
        header: the columns' names; the first `texts` columns are flush left, the others numbers.
        rows: lists of cells, as many as the header has.
        heads: [(text, columns)] of a line above the header.
    """

    def line(cells, tag):
        marked = [f"<{tag}{' class=number' if i >= texts else ''}>{text(cell)}</{tag}>" for i, cell in enumerate(cells)]
        return f"<tr>{''.join(marked)}</tr>"

    above = "".join(f"<th colspan={columns}>{text(name)}</th>" for name, columns in heads)
    body = "\n".join(line(cells, "td") for cells in rows)
    return (
        f'<div class="wide"><table class="sortable"><thead>{f"<tr>{above}</tr>" if heads else ""}'
        f"{line(header, 'th')}</thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _details(summary_text, body, opened=False):
    return f"<details{' open' if opened else ''}><summary>{text(summary_text)}</summary>\n{body}\n</details>"


def _image(png):
    return f'<img alt="picture" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def _systems(systems):
    rows = []
    for name, scores in systems.items():
        lines = sorted({row["n"] for row in scores if row["n"] is not None})
        between = " to ".join(f"{n:,}" for n in dict.fromkeys((lines[0], lines[-1]))) if lines else "not known"
        directions = len({(row["src"], row["tgt"]) for row in scores})
        rows.append([name, ", ".join(metrics_of({name: scores})), between, f"{directions:,}"])
    return table(["system", "metrics", "lines a direction", "directions"], rows, 3)


def _averages(systems):
    """Of each metric the means of every system, those that can be compared, and differences against the first."""
    common = shared(systems)
    same = all(len(common[name]) == len(rows) for name, rows in systems.items())
    first = next(iter(systems.values()))
    parts = [f"<p>{text('; '.join(f'{group}: {what}' for group, what in GROUPS.items()))}. n: directions.</p>"]
    for number, metric in enumerate(metrics_of(systems)):
        body = [_means(systems, metric)]
        if len(systems) > 1:
            if not same and _has(common, metric):
                body += ["<p>Over the directions that all systems have:</p>", _means(common, metric)]
            versus = {name: differences(rows, first) for name, rows in list(systems.items())[1:]}
            if _has(versus, metric):
                title = text(f"Difference against {next(iter(systems))}, over the directions that both have:")
                body += [f"<p>{title}</p>", _means(versus, metric, "+.2f")]
        parts.append(_details(metric, "\n".join(body), number == 0))
    return "\n".join(parts)


def _has(systems, metric):
    return any(row["metric"] == metric for rows in systems.values() for row in rows)


def _means(systems, metric, form=".2f"):
    means = {name: averages([row for row in rows if row["metric"] == metric]) for name, rows in systems.items()}
    groups = [group for group in GROUPS if any(group in found for found in means.values())]
    rows = []
    for name, found in means.items():
        rows.append([name])
        for group in groups:
            mean, n = found.get(group, {}).get(metric, (None, 0))
            rows[-1] += ["", ""] if mean is None else [f"{mean:{form}}", f"{n:,}"]
    heads = [("", 1), *((group, 2) for group in groups)]
    return table(["system", *(heading for _ in groups for heading in ("mean", "n"))], rows, 1, heads)


def _summaries(matrices):
    """For each metric the authors' low, high and all of every row, systems side by side."""
    parts = ["<p>As the authors' summaries: the language x counts once, whatever the other is.</p>"]
    for metric in dict.fromkeys(metric for found in matrices.values() for metric in found):
        there = {name: summary(found[metric]) for name, found in matrices.items() if metric in found}
        rows = {row: [row] for lines in there.values() for row, *_ in lines}
        for lines in there.values():
            means = {row: cells for row, *cells in lines}
            for row, cells in rows.items():
                cells += ["" if mean is None else f"{mean:.2f}" for mean in means.get(row, [None] * 3)]
        heads = [("", 1), *((name, 3) for name in there)]
        header = ["direct", *("low", "high", "all") * len(there)]
        parts.append(_details(metric, table(header, rows.values(), 1, heads)))
    return "\n".join(parts)


def _counts(counted, picture, metric, threshold):
    rows = []
    for code in sorted({code for found in counted.values() for code in found}):
        rows.append([code, language(code)[1]])
        for found in counted.values():
            count = found.get(code)
            rows[-1] += [count.into_above, count.into, count.out_of_above, count.out_of] if count else [""] * 4
    heads = [("", 2), *((name, 4) for name in counted)]
    header = ["code", "language", *("X→L", "of", "L→X", "of") * len(counted)]
    note = (
        f"For each language L, the directions into it (X→L) and out of it (L→X) above {threshold:g} {metric}, and of "
        "how many. Each point is a language, a larger one several; Arabic is red, English blue."
    )
    return f"<p>{text(note)}</p>{_image(picture)}{_details('Table', table(header, rows, 2, heads))}"


def _seen(split, picture, metric):
    rows = []
    for name, groups in split.items():
        for group, sides in groups.items():
            numbers = [part for scores in sides.values() for part in (mean_text(scores.values()), len(scores))]
            rows.append([name, group, *numbers])
    header = ["system", "languages", "en→X", "n", "X→en", "n"]
    note = f"<p>Mean {text(metric)} by whether pre-training saw the language X. n: languages.</p>"
    return note + table(header, rows, 2) + (_image(picture) if picture else "")


def _signatures(systems, signatures):
    """Each signature with the metrics and systems it is of."""
    uses = {signature: {} for signature in signatures}
    for name, rows in systems.items():
        for row in rows:
            use = uses[row["signature"]]
            use[row["metric"], name] = use.get((row["metric"], name), 0) + 1
    items = []
    for signature, use in uses.items():
        metrics = dict.fromkeys(metric for metric, _ in use)
        told = "; ".join(
            f"{metric}: " + ", ".join(f"{name} ({n:,})" for (each, name), n in use.items() if each == metric)
            for metric in metrics
        )
        items.append(f"<li><code>{text(signature)}</code><br>{text(told)}</li>")
    return "<p>With each the metric, systems and number of directions.</p><ol>" + "\n".join(items) + "</ol>"


def _sample(source, target, lines, names):
    header = ["line", f"source ({source})", *names, f"reference ({target})"]
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    # dir=auto: a browser finds the direction of Arabic or Hebrew by the text itself
    body = "\n".join(
        f"<tr><td>{number}</td>{''.join(f'<td dir=auto>{text(each)}</td>' for each in texts)}</tr>"
        for number, texts in lines
    )
    titles = [language(code)[1] for code in (source, target)]
    grid = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return _details(f"{source}-{target}: {titles[0]} → {titles[1]}", f'<div class="wide">{grid}</div>', True)
