"""The ablation: its decision rule, table and budget on numbers worked out by hand, and one run in miniature."""

import json

import pytest
from conftest import ROOT, run_stage, snapshot

from benchmarks import ablation
from benchmarks.ablation import budget, columns, findings, interval, sentence, share_out, table, verdict
from llamax.languages import resolve


def test_interval():
    # Mean 2, standard deviation 1, standard error 1 / sqrt(3) = 0.57735; times 4.303 is 2.48434.
    assert interval([1, 2, 3]) == pytest.approx((2, -0.48434, 4.48434), abs=1e-5)
    # Mean 10, standard deviation sqrt(2), standard error 1; times 12.706.
    assert interval([9, 11]) == pytest.approx((10, -2.706, 22.706))
    assert interval([5, 5, 5]) == (5, 5, 5)
    assert interval([4.5]) == (4.5, None, None)


@pytest.mark.parametrize(
    ("claim", "higher", "lower", "neither"),
    [
        ("gain", "reproduced here", "not reproduced here", "no difference seen here"),
        ("loss", "not reproduced here", "reproduced here", "no difference seen here"),
        ("same", "not reproduced here", "not reproduced here", "consistent"),
        ("open", "better here", "worse here", "no difference seen here"),
    ],
)
def test_verdict(claim, higher, lower, neither):
    assert verdict(claim, [3, 4, 5]) == higher  # 4 ± 2.48
    assert verdict(claim, [-3, -4, -5]) == lower
    assert verdict(claim, [1, 2, 3]) == verdict(claim, [-1, -2, -3]) == neither  # 2 ± 2.48
    assert verdict(claim, [0, 0, 0]) == neither
    assert verdict(claim, [4]) == "one seed: no verdict"


@pytest.mark.parametrize(("a_row", "expected"), [(60, (16, 521)), (64, (15, 521)), (10, (96, 521)), (2000, (1, 250))])
def test_budget(a_row, expected):
    rows, steps = budget(a_row, 500_000, 960)
    assert (rows, steps) == expected
    assert rows * steps * a_row == pytest.approx(500_000, rel=0.01)


def test_share_out():
    records = [{"src_lang": a, "tgt_lang": b, "n": n} for n in range(3) for a, b in (("en", "fr"), ("ta", "en"))]
    sample, base = share_out(records, 2)
    assert [(r["src_lang"], r["n"]) for r in sample] == [("en", 0), ("ta", 0), ("en", 1), ("ta", 1)]
    assert [(r["src_lang"], r["n"]) for r in base] == [("en", 2)]


def test_every_finding_names_settings():
    assert {name for f in ablation.FINDINGS for name in (f.setting, f.control)} <= ablation.SETTINGS.keys()
    assert {f.claim for f in ablation.FINDINGS} == {"gain", "loss", "same", "open"}
    tested = {f.setting for f in ablation.FINDINGS} | {f.control for f in ablation.FINDINGS}
    assert tested == ablation.SETTINGS.keys()  # no setting is run for nothing


def test_columns():
    scores = {("en", "ta"): 1.0, ("ta", "en"): 2.0, ("zh", "th"): 6.0, ("th", "zh"): 4.0, ("en", "zh"): 3.0,
              ("zh", "en"): 5.0, ("th", "ta"): 7.0}  # fmt: skip
    assert columns(scores) == {
        "en→X": 2.0, "X→en": 3.5, "ta→X": 2.0, "X→ta": 4.0, "th→X": 5.5, "X→th": 6.0, "zh→X": 5.5, "X→zh": 3.5,
        "with English": 2.75, "other 20": pytest.approx(17 / 3), "all": 4.0,
    }  # fmt: skip


def cell(value, tokens=500_200):
    names = (*ablation.COLUMNS, "with English", "other 20", "all")
    return {"spbleu": dict.fromkeys(names, value), "training": tokens and {"tokens": tokens},
            "held_out_loss": {"pretrain": 2 - value / 80} if tokens else {}}  # fmt: skip


RESULTS = {
    "base": {0: cell(1.0, None), 1: cell(2.0, None)},
    "P1": {0: cell(40.0), 1: cell(42.0), 2: cell(44.0)},
    "P1+P2": {0: cell(43.0), 1: cell(46.0), 2: cell(49.0)},
}


