"""Task data in Alpaca form: the prompts' bytes, every form the data sets come in, what is left out and why."""

import argparse
import collections
import gzip
import io
import json
import lzma
import sys
import tempfile
from pathlib import Path

import pytest
from backports import zstd
from conftest import fails, run_stage, snapshot, stage, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

import tasks
from llamax.prompts import alpaca_prompt
from llamax.records import Rejects
from llamax.sources import find_sources


def examples_of(path):
    return parsed(path.read_bytes())


def parsed(data):
    """What an output holds: an array, each line but the first and last an example as sft_alpaca.py wants it."""
    found = json.loads(data)
    assert [json.loads(line.removesuffix(b",")) for line in data.split(b"\n")[1:-2]] == found
    for example in found:
        assert list(example) == ["instruction", "input", "output"] and example["input"] == ""
        assert example["instruction"].strip() and example["output"].strip()
    return found


def convert(task, *files, **options):
    """The examples that a run of tasks.py makes of files, and what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.json"
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        printed = stage("tasks.py", task, "--input", *files, "--output", output, *flags)
        return examples_of(output), printed


def rejects_of(path):
    """[(line, reason)] of the rejects beside an output."""
    rows = Path(f"{path}.rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["line"], row["reason"]) for row in map(json.loads, rows)]


def test_prompts():
    """Those of github.com/CONE-MT/MindMerger (mindmerger_tools/prompts.py) within LLaMAX's frame."""
    head = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
    assert alpaca_prompt(*tasks.xnli_example("He {sleeps}.", "He's awake.")) == (
        head + "### Instruction:\nPremise: He {sleeps}.\nHypothesis: He's awake.\nLabel:\n### Response:"
    )
    assert alpaca_prompt(*tasks.x_csqa_example("Where is it?", ["in a bag", "at home", "here"])) == (
        head + "### Instruction:\nWhere is it?\nOptions:A. in a bag\tB. at home\tC. here\nAnswer:\n### Response:"
    )
    assert alpaca_prompt(*tasks.metamath_example("What is 2+2?\nShow it.")) == (
        head + "### Instruction:\nWhat is 2+2?\nShow it.\n### Response:"
    )


# ---- XNLI

PAIRS = [  # premise, hypothesis, label
    ('One "quoted" premise. ', "A hypothesis {0}.", "neutral"),
    ("Two", "Other", "contradiction"),
    ("It\u2028rains.", "It is wet.", "entailment"),
]
EXPECTED_PAIRS = [
    {"instruction": 'Premise: One "quoted" premise. \nHypothesis: A hypothesis {0}.\nLabel:', "input": "",
     "output": "neutral"},
    {"instruction": "Premise: Two\nHypothesis: Other\nLabel:", "input": "", "output": "contradiction"},
    {"instruction": "Premise: It\u2028rains.\nHypothesis: It is wet.\nLabel:", "input": "", "output": "entailment"},
]  # fmt: skip
MULTINLI = ["gold_label", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse",
            "sentence1", "sentence2", "promptID", "pairID", "genre", "label1", "label2", "label3", "label4",
            "label5"]  # fmt: skip
NUMBERS = {"entailment": 0, "neutral": 1, "contradiction": 2}  # ClassLabel of nyu-mll/multi_nli and facebook/xnli


def multinli(premise, hypothesis, label, **more):
    """A record as published, with all its fields."""
    return {**dict.fromkeys(MULTINLI[:-5], "( x )"), "annotator_labels": [label], "gold_label": label,
            "sentence1": premise, "sentence2": hypothesis, **more}  # fmt: skip


def hub(premise, hypothesis, label):
    return {"promptID": 5, "premise": premise, "hypothesis": hypothesis, "genre": "x", "label": NUMBERS.get(label, -1)}


def write_table(path, columns, records, ends=0):
    """A table with tabs; rows of `ends` columns fewer than its header."""
    kept = columns[: len(columns) - ends]
    lines = ["\t".join(columns), *("\t".join(str(record.get(name, "")) for name in kept) for record in records)]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="module")
