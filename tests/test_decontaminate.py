"""Decontamination: what holds a test sentence is found whatever its case, punctuation and place; nothing else is."""

import functools
import re
import unicodedata

import pytest
from conftest import SENTENCES, SHARED, needs_shared
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llamax import decontaminate
from llamax.decontaminate import EvaluationSets
from llamax.files import InputError

# Scripts by the names of their characters, which owe nothing to the ranges of code points in the module.
HALF = (
    "CJK", "IDEOGRAPHIC", "VERTICAL IDEOGRAPHIC", "VERTICAL KANA", "MASU", "HANGZHOU", "HIRAGANA", "KATAKANA",
    "COMBINING KATAKANA", "HENTAIGANA", "BOPOMOFO", "YI ", "OLD CHINESE", "NUSHU",
)  # fmt: skip
SIXTH = ("THAI", "LAO ", "TIBETAN", "MYANMAR", "KHMER", "TAI LE", "NEW TAI LUE", "TAI THAM", "BALINESE", "JAVANESE")


def kind(c):
    """The character's worth in sixths of a word, or "" if it is left out, or " " if it separates."""
    name, category = unicodedata.name(c, ""), unicodedata.category(c)
    if category == "Cf" or "VARIATION SELECTOR" in name or name == "COMBINING GRAPHEME JOINER":
        return ""
    if category[0] not in "LMN" or 0x2B9 <= ord(c) <= 0x2BF:
        return " "
    return 3 if name.startswith(HALF) and "TALLY" not in name else 1 if name.startswith(SIXTH) else 6


def tokens(text):
    """[(token, worth in sixths of a word)], a character at a time."""
    text = text.casefold().replace("ı", "i").replace("i\u0307", "i")
    text = unicodedata.normalize("NFKC", text).replace(" \u0301", " ").casefold()
    out, within_word = [], False
    for c in text:
        if (worth := kind(c)) == "":
            continue
        if worth == 6 and within_word:
            out[-1] = (out[-1][0] + c, 6)
        elif worth != " ":
            out.append((c, worth))
        within_word = worth == 6
    return out


def words(run):
    return sum(worth for _, worth in run) / 6


def within(run, text):
    return any(text[i : i + len(run)] == run for i in range(len(text)))


def holds(text, sentence, ngram, minimum):
    """Whether the text holds the sentence: the definition, word for word."""
    text_lines, text, sentence = [tokens(line) for line in text.split("\n")], tokens(text), tokens(sentence)
    if not sentence:
        return False
    if sentence == text or sentence in text_lines or (words(sentence) >= minimum and within(sentence, text)):
        return True
    n = len(sentence)
    runs = [sentence[i:j] for i in range(n) for j in range(i + 1, n + 1)] if ngram else []
    return any(words(run) >= ngram and within(run, text) for run in runs)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


PIECES = [
    "a", "b", "B", "é", "É", "e\u0301", "ß", "SS", "ı", "İ", "ℂ", "7", "½", "中", "国", "ｶ", "カ", "ก", "ำ", "ก็",
    "हि", "न्", "\u200d", "\u00ad", "❤\ufe0f", "ʼ", "´", "'", "-", ",", " ", " ", " ", "\t", "\r", "\0", "\U0010ffff",
]  # fmt: skip
SENTENCE = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@st.composite
def cases(draw):
    """Sets of sentences, and texts made of the same pieces, whole sentences and parts of them."""
    sets = draw(st.lists(st.lists(SENTENCE, min_size=1, max_size=4), min_size=1, max_size=3))
    known = st.sampled_from([sentence for lines in sets for sentence in lines])
    part = known.flatmap(lambda s: st.tuples(st.just(s), st.integers(0, len(s)), st.integers(0, len(s))))
    cut = part.map(lambda p: p[0][p[1] : p[2]])
    change = st.sampled_from(
        [str, str.upper, str.swapcase, lambda s: s.replace(" ", "... "), lambda s: s.replace(" ", "\n")]
    )
    piece = st.one_of(st.sampled_from([*PIECES, "\n"]), known, known, cut)
    text = st.tuples(st.lists(piece, max_size=6), change).map(lambda t: t[1]("".join(t[0])))
    return sets, draw(st.lists(text, min_size=1, max_size=5))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=cases(), ngram=st.sampled_from([None, None, 1, 2, 3]), minimum=st.integers(1, 4), batch=st.integers(1, 40))
