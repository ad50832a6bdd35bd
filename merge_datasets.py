"""Join the shards of one dataset, or complete datasets of one tokenizer, in bounded memory.

    python merge_datasets.py --input data/mono-*-of-00100.json --output-prefix data/mono
    python merge_datasets.py --input data/fr data/de --output-prefix data/fr-de

Shards are those that `preprocess_mono.py` and `preprocess_parallel.py` write with --shard I/N; here, where all are
known, it is decided which records are duplicates, which language pairs are repeated and which records are held out
(PREFIX_valid). The result is the same bytes, however many shards there were. Complete datasets are joined as they
are, one after the other. The input stays; a merge that is complete is not done again.
"""

from llamax.files import InputError, Parser, read_json, run
from llamax.merge import already_merged, merge_datasets, merge_shards, report_dataset


def get_args():
    parser = Parser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PREFIX", help="shards or datasets; the ending .json may be there")
    add("--output-prefix", required=True, help="writes PREFIX.bin, PREFIX.idx, PREFIX.json and what else they have")
    add("--tokenizer-model", help="of the shards, if pairs are repeated and it is no longer where they found it")
    add("--max-reject-rate", type=float, default=0.01, help="of the shards' records together (default %(default)s)")
    args = parser.parse_args()
    if not 0 <= args.max_reject_rate <= 1:
        raise InputError(f"--max-reject-rate {args.max_reject_rate}: expected a share from 0 to 1")
    args.input = [prefix.removesuffix(".json") for prefix in args.input]
    return args


def main():
    args = get_args()
    are_shards = ["shard" in read_json(f"{prefix}.json", "--input") for prefix in args.input]
    if any(are_shards) and not all(are_shards):
        which = args.input[are_shards.index(True)], args.input[are_shards.index(False)]
        raise InputError(f"--input: {which[0]} is a shard, {which[1]} a complete dataset; merge the shards first")
    if already_merged(args.input, args.output_prefix):
        print(f"{args.output_prefix}: complete, nothing to do")
        return
    if are_shards[0]:
        manifest = merge_shards(args.input, args.output_prefix, args.tokenizer_model, args.max_reject_rate)
    else:
        manifest = merge_datasets(args.input, args.output_prefix)
    print(report_dataset(args.output_prefix, manifest))


if __name__ == "__main__":
    run(main)
