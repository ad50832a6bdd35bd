"""Algorithm 1's plan: by tables worked by hand, by a slow reference, on the authors' counts, and as a command."""

import itertools
import json
import subprocess
import sys

import pytest
from conftest import ROOT, SHARED, fails, needs_shared, snapshot, stage, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from llamax.algorithm1 import read_counts, read_plan, rows_by_language, rows_by_pair, sum_by_language
from llamax.files import InputError

# Sentence pairs of six languages; with a minimum of 100. kea has none at all, sw-yo none either.
PAIRS = {"en-fr": 500, "en-sw": 60, "en-yo": 20, "fr-sw": 30, "fr-yo": 9, "en-umb": 100, "fr-umb": 0}
TOTALS = {"en": 680, "fr": 539, "sw": 90, "yo": 29, "umb": 100, "kea": 0}


def run_plan(folder, *arguments, name="plan.json"):
    """(the rows of a plan by the pair they fill, what the command printed)."""
    printed = stage("augment.py", "plan", *arguments, "--output", folder / name)
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    return {row["fills"]: row for row in value["rows"]}, printed


def write_csv(path, header, rows):
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in (header, *rows)), encoding="utf-8")
    return path


@pytest.fixture
def pair_table(tmp_path):
    """PAIRS as a CSV: en-sw in both directions, and en-yo in two rows of the same one."""
    rows = [("en", "sw", 40), ("sw", "en", 20), ("eng", "yor", 15), ("en", "yo", 5)]
    rows += [(*pair.split("-"), n) for pair, n in PAIRS.items() if pair not in ("en-sw", "en-yo")]
    return write_csv(tmp_path / "pairs.csv", ("src", "tgt", "pairs"), rows)


@needs_shared
def test_the_authors_counts(tmp_path):
    """Of the paper's 102 languages, four have fewer than 25,000 pairs: 54, 8, 91 and 0."""
    rows, printed = run_plan(tmp_path, "--counts", SHARED / "llamax_counts.csv")
    assert len(rows) == 102
    filled = {row["language"]: row for row in rows.values() if row["sentences"]}
    assert {code: row["sentences"] for code, row in filled.items()} == {
        "umb": 24_946, "kam": 24_992, "luo": 24_909, "kea": 25_000,
    }  # fmt: skip
    assert filled["umb"] == {
        "language": "umb", "pairs": 54, "repeat": 3, "sentences": 24_946, "into": ["umb"], "fills": "en-umb",
    }  # fmt: skip
    assert all(row["repeat"] is None for row in rows.values() if row["language"] not in filled)
    table = [line.split() for line in printed.splitlines()[:-1]]
    assert table == [
        ["language", "pairs", "repeat", "sentences", "into"],
        ["kea", "0", "3", "25,000", "kea"],
        ["kam", "8", "3", "24,992", "kam"],
        ["umb", "54", "3", "24,946", "umb"],
        ["luo", "91", "3", "24,909", "luo"],
    ]
    assert "102 languages, 4 with fewer than 25,000 sentence pairs, 4 to fill: 99,847 sentences" in printed


def test_by_language_by_hand(tmp_path, pair_table):
    rows, printed = run_plan(tmp_path, "--counts", pair_table, "--minimum", 100, "--languages", "kea", "fra")
    got = {row["language"]: (row["pairs"], row["repeat"], row["repeated_pairs"], row["sentences"], row["into"])
           for row in rows.values()}  # fmt: skip
    assert got == {
        "en": (680, None, 2, 0, []),  # en-sw and en-yo are repeated
        "fr": (539, None, 2, 0, []),
        "kea": (0, 3, 0, 100, ["kea"]),
        "sw": (90, 3, 2, 10, ["sw"]),
        "umb": (100, 1, 0, 0, []),  # 100 are not fewer than 100
        "yo": (29, 3, 2, 71, ["yo"]),
    }
    assert "6 languages, 3 with fewer than 100 sentence pairs, 3 to fill: 181 sentences, 181 translations" in printed
    assert "at least 100 different ones" in printed


