"""New tokens for a SentencePiece tokenizer, learnt from text of a language (LLaMAX, section 3.1 and Table 1).

Byte-pair encoding goes on where the old tokenizer ends. A text begins as that spells it: in pieces, and in characters
it has no piece for and spells by UTF-8 bytes. The next token is always the one that saves the text most tokens: two
neighbours joined, which save one wherever they meet, or a character of k bytes, which saves k - 1. So the first 100 of
800 tokens are the 100, further tokens make no text longer, and both halves of a token are tokens themselves, as the
`tokenizers` library requires.

Only what LLaMA's own trainer joins is joined: letters and marks with each other, punctuation and symbols with each
other, and either with the space before it. Digits stay apart.
"""

import array
import collections
import heapq
import itertools
import operator
import unicodedata
from dataclasses import dataclass

import numpy as np

from llamax.files import InputError, replacing
from llamax.records import Unusable
from llamax.sources import find_sources, pieces, read_piece, record_reader

MAX_CHARS = 16  # of a piece, its space included: the max_sentencepiece_length of LLaMA's
MIN_COUNT = 2  # occurrences: what occurs once teaches nothing
# What is joined with its like, by the first letter of a character's general category; nothing else is, but that
# zero-width joiners and non-joiners are parts of words.
KINDS = {"L": "letters", "M": "letters", "P": "signs", "S": "signs"}
JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class NewToken:
    """A piece, in which "▁" is a space, and the ids of the old tokens that have spelled it."""

    piece: str
    spelled_by: tuple[int, ...]


def learn_tokens(tokenizer, files, count):
    """The `count` new tokens that save most, best first, as NewTokens. The order of the texts does not matter.

    Args:
        tokenizer: a SentencePieceTokenizer, the old one.
        files: paths of plain text, a text a line, or of such text as .gz, .zst or .xz. They are streamed; memory grows
            with the number of different words, where a word is what stands between two spaces.

    Raises InputError if the tokenizer is of another kind, or if the text offers fewer tokens.
    """
    if tokenizer.kind != "sentencepiece":
        raise InputError(
            f"{tokenizer.path}: a {tokenizer.kind} file, as Llama 3 has it; only SentencePiece tokenizers, those of "
            "Llama 1 and 2, can be extended"
        )
    if count < 1:
        raise InputError(f"{count} new tokens: expected at least 1; ask for more")
    found = list(itertools.islice(_best_pieces(*_stretches(tokenizer, files)), count))
    if len(found) < count:
        raise InputError(
            f"--input {_names(files)}: offers {len(found):,} new tokens, expected {count:,}; give more text or ask "
            "for fewer"
        )
    # A piece on its own is spelled as it was inside the text: nothing had crossed its ends.
    return [NewToken(piece, tuple(tokenizer.encode_continuation(piece))) for piece in found]


