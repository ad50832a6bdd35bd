"""Paired bootstrap: whether one system is better than another, or only on these sentences (Koehn 2004).

It is sacrebleu's test, `sacrebleu --paired-bs`, from the sentences' statistics instead of their texts.
"""

import numpy as np

SAMPLES = 1000
SEED = 12345  # sacrebleu's
BLOCK = 2**22  # numbers of samples times lines at a time: 32 MiB an array


def paired_bootstrap(statistics_a, statistics_b, score_of, samples=SAMPLES, seed=SEED):
    """Compare two systems' outputs for the same lines.

    statistics_a, statistics_b: int arrays (lines, k), in the order of the lines. score_of(sums): the score of k summed
    statistics, which for samples are float32, as sacrebleu has them.

    Returns {"score_a", "mean_a", "ci_a", "score_b", "mean_b", "ci_b", "p_value", "samples", "seed"}: the scores, the
    mean over the samples and half of the 95 % interval around it, and the probability of such a difference between
    systems that are equally good (two-sided). All are sacrebleu's to the last digit, unless a sum is above 2**24:
    there sacrebleu's sums are rounded, ours are not. As there, p says nothing of equal scores: it is as small as can
    be for a system beside itself.
    """
    a, b = np.asarray(statistics_a), np.asarray(statistics_b)
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise ValueError(f"statistics of shapes {a.shape} and {b.shape}: expected the same (lines, k)")
    score_a, score_b = (score_of(x.sum(axis=0).tolist()) for x in (a, b))
    both = np.concatenate([a, b], axis=1).astype(np.float64)  # sums up to 2**53 are exact, and matrix products fast
    sums = np.concatenate([counts @ both for counts in _draws(len(a), samples, seed)]).astype(np.float32)
    scores_a, scores_b = _scores(score_of, sums[:, : a.shape[1]]), _scores(score_of, sums[:, a.shape[1] :])
    differences = np.abs(scores_b - scores_a)
    # Shifted to a mean of 0, the samples' differences are those of systems that are equally good. The 1 stands for
    # the difference that was observed.
    beyond = np.sum(differences - differences.mean() > abs(score_a - score_b))
    mean_a, ci_a = _interval(scores_a)
    mean_b, ci_b = _interval(scores_b)
    return {
        **{"score_a": float(score_a), "mean_a": mean_a, "ci_a": ci_a},
        **{"score_b": float(score_b), "mean_b": mean_b, "ci_b": ci_b},
        **{"p_value": (int(beyond) + 1) / (samples + 1), "samples": samples, "seed": seed},
    }


def signature(metric_signature, samples=SAMPLES, seed=SEED):
    """A metric's signature with what reproduces the test, where sacrebleu puts it: after the number of references."""
    first, separator, rest = metric_signature.partition("|")
    return f"{first}|bs:{samples}|seed:{seed}{separator}{rest}"


def _draws(lines, samples, seed):
    """Yield float64 arrays (up to `samples`, lines): how often each line was drawn, as many draws as lines."""
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // lines)
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        # The numbers are those of one call for all samples: the generator's state goes on.
        drawn = generator.choice(lines, size=(rows, lines), replace=True)
        drawn += np.arange(rows)[:, None] * lines
        yield np.bincount(drawn.ravel(), minlength=rows * lines).reshape(rows, lines).astype(np.float64)


def _scores(score_of, sums):
    """The scores of sums [samples, k]: float32 if they all are, as sacrebleu's chrF of float32 statistics is."""
    scores = np.array([score_of(row) for row in sums], np.float64)
    single = scores.astype(np.float32)
    return single if np.array_equal(single, scores) else scores


def _interval(scores):
    """(mean, half of the interval that holds 95 % of the scores)."""
    scores = np.sort(scores)
    cut = len(scores) // 40
    return float(scores.mean()), float(0.5 * (scores[-1 - cut] - scores[cut]))
