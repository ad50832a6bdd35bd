"""Random models of the real architectures that translate, with tokenizers of a few syllables."""

import json
import random
import shutil

import sentencepiece

WORDS = [a + b for a in "ba be bi bo ka ke ki ko la le li lo na ne ni no".split(" ") for b in "t n s r m lu mo".split()]  # noqa: SIM905
SMALL = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128, "scale_embedding": False,
}  # fmt: skip


def english(n, seed=0):
    """n different sentences."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) + f" {i}" for i in range(n)]


ENGLISH = english(4000)


def sentence_pieces(folder):
    """Write the SentencePiece models bpe.model, unigram.model and, with MADLAD's tokens, madlad.model."""
    (folder / "text.txt").write_text("\n".join(ENGLISH[:2000]))
    tokens = ["<2en>", "<2fr>", "<2fil>", "<2ku>", "<2ckb>", "<2zh>"]
    for name, kind, symbols in (("bpe", "bpe", []), ("unigram", "unigram", []), ("madlad", "unigram", tokens)):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text.txt"), model_prefix=str(folder / name), vocab_size=200, model_type=kind,
            num_threads=1, minloglevel=2, hard_vocab_limit=False, user_defined_symbols=symbols,
        )  # fmt: skip
    return folder


def save(model, tokenizer, folder, spoken):
    """Save a random model that says different things of different sentences; `spoken`: ids that are text. The others
    it says rarely, so that a few translations are empty."""
    import torch

    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 1.0 if "shared" in name else 0.7)
    table = model.get_input_embeddings().weight.data
    silent = torch.ones(len(table), dtype=torch.bool)
    silent[spoken] = False
    table[silent] *= 0.8
    table[len(tokenizer) :] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_m2m(pieces, folder):
    """M2M-100, with files as the published ones: all its language tokens are among the special ones."""
    import transformers
    from transformers.models.m2m_100 import tokenization_m2m_100

    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "bpe.model"))
    known = ["<s>", "<pad>", "</s>", "<unk>", *map(model.id_to_piece, range(3, len(model)))]
    (pieces / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(known)}))
    codes = tokenization_m2m_100.FAIRSEQ_LANGUAGE_CODES["m2m100"]
    tokenizer = transformers.M2M100Tokenizer(
        str(pieces / "vocab.json"), str(pieces / "bpe.model"), extra_special_tokens=[f"__{code}__" for code in codes]
    )
    config = transformers.M2M100Config(vocab_size=len(known) + len(codes) + 8, **SMALL)
    model = transformers.M2M100ForConditionalGeneration(config)
    return save(model, tokenizer, folder, slice(4, len(known)))


def save_madlad(pieces, folder):
    import transformers

    folder.mkdir()
    shutil.copy(pieces / "madlad.model", folder / "spiece.model")
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=32, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return save(transformers.T5ForConditionalGeneration(config), tokenizer, folder, slice(10, len(tokenizer) - 1))


def independent(folder, sentences, source, target):
    """Translations by a model with tokens for both sides, one sentence at a time, as its documentation shows it."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, src_lang=source)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    first, found = tokenizer.convert_tokens_to_ids(target), []
    for sentence in sentences:
        inputs = tokenizer(sentence, return_tensors="pt")
        output = model.generate(**inputs, forced_bos_token_id=first, num_beams=2, max_new_tokens=8, do_sample=False)
        found += tokenizer.batch_decode(output, skip_special_tokens=True)
    return found
