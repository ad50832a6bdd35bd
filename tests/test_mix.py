"""Mixes of datasets: the authors' counts against references worked out another way, caps, shares, the printed line."""

import argparse
import csv
import json
import shlex
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from conftest import SHARED, fails, needs_shared, snapshot, stage
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.utils import get_blend_from_list

from llamax.data import data_prefixes
from llamax.files import InputError
from mix import Source, fill, mix

COUNTS = SHARED / "llamax_counts.csv"
MONO, PAIRS = 55_081_793, 387_781_042  # their sums
THIRD = Fraction(3, 10)


def dataset(prefix, counts, kind="mono", tokenizer="a" * 32, **fields):
    """Write the manifest of a dataset with {language or pair: tokens}; returns the prefix."""
    counts = {group: {"records": n // 20, "tokens": n, "words": n // 2} for group, n in counts.items()}
    arguments = {"tokenizer": {"blake2b": tokenizer, "vocab_size": 32000, "file": "t.model", "kind": "sentencepiece"}}
    value = {"kind": kind, "arguments": arguments, "counts": counts, "rejected": {}, "rejects": {}, **fields}
    prefix.with_name(f"{prefix.name}.json").write_text(json.dumps(value))
    return prefix


def source(name, tokens, kind="mono"):
    return Source(name, kind, {name: tokens}, tokens)


def table(printed):
    """The printed table: {what stands before the numbers: (count, share in percent, drawn, epochs)}."""
    found = {}
    for line in printed.splitlines()[1:]:
        if not line.startswith("--data-path"):
            *names, count, share, drawn, epochs = line.replace(",", "").split()
            found[" ".join(names)] = (int(count), float(share[:-1]), int(drawn), epochs)
    return found


def authors_mix(tmp_path, *options, column="mono"):
    """(the printed table, {language: row of --json}) of a mix of the authors' counts."""
    output = tmp_path / "mix.json"
    printed = stage("mix.py", "--counts", COUNTS, "--column", column, "--json", output, *options)
    assert "--data-path" not in printed
    mixed = json.loads(output.read_text())
    assert mixed["data_path"] == []
    return printed, {row["source"]: row for row in mixed["sources"]}


# ---- the paper's 102 languages


@needs_shared
def test_natural_mix_of_the_authors_counts(tmp_path):
    printed, found = authors_mix(tmp_path, "--by", "natural")
    assert printed.splitlines()[0].split() == ["kind", "source", "language", "sentences", "share", "drawn", "epochs"]
    with open(COUNTS, encoding="utf-8") as file:
        expected = {row["lang"]: int(row["mono"]) for row in csv.DictReader(file)}
    assert len(found) == 102 and found.keys() == expected.keys() and sum(expected.values()) == MONO
    for lang, row in found.items():
        assert row["count"] == row["drawn"] == expected[lang]
        assert row["share"] == expected[lang] / MONO
        assert row["epochs"] == (1 if expected[lang] else None)
    assert list(found)[:4] == ["de", "ru", "en", "it"]
    lines = table(printed)
    assert lines["mono af af"] == (703546, 1.2773, 703546, "1.000")  # 703,546 of 55,081,793
    assert lines["mono kea kea"] == (0, 0, 0, "-")
    assert lines["total all kinds"] == (MONO, 100, MONO, "1.000")


@needs_shared
def test_temperature_mix_of_the_authors_counts(tmp_path):
    """Against exp(0.3 ln n) in 40 digits, and against shares that awk gave."""
    printed, found = authors_mix(tmp_path, "--by", "temperature")
    with localcontext() as context:
        context.prec = 40
        powers = {lang: (Decimal(row["count"]).ln() * 3 / 10).exp() for lang, row in found.items() if row["count"]}
        shares = {lang: float(power / sum(powers.values())) for lang, power in powers.items()}
    nothing = {"ast", "kam", "kea", "luo", "ns", "tl", "umb", "zhtrad"}
    assert found.keys() - shares.keys() == nothing
    for lang, row in found.items():
        assert row["share"] == pytest.approx(shares.get(lang, 0), rel=1e-12, abs=0)
        assert row["drawn"] == pytest.approx(shares.get(lang, 0) * MONO, rel=1e-12, abs=0)
    awk = {"de": 0.012605948384, "af": 0.011781178758, "wo": 0.001581271497, "ff": 0.000551433315}
    assert {lang: round(found[lang]["share"], 12) for lang in awk} == awk
    assert table(printed)["mono ff ff"] == (26, 0.0551, 30374, "1168.228")


@needs_shared
def test_capped_mix_of_the_authors_counts(tmp_path):
    """At most 4 epochs: seven languages are capped, 54,656,389 sentences are left for 87 with powers of 4,715.2647."""
    _, found = authors_mix(tmp_path, "--by", "temperature", "--max-epochs", 4)
    capped = {lang for lang, row in found.items() if row["epochs"] == 4}
    assert capped == {"ff", "wo", "ln", "lg", "om", "as", "oc"}
    assert sum(found[lang]["count"] for lang in capped) == 26 + 871 + 3325 + 13030 + 18895 + 33825 + 36379
    rest = {lang: row for lang, row in found.items() if row["count"] and lang not in capped}
    assert len(rest) == 87 and max(row["epochs"] for row in rest.values()) < 4
    for row in rest.values():
        assert row["drawn"] == pytest.approx(54_656_389 * row["count"] ** 0.3 / 4715.264696125, rel=1e-10)
    assert sum(row["drawn"] for row in found.values()) == pytest.approx(MONO, rel=1e-12)
    assert round(found["or"]["epochs"], 6) == 3.651976  # above 4 if what the caps leave were not divided again


@needs_shared
def test_pairs_have_their_unit(tmp_path):
    printed, found = authors_mix(tmp_path, "--by", "natural", column="para")
    assert printed.splitlines()[0].split()[3] == "pairs"
    assert table(printed)["parallel en en"] == (19548583, 5.0411, 19548583, "1.000")
    assert found["kam"]["share"] == 8 / PAIRS
    assert [lang for lang, row in found.items() if not row["drawn"]] == ["kea"]


# ---- what a mix is


def test_exponents():
    sources = [source("a", 16), source("b", 1), source("c", 0)]
    assert mix(sources, Fraction(1)) == {"a": 16, "b": 1, "c": 0}
    assert mix(sources, Fraction(1, 2), total=10) == {"a": 8, "b": 2, "c": 0}
    assert mix(sources, Fraction(0), total=10) == {"a": 5, "b": 5, "c": 0}  # though 0**0 is 1


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=12).filter(any),
    st.sampled_from([Fraction(0), THIRD, Fraction(1)]),
    st.fractions(Fraction(1, 100), 100),
    st.fractions(0, 1).filter(bool),
)
def test_water_filling(tokens, exponent, max_epochs, part):
    """The conditions that only one mix meets: the total is drawn, no source is above its cap, those below keep their
    proportions, and none is capped that would have stayed below in these proportions."""
    total = part * max_epochs * sum(tokens)
    drawn = mix([source(str(i), n) for i, n in enumerate(tokens)], exponent, None, max_epochs, total)
    assert sum(drawn.values()) == total
    levels = {}
    for i, n in enumerate(tokens):
        assert 0 <= drawn[str(i)] <= n * max_epochs
        if n:
            levels[i] = drawn[str(i)] / Fraction(n**exponent)
    below = {level for i, level in levels.items() if drawn[str(i)] < tokens[i] * max_epochs}
    assert len(below) <= 1
    assert all(level <= max(below, default=level) for level in levels.values())


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.fractions(0, 1)), min_size=1, max_size=8).filter(
        lambda x: any(w for _, w in x)
    ),
    st.fractions(0, 1),
)
def test_water_filling_of_any_weights(parts, part):
    """As above; here a small part may have a large weight, as the kinds of --share do."""
    sizes, weights = (list(column) for column in zip(*parts, strict=True))
    total = 2 * part * sum(size for size, weight in parts if weight)
    filled = fill(total, sizes, weights, 2)
    assert sum(filled) == total
    assert all(0 <= n <= 2 * size for n, size in zip(filled, sizes, strict=True))
    assert not any(n for n, weight in zip(filled, weights, strict=True) if not weight)
    levels = {n / weight: n < 2 * size for n, size, weight in zip(filled, sizes, weights, strict=True) if weight}
    below = {level for level, is_below in levels.items() if is_below}
    assert len(below) <= 1 and max(levels) <= max(below, default=max(levels))


