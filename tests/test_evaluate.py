"""Scores against sacrebleu and published values, directions and files, and a tiny model translated end to end."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
from llamax import scoring
from llamax.files import InputError
from llamax.languages import load, resolve
from llamax.prompts import prompt_ids, translation_prompt
from llamax.report import averages, direction_matrix, matrix_csv, matrix_png
from llamax.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
SPBLEU = DATA / "tokenizers" / "sacrebleu_tokenizer_spm.model"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no public data in ../shared/data")

WORDS = {
    name: text.split()
    for name, text in (
        ("eng", "the a big small red house tree dog cat runs sees eats sleeps under near old river quickly and not"),
        (
            "fra",
            "le la grande petite rouge maison arbre chien chat court voit mange dort sous près vieux fleuve et ne pas",
        ),
        ("zho_simpl", "这 个 大 小 红 房子 树 狗 猫 跑 看见 吃 睡 在 下面 附近 老 河 快 和"),
    )
}


def cli(*arguments, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(ROOT / "evaluate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def fails(result, *parts):
    """The command ended with status 1 and one line on stderr that holds all the parts."""
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("evaluate.py: error: ")
    for part in parts:
        assert part in line


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))


@pytest.fixture(scope="session")
def llama_tokenizer(tmp_path_factory):
    """A SentencePiece file of Llama's kind, trained on WORDS."""
    prefix = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    sentences = [" ".join(words[i:] + words[:i]) for words in WORDS.values() for i in range(len(words))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=450,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture
def flores(tmp_path):
    """A Flores folder of three languages with 11 lines of different lengths, and one file that is no language's."""
    folder = tmp_path / "flores"
    for language, words in WORDS.items():
        lines = [" ".join(words[i % 20] for i in range(k, k + 1 + (5 * k) % 13)) for k in range(11)]
        write_lines(folder / "devtest" / f"{language}.devtest", lines)
    write_lines(folder / "devtest" / "metadata.devtest", ["x"])
    return folder


@pytest.fixture
def scored(tmp_path, flores, llama_tokenizer):
    """An --output folder with hypotheses in four of the six directions, scored."""
    output = tmp_path / "system"
    sides = {"en": "eng", "fr": "fra", "zh": "zho_simpl"}
    lines = {code: (flores / f"devtest/{name}.devtest").read_text("utf-8").splitlines() for code, name in sides.items()}
    for source, target in (("en", "fr"), ("en", "zh"), ("fr", "en"), ("zh", "en")):
        write_lines(output / f"hypotheses/{source}-{target}.txt", [*lines[target][:8], *lines[target][:3]])
    result = cli("score", "--output", output, "--flores", flores, "--spbleu-model", llama_tokenizer)
    assert result.returncode == 0, result.stderr
    return output


# Scores


@needs_data
@pytest.mark.parametrize("code", load())
def test_reference_against_itself_scores_100_in_every_flores_language(code):
    path = DATA / f"flores101/devtest/{resolve(code).flores101_devtest}.devtest"
    lines = evaluate.read_lines(path)
    assert len(lines) == 1012
    spbleu, _ = scoring.spbleu_metric([lines], SPBLEU)
    assert f"{spbleu.corpus_score(lines, None).score:.2f}" == "100.00"
    first = lines[:200]  # chrF++ of all lines takes five times as long
    rows = scoring.score_lines(scoring.reference_metrics([first], SPBLEU), first)
    assert [f"{row['score']:.2f}" for row in rows] == ["100.00", "100.00"]


AWKWARD = [
    "Antwort: ja: nein",
    "### Response:",
    '"Quoted": „so“ «there»',
    "12:30",
    "a\u2028b",
    "\u200fשלום: עולם",
    "。",
]
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=30)


@settings(max_examples=200, deadline=None)
@given(st.lists(LINE, max_size=4), st.sampled_from(AWKWARD), st.data())
def test_reference_against_itself_scores_100_whatever_the_text_contains(
    tmp_path_factory, llama_tokenizer, lines, awkward, data
):
    lines = [line + data.draw(st.sampled_from(["", *AWKWARD])) for line in lines] + [awkward]
    path = tmp_path_factory.getbasetemp() / "any.txt"
    write_lines(path, lines)
    assert evaluate.read_lines(path) == lines
    models = [llama_tokenizer, SPBLEU] if DATA.is_dir() else [llama_tokenizer]
    for model in models:
        rows = scoring.score_lines(scoring.reference_metrics([lines], model), evaluate.read_lines(path))
        assert [f"{row['score']:.2f}" for row in rows] == ["100.00", "100.00"]


