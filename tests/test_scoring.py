"""Scores and their statistics against sacrebleu's own, line by line, and against published values."""

import csv
import functools
import hashlib
import itertools
import random
from collections import Counter

import numpy as np
import pytest
import sacrebleu
import sentencepiece
from conftest import SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers import tokenizer_spm

from llamax import scoring
from llamax.files import InputError
from llamax.languages import load, resolve
from llamax.ngrams import Ngrams, totals
from llamax.scoring import References

SPBLEU = SHARED / "tokenizers" / "sacrebleu_tokenizer_spm.model"
ENGLISH = resolve("en")


def read(path):
    """A line ends at a newline only, as in the files of all these test sets."""
    return path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def flores(code, split="devtest"):
    return read(SHARED / f"flores101/{split}/{getattr(resolve(code), f'flores101_{split}')}.{split}")


def worse(lines, language, seed=1):
    """The lines with a tenth of the words (or characters) left out and a tenth replaced by others of their line."""
    rng, space = random.Random(seed), " " if language.spaces else ""
    split = [line.split(" ") if language.spaces else list(line) for line in lines]
    kept = [[rng.choice(words) if rng.random() < 0.1 else word for word in words] for words in split]
    return [space.join(word for word in words if rng.random() > 0.1) for words in kept]


def sacrebleus_own(name, language, model):
    """sacrebleu's metric of one of ours, which counts by itself."""
    if name in ("chrF", "chrF++"):
        return CHRF(word_order=2 if name == "chrF++" else 0)
    if name == "BLEU":
        tokens = {"zh": "zh", "th": "char"}.get(language.code, "13a")
        return BLEU(tokenize=tokens, force=True)
    metric = BLEU(tokenize="none", force=True)
    metric.tokenizer = sacrebleus_pieces(model)
    return metric


@functools.cache
def sacrebleus_pieces(model):
    """sacrebleu's own tokenizer, but of another file than its class would read or download."""
    tokenizer = object.__new__(tokenizer_spm.Flores101Tokenizer)
    tokenizer.sp = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return tokenizer


def assert_same_statistics(hypotheses, references, language, model):
    prepared = References(references, scoring.METRICS, language, dict.fromkeys(("spBLEU", "spBLEU200"), model))
    found = prepared.statistics(hypotheses)
    assert list(found) == list(scoring.METRICS)
    for name, statistics in found.items():
        metric = sacrebleus_own(name, language, model)
        expected = metric._extract_corpus_statistics(hypotheses, references)
        assert statistics.tolist() == expected, name
        metric.effective_order = "|eff:yes|" in prepared.signatures[name]  # of references without a 4-gram
        assert prepared.score_of(name, statistics.sum(axis=0)) == metric._aggregate_and_compute(expected).score, name


# Statistics


@pytest.mark.parametrize(("references", "symbols", "orders"), [(1, 5, 6), (1, 2**31, 3), (2, 3, 4), (3, 40, 6)])
def test_ngrams_are_counted_as_counters_do(references, symbols, orders):
    """On random lines, whose symbols are few and so repeat themselves, or lie anywhere among the numbers allowed."""
    rng = random.Random(references * symbols)
    some = [rng.randrange(symbols) for _ in range(12)]

    def text(unknown=()):
        return [[rng.choice([*some, *unknown]) for _ in range(rng.choice([0, 1, 2, 5, 30, 90]))] for _ in range(50)]

    def arrays(lines):
        return np.array(list(itertools.chain(*lines)), np.int64), np.array(list(map(len, lines)), np.int64)

    def grams(line, n):
        return Counter(tuple(line[i : i + n]) for i in range(len(line) - n + 1))

    texts, hypotheses = [text() for _ in range(references)], text(unknown=[-1])
    ngrams = Ngrams([arrays(lines) for lines in texts], orders)
    found = ngrams.matches(*arrays(hypotheses))
    for line, (given_line, *there) in enumerate(zip(hypotheses, *texts, strict=True)):
        for n in range(1, orders + 1):
            most = Counter()
            for reference in there:
                most |= grams(reference, n)
            assert found[line, n - 1] == sum((grams(given_line, n) & most).values())
    counts = [[sum(grams(line, n).values()) for n in range(1, orders + 1)] for line in hypotheses]
    assert totals(arrays(hypotheses)[1], orders).tolist() == counts
    assert ngrams.matches(*arrays([[]] * 50)).sum() == 0


