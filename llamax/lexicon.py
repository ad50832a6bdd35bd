"""Multilingual lexicons: entries that share an English head word, and the translations they give (LLaMAX, section 2.1).

An entry is what the dictionaries say of one English word: hello_en, bonjour_fr, hallo_de, 你好_zh. A lexicon file has
one a line, sorted by head word, everything in lower case:

    {"en": "hello", "translations": {"de": ["hallo"], "fr": ["bonjour", "salut"], "zh": ["你好"]}}

Beside it stands LEXICON.index, the same as arrays that are mapped into memory, so that it opens at once however large
it is and all worker processes share its pages. A lexicon without an index that fits it is indexed in memory.

1-hop translations of a word are the words of other languages in the entries that hold it. 2-hop translations (the
paper's en→fr→de, Table 11) are those that a 1-hop translation in a third language leads to, and the 1-hop ones.
"""

import hashlib
import itertools
import json
import mmap
import unicodedata

import numpy as np
import xxhash

from llamax.files import InputError
from llamax.languages import resolve
from llamax.records import read_blocks

FORMAT = 1  # of the index
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"  # joiners and direction marks: at an end, they say nothing
# In the order in which they stand in the index: the larger items first keeps each array aligned.
ARRAYS = {
    "hashes": np.uint64,  # of (language, word), sorted
    "text_starts": np.uint64,  # [words + 1]: the word's bytes in `text`
    "hash_words": np.uint32,  # the word of each hash
    "same_text": np.uint32,  # [words]: the first word, in whatever language, that is written the same
    "word_languages": np.uint32,  # [words]: words are numbered by language, then alphabetically
    "language_starts": np.uint32,  # [languages + 1]
    "entry_starts": np.uint32,  # [entries + 1]
    "entry_words": np.uint32,  # the words of each entry, in order
    "word_starts": np.uint32,  # [words + 1]
    "word_entries": np.uint32,  # the entries of each word, in order
    "text": np.uint8,
    "about": np.uint8,  # JSON
}


def clean(text):
    """A dictionary's entry as it is stored and looked up."""
    return unicodedata.normalize("NFC", " ".join(text.lower().strip(INVISIBLE).split()))


def load_lexicon(path):
    """The Lexicon of a file, or InputError if it is none."""
    arrays = read_index(f"{path}.index", file_digest(path))
    if arrays is None:
        arrays = index_of(read_entries(path))
    try:
        return Lexicon(arrays)
    except InputError as error:
        raise InputError(f"--lexicon {path}: {error}") from None


def file_digest(path):
    """What an index knows its lexicon file by."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def read_entries(path):
    """{head: {language: [words]}} of a lexicon file, or InputError if it is none."""
    entries = {}
    remedy = "expected what `augment.py lexicon` writes; make it of your dictionaries with that command"
    for block in read_blocks(path):
        for number, line in enumerate(block.lines, block.first_line):
            try:
                entry = json.loads(line.decode("utf-8"))
                head, translations = entry["en"], entry["translations"]
                usable = all(isinstance(words, list) for words in translations.values())
                strings = [head, *itertools.chain.from_iterable(translations.values())] if usable else []
                usable = usable and all(isinstance(word, str) and word for word in strings)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                usable = False
            if not usable:
                found = line[:40].decode("utf-8", errors="replace")
                raise InputError(f"--lexicon {path} line {number}: found {found!r}, {remedy}")
            if head in entries:
                raise InputError(f"--lexicon {path} line {number}: a second entry for {head!r}, {remedy}")
            entries[head] = translations
    if not entries:
        raise InputError(f"--lexicon {path}: empty, {remedy}")
    return entries


def index_of(entries, digest=""):
    """The arrays of an index. `digest` is the xxh3-128 of the lexicon file."""
    languages = sorted({"en"}.union(*(translations for translations in entries.values())))
    number = {language: i for i, language in enumerate(languages)}
    heads = {head: i for i, head in enumerate(sorted(entries))}
    found = [{} for _ in languages]
    pair_words, pair_entries, pair_languages = [], [], []
    for head, translations in entries.items():
        for language, words in [("en", [head]), *translations.items()]:
            of_language = found[number[language]]
            for word in words:
                pair_words.append(of_language.setdefault(word, len(of_language)))
                pair_languages.append(number[language])
                pair_entries.append(heads[head])

    # Words get their final numbers: by language, then alphabetically.
    starts = np.cumsum([0] + [len(words) for words in found])
    ranks, texts = np.zeros(starts[-1], np.int64), []
    for start, words in zip(starts, found, strict=False):
        order = sorted(words)
        texts.append(order)
        ranks[start + np.array([words[word] for word in order], np.int64)] = start + np.arange(len(order))
    pair_words = ranks[starts[np.array(pair_languages)] + np.array(pair_words)]
    by_entry = _distinct_pairs(np.array(pair_entries), pair_words)
    by_word = _distinct_pairs(pair_words, np.array(pair_entries))

    hashes = np.array(
        [xxhash.xxh3_64_intdigest(_key(languages[i], text)) for i, words in enumerate(texts) for text in words],
        np.uint64,
    )
    texts = list(itertools.chain.from_iterable(texts))
    encoded = [text.encode("utf-8") for text in texts]
    order = np.argsort(hashes, kind="stable")
    first = {}
    values = {
        "hashes": hashes[order],
        "hash_words": order,
        "text_starts": np.cumsum([0, *map(len, encoded)]),
        "same_text": [first.setdefault(text, i) for i, text in enumerate(texts)],
        "word_languages": np.repeat(np.arange(len(languages)), np.diff(starts)),
        "language_starts": starts,
        "entry_starts": np.searchsorted(by_entry[0], np.arange(len(heads) + 1)),
        "entry_words": by_entry[1],
        "word_starts": np.searchsorted(by_word[0], np.arange(len(texts) + 1)),
        "word_entries": by_word[1],
        "text": np.frombuffer(b"".join(encoded), np.uint8),
        "about": np.frombuffer(
            json.dumps({"format": FORMAT, "digest": digest, "languages": languages}).encode(), np.uint8
        ),
    }
    return {name: np.asarray(values[name], dtype) for name, dtype in ARRAYS.items()}


def _distinct_pairs(first, second):
    """Both columns of the pairs, sorted, each pair once."""
    size = int(second.max()) + 1
    return np.divmod(np.unique(first * size + second), size)


def _key(language, text):
    return f"{language}\x00{text}".encode()


def write_index(path, arrays):
    """Write the arrays one after the other, each in NumPy's .npy format."""
    with open(path, "wb") as file:
        for name in ARRAYS:
            np.lib.format.write_array(file, arrays[name], version=(1, 0))


