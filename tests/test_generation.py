"""Generation: what models are fed, how batches are cut, searched and halved, and what is on disk at any moment.

The references: prompts encoded whole, plain transformers one sentence at a time and so without padding, and runs that
nothing interrupts.
"""

import contextlib
import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from array import array
from types import SimpleNamespace

import pytest
import tokenizers
import torch
import transformers
from conftest import LLAMA2, LLAMA3, SHARED, WORDS, needs_shared, snapshot, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from seq2seq_models import ENGLISH, independent, save_m2m, save_madlad, sentence_pieces

import evaluate
from llamax import generation, prompt_ids
from llamax.files import InputError
from llamax.generation import Search, Sentence, cut_batches, open_model, translate_batch
from llamax.hypotheses import hypotheses_file, partial_file
from llamax.prompt_ids import ForeignTokenizer, PromptEncoder
from llamax.prompts import TRANSLATION_PROMPTS, translation_prompt
from llamax.search import ROOM
from llamax.testsets import read_lines
from llamax.tokenizer import load_tokenizer

TOKENS = 12  # new ones of a translation, where nothing else is said
PLAIN_PROMPTS = [name for name, template in TRANSLATION_PROMPTS.items() if not template.special] + ["none"]
SIDES = {"en": "eng", "fr": "fra", "zh": "zho_simpl"}  # of `flores`


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """So that a forked process can go on computing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def alone(folder, prompts, num_beams=4, max_new_tokens=TOKENS, ends=(2,)):
    """The ids that plain transformers continues each prompt with, up to and with an end."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig()
    found = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), num_beams=num_beams, max_new_tokens=max_new_tokens,
                do_sample=False, eos_token_id=list(ends), pad_token_id=2,
            )  # fmt: skip
        new = output[0, ids.shape[1] :].tolist()
        end = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
        found.append(new[:end])
    return found


def one_line(text):
    return re.sub("[\r\n]+", " ", text.strip())


def texts_of(folder, found):
    """Ids of Llama's, as alone() gives them, as text."""
    tokenizer = load_tokenizer(folder)
    return [one_line(tokenizer.decode([i for i in ids if i != 2 and i < tokenizer.vocab_size])) for ids in found]


def one_by_one(folder, lines, direction, **options):
    """The translations that the default prompt gets."""
    tokenizer = load_tokenizer(folder)
    prompts = [prompt_ids.prompt_ids(tokenizer, translation_prompt(line, *direction)) for line in lines]
    return texts_of(folder, alone(folder, prompts, **options))


def source_lines(flores, code, split="devtest"):
    return read_lines(flores / split / f"{SIDES[code]}.{split}")


# Prompts as ids


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, llama_tokenizer):
    """(tokenizer, prompt) -> PromptEncoder. Reading Llama 3's ranks takes a second: once."""
    folder = tmp_path_factory.mktemp("tokenizers")
    load = functools.cache(load_tokenizer)

    @functools.cache
    def make(name, prompt):
        path = folder / name
        if not path.is_dir():
            path.mkdir()
            shutil.copy({"tiny": llama_tokenizer, "llama2": LLAMA2, "llama3": LLAMA3}[name], path / "tokenizer.model")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prompt_ids, "load_tokenizer", load)
            return PromptEncoder(path, prompt)

    return make


def whole(encoder, direction, line):
    """The ids of a whole prompt at once."""
    text = line if encoder.template is None else translation_prompt(line, *direction, encoder.template.name)
    return prompt_ids.prompt_ids(encoder.tokenizer, text)


TOKENIZERS = ["tiny", *(pytest.param(name, marks=needs_shared) for name in ("llama2", "llama3"))]
AWKWARD = [" ", "\t", "\r", "\r ", "\u2028", "\x85", "\u3000", "\xa0", "\x1c", "\0", "▁", "###", "### Response:", ":",
           "<s>", "</s>", "<|eot_id|>", "é", "e\u0301", "这", "🙂", "\ufeff", "{sentence}"]  # fmt: skip
TEXT = st.lists(
    st.one_of(
        st.sampled_from(AWKWARD), st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=8)
    ),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_of_any_text_are_those_of_the_whole_prompt(encoder, name):
    @settings(max_examples=150)
    @given(st.lists(TEXT, min_size=1, max_size=3), st.sampled_from(PLAIN_PROMPTS))
    def check(lines, prompt):
        made = encoder(name, prompt)
        got = made.encode(("en", "zh"), tuple(lines), lines)
        assert [list(ids) for ids in got] == [whole(made, ("en", "zh"), line) for line in lines]

    check()