def test_score_cuts_nothing_after_a_colon(llama_tokenizer):
    metrics = scoring.reference_metrics([["the dog sees the cat: the cat sleeps near the tree"]], llama_tokenizer)
    cut, whole = (
        scoring.score_lines(metrics, [line])[0]["score"]
        for line in ("the dog sees the cat", "the dog sees the cat: the cat runs near the tree")
    )
    assert cut < 50 < whole < 100


def published():
    with open(DATA / "chatgpt_flores200/zero-shot-scores.tsv", encoding="utf-8", newline="") as file:
        rows = {row[""]: row for row in csv.DictReader(file, delimiter="\t")}
    outputs = sorted(path.stem for path in (DATA / "chatgpt_flores200").glob("*_*.tsv"))
    return [(name, rows[name]["BLEU"], rows[name]["chrF2++"]) for name in outputs]


@needs_data
@pytest.mark.parametrize(("name", "spbleu", "chrf"), published() if DATA.is_dir() else [("", "", "")])
def test_published_scores_of_gpt_are_reproduced(name, spbleu, chrf):
    with open(DATA / f"chatgpt_flores200/{name}.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    # As the authors scored: sides swapped, and what pandas made of an empty cell.
    hypotheses = [row["label"].replace("\n", " ") for row in rows]
    references = [row["predictions"].replace("\n", " ") or "nan" for row in rows]
    found = scoring.score_lines(scoring.reference_metrics([references], SPBLEU), hypotheses)
    assert [f"{row['score']:.2f}" for row in found] == [f"{float(spbleu):.2f}", f"{float(chrf):.2f}"]


@needs_data
def test_there_are_32_published_scores():
    assert len(published()) == 32


@needs_data
def test_given_model_scores_as_sacrebleus_own_flores101(tmp_path):
    """The same file, once given and once where sacrebleu looks for its own, and sacrebleu's own class."""
    own = tmp_path / "models/sacrebleu_tokenizer_spm.model"
    own.parent.mkdir()
    shutil.copyfile(SPBLEU, own)
    languages = {code: DATA / f"flores101/devtest/{code}.devtest" for code in ("deu", "nld", "eng")}
    files = ["--hypothesis", languages["nld"], "--reference", languages["deu"], languages["eng"], "--tgt-lang", "de"]
    given_file = cli("score-files", *files, "--spbleu-model", SPBLEU)
    default = cli("score-files", *files, SACREBLEU=str(tmp_path))
    code = (
        "import sys; from sacrebleu.metrics import BLEU\n"
        "lines = [open(path, encoding='utf-8').read().split('\\n')[:-1] for path in sys.argv[1:]]\n"
        "metric = BLEU(tokenize='flores101'); score = metric.corpus_score(lines[0], lines[1:]).score\n"
        "print(score, metric.get_signature())"
    )
    arguments = [sys.executable, "-c", code, *map(str, (languages["nld"], languages["deu"], languages["eng"]))]
    environment = {**os.environ, "SACREBLEU": str(tmp_path)}
    score, signature = subprocess.check_output(arguments, text=True, env=environment).split()

    by_metric = [
        {row["metric"]: row for row in map(json.loads, run.stdout.splitlines())} for run in (given_file, default)
    ]
    assert [list(rows) for rows in by_metric] == [["spBLEU", "chrF++", "BLEU"]] * 2
    assert {rows["spBLEU"]["score"] for rows in by_metric} == {float(score)}
    assert 0 < float(score) < 50
    assert all(rows["spBLEU"]["n"] == 1012 and rows["spBLEU"]["tgt"] == "de" for rows in by_metric)
    digest = hashlib.blake2b(SPBLEU.read_bytes(), digest_size=16).hexdigest()[:8]
    assert "tok:flores101" in signature
    assert by_metric[0]["spBLEU"]["signature"] == signature.replace("flores101", f"spm-{digest}")
    assert by_metric[1]["spBLEU"]["signature"].replace(f"|spm:{digest}", "") == signature
    assert by_metric[0]["chrF++"] == by_metric[1]["chrF++"]


def test_sacrebleus_own_model_missing_and_no_network(tmp_path):
    write_lines(tmp_path / "text", ["a b c d"])
    files = ["--hypothesis", tmp_path / "text", "--reference", tmp_path / "text", "--tgt-lang", "de"]
    result = cli("score-files", *files, SACREBLEU=str(tmp_path), https_proxy="http://127.0.0.1:9", no_proxy="")
    fails(result, "flores101", "--spbleu-model", str(tmp_path))


@pytest.mark.parametrize(
    ("code", "tokens"),
    [("de", "13a"), ("zh", "zh"), ("zhtrad", "zh"), ("ja", "char"), ("th", "char"), ("my", "char"), ("ko", "13a")],
)
def test_bleu_tokens_follow_the_language(code, tokens):
    lines = ["我们 now have four mice, he said.", "x"]
    metric, signature = scoring.language_bleu([lines], resolve(code))
    assert f"tok:{tokens}|" in signature
    assert metric.corpus_score(lines, None).score == pytest.approx(100)


def test_short_references_score_100_and_say_so(llama_tokenizer):
    for lines, effective in ((["dog", ""], "yes"), (["the house under the tree", "dog"], "no")):
        metric, signature = scoring.spbleu_metric([lines], llama_tokenizer)
        assert metric.corpus_score(lines, None).score == pytest.approx(100)
        assert f"eff:{effective}" in signature
    with pytest.raises(InputError, match="no word on any line"):
        scoring.spbleu_metric([["", ""]], llama_tokenizer)


def test_several_references_reach_at_least_the_better_one(llama_tokenizer):
    hypothesis = ["the dog runs under the old tree", "a cat sleeps near the river"]
    first = ["the dog runs under the old tree", "the small cat eats"]
    second = ["a red house", "a cat sleeps near the river"]
    scores = [
        [row["score"] for row in scoring.score_lines(scoring.reference_metrics(refs, llama_tokenizer), hypothesis)]
        for refs in ([first, second], [first], [second])
    ]
    assert scores[0] == pytest.approx([100, 100])
    assert max(scores[1] + scores[2]) < 100


# score and report


def test_scores_file(scored, flores, llama_tokenizer):
    rows = [json.loads(line) for line in (scored / "scores.jsonl").read_text("utf-8").splitlines()]
    assert all(list(row) == ["src", "tgt", "metric", "score", "n", "signature"] for row in rows)
    assert [(row["src"], row["tgt"], row["metric"]) for row in rows] == [
        (source, target, metric)
        for source, target in (("en", "fr"), ("en", "zh"), ("fr", "en"), ("zh", "en"))
        for metric in ("spBLEU", "chrF++")
    ]
    digest = hashlib.blake2b(llama_tokenizer.read_bytes(), digest_size=16).hexdigest()[:8]
    assert all(f"|tok:spm-{digest}|" in row["signature"] for row in rows if row["metric"] == "spBLEU")
    assert all("|nw:2|" in row["signature"] for row in rows if row["metric"] == "chrF++")
    assert all(row["n"] == 11 and 10 < row["score"] < 99 for row in rows)

    hypotheses = evaluate.read_lines(scored / "hypotheses/en-fr.txt")
    references = evaluate.read_lines(flores / "devtest/fra.devtest")
    expected = scoring.score_lines(scoring.reference_metrics([references], llama_tokenizer), hypotheses)
    assert [{"src": "en", "tgt": "fr", **row} for row in expected] == rows[:2]


def test_score_again_takes_only_what_changed(scored, flores, llama_tokenizer):
    command = ["score", "--output", scored, "--flores", flores, "--spbleu-model", llama_tokenizer]
    before = (scored / "scores.jsonl").read_bytes()
    lines = before.decode("utf-8").splitlines()
    # A mark in a kept row shows that it was not computed again.
    marked = [line.replace('"n": 11', '"n": 77') for line in lines]
    (scored / "scores.jsonl").write_text("".join(f"{line}\n" for line in marked), encoding="utf-8")
    references = evaluate.read_lines(flores / "devtest/eng.devtest")
    write_lines(scored / "hypotheses/zh-en.txt", references)
    assert cli(*command, "--workers", 2).returncode == 0
    rows = [json.loads(line) for line in (scored / "scores.jsonl").read_text("utf-8").splitlines()]
    assert [row["n"] for row in rows] == [77] * 6 + [11] * 2
    assert [row["score"] for row in rows[6:]] == pytest.approx([100, 100])
    assert cli(*command, "--limit", 5).returncode == 1  # the hypotheses have more lines
    write_lines(scored / "scores.jsonl", ["damaged"])
    assert cli(*command).returncode == 0
    rows = [json.loads(line) for line in (scored / "scores.jsonl").read_text("utf-8").splitlines()]
    assert [row["n"] for row in rows] == [11] * 8


def test_score_refuses_hypotheses_of_no_direction(scored, flores, llama_tokenizer):
    command = ["score", "--output", scored, "--flores", flores, "--spbleu-model", llama_tokenizer]
    for name, part in (("notes.txt", "SRC-TGT.txt"), ("en-xx.txt", "'xx'"), ("eng-fra.txt", "same direction as en-fr")):
        shutil.copyfile(scored / "hypotheses/en-fr.txt", scored / "hypotheses" / name)
        fails(cli(*command), name, part)
        (scored / "hypotheses" / name).unlink()
    (flores / "devtest/zho_simpl.devtest").unlink()
    fails(cli(*command), "no devtest file for zh")


def test_matrix_has_the_published_layout(scored):
    result = cli("report", "--output", scored, scored)  # given twice, shown once
    assert result.returncode == 0, result.stderr
    scores = {
        (row["src"], row["tgt"]): f"{row['score']:.2f}"
        for row in map(json.loads, (scored / "scores.jsonl").read_text("utf-8").splitlines())
        if row["metric"] == "spBLEU"
    }
    rows = (scored / "matrix_spBLEU.csv").read_bytes().decode("utf-8").split("\r\n")
    assert rows == [
        "direct,en,fr,zh",
        f"en-x,/,{scores['en', 'fr']},{scores['en', 'zh']}",
        f"x-en,/,{scores['fr', 'en']},{scores['zh', 'en']}",
        "",
    ]


@needs_data
@pytest.mark.parametrize("system", ["LLaMAX2-7B-Alpaca", "NLLB-200"])
def test_published_matrix_is_written_back_as_it_was(system):
    text = (DATA / f"llamax_results/{system}/spBLEU.csv").read_bytes().decode("utf-8")
    header, *table = csv.reader(io.StringIO(text))
    scores = {}
    for name, *cells in table:
        source, target = name.split("-")
        for code, cell in zip(header[1:], cells, strict=True):
            direction = (code, target) if source == "x" else (source, code)
            if cell != "/":
                scores.setdefault(direction, float(cell))
    rows = [{"src": a, "tgt": b, "metric": "spBLEU", "score": score} for (a, b), score in scores.items()]
    matrix = direction_matrix(rows, "spBLEU")
    found = matrix_csv(matrix).split("\r\n")
    assert found[:3] == text.split("\r\n")[:3]  # header, en-x, x-en
    assert sorted(found) == sorted(text.split("\r\n"))
    assert matrix_png(matrix).startswith(b"\x89PNG")


def test_directions_in_no_complete_row_have_one_of_their_own():
    rows = [
        {"src": a, "tgt": b, "metric": "spBLEU", "score": i}
        for i, (a, b) in enumerate([("en", "de"), ("en", "fr"), ("de", "fr")])
    ]
    assert matrix_csv(direction_matrix(rows, "spBLEU")).split("\r\n") == [
        "direct,de,en,fr",
        "en-x,0.00,/,1.00",
        "x-fr,2.00,1.00,/",
        "",
    ]
    assert matrix_csv(direction_matrix(rows[1:], "spBLEU")).split("\r\n")[1:] == ["x-fr,2.00,1.00,/", ""]
    assert matrix_csv(direction_matrix([*rows[:1], rows[2]], "spBLEU")).split("\r\n")[1:] == [
        "de-x,/,,2.00",
        "en-x,0.00,/,",
        "",
    ]


def test_averages_by_group():
    directions = [("en", "de"), ("de", "en"), ("de", "fr"), ("fr", "de")]
    rows = [
        {"src": a, "tgt": b, "metric": metric, "score": float(factor * i)}
        for i, (a, b) in enumerate(directions)
        for metric, factor in (("spBLEU", 1), ("chrF++", 2))
    ]
    assert averages(rows) == {
        "all": {"spBLEU": (1.5, 4), "chrF++": (3.0, 4)},
        "en-x": {"spBLEU": (0.0, 1), "chrF++": (0.0, 1)},
        "x-en": {"spBLEU": (1.0, 1), "chrF++": (2.0, 1)},
        "non-English": {"spBLEU": (2.5, 2), "chrF++": (5.0, 2)},
    }


def test_report_is_one_page_with_escaped_text(scored, flores, tmp_path, llama_tokenizer):
    other = tmp_path / "other & <b>"
    shutil.copytree(scored / "hypotheses", other / "hypotheses")
    lines = evaluate.read_lines(other / "hypotheses/en-fr.txt")
    write_lines(other / "hypotheses/en-fr.txt", ["<script>alert(1)</script> & co", *lines[1:]])
    command = ["score", "--output", other, "--flores", flores, "--spbleu-model", llama_tokenizer]
    assert cli(*command).returncode == 0
    page_path = tmp_path / "page/both.html"
    result = cli("report", "--output", scored, other, "--html", page_path)
    assert result.returncode == 0, result.stderr
    page = page_path.read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in page
    assert "other &amp; &lt;b&gt;" in page
    assert not re.search(r'(src|href)=(?!"data:)|@import|url\(', page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(picture) for picture in pictures] == [
        (folder / "matrix_spBLEU.png").read_bytes() for folder in (scored, other)
    ]
    for row in map(json.loads, (scored / "scores.jsonl").read_text("utf-8").splitlines()):
        assert f"<td>{row['src']}-{row['tgt']}</td>" in page
        assert f"{row['score']:.2f}" in page
        assert row["signature"] in page
    samples = page.split("<h2>Samples</h2>")[1].split("<h2>")[0]
    assert samples.count("<details") == 4
    assert samples.count("<tr><td>") == 40
    assert evaluate.read_lines(flores / "devtest/zho_simpl.devtest")[10] in samples

    shutil.move(flores, tmp_path / "moved")
    fails(cli("report", "--output", scored), str(flores), "--flores")
    assert cli("report", "--output", scored, "--flores", tmp_path / "moved").returncode == 0


def test_report_without_scores(scored, flores, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(cli("report", "--output", scored, empty), str(empty), "scores.jsonl", "evaluate.py score")
    assert not (scored / "report.html").exists()
    text = (scored / "scores.jsonl").read_text("utf-8").splitlines()
    write_lines(scored / "scores.jsonl", text[:-1])
    fails(cli("report", "--output", scored), "chrF++", "zh-en")
    write_lines(scored / "scores.jsonl", text[:-2])
    fails(cli("report", "--output", scored), "zh-en", "score again")
    write_lines(scored / "scores.jsonl", [*text, "{"])
    fails(cli("report", "--output", scored), "line 9")


# Directions and bad input


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("en-fr", ["en-fr"]),
        ("en-*", ["en-fr", "en-zh"]),
        ("*-en", ["fr-en", "zh-en"]),
        ("en-*,*-en", ["en-fr", "en-zh", "fr-en", "zh-en"]),
        ("fr-en, en-*,en-fr", ["fr-en", "en-fr", "en-zh"]),
        ("*-*", ["en-fr", "en-zh", "fr-en", "fr-zh", "zh-en", "zh-fr"]),
        ("all", ["en-fr", "en-zh", "fr-en", "fr-zh", "zh-en", "zh-fr"]),
        ("eng-zho_Hans", ["en-zh"]),
    ],
)
def test_directions(flores, text, expected):
    files = evaluate.flores_files(flores, "devtest")
    assert list(files) == ["en", "fr", "zh"]
    assert ["-".join(direction) for direction in evaluate.parse_directions(text, files)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("en", "expected a-b"),
        ("en-", "expected a-b"),
        ("en-fr-zh", "expected a-b"),
        ("", "expected a-b"),
        ("en-en", "between two languages"),
        ("en-xx", "'xx'"),
        ("en-de", "no file for de"),
    ],
)
def test_directions_that_cannot_be(flores, text, message):
    with pytest.raises(InputError, match=message):
        evaluate.parse_directions(text, evaluate.flores_files(flores, "devtest"))


