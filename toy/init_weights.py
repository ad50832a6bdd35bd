"""Give the toy's Hugging Face folder its initial weights: what a pre-trained Llama is to a real run.

python toy/init_weights.py --hf-model work/toy/corpus/hf
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamax.files import Parser, existing_file, replacing, run


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--hf-model", required=True, metavar="DIR", help="folder with a config.json")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main():
    args = get_args()
    existing_file(Path(args.hf_model) / "config.json", "--hf-model")
    weights = Path(args.hf_model) / "model.safetensors"
    if weights.is_file():
        print(f"{weights}: there already, nothing to do")
        return
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.hf_model), dtype=torch.float32)
    with replacing(weights) as partial:
        save_file(model.state_dict(), partial, metadata={"format": "pt"})
    print(f"{weights}: {model.num_parameters():,} random parameters")


if __name__ == "__main__":
    run(main)