@needs_shared
@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_ids_of_flores_are_those_of_the_whole_prompt(encoder, name):
    for code, file in (("en", "eng"), ("ar", "ara"), ("zh", "zho_simpl"), ("th", "tha"), ("am", "amh"), ("my", "mya")):
        lines = read_lines(SHARED / f"flores101/devtest/{file}.devtest")[::40]
        for prompt in PLAIN_PROMPTS:
            made, direction = encoder(name, prompt), (code, "fr" if code == "en" else "en")
            got = made.encode(direction, code, lines)
            assert [list(ids) for ids in got] == [whole(made, direction, line) for line in lines], (code, prompt)


@pytest.mark.parametrize(("prompt", "times"), [("stanford", 4), ("emma", 10)])
def test_a_sentence_is_encoded_once_for_all_targets(encoder, monkeypatch, prompt, times):
    """Where its line is the same for all, which those of emma's prompt are not."""
    made, encoded = encoder("tiny", prompt), []
    whole_line = made.tokenizer.encode_continuation
    monkeypatch.setattr(made.tokenizer, "encode_continuation", lambda text: encoded.append(text) or whole_line(text))
    lines = {"en": ["the dog", "a cat"], "fr": ["le chien", "un chat"]}
    for direction in (("en", "fr"), ("en", "zh"), ("fr", "en"), ("en", "de"), ("fr", "zh")):
        got = made.encode(direction, direction[0], lines[direction[0]])
        assert [list(ids) for ids in got] == [whole(made, direction, line) for line in lines[direction[0]]]
    assert len(encoded) == times


def test_a_translation_ends_at_eos_only_and_is_one_line(encoder):
    made = encoder("tiny", "llamax")
    tokenizer = made.tokenizer
    text = 'Antwort: "ja": ### Response: 12:30\n\nzweite\r\nZeile\u2028dritte'
    ids = tokenizer.encode_continuation(f"\n {text} \n")
    padding = tokenizer.vocab_size + 3  # a row of the embeddings that is no token
    assert made.text([padding, *ids, padding, 2, *ids]) == 'Antwort: "ja": ### Response: 12:30 zweite Zeile\u2028dritte'
    assert made.text([2, 2, 2]) == made.text([padding]) == made.text([]) == ""
    assert made.ends == {2: True}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_few_shot_translation_ends_with_its_line(encoder, name):
    made = encoder(name, "emma")
    tokenizer = made.tokenizer
    said = ' Er sagte: "### ja: gut."'
    ids = tokenizer.encode_continuation(said + "\n\n[English]: and more")
    end = next(i for i, token in enumerate(ids) if "\n" in tokenizer.decode([token]))
    if name == "llama3":
        assert tokenizer.decode([ids[end]]) == '."\n\n'  # which is translation, up to the end of the line
    assert made.ends.keys() >= {ids[end], tokenizer.eos_id} and ids[end - 1] not in made.ends
    assert made.text(ids) == made.text(ids[: end + 1]) == made.text([*ids[: end + 1], tokenizer.eos_id]) == said.strip()
    assert made.text(tokenizer.encode_continuation("\n ja")) == ""
    assert made.text([*tokenizer.encode_continuation("ja"), tokenizer.eos_id, 5]) == "ja"


# Tokenizers of others


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A random Qwen2 whose tokenizer has control tokens, and which ends at either of two."""
    folder = tmp_path_factory.mktemp("qwen")
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words) for words in WORDS.values()], trainer)
    tokenizer.add_tokens(["ja\nnein"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=tokenizer.get_vocab_size() + 8, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[[0, 2]] *= 2
    model.generation_config = transformers.GenerationConfig(eos_token_id=[2, 0], do_sample=True)
    model.save_pretrained(folder)
    return folder


def chatml(folder, line, source, target):
    """The ids of prompt qwen2, put together by hand."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(text):
        return tokenizer.encode(text).ids

    asked = f"user\nTranslate the following sentences from {source} to {target}: {line}"
    return [1, *ids("system\nYou are a helpful assistant."), 2, *ids("\n"), 1, *ids(asked), 2, *ids("\n"), 1,
            *ids("assistant\n")]  # fmt: skip