@needs_shared
@pytest.mark.parametrize(
    ("code", "others"), [("de", "nl lb"), ("zh", "zhtrad"), ("th", "lo"), ("am", ""), ("ar", "fa")]
)
def test_statistics_are_sacrebleus_on_real_text(code, others):
    """With one reference, and with the same lines of similar languages as further ones."""
    language = resolve(code)
    references = [flores(other)[:100] for other in [code, *others.split()]]
    hypotheses = worse(references[0], language)
    hypotheses[3] = ""
    for count in {1, len(references)}:
        assert_same_statistics(hypotheses, references[:count], language, SPBLEU)


# What the tokenizers and sacrebleu's splits treat in ways of their own: white space of all kinds, controls, punctuation
# at either end of a word and alone, digits, what is unknown to a SentencePiece model, and its own markers.
PARTS = [
    *" ab1.,-'&<", "(hi)", "'a'", "&quot;", "<skipped>", "▁", "<unk>", "<s>", "<0x0A>", "\t", "\r", "\0", "\x1c",
    "\x85", "\xa0", "\u2028", "\u200b", "\u3000", "\ufeff", "é", "e\u0301", "ﬁ", "中", "文", "。", "あ", "አ", "☃", "😀",
    "𐍈",
]  # fmt: skip
LINE = st.lists(st.sampled_from(PARTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=12)


@settings(max_examples=60)
@given(data=st.data(), count=st.integers(1, 3), code=st.sampled_from(["en", "zh", "th"]))
def test_statistics_are_sacrebleus_whatever_the_text_contains(tokenizer_model, data, count, code):
    lines = st.lists(LINE.map("".join), min_size=4, max_size=4)
    references = [["a ab", *data.draw(lines)] for _ in range(count)]
    hypotheses = ["a a", *data.draw(lines | st.permutations(references[0][1:]))]
    for model in [tokenizer_model, SPBLEU] if SHARED.is_dir() else [tokenizer_model]:
        assert_same_statistics(hypotheses, references, resolve(code), model)


def test_lines_must_be_as_many_as_the_references(tokenizer_model):
    prepared = References([["a", "b"]], scoring.DEFAULT_METRICS, ENGLISH, {"spBLEU": tokenizer_model})
    for lines in (["a"], ["a", "b", "c"]):
        with pytest.raises(InputError, match=f"{len(lines)} hypotheses for 2 lines"):
            prepared.rows(lines)


# Scores


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """A sacrebleu whose own flores101 model is the shared copy, as if it had downloaded that."""
    for module in (sacrebleu.utils, tokenizer_spm):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))
    path = tmp_path / "models/sacrebleu_tokenizer_spm.model"
    path.parent.mkdir()
    path.symlink_to(SPBLEU)
    scoring.spbleu_tokens.cache_clear()
    yield path
    scoring.spbleu_tokens.cache_clear()


@needs_shared
def test_scores_are_those_of_sacrebleus_functions_to_the_last_digit(own_model):
    for code, tokens in (("de", "13a"), ("zh", "zh"), ("ja", "char"), ("am", "13a"), ("ar", "13a"), ("th", "char")):
        references = flores(code)[:200]
        hypotheses = worse(references, resolve(code))
        rows = References([references], ["spBLEU", "BLEU", "chrF", "chrF++"], resolve(code)).rows(hypotheses)
        assert [row["score"] for row in rows] == [
            sacrebleu.corpus_bleu(hypotheses, [references], tokenize="flores101").score,
            sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokens, force=True).score,
            sacrebleu.corpus_chrf(hypotheses, [references]).score,
            sacrebleu.corpus_chrf(hypotheses, [references], word_order=2).score,
        ]
        assert all(10 < row["score"] < 90 and row["n"] == 200 for row in rows)


