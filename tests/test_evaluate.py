"""The commands as a user meets them: what they write, print and keep, and how wrong input ends."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import sys

import pytest
import sacrebleu
from conftest import SHARED, WORDS, fails, needs_shared, snapshot, stage, write_lines
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest
from test_comet import record as comet_record
from test_comet import stand_in  # noqa: F401  (a fixture)

import evaluate
from llamax import scoring
from llamax.files import InputError, fingerprint
from llamax.hypotheses import digest
from llamax.languages import resolve
from llamax.prompts import prompt_ids, translation_prompt
from llamax.testsets import read_lines
from llamax.tokenizer import load_tokenizer

FILES = dict(zip(("en", "fr", "zh"), WORDS, strict=True))  # of the test set `flores`
# What others take for the end of a line, or of a translation; none is.
AWKWARD = ["le\rla", "a\u2028b", "c\x85d", "e\0f", "g\x0ch", "这\u3000个", "Antwort: ja", "### Response:", "\ufeffdog"]


def cli(*command):
    """Run evaluate.py in this process, where torch is loaded already; returns what it prints."""
    saved, sys.argv = sys.argv, ["evaluate.py", *map(str, command)]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            evaluate.main()
    finally:
        sys.argv = saved
    return printed.getvalue()


def refused(*command, saying):
    """The command must end as a user's error does."""
    with pytest.raises(InputError) as error:
        cli(*command)
    for text in saying:
        assert str(text) in str(error.value), error.value


def sentences(flores, split="devtest"):
    return {code: read_lines(flores / f"{split}/{name}.{split}") for code, name in FILES.items()}


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# generate


@pytest.fixture
def command(model_folder, flores, tmp_path):
    """A `generate` of few tokens and small batches into tmp_path / "out". What is given after it overrules it."""
    return ["generate", "--hf-model", model_folder, "--flores", flores, "--output", tmp_path / "out", "--device", "cpu",
            "--max-new-tokens", 12, "--max-batch-tokens", 4000]  # fmt: skip