@needs_data
@pytest.mark.parametrize("split", ["dev", "devtest"])
def test_every_language_has_its_file_in_both_splits(split):
    """Chinese is named otherwise in dev than in devtest."""
    files = evaluate.flores_files(DATA / "flores101", split)
    assert sorted(files) == list(load())
    assert all(path.stem == getattr(resolve(code), f"flores101_{split}") for code, path in files.items())
    assert len(evaluate.parse_directions("all", files)) == 102 * 101


def test_flores200_names(tmp_path):
    for name in ("eng_Latn", "zho_Hans", "ace_Arab"):
        write_lines(tmp_path / f"devtest/{name}.devtest", ["x"])
    assert sorted(evaluate.flores_files(tmp_path, "devtest")) == ["ace_Arab", "en", "zh"]


def test_lines_end_at_newlines_only(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("a\u2028b\x85c\x0bd\r\n\ne\rf".encode())
    assert evaluate.read_lines(path) == ["a\u2028b\x85c\x0bd", "", "e\rf"]


def test_unequal_lengths(scored, flores, llama_tokenizer, tmp_path):
    before = snapshot(scored)
    english, shorter = flores / "devtest/eng.devtest", tmp_path / "shorter"
    write_lines(shorter, evaluate.read_lines(english)[:9])
    command = ["score-files", "--hypothesis", shorter, "--tgt-lang", "en", "--spbleu-model", llama_tokenizer]
    fails(cli(*command, "--reference", shorter, english), str(shorter), "9 lines", str(english), "11")

    hypotheses = scored / "hypotheses/en-fr.txt"
    content = hypotheses.read_bytes()
    write_lines(hypotheses, evaluate.read_lines(hypotheses)[:9])
    command = ["score", "--output", scored, "--flores", flores, "--spbleu-model", llama_tokenizer, "--workers", 2]
    fails(cli(*command), "en-fr.txt has 9 lines", "fra.devtest 11", "--limit 9")
    hypotheses.write_bytes(content)
    assert {path: data for path, (_, data) in snapshot(scored).items()} == {
        path: data for path, (_, data) in before.items()
    }


def test_invalid_utf8_names_file_and_line(tmp_path, llama_tokenizer):
    good, bad = tmp_path / "good", tmp_path / "bad"
    write_lines(good, ["a", "b", "c"])
    bad.write_bytes(b"a\nb\xff\nc\n")
    command = ["score-files", "--hypothesis", good, "--reference", bad, "--tgt-lang", "en"]
    fails(cli(*command, "--spbleu-model", llama_tokenizer), f"{bad} line 2", "UTF-8")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--tgt-lang", "xx"], ["'xx'", "languages.tsv"]),
        (["--tgt-lang", "de", "--spbleu-model", "nowhere"], ["--spbleu-model nowhere", "does not exist"]),
        (["--tgt-lang", "de", "--spbleu-model", __file__], ["--spbleu-model", "not a SentencePiece model"]),
    ],
)
def test_bad_options_of_score_files(tmp_path, arguments, parts):
    write_lines(tmp_path / "text", ["a"])
    fails(cli("score-files", "--hypothesis", tmp_path / "text", "--reference", tmp_path / "text", *arguments), *parts)