def pair_files(tmp_path_factory):
    """The same three pairs in every form, beside what is left out: one without a gold label, others not in English."""
    folder = tmp_path_factory.mktemp("pairs")
    without = ("No", "label", "-")
    published = [multinli(*pair) for pair in (PAIRS[0], without, *PAIRS[1:])]
    on_hub = [hub(*pair) for pair in (PAIRS[0], without, *PAIRS[1:])]
    several = [multinli(*pair, language=lang) for pair in (*PAIRS, without) for lang in ("ar", "en", "zh")]
    xnli = ["language", *MULTINLI, "sentence1_tokenized", "sentence2_tokenized", "match"]
    files = {
        "multinli.jsonl": write_jsonl(folder / "multinli.jsonl", published),
        "multinli.txt": write_table(folder / "multinli.txt", MULTINLI, published, ends=4),
        "xnli.jsonl": write_jsonl(folder / "xnli.jsonl", several),
        "xnli.tsv": write_table(folder / "xnli.tsv", xnli, several),
        "hub.jsonl": write_jsonl(folder / "hub.jsonl", on_hub),
        "array.json": folder / "array.json",
        "hub.parquet": folder / "hub.parquet",
        "joined.tsv": folder / "joined.tsv",
    }
    files["array.json"].write_text("\ufeff \n" + json.dumps(on_hub, indent=2), encoding="utf-8")
    table = files["multinli.txt"].read_bytes()
    files["joined.tsv"].write_bytes(table.replace(b"\n", b"\r\n") + table.partition(b"\n")[0])  # the header once more
    for inner, name, compress in (
        ("multinli.txt", ".gz", gzip.compress),
        ("hub.jsonl", ".xz", lzma.compress),
        ("array.json", ".zst", zstd.compress),
    ):
        files[inner + name] = folder / (inner + name)
        files[inner + name].write_bytes(compress(files[inner].read_bytes()))
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(sys.modules["pyarrow"].Table.from_pylist(on_hub), files["hub.parquet"])
    return files


def test_pairs_in_every_form(pair_files, tmp_path):
    for name, path in pair_files.items():
        output = tmp_path / f"{name}.out.json"
        printed = stage("tasks.py", "xnli", "--input", path, "--output", output)
        assert examples_of(output) == EXPECTED_PAIRS, name
        left_out = collections.Counter(reason for _, reason in rejects_of(output))
        assert left_out == {"no gold label": 1, **({"wrong language": 8} if "xnli" in name else {})}, name
        assert "3 examples (contradiction 33.3%, entailment 33.3%, neutral 33.3%)" in printed
        assert "'no gold label': 1" in printed


def test_files_in_their_order_and_a_language(pair_files):
    found, _ = convert("xnli", pair_files["hub.parquet"], pair_files["multinli.jsonl"])
    assert found == EXPECTED_PAIRS * 2
    found, printed = convert("xnli", pair_files["xnli.tsv"], lang="zh")
    assert found == EXPECTED_PAIRS and "'wrong language': 8" in printed


def test_a_dataset_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    rows = datasets.Dataset.from_list([hub(*pair) for pair in PAIRS]).cast_column("label", label)
    rows.save_to_disk(tmp_path / "folder")
    assert convert("xnli", tmp_path / "folder")[0] == EXPECTED_PAIRS


