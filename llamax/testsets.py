"""Test sets: their directions, and the lines of sources and references.

A test set is a folder or file as its makers publish it. Text is never changed, and only \\n and \\r\\n end a line.

    test_set = open_test_set(args)
    for direction in test_set.directions("en-*,*-en"):
        translate(test_set.source(direction))
"""

import itertools
import re

from llamax.files import InputError, existing_file, existing_folder
from llamax.languages import resolve
from llamax.records import read_blocks

# The paper's directions of WMT-23 (appendix B.2).
WMT23 = (
    "de-en", "en-cs", "en-de", "en-he", "en-ja", "en-ru", "en-uk", "en-zh", "he-en", "ja-en", "ru-en", "uk-en", "zh-en",
)  # fmt: skip

# What test sets call a language where languages.tsv does not tell. The code is FLORES-200's where it has the language,
# so that a language has one code in all sets.
OTHER_NAMES = {
    "bak": "bak_Cyrl", "bem": "bem_Latn", "bod": "bod_Tibt", "din": "dik_Latn", "div": "div_Thaa", "dzo": "dzo_Tibt",
    "eo": "epo_Latn", "eu": "eus_Latn", "eus": "eus_Latn", "ewe": "ewe_Latn", "fao": "fao_Latn", "fij": "fij_Latn",
    "fuc": "fuc_Latn", "hmn": "hmn_Latn", "kin": "kin_Latn", "kmr": "kmr_Latn", "kr": "knc_Latn", "liv": "liv_Latn",
    "mey": "mey_Arab", "mlg": "plt_Latn", "nb": "no", "nde": "nde_Latn", "nep": "ne", "nno": "nno_Latn",
    "nus": "nus_Latn", "prs": "prs_Arab", "rw": "kin_Latn", "sah": "sah_Cyrl", "shi": "shi_Arab", "sin": "sin_Sinh",
    "smo": "smo_Latn", "sq": "als_Latn", "sqi": "als_Latn", "ssw": "ssw_Latn", "tah": "tah_Latn", "tat": "tat_Cyrl",
    "ti": "tir_Ethi", "tir": "tir_Ethi", "ton": "ton_Latn", "tsn": "tsn_Latn", "tuk": "tuk_Latn", "uig": "uig_Arab",
    "ven": "ven_Latn", "yue": "yue_Hant",
}  # fmt: skip
# Regional forms that are languages.tsv's language, rather than what has the plain name.
REGIONS = {
    "por-br": "pt", "pt-br": "pt", "zh-cn": "zh", "zho-cn": "zh", "zh-tw": "zhtrad", "zho-tw": "zhtrad",
}  # fmt: skip

CACHED_TEXTS = 16  # sides of a direction; 1,012 lines take about 0.3 MB


def add_test_set_arguments(add, required=True):
    """Add the options that name a test set. `add` is a parser's add_argument; `required` changes only the help."""
    note = "one of these is required" if required else "default: what was translated"
    for kind, cls in KINDS.items():
        add(f"--{kind}", metavar=cls.metavar, help=cls.layout + (f"; {note}" if kind == "flores" else ""))
    add("--split", choices=("dev", "devtest"), help="of --flores (default: devtest)")


def chosen_test_set(args):
    """(kind, path) of the test set that the options name, None if they name none, or InputError if several."""
    given = [(kind, getattr(args, kind)) for kind in KINDS if getattr(args, kind) is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(f'--{kind}' for kind, _ in given)}: several test sets, expected one; choose")
    if args.split and given and given[0][0] != "flores":
        raise InputError(f"--split {args.split}: --{given[0][0]} has no splits; leave the option out")
    return given[0] if given else None


def open_test_set(args):
    """The TestSet that the options name, or InputError."""
    chosen = chosen_test_set(args)
    if not chosen:
        raise InputError(f"no test set given, expected one of {', '.join(f'--{kind}' for kind in KINDS)}")
    return make_test_set(*chosen, args.split)


def make_test_set(kind, path, split=None):
    """The TestSet of a kind (an option without its --) at a path, or InputError."""
    return Flores(path, split or "devtest") if kind == "flores" else KINDS[kind](path)


