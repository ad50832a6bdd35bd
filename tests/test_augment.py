"""Step 1 and step 2 of the augmentation, by examples worked by hand, by a slow reference, and as commands."""

import collections
import gzip
import json
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamax.codeswitch import LongestMatch, Switcher
from llamax.dictionaries import find_dictionary, languages_of, noise, parse_entry, script_of
from llamax.files import InputError
from llamax.lexicon import Lexicon, clean, load_lexicon
from llamax.records import Unusable
from preprocess_parallel import Pair

ROOT = Path(__file__).resolve().parents[1]
MUSE = ROOT.parent / "shared" / "data" / "muse"
GATITOS = MUSE.with_name("gatitos")
untimed = settings(deadline=None)  # the machine may be busy, and jieba loads in the first example
needs_data = pytest.mark.skipif(not MUSE.is_dir(), reason="no public dictionaries in ../shared/data/muse")

ENTRIES = {
    "hello": {"fr": ["bonjour"], "de": ["hallo"], "zh": ["你好"], "th": ["สวัสดี"]},
    "world": {"fr": ["monde"], "de": ["welt"], "zh": ["世界"], "th": ["โลก"]},
    "bank": {"fr": ["banque", "rive"], "de": ["ufer"], "zh": ["银行"]},
    "shore": {"fr": ["rive"], "de": ["küste"]},
    "paris": {"fr": ["paris"], "th": ["ปารีส"], "zh": ["巴黎"]},
    "thank you": {"fr": ["merci"], "de": ["danke"], "th": ["ขอบคุณ"]},
    "i": {"zh": ["我"], "th": ["ฉัน"]},
    "love": {"zh": ["爱"], "th": ["รัก"]},
}
HELLO = Lexicon.of(ENTRIES)


def command(*args, **options):
    """Run augment.py with these arguments."""
    args = [sys.executable, str(ROOT / "augment.py"), *map(str, args)]
    return subprocess.run(args, capture_output=True, text=True, encoding="utf-8", check=False, **options)


def succeed(*args, **options):
    result = command(*args, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def pair(src, src_lang, tgt_lang, tgt="Target.", loss="all"):
    return Pair(src, tgt, src_lang, tgt_lang, loss, "")


def options(lexicon, text, source, target=None, hops=1):
    """The translations of a word, as ((language, words), …)."""
    number = lexicon.find(text, source)
    if number is None or (target and target not in lexicon.number):
        return ()
    found = collections.defaultdict(list)
    for translation in lexicon.translations(number, source, target, hops):
        language = next(
            code
            for code, start in zip(reversed(lexicon.codes), reversed(lexicon.language_starts[:-1]), strict=True)
            if start <= translation
        )
        found[language].append(lexicon.word(translation))
    return tuple((language, tuple(words)) for language, words in found.items())


def code_switch(pair, lexicon, seed=0, rate=1.0, into="target", hops=1):
    target = pair.tgt_lang if into == "target" else None
    if not {pair.src_lang, target or pair.src_lang} <= lexicon.number.keys():
        return pair.src.lower(), 0, 0
    key = (pair.src_lang, pair.tgt_lang, pair.src, pair.tgt)
    return Switcher(lexicon, seed, rate, hops).switch(pair.src, pair.src_lang, target, key)


def write_pairs(path, pairs):
    lines = [json.dumps(p._asdict(), ensure_ascii=False) for p in pairs]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write_entries(path, entries):
    lines = [json.dumps({"en": en, "translations": found}, ensure_ascii=False) for en, found in entries.items()]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


# ---- step 1


@pytest.mark.parametrize(
    ("line", "form", "expected"),
    [
        (b"the le", "muse", ("the", "le")),
        (b"the\tle", "muse", ("the", "le")),
        (b"The  LE ", "muse", ("the", "le")),
        (b"petty\t\xda\xa9\xd9\x85 \xd8\xb8\xd8\xb1\xd9\x81", "muse", ("petty", "کم ظرف")),
        (b"\xef\xbb\xbfthe le", "muse", ("the", "le")),
        (b"a lot\tbeaucoup  de", "panlex", ("a lot", "beaucoup de")),
        ("cafe\u0301\tCAFÉ".encode(), "list", ("café", "café")),
        (b"the le la", "muse", "not two columns"),
        (b"the", "muse", "not two columns"),
        (b"the le", "panlex", "not two columns"),
        (b"the\tle\tla", "list", "not two columns"),
        (b"the\t", "list", "empty"),
        (b"\t \xc2\xa0\tle", "list", "not two columns"),
        (b"\xc2\xa0\tle", "list", "empty"),
        (b"caf\xe9 the", "muse", "invalid UTF-8"),
        (b"the\t\x00", "list", "null character"),
    ],
)
def test_entry_of_a_line(line, form, expected):
    if isinstance(expected, tuple):
        assert parse_entry(line, form) == expected
    else:
        with pytest.raises(Unusable) as why:
            parse_entry(line, form)
        assert why.value.args[0] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("en-fr", ["en", "fr"]),
        ("fr-en", ["fr", "en"]),
        ("eng_fra", ["en", "fr"]),
        ("eng_Latn-fra_Latn", ["en", "fr"]),
        ("en-bam_Latn", ["en", "bam_Latn"]),
        ("en_bam_Latn", ["en", "bam_Latn"]),
        ("en-zho_simpl", ["en", "zh"]),
        ("en-tgk-Cyrl", ["en", "tg"]),
        ("en_bm-Nkoo", ["en", "bam_Nkoo"]),
        ("en_ms-Arab", ["en", "msa_Arab"]),
        ("en_yo", ["en", "yo"]),
    ],
)
def test_languages_of_a_name(name, expected):
    assert languages_of(name, "") == expected


