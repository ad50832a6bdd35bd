"""What a model was made from, kept with it: llamax.json for programs, README.md, the model card, for people.

Every stage adds itself to the stages of the model it began with: a training run through its run.json, a conversion when
it writes a Hugging Face folder.
"""

import json
from pathlib import Path

from llamax import checkpoint
from llamax.files import InputError, read_json, write_json, write_text
from llamax.prompts import MODEL_RECORD, alpaca_prompt
from llamax.report_tables import averages

RUN = "run.json"  # of a training folder
# Options that decide what comes out of a training run; the others are about speed, memory and places.
SETTINGS = (
    "init_weights", "prompt", "over_long", "num_train_epochs", "train_iters", "global_batch_size", "examples_a_step",
    "seq_length", "packing", "lr", "min_lr", "lr_decay_style", "lr_decay_iters", "lr_warmup_fraction", "weight_decay",
    "adam_beta2", "clip_grad", "loss_spike_factor", "grad_spike_factor", "bf16", "fp8_format", "split", "seed",
)  # fmt: skip
_OF_MANIFEST = ("kind", "languages", "documents", "tokens", "loss_tokens", "xxh3_128")


def of_model(folder):
    """The stages of the model in a Hugging Face folder, oldest first; of one from elsewhere none."""
    path = Path(folder) / MODEL_RECORD
    if not path.is_file():
        return []
    try:
        return list(read_json(path, "--hf-model")["stages"])
    except (KeyError, TypeError):
        raise InputError(f"--hf-model {path}: no list of stages; remove the file, or take it from the export") from None


def of_training(folder, iteration):
    """The stages up to step `iteration` of a training folder: those of its start, and the run itself."""
    folder = Path(folder)
    if not (folder / RUN).is_file():  # an imported model, not trained yet
        return of_model(folder)
    run = read_json(folder / RUN, "--load")
    if "stages" not in run:  # of an earlier version
        return []
    arguments = run["arguments"]
    stage = {
        "script": run["script"],
        "from": None if arguments["init_weights"] else arguments["pretrained_checkpoint"] or arguments["hf_model"],
        "step": iteration,
        "settings": {name: arguments[name] for name in SETTINGS if name in arguments},
        "data": run["data"],
        "versions": run["versions"],
    }
    return [*run["stages"], stage]


def of_start(args):
    """The stages of the model that a training run begins with."""
    if args.init_weights:
        return []
    if args.pretrained_checkpoint:
        path = Path(args.pretrained_checkpoint)
        step = checkpoint.step_of(path)
        return of_training(path, checkpoint.iterations(path)[0]) if step is None else of_training(path.parent, step)
    return of_model(args.hf_model)


def of_data(prefixes, weights):
    """{prefix: what its manifest says of a dataset, and its weight in the blend}."""
    found = {}
    for prefix, weight in zip(prefixes, weights or [None] * len(prefixes), strict=True):
        manifest = read_json(f"{prefix}.json")
        found[prefix] = {key: manifest[key] for key in _OF_MANIFEST if key in manifest}
        if weight is not None:
            found[prefix]["weight"] = weight
        if manifest.get("kind") == "sft":  # few files, that people know by name
            found[prefix]["files"] = [Path(source["path"]).name for source in manifest["sources"]]
    return found


def prompt_of(stages):
    """The name of the prompt that a model was last tuned with, or None."""
    return next((s["settings"]["prompt"] for s in reversed(stages) if "prompt" in s.get("settings", {})), None)


def write(folder, stages, name, parameters, scores=()):
    """Write llamax.json and the model card into a Hugging Face folder.

    Args:
        name: of the model, the card's title.
        parameters: how many it has.
        scores: rows of scores.jsonl, if any, as read_scores gives them.
    """
    write_json(Path(folder) / MODEL_RECORD, {"prompt": prompt_of(stages), "stages": stages})
    write_text(Path(folder) / "README.md", card(stages, name, parameters, scores))


def card(stages, name, parameters, scores):
    """The model card, as Markdown with the front matter of Hugging Face's hub."""
    datasets = [dataset for stage in stages for dataset in stage.get("data", {}).values()]
    languages = sorted({code for dataset in datasets for code in dataset.get("languages", [])})
    base = next((Path(stage["from"]).name for stage in stages if isinstance(stage["from"], str)), None)
    front = {"library_name": "transformers", "pipeline_tag": "text-generation", "language": languages}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value), "---", ""]
    lines += [f"# {name}", "", f"A Llama of {parameters:,} parameters{f', made from {base}' if base else ''}."]
    lines += ["The licence of the model it was made from, and those of the data, apply.", ""]
    for number, stage in enumerate(stages, 1):
        lines += _stage_lines(number, stage)
    prompt = prompt_of(stages)
    if prompt:
        lines += ["## Prompt", "", f"`{prompt}`; the answer follows at once, and ends with EOS:", ""]
        lines += ["```", alpaca_prompt("{instruction}", "{input}", prompt), "```", ""]
    lines += ["## Scores", "", *(_score_lines(scores) if scores else ["None were given."])]
    return "\n".join(lines) + "\n"


def _stage_lines(number, stage):
    step = f", step {stage['step']:,}" if "step" in stage else ""
    origin = [stage["from"]] if isinstance(stage["from"], str) else stage["from"] or ["random weights"]
    lines = [f"## {number}. {stage['script']}{step}", "", f"From {', '.join(origin)}.", ""]
    if stage.get("data"):
        lines += ["| data | kind | languages | entries | tokens | with loss | weight | xxh3_128 |"]
        lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"]
        for prefix, dataset in stage["data"].items():
            title = ", ".join(dataset.get("files", [prefix]))
            counts = " | ".join(f"{dataset[key]:,}" for key in ("documents", "tokens", "loss_tokens"))
            lines += [f"| {title} | {dataset.get('kind', '')} | {' '.join(dataset.get('languages', []))} | {counts} | "
                      f"{dataset.get('weight', '')} | {dataset['xxh3_128']} |"]  # fmt: skip
        lines += [""]
    settings = [f"{name} {value}" for name, value in stage.get("settings", {}).items() if value is not None]
    if settings:
        lines += [f"Settings: {', '.join(settings)}", ""]
    if stage.get("versions"):
        lines += ["Versions: " + ", ".join(f"{name} {value}" for name, value in stage["versions"].items()), ""]
    return lines


def _score_lines(scores):
    """A row for each group of directions and metric."""
    lines = ["| directions | metric | number | mean | signature |", "| --- | --- | ---: | ---: | --- |"]
    signatures = {row["metric"]: row["signature"] for row in scores}
    for group, means in averages(scores).items():
        for metric, (mean, number) in means.items():
            lines += [f"| {group} | {metric} | {number:,} | {mean:.2f} | {signatures[metric]} |"]
    return lines
