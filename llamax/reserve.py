"""The English sentences that may be translated, and which of them a language gets (LLaMAX, Algorithm 1).

D_mono ∩ D_En = ∅: a sentence is in the reserve if no monolingual training data has it, as a line or as a document,
whatever its case and white space. Which sentences of the reserve a language (pair) gets is decided by a hash of seed,
language and sentence: the smallest ones. So the choice depends neither on the order of the text nor on copies in it,
and languages may share sentences.

Memory: 8 bytes a line of monolingual English, and the sentences chosen so far; all else is streamed.
"""

import array
import collections
import contextlib
import dataclasses

import numpy as np
import xxhash

from llamax.files import InputError
from llamax.records import Progress, Unusable, language_field, parse_lines, text_field
from llamax.sources import pieces, read_piece, record_reader

SPARE = 100  # and a tenth: sentences chosen beyond those asked for, should some translations be unusable
PRUNED = 1 << 18  # sentences held before the first look for those that are no longer needed


@contextlib.contextmanager
def flagged(flag):
    """Name `flag` in errors about sources, which know of --input only."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("--input", flag)) from None


def english_texts(sources, rejects, what):
    """Yield the English texts of the records of a corpus, as lists; records that say another language are passed by.

    Args:
        sources: of find_sources.
        rejects: a Rejects, for records that cannot be used.
        what: to show beside the progress.
    """
    lines_before = collections.Counter()  # in the pieces of each source that have been read
    progress = Progress(sum(source.size for source in sources), "B", what)
    for piece in pieces(sources, 0, 1):
        block = read_piece(piece, sources)
        read = record_reader(sources[piece.source])

        def parse(row, read=read):
            record = read(row)
            try:
                english = language_field(record, "lang", "en") == "en"
            except Unusable as why:
                if why.args[0] != "unknown language":
                    raise
                english = False
            return text_field(record, "text") if english else None

        texts, _, rejected = parse_lines(block, parse)
        before = lines_before[piece.source]
        rejects.add(len(texts) + len(rejected), [dataclasses.replace(one, line=one.line + before) for one in rejected])
        lines_before[piece.source] += len(block.lines)
        progress.update(block.size)
        yield [text for text in texts if text is not None]
    progress.close()


def text_hash(text, seed=0):
    return xxhash.xxh3_64_intdigest(text.encode("utf-8"), seed % 2**64)


def sentence_key(text):
    """A hash of what a sentence is, whatever its case and white space."""
    return text_hash(" ".join(text.split()).lower())


def mono_keys(sources, rejects):
    """The keys of all lines and all documents of monolingual English data, sorted: u64[n]."""
    keys = array.array("Q")
    for texts in english_texts(sources, rejects, "reading --mono"):
        for text in texts:
            lines = text.split("\n")
            keys.extend(sentence_key(line) for line in lines if line.strip())
            if len(lines) > 1:
                keys.append(sentence_key(text))
    found = np.frombuffer(keys, np.uint64) if keys else np.zeros(0, np.uint64)
    found.sort()
    return found


def contained(keys, in_sorted):
    """Whether each of keys u64[n] is among the sorted u64[m]: bool[n]."""
    if not len(in_sorted):
        return np.zeros(len(keys), bool)
    return in_sorted[np.minimum(np.searchsorted(in_sorted, keys), len(in_sorted) - 1)] == keys


class Smallest:
    """The hashes of the sentences that a language (pair) gets: those of the lowest rank among all that are offered.

    The rank is a hash of the sentence's hash and the name. As many rows may be filled, it is computed for a whole block
    at once, with the finaliser of SplitMix64 (Steele et al. 2014), which maps no two values to one.
    """

    def __init__(self, name, count):
        self.name, self.limit = name, count + count // 10 + SPARE
        self.salt = np.uint64(text_hash(name))
        self.kept, self.highest = [], np.uint64(2**64 - 1)
        self.size = 0

    def ranks(self, hashes):
        x = hashes ^ self.salt
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    def offer(self, hashes):
        """Take those of hashes u64[n] that may be among the smallest; returns which: bool[n]."""
        taken = self.ranks(hashes) <= self.highest
        self.kept.append(hashes[taken])
        self.size += len(self.kept[-1])
        if self.size > 2 * self.limit:
            self.settle()
        return taken

    def settle(self):
        """Drop what is not among the smallest; returns the others by rank: u64[at most limit]."""
        hashes = np.unique(np.concatenate([np.zeros(0, np.uint64), *self.kept]))
        hashes = hashes[np.argsort(self.ranks(hashes))[: self.limit]]
        if len(hashes) == self.limit:
            self.highest = self.ranks(hashes[-1:])[0]
        self.kept, self.size = [hashes], len(hashes)
        return hashes


def choose_sentences(sources, mono, wanted, seed, max_chars, rejects):
    """({name: sentences by rank}, counts of the sentences read): what each language or pair gets, and spare ones.

    Args:
        sources: English text; the lines of a record's text are its sentences.
        mono: the keys of monolingual training data, of mono_keys.
        wanted: {name: number of sentences}.
        seed: with the name, decides which sentences are chosen.
        max_chars: longer sentences are left out.

    Raises InputError if there are fewer different sentences than some language needs.
    """
    rows = [Smallest(name, count) for name, count in wanted.items()]
    texts, full = {}, PRUNED  # {hash: sentence} of all that may be chosen, and when to look for those that are not
    counts = collections.Counter(read=0, in_mono=0, too_long=0)
    for block in english_texts(sources, rejects, "reading --english"):
        lines = [line for text in block for line in map(str.strip, text.split("\n")) if line]
        short = [line for line in lines if len(line) <= max_chars]
        known = contained(np.fromiter(map(sentence_key, short), np.uint64, len(short)), mono)
        counts.update(read=len(lines), too_long=len(lines) - len(short), in_mono=int(known.sum()))
        usable = [line for line, out in zip(short, known.tolist(), strict=True) if not out]
        hashes = np.fromiter((text_hash(line, seed) for line in usable), np.uint64, len(usable))
        taken = np.zeros(len(usable), bool)
        for row in rows:
            taken |= row.offer(hashes)
        texts.update((int(hashes[i]), usable[i]) for i in np.flatnonzero(taken).tolist())
        if len(texts) > full:
            texts = _needed(texts, rows)
            full = max(PRUNED, 2 * len(texts))
    most = max(rows, key=lambda row: row.limit)
    chosen = {row.name: row.settle().tolist() for row in rows}
    different = len(chosen[most.name])  # all there are, if these are fewer than it may take
    if different < wanted[most.name]:
        raise InputError(
            f"--english: {different:,} different sentences in the reserve, {most.name} needs {wanted[most.name]:,}; of "
            f"{counts['read']:,} read, {counts['in_mono']:,} are in --mono, {counts['too_long']:,} longer than "
            f"--max-chars {max_chars:,}, the others were there before; give more English text"
        )
    return {name: [texts[one] for one in hashes] for name, hashes in chosen.items()}, dict(counts)


def _needed(texts, rows):
    """What of texts the rows still hold."""
    return {one: texts[one] for one in np.unique(np.concatenate([row.settle() for row in rows])).tolist()}
