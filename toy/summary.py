"""Collect what a run of toy/run.sh measured: WORK/summary.json and a table.

python toy/summary.py work/toy
"""

import json
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamax.files import existing_file, run, write_json


def spbleu(folder):
    """{(src, tgt): spBLEU} of an evaluation."""
    lines = existing_file(folder / "scores.jsonl", "--output").read_text(encoding="utf-8").splitlines()
    scores = map(json.loads, lines)
    return {(score["src"], score["tgt"]): score["score"] for score in scores if score["metric"] == "spBLEU"}


def main():
    work = Path(sys.argv[1])
    before, after = spbleu(work / "before"), spbleu(work / "after")
    named = [direction for direction in after if "en" in direction]  # those that the instructions name
    other = [direction for direction in after if "en" not in direction]
    seconds = {path.name: int(path.read_text()) for path in (work / "seconds").iterdir() if not path.suffix}
    summary = {
        "seconds": dict(sorted(seconds.items())),
        "seconds_total": sum(seconds.values()),
        "before": "the initial (random) weights, untuned",
        "spbleu_before": mean(before[direction] for direction in named),
        "spbleu_after": mean(after[direction] for direction in named),
        "spbleu_after_other": mean(after[direction] for direction in other),
        "report": str(work / "after" / "report.html"),
    }
    write_json(work / "summary.json", summary)
    for name, value in summary["seconds"].items():
        print(f"{name:<20} {value:>6} s")
    print(f"{'total':<20} {summary['seconds_total']:>6} s\n")
    print(f"mean spBLEU, {len(named)} directions with instructions: {summary['spbleu_before']:6.2f} before, "
          f"{summary['spbleu_after']:6.2f} after")  # fmt: skip
    print(f"mean spBLEU, the other {len(other)}:                    {summary['spbleu_after_other']:13.2f} after")
    print(f"report: {summary['report']}")


if __name__ == "__main__":
    run(main)