# Translation


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, llama_tokenizer):
    """A random Llama with its tokenizer. Its vocabulary is padded, and EOS likely enough to end some sentences."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=456,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[2] *= 2
    # What a folder says about sampling must not change a beam search.
    model.generation_config = transformers.GenerationConfig(do_sample=True, temperature=2.0, repetition_penalty=3.0)
    model.save_pretrained(folder)
    shutil.copyfile(llama_tokenizer, folder / "tokenizer.model")
    return folder


@pytest.fixture
def generate(model_folder, flores, tmp_path):
    output = tmp_path / "out"
    command = ["generate", "--hf-model", model_folder, "--flores", flores, "--output", output, "--device", "cpu"]
    return lambda *arguments: cli(*command, "--max-new-tokens", 12, "--batch-size", 5, *arguments)


def one_by_one(model_folder, lines, source, target, prompt="llamax"):
    """The translations by plain transformers, without batches and so without padding; and how many EOS ended."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig()
    tokenizer, texts, ended = load_tokenizer(model_folder), [], 0
    names = [load()[code].name for code in (source, target)]
    for line in lines:
        ids = torch.tensor([prompt_ids(tokenizer, translation_prompt(line, *names, prompt))])
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_beams=4,
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=2,
                pad_token_id=2,
            )
        new = found[0, ids.shape[1] :].tolist()
        ended += 2 in new
        new = new[: new.index(2)] if 2 in new else new
        text = tokenizer.decode([i for i in new if i < 450])
        texts.append(re.sub("[\r\n]+", " ", text.strip()))
    return texts, ended


