"""Cleaning of documents and pairs, all of it off by default: texts are changed first, then kept or dropped.

What is dropped raises Unusable with "too short", "repetitive", "wrong language", "identical sides" or "length ratio".
"""

import collections
import functools
import unicodedata
from importlib.metadata import version
from math import inf

from llamax.files import InputError, existing_file, fingerprint
from llamax.languages import load, resolve
from llamax.lid import load_model
from llamax.records import Unusable

FLAGS = ("normalize", "fix_text", "lid_model", "lid_threshold", "lid_thresholds", "min_chars", "max_repetition")
PAIR_FLAGS = ("max_length_ratio", "drop_identical")
LID_THRESHOLD = 0.5
LID_FLOOR = 1e-4  # less probable labels count as 0: as fast as asking for the best five, and exact enough

# ftfy is to repair what nobody wrote: mojibake, entities outside of HTML, control characters, ligatures as one
# character. It is kept from what is right or a matter of style: curly quotes, the full-width punctuation of Chinese
# and Japanese, and Unicode normalisation, which is --normalize's.
FTFY = {"uncurl_quotes": False, "fix_character_width": False, "normalization": None, "explain": False}


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
    """A fastText model and the probability that it must give a text's language. labels: as load_model() gives them."""

    def __init__(self, path, threshold, thresholds):
        self.model, self.labels = load_model(path)
        self.threshold, self.thresholds = threshold, thresholds
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