def test_control_tokens_are_read_as_such(qwen):
    made, lines = PromptEncoder(qwen, "qwen2"), ["the dog: ### it sees", " le chien"]
    expected = [chatml(qwen, line, "English", "French") for line in lines]
    assert [list(ids) for ids in made.encode(("en", "fr"), "en", lines)] == expected
    assert list(made.ends) == [0, 2]
    said = made.tokenizer.tokenizer("le\nchien: ### oui", add_special_tokens=False)["input_ids"]
    for end in (0, 2):
        assert made.text([*said, end, *said]) == "le chien: ### oui"
    few_shot = PromptEncoder(qwen, "emma")
    ids = made.tokenizer.tokenizer("sie sagt: ja\nnein", add_special_tokens=False)["input_ids"]
    assert ids[-1] in few_shot.ends and few_shot.text([*ids, 0]) == "sie sagt: ja"
    (bare,) = PromptEncoder(qwen, "none").encode(("en", "fr"), "en", ["the dog"])
    assert list(bare) == made.tokenizer.tokenizer("the dog")["input_ids"]  # this one has no BOS


def test_a_folder_without_tokenizer_is_refused(qwen, tmp_path):
    shutil.copy(qwen / "config.json", tmp_path)
    for prompt in ("qwen2", "llamax"):
        with pytest.raises(InputError, match=f"--hf-model {tmp_path}: no tokenizer loads") as error:
            PromptEncoder(tmp_path, prompt)
        assert "\n" not in str(error.value)
    shutil.copy(qwen / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')  # Qwen2's has one without being told
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match="its tokenizer has no EOS, so that no translation would end; add it"):
        ForeignTokenizer(tmp_path)


@pytest.fixture
def generate(model_folder, flores, tmp_path, monkeypatch):
    """Run evaluate.py generate in this process; an option given again counts the last time."""

    def call(*options):
        command = ["generate", "--hf-model", model_folder, "--flores", flores, "--output", tmp_path / "out", "--device",
                   "cpu", "--max-new-tokens", TOKENS, *options]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, command)])
        evaluate.main()

    return call


def hypotheses(output):
    """{SRC-TGT: lines} of an --output folder."""
    return {path.stem: read_lines(path) for path in sorted((output / "hypotheses").glob("*.txt"))}


def test_qwen_end_to_end(generate, qwen, flores, tmp_path):
    generate("--hf-model", qwen, "--prompt", "qwen2", "--directions", "en-fr,zh-en", "--max-batch-tokens", 3000)
    names, tokenizer = {"en": "English", "fr": "French", "zh": "Chinese Simpl"}, ForeignTokenizer(qwen).tokenizer
    ended = set()
    for name, got in hypotheses(tmp_path / "out").items():
        source, target = name.split("-")
        prompts = [chatml(qwen, line, names[source], names[target]) for line in source_lines(flores, source)]
        found = alone(qwen, prompts, ends=(0, 2))
        ended |= {ids[-1] for ids in found}
        assert got == [one_line(tokenizer.decode([i for i in ids if i not in (0, 1, 2)])) for ids in found]
    assert ended >= {0, 2} and len(ended) > 2  # by either of the two, or by neither
    record = json.loads((tmp_path / "out/generate.json").read_text())
    assert record["settings"]["tokenizer"]["kind"] == "transformers" and record["settings"]["prompt"] == "qwen2"


# Batches


