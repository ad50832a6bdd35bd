"""Fixtures: real stages as subprocesses, tiny corpora, tokenizers and models, and the shared data where it is there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import settings

settings.register_profile("ours", deadline=None)  # a slow machine is no failure
settings.load_profile("ours")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
LLAMA2 = SHARED / "tokenizers" / "llama2.tokenizer.model"
LLAMA3 = SHARED / "tokenizers" / "llama3.tokenizer.model"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}


def run_stage(*command, ranks=0, cwd=ROOT):
    """Run a stage script as a user would; with `ranks`, under torchrun. Returns the CompletedProcess."""
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [str(part) for part in (*launcher, ROOT / command[0], *command[1:])]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def stage(*command, **options):
    """run_stage that must succeed; returns stdout."""
    result = run_stage(*command, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def call(module, *command, workers=1):
    """Run a stage's main() in this process: for tests that call it many times, or change a constant."""
    saved, sys.argv = sys.argv, [module.__name__, *map(str, command), "--workers", str(workers)]
    try:
        module.main()
    finally:
        sys.argv = saved


def fails(*command, saying=()):
    """Run a stage that must end as every user error does: exit status 1, one line on stderr that says the given."""
    result = run_stage(*command)
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Building prefix dict")]
    assert len(lines) == 1 and lines[0].startswith(f"{command[0]}: error: "), result.stderr
    for text in saying:
        assert str(text) in lines[0], lines[0]


def snapshot(folder):
    """{relative path: bytes} of all files in a folder: what must be untouched after a failure."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


SENTENCES = {
    "en": "the old farmer buys a red lamp in the market today",
    "fr": "le vieux fermier achète une lampe rouge au marché aujourd'hui",
    "zh": "老农民今天在市场买红灯",
    "th": "ชาวนาแก่ซื้อโคมไฟสีแดงที่ตลาดวันนี้",
}


def sentences(lang, n, seed=0):
    """n different sentences: rotations of a language's sample with a number, so that no two are the same."""
    words = SENTENCES[lang].split(" ") if " " in SENTENCES[lang] else list(SENTENCES[lang])
    joint = " " if " " in SENTENCES[lang] else ""
    out = []
    for i in range(n):
        k = (i * 7 + seed) % len(words)
        out.append(joint.join(words[k:] + words[:k])[: 12 + (i * 5) % 40].strip() + f" {i + seed}")
    return out


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory):
    """A LLaMA-like SentencePiece model: BPE, byte fallback, identity normalisation, dummy prefix."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "text.txt"
    text.write_text("\n".join(s for lang in SENTENCES for s in sentences(lang, 200)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=500, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, split_digits=True,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"


def llama_folder(folder, tokenizer_model, vocab_size, **changes):
    """A Hugging Face folder of a random Llama whose norms are not all one, saved by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": vocab_size, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **changes}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.08)
        else:
            parameter.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    if tokenizer_model:
        shutil.copy(tokenizer_model, folder / "tokenizer.model")
    return folder


LLAMA31_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.fixture(scope="session")
def hf_llama2(tmp_path_factory, tokenizer_model):
    """A Llama-2-shaped folder; 500 tokens, so that the vocabulary is padded to 512."""
    return llama_folder(tmp_path_factory.mktemp("llama2"), tokenizer_model, 500)


@pytest.fixture(scope="session")
def hf_llama31(tmp_path_factory, tokenizer_model):
    """A Llama-3.1-shaped folder: grouped-query attention, scaled RoPE."""
    changes = {"num_attention_heads": 8, "num_key_value_heads": 4, "rope_parameters": LLAMA31_ROPE}
    return llama_folder(tmp_path_factory.mktemp("llama31"), tokenizer_model, 500, **changes)


@pytest.fixture(scope="session")
def blend(tmp_path_factory, tokenizer_model):
    """A --data-path of pairs with loss on the target only, and of monolingual text in two languages."""
    folder = tmp_path_factory.mktemp("blend")
    pairs = [
        {"src": a, "tgt": b, "src_lang": "en", "tgt_lang": "fr", "loss": "target"}
        for a, b in zip(sentences("en", 200), sentences("fr", 200), strict=True)
    ]
    mono = [{"text": text, "lang": lang} for lang in ("th", "zh") for text in sentences(lang, 200)]
    for script, name, records in (("preprocess_parallel.py", "pairs", pairs), ("preprocess_mono.py", "mono", mono)):
        source = write_jsonl(folder / f"{name}.jsonl", records)
        stage(script, "--input", source, "--tokenizer-model", tokenizer_model, "--output-prefix", folder / name)
    return [2, folder / "pairs", 1, folder / "mono"]


# Evaluation: a test set of three languages, and a model whose tokenizer knows their words

WORDS = {
    name: text.split()
    for name, text in (
        ("eng", "the a big small red house tree dog cat runs sees eats sleeps under near old river quickly and not"),
        (
            "fra",
            "le la grande petite rouge maison arbre chien chat court voit mange dort sous près vieux fleuve et ne pas",
        ),
        ("zho_simpl", "这 个 大 小 红 房子 树 狗 猫 跑 看见 吃 睡 在 下面 附近 老 河 快 和"),
    )
}


@pytest.fixture(scope="session")
def llama_tokenizer(tmp_path_factory):
    """A SentencePiece file of Llama's kind, trained on WORDS."""
    prefix = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    lines = [" ".join(words[i:] + words[:i]) for words in WORDS.values() for i in range(len(words))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), model_type="bpe", vocab_size=450, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")


@pytest.fixture
def flores(tmp_path):
    """A Flores folder of three languages with 11 lines of different lengths, and one file that is no language's."""
    folder = tmp_path / "flores"
    for language, words in WORDS.items():
        lines = [" ".join(words[i % 20] for i in range(k, k + 1 + (5 * k) % 13)) for k in range(11)]
        write_lines(folder / "devtest" / f"{language}.devtest", lines)
    write_lines(folder / "devtest" / "metadata.devtest", ["x"])
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, llama_tokenizer):
    """A random Llama with its tokenizer. Its vocabulary is padded, and EOS likely enough to end some sentences."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=456, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[2] *= 2
    # What a folder says about sampling must not change a beam search.
    model.generation_config = transformers.GenerationConfig(do_sample=True, temperature=2.0, repetition_penalty=3.0)
    model.save_pretrained(folder)
    shutil.copyfile(llama_tokenizer, folder / "tokenizer.model")
    return folder
