"""Reports of scores: the nine published systems, the layouts of tables, groups, counts, pages that hold any text."""

import base64
import csv
import io
import json
import math
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from conftest import ENVIRONMENT, ROOT, SHARED, needs_shared, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from llamax.files import InputError
from llamax.languages import load
from llamax.report import read_scores, read_system, write_report
from llamax.report_figures import counts_png, matrix_png, seen_png
from llamax.report_page import TEMPLATE, data, page
from llamax.report_tables import (
    HIGH,
    averages,
    by_seen,
    counts,
    counts_csv,
    differences,
    direction_matrix,
    matrix_csv,
    seen_csv,
    shared,
    summary_csv,
)

RESULTS = SHARED / "llamax_results"
SYSTEMS = {  # directions of each metric
    "Aya-101": 1372, "LLaMA2-7B": 1372, "LLaMA2-7B-Alpaca": 1560, "LLaMA3-8B-Alpaca": 1372,
    "LLaMAX2-7B-Alpaca": 1560, "MADLAD-400-7B-MT": 1372, "NLLB-200": 1372, "PolyLM": 1372,
    "Swallow-7B-Instruct-v0.1": 202,
}  # fmt: skip


def row(src, tgt, score, metric="spBLEU", n=10, signature="v:2"):
    return {"src": src, "tgt": tgt, "metric": metric, "score": score, "n": n, "signature": signature}


def read_csv(text):
    header, *rows = csv.reader(io.StringIO(text))
    return header, {cells[0]: cells[1:] for cells in rows}


# The published systems


@needs_shared
@pytest.mark.parametrize("system", SYSTEMS)
def test_published_systems_give_the_published_averages(system):
    """The authors averaged scores with more decimals than they published: the last one may differ by one."""
    rows = read_system(RESULTS / system)
    for metric in ("spBLEU", "COMET"):
        assert len([each for each in rows if each["metric"] == metric]) == SYSTEMS[system]
        matrix = direction_matrix(rows, metric)
        text = (RESULTS / system / f"{metric}.csv").read_bytes().decode("utf-8")
        found = matrix_csv(matrix).split("\r\n")
        assert found[0] == text.split("\r\n")[0] and sorted(found) == sorted(text.split("\r\n"))
        header, expected = read_csv((RESULTS / system / f"{metric}_summary.csv").read_text(encoding="utf-8"))
        header_found, means = read_csv(summary_csv(matrix))
        assert header_found == header == ["direct", "low", "high", "all"]
        assert means.keys() == expected.keys()
        for name in expected:
            for mean, published in zip(means[name], expected[name], strict=True):
                assert abs(round(100 * float(mean)) - round(100 * float(published))) <= 1, (metric, name)
    assert {(each["n"], each["signature"]) for each in rows} == {(None, "published")}


@needs_shared
def test_a_direction_in_two_published_rows_has_one_score():
    """en-zh stands in en-x and in x-zh; in all 18 tables such scores agree, else read_system would refuse them."""
    for system in SYSTEMS:
        header, table = read_csv((RESULTS / system / "spBLEU.csv").read_text(encoding="utf-8"))
        if "zh-x" in table:
            assert table["en-x"][header.index("zh") - 1] == table["x-zh"][header.index("en") - 1] != "/"


@needs_shared
def test_counts_of_a_published_system():
    _, table = read_csv((RESULTS / "LLaMAX2-7B-Alpaca" / "spBLEU.csv").read_text(encoding="utf-8"))
    found = counts(read_system(RESULTS / "LLaMAX2-7B-Alpaca"), "spBLEU", 10)
    assert len(found) == 102 and list(found) == sorted(found)
    for code in ("en", "ar", "zh"):
        above = [sum(cell != "/" and float(cell) > 10 for cell in table[name]) for name in (f"x-{code}", f"{code}-x")]
        assert [found[code].into_above, found[code].out_of_above] == above
        assert (found[code].into, found[code].out_of) == (101, 101)
    assert (found["fr"].into, found["fr"].out_of) == (8, 8)


def test_high_languages_are_the_papers():
    assert len(HIGH) == 26 and set(load()) > HIGH


# Reading


