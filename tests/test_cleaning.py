"""Every cleaning flag: what it changes, what it drops at its border, and what it leaves alone in real text.

The models of language identification are real fastText files: lid.176.ftz, and tiny ones written here, of which the
probabilities are known.
"""

import concurrent.futures
import json
import math
import multiprocessing
import re
import struct

import pytest
from conftest import SHARED, needs_shared

from llamax import cleaning
from llamax.cleaning import Cleaning, length, repetition
from llamax.files import InputError, Parser
from llamax.languages import load
from llamax.records import Unusable

LID = SHARED / "lid" / "lid.176.ftz"


def parse(*flags, pairs=True):
    parser = Parser()
    cleaning.add_arguments(parser, pairs)
    return parser.parse_args([str(flag) for flag in flags])


def make(*flags, pairs=True):
    args = parse(*flags, pairs=pairs)
    assert cleaning.check(args) == []
    return Cleaning(args)


def reason(call, *args, **options):
    """None if the call gives a value, else (reason, detail) of its Unusable."""
    try:
        call(*args, **options)
    except Unusable as why:
        return why.args
    return None


def flores(code, every=1):
    path = SHARED / "flores101" / "dev" / f"{load()[code].flores101_dev}.dev"
    return path.read_text(encoding="utf-8").strip("\n").split("\n")[::every]


def write_model(path, words, kind=3, loss=3):
    """A fastText model of one vector a word: softmax of the words' mean. words: {word: {label: probability}}."""
    labels = list(dict.fromkeys(label for shares in words.values() for label in shares))
    n = len(labels)
    settings = (n, 5, 5, 1, 5, 1, loss, kind, 0, 0, 0, 100)  # by default softmax; no buckets, no subwords
    data = struct.pack("<14i d", 793712314, 12, *settings, 1e-4)
    data += struct.pack("<3i2q", len(words) + n, len(words), n, 100, -1)
    data += b"".join(word.encode() + struct.pack("<xqb", 1, 0) for word in words)
    data += b"".join(f"__label__{label}".encode() + struct.pack("<xqb", 1, 1) for label in labels)
    logits = [math.log(shares.get(label, 1e-9)) for shares in words.values() for label in labels]
    data += struct.pack(f"<b2q{len(logits)}f", 0, len(words), n, *logits)
    data += struct.pack(f"<b2q{n * n}f", 0, n, n, *(float(i == j) for i in range(n) for j in range(n)))
    path.write_bytes(data)
    return path


@pytest.fixture
def tiny(tmp_path):
    """A model with labels like GlotLID's and its ancestors'; each word's name tells what it is for."""
    words = {
        "french": {"fra_Latn": 0.98, "eng_Latn": 0.02},
        "french60": {"fra_Latn": 0.6, "eng_Latn": 0.4},
        "balkan": {"hrv_Latn": 0.4, "bos_Latn": 0.3, "hbs_Latn": 0.25, "srp_Cyrl": 0.05},
        "chinese": {"cmn_Hani": 0.9, "yue_Hani": 0.1},
        "norwegian": {"nob_Latn": 0.3, "nor_Latn": 0.3, "nno_Latn": 0.4},
        "estonian": {"ekk_Latn": 1},
        "faroese": {"fao_Latn": 0.9, "isl_Latn": 0.1},
        "kurdish": {"ckb_Arab": 0.7, "kmr_Latn": 0.3},
        "noise": {"zxx_Zzzz": 1},
    }
    return write_model(tmp_path / "tiny.bin", words)


# Off, arguments, manifest


@pytest.mark.parametrize("pairs", [False, True])
def test_everything_is_off_by_default(pairs):
    cleaner = make(pairs=pairs)
    assert not cleaner.active and cleaner.unchecked == ()
    odd = " a\u0301 schÃ¶n \ufeff ﬁ a a a a a a a a a a a a "
    assert cleaner.text(odd, "fr") == odd
    assert cleaner.pair(odd, odd, "fr", "zh") == (odd, odd)
    assert set(cleaning.arguments(parse(pairs=pairs)).values()) == {None}


