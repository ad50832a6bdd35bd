"""Test sets: directions, languages of file names, lines exactly as published, and faults said before any work."""

import pickle
import shutil

import pytest
from conftest import SHARED, needs_shared

from llamax.files import InputError, Parser
from llamax.languages import load, resolve
from llamax.testsets import CACHED_TEXTS, WMT23, add_test_set_arguments, make_test_set, open_test_set, read_lines

# What others take for the end of a line, and none is.
AWKWARD = ["a\u2028b", "c\x85d", "e\rf", "g\x00h", "\ufeffi", "j\x0bk\x0c", "e\u0301 \u00e9", "  two  spaces  "]


def write_lines(path, lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode("utf-8"))


def write_files(folder, names, lines=("x", "y")):
    for name in names:
        write_lines(folder / name, lines)
    return folder


def joined(directions):
    return ["-".join(direction) for direction in directions]


@pytest.fixture
def flores(tmp_path):
    """A Flores folder of three languages, and one file that is no language's."""
    return write_files(
        tmp_path / "flores/devtest", [f"{n}.devtest" for n in ("eng", "fra", "zho_simpl", "meta")]
    ).parent


# Directions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("en-fr", ["en-fr"]),
        ("en-*", ["en-fr", "en-zh"]),
        ("*-en", ["fr-en", "zh-en"]),
        ("en-*,*-en", ["en-fr", "en-zh", "fr-en", "zh-en"]),
        ("fr-en, en-*,en-fr", ["fr-en", "en-fr", "en-zh"]),
        ("*-*", ["en-fr", "en-zh", "fr-en", "fr-zh", "zh-en", "zh-fr"]),
        ("all", ["en-fr", "en-zh", "fr-en", "fr-zh", "zh-en", "zh-fr"]),
        ("eng-zho_Hans", ["en-zh"]),
        ("wmt23", ["en-zh", "zh-en"]),
        ("fr-zh,wmt23", ["fr-zh", "en-zh", "zh-en"]),
    ],
)
def test_directions(flores, text, expected):
    test_set = make_test_set("flores", flores)
    assert test_set.languages == ["en", "fr", "zh"]
    assert joined(test_set.directions(text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("en", "expected a-b"),
        ("en-", "expected a-b"),
        ("en-fr-zh", "expected a-b"),
        ("", "expected a-b"),
        ("en-en", "between two languages"),
        ("en-xx", "'xx'"),
        ("en-de", r"no file for de \(German\).*devtest/deu\.devtest.*en, fr, zh"),
        ("*-de", "no file for de"),
        ("en-fr,fr-fao_Latn", r"fr-fao_Latn: no file for fao_Latn.*devtest/fao_Latn\.devtest"),
    ],
)
def test_directions_that_cannot_be(flores, text, message):
    with pytest.raises(InputError, match=message):
        make_test_set("flores", flores).directions(text)


def test_the_papers_directions_of_wmt23():
    both_ways = ["de", "he", "ja", "ru", "uk", "zh"]
    assert sorted(WMT23) == sorted(["en-cs", *(f"en-{c}" for c in both_ways), *(f"{c}-en" for c in both_ways)])


# Options


def parse(*arguments):
    parser = Parser()
    add_test_set_arguments(parser.add_argument)
    return parser.parse_args([str(argument) for argument in arguments])