def test_a_cap_that_nothing_reaches_changes_nothing():
    sources = [source("a", 1000), source("b", 10)]
    assert mix(sources, THIRD, None, Fraction(1000)) == mix(sources, THIRD)


def test_one_epoch_of_everything_is_the_natural_mix():
    sources = [source("a", 3), source("b", 10**13 + 1), source("c", 7)]
    assert mix(sources, THIRD, None, Fraction(1)) == mix(sources, Fraction(1)) == {"a": 3, "b": 10**13 + 1, "c": 7}


def test_shares_go_to_kinds_then_by_tokens():
    sources = [source("a", 100, "x"), source("b", 300, "x"), source("c", 5, "y")]
    shares = {"x": Fraction(4, 5), "y": Fraction(1, 5)}
    assert mix(sources, Fraction(1), shares, total=1000) == {"a": 200, "b": 600, "c": 200}
    assert mix(sources, Fraction(0), shares, total=1000) == {"a": 400, "b": 400, "c": 200}
    assert mix(sources, Fraction(1), {"x": Fraction(1), "y": Fraction(0)}) == {"a": 100, "b": 300, "c": 0}


@pytest.mark.parametrize(
    ("max_epochs", "total", "expected"),
    [
        (2, 500, {"a": 200, "b": 200, "c": 100}),
        ("1.5", 500, {"a": 150, "b": 250, "c": 100}),  # inside its kind, whose share stays
        (2, 1200, {"a": 200, "b": 600, "c": 400}),  # the kind would have got 960: the rest goes to the other
    ],
)
def test_shares_under_a_cap(max_epochs, total, expected):
    sources = [source("a", 100, "x"), source("b", 300, "x"), source("c", 1000, "y")]
    shares = {"x": Fraction(4, 5), "y": Fraction(1, 5)}
    assert mix(sources, Fraction(0), shares, Fraction(max_epochs), total) == expected