def test_pairs_that_cannot_be_used(tmp_path):
    good = multinli(*PAIRS[1])
    wrong = {
        2: (b"{no json", "invalid JSON"),
        3: (b"[1]", "not an object"),
        4: ({**good, "sentence1": " "}, "empty"),
        5: ({**good, "sentence2": 5}, "wrong type"),
        6: ({name: value for name, value in good.items() if name != "sentence2"}, "missing field"),
        7: ({name: value for name, value in good.items() if name != "gold_label"}, "missing field"),
        8: ({**good, "gold_label": "entailed"}, "unknown label"),
        9: ({**good, "gold_label": True}, "unknown label"),
        10: (hub("a", "b", "neutral") | {"label": 3}, "unknown label"),
        11: ({**good, "gold_label": ["neutral"]}, "unknown label"),
        12: (b'{"sentence1": "\\ud800", "sentence2": "x", "gold_label": "neutral"}', "invalid UTF-8"),
        13: (b'{"sentence1": "\xe9"}', "invalid UTF-8"),
        14: ({**good, "sentence1": "a\0"}, "null character"),
        16: (hub("a", "b", "-") | {"label": None}, "no gold label"),
    }
    lines = [wrong.get(i, (b"" if i == 15 else good,))[0] for i in range(1, 18)]

    def spell(line):
        return line if type(line) is bytes else json.dumps(line).encode()

    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"".join(spell(line) + b"\n" for line in lines))
    output = tmp_path / "out.json"
    command = ("tasks.py", "xnli", "--input", path, "--output", output)
    # 16 records (line 15 is blank), one of which has no label: of 15, 13 are at fault.
    fails(*command, saying=["out.json.rejects.jsonl", "13 of 15 records (86.67%)", "--max-reject-rate 0.01"])
    assert not output.exists() and not Path(f"{output}.manifest.json").exists()
    fails(*command, "--max-reject-rate", 0.8666, saying=["--max-reject-rate 0.8666"])
    stage(*command, "--max-reject-rate", 0.8667)
    assert examples_of(output) == [EXPECTED_PAIRS[1]] * 2
    assert rejects_of(output) == [(line, reason) for line, (_, reason) in wrong.items()]
    # The same in an array, whose elements are counted instead of lines; what makes it no array is left out.
    array, kept = tmp_path / "array.json", [i for i in range(1, 18) if i not in (2, 13, 15)]
    array.write_bytes(b"[%b]" % b",\n".join(spell(lines[i - 1]) for i in kept))
    stage("tasks.py", "xnli", "--input", array, "--output", tmp_path / "array.out", "--max-reject-rate", 0.9)
    assert examples_of(tmp_path / "array.out") == [EXPECTED_PAIRS[1]] * 2
    expected = [(place, wrong[i][1]) for place, i in enumerate(kept, 1) if i in wrong]
    assert rejects_of(tmp_path / "array.out") == expected


def test_an_array_that_is_no_strict_json(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps([hub(*PAIRS[0]) | {"promptID": float("nan")}, hub(*PAIRS[1])]))
    assert convert("xnli", tmp_path / "pairs.json")[0] == EXPECTED_PAIRS[:2]


