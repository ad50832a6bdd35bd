"""Lexicons and code-switching on the dictionaries and sentences of ../shared/data, against a plain reading of the
paper's step 2 (benchmarks/augment.py)."""

import collections
import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from conftest import SHARED, needs_shared, stage
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import augment as plain
from llamax.codeswitch import Switcher
from llamax.lexicon import Lexicon, load_lexicon

pytestmark = needs_shared

EXPECTED = {
    "house": {"fr": "maison", "de": "haus", "es": "casa", "it": "casa", "ca": "casa", "sv": "hus", "ru": "дом",
              "bg": "къща", "el": "σπίτι", "tr": "ev", "vi": "nhà", "th": "บ้าน", "ar": "منزل", "hi": "घर", "zh": "房子",
              "oc": "ostal", "fao_Latn": "hús", "tpi_Latn": "haus", "bam_Latn": "so", "bre_Latn": "ti"},
    "dog": {"fr": "chien", "de": "hund", "es": "perro", "it": "cane", "ca": "gos", "sv": "hund", "ru": "собака",
            "bg": "куче", "el": "σκύλος", "tr": "köpek", "vi": "chó", "th": "สุนัข", "ar": "كلب", "hi": "कुत्ता",
            "zh": "狗", "ja": "イヌ", "luo": "guok", "fao_Latn": "hundur", "bre_Latn": "ki", "tir_Ethi": "ከልቢ"},
    "water": {"fr": "eau", "de": "wasser", "es": "agua", "it": "acqua", "ca": "aigua", "sv": "vatten", "ru": "вода",
              "bg": "вода", "el": "νερό", "tr": "su", "vi": "nước", "th": "น้ำ", "ar": "ماء", "hi": "पानी", "zh": "水",
              "ur": "پانی", "oc": "aiga", "bam_Latn": "ji", "san_Deva": "जलम्", "tir_Ethi": "ማይ"},
}  # fmt: skip


@pytest.fixture(scope="module")
def lexicon_file(tmp_path_factory):
    """All of MUSE and GATITOS."""
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.jsonl"
    plain.build_lexicon(SHARED, path)
    return path


@pytest.fixture(scope="module")
def plain_lexicon(lexicon_file):
    return plain.read_lexicon(lexicon_file)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """A sample of NTREX and TICO-19 pairs from and into English: with spaces, Chinese, and languages that have no
    entry."""
    rows = random.Random(0).sample(list(plain.real_pairs(SHARED)), 3000)
    records = [
        {"src": src, "tgt": tgt, "src_lang": lang, "tgt_lang": "en"} for lang, src, tgt in rows if plain.divisible(lang)
    ]
    for record in records[::2]:
        names = ("tgt", "src", "tgt_lang", "src_lang")
        record.update(dict(zip(("src", "tgt", "src_lang", "tgt_lang"), map(record.get, names), strict=True)))
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def dictionary_lines(path):
    """The pairs of a file, without the project's reader."""
    text = path.read_text(encoding="utf-8-sig").replace("\r", "")
    separator = "\t" if "\t" in text else " "
    for line in text.split("\n"):
        columns = [" ".join(column.lower().strip("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff").split())
                   for column in line.split(separator)]  # fmt: skip
        if len(columns) == 2 and all(columns):
            yield tuple(unicodedata.normalize("NFC", column) for column in columns)


def test_counts_of_every_language(lexicon_file):
    """190 languages: words, pairs and identity pairs are those of an independent count; of two dictionaries the one
    with more words."""
    manifest = json.loads(Path(f"{lexicon_file}.manifest.json").read_text(encoding="utf-8"))
    by_file = {Path(source["path"]).name: source["languages"] for source in manifest["sources"]}
    found = collections.defaultdict(dict)
    for path in (*(SHARED / "muse").glob("*2.txt"), *(SHARED / "gatitos").glob("en_*.tsv")):
        (language,) = set(by_file[path.name]) - {"en"}
        form = "muse" if path.parent.name == "muse" else "list"
        assert form not in found[language], f"{path.name} is taken for another file's language"
        found[language][form] = set(dictionary_lines(path))
    assert len(found) == len(manifest["languages"]) == 187
    for language, forms in found.items():
        entities = {form: len({word for _, word in pairs}) for form, pairs in forms.items()}
        best = max(entities, key=entities.get)
        row = manifest["languages"][language]
        assert row["dictionaries"] == [best], language
        assert row["words"] == entities.pop(best), language
        assert row["left_out"] == entities, language
        assert row["pairs"] == len(forms[best]), language
        assert row["identity"] == sum(head == word for head, word in forms[best]), language
    assert manifest["languages"]["es"]["left_out"].keys() == {"list"}


