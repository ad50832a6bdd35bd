"""Run by test_convert.py with each transformers: logits and ids of Hugging Face folders, saved to a file.

python tests/logits_transformers.py MAJOR_VERSION TEXT OUT.pt HF_FOLDER…
"""

import sys
from pathlib import Path

import torch
import transformers

if __name__ == "__main__":
    version, text, out, *folders = sys.argv[1:]
    assert transformers.__version__.split(".")[0] == version, transformers.__version__
    lines = Path(text).read_text(encoding="utf-8").split("\n")
    found = {}
    for folder in folders:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = torch.arange(120)[None] * 7 % model.config.vocab_size
        with torch.no_grad():
            logits = model(ids).logits
        found[folder] = {
            "logits": logits,
            "ids": transformers.AutoTokenizer.from_pretrained(folder)(lines)["input_ids"],
        }
    torch.save(found, out)
