"""What goes wrong in sixty days: damaged checkpoints and data, signals, faulty steps, ranks that hang or die."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ENVIRONMENT, fails, run_stage, snapshot, stage
from hypothesis import given
from hypothesis import strategies as st
from training import Processes, command, losses, rows, tensors

from llamax.guard import ENOUGH, Guard

FAULTY = Path(__file__).with_name("faulty.py")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, hf_llama2, blend):
    """The folder of an uninterrupted run of 6 steps with a checkpoint at each."""
    save = tmp_path_factory.mktemp("whole") / "run"
    stage(*line_for(hf_llama2, blend, save))
    return save


@pytest.fixture
def cut(whole, tmp_path):
    """A copy of it as it was after step 4."""
    save = shutil.copytree(whole, tmp_path / "run")
    for step in (5, 6):
        shutil.rmtree(save / f"iter_000000{step}")
    (save / "latest_checkpointed_iteration.txt").write_text("4\n")
    return save


def line_for(hf, data, save, *options):
    return command(hf, data, save, "--save-interval", 1, "--eval-interval", 3, "--eval-iters", 3, *options)


def truncate(folder):
    path = next(folder.glob("__0_*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])
    return f"{path.name} has {path.stat().st_size} bytes, complete.json says {path.stat().st_size + 1}"


def flip(folder):
    path = next(folder.glob("__0_*.distcp"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return f"{path.name} is not the file that was written"


def lose_a_file(folder):
    (folder / ".metadata").unlink()
    return ".metadata is missing"


def lose_the_marker(folder):
    (folder / "complete.json").unlink()
    return "no complete.json, so it is not complete"


def break_the_marker(folder):
    path = folder / "complete.json"
    path.write_text(path.read_text()[:-10])
    return "complete.json cannot be read"


def test_damaged_checkpoints_are_passed_over(whole, hf_llama2, blend, tmp_path):
    save = shutil.copytree(whole, tmp_path / "run")
    damages = {6: truncate, 5: flip, 4: lose_a_file, 3: lose_the_marker, 2: break_the_marker}
    reasons = [f"--load {save}/iter_000000{i}: {damage(save / f'iter_000000{i}')}" for i, damage in damages.items()]
    out = stage(*line_for(hf_llama2, blend, save))
    passed = [line for line in out.splitlines() if line.endswith("; passed over")]
    assert all(line.startswith(reason) for line, reason in zip(passed, reasons, strict=True))
    assert f"resumed from {save}/iter_0000001" in out
    assert losses(save) == losses(whole)
    assert sorted(path.name for path in save.glob("*iter_*")) == [f"iter_000000{i}" for i in range(1, 7)]


def test_never_from_damaged_ones_only(cut, hf_llama2, blend):
    for folder in cut.glob("iter_*"):
        truncate(folder)
    before = snapshot(cut)
    result = run_stage(*line_for(hf_llama2, blend, cut))
    assert result.returncode == 1
    [error] = result.stderr.splitlines()
    assert "no complete and undamaged checkpoint is left there" in error
    assert snapshot(cut) == before
    for folder in cut.glob("iter_*"):
        shutil.rmtree(folder)  # the tracker still says that there were some
    fails(*line_for(hf_llama2, blend, cut), saying=["no complete and undamaged checkpoint is left"])


def test_changed_data_is_refused(cut, hf_llama2, blend, tmp_path):
    data = []
    for part in blend:
        if isinstance(part, Path):
            for path in part.parent.glob(f"{part.name}[._]*"):
                shutil.copy(path, tmp_path / path.name)
            part = tmp_path / part.name
        data.append(part)
    line = line_for(hf_llama2, data, cut)
    before = snapshot(cut)
    ids = tmp_path / "mono.bin"
    good = ids.read_bytes()
    ids.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    fails(*line, saying=["mono.bin", "its manifest expects"])
    ids.write_bytes(good)
    manifest = tmp_path / "mono.json"
    text = manifest.read_text()
    manifest.write_text(text[:-5])
    fails(*line, saying=["mono.json", "not valid JSON"])
    manifest.write_text(text)
    fails(*line_for(hf_llama2, [1, *data[1:]], cut), saying=["--data-path (other datasets or weights)"])
    fails(*line_for(hf_llama2, data[1:2], cut), saying=["--data-path (other datasets or weights)"])
    after = snapshot(cut)
    for name in before:
        assert name.startswith("data_cache") or after[name] == before[name]
    stage(*line)  # the same data in another place are the same


def test_another_number_of_steps(cut, whole, hf_llama2, blend, tmp_path):
    """More steps go on exactly where the schedule is kept and the order of rows is; else they are refused."""
    fails(*line_for(hf_llama2, blend, cut, "--train-iters", 8), saying=["--lr-decay-iters 8 (6)"])
    keep = "--lr-decay-iters", 6, "--eval-interval", 0
    stage(*line_for(hf_llama2, blend, cut, "--train-iters", 8, *keep))
    found = losses(cut)
    assert {key: found[key] for key in losses(whole) if key in found} == {
        key: loss for key, loss in losses(whole).items() if key in found
    }
    assert max(step for step, _ in found) == 8
    line = line_for(hf_llama2, blend, tmp_path / "across", "--packing", "across", "--init-weights", *keep)
    stage(*line)
    fails(*line, "--train-iters", 600, saying=["--train-iters 600 (6) takes other numbers of epochs"])


def test_weights_only_is_another_flag(hf_llama2, blend, tmp_path):
    stage("convert_hf.py", "to-megatron", "--hf-model", hf_llama2, "--save", tmp_path / "m")
    fails(*command(hf_llama2, blend, tmp_path / "run", "--load", tmp_path / "m"),
          saying=["holds weights only", "--pretrained-checkpoint"])  # fmt: skip
    fails(*command(hf_llama2, blend, tmp_path / "run", "--pretrained-checkpoint", tmp_path),
          saying=["--pretrained-checkpoint", "holds no checkpoint"])  # fmt: skip


@pytest.mark.parametrize("background", [(), ("--async-save",)])
def test_a_full_disk_while_saving(background, hf_llama2, blend, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5500k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:  # a checkpoint is 3.5 MB
        line = command(hf_llama2, blend, disk / "run", "--save-interval", 2, "--data-cache-path", tmp_path / "cache",
                       *background)  # fmt: skip
        fails(*line, saying=["iter_0000004: could not be written", "free some space", "--load"])
        assert [path.name for path in (disk / "run").glob("*iter_*")] == ["iter_0000002"]
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        assert f"resumed from {disk}/run/iter_0000002" in stage(*line)
        stage(*command(hf_llama2, blend, tmp_path / "whole"))
        assert losses(disk / "run") == losses(tmp_path / "whole")
    finally:
        subprocess.run(["umount", disk], check=True)


def faulty(monkeypatch, fault, line, ranks):
    """[(exit status, stdout, stderr)] of the ranks of a run with a fault of tests/faulty.py."""
    monkeypatch.setitem(ENVIRONMENT, "FAULT", fault)
    return Processes(line, ranks, script=FAULTY).end()


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_on_all_ranks(kind, monkeypatch, hf_llama2, blend, tmp_path):
    line = command(hf_llama2, blend, tmp_path / "run", "--save-interval", 1, "--use-distributed-optimizer")
    results = faulty(monkeypatch, f"{kind} 1 3 3", line, 2)
    assert [status for status, *_ in results] == [0, 0], results
    assert (
        "step 3: skipped, because " + {"nan": "loss is nan", "gradient": "gradient norm is nan"}[kind] in results[0][1]
    )
    found = {row["iteration"]: row for row in rows(tmp_path / "run") if "skipped_steps" in row}
    assert [found[step]["skipped_steps"] for step in range(1, 7)] == [0, 0, 1, 1, 1, 1]
    assert (found[3]["loss"] is None) == (kind == "nan") and found[3]["grad_norm"] is None
    assert all(found[step]["loss"] > 0 for step in (1, 2, 4, 5, 6))
    before, at, after = (tensors(tmp_path / "run" / f"iter_000000{step}") for step in (2, 3, 4))
    assert before == at  # weights and moments
    assert not set(at.items()) & set(after.items())


def test_too_many_skipped_steps_end_the_run(monkeypatch, hf_llama2, blend, tmp_path):
    line = command(hf_llama2, blend, tmp_path / "run", "--save-interval", 1, steps=14)
    results = faulty(monkeypatch, "nan 1 3 20", line, 2)
    assert [status for status, *_ in results] == [1, 1], results
    lines = "".join(err for *_, err in results).splitlines()
    assert len(lines) == 2  # one a rank
    assert "--max-skipped-steps 10: so many in a row were skipped, step 12 because loss is nan" in lines[0]
    assert "go on from step 11" in lines[0]
    stage(*line)  # it does
    assert [row["skipped_steps"] for row in rows(tmp_path / "run") if "skipped_steps" in row][-1] == 9


@pytest.mark.parametrize("fault", ["term 1 3 3", "validating 1 3 3"])
def test_a_signal_to_one_rank_saves_and_ends_all(fault, whole, monkeypatch, hf_llama2, blend, tmp_path):
    line = line_for(hf_llama2, blend, tmp_path / "run", "--tensor-model-parallel-size", 2)
    stage(*line_for(hf_llama2, blend, tmp_path / "whole", "--tensor-model-parallel-size", 2), ranks=2)
    results = faulty(monkeypatch, fault, line, 2)
    assert [(status, err) for status, _, err in results] == [(0, "")] * 2
    assert results[0][1].endswith(f"SIGTERM at step 3: {tmp_path}/run/iter_0000003\n")
    assert "valid_loss" not in rows(tmp_path / "run")[-1]  # which was due: it is made up for
    stage(*line, ranks=2)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_rank_that_hangs_is_named(monkeypatch, hf_llama2, blend, tmp_path):
    line = command(hf_llama2, blend, tmp_path, "--distributed-timeout-minutes", 0.25)
    results = faulty(monkeypatch, "hang 1 2 2", line, 2)
    for rank, (status, _, err) in enumerate(results):
        assert status == 1
        assert f"--distributed-timeout-minutes 0.25: rank {rank} of 2 on " in err.splitlines()[-1], results
        assert " has hung at step 2; " in err.splitlines()[-1]


def test_a_rank_that_dies_is_noticed(hf_llama2, blend, tmp_path):
    processes = Processes(command(hf_llama2, blend, tmp_path, steps=200), 2)
    assert processes.until(lambda: (tmp_path / "metrics.jsonl").exists() and len(rows(tmp_path)) > 3)
    processes.send(signal.SIGKILL, 1)
    (status, _, err), (killed, *_) = processes.end(30)
    assert (status, killed) == (1, -signal.SIGKILL)
    [line] = err.splitlines()
    assert line.startswith("pretrain_llamax.py: error: rank 0 of 2 on ") and " lost another at " in line


numbers = st.floats(0.5, 2)


@given(st.lists(st.tuples(numbers, numbers), min_size=ENOUGH, max_size=200))
def test_the_guard_lets_the_usual_pass_and_counts_the_rest(usual):
    guard = Guard(5, 8)
    assert [guard.judge(*pair) for pair in usual] == [None] * len(usual)
    nan, infinite = float("nan"), float("inf")
    faults = (
        (nan, 1, "loss is nan"),
        (1, infinite, "gradient norm is inf"),
        (10.1, 1, "loss 10.1 is more than 5 times"),
        (1, 16.1, "gradient norm 16.1 is more than 8 times"),
    )
    for loss, grad_norm, why in faults:
        before = guard.state_dict()
        assert guard.judge(loss, grad_norm).startswith(why)
        again = Guard(5, 8)
        again.load_state_dict(json.loads(json.dumps(before)))
        assert again.judge(loss, grad_norm) and again.state_dict() == guard.state_dict()
    assert (guard.skipped, guard.in_a_row) == (4, 4)
    assert guard.judge(1, 1) is None and (guard.skipped, guard.in_a_row) == (4, 0)
    off = Guard(0, 0)
    assert [off.judge(*pair) for pair in (*usual, (1e9, 1e9))] == [None] * (len(usual) + 1)


def test_a_spike_needs_something_to_be_measured_against():
    guard = Guard(2, 2)
    assert [guard.judge(1, 1) for _ in range(ENOUGH - 1)] + [guard.judge(100, 100)] == [None] * ENOUGH
    assert guard.judge(100, 1) is not None