@pytest.mark.parametrize(
    ("name", "sample", "expected"),
    [
        ("en-bm", "dog\twulu\n", ["en", "bam_Latn"]),
        ("en_ti", "dog\tከልቢ\n", ["en", "tir_Ethi"]),
        ("ti-en", "ከልቢ\tdog\n", ["tir_Ethi", "en"]),
        ("en_ber", "dog\tⴰⵢⴷⵉ\nTV\ttv\n", ["en", "ber_Tfng"]),
        ("en_ar-MA", "dog\tكلب\n", ["en", "ary_Arab"]),  # Moroccan, not Standard Arabic
        ("en_fa-AF", "dog\tسگ\n", ["en", "prs_Arab"]),
        ("en_apd-SD", "dog\tكلب\n", ["en", "apd_Arab"]),
        ("en_yue", "dog\t狗\n", ["en", "yue_Hani"]),
        ("en_iu", "", ["en", "iku_Latn"]),
        ("eng_swa", "dog\tmbwa\n", ["en", "sw"]),  # a macrolanguage
        ("eng_nep", "dog\tकुकुर\n", ["en", "ne"]),
        ("eng_kur", "dog\tse\n", ["en", "kur_Latn"]),  # Kurmanji: the paper's ku is Sorani, in Arabic script
        ("eng_kur", "dog\tسەگ\n", ["en", "ku"]),
    ],
)
def test_script_of_a_language_outside_the_table_is_that_of_its_dictionary(name, sample, expected):
    assert languages_of(name, "", sample.encode()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "Latn"), ("123 !", "Latn"), ("ab где", "Cyrl"), ("ある本", "Hira"), ("日本の", "Hani"), ("한국", "Hang")],
)
def test_script_of_a_text(text, expected):
    assert script_of(text) == expected


@pytest.mark.parametrize(
    ("word", "language", "expected"),
    [
        ("maison", "fr", None),
        ("123", "fr", "no letter"),
        ("...", "th", "no letter"),
        ("pike (verb)", "lg", "annotated"),
        ("او（مونث）", "ur", "annotated"),
        ("house", "th", "other script"),
        ("tv จอ", "th", None),
        ("ハウス", "ja", None),
        ("家", "ja", None),
        ("家", "zhtrad", None),
        ("집", "ko", None),
        ("дом", "zh", "other script"),
    ],
)
def test_noise(word, language, expected):
    assert noise(word, language) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fr2.txt", "expected two languages"),
        ("en_bx.tsv", "'bx': not known"),
        ("eng_zho_lexicon.txt", "stands for zh .*, zhtrad"),
        ("fr-de.txt", "is fr-de, expected English on exactly one side"),
        ("en-en=fr2.txt", "is en-en, expected English on exactly one side"),
        ("en-fr=no-such-file", "--list no-such-file: does not exist"),
        ("en-fr.txt", "--list en-fr.txt: does not exist"),
    ],
)
def test_dictionary_that_cannot_be_used(value, message):
    with pytest.raises(InputError, match=message):
        find_dictionary("list", value)


