"""Code-switching: words of a text replaced by translations of a lexicon (LLaMAX, section 2.1, step 2).

What a word is, and how words are joined again (the paper says: spaces, and jieba for Chinese):
- Written with spaces: what stands between two spaces. The spaces stay as they were, so that an entry of several
  words can replace one word but is never replaced.
- Chinese: what jieba says.
- Other languages without spaces (ja, km, lo, my, th …): from left to right the longest word of that language in the
  lexicon; what no word matches passes through. No word begins or ends inside a written syllable (before a vowel sign
  or tone mark, say) or inside a run of Latin letters and digits. Of a word that the lexicon lacks, a part may match.
- Punctuation and symbols around a word are not part of it, and stay around what replaces it.
- In text without spaces, a replacement from a language with spaces is set off by one space from letters and digits.
- Words are compared in Unicode's form NFC (the longest match takes the text as it is written); what is not replaced
  stays as it was written, in lower case.
"""

import collections
import functools
import hashlib
import logging
import random
import re
import tempfile
import unicodedata
import warnings
from typing import NamedTuple

import numpy as np

CHINESE_SCRIPTS = ("Hans", "Hant", "Hani")
REMEMBERED_BYTES = 256 << 20  # of tokens and their translations, about; then all are forgotten
TOKEN_BYTES = 250  # one that is no word, in a dict

# A unit is what no word may begin or end inside of: a syllable as it is written, or a Latin word or number, which
# would otherwise lose its middle to a short loan word of the same letters. The text is in lower case.
_LATIN = "0-9a-z\u00df-\u00f6\u00f8-\u024f"
_MARKS = "".join(chr(c) for c in range(0x300, 0x10000) if unicodedata.category(chr(c))[0] == "M")
_FIRST = "\u0e40-\u0e44\u0ec0-\u0ec4"  # Thai and Lao vowels written before their consonant
_LAST = "\u0e30\u0e32\u0e33\u0e45\u0eb0\u0eb2\u0eb3\u0ebd" + "ぁぃぅぇぉゃゅょゎァィゥェォャュョヮー"  # and after it
_STACK = "\u17d2\u1039"  # Khmer and Burmese: puts the next consonant under this one
_UNIT = re.compile(rf"(?:[{_LATIN}][{_MARKS}]*)+|[{_FIRST}]*.(?:[{_STACK}]\w|[{_LAST}{_MARKS}])*", re.DOTALL)


class Switched(NamedTuple):
    """A text, how many of its words have a translation, and how many of these were replaced."""

    text: str
    known: int
    replaced: int


