"""The languages, and every code and name their data goes by.

languages.tsv has one row for each of the 102 languages of Flores-101 (Table 9 of the paper). Text from other languages
is told apart by EMMA-500's form, iso639-3_Script, for which no table is needed.
"""

import difflib
import functools
import re
from dataclasses import dataclass, fields
from pathlib import Path

from llamax.files import InputError

TABLE = Path(__file__).with_name("languages.tsv")

# ISO 15924 codes of the scripts that running text of living (or still read) languages is found in. A list, because
# any four letters would let a misspelling such as fao_Latm pass for a language of its own.
SCRIPTS = (
    "Adlm", "Arab", "Aran", "Armn", "Bali", "Bamu", "Bass", "Batk", "Beng", "Bopo", "Brai", "Bugi", "Buhd", "Cakm",
    "Cans", "Cham", "Cher", "Copt", "Cyrl", "Deva", "Ethi", "Geor", "Gong", "Gonm", "Goth", "Grek", "Gujr", "Guru",
    "Hanb", "Hang", "Hani", "Hano", "Hans", "Hant", "Hebr", "Hira", "Hmng", "Hmnp", "Hrkt", "Java", "Jpan", "Kali",
    "Kana", "Khmr", "Knda", "Kore", "Lana", "Laoo", "Latn", "Lepc", "Limb", "Lisu", "Mand", "Mlym", "Mong", "Mroo",
    "Mtei", "Mymr", "Nagm", "Newa", "Nkoo", "Nshu", "Olck", "Orya", "Osge", "Plrd", "Rjng", "Rohg", "Samr", "Saur",
    "Sinh", "Sora", "Sund", "Sylo", "Syrc", "Tagb", "Tale", "Talu", "Taml", "Tavt", "Telu", "Tfng", "Tglg", "Thaa",
    "Thai", "Tibt", "Tnsa", "Toto", "Vaii", "Wara", "Wcho", "Yiii",
)  # fmt: skip
# Scripts in which words follow one another without a space; a space there, if any, ends a phrase.
UNSPACED_SCRIPTS = (
    "Bali", "Hanb", "Hani", "Hans", "Hant", "Hira", "Hrkt", "Java", "Jpan", "Kana", "Khmr", "Lana", "Laoo", "Mymr",
    "Nshu", "Tale", "Talu", "Thai", "Tibt", "Yiii",
)  # fmt: skip

_SEE = "see llamax/languages.tsv; a language not in it is written iso639-3_Script, for instance fao_Latn"

OTHER_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")


@dataclass(frozen=True)
class Language:
    """A language. `code` is the paper's, and what this pipeline writes; what does not exist is empty."""

    code: str
    flores101_dev: str
    flores101_devtest: str  # differs from the one in dev for Chinese only
    flores200: str
    ntrex: str
    name: str  # in prompts
    alias: str  # the spelling in the authors' prompts where it is not `name`
    iso639_3: str  # as in FLORES-200: pes and fuv where Flores-101 has fas and ful
    script: str
    family: str
    spaces: bool  # whether words are separated by spaces


@functools.cache
def load():
    """The table as {the paper's code: Language}, in the order of the codes. Treat it as read-only: it is shared."""
    columns = [field.name for field in fields(Language)]
    try:
        lines = TABLE.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{TABLE}: not UTF-8 ({error}); save it as UTF-8") from None
    header, *rows = [line.split("\t") for line in lines or [""]]
    if header != columns:
        raise InputError(f"{TABLE}: columns {header}, expected {columns}; restore the first line")
    table = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise InputError(
                f"{TABLE} line {number}: {len(row)} columns, expected {len(columns)}; separate them by tabs"
            )
        values = dict(zip(columns, row, strict=True))
        if values["spaces"] not in ("yes", "no"):
            raise InputError(f"{TABLE} line {number}: spaces is {values['spaces']!r}, expected yes or no; correct it")
        language = Language(**(values | {"spaces": values["spaces"] == "yes"}))
        if language.code in table:
            raise InputError(f"{TABLE} line {number}: a second row for {language.code!r}, expected one; remove either")
        table[language.code] = language
    return table


def resolve(code):
    """The Language that `code` stands for: a code of any column of the table, a name or alias in any case, or, for
    a language outside the table, EMMA-500's iso639-3_Script, which then is the code and the name.

    Raises InputError if it is none of these, or stands for several (zho is two languages here).
    """
    if not isinstance(code, str):
        raise InputError(f"language {code!r:.60}: expected a string such as 'fr'; {_SEE}")
    codes, names = _index()
    found = codes.get(code) or names.get(code.casefold())
    if found is None:
        return _outside(code)
    if len(found) > 1:
        several = ", ".join(f"{row.code} ({row.name})" for row in found)
        raise InputError(f"language {code!r}: stands for {several}; give the code of one of them, or {_SEE}")
    return found[0]


@functools.cache
def _index():
    """{code: languages} and {casefolded name: languages}. The paper's codes go first: each is its own row's only."""
    codes, names = {}, {}
    for row in load().values():
        keys = {row.flores101_dev, row.flores101_devtest, row.flores200, row.ntrex, row.iso639_3} - {""}
        # ara_Arab must be what ara is, not another language beside it.
        keys |= {f"{key}_{row.script}" for key in keys if len(key) == 3}
        for key in keys:
            codes[key] = (*codes.get(key, ()), row)
        for key in {row.name.casefold(), row.alias.casefold()} - {""}:
            names[key] = (*names.get(key, ()), row)
    codes.update({code: (row,) for code, row in load().items()})
    return codes, names


@functools.lru_cache(maxsize=4096)
def _outside(code):
    """The language of an iso639-3_Script code that the table lacks. Whether FLORES-200 has it, its files tell."""
    iso639_3, _, script = code.partition("_")
    if not OTHER_CODE.fullmatch(code) or script not in SCRIPTS:
        raise InputError(_unknown(code[:60]))
    return Language(
        code=code,
        flores101_dev="",
        flores101_devtest="",
        flores200=code,
        ntrex="",
        name=code,
        alias="",
        iso639_3=iso639_3,
        script=script,
        family="",
        spaces=script not in UNSPACED_SCRIPTS,
    )


@functools.lru_cache(maxsize=4096)  # a corpus in an unknown language asks again at each record
def _unknown(code):
    """The message for a code that stands for no language, with those that may have been meant."""
    return f"language {code!r}: not known; nearest: {', '.join(_nearest(code)) or 'none'}; {_SEE}"


def _nearest(code):
    if OTHER_CODE.fullmatch(code):  # only its script is wrong
        return [code[:4] + script for script in difflib.get_close_matches(code[4:], SCRIPTS)]
    codes, names = _index()
    candidates = {key.casefold(): found for key, found in (codes | names).items()}
    code = code.casefold()
    first = re.split("[^a-z]", code)[0]  # pt-PT, zho_simplified, spanish: a whole part in common says most
    keys = [key for key in candidates if first and first in re.split("[^a-z]+", key)]
    keys += difflib.get_close_matches(code, candidates, n=5, cutoff=0.8 if keys else 0.6)
    languages = dict.fromkeys(row for key in keys for row in candidates[key])
    return [f"{row.code} ({row.name})" for row in list(languages)[:3]]
