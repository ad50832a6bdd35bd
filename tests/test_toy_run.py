"""toy/run.sh: a stage that fails in its first command is not taken for done."""

import os
import subprocess

import pytest
from conftest import ROOT


@pytest.mark.parametrize("failing", ["make_corpus.py", "init_weights.py", "preprocess_mono.py"])
def test_a_failure_inside_a_stage_ends_the_run(failing, tmp_path):
    """The interpreter is one that refuses a single script and does nothing for the others."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\ncase "$*" in *{failing}*) exit 3 ;; esac\n')
    interpreter.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(interpreter), "WORK": str(tmp_path / "toy")}
    result = subprocess.run([ROOT / "toy" / "run.sh"], env=environment, capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    done = {path.name for path in (tmp_path / "toy" / "seconds").iterdir() if not path.suffix}
    assert done == ({"corpus"} if failing == "preprocess_mono.py" else set())