def test_options(flores):
    test_set = open_test_set(parse("--flores", flores))
    assert (test_set.kind, test_set.name, test_set.path, test_set.split) == ("flores", "flores101", flores, "devtest")
    (flores / "devtest").rename(flores / "dev")
    shutil.copy(flores / "dev/eng.devtest", flores / "dev/eng.dev")
    assert open_test_set(parse("--flores", flores, "--split", "dev")).languages == ["en"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of --flores, --ntrex, --tico19, --wmt, --ted, --aligned"),
        (["--ntrex", "a", "--wmt", "b"], "--ntrex and --wmt"),
        (["--ntrex", "a", "--split", "dev"], "--split dev: --ntrex has no splits"),
        (["--flores", "nowhere"], "--flores nowhere: does not exist"),
        (["--ntrex", "nowhere"], "--ntrex nowhere: does not exist"),
        (["--tico19", "nowhere"], "--tico19 nowhere: does not exist"),
        (["--wmt", "nowhere"], "--wmt nowhere: does not exist"),
        (["--ted", "nowhere"], "--ted nowhere: does not exist"),
        (["--aligned", "nowhere"], "--aligned nowhere: does not exist"),
    ],
)
def test_options_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        open_test_set(parse(*arguments))


@pytest.mark.parametrize("kind", ["flores", "ntrex", "tico19", "wmt", "aligned"])
def test_a_folder_without_a_test_set(tmp_path, kind):
    write_files(tmp_path, ["devtest/readme.txt", "a.b", "en-.tsv"])
    with pytest.raises(InputError, match=f"^--{kind} .*(for instance|expected) "):
        make_test_set(kind, tmp_path)


# Lines


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_only_newlines_end_a_line(tmp_path, end, last):
    path = tmp_path / "text"
    write_lines(path, AWKWARD, end)
    if not last:
        path.write_bytes(path.read_bytes().removesuffix(end.encode()))
    assert read_lines(path) == AWKWARD


def test_empty_lines_within_and_at_the_end(tmp_path):
    (tmp_path / "text").write_bytes(b"a\r\n\nb\n\n")
    assert read_lines(tmp_path / "text") == ["a", "", "b", ""]


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"a\nb\xff\n", "line 2: not valid UTF-8")])
def test_files_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(InputError, match=f"{tmp_path}/text.*{message}"):
        read_lines(tmp_path / "text")


def awkward_set(kind, folder):
    """A test set en-fr with AWKWARD as its source and the same in reverse as its reference."""
    if kind == "ted":
        rows = ["talk_name\ten\tfr", *(f"t\t{a}\t{b}" for a, b in zip(AWKWARD, AWKWARD[::-1], strict=True))]
        write_lines(folder / "talks.tsv", rows)
        return make_test_set(kind, folder / "talks.tsv")
    if kind == "tico19":
        write_lines(folder / "en-fr.tsv", [f"{a}\t{b}" for a, b in zip(AWKWARD, AWKWARD[::-1], strict=True)])
        return make_test_set(kind, folder)
    names = {
        "flores": ("devtest/eng.devtest", "devtest/fra.devtest"),
        "ntrex": ("newstest2019-src.eng.txt", "newstest2019-ref.fra.txt"),
        "wmt": ("sources/x.en-fr.src.en", "references/x.en-fr.ref.A.fr"),
        "aligned": ("x.en-fr.en", "x.en-fr.fr"),
    }[kind]
    write_lines(folder / names[0], AWKWARD)
    write_lines(folder / names[1], AWKWARD[::-1])
    return make_test_set(kind, folder)


KINDS = ["flores", "ntrex", "tico19", "wmt", "ted", "aligned"]


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_left_as_it_is_in_every_kind(tmp_path, kind):
    test_set = awkward_set(kind, tmp_path)
    (direction,) = test_set.directions("en-fr")
    assert test_set.source(direction) == AWKWARD
    assert test_set.references(direction) == [AWKWARD[::-1]]
    source, references = test_set.files(direction)
    assert all(path.is_file() for path in (source, *references))
    assert test_set.source(direction) is test_set.source(direction)
    again = pickle.loads(pickle.dumps(test_set))  # scoring hands it to other processes
    assert again.source(direction) == AWKWARD


# Faults are found before anything is translated