@pytest.fixture
def dictionaries(tmp_path):
    """A dictionary of each form, as arguments; among them one with CRLF and two with duplicates."""
    texts = {
        "en-fr.txt": b"hello bonjour\r\nhello salut\r\nhello bonjour\r\nParis paris\r\n",
        "de-en.txt": b"hallo\thello\n\nparis\tparis\n",
        "zh.txt": "hello 你好\nparis 巴黎".encode(),
        "eng_spa_lexicon.txt": b"hello\thola\nHello\tHOLA\nthank you\tmuchas gracias\n",
        "gatitos.tsv": b"hello\ti ni ce\nhello\n" + b"".join(b"w%d\tb%d\n" % (i, i) for i in range(120)),
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    return [
        *("--muse", tmp_path / "en-fr.txt", f"en-zh={tmp_path / 'zh.txt'}"),
        *("--panlex", tmp_path / "eng_spa_lexicon.txt"),
        *("--list", f"en-bam_Latn={tmp_path / 'gatitos.tsv'}"),
        *("--muse", tmp_path / "de-en.txt"),
    ]


def test_lexicon_merges_through_english(dictionaries, tmp_path):
    output = tmp_path / "out" / "lexicon.jsonl"
    printed = succeed("lexicon", *dictionaries, "--output", output)
    assert f"{output}: 123 English head words, 130 translations into 5 languages, 2 of them identical" in printed
    entries = {row["en"]: row["translations"] for row in read_jsonl(output)}
    assert list(entries) == sorted(entries)
    assert entries["hello"] == {
        "bam_Latn": ["i ni ce"],
        "de": ["hallo"],
        "es": ["hola"],
        "fr": ["bonjour", "salut"],
        "zh": ["你好"],
    }
    assert entries["paris"] == {"de": ["paris"], "fr": ["paris"], "zh": ["巴黎"]}
    assert entries["thank you"] == {"es": ["muchas gracias"]}
    manifest = json.loads(Path(f"{output}.manifest.json").read_text(encoding="utf-8"))
    assert manifest["languages"]["fr"] == {
        "dictionaries": ["muse"], "words": 3, "pairs": 3, "identity": 1, "noise": {}, "left_out": {}
    }  # fmt: skip
    assert manifest["languages"]["bam_Latn"]["words"] == 121
    assert (manifest["heads"], manifest["lines"], manifest["duplicates"]) == (123, 133, 2)
    assert manifest["rejects"] == {"not two columns": 1}
    (reject,) = read_jsonl(Path(f"{output}.rejects.jsonl"))
    assert (reject["file"], reject["line"]) == (str(tmp_path / "gatitos.tsv"), 2)


def test_lexicon_does_not_depend_on_the_order_of_arguments(dictionaries, tmp_path):
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    swapped = dictionaries[-2:] + dictionaries[:-2]
    succeed("lexicon", *dictionaries, "--output", first)
    succeed("lexicon", *swapped, "--output", second)
    assert first.read_bytes() == second.read_bytes()
    before = first.stat().st_mtime_ns
    assert succeed("lexicon", *swapped, "--output", first) == f"{first}: complete, nothing to do\n"
    assert first.stat().st_mtime_ns == before


@needs_data
def test_lexicon_of_real_dictionaries(tmp_path):
    """With spaces (de2), tabs (th2), CRLF and entries of several words (ur2); sw2 is Swedish, jp2 Japanese."""
    codes = {"de": "de2", "th": "th2", "ur": "ur2", "sv": "sw2", "ja": "jp2"}
    muse = [f"en-{code}={MUSE / name}.txt" for code, name in codes.items()]
    gatitos = [f"en-bam_Latn={GATITOS / 'en_bm.tsv'}", GATITOS / "en_es.tsv"] if GATITOS.is_dir() else []
    output = tmp_path / "lexicon.jsonl"
    succeed("lexicon", "--muse", *muse, *(["--list", *gatitos] if gatitos else []), "--output", output)
    manifest = json.loads(Path(f"{output}.manifest.json").read_text(encoding="utf-8"))
    assert manifest["rejects"] == {}
    for code, name in codes.items():
        text = (MUSE / f"{name}.txt").read_text(encoding="utf-8")  # turns CRLF into LF
        separator = "\t" if "\t" in text else " "
        expected = {tuple(map(clean, line.split(separator))) for line in text.split("\n") if line.strip()}
        found = manifest["languages"][code]
        assert found["pairs"] == len(expected)
        assert found["words"] == len({word for _, word in expected})
        assert found["identity"] == sum(head == word for head, word in expected)
    lexicon = load_lexicon(output)
    assert "och" in dict(options(lexicon, "and", "en"))["sv"]
    assert "そして" in dict(options(lexicon, "and", "en"))["ja"]
    assert "och" in dict(options(lexicon, "และ", "th", "sv"))["sv"]
    assert "دن" in dict(options(lexicon, "day", "en", "ur"))["ur"]
    assert not [word for word in lexicon.words("ur") if "\r" in word]


def test_options():
    assert options(HELLO, "hello", "en", "fr") == (("fr", ("bonjour",)),)
    assert options(HELLO, "bonjour", "fr", "en") == (("en", ("hello",)),)
    assert options(HELLO, "bonjour", "fr", "de") == (("de", ("hallo",)),)
    assert options(HELLO, "rive", "fr", "de") == (("de", ("küste", "ufer")),)  # over bank and over shore
    assert options(HELLO, "rive", "fr") == (("de", ("küste", "ufer")), ("en", ("bank", "shore")), ("zh", ("银行",)))
    assert options(HELLO, "paris", "fr", "en") == ()  # itself only
    assert options(HELLO, "paris", "fr") == (("th", ("ปารีส",)), ("zh", ("巴黎",)))
    assert options(HELLO, "hallo", "fr") == ()
    assert options(HELLO, "hello", "en", "en") == ()
    assert options(HELLO, "hello", "en", "ta") == ()


def test_two_hops_lead_through_a_third_language():
    """The paper's dog → chien → Hund, with an ambiguous word between: avocat is a lawyer and a fruit."""
    lexicon = Lexicon.of(
        {
            "avocado": {"fr": ["avocat"], "de": ["avocado"]},
            "lawyer": {"fr": ["avocat"], "de": ["anwalt"], "es": ["abogado"]},
            "attorney": {"es": ["abogado"], "th": ["ทนาย"]},
            "dog": {"de": ["hund"], "fr": ["chien"]},
            "hound": {"de": ["hund"]},
            "cur": {"de": ["köter"], "fr": ["chien"]},
        }
    )
    assert options(lexicon, "avocado", "en") == (("de", ("avocado",)), ("fr", ("avocat",)))[1:]
    assert options(lexicon, "avocado", "en", hops=2) == (("de", ("anwalt",)), ("es", ("abogado",)), ("fr", ("avocat",)))
    assert options(lexicon, "attorney", "en", "de", hops=1) == ()
    assert options(lexicon, "attorney", "en", "de", hops=2) == (("de", ("anwalt",)),)  # by way of abogado
    # chien → köter: by way of English only what an entry says at once; cur is not reached from hund.
    assert options(lexicon, "dog", "en", "de") == (("de", ("hund",)),)
    assert options(lexicon, "dog", "en", "de", hops=2) == (("de", ("hund", "köter")),)  # by way of chien
    assert options(lexicon, "hund", "de", "fr", hops=2) == (("fr", ("chien",)),)
    # No third language between a word and what English alone leads to.
    assert options(lexicon, "hound", "en", "fr", hops=2) == (("fr", ("chien",)),)  # by way of hund
    assert options(lexicon, "köter", "de", "en", hops=2) == (("en", ("cur", "dog")),)  # by way of chien


@untimed
@given(st.data())
def test_two_hops_against_following_every_path(data):
    words = st.text("ab", min_size=1, max_size=1)
    rows = data.draw(
        st.lists(
            st.tuples(st.text("abc", min_size=1, max_size=1), st.sampled_from(["fr", "de", "es"]), words),
            min_size=1,
            max_size=12,
        )
    )
    entries = {}
    for head, language, word in rows:
        entries.setdefault(head, {}).setdefault(language, []).append(word)
    lexicon = Lexicon.of(entries)
    sets = [{("en", head), *((code, word) for code, found in entry.items() for word in found)}
            for head, entry in entries.items()]  # fmt: skip

    def shares(item, other):
        return any(item in entry and other in entry for entry in sets)

    everything = set().union(*sets)
    for language, word in everything:
        one = {other for other in everything if other[0] != language and shares((language, word), other)}
        two = one | {
            other for via in one for other in everything if other[0] not in (language, via[0]) and shares(via, other)
        }
        for hops, expected in ((1, one), (2, two)):
            found = {(code, text) for code, texts in options(lexicon, word, language, hops=hops) for text in texts}
            assert found == {other for other in expected if other[1] != word}


def test_the_dictionary_with_more_entities_unless_joined(tmp_path):
    (tmp_path / "en-fr.txt").write_text("dog chien\ndog chienne\ncat chat\nhouse house\n", encoding="utf-8")
    (tmp_path / "en_fr.tsv").write_text("dog\tchien\ndog\tcabot\n", encoding="utf-8")
    (tmp_path / "eng_deu_lexicon.txt").write_text("dog\thund\ncat\t(die) katze\n", encoding="utf-8")
    (tmp_path / "en_de.tsv").write_text("dog\tköter\ndog\ttöle\ndog\twauwau\n", encoding="utf-8")
    args = ["--muse", tmp_path / "en-fr.txt", "--list", tmp_path / "en_fr.tsv", tmp_path / "en_de.tsv"]
    args += ["--panlex", tmp_path / "eng_deu_lexicon.txt"]
    found = {}
    for name, extra in {"default": [], "joined": ["--join"], "clean": ["--join", "--drop-noise"]}.items():
        output = tmp_path / f"{name}.jsonl"
        succeed("lexicon", *args, *extra, "--output", output)
        entries = {row["en"]: row["translations"] for row in read_jsonl(output)}
        found[name] = entries, json.loads(Path(f"{output}.manifest.json").read_text(encoding="utf-8"))["languages"]
    assert found["default"][0] == {
        "cat": {"fr": ["chat"]},
        "dog": {"de": ["köter", "töle", "wauwau"], "fr": ["chien", "chienne"]},
        "house": {"fr": ["house"]},
    }
    assert found["default"][1]["de"]["left_out"] == {"panlex": 2}
    assert found["default"][1]["fr"] == {
        "dictionaries": ["muse"], "words": 4, "pairs": 4, "identity": 1, "noise": {}, "left_out": {"list": 2}
    }  # fmt: skip
    assert found["joined"][0]["dog"] == {"de": ["hund", "köter", "töle", "wauwau"], "fr": ["cabot", "chien", "chienne"]}
    assert found["joined"][0]["cat"] == {"de": ["(die) katze"], "fr": ["chat"]}
    assert found["joined"][1]["de"]["dictionaries"] == ["panlex", "list"]
    assert found["clean"][0]["cat"] == {"fr": ["chat"]}
    assert found["clean"][1]["de"] == {
        "dictionaries": ["panlex", "list"], "words": 4, "pairs": 4, "identity": 0, "noise": {"annotated": 1},
        "left_out": {},
    }  # fmt: skip


# ---- step 2


@pytest.mark.parametrize(
    ("src", "src_lang", "tgt_lang", "expected", "known"),
    [
        ("Hello, World!", "en", "fr", "bonjour, monde!", 2),
        ("«Hello»  (WORLD)…\tagain", "en", "de", "«hallo»  (welt)…\tagain", 2),
        ("Hello\u00a0world\nand Hello-world", "en", "zh", "你好\u00a0世界\nand hello-world", 2),
        ("Paris n'est pas MONDE.", "fr", "en", "paris n'est pas world.", 1),
        ("Merci, le monde", "fr", "en", "thank you, le world", 2),
        ("thank you", "en", "fr", "thank you", 0),
        ("你好，世界！", "zh", "en", "hello，world！", 2),
        ("我爱巴黎。", "zh", "en", "i love paris。", 3),
        ("他在银行工作", "zh", "fr", "他在 banque 工作", 1),
        ("他在银行工作", "zh", "th", "他在银行工作", 0),
        ("我爱Paris 和银行", "zh", "th", "ฉันรักparis 和银行", 2),
        ("สวัสดีโลก", "th", "en", "hello world", 2),
        ("สวัสดี โลก!", "th", "en", "hello world!", 2),
        ("ฉันไปปารีสแล้ว", "th", "fr", "ฉันไป paris แล้ว", 1),
        ("ฉันรักโลก", "th", "zh", "我爱世界", 3),
        ("ขอบคุณ!โลก", "th", "de", "danke!welt", 2),
        ("hello", "fr", "de", "hello", 0),
    ],
)
def test_code_switch_by_hand(src, src_lang, tgt_lang, expected, known):
    """At rate 1 with one translation a word, nothing is left to chance."""
    lexicon = Lexicon.of(ENTRIES | {"bank": {"fr": ["banque"], "zh": ["银行"]}})
    result = code_switch(pair(src, src_lang, tgt_lang), lexicon, seed=0, rate=1.0, into="target")
    assert result == (expected, known, known)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("ตากลม", ["ตา", "ตาก", "กลม", "ลม"], "ตาก|ลม"),  # the longest first, not the best division
        ("ตากลม", ["ตา", "กลม"], "ตา|กลม"),
        ("ที่นี่", ["ที", "นี่"], "-ที่|นี่"),  # not without its tone mark
        ("เมา", ["มา"], "-เมา"),  # not without the vowel written before it
        ("มาก", ["ม", "มา"], "มา|-ก"),
        ("มาก", ["ม"], "-มา|-ก"),  # nor without the one after it
        ("ไปtheatre the", ["the", "ไป"], "ไป|-theatre|- |the"),  # a Latin word is whole
        ("ខ្មែរ", ["ខ", "មែរ"], "-ខ្មែ|-រ"),  # a Khmer consonant under another
        ("ကမ္ဘာ", ["ကမ", "ဘာ"], "-က|-မ္ဘာ"),  # a Burmese one
        ("ຫຼາຍໆ", ["ຫຼາຍ"], "ຫຼາຍ|-ໆ"),
        ("コーヒーを", ["コーヒ", "を"], "-コー|-ヒー|を"),
        ("日本語", ["日本", "日"], "日本|-語"),
        ("กขค", [], "-ก|-ข|-ค"),
        ("\n", ["ก"], "-\n"),
    ],
)
def test_longest_match_by_hand(text, words, expected):
    """Pieces are written with | between them, those that are no words after a hyphen."""
    found = LongestMatch(words)(text)
    assert "|".join(piece if is_word else f"-{piece}" for piece, is_word in found) == expected