@example(
    case=([["a b c d e"], ["b c d"]], ["x A b\nc, D  e", "a b c d", "b c d", "e"]), ngram=None, minimum=4, batch=40
)
@example(case=([["中国中国"]], ["a中国，中国b", "中国", "中国"]), ngram=None, minimum=2, batch=9)
def test_finds_what_the_definition_says(case, ngram, minimum, batch, tmp_path, monkeypatch):
    sets, texts = case
    sets = [["zzz", *lines] for lines in sets]  # so that none is empty
    paths = [write(tmp_path / f"set{i}", *lines) for i, lines in enumerate(sets)]
    monkeypatch.setattr(decontaminate, "MINIMUM_WORDS", minimum)
    monkeypatch.setattr(decontaminate, "_BATCH", batch)
    expected = [
        next((f"set{i}" for i, lines in enumerate(sets) if any(holds(text, s, ngram, minimum) for s in lines)), None)
        for text in texts
    ]
    assert EvaluationSets(paths, ngram).find(texts) == expected


def test_every_character_is_of_the_kind_its_name_says():
    wanted = {"": decontaminate._IGNORED, " ": decontaminate._OTHER, 6: 4, 3: 5, 1: 6}
    found = decontaminate._kinds()
    assert found[ord("\n")] == decontaminate._ENDS_LINE
    normal = (c for c in map(chr, range(0x110000)) if unicodedata.is_normalized("NFKC", c) and c != "\n")
    assert not [f"U+{ord(c):04X}" for c in normal if found[ord(c)] != wanted[kind(c)]]


FLORES = SHARED / "flores101"
LANGUAGES = [
    "cmn_Hans", "cmn_Hant", "jpn", "tha", "lao", "mya", "khm", "kor", "hin", "ben", "tam", "mal", "ory", "kat", "hye",
    "amh", "ara", "urd", "heb", "ell", "rus", "mon", "tur", "azj", "vie", "lit", "deu", "fra", "eng", "yor",
]  # fmt: skip
CHANGES = {
    "verbatim": str,
    "upper case": str.upper,
    "decomposed": lambda line: unicodedata.normalize("NFD", line),
    "full width": lambda line: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in line),
    "no punctuation": lambda line: "".join(" " if unicodedata.category(c)[0] == "P" else c for c in line),
    "other punctuation": lambda line: "".join(" - " if unicodedata.category(c)[0] == "P" else c for c in line) + " !",
    "soft hyphens": lambda line: re.sub(r"(\w)(?=\w)", "\\1\u00ad", line),
    "spaces": lambda line: "\u3000" + line.replace(" ", " \u00a0 "),
}


@functools.cache
def flores(ngram=None):
    return EvaluationSets([str(FLORES / "dev"), f"test={FLORES / 'devtest'}"], ngram)


