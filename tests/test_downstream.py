"""lm-evaluation-harness reads what is exported: its log-likelihoods are those of the model with SentencePiece's ids."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from conftest import ENVIRONMENT, ROOT, llama_folder, write_jsonl

from llamax.tokenizer import write_hf_tokenizer

LM_EVAL = Path(sys.prefix) / "lm-eval"  # the Makefile installs it there

TASK = """\
task: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
QUESTIONS = [
    ("the old farmer buys a", ["red lamp in the market", "market", "lampe"]),
    ("le vieux fermier achète une lampe rouge", ["au marché aujourd'hui", "in the market today"]),
    ("老农民今天在市场", ["买红灯", "买", "红灯买", "灯"]),
    ("ชาวนาแก่ซื้อ", ["โคมไฟสีแดง", "ที่ตลาดวันนี้"]),
    ("чужой", ["1", "2", "34"]),
]


def log_likelihoods(folder, tokenizer_model):
    """[[log-likelihood of each choice after its question]], a sequence at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    found = []
    for question, choices in QUESTIONS:
        found.append([])
        start = 1 + len(pieces.encode(question))
        for choice in choices:
            ids = torch.tensor([[pieces.bos_id(), *pieces.encode(f"{question} {choice}")]])
            with torch.inference_mode():
                log_probs_sv = model(ids).logits[0].log_softmax(dim=-1)
            found[-1].append(sum(log_probs_sv[s - 1, ids[0, s]].item() for s in range(start, ids.shape[1])))
    return found


def test_a_local_task(tmp_path, tokenizer_model):
    folder = llama_folder(tmp_path / "model", tokenizer_model, 500)
    write_hf_tokenizer(tokenizer_model, folder)
    expected = log_likelihoods(folder, tokenizer_model)

    # What the model takes for the best answer is right in three questions of five.
    best = [max(range(len(values)), key=values.__getitem__) for values in expected]
    answers = [index if n < 3 else (index + 1) % len(expected[n]) for n, index in enumerate(best)]
    records = [
        {"question": question, "choices": choices, "answer": answer}
        for (question, choices), answer in zip(QUESTIONS, answers, strict=True)
    ]
    path = write_jsonl(tmp_path / "questions.jsonl", records)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/tiny.yaml").write_text(TASK.format(path=path), encoding="utf-8")

    command = [
        sys.executable, LM_EVAL / "bin/lm_eval", "--model", "hf", "--model_args", f"pretrained={folder},dtype=float32",
        "--tasks", "tiny", "--include_path", tmp_path / "tasks", "--device", "cpu", "--batch_size", "4",
        "--output_path", tmp_path / "out", "--log_samples",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    environment = {**ENVIRONMENT, **offline, "PYTHONPATH": str(LM_EVAL)}
    result = subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

    (results,) = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(results.read_bytes())["results"]["tiny"]
    assert (scores["acc,none"], scores["sample_len"]) == (0.6, 5)
    (samples,) = (tmp_path / "out").rglob("samples_tiny_*.jsonl")
    rows = {row["doc_id"]: row for row in map(json.loads, samples.read_text(encoding="utf-8").splitlines())}
    for n, values in enumerate(expected):
        assert [float(value) for value, _ in rows[n]["filtered_resps"]] == pytest.approx(values, abs=1e-3)
