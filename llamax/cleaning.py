"""Cleaning of documents and pairs, all of it off by default: texts are changed first, then kept or dropped.

What is dropped raises Unusable with "too short", "repetitive", "wrong language", "identical sides" or "length ratio".
"""

import collections
import contextlib
import functools
import mmap
import struct
import unicodedata
from importlib.metadata import version
from math import inf

from llamax.files import InputError, existing_file, fingerprint
from llamax.languages import load, resolve
from llamax.records import Unusable

FLAGS = ("normalize", "fix_text", "lid_model", "lid_threshold", "lid_thresholds", "min_chars", "max_repetition")
PAIR_FLAGS = ("max_length_ratio", "drop_identical")
LID_THRESHOLD = 0.5
LID_FLOOR = 1e-4  # less probable labels count as 0: as fast as asking for the best five, and exact enough

# ftfy is to repair what nobody wrote: mojibake, entities outside of HTML, control characters, ligatures as one
# character. It is kept from what is right or a matter of style: curly quotes, the full-width punctuation of Chinese
# and Japanese, and Unicode normalisation, which is --normalize's.
FTFY = {"uncurl_quotes": False, "fix_character_width": False, "normalization": None, "explain": False}

# Labels that mean several languages of the table, or one by a code that resolve() does not take for it: the
# macro-languages of lid.176 and of GlotLID before version 3, and what GlotLID 3 calls Chinese and Estonian.
LABELS = {
    **dict.fromkeys(("zh", "zho", "cmn", "zho_Hani", "cmn_Hani"), ("zh", "zhtrad")),
    **dict.fromkeys(("sh", "hbs"), ("bs", "hr", "sr")),
    **{"hbs_Latn": ("bs", "hr"), "hbs_Cyrl": ("sr",), "nb": ("no",), "nor": ("no",), "nor_Latn": ("no",)},
    **{"aze_Latn": ("az",), "ekk_Latn": ("et",), "nep_Deva": ("ne",), "ori_Orya": ("or",)},
}


def add_arguments(parser, pairs):
    """Add the flags: for sentence pairs if `pairs`, else for documents."""
    text = "side" if pairs else "text"
    add = parser.add_argument_group("cleaning", "all off by default").add_argument
    add("--normalize", choices=["NFC", "NFKC"], help="Unicode form; NFKC makes ， ² ™ ASCII and splits Thai and Lao am")
    add("--fix-text", action="store_true", default=None, help="repair mojibake, entities, control characters (ftfy)")
    add("--lid-model", metavar="FILE", help="fastText language identification, for instance lid.176.bin or GlotLID's")
    add("--lid-threshold", type=float, metavar="P", help=f"least probability of a {text}'s language (default 0.5)")
    add("--lid-thresholds", nargs="+", metavar="CODE=P", help="the same for single languages; 0: not checked")
    add("--min-chars", type=int, metavar="N", help=f"a shorter {text} is dropped")
    add("--max-repetition", type=float, metavar="R", help=f"share of a {text} in n-grams it had before (Gopher: 0.15)")
    if pairs:
        add("--max-length-ratio", type=float, metavar="R", help="of the longer to the shorter side, for instance 3")
        add("--drop-identical", action="store_true", default=None, help="drop pairs of equal sides: untranslated text")


def check(args):
    """The problems found, a list of strings. Sets defaults; args.lid_thresholds becomes {code of the table: P}."""
    problems = []
    limits = {"lid_threshold": (0, 1), "min_chars": (1, inf), "max_repetition": (0, 1), "max_length_ratio": (1, inf)}
    for flag, (least, most) in limits.items():
        value = getattr(args, flag, None)
        if value is not None and not least <= value <= most:
            expected = "a share from 0 to 1" if most == 1 else "at least 1"
            problems.append(f"--{flag.replace('_', '-')} {value}: expected {expected}")
    thresholds = {}
    for item in args.lid_thresholds or ():
        code, _, share = item.partition("=")
        try:
            code, share = resolve(code).code, float(share)
            if not 0 <= share <= 1:
                raise ValueError
            if code in thresholds:
                problems.append(f"--lid-thresholds {item}: a second one for {code}, expected one; remove either")
            thresholds[code] = share
        except InputError as error:
            problems.append(f"--lid-thresholds {item}: {error}")
        except ValueError:
            problems.append(f"--lid-thresholds {item}: expected CODE=P with P from 0 to 1, for instance bs=0.3")
    if args.lid_model is None:
        for flag in ("lid_threshold", "lid_thresholds"):
            if getattr(args, flag) is not None:
                problems.append(f"--{flag.replace('_', '-')} without --lid-model: give the model or leave it out")
    else:
        args.lid_threshold = LID_THRESHOLD if args.lid_threshold is None else args.lid_threshold
        try:
            existing_file(args.lid_model, "--lid-model")
        except InputError as error:
            problems.append(str(error))
    args.lid_thresholds = thresholds or None
    return problems


