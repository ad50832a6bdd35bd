"""The prompts of instruction tuning and evaluation: one place, so that both sides use the same bytes.

Two are known to tuning, with the same sentences:

    llamax     LLaMAX-Alpaca's, one newline between the parts, as in its inference code and model card:
               https://huggingface.co/LLaMAX/LLaMAX2-7B-Alpaca
    stanford   Stanford Alpaca's, two newlines: https://github.com/tatsu-lab/stanford_alpaca

A model keeps the name of the one it was tuned with, in the llamax.json of its Hugging Face folder.

Evaluation knows those of other models too (TRANSLATION_PROMPTS): all of the LLaMAX paper's Table 14, and EMMA-500's
few-shot prompt of Flores-200. The table is what the paper evaluated with and decides the words; it prints no ends of
lines and has lost control tokens, which are those of the models' cards. What neither tells is said at each template.
"""

import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llamax.files import InputError, read_json
from llamax.languages import load, resolve

BETWEEN_PARTS = {"llamax": "\n", "stanford": "\n\n"}
PROMPTS = tuple(BETWEEN_PARTS)
DEFAULT_PROMPT = "llamax"
MODEL_RECORD = "llamax.json"  # of a Hugging Face folder; llamax/provenance.py says what it holds
TRANSLATE = "Translate the following sentences from {source} to {target}."


def alpaca_prompt(instruction, input_text="", template=DEFAULT_PROMPT):
    """The prompt of one Alpaca example; without an input the shorter form. `template`: one of PROMPTS."""
    context = ", paired with an input that provides further context" if input_text else ""
    parts = [
        f"Below is an instruction that describes a task{context}. "
        "Write a response that appropriately completes the request.",
        f"### Instruction:\n{instruction}",
        *([f"### Input:\n{input_text}"] if input_text else []),
        "### Response:",
    ]
    return BETWEEN_PARTS[template].join(parts)


# Language names


def plain_name(language):
    """A language's name without its variety, for the templates that say "Chinese" in Table 14 where others say
    "Chinese Simpl": Spanish and not "Spanish (Latin American)".

    That other names were shortened is assumed. "Chinese Trad" stays: from English into it, Aya-23 has 21.57 spBLEU in
    the authors' tables, which text in simplified characters cannot get (TowerInstruct has 8.57, and 29.55 into zh).
    """
    return re.sub(r" \(.*\)$| Simpl$", "", language.name)


MADLAD_CODES = {"ku": "ckb", "ns": "nso", "tl": "fil", "zhtrad": "zh_Hant"}
EMMA_NAMES = {
    "ar": "Modern Standard Arabic", "az": "North Azerbaijani", "es": "Spanish", "fa": "Western Persian",
    "ff": "Nigerian Fulfulde", "ku": "Central Kurdish", "lv": "Standard Latvian", "mn": "Halh Mongolian",
    "ms": "Standard Malay", "no": "Norwegian Bokmål", "om": "West Central Oromo", "or": "Odia", "pa": "Eastern Panjabi",
    "ps": "Southern Pashto", "pt": "Portuguese", "tl": "Tagalog", "uz": "Northern Uzbek", "zh": "Chinese (Simplified)",
    "zhtrad": "Chinese (Traditional)",
}  # fmt: skip


def madlad_code(language):
    """MADLAD-400's code of a language: the paper's, except for MADLAD_CODES.

    The model has no token for ast, kam, kea, luo and umb. By the authors' tables (spBLEU from English: ns 3.10, zhtrad
    0.34, tl 31.99, ku 21.90), they seem to have written tl and ku as here, but <2ns> and <2zhtrad>, which it lacks too.
    """
    if language.code not in load():
        raise InputError(f"--prompt madlad: no code known for {language.code}, only for those in llamax/languages.tsv")
    return MADLAD_CODES.get(language.code, language.code)


def emma_name(language):
    """EMMA-500's name of a language, which is FLORES-200's; of one outside the table of languages, its code."""
    return EMMA_NAMES.get(language.code, language.name)


