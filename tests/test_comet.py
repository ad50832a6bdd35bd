"""How COMET is called: a real process, but with a stand-in for the `comet` package, for the real one needs an
environment of its own and 2.3 GB of weights. What the stand-in has of the interface (download_model,
load_from_checkpoint, predict) is unbabel-comet 2.2.7's, which was tried by hand with a small random RegressionMetric:
the scores were those of the model's forward pass, sentence by sentence. COMET-22's own scores were not measured.
"""

import json
import os
import sys

import psutil
import pytest

from llamax.comet import Comet
from llamax.files import InputError, fingerprint

# A score is the length of the source in thousandths, of the hypothesis in hundredths and of the reference in tenths.
STAND_IN = """
import json, os, pathlib, types

__version__ = "2.2.7"
RECORD = pathlib.Path(os.environ["RECORD"])
print("printed at import")


def record(**event):
    with RECORD.open("a") as file:
        print(json.dumps({"pid": os.getpid(), **event}), file=file)


def download_model(name):
    if name != "Unbabel/wmt22-comet-da":
        raise KeyError(f"Model '{name}' not supported by COMET.")
    record(downloaded=name)
    return str(RECORD.parent / "tiny-comet" / "checkpoints" / "model.ckpt")


def load_from_checkpoint(path):
    content = pathlib.Path(path).read_text()
    record(loaded=content, slurm=[key for key in os.environ if key.startswith("SLURM_")])
    if content == "broken":
        raise RuntimeError("unexpected\\nkey")
    if content == "huge":
        os.kill(os.getpid(), 9)
    return Model()


class Model:
    def predict(self, samples, batch_size, gpus, progress_bar):
        os.write(1, b"printed while predicting\\n")
        assert not progress_bar and gpus == 1
        record(samples=samples, batch_size=batch_size)
        if samples[0]["mt"] == "fails":
            raise ValueError("cannot score this")
        if samples[0]["mt"] == "dies":
            os.write(2, b"Out of memory\\n\\n")
            os._exit(3)
        scores = [len(s["src"]) / 1000 + len(s["mt"]) / 100 + len(s["ref"]) / 10 for s in samples]
        return types.SimpleNamespace(scores=scores, system_score=sum(scores) / len(scores))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A model.ckpt; the stand-in, which the processes started from here find, records in tmp_path / "record"."""
    (tmp_path / "packages" / "comet").mkdir(parents=True)
    (tmp_path / "packages" / "comet" / "__init__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    checkpoint = tmp_path / "tiny-comet" / "checkpoints" / "model.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("weights")
    (tmp_path / "tiny-comet" / "hparams.yaml").write_text("class_identifier: regression_metric\n")
    return checkpoint


def record(tmp_path):
    return [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]


def test_scores_and_signature(stand_in, tmp_path):
    with Comet(sys.executable, stand_in, batch_size=7) as comet:
        first, segments = comet.score(["a", "bb"], ["ccc", ""], ["dd", "e"])
        second, _ = comet.score(["x"], ["yy"], ["zzzzz"])
    signature = f"comet:tiny-comet-{fingerprint(stand_in)['blake2b'][:8]}|v:2.2.7"
    assert comet.signature == signature
    assert first == {"metric": "COMET", "score": pytest.approx(16.65), "n": 2, "signature": signature}
    assert segments == pytest.approx([23.1, 10.2])
    assert second == {"metric": "COMET", "score": pytest.approx(52.1), "n": 1, "signature": signature}
    assert [event["batch_size"] for event in record(tmp_path) if "samples" in event] == [7, 7]


def test_sentences_arrive_as_they_are(stand_in, tmp_path):
    odd = ["a\u2028b\u0085c", "\r\n", "\0", '"\\"', "𝄞ं", "\ufeff", " spaces ", ""]
    with Comet(sys.executable, stand_in) as comet:
        comet.score(odd, odd[::-1], odd)
    assert record(tmp_path)[-1]["samples"] == [
        {"src": a, "mt": b, "ref": a} for a, b in zip(odd, odd[::-1], strict=True)
    ]


def test_one_process_loads_once_and_answers_each_direction_in_turn(stand_in, tmp_path):
    lines = ["a sentence of some length"] * 2000  # more than a pipe holds
    with Comet(sys.executable, stand_in) as comet:
        for done in range(1, 6):
            comet.score(lines, lines, lines)
            assert len(record(tmp_path)) == 1 + done
    events = record(tmp_path)
    assert [list(event)[1] for event in events] == ["loaded"] + ["samples"] * 5
    assert len({event["pid"] for event in events}) == 1 and events[0]["pid"] != os.getpid()


def test_nothing_is_left_running(stand_in, tmp_path):
    with pytest.raises(KeyboardInterrupt), Comet(sys.executable, stand_in):
        pid = record(tmp_path)[0]["pid"]
        assert psutil.pid_exists(pid)
        raise KeyboardInterrupt
    assert not psutil.pid_exists(pid)


def test_name_on_the_hub(stand_in, tmp_path):
    with Comet(sys.executable, "Unbabel/wmt22-comet-da") as comet:
        assert comet.signature.startswith("comet:wmt22-comet-da-")
    assert record(tmp_path)[0]["downloaded"] == "Unbabel/wmt22-comet-da"


def test_checkpoint_in_the_hub_cache_is_a_link(stand_in, tmp_path):
    blob = stand_in.rename(tmp_path / "blob")
    stand_in.symlink_to(blob)
    with Comet(sys.executable, stand_in) as comet:
        assert comet.signature.startswith("comet:tiny-comet-")


def test_no_part_of_a_slurm_job(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    with Comet(sys.executable, stand_in):
        assert record(tmp_path)[0]["slurm"] == []


def fails(*saying, python=sys.executable, model, mt="x"):
    with pytest.raises(InputError) as error, Comet(python, model) as comet:
        comet.score(["a"], [mt], ["b"])
    for text in saying:
        assert str(text) in str(error.value), error.value


def test_errors_of_the_environment(stand_in, tmp_path, monkeypatch):
    nowhere = tmp_path / "bin" / "python"
    fails(f"--comet-python {nowhere}: No such file", "expected the Python of", python=nowhere, model=stand_in)
    fails(f"--comet-python {tmp_path}: Permission denied", python=tmp_path, model=stand_in)
    fails("--comet-python true: ended with status 0 (without a word)", python="true", model=stand_in)
    fails("--comet-python echo: ended with status", f"{stand_in} 16)", python="echo", model=stand_in)
    (tmp_path / "packages" / "comet" / "__init__.py").write_text("import pkg_resourcez")
    fails("cannot import comet", "No module named 'pkg_resourcez'", '"setuptools<81"', model=stand_in)
    monkeypatch.setenv("PYTHONPATH", "")
    fails(f"{sys.executable}: cannot import comet (ModuleNotFoundError: No module named 'comet')", model=stand_in)


def test_errors_of_the_model(stand_in, tmp_path):
    fails(f"--comet-model {tmp_path}/x.ckpt: does not exist", model=tmp_path / "x.ckpt")
    fails("cannot load no/such (KeyError: \"Model 'no/such' not supported", "checkpoints/model.ckpt", model="no/such")
    stand_in.write_text("broken")
    fails(f"cannot load {stand_in} (RuntimeError: unexpected\nkey)", model=stand_in)
    stand_in.write_text("huge")
    fails("ended with status -9", model=stand_in)
    (tmp_path / "tiny-comet" / "hparams.yaml").unlink()
    fails("its settings", "hparams.yaml: does not exist", model=stand_in)


def test_errors_of_a_direction(stand_in):
    fails("COMET failed (ValueError: cannot score this)", model=stand_in, mt="fails")
    fails("ended with status 3 (Out of memory)", model=stand_in, mt="dies")
    with Comet(sys.executable, stand_in) as comet, pytest.raises(ValueError, match="1 sources, 2 hypotheses"):
        comet.score(["a"], ["b", "c"], ["d"])


def test_a_process_that_is_gone(stand_in, tmp_path):
    with Comet(sys.executable, stand_in) as comet:
        psutil.Process(record(tmp_path)[0]["pid"]).kill()
        with pytest.raises(InputError, match="ended with status -9"):
            comet.score(["a" * 100_000] * 100, ["b"] * 100, ["c"] * 100)
