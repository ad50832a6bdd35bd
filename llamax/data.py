"""Training rows from indexed datasets: blends, loss masks, three ways to lay entries out in rows.

A row is `--seq-length` tokens, their labels (the next tokens) and the loss weight of each label:

    across   entries are joined end to end in shuffled order and cut every seq_length tokens; attention runs across
             entries (megatron.core's GPTDataset)
    inside   whole entries fill a row, attention stays inside each entry
    none     one entry a row, the rest is padding

A label's loss weight is what its record asked for, and 0 for an entry's first token: nothing in the entry predicts
it. So the three layouts train on the same terms, but that `across` also sees what stands before an entry.

Which entries a row is made of stands in index files that the first rank writes and all map into memory. They are kept
in a cache, under a hash of all that they depend on; each appears whole or not at all.
"""

import contextlib
import copy
import itertools
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split, get_blend_from_list

from llamax.files import InputError, file_error, replacing, scratch_folder
from llamax.indexed import TAG, Verified, read_manifest, tag_names
from llamax.packing import pack
from llamax.runtime import is_first_rank, on_first_rank
from llamax.shard_files import mapped

PACKING = ("across", "inside", "none")
_CHUNK = 1 << 16  # entries or rows at a time


@dataclass
class _Tokenizer:
    """What GPTDatasetConfig wants of a tokenizer. `content`, a digest of all datasets, goes into the hash that index
    caches are kept under: a dataset written anew at the same path must not be read with the old index."""

    vocab_size: int
    content: str
    eod: int = -1
    pad: int = -1  # occurs nowhere, so that no real token is taken for padding

    @property
    def unique_identifiers(self):
        return {"content": self.content}


@dataclass
class RowsConfig(GPTDatasetConfig):
    """And of each dataset, by its prefix: `contents`, a digest of all that its rows are made of, and of those with
    held-out rows `groups`, int32 [tags]: the number of the group of each of its tags."""

    contents: dict | None = None
    groups: dict | None = None


def cached_whole(dataset, split, names, build):
    """Call build(), which reads the index files of a dataset or blend from the cache, or writes them there in place, as
    megatron.core does, and where it is killed leaves half a file. Here they are written elsewhere and renamed."""
    config = dataset.config
    if not config.path_to_cache:
        return build()
    base = f"{dataset.unique_description_hash}-{type(dataset).__name__}-{split.name}"
    paths = [Path(config.path_to_cache) / f"{base}-{name}" for name in names]
    if is_first_rank() and not all(path.is_file() for path in paths):
        with _one_line(), scratch_folder(paths[0].with_name(base)) as scratch, replacing(*paths) as partial:
            dataset.config = copy.copy(config)
            dataset.config.path_to_cache = str(scratch)
            try:
                build()
            finally:
                dataset.config = config
            for path, temporary in zip(paths, partial, strict=True):
                os.rename(scratch / path.name, temporary)
    return build()  # maps them


@contextlib.contextmanager
def _one_line():
    """An OSError as an InputError, of which megatron.core does not make one of its own."""
    try:
        yield
    except OSError as error:
        raise InputError(file_error(error)) from error