def test_well_known_words(lexicon_file):
    lexicon = load_lexicon(lexicon_file)
    for head, expected in EXPECTED.items():
        number = lexicon.find(head, "en")
        assert len(expected) >= 10
        for language, word in expected.items():
            found = [lexicon.word(n) for n in lexicon.translations(number, "en", language)]
            assert word in found, (head, language, found)
            back = lexicon.find(word, language)
            assert head in [lexicon.word(n) for n in lexicon.translations(back, language, "en")]


def test_the_index_is_what_the_file_says(lexicon_file, plain_lexicon, tmp_path):
    """A lexicon without its index, and one whose index belongs to another file, translate as the one with it."""
    mapped = load_lexicon(lexicon_file)
    lines = lexicon_file.read_text(encoding="utf-8").split("\n")[:2000]
    copy = tmp_path / "lexicon.jsonl"
    copy.write_text("\n".join(lines), encoding="utf-8")
    Path(f"{copy}.index").write_bytes(Path(f"{lexicon_file}.index").read_bytes())
    indexed = load_lexicon(copy)
    for lexicon, reading in ((mapped, plain_lexicon), (indexed, plain.read_lexicon(copy))):
        assert lexicon.codes == sorted(reading[1])
        for language in ("en", "fr", "tir_Ethi", "th"):
            words = sorted(reading[1][language])
            assert lexicon.words(language) == words
            for word in random.Random(0).sample(words, min(60, len(words))):
                found = collections.defaultdict(list)
                for number in lexicon.translations(lexicon.find(word, language), language):
                    found[lexicon.codes[lexicon.word_languages[number]]].append(lexicon.word(number))
                assert list(found.items()) == plain.translations_of(word, language, reading)


def test_real_pairs_as_the_plain_reading_has_them(lexicon_file, plain_lexicon, pairs_file, tmp_path):
    """The same bytes; and, of each pair, what the paper promises, checked word by word."""
    output = tmp_path / "out.jsonl"
    args = ["--lexicon", lexicon_file, "--input", pairs_file, "--seed", 5, "--workers", 2]
    stage("augment.py", "pairs", *args, "--output", output)
    lexicon = plain_lexicon
    with open(pairs_file, encoding="utf-8", newline="\n") as lines:
        assert output.read_text(encoding="utf-8") == "".join(plain.reference(lexicon, lines, seed=5))

    originals = collections.defaultdict(list)
    for line in lines_of(pairs_file):
        record = json.loads(line)
        originals[record["tgt"], record["src_lang"], record["tgt_lang"]].append(record["src"])
    order = list(originals)
    place = 0
    for line in lines_of(output):
        record = json.loads(line)
        key = record["tgt"], record["src_lang"], record["tgt_lang"]  # the target side is intact
        assert order.index(key) >= place or len(originals[key]) > 1  # and so is the order
        place = max(place, order.index(key))
        assert (record["loss"], record["origin"]) == ("target", "augment")
        if record["src_lang"] in ("zh", "zhtrad"):
            continue
        assert any(may_become(src, record, lexicon) for src in originals[key]), record
    manifest = json.loads(Path(f"{output}.manifest.json").read_text(encoding="utf-8"))
    counts = [plain.switch_source(json.loads(line), lexicon, 5, 0.5) for line in lines_of(pairs_file)]
    known, replaced = (sum(column) for column in list(zip(*counts, strict=True))[1:])
    assert (known, replaced) == (manifest["words_with_translation"], manifest["words_replaced"])
    assert known > 20_000 and abs(replaced / known - 0.5) < 0.005


