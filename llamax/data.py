"""Training rows from indexed datasets: blends, loss masks, three ways to lay entries out in rows.

A row is `--seq-length` tokens, their labels (the next tokens) and the loss weight of each label:

    across   entries are joined end to end in shuffled order and cut every seq_length tokens; attention runs across
             entries (megatron.core's GPTDataset)
    inside   whole entries fill a row, attention stays inside each entry
    none     one entry a row, the rest is padding

A label's loss weight is what its record asked for, and 0 for an entry's first token: nothing in the entry predicts
it. So the three layouts train on the same terms, but that `across` also sees what stands before an entry.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import get_blend_from_list

from llamax.files import InputError
from llamax.indexed import read_manifest
from llamax.runtime import on_first_rank

PACKING = ("across", "inside", "none")


@dataclass
class _Tokenizer:
    """What GPTDatasetConfig wants of a tokenizer. `content` goes into the hash that index caches are kept under:
    a dataset written anew at the same path must not be read with the old index."""

    vocab_size: int
    content: str
    eod: int = -1
    pad: int = -1  # occurs nowhere, so that no real token is taken for padding

    @property
    def unique_identifiers(self):
        return {"content": self.content}


class EntryRows(GPTDataset):
    """Rows with their loss weights; the base of the three layouts and, as it stands, the layout `across`.

    Items: tokens, labels int64 [seq_length]; loss_mask float32 [seq_length].
    """

    @staticmethod
    def build_low_level_dataset(dataset_path, config):
        dataset = GPTDataset.build_low_level_dataset(dataset_path, config)
        # Only a dataset with tokens without loss has this second one, in the same sequences.
        masked = Path(f"{dataset_path}_loss.idx").is_file()
        dataset.loss = IndexedDataset(f"{dataset_path}_loss") if masked else None
        return dataset

    def __init__(self, dataset, dataset_path, indices, num_samples, index_split, config):
        share = f"--data-path {dataset_path}: its {index_split.name} share"
        remedy = "give other shares with --split, or held-out data with --valid-data-path"
        if num_samples != 0 and len(indices) == 0:  # megatron.core would look for rows in it for ever
            raise InputError(f"{share} has no entry; {remedy}")
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        if num_samples is None and len(self) == 0:
            raise InputError(f"{share} is shorter than one row of --seq-length {config.sequence_length}; {remedy}")

    def entry(self, number, start=0, length=None):
        """(ids int64, loss weights float32) of a sequence or a piece of it; an entry's first token has weight 0."""
        ids = self.dataset.get(int(number), offset=int(start), length=length).astype(np.int64)
        if self.dataset.loss is None:
            weights = np.ones(len(ids), np.float32)
        else:
            weights = self.dataset.loss.get(int(number), offset=int(start), length=length).astype(np.float32)
        if start == 0:
            weights[0] = 0
        return ids, weights

    def __getitem__(self, index):
        row = int(self.shuffle_index[index])
        (first, start), (last, end) = self.sample_index[row], self.sample_index[row + 1]
        pieces = []
        for i in range(int(first), int(last) + 1):
            begin = int(start) if i == first else 0
            length = int(end) + 1 - begin if i == last else None  # one token more than inputs: the last label
            pieces.append(self.entry(self.document_index[i], begin, length))
        ids, weights = (np.concatenate(part) for part in zip(*pieces, strict=True))
        return {
            "tokens": torch.from_numpy(ids[:-1]),
            "labels": torch.from_numpy(ids[1:]),
            "loss_mask": torch.from_numpy(weights[1:]),
        }


