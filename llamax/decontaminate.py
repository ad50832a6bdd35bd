"""Decontamination: which training texts hold a sentence of given evaluation files.

Texts and sentences are compared as sequences of tokens, so that case, punctuation, spacing and line breaks hide
nothing: the text is case-folded and brought to NFKC; a token is a run of letters, marks and digits, except that each
character of a script written without spaces between words is a token of its own. All else separates tokens, but format
characters (soft hyphens, zero-width joiners) and variation selectors are left out as if they were not there.

A run of tokens is measured in words. In the scripts without spaces a character of Chinese, Japanese or Yi counts half
a word, one of the others a sixth: in Flores-101 an English word corresponds to 1.6 characters in Chinese and 2.3 in
Japanese, but to 5.3 to 6.7 in Lao, Thai, Khmer and Burmese.
"""

import functools
import glob
import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np

from llamax.files import InputError

# A sentence of fewer words counts only where it is a whole line or text: "Thank you." must not drop each document that
# says so. Eight words are rarely the same by chance, and at most 5% of any language's Flores-101 lines have fewer.
MINIMUM_WORDS = 8

_FLAG = "--decontaminate"
_BATCH = 1 << 17  # characters searched at a time: the arrays stay in the processor's cache

# Blocks, [first, last] code points, of the scripts in languages.UNSPACED_SCRIPTS.
_HALF_WORD = [
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x302D), (0x3031, 0x303C), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),  # Han
    (0x3040, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x1AFF0, 0x1B16F),  # Hiragana, Katakana, Bopomofo
    (0xA000, 0xA4CF), (0x16FE1, 0x16FE3), (0x1B170, 0x1B2FF),  # Yi, Nushu
]  # fmt: skip
_SIXTH_OF_WORD = [
    (0x0E00, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0x1780, 0x17FF),  # Thai, Lao, Tibetan, Myanmar, Khmer
    (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F), (0xA980, 0xA9DF),  # Tai Le, Tai Lue, Tham, Balinese, Javanese
]  # fmt: skip
_APOSTROPHES = [(0x02B9, 0x02BF)]  # letters to Unicode, but interchanged with the signs in Ukrainian, Uzbek, Hausa
# What is left out besides format characters: selectors of one glyph of a character, and the grapheme joiner.
_VARIATION = [(0x034F, 0x034F), (0x180B, 0x180D), (0x180F, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF)]

# Kinds of characters. The end of a text is a token, one that no sentence has: so no match goes from text to text.
_OTHER, _IGNORED, _ENDS_LINE, _ENDS_TEXT, _WORD, _HALF, _SIXTH = range(7)
_WORTH = np.array([0, 0, 0, 6, 6, 3, 1])  # of a token, in sixths of a word, by the kind of its first character

_BASE = 0x9E3779B97F4A7C15  # of the hashes; odd, so that it has an inverse modulo 2**64
_START = np.uint64(0xD1B54A32D192ED03)  # added to a token's first character: "a b" is not "ab"


