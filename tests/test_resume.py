"""Exact resume: every layout in every other, after kills at any moment, in the background, with keep-N.

`make test` runs a part of the cases; SOAK=1 (`make soak`) all 50 pairs of layouts and thirty kills.
"""

import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import stage
from training import LAYOUTS, Processes, command, difference, layout_options, losses, tensors, weights

SOAK = bool(int(os.environ.get("SOAK", "0")))
IN_CI = [("TP1PP1", "TP2PP2", True), ("TP2PP2", "DP2", True), ("DP2", "TP1PP2", False)]
ALL = [(a, b, distributed) for distributed in (True, False) for a in LAYOUTS for b in LAYOUTS]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, hf_llama31, blend):
    save = tmp_path_factory.mktemp("one")
    stage(*command(hf_llama31, blend, save))
    return losses(save)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, hf_llama31, blend):
    """A function: the folder of a run of a layout that was stopped after step 3, made once."""
    made = {}

    def get(name, distributed):
        if (name, distributed) not in made:
            save = made[name, distributed] = tmp_path_factory.mktemp(f"{name}-{distributed}")
            options = layout_options(name, distributed)
            stage(*command(hf_llama31, blend, save, *options, "--exit-interval", 3), ranks=LAYOUTS[name][2])
        return made[name, distributed]

    return get


@pytest.mark.parametrize(("before", "after", "distributed"), ALL if SOAK else IN_CI)
def test_a_layout_resumes_in_another(before, after, distributed, stopped, uninterrupted, hf_llama31, blend, tmp_path):
    save = shutil.copytree(stopped(before, distributed), tmp_path / "run")
    stage(*command(hf_llama31, blend, save, *layout_options(after, distributed)), ranks=LAYOUTS[after][2])
    assert difference(losses(save), uninterrupted) < 1e-5


FAST = "--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"


def test_what_is_overlapped_resumes_to_the_last_digit(uninterrupted, hf_llama31, blend, tmp_path):
    stage(*command(hf_llama31, blend, tmp_path / "a", *FAST), ranks=2)
    assert difference(losses(tmp_path / "a"), uninterrupted) < 1e-5
    stage(*command(hf_llama31, blend, tmp_path / "b", *FAST, "--exit-interval", 3), ranks=2)
    stage(*command(hf_llama31, blend, tmp_path / "b", *FAST), ranks=2)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")


@pytest.mark.parametrize(("options", "ranks"), [
    ((*layout_options("TP2PP2", True), "--sequence-parallel"), 4),
    (("--recompute-granularity", "full"), 0),
    (("--recompute-granularity", "selective"), 0),
])  # fmt: skip
def test_what_makes_it_smaller_changes_nothing(options, ranks, uninterrupted, hf_llama31, blend, tmp_path):
    stage(*command(hf_llama31, blend, tmp_path, *options), ranks=ranks)
    assert difference(losses(tmp_path), uninterrupted) < 1e-5


def test_saving_in_the_background_and_keeping_the_newest(hf_llama31, blend, tmp_path):
    options = *FAST, "--save-interval", 1, "--bf16"
    stage(*command(hf_llama31, blend, tmp_path / "a", *options), ranks=2)
    stage(*command(hf_llama31, blend, tmp_path / "b", *options, "--async-save", "--save-total-limit", 2), ranks=2)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    names = [path.name for path in sorted((tmp_path / "b").glob("*iter_*"))]
    assert names == ["iter_0000005", "iter_0000006"]
    assert len(list((tmp_path / "a").glob("iter_*"))) == 6
    for name in names:  # what was written in the background is of its step, though training went on
        assert tensors(tmp_path / "a" / name) == tensors(tmp_path / "b" / name)


def test_kills_at_any_moment_change_nothing(hf_llama31, blend, tmp_path):
    """SIGKILL of a random rank at a random moment, saving included; the run is started again until it is done."""
    kills, steps, layout, ranks = (30, 60, "TP1PP2", 4) if SOAK else (3, 12, "DP2", 2)
    options = *layout_options(layout, True), "--save-interval", 2, "--async-save", "--save-total-limit", 3
    line = command(hf_llama31, blend, tmp_path / "killed", *options, steps=steps)
    stage(*command(hf_llama31, blend, tmp_path / "whole", *options, steps=steps), ranks=ranks)
    pick, saved = random.Random(0), tmp_path / "killed" / "latest_checkpointed_iteration.txt"
    for number in range(kills):
        processes = Processes(line, ranks)
        newest = saved.read_text() if saved.exists() else ""
        if number % 3 == 0:  # at any time of its start or after
            time.sleep(pick.uniform(0, 15))
        else:  # when it has made a checkpoint; one in two while the next is being written
            processes.until(lambda before=newest: saved.exists() and saved.read_text() != before)
            if number % 3 == 1:
                processes.until(lambda: any((tmp_path / "killed").glob(".iter_*.partial")))
            time.sleep(pick.uniform(0, 0.3))
        processes.send(signal.SIGKILL, pick.randrange(ranks))
        results = processes.end(60)
        assert any(status for status, *_ in results) or saved.read_text() == f"{steps}\n"
    stage(*line, ranks=ranks)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    one, other = (weights(hf_llama31, tmp_path / name) for name in ("whole", "killed"))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert not list((tmp_path / "killed").glob(".iter_*"))  # nothing of killed saves is left