class TestSet:
    """Directions and their lines. A list of lines is shared by all who ask for it: do not change it."""

    __test__ = False  # for pytest: no test class
    kind = ""  # the option without its --
    metavar, layout = "DIR", ""  # for --help
    split = None

    def __init__(self, path, name, languages):
        self.path = path
        self.name = name
        self.languages = languages  # codes, in the order in which * stands for them
        self._texts = {}

    def has(self, direction):
        """Whether there is a test in (source code, target code)."""
        raise NotImplementedError

    def files(self, direction):
        """(file that holds the source, [files that hold references])."""
        raise NotImplementedError

    def expected(self, source, target):
        """The name of a file that would add the direction; either code may be *."""
        raise NotImplementedError

    def source(self, direction):
        """The lines to translate; none is empty."""
        return self._sentences(self.files(direction)[0])

    def references(self, direction):
        """One list of lines, or several, each as long as the source; no line is empty."""
        return [self._sentences(path) for path in self.files(direction)[1]]

    def source_key(self, direction):
        """The same string for two directions that have the same source."""
        return "-".join(direction)

    def directions(self, text):
        """[(source code, target code)] of --directions, in the order given, each once: comma-separated a-b, a-*, *-b,
        *-*, all, or wmt23. A pattern stands for what the set has.

        Raises InputError if a language or direction named is not there, or if files that must be aligned are not.
        """
        chosen = {}
        for pattern in (part.strip() for part in text.split(",")):
            if pattern == "wmt23":
                found = [tuple(direction.split("-")) for direction in WMT23]
            else:
                found = self._product(pattern)
            chosen.update(dict.fromkeys(direction for direction in found if self.has(direction)))
        if not chosen:
            raise InputError(
                f"--directions {text}: no direction between two languages of --{self.kind} {self.path}; "
                f"it has {some(self.languages)}"
            )
        self._check(chosen)
        return list(chosen)

    def _product(self, pattern):
        sides = ["*", "*"] if pattern == "all" else pattern.split("-")
        if len(sides) != 2 or not all(sides):
            raise InputError(f"--directions {pattern!r}: expected a-b, a-*, *-b, *-*, all or wmt23, for instance en-fr")
        try:
            named = [side if side == "*" else resolve(side).code for side in sides]
        except InputError as error:
            raise InputError(f"--directions {pattern}: {error}") from None
        absent = [code for code in named if code != "*" and code not in self.languages]
        if absent or ("*" not in named and named[0] != named[1] and not self.has(tuple(named))):
            what = f"no file for {absent[0]} ({resolve(absent[0]).name})" if absent else "no such direction"
            raise InputError(
                f"--directions {pattern}: {what} in --{self.kind} {self.path}, expected {self.expected(*named)}, "
                f"found {some(self.languages)}; add it or leave it out"
            )
        return itertools.product(*(self.languages if code == "*" else [code] for code in named))

    def _check(self, directions):
        """Raise InputError where files are at fault: now, not after hours of translation."""
        for direction in directions:
            source, references = self.files(direction)
            check_alignment([source, *references])

    def _sentences(self, path):
        def read():
            lines = read_lines(path)
            for number, line in enumerate(lines, 1):
                refuse_empty(line, path, number)
            return lines

        return self._cached(path, read)

    def _cached(self, key, make):
        """What make() gave for the key before, or gives now; what was used longest ago makes room."""
        value = self._texts.pop(key, None)
        self._texts[key] = value = make() if value is None else value
        if len(self._texts) > CACHED_TEXTS:
            del self._texts[next(iter(self._texts))]
        return value


class MultiWay(TestSet):
    """The same sentences in all languages: {code: file}."""

    def __init__(self, path, name, files):
        super().__init__(path, name, list(files))
        self._files = files

    def has(self, direction):
        return direction[0] != direction[1] and set(direction) <= set(self._files)

    def files(self, direction):
        return self._files[direction[0]], [self._files[direction[1]]]

    def expected(self, source, target):
        missing = {source, target} - {"*", *self._files}
        return " and ".join(self._file_name(resolve(code)) for code in sorted(missing))

    def source_key(self, direction):
        return direction[0]

    def _check(self, directions):
        check_alignment(dict.fromkeys(self._files[code] for direction in directions for code in direction))