# Templates


@dataclass(frozen=True)
class Template:
    """How a model is asked for a translation."""

    name: str
    source: str  # a URL, or a section of the paper
    frame: str  # with {source}, {target} and {sentence}
    bos: bool = True  # whether BOS comes before it, which the frame never spells
    special: bool = False  # whether it spells control tokens, to be read as such
    stop: tuple = ()  # strings that end a translation, beside EOS; a control token that ends a turn is EOS
    example: str = ""  # a translated sentence shown before the frame, with {translation} too; empty: none are shown
    name_of: Callable = operator.attrgetter("name")  # Language -> what the frame calls it


def alpaca_template(name, source, form="llamax"):
    return Template(name, source, alpaca_prompt(TRANSLATE, "{sentence}", form))


_TEMPLATES = (
    # Table 14 has no full stop after the target language here; the authors' code and card have it.
    alpaca_template("llamax", "https://huggingface.co/LLaMAX/LLaMAX2-7B-Alpaca"),
    alpaca_template("stanford", "https://github.com/tatsu-lab/stanford_alpaca", "stanford"),
    # One newline, as in the authors' only inference code; Llama models tuned on Alpaca by Stanford's: "stanford".
    alpaca_template("llama-alpaca", "Table 14 and https://github.com/CONE-MT/LLaMAX (scripts/inference)"),
    # Not the model's own: what was evaluated is the base model yayi2-30b, whose card has no prompt. BOS: not verified.
    alpaca_template("yayi2", "Table 14 and https://github.com/CONE-MT/LLaMAX (scripts/inference)"),
    # The card says "from English to Chinese"; Table 14 has no "from". No BOS: as the tokenizer of polylm-1.7b has it.
    Template(
        "polylm",
        "https://huggingface.co/DAMO-NLP-MT/polylm-13b",
        "{sentence}\nTranslate this sentence {source} to {target}.",
        bos=False,
    ),
    # That its EOS is <|im_end|> is not verified.
    Template(
        "tower",
        "https://huggingface.co/Unbabel/TowerInstruct-7B-v0.2",
        "<|im_start|>user\nTranslate the following text from {source} into {target}.\n{source}: {sentence}\n{target}:"
        "<|im_end|>\n<|im_start|>assistant\n",
        special=True,
        name_of=plain_name,
    ),
    # Here and in the next three a space follows the colon; for all that Table 14 shows, it may be an end of line.
    Template(
        "aya23",
        "https://huggingface.co/CohereForAI/aya-23-8B",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Translate the following sentences from {source} to {target}: {sentence}"
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        special=True,
        name_of=plain_name,
    ),
    Template(
        "qwen2",
        "https://huggingface.co/Qwen/Qwen2-7B-Instruct",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Translate the following sentences from {source} to {target}: {sentence}<|im_end|>\n<|im_start|>assistant\n",
        bos=False,
        special=True,
    ),
    Template(
        "chinese-alpaca-2",
        "https://github.com/ymcui/Chinese-LLaMA-Alpaca-2 (scripts/inference/inference_hf.py)",
        "[INST] <<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n"
        "Translate the following sentences from {source} to {target}: {sentence} [/INST]",
    ),
    # The system message is the card's; that a space ends the prompt is from the chat template of its sibling
    # Swallow-MS-7b-instruct-v0.1, this model's own not having been seen.
    Template(
        "swallow",
        "https://huggingface.co/tokyotech-llm/Swallow-7b-instruct-v0.1",
        "[INST] <<SYS>>\nあなたは誠実で優秀な日本人のアシスタントです。\n<</SYS>>\n\n"
        "Translate the following sentences from {source} to {target}: {sentence} [/INST] ",
    ),
    # llamax/translation.py writes the same, with the tokens that the model's tokenizer really has.
    Template(
        "madlad",
        "https://huggingface.co/google/madlad400-7b-mt",
        "<2{target}> {sentence}",
        bos=False,
        special=True,
        name_of=madlad_code,
    ),
    # Not in Table 14: EMMA-500's. The instruction stands after the examples, without a full stop.
    Template(
        "emma",
        "https://github.com/MaLA-LM/emma-500 (evaluation/Flores-200/eval_flores200.py)",
        "Translate the following sentence from {source} to {target}\n[{source}]: {sentence}\n[{target}]:",
        stop=("\n",),
        example="[{source}]: {sentence}\n[{target}]: {translation}\n",
        name_of=emma_name,
    ),
)
TRANSLATION_PROMPTS = {template.name: template for template in _TEMPLATES}


