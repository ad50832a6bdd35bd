"""LLaMA's tokenizers: SentencePiece (Llama 1 and 2) and tiktoken ranks (Llama 3), encoded by gigatoken.

gigatoken gives the ids of the reference libraries several times faster, with one exception that matters here: it
reads "<s>" inside a text as the control token. Texts that spell a control token are therefore left to
`sentencepiece`, which reads them as ordinary characters.
"""

import base64
import functools
import json
import re
from pathlib import Path

import gigatoken
import numpy as np

from llamax.files import InputError, fingerprint, write_json
from llamax.indexed import token_dtype

# Llama 3's pre-tokenisation pattern and special tokens are published with its weights, not in the rank file.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL_TOKENS = 256  # ids 128,000 to 128,255; the first is BOS, the second EOS


def load_tokenizer(path):
    """The tokenizer of a file (`tokenizer.model` of either kind) or of a Hugging Face folder that holds one.

    Raises InputError if there is none or if it is of another kind.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "tokenizer.model").is_file():
            raise InputError(
                f"{path}: holds no tokenizer.model; copy the model's SentencePiece file or Llama-3's rank file there"
            )
        path = path / "tokenizer.model"
    if not path.is_file():
        raise InputError(f"--tokenizer-model {path}: no such file, expected a tokenizer.model; check the path")
    with open(path, "rb") as file:
        first_line = file.readline(1000).strip()
    try:
        if re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+", first_line):
            return TiktokenTokenizer(path)
        return SentencePieceTokenizer(path)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise InputError(
            f"--tokenizer-model {path}: neither a SentencePiece model nor a tiktoken rank file ({reason}); "
            "give the tokenizer.model that belongs to the Llama model"
        ) from None


def encode_entries(texts, tokenizer):
    """BOS, the ids of a text, EOS, for each text, joined, in the type a dataset has; and the length of each entry."""
    ids, offsets = tokenizer.encode_batch(texts)
    sizes = np.diff(offsets) + 2
    ends = np.cumsum(sizes)
    if len(ids) and ids.max() >= tokenizer.vocab_size:
        raise ValueError(f"id {ids.max()} is not below the vocabulary size {tokenizer.vocab_size}")
    entries = np.empty(int(sizes.sum()), token_dtype(tokenizer.vocab_size))
    inside = np.ones(len(entries), bool)
    inside[ends - sizes] = inside[ends - 1] = False
    entries[ends - sizes], entries[ends - 1], entries[inside] = tokenizer.bos_id, tokenizer.eos_id, ids
    return entries, sizes


class Tokenizer:
    """What both kinds share. Ids never include BOS and EOS: those are the caller's.

    Attributes: path, kind, vocab_size, bos_id, eos_id; `ends`, the ids that end a text; `fingerprint`, the BLAKE2b
    digest of the file; `prefix_chars`, how many characters encode() puts before a text; `chars_started`, an int64
    array that says for each id how many characters start in its piece (0 for a UTF-8 continuation byte).
    """

    def __init__(self, path, kind):
        self.path, self.kind = Path(path), kind
        self.fingerprint = fingerprint(path)["blake2b"]

    @property
    def ends(self):
        return [self.eos_id]

    def encode(self, text):
        """The ids of one text, as a list."""
        return self.fast.encode(text).tolist()

    def encode_batch(self, texts):
        """Encode many texts: (ids, offsets), where text i has ids[offsets[i]:offsets[i + 1]].

        ids is uint32, offsets int64 of len(texts) + 1.
        """
        if not texts:
            return np.zeros(0, np.uint32), np.zeros(1, np.int64)
        layout = self.fast.encode_batch(texts).layout
        offsets = np.asarray(layout.offsets, np.int64)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return ids, offsets - offsets[0]

    def first_token_of(self, char, ids):
        """The index in `ids` (the encoding of a text) of the token that holds the text's character number `char`."""
        ends = np.cumsum(self.chars_started[ids])  # characters started up to and with each token
        return int(np.searchsorted(ends, char + self.prefix_chars, side="right"))

    def manifest(self):
        """What a dataset's manifest says of its tokenizer."""
        return {"file": self.path.name, "kind": self.kind, "blake2b": self.fingerprint, "vocab_size": self.vocab_size}


