"""Prompts as ids, and generated ids as text: with our own tokenizers, or with those that a model's folder has."""

import functools
import re
from array import array

from llamax.files import InputError, fingerprint, read_json, reason
from llamax.prompts import TRANSLATION_PROMPTS, parts, prompt_ids
from llamax.tokenizer import load_tokenizer

ENCODED_SETS = 256  # test sets kept as ids: Flores-101 is 102, of 1,012 lines each


class PromptEncoder:
    """Sentences as the ids of their prompts.

    With our own tokenizers a sentence is encoded once for all languages it is translated into, with what surrounds it
    on its line of the prompt. That is exact: no token of Llama's reaches over an end of a line into what follows,
    unless that begins with a space. The tokenizers of others, and prompts with examples, are encoded whole.
    """

    def __init__(self, folder, prompt, examples=None):
        """
        Args:
            prompt: a name in TRANSLATION_PROMPTS, or "none": the bare source, as in a connected pair of pre-training.
            examples: (direction, number of sentences) -> [(source, target)] for each sentence's prompt, or None.
        """
        self.prompt = prompt
        self.template = None if prompt == "none" else TRANSLATION_PROMPTS[prompt]
        if examples and not self.template:
            raise InputError("--shots: --prompt none shows no examples; choose another prompt or leave --shots out")
        self.examples = examples
        special = self.template is not None and self.template.special
        self.ours = (folder / "tokenizer.model").is_file() and not special
        self.tokenizer = load_tokenizer(folder) if self.ours else ForeignTokenizer(folder)
        self._last_lines = {}  # {(key, what precedes a sentence on its line, what follows it): ids of each}

    def encode(self, direction, key, sentences):
        """The ids of each sentence's prompt. `key` names the sentences: the same key, the same sentences."""
        if self.template is None:
            return self._whole(sentences)
        name = self.template.name
        if self.examples:
            shown = self.examples(direction, len(sentences))
            around = [parts(direction, name, examples) for examples in shown]
            return self._whole([b + sentence + a for (b, a), sentence in zip(around, sentences, strict=True)])
        before, after = parts(direction, name)
        cut = before.rfind("\n") + 1
        if not self.ours or not cut:
            return self._whole([before + sentence + after for sentence in sentences])
        head = array("i", prompt_ids(self.tokenizer, before[:cut]))
        return [
            head + ids if ids else self._whole([before + sentence + after])[0]
            for ids, sentence in zip(self._encoded(key, sentences, before[cut:], after), sentences, strict=True)
        ]

    def _encoded(self, key, sentences, before, after):
        """The ids of the sentences with what surrounds them; None for what begins with a space."""
        name = key, before, after
        if name not in self._last_lines:
            if len(self._last_lines) >= ENCODED_SETS:
                self._last_lines.clear()
            texts = [before + sentence + after for sentence in sentences]
            self._last_lines[name] = [
                None if text[:1].isspace() else array("i", self.tokenizer.encode_continuation(text)) for text in texts
            ]
        return self._last_lines[name]

    def _whole(self, texts):
        if self.ours:
            return [array("i", prompt_ids(self.tokenizer, text)) for text in texts]
        return self.tokenizer.encode_prompts(texts, bos=self.template is None or self.template.bos)

    @functools.cached_property
    def ends(self):
        """{id: whether it is EOS} of the ids that end a translation: beside EOS, in prompts that say so, all that hold
        an end of a line."""
        stops = self.template.stop if self.template else ()
        found = range(self.tokenizer.vocab_size) if stops else ()
        ends = {i: False for i in found if any(stop in self.tokenizer.decode([i]) for stop in stops)}
        return ends | dict.fromkeys(self.tokenizer.ends, True)

    def text(self, ids):
        """The text of generated ids up to what ends it, on one line. Nothing else is cut: a colon or ### may be
        translation."""
        kept = []
        for i in ids:
            if self.ends.get(i) is not True and i < self.tokenizer.vocab_size:  # embeddings may be padded beyond it
                kept.append(i)
            if i in self.ends:
                break
        text = self.tokenizer.decode(kept)
        for stop in self.template.stop if self.template else ():
            text = text.partition(stop)[0]
        return re.sub(r"[\r\n]+", " ", text.strip())


class ForeignTokenizer:
    """The tokenizer of a folder as `transformers` loads it: of models that are not Llama, or prompts with control
    tokens."""

    def __init__(self, folder):
        import transformers

        transformers.utils.logging.set_verbosity_error()
        named = folder / "generation_config.json"
        ends = read_json(named).get("eos_token_id") if named.is_file() else None
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            if len(self.tokenizer) <= len(self.tokenizer.all_special_ids):  # what transformers makes of no file
                raise ValueError("it has no tokens")
        except Exception as error:  # every fault of a folder from elsewhere has its own type
            raise InputError(
                f"--hf-model {folder}: no tokenizer loads ({reason(error)}); expected a tokenizer.model of Llama's "
                "kind or what transformers reads"
            ) from None
        ends = ends if isinstance(ends, list) else [ends]
        self.ends = [i for i in dict.fromkeys([self.tokenizer.eos_token_id, *ends]) if i is not None]
        if not self.ends:
            raise InputError(f"--hf-model {folder}: its tokenizer has no EOS, so that no translation would end; add it")
        self.eos_id, self.bos_id = self.ends[0], self.tokenizer.bos_token_id
        self.vocab_size = len(self.tokenizer)
        files = [path for name in ("tokenizer.json", "vocab.json", "*.model") for path in sorted(folder.glob(name))]
        self._manifest = {path.name: fingerprint(path)["blake2b"] for path in files}

    def encode_prompts(self, texts, bos):
        """The ids of texts, control tokens read as such; `bos`: with BOS before them, where there is one."""
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        first = [self.bos_id] if bos and self.bos_id is not None else []
        return [array("i", [*first, *ids]) for ids in rows]

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def manifest(self):
        return {"kind": "transformers", "files": self._manifest, "vocab_size": self.vocab_size}