def one_by_one(folder, prompts, num_beams=4):
    """The continuations of prompts by plain transformers, without batches and so without padding; and how many of
    them EOS ended."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig()
    tokenizer, found, ended = load_tokenizer(folder), [], 0
    for prompt in prompts:
        ids = torch.tensor([prompt_ids(tokenizer, prompt)])
        with torch.inference_mode():
            new = model.generate(
                ids, attention_mask=torch.ones_like(ids), num_beams=num_beams, max_new_tokens=12, do_sample=False,
                eos_token_id=2, pad_token_id=2,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
        ended += 2 in new
        new = new[: new.index(2)] if 2 in new else new
        text = tokenizer.decode([i for i in new if i < 450])  # the rest of the vocabulary is padding
        found.append(re.sub("[\r\n]+", " ", text.strip()))
    return found, ended


def asked(lines, source, target, prompt="llamax"):
    return [translation_prompt(line, source, target, prompt) for line in lines]


def test_translations_equal_those_of_single_sentences(command, model_folder, flores, tmp_path):
    for name in FILES.values():
        path = flores / f"devtest/{name}.devtest"
        write_lines(path, read_lines(path) + AWKWARD)
    printed = cli(*command, "--directions", "en-*,zh-en")
    assert printed == f"{tmp_path}/out: 3 directions translated, 60 sentences in this run\n"
    written = {f"hypotheses/{direction}.txt" for direction in ("en-fr", "en-zh", "zh-en")}
    assert set(snapshot(tmp_path / "out")) == {*written, "generate.json"}
    ended = 0
    for source, target in (("en", "fr"), ("en", "zh"), ("zh", "en")):
        expected, count = one_by_one(model_folder, asked(sentences(flores)[source], source, target))
        assert read_lines(tmp_path / f"out/hypotheses/{source}-{target}.txt") == expected
        assert len(set(expected)) > 10  # otherwise the order could not be seen
        ended += count
    assert 0 < ended < 60  # both kinds of end were met


def test_what_is_translated_is_kept(command, tmp_path):
    output = tmp_path / "out"
    command += ["--num-beams", 1]
    cli(*command, "--directions", "en-*,zh-en")
    before = snapshot(output)
    assert cli(*command, "--directions", "en-*,zh-en") == f"{output}: 3 directions translated, nothing to do\n"
    assert snapshot(output) == before
    # A direction that was lost, translated again in another company: as it was before.
    written = (output / "hypotheses/en-fr.txt").stat().st_mtime_ns
    (output / "hypotheses/en-zh.txt").unlink()
    cli(*command, "--directions", "*-zh,en-fr", "--max-batch-tokens", 100_000)
    after = snapshot(output)
    assert set(after) == {*before, "hypotheses/fr-zh.txt"}
    assert all(after[name] == before[name] for name in before if name != "generate.json")
    assert (output / "hypotheses/en-fr.txt").stat().st_mtime_ns == written
    assert set(json.loads(after["generate.json"])["sources"]) == {"en", "fr", "zh"}  # zh was of the first run


def test_what_was_made_otherwise_is_not_gone_on_with(command, model_folder, flores, tmp_path, tokenizer_model):
    output = tmp_path / "out"
    command += ["--num-beams", 1, "--directions"]
    cli(*command, "en-fr")
    before = snapshot(output)
    command.append("fr-zh")
    for options, saying in (
        (["--num-beams", 4], "num-beams 1, now 4"),
        (["--max-new-tokens", 13], "max-new-tokens 12, now 13"),
        (["--limit", 3], "limit None, now 3"),
        (["--prompt", "none"], "prompt 'llamax', now 'none'"),
        (["--dtype", "bfloat16"], "dtype 'float32', now 'bfloat16'"),
        (["--do-sample"], "do-sample False, now True"),
        (["--pivot", "en"], "pivot None, now 'en'"),
    ):
        refused(*command, *options, saying=[f"--output {output}: made with {saying}; choose another --output"])

    other = shutil.copytree(model_folder, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    refused(*command, "--hf-model", other, saying=["made with model another one; "])
    shutil.copyfile(model_folder / "model.safetensors", other / "model.safetensors")
    shutil.copyfile(tokenizer_model, other / "tokenizer.model")
    refused(*command, "--hf-model", other, saying=["made with tokenizer another one; "])
    write_lines(tmp_path / "set/x.fr-zh.fr", ["le chien"])
    write_lines(tmp_path / "set/x.fr-zh.zh", ["狗"])
    i = command.index("--flores")
    elsewhere = [*command[:i], "--aligned", tmp_path / "set", *command[i + 2 :]]
    refused(*elsewhere, saying=["made with test-set 'flores101', now 'set'; "])
    english = flores / "devtest/eng.devtest"
    english.write_bytes(english.read_bytes().replace(b"dog", b"cat"))
    refused(*command[:-1], "en-fr", saying=[f"--output {output}: made from another source text for en; "])
    assert snapshot(output) == before
    (output / "generate.json").unlink()
    refused(*command, saying=["of unknown origin"])


def test_the_record(command, model_folder, flores, tmp_path):
    cli(*command, "--directions", "en-fr", "--limit", 3, "--num-beams", 1, "--prompt", "none")
    record = json.loads((tmp_path / "out/generate.json").read_text(encoding="utf-8"))
    settings = record["settings"]
    files = [fingerprint(model_folder / name) for name in ("config.json", "model.safetensors")]
    assert settings.pop("model") == [
        {"file": file["path"].rpartition("/")[2], "size": file["size"], "blake2b": file["blake2b"]} for file in files
    ]
    assert settings.pop("tokenizer") == load_tokenizer(model_folder).manifest()
    assert settings == {
        "prompt": "none", "test_set": "flores101", "split": "devtest", "limit": 3, "num_beams": 1,
        "max_new_tokens": 12, "dtype": "float32", "shots": 0, "do_sample": False, "engine": "transformers",
    }  # fmt: skip
    assert list(record["sources"]) == ["en"]
    assert record["arguments"]["max_batch_tokens"] == 4000
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    # "none" is the bare sentence.
    expected, _ = one_by_one(model_folder, sentences(flores)["en"][:3], num_beams=1)
    assert read_lines(tmp_path / "out/hypotheses/en-fr.txt") == expected


def test_the_prompt_is_the_one_the_model_was_tuned_with(command, model_folder, flores, tmp_path):
    tuned = shutil.copytree(model_folder, tmp_path / "tuned")
    command += ["--directions", "en-fr", "--hf-model", tuned, "--limit", 2, "--num-beams", 1]
    for number, (record, options, expected) in enumerate((
        (None, [], "llamax"),  # a model from elsewhere
        ({"prompt": None, "stages": []}, [], "llamax"),  # one that was not tuned
        ({"prompt": "stanford"}, [], "stanford"),
        ({"prompt": "stanford"}, ["--prompt", "polylm"], "polylm"),
        ({"prompt": "vicuna"}, ["--prompt", "llamax"], "llamax"),
    )):  # fmt: skip
        if record:
            (tuned / "llamax.json").write_text(json.dumps(record))
        output = tmp_path / str(number)
        cli(*command, "--output", output, *options)
        assert json.loads((output / "generate.json").read_text())["settings"]["prompt"] == expected
        prompts = asked(sentences(flores)["en"][:2], "en", "fr", expected)
        assert read_lines(output / "hypotheses/en-fr.txt") == one_by_one(tuned, prompts, num_beams=1)[0]
    for record in ({"prompt": "vicuna"}, {"prompt": "none"}, ["vicuna"]):
        (tuned / "llamax.json").write_text(json.dumps(record))
        refused(*command, saying=[f"--hf-model {tuned}/llamax.json: prompt", "expected llamax or stanford"])


def test_large_weights_are_told_apart_by_pieces(tmp_path):
    path = tmp_path / "weights"
    content = bytearray(os.urandom(3 << 20))
    path.write_bytes(content)
    first = digest(path, whole=1 << 20)
    assert first.startswith("64-pieces-") and first == digest(path, whole=1 << 20)
    assert digest(path) == fingerprint(path)["blake2b"]
    content[-1] ^= 1
    path.write_bytes(content)
    assert digest(path, whole=1 << 20) != first


def ntrex(folder, sources, references):
    write_lines(folder / "newstest2019-src.eng.txt", sources)
    write_lines(folder / "newstest2019-ref.fra.txt", references)


def tico19(folder, sources, references):
    write_lines(folder / "en-fr.tsv", [f"{a}\t{b}" for a, b in zip(sources, references, strict=True)])


def wmt(folder, sources, references):
    write_lines(folder / "sources/x.en-fr.src.en", sources)
    write_lines(folder / "references/x.en-fr.ref.A.fr", references)
    write_lines(folder / "references/x.en-fr.ref.B.fr", references[::-1])


def ted(folder, sources, references):
    rows = [f"t\t{a}\t{b}" for a, b in zip(sources, references, strict=True)]
    write_lines(folder / "talks", ["talk_name\ten\tfr", *rows, "t\t__NULL__\tnon"])


def aligned(folder, sources, references):
    write_lines(folder / "any.en-fr.en", sources)
    write_lines(folder / "any.en-fr.fr", references)


@pytest.mark.parametrize("make", [ntrex, tico19, wmt, ted, aligned])
def test_other_test_sets(make, model_folder, flores, tmp_path, monkeypatch, llama_tokenizer):
    """score takes the test set from what generate says, in whatever folder it is called."""
    sources, references = sentences(flores)["en"], sentences(flores)["fr"]
    make(tmp_path / "set", sources, references)
    monkeypatch.chdir(tmp_path)
    path = "set/talks" if make is ted else "set"
    cli("generate", "--hf-model", model_folder, f"--{make.__name__}", path, "--directions", "en-*", "--num-beams", 1,
        "--max-new-tokens", 12, "--device", "cpu", "--output", "out")  # fmt: skip
    hypotheses = read_lines(tmp_path / "out/hypotheses/en-fr.txt")
    assert hypotheses == one_by_one(model_folder, asked(sources, "en", "fr"), num_beams=1)[0]

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    score(tmp_path / "out", "--spbleu-model", llama_tokenizer)
    rows = {row["metric"]: row for row in read_rows(tmp_path / "out/scores.jsonl")}
    several = [references, references[::-1]] if make is wmt else [references]
    assert rows["chrF++"]["score"] == sacrebleu.corpus_chrf(hypotheses, several, word_order=2).score > 0
    assert rows["spBLEU"]["n"] == 11 and f"nrefs:{len(several)}|" in rows["spBLEU"]["signature"]


def test_bad_options_of_generate(command, flores, tmp_path, model_folder, monkeypatch):
    command += ["--directions", "en-fr"]
    numbers = {"--num-beams": 0, "--limit": 0, "--max-batch-tokens": -1, "--max-new-tokens": 0, "--temperature": 0.0,
               "--top-p": 1.5}  # fmt: skip
    saying = [f"{name} {value}: expected" for name, value in numbers.items()]
    refused(*command, *(part for pair in numbers.items() for part in pair), saying=saying)
    refused(*command, "--directions", "en-xx", saying=["--directions en-xx", "'xx'"])
    refused(*command, "--directions", "en-de", saying=["no file for de"])
    refused(*command, "--split", "dev", saying=["--flores", "dev"])
    refused(*command, "--ntrex", flores, saying=["--flores and --ntrex: several test sets"])
    refused(*command, "--pivot", "xx", saying=["'xx'"])
    monkeypatch.setitem(sys.modules, "vllm", None)  # not installed, wherever this runs
    refused(*command, "--engine", "vllm", saying=["--engine vllm: vllm is not installed; pip install vllm"])
    refused(*command, "--hf-model", tmp_path, saying=[f"--hf-model {tmp_path}/config.json: does not exist"])
    for name, change in (
        ("cut", lambda folder: os.truncate(folder / "model.safetensors", 1000)),
        ("none", lambda folder: (folder / "model.safetensors").unlink()),
        ("tokenizer", lambda folder: (folder / "tokenizer.model").unlink()),
        ("config", lambda folder: (folder / "config.json").write_text("{")),
    ):
        change(shutil.copytree(model_folder, tmp_path / name))
        refused(*command, "--hf-model", tmp_path / name, saying=[tmp_path / name])
    french, lines = flores / "devtest/fra.devtest", sentences(flores)["fr"]
    write_lines(french, lines[:-1])
    refused(*command, saying=["fra.devtest 10", "eng.devtest has 11"])
    write_lines(french, [*lines[:-1], " "])
    refused(*command, "--directions", "fr-en", saying=["fra.devtest line 11: empty"])
    assert not (tmp_path / "out/hypotheses").exists()


def test_missing_weights_are_refused(command, model_folder, tmp_path):
    """On a line of its own, whatever transformers has to say."""
    from safetensors.torch import load_file, save_file

    lacking = shutil.copytree(model_folder, tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    fails("evaluate.py", *command, "--directions", "en-fr", "--hf-model", lacking,
          saying=[f"--hf-model {lacking}: 1 weights missing, the first model.layers.0.mlp.up_proj.weight"])  # fmt: skip


# score


def score(output, *options):
    return cli("score", "--output", output, "--workers", 1, *options)


DIRECTIONS = [("en", "fr"), ("en", "zh"), ("fr", "en"), ("zh", "en")]


@pytest.fixture
def translated(tmp_path, flores):
    """An --output folder with hypotheses in four of six directions, of which a line is empty and one repeats itself."""
    for source, target in DIRECTIONS:
        lines = sentences(flores)[target]
        path = tmp_path / f"system/hypotheses/{source}-{target}.txt"
        write_lines(path, [*lines[:8], "", "the\rdog\u2028sees\0 a " * 9, lines[0]])
    return tmp_path / "system"


@pytest.fixture
def options(flores, llama_tokenizer):
    return ["--flores", flores, "--spbleu-model", llama_tokenizer]


def test_scores(translated, options, flores, llama_tokenizer):
    printed = score(translated, *options)
    rows = read_rows(translated / "scores.jsonl")
    expected = []
    for source, target in DIRECTIONS:
        prepared = scoring.References(
            [sentences(flores)[target]], scoring.DEFAULT_METRICS, resolve(target), {"spBLEU": llama_tokenizer}
        )
        found = prepared.rows(read_lines(translated / f"hypotheses/{source}-{target}.txt"))
        for metric, signature in (("empty", "lines:empty"), ("repeated", "lines:repeated>0.25")):
            found.append({"metric": metric, "score": 1, "n": 11, "signature": signature})
        expected += [{"src": source, "tgt": target, **row} for row in found]
    assert rows == expected and [list(row) for row in rows] == [list(row) for row in expected]
    means = [sum(row["score"] for row in rows if row["metric"] == metric) / 4 for metric in ("spBLEU", "chrF++")]
    assert 10 < means[0] < 99
    assert re.search(rf"^all +4 +{means[0]:.2f} +{means[1]:.2f}$", printed, re.MULTILINE)
    record = json.loads((translated / "score.json").read_text(encoding="utf-8"))
    assert record["arguments"]["flores"] == str(flores) and record["caveats"] == []
    assert record["arguments"]["spbleu_model"] == fingerprint(llama_tokenizer)


def made_again(output, *options):
    """The rows, as "SRC-TGT METRIC", that a score did not keep as they were."""
    path = output / "scores.jsonl"
    path.write_text(re.sub('"n": [0-9]+', '"n": 77', path.read_text(encoding="utf-8")), encoding="utf-8")
    score(output, *options)
    return {f"{row['src']}-{row['tgt']} {row['metric']}" for row in read_rows(path) if row["n"] != 77}


def every(metrics, directions=("en-fr", "en-zh", "fr-en", "zh-en")):
    return {f"{direction} {metric}" for direction in directions for metric in metrics}


def test_only_what_changed_is_scored_again(translated, options, flores, llama_tokenizer, tokenizer_model):
    usual = ["spBLEU", "chrF++", "empty", "repeated"]
    score(translated, *options)
    assert made_again(translated, *options) == set()
    assert made_again(translated, *options, "--metrics", "BLEU") == every(["BLEU"])
    metrics = [row["metric"] for row in read_rows(translated / "scores.jsonl")]
    assert metrics == ["spBLEU", "BLEU", "chrF++", "empty", "repeated"] * 4
    assert made_again(translated, *options) == set()
    assert made_again(translated, "--flores", flores, "--spbleu-model", tokenizer_model) == every(["spBLEU"])
    assert made_again(translated, *options) == every(["spBLEU"])

    # What a direction had beside what is asked for now goes with its old lines. Other directions keep it.
    write_lines(translated / "hypotheses/zh-en.txt", sentences(flores)["en"])
    assert made_again(translated, *options) == every(usual, ["zh-en"])
    perfect = {row["metric"]: row["score"] for row in read_rows(translated / "scores.jsonl") if row["src"] == "zh"}
    assert perfect == pytest.approx({"spBLEU": 100, "chrF++": 100, "empty": 0, "repeated": 0})
    refused("report", "--output", translated, saying=["scores.jsonl: no BLEU of zh-en; run evaluate.py score"])
    assert made_again(translated, *options, "--metrics", "BLEU") == every(["BLEU"], ["zh-en"])

    french = flores / "devtest/fra.devtest"
    write_lines(french, read_lines(french)[::-1])
    assert made_again(translated, *options) == every(usual, ["en-fr", "fr-en"])
    (translated / "hypotheses/fr-en.txt").unlink()
    assert made_again(translated, *options) == set()
    assert {row["src"] for row in read_rows(translated / "scores.jsonl")} == {"en", "zh"}
    lines = (translated / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    write_lines(translated / "scores.jsonl", lines[:-1])  # lacks zh-en repeated
    assert made_again(translated, *options) == every(["repeated"], ["zh-en"])
    for name in ("scores.jsonl", "score.json"):
        write_lines(translated / name, ["damaged"])
        score(translated, *options)
        rows = read_rows(translated / "scores.jsonl")
        assert [row["metric"] for row in rows] == usual * 3 and {row["n"] for row in rows} == {11}


def test_references_are_prepared_once_a_language(translated, options, monkeypatch):
    """Tokenized and counted for all directions into it."""
    prepared = []

    class Noted(scoring.References):
        def __init__(self, references, metrics, language, models=None):
            prepared.append(language.code)
            super().__init__(references, metrics, language, models)

    monkeypatch.setattr(scoring, "References", Noted)
    score(translated, *options)
    assert sorted(prepared) == ["en", "fr", "zh"]


def test_more_processes_change_nothing(translated, options):
    """And a score in a process of its own ends well."""
    score(translated, *options)
    scores = snapshot(translated)
    (translated / "scores.jsonl").unlink()
    (translated / "score.json").unlink()
    stage("evaluate.py", "score", "--output", translated, *options, "--workers", 2)
    assert snapshot(translated) == scores


def test_hypotheses_of_no_direction(translated, options, flores):
    for name, part in (("notes.txt", "SRC-TGT.txt"), ("en-xx.txt", "'xx'"), ("eng-fra.txt", "same direction as en-fr")):
        shutil.copyfile(translated / "hypotheses/en-fr.txt", translated / "hypotheses" / name)
        refused("score", "--output", translated, *options, saying=[name, part])
        (translated / "hypotheses" / name).unlink()
    (flores / "devtest/zho_simpl.devtest").unlink()
    refused("score", "--output", translated, *options, saying=["en-zh.txt", f"--flores {flores} has no such direction"])
    shutil.rmtree(translated / "hypotheses")
    refused("score", "--output", translated, *options, saying=["no hypotheses/SRC-TGT.txt", "generate first"])
    refused("score", "--output", translated, saying=["no test set given, expected one of --flores, --ntrex"])


def test_one_missing_line(translated, options, flores):
    score(translated, *options)
    path = translated / "hypotheses/en-fr.txt"
    write_lines(path, read_lines(path)[:-1])
    before = snapshot(translated)
    saying = [
        f"{path} has 10 lines, the reference of en-fr, {flores}/devtest/fra.devtest, 11;", "(is --limit 10 meant?)"
    ]  # fmt: skip
    fails("evaluate.py", "score", "--output", translated, *options, "--workers", 2, saying=saying)
    other = shutil.copytree(translated, translated.with_name("other"))
    refused("compare", "--output", translated, other, *options, "--workers", 1, saying=saying)
    write_lines(path, [*read_lines(other / "hypotheses/en-fr.txt"), "a", "b"])
    refused("score", "--output", translated, *options, saying=["en-fr.txt has 12 lines", "fra.devtest, 11; "])
    shutil.copyfile(other / "hypotheses/en-fr.txt", path)
    assert snapshot(translated) == before


def test_the_test_set_is_that_of_generate(command, flores, tmp_path, llama_tokenizer):
    """Its split and its first lines, wherever it is now; and no other."""
    for name in FILES.values():
        (flores / "dev").mkdir(exist_ok=True)
        write_lines(flores / f"dev/{name}.dev", read_lines(flores / f"devtest/{name}.devtest")[::-1])
    output, model = tmp_path / "out", ["--spbleu-model", llama_tokenizer]
    cli(*command, "--directions", "en-fr,zh-fr", "--split", "dev", "--limit", 4, "--num-beams", 1)
    score(output, *model)
    rows = read_rows(output / "scores.jsonl")
    assert {row["n"] for row in rows} == {4}
    hypotheses = read_lines(output / "hypotheses/en-fr.txt")
    expected = sacrebleu.corpus_chrf(hypotheses, [sentences(flores, "dev")["fr"][:4]], word_order=2).score
    assert [row["score"] for row in rows if (row["src"], row["metric"]) == ("en", "chrF++")] == [expected]
    refused("score", "--output", output, *model, "--limit", 3, saying=["--limit 3", "says 4; leave the option out"])
    refused("score", "--output", output, *model, "--split", "devtest", saying=["--split devtest", "says dev;"])
    score(output, *model, "--split", "dev", "--limit", 4)

    moved = shutil.move(flores, tmp_path / "moved")
    refused("score", "--output", output, *model, saying=[f"--flores {flores}: does not exist"])
    score(output, *model, "--flores", moved)
    assert read_rows(output / "scores.jsonl") == rows
    cli("report", "--output", output, "--flores", moved)
    assert sentences(tmp_path / "moved", "dev")["en"][0] in (output / "report.html").read_text(encoding="utf-8")
    english = tmp_path / "moved/dev/eng.dev"
    write_lines(english, read_lines(english)[::-1])
    refused("score", "--output", output, *model, "--flores", moved, saying=["made from another source text for en"])


@needs_shared
def test_off_target_rates(tmp_path):
    flores, limit = SHARED / "flores101", 40
    lines = {
        code: read_lines(flores / f"devtest/{resolve(code).flores101_devtest}.devtest")[:limit]
        for code in ("en", "de", "bs")
    }
    for target in ("de", "bs"):  # a quarter is copied
        write_lines(tmp_path / f"hypotheses/en-{target}.txt", [*lines["en"][:10], *lines[target][10:]])
    options = ["--flores", flores, "--limit", limit, "--metrics", "chrF"]
    score(tmp_path, *options)
    lid = SHARED / "lid" / "lid.176.ftz"
    options += ["--lid-model", lid]
    # It takes most Bosnian for Croatian: no rate of that.
    assert made_again(tmp_path, *options) == {"en-de R_src", "en-de R_tgt", "en-bs R_src"}
    rates = {(row["tgt"], row["metric"]): row for row in read_rows(tmp_path / "scores.jsonl")}
    assert {name: row["score"] for name, row in rates.items() if name[1].startswith("R")} == {
        ("bs", "R_src"): 25, ("de", "R_src"): 25, ("de", "R_tgt"): 75
    }  # fmt: skip
    assert f"lid:lid.176-{fingerprint(lid)['blake2b'][:8]}|" in rates["de", "R_tgt"]["signature"]
    write_lines(tmp_path / "hypotheses/en-de.txt", lines["en"])
    printed = score(tmp_path, *options)
    assert [row["score"] for row in read_rows(tmp_path / "scores.jsonl") if row["metric"] == "R_src"] == [25, 100]
    caveats = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))["caveats"]
    assert len(caveats) == 1 and re.match("bs: [0-9.]+ % recognised, taken for hr", caveats[0])
    assert f"off-target rates: {caveats[0]}\n" in printed


def test_comet_of_another_environment(translated, options, flores, stand_in, tmp_path):  # noqa: F811
    """Of a stand-in, whose scores are the lengths of source, hypothesis and reference."""
    comet = ["--comet-python", sys.executable, "--comet-model", stand_in]
    score(translated, *options)
    assert made_again(translated, *options, *comet) == every(["COMET"])
    lines = sentences(flores)
    hypotheses = read_lines(translated / "hypotheses/en-fr.txt")
    found = [
        100 * (len(source) / 1000 + len(hypothesis) / 100 + len(reference) / 10)
        for source, hypothesis, reference in zip(lines["en"], hypotheses, lines["fr"], strict=True)
    ]
    row = next(row for row in read_rows(translated / "scores.jsonl") if row["metric"] == "COMET")
    assert row["score"] == pytest.approx(sum(found) / 11) and (row["src"], row["tgt"]) == ("en", "fr")
    assert row["signature"].startswith("comet:tiny-comet-")

    # Made once: 2.3 GB are not loaded for what is there, nor by a machine that cannot.
    write_lines(translated / "hypotheses/fr-en.txt", hypotheses)
    assert "fr-en COMET" not in made_again(translated, *options)
    assert sum("loaded" in event for event in comet_record(tmp_path)) == 1
    assert made_again(translated, *options, *comet) == {"fr-en COMET"}
    assert made_again(translated, *options, *comet) == set()
    events = comet_record(tmp_path)
    assert sum("loaded" in event for event in events) == 2
    assert [len(event["samples"]) for event in events if "samples" in event] == [11] * 5
    refused("score", "--output", translated, *options, *comet[:2], "--comet-model", tmp_path / "no.ckpt",
            "--workers", 1, saying=[f"--comet-model {tmp_path}/no.ckpt: does not exist"])  # fmt: skip


def test_references_against_themselves_score_100(tmp_path, flores, llama_tokenizer):
    """In every direction and metric, whatever the lines hold: none is split or joined, and nothing cut."""
    for code, name in FILES.items():
        path = flores / f"devtest/{name}.devtest"
        lines = read_lines(path)
        write_lines(path, [*lines[:5], *(f"{line} {awkward}" for line, awkward in zip(lines, AWKWARD, strict=False))])
        assert path.read_bytes().count(b"\n") == 14
        for source in FILES.keys() - {code}:
            (tmp_path / "out/hypotheses").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, tmp_path / f"out/hypotheses/{source}-{code}.txt")
    models = ["--spbleu-model", llama_tokenizer, "--spbleu200-model", llama_tokenizer]
    score(tmp_path / "out", "--flores", flores, *models, "--metrics", *scoring.METRICS)
    rows = read_rows(tmp_path / "out/scores.jsonl")
    assert len(rows) == 6 * (len(scoring.METRICS) + 2)
    for code, name in FILES.items():
        path = flores / f"devtest/{name}.devtest"
        printed = cli("score-files", "--hypothesis", path, "--reference", path, "--tgt-lang", code, *models,
                      "--metrics", *scoring.METRICS)  # fmt: skip
        rows += map(json.loads, printed.splitlines())
    assert {row["n"] for row in rows} == {14}
    assert {f"{row['score']:.9f}" for row in rows if row["metric"] in scoring.METRICS} == {"100.000000000"}
    assert {row["score"] for row in rows if row["metric"] in ("empty", "repeated")} == {0}


# compare


def test_compare(flores, tmp_path):
    """Better from English, worse into it from Chinese, the same from French, about as good from Chinese into French;
    en-zh and fr-zh are of one system only."""
    good = sentences(flores)
    bad = {
        code: [line if number % 4 == 3 else f"the le 这 {line[::2]}" for number, line in enumerate(lines)]
        for code, lines in good.items()
    }
    for system, hypotheses in (
        (
            "a",
            {"en-fr": bad, "fr-en": bad, "zh-en": good, "zh-fr": {"fr": [*good["fr"][:9], "le", "le"]}, "en-zh": bad},
        ),
        (
            "b",
            {"en-fr": good, "fr-en": bad, "zh-en": bad, "zh-fr": {"fr": ["la", "la", *good["fr"][2:]]}, "fr-zh": bad},
        ),
    ):
        for direction, lines in hypotheses.items():
            write_lines(tmp_path / system / f"hypotheses/{direction}.txt", lines[direction[-2:]])
    command = ["compare", "--output", tmp_path / "a", tmp_path / "b", "--flores", flores, "--metrics", "BLEU", "chrF++",
               "--samples", 200, "--workers"]  # fmt: skip
    written = tmp_path / "a/compare-b.jsonl"
    printed = cli(*command, 1)
    rows = {(f"{row['src']}-{row['tgt']}", row["metric"]): row for row in read_rows(written)}
    assert list(rows) == [(pair, name) for pair in ("fr-en", "zh-en", "en-fr", "zh-fr") for name in ("BLEU", "chrF++")]
    for metric in (BLEU(), CHRF(word_order=2)):
        name = "BLEU" if isinstance(metric, BLEU) else "chrF++"
        systems = [("a", bad["fr"]), ("b", good["fr"])]
        test = PairedTest(systems, {name: metric}, [good["fr"]], test_type="bs", n_samples=200)
        (signature,), (_, (baseline, system)) = (list(found.values()) for found in test())
        row = rows["en-fr", name]
        assert (row["score_a"], row["mean_a"], row["ci_a"]) == (baseline.score, baseline.mean, baseline.ci)
        assert (row["score_b"], row["mean_b"], row["ci_b"]) == (system.score, system.mean, system.ci)
        assert row["p_value"] == system.p_value < 0.05 and row["signature"] == str(signature)
        same = rows["fr-en", name]
        assert same["score_a"] == same["score_b"] and same["p_value"] < 0.05  # as sacrebleu has it, but not meant
        near = rows["zh-fr", name]
        assert near["score_a"] != near["score_b"] and near["p_value"] >= 0.05
        # Directions, better, worse, no difference.
        assert re.search(rf"^{re.escape(name)} +4 +1 +1 +2$", printed, re.MULTILINE)
    assert printed.endswith(f"{written}: written; better or worse is {tmp_path}/b beside {tmp_path}/a\n")
    before = written.read_bytes()
    stage("evaluate.py", *command, 2)
    assert written.read_bytes() == before
    cli(*command, 1, "--seed", 1)
    assert written.read_bytes() != before


def test_systems_that_cannot_be_compared(flores, tmp_path):
    for name, directions, limit in (("a", ["en-fr", "zh-en"], 4), ("b", ["en-zh", "zh-fr"], 4), ("c", ["en-fr"], 5)):
        for direction in directions:
            write_lines(tmp_path / name / f"hypotheses/{direction}.txt", ["a"] * limit)
        record = {"settings": {"split": "devtest", "limit": limit}, "arguments": {"flores": str(flores)}, "sources": {}}
        (tmp_path / name / "generate.json").write_text(json.dumps(record))
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    refused("compare", "--output", a, b, saying=[f"--output {a} and {b}: no direction in both"])
    refused("compare", "--output", a, a, saying=[f"--output {a}: given twice; name two systems"])
    refused("compare", "--output", a, c, saying=[f"{c}/generate.json: limit 5, of {a}/generate.json 4; translate"])
    (flores / "devtest/zho_simpl.devtest").unlink()
    refused("compare", "--output", c, a, "--limit", 5, saying=["limit 4, of"])
    (c / "generate.json").unlink()
    refused("compare", "--output", a, c, saying=["a/hypotheses/zh-en.txt", "has no such direction"])


# report


@pytest.fixture
def scored(translated, options):
    score(translated, *options)
    return translated


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_report_of_one_system(scored, flores):
    printed = cli("report", "--output", scored, scored)  # given twice, shown once
    assert printed.count("\nall ") == 1 and printed.endswith(f"{scored}/report.html: written\n")
    scores = {
        (row["src"], row["tgt"]): f"{row['score']:.2f}"
        for row in read_rows(scored / "scores.jsonl")
        if row["metric"] == "spBLEU"
    }
    assert table(scored / "matrix_spBLEU.csv") == [
        ["direct", "en", "fr", "zh"],
        ["en-x", "/", scores["en", "fr"], scores["en", "zh"]],
        ["x-en", "/", scores["fr", "en"], scores["zh", "en"]],
    ]
    page = (scored / "report.html").read_text(encoding="utf-8")
    for direction in DIRECTIONS:
        assert scores[direction] in page
    for lines in (*sentences(flores).values(), read_lines(scored / "hypotheses/en-zh.txt")):
        assert lines[0] in page and lines[10] in page  # samples: of 10 of the 11 lines, the first and the last


def test_report_of_two_systems(scored, options, tmp_path):
    other = tmp_path / "other & <b>"
    shutil.copytree(scored / "hypotheses", other / "hypotheses")
    lines = read_lines(other / "hypotheses/en-fr.txt")
    write_lines(other / "hypotheses/en-fr.txt", ["<script>alert(1)</script> & co", *lines[1:]])
    score(other, *options)
    page = tmp_path / "page/both.html"
    printed = cli("report", "--output", scored, other, "--html", page)
    assert [line for line in printed.splitlines() if line in ("system", other.name)] == ["system", other.name]
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in text and "<script>alert" not in text
    assert "other &amp; &lt;b&gt;" in text
    assert (other / "matrix_spBLEU.png").is_file() and not (scored / "report.html").exists()


@needs_shared
def test_report_beside_published_tables(scored, tmp_path):
    published = SHARED / "llamax_results" / "LLaMAX2-7B-Alpaca"
    before = {path.name for path in published.iterdir()}
    printed = cli("report", "--output", scored, published)
    assert {path.name for path in published.iterdir()} == before
    header, *rows = table(published / "spBLEU_summary.csv")
    mean = next(row for row in rows if row[0] == "en-x")[header.index("all")]
    assert re.search(rf"^en-x +101 +{mean}$", printed, re.MULTILINE)
    assert published.name in (scored / "report.html").read_text(encoding="utf-8")


def test_languages_seen_and_threshold(scored):
    cli("report", "--output", scored)
    assert not (scored / "report_seen.csv").exists()  # pre-training saw all three
    en_fr, en_zh, fr_en, zh_en = [
        row["score"] for row in read_rows(scored / "scores.jsonl") if row["metric"] == "spBLEU"
    ]
    assert en_zh < fr_en == zh_en < en_fr
    cli("report", "--output", scored, "--seen", "eng", "fra_Latn", "--threshold", fr_en)
    assert table(scored / "report_seen.csv")[1:] == [
        ["system", "seen", f"{en_fr:.2f}", "1", f"{fr_en:.2f}", "1"],
        ["system", "unseen", f"{en_zh:.2f}", "1", f"{zh_en:.2f}", "1"],
    ]
    assert table(scored / "report_counts.csv") == [
        ["system", "language", "X-L above", "X-L directions", "L-X above", "L-X directions"],
        ["system", "en", "0", "2", "1", "2"],
        ["system", "fr", "1", "1", "0", "1"],
        ["system", "zh", "0", "1", "0", "1"],
    ]
    refused("report", "--output", scored, "--seen", "xx", saying=["'xx'"])


def test_report_when_the_test_set_is_gone(scored, flores, tmp_path):
    shutil.move(flores, tmp_path / "moved")
    refused("report", "--output", scored, saying=[f"{flores}, which score read, is not there any more; give it by"])
    cli("report", "--output", scored, "--flores", tmp_path / "moved")
    assert sentences(tmp_path / "moved")["zh"][10] in (scored / "report.html").read_text(encoding="utf-8")


def test_report_of_what_is_not_scored(scored, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("report", "--output", scored, tmp_path / "empty",
            saying=[f"--output {tmp_path}/empty: no scores.jsonl in it; run evaluate.py score"])  # fmt: skip
    rows = (scored / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    write_lines(scored / "scores.jsonl", rows[:-1])
    refused("report", "--output", scored, saying=["no repeated of zh-en"])
    write_lines(scored / "scores.jsonl", rows[:-4])
    refused("report", "--output", scored, saying=["scores.jsonl: lacks zh-en; run evaluate.py score again"])
    write_lines(scored / "scores.jsonl", [*rows, "{"])
    refused("report", "--output", scored, saying=["line 17: no score"])
    assert not (scored / "report.html").exists()


# score-files


def test_score_files(tmp_path, llama_tokenizer):
    """In a process of its own: what is printed can be read by another."""
    hypotheses, first, second = ["the dog runs under the old tree", "a cat eats"], ["the dog sleeps"] * 2, ["a cat"] * 2
    for name, lines in (("hypotheses", hypotheses), ("first", first), ("second", second)):
        write_lines(tmp_path / name, lines)
    command = ["score-files", "--hypothesis", tmp_path / "hypotheses", "--tgt-lang", "eng", "--spbleu-model",
               llama_tokenizer, "--reference", tmp_path / "first"]  # fmt: skip
    rows = [json.loads(line) for line in stage("evaluate.py", *command, tmp_path / "second").splitlines()]
    assert [(row["tgt"], row["metric"], row["n"]) for row in rows] == [
        ("en", metric, 2) for metric in ("spBLEU", "chrF++", "BLEU")
    ]
    both = [first, second]
    bleu = BLEU(effective_order=True).corpus_score(hypotheses, both).score  # no reference has four tokens
    assert [row["score"] for row in rows[1:]] == [sacrebleu.corpus_chrf(hypotheses, both, word_order=2).score, bleu]
    assert all("nrefs:2|" in row["signature"] for row in rows)
    one = json.loads(cli(*command, "--metrics", "chrF"))
    assert one["score"] == sacrebleu.corpus_chrf(hypotheses, [first]).score and one["metric"] == "chrF"

    write_lines(tmp_path / "shorter", first[:1])
    refused(*command, tmp_path / "shorter", saying=["hypotheses has 2 lines", f"{tmp_path}/shorter 1;"])
    (tmp_path / "latin1").write_bytes(b"caf\xe9\n")
    refused(*command, tmp_path / "latin1", saying=[f"{tmp_path}/latin1 line 1: not valid UTF-8"])
    refused(*command, tmp_path / "none", saying=[f"--reference {tmp_path}/none: does not exist"])
    refused(*command, "--tgt-lang", "xx", saying=["'xx'", "languages.tsv"])
    refused(*command, "--spbleu-model", __file__, saying=[f"--spbleu-model {__file__}: not a SentencePiece model"])
    fails("evaluate.py", *command, "--metric", "chrF", saying=["--metric", "--help lists the options"])
