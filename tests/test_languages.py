"""The language table against the files that people have, and resolve() for every kind of code."""

import csv
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from llamax import languages
from llamax.files import InputError
from llamax.languages import SCRIPTS, UNSPACED_SCRIPTS, load, resolve

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no public data in ../shared/data to compare the table with")
TABLE = load()


def column(name):
    return [getattr(language, name) for language in TABLE.values()]


def read_rows(name, delimiter):
    with open(DATA / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_table_has_102_languages_sorted_by_code():
    assert len(TABLE) == 102
    assert list(TABLE) == sorted(TABLE)
    assert all(code == language.code for code, language in TABLE.items())


@pytest.mark.parametrize("name", ["code", "flores101_dev", "flores101_devtest", "flores200", "name"])
def test_column_is_complete_and_unique(name):
    values = column(name)
    assert all(values)
    assert len(set(values)) == 102


@pytest.mark.parametrize("name", ["iso639_3", "script", "family"])
def test_column_is_complete(name):
    assert all(column(name))


def test_ntrex_codes_are_unique_where_there_is_one():
    codes = [code for code in column("ntrex") if code]
    assert len(set(codes)) == len(codes) == 45


def test_no_cell_is_padded():
    for line in languages.TABLE.read_text(encoding="utf-8").splitlines():
        assert all(cell == cell.strip() for cell in line.split("\t")), line


def test_flores200_is_the_iso_code_and_the_script():
    for language in TABLE.values():
        assert language.flores200 == f"{language.iso639_3}_{language.script}"
        assert language.script in SCRIPTS


def test_words_without_spaces():
    assert {code for code, language in TABLE.items() if not language.spaces} == {
        "zh", "zhtrad", "ja", "th", "lo", "km", "my",
    }  # fmt: skip
    for language in TABLE.values():
        assert language.spaces == (language.script not in UNSPACED_SCRIPTS), language


@needs_data
@pytest.mark.parametrize("split", ["dev", "devtest"])
def test_flores101_files_are_the_table(split):
    stems = {path.stem for path in (DATA / "flores101" / split).glob(f"*.{split}")}
    assert set(column(f"flores101_{split}")) == stems


@needs_data
def test_paper_codes_are_the_table():
    assert set(TABLE) == {row["lang"] for row in read_rows("llamax_counts.csv", ",")}


@needs_data
def test_prompt_names_are_the_authors():
    rows = read_rows("llamax_prompt_names.tsv", "\t")
    assert len(rows) == 102
    for row in rows:
        language = TABLE[row["code"]]
        assert row["name"] == (language.alias or language.name)
        assert row["flores101"] == language.flores101_devtest


@needs_data
@pytest.mark.parametrize("language", [row for row in TABLE.values() if row.ntrex], ids=lambda row: row.code)
def test_ntrex_code_finds_one_file(language):
    assert len(list((DATA / "ntrex" / "NTREX-128").glob(f"newstest2019-*.{language.ntrex}.txt"))) == 1


@needs_data
def test_ntrex_files_left_out():
    """Those in no language of the table, and those in another variety or script than the table's row."""
    files = {path.name.split(".")[1] for path in (DATA / "ntrex" / "NTREX-128").glob("newstest2019-*.txt")}
    other_languages = "div ewe fuc kin kmr mey mlg nde prs shi smo sqi tah tat tir tsn yue"
    second_choices = "eng-IN spa-MX srp-Latn"
    assert files - set(column("ntrex")) == {*other_languages.split(), *second_choices.split()}


@pytest.mark.parametrize(
    "name", ["code", "flores101_dev", "flores101_devtest", "flores200", "ntrex", "name", "alias", "iso639_3"]
)
def test_resolve_every_value_of_a_column(name):
    for language in TABLE.values():
        value = getattr(language, name)
        if value and value != "zho":
            assert resolve(value) is language


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("no", "nob"),
        ("ku", "ckb"),
        ("ns", "nso"),
        ("jv", "jav"),
        ("zh", "zho_simpl"),
        ("zhtrad", "zho_trad"),
    ],
)
def test_devtest_file_of_a_paper_code(code, expected):
    assert resolve(code).flores101_devtest == expected
    assert resolve(expected).code == code


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("fa", "pes_Arab"),
        ("ar", "arb_Arab"),
        ("ff", "fuv_Latn"),
        ("sw", "swh_Latn"),
        ("az", "azj_Latn"),
        ("ne", "npi_Deva"),
        ("mn", "khk_Cyrl"),
        ("lv", "lvs_Latn"),
        ("om", "gaz_Latn"),
        ("ps", "pbt_Arab"),
        ("ms", "zsm_Latn"),
        ("uz", "uzn_Latn"),
        ("tl", "tgl_Latn"),
        ("or", "ory_Orya"),
        ("et", "est_Latn"),
        ("ku", "ckb_Arab"),
        ("no", "nob_Latn"),
        ("ns", "nso_Latn"),
        ("sr", "srp_Cyrl"),
        ("zh", "zho_Hans"),
        ("zhtrad", "zho_Hant"),
    ],
)
def test_flores200_code_of_a_paper_code(code, expected):
    assert resolve(code).flores200 == expected
    assert resolve(expected).code == code