units = st.sampled_from(["ก", "ข", "ก่", "เก", "เข่", "กา", "ab", "a", "1", " ", ",", "。", "か", "漢"])
words_of_units = st.lists(st.sampled_from(["ก", "ข", "ก่", "เก", "กา", "ab", "a", "か", "漢"]), min_size=1, max_size=3)


@untimed
@given(st.lists(units, max_size=20), st.lists(words_of_units.map("".join), max_size=12))
def test_longest_match_against_trying_everything(parts, words):
    whole = []  # Latin letters and digits next to each other are one unit
    for part in parts:
        if whole and part.isascii() and part.isalnum() and whole[-1].isascii() and whole[-1].isalnum():
            whole[-1] += part
        else:
            whole.append(part)
    expected = []
    while whole:
        sizes = [n for n in range(1, len(whole) + 1) if "".join(whole[:n]) in words]
        expected.append(("".join(whole[: max(sizes, default=1)]), bool(sizes)))
        del whole[: max(sizes, default=1)]
    assert list(LongestMatch(words)("".join(parts))) == expected


@untimed
@given(st.text(), st.sampled_from(["zh", "zhtrad", "th", "ja", "my"]))
def test_pieces_are_the_whole_text(text, language):
    lexicon = Lexicon.of({"a": {"zh": ["一"], "zhtrad": ["一"], "th": ["ก"], "ja": ["か"], "my": ["က"]}})
    divide = Switcher(lexicon).divide[language]
    assert "".join(piece for piece, _ in divide(text)) == text


