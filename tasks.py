"""The data of LLaMAX's task models in the Alpaca form that sft_alpaca.py reads.

    python tasks.py xnli --input multinli_1.0_train.jsonl --output data/xnli.json
    python tasks.py x-csqa --input X-CSQA/en/train.jsonl ARC-Easy-Train.jsonl ARC-Challenge-Train.jsonl \\
        OpenBookQA/train.jsonl QASC/train.jsonl --output data/x-csqa.json
    python tasks.py metamath --input MetaMathQA-395K.json --output data/metamath.json

The models are LLaMAX2-7B-XNLI (English MultiNLI), LLaMAX2-7B-X-CSQA (the English training sets of X-CSQA, ARC-Easy,
ARC-Challenge, OpenBookQA and QASC) and LLaMAX2-7B-MetaMath (MetaMathQA, says its card; the "English MGSM" of LLaMAX's
README is a test set). Every record that can be used becomes one example, in the order of the files:

    task        instruction (the input is empty)                                output
    xnli        Premise: {premise}\\nHypothesis: {hypothesis}\\nLabel:            entailment, neutral or contradiction
    x-csqa      {question}\\nOptions:A. {choice}\\tB. {choice}…\\nAnswer:         the letter of the right choice
    metamath    {query}                                                         {response}

How the models were trained is not published. The instructions of xnli and x-csqa are, to the byte, the whole prompts of
the evaluation code that LLaMAX's README names (github.com/CONE-MT/MindMerger). Ours are the Alpaca frame around them
(llamax/prompts.py) and the spelling of the labels, which is MultiNLI's. With metamath, sft_alpaca.py --prompt stanford
gives the frame that MetaMath's own training has; there, however, all but the first line of a query is the input. Here
the whole query is the instruction, as in both evaluations, which also begin the response with "Let's think step by
step."; neither MetaMath's training nor this does.
"""

import collections
import dataclasses
import functools
import itertools
import json
import string

import msgspec

from llamax.files import InputError, Parser, replacing, run
from llamax.outputs import already_done, write_manifest
from llamax.records import Block, Progress, Rejects, Unusable, json_object, judge, parse_lines, plain_text, text_field
from llamax.sources import PIECE_ROWS, add_fingerprints, find_sources, fingerprints, pieces, ranges

FORMAT = 1  # raised when the same arguments would give other bytes
LABELS = ("entailment", "neutral", "contradiction")  # 0, 1 and 2 on the Hugging Face hub
UNLABELLED = ("no gold label", "no answer")  # known gaps of the data sets, which --max-reject-rate does not count

COMMANDS = {
    "xnli": (
        "pairs of MultiNLI or XNLI",
        "as published (sentence1, sentence2, gold_label; JSON or a table with tabs) or as on the Hugging Face hub "
        "(premise, hypothesis, label). Pairs without a gold label are left out.",
    ),
    "x-csqa": (
        "questions of CommonsenseQA, X-CSQA, ARC, OpenBookQA, QASC",
        "as published (question with stem and choices, answerKey) or as on the Hugging Face hub (question or "
        "question_stem, choices, answerKey). Choices become A, B, C… whatever they are called there; questions without "
        "an answer are left out.",
    ),
    "metamath": ("questions of MetaMathQA", "as published (query, response)."),
}


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="task", required=True)
    for task, (what, fields) in COMMANDS.items():
        command = commands.add_parser(task, help=what, description=f"Reads {what}, {fields}")
        add = command.add_argument
        files = "JSON lines, a JSON array, a table (these also .gz, .zst, .xz), .parquet, or a `datasets` dataset"
        add("--input", nargs="+", required=True, metavar="FILE", help=files)
        add("--output", required=True, metavar="FILE", help="JSON array, an example a line; and FILE.manifest.json")
        rate = "share of rejects that ends the run; what has no label is not counted (default %(default)s)"
        add("--max-reject-rate", type=float, default=0.01, help=rate)
        if task == "metamath":
            command.set_defaults(lang=None)
        else:
            lang = "of records that say their language, those that say this one (default %(default)s)"
            add("--lang", default="en", metavar="CODE", help=lang)
    args = parser.parse_args()
    if not 0 <= args.max_reject_rate <= 1:
        raise InputError(f"--max-reject-rate {args.max_reject_rate}: expected a share from 0 to 1")
    return args