@pytest.mark.parametrize(
    "flags",
    [["--normalize", "NFC"], ["--fix-text"], ["--min-chars", 1], ["--max-repetition", 0], ["--drop-identical"]],
)
def test_any_flag_makes_it_active(flags):
    assert make(*flags).active


def test_arguments_for_the_manifest(tiny, tmp_path):
    args = parse(
        "--normalize", "NFC", "--fix-text", "--lid-model", tiny, "--lid-thresholds", "fra=0.25", "bos_Latn=0",
        "--min-chars", 3, "--max-repetition", 0,
    )  # fmt: skip
    assert cleaning.check(args) == []
    found = cleaning.arguments(args)
    assert re.fullmatch(r"ftfy \d+\.\d+.*", found.pop("fix_text"))
    digest = found.pop("lid_model")
    assert re.fullmatch("[0-9a-f]{32}", digest)
    assert json.loads(json.dumps(found)) == found == {
        "normalize": "NFC", "lid_threshold": 0.5, "lid_thresholds": {"fr": 0.25, "bs": 0}, "min_chars": 3,
        "max_repetition": 0, "max_length_ratio": None, "drop_identical": None,
    }  # fmt: skip
    args.lid_model = write_model(tmp_path / "other.bin", {"a": {"fra_Latn": 1}})
    assert cleaning.arguments(args)["lid_model"] != digest


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--lid-threshold", "1.5", "--lid-model", "M"], ["--lid-threshold 1.5: expected a share from 0 to 1"]),
        (["--lid-threshold", "nan", "--lid-model", "M"], ["--lid-threshold nan: expected a share from 0 to 1"]),
        (["--lid-threshold", "0.5"], ["--lid-threshold without --lid-model"]),
        (["--lid-thresholds", "fr=0.5"], ["--lid-thresholds without --lid-model"]),
        (["--lid-model", "nowhere.bin"], ["--lid-model nowhere.bin: does not exist"]),
        (["--lid-model", "."], ["--lid-model .: is a folder"]),
        (["--lid-model", "M", "--lid-thresholds", "fr"], ["--lid-thresholds fr: expected CODE=P"]),
        (["--lid-model", "M", "--lid-thresholds", "fr=x"], ["--lid-thresholds fr=x: expected CODE=P"]),
        (["--lid-model", "M", "--lid-thresholds", "fr=1.1"], ["--lid-thresholds fr=1.1: expected CODE=P"]),
        (["--lid-model", "M", "--lid-thresholds", "xx=0.1"], ["--lid-thresholds xx=0.1: language 'xx': not known"]),
        (["--lid-model", "M", "--lid-thresholds", "zho=0.1"], ["'zho': stands for zh"]),
        (["--lid-model", "M", "--lid-thresholds", "fr=0.1", "fra=0.2"], ["fra=0.2: a second one for fr"]),
        (["--min-chars", "0"], ["--min-chars 0: expected at least 1"]),
        (["--max-repetition", "-0.1"], ["--max-repetition -0.1: expected a share from 0 to 1"]),
        (["--max-length-ratio", "0.9"], ["--max-length-ratio 0.9: expected at least 1"]),
        (["--min-chars", "0", "--lid-threshold", "2"], ["--min-chars", "--lid-threshold 2", "without --lid-model"]),
    ],
)
def test_check_finds_every_problem(flags, found, tiny):
    problems = cleaning.check(parse(*(tiny if flag == "M" else flag for flag in flags)))
    assert all("\n" not in problem for problem in problems)
    for text in found:
        assert sum(text in problem for problem in problems) == 1, problems
    assert len(problems) == len(found)


def test_pair_flags_are_for_pairs_only():
    with pytest.raises(InputError, match="--drop-identical"):
        parse("--drop-identical", pairs=False)