@given(
    st.lists(st.tuples(st.sampled_from(["fr", "zh", "de"]), st.integers(1, 40)), max_size=40),
    st.integers(1, 1000), st.integers(1, 5), st.booleans(), st.randoms(use_true_random=False),
)  # fmt: skip
def test_batches(lengths, budget, beams, mixes, draw):
    sentences = [Sentence(("en", code), i, array("i", [1] * n)) for i, (code, n) in enumerate(lengths)]
    model = SimpleNamespace(search=Search(beams, 10), mixes_directions=mixes, batch_factor=1)
    batches = cut_batches(sentences, budget, model)
    together = [sentence for batch in batches for sentence in batch]
    assert sorted(sentence.number for sentence in together) == list(range(len(sentences)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * beams * (max(len(s.ids) for s in batch) + 10) <= budget
        assert mixes or len({sentence.direction for sentence in batch}) == 1

    def key(sentence):
        return (not mixes and sentence.direction, -len(sentence.ids), sentence.number)

    assert together == sorted(sentences, key=key)
    for batch, after in itertools.pairwise(batches):  # as few as may be
        assert (len(batch) + 1) * beams * (len(batch[0].ids) + 10) > budget or (
            not mixes and batch[0].direction != after[0].direction
        )
    shuffled = draw.sample(sentences, len(sentences))
    assert cut_batches(sorted(shuffled, key=lambda s: s.number), budget, model) == batches
    assert [[len(s.ids) for s in batch] for batch in cut_batches(iter(shuffled), budget, model)] == [
        [len(s.ids) for s in batch] for batch in batches
    ]


def random_model(config_class, folder, tokenizer, ending=2, **changes):
    """A folder of a random decoder of two layers. `ending`: how large EOS is beside other tokens; 0: none ends."""
    torch.manual_seed(0)
    config = config_class(
        vocab_size=456, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3, tie_word_embeddings=False, **changes,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight[2] *= ending
    model.save_pretrained(folder)
    shutil.copy(tokenizer, folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def architectures(tmp_path_factory, llama_tokenizer, model_folder):
    def made(config_class, **changes):
        return random_model(config_class, tmp_path_factory.mktemp("decoder"), llama_tokenizer, **changes)

    return {
        "grouped heads": model_folder,
        "all heads": made(transformers.LlamaConfig, num_key_value_heads=4),
        "sliding window": made(transformers.MistralConfig, num_key_value_heads=2, sliding_window=16),
        "endless": made(transformers.LlamaConfig, num_key_value_heads=2, ending=0),
        "endless, sliding window": made(transformers.MistralConfig, num_key_value_heads=2, sliding_window=16, ending=0),
    }


LINES = [" ".join(WORDS["eng"][i % 20] for i in range(k, k + 1 + (5 * k) % 13)) for k in range(9)]


def opened(folder, how, prompt="llamax"):
    model = open_model(folder, prompt, None, how, "transformers", "cpu", "float32")
    model.load()
    return model


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["grouped heads", "all heads", "sliding window"])
def test_batches_translate_as_single_sentences(architectures, name, beams):
    """Of two directions, prompts and bare sentences, and of one token; with room for all, for some and for one."""
    folder = architectures[name]
    model = opened(folder, Search(beams, 20))
    sentences = [
        Sentence((source, target), i, ids)
        for source, target in (("en", "fr"), ("fr", "zh"))
        for i, ids in enumerate(model.encode((source, target), source, LINES))
    ]
    bare = PromptEncoder(folder, "none").encode(("en", "zh"), "en", LINES[::2])
    sentences += [Sentence(("en", "zh"), i, ids) for i, ids in enumerate([array("i", [1]), array("i", [9]), *bare])]
    found = alone(folder, [sentence.ids for sentence in sentences], beams, 20)
    expected = dict(zip([s[:2] for s in sentences], texts_of(folder, found), strict=True))
    assert 0 < sum(ids[-1] == 2 for ids in found) < len(found)  # both kinds of end
    assert len({*expected.values()}) > 8
    for budget in (100_000, 100 * beams * 5, 1):
        batches = cut_batches(sentences, budget, model)
        got = {s[:2]: text for batch in batches
               for s, text in zip(batch, translate_batch(model, batch, patient=True), strict=True)}  # fmt: skip
        assert got == expected, budget


@pytest.mark.parametrize("name", ["endless", "endless, sliding window"])
def test_long_translations(architectures, name):
    """Of more tokens than a cache grows by, several times."""
    assert ROOM < 80 / 2
    model = opened(architectures[name], Search(4, 80))
    batch = [Sentence(("en", "fr"), i, ids) for i, ids in enumerate(model.encode(("en", "fr"), "en", LINES[3:6]))]
    found = alone(model.folder, [sentence.ids for sentence in batch], max_new_tokens=80)
    assert [len(new) for new in found] == [80] * 3
    assert translate_batch(model, batch) == texts_of(model.folder, found)


@pytest.mark.parametrize("beams", [1, 4])
def test_stragglers_are_left_for_another_batch(model_folder, flores, tmp_path, monkeypatch, beams):
    monkeypatch.setattr(generation, "STRAGGLERS", 0.5)
    model, left, patiently = opened(model_folder, Search(beams, TOKENS)), [], []
    translate = model.translate

    def noted(batch, patient):
        texts = translate(batch, patient)
        left.extend(s[:2] for s, text in zip(batch, texts, strict=True) if text is None)
        patiently.extend(s[:2] for s in batch if patient)
        return texts

    monkeypatch.setattr(model, "translate", noted)
    directions, args = [("en", "fr"), ("en", "zh"), ("zh", "en")], SimpleNamespace(shard=None, max_batch_tokens=2000)
    evaluate.translate_all(
        directions, lambda d: (d[0], source_lines(flores, d[0])), model, {"settings": {}}, tmp_path, args
    )
    assert len(left) > 2 and sorted(left) == sorted(patiently)
    for direction in directions:
        expected = one_by_one(model_folder, source_lines(flores, direction[0]), direction, num_beams=beams)
        assert read_lines(hypotheses_file(tmp_path, direction)) == expected


def test_memory_that_runs_out(model_folder, monkeypatch):
    """There is room for some sentences only: batches are halved, and later ones of that size not even tried."""
    model = opened(model_folder, Search(4, TOKENS), "none")
    ids = model.encode(("en", "fr"), "en", [f"{a} {b}" for a, b in itertools.permutations(WORDS["eng"], 2)])
    ids = [row for row in ids if len(row) == len(ids[0])][:10]
    assert len(ids) == 10
    batch = [Sentence(("en", "fr"), i, row) for i, row in enumerate(ids)]
    expected, translate, tried = model.translate(batch, True), model.translate, []
    assert len({*expected}) > 5

    def limited(room):
        def run(batch, patient):
            tried.append(len(batch))
            if len(batch) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return translate(batch, patient)

        tried.clear()
        return run

    monkeypatch.setattr(model, "translate", limited(3))
    batches = cut_batches(batch, 6 * model.search.positions(batch[0]), model)
    assert [len(part) for part in batches] == [6, 4]
    assert [text for part in batches for text in translate_batch(model, part, patient=True)] == expected
    assert tried == [6, 3, 3, 4, 2, 2]
    assert translate_batch(model, batch[:6], patient=True) + translate_batch(model, batch[6:]) == expected
    assert tried == [6, 3, 3, 4, 2, 2, 3, 3, 2, 2]

    monkeypatch.setattr(model, "translate", limited(0))
    model.too_large = float("inf")
    with pytest.raises(InputError, match=rf"{len(ids[0])} tokens does not fit into the memory with --num-beams 4"):
        translate_batch(model, batch)
    assert tried == [10, 5, 2, 1]

    def broken(batch, patient):
        raise RuntimeError("another fault")

    monkeypatch.setattr(model, "translate", broken)
    with pytest.raises(RuntimeError, match="another fault"):
        translate_batch(model, batch)


# What is on disk


class Stopped(Exception):
    pass


def stop_after(batches, monkeypatch):
    """Have translation end after so many batches."""
    count, append = itertools.count(1), evaluate.append_partial

    def stopping(*given):
        append(*given)
        if next(count) == batches:
            raise Stopped

    monkeypatch.setattr(evaluate, "append_partial", stopping)


def test_sampling_depends_on_the_seed_only(generate, tmp_path):
    sampling = ("--directions", "en-fr,zh-fr", "--num-beams", 1, "--do-sample", "--temperature", 0.8, "--top-p", 0.9,
                "--max-batch-tokens", 700)  # fmt: skip
    for name, seed in (("first", 1), ("same", 1), ("other", 2)):
        generate(*sampling, "--seed", seed, "--output", tmp_path / name)
    first, same, other = (hypotheses(tmp_path / name) for name in ("first", "same", "other"))
    assert first == same and all(first[name] != other[name] for name in first)
    made = json.loads((tmp_path / "first/generate.json").read_text())["settings"]
    assert (made["do_sample"], made["temperature"], made["top_p"], made["seed"]) == (True, 0.8, 0.9, 1)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Stopped):
            generate(*sampling, "--seed", 1)
    path = partial_file(tmp_path / "out", ("zh", "fr"))
    path.write_bytes(path.read_bytes()[:-5])  # of a batch only one sentence is lost
    for changes, found in ((("--seed", 2), "seed 1, now 2"), (("--temperature", 1), "temperature 0.8, now 1.0")):
        with pytest.raises(InputError, match=found):
            generate(*sampling, "--seed", 1, *changes)
    generate(*sampling, "--seed", 1)
    assert hypotheses(tmp_path / "out") == first


def test_damaged_ends_of_what_is_begun_are_translated_again(generate, tmp_path):
    directions = ("--directions", "en-fr,en-zh", "--max-batch-tokens", 700)
    generate(*directions, "--output", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(9, patch)
        with pytest.raises(Stopped):
            generate(*directions)
    path = partial_file(tmp_path / "out", ("en", "fr"))
    content = path.read_bytes()
    assert content.count(b'"text": "') > 1
    lines = [content[:-9], b'\xff\xfe\0{"line": 1}', b"[3]", b"5", b'"line"', b'{"text": "x"}', b"null", b'{"line": 0']
    path.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stopped):
            generate(*directions)
    assert b'\n{"line": 0\n{"line": ' in path.read_bytes()  # what follows is not joined to it
    generate(*directions)
    assert hypotheses(tmp_path / "out") == hypotheses(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "out/hypotheses").iterdir()} == {"en-fr.txt", "en-zh.txt"}


def forked(call, *arguments):
    """call(*arguments) in another process, whose number this is; its exit status is 0 if nothing is raised."""
    process = os.fork()
    if not process:
        try:
            call(*arguments)
            os._exit(0)
        finally:
            os._exit(1)
    return process


def written(output):
    """How many sentences are on disk."""
    found = 0
    for path in (output / "hypotheses").glob("*-*"):
        with contextlib.suppress(FileNotFoundError):  # it was renamed
            found += path.read_bytes().count(b'"text": "' if path.suffix == ".jsonl" else b"\n")
    return found


def test_killed_at_any_moment_it_goes_on(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "GROUP_SENTENCES", 22)  # of two directions
    monkeypatch.setattr(generation, "STRAGGLERS", 0.3)
    command = ("--directions", "en-fr,en-zh,zh-en,fr-en", "--max-batch-tokens", 1500, "--max-new-tokens", 20)
    generate(*command, "--output", tmp_path / "whole")
    output, draw, in_the_middle = tmp_path / "out", random.Random(5), 0
    for number in range(20):
        process, ended, start = forked(generate, *command), False, time.monotonic()
        while written(output) < 44 * number / 20 and not ended:
            ended = os.waitpid(process, os.WNOHANG) != (0, 0)
            assert time.monotonic() - start < 60
            time.sleep(0.001)
        time.sleep(draw.random() * 0.08)
        if not ended:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        in_the_middle += any((output / "hypotheses").glob("*.partial.jsonl"))
    assert in_the_middle > 10
    generate(*command)
    assert snapshot(output / "hypotheses") == snapshot(tmp_path / "whole/hypotheses")
    assert {path.name for path in output.rglob("*")} == {path.name for path in (tmp_path / "whole").rglob("*")}
    assert len(snapshot(output)) == 5


# Several tasks


def test_tasks_share_the_directions(generate, flores, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "GROUP_SENTENCES", 20)  # of two directions
    command = ("--directions", "all", "--num-beams", 1)
    generate(*command, "--output", tmp_path / "whole")
    whole = hypotheses(tmp_path / "whole")
    assert len(whole) == 6

    def together(outputs):
        parts = [hypotheses(output) for output in outputs]
        assert sum(map(len, parts)) == 6 and all(parts)  # none twice
        return {name: lines for part in parts for name, lines in part.items()}

    for i in range(3):
        generate(*command, "--shard", f"{i}/3", "--output", tmp_path / f"shard{i}")
    assert together(tmp_path / f"shard{i}" for i in range(3)) == whole

    monkeypatch.setattr(evaluate, "GROUP_SENTENCES", 11)
    for i, (shard, rank) in enumerate((shard, rank) for shard in (0, 1) for rank in (0, 1)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        generate(*command, "--shard", f"{shard}/2", "--output", tmp_path / f"process{i}")
    assert together(tmp_path / f"process{i}" for i in range(4)) == whole

    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    generate(*command, "--shard", "slurm/3", "--output", tmp_path / "slurm")
    assert [*hypotheses(tmp_path / "slurm")] == ["en-zh", "zh-en"]  # of en-fr, en-zh, fr-en, fr-zh, zh-en, zh-fr

    for shard in ("3/3", "1", "-1/3"):
        with pytest.raises(InputError, match=f"--shard {shard}: expected"):
            generate(*command, f"--shard={shard}", "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()

    # At the same time in one folder, and a third that finds nothing left.
    output = tmp_path / "shared"
    tasks = [forked(generate, *command, "--shard", f"{i}/2", "--output", output) for i in range(2)]
    assert [os.waitpid(task, 0)[1] for task in tasks] == [0, 0]
    before = {path: path.stat().st_mtime_ns for path in (output / "hypotheses").iterdir()}
    generate(*command, "--output", output)
    assert {path: path.stat().st_mtime_ns for path in (output / "hypotheses").iterdir()} == before
    assert hypotheses(output) == whole


# Few-shot prompts


def golden_few_shot(line, shown, source, target):
    """EMMA-500's prompt of Flores, by hand."""
    examples = [f"[{source}]: {a}\n[{target}]: {b}\n" for a, b in shown]
    return "".join(examples) + (
        f"Translate the following sentence from {source} to {target}\n[{source}]: {line}\n[{target}]:"
    )


def test_few_shot_prompts_show_examples_of_dev(generate, flores, model_folder, tmp_path):
    for name, words in WORDS.items():
        write_lines(flores / f"dev/{name}.dev", [" ".join(words[k:]) for k in range(17)])
    folder, tokenizer = tmp_path / "model", load_tokenizer(model_folder)
    newline = tokenizer.reference.piece_to_id("<0x0A>")
    shutil.copytree(model_folder, folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[newline] *= 2
    model.save_pretrained(folder)
    command = ("--hf-model", folder, "--prompt", "emma", "--shots", 3, "--directions", "zh-fr", "--seed", 7)
    generate(*command)
    draw, prompts, drawn = random.Random(7), [], set()
    seeds = [draw.randint(0, 1000) for _ in range(11)]
    chinese, french = (source_lines(flores, code, "dev") for code in ("zh", "fr"))
    for line, seed in zip(source_lines(flores, "zh"), seeds, strict=True):
        draw = random.Random(seed)
        chosen = [draw.randint(0, 16) for _ in range(3)]
        drawn |= {*chosen}
        shown = [(chinese[i], french[i]) for i in chosen]
        prompts.append(golden_few_shot(line, shown, "Chinese (Simplified)", "French"))
    assert len(drawn) > 10
    found = alone(folder, [[1, *tokenizer.reference.encode(prompt)] for prompt in prompts], ends=(2, newline))
    assert {2, newline} < {ids[-1] for ids in found}
    said = [tokenizer.decode([i for i in ids if 2 < i < 450]) for ids in found]
    assert hypotheses(tmp_path / "out") == {"zh-fr": [one_line(text.partition("\n")[0]) for text in said]}
    assert json.loads((tmp_path / "out/generate.json").read_text())["settings"]["seed"] == 7

    before = snapshot(tmp_path / "out")
    with pytest.raises(InputError, match="seed 7, now 8"):
        generate(*command, "--seed", 8)
    with pytest.raises(InputError, match="shots 3, now 2"):
        generate(*command, "--shots", 2)
    assert snapshot(tmp_path / "out") == before
    output = ("--output", tmp_path / "none")
    with pytest.raises(InputError, match="--prompt llamax: has no form for examples, only emma"):
        generate(*command, *output, "--prompt", "llamax")
    with pytest.raises(InputError, match="--shots: --prompt none shows no examples"):
        generate(*command, *output, "--prompt", "none")
    (flores / "dev/fra.dev").unlink()
    with pytest.raises(InputError, match="no file for fr"):
        generate(*command, *output)
    assert not (tmp_path / "none").exists()


def test_examples_for_other_test_sets(flores, model_folder, tmp_path, monkeypatch):
    for code, lines in (("en", ["the dog"]), ("fr", ["le chien"])):
        write_lines(tmp_path / f"aligned/news.en-fr.{code}", lines)
    for name, words in WORDS.items():
        write_lines(tmp_path / f"other/dev/{name}.dev", [" ".join(words[k:]) for k in range(9)])
    command = ["generate", "--hf-model", model_folder, "--aligned", tmp_path / "aligned", "--directions", "en-fr",
               "--output", tmp_path / "out", "--max-new-tokens", "3", "--prompt", "emma", "--shots", "1"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, command)])
    with pytest.raises(InputError, match="--shots: examples come from Flores' dev; give its folder by --examples"):
        evaluate.main()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--examples", str(tmp_path / "other")])
    evaluate.main()
    assert hypotheses(tmp_path / "out").keys() == {"en-fr"}


# By way of another language


def test_pivot(generate, flores, model_folder, tmp_path):
    output, pivot = tmp_path / "out", tmp_path / "out/pivot"
    generate("--directions", "all", "--pivot", "fr")
    assert hypotheses(output).keys() == {"en-zh", "zh-en"} and hypotheses(pivot).keys() == {"en-fr", "zh-fr"}
    for first, last in (("zh", "en"), ("en", "zh")):
        middle = hypotheses(pivot)[f"{first}-fr"]
        assert middle == one_by_one(model_folder, source_lines(flores, first), (first, "fr"))
        got = hypotheses(output)[f"{first}-{last}"]
        assert got == [one_by_one(model_folder, [line], ("fr", last))[0] if line else "" for line in middle]
    made = json.loads((output / "generate.json").read_text())
    assert made["settings"]["pivot"] == "fr" and made["sources"].keys() == {"en-fr", "zh-fr"}
    with pytest.raises(InputError, match="made with pivot 'fr', now None"):
        generate("--directions", "en-zh")

    # Translations that are there are used as they are, with an empty line too.
    again, path = tmp_path / "again", hypotheses_file(pivot, ("zh", "fr"))
    lines = read_lines(path)
    lines[2] = ""
    write_lines(path, lines)
    before = {path: path.stat().st_mtime_ns for path in (pivot / "hypotheses").iterdir()}
    command = ("--directions", "zh-en", "--pivot", "fr", "--pivot-output", pivot, "--output", again)
    generate(*command, "--shard", "0/2")
    generate(*command, "--shard", "1/2")
    assert {path: path.stat().st_mtime_ns for path in (pivot / "hypotheses").iterdir()} == before
    first = hypotheses(output)["zh-en"]
    assert hypotheses(again) == {"zh-en": [*first[:2], "", *first[3:]]} and first[2]
    with pytest.raises(InputError, match="made from another source text for zh-fr"):
        generate("--directions", "zh-en", "--pivot", "fr")


def test_pivot_that_cannot_be(generate, flores, model_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="--pivot fr: none of --directions en-fr,fr-zh is without it; leave it out"):
        generate("--directions", "en-fr,fr-zh", "--pivot", "fr")
    with pytest.raises(InputError, match=r"no zh-fr yet, which several tasks need; translate --directions '\*-fr' "):
        generate("--directions", "zh-en", "--pivot", "fr", "--shard", "0/2")
    for code in ("en", "zh"):
        write_lines(tmp_path / f"aligned/news.zh-en.{code}", source_lines(flores, code))
    command = ["generate", "--hf-model", model_folder, "--aligned", tmp_path / "aligned", "--directions", "zh-en",
               "--pivot", "fr", "--output", tmp_path / "out"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, command)])
    with pytest.raises(InputError, match=r"--pivot fr: directions of --aligned .*aligned have sentences of their own"):
        evaluate.main()
    assert not (tmp_path / "out").exists()