@needs_shared
@pytest.mark.parametrize("count", [1, 2])
def test_signatures_are_sacrebleus_and_name_the_models_file(own_model, count):
    references = [flores("de")[:20], flores("nl")[:20]][:count]
    digest = hashlib.blake2b(SPBLEU.read_bytes(), digest_size=16).hexdigest()
    metrics = [BLEU(tokenize="flores101"), BLEU(tokenize="13a"), CHRF(), CHRF(word_order=2)]
    for metric in metrics:
        metric.corpus_score(references[0], references)
    spbleu, *others = [str(metric.get_signature()) for metric in metrics]
    assert "tok:flores101" in spbleu and f"nrefs:{count}|" in spbleu

    names = ["spBLEU", "BLEU", "chrF", "chrF++"]
    downloaded = References(references, names, resolve("de"))
    assert list(downloaded.signatures.values()) == [spbleu.replace("|version:", f"|spm:{digest[:8]}|version:"), *others]
    given_file = References(references, names, resolve("de"), {"spBLEU": SPBLEU})
    assert list(given_file.signatures.values()) == [spbleu.replace("flores101", f"spm-{digest[:8]}"), *others]
    assert [row["signature"] for row in given_file.rows(references[0])] == list(given_file.signatures.values())

    assert scoring.model_digests(names) == {"spBLEU": ["flores101", digest], "BLEU": [], "chrF": [], "chrF++": []}
    named = scoring.model_digests(["chrF", "spBLEU200"], {"spBLEU": None, "spBLEU200": SPBLEU})
    assert named == {"chrF": [], "spBLEU200": [f"spm-{digest[:8]}", digest]}


@pytest.mark.parametrize(("metric", "own", "option"), [
    ("spBLEU", "models/sacrebleu_tokenizer_spm.model", "--spbleu-model"),
    ("spBLEU200", "models/flores200sacrebleuspm", "--spbleu200-model"),
])  # fmt: skip
def test_models_that_do_not_load(tmp_path, monkeypatch, metric, own, option):
    for module in (sacrebleu.utils, tokenizer_spm):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("no_proxy", "")
    scoring.spbleu_tokens.cache_clear()
    with pytest.raises(InputError, match=f"^{tmp_path}/{own}: sacrebleu cannot load or download.*by {option}$"):
        References([["a"]], [metric], ENGLISH)
    (tmp_path / "not-a-model").write_text("x")
    with pytest.raises(InputError, match=f"^{option} {tmp_path}/not-a-model: not a SentencePiece model"):
        scoring.model_digests([metric], {metric: tmp_path / "not-a-model"})


@pytest.mark.parametrize(
    ("code", "tokens"),
    [("de", "13a"), ("zh", "zh"), ("zhtrad", "zh"), ("ja", "char"), ("th", "char"), ("my", "char"), ("ko", "13a")],
)
def test_bleu_tokens_follow_the_language(code, tokens):
    lines = ["我们 now have four mice, he said.", "x"]
    prepared = References([lines], ["BLEU"], resolve(code))
    assert f"|tok:{tokens}|" in prepared.signatures["BLEU"]
    assert prepared.rows(lines)[0]["score"] == pytest.approx(100)


def test_short_references_score_100_and_say_so(tokenizer_model):
    models = {"spBLEU": tokenizer_model}
    for lines, effective in ((["a", ""], "yes"), (["the old farmer buys a red lamp", "a"], "no")):
        prepared = References([lines], ["spBLEU"], ENGLISH, models)
        assert prepared.rows(lines)[0]["score"] == pytest.approx(100)
        assert f"|eff:{effective}|" in prepared.signatures["spBLEU"]
    for metric in ("spBLEU", "BLEU", "chrF++"):
        for nothing in ([], ["", " "]):
            with pytest.raises(InputError, match="no word on any line"):
                References([nothing], [metric], ENGLISH, models)


def test_several_references_reach_at_least_the_better_one(tokenizer_model):
    hypotheses = ["the old farmer buys a red lamp", "in the market today he buys a lamp"]
    first = [hypotheses[0], "the red lamp"]
    second = ["today he buys", hypotheses[1]]
    both, *single = (
        [
            row["score"]
            for row in References(some, scoring.METRICS, ENGLISH, dict.fromkeys(scoring.SPBLEU, tokenizer_model)).rows(
                hypotheses
            )
        ]
        for some in ([first, second], [first], [second])
    )
    assert both == pytest.approx([100] * 5)
    assert max(single[0] + single[1]) < 100


