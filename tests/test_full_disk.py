"""A full disk: every stage says so in one line, and what was there before is untouched."""

import json
import subprocess

import pytest
from conftest import fails, sentences, snapshot, stage, write_jsonl


@pytest.fixture
def disk(tmp_path):
    """A function that gives a folder on a tmpfs of so many KiB, with a file in it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kib):
        options = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        mounted = subprocess.run(options, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip("cannot mount a tmpfs here: " + mounted.stderr.strip())
        (folder / "kept").write_text("kept")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


PAIRS = [
    {"src": a, "tgt": b, "src_lang": "en", "tgt_lang": "fr"}
    for a, b in zip(sentences("en", 5000), sentences("fr", 5000), strict=True)
]
FULL = ["o space left", "free some space"]


def test_preprocessing(disk, tmp_path, tokenizer_model):
    folder = disk(64)
    source = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    text = tmp_path / "a.txt"
    text.write_text("\n".join(sentences("en", 5000)), encoding="utf-8")
    model = "--tokenizer-model", tokenizer_model, "--output-prefix", folder / "d"
    fails("preprocess_parallel.py", "--input", source, *model, saying=FULL)
    fails("preprocess_mono.py", "--input", text, "--lang", "en", *model, saying=FULL)
    assert snapshot(folder) == {"kept": b"kept"}


def test_preprocessing_goes_on_when_there_is_space_again(disk, tmp_path, tokenizer_model):
    """Full half-way, in a shard or in the merge; after space was made the same command completes, the same bytes."""
    source = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    command = ("preprocess_parallel.py", "--input", source, "--tokenizer-model", tokenizer_model, "--dedup",
               "--output-prefix")  # fmt: skip
    stage(*command, tmp_path / "whole" / "d")
    size = sum(map(len, snapshot(tmp_path / "whole").values()))
    for kib in (size // 4096, size // 1024):  # the merge needs the space of its shards, too
        folder = disk(kib)
        fails(*command, folder / "d", saying=FULL)
        assert not (folder / "d.json").exists()
        subprocess.run(["mount", "-o", f"remount,size={size * 9}", str(folder)], check=True)
        stage(*command, folder / "d")
        assert snapshot(folder) == {**snapshot(tmp_path / "whole"), "kept": b"kept"}
        subprocess.run(["umount", str(folder)], check=True)


def test_augmentation(disk, tmp_path):
    folder = disk(64)
    dictionary = tmp_path / "en-fr.txt"
    dictionary.write_text("".join(f"word{i} mot{i}\n" for i in range(5000)) + "farmer fermier\n")
    fails("augment.py", "lexicon", "--muse", dictionary, "--output", folder / "l", saying=FULL)
    stage("augment.py", "lexicon", "--muse", dictionary, "--output", tmp_path / "l")
    source = write_jsonl(tmp_path / "a.jsonl", PAIRS)
    fails("augment.py", "pairs", "--lexicon", tmp_path / "l", "--input", source, "--output", folder / "p", saying=FULL)
    assert snapshot(folder) == {"kept": b"kept"}


def test_conversion(disk, tmp_path, hf_llama2):
    folder = disk(400)
    stage("convert_hf.py", "to-megatron", "--hf-model", hf_llama2, "--save", tmp_path / "m")
    fails("convert_hf.py", "to-hf", "--load", tmp_path / "m", "--hf-model", hf_llama2, "--save", folder / "h",
          saying=["free some space"])  # fmt: skip
    fails("convert_hf.py", "to-megatron", "--hf-model", hf_llama2, "--save", folder / "m", saying=["free some space"])
    assert not (folder / "h").exists() and not list(folder.glob("m/iter*"))
    assert (folder / "kept").read_bytes() == b"kept"


def test_tuning(disk, tmp_path, hf_llama2):
    folder = disk(64)
    examples = [{"instruction": f"Say {i}.", "input": "", "output": f"the {i}"} for i in range(2000)]
    (tmp_path / "a.json").write_text(json.dumps(examples))
    fails("sft_alpaca.py", "--hf-model", hf_llama2, "--data", tmp_path / "a.json", "--save", folder / "sft",
          "--global-batch-size", 4, "--train-iters", 1, saying=FULL)  # fmt: skip
    assert not list(folder.glob("sft/data/*.bin"))
    assert (folder / "kept").read_bytes() == b"kept"


def test_evaluation(disk, tmp_path, hf_llama2):
    flores = tmp_path / "flores" / "devtest"
    flores.mkdir(parents=True)
    for name, lang in (("eng", "en"), ("fra", "fr")):
        (flores / f"{name}.devtest").write_text("\n".join(sentences(lang, 3)) + "\n", encoding="utf-8")
    folder = disk(4)
    fails("evaluate.py", "generate", "--hf-model", hf_llama2, "--flores", flores.parent, "--directions", "en-fr",
          "--output", folder / "out", "--max-new-tokens", 2, saying=FULL)  # fmt: skip
    assert (folder / "kept").read_bytes() == b"kept"