@pytest.mark.parametrize("kind", ["flores", "ntrex", "wmt", "aligned"])
def test_unequal_lengths_name_both_files_and_counts(tmp_path, kind):
    test_set = awkward_set(kind, tmp_path)
    source, (reference,) = test_set.files(("en", "fr"))
    write_lines(reference, AWKWARD[:-1])
    with pytest.raises(InputError, match=f"{source} has 8 lines, {reference} 7;"):
        test_set.directions("all")


@pytest.mark.parametrize("kind", ["flores", "ntrex", "tico19", "wmt", "aligned"])
@pytest.mark.parametrize("blank", ["", " ", "\u3000"])
def test_empty_lines_are_refused_on_either_side(tmp_path, kind, blank):
    for side in range(2):
        test_set = awkward_set(kind, tmp_path)
        path = [test_set.files(("en", "fr"))[0], test_set.files(("en", "fr"))[1][0]][side]
        lines = read_lines(path)
        lines[3] = blank if kind != "tico19" else ("a\t" + blank, blank + "\ta")[side]
        write_lines(path, lines)
        with pytest.raises(InputError, match=f"{path} line 4: empty"):
            (direction,) = test_set.directions("en-fr")
            test_set.source(direction), test_set.references(direction)


def test_only_what_is_asked_for_need_be_sound(flores):
    write_lines(flores / "devtest/zho_simpl.devtest", ["one"])
    test_set = make_test_set("flores", flores)
    assert joined(test_set.directions("en-fr,fr-en")) == ["en-fr", "fr-en"]
    with pytest.raises(InputError, match=r"zho_simpl\.devtest 1;"):
        test_set.directions("en-*")


def test_few_texts_are_kept(tmp_path):
    names = [language.flores101_devtest for language in list(load().values())[: CACHED_TEXTS + 5]]
    write_files(tmp_path, [f"devtest/{name}.devtest" for name in names])
    test_set = make_test_set("flores", tmp_path)
    pairs = [(code, code) for code in test_set.languages]
    first = test_set.source(pairs[0])
    for pair in pairs[1:CACHED_TEXTS]:
        test_set.source(pair)
    assert test_set.source(pairs[0]) is first
    for pair in pairs:
        test_set.source(pair)
    assert test_set.source(pairs[0]) is not first
    assert len(test_set._texts) == CACHED_TEXTS


# Flores


@needs_shared
@pytest.mark.parametrize("split", ["dev", "devtest"])
def test_every_language_has_its_file_in_both_splits(split):
    """Chinese is named otherwise in dev than in devtest."""
    test_set = make_test_set("flores", SHARED / "flores101", split)
    assert sorted(test_set.languages) == list(load())
    directions = test_set.directions("all")
    assert len(directions) == len(set(directions)) == 102 * 101
    for code in test_set.languages:
        path, _ = test_set.files((code, "en"))
        assert path.stem == getattr(resolve(code), f"flores101_{split}")
        lines = path.read_bytes().decode("utf-8").split("\n")
        assert lines.pop() == "" and test_set.source((code, "en")) == lines
    assert test_set.source_key(("en", "de")) == test_set.source_key(("en", "fr")) != test_set.source_key(("de", "fr"))


def test_flores200_names(tmp_path):
    write_files(tmp_path, [f"devtest/{name}.devtest" for name in ("eng_Latn", "zho_Hans", "ace_Arab", "arb_Arab")])
    test_set = make_test_set("flores", tmp_path)
    assert (test_set.name, sorted(test_set.languages)) == ("flores200", ["ace_Arab", "ar", "en", "zh"])
    with pytest.raises(InputError, match=r"expected devtest/pes_Arab\.devtest"):
        test_set.directions("en-fa")


def test_flores101s_name_goes_before_another(tmp_path):
    write_files(tmp_path, [f"devtest/{name}.devtest" for name in ("zho_Hans", "zho_simpl", "eng")])
    test_set = make_test_set("flores", tmp_path)
    assert test_set.files(("zh", "en"))[0].name == "zho_simpl.devtest"


