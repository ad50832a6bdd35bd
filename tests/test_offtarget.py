"""Off-target rates against models of known probabilities and against Flores' own lines; empty and repeated outputs."""

import pytest
from conftest import SHARED, needs_shared
from hypothesis import given
from hypothesis import strategies as st
from test_cleaning import LID, write_model

from llamax.cleaning import length, repetition
from llamax.files import InputError, fingerprint
from llamax.languages import load
from llamax.offtarget import Identifier, empty, repeated


def flores(code, split="devtest"):
    path = SHARED / "flores101" / split / f"{getattr(load()[code], f'flores101_{split}')}.{split}"
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


@pytest.fixture
def tiny(tmp_path):
    """Each word has the label it is named by, or is taken for another; </s>, alone in an empty line, looks English."""
    words = {
        "english": {"eng_Latn": 0.9, "fra_Latn": 0.1},
        "french": {"fra_Latn": 0.9, "eng_Latn": 0.1},
        "chinese": {"cmn_Hani": 0.9, "eng_Latn": 0.1},
        "croatian": {"hrv_Latn": 0.9, "bos_Latn": 0.1},
        "bosnian": {"bos_Latn": 0.9, "hrv_Latn": 0.1},
        "serbo-croatian": {"hbs_Latn": 0.9, "hrv_Latn": 0.1},
        "faroese": {"fao_Latn": 0.9, "eng_Latn": 0.1},
    }
    labels = dict.fromkeys((label for shares in words.values() for label in shares), 0.1)
    words["</s>"] = {**labels, "eng_Latn": 0.2}
    return Identifier(write_model(tmp_path / "tiny.bin", words))


def line(word):
    return f"{word} {word} {word}"


LINES = [line("french")] * 5 + [line("english")] * 2 + ["french english english", "", "unknown"]


# Rates


@pytest.mark.parametrize(
    ("lines", "src", "tgt", "expected"),
    [
        (LINES, "en", "fr", (30, 50)),
        (LINES, "fr", "en", (50, 30)),
        (LINES, "zh", "hr", (0, 0)),
        (LINES, "fao_Latn", "ha", (0, None)),  # no label for Hausa
        ([line("chinese")], "zh", "zhtrad", (100, 100)),  # one label for both
        ([line("serbo-croatian")], "hr", "bs", (100, 100)),
        ([line("serbo-croatian")], "sr", "bs", (None, 100)),  # hbs_Latn is not Serbian in its own letters
        ([line("croatian")] * 3 + [line("bosnian")], "hr", "bs", (75, 25)),
        (["french </s> english english english"], "fr", "en", (0, 100)),  # the whole line is read
        (["french\nenglish\u2028english\renglish"], "fr", "en", (0, 100)),
        (["", "  ", "\u200b", "\0", "</s>", "unknown unknown"], "en", "fr", (0, 0)),
        ([], "en", "fr", (0, 0)),
    ],
)
def test_rates(lines, src, tgt, expected, tiny):
    assert tiny.rates(lines, src, tgt) == pytest.approx(expected)


def test_rows_say_what_the_references_have(tiny, tmp_path):
    english = tiny.recognised([line("english")] * 50, "en")
    french = tiny.recognised([line("french")] * 48 + [line("english")] * 2, "fr")
    rows = tiny.rows(LINES, english, french)
    digest = fingerprint(tmp_path / "tiny.bin")["blake2b"]
    assert tiny.digest == digest
    signature = f"lid:tiny-{digest[:8]}|fasttext-predict:0.9.2.4|references:"
    assert rows == [
        {"metric": "R_src", "score": 30.0, "n": 10, "signature": signature + "4.00"},
        {"metric": "R_tgt", "score": 50.0, "n": 10, "signature": signature + "96.00"},
    ]