def arguments(args):
    """The flags for a dataset's manifest, None where off: what the texts depend on. Call `check` before."""
    values = {flag: getattr(args, flag) for flag in FLAGS + PAIR_FLAGS if hasattr(args, flag)}
    if args.lid_model is not None:
        values["lid_model"] = fingerprint(args.lid_model)["blake2b"]
    if args.fix_text:
        values["fix_text"] = f"ftfy {version('ftfy')}"
    return values


class Cleaning:
    """What the flags ask for. Call `check` before, and make it before the worker processes, which inherit the model.

    active: whether any flag is given. unchecked: the table's languages that the model has no label for; their text
    is kept whatever language it is in.
    """

    def __init__(self, args):
        self.active = any(getattr(args, flag, None) is not None for flag in FLAGS + PAIR_FLAGS)
        self.form, self.min_chars, self.max_repetition = args.normalize, args.min_chars or 1, args.max_repetition
        self.max_length_ratio = getattr(args, "max_length_ratio", None)
        self.drop_identical = getattr(args, "drop_identical", None)
        self.fix_text, self.identification, self.unchecked = None, None, ()
        if args.fix_text:
            import ftfy

            self.fix_text = functools.partial(ftfy.fix_text, config=ftfy.TextFixerConfig(**FTFY))
        if args.lid_model is not None:
            self.identification = Identification(args.lid_model, args.lid_threshold, args.lid_thresholds or {})
            self.unchecked = tuple(code for code in load() if code not in self.identification.labels)

    def text(self, text, lang):
        """The document's text as it is to be used, or Unusable. `lang` is a code that resolve() gave."""
        text = self._changed(text, "text")
        self._judge(text, lang, "text")
        return text

    def pair(self, src, tgt, src_lang, tgt_lang, mixed=False):
        """(src, tgt) as they are to be used, or Unusable. `mixed`: src is code-switched, so in no one language."""
        src, tgt = self._changed(src, "src"), self._changed(tgt, "tgt")
        if self.drop_identical and src.casefold().split() == tgt.casefold().split():
            raise Unusable("identical sides", f"{len(src)} characters")
        if self.max_length_ratio is not None:
            lengths = length(src), length(tgt)
            if max(lengths) > self.max_length_ratio * min(lengths):
                ratio = max(lengths) / min(lengths)
                raise Unusable("length ratio", f"{ratio:.2f}: src {lengths[0]}, tgt {lengths[1]}")
        self._judge(src, src_lang, "src", mixed)
        self._judge(tgt, tgt_lang, "tgt")
        return src, tgt

    def _changed(self, text, name):
        if self.fix_text:
            text = self.fix_text(text)
        if self.form:
            text = unicodedata.normalize(self.form, text)
        if len(text.strip()) < self.min_chars:
            raise Unusable("too short", f"{name}: {len(text.strip())} characters")
        return text

    def _judge(self, text, lang, name, mixed=False):
        if self.max_repetition is not None:
            share = repetition(text, resolve(lang).spaces)
            if share > self.max_repetition:
                raise Unusable("repetitive", f"{name}: {share:.3f}")
        if self.identification and not mixed:
            self.identification.judge(text, lang, name)


def length(text):
    """Length in letters, about the same for what means the same: an ideograph counts 3, a syllable (Korean, Japanese,
    Amharic) or other wide character 2. Of the pairs of Flores-101 dev, all languages with all, 0.3 % have a ratio
    above 2 and 0.02 % one above 3."""
    if text.isascii():
        return len(text)
    return sum(count * _letters(char) for char, count in collections.Counter(text).items())


@functools.cache
def _letters(char):
    name = unicodedata.name(char, "")
    if name.startswith("CJK UNIFIED IDEOGRAPH"):
        return 3
    return 2 if unicodedata.east_asian_width(char) in "WF" or name.startswith("ETHIOPIC SYLLABLE") else 1