def test_nothing_is_cut_after_a_colon(tokenizer_model):
    prepared = References([["the old farmer: in the market today"]], ["spBLEU"], ENGLISH, {"spBLEU": tokenizer_model})
    cut, whole = (
        prepared.rows([line])[0]["score"] for line in ("the old farmer", "the old farmer: in the market he buys")
    )
    assert cut < 50 < whole < 100


@needs_shared
def test_references_against_themselves_score_100_in_every_flores_language():
    for code in load():
        lines = flores(code)
        assert len(lines) == 1012
        rows = References([lines], scoring.DEFAULT_METRICS, resolve(code), {"spBLEU": SPBLEU}).rows(lines)
        assert [f"{row['metric']} {row['score']:.2f}" for row in rows] == ["spBLEU 100.00", "chrF++ 100.00"], code


# Published scores


@needs_shared
def test_published_scores_of_gpt_are_reproduced():
    """32 languages, spBLEU and chrF++, as the authors scored: sides swapped, and what pandas made of an empty cell."""

    def table(name):
        with open(SHARED / f"chatgpt_flores200/{name}.tsv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    expected, found = {}, {}
    published = {row[""]: row for row in table("zero-shot-scores")}
    for path in sorted((SHARED / "chatgpt_flores200").glob("*_*.tsv")):
        hypotheses = [row["label"].replace("\n", " ") for row in table(path.stem)]
        references = [row["predictions"].replace("\n", " ") or "nan" for row in table(path.stem)]
        rows = References([references], scoring.DEFAULT_METRICS, ENGLISH, {"spBLEU": SPBLEU}).rows(hypotheses)
        found[path.stem] = [f"{row['score']:.2f}" for row in rows]
        expected[path.stem] = [f"{float(published[path.stem][column]):.2f}" for column in ("BLEU", "chrF2++")]
    assert len(found) == 32
    assert found == expected


@needs_shared
def test_published_scores_of_wmt22_are_reproduced():
    """BLEU and chrF with reference A, with B, and with both: 256 values, all but the five that others miss as well."""
    names = {"cs-uk": "uk", "en-de": "de", "en-liv": "liv_Latn", "en-zh": "zh", "ru-sah": "sah_Cyrl", "sah-ru": "ru",
             "uk-en": "en"}  # fmt: skip
    with open(SHARED / "wmt22/scores/automatic-scores.tsv", encoding="utf-8", newline="") as file:
        published = [row for row in csv.DictReader(file, delimiter="\t") if row["pair"] in names]
    values, wrong = 0, {}
    for pair, code in names.items():
        text, target = SHARED / "wmt22/txt", pair.split("-")[1]
        references = {
            path.suffixes[-2][1:]: read(path)
            for path in sorted((text / "references").glob(f"generaltest2022.{pair}.ref.*.{target}"))
        }
        prepared = {name: References([some], ["BLEU", "chrF"], resolve(code)) for name, some in references.items()}
        several = len(references) > 1
        prepared["all"] = References([*references.values()], ["BLEU", "chrF"], resolve(code)) if several else None
        for path in sorted((text / "system-outputs").glob(f"generaltest2022.{pair}.hyp.*.{target}")):
            system = path.suffixes[-2][1:]
            scores = {name: some.rows(read(path)) for name, some in prepared.items() if some}
            scores.setdefault("all", scores["A"])
            for row in published:
                metric, _, name = row["metric"].partition("-")
                if (row["pair"], row["system"]) != (pair, system) or metric not in ("bleu", "chrf"):
                    continue
                found = next(score["score"] for score in scores[name] if score["metric"].lower() == metric)
                values += 1
                if f"{found:.2f}" != f"{float(row['score']):.2f}":
                    wrong[f"{pair} {system} {row['metric']}"] = round(found, 2)
    assert values == 256
    assert wrong == {
        "ru-sah Lan-Bridge bleu-A": 15.27,
        "ru-sah Lan-Bridge bleu-all": 15.27,
        "ru-sah Lan-Bridge chrf-A": 56.62,
        "ru-sah Lan-Bridge chrf-all": 56.62,
        "en-zh Lan-Bridge chrf-all": 53.66,  # published: 53.65
    }