triples = st.lists(
    st.tuples(
        st.text("abé", min_size=1, max_size=2),
        st.sampled_from(["fr", "de", "zh"]),
        st.text("abé世", min_size=1, max_size=2),
    ),
    min_size=1,
    max_size=25,
)
tokens = st.tuples(
    st.sampled_from(["", "", "«", '("', "$"]),
    st.one_of(st.text("abAéÉ世", min_size=1, max_size=2), st.sampled_from(["e\u0301", "aÉ", "x", "a-b", ""])),
    st.sampled_from(["", "", ".", "!»", ",…", "="]),
    st.sampled_from([" ", " ", "  ", "\u00a0", "\t", "\n"]),
)


def slow_options(rows, word, source, target):
    """Translations of a word as step 1 defines them, by going through all lines of all dictionaries."""
    entries = collections.defaultdict(set)
    for head, language, translation in rows:
        entries[head] |= {("en", head), (language, translation)}
    found = {item for entry in entries.values() if (source, word) in entry for item in entry}
    return {text for language, text in found if language != source and target in (None, language) and text != word}


@untimed
@given(
    triples,
    st.lists(tokens, max_size=12),
    st.sampled_from(["en", "fr", "de"]),
    st.sampled_from(["en", "fr", "de", "zh"]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["any", "target"]),
    st.integers(0, 3),
)
def test_code_switch_against_a_slow_reference(rows, parts, src_lang, tgt_lang, rate, into, seed):
    entries = {}
    for head, language, word in rows:
        entries.setdefault(head, {}).setdefault(language, []).append(word)
    source = pair("".join("".join(part) for part in parts), src_lang, tgt_lang)
    result, known, replaced = code_switch(source, Lexicon.of(entries), seed, rate, into)
    pieces = re.split(r"(\s+)", result)
    originals = re.split(r"(\s+)", source.src.lower())
    assert len(pieces) == len(originals)
    counted = changed = 0
    for piece, original in zip(pieces, originals, strict=True):
        before, core, after = re.fullmatch(r"([^\w]*)(.*?)([^\w\u0301]*)", original, re.DOTALL).groups()
        options = slow_options(
            rows, unicodedata.normalize("NFC", core), src_lang, tgt_lang if into == "target" else None
        )
        counted += bool(core) and bool(options)
        if piece == original:
            continue
        changed += 1
        assert piece.startswith(before) and piece.endswith(after)
        assert piece[len(before) : len(piece) - len(after)] in options
    assert (counted, changed) == (known, replaced)
    if rate in (0, 1):
        assert replaced == known * rate