# What is changed


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("NFC", "e\u0301 \u1100\u1161 が", "é 가 が"),
        ("NFC", "ﬁ １０² ，น้ำ", "ﬁ １０² ，น้ำ"),
        ("NFKC", "ﬁ １０² ，™ ｶﾞ", "fi 102 ,TM ガ"),
        ("NFKC", "น้ำ", "น\u0e49\u0e4dา"),
    ],
)
def test_normalize(form, text, expected):
    cleaner = make("--normalize", form)
    assert cleaner.text(text, "en") == expected
    assert cleaner.pair(text, "x", "en", "th") == (expected, "x")
    assert cleaner.pair("x", text, "en", "th") == ("x", expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("schÃ¶n", "schön"),
        ("â€œHuh?â€\x9d", "“Huh?”"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ("B&amp;B &eacute;t&eacute;", "B&B été"),
        ("l\x92escenari", "l’escenari"),
        ("\ufeffa\x08b\x1b[31mc\x1b[0m", "abc"),
        ("ﬁn, eﬃcient", "fin, efficient"),
        ("one\r\ntwo\u2028three", "one\ntwo\nthree"),
    ],
)
def test_fix_text_repairs(text, expected):
    cleaner = make("--fix-text")
    assert cleaner.text(text, "en") == expected
    assert cleaner.text(expected, "en") == expected
    assert cleaner.pair(text, text, "en", "fr") == (expected, expected)


@pytest.mark.parametrize(
    "text",
    [
        "„so“, «là», l’été, ‘x’, “y”",
        "你好，世界！（完）　ＡＢ，ｶﾞ",
        "e\u0301 \u1100\u1161 ﷺ x² 5 µm ½",
        "<p>AT&amp;T</p>",
        "می‌خواهم 👩‍🌾 क्‍ष",
        "น้ำ ນ້ຳ",
        "São Paulo, à la carte, Ærø, Ångström, NÃO",
        "if a < b && c &",
    ],
)
def test_fix_text_leaves_what_is_right(text):
    assert make("--fix-text").text(text, "en") == text


@needs_shared
def test_fix_text_changes_only_broken_lines_of_102_languages():
    """Flores-101 has some broken lines itself: entities, UTF-8 read as Windows-1252, C1 control characters."""
    broken = re.compile("&(amp|apos|quot|lt|gt|#[0-9]+);|[\x80-\x9f]|[ÂÃ][\x80-\xff]|â€")
    cleaner = make("--fix-text")
    lines = changed = 0
    for code in load():
        for line in flores(code, every=5):
            lines += 1
            fixed = cleaner.text(line, code)
            assert fixed == line or broken.search(line), (code, line, fixed)
            changed += fixed != line
    assert lines == 102 * 200
    assert 1 <= changed <= 40, changed


def test_text_of_nothing_but_what_is_removed_is_too_short():
    assert reason(make("--fix-text").text, "\ufeff\x08 ", "en") == ("too short", "text: 0 characters")


# What is dropped


@pytest.mark.parametrize(
    ("text", "kept"), [("abcd", False), ("abcde", True), (" abcd\n", False), ("ab de", True), ("你好你好", False)]
)
def test_min_chars(text, kept):
    cleaner = make("--min-chars", 5)
    detail = f"{len(text.strip())} characters"
    assert reason(cleaner.text, text, "en") == (None if kept else ("too short", f"text: {detail}"))
    assert reason(cleaner.pair, text, "long enough", "en", "fr") == (None if kept else ("too short", f"src: {detail}"))
    assert reason(cleaner.pair, "long enough", text, "en", "fr") == (None if kept else ("too short", f"tgt: {detail}"))


FIVE, OTHER = "aa bb cc dd ee", "ff gg hh ii jj"
THAI = "กขคฆงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพฟภ"  # 30 letters
HAN = "天地玄黃宇宙洪荒日月"  # 10 ideographs, as long as 30 letters