# ---- the examples: (instruction, input) as evaluation must ask, too


def xnli_example(premise, hypothesis):
    """The (instruction, input) that asks for one of LABELS."""
    return f"Premise: {premise}\nHypothesis: {hypothesis}\nLabel:", ""


def x_csqa_example(question, choices):
    """The (instruction, input) that asks for a letter: A for the first of the choices (texts), and so on."""
    options = "\t".join(f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, choices, strict=False))
    return f"{question}\nOptions:{options}\nAnswer:", ""


def metamath_example(query):
    """The (instruction, input) that asks for the solution of a mathematical question."""
    return query, ""


# ---- the records: each function gives (instruction, input, output) of one, or raises Unusable; `lang` is to be kept


def parse_xnli(record, lang):
    require_language(record, "language", lang)
    first, second = ("sentence1", "sentence2") if "sentence1" in record else ("premise", "hypothesis")
    instruction, text = xnli_example(text_field(record, first), text_field(record, second))
    name = "gold_label" if "gold_label" in record else "label"
    if name not in record:
        raise Unusable("missing field", name)
    label = record[name]
    if label in ("-", -1, None):
        raise Unusable("no gold label")
    if type(label) is int and 0 <= label < len(LABELS):
        label = LABELS[label]
    if label not in LABELS:
        raise Unusable("unknown label", f"{label!r}, expected one of {', '.join(LABELS)}")
    return instruction, text, label


def parse_x_csqa(record, lang):
    require_language(record, "lang", lang)
    if isinstance(record.get("question"), dict):
        question, name = record["question"], "stem"
    else:  # the Hugging Face form
        question, name = record, "question_stem" if "question_stem" in record else "question"
    stem = text_field(question, name)
    labels, texts = read_choices(question)
    if not 2 <= len(texts) <= len(string.ascii_uppercase):
        raise Unusable("number of choices", f"{len(texts)}, expected 2 to {len(string.ascii_uppercase)}")
    if record.get("answerKey") in ("", None):
        raise Unusable("no answer")
    answer = text_field(record, "answerKey")
    if labels.count(answer) != 1:
        raise Unusable("answer is no choice", f"{answer!r}, expected one of {', '.join(labels)}")
    return *x_csqa_example(stem, texts), string.ascii_uppercase[labels.index(answer)]