# Encoder-decoder models


@pytest.fixture(scope="module")
def translators(tmp_path_factory):
    """Folders of an M2M-100 and a MADLAD-400, and a test set whose words they know."""
    folder = tmp_path_factory.mktemp("translators")
    pieces = sentence_pieces(tmp_path_factory.mktemp("pieces"))
    for number, code in enumerate(("eng", "fra", "zho_simpl", "asm")):
        lines = [line[: 5 + 11 * k % 60].strip() for k, line in enumerate(ENGLISH[20 * number : 20 * number + 15])]
        write_lines(folder / f"flores/devtest/{code}.devtest", lines)
    return SimpleNamespace(
        m2m=save_m2m(pieces, folder / "m2m"), madlad=save_madlad(pieces, folder / "madlad"), flores=folder / "flores"
    )


def test_m2m_translates_as_single_sentences(generate, translators, tmp_path):
    command = ("--hf-model", translators.m2m, "--flores", translators.flores, "--num-beams", 2, "--max-new-tokens", 8)
    generate(*command, "--directions", "en-fr,fr-en,zh-fr", "--max-batch-tokens", 300)
    found = hypotheses(tmp_path / "out")
    for name, got in found.items():
        source, target = name.split("-")
        assert got == independent(translators.m2m, source_lines(translators.flores, source), source, f"__{target}__")
        assert len({*got}) > 5
    assert found.keys() == {"en-fr", "fr-en", "zh-fr"}
    assert json.loads((tmp_path / "out/generate.json").read_text())["settings"]["prompt"] is None