@pytest.mark.parametrize(
    ("text", "spaces", "share"),
    [
        ("", True, 0),
        (FIVE, True, 0),
        (f"{FIVE} {OTHER}", True, 0),
        (f"{FIVE} {FIVE}", True, 1 / 2),
        (f"{FIVE}\n{OTHER}\t{FIVE} {OTHER}", True, 1 / 2),
        (f"{FIVE} {OTHER} {FIVE}", True, 1 / 3),
        (f"{FIVE} {OTHER} aa bb cc dd", True, 0),
        (f"{FIVE} ffffffffff {FIVE}", True, 1 / 3),  # of the characters, not of the words
        ("buy " * 10, True, 1 / 2),
        ("buy " * 100, True, 95 / 100),
        (THAI, False, 0),
        (THAI + THAI, False, 1 / 2),
        (THAI + THAI[:-1], False, 0),
        (HAN + HAN, False, 1 / 2),
        (HAN + HAN[:-1], False, 0),
        ("哈" * 100, False, 90 / 100),
    ],
)
def test_repetition_by_hand(text, spaces, share):
    assert repetition(text, spaces) == pytest.approx(share, abs=1e-12)


def test_max_repetition_at_its_border():
    twice, less = f"{FIVE} {FIVE}", f"{FIVE} {FIVE} x"
    half = make("--max-repetition", 0.5)
    assert half.text(twice, "en") == twice
    cleaner = make("--max-repetition", 0.4999)
    assert reason(cleaner.text, twice, "en") == ("repetitive", "text: 0.500")
    assert reason(cleaner.text, less, "en") is None
    assert reason(cleaner.text, HAN + HAN, "zhtrad") == ("repetitive", "text: 0.500")
    assert reason(cleaner.text, HAN + HAN, "en") is None  # one word
    assert reason(cleaner.pair, twice, "x", "en", "fr") == ("repetitive", "src: 0.500")
    assert reason(cleaner.pair, "x", twice, "en", "fr") == ("repetitive", "tgt: 0.500")
    assert reason(make("--max-repetition", 0).text, f"{FIVE} {OTHER}", "en") is None


@needs_shared
def test_running_text_does_not_count_as_repetitive():
    """30 lines of Flores-101, which are of one article or a few, in every language, stay far below Gopher's 0.15."""
    worst = {code: repetition("\n".join(flores(code)[:30]), row.spaces) for code, row in load().items()}
    assert max(worst.values()) < 0.05, max(worst, key=worst.get)
    assert max(worst[code] for code, row in load().items() if not row.spaces) > 0  # they are measured at all


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc d", 5),
        ("é", 1),
        ("中", 3),
        ("𠀀", 3),
        ("，", 2),
        ("か", 2),
        ("カ", 2),
        ("한", 2),
        ("ሀ", 2),
        ("ก", 1),
        ("a中", 4),
    ],
)
def test_length(text, expected):
    assert length(text) == expected


def test_max_length_ratio_at_its_border():
    cleaner = make("--max-length-ratio", 2)
    assert cleaner.pair("abcdef", "abc", "en", "fr") == ("abcdef", "abc")
    assert cleaner.pair("abcdef", "中", "en", "zh") == ("abcdef", "中")
    assert reason(cleaner.pair, "abcdefg", "abc", "en", "fr") == ("length ratio", "2.33: src 7, tgt 3")
    assert reason(cleaner.pair, "abc", "中中中", "en", "zh") == ("length ratio", "3.00: src 3, tgt 9")
    assert cleaner.text("abcdef", "en") == "abcdef"


@needs_shared
@pytest.mark.parametrize(
    "pair", ["en-zh", "zhtrad-en", "en-ja", "ko-en", "zh-ja", "zh-th", "en-am", "en-de", "de-ru", "ar-fr", "hi-sw"]
)
def test_translations_are_in_proportion(pair):
    one, other = pair.split("-")
    sides = list(zip(flores(one), flores(other), strict=True))
    for ratio, most in ((2, 0.01), (3, 0)):
        cleaner = make("--max-length-ratio", ratio)
        dropped = [why for src, tgt in sides if (why := reason(cleaner.pair, src, tgt, one, other))]
        assert len(dropped) <= most * len(sides), dropped
    assert len(sides) == 997


@pytest.mark.parametrize(
    ("src", "tgt", "kept"),
    [
        ("Same text", "Same text", False),
        ("Same  TEXT ", "same\ttext", False),
        ("Straße", "STRASSE", False),
        ("Same text", "Same text.", True),
        ("sametext", "same text", True),
    ],
)
def test_drop_identical(src, tgt, kept):
    expected = None if kept else ("identical sides", f"{len(src)} characters")
    assert reason(make("--drop-identical").pair, src, tgt, "de", "en") == expected
    assert reason(make("--drop-identical", "--fix-text").pair, src, tgt + "\ufeff", "de", "en") == expected


