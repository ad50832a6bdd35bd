"""spBLEU, BLEU, chrF and chrF++ by sacrebleu, each with the signature that reproduces it.

sacrebleu counts n-grams line by line, in dictionaries. Here they are counted for all lines at once (llamax/ngrams.py),
those of the references once for all systems and source languages. Tokens and characters are sacrebleu's, the counts
are the same whole numbers as its own, and it is sacrebleu that computes the score from them.
"""

import functools
import itertools
from pathlib import Path

import numpy as np

from llamax.files import InputError, fingerprint
from llamax.ngrams import Ngrams, totals

METRICS = ("spBLEU", "spBLEU200", "BLEU", "chrF", "chrF++")
DEFAULT_METRICS = ("spBLEU", "chrF++")
# {metric: (sacrebleu's tokenizer, the option that gives another file in place of its own)}
SPBLEU = {"spBLEU": ("flores101", "--spbleu-model"), "spBLEU200": ("flores200", "--spbleu200-model")}
WORD_ORDERS = {"chrF": 0, "chrF++": 2}


class References:
    """The references of a test set in one language, prepared once, and the scores of hypotheses against them.

    references: one or several lists of lines, of the same length. metrics: names from METRICS. language: the Language
    that they are in, which chooses BLEU's tokens. models: {"spBLEU" or "spBLEU200": a SentencePiece file}; where none
    is named it is sacrebleu's own, which it downloads once. `signatures` has sacrebleu's signature of each metric.
    Raises InputError where a model does not load, and where no reference has anything to be scored.
    """

    def __init__(self, references, metrics, language, models=None):
        self.lines = len(references[0])
        self._scorers, self.signatures = {}, {}
        for name in metrics:
            if name in WORD_ORDERS:
                scorer = _Chrf(references, WORD_ORDERS[name])
            elif name in SPBLEU:
                scorer = _spbleu(references, name, (models or {}).get(name))
            else:
                scorer = _language_bleu(references, language)
            signature = scorer.metric.get_signature()
            if name in SPBLEU and not (models or {}).get(name):  # sacrebleu gives its folder's file one name always
                signature.update("spm", spbleu_tokens(name)[2][:8])
            self._scorers[name], self.signatures[name] = scorer, str(signature)

    def statistics(self, hypotheses):
        """{metric: int64 [lines, counts]}: what sacrebleu's metrics extract of each line, in their own order."""
        if len(hypotheses) != self.lines:
            raise InputError(f"{len(hypotheses)} hypotheses for {self.lines} lines of references; check the files")
        return {name: scorer.statistics(hypotheses) for name, scorer in self._scorers.items()}

    def score_of(self, metric, summed):
        """sacrebleu's score, 0 to 100, of summed statistics: a list or array [counts], used in its own precision."""
        return float(self._scorers[metric].metric._compute_score_from_stats(summed).score)

    def rows(self, hypotheses):
        """[{"metric", "score", "n", "signature"}] of a list of lines."""
        return [
            {
                "metric": name,
                "score": self.score_of(name, statistics.sum(axis=0).tolist()),
                "n": self.lines,
                "signature": self.signatures[name],
            }
            for name, statistics in self.statistics(hypotheses).items()
        ]


def model_digests(metrics, models=None):
    """{metric: what its scores depend on beside the lines and sacrebleu}: of those with a SentencePiece file a list of
    its name in signatures and its BLAKE2b digest, of others [].

    Loads the models: what is wrong with them shows before worker processes start, and these have them from the start.
    """
    loaded = {name: spbleu_tokens(name, (models or {}).get(name))[1:] if name in SPBLEU else () for name in metrics}
    return {name: list(made) for name, made in loaded.items()}


class _Bleu:
    """A BLEU of sacrebleu against references; `vocabulary` numbers its tokens."""

    def __init__(self, references, metric, vocabulary):
        self.metric, self.vocabulary = metric, vocabulary
        texts = [vocabulary.learn(lines) for lines in references]
        self.lengths = np.stack([lengths for _, lengths in texts])  # [references, lines]
        _require_any(self.lengths)
        self.ngrams = Ngrams(texts, metric.max_ngram_order)
        metric.num_refs = len(references)
        # Without any reference of four tokens there is no 4-gram to find, and BLEU were 0 for the references
        # themselves. The signature says eff:yes then; a test set with a single longer line is scored as ever.
        metric.effective_order = bool(self.lengths.max() < metric.max_ngram_order)

    def statistics(self, lines):
        symbols, lengths = self.vocabulary.find(lines)
        # Of several references the length that is nearest counts, of two as near the shorter one.
        scale = self.lengths.max() + 1
        nearest = (np.abs(lengths - self.lengths) * scale + self.lengths).min(axis=0) % scale
        matches = self.ngrams.matches(symbols, lengths)
        return np.column_stack([lengths, nearest, matches, totals(lengths, matches.shape[1])])


