"""What a score does not say of translations: whether they are in the language asked for, empty, or repeat themselves.

R_src and R_tgt are the percent of outputs whose most probable language, to a fastText model, is the source's or the
target's (LLaMAX, Tables 7 and 13). What they can tell is limited by the model: lid.176 takes half of Flores' Bosnian
for Croatian and has never heard of Hausa. So the same model first reads text that surely is in the languages
(`Identifier.recognised`), and a rate is given only where the model knows the language from the other one.
"""

import collections
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from llamax.cleaning import repetition
from llamax.files import fingerprint
from llamax.languages import load
from llamax.lid import load_model

# A language whose own lines the model recognises less often (percent) gets no rate: perfect translations would look
# off-target. Nor does one for which the model takes more than 100 - USABLE percent of the other language's lines.
USABLE = 90
# The share of a line, without spaces, in n-grams that it had before. A line of 30 letters or more that says everything
# twice has over 0.25. Of the 204,918 lines of Flores-101 (dev and devtest, 102 languages) 19 have, 6 of them because
# the reference itself says a sentence twice by mistake.
REPEATED = 0.25


@dataclass(frozen=True)
class Recognition:
    """What a language's own lines, its references say, are identified as.

    found: {fastText label, or None for nothing: lines}; rate: percent that may be `code`, None without a label for it.
    """

    code: str
    found: collections.Counter
    rate: float | None
    taken_for: tuple  # up to three (label, percent), other languages, the most frequent first

    @property
    def usable(self):
        return self.rate is not None and self.rate >= USABLE

    def __str__(self):
        own = "no label" if self.rate is None else f"{self.rate:.1f} % recognised"
        others = ", ".join(f"{label} {percent:.1f} %" for label, percent in self.taken_for)
        return f"{self.code}: {own}" + (f", taken for {others}" if others else "")


class Identifier:
    """A fastText model that identifies languages, given as --lid-model: lid.176.bin, or GlotLID's, say.

    labels: {language code: the labels that may mean it}; lid.176's "zh" may be zh and zhtrad. digest: the file's.
    unlabelled: the table's languages that no label means. Make it before the worker processes, which inherit it.
    """

    def __init__(self, path):
        self.model, self.labels = load_model(path)
        self.digest = fingerprint(path)["blake2b"]
        self.signature = f"lid:{Path(path).stem}-{self.digest[:8]}|fasttext-predict:{version('fasttext-predict')}"
        self.unlabelled = tuple(code for code in load() if code not in self.labels)
        self._nothing = self.model.predict("")

    def identify(self, lines):
        """{label: number of lines}, each line by its most probable label; None if the line is empty, or holds nothing
        that the model has a weight for and so would be what it takes an empty line for."""
        return collections.Counter(map(self._identify, lines))

    def _identify(self, line):
        # fastText reads to the end of a line, or of a "sentence".
        found = self.model.predict(line.replace("\n", " ").replace("</s>", " "))
        return None if found == self._nothing or not found[0] or is_empty(line) else found[0][0]

    def percent(self, found, code):
        """The percent of identify()'s lines that may be in a language, None if no label means it."""
        labels = self.labels.get(code)
        return labels and 100 * sum(found[label] for label in labels) / max(1, found.total())

    def rates(self, lines, src, tgt):
        """(R_src, R_tgt) of outputs, in percent of the lines, each None if no label means the language."""
        found = self.identify(lines)
        return self.percent(found, src), self.percent(found, tgt)

    def recognised(self, lines, code):
        """The Recognition of lines that are in a language: a test set's references or sources."""
        found = self.identify(lines)
        own = self.labels.get(code, ())
        others = [
            (label.removeprefix("__label__") if label else "nothing", 100 * count / found.total())
            for label, count in found.most_common()
            if label not in own
        ]
        return Recognition(code, found, self.percent(found, code), tuple(others[:3]))

    def tells(self, recognition, other):
        """Whether a rate of the first Recognition's language means something beside lines in the other's."""
        return recognition.usable and self.percent(other.found, recognition.code) <= 100 - USABLE

    def rows(self, lines, src, tgt):
        """[{"metric", "score", "n", "signature"}] of outputs: R_src and R_tgt, without those that tell nothing.

        src, tgt: Recognitions. The signature holds the rate that the target's own lines have.
        """
        found = self.identify(lines)
        return [
            {
                "metric": metric,
                "score": self.percent(found, own.code),
                "n": len(lines),
                "signature": f"{self.signature}|references:{self.percent(tgt.found, own.code):.2f}",
            }
            for metric, own, other in (("R_src", src, tgt), ("R_tgt", tgt, src))
            if self.tells(own, other)
        ]

    def caveats(self, recognitions):
        """What the model cannot tell of these languages, as lines of text: none if it can tell them all."""
        codes = [recognition.code for recognition in recognitions]
        lines = []
        if unlabelled := [code for code in codes if code not in self.labels]:
            lines.append(f"no label: {' '.join(unlabelled)}")
        means = collections.defaultdict(list)
        for code in codes:
            for label in self.labels.get(code, ()):
                means[label].append(code)
        for label, shared in means.items():
            if len(shared) > 1:
                lines.append(f"not told apart: {' '.join(shared)} share the label {label.removeprefix('__label__')}")
        unclear = [r for r in recognitions if not r.usable and r.rate is not None]
        return lines + [str(recognition) for recognition in sorted(unclear, key=lambda r: r.rate)]


def empty(lines):
    """The number of empty lines."""
    return sum(map(is_empty, lines))


def repeated(lines):
    """The number of lines that repeat themselves: more than REPEATED of a line is in 5-grams of words that it had
    before, or in n-grams of characters as long as 30 letters. Of both, because an output may be in another language
    than the one asked for."""
    return sum(map(is_repeated, lines))


def is_empty(line):
    """Whether a line has no visible character: spaces, control characters and joiners are none."""
    return not any(char.isprintable() and not char.isspace() for char in line)


def is_repeated(line):
    """Whether a line repeats itself, as repeated() counts them."""
    words = line.split()
    # The exact shares take long, so they are for the few lines that can have any. A 5-gram that was there before is
    # five words in a row that were.
    if len(words) - len({*words}) >= 5:
        seen, row = set(), 0
        for word in words:
            row = row + 1 if word in seen else 0
            if row == 5:
                if repetition(line, True) > REPEATED:
                    return True
                break
            seen.add(word)
    # An n-gram of characters that was there before holds a block at a multiple of (n + 1) // 2 that was. n is 30 where
    # each character counts as one letter, as all before Hangul do, and at least 10 elsewhere.
    text = "".join(words)
    block = 15 if text.isascii() or max(text, default="") < "\u1100" else 5
    for i in range(block, len(text) - block + 1, block):
        if text.find(text[i : i + block]) < i:
            return repetition(line, False) > REPEATED
    return False
