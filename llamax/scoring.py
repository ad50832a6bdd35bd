"""spBLEU, chrF++ and BLEU by sacrebleu, each with the signature that reproduces it."""

import functools
from pathlib import Path

from llamax.files import InputError, fingerprint


class SentencePieceFile:
    """sacrebleu's spBLEU tokenizer, but of a file: sacrebleu's own reads one fixed place and says "flores101"."""

    def __init__(self, path):
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def __call__(self, line):
        return " ".join(self.processor.encode(line, out_type=str))


@functools.cache
def spbleu_tokenizer(path=None):
    """(tokenizer, its name in signatures, the BLAKE2b digest of its file) of a SentencePiece file, or sacrebleu's."""
    if path is not None:
        try:
            tokenizer = SentencePieceFile(path)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(f"--spbleu-model {path}: not a SentencePiece model ({reason}); check the file") from None
        found = fingerprint(path)["blake2b"]
        return tokenizer, f"spm-{found[:8]}", found

    import socket

    from sacrebleu.metrics import BLEU
    from sacrebleu.utils import SACREBLEU_DIR

    path = Path(SACREBLEU_DIR) / "models" / "sacrebleu_tokenizer_spm.model"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # on a compute node without a network sacrebleu would wait for minutes
    try:
        tokenizer = BLEU(tokenize="flores101").tokenizer
        return tokenizer, tokenizer.signature(), fingerprint(path)["blake2b"]
    except (Exception, SystemExit) as error:  # sacrebleu exits by itself on some failures
        raise InputError(
            f"{path}: sacrebleu cannot load or download its flores101 model ({str(error)[:200]}); "
            "give the file by --spbleu-model"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def reference_metrics(references, spbleu_model=None):
    """{name: (sacrebleu metric, its signature)} for hypotheses against `references`, a list of lists of lines.

    The references are tokenised here, once, and not again for every system or source language.
    """
    from sacrebleu.metrics import CHRF

    chrf = CHRF(word_order=2, references=references)
    return {"spBLEU": spbleu_metric(references, spbleu_model), "chrF++": (chrf, str(chrf.get_signature()))}


def spbleu_metric(references, spbleu_model=None):
    """(metric, signature), where the signature holds the first 8 digits of the model file's hash."""
    from sacrebleu.metrics import BLEU

    tokenizer, name, model_digest = spbleu_tokenizer(spbleu_model)
    metric = BLEU(tokenize="none", force=True)  # force: no advice on what looks tokenised
    metric.tokenizer, metric.tokenizer_signature = tokenizer, name
    signature = with_references(metric, references).get_signature()
    if spbleu_model is None:  # sacrebleu calls whatever stands in its folder flores101
        signature.update("spm", model_digest[:8])
    return metric, str(signature)


def with_references(bleu, references):
    """Give a BLEU its references, as its constructor's `references` would, once its tokenizer is set."""
    bleu._ref_cache = bleu._cache_references(references)
    lengths = [length for cached in bleu._ref_cache for length in cached["ref_lens"]]
    if not any(lengths):
        raise InputError("the references hold no word on any line, so nothing can be scored; check the files")
    # Without any reference of four tokens there is no 4-gram to find, and BLEU were 0 for the references themselves.
    # The signature says eff:yes then; a test set with a single longer line is scored as ever.
    bleu.effective_order = max(lengths) < bleu.max_ngram_order
    return bleu


def score_lines(metrics, hypotheses):
    """[{"metric", "score", "n", "signature"}] of a list of lines, as many as the references have."""
    return [
        {
            "metric": name,
            "score": metric.corpus_score(hypotheses, None).score,
            "n": len(hypotheses),
            "signature": signature,
        }
        for name, (metric, signature) in metrics.items()
    ]


def language_bleu(references, language):
    """(metric, signature): BLEU on words where the language separates them, else on characters."""
    from sacrebleu.metrics import BLEU

    if language.script in ("Hans", "Hant", "Hani"):
        tokens = "zh"
    else:
        tokens = "13a" if language.spaces else "char"
    metric = with_references(BLEU(tokenize=tokens, force=True), references)
    return metric, str(metric.get_signature())