# Language identification


@pytest.mark.parametrize(
    ("text", "lang", "detail"),
    [
        ("french", "fr", None),
        ("french", "en", "text: P(en) 0.020, found fra_Latn 0.980"),
        ("french60", "fr", None),
        ("french60", "en", "text: P(en) 0.400, found fra_Latn 0.600"),
        ("french\nfrench", "fr", None),
        ("balkan", "bs", None),  # 0.3 + 0.25 of the macro-language
        ("balkan", "hr", None),
        ("balkan", "sr", "text: P(sr) 0.050, found hrv_Latn 0.400"),
        ("chinese", "zh", None),
        ("chinese", "zhtrad", None),
        ("chinese", "yue_Hani", "text: P(yue_Hani) 0.100, found cmn_Hani 0.900"),
        ("norwegian", "no", None),
        ("norwegian", "nno_Latn", "text: P(nno_Latn) 0.400, found nno_Latn 0.400"),
        ("estonian", "et", None),
        ("faroese", "fao_Latn", None),  # a language outside of the table
        ("faroese", "is", "text: P(is) 0.100, found fao_Latn 0.900"),
        ("kurdish", "ku", None),
        ("noise", "fr", "text: P(fr) 0.000, found zxx_Zzzz 1.000"),
        ("unknownword", "fr", "text: P(fr) 0.000, found no language"),
        ("french", "ha", None),  # no label: not checked
        ("french", "eus_Latn", None),
    ],
)
def test_labels_and_languages(text, lang, detail, tiny):
    expected = detail and ("wrong language", detail)
    assert reason(make("--lid-model", tiny).text, text, lang) == expected


def test_unchecked_languages_are_told(tiny):
    cleaner = make("--lid-model", tiny)
    labelled = {"fr", "en", "hr", "bs", "sr", "zh", "zhtrad", "no", "et", "is", "ku"}
    assert set(cleaner.unchecked) == set(load()) - labelled


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--lid-threshold", 0.5995], True),
        (["--lid-threshold", 0.6005], False),
        (["--lid-threshold", 0.7, "--lid-thresholds", "fra_Latn=0.59", "en=0.9"], True),
        (["--lid-threshold", 0.1, "--lid-thresholds", "en=0", "French=0.61"], False),
        (["--lid-threshold", 1, "--lid-thresholds", "fr=0"], True),
        (["--lid-threshold", 0], True),
    ],
)
def test_thresholds(flags, kept, tiny):
    assert (reason(make("--lid-model", tiny, *flags).text, "french60", "fr") is None) == kept


def test_both_sides_are_identified_but_not_a_mixed_source(tiny):
    cleaner = make("--lid-model", tiny)
    assert cleaner.pair("french", "balkan", "fr", "hr") == ("french", "balkan")
    assert reason(cleaner.pair, "balkan", "balkan", "fr", "hr")[1].startswith("src: P(fr) 0.000")
    assert reason(cleaner.pair, "french", "french", "fr", "hr")[1].startswith("tgt: P(hr) 0.000")
    assert reason(cleaner.pair, "balkan", "balkan", "fr", "hr", mixed=True) is None
    assert reason(cleaner.pair, "french", "french", "fr", "hr", mixed=True)[1].startswith("tgt: P(hr) 0.000")


def in_worker(lang):
    return reason(_cleaner.text, "french", lang)


def test_forked_workers_share_the_model(tiny):
    global _cleaner
    _cleaner = make("--lid-model", tiny, "--fix-text")
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=fork) as pool:
        found = list(pool.map(in_worker, ["fr", "en", "ha"]))
    assert found == [None, ("wrong language", "text: P(en) 0.020, found fra_Latn 0.980"), None]