def test_what_a_kind_without_share_has_does_not_count_as_there():
    sources = [source("a", 100, "x"), source("b", 10**6, "y")]
    with pytest.raises(InputError, match=r"--max-epochs 2: gives at most 200, wanted are 201; raise it to 2.01"):
        mix(sources, Fraction(1), {"x": Fraction(1), "y": Fraction(0)}, Fraction(2), 201)


def test_thousands_of_sources():
    sources = [source(f"{i}", (i * 7919) % 10**6 + 1) for i in range(5000)]
    drawn = mix(sources, THIRD, None, Fraction(4), sum(s.count for s in sources))
    assert sum(drawn.values()) == sum(s.count for s in sources)


# ---- the command


@pytest.fixture
def folder(tmp_path):
    dataset(tmp_path / "fr", {"fr": 1000})
    dataset(tmp_path / "three", {"en": 6000, "th": 2000, "fr": 0})
    dataset(tmp_path / "few", {"en-fr": 500, "en-zh": 1500}, kind="parallel")
    dataset(tmp_path / "many", {f"en-{a}aa_Latn": 100 + i for i, a in enumerate("abcdefghijk")}, kind="parallel")
    dataset(tmp_path / "empty", {})
    dataset(tmp_path / "other", {"fr": 1000}, tokenizer="b" * 32)
    (tmp_path / "old.json").write_text(json.dumps({"kind": "mono", "languages": {"fr": 3}, "arguments": {}}))
    (tmp_path / "list.json").write_text("[]")
    for name, text in {
        "good.csv": "lang,mono\nfr,10\nth,30\n",
        "code.csv": "lang,mono\nfr,10\nxx,30\n",
        "twice.csv": "lang,mono\nfr,10\nfra,30\n",
        "word.csv": "lang,mono\nfr,many\n",
        "minus.csv": "lang,mono\nfr,-1\n",
        "zero.csv": "lang,mono\nfr,0\n",
        "header.csv": "",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes(b"lang,mono\ncaf\xe9,3\n")
    return tmp_path


def test_the_line_is_what_training_reads(folder):
    """Weights are shares of the tokens, and a source that gets nothing is left out; a space needs quotes."""
    spaced = dataset(folder / "a b", {"zh": 7000})
    inputs = [folder / "fr.json", folder / "three", folder / "empty", spaced]
    printed = stage("mix.py", "--input", *inputs, "--by", "natural")
    words = shlex.split(printed.splitlines()[-1])
    assert words[0] == "--data-path"
    assert data_prefixes(argparse.Namespace(data_path=words[1:], valid_data_path=None)) == [
        str(folder / name) for name in ("three", "a b", "fr")
    ]
    assert get_blend_from_list(words[1:])[1] == [0.5, 0.4375, 0.0625]
    assert table(printed)[f"mono {folder / 'empty'} 0 languages"] == (0, 0, 0, "-")


def test_weights_are_exact_enough(folder):
    tiny = dataset(folder / "tiny", {"ff": 3})
    huge = dataset(folder / "huge", {"en": 10**12})
    some = dataset(folder / "some", {"fr": 123_456_789})
    printed = stage("mix.py", "--input", tiny, huge, some, "--by", "natural", "--train-tokens", "1e9")
    weights = dict(zip(*get_blend_from_list(shlex.split(printed.splitlines()[-1])[1:]), strict=True))
    total = 10**12 + 123_456_789 + 3
    assert weights[str(tiny)] == pytest.approx(3 / total, rel=1e-9)
    assert weights[str(some)] == pytest.approx(123_456_789 / total, rel=1e-9)
    assert table(printed)["total all kinds"] == (total, 100, 10**9, "0.001")


def test_table_of_datasets(folder):
    """Largest kind, source and language first; a source's languages below it, many pairs only as their number."""
    inputs = [folder / "fr", folder / "three", f"code={folder / 'many'}", folder / "few"]
    command = ("--by", "natural", "--train-tokens", 24310)
    printed = stage("mix.py", "--input", *inputs, *command)
    lines = table(printed)
    assert printed.splitlines()[0].split()[3] == "tokens"
    assert lines == {
        f"mono {folder / 'three'} 3 languages": (8000, 65.8165, 16000, "2.000"),
        "en": (6000, 49.3624, 12000, "2.000"),
        "th": (2000, 16.4541, 4000, "2.000"),
        "fr": (0, 0, 0, "-"),
        f"mono {folder / 'fr'} fr": (1000, 8.2271, 2000, "2.000"),
        f"parallel {folder / 'few'} 2 pairs": (2000, 16.4541, 4000, "2.000"),
        "en-zh": (1500, 12.3406, 3000, "2.000"),
        "en-fr": (500, 4.1135, 1000, "2.000"),
        f"code {folder / 'many'} 11 pairs": (1155, 9.5023, 2310, "2.000"),
        "total mono": (9000, 74.0436, 18000, "2.000"),
        "total parallel": (2000, 16.4541, 4000, "2.000"),
        "total code": (1155, 9.5023, 2310, "2.000"),
        "total all kinds": (12155, 100, 24310, "2.000"),
    }
    kinds = [name.split()[0] for name in lines]
    assert kinds == ["mono", "en", "th", "fr", "mono", "parallel", "en-zh", "en-fr", "code", *["total"] * 4]
    assert list(lines)[-4:] == ["total mono", "total parallel", "total code", "total all kinds"]
    every = stage("mix.py", "--input", folder / "many", "--by", "natural", "--languages")
    assert [name for name in table(every) if name.startswith("en-")] == [f"en-{a}aa_Latn" for a in "kjihgfedcba"]


def test_shares_in_percent_fractions_and_rounded(folder):
    """KIND= comes before the manifest's kind; EMMA-500's mono mix sums to 99.9; inside a kind it goes by tokens."""
    inputs = [
        f"books={folder / 'fr'}",
        folder / "three",
        folder / "few",
        dataset(folder / "half", {"de": 1000}, "parallel"),
    ]
    for shares in (["mono=50", "parallel=40", "books=9.9"], ["mono=0.5", "parallel=.4", "books=0.099"]):
        output = folder / "out.json"
        stage("mix.py", "--input", *inputs, "--by", "shares", "--share", *shares, "--json", output)
        found = json.loads(output.read_text())
        assert {kind: row["share"] for kind, row in found["totals"].items()} == {
            "mono": 500 / 999, "parallel": 400 / 999, "books": 99 / 999, "all kinds": 1,
        }  # fmt: skip
        shares = {row["source"]: row["share"] for row in found["sources"] if row["kind"] == "parallel"}
        assert shares == {str(folder / "few"): 800 / 2997, str(folder / "half"): 400 / 2997}


ERRORS = {
    "two tokenizers": (["--input", "fr", "other"], ["other: made with another tokenizer", "bbb) than", "/fr (aaa"]),
    "no manifest": (["--input", "nowhere"], ["nowhere.json: does not exist"]),
    "an older manifest": (["--input", "old"], ["old.json: no manifest that can be used", "preprocess again"]),
    "something else": (["--input", "list"], ["list.json: no manifest that can be used"]),
    "the same twice": (["--input", "fr", "fr.json"], ["--input: a dataset is given twice"]),
    "no tokens": (["--input", "empty"], ["all sources: nothing to draw from"]),
    "nothing to read": ([], ["--input and --counts: give one of the two"]),
    "a cap too low": (
        ["--input", "fr", "three", "--max-epochs", "1.5", "--train-tokens", "2e4"],
        ["--max-epochs 1.5: gives at most 13,500, wanted are 20,000; raise it to 2.23 or lower --train-tokens"],
    ),
    "several at once": (
        ["--counts", "good.csv", "--max-epochs", "0", "--exponent", "0.5", "--share", "mono=30"],
        ["--counts and --column", "--max-epochs", "--exponent: natural has none", "--share and --by", "sum is 30"],
    ),
    "a manifest as output": (["--input", "fr", "--json", "fr.json"], ["fr.json: is read here; choose another name"]),
    "the counts as output": (["--counts", "good.csv", "--json", "good.csv"], ["good.csv: is read here"]),
    "an exponent above 1": (["--by", "temperature", "--input", "fr", "--exponent", "30"], ["--exponent 30: expected"]),
    "no number": (["--input", "fr", "--max-epochs", "nan"], ["--max-epochs: 'nan': expected a decimal number"]),
    "division by zero": (["--input", "fr", "--train-tokens", "1/0"], ["--train-tokens: '1/0': expected a decimal"]),
    "an unknown code": (["--counts", "code.csv"], ["code.csv line 3: language 'xx': not known"]),
    "a code twice": (["--counts", "twice.csv"], ["twice.csv line 3: fr is there twice"]),
    "no count": (["--counts", "word.csv"], ["word.csv line 2: invalid literal", "'many'; correct lang or mono"]),
    "a count below 0": (["--counts", "minus.csv"], ["minus.csv line 2: fr is there twice or below 0"]),
    "only zeros": (["--counts", "zero.csv"], ["all sources: nothing to draw from"]),
    "an empty file": (["--counts", "header.csv"], ["all sources: nothing to draw from"]),
    "not UTF-8": (["--counts", "latin.csv"], ["latin.csv line 0: 'utf-8' codec"]),
}
SHARE_ERRORS = {
    "another sum": (["mono=50", "parallel=40"], ["--share: the sum is 90, expected 1 or 100"]),
    "a kind too few": (["mono=100"], ["--share: names mono; expected the kinds of the sources: mono, parallel"]),
    "a kind too many": (["mono=50", "parallel=40", "code=10"], ["--share: names code, mono, parallel; expected"]),
    "a kind twice": (["mono=50", "mono=50"], ["--share: a kind is given twice"]),
    "below 0": (["mono=-1", "parallel=101"], ["--share: '-1': expected a decimal number"]),
    "no kind": (["50"], ["--share: '50': expected KIND=X"]),
}


def fails_leaving_all(folder, arguments, saying):
    """Names of files in the folder get its path; what is there stays as it is."""
    names = {name for path in folder.iterdir() for name in (path.name, path.stem)} | {"nowhere"}
    before = snapshot(folder)
    fails("mix.py", *(folder / word if word in names else word for word in arguments), saying=saying)
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, folder):
    arguments, saying = ERRORS[name]
    if name != "several at once" and "--counts" in arguments:
        arguments = [*arguments, "--column", "mono"]
    fails_leaving_all(folder, ["--by", "natural", *arguments], [text.replace("bbb", "b" * 32) for text in saying])


@pytest.mark.parametrize("name", SHARE_ERRORS)
def test_errors_of_shares(name, folder):
    shares, saying = SHARE_ERRORS[name]
    fails_leaving_all(folder, ["--input", "fr", "few", "--by", "shares", "--share", *shares], saying)
