"""The README's commands, run as they stand there, in order, on files of the names it uses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ENVIRONMENT, ROOT, llama_folder, sentences, write_jsonl
from test_fill import m2m, pieces  # noqa: F401  (fixtures)


def commands():
    """The commands of the stages' code block, a trailing backslash joining lines."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```\n(.*?)```", readme, re.DOTALL) if "preprocess_mono.py" in block)
    return [line for line in block.replace("\\\n", " ").splitlines() if line]


def test_every_stage_has_its_command():
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert scripts == {word for command in commands() for word in command.split() if word.endswith(".py")}


def test_commands_run_as_they_stand(tmp_path, tokenizer_model, m2m):  # noqa: F811
    for path in ROOT.glob("*.py"):
        (tmp_path / path.name).symlink_to(path)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    llama_folder(tmp_path / "llama2", tokenizer_model, 500, **tiny)
    shutil.copy(tokenizer_model, tmp_path / "sacrebleu_tokenizer_spm.model")
    (tmp_path / "fr.txt").write_text("\n".join(sentences("fr", 2000)) + "\n", encoding="utf-8")
    both = list(zip(sentences("en", 2000), sentences("fr", 2000), strict=True))
    pairs = [{"src": en, "tgt": fr, "src_lang": "en", "tgt_lang": "fr"} for en, fr in both]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    (tmp_path / "en-fr.txt").write_text("farmer fermier\nlamp\tlampe\nred rouge\n", encoding="utf-8")
    (tmp_path / "counts.csv").write_text("lang,mono,para,direct\nfr,0,24970,1\n")
    (tmp_path / "en.txt").write_text("\n".join(sentences("en", 200)) + "\n", encoding="utf-8")
    (tmp_path / "m2m100").symlink_to(m2m)
    (tmp_path / "ro.txt").write_text("bătrânul fermier cumpără o lampă roșie în piață\n" * 3, encoding="utf-8")
    pairs = [{"sentence1": "It is.", "sentence2": f"It is not {i}.", "gold_label": "contradiction"} for i in range(9)]
    write_jsonl(tmp_path / "multinli_1.0_train.jsonl", pairs)
    examples = [{"instruction": f"Say {i}.", "input": "", "output": str(i)} for i in range(150)]
    (tmp_path / "alpaca_data.json").write_text(json.dumps(examples))
    flores = tmp_path / "flores101" / "devtest"
    flores.mkdir(parents=True)
    for name, lang in (("eng", "en"), ("fra", "fr")):
        (flores / f"{name}.devtest").write_text("\n".join(sentences(lang, 2)) + "\n", encoding="utf-8")

    environment = {**ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands():
        # Only the port differs: two tests may run at once.
        command = command.replace("torchrun ", "torchrun --standalone ")
        result = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, command + result.stdout + result.stderr
    assert len((tmp_path / "data" / "filled.jsonl").read_text(encoding="utf-8").splitlines()) == 30
    scores = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert {(score["src"], score["tgt"]) for score in scores} == {("en", "fr"), ("fr", "en")}
    assert "| all | spBLEU | 2 |" in (tmp_path / "tuned" / "README.md").read_text(encoding="utf-8")
    assert "<html" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