def write_tokenizer(tokenizer, tokens, path):
    """Write the tokenizer.model of `tokenizer` with `tokens` added, whose ids go on from its last. Their scores are
    below all others, best first: a text is joined to the old pieces before it is joined further."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(tokenizer.path.read_bytes())
    score = np.float32(min(piece.score for piece in proto.pieces))
    for token in tokens:
        score = np.nextafter(score, np.float32(-np.inf))  # LLaMA's lowest is -1e9: in float32, 1 less is the same
        proto.pieces.add(piece=token.piece, score=score)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    with replacing(path) as partial:
        partial.write_bytes(proto.SerializeToString())


def fertility(tokenizer, files):
    """(tokens per word, tokens per character) of files as learn_tokens() reads them, without BOS and EOS. A word is
    what stands between white space; characters are those of the words."""
    tokens = words = characters = 0
    for texts in _texts(files):
        tokens += len(tokenizer.encode_batch(texts)[0])
        for text in texts:
            found = text.split()
            words += len(found)
            characters += sum(map(len, found))
    if not words:
        raise InputError(f"--input {_names(files)}: no words, expected a text a line; check the files")
    return tokens / words, tokens / characters


def _names(files):
    return " ".join(map(str, files))


def _texts(files):
    """Yield the lines of files, many at a time."""
    sources = find_sources([str(path) for path in files], {})
    for source in sources:
        if source.kind != "text":
            raise InputError(f"--input {source.path}: expected plain text, a text a line; write its texts to a file")
    for part in pieces(sources, 0, 1):
        source = sources[part.source]
        read = record_reader(source)
        try:
            yield [read(line)["text"] for line in read_piece(part, sources).lines]
        except Unusable as error:
            raise InputError(f"--input {source.path}: {': '.join(error.args)}; convert the file to UTF-8") from None


def _stretches(tokenizer, files):
    """The words of files as the tokenizer spells them, cut into what may be joined: the arguments of _best_pieces()."""
    words = collections.Counter()
    for texts in _texts(files):
        for text in texts:
            words.update(text.replace("▁", " ").split(" "))  # the two are spelled alike
    del words[""]
    reference = tokenizer.reference
    names = [None if reference.is_byte(i) else reference.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    known, kinds = set(names), {}
    stretches, characters = collections.Counter(), collections.Counter()
    ids, offsets = tokenizer.encode_batch(list(words))
    for (word, n), start, stop in zip(words.items(), offsets, offsets[1:], strict=False):
        symbols = _symbols("▁" + word, ids[start:stop].tolist(), names)
        for symbol in symbols:
            if symbol not in kinds:
                kinds[symbol] = _kind(symbol, known)
            if symbol not in known:
                characters[symbol] += n
        found = [kinds[symbol] for symbol in symbols]
        if symbols[0] == "▁":
            found[:1] = found[1:2]  # a space goes with what follows it
        for kind, stretch in itertools.groupby(zip(found, symbols, strict=False), operator.itemgetter(0)):
            if kind:
                stretches[tuple(symbol for _, symbol in stretch)] += n
    savings = {char: n * (len(char.encode()) - 1) for char, n in characters.items() if n >= MIN_COUNT}
    return stretches, savings, known


def _symbols(text, ids, names):
    """The pieces that ids name and, where names has None, the characters of the text that they spell by bytes."""
    symbols, i, at = [], 0, 0
    while i < len(ids):
        symbols.append(names[ids[i]] or text[at])
        i += 1 if names[ids[i]] else len(text[at].encode())
        at += len(symbols[-1])
    return symbols


def _kind(symbol, known):
    """What a symbol may be joined with: "letters", "signs" or None, nothing."""
    if symbol.isascii() and symbol not in known:  # its byte is one token: as a piece it would save nothing
        return None
    letters = symbol.removeprefix("▁")
    kinds = {"letters" if char in JOINERS else KINDS.get(unicodedata.category(char)[0]) for char in letters}
    return kinds.pop() if len(kinds) == 1 else None


def _best_pieces(stretches, characters, known):
    """Yield the pieces to add, best first.

    Args:
        stretches: {(symbol, ...): occurrences}, in which neighbours may be joined.
        characters: {character that is no piece: tokens that it would save as one}.
        known: the pieces there are.
    """
    # All stretches in a row, None between them. Where two symbols are joined, the second becomes None.
    symbols, occurrences = [None], array.array("q", [0])
    for stretch, n in stretches.items():
        symbols += [*stretch, None]
        occurrences.extend([n] * len(stretch) + [0])
    left, right = (array.array("q", range(step, len(symbols) + step)) for step in (-1, 1))
    where = collections.defaultdict(lambda: array.array("q"))  # {piece: where its left half stands, or stood}
    known, saved, heap = set(known), collections.Counter(), []
    changes = collections.Counter(characters)  # to `saved`, the tokens that each piece would save

    def joined(at):
        a, b = symbols[at], symbols[right[at]]
        return a + b if a and b and len(a) + len(b) <= MAX_CHARS else None

    def count(at, n):
        if piece := joined(at):
            changes[piece] += n
            if n > 0:
                where[piece].append(at)

    def push(piece):
        if saved[piece] >= MIN_COUNT:  # of equals the shortest first: a character before what it is part of
            heapq.heappush(heap, (-saved[piece], len(piece), piece))

    def settle():
        for piece, change in changes.items():
            saved[piece] += change
            if change > 0:
                push(piece)
        changes.clear()

    for at in range(1, len(symbols) - 1):
        count(at, occurrences[at])
    settle()
    while heap:
        n, _, piece = heapq.heappop(heap)
        if -n != saved[piece]:  # fewer by now
            push(piece)
            continue
        if piece not in known:  # else these two halves make what other two have made
            known.add(piece)
            yield piece
        for at in sorted(where.pop(piece, ())):  # from the left, as SentencePiece does
            if joined(at) != piece:  # one of the two has become part of another
                continue
            before, second, n = left[at], right[at], occurrences[at]
            for i in (before, at, second):
                count(i, -n)
            symbols[at], symbols[second] = piece, None
            right[at] = right[second]
            left[right[at]] = at
            for i in (before, at):
                count(i, n)
        settle()