@pytest.mark.parametrize(
    ("src", "tgt", "metrics"),
    [
        ("en", "fr", ["R_src", "R_tgt"]),
        ("en", "ha", []),  # Hausa has no label, and is taken for English
        ("fr", "ha", ["R_src"]),
        ("ha", "fr", ["R_tgt"]),
        ("en", "no", ["R_src"]),  # 89 % recognised
        ("no", "en", ["R_tgt"]),
        ("is", "fr", ["R_src", "R_tgt"]),  # 90 % recognised, the others taken for French
        ("is", "fao_Latn", []),  # 60 % taken for Icelandic
        ("en", "fao_Latn", ["R_src"]),
        ("zh", "zhtrad", []),  # one label for both
        ("en", "zhtrad", ["R_src", "R_tgt"]),
    ],
)
def test_rates_that_would_mislead_are_not_given(src, tgt, metrics, tmp_path):
    labels = {"en": "eng_Latn", "fr": "fra_Latn", "no": "nob_Latn", "is": "isl_Latn", "zh": "cmn_Hani"}
    labels = {**labels, "zhtrad": "cmn_Hani", "fao_Latn": "fao_Latn", "ha": "eng_Latn"}
    names = list(dict.fromkeys(labels.values()))
    identifier = Identifier(write_model(tmp_path / "m.bin", {name: {name: 1} for name in names}))
    lines = {code: [label] * 100 for code, label in labels.items()}
    lines["no"][:11] = ["isl_Latn"] * 11
    lines["is"][:10] = ["fra_Latn"] * 10
    lines["fao_Latn"][:60] = ["isl_Latn"] * 60
    known = {code: identifier.recognised(found, code) for code, found in lines.items()}
    assert [row["metric"] for row in identifier.rows(lines[tgt], known[src], known[tgt])] == metrics


def test_recognised(tiny):
    lines = [line("croatian")] * 6 + [line("bosnian")] * 2 + [line("serbo-croatian"), ""]
    found = tiny.recognised(lines, "bs")
    assert (found.code, found.rate, found.usable) == ("bs", 30, False)
    assert found.taken_for == (("hrv_Latn", 60), ("nothing", 10))
    assert str(found) == "bs: 30.0 % recognised, taken for hrv_Latn 60.0 %, nothing 10.0 %"
    unlabelled = tiny.recognised(lines, "ha")
    assert (unlabelled.rate, unlabelled.usable) == (None, False)
    assert str(unlabelled).startswith("ha: no label, taken for hrv_Latn 60.0 %, bos_Latn 20.0 %")


def test_caveats(tiny):
    words = {"en": "english", "fr": "french", "zh": "chinese", "zhtrad": "chinese", "hr": "croatian", "bs": "croatian"}
    known = [tiny.recognised([line(word)] * 4, code) for code, word in words.items()]
    known.append(tiny.recognised([line("english")], "ha"))
    assert tiny.caveats(known) == [
        "no label: ha",
        "not told apart: zh zhtrad share the label cmn_Hani",
        "not told apart: hr bs share the label hbs_Latn",
        "bs: 0.0 % recognised, taken for hrv_Latn 100.0 %",
    ]
    assert tiny.caveats(known[:3]) == []


def test_no_model(tmp_path):
    (tmp_path / "x.bin").write_text("text")
    with pytest.raises(InputError, match=r"--lid-model .*x\.bin: no whole fastText model"):
        Identifier(tmp_path / "x.bin")


# lid.176 on Flores' lines


@pytest.fixture(scope="module")
def lid():
    return Identifier(LID)


@needs_shared
def test_lid176_knows_these_languages(lid):
    """The numbers of lines were counted apart from this code, from fasttext.predict alone."""
    assert " ".join(lid.unlabelled) == "ff ha ig kam kea lg ln luo mi ns ny om sn umb wo xh zu"
    counts = {"de": 1012, "nl": 1009, "ku": 1009, "zh": 984, "zhtrad": 983, "bs": 223, "gl": 788, "so": 88}
    for code, count in counts.items():
        found = lid.recognised(flores(code), code)
        assert found.rate == pytest.approx(100 * count / 1012), code
        assert found.usable == (count > 0.9 * 1012), code
    assert lid.rates(["\u200b", ""], "en", "km") == (0, 0)  # a space without width is Khmer, else