def test_rows_of_a_table_that_are_too_long_or_too_short(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("gold_label\tsentence1\tsentence2\tlabel1\nneutral\ta\tb\nneutral\ta\nneutral\ta\tb\tneutral\tc\n")
    output = tmp_path / "out.json"
    stage("tasks.py", "xnli", "--input", path, "--output", output, "--max-reject-rate", 1)
    assert len(examples_of(output)) == 1
    assert rejects_of(output) == [(3, "missing field"), (4, "too many columns")]


def test_line_numbers_beyond_the_first_piece(tmp_path):
    """Of plain and compressed files of several pieces, and rows of Parquet of several batches."""
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [hub(f"{i} " + "word " * 500, "b", "neutral" if i % 700 else "-") for i in range(2000)]
    path = write_jsonl(tmp_path / "pairs.jsonl", records)
    assert path.stat().st_size > 4 << 20
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    parquet.write_table(sys.modules["pyarrow"].Table.from_pylist(records), tmp_path / "pairs.parquet")
    for name in ("pairs.jsonl", "pairs.jsonl.gz", "pairs.json", "pairs.parquet"):
        output = tmp_path / f"{name}.out"
        stage("tasks.py", "xnli", "--input", tmp_path / name, "--output", output)
        assert rejects_of(output) == [(line, "no gold label") for line in (1, 701, 1401)], name
        assert len(examples_of(output)) == 1997


# ---- X-CSQA


def question(stem, texts, labels, answer, **more):
    choices = [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
    return {"id": "x", "question": {"stem": stem, "choices": choices}, "answerKey": answer, **more}


def hub_question(stem, texts, labels, answer, name="question"):
    return {"id": "x", name: stem, "choices": {"text": texts, "label": labels}, "answerKey": answer}


def test_questions_in_every_form(tmp_path):
    """Letters follow the place of a choice, whatever its label."""
    parquet = pytest.importorskip("pyarrow.parquet")
    sets = {
        "csqa.jsonl": question("Where?", ["bank", "shop"], "AB", "B", question_concept="money"),
        "x-csqa.jsonl": question("Where?", ["bank", "shop"], "AB", "B", lang="en"),
        "arc.jsonl": question("Where?", ["bank", "shop"], "12", "2"),
        "qasc.jsonl": question("Where?", ["bank", "shop"], "HG", "G", fact1="x"),
        "hub-csqa.jsonl": hub_question("Where?", ["bank", "shop"], ["A", "B"], "B"),
        "hub-x-csqa.jsonl": {"lang": "en", "answerKey": "B",
                             "question": {"stem": "Where?", "choices": {"label": ["A", "B"],
                                                                        "text": ["bank", "shop"]}}},
        "hub-openbookqa.jsonl": hub_question("Where?", ["bank", "shop"], ["A", "B"], "B", name="question_stem"),
    }  # fmt: skip
    files = [write_jsonl(tmp_path / name, [record]) for name, record in sets.items()]
    for name in ("hub-csqa", "hub-x-csqa", "hub-openbookqa"):
        files.append(tmp_path / f"{name}.parquet")
        parquet.write_table(sys.modules["pyarrow"].Table.from_pylist([sets[f"{name}.jsonl"]]), files[-1])
    found, printed = convert("x-csqa", *files)
    expected = {"instruction": "Where?\nOptions:A. bank\tB. shop\nAnswer:", "input": "", "output": "B"}
    assert found == [expected] * 10 and "10 examples (B 100.0%)" in printed


def test_questions_that_cannot_be_used(tmp_path):
    good = question("Where?", ["bank", "shop"], "AB", "A")
    bare = {"stem": "Where?"}
    wrong = [
        ({**good, "answerKey": ""}, "no answer"),
        ({**good, "answerKey": None}, "no answer"),
        ({"question": good["question"]}, "no answer"),
        ({**good, "answerKey": "C"}, "answer is no choice"),
        ({**good, "answerKey": "a"}, "answer is no choice"),
        ({**good, "answerKey": 1}, "wrong type"),
        (question("Where?", ["bank", "shop"], "AA", "A"), "answer is no choice"),
        (question("Where?", ["bank"], "A", "A"), "number of choices"),
        (question("Where?", ["x"] * 27, ["A", *"abcdefghijklmnopqrstuvwxyz"], "A"), "number of choices"),
        (question("Where?", ["bank", " "], "AB", "A"), "empty"),
        (question("Where?", ["bank", 5], "AB", "A"), "wrong type"),
        (question(" ", ["bank", "shop"], "AB", "A"), "empty"),
        ({"question": bare, "answerKey": "A"}, "missing field"),
        ({"question": {**bare, "choices": ["bank", "shop"]}, "answerKey": "A"}, "wrong type"),
        ({"question": {**bare, "choices": {"label": ["A", "B"], "text": ["x"]}}, "answerKey": "A"}, "wrong type"),
        ({"question": {**bare, "choices": {"label": "AB", "text": "xy"}}, "answerKey": "A"}, "wrong type"),
        ({"choices": good["question"]["choices"], "answerKey": "A"}, "missing field"),
        ({**good, "lang": "de"}, "wrong language"),
    ]
    path = write_jsonl(tmp_path / "questions.jsonl", [record for record, _ in wrong] + [good] * 2)
    output = tmp_path / "out.json"
    command = ("tasks.py", "x-csqa", "--input", path, "--output", output)
    fails(*command, saying=["14 of 17 records", "answer is no choice 3"])  # without the 3 that have no answer
    stage(*command, "--max-reject-rate", 0.9)
    assert rejects_of(output) == [(line, reason) for line, (_, reason) in enumerate(wrong, 1)]
    assert [example["output"] for example in examples_of(output)] == ["A", "A"]


# ---- MetaMath


def test_solutions(tmp_path):
    rows = [{"type": "MATH_AnsAug", "query": f"{i} ducks\n[asy]{{}}[/asy]", "original_question": "ducks",
             "response": f"So \\boxed{{{i}}}.\nThe answer is: {i}"} for i in range(200)]  # fmt: skip
    expected = [{"instruction": row["query"], "input": "", "output": row["response"]} for row in rows]
    array = tmp_path / "MetaMathQA-395K.json"
    for indent in (None, 4):
        array.write_text(json.dumps(rows, indent=indent))
        found, printed = convert("metamath", array)
        assert found == expected and "200 examples, 0 rejects {}" in printed
    assert convert("metamath", write_jsonl(tmp_path / "rows.jsonl", rows))[0] == expected
    write_jsonl(tmp_path / "rows.jsonl", [{**rows[0], "response": ""}, {"query": "x"}, *rows])
    stage("tasks.py", "metamath", "--input", tmp_path / "rows.jsonl", "--output", tmp_path / "out.json")
    assert rejects_of(tmp_path / "out.json") == [(1, "empty"), (2, "missing field")]


# ---- any text

nasty = st.sampled_from(["{", "}", "{0}", '"', "\\", "\u2028", "\x85", "\n", "\r\n", "\t", "### Response:", "# {}"])
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
texts = st.lists(st.one_of(nasty, plain), min_size=1).map("".join).filter(lambda text: text and not text.isspace())
fields = texts.map(lambda text: text.translate(dict.fromkeys(map(ord, "\t\r\n"), "_")))  # of a table
labels = st.sampled_from(list(NUMBERS))


def converted(task, name, data):
    """The examples of a file of the given bytes: every record is used."""
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / name, io.BytesIO()
        path.write_bytes(data)
        rejects = Rejects(folder + "/out")
        args = argparse.Namespace(task=task, lang="en")
        outputs = tasks.write_examples(args, find_sources([str(path)], {}), rejects, output)
        examples = parsed(output.getvalue())
        assert outputs.total() == rejects.records == len(examples) and not rejects.reasons
        return examples


def spelled(records, array, ascii_only):
    """Records as JSON lines or an array."""
    lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    return (f"[{','.join(lines)}]" if array else "\n".join(lines)).encode("utf-8")


@given(st.lists(st.tuples(texts, texts, labels), min_size=1, max_size=5), st.booleans(), st.booleans(), st.booleans())
def test_any_pairs(pairs, array, ascii_only, as_published):
    records = [(multinli if as_published else hub)(*pair) for pair in pairs]
    found = converted("xnli", "pairs.json", spelled(records, array, ascii_only))
    assert [(example["instruction"], example["input"], example["output"]) for example in found] == [
        ("Premise: " + premise + "\nHypothesis: " + hypothesis + "\nLabel:", "", label)
        for premise, hypothesis, label in pairs
    ]


@given(st.lists(st.tuples(fields, fields, labels), min_size=1, max_size=5))
def test_any_table(pairs):
    rows = [f"{label}\t{premise}\t{hypothesis}" for premise, hypothesis, label in pairs]
    data = "\n".join(["gold_label\tsentence1\tsentence2", *rows]).encode("utf-8")
    assert [(example["instruction"], example["output"]) for example in converted("xnli", "pairs.txt", data)] == [
        ("Premise: " + premise + "\nHypothesis: " + hypothesis + "\nLabel:", label)
        for premise, hypothesis, label in pairs
    ]


@given(texts, st.lists(texts, min_size=2, max_size=26), st.data(), st.booleans(), st.booleans())
def test_any_question(stem, choices, data, array, on_hub):
    names = data.draw(st.lists(texts, min_size=len(choices), max_size=len(choices), unique=True))
    right = data.draw(st.integers(0, len(choices) - 1))
    record = (hub_question if on_hub else question)(stem, choices, names, names[right])
    (example,) = converted("x-csqa", "questions.json", spelled([record], array, False))
    assert example["output"] == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[right]
    assert example["instruction"].startswith(stem + "\nOptions:A. " + choices[0] + "\tB. " + choices[1])
    assert example["instruction"].endswith(". " + choices[-1] + "\nAnswer:")
    assert f"{example['output']}. {choices[right]}" in example["instruction"]


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_any_solutions(pairs, array, ascii_only):
    records = [{"query": query, "response": response} for query, response in pairs]
    found = converted("metamath", "rows.json", spelled(records, array, ascii_only))
    assert [(example["instruction"], example["input"], example["output"]) for example in found] == [
        (query, "", response) for query, response in pairs
    ]


# ---- runs


def test_once_and_never_over_another(pair_files, tmp_path):
    output = tmp_path / "new" / "out.json"
    command = ("tasks.py", "xnli", "--output", output, "--input")
    stage(*command, pair_files["xnli.tsv"])
    before = snapshot(output.parent)
    manifest = json.loads(before["out.json.manifest.json"])
    assert manifest["examples"] == 3 and manifest["outputs"] == {"contradiction": 1, "entailment": 1, "neutral": 1}
    assert stage(*command, pair_files["xnli.tsv"]) == f"{output}: complete, nothing to do\n"
    fails(*command, pair_files["hub.jsonl"], saying=["out.json: exists, made with other source files"])
    fails(*command, pair_files["xnli.tsv"], "--lang", "zh", saying=["lang 'en', now 'zh'", "choose another name"])
    fails("tasks.py", "metamath", "--input", pair_files["xnli.tsv"], "--output", output, saying=["task 'xnli', now"])
    assert snapshot(output.parent) == before
    # Made anew elsewhere, the bytes are the same.
    stage("tasks.py", "xnli", "--output", tmp_path / "again.json", "--input", pair_files["xnli.tsv"])
    assert (tmp_path / "again.json").read_bytes() == before["out.json"]
    foreign = tmp_path / "foreign.json"
    foreign.write_text("[]")
    fails("tasks.py", "xnli", "--output", foreign, "--input", pair_files["xnli.tsv"], saying=["foreign.json: exists"])


def test_errors(pair_files, tmp_path):
    def wrong(task, path, *options, saying):
        fails("tasks.py", task, "--input", path, "--output", tmp_path / "out.json", *options, saying=saying)
        assert not (tmp_path / "out.json").exists()

    wrong("xnli", tmp_path / "none.jsonl", saying=["none.jsonl", "does not exist"])
    wrong("xnli", pair_files["hub.jsonl"], "--max-reject-rate", 2, saying=["--max-reject-rate 2.0: expected a share"])
    wrong("xnli", pair_files["xnli.tsv"], "--lang", "fr", saying=["no usable record in any file"])
    wrong("metamath", pair_files["hub.jsonl"], saying=["4 of 4 records", "missing field 4"])
    wrong("metamath", pair_files["hub.jsonl"], "--lang", "en", saying=["unrecognized arguments: --lang"])
    for name, data, saying in (
        ("half.json", b'[{"premise": "x"', "half.json: no JSON array"),
        ("text.txt", b"just text\n", "text.txt: its first line is neither JSON nor names of columns"),
        ("bytes.txt", b"\xff\xfe\t\x00\n\xff", "invalid UTF-8 1"),
        ("empty.json", b"", "empty.json: its first line is neither"),
        ("empty.jsonl", b"", "no usable record"),
        ("nothing.json", b"[]", "no usable record"),
        ("cut.jsonl.gz", gzip.compress(b'{"premise": "x"}' * 99)[:-9], "does not decompress"),
        ("no.parquet", b"PAR1", "no Parquet file"),
    ):
        (tmp_path / name).write_bytes(data)
        wrong("xnli", tmp_path / name, saying=[saying])


def test_help():
    assert "MetaMathQA" in run_stage("tasks.py", "--help").stdout
    assert "answerKey" in run_stage("tasks.py", "x-csqa", "--help").stdout
