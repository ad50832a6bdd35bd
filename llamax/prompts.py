"""The prompts of instruction tuning and evaluation: one place, so that both sides use the same bytes.

Those known by name have the same sentences:

    llamax     LLaMAX-Alpaca's, one newline between the parts, as in its inference code and model card:
               https://huggingface.co/LLaMAX/LLaMAX2-7B-Alpaca
    stanford   Stanford Alpaca's, two newlines: https://github.com/tatsu-lab/stanford_alpaca

A model keeps the name of the one it was tuned with, in the llamax.json of its Hugging Face folder.
"""

from pathlib import Path

from llamax.files import InputError, read_json

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


def translation_prompt(text, source, target, template=DEFAULT_PROMPT):
    """The prompt that asks for a translation; `source` and `target` are language names (`Language.name`)."""
    return alpaca_prompt(TRANSLATE.format(source=source, target=target), text, template)


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