class EntryRows(GPTDataset):
    """Rows with their loss weights; the base of the three layouts and, as it stands, the layout `across`.

    Items: tokens, labels int64 [seq_length]; loss_mask float32 [seq_length]. Those of held-out data also have groups
    int32 [seq_length]: of which kind and language the entry of each label is, a number into the names that
    build_datasets gives, -1 for padding.
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
        self.indices = None  # 4 bytes an entry on every rank, needed no longer
        self.groups = config.groups[dataset_path] if index_split == Split.valid else None
        self.tags = np.zeros(0, TAG)
        if self.groups is not None and len(self.groups) > 1:
            self.tags = np.asarray(mapped(f"{dataset_path}.tags", TAG))

    def _build_document_sample_shuffle_indices(self):
        if self.num_samples == 0:  # nobody asks for rows, of which megatron.core would index an epoch
            return np.zeros(0, np.int32), np.zeros((1, 2), np.int32), np.zeros(0, np.uint32)
        return self._index()

    def _index(self):
        names = ("description.txt", "document_index.npy", "sample_index.npy", "shuffle_index.npy")
        return cached_whole(self, self.index_split, names, super()._build_document_sample_shuffle_indices)

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

    def group(self, number):
        """The group of a sequence of held-out data."""
        return self.groups[self.tags[number] if len(self.tags) else 0]

    def __getitem__(self, index):
        row = int(self.shuffle_index[index])
        (first, start), (last, end) = self.sample_index[row], self.sample_index[row + 1]
        numbers, pieces = self.document_index[int(first) : int(last) + 1], []
        for i, number in enumerate(numbers, int(first)):
            begin = int(start) if i == first else 0
            length = int(end) + 1 - begin if i == last else None  # one token more than inputs: the last label
            pieces.append(self.entry(number, begin, length))
        ids, weights = (np.concatenate(part) for part in zip(*pieces, strict=True))
        arrays = {"tokens": ids[:-1], "labels": ids[1:], "loss_mask": weights[1:]}
        if self.groups is not None:
            sizes = [len(ids) for ids, _ in pieces]
            arrays["groups"] = np.repeat([self.group(number) for number in numbers], sizes)[1:]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def add_to_digest(self, digest, rows):
        """Add to an xxhash digest the entries of the first rows: where the first begins, how many, and which."""
        parts = [xxhash.xxh3_128() for _ in range(3)]
        for at in range(0, rows, _CHUNK):
            row = self.shuffle_index[at : min(at + _CHUNK, rows)].astype(np.int64)
            first, start = self.sample_index.take(row, axis=0).astype(np.int64).T  # take: twice as fast as [row]
            counts = self.sample_index[:, 0].take(row + 1) - first + 1
            ends = np.cumsum(counts)
            entries = np.repeat(first - (ends - counts), counts)
            entries += np.arange(len(entries))
            for part, values in zip(parts, (start, counts, self.document_index.take(entries)), strict=True):
                part.update(np.ascontiguousarray(values).data)
        for part in parts:
            digest.update(part.digest())


class InsideRows(EntryRows):
    """The layouts `inside` and `none`: whole entries in a row, never cut.

    Items also have segments int32 [seq_length]: the number of the entry in its row, -1 for padding. An entry of n
    tokens takes n - 1 places: its last token is only a label.
    """

    one_entry_a_row = False

    def _index(self):
        """(order of entries, first entry of each row and the end, None), mapped. Each epoch has a permutation of its
        own, so that asking for more rows never changes the order of the first ones."""
        if not self.config.path_to_cache:
            with tempfile.TemporaryDirectory() as folder:  # what is mapped stays until it is no longer used
                return self._index_in(Path(folder), writes=True)
        return self._index_in(Path(self.config.path_to_cache), writes=is_first_rank())

    def _index_in(self, folder, writes):
        names = ("description.txt", "rows.bin", "entries.bin")
        base = f"{self.unique_description_hash}-{type(self).__name__}-{self.index_split.name}"
        paths = [folder / f"{base}-{name}" for name in names]
        if writes and not all(path.is_file() for path in paths):
            with _one_line(), replacing(*paths) as (description, rows, entries):
                description.write_text(self.unique_description, encoding="utf-8")
                self._write_index(rows, entries)
        starts, order = (np.asarray(mapped(path, dtype)) for path, dtype in zip(paths[1:], ("i8", "i4"), strict=True))
        return order, range(len(order) + 1) if self.one_entry_a_row else starts, None

    def _write_index(self, rows_path, entries_path):
        """Write the first entry of each row and the end, int64, and the order of entries, int32."""
        lengths = self.dataset.sequence_lengths
        longest = max(int(lengths[self.indices[i : i + _CHUNK]].max()) for i in range(0, len(self.indices), _CHUNK)) - 1
        if longest > self.config.sequence_length:
            raise InputError(
                f"--seq-length {self.config.sequence_length}: {self.dataset_path} has an entry of {longest + 1} "
                f"tokens; raise it to {longest} or preprocess with a smaller --block-size"
            )
        entries, rows, wanted = 0, 0, self.num_samples or 1
        with open(rows_path, "wb") as rows_file, open(entries_path, "wb") as entries_file:
            for epoch in itertools.count():
                order = self.indices.astype(np.int32)
                generator = np.random.Generator(np.random.PCG64([self.config.random_seed, epoch]))
                generator.shuffle(order)
                if self.one_entry_a_row:
                    entries_file.write(order.data)
                    rows += len(order)
                else:
                    for at in range(0, len(order), _CHUNK):
                        numbers = order[at : at + _CHUNK]
                        packed, starts = pack(lengths[numbers] - 1, self.config.sequence_length, generator)
                        entries_file.write(numbers[packed].data)
                        rows_file.write((entries + at + starts).data)
                        rows += len(starts)
                entries += len(order)
                if rows >= wanted:
                    break
            rows_file.write(np.array([entries]).data)

    def __len__(self):
        return len(self.sample_index) - 1

    def __getitem__(self, index):
        size = self.config.sequence_length
        arrays = {
            "tokens": np.zeros(size, np.int64),
            "labels": np.zeros(size, np.int64),
            "loss_mask": np.zeros(size, np.float32),
            "segments": np.full(size, -1, np.int32),
        }
        if self.groups is not None:
            arrays["groups"] = np.full(size, -1, np.int32)
        place = 0
        numbers = self.document_index[self.sample_index[index] : self.sample_index[index + 1]]
        for segment, number in enumerate(numbers):
            ids, weights = self.entry(number)
            here = slice(place, place + len(ids) - 1)
            values = {"tokens": ids[:-1], "labels": ids[1:], "loss_mask": weights[1:], "segments": segment}
            if self.groups is not None:
                values["groups"] = self.group(number)
            for name, value in values.items():
                arrays[name][here] = value
            place = here.stop
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def add_to_digest(self, digest, rows):
        if not self.one_entry_a_row:
            digest.update(self.sample_index[: rows + 1].data)
        digest.update(self.document_index[: self.sample_index[rows]].data)


class OneEntryRows(InsideRows):
    """The layout `none`."""

    one_entry_a_row = True


class Blend(BlendedDataset):
    """megatron.core's, whose index files appear whole."""

    def _build_indices(self):
        names = ("description.txt", "dataset_index.npy", "dataset_sample_index.npy")
        return cached_whole(self, self.split, names, super()._build_indices)