class Bilingual(TestSet):
    """Files of their own for each direction: {direction: (source file, [reference files])}."""

    def __init__(self, path, name, files):
        super().__init__(path, name, sorted({code for direction in files for code in direction}))
        self._files = files

    def has(self, direction):
        return direction in self._files

    def files(self, direction):
        return self._files[direction]


class Flores(MultiWay):
    """Flores-101 or FLORES-200: SPLIT/LANGUAGE.SPLIT."""

    kind, layout = "flores", "Flores-101 or -200: SPLIT/LANGUAGE.SPLIT"

    def __init__(self, path, split):
        self.split = split
        path = existing_folder(path, "--flores")
        files = flores_files(path, split)
        flores200 = any(file.stem == resolve(code).flores200 for code, file in files.items())
        self._column = "flores200" if flores200 else f"flores101_{split}"
        super().__init__(path, "flores200" if flores200 else "flores101", files)

    def _file_name(self, language):
        return f"{self.split}/{getattr(language, self._column) or language.code}.{self.split}"


def flores_files(folder, split):
    """{language code: file} of a Flores folder, under whichever of the language's codes the file is named."""
    files = {}
    for path in sorted(existing_folder(folder / split, "--flores").glob(f"*.{split}")):
        try:
            language = resolve(path.stem)
        except InputError:
            continue  # no test set, or of a language that --directions could not name either
        if language.code not in files or path.stem == getattr(language, f"flores101_{split}"):
            files[language.code] = path
    if not files:
        raise InputError(f"--flores {folder}: no {split}/LANGUAGE.{split} in it, for instance {split}/eng.{split}")
    return files


class Ntrex(MultiWay):
    """NTREX-128. A second reference (newstest2019-ref-2) counts where the first is missing, a regional form such as
    fra-CA where the plain one is."""

    kind, layout = "ntrex", "NTREX-128: newstest2019-src.eng.txt, newstest2019-ref.LANGUAGE.txt"

    def __init__(self, path):
        path = existing_folder(path, "--ntrex")
        folder = path / "NTREX-128" if (path / "NTREX-128").is_dir() else path
        references = [*sorted(folder.glob("newstest2019-ref.*.txt")), *sorted(folder.glob("newstest2019-ref-2.*.txt"))]
        files = by_language((file.name.split(".")[1], file) for file in references)
        files["en"] = folder / "newstest2019-src.eng.txt"
        if not files["en"].is_file() or len(files) == 1:
            raise InputError(f"--ntrex {path}: expected {self.layout.partition(': ')[2]}; check the folder")
        super().__init__(path, "ntrex", {code: files[code] for code in sorted(files)})

    def _file_name(self, language):
        return f"newstest2019-ref.{language.ntrex or language.iso639_3}.txt"


class Tico19(Bilingual):
    """TICO-19: tables of English and one language, with the publishers' header or with these two columns alone. Files
    differ in their English (quotation marks for the most part), so that each has sources of its own."""

    kind, layout = "tico19", "TICO-19: en-LANGUAGE.tsv"

    def __init__(self, path):
        path = existing_folder(path, "--tico19")
        named = [(re.fullmatch(r"(?:.+\.)?en-([^.]+)\.tsv", file.name), file) for file in sorted(path.iterdir())]
        # ku is Kurmanji here; Sorani, which is ku elsewhere, is ckb.
        named = [("kmr" if match[1] == "ku" else match[1], file) for match, file in named if match]
        files = {}
        for code, file in by_language(named).items():
            files["en", code] = files[code, "en"] = file, [file]
        if not files:
            raise InputError(f"--tico19 {path}: no en-LANGUAGE.tsv in it, for instance en-fr.tsv; check the folder")
        super().__init__(path, "tico19", files)

    def expected(self, source, target):
        if not {source, target} & {"en", "*"}:
            return "en on one side"
        return f"en-{source if target in ('en', '*') else target}.tsv"

    def source(self, direction):
        return self._sides(direction)[direction[0] != "en"]

    def references(self, direction):
        return [self._sides(direction)[direction[1] != "en"]]

    def _sides(self, direction):
        """[English lines, lines of the other language]."""
        path = self.files(direction)[0]
        return self._cached(path, lambda: tico_sides(path))

    def _check(self, directions):
        for direction in directions:
            self._sides(direction)