def test_any_metrics_but_the_same_for_all_directions(tmp_path):
    rows = [row("en", "fr", 1.0, "COMET"), row("fr", "en", 2.0, "COMET")]
    write_jsonl(tmp_path / "scores.jsonl", rows)
    assert read_system(tmp_path) == read_scores(tmp_path) == rows
    rows.append(row("en", "fr", 3.5, "R_tgt"))  # no language identification of the other: the model has no label
    write_jsonl(tmp_path / "scores.jsonl", rows)
    assert read_scores(tmp_path) == rows
    write_jsonl(tmp_path / "scores.jsonl", [*rows, row("en", "fr", 4.0, "BLEU")])
    with pytest.raises(InputError, match="no BLEU of fr-en; run"):
        read_scores(tmp_path)


@pytest.mark.parametrize(
    ("line", "saying"),
    [
        ("{", "line 2: no score"),
        ('{"src": "en"}', "line 2: no score"),
        ('{"src": "en", "tgt": "de", "metric": "spBLEU", "score": NaN, "n": 1, "signature": ""}', "score nan"),
        ('{"src": "en", "tgt": "de", "metric": "spBLEU", "score": null, "n": 1, "signature": ""}', "line 2: no score"),
        ('{"src": "en", "tgt": "fr", "metric": "spBLEU", "score": 1, "n": 1, "signature": ""}', "a second spBLEU"),
    ],
)
def test_what_is_no_score_is_named(tmp_path, line, saying):
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps(row("en", "fr", 1.0)) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=saying):
        read_system(tmp_path)


def test_folders_without_scores(tmp_path):
    with pytest.raises(InputError, match=r"no scores.jsonl in it; run evaluate.py score"):
        read_system(tmp_path)
    (tmp_path / "scores.jsonl").write_text("")
    with pytest.raises(InputError, match="empty"):
        read_system(tmp_path)


PUBLISHED = "direct,de,en,fr\r\nen-x,1.50,/,2.00\r\nx-en,3.00,/,4.00\r\nfr-x,,4.00,/\r\n"


def test_published_tables_may_have_gaps(tmp_path):
    (tmp_path / "COMET.csv").write_text(PUBLISHED + "\r\n", newline="")
    scores = {(each["src"], each["tgt"]): each["score"] for each in read_system(tmp_path)}
    assert scores == {("en", "de"): 1.5, ("en", "fr"): 2.0, ("de", "en"): 3.0, ("fr", "en"): 4.0}


@pytest.mark.parametrize(
    ("old", "new", "saying"),
    [
        ("direct", "system", "line 1: begins with"),
        ("en,fr", "en,xx", "line 1: language 'xx'"),
        ("x-en", "de-en", "line 3: 'de-en' with 3 cells"),
        ("x-en", "yy-x", "line 3: language 'yy'"),
        ("1.50,/,2.00", "1.50,2.00", "line 2: 'en-x' with 2 cells"),
        ("1.50", "1,50", "line 2: 'en-x' with 4 cells"),
        ("1.50", "nan", "line 2: en-de is 'nan'"),
        ("1.50", "/", "line 2: en-de is '/'"),
        ("1.50,/", "1.50,7", "line 2: en-en is '7'"),
        ("fr-x,,4.00", "fr-x,,4.01", "line 4: fr-en is 4.01, 4.0 before"),
        (PUBLISHED, "direct,de\r\n", "no scores in it"),
        (PUBLISHED, "", "no table"),
    ],
)
def test_published_tables_with_faults(tmp_path, old, new, saying):
    (tmp_path / "spBLEU.csv").write_text(PUBLISHED.replace(old, new, 1), newline="")
    with pytest.raises(InputError, match=re.escape(saying)) as caught:
        read_system(tmp_path)
    assert "spBLEU.csv" in str(caught.value)


# Tables


def test_directions_in_no_complete_row_have_one_of_their_own():
    rows = [row(a, b, float(i)) for i, (a, b) in enumerate([("en", "de"), ("en", "fr"), ("de", "fr")])]
    assert matrix_csv(direction_matrix(rows, "spBLEU")).split("\r\n") == [
        "direct,de,en,fr",
        "en-x,0.00,/,1.00",
        "x-fr,2.00,1.00,/",
        "",
    ]
    assert matrix_csv(direction_matrix(rows[1:], "spBLEU")).split("\r\n")[1:] == ["x-fr,2.00,1.00,/", ""]
    gaps = direction_matrix([*rows[:1], rows[2]], "spBLEU")
    assert matrix_csv(gaps).split("\r\n")[1:] == ["de-x,/,,2.00", "en-x,0.00,/,", ""]
    assert summary_csv(gaps).split("\r\n") == ["direct,low,high,all", "de-x,,2.00,2.00", "en-x,,0.00,0.00", ""]