class InsideRows(EntryRows):
    """The layouts `inside` and `none`: whole entries in a row, never cut.

    Items also have segments int32 [seq_length]: the number of the entry in its row, -1 for padding. An entry of n
    tokens takes n - 1 places: its last token is only a label.
    """

    one_entry_a_row = False

    def _build_document_sample_shuffle_indices(self):
        """(order of entries, first entry of each row and the end, None). Each epoch has a permutation of its own,
        so that asking for more rows never changes the order of the first ones."""
        lengths = self.dataset.sequence_lengths[self.indices].astype(np.int64) - 1
        longest = int(lengths.max())
        if longest > self.config.sequence_length:
            raise InputError(
                f"--seq-length {self.config.sequence_length}: {self.dataset_path} has an entry of {longest + 1} "
                f"tokens; raise it to {longest} or preprocess with a smaller --block-size"
            )
        orders, starts, entries, rows = [], [], 0, 0
        wanted = self.num_samples or 1
        for epoch in range(np.iinfo(np.int32).max):
            generator = np.random.Generator(np.random.PCG64([self.config.random_seed, epoch]))
            order = generator.permutation(len(self.indices))
            orders.append(self.indices[order].astype(np.int32))
            starts.append(entries + self._row_starts(lengths[order]))
            entries, rows = entries + len(order), rows + len(starts[-1])
            if rows >= wanted:
                break
        return np.concatenate(orders), np.concatenate([*starts, [entries]]), None

    def _row_starts(self, lengths):
        """The first entry of each row, when entries fill rows in order."""
        if self.one_entry_a_row:
            return np.arange(len(lengths))
        ends, starts, start = np.cumsum(lengths), [], 0
        while start < len(lengths):
            starts.append(start)
            before = ends[start - 1] if start else 0
            start = int(np.searchsorted(ends, before + self.config.sequence_length, side="right"))
        return np.array(starts)

    def __len__(self):
        return len(self.sample_index) - 1

    def __getitem__(self, index):
        size = self.config.sequence_length
        tokens, labels = np.zeros(size, np.int64), np.zeros(size, np.int64)
        loss_mask, segments = np.zeros(size, np.float32), np.full(size, -1, np.int32)
        place = 0
        for segment, i in enumerate(range(self.sample_index[index], self.sample_index[index + 1])):
            ids, weights = self.entry(self.document_index[i])
            here = slice(place, place + len(ids) - 1)
            tokens[here], labels[here], loss_mask[here], segments[here] = ids[:-1], ids[1:], weights[1:], segment
            place = here.stop
        arrays = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "segments": segments}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class OneEntryRows(InsideRows):
    """The layout `none`."""

    one_entry_a_row = True


def build_datasets(args, vocab_size, train_rows, valid_rows):
    """(training, validation) datasets of `args.data_path`, `args.valid_data_path` or `args.split`; validation may be
    None. Every rank calls it: the first builds index caches under args.data_cache_path, the others read them.

    Raises InputError where a dataset is incomplete, was made with another tokenizer than the others, or holds ids the
    model does not have.
    """
    blend = get_blend_from_list(args.data_path)
    valid_blend = get_blend_from_list(args.valid_data_path) if args.valid_data_path else None
    manifests = on_first_rank(lambda: check_data(data_prefixes(args), vocab_size))
    classes = {"across": EntryRows, "inside": InsideRows, "none": OneEntryRows}
    split = {"split": args.split, "blend": blend}
    if valid_blend:
        split = {"blend_per_split": [blend, valid_blend, None]}
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        path_to_cache=str(args.data_cache_path),
        tokenizer=_Tokenizer(vocab_size, " ".join(manifest["xxh3_128"] for manifest in manifests)),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        **split,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pad id, which is never used
        train, valid, _ = BlendedMegatronDatasetBuilder(
            classes[args.packing], [train_rows, valid_rows, 0], lambda: True, config
        ).build()
    return train, valid


def data_prefixes(args):
    """The prefixes of all datasets of a run, without their weights."""
    return [
        prefix for path in (args.data_path, args.valid_data_path) if path for prefix in get_blend_from_list(path)[0]
    ]


def check_data(prefixes, vocab_size):
    """The manifests of datasets that can be trained on together, or InputError."""
    manifests = [read_manifest(prefix) for prefix in prefixes]
    first = manifests[0]["arguments"]["tokenizer"]
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        tokenizer = manifest["arguments"]["tokenizer"]
        if tokenizer["blake2b"] != first["blake2b"]:
            raise InputError(
                f"--data-path {prefix}: made with another tokenizer ({tokenizer['file']}, {tokenizer['blake2b']}) than "
                f"{prefixes[0]} ({first['file']}, {first['blake2b']}); preprocess both with the model's own"
            )
        if tokenizer["vocab_size"] > vocab_size:
            raise InputError(
                f"--data-path {prefix}: its tokenizer has {tokenizer['vocab_size']} tokens, the model {vocab_size}; "
                "preprocess with the model's own tokenizer"
            )
    return manifests


def attention_mask(segments):
    """[b, 1, s, s] bool, True where a token may not look: later ones, and those of other entries.

    Args:
        segments: int [b, s], as InsideRows gives them.
    """
    size = segments.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=segments.device).triu(1)
    return later | (segments[:, None, :, None] != segments[:, None, None, :])


class SequentialSampler:
    """Batches of dataset indices for one data-parallel rank, in the global order, from `consumed` samples on."""

    def __init__(self, total, consumed, micro_batch_size, rank, size):
        self.total, self.consumed, self.micro, self.rank, self.size = total, consumed, micro_batch_size, rank, size

    def __iter__(self):
        step = self.micro * self.size
        for start in range(self.consumed, self.total - step + 1, step):
            mine = start + self.rank * self.micro
            yield list(range(mine, mine + self.micro))