def test_translations_equal_those_of_single_sentences(generate, model_folder, flores, tmp_path, llama_tokenizer):
    result = generate("--directions", "en-*,zh-en")
    assert result.returncode == 0, result.stderr
    output, files = tmp_path / "out", evaluate.flores_files(flores, "devtest")
    assert sorted(path.name for path in output.rglob("*") if path.is_file()) == [
        "en-fr.txt",
        "en-zh.txt",
        "generate.json",
        "zh-en.txt",
    ]
    ended = 0
    for source, target in (("en", "fr"), ("en", "zh"), ("zh", "en")):
        expected, n = one_by_one(model_folder, evaluate.read_lines(files[source]), source, target)
        assert evaluate.read_lines(output / f"hypotheses/{source}-{target}.txt") == expected
        assert len(set(expected)) > 5  # otherwise the order could not be seen
        ended += n
    assert 0 < ended < 33  # both kinds of end were met

    # Again: nothing is touched. One lost direction and a new one: only these are made.
    before = snapshot(output)
    assert generate("--directions", "en-*,zh-en").returncode == 0
    assert snapshot(output) == before
    (output / "hypotheses/en-zh.txt").unlink()
    assert generate("--directions", "*-zh", "--batch-size", 32).returncode == 0
    after = snapshot(output)
    assert {path.name for path in after} == {path.name for path in before} | {"fr-zh.txt"}
    for name in ("en-fr.txt", "zh-en.txt"):
        path = output / "hypotheses" / name
        assert after[path] == before[path]
    assert after[output / "hypotheses/en-zh.txt"][1] == before[output / "hypotheses/en-zh.txt"][1]

    # Other settings, another source file and another model are refused.
    for arguments, parts in (
        (["--num-beams", 1], ["num-beams 4, now 1"]),
        (["--max-new-tokens", 13], ["max-new-tokens 12, now 13"]),
        (["--limit", 3], ["limit None, now 3"]),
        (["--prompt", "none"], ["prompt 'llamax', now 'none'"]),
        (["--dtype", "bfloat16"], ["dtype 'float32', now 'bfloat16'"]),
    ):
        fails(generate("--directions", "all", *arguments), str(output), *parts)
    english = files["en"].read_bytes()
    files["en"].write_bytes(english.replace(b"dog", b"cat"))
    fails(generate("--directions", "all"), "source file for en")
    files["en"].write_bytes(english)
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    fails(generate("--directions", "all", "--hf-model", other), "model another one")
    assert snapshot(output) == after

    # Split and limit of the hypotheses are those of generate.
    command = ["score", "--output", output, "--flores", flores, "--spbleu-model", llama_tokenizer]
    fails(cli(*command, "--limit", 3), "--limit 3", "None")
    fails(cli(*command, "--split", "dev"), "--split dev", "devtest")
    assert cli(*command).returncode == 0
    assert len((output / "scores.jsonl").read_text("utf-8").splitlines()) == 8