# NTREX


@needs_shared
def test_ntrex_as_published():
    folder = SHARED / "ntrex"
    test_set = make_test_set("ntrex", folder)
    assert test_set.languages == make_test_set("ntrex", folder / "NTREX-128").languages
    assert {code for code, language in load().items() if language.ntrex} <= set(test_set.languages)
    for code in test_set.languages:
        if resolve(code).ntrex:
            assert test_set.files((code, "en"))[0].name.split(".")[1] == resolve(code).ntrex
    assert len(test_set.languages) == len(list(folder.glob("NTREX-128/*.txt"))) - len(["eng-IN", "spa-MX"])
    n = len(test_set.languages)
    assert len(test_set.directions("all")) == n * (n - 1)
    lines = test_set.source(("en", "pt"))
    assert len(lines) == 1997 and not any("\r" in line for line in lines)
    assert lines[0] == "Welsh AMs worried about 'looking like muppets'"
    assert test_set.source_key(("kin_Latn", "pt")) == "kin_Latn"


def test_ntrex_regional_forms(tmp_path):
    """French is fra where there is fra-CA, too; Portuguese the paper's, of Brazil; Serbian is Cyrillic."""
    names = """eng-GB eng-US fra fra-CA por por-BR zho-CN zho-TW spa spa-MX srp-Cyrl srp-Latn arb nep bak
        gsw-BE"""
    write_files(tmp_path, [f"newstest2019-ref.{name}.txt" for name in names.split()])
    write_files(tmp_path, ["newstest2019-ref-2.spa.txt", "newstest2019-src.eng.txt"])
    test_set = make_test_set("ntrex", tmp_path)
    assert not any("ref-2" in test_set.files((code, "en"))[0].name for code in test_set.languages)
    files = {code: test_set.files((code, "en"))[0].name.split(".")[1] for code in test_set.languages}
    assert files == {
        "ar": "arb", "bak_Cyrl": "bak", "en": "eng", "es": "spa", "fr": "fra", "ne": "nep", "pt": "por-BR",
        "sr": "srp-Cyrl", "srp_Latn": "srp-Latn", "zh": "zho-CN", "zhtrad": "zho-TW",
    }  # fmt: skip


def test_ntrex_without_its_source(tmp_path):
    write_files(tmp_path, ["newstest2019-ref.fra.txt"])
    with pytest.raises(InputError, match=r"expected newstest2019-src\.eng\.txt"):
        make_test_set("ntrex", tmp_path)


# TICO-19


@needs_shared
def test_tico19_as_published():
    test_set = make_test_set("tico19", SHARED / "tico19")
    directions = test_set.directions("all")
    assert len(directions) == 70 and all("en" in direction for direction in directions)
    rows = [line.split("\t") for line in (SHARED / "tico19/en-zu.tsv").read_bytes().decode("utf-8").split("\n")[:-1]]
    english, zulu = (list(side) for side in zip(*rows, strict=True))
    assert test_set.source(("en", "zu")) == english and test_set.references(("en", "zu")) == [zulu]
    assert test_set.source(("zu", "en")) == zulu and test_set.references(("zu", "en")) == [english]
    # English is not the same in all files
    assert test_set.source(("en", "zu")) != test_set.source(("en", "fr"))
    assert test_set.source_key(("en", "zu")) != test_set.source_key(("en", "fr"))
    # what other sets call so is Sorani, and Korean is not here
    files = {
        code: test_set.files(("en", code))[0].name for code in ("ku", "kmr_Latn", "knc_Latn", "tir_Ethi", "es", "pt")
    }
    assert list(files.values()) == [
        "en-ckb.tsv", "en-ku.tsv", "en-kr.tsv", "en-ti.tsv", "en-es-419.tsv", "en-pt-BR.tsv",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"en-de: no file for de .*expected en-de\.tsv"):
        test_set.directions("en-de")
    with pytest.raises(InputError, match=r"fr-es: no such direction .*expected en on one side"):
        test_set.directions("fr-es")


