"""The prompts of instruction tuning and evaluation: one place, so that both sides use the same bytes.

LLaMAX-Alpaca's form, as in its inference code and model card (one newline between the parts):
https://huggingface.co/LLaMAX/LLaMAX2-7B-Alpaca
"""

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n"
    "### Instruction:\n{instruction}\n### Input:\n{input}\n### Response:"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n"
    "### Instruction:\n{instruction}\n### Response:"
)
TRANSLATE = "Translate the following sentences from {source} to {target}."


def alpaca_prompt(instruction, input_text=""):
    """The prompt of one Alpaca example; without an input the shorter form."""
    # str.format would stumble over braces inside the texts only if they were part of the template: they are not.
    if input_text:
        return _WITH_INPUT.format(instruction=instruction, input=input_text)
    return _WITHOUT_INPUT.format(instruction=instruction)


def translation_prompt(text, source, target):
    """The prompt that asks for a translation; `source` and `target` are language names (`Language.name`)."""
    return alpaca_prompt(TRANSLATE.format(source=source, target=target), text)


def prompt_ids(tokenizer, prompt):
    """The ids a prompt is fed as, in tuning and in evaluation: BOS and the prompt's own."""
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def response_ids(tokenizer, response):
    """The ids of a response encoded as the continuation of its prompt (nothing between, as in Stanford's Alpaca),
    and EOS."""
    return [*tokenizer.encode_continuation(response), tokenizer.eos_id]