class EvaluationSets:
    """The sentences of evaluation files, to be found in training text.

    paths: each "PATH" or "NAME=PATH". PATH is a UTF-8 text file, one sentence a line, or a folder of such files at any
    depth; NAME, by default its last part, is what find() reports. ngram: None, or the N of words at which a run of
    tokens shared with a sentence is enough (13 in GPT-3's training). Raises InputError for paths it cannot use.

    The sentences are kept as sorted arrays of hashes, which forked workers share.
    """

    def __init__(self, paths, ngram=None):
        sources = _sources(paths)
        self.names, self.ngram = list(sources), ngram
        sentences, anchors, shared = [], [], []  # pairs of arrays: hashes and what is to be known of them
        for owner, path in enumerate(sources.values()):
            count = 0
            for batch in (batch for file in _files(path) for batch in _batches(_lines(file))):
                tokens = _Tokens(batch)
                begin, end = tokens.texts
                count += len(begin)
                sentences.append((tokens.hashes(begin, end), np.full(len(begin), owner, np.uint16)))
                anchor_end = tokens.run_ends(MINIMUM_WORDS)[begin]
                long = anchor_end <= end
                anchors.append((tokens.hashes(begin[long], anchor_end[long]), (end - begin)[long].astype(np.uint64)))
                if ngram:
                    end = tokens.run_ends(ngram)
                    begin = np.flatnonzero(end <= np.repeat(tokens.text_ends, np.diff(tokens.text_ends, prepend=-1)))
                    shared.append((tokens.hashes(begin, end[begin]), np.full(len(begin), owner, np.uint16)))
            if not count:
                raise InputError(f"{_FLAG} {path}: holds no sentence, expected one a line; check the path")
        self.sentences = _Table(*_joined(sentences))
        self.shared = _Table(*_joined(shared)) if ngram else None
        # A long sentence is looked for by its first words, its anchor, then by as many tokens as it has: sentences with
        # the anchor of row i have self.lengths[self.first[i] : self.first[i + 1]].
        hashes, lengths = np.unique(np.stack(_joined(anchors)), axis=1)
        hashes, first = np.unique(hashes, return_index=True)
        self.lengths, self.first = lengths.astype(np.int64), np.append(first, len(lengths))
        self.anchors = _Table(hashes, np.arange(len(hashes)))

    def fingerprint(self):
        """[name of each set] and the BLAKE2b digest of their sentences, for a dataset's manifest."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.sentences.hashes, self.sentences.values, self.lengths):
            digest.update(np.ascontiguousarray(array).data)
        return {"names": self.names, "blake2b": digest.hexdigest()}

    def find(self, texts):
        """For each text the name of the first set, in the order given, of which it holds a sentence, or None."""
        names = [*self.names, None]
        return [names[owner] for batch in _batches(texts) for owner in self._owners(batch)]

    def _owners(self, texts):
        """For each text the index of the first set of which it holds a sentence, or the number of sets."""
        tokens = _Tokens(texts)
        candidates = zip(tokens.texts, tokens.lines, self._long(tokens), strict=True)
        begin, end = (np.concatenate(arrays) for arrays in candidates)
        which, owner = self.sentences.search(tokens.hashes(begin, end))
        found = [(begin[which], owner)]
        if self.ngram:
            found.append(self.shared.search(tokens.hashes(slice(None), tokens.run_ends(self.ngram))))
        owners = np.full(len(texts), len(self.names), np.uint16)
        for begin, owner in found:
            np.minimum.at(owners, np.searchsorted(tokens.text_ends, begin), owner)
        return owners

    def _long(self, tokens):
        """(begin, end) of the runs of tokens that begin as a long sentence does and have as many."""
        begin, row = self.anchors.search(tokens.hashes(slice(None), tokens.run_ends(MINIMUM_WORDS)))
        copies = self.first[row + 1] - self.first[row]
        nth = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
        begin = np.repeat(begin, copies)
        end = begin + self.lengths[np.repeat(self.first[row], copies) + nth]
        inside = end <= tokens.count
        return begin[inside], end[inside]


class _Tokens:
    """The tokens of a batch of texts, each text followed by a token for its end.

    count: the number of tokens. text_ends: for each text the index of the token for its end. texts, lines: (begin, end)
    of the tokens of each text and each line that has any, as arrays.
    """

    def __init__(self, texts):
        texts = [_fold(text) for text in texts]
        points = np.frombuffer("\0".join([*texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = _kinds()[points]
        kinds[np.cumsum([len(text) + 1 for text in texts]) - 1] = _ENDS_TEXT
        if (kinds == _IGNORED).any():
            points, kinds = points[kinds != _IGNORED], kinds[kinds != _IGNORED]
        inside = kinds >= _ENDS_TEXT
        starts = inside.copy()
        starts[1:] &= (kinds[1:] != _WORD) | (kinds[:-1] != _WORD)
        position = np.flatnonzero(starts)
        self.count = len(position)

        breaks = np.flatnonzero((kinds == _ENDS_LINE) | (kinds == _ENDS_TEXT))
        ends_text = kinds[breaks] == _ENDS_TEXT
        end = np.searchsorted(position, breaks)
        self.text_ends = end[ends_text]
        self.lines = _filled(end, end + ends_text)
        self.texts = _filled(self.text_ends, self.text_ends + 1)

        # The hash of a run of tokens is the sum of value * base ** index over its characters, modulo 2**64, divided by
        # base ** index of its first: a difference of prefix sums.
        values = _values()[points[inside]]
        first = np.flatnonzero(starts[inside])
        values[first] += _START
        values *= _powers(_BASE, len(values))
        np.cumsum(values, out=values)
        self._prefix = np.concatenate([np.zeros(1, np.uint64), values[first[1:] - 1], values[-1:]])
        self._divisor = _powers(pow(_BASE, -1, 2**64), len(values))[first]

        worth = _WORTH[kinds[position]]
        self._worth_before = np.cumsum(worth) - worth
        self._run_end = np.repeat(np.arange(1, self.count + 1), worth)  # by the worth of what comes before

    def hashes(self, begin, end):
        """The 64-bit hashes of the runs of tokens [begin, end)."""
        return (self._prefix[end] - self._prefix[:-1][begin]) * self._divisor[begin]

    def run_ends(self, words):
        """For each token the end of the shortest run from it that is worth `words`; such a run of a text's last tokens
        includes the token for its end, so that it equals none in a sentence."""
        last = self._worth_before + (words * _WORTH[_WORD] - 1)
        return self._run_end[np.minimum(last, len(self._run_end) - 1, out=last)]


def _filled(end, next_begin):
    """(begin, end) without the pairs that hold nothing."""
    begin = np.concatenate([[0], next_begin[:-1]])
    return begin[begin < end], end[begin < end]


class _Table:
    """Sorted hashes and a value for each, the first given where a hash comes several times.

    Most hashes looked for are absent, which a table of bits, 16 a hash, tells sooner than a search of the long array.
    """

    def __init__(self, hashes, values):
        self.hashes, first = np.unique(hashes, return_index=True)
        self.values = values[first]
        bits = max(3, (16 * len(self.hashes)).bit_length())
        self.shift = np.uint64(64 - bits)
        self.bits = np.zeros(1 << (bits - 3), np.uint8)
        place = self.hashes >> self.shift
        np.bitwise_or.at(self.bits, place >> np.uint64(3), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8))

    def search(self, hashes):
        """(indices of the hashes that are in the table, their values)."""
        place = hashes >> self.shift
        bit = self.bits[place >> np.uint64(3)] >> (place & np.uint64(7)).astype(np.uint8)
        which = np.flatnonzero(bit & 1)
        row = np.searchsorted(self.hashes, hashes[which])
        row[row == len(self.hashes)] = 0
        same = self.hashes[row] == hashes[which]
        return which[same], self.values[row[same]]


def _joined(pairs):
    return [np.concatenate(arrays) for arrays in zip(*pairs, strict=True)]


def _fold(text):
    """Case-folded NFKC; folded once more, for NFKC makes a C of a double-struck one. The dotted and the dotless i are
    one, as capitals need not tell them apart, and a spacing acute, in NFKC a letterless mark, is an apostrophe."""
    text = text.casefold().replace("\u0131", "i").replace("i\u0307", "i")
    return unicodedata.normalize("NFKC", text).replace(" \u0301", " ").casefold()


@functools.cache
def _kinds():
    """The kind of every code point: uint8[0x110000]."""
    kind_of = {"L": _WORD, "M": _WORD, "N": _WORD, "Cf": _IGNORED}
    categories = map(unicodedata.category, map(chr, range(0x110000)))
    kinds = np.array([kind_of.get(c) or kind_of.get(c[0], _OTHER) for c in categories], np.uint8)
    for kind, blocks in ((_HALF, _HALF_WORD), (_SIXTH, _SIXTH_OF_WORD)):
        for first, last in blocks:
            block = kinds[first : last + 1]
            block[block == _WORD] = kind
    for first, last in _VARIATION:
        kinds[first : last + 1] = _IGNORED
    for first, last in _APOSTROPHES:
        kinds[first : last + 1] = _OTHER
    kinds[ord("\n")] = _ENDS_LINE
    return kinds


@functools.cache
def _values():
    """A random-looking value for every code point (splitmix64): uint64[0x110000]."""
    x = np.arange(1, 0x110001, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _powers(base, count):
    """base ** (1, 2 ... count) modulo 2**64: uint64[count]."""
    return np.cumprod(np.full(count, base, np.uint64))


def _batches(texts):
    """Lists of texts, of _BATCH characters each or a text more."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sources(paths):
    """{name: path} of "PATH" or "NAME=PATH" each."""
    sources = {}
    for given in map(str, paths):
        name, equals, path = given.partition("=")
        if not equals or os.path.exists(given):
            name, path = os.path.basename(os.path.abspath(given)), given
        if not name or not os.path.exists(path):
            raise InputError(f"{_FLAG} {given!r}: does not exist, expected PATH or NAME=PATH; check the path")
        if name in sources and not os.path.samefile(path, sources[name]):
            raise InputError(
                f"{_FLAG} {given}: named {name!r} as {sources[name]} is, expected a name for each; give NAME=PATH"
            )
        sources.setdefault(name, Path(path))
    return sources


def _files(path):
    """The file itself, or the files of the folder at any depth but those hidden, in the order of their names."""
    if not path.is_dir():
        return [path]
    return [path / name for name in sorted(glob.glob("**", root_dir=path, recursive=True)) if (path / name).is_file()]


def _lines(path):
    """The file's lines that are not blank."""
    data = path.read_bytes()
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{_FLAG} {path} line {line}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    filled = [line for line in lines if line.strip()]
    if filled and all("\t" in line for line in filled):  # as TICO-19's: none of its lines would ever be found
        raise InputError(f"{_FLAG} {path}: a table, expected one sentence a line; cut its column of sentences out")
    return filled