def test_by_pair_by_hand(tmp_path, pair_table):
    arguments = ("--counts", pair_table, "--by", "pair", "--minimum", 100, "--repeat", 2)
    rows, printed = run_plan(tmp_path, *arguments, "--languages", "kea", "--high-resource", "fra")
    got = {name: (row["pairs"], row["repeat"], row["sentences"], row["into"]) for name, row in rows.items()}
    assert got == {
        "en-fr": (500, 1, 0, []),
        "en-kea": (0, 2, 100, ["kea"]),
        "en-sw": (60, 2, 40, ["sw"]),
        "en-umb": (100, 1, 0, []),
        "en-yo": (20, 2, 80, ["yo"]),
        "fr-kea": (0, 2, 0, []),  # French is high-resource; what there is of it is repeated all the same
        "fr-sw": (30, 2, 0, []),
        "fr-umb": (0, 2, 0, []),
        "fr-yo": (9, 2, 0, []),
        "kea-sw": (0, 2, 100, ["kea", "sw"]),
        "kea-umb": (0, 2, 100, ["kea", "umb"]),
        "kea-yo": (0, 2, 100, ["kea", "yo"]),
        "sw-umb": (0, 2, 100, ["sw", "umb"]),
        "sw-yo": (0, 2, 100, ["sw", "yo"]),
        "umb-yo": (0, 2, 100, ["umb", "yo"]),
    }
    assert "15 pairs, 13 with fewer than 100 sentence pairs, 9 to fill: 820 sentences, 1,420 trans" in printed
    assert [row["fills"] for row in read_plan(tmp_path / "plan.json")] == [k for k, v in got.items() if v[2]]


def test_high_resource_languages_are_not_filled(tmp_path, pair_table):
    rows, _ = run_plan(tmp_path, "--counts", pair_table, "--minimum", 100, "--high-resource", "sw", "en")
    assert {name: row["sentences"] for name, row in rows.items() if row["sentences"]} == {"en-yo": 71}


codes = st.sampled_from(["en", "fr", "sw", "yo", "umb", "kea", "fao_Latn"])
tables = st.dictionaries(st.tuples(codes, codes).filter(lambda x: x[0] < x[1]), st.integers(0, 40), max_size=12)


@given(tables, st.integers(1, 50), st.integers(2, 8), st.sets(codes), st.sets(codes))
def test_all_that_may_be_filled_has_the_minimum_in_the_end(table, minimum, repeat, high, more):
    languages = {code for pair in table for code in pair} | more
    pairs = {"-".join(pair): n for pair, n in table.items()}

    def of_language(code):
        return sum(n for pair, n in table.items() if code in pair)

    totals = dict.fromkeys(more, 0) | sum_by_language(pairs)
    assert totals == {code: of_language(code) for code in languages}
    rows = rows_by_language(totals, pairs, minimum, repeat, high)
    assert [row["language"] for row in rows] == sorted(languages)
    for row in rows:
        code, n = row["language"], of_language(row["language"])
        assert n + row["sentences"] == (n if code in high or code == "en" else max(n, minimum))
        assert row["into"] == ([code] if row["sentences"] else [])
        repeats = {repeat if n < minimum else 1 for pair, n in table.items() if code in pair and n} or {repeat}
        assert row["repeat"] == (repeats.pop() if len(repeats) == 1 else None)
        assert row["repeated_pairs"] == sum(0 < n < minimum for pair, n in table.items() if code in pair)
    alone = rows_by_language(totals, None, minimum, repeat, high)
    assert [row["sentences"] for row in alone] == [row["sentences"] for row in rows]
    assert [row["repeat"] for row in alone] == [repeat if row["pairs"] < minimum else None for row in rows]

    rows = rows_by_pair(languages, pairs, minimum, repeat, high)
    assert [tuple(row["pair"].split("-")) for row in rows] == list(itertools.combinations(sorted(languages), 2))
    for row in rows:
        pair = tuple(row["pair"].split("-"))
        n = table.get(pair, 0)
        assert n + row["sentences"] == (n if high & {*pair} else max(n, minimum))
        assert row["repeat"] == (repeat if n < minimum else 1)
        assert row["into"] == ([code for code in pair if code != "en"] if row["sentences"] else [])