def test_the_prompt_is_the_one_the_model_was_tuned_with(generate, model_folder, flores, tmp_path, monkeypatch):
    tuned = tmp_path / "tuned"
    shutil.copytree(model_folder, tuned)
    command = "evaluate.py", "generate", "--hf-model", tuned, "--flores", flores, "--directions", "en-fr", "--output"

    def chosen(record, *arguments):
        if record is not None:
            (tuned / "llamax.json").write_text(json.dumps(record))
        monkeypatch.setattr(sys, "argv", [*map(str, command), str(tmp_path / "out"), *arguments])
        return evaluate.get_args().prompt

    assert chosen(None) == "llamax"  # a model from elsewhere
    assert chosen({"prompt": None, "stages": []}) == "llamax"  # one that was not tuned
    assert chosen({"prompt": "stanford"}) == "stanford"
    assert chosen({"prompt": "stanford"}, "--prompt", "llamax") == "llamax"
    assert chosen({"prompt": "vicuna"}, "--prompt", "none") == "none"
    for record in ({"prompt": "vicuna"}, {"prompt": "none"}, ["vicuna"]):
        with pytest.raises(InputError, match=f"--hf-model {tuned}/llamax.json: .*expected llamax or stanford"):
            chosen(record)

    # It is recorded under the name it was found to have, so that other hypotheses are not taken for these.
    (tuned / "llamax.json").write_text('{"prompt": "stanford"}')
    options = "--directions", "en-fr", "--hf-model", tuned, "--limit", 3
    assert generate(*options).returncode == 0
    record = json.loads((tmp_path / "out" / "generate.json").read_text("utf-8"))
    assert record["settings"]["prompt"] == record["arguments"]["prompt"] == "stanford"
    fails(generate(*options, "--prompt", "llamax"), "prompt 'stanford', now 'llamax'")
    english = evaluate.read_lines(flores / "devtest/eng.devtest")[:3]
    expected = one_by_one(tuned, english, "en", "fr", "stanford")[0]
    assert evaluate.read_lines(tmp_path / "out/hypotheses/en-fr.txt") == expected
    assert expected != one_by_one(tuned, english, "en", "fr")[0]


