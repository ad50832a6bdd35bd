"""Translation with a model of any kind: what it is fed, a batch of it, and what it answers.

CausalModel     Llama and others of its kind, by `transformers`
VLLMModel       the same by vLLM, where it is installed
Seq2SeqModel    M2M-100, NLLB-200, mBART-50, MADLAD-400
"""

import math
import zlib
from array import array
from dataclasses import dataclass
from typing import NamedTuple

from llamax.files import InputError, read_json
from llamax.prompt_ids import ForeignTokenizer, PromptEncoder
from llamax.prompts import recorded_prompt
from llamax.records import keep_freed_memory
from llamax.translation import Translator, is_out_of_memory, load_weights

STRAGGLERS = 1 / 8  # of a batch, which are left for another when all others are done


class Sentence(NamedTuple):
    """A sentence to translate: its direction, its place in the source (from 0), the ids that ask for it."""

    direction: tuple[str, str]
    number: int
    ids: array


@dataclass(frozen=True)
class Search:
    """How a translation is searched for. With do_sample num_beams is 1."""

    num_beams: int = 4
    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 1234

    def positions(self, sentence):
        """Positions of the attention cache that a sentence may fill."""
        return self.num_beams * (len(sentence.ids) + self.max_new_tokens)


def cut_batches(sentences, max_batch_tokens, model):
    """Sentences as batches of at most so many positions, padding included (or of one sentence).

    Longest first, so that sentences of a length share a batch and too large a batch fails at once; equal ones as they
    came, so that the batches of the same sentences are the same.
    """
    most = max_batch_tokens * model.batch_factor
    order = sorted(sentences, key=lambda sentence: -len(sentence.ids))
    if not model.mixes_directions:
        order.sort(key=lambda sentence: sentence.direction)
    batches = []
    for sentence in order:
        batch = batches[-1] if batches else []
        if (
            batch
            and (len(batch) + 1) * model.search.positions(batch[0]) <= most
            and (model.mixes_directions or batch[0].direction == sentence.direction)
        ):
            batch.append(sentence)
        else:
            batches.append([sentence])
    return batches


def translate_batch(model, batch, patient=False):
    """The texts of a batch, each on one line; None for those that were left when nearly all others were done, which is
    never if `patient`. Where memory runs out, it goes on in halves, and so do later batches of that size."""
    size = len(batch) * max(map(model.search.positions, batch))
    if size < model.too_large or len(batch) == 1:
        try:
            return model.translate(batch, patient)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise InputError(
                    f"{model.given}: a sentence of {len(batch[0].ids)} tokens does not fit into the memory with "
                    f"--num-beams {model.search.num_beams}; give fewer, or --dtype bfloat16, and run again to go on"
                ) from None
        model.too_large = size
    # Not inside: an exception that is being handled keeps the tensors of its frames.
    middle = len(batch) // 2
    return translate_batch(model, batch[:middle], patient) + translate_batch(model, batch[middle:], patient)


class Model:
    """What all kinds have: manifest, of the tokenizer, for records; prompt, its name; encode(direction, key,
    sentences), the ids of what is asked for each; load(); translate(batch, patient), as translate_batch() says."""

    mixes_directions = True  # sentences of several directions may share a batch
    batch_factor = 1  # how many times as large as asked for a batch may be
    too_large = math.inf  # positions of a batch that memory ran out with
    loaded = False

    def require(self, directions):
        """Raise InputError where the model cannot be asked for a direction: before the weights are loaded."""
        for direction in directions:
            self.encode(direction, None, [""])

    def load(self):
        """Load the weights, once."""
        if not self.loaded:
            self._load()
            self.loaded = True