def fails_to_load(path, *saying):
    with pytest.raises(InputError) as error:
        make("--lid-model", path)
    message = str(error.value)
    assert "\n" not in message and f"--lid-model {path}" in message
    for text in saying:
        assert text in message, message


@pytest.mark.parametrize("content", [b"", b"\0", b"some text\n" * 1000, b"\0" * 5000], ids=["empty", "1", "text", "0"])
def test_other_files_are_no_models(content, tmp_path):
    (tmp_path / "model").write_bytes(content)
    fails_to_load(tmp_path / "model", "no whole fastText model")


def test_no_truncated_model_is_loaded(tiny, tmp_path):
    data = tiny.read_bytes()
    for size in (*range(0, len(data), 5), len(data) - 1, len(data) + 1):
        (tmp_path / "cut.bin").write_bytes((data + b"\0")[:size])
        fails_to_load(tmp_path / "cut.bin", "no whole fastText model")


def test_models_of_something_else(tmp_path):
    path = write_model(tmp_path / "vectors.bin", {"a": {"fra_Latn": 1}}, kind=2)
    fails_to_load(path, "word vectors")
    fails_to_load(write_model(tmp_path / "mood.bin", {"a": {"positive": 0.5, "negative": 0.5}}), "__label__positive")
    fails_to_load(write_model(tmp_path / "loss.bin", {"a": {"fra_Latn": 1}}, loss=99), "fastText cannot load it")


def test_threshold_for_a_language_that_the_model_lacks(tiny):
    with pytest.raises(InputError, match=r"--lid-thresholds ha=0\.3: .* no label for ha"):
        make("--lid-model", tiny, "--lid-thresholds", "ha=0.3")
    assert make("--lid-model", tiny, "--lid-thresholds", "ha=0").active


SURE = "am ar bn cs de el en es fa fi fr gu he hi hu hy it ja ka km kn ko lt ml mr nl or pa pl ro ru ta te th tr uk vi"


@needs_shared
def test_lid176_keeps_flores_lines_of_their_language():
    cleaner = make("--lid-model", LID)
    for code in SURE.split():
        lines = flores(code, every=10)
        dropped = [why for line in lines if (why := reason(cleaner.text, line, code))]
        assert len(dropped) <= 0.02 * len(lines), (code, dropped)
    for code in ("zh", "zhtrad"):
        lines = flores(code, every=10)
        assert sum(reason(cleaner.text, line, code) is None for line in lines) >= 0.95 * len(lines), code


@needs_shared
def test_lid176_drops_lines_of_another_language(capfd):
    cleaner = make("--lid-model", LID)
    for line in flores("en", every=10):
        why, detail = reason(cleaner.text, line, "fr")
        assert why == "wrong language" and ", found en " in detail
        assert reason(cleaner.text, line, "ha") is None
    assert capfd.readouterr() == ("", "")


@needs_shared
def test_lid176_unchecked_languages():
    expected = "ff ha ig kam kea lg ln luo mi ns ny om sn umb wo xh zu"
    assert " ".join(make("--lid-model", LID).unchecked) == expected


@needs_shared
def test_lid176_thresholds_save_bosnian():
    """lid.176 takes Bosnian for Croatian or Serbian; a lower threshold keeps it, and still drops English."""
    lines = flores("bs", every=5)
    kept = {}
    for share in (0.5, 0.1):
        cleaner = make("--lid-model", LID, "--lid-thresholds", f"bs={share}")
        kept[share] = sum(reason(cleaner.text, line, "bs") is None for line in lines) / len(lines)
        assert not any(reason(cleaner.text, line, "bs") is None for line in flores("en", every=20))
    assert kept[0.5] < 0.3 and kept[0.1] > 0.95


@needs_shared
@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 5000, 400_000, 900_000, 938_000, 938_012, 938_014])
def test_lid176_truncated_or_prolonged(size, tmp_path):
    """fastText itself takes 938,000 bytes, refuses 0, 1 and 400,000, and dies of 7, 8 and 900,000."""
    (tmp_path / "lid.ftz").write_bytes((LID.read_bytes() + b"x")[:size])
    fails_to_load(tmp_path / "lid.ftz", "no whole fastText model")