def test_generate_record_and_limit(generate, model_folder, flores, tmp_path, llama_tokenizer):
    result = generate("--directions", "en-fr", "--limit", 3, "--num-beams", 1, "--prompt", "none")
    assert result.returncode == 0, result.stderr
    output = tmp_path / "out"
    assert len(evaluate.read_lines(output / "hypotheses/en-fr.txt")) == 3
    record = json.loads((output / "generate.json").read_text("utf-8"))
    assert {file["file"] for file in record["settings"]["model"]} == {"config.json", "model.safetensors"}
    weights = hashlib.blake2b((model_folder / "model.safetensors").read_bytes(), digest_size=16).hexdigest()
    assert weights in {file["blake2b"] for file in record["settings"]["model"]}
    assert record["settings"]["limit"] == 3
    assert list(record["sources"]) == ["en"]
    assert record["arguments"]["batch_size"] == 5
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    command = ["score", "--output", output, "--flores", flores, "--spbleu-model", llama_tokenizer]
    assert cli(*command).returncode == 0
    assert {json.loads(line)["n"] for line in (output / "scores.jsonl").read_text("utf-8").splitlines()} == {3}


def test_generate_refuses_bad_input(generate, flores, tmp_path, model_folder):
    fails(
        generate("--directions", "en-fr", "--num-beams", 0, "--limit", 0, "--batch-size", -1, "--max-new-tokens", 0),
        "--num-beams 0",
        "--limit 0",
        "--batch-size -1",
        "--max-new-tokens 0",
    )
    fails(generate("--directions", "en-xx"), "--directions en-xx", "'xx'")
    fails(generate("--directions", "en-de"), "no file for de")
    fails(generate("--directions", "en-fr", "--split", "dev"), "--flores", "dev")
    fails(generate("--directions", "en-fr", "--hf-model", tmp_path), "tokenizer.model")
    for name, change in (
        ("cut", lambda folder: os.truncate(folder / "model.safetensors", 1000)),
        ("none", lambda folder: (folder / "model.safetensors").unlink()),
        ("config", lambda folder: (folder / "config.json").write_text("{")),
    ):
        shutil.copytree(model_folder, tmp_path / name)
        change(tmp_path / name)
        fails(generate("--directions", "en-fr", "--hf-model", tmp_path / name), str(tmp_path / name))
    french = flores / "devtest/fra.devtest"
    lines = evaluate.read_lines(french)
    write_lines(french, lines[:-1])
    fails(generate("--directions", "en-fr"), "fra.devtest 10", "eng.devtest has 11")
    write_lines(french, [*lines[:-1], " "])
    fails(generate("--directions", "fr-en"), "fra.devtest line 11: empty")
    write_lines(french, lines)
    assert not (tmp_path / "out/hypotheses").exists()
    write_lines(tmp_path / "out/hypotheses/en-fr.txt", lines)
    fails(generate("--directions", "en-fr"), "unknown origin")