def test_a_summary_groups_by_the_language_on_the_side_x():
    rows = [row("zh", "fr", 10.0), row("zh", "en", 30.0), row("zh", "sw", 2.0), row("en", "sw", 5.0)]
    lines = dict(line.split(",", 1) for line in summary_csv(direction_matrix(rows, "spBLEU")).split("\r\n")[1:-1])
    assert lines["zh-x"] == "2.00,20.00,14.00"  # zh is low, yet zh-fr counts as high
    assert lines["en-x"] == "5.00,,5.00"


def test_averages_by_group():
    directions = [("en", "de"), ("de", "en"), ("de", "fr"), ("sw", "de")]
    rows = [
        row(a, b, float(f * i), m) for i, (a, b) in enumerate(directions) for m, f in (("spBLEU", 1), ("chrF++", 2))
    ]
    assert averages(rows) == {
        "all": {"spBLEU": (1.5, 4), "chrF++": (3.0, 4)},
        "low": {"spBLEU": (3.0, 1), "chrF++": (6.0, 1)},
        "high": {"spBLEU": (1.0, 3), "chrF++": (2.0, 3)},
        "en-x": {"spBLEU": (0.0, 1), "chrF++": (0.0, 1)},
        "x-en": {"spBLEU": (1.0, 1), "chrF++": (2.0, 1)},
        "non-English": {"spBLEU": (2.5, 2), "chrF++": (5.0, 2)},
    }
    assert averages(rows[:2]).keys() == {"all", "high", "en-x"}


def test_systems_are_compared_over_the_directions_they_share():
    systems = {
        "a": [row("en", "de", 10.0), row("en", "fr", 50.0), row("en", "de", 70.0, "COMET")],
        "b": [row("en", "de", 20.0), row("de", "en", 1.0)],
    }
    assert shared(systems) == {"a": systems["a"][:1], "b": systems["b"][:1]}
    assert differences(systems["b"], systems["a"]) == [row("en", "de", 10.0)]


def test_counts_are_of_scores_above_the_threshold():
    rows = [row("en", "de", 10.0), row("en", "fr", 10.01), row("de", "fr", 30.0), row("en", "de", 99.0, "COMET")]
    assert counts_csv({"a": counts(rows, "spBLEU", 10.0)}).split("\r\n") == [
        "system,language,X-L above,X-L directions,L-X above,L-X directions",
        "a,de,0,1,1,1",
        "a,en,0,0,1,2",
        "a,fr,2,2,0,0",
        "",
    ]


def test_seen_against_unseen():
    rows = [
        row("en", "fr", 30.0), row("en", "sw", 20.0), row("en", "ace_Arab", 4.0), row("fr", "en", 40.0),
        row("ace_Arab", "fr", 99.0), row("ban_Latn", "en", 6.0), row("en", "fr", 99.0, "COMET"),
    ]  # fmt: skip
    found = by_seen(rows, "spBLEU", set(load()))
    assert found["unseen"] == {"en-x": {"ace_Arab": 4.0}, "x-en": {"ban_Latn": 6.0}}
    assert seen_csv({"a": found}).split("\r\n") == [
        "system,languages,en-x,en-x languages,x-en,x-en languages",
        "a,seen,25.00,2,40.00,1",
        "a,unseen,4.00,1,6.00,1",
        "",
    ]
    assert by_seen(rows, "spBLEU", {"fr"})["unseen"]["en-x"] == {"sw": 20.0, "ace_Arab": 4.0}


# Pictures


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_pictures_of_all_directions():
    """10,302 directions: at 150 dots an inch each row and column has room for its label of 8 points, 17 dots."""
    codes = list(load())
    rows = [row(a, b, float((7 * i + 3 * j) % 50)) for i, a in enumerate(codes) for j, b in enumerate(codes) if a != b]
    width, height = size(matrix_png(direction_matrix(rows, "spBLEU")))
    assert width > height > 102 * 17
    half = size(matrix_png(direction_matrix(rows, "spBLEU"), dpi=75))
    assert half == pytest.approx((width / 2, height / 2), abs=1)
    assert size(counts_png({"a": counts(rows, "spBLEU", 10)}, "spBLEU", 10))