def lines_of(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@needs_shared
@pytest.mark.parametrize("change", CHANGES)
def test_planted_sentences_are_found(change):
    planted = [line for lang in LANGUAGES for line in lines_of(FLORES / "dev" / f"{lang}.dev")[3::25]]
    planted = [CHANGES[change](line) for line in planted]
    assert len(planted) == 40 * len(LANGUAGES)
    assert flores().find(planted) == ["dev"] * len(planted)
    other = " ".join(SENTENCES.values())
    assert flores().find([f"{other}.\n{line}\n{other}" for line in planted]) == ["dev"] * len(planted)
    # In running text, and broken over lines, only those that are not short.
    long = [line for line in planted if words(tokens(line)) >= decontaminate.MINIMUM_WORDS]
    assert len(long) > 0.95 * len(planted)
    assert flores().find([f"{other} {line} {other}".replace(" ", "\n") for line in long]) == ["dev"] * len(long)
    halves = [half for line in planted for half in (line[: len(line) // 2], line[len(line) // 2 :])]
    assert flores().find(halves) == [None] * len(halves), "a match went from one text to the next"


@needs_shared
def test_each_set_is_told_apart_and_the_first_one_wins():
    dev, test = FLORES / "dev" / "swh.dev", FLORES / "devtest" / "swh.devtest"
    texts = [*lines_of(dev)[:3], *lines_of(test)[:3], "\n".join([*lines_of(test)[:1], *lines_of(dev)[:1]])]
    assert flores().find(texts) == ["dev"] * 3 + ["test"] * 3 + ["dev"]
    turned = EvaluationSets([test, dev])
    assert turned.names == ["swh.devtest", "swh.dev"]
    assert turned.find(texts) == ["swh.dev"] * 3 + ["swh.devtest"] * 4


@needs_shared
@pytest.mark.parametrize("ngram", [None, 13])
def test_other_news_is_not_found(ngram):
    files = sorted((SHARED / "ntrex" / "NTREX-128").iterdir())
    texts = [line for file in files for line in lines_of(file)][:100_000]
    assert len(texts) == 100_000
    assert [text for text, name in zip(texts, flores(ngram).find(texts), strict=True) if name] == []


LONG = {  # of scripts that count a word, a half, a sixth for a token: 26 words each
    "Latin": " ".join(f"Word{i}" for i in range(26)),
    "Han": "".join(chr(0x4E00 + 3 * i) for i in range(52)),
    "Thai": "".join(chr(0x0E01 + i % 40) for i in range(156)),
}


@pytest.mark.parametrize(("script", "per_word"), [("Latin", 1), ("Han", 2), ("Thai", 6)])
def test_13_words_in_common_are_enough_and_12_are_not(script, per_word, tmp_path):
    sets = EvaluationSets([write(tmp_path / "news", "Something else.", LONG[script], "And more.")], ngram=13)
    units = LONG[script].split() if script == "Latin" else list(LONG[script])
    joint = " " if script == "Latin" else ""
    n, last = 13 * per_word, len(units)
    for start in (0, 5, last - n):
        assert sets.find([f"x, {joint.join(units[start : start + n])}! y"]) == ["news"]
        assert sets.find([f"x, {joint.join(units[start : start + n - 1])}! y"]) == [None]
    assert sets.find([LONG[script][2:-2]]) == ["news"]
    assert EvaluationSets([tmp_path / "news"]).find([LONG[script][2:-2], f"y {LONG[script]} y"]) == [None, "news"]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("one two three four five six seven", "one two three four five six seven eight"),
        ("一二三四五六七八九十百千万年月", "一二三四五六七八九十百千万年月日"),
        ("ก" * 47, "ก" * 48),
    ],
)
def test_short_sentences_count_as_a_whole_line_or_text(short, long, tmp_path):
    sets = EvaluationSets([write(tmp_path / "set", short)])
    whole = [short, f"- {short.upper()}!", f"He said:\n{short}.\nAnd left.", f"a\r\n{short}\r\nb"]
    assert sets.find([*whole, f"a {short}", f"{short} b", f"a\n{short} b"]) == ["set"] * 4 + [None] * 3
    assert sets.find([short.replace(" ", "\n"), short.replace(" ", "\n") + "\nb"]) == [
        "set",
        None if " " in short else "set",
    ]
    sets = EvaluationSets([write(tmp_path / "set", long)])
    assert sets.find([f"a {long} b"]) == sets.find([f"a\n{long} b"]) == sets.find([f"a {long}"]) == ["set"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("İstanbul", "istanbul"),
        ("İSTANBUL KIŞ", "i\u0307stanbul kış"),
        ("Straße", "STRASSE"),
        ("ℂ ℕ", "c n"),
        ("it´s", "it's"),
        ("it’s", "it s"),
        ("oʻzbek", "o‘zbek"),
        ("می\u200cخواهم", "میخواهم"),
        ("ﬁn", "fin"),
        ("ΌΣΟΣ", "όσος"),
        ("❤\ufe0f one", "one"),
        ("ｶﾞ", "ガ"),
        ("日 本", "日本"),
        ("กำ", "ก ํา"),
    ],
)
def test_spellings_that_are_one(one, other, tmp_path):
    assert EvaluationSets([write(tmp_path / "set", one)]).find([other]) == ["set"]
    assert EvaluationSets([write(tmp_path / "set", other)]).find([one]) == ["set"]


def test_words_are_whole(tmp_path):
    sets = EvaluationSets([write(tmp_path / "set", "one two three four five six seven eight")])
    found = sets.find(["none two three four five six seven eight", "one two three four five six seven eighty"])
    assert found == [None, None]
    assert sets.find(["onetwo three four five six seven eight", "one two three four fivesix seven eight"]) == [None] * 2


def test_no_text_and_odd_text(tmp_path):
    sets = EvaluationSets([write(tmp_path / "set", "Hello.")])
    assert sets.find([]) == []
    assert sets.find(["", "\n", "\0", "\ud800", "\ud800\nhello", ""]) == [None] * 4 + ["set", None]


def test_files_of_a_folder(tmp_path):
    write(tmp_path / "sets" / "a.txt", "\ufeffone", "", "two\r")
    write(tmp_path / "sets" / "deeper" / "b=c.txt", "three")
    write(tmp_path / "sets" / ".hidden", "four")
    write(tmp_path / "sets" / ".git" / "five", "five")
    texts = ["one", "two", "three", "four", "five"]
    assert EvaluationSets([f"{tmp_path}/sets/"]).find(texts) == ["sets"] * 3 + [None] * 2
    named = [
        f"mine={tmp_path / 'sets' / 'a.txt'}",
        tmp_path / "sets" / "deeper" / "b=c.txt",
        f"mine={tmp_path}/sets/a.txt",
    ]
    assert EvaluationSets(named).find(texts) == ["mine"] * 2 + ["b=c.txt"] + [None] * 2


def test_errors_are_one_line_with_the_remedy(tmp_path):
    write(tmp_path / "a" / "dev", "one")
    write(tmp_path / "b" / "dev", "two")
    write(tmp_path / "blank", "", " ", "...")
    write(tmp_path / "table" / "en-fr.tsv", "en\tfr", "one\tun")
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin1").write_bytes(b"good\nca\xe9\n")
    for paths, saying in [
        (["missing"], ("missing", "does not exist", "check the path")),
        (["name=missing"], ("name=missing", "does not exist")),
        (["name="], ("name=", "does not exist")),
        ([f"={tmp_path / 'a'}"], ("does not exist",)),
        ([tmp_path / "latin1"], (tmp_path / "latin1", "line 2", "not UTF-8", "save it as UTF-8")),
        ([tmp_path / "a", tmp_path / "blank"], (tmp_path / "blank", "holds no sentence")),
        ([tmp_path / "empty"], (tmp_path / "empty", "holds no sentence")),
        ([tmp_path / "a" / "dev", tmp_path / "b" / "dev"], (tmp_path / "a" / "dev", tmp_path / "b", "NAME=PATH")),
        ([tmp_path / "table"], (tmp_path / "table" / "en-fr.tsv", "a table", "cut")),
    ]:
        with pytest.raises(InputError) as error:
            EvaluationSets(paths)
        message = str(error.value)
        assert message.startswith("--decontaminate ") and "\n" not in message
        assert all(str(part) in message for part in saying), message