class _Chrf:
    """sacrebleu's chrF against references; with word_order 2, chrF++."""

    def __init__(self, references, word_order):
        from sacrebleu.metrics import CHRF

        self.metric = CHRF(word_order=word_order)
        self.metric.num_refs = len(references)
        self.words = Vocabulary(self.metric._remove_punctuation)
        self.references = []  # of each: Ngrams of the characters and of the words, totals of both [lines, orders]
        for lines in references:
            texts = self._texts(lines, self.words.learn)
            self.references.append(([Ngrams([text], orders) for text, orders in texts], self._totals(texts)))
        _require_any(np.stack([there for _, there in self.references]))

    def _texts(self, lines, words):
        """[(text, orders of its n-grams)]: characters and, by `words`, words."""
        texts = [(_characters(lines), self.metric.char_order)]
        if self.metric.word_order:
            texts.append((words(lines), self.metric.word_order))
        return texts

    def _totals(self, texts):
        return np.hstack([totals(lengths, orders) for (_, lengths), orders in texts])

    def statistics(self, lines):
        texts = self._texts(lines, self.words.find)
        given = self._totals(texts)
        found = []
        for ngrams, there in self.references:
            matches = np.hstack([known.matches(*text) for known, (text, _) in zip(ngrams, texts, strict=True)])
            counted = np.where(there > 0, given, 0)  # sacrebleu's rule: none of an order that the reference has not
            found.append(np.stack([counted, there, matches], axis=2).reshape(len(lines), -1))
        if len(found) == 1:
            return found[0]
        # Of several references the one with the best score of the line counts, of equal ones the first.
        scores = [[self.metric._compute_f_score(line) for line in statistics.tolist()] for statistics in found]
        return np.stack(found)[np.argmax(scores, axis=0), np.arange(len(lines))]


def _require_any(lengths):
    if not lengths.any():
        raise InputError("the references hold no word on any line, so nothing can be scored; check the files")


def _language_bleu(references, language):
    """BLEU on words where the language separates them, else on characters."""
    from sacrebleu.metrics import BLEU

    if language.script in ("Hans", "Hant", "Hani"):
        tokens = "zh"
    else:
        tokens = "13a" if language.spaces else "char"
    metric = BLEU(tokenize=tokens)
    tokenizer = _tokenizer(tokens)
    return _Bleu(references, metric, Vocabulary(lambda line: tokenizer(line.rstrip()).split()))


@functools.cache
def _tokenizer(tokens):
    """sacrebleu's tokenizer, one for all references: it remembers the lines it has seen."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokens).tokenizer


def _spbleu(references, name, path):
    from sacrebleu.metrics import BLEU

    pieces, tokens, _ = spbleu_tokens(name, path)
    metric = BLEU(tokenize="none")
    metric.tokenizer_signature = tokens
    return _Bleu(references, metric, pieces)


def _text(numbers):
    """A list of each line's numbers as Ngrams takes them."""
    lengths = np.fromiter(map(len, numbers), np.int64, len(numbers))
    return np.fromiter(itertools.chain.from_iterable(numbers), np.int64, lengths.sum()), lengths


def _characters(lines):
    """The characters of lines without white space as Ngrams takes them."""
    lines = ["".join(line.split()) for line in lines]
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    return np.frombuffer("".join(lines).encode("utf-32-le"), np.uint32).astype(np.int64), lengths


class Vocabulary:
    """The numbers of the tokens that references have. split: line -> its tokens."""

    def __init__(self, split):
        self.split, self.known = split, {}

    def learn(self, lines):
        """References as Ngrams takes them."""
        known = self.known
        return _text([[known.setdefault(token, len(known)) for token in self.split(line)] for line in lines])

    def find(self, lines):
        """Hypotheses as Ngrams takes them."""
        get = self.known.get
        return _text([[get(token, -1) for token in self.split(line)] for line in lines])


class Pieces:
    """The numbers of a SentencePiece model's tokens: those of the ids.

    sacrebleu splits the joined pieces at white space, and an unknown piece is whatever stands in the line. Lines with
    such pieces are read as text, and tokens that are no piece numbered as by a Vocabulary, one for all references.
    """

    def __init__(self, processor):
        self.processor = processor
        pieces = processor.id_to_piece(list(range(processor.get_piece_size())))
        self.plain = np.array([piece.split() == [piece] for piece in pieces])
        self.plain[processor.unk_id()] = False
        self.known = {}

    def learn(self, lines):
        return self._numbers(lines, lambda token: self.known.setdefault(token, len(self.plain) + len(self.known)))

    def find(self, lines):
        return self._numbers(lines, lambda token: self.known.get(token, -1))

    def _numbers(self, lines, other):
        lines = [line.rstrip() for line in lines]
        ids = self.processor.encode(lines, out_type=int, num_threads=1)
        symbols, lengths = _text(ids)
        odd = np.repeat(np.arange(len(lines)), lengths)[~self.plain[symbols]]
        if not len(odd):
            return symbols, lengths
        for i in np.unique(odd).tolist():
            tokens = " ".join(self.processor.encode(lines[i], out_type=str)).split()
            numbers = self.processor.piece_to_id(tokens)
            ids[i] = [n if self.plain[n] else other(token) for n, token in zip(numbers, tokens, strict=True)]
        return _text(ids)


@functools.cache
def spbleu_tokens(metric, path=None):
    """(Pieces, their name in signatures, the BLAKE2b digest of their file) of a SentencePiece file, or sacrebleu's."""
    name, option = SPBLEU[metric]
    if path is not None:
        import sentencepiece

        try:
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(f"{option} {path}: not a SentencePiece model ({reason}); check the file") from None
        digest = fingerprint(path)["blake2b"]
        return Pieces(processor), f"spm-{digest[:8]}", digest

    import socket

    from sacrebleu.metrics import BLEU
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    path = Path(SACREBLEU_DIR) / "models" / Path(SPM_MODELS[name]["url"]).name
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # on a compute node without a network sacrebleu would wait for minutes
    try:
        tokenizer = BLEU(tokenize=name).tokenizer
        return Pieces(tokenizer.sp), tokenizer.signature(), fingerprint(path)["blake2b"]
    except (Exception, SystemExit) as error:  # sacrebleu exits by itself on some failures
        raise InputError(
            f"{path}: sacrebleu cannot load or download its {name} model ({str(error)[:200]}); "
            f"give the file by {option}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