class Builder(BlendedMegatronDatasetBuilder):
    """megatron.core's, with our Blend."""

    @staticmethod
    def build_generic_dataset(cls, *args):
        return BlendedMegatronDatasetBuilder.build_generic_dataset(Blend if cls is BlendedDataset else cls, *args)


def build_datasets(args, vocab_size, train_rows, valid_rows):
    """(training, validation, group names): the datasets of `args.data_path`, `args.valid_data_path` or `args.split`,
    and the (kind, language or language pair) that "groups" of the validation items number. Validation is None if there
    is none or no row of it is wanted. Every rank calls it: the first builds index caches under args.data_cache_path,
    the others read them.

    Raises InputError where a dataset is incomplete, was made with another tokenizer than the others, or holds ids the
    model does not have.
    """
    blend = get_blend_from_list(args.data_path)
    valid_blend = get_blend_from_list(args.valid_data_path) if args.valid_data_path else None
    prefixes, held_out = data_prefixes(args), (valid_blend or blend)[0]

    def look():
        manifests = check_data(prefixes, vocab_size, args.data_cache_path)
        return [(content_of(manifest), tag_names(manifest)) for manifest in manifests]

    found = dict(zip(prefixes, on_first_rank(look), strict=True))
    group_names = sorted({tag for prefix in held_out for tag in found[prefix][1]})
    number = {name: i for i, name in enumerate(group_names)}
    contents = " ".join(found[prefix][0] for prefix in prefixes)
    classes = {"across": EntryRows, "inside": InsideRows, "none": OneEntryRows}
    split = {"split": args.split, "blend": blend}
    if valid_blend:
        split = {"blend_per_split": [blend, valid_blend, None]}
    config = RowsConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        path_to_cache=str(args.data_cache_path),
        tokenizer=_Tokenizer(vocab_size, xxhash.xxh3_128_hexdigest(contents.encode("utf-8"))),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        contents={prefix: content for prefix, (content, _) in found.items()},
        groups={prefix: np.array([number[tag] for tag in found[prefix][1]], np.int32) for prefix in held_out},
        **split,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the pad id, which is never used
        train, valid, _ = Builder(classes[args.packing], [train_rows, valid_rows, 0], lambda: True, config).build()
    if valid is None or valid_rows == 0:
        return train, None, []
    return train, valid, group_names


