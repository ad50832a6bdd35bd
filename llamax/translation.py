"""Translation by a sequence-to-sequence model of `transformers`, or by CTranslate2 (LLaMAX, Algorithm 1).

Four ways to say into which language, told apart by the model's tokenizer; what decides is the language tokens it has:

    M2M-100          __fr__      the source's before the source, the target's as the first token of the translation
    NLLB-200         fra_Latn    the same
    mBART-50         fr_XX       the same
    MADLAD-400 (T5)  <2fr>       before the source

The model is data from elsewhere: safetensors only, none of its code. Beam search, so that nothing is drawn by chance.
"""

import re

from llamax.files import InputError, extra, read_json, reason
from llamax.languages import resolve
from llamax.prompts import MADLAD_CODES

_TOKENS_OF_SIDES = re.compile(r"__(\w+?)__|([a-z]{3}_[A-Z][a-z]{3})|([a-z]{2,3})_[A-Z]{2}")
_KEPT = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id")
_TOKENS_BEFORE_SOURCE = re.compile(r"<2(\w+)>")


class Translator:
    """A model: its tokenizer at once, its weights after load(), which also says on which `packages` it depends."""

    def __init__(self, folder, ctranslate2=None, device="auto", dtype=None, num_beams=4, max_new_tokens=256,
                 batch_tokens=4096, flag="--model"):  # fmt: skip
        """
        Args:
            folder: of a Hugging Face model; with `ctranslate2` only its tokenizer is read.
            ctranslate2: folder of the same model, converted by ct2-transformers-converter.
            device: "cpu", "cuda" or "auto": the GPU if there is one.
            dtype: "float32", "bfloat16" or "float16"; None: float32, or what CTranslate2 has converted the model to.
            batch_tokens: source tokens of a batch, padding included; a sentence that is longer is a batch of its own.
            flag: the option that named the folder, for errors.
        """
        self.folder, self.ctranslate2, self.given = folder, ctranslate2, f"{flag} {folder}"
        self.num_beams, self.max_new_tokens, self.batch_tokens = num_beams, max_new_tokens, batch_tokens
        self._load_tokenizer()
        self.device, self.dtype = device, dtype

    def _load_tokenizer(self):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # every fault of a folder from elsewhere has its own type
            raise InputError(f"{self.given}: no tokenizer loads ({reason(error)}); {_EXPECTED}") from None
        self.tokenizer, self.two_sides = tokenizer, hasattr(tokenizer, "src_lang")
        pattern, known = _TOKENS_BEFORE_SOURCE, tokenizer.get_vocab()
        if self.two_sides:
            pattern, known = _TOKENS_OF_SIDES, tokenizer.get_added_vocab() | getattr(tokenizer, "lang_token_to_id", {})
        found = {token: match for token in known if (match := pattern.fullmatch(token))}
        self.tokens = {match[match.lastindex]: token for token, match in found.items()}  # {the model's name: token}
        if not self.tokens:
            raise InputError(f"{self.given}: its tokenizer has no tokens for languages; {_EXPECTED}")
        self.unwritten = {*tokenizer.all_special_tokens, *self.tokens.values()}

    def name_of(self, code):
        """What the model calls a language, or None. The most exact code goes first: MADLAD's ku is not Sorani."""
        language = resolve(code)
        if not self.two_sides and MADLAD_CODES.get(language.code) in self.tokens:
            return MADLAD_CODES[language.code]
        exact = [language.flores200, f"{language.iso639_3}_{language.script}", language.iso639_3]
        others = [language.flores101_dev, language.flores101_devtest, language.code, language.ntrex]
        return next((name for name in exact + others if name in self.tokens and self._means(name, language)), None)

    def _means(self, name, language):
        try:
            return resolve(name) == language
        except InputError:  # zho is two languages here, and Chinese may be either to the model
            return False

    def require(self, codes):
        """Raise InputError unless the model has all these languages, and English."""
        missing = [code for code in sorted({*codes}) if not self.name_of(code)]
        if missing:
            names = ", ".join(f"{code} ({resolve(code).name})" for code in missing)
            raise InputError(
                f"{self.given}: has no token for {names}, only for {len(self.tokens)} languages; choose a "
                "model that has, or leave them out of the plan (--high-resource)"
            )
        if self.two_sides and not self.name_of("en"):
            raise InputError(f"{self.given}: has no token for English, the language of the sentences")

    def load(self):
        """Load the weights. Apart from the rest, so that what can be wrong beside them is found before."""
        device = self.device
        if device != "cpu":
            import torch

            if device == "cuda" and not torch.cuda.is_available():
                raise InputError("--device cuda: torch sees no GPU; run on a machine with one or give --device cpu")
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._search = self._load_converted(device) if self.ctranslate2 else self._load_transformers(device)

    def _load_transformers(self, device):
        import torch
        import transformers

        if not any(self.folder.glob("*.safetensors")):
            raise InputError(
                f"{self.given}: holds no .safetensors; load the model once with transformers and save it with "
                "save_pretrained, which writes them"
            )
        kind, dtype = transformers.AutoModelForSeq2SeqLM, self.dtype or "float32"
        model = load_weights(kind, self.folder, dtype, device, self.given, _EXPECTED)
        defaults = model.generation_config
        model.generation_config = transformers.GenerationConfig(  # not the folder's: it may sample, or cut at 200
            num_beams=self.num_beams,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            **{name: getattr(defaults, name) for name in _KEPT},
        )

        def search(ids, token):
            batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
            first = {"forced_bos_token_id": self.tokenizer.convert_tokens_to_ids(token)} if self.two_sides else {}
            with torch.inference_mode():
                return model.generate(**batch, **first).tolist()

        self.packages = ("torch", "transformers")
        return search

    def _load_converted(self, device):
        library = extra("ctranslate2", "--ctranslate2")
        if read_json(self.folder / "config.json", "--model").get("model_type") != "m2m_100":
            # Of MADLAD-400 converted with transformers 5, which says of every T5 that its embeddings are tied, the
            # logits are divided by the square root of the width: another beam search. The folder does not tell.
            raise InputError(
                "--ctranslate2: only for M2M-100 and NLLB-200; ctranslate2 4.8.5 converts MADLAD-400 wrongly with "
                "transformers 5: leave it out"
            )
        known = [token for path in self.ctranslate2.glob("*vocabulary.json") for token in read_json(path)]
        lacking = sorted({*self.tokens.values()} - {*known})
        if known and lacking:  # they would be read as unknown, without a word
            raise InputError(
                f"--ctranslate2 {self.ctranslate2}: has no {lacking[0]} ({len(lacking)} of the language tokens of "
                f"{self.given} are missing); convert that model with ct2-transformers-converter"
            )
        try:
            model = library.Translator(str(self.ctranslate2), device=device, compute_type=self.dtype or "default")
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"--ctranslate2 {self.ctranslate2}: does not load ({reason(error)}); expected the folder that "
                "ct2-transformers-converter made of --model"
            ) from None

        def search(ids, token):
            results = model.translate_batch(
                [self.tokenizer.convert_ids_to_tokens(row) for row in ids],
                target_prefix=[[token]] * len(ids),
                beam_size=self.num_beams,
                max_decoding_length=self.max_new_tokens,
            )
            return [self.tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]

        self.packages = ("ctranslate2", "transformers")
        return search

    def encode(self, texts, source, target):
        """The ids of texts, a list each, that search() takes to translate them from a language into another."""
        if self.two_sides:
            name = self.name_of(source)
            self.tokenizer.src_lang = name if hasattr(self.tokenizer, "get_lang_id") else self.tokens[name]
        else:
            texts = [f"{self.tokens[self.name_of(target)]} {text}" for text in texts]
        return self.tokenizer(texts)["input_ids"]

    def search(self, ids, target):
        """The translations of one batch of encode(), in its order, each on one line (maybe empty)."""
        return [self._text(row) for row in self._search(ids, self.tokens[self.name_of(target)])]

    def translate(self, texts, target, source="en"):
        """The translations of texts, in their order, by batches of batch_tokens. Longest first: too large a batch fails
        at once, and halves what a batch may be from then on."""
        ids = self.encode(texts, source, target)
        found, order = [""] * len(ids), sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
        while order:
            longest = len(ids[order[0]])
            batch = order[: max(1, self.batch_tokens // longest)]
            try:
                rows = self.search([ids[i] for i in batch], target)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise InputError(
                        f"{self.given}: a sentence of {longest} tokens does not fit into the memory; give a "
                        "smaller --num-beams or --max-chars, or --dtype bfloat16, and run again to go on"
                    ) from None
                self.batch_tokens = len(batch) // 2 * longest
                continue
            for i, row in zip(batch, rows, strict=True):
                found[i] = row
            order = order[len(batch) :]
        return found

    def _text(self, ids):
        """Ids as text, without special and language tokens, which some tokenizers do not count among the special."""
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        kept = [i for i, token in zip(ids, tokens, strict=True) if token not in self.unwritten]
        return re.sub(r"[\r\n]+", " ", self.tokenizer.decode(kept).strip())


def load_weights(kind, folder, dtype, device, given, remedy):
    """A model of `transformers`, of an Auto class: from safetensors only, and nothing of the folder is executed. Raises
    InputError, which names it as `given`, if it does not load or lacks weights, which would be filled at random."""
    import torch

    try:
        model, loaded = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
        model = model.to(device).eval()
    except Exception as error:  # every fault of a folder from elsewhere has its own type
        raise InputError(f"{given}: does not load ({reason(error)}); {remedy}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise InputError(f"{given}: {len(missing)} weights missing, the first {missing[0]}; add them")
    return model


def is_out_of_memory(error):
    """Whether a RuntimeError of torch or CTranslate2 says so, of a GPU or of the machine."""
    return bool(re.search("out of memory|can't allocate memory", str(error)))


_EXPECTED = "expected the folder of an M2M-100, NLLB-200, mBART-50 or MADLAD-400 model as save_pretrained writes it"