def test_tico19_with_the_publishers_header(tmp_path):
    header = "sourceLang\ttargetLang\tsourceString\ttargetString\tstringID\turl\tlicense\ttranslatorId"
    write_lines(tmp_path / "test.en-fr.tsv", [header, 'en\tfr\t"one\tun\t1\tu\tl\tt', "en\tfr\ttwo\tdeux\t2\tu\tl\tt"])
    test_set = make_test_set("tico19", tmp_path)
    assert joined(test_set.directions("all")) == ["en-fr", "fr-en"]
    assert test_set.source(("en", "fr")) == ['"one', "two"]
    assert test_set.references(("en", "fr")) == [["un", "deux"]]


def test_tico19_rows_of_other_width(tmp_path):
    write_lines(tmp_path / "en-fr.tsv", ["one\tun", "two\tdeux\tzwei"])
    with pytest.raises(InputError, match=r"en-fr\.tsv line 2: 3 columns, expected 2"):
        make_test_set("tico19", tmp_path).directions("all")


# WMT


@needs_shared
def test_wmt22_as_published():
    test_set = make_test_set("wmt", SHARED / "wmt22/txt")
    assert test_set.name == "generaltest2022"
    directions = test_set.directions("all")
    assert joined(directions) == ["cs-uk", "en-de", "en-liv_Latn", "en-zh", "ru-sah_Cyrl", "sah_Cyrl-ru", "uk-en"]
    assert joined(test_set.directions("wmt23")) == ["en-de", "en-zh", "uk-en"]
    assert make_test_set("wmt", SHARED / "wmt22").directions("all") == directions
    assert len(test_set.source(("en", "de"))) == 2037
    first, second = test_set.references(("en", "de"))
    assert len(first) == len(second) == 2037 and first != second
    assert second == read_lines(SHARED / "wmt22/txt/references/generaltest2022.en-de.ref.B.de")
    assert test_set.source_key(("en", "de")) != test_set.source_key(("en", "zh"))
    with pytest.raises(InputError, match=r"uk-cs: no such direction .*NAME\.uk-cs\.src\.uk and "):
        test_set.directions("uk-cs")


def test_wmt23_names_and_a_missing_reference(tmp_path):
    """WMT-23 writes refA for A; a source whose reference is kept back is no direction."""
    write_files(tmp_path / "sources", ["generaltest2023.en-he.src.en", "generaltest2023.en-ja.src.en"])
    write_files(tmp_path / "references", [f"generaltest2023.en-he.ref.{name}.he" for name in ("refA", "refB")])
    test_set = make_test_set("wmt", tmp_path)
    assert joined(test_set.directions("wmt23")) == ["en-he"]
    assert len(test_set.references(("en", "he"))) == 2
    with pytest.raises(InputError, match=r"references/NAME\.en-ja\.ref\.A\.ja"):
        test_set.directions("en-ja")


def test_all_references_are_checked(tmp_path):
    write_files(tmp_path, ["sources/x.en-de.src.en", "references/x.en-de.ref.A.de"])
    write_lines(tmp_path / "references/x.en-de.ref.B.de", ["x"])
    with pytest.raises(InputError, match=r"src\.en has 2 lines, .*ref\.B\.de 1;"):
        make_test_set("wmt", tmp_path).directions("en-de")


def test_two_test_sets_of_wmt_in_one_folder(tmp_path):
    for name in ("newstest2020", "newstest2021"):
        write_files(tmp_path, [f"sources/{name}.en-de.src.en", f"references/{name}.en-de.ref.A.de"])
    with pytest.raises(InputError, match=r"newstest2021.*same direction as newstest2020"):
        make_test_set("wmt", tmp_path)


# Line-aligned files