def test_madlad_translates_as_single_sentences(generate, translators, tmp_path):
    command = ("--hf-model", translators.madlad, "--flores", translators.flores, "--num-beams", 2,
               "--max-new-tokens", 8)  # fmt: skip
    generate(*command, "--directions", "fr-en,zh-fr", "--max-batch-tokens", 300)
    tokenizer = transformers.AutoTokenizer.from_pretrained(translators.madlad)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(translators.madlad)
    for source, target in (("fr", "en"), ("zh", "fr")):
        expected = []
        for line in source_lines(translators.flores, source):
            inputs = tokenizer(f"<2{target}> {line}", return_tensors="pt")
            output = model.generate(**inputs, num_beams=2, max_new_tokens=8, do_sample=False)[0].tolist()
            kept = [i for i in output if i not in tokenizer.all_special_ids and not 3 <= i < 9]
            expected.append(tokenizer.decode(kept).strip())
        assert hypotheses(tmp_path / "out")[f"{source}-{target}"] == expected
        assert len({*expected}) > 5


def test_what_translators_cannot_do(generate, translators, tmp_path):
    broken = tmp_path / "m2m"
    shutil.copytree(translators.m2m, broken)
    os.truncate(broken / "model.safetensors", 1000)  # so that loading fails
    command = ("--hf-model", broken, "--flores", translators.flores)
    for options, message in (
        (("--directions", "en-as"), r"has no token for as \(Assamese\), only for 100 languages"),
        (("--directions", "en-as", "--pivot", "fr"), r"has no token for as \(Assamese\)"),
        (("--directions", "en-fr", "--prompt", "llamax"), "--prompt: not for m2m_100 of --hf-model .*; leave it out"),
        (("--directions", "en-fr", "--do-sample", "--num-beams", 1), "--do-sample: not for m2m_100"),
        (("--directions", "en-fr", "--engine", "vllm"), "--engine vllm: not for m2m_100"),
    ):
        with pytest.raises(InputError, match=message):
            generate(*command, *options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="does not load"):
        generate(*command, "--directions", "en-fr")