class Switcher:
    """Replaces words of texts. What becomes of a text depends on it, its key and the options alone."""

    def __init__(self, lexicon, seed=0, rate=0.5, hops=1):
        """Args: rate: the probability of replacing a word that has a translation other than itself; hops: see
        Lexicon.translations."""
        self.lexicon, self.seed, self.rate, self.hops = lexicon, seed, rate, hops
        self.forget()
        self.chinese = [code for code, row in lexicon.languages.items() if row.script in CHINESE_SCRIPTS]
        self.divide = dict.fromkeys(self.chinese, _divide_chinese)
        for code, row in lexicon.languages.items():
            if not row.spaces and code not in self.chinese:
                self.divide[code] = LongestMatch(lexicon.words(code))

    def forget(self):
        self.words = _Remembered(self.lexicon.word)
        self.options = {}  # {(language, target): what is known of its tokens}
        self.translations = {}  # {(word, target): its translations}
        self.bytes = 0

    def switch(self, text, language, target=None, key=()):
        """The Switched of a text.

        Args:
            target: the language to replace words by; None: any other one of the lexicon.
            key: strings that, with the seed, decide what is replaced by what.

        Each word that has a translation takes three random numbers in [0, 1): it is replaced if the first is below the
        rate, by a language that the second and a word that the third picks from what is sorted. So what is replaced
        at a lower rate is among that of a higher one.
        """
        text = text.lower()
        options = self._options(language, target)
        if language in self.divide:
            return self._switch_unspaced(text, options, self.divide[language], key)
        pieces = text.split()
        space = " "
        if " ".join(pieces) != text:  # other white space, or more of it
            pieces, space = re.split(r"(\s+)", text), ""
        found = [(i, option) for i, option in enumerate(map(options.__getitem__, pieces)) if option]
        if not found:
            return Switched(text, 0, 0)
        draw, rate, words, replaced = self._random(key), self.rate, self.words, 0
        for i, (before, after, numbers, starts) in found:
            chance, which_language, which_word = draw(), draw(), draw()
            if chance < rate:
                number = _pick(numbers, starts, which_language, which_word)
                pieces[i] = f"{before}{words[number]}{after}"
                replaced += 1
        return Switched(space.join(pieces), len(found), replaced)

    def _switch_unspaced(self, text, options, divide, key):
        draw, rate, known, replaced = None, self.rate, 0, 0
        pieces = []
        for piece, is_word in divide(text):
            option = is_word and options[piece]
            if not option:
                pieces.append((piece, False))
                continue
            draw = draw or self._random(key)
            chance, which_language, which_word = draw(), draw(), draw()
            known += 1
            if chance >= rate:
                pieces.append((piece, False))
                continue
            before, after, numbers, starts = option
            number = _pick(numbers, starts, which_language, which_word)
            pieces += (before, False), (self.words[number], self._set_off(number)), (after, False)
            replaced += 1
        return Switched(join_pieces(pieces), known, replaced)

    def _random(self, key):
        key = "\x00".join((str(self.seed), *key)).encode("utf-8")
        # Only random() is used: it alone gives the same numbers in all versions of Python.
        return random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())).random

    def _set_off(self, number):
        return self.lexicon.languages[self.lexicon.codes[self.lexicon.word_languages.item(number)]].spaces

    def _options(self, language, target):
        """{token: (what stands before the word, what stands after it, the numbers of its translations, where each
        language begins among them and the end); None if it has no translation; False if it is no word}."""
        if self.bytes + len(self.words) * TOKEN_BYTES > REMEMBERED_BYTES:
            self.forget()
        options = self.options.get((language, target))
        if options is None:
            look_up = functools.partial(self._look_up, language=language, target=target)
            options = self.options[language, target] = _Remembered(look_up)
        return options

    def _look_up(self, token, language, target):
        self.bytes += TOKEN_BYTES
        start, end = inner(token)
        if start == end or token.isspace():
            return False
        number = self.lexicon.find(unicodedata.normalize("NFC", token[start:end]), language)
        if number is None:
            return None
        if (number, target) not in self.translations:  # as another token has it, with other punctuation
            self.translations[number, target] = self._translate(number, language, target)
        translations = self.translations[number, target]
        return translations and (token[:start], token[end:], *translations)

    def _translate(self, number, language, target):
        """(the numbers of a word's translations, where each language begins among them and the end); None if it has
        none."""
        numbers = self.lexicon.translations(number, language, target, self.hops)
        if not len(numbers):
            return None
        languages = self.lexicon.word_languages[numbers]
        ends = np.flatnonzero(languages[1:] != languages[:-1]) + 1
        starts = np.zeros(len(ends) + 2, np.uint32)
        starts[1:-1], starts[-1] = ends, len(numbers)
        self.bytes += TOKEN_BYTES + numbers.nbytes + starts.nbytes
        return numbers, starts

    def longest_match(self, language):
        """Whether the words of a language are found by longest match."""
        return isinstance(self.divide.get(language), LongestMatch)

    def reach(self, text, language):
        """(words, those that have a translation) of a text; where words are found by longest match, in letters."""
        text = text.lower()
        if language not in self.lexicon.number:
            return len(text.split()), 0
        options = self._options(language, None)
        divide = self.divide.get(language)
        if self.longest_match(language):
            pieces = list(divide(text))
            letters = sum(sum(map(str.isalpha, piece)) for piece, _ in pieces)
            return letters, sum(sum(map(str.isalpha, piece)) for piece, is_word in pieces if is_word and options[piece])
        tokens = [piece for piece, is_word in divide(text) if is_word] if divide else text.split()
        found = [options[token] for token in tokens]
        return len(found) - found.count(False), sum(map(bool, found))


def _pick(numbers, starts, which_language, which_word):
    k = int(which_language * (len(starts) - 1))
    start, end = starts.item(k), starts.item(k + 1)
    return numbers.item(start + int(which_word * (end - start)))


class _Remembered(dict):
    """A function of one argument whose values are kept."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def __missing__(self, key):
        value = self[key] = self.function(key)
        return value


def inner(token):
    """(start, end) of a token without the punctuation and symbols around it."""
    start, end = 0, len(token)
    if token.isalnum():
        return start, end
    while start < end and unicodedata.category(token[start])[0] in "PS":
        start += 1
    while start < end and unicodedata.category(token[end - 1])[0] in "PS":
        end -= 1
    return start, end


@functools.cache
def jieba_cutter():
    """jieba's function from a text to its words, without what it logs and leaves behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what newer Pythons deprecate
        import jieba
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    # jieba would trust a cache that anyone, or another version of it, left in the shared temporary folder.
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tmp_dir = folder
        tokenizer.initialize()
    return tokenizer.lcut


def _divide_chinese(text):
    return [(token, True) for token in jieba_cutter()(text)]


class LongestMatch:
    """Divides text without spaces into the longest words of a lexicon and what is between them."""

    def __init__(self, words):
        self.words = {word for word in words if word and inner(word) == (0, len(word))}
        lengths = collections.defaultdict(set)
        for word in self.words:
            lengths[word[0]].add(len(word))
        self.lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def __call__(self, text):
        """Yield (piece, whether it is a word) from left to right; the pieces joined are the text."""
        units = [(unit.start(), unit.end()) for unit in _UNIT.finditer(text)]
        ends = {end for _, end in units}
        done = 0
        for start, end in units:
            if start < done:  # inside the word before
                continue
            for length in self.lengths.get(text[start], ()):
                if start + length in ends and text[start : start + length] in self.words:
                    done = start + length
                    yield text[start:done], True
                    break
            else:
                done = end
                yield text[start:end], False


def join_pieces(pieces):
    """The text of (piece, whether to set it off by spaces) pairs."""
    text, last_set_off = [], False
    for piece, set_off in pieces:
        if not piece:
            continue
        if (
            text
            and (set_off or last_set_off)
            and all(unicodedata.category(c)[0] in "LMN" for c in (text[-1][-1], piece[0]))
        ):
            text.append(" ")
        text.append(piece)
        last_set_off = set_off
    return "".join(text)
