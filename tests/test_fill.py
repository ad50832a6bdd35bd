"""Algorithm 1's filling: which sentences are taken, by a slow reference; their translation by small random models of
the real architectures; interruptions."""

import argparse
import collections
import gzip
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import xxhash
from conftest import ENVIRONMENT, ROOT, fails, snapshot, stage, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from seq2seq_models import ENGLISH, SMALL, independent, save, save_m2m, save_madlad, sentence_pieces

from llamax import filling
from llamax.files import InputError
from llamax.languages import load
from llamax.records import Rejects
from llamax.reserve import choose_sentences, mono_keys
from llamax.sources import find_sources
from llamax.translation import Translator

SEARCH = ("--num-beams", 2, "--max-new-tokens", 8)
PLANTED, FRENCH = ENGLISH[100:160], ENGLISH[160:170]  # in the monolingual data: as English, and as another language's


def rank(sentence, name, seed=0):
    """The rank of a sentence for a language pair, as docstrings define it."""
    mask = 2**64 - 1
    x = xxhash.xxh3_64_intdigest(sentence.encode(), seed) ^ xxhash.xxh3_64_intdigest(name.encode())
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def read_jsonl(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# ---- models


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return sentence_pieces(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def m2m(pieces, tmp_path_factory):
    return save_m2m(pieces, tmp_path_factory.mktemp("models") / "m2m")


@pytest.fixture(scope="module")
def nllb(pieces, m2m):
    import transformers
    from transformers.models.nllb import tokenization_nllb

    folder = m2m.with_name("nllb")
    folder.mkdir()
    shutil.copy(pieces / "bpe.model", folder / "sentencepiece.bpe.model")
    codes = list(tokenization_nllb.FAIRSEQ_LANGUAGE_CODES)
    tokenizer = transformers.NllbTokenizer.from_pretrained(folder, extra_special_tokens=codes)
    config = transformers.M2M100Config(vocab_size=len(tokenizer), **SMALL)
    model = transformers.M2M100ForConditionalGeneration(config)
    return save(model, tokenizer, folder, slice(4, len(tokenizer) - len(codes) - 1))


@pytest.fixture(scope="module")
def madlad(pieces, m2m):
    return save_madlad(pieces, m2m.with_name("madlad"))


@pytest.fixture(scope="module")
def mbart(pieces, m2m):
    import transformers

    folder = m2m.with_name("mbart")
    folder.mkdir()
    shutil.copy(pieces / "unigram.model", folder / "sentencepiece.bpe.model")
    tokenizer = transformers.MBart50Tokenizer.from_pretrained(folder, src_lang="en_XX")
    config = transformers.MBartConfig(vocab_size=len(tokenizer), decoder_start_token_id=2, **SMALL)
    return save(transformers.MBartForConditionalGeneration(config), tokenizer, folder, slice(4, 180))


# ---- which sentences are taken


def chosen(folder, texts, mono, wanted, seed=0, max_chars=500):
    """What choose_sentences gives for texts that may have several lines."""
    paths = [str(write_jsonl(folder / f"{name}.jsonl", [{"text": text} for text in found]))
             for name, found in (("english", texts), ("mono", mono))]  # fmt: skip
    reading, known = (find_sources([path], {}) for path in paths)
    rejects = Rejects(folder / "out")
    return choose_sentences(reading, mono_keys(known, rejects), wanted, seed, max_chars, rejects)


lines = st.text("ab \t", min_size=1, max_size=4).filter(str.strip)
documents = st.lists(st.lists(lines, min_size=1, max_size=3).map("\n".join), max_size=12)


@settings(max_examples=40)
@given(documents, documents, st.integers(0, 3), st.randoms(use_true_random=False))
def test_choice_against_a_slow_reference(tmp_path_factory, texts, mono, seed, draw):
    folder = tmp_path_factory.mktemp("choice")
    trained = {" ".join(part.split()) for text in mono for part in (text, *text.split("\n"))}
    sentences = [line.strip() for text in texts for line in text.split("\n")]
    reserve = {sentence for sentence in sentences if " ".join(sentence.split()) not in trained and len(sentence) <= 3}
    for name, count in (("en-sw", 1), ("en-yo", 2)):
        if len(reserve) < count:
            with pytest.raises(InputError, match=f"{len(reserve)} different sentences in the reserve, {name} needs"):
                chosen(folder, texts, mono, {name: count}, seed, 3)
            return
    found, counts = chosen(folder, texts, mono, {"en-sw": 1, "en-yo": 2}, seed, 3)
    for name in found:  # with the spare, all of so few
        assert found[name] == sorted(reserve, key=lambda sentence: rank(sentence, name, seed))
    assert counts["read"] == len(sentences)
    assert counts["too_long"] == sum(len(sentence) > 3 for sentence in sentences)
    again = texts + [text.upper().lower() for text in texts] + [f"  {line} " for line in sentences]
    draw.shuffle(again)
    assert chosen(folder, again, mono, {"en-sw": 1, "en-yo": 2}, seed, 3)[0] == found


def test_choice_of_a_few_among_many(tmp_path):
    """More blocks, rows and sentences than are held, in other orders: the sentences of the lowest ranks."""
    texts = ENGLISH + [f"{line} again" for line in ENGLISH]
    wanted = {"en-sw": 1, "en-yo": 300, "sw-yo": 50}
    first, _ = chosen(tmp_path, texts, [], wanted)
    for name, count in wanted.items():
        assert first[name] == sorted(texts, key=lambda line: rank(line, name))[: count + count // 10 + 100]
    assert chosen(tmp_path, sorted(texts) * 2, [], wanted)[0] == first
    assert chosen(tmp_path, texts, [], wanted, seed=1)[0] != first


def test_held_sentences_are_dropped_when_others_are_better(tmp_path, monkeypatch):
    monkeypatch.setattr("llamax.reserve.PRUNED", 150)
    monkeypatch.setattr("llamax.sources.PIECE_BYTES", 2000)
    found, _ = chosen(tmp_path, ENGLISH, [], {"en-sw": 20})
    assert found["en-sw"] == sorted(ENGLISH, key=lambda line: rank(line, "en-sw"))[:122]


# ---- filling by language


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """English and monolingual data that share PLANTED, and a plan for de and es: {name: path}."""
    folder = tmp_path_factory.mktemp("corpus")
    text = [f"  {line}\t\r" if i % 3 else line for i, line in enumerate(ENGLISH[:2000])]
    (folder / "english.txt").write_text("\n".join([*text, "", "x" * 501, "  "]), newline="")
    half = ENGLISH[2000:]
    records = [{"body": "\n\n".join(half[i : i + 7])} for i in range(0, len(half), 7)]
    records += [{"body": "maison", "lang": "fr"}, {"body": "?", "lang": "xx"}, {"body": 5}]
    with gzip.open(folder / "english.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    exact, other, inside = PLANTED[:20], PLANTED[20:40], PLANTED[40:]
    mono = [{"text": line, "lang": "eng"} for line in exact]
    mono += [{"text": "  " + line.upper().replace(" ", "\u00a0 ") + "\n"} for line in other]
    mono += [{"text": "Not this.\n" + "\n".join(inside) + "\nnor this", "lang": "en"}]
    mono += [{"text": line, "lang": "fr"} for line in FRENCH] + [{"text": "?", "lang": "xx"}]
    write_jsonl(folder / "mono.jsonl", mono)
    (folder / "counts.csv").write_text("lang,para\nde,1900\nes,700\nfr,2500\n")
    stage("augment.py", "plan", "--counts", folder / "counts.csv", "--minimum", 2500, "--output", folder / "plan.json")
    return folder


def command(corpus, model, output, english=("english.txt", "english.jsonl.gz")):
    return [
        *("augment.py", "fill", "--plan", corpus / "plan.json", "--english", *(corpus / name for name in english)),
        *("--field", "text=body", "--mono", corpus / "mono.jsonl", "--model", model, "--output", output, *SEARCH),
    ]


@pytest.fixture(scope="module")
def filled(corpus, m2m):
    """The output of a whole run. What a run left that had not yet chosen its sentences is in its way."""
    output = corpus / "out" / "filled.jsonl"
    (corpus / "out" / "filled.jsonl.parts").mkdir(parents=True)
    (corpus / "out" / "filled.jsonl.parts" / "en-es.000000000.jsonl").write_text("not a pair\n")
    printed = stage(*command(corpus, m2m, output))
    assert printed.startswith(f"{output}: 2,400 pairs of 2 language pairs; "), printed
    return output


def test_every_language_gets_what_the_plan_says_from_the_reserve(filled):
    pairs, manifest = read_jsonl(filled), json.loads(filled.with_name("filled.jsonl.manifest.json").read_text())
    assert [tuple(pair)[:2] for pair in pairs] == [("src", "tgt")] * 2400
    about = collections.Counter(tuple(list(pair.values())[2:]) for pair in pairs)
    assert about == {("en", "de", "all", "fill"): 600, ("en", "es", "all", "fill"): 1800}
    assert manifest["counts"] == {"de-en": 600, "en-es": 1800} and manifest["missing"] == {}
    sources = [pair["src"] for pair in pairs]
    assert {*sources} <= {*ENGLISH} - {*PLANTED} and {*sources} & {*FRENCH}
    assert all(len({*found}) == len(found) for found in (sources[:600], sources[600:]))
    assert manifest["english"] == {
        "read": 4001, "in_mono": 60, "too_long": 1, "rejects": {"wrong type": 1},
    }  # fmt: skip
    (reject,) = read_jsonl(filled.with_name("filled.jsonl.rejects.jsonl"))
    assert (reject["file"], reject["line"]) == (str(filled.parents[1] / "english.jsonl.gz"), 289)
    assert {path.name for path in filled.parent.iterdir()} >= {"filled.jsonl"}
    assert not filled.with_name("filled.jsonl.parts").exists()


def test_translations_are_the_models_own(filled, m2m):
    """The sentences are those of the lowest ranks, in this order, but for those whose translation is empty."""
    pairs = read_jsonl(filled)
    manifest = json.loads(filled.with_name("filled.jsonl.manifest.json").read_text())
    reserve = [sentence for sentence in ENGLISH if sentence not in PLANTED]
    for target, name, part in (("de", "de-en", pairs[:600]), ("es", "en-es", pairs[600:])):
        ranked = sorted(reserve, key=lambda sentence: rank(sentence, name))
        tried = ranked[: len(part) + manifest["unusable"].get(name, 0)]
        left_out = {*tried} - {pair["src"] for pair in part}
        assert [pair["src"] for pair in part] == [sentence for sentence in tried if sentence not in left_out]
        sample = random.Random(0).sample(part, 12)
        got = independent(m2m, [pair["src"] for pair in sample], "en", f"__{target}__")
        assert got == [pair["tgt"] for pair in sample]
        assert len({*got}) > 6  # a model that says always the same would prove nothing
        assert not any(independent(m2m, sorted(left_out)[:6], "en", f"__{target}__"))
    assert sum(manifest["unusable"].values()) > 10


def test_killed_at_any_moment_it_goes_on(filled, corpus, m2m, tmp_path):
    """With the English in another order and partly twice."""
    shuffled = [line for line in corpus.joinpath("english.txt").read_text().split("\n") if line]
    random.Random(1).shuffle(shuffled)
    (corpus / "shuffled.txt").write_text("\n".join(shuffled * 2))
    output = tmp_path / "filled.jsonl"
    again = command(corpus, m2m, output, ("english.jsonl.gz", "shuffled.txt"))
    process = subprocess.Popen([sys.executable, *map(str, again)], cwd=ROOT, env=ENVIRONMENT)
    parts = tmp_path / "filled.jsonl.parts"
    while not any(parts.glob("*.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.jsonl")}
    assert before and not output.exists()

    fails(*again, "--seed", 1, saying=[f"{parts}: exists, made with seed 0, now 1", "go on, or remove"])
    assert {path.name: path.stat().st_mtime_ns for path in parts.glob("*.jsonl")} == before
    stage(*again)
    assert output.read_bytes() == filled.read_bytes()
    assert not parts.exists()
    assert stage(*again) == f"{output}: complete, nothing to do\n"
    fails(*again, "--num-beams", 3, saying=["made with num_beams 2, now 3; choose another name or remove"])


def test_only_the_manifest_may_be_missing(tmp_path):
    """A run that was killed between the renaming of its two files goes on; the file of another is not touched."""
    output, parts = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    parts.mkdir()
    (parts / "en-es.000000000.jsonl").write_text("1\n2\n")
    assert not filling.lacks_manifest_only(output, parts)
    output.write_text("1\n")
    assert not filling.lacks_manifest_only(output, parts)
    output.write_text("1\n2\n")
    assert filling.lacks_manifest_only(output, parts)


# ---- other models


def test_pairs_without_english_are_two_translations(corpus, nllb, tmp_path):
    """By NLLB. Two languages of the plan are in no other model."""
    table = tmp_path / "pairs.csv"
    table.write_text("src,tgt,pairs\nen,umb,500\nen,kea,460\numb,kea,400\n")
    plan = ("augment.py", "plan", "--counts", table, "--by", "pair", "--minimum", 500, "--output", tmp_path / "plan")
    stage(*plan)
    output = tmp_path / "filled.jsonl"
    stage(*command(corpus, nllb, output), "--plan", tmp_path / "plan", "--batch-tokens", 64)
    pairs = read_jsonl(output)
    assert [(pair["src_lang"], pair["tgt_lang"]) for pair in pairs] == [("en", "kea")] * 40 + [("kea", "umb")] * 100
    english = [sentence for sentence in ENGLISH if sentence not in PLANTED]
    tried = sorted(english, key=lambda sentence: rank(sentence, "kea-umb"))[:8]
    sides = [independent(nllb, tried, "eng_Latn", target) for target in ("kea_Latn", "umb_Latn")]
    usable = [both for both in zip(*sides, strict=True) if all(both)]
    assert [(pair["src"], pair["tgt"]) for pair in pairs[40:]][: len(usable)] == usable and len(usable) > 4


def test_madlad_is_told_the_language_before_the_source(madlad):
    import transformers

    translator = Translator(madlad, device="cpu", num_beams=2, max_new_tokens=8, batch_tokens=32)
    translator.require(["fr", "tl", "ku", "zh"])
    assert [translator.name_of(code) for code in ("tl", "ku", "zh", "en")] == ["fil", "ckb", "zh", "en"]
    with pytest.raises(InputError, match=r"has no token for de \(German\), zhtrad \(Chinese Trad\), only for 6 lang"):
        translator.require(["de", "fr", "zhtrad"])
    translator.load()
    sentences = ENGLISH[:15]
    got = translator.translate(sentences, "fr")
    tokenizer = transformers.AutoTokenizer.from_pretrained(madlad)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(madlad)
    for sentence, found in zip(sentences, got, strict=True):
        inputs = tokenizer(f"<2fr> {sentence}", return_tensors="pt")
        output = model.generate(**inputs, num_beams=2, max_new_tokens=8, do_sample=False)[0].tolist()
        kept = [i for i in output if i not in tokenizer.all_special_ids and not 3 <= i < 9]
        assert found == tokenizer.decode(kept).strip()
    assert got != translator.translate(sentences, "zh") and len({*got}) > 7


def test_names_of_languages(m2m, nllb):
    """NLLB-200 has all of the paper's, M2M-100 has not."""
    translator = Translator(nllb)
    translator.require([*load(), "fao_Latn"])
    assert [translator.name_of(code) for code in ("zh", "ku", "ar")] == ["zho_Hans", "ckb_Arab", "arb_Arab"]
    translator = Translator(m2m)
    assert [translator.name_of(code) for code in ("en", "zh", "ns", "ast")] == ["en", "zh", "ns", "ast"]
    missing = [code for code in load() if not translator.name_of(code)]
    assert " ".join(missing) == "as kam kea ku ky luo mi mt ny om sn te tg umb zhtrad"


def test_mbart_50_tokens(mbart):
    translator = Translator(mbart, device="cpu", num_beams=2, max_new_tokens=8)
    assert [translator.name_of(code) for code in ("en", "zh", "sw", "umb")] == ["en", "zh", "sw", None]
    translator.load()
    assert translator.translate(ENGLISH[:6], "sw") == independent(mbart, ENGLISH[:6], "en_XX", "sw_KE")


def test_ctranslate2_translates_the_same(filled, corpus, m2m, nllb, madlad, tmp_path):
    converters = pytest.importorskip("ctranslate2.converters")
    for folder, code in ((m2m, "es"), (nllb, "umb")):
        converted = tmp_path / folder.name
        converters.TransformersConverter(str(folder)).convert(str(converted))
        for beams in (1, 3):
            found = []
            for other in (None, converted):
                translator = Translator(folder, other, "cpu", num_beams=beams, max_new_tokens=8, batch_tokens=200)
                translator.load()
                found.append(translator.translate(ENGLISH[:100], code))
            same = sum(a == b for a, b in zip(*found, strict=True))
            assert same == 100, (folder.name, beams, same)
    output = tmp_path / "filled.jsonl"
    fill_here(*command(corpus, m2m, output), "--ctranslate2", tmp_path / "m2m", "--device", "cpu")
    got, expected = read_jsonl(output), read_jsonl(filled)
    assert [pair["tgt_lang"] for pair in got] == [pair["tgt_lang"] for pair in expected]
    assert sum(a == b for a, b in zip(got, expected, strict=True)) > 0.95 * len(got)  # an empty one more moves all
    versions = json.loads((tmp_path / "filled.jsonl.manifest.json").read_text())["versions"]
    assert "ctranslate2" in versions and "torch" not in versions
    with pytest.raises(InputError, match=r"language tokens of --model .* are missing"):
        Translator(nllb, tmp_path / "m2m", "cpu").load()
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"--ctranslate2 .*none: does not load"):
        Translator(m2m, tmp_path / "none", "cpu").load()
    with pytest.raises(InputError, match="--ctranslate2: only for M2M-100 and NLLB-200"):
        Translator(madlad, tmp_path / "m2m", "cpu").load()


def test_too_large_batches_are_halved(m2m):
    """The memory is one of at most 5 sentences, then of 3, then of none."""
    translator = Translator(m2m, device="cpu", num_beams=2, max_new_tokens=8)
    translator.load()
    expected = translator.translate(ENGLISH[:40], "es")
    search, sizes, room = translator._search, [], 5

    def limited(ids, token):
        sizes.append(len(ids))
        if len(ids) > room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return search(ids, token)

    translator._search = limited
    assert translator.translate(ENGLISH[:40], "es") == expected
    assert sizes[:5] == [40, 20, 10, 5, 5] and max(sizes[3:]) <= 5 + 3  # later ones are shorter, so more fit
    room = 0
    with pytest.raises(InputError, match="does not fit into the memory"):
        translator.translate(ENGLISH[:40], "es")


# ---- what cannot be done


def fill_here(*arguments):
    """Run the command in this process, where its libraries are loaded already."""
    parser = argparse.ArgumentParser()
    filling.add_fill_arguments(parser)
    filling.fill(parser.parse_args([str(argument) for argument in arguments[2:]]))


def test_what_cannot_be_filled(corpus, m2m, nllb, tmp_path):
    output = tmp_path / "out" / "filled.jsonl"
    before = snapshot(corpus)
    fill = command(corpus, m2m, output)
    (tmp_path / "table.csv").write_text("lang,para\numb,3\nluo,4\nde,5\n")
    stage("augment.py", "plan", "--counts", tmp_path / "table.csv", "--output", tmp_path / "plan")
    fails(*fill, "--plan", tmp_path / "plan", saying=[f"--model {m2m}: has no token for luo (Luo), umb (Umbundu)"])
    (tmp_path / "empty").mkdir()
    fails(*fill, "--model", tmp_path / "empty", saying=["--model", "empty: no tokenizer loads", "expected the folder"])
    fails(*fill, "--english", corpus / "english.txt", "--seed", 5, "--max-chars", 20,
          saying=["--english: ", "different sentences in the reserve, en-es needs 1,800; of 2,001 read, "])  # fmt: skip
    fails(*fill, "--plan", corpus / "mono.jsonl", saying=["--plan", "mono.jsonl: not valid JSON"])
    fails(*fill, "--plan", m2m / "config.json", saying=["config.json: is no plan; make it with `augment.py plan`"])
    fails(
        *fill, "--num-beams", 0, "--field", "text", "--english", "no.txt", "--mono", "no.gz", "--model", corpus / "x",
        saying=["--num-beams 0: expected at least 1; --field text: expected NAME=THEIRS; --model", "x: does not exist",
                "--english no.txt: does not exist", "--mono no.gz: does not exist"],
    )  # fmt: skip
    assert not output.parent.exists() or not any(output.parent.iterdir())
    assert snapshot(corpus) == before


def test_english_that_is_mostly_broken(corpus, m2m, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(corpus.joinpath("mono.jsonl").read_bytes() + b"{\n" * 5)
    output = tmp_path / "filled.jsonl"
    english = ("--english", corpus / "english.txt", corpus / "english.jsonl.gz", broken)
    with pytest.raises(InputError, match=r"filled.jsonl.rejects.jsonl: 6 of .* more than --max-reject-rate 0.001"):
        fill_here(*command(corpus, m2m, output), *english, "--max-reject-rate", 0.001)
    assert [path.name for path in tmp_path.iterdir() if "filled" in path.name] == ["filled.jsonl.rejects.jsonl"]


def test_without_spare_sentences_it_says_what_is_missing(corpus, m2m, tmp_path, capsys):
    """No translation of a single token, the language's, can be used."""
    output = tmp_path / "filled.jsonl"
    fill_here(*command(corpus, m2m, output), "--max-new-tokens", 1)
    assert "de-en lacks 600, en-es lacks 1,800" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "filled.jsonl.manifest.json").read_text())
    assert manifest["missing"] == {"de-en": 600, "en-es": 1800} and manifest["pairs"] == 0
    assert manifest["unusable"] == {"de-en": 760, "en-es": 2080}


def test_weights_that_do_not_fit(m2m, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(m2m, tmp_path / "m2m")
    weights = load_file(m2m / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.weight"]
    save_file(weights, tmp_path / "m2m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights missing, the first model.encoder.layers.0.fc1.weight; add them"):
        Translator(tmp_path / "m2m").load()
    (tmp_path / "m2m" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no .safetensors; load the model once"):
        Translator(tmp_path / "m2m").load()
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda: torch sees no GPU"):
            Translator(m2m, device="cuda").load()