# Prompts


def parts(direction, template, examples=()):
    """What stands before and after a sentence in its prompt, (before, after): nothing of it depends on the sentence.

    Args:
        direction: the source and the target language, as codes or names.
        template: a name in TRANSLATION_PROMPTS.
        examples: [(sentence, translation)] shown before, for a template that has a form for them.

    Raises InputError for a language that is not known, and for examples where the template shows none.
    """
    template = TRANSLATION_PROMPTS[template]
    if examples and not template.example:
        able = ", ".join(name for name, other in TRANSLATION_PROMPTS.items() if other.example)
        raise InputError(f"--prompt {template.name}: has no form for examples, only {able}; choose it or show none")
    source, target = (template.name_of(resolve(side)) for side in direction)
    # Only the frame is formatted: braces of sentences stay as they are.
    before, after = (part.format(source=source, target=target) for part in template.frame.split("{sentence}"))
    shown = (
        template.example.format(source=source, target=target, sentence=sentence, translation=translation)
        for sentence, translation in examples
    )
    return "".join(shown) + before, after


def translation_prompt(text, source, target, template=DEFAULT_PROMPT, examples=()):
    """The prompt that asks for the translation of a text, whatever it holds: before + text + after of parts().

    A pivot translation (the paper's Table 8) asks twice: from the source into English, then, with the answer as the
    text, from English into the target.
    """
    before, after = parts((source, target), template, examples)
    return f"{before}{text}{after}"


def few_shot_examples(dev_sources, dev_targets, shots, seed):
    """[(sentence, translation)]: `shots` lines of a dev set, drawn as EMMA-500's Flores-200 evaluation draws them, so
    that one may come twice. The line numbers follow from the seed and the number of lines alone: a multi-way dev set
    gives all directions the same sentences."""
    draw = random.Random(seed)
    lines = [draw.randint(0, len(dev_sources) - 1) for _ in range(shots)]
    return [(dev_sources[line], dev_targets[line]) for line in lines]


def sentence_seeds(count, seed=42):
    """The seeds of few_shot_examples() for the sentences of a test set, by their order: EMMA-500 shows each sentence
    other examples (up to 1,001 different draws), the same in all directions. 42 is its seed."""
    draw = random.Random(seed)
    return [draw.randint(0, 1000) for _ in range(count)]


def recorded_prompt(folder):
    """The name of the prompt that the model of a Hugging Face folder was tuned with, as its llamax.json says;
    DEFAULT_PROMPT where it says nothing. InputError where that is no prompt known here."""
    path = Path(folder) / MODEL_RECORD
    record = read_json(path, "--hf-model") if path.is_file() else {}
    template = record.get("prompt") if isinstance(record, dict) else record
    if template is None:
        return DEFAULT_PROMPT
    if template not in PROMPTS:
        raise InputError(f"--hf-model {path}: prompt {template!r}, expected {' or '.join(PROMPTS)}; give --prompt")
    return template


def prompt_ids(tokenizer, prompt):
    """The ids a prompt is fed as, in tuning and in evaluation: BOS and the prompt's own."""
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def response_ids(tokenizer, response):
    """The ids of a response encoded as the continuation of its prompt (nothing between, as in Stanford's Alpaca),
    and EOS."""
    return [*tokenizer.encode_continuation(response), tokenizer.eos_id]