def test_aligned_files_with_hyphens_in_their_codes(tmp_path):
    names = [
        "tatoeba.test.en-pt-BR.en",
        "tatoeba.test.en-pt-BR.pt-BR",
        "zh-TW-fao_Latn.zh-TW",
        "zh-TW-fao_Latn.fao_Latn",
    ]
    write_files(tmp_path, [*names, "readme.txt", "notes.en"])
    test_set = make_test_set("aligned", tmp_path)
    assert joined(test_set.directions("all")) == ["en-pt", "zhtrad-fao_Latn"]
    assert test_set.files(("en", "pt"))[1] == [tmp_path / names[1]]
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match=f"{names[0]} without {names[1]}"):
        make_test_set("aligned", tmp_path)


def test_aligned_files_of_one_direction_twice(tmp_path):
    write_files(tmp_path, [f"{name}.{code}" for name in ("a.en-fr", "b.eng-fra") for code in name[2:].split("-")])
    with pytest.raises(InputError, match=r"b\.eng-fra\.eng: of the same direction as a\.en-fr\.en"):
        make_test_set("aligned", tmp_path)


# TED


@pytest.fixture
def talks(tmp_path):
    """Four rows; only the first is in all languages. zh-cn is Chinese where there is zh, too."""
    rows = [
        ["talk_name", "en", "fr", "zh", "zh-cn", "pt-br", "nb", "calv"],
        ["a_1", 'one " quote', "un", "旧", "一", "um", "en", "uno"],
        ["a_1", "two", "__NULL__", "旧", "二", "dois", "to", "dos"],
        ["a_1", "three", "_ _ NULL _ _", "旧", "", "três", "__NULL__", "tres"],
        ["b_2", "__NULL__", "quatre", "旧", "四", "__NULL__", "__NULL__", "__NULL__"],
    ]
    write_lines(tmp_path / "all_talks_test.tsv", ["\t".join(row) for row in rows])
    return tmp_path / "all_talks_test.tsv"


def test_ted_leaves_out_what_one_side_lacks(talks):
    test_set = make_test_set("ted", talks)
    assert test_set.languages == ["en", "fr", "zh", "pt", "no"]
    assert len(test_set.directions("all")) == 20
    sides = {d: (test_set.source(d), *test_set.references(d)) for d in test_set.directions("en-*,fr-zh")}
    assert sides == {
        ("en", "fr"): (['one " quote'], ["un"]),
        ("en", "zh"): (['one " quote', "two"], ["一", "二"]),
        ("en", "pt"): (['one " quote', "two", "three"], ["um", "dois", "três"]),
        ("en", "no"): (['one " quote', "two"], ["en", "to"]),
        ("fr", "zh"): (["un", "quatre"], ["一", "四"]),
    }
    assert len({test_set.source_key(direction) for direction in sides}) == 5


def test_ted_languages_without_a_common_row(tmp_path):
    write_lines(tmp_path / "t.tsv", ["talk_name\ten\tfr\tde", "a\tone\tun\t__NULL__", "a\t__NULL__\tdeux\tzwei"])
    test_set = make_test_set("ted", tmp_path / "t.tsv")
    assert joined(test_set.directions("all")) == ["en-fr", "fr-en", "fr-de", "de-fr"]
    with pytest.raises(InputError, match=r"en-de: no such direction .*expected a row with both"):
        test_set.directions("en-de")
    with pytest.raises(InputError, match=r"no file for es .*expected a column for es"):
        test_set.directions("en-es")


@pytest.mark.parametrize(
    ("rows", "message"),
    [(["talk_name\ten", "a\tone"], "names no two languages"), (["talk_name\ten\tfr", "a\tone"], "line 2: 2 columns")],
)
def test_tables_that_are_not_teds(tmp_path, rows, message):
    write_lines(tmp_path / "t.tsv", rows)
    with pytest.raises(InputError, match=message):
        make_test_set("ted", tmp_path / "t.tsv")
