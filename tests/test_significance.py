"""The paired bootstrap against sacrebleu's own, digit by digit, and against what must hold of any such test."""

import functools
import random

import numpy as np
import pytest
from conftest import SENTENCES
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from llamax import significance
from llamax.languages import resolve
from llamax.scoring import References
from llamax.significance import paired_bootstrap

METRICS = {"BLEU": BLEU(), "chrF": CHRF(), "chrF++": CHRF(word_order=2)}


def texts(lines, seed=0):
    """References, and systems that differ from them and from one another by words left out."""
    words = SENTENCES["en"].split() * 2
    rng = random.Random(seed)
    references = [" ".join(rng.sample(words, rng.randint(1, 20))) + "." for _ in range(lines)]

    def system(loss):
        return [" ".join(w for w in line.split() if rng.random() > loss) for line in references]

    return references, {"bad": system(0.5), "good": system(0.1), "as good": system(0.1), "nothing": [""] * lines}


REFERENCES, SYSTEMS = texts(150)


def ours(metric, a, b, references=REFERENCES, **options):
    statistics = [np.array(metric._extract_corpus_statistics(lines, [references])) for lines in (a, b)]
    return paired_bootstrap(*statistics, lambda sums: metric._compute_score_from_stats(sums).score, **options)


def theirs(metric, a, b, references=REFERENCES, samples=0):
    test = PairedTest([("a", a), ("b", b)], {"m": metric}, [references], test_type="bs", n_samples=samples)
    (signature,), (_, (baseline, system)) = (list(x.values()) for x in test())
    return baseline, system, str(signature)


def equal(found, baseline, system):
    assert (found["score_a"], found["mean_a"], found["ci_a"]) == (baseline.score, baseline.mean, baseline.ci)
    assert (found["score_b"], found["mean_b"], found["ci_b"]) == (system.score, system.mean, system.ci)
    assert found["p_value"] == system.p_value


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("a", "b"), [("bad", "good"), ("good", "bad"), ("good", "as good"), ("good", "good"), ("bad", "nothing")]
)
def test_equal_to_sacrebleu(name, a, b):
    found = ours(METRICS[name], SYSTEMS[a], SYSTEMS[b])
    baseline, system, signature = theirs(METRICS[name], SYSTEMS[a], SYSTEMS[b])
    equal(found, baseline, system)
    assert (found["samples"], found["seed"]) == (1000, 12345)
    assert significance.signature(str(METRICS[name].get_signature())) == signature


@pytest.mark.parametrize("name", METRICS)
def test_equal_to_sacrebleu_with_our_statistics(name):
    prepared = References([REFERENCES], [name], resolve("en"))
    a, b = (prepared.statistics(SYSTEMS[system])[name] for system in ("bad", "good"))
    found = paired_bootstrap(a, b, functools.partial(prepared.score_of, name))
    baseline, system, signature = theirs(METRICS[name], SYSTEMS["bad"], SYSTEMS["good"])
    equal(found, baseline, system)
    assert significance.signature(prepared.signatures[name]) == signature


@pytest.mark.parametrize("lines", [1, 2, 39, 1012])
@pytest.mark.parametrize("samples", [1, 39, 40, 300])
def test_equal_to_sacrebleu_for_other_seeds_and_sizes(lines, samples, monkeypatch):
    references, systems = texts(lines, seed=samples)
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    found = ours(METRICS["BLEU"], systems["good"], systems["bad"], references, samples=samples, seed=7)
    baseline, system, signature = theirs(METRICS["BLEU"], systems["good"], systems["bad"], references, samples)
    equal(found, baseline, system)
    assert significance.signature(str(METRICS["BLEU"].get_signature()), samples, 7) == signature


@pytest.mark.parametrize("block", [1, 150, 151, 1000, 10_000])
def test_blocks_change_nothing(block, monkeypatch):
    whole = ours(METRICS["BLEU"], SYSTEMS["bad"], SYSTEMS["good"], samples=101)
    monkeypatch.setattr(significance, "BLOCK", block)
    assert ours(METRICS["BLEU"], SYSTEMS["bad"], SYSTEMS["good"], samples=101) == whole


def test_p_value_tells_a_difference_from_chance():
    """1 / 1001 is the least that 1,000 samples can give."""
    assert ours(METRICS["BLEU"], SYSTEMS["bad"], SYSTEMS["good"])["p_value"] == 1 / 1001
    assert ours(METRICS["BLEU"], SYSTEMS["good"], SYSTEMS["as good"])["p_value"] > 0.05


def test_equal_statistics_are_no_finding():
    """sacrebleu counts no sample as beyond a difference of 0, and so gives its least p-value."""
    found = ours(METRICS["BLEU"], SYSTEMS["good"], SYSTEMS["good"])
    assert found["score_a"] == found["score_b"] and found["p_value"] == 1 / 1001


def test_any_statistics_will_do():
    """The mean of numbers, as of COMET's segment scores: the interval is that of the normal distribution."""
    scores = np.random.default_rng(0).normal(80, 10, size=2000)
    statistics = np.stack([scores, np.ones(2000)], axis=1)
    found = paired_bootstrap(statistics, statistics + np.array([1, 0]), lambda sums: sums[0] / sums[1])
    assert found["score_a"] == pytest.approx(scores.mean()) and found["score_b"] == pytest.approx(scores.mean() + 1)
    assert found["ci_a"] == pytest.approx(1.96 * 10 / 2000**0.5, rel=0.1)
    assert found["p_value"] == 1 / 1001


def test_statistics_of_other_lines():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        paired_bootstrap(np.ones((3, 2)), np.ones((4, 2)), sum)
