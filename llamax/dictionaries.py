"""Bilingual dictionaries with English on one side, in the forms they are published in.

muse     two words a line, a space or a tab between them (MUSE, github.com/facebookresearch/MUSE)
panlex   {src}_{tgt}_lexicon.txt: two entries, of several words perhaps, a tab between them (Wang et al. 2022)
list     any other two columns with a tab between them (GATITOS, github.com/google-research/url-nlp)
"""

import functools
import re
from pathlib import Path

import langcodes
import regex

from llamax.files import InputError, existing_file, fingerprint
from llamax.languages import SCRIPTS, resolve
from llamax.lexicon import clean
from llamax.records import Unusable, parse_lines, read_blocks, usable_text

FORMS = ("muse", "panlex", "list")
SAMPLE_BYTES = 1 << 14  # enough to tell the script a dictionary is written in
# Written in these Unicode scripts; all others in the one of their own code.
UNICODE_SCRIPTS = {"Hans": ("Hani",), "Hant": ("Hani",), "Jpan": ("Hani", "Hira", "Kana"), "Kore": ("Hang", "Hani"),
                   "Hanb": ("Hani", "Bopo"), "Hrkt": ("Hira", "Kana"), "Aran": ("Arab",)}  # fmt: skip
# Varieties that a region tells apart, and that have a code of their own: without it they would pass for the standard.
REGIONAL = {"ar-MA": "ary", "fa-AF": "prs"}


def find_dictionary(form, value):
    """The dictionary that "en-fr=FILE" or "FILE" stands for: its fingerprint, form and languages."""
    flag = f"--{form}"
    match = re.fullmatch(r"([^=/]+)=(.+)", value)
    if match and not Path(value).is_file():
        name, path = match.groups()
    else:
        name, path = Path(value).stem.removesuffix("_lexicon"), value
    languages_of(name, f"{flag} {value}")  # a name that says nothing is a likelier slip than a missing file
    path = existing_file(path, flag)
    with open(path, "rb") as file:
        sample = file.read(SAMPLE_BYTES).rpartition(b"\n")[0]
    return fingerprint(path) | {"form": form, "languages": languages_of(name, f"{flag} {value}", sample)}


def languages_of(name, given, sample=None):
    """The codes that a name such as en-fr, eng_fra, en-bam_Latn or en_bm-Nkoo joins; one must be English, the other
    not. The script of a language that is not in the table and whose name does not say it is that of the sample."""
    found, why = set(), ""
    for separator in re.finditer("[-_]", name):
        sides = name[: separator.start()], name[separator.end() :]
        try:
            codes = [_language(side) for side in sides]
        except InputError as error:
            why = why or f"{error}; "
            continue
        if codes.count("en") == 1:
            columns = [line.split(b"\t")[codes.index(None)] for line in (sample or b"").splitlines() if b"\t" in line] \
                if None in codes else []  # fmt: skip
            text = b"\n".join(columns).decode("utf-8", errors="ignore")
            codes = [code or _by_script(side, script_of(text)) for code, side in zip(codes, sides, strict=True)]
        found.add(tuple(codes))
    english = [codes for codes in found if codes.count("en") == 1]
    if len(english) == 1:
        return list(english[0])
    if found and not english:
        first = "-".join(code or "?" for code in min(found, key=str))
        raise InputError(
            f"{given}: is {first}, expected English on exactly one side, because entries are merged by their English "
            "word; leave this dictionary out"
        )
    raise InputError(
        f"{given}: {why}expected two languages with - between them, or a file named after them; write "
        "en-CODE=FILE, for instance en-fr=FILE or en-bam_Latn=FILE"
    )


def _language(tag):
    """The code of a language tag; None if it is known but does not say its script, which our codes do."""
    try:
        return resolve(tag).code
    except InputError as error:
        iso639_3 = _iso639_3(tag)
        if iso639_3 is None or "stands for" in str(error):
            raise
    script = langcodes.Language.get(tag).script
    return resolve(f"{iso639_3}_{script}").code if script else None


def _iso639_3(tag):
    """ISO 639-3 (or -2) of a BCP 47 tag, None if it is none."""
    if tag in REGIONAL:
        return REGIONAL[tag]
    if not re.fullmatch("[a-z]{2,3}(-[A-Z][a-z]{3})?(-[A-Z]{2})?", tag):
        return None
    language = langcodes.Language.get(tag)
    return language.to_alpha3() if language.is_valid() else None


def _by_script(tag, script):
    """The code of a language by its tag and what it is written in: one of the table (swa is sw there) if that fits."""
    try:
        language = resolve(langcodes.standardize_tag(tag))
        if script in UNICODE_SCRIPTS.get(language.script, (language.script,)):
            return language.code
    except InputError:
        pass
    return resolve(f"{_iso639_3(tag)}_{script}").code


def script_of(text):
    """The ISO 15924 code of the script that most letters of a text are written in; Latn for a text without letters."""
    counts = {script: len(pattern.findall(text)) for script, pattern in _letters_of_scripts().items()}
    return max(counts, key=counts.get) if any(counts.values()) else "Latn"


@functools.cache
def _letters_of_scripts():
    return {script: regex.compile(rf"\p{{Script={script}}}") for script in SCRIPTS if script not in UNICODE_SCRIPTS}


def parse_entry(line, form):
    """The two columns of a dictionary's line, or Unusable."""
    try:
        text = line.decode("utf-8").removeprefix("\ufeff")  # the byte order mark of Windows editors
    except UnicodeDecodeError as error:
        raise Unusable("invalid UTF-8", str(error)) from None
    # Some MUSE files separate by a space, some by a tab; those with a tab may have spaces inside an entry.
    columns = re.split(" +", text.strip(" ")) if form == "muse" and "\t" not in text else text.split("\t")
    if len(columns) != 2:
        raise Unusable("not two columns", f"found {len(columns)}: {text[:80]}")
    return tuple(usable_text(clean(column), f"column {i}") for i, column in enumerate(columns, 1))


def read_dictionary(source, rejects, progress):
    """Yield (English word, word of the other language) of a dictionary, in order, duplicates included."""
    reverse, usable = source["languages"][1] == "en", 0
    for block in read_blocks(source["path"]):
        pairs, _, rejected = parse_lines(block, functools.partial(parse_entry, form=source["form"]))
        rejects.add(len(pairs) + len(rejected), rejected)
        usable += len(pairs)
        yield from ((head, word) for word, head in pairs) if reverse else pairs
        progress.update(block.size)
    if not usable:  # in a small file this could hide below --max-reject-rate
        raise InputError(
            f"--{source['form']} {source['path']}: no line has two columns as this form separates them; check the "
            f"file, or name it as one of --{', --'.join(form for form in FORMS if form != source['form'])}"
        )


def noise(word, language):
    """What is wrong with an entry of a dictionary: "no letter", "annotated" (brackets), "other script"; or None."""
    if not any(map(str.isalpha, word)):
        return "no letter"
    if any(bracket in word for bracket in "()[]{}（）"):
        return "annotated"
    return None if _of_script(language)(word) else "other script"


@functools.cache
def _of_script(language):
    script = resolve(language).script
    names = UNICODE_SCRIPTS.get(script, (script,))
    return regex.compile("|".join(rf"\p{{Script={name}}}" for name in names)).search