def repetition(text, spaces):
    """The share of a text's characters, without spaces, that are in 5-grams of words which it had before.

    It is the "duplicate 5-gram character fraction" of Gopher (Rae et al. 2021, Table A1), read so that the first
    occurrence is no repetition and a repeated n-gram is skipped whole. Where words are not separated by `spaces`, an
    n-gram is of characters, 30 by `length`, which are about as long as five words.
    """
    units = tuple(text.split()) if spaces else "".join(text.split())
    n = 5 if spaces else max(1, 30 * len(units) // max(1, length(units)))
    seen, repeated, i = set(), 0, 0
    while i <= len(units) - n:
        ngram = units[i : i + n]
        if ngram in seen:
            repeated += sum(map(len, ngram))
            i += n
        else:
            seen.add(ngram)
            i += 1
    return repeated / max(1, sum(map(len, units)))


class Identification:
    """A fastText model that tells languages apart. labels: {language: the labels that may mean it}."""

    def __init__(self, path, threshold, thresholds):
        import fasttext

        labels = model_labels(path)
        try:
            self.model = fasttext.load_model(str(path))
        except (ValueError, RuntimeError, MemoryError) as error:
            raise InputError(f"--lid-model {path}: fastText cannot load it ({error}); get it again") from None
        self.threshold, self.thresholds, self.labels = threshold, thresholds, {}
        for label in labels:
            name = label.removeprefix("__label__")
            with contextlib.suppress(InputError):  # a language that neither the table nor iso639-3_Script has
                for code in LABELS.get(name) or (resolve(name).code,):
                    self.labels[code] = (*self.labels.get(code, ()), label)
        if not self.labels:
            found = ", ".join(labels[:3]) or "none"
            raise InputError(f"--lid-model {path}: labels {found}, expected languages; give a model that tells them")
        for code, share in thresholds.items():
            if share and code not in self.labels:
                raise InputError(f"--lid-thresholds {code}={share:g}: {path} has no label for {code}; leave it out")

    def judge(self, text, lang, name):
        """Raise Unusable if the labels that may mean `lang` together are less probable than its threshold."""
        own, least = self.labels.get(lang), self.thresholds.get(lang, self.threshold)
        if not own or not least:
            return
        labels, shares = self.model.predict(text.replace("\n", " "), k=-1, threshold=LID_FLOOR)
        probability = sum(share for label, share in zip(labels, shares, strict=True) if label in own)
        if probability < least:
            found = f"{labels[0].removeprefix('__label__')} {shares[0]:.3f}" if labels else "no language"
            raise Unusable("wrong language", f"{name}: P({lang}) {probability:.3f}, found {found}")


def model_labels(path):
    """The labels of a fastText classifier, from its file, in the form of fastText 0.9.2's FastText::saveModel.

    The file must be as long as its parts say it is: fastText itself dies of a signal, or goes on with whatever weights
    it got, where a model is truncated.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            kind, labels, size = _layout(data)
            if size != len(data):
                raise ValueError
    except (ValueError, IndexError, struct.error):  # also of an empty file
        raise InputError(f"--lid-model {path}: no whole fastText model; download it again or give another") from None
    if kind != 3:
        raise InputError(f"--lid-model {path}: holds word vectors, expected a classifier; give lid.176.bin, say")
    return labels


def _layout(data):
    """(kind of model, labels, bytes) of a fastText file. Raises what model_labels() catches if it is none."""
    magic, edition, *settings = struct.unpack_from("<14i", data)
    entries, _, _, _, pruned = struct.unpack_from("<3i2q", data, 64)
    if magic != 793712314 or edition not in (11, 12):
        raise ValueError
    labels, at = [], 92
    for _ in range(entries):  # a text, a null byte, its count (8 bytes), 1 if it is a label, else 0
        end = data.find(b"\x00", at)
        if end < 0:
            raise ValueError
        if data[end + 9] == 1:
            labels.append(data[at:end].decode("utf-8"))
        at = end + 10

    def quantizer(at):
        return at + 16 + 1024 * struct.unpack_from("<i", data, at)[0]

    def matrix(at, quantized):
        if not quantized:
            rows, columns = struct.unpack_from("<2q", data, at)
            return at + 16 + 4 * rows * columns
        normed, rows, _, codes = struct.unpack_from("<?2qi", data, at)
        at = quantizer(at + 21 + codes)
        return quantizer(at + rows) if normed else at

    at += 8 * max(0, pruned)
    quantized = data[at]
    at = matrix(at + 1, quantized)
    return settings[7], labels, matrix(at + 1, quantized and data[at])