@untimed
@given(st.lists(st.sampled_from(["我", "爱", "世界", "你好", "银行", "，", "A", " "]), max_size=10), st.integers(0, 9))
def test_chinese_loses_nothing_but_what_is_replaced(parts, seed):
    """Put back by the reverse dictionary, and without the spaces that set off, the source is as before."""
    entries = {"Q1": {"zh": ["世界"]}, "Q2": {"zh": ["你好"]}, "Q3": {"zh": ["银行"]}}
    src = "".join(parts).lower()
    result, known, _ = code_switch(pair(src, "zh", "en"), Lexicon.of(entries), seed, 0.5, "target")
    for head, words in entries.items():
        result = result.replace(head, words["zh"][0])
    assert result.replace(" ", "") == src.replace(" ", "")
    assert known <= sum(part in ("世界", "你好", "银行") for part in parts)


def test_replacements_of_a_lower_rate_are_among_those_of_a_higher():
    source = pair("hello world " * 40, "en", "fr")
    kept = [set(), set(), set()]
    for places, rate in zip(kept, (0.2, 0.5, 0.9), strict=True):
        words = code_switch(source, HELLO, 7, rate, "any")[0].split()
        places.update((i, word) for i, word in enumerate(words) if word not in ("hello", "world"))
    assert kept[0] < kept[1] < kept[2]


def test_languages_are_drawn_alike_however_many_translations_they_have():
    lexicon = Lexicon.of({"word": {"fr": ["a", "b", "c", "d", "e", "f", "g", "h", "i"], "de": ["z"]}})
    result = code_switch(pair("word " * 4000, "en", "th"), lexicon, 0, 1.0, "any")[0].split()
    found = collections.Counter(result)
    assert 1800 < found["z"] < 2200
    assert all(150 < found[word] < 300 for word in "abcdefghi")


# ---- the command


@pytest.fixture
def corpus(tmp_path):
    """A lexicon and four files of pairs, so that there are several blocks for the workers."""
    lexicon = write_entries(tmp_path / "lexicon.jsonl", ENTRIES)
    files = []
    for number in range(4):
        rows = []
        for i in range(100):
            rows += [
                pair(f"Hello World {number} {i} bank love", "en", "fr", tgt=f"Tel  QUEL\u2028 {number} {i}\t"),
                pair(f"rive MONDE {number} {i}", "fr", "zh"),
                pair(f"你好，我爱世界{number}。{i}", "zh", "th"),
                pair(f"สวัสดีโลก {number} {i}", "th", "en"),
                pair(f"nothing {number} {i}", "en", "de"),
                pair(f"hola {number} {i}", "es", "en"),
            ]
        files.append(write_pairs(tmp_path / f"pairs{number}.jsonl", rows))
    return lexicon, files


def test_pairs_do_not_depend_on_workers_or_order(corpus, tmp_path):
    lexicon, files = corpus
    one, two, other = (tmp_path / f"{name}.jsonl" for name in ("one", "two", "other"))
    printed = succeed("pairs", "--lexicon", lexicon, "--input", *files, "--output", one, "--workers", 1, "--seed", 3)
    succeed("pairs", "--lexicon", lexicon, "--input", *files, "--output", two, "--workers", 2, "--seed", 3)
    assert one.read_bytes() == two.read_bytes()
    shuffled = tmp_path / "shuffled.jsonl"
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    shuffled.write_text("\n".join(reversed(lines)), encoding="utf-8")
    succeed("pairs", "--lexicon", lexicon, "--input", shuffled, "--output", other, "--workers", 1, "--seed", 3)
    assert sorted(one.read_bytes().split(b"\n")) == sorted(other.read_bytes().split(b"\n"))

    rows = read_jsonl(one)
    assert {tuple(row) for row in rows} == {("src", "tgt", "src_lang", "tgt_lang", "loss", "origin")}
    assert {(row["loss"], row["origin"]) for row in rows} == {("target", "augment")}
    sources = {(row["tgt"], row["src_lang"]) for row in map(json.loads, lines)}
    assert all((row["tgt"], row["src_lang"]) in sources for row in rows)
    assert all(row["src"] == row["src"].lower() for row in rows)
    assert not any(row["src"].startswith("nothing") for row in rows)
    manifest = json.loads(Path(f"{one}.manifest.json").read_text(encoding="utf-8"))
    assert manifest["records"] == 2400
    assert manifest["pairs"] == len(rows) == 2400 - manifest["nothing_replaced"]
    assert manifest["language_not_in_lexicon"] == 400
    assert abs(manifest["words_replaced"] / manifest["words_with_translation"] - 0.5) < 0.02
    assert f"{one}: {len(rows):,} pairs written of 2,400" in printed
    assert "--rate 50.0%" in printed


def test_realised_rate_and_seed(corpus, tmp_path):
    lexicon, files = corpus
    texts = []
    for name, options in {"a": ["--rate", 0.25], "b": ["--rate", 0.25, "--seed", 1]}.items():
        output = tmp_path / f"{name}.jsonl"
        succeed("pairs", "--lexicon", lexicon, "--input", *files, "--output", output, "--workers", 1, *options)
        manifest = json.loads(Path(f"{output}.manifest.json").read_text(encoding="utf-8"))
        assert manifest["words_with_translation"] == 4 * 100 * (4 + 2 + 4 + 2)
        assert abs(manifest["words_replaced"] / manifest["words_with_translation"] - 0.25) < 0.025
        texts.append(output.read_bytes())
    assert texts[0] != texts[1]