def tico_sides(path):
    rows = read_lines(path)
    names, columns = rows[0].split("\t"), [0, 1]
    header = "sourceString" in names and "targetString" in names
    if header:
        columns = [names.index("sourceString"), names.index("targetString")]
    sides = [], []
    for number, row in enumerate(rows[header:], 1 + header):
        cells = cells_of(row, len(names) if header else 2, path, number)
        for side, column in zip(sides, columns, strict=True):
            refuse_empty(cells[column], path, number)
            side.append(cells[column])
    return sides


class Wmt(Bilingual):
    """A test set of WMT in the layout of github.com/wmt-conference; all references of a direction are used."""

    kind = "wmt"
    layout = "WMT: sources/NAME.SRC-TGT.src.SRC, references/NAME.SRC-TGT.ref.A.TGT"

    def __init__(self, path):
        path = existing_folder(path, "--wmt")
        folder = path / "txt" if (path / "txt").is_dir() else path
        files, names = {}, set()
        for source in sorted(folder.glob("sources/*.*-*.src.*")):
            name, pair, _, side = source.name.rsplit(".", 3)
            direction, target = split_pair(pair, side)
            references = sorted(folder.glob(f"references/{name}.{pair}.ref.*.{target}")) if direction else ()
            if references:  # those of some directions are not published
                add_direction(files, direction, source, references)
                names.add(name)
        if not files:
            raise InputError(f"--wmt {path}: expected {self.layout.partition(': ')[2]}; check the folder")
        super().__init__(path, "+".join(sorted(names)), files)

    def expected(self, source, target):
        pair = f"{source}-{target}"
        return f"sources/NAME.{pair}.src.{source} and references/NAME.{pair}.ref.A.{target}"


class Aligned(Bilingual):
    """Any pairs of files, line by line translations of each other."""

    kind, layout = "aligned", "any other: NAME.SRC-TGT.SRC and NAME.SRC-TGT.TGT, line by line"

    def __init__(self, path):
        path = existing_folder(path, "--aligned")
        files = {}
        for source in sorted(path.iterdir()):
            stem, _, side = source.name.rpartition(".")
            direction, target = split_pair(stem.rpartition(".")[2], side)
            if not direction:
                continue
            reference = source.with_name(f"{stem}.{target}")
            if not reference.is_file():
                raise InputError(
                    f"--aligned {path}: {source.name} without {reference.name}; add it or remove the first"
                )
            add_direction(files, direction, source, [reference])
        if not files:
            raise InputError(f"--aligned {path}: expected NAME.SRC-TGT.SRC and NAME.SRC-TGT.TGT, as test.en-fr.en")
        super().__init__(path, path.resolve().name, files)

    def expected(self, source, target):
        return f"NAME.{source}-{target}.{source} and NAME.{source}-{target}.{target}"


class Ted(TestSet):
    """The table of TED talks (github.com/neulab/word-embeddings-for-nmt): a column a language. A direction has the rows
    in which both sides are there, so that directions from one language have different sources."""

    kind, metavar, layout = "ted", "FILE", "TED talks: a table such as all_talks_test.tsv"

    def __init__(self, path):
        path = existing_file(path, "--ted")
        header, *rows = read_lines(path)
        names = header.split("\t")
        self._columns = by_language((name, i) for i, name in enumerate(names) if name != "talk_name")
        if len(self._columns) < 2:
            raise InputError(f"--ted {path}: line 1 names no two languages, expected talk_name, en, fr … between tabs")
        present = {code: bytearray() for code in self._columns}
        for number, row in enumerate(rows, 2):
            cells = cells_of(row, len(names), path, number)
            for code, column in self._columns.items():
                present[code].append(in_ted(cells[column]))
        self._present = {code: int.from_bytes(rows) for code, rows in present.items()}  # a byte a row
        super().__init__(path, path.stem, list(self._columns))

    def has(self, direction):
        source, target = (self._present.get(code, 0) for code in direction)
        return direction[0] != direction[1] and source & target != 0

    def files(self, direction):
        return self.path, [self.path]

    def expected(self, source, target):
        absent = [code for code in (source, target) if code not in ("*", *self._columns)]
        return f"a column for {absent[0]}" if absent else "a row with both"

    def source(self, direction):
        return self._pair(direction)[0]

    def references(self, direction):
        return [self._pair(direction)[1]]

    def _pair(self, direction):
        def both():
            columns = [self._columns[code] for code in direction]
            rows = self._cached("rows", lambda: read_lines(self.path)[1:])
            pairs = ([cells[column] for column in columns] for cells in (row.split("\t") for row in rows))
            return [list(side) for side in zip(*(pair for pair in pairs if all(map(in_ted, pair))), strict=True)]

        return self._cached(direction, both)

    def _check(self, directions):
        pass  # one row, one sentence: nothing can be shifted