def read_choices(question):
    """([labels], [texts]) of a question's choices: [{"label", "text"}…], or as the Hugging Face hub has them,
    {"label": […], "text": […]}."""
    if "choices" not in question:
        raise Unusable("missing field", "choices")
    choices = question["choices"]
    if isinstance(choices, dict):
        labels, texts = choices.get("label"), choices.get("text")
        if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
            raise Unusable("wrong type", "choices: label and text are not two lists of the same length")
        choices = [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise Unusable("wrong type", "choices: expected a list of objects with label and text")
    return tuple([text_field(choice, name) for choice in choices] for name in ("label", "text"))


def parse_metamath(record, lang):
    return *metamath_example(text_field(record, "query")), text_field(record, "response")


PARSERS = {"xnli": parse_xnli, "x-csqa": parse_x_csqa, "metamath": parse_metamath}


def require_language(record, name, lang):
    if record.get(name, lang) != lang:
        raise Unusable("wrong language", f"{record[name]}, --lang {lang}")


# ---- the files


def read_blocks(source):
    """Yield the records of a Source: (Block whose lines they are, function that makes a dict of one).

    What a file holds is told by its first line. A record's line is the file's; in an array or a Parquet file, where
    there are no lines, its place from 1.
    """
    read, header, line = dict, None, 1
    if source.kind != "row":
        start = _first_line(source)
        opening = start.lstrip()[:1]
        if opening == b"[":
            for block in _array_blocks(source):
                yield block, lambda raw: json_object(bytes(raw))
            return
        if opening == b"{" or source.kind == "jsonl":
            read = json_object
        elif b"\t" in start:
            header, columns = start, start.decode("utf-8", errors="replace").split("\t")
            read = functools.partial(_table_row, columns=columns)
        else:
            raise InputError(f"--input {source.path}: its first line is neither JSON nor names of columns with tabs "
                             "between; check that it is the file you meant")  # fmt: skip
    for piece in pieces([source], 0, 1):
        block = dataclasses.replace(piece.read(), first_line=line)
        line += len(block.lines)
        if header:  # it is no record, wherever files were joined
            block.lines[:] = [b"" if row == header else row for row in block.lines]
        yield block, read


def _first_line(source):
    lines = itertools.chain.from_iterable(piece.read().lines for piece in pieces([source], 0, 1))
    return next((line for line in lines if line and not line.isspace()), b"")


def _array_blocks(source):
    """Yield Blocks of the elements of a JSON array, undecoded. Unlike all else it is read whole: the largest there is,
    MetaMathQA, has 400 MB."""
    data = bytearray()
    for piece in pieces([source], 0, 1):
        data += b"\n".join([*piece.read().lines, b""])
    try:
        rows = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (ValueError, RecursionError):  # NaN, say, is valid JSON to others
        try:
            rows = [json.dumps(row).encode() for row in json.loads(data)]
        except (ValueError, RecursionError) as error:
            message = f"--input {source.path}: no JSON array ({error}); check that the file is complete"
            raise InputError(message) from None
    for at in range(0, len(rows), PIECE_ROWS):
        part = rows[at : at + PIECE_ROWS]
        yield Block(source.path, at + 1, part, source.size * len(part) // len(rows))


def _table_row(line, columns):
    """The fields of a line, which may lack the last columns: they are labels of further annotators."""
    values = plain_text(line).split("\t")
    if len(values) > len(columns):
        raise Unusable("too many columns", f"{len(values)}, expected {len(columns)}")
    return dict(zip(columns, values, strict=False))


# ---- the whole


def write_examples(args, corpus, rejects, file):
    """Write the examples of a list of Sources to a binary file as a JSON array, a line each, without holding them.
    Returns {output: examples}; where every output is a text of its own, as in metamath, {"": examples}."""
    outputs, before, parse = collections.Counter(), b"[\n", PARSERS[args.task]
    progress = Progress(sum(source.size for source in corpus), "B", args.task)
    for source in corpus:
        for block, read in read_blocks(source):
            examples, _, rejected = parse_lines(block, lambda row, read=read: parse(read(row), args.lang))
            rejects.add(len(examples) + len(rejected), rejected)
            for instruction, text, output in examples:
                file.write(before + msgspec.json.encode({"instruction": instruction, "input": text, "output": output}))
                outputs["" if args.task == "metamath" else output] += 1
                before = b",\n"
            progress.update(block.size)
    file.write(b"\n]\n")
    progress.close()
    return outputs


def main():
    args = get_args()
    corpus = find_sources(args.input, {})
    arguments = {"task": args.task, "lang": args.lang}
    sources = add_fingerprints(fingerprints(ranges(corpus, 0, 1)))
    if already_done(args.output, FORMAT, arguments, sources):
        print(f"{args.output}: complete, nothing to do")
        return
    rejects = Rejects(args.output)
    with replacing(args.output, f"{args.output}.manifest.json") as (partial, manifest):
        with open(partial, "wb") as file:
            outputs = write_examples(args, corpus, rejects, file)
        faults = collections.Counter({why: n for why, n in rejects.reasons.items() if why not in UNLABELLED})
        unlabelled = rejects.reasons.total() - faults.total()
        judge(rejects.path, faults, rejects.records - unlabelled, args.max_reject_rate)
        write_manifest(manifest, partial, FORMAT, kind=args.task, examples=outputs.total(),
                       outputs=dict(sorted(outputs.items())), rejects=dict(rejects.reasons), arguments=arguments,
                       sources=sources)  # fmt: skip
    shares = ", ".join(f"{output} {n / outputs.total():.1%}" for output, n in sorted(outputs.items()) if output)
    print(f"{args.output}: {outputs.total():,} examples{f' ({shares})' if shares else ''}, "
          f"{rejects.reasons.total():,} rejects {dict(rejects.reasons)}")  # fmt: skip


if __name__ == "__main__":
    run(main)