def test_pictures_of_little():
    one = [row("fr", "en", 0.0)]
    assert size(matrix_png(direction_matrix(one, "spBLEU")))
    many = {f"$\\x{i}$": counts(one, "spBLEU", 10) for i in range(14)}
    assert size(counts_png(many, "spBLEU", 10))
    split = by_seen(one, "spBLEU", set())
    assert size(seen_png({"a": split, "$\\x$": by_seen([], "spBLEU", set()), "c": split}, "spBLEU"))


# The page


def ours(folder, scores, metrics=("spBLEU", "R_tgt")):
    rows = [row(a, b, score, metric) for (a, b), score in scores.items() for metric in metrics]
    write_jsonl(folder / "scores.jsonl", rows)
    return folder


def test_what_is_written_where(tmp_path):
    for name in ("a", "b", "published"):
        (tmp_path / name).mkdir()
    ours(tmp_path / "a", {("en", "fr"): 12.0, ("fr", "en"): 24.0, ("en", "ace_Arab"): 3.0})
    ours(tmp_path / "b", {("en", "fr"): 1.0})
    (tmp_path / "published" / "spBLEU.csv").write_text(PUBLISHED, newline="")
    outputs = {name: tmp_path / name for name in ("a", "b", "published")}
    systems = {name: read_system(folder) for name, folder in outputs.items()}
    paths = write_report(outputs, systems, tmp_path / "new" / "all.html")
    beside = {f"all_{name}.{ending}" for name in ("counts", "seen") for ending in ("csv", "png")} | {"all.html"}
    own = {what.format(metric) for what in ("matrix_{}.csv", "matrix_{}.png", "summary_{}.csv")
           for metric in ("spBLEU", "R_tgt")}  # fmt: skip
    assert {path.name for path in (tmp_path / "new").iterdir()} == beside
    for name in "ab":
        assert {path.name for path in (tmp_path / name).iterdir()} == own | {"scores.jsonl"}
    assert [path.name for path in (tmp_path / "published").iterdir()] == ["spBLEU.csv"]
    assert paths[-1] == tmp_path / "new" / "all.html" and len(paths) == 2 * len(own) + len(beside)
    text = paths[-1].read_text(encoding="utf-8")
    pictures = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    names = ["a/matrix_spBLEU.png", "b/matrix_spBLEU.png", None, "new/all_counts.png", "new/all_seen.png"]
    for picture, name in zip(pictures, names, strict=True):
        assert size(picture) and (name is None or picture == (tmp_path / name).read_bytes())

    paths = write_report({"b": tmp_path / "b"}, {"b": systems["b"]}, tmp_path / "one.html", seen={"fr"})
    assert sorted(path.name for path in tmp_path.glob("one*")) == ["one.html", "one_counts.csv", "one_counts.png"]


def test_the_same_scores_give_the_same_bytes(tmp_path):
    folder = ours(tmp_path, {("en", "fr"): 12.0, ("fr", "en"): 24.0, ("en", "ace_Arab"): 3.0})
    code = (
        "import sys; from pathlib import Path; from llamax.report import read_system, write_report\n"
        "path = Path(sys.argv[1]); rows = read_system(path)\n"
        "write_report({'a': path, 'b': path}, {'a': rows, 'b': rows[:-2]}, path / 'report.html')\n"
    )
    found = []
    for seed in "12":
        environment = {**ENVIRONMENT, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT, env=environment)
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(found[0]) == 12 and found[0] == found[1]