def in_ted(text):
    """Whether there is a translation; the second mark is what a tokenizer made of the first."""
    return bool(text.strip()) and "__NULL__" not in text and "_ _ NULL _ _" not in text


KINDS = {cls.kind: cls for cls in (Flores, Ntrex, Tico19, Wmt, Ted, Aligned)}


# Languages of file names


def language_of(name):
    """(code, rank) of what a test set calls a language, or None if --directions could not name it either. Of several
    names of one language the lowest rank is meant: a regional form counts where the plain one is missing."""
    base, _, suffix = name.replace("_", "-").partition("-")
    if name.lower() in REGIONS:
        return REGIONS[name.lower()], 0
    regional = 0 < len(suffix) < 4  # four letters are a script
    for candidate in (name, base if regional else f"{base}_{suffix}"):
        try:
            code = OTHER_NAMES.get(candidate) or resolve(candidate).code
        except InputError:
            continue
        return code, 2 if regional else 1
    return None


def by_language(named):
    """{code: value} of (name, value) pairs."""
    found = {}
    for name, value in named:
        code, rank = language_of(name) or (None, None)
        if code and (code not in found or rank < found[code][0]):
            found[code] = rank, value
    return {code: value for code, (_, value) in found.items()}


def split_pair(pair, source):
    """((source code, target code), target as it is spelt) of SRC-TGT, given SRC; (None, "") if it is no such pair."""
    target = pair.removeprefix(f"{source}-")
    languages = [language_of(name) for name in (source, target)]
    if pair == target or None in languages or languages[0][0] == languages[1][0]:
        return None, ""
    return (languages[0][0], languages[1][0]), target


def add_direction(files, direction, source, references):
    if direction in files:
        raise InputError(f"{source}: of the same direction as {files[direction][0].name}; move one of them away")
    files[direction] = source, references


def some(codes):
    return ", ".join(sorted(codes)[:10]) + (" …" if len(codes) > 10 else "")


# Lines


def read_lines(path):
    """The lines of a text file. Only \\n and \\r\\n end a line: a translation may hold U+2028 and the like."""
    lines = []
    for block in read_blocks(path):
        for number, line in enumerate(block.lines, block.first_line):
            try:
                lines.append(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(f"{path} line {number}: not valid UTF-8 ({error}); save the file as UTF-8") from None
    if not lines:
        raise InputError(f"{path}: empty, expected a sentence a line; check the file")
    return lines


def refuse_empty(line, path, number):
    if not line.strip():
        raise InputError(f"{path} line {number}: empty, expected a sentence; mend the file")


def cells_of(row, columns, path, number):
    cells = row.split("\t")
    if len(cells) != columns:
        raise InputError(f"{path} line {number}: {len(cells)} columns, expected {columns}, between tabs; mend the file")
    return cells


def check_alignment(paths):
    """Raise InputError if two of the files differ in length, or if a line is empty."""
    lengths = {}
    for path in paths:
        lengths[path] = 0
        for block in read_blocks(path):
            for number, line in enumerate(block.lines, block.first_line):
                refuse_empty(line, path, number)
            lengths[path] += len(block.lines)
    (first, expected), *others = lengths.items()
    for path, length in others:
        if length != expected:
            raise InputError(f"{first} has {expected} lines, {path} {length}; they must be translations of each other")