def test_chinese_differs_between_dev_and_devtest():
    differ = {code for code, row in TABLE.items() if row.flores101_dev != row.flores101_devtest}
    assert differ == {"zh", "zhtrad"}
    for code in ("cmn_Hans", "zho_simpl", "zho_Hans", "Chinese Simpl"):
        assert resolve(code).code == "zh"
    for code in ("cmn_Hant", "zho_trad", "zho_Hant", "zho-TW", "chinese trad"):
        assert resolve(code).code == "zhtrad"


def test_names_in_any_case_codes_as_they_are():
    assert resolve("AFRIKAANS") is resolve("Akrikaans") is resolve("akrikaans") is TABLE["af"]
    assert TABLE["af"].name == "Afrikaans"
    assert resolve("filipino (tagalog)") is TABLE["tl"]
    for code in ("EN", "eng_latn", "Fra", " fr"):
        with pytest.raises(InputError):
            resolve(code)


@pytest.mark.parametrize(
    ("code", "expected"), [("ara_Arab", "ar"), ("fas_Arab", "fa"), ("mon_Cyrl", "mn"), ("swa_Latn", "sw")]
)
def test_script_joined_to_a_code_of_the_table(code, expected):
    assert resolve(code).code == expected


@pytest.mark.parametrize(
    ("code", "spaces"),
    [
        ("fao_Latn", True),
        ("srp_Latn", True),  # Serbian, but not the table's
        ("kor_Kore", True),
        ("div_Thaa", True),
        ("bod_Tibt", False),
        ("zho_Hani", False),
        ("wuu_Hans", False),
        ("yue_Hant", False),
        ("ain_Jpan", False),
        ("nod_Thai", False),
        ("kjg_Laoo", False),
        ("kxm_Khmr", False),
        ("shn_Mymr", False),
    ],
)
def test_language_outside_the_table(code, spaces):
    language = resolve(code)
    assert language.code == language.name == language.flores200 == code
    assert f"{language.iso639_3}_{language.script}" == code
    assert language.spaces is spaces
    assert language.flores101_dev == language.flores101_devtest == language.ntrex == language.alias == ""
    assert code not in load()


@pytest.mark.parametrize(
    ("code", "nearest"),
    [
        ("Frensh", "fr (French)"),
        ("Spanish", "es (Spanish (Latin American))"),
        ("cmn", "zh (Chinese Simpl), zhtrad (Chinese Trad)"),
        ("en_US", "en (English)"),
        ("sr-Latn", "sr (Serbian)"),
        ("fra_Latm", "fra_Latn"),
        ("fao_Latm", "fao_Latn"),
        ("fao_Latn\n", ""),
        ("fao_Xxxx", "none"),
        ("a" * 100_000, "none"),
        ("\ud800\u2028", "none"),
        ("", "none"),
    ],
)
def test_unknown_language_is_one_line_that_helps(code, nearest):
    for _ in range(2):  # the second time from the cache
        with pytest.raises(InputError) as caught:
            resolve(code)
        message = str(caught.value)
        assert f"language {code[:60]!r}: not known; nearest: {nearest}" in message
        assert "llamax/languages.tsv" in message
        assert "iso639-3_Script" in message
        assert len(message.splitlines()) == 1
        assert len(message) < 400


@pytest.mark.parametrize("code", [None, 5, ["fr"], {"lang": "fr"}, b"fr", ["x", "y"]])
def test_not_a_string(code):
    with pytest.raises(InputError, match="expected a string"):
        resolve(code)


def test_ambiguous_code_names_its_languages():
    with pytest.raises(InputError, match=r"'zho': stands for zh \(Chinese Simpl\), zhtrad \(Chinese Trad\)"):
        resolve("zho")


def test_language_is_immutable_and_a_key():
    with pytest.raises(FrozenInstanceError):
        resolve("fr").name = "other"
    assert len({resolve("fr"), resolve("fra"), resolve("fao_Latn"), resolve("fao_Latn")}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("code\t", "kode\t", 1), r"columns .*kode.*, expected"),
        (lambda text: text + "gd\tScottish Gaelic\n", "line 104: 2 columns, expected 11"),
        (lambda text: text.replace("\tyes\n", "\ttrue\n", 1), "line 2: spaces is 'true', expected yes or no"),
        (lambda text: text + text.splitlines()[1] + "\n", "line 104: a second row for 'af'"),
        (lambda text: "", "columns"),
    ],
)
def test_edited_table_that_cannot_be_used(tmp_path, monkeypatch, change, message):
    path = tmp_path / "languages.tsv"
    path.write_text(change(languages.TABLE.read_text(encoding="utf-8")), encoding="utf-8")
    monkeypatch.setattr(languages, "TABLE", path)
    with pytest.raises(InputError, match=message):
        load.__wrapped__()


def test_table_in_another_encoding(tmp_path, monkeypatch):
    path = tmp_path / "languages.tsv"
    path.write_bytes(languages.TABLE.read_bytes() + "võ".encode("latin-1"))
    monkeypatch.setattr(languages, "TABLE", path)
    with pytest.raises(InputError, match="not UTF-8"):
        load.__wrapped__()


def test_imports_neither_torch_nor_numpy():
    code = "import sys, llamax.languages as l; l.resolve('fr'); sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