def read_index(path, digest):
    """The arrays of an index file, mapped into memory; None if there is none, or none of the file with this digest."""
    try:
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            arrays = {}
            for name, dtype in ARRAYS.items():
                np.lib.format.read_magic(file)
                (count,), _, found = np.lib.format.read_array_header_1_0(file)
                if found != dtype:
                    return None
                arrays[name] = np.frombuffer(memory, dtype, count, file.tell())
                file.seek(arrays[name].nbytes, 1)
            about = json.loads(arrays["about"].tobytes())
    except (FileNotFoundError, ValueError):
        return None
    return arrays if (about["format"], about["digest"]) == (FORMAT, digest) else None


class Lexicon:
    """The words of a lexicon by number, and what they translate to. See ARRAYS for what is in `arrays`."""

    def __init__(self, arrays):
        self.__dict__.update(arrays)
        self.codes = json.loads(arrays["about"].tobytes())["languages"]
        self.languages = {code: resolve(code) for code in self.codes}
        self.number = {code: i for i, code in enumerate(self.codes)}
        self._text = memoryview(arrays["text"])

    @classmethod
    def of(cls, entries):
        """The Lexicon of {head: {language: [words]}}; what is looked up is expected to have gone through clean()."""
        return cls(index_of(entries))

    def word(self, number):
        """The text of a word."""
        return str(self._bytes(number), "utf-8")

    def _bytes(self, number):
        starts = self.text_starts
        return self._text[starts.item(number) : starts.item(number + 1)]

    def words(self, language):
        """The texts of all words of a language."""
        i = self.number[language]
        return [self.word(number) for number in range(self.language_starts[i], self.language_starts[i + 1])]

    def find(self, text, language):
        """The number of a word, or None."""
        digest, encoded = xxhash.xxh3_64_intdigest(_key(language, text)), text.encode("utf-8")
        i = int(self.hashes.searchsorted(np.uint64(digest)))
        while i < len(self.hashes) and self.hashes.item(i) == digest:
            number = self.hash_words.item(i)
            # Two words may have one hash.
            if self._bytes(number) == encoded and self.word_languages.item(number) == self.number[language]:
                return number
            i += 1
        return None

    def translations(self, number, language, target=None, hops=1):
        """The numbers of a word's translations into `target`, or every other language; those written as the word
        itself are left out.

        Args:
            number: of the word, whose language is `language`.
            hops: 1 or 2.

        Returns: uint32 [n], sorted: grouped by language.
        """
        own = self.number[language]
        entries = self.word_entries[self.word_starts.item(number) : self.word_starts.item(number + 1)]
        starts = self.entry_starts
        found = [self.entry_words[starts.item(entry) : starts.item(entry + 1)] for entry in entries.tolist()]
        found = found[0] if len(found) == 1 else np.unique(np.concatenate(found))
        if hops == 2:
            found = np.union1d(found, self._second_hop(found, own))
        kept = self.same_text[found] != self.same_text.item(number)
        if target is None:
            return found[kept & (self.word_languages[found] != own)]
        return found[kept & (self.word_languages[found] == self.number[target])] if target != language else found[:0]

    def _second_hop(self, words, own):
        """What words of third languages lead to: whatever shares an entry with one and is of another language."""
        languages = self.word_languages[words]
        words, languages = words[languages != own], languages[languages != own]
        entries, lengths = self._slices(self.word_entries, self.word_starts, words)
        if not len(entries):
            return entries
        # An entry that two languages lead to gives words of all; one that a single language leads to, of the others.
        entries, via = _distinct_pairs(entries.astype(np.int64), np.repeat(languages, lengths))
        entries, first, ways = np.unique(entries, return_index=True, return_counts=True)
        only = np.where(ways == 1, via[first], -1)
        found, lengths = self._slices(self.entry_words, self.entry_starts, entries)
        return np.unique(found[self.word_languages[found] != np.repeat(only, lengths)])

    @staticmethod
    def _slices(values, starts, which):
        """(the concatenated slices of `values`, their lengths)."""
        lengths = (starts[which + 1] - starts[which]).astype(np.int64)
        offsets = np.repeat(starts[which].astype(np.int64) - np.cumsum(lengths) + lengths, lengths)
        return values[offsets + np.arange(len(offsets))], lengths