class SentencePieceTokenizer(Tokenizer):
    """Llama 1 and 2: SentencePiece BPE with byte fallback, identity normalisation and a dummy prefix."""

    prefix_chars = 1  # the dummy prefix "▁"

    def __init__(self, path):
        import sentencepiece
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2

        super().__init__(path, "sentencepiece")
        try:
            proto = sentencepiece_model_pb2.ModelProto.FromString(self.path.read_bytes())
        except DecodeError as error:
            raise ValueError(str(error)) from None
        normalizer = proto.normalizer_spec
        if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces or not normalizer.add_dummy_prefix:
            raise ValueError("it normalises its input; Llama's does not")
        self.reference = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        if not self.reference.IsByte(self.reference.piece_to_id("<0x0A>")):
            raise ValueError("it has no byte fallback; Llama's has")
        self.fast = gigatoken.Tokenizer.from_sentencepiece(path)
        normalizer.add_dummy_prefix = False
        self.continuation = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self.vocab_size = self.reference.vocab_size()
        self.bos_id, self.eos_id = self.reference.bos_id(), self.reference.eos_id()
        self.control = np.array([i for i, p in enumerate(proto.pieces) if p.type in (p.CONTROL, p.UNKNOWN)])
        self.control_ids = frozenset(self.control.tolist())
        self.chars_started = np.array(
            [int(not 0x80 <= int(p.piece[3:5], 16) < 0xC0) if p.type == p.BYTE else len(p.piece) for p in proto.pieces],
            np.int64,
        )

    def encode(self, text):
        ids = super().encode(text)
        return ids if self.control_ids.isdisjoint(ids) else self.reference.encode(text)

    def encode_batch(self, texts):
        ids, offsets = super().encode_batch(texts)
        found = np.flatnonzero(ids <= self.control[-1])  # few: the control pieces come first
        found = found[np.isin(ids[found], self.control)]
        spelled = np.unique(np.searchsorted(offsets, found, side="right") - 1).tolist()
        if not spelled:
            return ids, offsets
        parts = np.split(ids, offsets[1:-1])
        for i in spelled:
            parts[i] = np.array(self.reference.encode(texts[i]), np.uint32)
        return np.concatenate(parts), np.concatenate([[0], np.cumsum([len(p) for p in parts])])

    def encode_continuation(self, text):
        """The ids of a text that follows another one: no dummy prefix (a response after its prompt)."""
        return self.continuation.encode(text)

    def decode(self, ids):
        """The text of ids that follow others (the first keeps its leading space, if it has one)."""
        return self.continuation.decode([int(i) for i in ids])

    def decode_text(self, ids):
        """The text that encode() made these ids of."""
        return self.decode(ids)[1:]  # without the dummy prefix


def write_hf_tokenizer(path, folder):
    """Write tokenizer.json and, where there is none, tokenizer_config.json of a SentencePiece tokenizer.model, for
    transformers: left with that alone, it orders joins by id instead of score, and knows of no BOS."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(Path(path).read_bytes())
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    merges = []
    for piece in sorted(proto.pieces, key=lambda piece: -piece.score):
        text = piece.piece if piece.type == piece.NORMAL else ""
        halves = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in ids and text[i:] in ids]
        merges += sorted(halves, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    special = [p.piece for p in proto.pieces if p.type in (p.UNKNOWN, p.CONTROL)]
    unknown, bos, eos = (proto.pieces[i].piece for i in (0, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id))
    before, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    write_json(
        Path(folder) / "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [{"id": ids[name], "content": name, **flags} for name in special],
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [before, text],
                "pair": [before, text, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
            },
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "model": {
                "type": "BPE",
                "unk_token": unknown,
                "fuse_unk": True,
                "byte_fallback": True,
                "vocab": ids,
                "merges": merges,
            },
        },
    )
    if not (Path(folder) / "tokenizer_config.json").is_file():
        names = {"unk_token": unknown, "bos_token": bos, "eos_token": eos}
        write_json(Path(folder) / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})


class TiktokenTokenizer(Tokenizer):
    """Llama 3: byte-level BPE from a rank file, with Llama 3's pattern and special tokens."""

    prefix_chars = 0

    def __init__(self, path):
        super().__init__(path, "tiktoken")
        ranks = {}
        for line in self.path.read_bytes().splitlines():
            piece, rank = line.split()
            ranks[base64.b64decode(piece, validate=True)] = int(rank)
        self.pieces = sorted(ranks, key=ranks.get)
        if [ranks[p] for p in self.pieces] != list(range(len(ranks))):
            raise ValueError("its ranks are not 0, 1, 2, …")
        self.ranks = ranks
        self.fast = gigatoken.Tokenizer.from_json(_byte_level_bpe(ranks))
        self.vocab_size = len(ranks) + LLAMA3_SPECIAL_TOKENS
        self.bos_id, self.eos_id = len(ranks), len(ranks) + 1
        self.chars_started = np.zeros(self.vocab_size, np.int64)
        self.chars_started[: len(ranks)] = [sum(not 0x80 <= b < 0xC0 for b in piece) for piece in self.pieces]

    @functools.cached_property
    def reference(self):
        """The same tokenizer in `tiktoken`, for tests."""
        import tiktoken

        return tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=self.ranks, special_tokens={})

    def encode_continuation(self, text):
        """The ids of a text that follows another one."""
        return self.encode(text)

    def decode(self, ids):
        """The text of ids; bytes that are not UTF-8 become U+FFFD, special tokens nothing."""
        return b"".join(self.pieces[i] for i in ids if i < len(self.pieces)).decode("utf-8", errors="replace")

    decode_text = decode


def _byte_level_bpe(ranks):
    """A `tokenizer.json` of the ranks: some of Llama 3's pieces are no merge of two others, so that a whole piece
    has to be looked up before any merge ("ignore_merges"), which a bare rank file cannot tell gigatoken."""
    # GPT-2's printable stand-ins for bytes: printable Latin-1 stays, the rest moves up from U+0100.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    letter = {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}
    name = {piece: "".join(letter[b] for b in piece) for piece in ranks}
    merges = []
    for piece in sorted(ranks, key=ranks.get):
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        halves = [(a, b) for a, b in halves if a in ranks and b in ranks]
        merges += [[name[a], name[b]] for a, b in sorted(halves, key=lambda ab: (ranks[ab[0]], ranks[ab[1]]))]
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {"type": "BPE", "ignore_merges": True, "vocab": {name[p]: r for p, r in ranks.items()}, "merges": merges}
    return json.dumps(
        {"version": "1.0", "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]}, "model": model}
    )