class Page(HTMLParser):
    """The elements of a page, its text outside of scripts, and the scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts, self.inside = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, text):
        if self.inside == "script":
            self.scripts[-1] += text
        elif self.inside != "style":
            self.text.append(text)


def small_page(systems, samples=(), threshold=10.0):
    matrices = {
        name: {metric: direction_matrix(rows, metric) for metric in dict.fromkeys(each["metric"] for each in rows)}
        for name, rows in systems.items()
    }
    counted = {name: counts(rows, "spBLEU", threshold) for name, rows in systems.items()}
    split = {name: by_seen(rows, "spBLEU", {"fr"}) for name, rows in systems.items()}
    figures = {"counts": b"counts", "seen": b"seen"}
    heat_maps = dict.fromkeys(systems, b"map")
    return page(systems, "spBLEU", matrices, heat_maps, counted, threshold, split, figures, samples)


AWKWARD = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "{{data}}",
    "a\u2028b",
    "&amp;<b>",
    "\\u003c",
    "'\"",
    "مرحبا",
]
ANY = st.one_of(
    st.sampled_from(AWKWARD), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
)


@settings(max_examples=60)
@given(st.lists(ANY, min_size=1, max_size=3, unique=True), ANY, ANY)
def test_no_text_breaks_out_of_the_page(names, signature, sentence):
    systems = {name: [row("en", "fr", 1.0, signature=signature), row("fr", "en", 2.0, "R_tgt")] for name in names}
    samples = [("en", "fr", [(1, (sentence, *names, sentence))])]
    parsed = Page(small_page(systems, samples))
    assert len(parsed.scripts) == 2
    script = TEMPLATE.read_text(encoding="utf-8").rpartition("<script>")[2].partition("</script>")[0]
    assert parsed.scripts[1] == script
    embedded = json.loads(parsed.scripts[0])
    assert embedded["systems"] == names
    assert {tag for tag, _ in parsed.elements}.isdisjoint({"b"})
    told = "".join(parsed.text)
    for expected in (*names, signature, sentence):
        assert expected in told
    for tag, attributes in parsed.elements:  # nothing is fetched
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith("#"), tag
        assert not any(name.startswith("on") for name in attributes)


def test_the_template_asks_for_nothing():
    assert not re.search(
        r"https?:|@import|url\(|innerHTML|fetch\(|XMLHttpRequest", TEMPLATE.read_text(encoding="utf-8")
    )


def test_data_of_the_page():
    """Two decimals, rounded as the tables are; n and signatures once where they are the same."""
    systems = {
        "a": [row("en", "fr", 12.345), row("fr", "en", 2.0, n=9, signature="v:3"), row("en", "fr", 55.0, "COMET")],
        "b": [row("en", "xyz", 1.0, n=None)],
    }
    matrices = {"a": {"spBLEU": direction_matrix(systems["a"], "spBLEU")}, "b": {}}
    found = json.loads(json.dumps(data(systems, matrices, "spBLEU", {"v:2": 1, "v:3": 2})))
    assert found["languages"] == [
        ["en", "English", "Indo-European-Germanic", "high"],
        ["fr", "French", "Indo-European-Romance", "high"],
        ["xyz", "xyz", "", "low"],
    ]
    assert found["directions"] == [[0, 1], [0, 2], [1, 0]]
    assert found["metrics"]["spBLEU"] == {
        "systems": [
            {"scores": [float(f"{12.345:.2f}"), None, 2.0], "n": [10, None, 9], "signature": [1, None, 2]},
            {"scores": [None, 1.0, None], "n": None, "signature": 1},
        ],
        "low": 0.0,
        "high": float(f"{12.345:.2f}"),
    }
    assert found["metrics"]["COMET"]["low"] == 50.0  # COMET's colours would else all be the same
    assert found["metrics"]["COMET"]["systems"][1] is None
    assert found["rows"] == [["en-x", "x-en", "fr-x", "x-fr"], []] and found["dense"]


def test_averages_in_the_page_are_those_of_the_rows():
    systems = {
        "a": [row("en", "fr", 10.0), row("fr", "en", 20.0), row("de", "fr", 60.0)],
        "b": [row("en", "fr", 13.0), row("fr", "en", 27.5)],
    }
    text = small_page(systems)
    tables = [
        re.findall(r"<td[^>]*>([^<]*)</td>", part) for part in text.split('id="averages"')[1].split("<table")[1:4]
    ]
    own, common, difference = tables
    assert own[:3] == ["a", "30.00", "3"] and own[own.index("b") :][:3] == ["b", "20.25", "2"]
    assert common[:3] == ["a", "15.00", "2"] and common[common.index("b") :][:3] == ["b", "20.25", "2"]
    assert difference[:3] == ["b", "+5.25", "2"]
    assert math.isclose(float(difference[1]), 20.25 - 15)
    alone = small_page({"a": systems["a"]})
    assert "all systems have" not in alone and "Difference" not in alone
