"""New tokens: which they are, what they save, and their ids in sentencepiece, gigatoken and transformers."""

import collections
import gzip
import itertools
import random
import shutil
import unicodedata

import numpy as np
import pytest
import sentencepiece
from conftest import LLAMA2, LLAMA3, SHARED, needs_shared, sentences
from hypothesis import example, given
from hypothesis import strategies as st
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from llamax import vocabulary
from llamax.files import InputError, write_json
from llamax.tokenizer import load_tokenizer, write_hf_tokenizer
from llamax.vocabulary import fertility, learn_tokens, write_tokenizer

SIZES = (0, 100, 800, 1600, 6400)


def ntrex(lang):
    return SHARED / "ntrex" / "NTREX-128" / f"newstest2019-{'src' if lang == 'eng' else 'ref'}.{lang}.txt"


def flores(lang, split):
    return SHARED / "flores101" / split / f"{lang}.{split}"


def lines_of(path):
    return path.read_text(encoding="utf-8").split("\n")


def extended(tokenizer, tokens, path):
    write_tokenizer(tokenizer, tokens, path)
    return load_tokenizer(path)


def encoded(tokenizer, texts):
    ids, offsets = tokenizer.encode_batch(texts)
    return [part.tolist() for part in np.split(ids, offsets[1:-1])]


def spelled_out(ids, tokens, old):
    """Ids, with those of the old tokens in the place of every new one."""
    return [i for new in ids for i in ([new] if new < old.vocab_size else tokens[new - old.vocab_size].spelled_by)]


@pytest.fixture(scope="module")
def llama2():
    return load_tokenizer(LLAMA2)


@pytest.fixture(scope="module", params=["ron", "ben"])
def learnt(request, llama2):
    """A language, files of 2,994 sentences in it, and the 6,400 tokens that they teach."""
    files = [ntrex(request.param), flores(request.param, "dev")]
    return request.param, files, learn_tokens(llama2, files, SIZES[-1])


@pytest.fixture(scope="module")
def longest(learnt, llama2, tmp_path_factory):
    """The tokenizer with all of them."""
    return extended(llama2, learnt[2], tmp_path_factory.mktemp("longest") / "tokenizer.model")


@pytest.fixture(scope="module")
def tiny(tokenizer_model):
    return load_tokenizer(tokenizer_model)


@pytest.fixture(scope="module")
def tiny_extended(tiny, tmp_path_factory):
    """(tokens, the tokenizer with them): of English, which it knows, and Cyrillic, which it does not."""
    folder = tmp_path_factory.mktemp("extended")
    text = folder / "text.txt"
    cyrillic = "\nстарый фермер на рынке\nфермер и лампа, лампа на рынке" * 5
    text.write_text("\n".join(sentences("en", 60)) + cyrillic, encoding="utf-8")
    tokens = learn_tokens(tiny, [text], 30)
    return tokens, extended(tiny, tokens, folder / "tokenizer.model")


# Which tokens


def test_a_character_counts_by_its_bytes(tiny, tmp_path):
    """By hand. ж would save 4 and so would ▁ж, but the shorter is first; then ы saves 3 as жы does, ▁жы 3 after it."""
    text = tmp_path / "text.txt"
    text.write_text("жы жы жы\nж", encoding="utf-8")
    tokens = learn_tokens(tiny, [text], 4)
    assert [token.piece for token in tokens] == ["ж", "▁ж", "ы", "▁жы"]
    space = tiny.reference.piece_to_id("▁")
    zh, y = ([tiny.reference.piece_to_id(f"<0x{byte:02X}>") for byte in char.encode()] for char in "жы")
    assert [list(token.spelled_by) for token in tokens] == [zh, [space, *zh], y, [space, *zh, *y]]
    with pytest.raises(
        InputError, match=r"text\.txt: offers 4 new tokens, expected 5; give more text or ask for fewer"
    ):
        learn_tokens(tiny, [text], 5)


@given(
    st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "ab", "ж"]), min_size=1, max_size=12).map(tuple), st.integers(1, 4)
    ),
    st.dictionaries(st.sampled_from("жы"), st.integers(2, 9)),
)
@example({("a",) * 11: 3, ("b", *"aaab"): 1}, {})
def test_the_best_piece_is_always_next(stretches, characters):
    """Against counting everything anew for every piece."""
    known = {"a", "b", "ab"}
    words, expected, characters_left = [(list(stretch), n) for stretch, n in stretches.items()], [], dict(characters)
    while True:
        saved = collections.Counter(characters_left)
        for word, n in words:
            for a, b in itertools.pairwise(word):
                if len(a + b) <= vocabulary.MAX_CHARS:
                    saved[a + b] += n
        best = min((p for p in saved if saved[p] > 1), key=lambda p: (-saved[p], len(p), p), default=None)
        if best is None:
            break
        if best not in {*known, *expected}:
            expected.append(best)
        characters_left.pop(best, None)
        for word, _ in words:
            for i in range(len(word)):
                if "".join(word[i : i + 2]) == best:
                    word[i : i + 2] = [best]
    assert list(vocabulary._best_pieces(stretches, characters, known)) == expected