@needs_shared
def test_lid176_rates_of_copied_and_translated_lines(lid):
    """Source sentences that were left as they are show in R_src, and only where lid.176 tells the two languages."""
    known = {code: lid.recognised(flores(code), code) for code in ("en", "de", "es", "ast", "hr", "bs", "zh", "zhtrad")}

    def rates(src, tgt):
        lines = [*flores(src)[:253], *flores(tgt)[253:]]  # a quarter is copied
        return {row["metric"]: row["score"] for row in lid.rows(lines, known[src], known[tgt])}

    assert rates("en", "de") == pytest.approx({"R_src": 25, "R_tgt": 75}, abs=0.2)
    assert rates("de", "zh") == pytest.approx({"R_src": 25, "R_tgt": 73}, abs=0.5)
    assert rates("es", "ast") == rates("hr", "bs") == rates("zh", "zhtrad") == {}
    assert list(rates("en", "bs")) == list(rates("en", "ast")) == ["R_src"]
    assert list(rates("ast", "en")) == ["R_tgt"]


# Empty and repeated outputs


def test_empty():
    lines = ["", " ", "\t", "\u3000", "\u200b\u200d", "\ufeff", "\0", "\u2028", "\r"]
    assert empty(lines) == len(lines)
    assert empty([*lines, ".", "a", "\u200bं", "你", " x "]) == len(lines)


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("The cat sat on the mat and looked at me. The cat sat on the mat and looked at me.", True),
        ("The cat sat on the mat and looked at me.The cat sat on the mat and looked at me.", True),
        ("猫坐在垫子上看着我。" * 3, True),
        ("猫坐在垫子上看着我，狗也在那里。", False),
        ("The cat sat on the mat and looked at me." + " no" * 40, True),
        ("The cat sat on the mat and looked at me." + "!" * 150, True),
        ("The cat sat on the mat, the dog sat on the rug, and they did not look at one another.", False),
        ("a b c d e f g h i j k l m n o a b c d e", False),  # a quarter, and no more
        ("a b c d e f g h i j k l m n a b c d e", True),
        ("ha ha ha ha", False),
        ("", False),
    ],
)
def test_repeated(text, counted):
    assert repeated([text]) == counted


letters = st.text(st.sampled_from("ab c猫።ᄀ가।\u2019"), max_size=40)


@given(st.lists(letters, max_size=3), letters, st.integers(0, 3))
def test_repeated_is_either_share_above_a_quarter(parts, joint, times):
    """The definition, without what spares most lines the exact count."""
    text = joint.join([*parts, *parts[:1] * times])
    assert repeated([text]) == (repetition(text, True) > 0.25 or repetition(text, False) > 0.25)


@pytest.mark.parametrize(("first", "n"), [("Ѐ", 30), ("一", 10)])
def test_repeated_wherever_it_stands(first, n):
    """n characters twice, each else once, after 0 to n other ones: as short as a repetition can be."""
    text = "".join(chr(ord(first) + i) for i in range(2 * n))
    for i in range(n + 1):
        assert repeated([text[:i] + text[n:] * 2]) == 1
        assert repeated([text[:i] + text[n:] + text[n + 1 :]]) == 0


@needs_shared
def test_repeated_counts_flores_lines_only_if_they_are_doubled():
    """In any language, whatever separates its words: 6 of the 102,000 lines, one of them a sentence said twice."""
    found = {code: repeated(flores(code)) for code in load()}
    assert {code: n for code, n in found.items() if n} == {"pl": 1, "kn": 1, "pt": 1, "vi": 1, "kea": 1, "my": 1}
    for code in ("en", "ta", "th", "zh", "ja"):
        lines = [text for text in flores(code)[::4] if length(text) >= 30]
        assert repeated([text * 2 for text in lines]) == repeated([f"{text} {text}" for text in lines]) == len(lines)