class CausalModel(Model):
    """A decoder-only model: what it continues a prompt with is the translation."""

    def __init__(self, folder, encoder, search, device, dtype):
        self.folder, self.encoder, self.search = folder, encoder, search
        self.device, self.dtype, self.given = device, dtype, f"--hf-model {folder}"
        self.encode, self.manifest, self.prompt = encoder.encode, encoder.tokenizer.manifest, encoder.prompt
        self.packages = ("torch", "transformers", "safetensors", "sentencepiece", "gigatoken")

    def _load(self):
        import transformers

        if self.device == "cpu":
            keep_freed_memory()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        kind = transformers.AutoModelForCausalLM
        model = load_weights(kind, self.folder, self.dtype, self.device, self.given, "check the folder")
        size, tokenizer = model.get_input_embeddings().num_embeddings, self.encoder.tokenizer
        if size < tokenizer.vocab_size:
            raise InputError(
                f"{self.given}: {size} embeddings, its tokenizer has {tokenizer.vocab_size} tokens; put the tokenizer "
                "there that the model was trained with"
            )
        sampling = {"temperature": self.search.temperature, "top_p": self.search.top_p, "top_k": 0}
        # The folder's own would fill what is unset here: temperature, penalties.
        model.generation_config = transformers.GenerationConfig(
            num_beams=self.search.num_beams,
            max_new_tokens=self.search.max_new_tokens,
            do_sample=self.search.do_sample,
            **(sampling if self.search.do_sample else {}),
            bos_token_id=tokenizer.bos_id,
            eos_token_id=list(self.encoder.ends),
            pad_token_id=tokenizer.eos_id,
        )
        from llamax.search import StopAtStragglers, is_plain

        self.pads_between = is_plain(transformers.DynamicCache(config=model.config))  # a sliding window counts padding
        self.attends = self.pads_between and model.config.model_type == "llama"  # in no way of its own
        if self.attends:
            model.set_attn_implementation("shared_prompt")
        self.model, self.stop = model, StopAtStragglers(model, list(self.encoder.ends), self.search.max_new_tokens)

    def translate(self, batch, patient):
        """The texts of a batch, None for stragglers."""
        import torch

        rows = [torch.tensor(sentence.ids) for sentence in batch]
        shared, width = common_prefix(batch) if self.pads_between else 0, max(map(len, rows))
        ids_bs = torch.full((len(rows), width), self.encoder.tokenizer.eos_id)
        mask_bs = torch.zeros_like(ids_bs)
        ids_bs[:, :shared], mask_bs[:, :shared] = rows[0][:shared], 1
        # Padded between what all prompts begin with and the rest, or before all of it: the translation follows the
        # prompt's last token.
        for number, row in enumerate(rows):
            rest = len(row) - shared
            ids_bs[number, width - rest :], mask_bs[number, width - rest :] = row[shared:], 1
        ids_bs, mask_bs = ids_bs.to(self.device), mask_bs.to(self.device)
        if self.search.do_sample:  # the same batch, the same translations, whatever was drawn before
            torch.manual_seed(self.search.seed + zlib.crc32(repr([s[:2] for s in batch]).encode()))
        with torch.inference_mode():
            output = self.model.generate(
                ids_bs[:, -1:],
                attention_mask=mask_bs,
                past_key_values=self.read_prompts(ids_bs, mask_bs, shared),
                stopping_criteria=self.stop.criteria(0 if patient else int(len(batch) * STRAGGLERS)),
            )
        texts = [self.encoder.text(row[1:]) for row in output.tolist()]
        for row in self.stop.stragglers():
            texts[row] = None
        return texts

    def read_prompts(self, ids_bs, mask_bs, shared):
        """The attention cache after all but the last token of the prompts, a row a beam. Left to itself, generate()
        reads what the prompts share once a sentence, and all of it once a beam. None where there is no other token."""
        import transformers

        from llamax.search import for_beams

        if ids_bs.shape[1] == 1:
            return None
        cache, positions_bs = transformers.DynamicCache(config=self.model.config), mask_bs.cumsum(1) - 1
        if shared:
            self.model.base_model(input_ids=ids_bs[:1, :shared], past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(ids_bs))
        if ids_bs.shape[1] - 1 > shared:
            self.model.base_model(
                input_ids=ids_bs[:, shared:-1],
                attention_mask=mask_bs[:, :-1],
                position_ids=positions_bs[:, shared:-1].clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
        return for_beams(cache, self.search.num_beams, shared if self.attends else 0)


def common_prefix(batch):
    """How many ids all prompts begin with; at most all but one of the shortest."""
    first, last = min(sentence.ids for sentence in batch), max(sentence.ids for sentence in batch)
    most = min(len(sentence.ids) for sentence in batch) - 1
    return next((n for n in range(most) if first[n] != last[n]), most)


class VLLMModel(Model):
    """The same by vLLM, which makes batches of its own of what it is given."""

    batch_factor = 64

    def __init__(self, folder, encoder, search, dtype):
        self.folder, self.encoder, self.search = folder, encoder, search
        self.dtype, self.given = dtype, f"--hf-model {folder}"
        self.encode, self.manifest, self.prompt = encoder.encode, encoder.tokenizer.manifest, encoder.prompt
        self.packages = ("vllm", "sentencepiece", "gigatoken")
        try:
            import vllm
        except ImportError:
            raise InputError(
                "--engine vllm: vllm is not installed; pip install vllm, or leave the option out"
            ) from None
        self.vllm = vllm

    def _load(self):
        self.model = self.vllm.LLM(
            model=str(self.folder), dtype=self.dtype, trust_remote_code=False, seed=self.search.seed,
            max_logprobs=max(20, 2 * self.search.num_beams),
        )  # fmt: skip

    def translate(self, batch, patient):
        search, prompts = self.search, [{"prompt_token_ids": list(sentence.ids)} for sentence in batch]
        if search.num_beams > 1:  # ends at the tokenizer's EOS only
            params = self.vllm.sampling_params.BeamSearchParams(
                beam_width=search.num_beams, max_tokens=search.max_new_tokens
            )
            found = [output.sequences[0].tokens for output in self.model.beam_search(prompts, params)]
            found = [ids[len(sentence.ids) :] for ids, sentence in zip(found, batch, strict=True)]
        else:
            params = self.vllm.SamplingParams(
                max_tokens=search.max_new_tokens, stop_token_ids=list(self.encoder.ends), detokenize=False,
                seed=search.seed, temperature=search.temperature if search.do_sample else 0.0, top_p=search.top_p,
            )  # fmt: skip
            found = [output.outputs[0].token_ids for output in self.model.generate(prompts, params, use_tqdm=False)]
        return [self.encoder.text(list(ids)) for ids in found]


class Seq2SeqModel(Model):
    """A translation model, which is told the languages by tokens of its own."""

    mixes_directions = False  # a batch has one target

    def __init__(self, folder, search, device, dtype):
        self.translator = Translator(
            folder, device=device, dtype=dtype, num_beams=search.num_beams, max_new_tokens=search.max_new_tokens,
            flag="--hf-model",
        )  # fmt: skip
        self.search, self.given = search, f"--hf-model {folder}"
        self._load, self.packages = self.translator.load, ("torch", "transformers", "safetensors")
        self.manifest, self.prompt = ForeignTokenizer(folder).manifest, None

    def require(self, directions):
        self.translator.require({code for direction in directions for code in direction})

    def encode(self, direction, key, sentences):
        return [array("i", ids) for ids in self.translator.encode(list(sentences), *direction)]

    def translate(self, batch, patient):
        return self.translator.search([list(sentence.ids) for sentence in batch], batch[0].direction[1])


def open_model(folder, prompt, examples, search, engine, device, dtype):
    """The model of a folder, its weights not loaded yet. `prompt`: None for the one it was tuned with, or the only one
    of a translation model; raises InputError where options and model do not fit."""
    config = read_json(folder / "config.json", "--hf-model")
    if config.get("is_encoder_decoder"):
        for flag, wrong in (
            ("--prompt", prompt is not None),
            ("--shots", examples is not None),
            ("--do-sample", search.do_sample),
            ("--engine vllm", engine == "vllm"),
        ):
            if wrong:
                raise InputError(f"{flag}: not for {config.get('model_type')} of --hf-model {folder}; leave it out")
        return Seq2SeqModel(folder, search, device, dtype)
    encoder = PromptEncoder(folder, prompt or recorded_prompt(folder), examples)
    if engine == "vllm":
        return VLLMModel(folder, encoder, search, dtype)
    return CausalModel(folder, encoder, search, device, dtype)