def epoch_of(args, prefix, vocab_size):
    """(rows, entries, held-out entries) of a dataset: the rows that args.packing makes of its training entries in the
    first epoch, how many entries those are, and how many args.split holds out. Every rank calls it."""
    args = copy.copy(args)
    args.data_path = [prefix]
    data, *_ = build_datasets(args, vocab_size, None, 0)
    begin, end = (round(share * len(data.dataset)) for share in data.config.split_matrix[Split.valid.value] or (0, 0))
    return len(data), len(data.document_index), end - begin


def content_of(manifest):
    """The digests of the files of a dataset that its rows are made of; the .tags only tell of them."""
    return " ".join([manifest["xxh3_128"], *(row[1] for name, row in manifest["files"].items() if name != ".tags")])


def order_digest(dataset, rows):
    """A digest, as text, of which entries the first `rows` rows of a training dataset are made of, in order.

    Equal for two builds that serve the same first rows, such as one of more rows; another one where any row differs.
    """
    if not 0 <= rows <= len(dataset):
        raise ValueError(f"the digest of {rows} rows of {len(dataset)}")
    digest, sources, number = xxhash.xxh3_128(), sources_of(dataset), {}
    counts, table = np.zeros(len(sources), np.int64), np.zeros(len(sources), np.int16)
    for index, here in _sources_of_rows(dataset, 0, rows):
        # Sources are numbered in the order in which they come: one that has no row yet makes no difference.
        new = [i for i in np.flatnonzero(here).tolist() if i not in number]
        for i in sorted(new, key=lambda i: np.argmax(index == i)):
            table[i] = number[i] = len(number)
        digest.update(table[index].data)
        counts += here
    for i in number:  # of each, a blend takes the rows in order, from the first on
        source, count = sources[i], int(counts[i])
        about = type(source).__name__, source.config.sequence_length, source.config.contents[source.dataset_path], count
        digest.update(repr(about).encode("utf-8"))
        source.add_to_digest(digest, count)
    return digest.hexdigest()


def rows_per_source(dataset, rows, start=0):
    """{prefix: how many of the rows from `start` to `rows` of a training dataset are of it}."""
    sources = sources_of(dataset)
    counts = dict.fromkeys((source.dataset_path for source in sources), 0)
    for _, here in _sources_of_rows(dataset, start, rows):
        for source, n in zip(sources, here.tolist(), strict=True):
            counts[source.dataset_path] += n
    return counts


def sources_of(dataset):
    """The datasets of a blend, or the one there is."""
    return dataset.datasets if isinstance(dataset, BlendedDataset) else [dataset]


def _sources_of_rows(dataset, start, stop):
    """Yield, for chunk after chunk of the rows, (the number of the source of each, the rows of each source)."""
    for at in range(start, stop, _CHUNK):
        end = min(at + _CHUNK, stop)
        index = dataset.dataset_index[at:end] if isinstance(dataset, BlendedDataset) else np.zeros(end - at, np.int16)
        yield index, np.bincount(index, minlength=len(sources_of(dataset)))


def data_prefixes(args):
    """The prefixes of all datasets of a run, without their weights."""
    return [
        prefix for path in (args.data_path, args.valid_data_path) if path for prefix in get_blend_from_list(path)[0]
    ]


def check_data(prefixes, vocab_size, cache=None):
    """The manifests of datasets that can be trained on together, or InputError. `cache`, a folder, is where it is
    remembered which files were read and found to be what their manifests say."""
    verified = Verified(Path(cache) / "verified.json") if cache else None
    manifests = [read_manifest(prefix, verified=verified) for prefix in prefixes]
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
