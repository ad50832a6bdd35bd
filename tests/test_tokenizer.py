"""Ids against the reference libraries: sentencepiece and tiktoken."""

import pytest
from conftest import LLAMA2, LLAMA3, SHARED, needs_shared
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamax.files import InputError
from llamax.prompts import prompt_ids, response_ids, translation_prompt
from llamax.tokenizer import load_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PLAIN = TEXT.filter(lambda text: text and "▁" not in text)  # "▁" itself is spelled like a space


@pytest.fixture(scope="module")
def tiny(tokenizer_model):
    return load_tokenizer(tokenizer_model)


@pytest.fixture(scope="module")
def llama2():
    return load_tokenizer(LLAMA2)


@pytest.fixture(scope="module")
def llama3():
    return load_tokenizer(LLAMA3)


@given(st.lists(TEXT, max_size=4))
@example(["<s> x </s>", "", "<unk>", "a<s>"])
@example(["▁a ▁", "\x00", "\u2028\r\n", "  "])
def test_ids_are_those_of_sentencepiece(tiny, texts):
    ids, offsets = tiny.encode_batch(texts)
    for i, text in enumerate(texts):
        assert ids[offsets[i] : offsets[i + 1]].tolist() == tiny.reference.encode(text)


@needs_shared
@settings(max_examples=300)
@given(TEXT)
@example("<s> x </s><unk> <0x0A>")
def test_llama2_ids_are_those_of_sentencepiece(llama2, text):
    assert llama2.encode(text) == llama2.reference.encode(text)


@needs_shared
@settings(max_examples=300)
@given(TEXT)
@example("<|begin_of_text|> <|eot_id|> 1234567 don't  \n\n x")
def test_llama3_ids_are_those_of_tiktoken(llama3, text):
    assert llama3.encode(text) == llama3.reference.encode_ordinary(text)


@needs_shared
def test_llama3_ids_on_real_text(llama3):
    for path in sorted((SHARED / "flores101" / "dev").glob("*.dev")):
        lines = path.read_text(encoding="utf-8").split("\n")[:50]
        ids, offsets = llama3.encode_batch(lines)
        expected = llama3.reference.encode_ordinary_batch(lines)
        assert [ids[offsets[i] : offsets[i + 1]].tolist() for i in range(len(lines))] == expected, path


@needs_shared
@pytest.mark.parametrize("name", ["llama2", "llama3"])
@given(before=PLAIN, after=PLAIN)
@example(before="a b", after="é😀")
def test_first_token_of_a_character(name, before, after, request):
    """Against spelling the tokens out, byte by byte: the first that reaches into the character."""
    tokenizer = request.getfixturevalue(name)
    text = f"{before} {after}"
    ids, k = tokenizer.encode(text), len(before) + 1
    reached = 0
    for i, token in enumerate(ids):
        reached += len(spelled(tokenizer, token))
        if reached > len(text[:k].encode()) + tokenizer.prefix_chars:
            assert tokenizer.first_token_of(k, ids) == i
            return
    raise AssertionError("no token reaches the character")


def spelled(tokenizer, token):
    """The bytes of a piece."""
    if tokenizer.kind == "tiktoken":
        return tokenizer.pieces[token]
    piece = tokenizer.reference.id_to_piece(token)
    return bytes([int(piece[3:5], 16)]) if tokenizer.reference.is_byte(token) else piece.replace("▁", " ").encode()


@given(TEXT)
def test_a_response_continues_its_prompt(tiny, text):
    """No dummy prefix: prompt and response together spell their joined text and nothing more."""
    prompt = translation_prompt("x", "English", "French")
    ids = prompt_ids(tiny, prompt)[1:] + response_ids(tiny, text)[:-1]
    assert tiny.reference.decode(ids) == tiny.reference.decode(tiny.reference.encode(prompt)) + text
    assert tiny.decode(response_ids(tiny, text)[:-1]) == text


def test_what_is_no_tokenizer_is_named(tmp_path):
    wrong = tmp_path / "tokenizer.model"
    wrong.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(InputError, match=r"tokenizer.model: neither a SentencePiece model nor a tiktoken"):
        load_tokenizer(wrong)
    with pytest.raises(InputError, match="no such file"):
        load_tokenizer(tmp_path / "none.model")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"holds no tokenizer\.model"):
        load_tokenizer(tmp_path / "folder")