def test_both_directions(tmp_path):
    lexicon = write_entries(tmp_path / "lexicon.jsonl", ENTRIES)
    rows = [
        pair("Hello", "en", "fr", tgt="Bonjour"),
        pair("hello", "en", "fr", tgt="Monde", loss="target"),  # code-switched before: its source is no target
    ]
    source = write_pairs(tmp_path / "pairs.jsonl", rows)
    output = tmp_path / "out.jsonl"
    options = ["--rate", 1, "--into", "target", "--both-directions", "--workers", 1]
    printed = succeed("pairs", "--lexicon", lexicon, "--input", source, "--output", output, *options)
    assert "3 pairs written of 3" in printed
    found = [(row["src"], row["tgt"], row["src_lang"], row["tgt_lang"]) for row in read_jsonl(output)]
    assert found == [
        ("bonjour", "Bonjour", "en", "fr"),
        ("hello", "Hello", "fr", "en"),
        ("bonjour", "Monde", "en", "fr"),
    ]


def test_bad_records_are_rejected_and_named(tmp_path):
    lexicon = write_entries(tmp_path / "lexicon.jsonl", ENTRIES)
    source = tmp_path / "pairs.jsonl"
    good = json.dumps(pair("hello", "en", "fr")._asdict()).encode() + b"\n"
    bad = [
        b"{",
        b"[]",
        b'{"src": "a", "tgt": "\xff", "src_lang": "en", "tgt_lang": "fr"}',
        b'{"src": " ", "tgt": "b", "src_lang": "en", "tgt_lang": "fr"}',
        b'{"src": "a", "tgt": "b", "src_lang": "en", "tgt_lang": "xx"}',
    ]
    source.write_bytes(good + b"".join(line + b"\n" for line in bad) + good)
    output = tmp_path / "out.jsonl"
    args = ["pairs", "--lexicon", lexicon, "--input", source, "--output", output, "--rate", 1, "--workers", 1]
    result = command(*args)
    assert result.returncode == 1
    assert "5 of 7 records (71.43%) cannot be used" in result.stderr
    assert not output.exists() and not Path(f"{output}.manifest.json").exists()
    assert "5 rejects" in succeed(*args, "--max-reject-rate", 0.8)
    assert len(read_jsonl(output)) == 2
    reasons = [(row["line"], row["reason"]) for row in read_jsonl(Path(f"{output}.rejects.jsonl"))]
    assert reasons == [
        (2, "invalid JSON"),
        (3, "not an object"),
        (4, "invalid UTF-8"),
        (5, "empty"),
        (6, "unknown language"),
    ]


def test_second_run_does_nothing_and_other_arguments_are_refused(tmp_path):
    lexicon = write_entries(tmp_path / "lexicon.jsonl", ENTRIES)
    source = write_pairs(tmp_path / "pairs.jsonl", [pair("hello world", "en", "fr")] * 3)
    output = tmp_path / "out.jsonl"
    args = ["pairs", "--lexicon", lexicon, "--input", source, "--output", output, "--rate", 1]
    succeed(*args, "--workers", 1)
    before = output.read_bytes()
    assert succeed(*args, "--workers", 2) == f"{output}: complete, nothing to do\n"
    refused = command(*args, "--seed", 5)
    assert refused.returncode == 1
    assert "exists, made with seed 0, now 5" in refused.stderr
    write_pairs(source, [pair("hello", "en", "fr")])
    refused = command(*args)
    assert refused.returncode == 1
    assert "exists, made with other source files" in refused.stderr
    assert output.read_bytes() == before
    output.write_bytes(before[:-10])
    write_pairs(source, [pair("hello world", "en", "fr")] * 3)
    assert "bytes, its manifest says" in command(*args).stderr


def test_mono_pairs_each_line_with_its_original(tmp_path):
    lexicon = write_entries(tmp_path / "lexicon.jsonl", {"hello": {"fr": ["bonjour"]}, "world": {"fr": ["monde"]}})
    source = tmp_path / "mono.jsonl"
    rows = [{"text": " Hello, World!\n\nNothing here\r\nBig World ", "lang": "en"}, {"text": "Monde", "lang": "fr"},
            {"text": "Hola", "lang": "es"}]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    printed = succeed("mono", "--lexicon", lexicon, "--input", source, "--output", output, "--workers", 1)
    assert "3 pairs written of 5, nothing replaced in 2 (1 for a language not in the lexicon)" in printed
    common = {"loss": "all", "origin": "augment-mono"}
    assert read_jsonl(output) == [
        {"src": "bonjour, monde!", "tgt": "Hello, World!", "src_lang": "en", "tgt_lang": "en"} | common,
        {"src": "big monde", "tgt": "Big World", "src_lang": "en", "tgt_lang": "en"} | common,
        {"src": "world", "tgt": "Monde", "src_lang": "fr", "tgt_lang": "fr"} | common,
    ]


def test_pairs_of_aligned_and_compressed_files(tmp_path):
    lexicon = write_entries(tmp_path / "lexicon.jsonl", ENTRIES)
    (tmp_path / "a.en").write_text("Hello\nWorld\n", encoding="utf-8")
    (tmp_path / "a.fr").write_text("Bonjour\nMonde\n", encoding="utf-8")
    rows = [pair("Hello", "en", "fr", tgt="Bonjour"), pair("World", "en", "fr", tgt="Monde")]
    lines = "".join(json.dumps(p._asdict()) + "\n" for p in rows)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    outputs = []
    for inputs in (
        ["--src", tmp_path / "a.en", "--tgt", tmp_path / "a.fr", "--src-lang", "en", "--tgt-lang", "fr"],
        ["--input", tmp_path / "a.jsonl.gz"],
    ):
        outputs.append(tmp_path / f"{len(outputs)}.jsonl")
        args = ["--lexicon", lexicon, "--output", outputs[-1], "--rate", 1, "--into", "target", "--workers", 1]
        succeed("pairs", *args, *inputs)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert [row["src"] for row in read_jsonl(outputs[0])] == ["bonjour", "monde"]