@needs_shared
def test_merges_are_those_of_sentencepiece(llama2, tmp_path):
    """Against its own trainer, on words written in a private alphabet: a letter for each old piece."""
    stretches, _, known = vocabulary._stretches(llama2, [ntrex("ben")])
    letters = {symbol: chr(0xF0000 + i) for i, symbol in enumerate(sorted({s for word in stretches for s in word}))}
    words = tmp_path / "words.tsv"
    lines = [f"{''.join(map(letters.get, word))}\t{n}\n" for word, n in stretches.items()]
    words.write_text("".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(words), input_format="tsv", model_prefix=str(tmp_path / "words"), model_type="bpe",
        vocab_size=3 + 3200 + len(letters), character_coverage=1, normalization_rule_name="identity",
        add_dummy_prefix=False, remove_extra_whitespaces=False, split_by_unicode_script=False, num_threads=1,
        max_sentencepiece_length=vocabulary.MAX_CHARS, minloglevel=2,
    )  # fmt: skip
    trained = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "words.model"))
    symbols = {letter: symbol for symbol, letter in letters.items()}
    expected = ["".join(symbols[c] for c in trained.id_to_piece(i)) for i in range(3, 3 + 3200)]
    assert list(itertools.islice(vocabulary._best_pieces(stretches, {}, known), 3200)) == expected


def test_what_is_not_joined(tiny, tmp_path):
    """Spaces, digits, letters with signs, and ASCII that the old tokenizer spells by a byte, as it does Q. A zero-width
    joiner is part of its word."""
    assert tiny.reference.is_byte(tiny.encode("Q")[-1]) and not tiny.reference.is_byte(tiny.encode("1")[-1])
    text = tmp_path / "text.txt"
    text.write_text("ж ж1 12 12 «ж» Qж ж  ж\tж ক\u200dক\n" * 3, encoding="utf-8")
    expected = {"ж", "▁ж", "«", "»", "▁«", "ক", "\u200d", "ক\u200d", "ক\u200dক", "▁ক\u200dক"}
    assert {token.piece for token in learn_tokens(tiny, [text], len(expected))} == expected
    with pytest.raises(InputError, match=f"offers {len(expected)} new tokens"):
        learn_tokens(tiny, [text], 100)


@needs_shared
def test_real_tokens_keep_to_the_rules(learnt, llama2):
    _, _, tokens = learnt
    found = [token.piece for token in tokens]
    assert len(set(found)) == len(found) == SIZES[-1]
    assert not {llama2.reference.id_to_piece(i) for i in range(llama2.vocab_size)}.intersection(found)
    for piece in found:
        kinds = {unicodedata.category(char)[0] for char in piece.removeprefix("▁") if char not in "\u200c\u200d"}
        assert len(piece) == 1 or kinds <= {"L", "M"} or kinds <= {"P", "S"}, piece
        assert piece.rfind("▁") <= 0 and len(piece) <= 16


@needs_shared
def test_fewer_tokens_are_the_first_of_more(learnt, llama2, tmp_path):
    """And the order of the texts does not matter, nor whether they are compressed."""
    _, files, tokens = learnt
    lines = [line for path in files for line in lines_of(path)]
    random.Random(0).shuffle(lines)
    text = tmp_path / "text.txt.gz"
    text.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert learn_tokens(llama2, [text], 100) == tokens[:100]


# What they save


@needs_shared
def test_fertility_falls_with_every_size(learnt, llama2, tmp_path):
    """On the text itself and on other text of the language."""
    lang, files, tokens = learnt
    sizes = [extended(llama2, tokens[:n], tmp_path / "tokenizer.model") for n in SIZES]
    for measured in (files, [flores(lang, "devtest")]):
        found = [fertility(tokenizer, measured) for tokenizer in sizes]
        for more, fewer in itertools.pairwise(found):
            assert fewer[0] < more[0] and fewer[1] < more[1]


