"""Prompts that ask for translations: the whole text of each, by its source; few-shot examples; pivots; any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamax.files import InputError
from llamax.languages import load
from llamax.prompts import (
    PROMPTS,
    TRANSLATION_PROMPTS,
    few_shot_examples,
    parts,
    sentence_seeds,
    translation_prompt,
)

MICE = '"We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.'  # Table 14's
PRICE = r"Costó {5} €: C:\new %s <|im_end|>"

ALPACA_MICE = """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
that appropriately completes the request.
### Instruction:
Translate the following sentences from English to Chinese Simpl.
### Input:
"We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.
### Response:"""
ALPACA_PRICE = """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
that appropriately completes the request.
### Instruction:
Translate the following sentences from Spanish (Latin American) to Filipino (Tagalog).
### Input:
Costó {5} €: C:\\new %s <|im_end|>
### Response:"""

# {template: (MICE from English to Chinese, PRICE from Spanish to Tagalog)}
GOLDEN = {
    # https://huggingface.co/LLaMAX/LLaMAX2-7B-Alpaca, and scripts/inference of https://github.com/CONE-MT/LLaMAX
    "llamax": (ALPACA_MICE, ALPACA_PRICE),
    # the same; Table 14 says that it was used for these too
    "llama-alpaca": (ALPACA_MICE, ALPACA_PRICE),
    "yayi2": (ALPACA_MICE, ALPACA_PRICE),
    # train.py of https://github.com/tatsu-lab/stanford_alpaca
    "stanford": (
        """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
that appropriately completes the request.

### Instruction:
Translate the following sentences from English to Chinese Simpl.

### Input:
"We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.

### Response:""",
        """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
that appropriately completes the request.

### Instruction:
Translate the following sentences from Spanish (Latin American) to Filipino (Tagalog).

### Input:
Costó {5} €: C:\\new %s <|im_end|>

### Response:""",
    ),
    # Table 14; https://github.com/DAMO-NLP-MT/PolyLM (README) has the same with "from"
    "polylm": (
        """\
"We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.
Translate this sentence English to Chinese Simpl.""",
        """\
Costó {5} €: C:\\new %s <|im_end|>
Translate this sentence Spanish (Latin American) to Filipino (Tagalog).""",
    ),
    # Table 14 and https://huggingface.co/Unbabel/TowerInstruct-7B-v0.2
    "tower": (
        """\
<|im_start|>user
Translate the following text from English into Chinese.
English: "We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.
Chinese:<|im_end|>
<|im_start|>assistant
""",
        """\
<|im_start|>user
Translate the following text from Spanish into Filipino.
Spanish: Costó {5} €: C:\\new %s <|im_end|>
Filipino:<|im_end|>
<|im_start|>assistant
""",
    ),
    # Table 14 and the chat template of https://huggingface.co/CohereForAI/aya-23-8B, whose <BOS_TOKEN> is .bos
    "aya23": (
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Translate the following sentences from English to Chinese: "
        '"We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.'
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Translate the following sentences from Spanish to Filipino: "
        "Costó {5} €: C:\\new %s <|im_end|><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    # Table 14 and the chat template of https://huggingface.co/Qwen/Qwen2-7B-Instruct
    "qwen2": (
        """\
<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
Translate the following sentences from English to Chinese Simpl: "We now have 4-month-old mice that are non-diabetic \
that used to be diabetic," he added.<|im_end|>
<|im_start|>assistant
""",
        """\
<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
Translate the following sentences from Spanish (Latin American) to Filipino (Tagalog): Costó {5} €: C:\\new %s \
<|im_end|><|im_end|>
<|im_start|>assistant
""",
    ),
    # Table 14 and scripts/inference/inference_hf.py of https://github.com/ymcui/Chinese-LLaMA-Alpaca-2
    "chinese-alpaca-2": (
        """\
[INST] <<SYS>>
You are a helpful assistant. 你是一个乐于助人的助手。
<</SYS>>

Translate the following sentences from English to Chinese Simpl: "We now have 4-month-old mice that are non-diabetic \
that used to be diabetic," he added. [/INST]""",
        """\
[INST] <<SYS>>
You are a helpful assistant. 你是一个乐于助人的助手。
<</SYS>>

Translate the following sentences from Spanish (Latin American) to Filipino (Tagalog): Costó {5} €: C:\\new %s \
<|im_end|> [/INST]""",
    ),
    # Table 14 and https://huggingface.co/tokyotech-llm/Swallow-7b-instruct-v0.1; the last space: Swallow-MS-7b's
    "swallow": (
        """\
[INST] <<SYS>>
あなたは誠実で優秀な日本人のアシスタントです。
<</SYS>>

Translate the following sentences from English to Chinese Simpl: "We now have 4-month-old mice that are non-diabetic \
that used to be diabetic," he added. [/INST] """,
        """\
[INST] <<SYS>>
あなたは誠実で優秀な日本人のアシスタントです。
<</SYS>>

Translate the following sentences from Spanish (Latin American) to Filipino (Tagalog): Costó {5} €: C:\\new %s \
<|im_end|> [/INST] """,
    ),
    # Table 14 and https://huggingface.co/google/madlad400-7b-mt
    "madlad": (
        '<2zh> "We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.',
        "<2fil> Costó {5} €: C:\\new %s <|im_end|>",
    ),
    # evaluation/Flores-200 of https://github.com/MaLA-LM/emma-500, without examples
    "emma": (
        """\
Translate the following sentence from English to Chinese (Simplified)
[English]: "We now have 4-month-old mice that are non-diabetic that used to be diabetic," he added.
[Chinese (Simplified)]:""",
        """\
Translate the following sentence from Spanish to Tagalog
[Spanish]: Costó {5} €: C:\\new %s <|im_end|>
[Tagalog]:""",
    ),
}


def test_every_prompt_is_tested():
    assert {*GOLDEN} == {*TRANSLATION_PROMPTS} == {template.name for template in TRANSLATION_PROMPTS.values()}
    assert PROMPTS == ("llamax", "stanford")  # those of tuning


@pytest.mark.parametrize("template", GOLDEN)
def test_prompts_are_those_of_their_authors(template):
    assert translation_prompt(MICE, "en", "zh", template) == GOLDEN[template][0]
    assert translation_prompt(PRICE, "Spanish (Latin American)", "tl", template) == GOLDEN[template][1]


def test_tokens_around_prompts():
    """BOS is never spelled; control tokens, and what ends a translation beside EOS, are said."""
    templates = TRANSLATION_PROMPTS.values()
    assert {t.name for t in templates if not t.bos} == {"polylm", "qwen2", "madlad"}
    assert {t.name for t in templates if t.special} == {"tower", "aya23", "qwen2", "madlad"}
    assert {t.name: t.stop for t in templates if t.stop} == {"emma": ("\n",)}
    assert not any(bos in text for bos in ("<s>", "<BOS_TOKEN>") for texts in GOLDEN.values() for text in texts)


def test_a_pivot_translation_asks_twice():
    """Table 8: Spanish into English, the answer into Tagalog, by the same template."""
    assert translation_prompt("La lámpara.", "es", "en", "tower") == (
        "<|im_start|>user\nTranslate the following text from Spanish into English.\nSpanish: La lámpara.\nEnglish:"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert translation_prompt("The lamp.", "en", "tl", "tower") == (
        "<|im_start|>user\nTranslate the following text from English into Filipino.\nEnglish: The lamp.\nFilipino:"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    first, second = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n### Instruction:\nTranslate the following sentences from "
        "Spanish (Latin American) to English.\n### Input:\nLa lámpara.\n### Response:",
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n### Instruction:\nTranslate the following sentences from "
        "English to Filipino (Tagalog).\n### Input:\nThe lamp.\n### Response:",
    )
    assert translation_prompt("La lámpara.", "es", "en") == first
    assert translation_prompt("The lamp.", "en", "tl") == second


@pytest.mark.parametrize("template", TRANSLATION_PROMPTS)
def test_every_language_is_told_from_the_others(template):
    """By every template, as source (MADLAD does not say it) and as target; and no name is left to fill in."""
    for side in (0, 1):
        texts = {parts(("en", code) if side else (code, "en"), template) for code in load()}
        assert len(texts) == (1 if template == "madlad" and not side else len(load()))
        assert not any(mark in "".join(text) for text in texts for mark in "{}")


def test_codes_of_madlad():
    """Its tokens, where they are not the paper's codes: of google/madlad400-3b-mt's vocabulary."""
    texts = {code: translation_prompt("x", "en", code, "madlad") for code in load()}
    other = {code: text for code, text in texts.items() if text != f"<2{code}> x"}
    assert other == {"ku": "<2ckb> x", "ns": "<2nso> x", "tl": "<2fil> x", "zhtrad": "<2zh_Hant> x"}


def test_languages_outside_the_table():
    assert parts(("en", "fao_Latn"), "emma")[1] == "\n[fao_Latn]:"
    assert " from fao_Latn to French.\n" in parts(("fao_Latn", "fr"), "llamax")[0]
    with pytest.raises(InputError, match=r"^--prompt madlad: no code known for fao_Latn, only for those in "):
        parts(("en", "fao_Latn"), "madlad")
    with pytest.raises(InputError, match=r"^language 'xx': not known"):
        parts(("en", "xx"), "llamax")


TEXT = st.text(max_size=60) | st.sampled_from(["{", "}", "{sentence}", "{source}{0}", "%s\\", "{{x}}", "\u2028", ""])


@given(TEXT, st.sampled_from(sorted(TRANSLATION_PROMPTS)))
def test_a_sentence_stands_between_the_parts_as_it_is(text, template):
    before, after = parts(("es", "zhtrad"), template)
    assert translation_prompt(text, "es", "zhtrad", template) == before + text + after


@given(TEXT, st.lists(st.tuples(TEXT, TEXT), max_size=3))
def test_examples_stand_before_the_rest_as_they_are(text, examples):
    before, after = parts(("es", "zhtrad"), "emma")
    shown = "".join(f"[Spanish]: {a}\n[Chinese (Traditional)]: {b}\n" for a, b in examples)
    assert parts(("es", "zhtrad"), "emma", examples) == (shown + before, after)
    assert translation_prompt(text, "es", "zhtrad", "emma", examples) == shown + before + text + after


# Few-shot examples


def test_examples_come_before_the_instruction():
    """As evaluation/Flores-200/eval_flores200.py of https://github.com/MaLA-LM/emma-500 writes them."""
    examples = [("The lamp.", "灯。"), ("A {red} mouse.", "一只{红}老鼠。")]
    assert translation_prompt("It rains.", "en", "zh", "emma", examples) == (
        "[English]: The lamp.\n[Chinese (Simplified)]: 灯。\n"
        "[English]: A {red} mouse.\n[Chinese (Simplified)]: 一只{红}老鼠。\n"
        "Translate the following sentence from English to Chinese (Simplified)\n"
        "[English]: It rains.\n[Chinese (Simplified)]:"
    )
    with pytest.raises(InputError, match=r"^--prompt qwen2: has no form for examples, only emma"):
        parts(("en", "zh"), "qwen2", examples)


def test_examples_are_those_that_emma_500_draws():
    """The numbers are what its script draws from the 997 lines of Flores' dev, three for each sentence, with its seed
    42: the first two sentences, the last of 1,012, and the first of the seeds that draw a line twice."""
    seeds = sentence_seeds(1012)
    assert seeds[:5] == [654, 114, 25, 759, 281] and seeds[-1] == 83 and len(set(seeds)) == 642
    source, target = ([f"{lang} {line}" for line in range(997)] for lang in ("en", "zh"))
    drawn = {seed: few_shot_examples(source, target, 3, seed) for seed in (654, 114, 449)}
    assert drawn == {
        654: [("en 675", "zh 675"), ("en 579", "zh 579"), ("en 393", "zh 393")],
        114: [("en 246", "zh 246"), ("en 576", "zh 576"), ("en 100", "zh 100")],
        449: [("en 195", "zh 195"), ("en 214", "zh 214"), ("en 195", "zh 195")],
    }
    assert few_shot_examples(target, source, 3, 654) == [(b, a) for a, b in drawn[654]]  # the same lines
    assert few_shot_examples(source, target, 5, 654)[:3] == drawn[654] and few_shot_examples(source, target, 0, 1) == []
    assert sentence_seeds(2) == seeds[:2] and sentence_seeds(2, seed=1) == [137, 582]