def test_findings_are_paired_by_seed():
    more, training = findings(RESULTS)
    assert (more["setting"], more["differences"], more["mean"]) == ("P1+P2", [3, 4, 5], 4)
    assert more["verdict"] == "reproduced here"
    assert training["loss_differences"] == [] and "held-out" not in sentence(training)
    assert (training["control"], training["differences"]) == ("base", [39, 40])  # the seeds that both have
    assert sentence(more) == (
        "- more parallel data helps: P1+P2 against P1 +4.00 (seeds +3.00, +4.00, +5.00; 95 % interval +1.52 to +6.48; "
        "held-out loss -0.038, -0.050, -0.062): **reproduced here**"
    )


def test_table():
    lines = table(RESULTS).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| base | 3 | 2 | 0 | - | 1.5 |") and lines[2].endswith("| 1.50 ± 0.71 |")
    assert lines[3].startswith("| P1 | 3 | 3 | 500 | 1.475 | 42.0 |") and lines[3].endswith("| 42.00 ± 2.00 |")


def test_a_run_in_miniature(tmp_path):
    """One run, because it takes most of a minute; then what it must have left."""
    folder = tmp_path / "run"
    result = run_stage("benchmarks/ablation.py", "--quick", "--folder", folder)
    assert result.returncode == 0, result.stderr
    leaves_results_and_a_report(folder, result.stdout)
    has_shared_the_data_out_without_overlap(folder / "seed-0" / "data")
    does_not_do_again_what_is_done(folder)


def leaves_results_and_a_report(folder, printed):
    cells = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("cells/*/result.json")}
    assert cells.keys() == {"P1+P2a+M-0"}
    assert len(cells["P1+P2a+M-0"]["directions"]) == 30
    trained = cells["P1+P2a+M-0"]["training"]
    assert trained["tokens"] == pytest.approx(6000, rel=0.03) and trained["weights"].keys() == {"P1", "P2a", "M"}
    rows = [json.loads(line) for line in (folder / "cells" / "P1+P2a+M-0" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("tokens", 0) for row in rows) == trained["tokens_with_loss"] < trained["tokens"]
    assert not list(folder.glob("cells/*/work"))
    report = (folder / "ablation.md").read_text(encoding="utf-8")
    assert "| P1+P2'+M | 3 | 1 |" in report and report in printed
    assert (folder / "ablation.png").stat().st_size > 5000
    assert len(json.loads((folder / "ablation.json").read_text())["cells"]) == 1


def does_not_do_again_what_is_done(folder):
    before = snapshot(folder / "cells")
    assert run_stage("benchmarks/ablation.py", "--quick", "--folder", folder).returncode == 0
    assert run_stage("benchmarks/ablation.py", "--quick", "--report-only", "--folder", folder).returncode == 0
    assert snapshot(folder / "cells") == before


def has_shared_the_data_out_without_overlap(data):
    records = {name: [json.loads(line) for line in (data / f"{name}.jsonl").read_text("utf-8").splitlines()]
               for name in ("P1", "P2", "base", "held-out")}  # fmt: skip
    assert {name: len(found) for name, found in records.items()} == {
        "P1": 600, "P2": 600, "base": 2 * 6 * (200 - 20), "held-out": 30 * 20,
    }  # fmt: skip
    assert {r["src_lang"] for r in records["base"]} == {"en", "fr", "es"}
    assert all(resolve(r["tgt_lang"]) for r in records["held-out"])


def test_errors(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "scale.json").write_text("{}")
    fails_with = {
        ("--folder", other): "another scale",
        ("--report-only", "--folder", tmp_path): "no cell is done",
        ("--seeds", "11", "--folder", tmp_path): "--seeds 11",
    }
    for options, message in fails_with.items():
        result = run_stage("benchmarks/ablation.py", *options)
        assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_failing_stage_is_named_with_its_log(tmp_path):
    """A corpus that is something else: the seed's first stage fails."""
    (tmp_path / "seed-0" / "corpus").mkdir(parents=True)
    (tmp_path / "seed-0" / "corpus" / "thesis.txt").write_text("precious")
    result = run_stage("benchmarks/ablation.py", "--quick", "--folder", tmp_path)
    log = tmp_path / "seed-0" / "log"
    assert result.returncode == 1 and f"stage corpus ended with 1; see {log}" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "choose another folder" in log.read_text()
    assert (ROOT / "Makefile").read_text().count("benchmarks/ablation.py") == 1