def test_fertility_counts_tokens_words_and_characters(tiny, tmp_path):
    text, more = tmp_path / "text.txt", tmp_path / "more.txt"
    text.write_text("one  two\u3000three\n\n four\n", encoding="utf-8")
    more.write_text("five")
    tokens = sum(len(tiny.reference.encode(line)) for line in ("one  two\u3000three", " four", "five"))
    assert fertility(tiny, [text, more]) == (tokens / 5, tokens / 19)


# Ids


@needs_shared
def test_a_new_token_stands_for_those_that_spelled_it(learnt, longest, llama2):
    """Everywhere in real text, whatever comes before and after."""
    lang, _, tokens = learnt
    for token in tokens:
        assert llama2.decode(token.spelled_by) == token.piece.replace("▁", " ")
    lines = lines_of(flores(lang, "devtest")) + lines_of(ntrex("zho-TW"))
    for new, old in zip(encoded(longest, lines), encoded(llama2, lines), strict=True):
        assert spelled_out(new, tokens, llama2) == old
    for i, token in enumerate(tokens):  # and every one is of use
        assert longest.encode_continuation(token.piece) == [llama2.vocab_size + i]


@given(st.lists(st.sampled_from([*"стар feno,12é\n\u200d", "  ", "▁", "лампа", " фермер", "the ", "<s>"])).map("".join))
@example("   фермер    the\x00 рынке")
def test_any_text_has_no_more_tokens(tiny, tiny_extended, text):
    tokens, new = tiny_extended
    ids = new.encode(text)
    assert spelled_out(ids, tokens, tiny) == tiny.encode(text)
    assert ids == new.reference.encode(text)
    assert new.decode_text(ids) == text.replace("▁", " ")


@needs_shared
def test_ids_are_the_same_in_all_libraries(learnt, longest, llama2, tmp_path):
    """transformers reads the tokenizer.json made of the model; with the model alone it adds no BOS, and joins runs of
    spaces in another order."""
    from transformers import AutoTokenizer

    lang, _, tokens = learnt
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    write_hf_tokenizer(longest.path, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == longest.vocab_size == llama2.vocab_size + len(tokens)
    lines = [line for code in (lang, "eng", "fas", "lao", "zho-TW") for line in lines_of(ntrex(code))]
    lines += ["two  spaces   three", "  before", "▁", "12 34", "\u2028 \t"]
    expected = [longest.reference.encode(line) for line in lines]
    assert encoded(longest, lines) == expected
    assert len({i for ids in expected for i in ids if i >= llama2.vocab_size}) > 3000
    assert theirs(lines)["input_ids"] == [[longest.bos_id, *ids] for ids in expected]
    assert theirs.decode(theirs(lines[0])["input_ids"], skip_special_tokens=True) == lines[0]


@needs_shared
def test_the_rest_of_the_tokenizer_stays(learnt, longest, llama2):
    _, _, tokens = learnt
    proto = ModelProto.FromString(longest.path.read_bytes())
    added = proto.pieces[llama2.vocab_size :]
    assert [piece.piece for piece in added] == [token.piece for token in tokens]
    assert all(piece.type == piece.NORMAL for piece in added)
    scores = [piece.score for piece in added]
    assert scores == sorted(set(scores), reverse=True) and scores[0] < min(p.score for p in proto.pieces[:32000])
    assert proto.trainer_spec.vocab_size == 38400
    del proto.pieces[llama2.vocab_size :]
    proto.trainer_spec.vocab_size = 32000
    assert proto == ModelProto.FromString(LLAMA2.read_bytes())


# What cannot be used


def test_what_cannot_be_used_is_named(tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n \n")
    with pytest.raises(InputError, match=r"text\.txt: offers 0 new tokens, expected 1"):
        learn_tokens(tiny, [text], 1)
    with pytest.raises(InputError, match=r"text\.txt: no words"):
        fertility(tiny, [text])
    with pytest.raises(InputError, match="0 new tokens: expected at least 1"):
        learn_tokens(tiny, [text], 0)
    text.write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match=r"text\.txt: invalid UTF-8.*convert"):
        learn_tokens(tiny, [text], 1)
    records = shutil.copy(text, tmp_path / "records.jsonl")
    with pytest.raises(InputError, match=r"records\.jsonl: expected plain text"):
        learn_tokens(tiny, [records], 1)
    with pytest.raises(InputError, match="does not exist"):
        learn_tokens(tiny, [tmp_path / "none.txt"], 1)


@needs_shared
def test_llama3_is_refused(tmp_path):
    with pytest.raises(InputError, match="only SentencePiece tokenizers"):
        learn_tokens(load_tokenizer(LLAMA3), [tmp_path / "unread.txt"], 1)