def test_counts_of_datasets_are_those_before_repetition(tmp_path, tokenizer_model):
    """90 pairs of en-fr in both directions and 40 of fr-th, each repeated; 7 of en-th in a dataset of their own."""

    def records(src, tgt, n):
        return [{"src": f"a {i}", "tgt": f"b {i}", "src_lang": src, "tgt_lang": tgt} for i in range(n)]

    def dataset(name, pairs):
        source = write_jsonl(tmp_path / f"{name}.jsonl", pairs)
        stage("preprocess_parallel.py", "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix",
              tmp_path / name, "--repeat-below", 100, "--workers", 1)  # fmt: skip
        return tmp_path / name

    first = dataset("first", records("en", "fr", 50) + records("fr", "en", 40) + records("th", "fr", 40))
    second = dataset("second", records("en", "th", 7))
    assert json.loads((tmp_path / "first.json").read_text())["sequences"] == 3 * 130
    inputs = ("--input", first, f"{second}.json", "--minimum", 100)
    rows, _ = run_plan(tmp_path, *inputs)
    assert {row["language"]: row["pairs"] for row in rows.values()} == {"en": 97, "fr": 130, "th": 47}
    assert {row["language"]: row["sentences"] for row in rows.values()} == {"en": 0, "fr": 0, "th": 53}
    rows, _ = run_plan(tmp_path, *inputs, "--by", "pair", name="by_pair.json")
    assert {name: (row["pairs"], row["sentences"]) for name, row in rows.items()} == {
        "en-fr": (90, 10), "en-th": (7, 93), "fr-th": (40, 60),
    }  # fmt: skip


def test_done_once_and_never_overwritten(tmp_path, pair_table):
    run_plan(tmp_path, "--counts", pair_table)
    before = snapshot(tmp_path)
    _, again = run_plan(tmp_path, "--counts", pair_table)
    assert again == f"{tmp_path / 'plan.json'}: complete, nothing to do\n"
    same = ("augment.py", "plan", "--output", tmp_path / "plan.json", "--counts")
    fails(*same, pair_table, "--minimum", 7, saying=["made with minimum 25000, now 7; choose another name or remove"])
    fails(*same[:3], pair_table, "--counts", pair_table, saying=[f"{pair_table}", "not valid JSON"])
    pair_table.write_text(pair_table.read_text() + "sw,yo,1\n")
    fails(*same, pair_table, saying=["made with other source files"])
    del before["pairs.csv"]
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1


def test_long_tables_are_cut(tmp_path):
    languages = ["af", "ar", "de", "en", "es", "fr", "it", "nl", "pt", "ro"]
    rows = [(*pair, 1) for pair in itertools.combinations(languages, 2)]
    table = write_csv(tmp_path / "pairs.csv", ("src", "tgt", "pairs"), rows)
    _, printed = run_plan(tmp_path, "--by", "pair", "--counts", table)
    lines = printed.splitlines()
    assert len(lines) == 1 + 40 + 1 + 1 and lines[-2] == "and 5 more"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lang,mono\nfr,3\n", r"line 1: columns lang, mono; expected lang, para or src, tgt, pairs"),
        ("", r"line 1: columns none; expected lang, para"),
        ("lang,para\nfr,3\nxx,4\n", r"line 3: language 'xx': not known"),
        ("lang,para\nfr,3\nfra,4\n", r"line 3: fr is there twice"),
        ("lang,para\nfr,-3\n", r"line 2: fr is there twice, or its count is below 0"),
        ("lang,para\nfr,many\n", r"line 2: invalid literal .* 'many'; correct the file"),
        ("src,tgt,pairs\nfr,en\n", r"line 2: "),
        ("src,tgt,pairs\nfr,en,-1\n", r"line 2: .* below 0"),
    ],
)
def test_counts_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "counts.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_counts(path)


def test_what_cannot_be_planned(tmp_path, pair_table):
    by_language = write_csv(tmp_path / "languages.csv", ("lang", "mono", "para"), [("fr", 1, 2), ("en", 3, 4)])
    (tmp_path / "mono.json").write_text('{"kind": "mono", "counts": {"fr": {"records": 3}}}')
    before = snapshot(tmp_path)
    output = ("--output", tmp_path / "plan.json")
    fails("augment.py", "plan", *output, saying=["--counts and --input: give one of the two"])
    fails(
        "augment.py", "plan", "--counts", tmp_path / "no.csv", "--minimum", 0, "--repeat", 9, "--languages", "xx",
        *output,
        saying=["--minimum 0: expected", "--repeat 9: expected 1 to 8", "--languages: language 'xx'", "no.csv: does"],
    )  # fmt: skip
    fails("augment.py", "plan", "--counts", by_language, "--by", "pair", *output, saying=["--by pair", "src, tgt, pai"])
    fails("augment.py", "plan", "--input", tmp_path / "mono", *output, saying=["mono.json: says of no language pair"])
    assert snapshot(tmp_path) == before


def test_no_command_imports_torch_to_say_what_it_can_do():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "augment.py", "fill", "--help"], capture_output=True, text=True
    )
    assert "--ctranslate2" in result.stdout
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "llamax.filling" in imported and not imported & {"torch", "transformers", "ctranslate2"}
