"""slurm/*.sh end in command lines that their stages' own parsers take; tests/slurm/ runs them on a real Slurm."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, sentences, write_jsonl

import pretrain_llamax
import sft_alpaca

PRETRAIN = ROOT / "slurm" / "pretrain.sh"
SFT = ROOT / "slurm" / "sft.sh"
LLAMA2 = {
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "vocab_size": 32000, "tie_word_embeddings": False, "initializer_range": 0.02,
}  # fmt: skip
LLAMA3 = LLAMA2 | {
    "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 8192, "vocab_size": 128256,
    "rope_theta": 500000.0,
}  # fmt: skip
LLAMA31 = LLAMA3 | {
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
TINY = LLAMA2 | {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
                 "num_key_value_heads": 4, "vocab_size": 500}  # fmt: skip

BI = {"bilingual": 32.3, "mono": 26.3, "code": 15.0, "papers": 13.2, "instructions": 11.4, "books": 1.8}
MONO = {"mono": 38.9, "code": 22.1, "papers": 19.5, "instructions": 16.8, "books": 2.6}
LLAMAX = dict.fromkeys(("mono", "parallel", "augmented"))  # no weights: all of it
# preset: (config.json, parameters, {dataset: its share}, tokens)
PRESETS = {
    "llamax2-7b": (LLAMA2, 6_738_415_616, LLAMAX, 98e9),
    "llamax3-8b": (LLAMA3, 8_030_261_248, LLAMAX, 98e9),
    "llamax3.1-8b": (LLAMA31, 8_030_261_248, LLAMAX, 98e9),
    "emma500-llama2-7b": (LLAMA2, 6_738_415_616, MONO, 190e9),
    "emma500-llama3-8b-mono": (LLAMA3, 8_030_261_248, MONO, 419e9),
    "emma500-llama3-8b-bi": (LLAMA3, 8_030_261_248, BI, 671e9),
    "emma500-llama3.1-8b-mono": (LLAMA31, 8_030_261_248, MONO, 419e9),
    "emma500-llama3.1-8b-bi": (LLAMA31, 8_030_261_248, BI, 671e9),
    "tiny": (TINY, 252_992, {}, 8 * 64 * 20),
}
# preset: (data, prompt, what happens to over-long examples); all else is as Stanford Alpaca's for 7B
SFT_PRESETS = {
    "alpaca": ("alpaca_data.json", "llamax", "cut"),
    "xnli": ("xnli.json", "llamax", "drop"),
    "x-csqa": ("x-csqa.json", "llamax", "drop"),
    "metamath": ("metamath.json", "stanford", "cut"),
}


def bash(script, *arguments, cwd=ROOT, **variables):
    """Run a script of slurm/ outside of Slurm, with these environment variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = clean | {"PYTHON": sys.executable} | variables
    return subprocess.run([script, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def hf_folder(folder, config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def echo(tmp_path):
    """A stand-in for Python that prints its arguments as JSON: the command line a script ends in."""
    path = tmp_path / "echo"
    path.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    path.chmod(0o755)
    return str(path)


def test_every_script_is_bash():
    scripts = [path for folder in ("slurm", "tests/slurm") for path in (ROOT / folder).rglob("*.*sh")]
    assert len(scripts) > 20
    for script in scripts:
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0, script
    assert {path.stem for path in (ROOT / "slurm" / "presets").iterdir()} == set(PRESETS)
    assert {path.stem for path in (ROOT / "slurm" / "sft-presets").iterdir()} == {*SFT_PRESETS, "tiny"}


def test_a_dry_run_needs_neither_slurm_nor_weights_nor_data(tmp_path):
    result = bash(PRETRAIN, DRY_RUN="24", HF_MODEL=hf_folder(tmp_path / "hf", LLAMA2), DATA=str(tmp_path / "none"))
    assert result.returncode == 0, result.stderr
    assert "6,738,415,616" in result.stdout
    assert sorted(tmp_path.iterdir()) == [tmp_path / "hf"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset, tmp_path, echo, monkeypatch, capsys):
    config, parameters, shares, tokens = PRESETS[preset]
    variables = {"HF_MODEL": hf_folder(tmp_path / "hf", config), "DATA": "none", "PYTHON": echo}
    if preset == "tiny":
        variables |= {"DATA_PATH": "2 none/a 1 none/b", "TP": "2", "PP": "2"}
    for gpus in (4, 8) if preset == "tiny" else (8, 16, 24, 48, 64, 128):
        result = bash(PRETRAIN, preset, "--seed", "5", DRY_RUN=str(gpus), **variables)
        assert result.returncode == 0, result.stderr
        command = json.loads(result.stdout)
        monkeypatch.setattr(sys, "argv", command)
        pretrain_llamax.main()
        assert re.search(rf"^  sum +{parameters:,}$", capsys.readouterr().out, re.MULTILINE)
        args = pretrain_llamax.get_args()
        assert (args.dry_run, args.seed, args.save, args.load) == (gpus, 5, f"runs/{preset}", f"runs/{preset}")
        assert args.tensor_model_parallel_size == 2 and args.global_batch_size in (8, 768, 1536)
        step = args.global_batch_size * args.seq_length
        assert tokens - step < args.train_iters * step <= tokens
        if shares:
            weights = [] if shares is LLAMAX else shares.values()
            path = [f"none/{name}" for name in shares]
            expected = [part for pair in zip(weights, path, strict=True) for part in pair] if weights else path
            assert args.data_path == [str(part) for part in expected]


def test_llamax_trains_one_epoch_of_the_data(tmp_path, echo):
    for name, tokens in (("mono", 3_000_000), ("parallel", 2_000_000), ("augmented", 1_000_000)):
        manifest = {"languages": {"fr": {"tokens": 7}}, "tokens": tokens, "loss_tokens": 5}
        (tmp_path / f"{name}.json").write_text(json.dumps(manifest, indent=2))
    for variables, steps in (({}, 5_880_000 // (768 * 512)), ({"TRAIN_ITERS": "7"}, 7)):
        result = bash(PRETRAIN, DRY_RUN="24", DATA=str(tmp_path), PYTHON=echo, **variables)
        command = json.loads(result.stdout)
        assert command[command.index("--train-iters") + 1] == str(steps)


def sft_args(monkeypatch, *arguments, **variables):
    """What sft_alpaca.py makes of the command line that slurm/sft.sh ends in, on one process."""
    result = bash(SFT, *arguments, DRY_RUN="1", PYTHON="python", **variables)
    assert result.returncode == 0, result.stderr
    command = shlex.split(result.stdout)
    assert command[:2] == ["python", "sft_alpaca.py"]
    monkeypatch.setattr(sys, "argv", command[1:])
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "0")
    return sft_alpaca.get_args()


@pytest.mark.parametrize("preset", SFT_PRESETS)
def test_sft_presets(preset, tmp_path, monkeypatch):
    name, prompt, over_long = SFT_PRESETS[preset]
    data = tmp_path / "my data" / name
    data.parent.mkdir()
    data.write_text("[]")
    variables = {"HF_MODEL": hf_folder(tmp_path / "hf", LLAMA2), "DATA": str(data.parent)}
    args = sft_args(monkeypatch, preset, "--seed", "5", **variables)
    assert (args.data, args.hf_model, args.seed) == ([str(data)], variables["HF_MODEL"], 5)
    assert args.save == args.load == f"runs/sft-{preset}"
    assert (args.prompt, args.over_long, args.packing) == (prompt, over_long, "inside")
    assert (args.global_batch_size, args.seq_length, args.num_train_epochs, args.train_iters) == (128, 512, 3, None)
    assert (args.lr, args.min_lr, args.lr_decay_style, args.lr_warmup_fraction) == (2e-5, 0, "cosine", 0.03)
    assert (args.weight_decay, args.adam_beta2, args.bf16, args.init_weights) == (0, 0.999, True, False)
    args = sft_args(monkeypatch, preset, **variables, SAVE="x", PROMPT="stanford", GLOBAL_BATCH_SIZE="64", TP="4")
    assert (args.save, args.prompt, args.global_batch_size) == ("x", "stanford", 64)
    assert args.tensor_model_parallel_size == 4


def test_tiny_sft_preset(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.json").write_text("[]")
    variables = {"HF_MODEL": hf_folder(tmp_path / "hf", TINY), "DATA_FILES": f"{tmp_path}/a.json {tmp_path}/b.json"}
    args = sft_args(monkeypatch, "tiny", "--save", str(tmp_path / "a b"), **variables)
    assert args.data == variables["DATA_FILES"].split() and args.save == str(tmp_path / "a b")


@pytest.mark.parametrize(
    ("arguments", "variables", "saying"),
    [
        (["alpaca9"], {"DRY_RUN": "1"}, ["sft.sh: error: slurm/sft-presets/alpaca9.sh: no such preset", "alpaca.sh"]),
        ([], {}, ["sft.sh: error: ", "sbatch", "DRY_RUN=1"]),
        (["tiny"], {"DRY_RUN": "1", "HF_MODEL": "hf"}, ["set DATA_FILES"]),
    ],
)
def test_errors_of_sft_are_one_line(arguments, variables, saying):
    result = bash(SFT, *arguments, **variables)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    assert all(text in result.stderr for text in saying)


@pytest.mark.parametrize(
    ("arguments", "variables", "saying"),
    [
        (["llamax9"], {"DRY_RUN": "8"}, ["slurm/presets/llamax9.sh: no such preset", "llamax2-7b.sh", "tiny.sh"]),
        ([], {}, ["sbatch", "DRY_RUN=24"]),
        (["tiny"], {"DRY_RUN": "4"}, ["set HF_MODEL"]),
        ([], {"DRY_RUN": "24", "GLOBAL_BATCH_SIZE": "100"}, ["--global-batch-size 100"]),
        ([], {"DRY_RUN": "1", "TP": "1"}, ["a GPU needs", "--recompute-granularity full"]),
    ],
)
def test_errors_are_one_line(arguments, variables, saying, tmp_path):
    model = {} if "tiny" in arguments else {"HF_MODEL": hf_folder(tmp_path / "hf", LLAMA2)}
    result = bash(PRETRAIN, *arguments, **model, **variables)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for text in saying:
        assert text in result.stderr


def test_preprocessing_as_slurm_starts_it(tmp_path, tokenizer_model):
    """slurm/preprocess.sh, an array task after the other, then the merge; slurm/augment.sh is in test_augment.py."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("preprocess_mono.py", "merge_datasets.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    lines = sentences("en", 200)
    for split in ("dev", "devtest"):
        folder = tmp_path / "flores101" / split
        folder.mkdir(parents=True)
        (folder / f"eng.{split}").write_text(f"{lines[3]}\n", encoding="utf-8")
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus" / "en.jsonl", [{"text": line, "lang": "en"} for line in lines])
    variables = {"SHARDS": "2", "INPUT": "corpus/*.jsonl", "TOKENIZER_MODEL": str(tokenizer_model)}
    script = ROOT / "slurm" / "preprocess.sh"
    for task in "01":
        result = bash(script, cwd=tmp_path, SLURM_ARRAY_TASK_ID=task, **variables)
        assert result.returncode == 0, result.stderr
    result = bash(script, "merge", cwd=tmp_path, **variables)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "data" / "mono.json").read_text())
    assert manifest["documents"] == 199 and manifest["rejects"] == {"in a test set": 1}
