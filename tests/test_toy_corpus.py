"""The toy corpus: what it promises to the stages that read it."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jieba
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from llamax import prompts
from llamax.languages import resolve

SCRIPT = Path(__file__).resolve().parents[1] / "toy" / "make_corpus.py"
SMALL = {"pairs": 11, "mono": 40, "instructions": 12, "test": 9, "vocab-size": 2000}


def load_script():
    spec = importlib.util.spec_from_file_location("make_corpus", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = load_script()
CONCEPTS = list(itertools.chain.from_iterable(toy.WORLD.values()))


def make(output, hash_seed="0", **options):
    command = [sys.executable, str(SCRIPT), "--output", str(output)]
    for name, value in ({"seed": 0} | SMALL | options).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def one_error_line(result):
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "corpus"
    result = make(folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def tokenizer(corpus):
    return sentencepiece.SentencePieceProcessor(model_file=str(corpus / "hf" / "tokenizer.model"))


@pytest.fixture(scope="session")
def meaning_of():
    """A function from (sentence, language) to the only meaning it can have."""
    categories = {
        "person_adjective": ["person adjective"],
        "person": ["person"],
        "verb": ["verb"],
        "thing_adjective": ["thing adjective"],
        "thing": ["thing"],
        "time_or_place": ["time", "place"],
    }
    optional = ("person_adjective", "thing_adjective", "time_or_place")

    def parses(text, lang, parts):
        """All ways to read the text as the sentence parts that remain."""
        if not parts:
            return [{}] if not text else []
        part, rest = parts[0], parts[1:]
        found = [{part: None} | more for more in parses(text, lang, rest)] if part in optional else []
        for concept in itertools.chain.from_iterable(toy.WORLD[category] for category in categories[part]):
            word = concept.word(lang)
            if text.startswith(word):
                remainder = text.removeprefix(word)
                if lang in toy.UNSPACED or not remainder or remainder[0] == " ":
                    found += [{part: concept} | more for more in parses(remainder.lstrip(" "), lang, rest)]
        return found

    def meaning_of(text, lang):
        meanings = parses(text, lang, toy.WORD_ORDER[lang])
        assert len(meanings) == 1, f"{text!r} ({lang}) has {len(meanings)} meanings"
        return toy.Meaning(**meanings[0])

    return meaning_of


@pytest.fixture(scope="session")
def meanings(corpus, meaning_of):
    """{part: the list of its meanings}, read back from the files alone."""
    flores = {part: (corpus / "flores" / part / f"eng.{part}").read_text("utf-8") for part in ("dev", "devtest")}
    return {
        "pairs1": [meaning_of(r["src"], r["src_lang"]) for r in jsonl(corpus / "pairs1.jsonl")],
        "pairs2": [meaning_of(r["src"], r["src_lang"]) for r in jsonl(corpus / "pairs2.jsonl")],
        "mono": [meaning_of(r["text"], r["lang"]) for path in (corpus / "mono").iterdir() for r in jsonl(path)],
        "instructions": [
            meaning_of(example["output"], resolve(example["instruction"].split(" to ")[1].rstrip(".")).code)
            for example in json.loads((corpus / "alpaca.json").read_text(encoding="utf-8"))
        ],
        "dev": [meaning_of(line, "en") for line in flores["dev"].splitlines()],
        "devtest": [meaning_of(line, "en") for line in flores["devtest"].splitlines()],
    }


# The world


GOLDEN = {  # tall soldier, hides, heavy mirror; tomorrow, or at the market
    "en": ("tall soldier hides heavy mirror tomorrow", "soldier hides mirror market"),
    "fr": ("soldat grand cache miroir lourd demain", "soldat cache miroir marché"),
    "es": ("soldado alto esconde espejo pesado mañana", "soldado esconde espejo mercado"),
    "zh": ("明天高挑士兵隐藏沉重镜子", "市场士兵隐藏镜子"),
    "ta": ("நாளை உயரமான சிப்பாய் கனமான கண்ணாடி மறைக்கிறார்", "சந்தை சிப்பாய் கண்ணாடி மறைக்கிறார்"),
    "th": ("ทหารสูงซ่อนกระจกหนักพรุ่งนี้", "ทหารซ่อนกระจกตลาด"),
}


def concept(category, english):
    (found,) = [c for c in toy.WORLD[category] if c.word("en") == english]
    return found


@pytest.mark.parametrize("lang", toy.LANGUAGES)
def test_word_order(lang):
    long = toy.Meaning(
        person_adjective=concept("person adjective", "tall"),
        person=concept("person", "soldier"),
        verb=concept("verb", "hides"),
        thing_adjective=concept("thing adjective", "heavy"),
        thing=concept("thing", "mirror"),
        time_or_place=concept("time", "tomorrow"),
    )
    short = long._replace(person_adjective=None, thing_adjective=None, time_or_place=concept("place", "market"))
    assert (toy.sentence(long, lang), toy.sentence(short, lang)) == GOLDEN[lang]


def test_words_are_single_and_lower_case():
    for forms in itertools.chain.from_iterable(c.forms for c in CONCEPTS):
        for word in forms:
            assert word == word.lower() == word.strip() and word and not any(ch.isspace() for ch in word)


@pytest.mark.parametrize("lang", toy.LANGUAGES)
def test_a_synonym_is_never_in_the_corpus(lang):
    column = toy.LANGUAGES.index(lang)
    synonyms = {word for c in CONCEPTS for word in c.forms[column][1:]}
    assert len(synonyms) >= 20
    assert not synonyms & {c.word(lang) for c in CONCEPTS}


@pytest.mark.parametrize("lang", toy.LANGUAGES)
def test_a_category_has_no_word_twice(lang):
    for concepts in (*toy.WORLD.values(), toy.WORLD["time"] + toy.WORLD["place"]):
        repeated = [word for word, n in Counter(c.word(lang) for c in concepts).items() if n > 1]
        assert not repeated


def homographs(lang):
    by_word = {}
    for c in CONCEPTS:
        by_word.setdefault(c.word(lang), []).append(c)
    return [concepts for concepts in by_word.values() if len(concepts) > 1]


def test_english_homographs_differ_in_every_other_language():
    assert len(homographs("en")) >= 6
    for concepts, lang in itertools.product(homographs("en"), toy.LANGUAGES[1:]):
        assert len({c.word(lang) for c in concepts}) == len(concepts), (concepts[0].word("en"), lang)


@pytest.mark.parametrize("lang", toy.LANGUAGES[1:])
def test_the_other_languages_have_homographs_too(lang):
    assert homographs(lang)


# The files


def test_same_arguments_same_bytes(corpus, tmp_path):
    again = make(tmp_path / "again", hash_seed="12345")
    other = make(tmp_path / "other", seed=1)
    assert again.returncode == other.returncode == 0, again.stderr + other.stderr
    assert contents(tmp_path / "again") == contents(corpus)
    first, second = contents(corpus), contents(tmp_path / "other")
    assert first.keys() == second.keys()
    same = {name for name in first if first[name] == second[name]}
    unseeded = {f"dictionaries/en-{lang}.txt" for lang in toy.LANGUAGES[1:]}
    unseeded |= {f"hf/{name}" for name in ("config.json", "generation_config.json", "tokenizer_config.json")}
    assert same == unseeded


def test_counts(corpus):
    counts = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))["counts"]
    for sample in ("pairs1", "pairs2"):
        records = jsonl(corpus / f"{sample}.jsonl")
        assert len(records) == counts[sample] == 15 * SMALL["pairs"]
        directions = Counter((r["src_lang"], r["tgt_lang"]) for r in records)
        assert len(directions) == 30
        for a, b in itertools.combinations(toy.LANGUAGES, 2):
            assert directions[a, b] + directions[b, a] == SMALL["pairs"]
            assert abs(directions[a, b] - directions[b, a]) <= 1
        assert {(r["loss"], r["origin"]) for r in records} == {("all", "toy")}
        assert {tuple(r) for r in records} == {("src", "tgt", "src_lang", "tgt_lang", "loss", "origin")}
    for lang in toy.LANGUAGES:
        records = jsonl(corpus / "mono" / f"{lang}.jsonl")
        assert len(records) == counts["mono"][lang] == SMALL["mono"]
        assert all(r.keys() == {"text", "lang"} and r["lang"] == lang for r in records)
    for lang, entries in counts["dictionaries"].items():
        assert len((corpus / "dictionaries" / f"{lang}.txt").read_text("utf-8").splitlines()) == entries


def test_both_sides_say_the_same(corpus, meaning_of):
    for record in jsonl(corpus / "pairs1.jsonl"):
        assert meaning_of(record["src"], record["src_lang"]) == meaning_of(record["tgt"], record["tgt_lang"])


def test_no_meaning_is_used_twice(meanings):
    counts = Counter(itertools.chain.from_iterable(meanings.values()))
    assert counts.most_common(1)[0][1] == 1
    assert {part: len(found) for part, found in meanings.items()} == {
        "pairs1": 15 * SMALL["pairs"],
        "pairs2": 15 * SMALL["pairs"],
        "mono": 6 * SMALL["mono"],
        "instructions": 10 * SMALL["instructions"],
        "dev": SMALL["test"],
        "devtest": SMALL["test"],
    }


def test_flores_files(corpus, meaning_of):
    for part, chinese in (("dev", "cmn_Hans"), ("devtest", "zho_simpl")):
        names = {"en": "eng", "fr": "fra", "es": "spa", "zh": chinese, "ta": "tam", "th": "tha"}
        folder = corpus / "flores" / part
        assert {path.name for path in folder.iterdir()} == {f"{name}.{part}" for name in names.values()}
        read = {lang: (folder / f"{name}.{part}").read_text("utf-8").splitlines() for lang, name in names.items()}
        for line in zip(*read.values(), strict=True):
            assert len({meaning_of(text, lang) for text, lang in zip(line, read, strict=True)}) == 1


def test_instructions(corpus, meaning_of):
    examples = json.loads((corpus / "alpaca.json").read_text(encoding="utf-8"))
    directions = [("en", lang) for lang in toy.LANGUAGES[1:]] + [(lang, "en") for lang in toy.LANGUAGES[1:]]
    languages_of = {
        f"Translate the following sentences from {resolve(src).name} to {resolve(tgt).name}.": (src, tgt)
        for src, tgt in directions
    }
    assert Counter(e["instruction"] for e in examples) == dict.fromkeys(languages_of, SMALL["instructions"])
    for example in examples:
        assert example.keys() == {"instruction", "input", "output"}
        src, tgt = languages_of[example["instruction"]]
        assert meaning_of(example["input"], src) == meaning_of(example["output"], tgt)


def test_instructions_in_all_directions(corpus, tmp_path, meaning_of):
    """As many as are asked for in each; pairs, text and test sets keep their form, and no meaning is used twice."""
    result = make(tmp_path / "all", directions="all", instructions=4)
    assert result.returncode == 0 and "120 instructions" in result.stdout, result.stderr
    examples = json.loads((tmp_path / "all" / "alpaca.json").read_text(encoding="utf-8"))
    languages_of = {
        f"Translate the following sentences from {resolve(src).name} to {resolve(tgt).name}.": (src, tgt)
        for src, tgt in itertools.permutations(toy.LANGUAGES, 2)
    }
    assert Counter(e["instruction"] for e in examples) == dict.fromkeys(languages_of, 4)
    said = []
    for example in examples:
        src, tgt = languages_of[example["instruction"]]
        said.append(meaning_of(example["input"], src))
        assert said[-1] == meaning_of(example["output"], tgt)
    pairs = [meaning_of(r["src"], r["src_lang"]) for r in jsonl(tmp_path / "all" / "pairs1.jsonl")]
    assert len(set(said)) == 120 and not set(said) & set(pairs)
    assert contents(tmp_path / "all").keys() == contents(corpus).keys()


def test_english_directions_are_the_default(corpus, tmp_path):
    assert make(tmp_path / "english", directions="english").returncode == 0
    assert contents(tmp_path / "english") == contents(corpus)


def read_dictionary(corpus, lang):
    """{English word: the translations, a line each}"""
    entries = {}
    for line in (corpus / "dictionaries" / f"en-{lang}.txt").read_text(encoding="utf-8").splitlines():
        english, translation = line.split()  # exactly two
        assert line == line.lower()
        entries.setdefault(english, []).append(translation)
    return entries


def test_dictionaries(corpus):
    for lang in toy.LANGUAGES[1:]:
        entries = read_dictionary(corpus, lang)
        assert all(len(found) == len(set(found)) for found in entries.values())
        for c in CONCEPTS:
            assert c.word(lang) in entries[c.word("en")]
        corpus_words = {c.word("en") for c in CONCEPTS} - {h[0].word("en") for h in homographs("en")}
        assert sum(len(entries[word]) > 1 for word in corpus_words) >= 20
        for concepts in homographs("en"):
            assert {c.word(lang) for c in concepts} <= set(entries[concepts[0].word("en")])
    separators = {"\t" in path.read_text("utf-8") for path in (corpus / "dictionaries").iterdir()}
    assert separators == {True, False}


def texts(corpus, lang):
    return [record["text"] for record in jsonl(corpus / "mono" / f"{lang}.jsonl")]


def test_spaces(corpus):
    for lang in toy.LANGUAGES:
        for text in texts(corpus, lang):
            if lang in ("zh", "th"):
                assert " " not in text
            else:
                assert 3 <= len(text.split(" ")) <= 6


def test_jieba_finds_the_words(meanings):
    found = [
        jieba.lcut(toy.sentence(meaning, "zh")) == toy.words(meaning, "zh")
        for meaning in itertools.chain.from_iterable(meanings.values())
    ]
    assert sum(found) / len(found) >= 0.97


# The model folder


@pytest.mark.parametrize("lang", toy.LANGUAGES)
def test_a_word_is_a_piece(meanings, tokenizer, lang):
    whole = []
    for meaning in meanings["pairs1"] + meanings["mono"]:
        words = toy.words(meaning, lang)
        pieces = tokenizer.encode(toy.sentence(meaning, lang), out_type=str)
        whole.append(pieces == (["▁", *words] if lang in toy.UNSPACED else [f"▁{word}" for word in words]))
    assert sum(whole) / len(whole) >= (0.93 if lang == "th" else 1.0)


def test_the_first_word_of_a_response_is_a_piece(meanings, tokenizer):
    newline = tokenizer.encode("\n", out_type=str)
    for meaning in meanings["instructions"]:
        for lang in ("en", "fr", "es", "ta"):
            pieces = tokenizer.encode("\n" + toy.sentence(meaning, lang), out_type=str)
            assert len(pieces) - len(newline) == len(toy.words(meaning, lang)), pieces


def test_a_prompt_is_short(tokenizer):
    names = {"source": resolve("es").name, "target": resolve("zh").name}
    prompt = prompts.alpaca_prompt(prompts.TRANSLATE.format(**names))
    words = len(prompt.split())
    assert len(tokenizer.encode(prompt)) <= 1.7 * words  # punctuation and ends of lines are pieces too


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_any_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_characters_become_bytes(tokenizer):
    assert tokenizer.encode("😀", out_type=str) == ["▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert tokenizer.encode("\n", out_type=str) == ["▁", "<0x0A>"]


def test_special_ids(tokenizer):
    assert tokenizer.vocab_size() == SMALL["vocab-size"]
    assert [tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()] == [0, 1, 2, -1]


def test_transformers_reads_the_folder(corpus, tokenizer):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(corpus / "hf")
    assert isinstance(config, transformers.LlamaConfig)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (128, 2, tokenizer.vocab_size())
    assert config.rope_parameters["rope_theta"] == 10000.0
    generation = transformers.GenerationConfig.from_pretrained(corpus / "hf")
    assert (generation.bos_token_id, generation.eos_token_id) == (1, 2)
    text = "tall soldier hides heavy mirror"
    theirs = transformers.AutoTokenizer.from_pretrained(corpus / "hf")
    assert theirs(text)["input_ids"] == [1, *tokenizer.encode(text)]


# The command line


def test_a_second_run_does_nothing(corpus):
    before = contents(corpus)
    times = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    result = make(corpus)
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert contents(corpus) == before
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == times


def test_other_arguments_do_not_touch_it(corpus):
    before = contents(corpus)
    message = one_error_line(make(corpus, mono=SMALL["mono"] + 1))
    assert "remove the folder" in message and str(corpus) in message
    assert contents(corpus) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious", encoding="utf-8")
    assert "choose another folder" in one_error_line(make(tmp_path))
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_all_bad_numbers_in_one_line(tmp_path):
    message = one_error_line(make(tmp_path / "out", pairs=1, mono=0, test=-3))
    assert all(part in message for part in ("--pairs 1", "--mono 0", "--test -3"))
    assert "smaller numbers" in one_error_line(make(tmp_path / "out", pairs=10**9))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [5, 400, 50_000])
def test_an_impossible_vocabulary_leaves_nothing(tmp_path, size):
    message = one_error_line(make(tmp_path / "out", vocab_size=size))
    assert f"--vocab-size {size}" in message
    assert not list(tmp_path.iterdir())