def lines_of(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def may_become(src, record, lexicon):
    """Whether a record's source is `src` in lower case but for words replaced by entries of the lexicon, the
    punctuation around them kept."""
    ends, text = {0}, record["src"]
    for token in re.split(r"(\s+)", src.lower()):
        start, word, end = plain.strip_punctuation(token)
        options = plain.translations_of(unicodedata.normalize("NFC", word), record["src_lang"], lexicon)
        pieces = {token, *(f"{start}{word}{end}" for _, words in options for word in words)}
        ends = {at + len(piece) for at in ends for piece in pieces if text.startswith(piece, at)}
    return len(text) in ends


def test_shards_are_the_whole(lexicon_file, pairs_file, tmp_path, monkeypatch):
    """1, 2 and 7 shards, one and two workers, of pairs and of monolingual text: the same bytes."""
    from conftest import call

    import augment

    monkeypatch.setattr("llamax.sources.PIECE_BYTES", 64 << 10)
    documents = tmp_path / "documents.jsonl"
    rows = [json.loads(line) for line in pairs_file.read_text(encoding="utf-8").split("\n")[:900]]
    documents.write_text(
        "".join(
            json.dumps({"text": f"{a['src']}\n\n{b['tgt']}", "lang": a["src_lang"]}) + "\n"
            for a, b in zip(rows[::2], rows[1::2], strict=False)
        ),
        encoding="utf-8",
    )
    for command, source in (("pairs", pairs_file), ("mono", documents)):
        whole = tmp_path / f"{command}.jsonl"
        args = [command, "--lexicon", lexicon_file, "--input", source]
        call(augment, *args, "--output", whole)
        for count in (1, 2, 7):
            joined = b""
            for number in range(count):
                output = tmp_path / f"{command}-{count}.jsonl"
                call(augment, *args, "--output", output, "--shard", f"{number}/{count}", workers=1 + number % 2)
                joined += (tmp_path / f"{command}-{count}-{number:05d}-of-{count:05d}.jsonl").read_bytes()
            assert joined == whole.read_bytes()


rows = st.lists(
    st.tuples(
        st.text("abé", min_size=1, max_size=2),
        st.sampled_from(["fr", "de", "zh", "th"]),
        st.text("abé世", min_size=1, max_size=2),
    ),
    min_size=1,
    max_size=25,
)
texts = st.lists(
    st.sampled_from(["a", "ab", "É", "«b»", "b,", "aé", " ", "  ", "\u00a0", "世", "世é", "…", "x"]), max_size=12
)


@given(rows, texts, st.sampled_from(["en", "fr", "zh"]), st.sampled_from([0.0, 0.4, 1.0]), st.integers(0, 3))
def test_any_text_as_the_plain_reading_has_it(rows, parts, language, rate, seed):
    entries = {}
    for head, other, word in rows:
        words = entries.setdefault(head, {}).setdefault(other, [])
        words += [word] * (word not in words)
    text = ("" if language == "zh" else " ").join(parts)
    record = {"src": text, "tgt": "t", "src_lang": language, "tgt_lang": "ta"}
    key = (language, "ta", text, "t")
    found = Switcher(Lexicon.of(entries), seed, rate).switch(text, language, None, key)
    assert found == plain.switch_source(record, plain.index(entries), seed, rate)


def test_speed_of_opening_a_lexicon_needs_no_reading(lexicon_file, monkeypatch):
    """An index that fits is mapped: nothing of the lexicon is parsed."""
    monkeypatch.setattr("llamax.lexicon.read_entries", None)
    assert len(load_lexicon(lexicon_file).codes) == 188


def test_reach_of_real_text(lexicon_file, plain_lexicon, tmp_path):
    """Words with an entry, against a count with the plain reading; Thai in letters."""
    from llamax.languages import resolve

    texts = {"en": "ntrex/NTREX-128/newstest2019-src.eng.txt", "tir_Ethi": "ntrex/NTREX-128/newstest2019-ref.tir.txt",
             "th": "flores101/dev/tha.dev", "nl": "ntrex/NTREX-128/newstest2019-ref.nld.txt"}  # fmt: skip
    source = tmp_path / "mono.jsonl"
    with open(source, "w", encoding="utf-8") as file:
        for language, name in texts.items():
            for line in plain.lines_of(SHARED / name)[:300]:
                file.write(json.dumps({"text": line, "lang": language}) + "\n")
    output = tmp_path / "reach.json"
    printed = stage("augment.py", "reach", "--lexicon", lexicon_file, "--input", source, "--output", output)
    rows = {row["language"]: row for row in json.loads(output.read_text(encoding="utf-8"))}
    for language in ("en", "tir_Ethi"):
        tokens = [plain.strip_punctuation(token)[1] for line in plain.lines_of(SHARED / texts[language])[:300]
                  for token in line.lower().split()]  # fmt: skip
        tokens = [unicodedata.normalize("NFC", token) for token in tokens if token]
        known = sum(bool(plain.translations_of(token, language, plain_lexicon)) for token in tokens)
        assert (rows[language]["words"], rows[language]["with_entry"]) == (len(tokens), known)
    assert rows["en"]["share"] > 0.8 > rows["tir_Ethi"]["share"] > 0.1
    assert rows["nl"]["with_entry"] == 0 < rows["nl"]["words"]
    assert rows["th"]["unit"] == "letters" and 0.6 < rows["th"]["share"] < 0.95
    assert resolve("th").code in printed