def test_a_job_array_makes_the_shards(corpus, tmp_path):
    """slurm/augment.sh as Slurm starts it, a task after the other."""
    lexicon, files = corpus
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "augment.py").symlink_to(ROOT / "augment.py")
    for task in range(2):
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(task), "SHARDS": "2", "LEXICON": str(lexicon),
            "INPUT": "pairs?.jsonl", "OUTPUT": "switched.jsonl"}  # fmt: skip
        script = ["bash", ROOT / "slurm" / "augment.sh"]
        result = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    whole = tmp_path / "whole.jsonl"
    succeed("pairs", "--lexicon", lexicon, "--input", *[file.name for file in files], "--output", whole, cwd=tmp_path)
    shards = [tmp_path / f"switched-0000{task}-of-00002.jsonl" for task in range(2)]
    assert all(shard.stat().st_size for shard in shards)
    assert b"".join(shard.read_bytes() for shard in shards) == whole.read_bytes()


ERRORS = {
    "a missing input": (["--input", "nowhere.jsonl"], "--input nowhere.jsonl: does not exist; check the path"),
    "a rate above 1": (["--rate", "1.5"], "--rate 1.5: expected a share from 0 to 1"),
    "two kinds of input": (["--src", "pairs.jsonl"], "--input, --src, --tgt: expected --input, or as many files"),
    "a shard too many": (["--shard", "2/2"], "--shard 2/2: expected a number below 2"),
    "a rate that is no number": (["--rate", "nan"], "--rate nan: expected a share from 0 to 1"),
    "no workers": (["--workers", "0"], "--workers 0: expected at least 1"),
    "a dictionary as lexicon": (["--lexicon", "en-fr.txt"], "--lexicon en-fr.txt line 1: found 'hello bonjour'"),
    "pairs as lexicon": (["--lexicon", "pairs.jsonl"], '--lexicon pairs.jsonl line 1: found \'{"src": '),
    "a binary lexicon": (["--lexicon", "binary"], "--lexicon binary line 1: found"),
    "an empty lexicon": (["--lexicon", "empty"], "--lexicon empty: empty, expected what"),
    "a lexicon of unknown languages": (["--lexicon", "unknown.jsonl"], "--lexicon unknown.jsonl: language 'xx'"),
    "an output of something else": (
        ["--output", "pairs.jsonl"],
        "--output pairs.jsonl: exists, but no pairs.jsonl.manifest",
    ),
    "only empty input": (["--input", "empty"], "no usable record in any file"),
}


@pytest.fixture
def folder(tmp_path):
    write_entries(tmp_path / "lexicon.jsonl", ENTRIES)
    write_entries(tmp_path / "unknown.jsonl", {"a": {"xx": ["b"]}})
    write_pairs(tmp_path / "pairs.jsonl", [pair("hello", "en", "fr")])
    (tmp_path / "en-fr.txt").write_text("hello bonjour\n")
    (tmp_path / "panlex.txt").write_text("hello bonjour\n")
    (tmp_path / "latin1.txt").write_bytes(b"cafe caf\xe9\nthe le\n")
    (tmp_path / "binary").write_bytes(os.urandom(100).replace(b"\n", b"") + b"\xff")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "other.jsonl").write_text("an earlier output\n")
    return tmp_path


def fails_in_one_line(result, message):
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_pairs(name, folder):
    extra, message = ERRORS[name]
    args = ["--lexicon", "lexicon.jsonl", "--input", "pairs.jsonl", "--output", "out.jsonl", "--workers", "1", *extra]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    fails_in_one_line(command("pairs", *args, cwd=folder), message)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


LEXICON_ERRORS = {
    "nothing to read": ([], "--muse, --panlex, --list: none is given"),
    "a missing file": (["--muse", "en-fr=nowhere"], "--muse nowhere: does not exist"),
    "an unknown language": (["--muse", "en-xx=en-fr.txt"], "--muse en-xx=en-fr.txt: language 'xx': not known"),
    "a name without languages": (["--list", "panlex.txt"], "write en-CODE=FILE"),
    "another form": (["--panlex", "en-fr=panlex.txt"], "no line has two columns as this form separates them"),
    "too many rejects": (["--muse", "en-fr=latin1.txt"], "1 of 2 records (50.00%) cannot be used (invalid UTF-8 1)"),
    "a reject rate above 1": (["--muse", "en-fr.txt", "--max-reject-rate", "2"], "--max-reject-rate 2.0: expected"),
    "an output of something else": (["--muse", "en-fr.txt", "--output", "other.jsonl"], "other.jsonl: exists, but no"),
}


@pytest.mark.parametrize("name", LEXICON_ERRORS)
def test_errors_of_lexicon(name, folder):
    extra, message = LEXICON_ERRORS[name]
    fails_in_one_line(command("lexicon", "--output", "out.jsonl", *extra, cwd=folder), message)
    assert (folder / "other.jsonl").read_text() == "an earlier output\n"
    assert not (folder / "out.jsonl").exists()
    assert not [path for path in folder.iterdir() if path.name.endswith(".partial")]