def test_missing_weights_are_refused(generate, model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fails(generate("--directions", "en-fr", "--hf-model", folder), "model.layers.0.mlp.up_proj.weight")


def test_hypothesis_is_one_line_and_nothing_is_cut(llama_tokenizer):
    tokenizer = load_tokenizer(llama_tokenizer)
    text = 'Antwort: "ja": ### Response: 12:30\n\nzweite Zeile\u2028dritte'
    ids = [*tokenizer.encode_continuation(f"\n {text} \n"), tokenizer.eos_id, *tokenizer.encode_continuation("after")]
    assert evaluate.hypothesis(tokenizer, ids) == text.replace("\n\n", " ")
    assert evaluate.hypothesis(tokenizer, [tokenizer.eos_id] * 3) == ""
    assert evaluate.hypothesis(tokenizer, [tokenizer.vocab_size + 3]) == ""


def test_groups_share_batches_among_directions():
    sources = {"en": ["x"] * 40, "fr": ["x"] * 40}
    directions = [("en", "fr"), ("fr", "en"), ("en", "zh"), ("fr", "zh"), ("en", "de")]
    assert [len(group) for group in evaluate.groups(directions, sources, 64)] == [2, 2, 1]
    assert [len(group) for group in evaluate.groups(directions, sources, 10)] == [1] * 5


def test_large_weights_are_told_apart_by_pieces(tmp_path):
    path = tmp_path / "weights"
    content = bytearray(os.urandom(3 << 20))
    path.write_bytes(content)
    first = evaluate.digest(path, whole=1 << 20)
    assert first.startswith("64-pieces-")
    assert first == evaluate.digest(path, whole=1 << 20)
    content[-1] ^= 1
    path.write_bytes(content)
    assert evaluate.digest(path, whole=1 << 20) != first
