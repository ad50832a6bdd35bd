"""Joining shards to one dataset, and datasets to one, in bounded memory.

What depends on the whole corpus is decided here: which records are duplicates, which language pairs are so small that
they are repeated, which records are held out. Everything is streamed; what has to be known of each record (one byte)
lies in a file.
"""

import collections
import json
import os
import shutil
from pathlib import Path

import numpy as np

from llamax import dedup
from llamax.files import InputError, naming, read_json, replacing, scratch_folder
from llamax.indexed import TAG, already_done, mapped_index, read_manifest, remove_left_over, tag_names, writing_dataset
from llamax.records import judge
from llamax.shard_files import (
    ROWS,
    TOKENS,
    Shard,
    has_loss,
    language_pair,
    load_shards,
    mapped,
    read_keys,
    tag_numbers,
    tags_of,
)
from llamax.sources import add_fingerprints
from llamax.tokenizer import Tokenizer, encode_entries, load_tokenizer

_COPY_BYTES = 8 << 20


def already_merged(prefixes, output_prefix):
    """True if `output_prefix` is complete and holds these shards or datasets; an InputError if it holds others."""
    if not Path(f"{output_prefix}.json").exists():
        return False
    manifests = [read_json(f"{prefix}.json", "--input") for prefix in prefixes]
    if "shard" in manifests[0]:
        return already_done(output_prefix, *_origin([manifest for _, manifest in load_shards(prefixes)]))
    return already_done(output_prefix, *_origin_of_datasets(prefixes, manifests))


def _origin(manifests):
    """(arguments, sources) of the dataset that shards are merged to."""
    arguments = {key: value for key, value in manifests[0]["arguments"].items() if key != "corpus"}
    return arguments, add_fingerprints([row for manifest in manifests for row in manifest["sources"]])


def _origin_of_datasets(prefixes, manifests):
    sources = [
        {"path": prefix, "size": manifest["bin_bytes"], "xxh3_128": manifest["xxh3_128"]}
        for prefix, manifest in zip(prefixes, manifests, strict=True)
    ]
    return {"tokenizer": manifests[0]["arguments"]["tokenizer"]}, sources


def merge_shards(prefixes, output_prefix, tokenizer, max_reject_rate):
    """Join the shards of one dataset; returns its manifest.

    `tokenizer` is the one the shards were made with, or a path to it, or None: where they found it. It is needed only
    where pairs are repeated.
    """
    shards = [Shard(prefix, manifest) for prefix, manifest in load_shards(prefixes)]
    arguments = shards[0].manifest["arguments"]
    manifests = [shard.manifest for shard in shards]
    reasons, rejected, test_sets = (_summed(manifests, key) for key in ("rejects", "rejected", "test_sets"))
    read = sum(shard.manifest["read"] for shard in shards)
    with scratch_folder(f"{output_prefix}.merge") as folder:
        fate = _scratch(folder / "fate", np.uint8, sum(shard.count for shard in shards))
        _mark_duplicates(shards, arguments, fate, folder)
        pairs = _count_pairs(shards, fate)
        with replacing(f"{output_prefix}.rejects.jsonl") as path:
            _write_rejects(path, shards, fate, reasons, rejected)
        if not reasons:
            Path(f"{output_prefix}.rejects.jsonl").unlink()
        judge(f"{output_prefix}.rejects.jsonl", reasons, read, max_reject_rate)
        small = {pair for pair, n in pairs.items() if n < arguments.get("repeat_below", 0)}
        copies = dict.fromkeys(small, arguments.get("repeat"))
        of_dataset, sources = _origin(manifests)
        common = {
            "kind": shards[0].manifest["kind"],
            "arguments": of_dataset,
            "sources": sources,
            "bytes_read": sum(shard.manifest["bytes_read"] for shard in shards),
            "rejects": dict(reasons),
            "rejected": dict(sorted(rejected.items())),
            "test_sets": dict(sorted(test_sets.items())),
            "repeated": sorted(small),
        }
        held_out = arguments["valid_fraction"]
        if len(shards) == 1 and not copies and not held_out and not fate.any():
            return _adopt(shards[0], output_prefix, common)
        if held_out:
            _write(shards, f"{output_prefix}_valid", fate, copies, tokenizer, common, _held_out(held_out, True))
        return _write(shards, output_prefix, fate, copies, tokenizer, common, _held_out(held_out, False))


def _scratch(path, dtype, n):
    """A new array of zeros in a file. Its space is reserved: a mapped file on a full disk would kill the process."""
    if n == 0:
        return np.zeros(0, dtype)
    with naming(path), open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, n * np.dtype(dtype).itemsize)
    return np.memmap(path, dtype, "r+", shape=(n,))


def _summed(manifests, key):
    """The counts that manifests have under a key, added."""
    return sum((collections.Counter(manifest.get(key, {})) for manifest in manifests), collections.Counter())


def _mark_duplicates(shards, arguments, fate, folder):
    if arguments["dedup"]:
        keys = (records["key"] for shard in shards for records in shard.records(1 << 20))
        earlier = (keys for prefix, _ in arguments["dedup_against"] for keys in read_keys(prefix))
        dedup.mark_duplicates(keys, earlier, fate, folder)
    if arguments["near_dedup"]:
        numbers = collections.defaultdict(lambda: len(numbers))
        groups = _scratch(folder / "groups", np.uint32, len(fate))
        at = 0
        for shard in shards:
            local = np.array([numbers[language_pair(group)] for group in shard.groups], np.uint32)
            for records in shard.records():
                groups[at : at + len(records)] = local[records["group"]]
                at += len(records)
        signatures = dedup.Signatures(
            [f"{shard.prefix}.signatures" for shard in shards], [shard.count for shard in shards]
        )
        dedup.mark_near_duplicates(signatures, groups.__getitem__, arguments["near_dedup"], fate, folder)


def _with_fate(shards, fate):
    """Yield (shard, records, their fates), in order."""
    at = 0
    for shard in shards:
        for records in shard.records():
            yield shard, records, fate[at : at + len(records)]
            at += len(records)


def _count_pairs(shards, fate):
    """{language pair: records that stay}."""
    counts = collections.Counter()
    for shard, records, fates in _with_fate(shards, fate):
        found = np.bincount(records["group"][fates == dedup.KEPT], minlength=len(shard.groups))
        for group, n in zip(shard.groups, found.tolist(), strict=True):
            counts[language_pair(group)] += n
    return counts


def _write_rejects(path, shards, fate, reasons, rejected):
    """The rejects of all shards, then the duplicates, which are added to the counts."""
    with open(path, "wb") as file:
        for shard in shards:
            source = Path(f"{shard.prefix}.rejects.jsonl")
            if source.exists():
                with naming(path), open(source, "rb") as part:
                    shutil.copyfileobj(part, file, _COPY_BYTES)
        for shard, records, fates in _with_fate(shards, fate):
            for i in np.flatnonzero(fates != dedup.KEPT).tolist():
                reason = dedup.REASONS[int(fates[i])]
                reasons[reason] += 1
                rejected[language_pair(shard.groups[records["group"][i]])] += 1
                file_name = shard.manifest["paths"][str(records["source"][i])]
                row = {"file": file_name, "line": int(records["line"][i]), "reason": reason, "detail": ""}
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))


def _held_out(fraction, wanted):
    """A function of keys that says which records belong to the held-out (or the training) data."""

    def chosen(keys):
        return ((keys[:, 0] >> np.uint64(11)) < fraction * 2**53) == wanted

    return chosen


class _Counts:
    """What a manifest says of the records of a dataset."""

    def __init__(self, kind):
        self.parallel = kind == "parallel"
        self.groups = collections.defaultdict(lambda: {"records": 0, "tokens": 0, "words": 0})
        self.directions = collections.Counter()

    def manifest(self):
        languages = {lang for group in self.groups for lang in group.split("-")}
        found = {"languages": sorted(languages), "counts": dict(sorted(self.groups.items()))}
        return found | ({"directions": dict(sorted(self.directions.items()))} if self.parallel else {})


def _write(shards, output_prefix, fate, copies, tokenizer, common, chosen):
    """Write one dataset of the records that stay and are chosen by their keys; returns its manifest."""
    first = shards[0].manifest
    arguments, per_record = first["arguments"], first["kind"] == "mono"
    keys = ["keys"] if arguments["dedup"] else []
    counts = _Counts(first["kind"])
    with writing_dataset(output_prefix, arguments["tokenizer"]["vocab_size"], keys) as (writer, manifest):
        at = 0
        for shard in shards:
            times = np.array([copies.get(language_pair(group), 1) for group in shard.groups], np.int64)
            tags = tags_of(first["kind"], shard.groups)
            for records, lengths, ids, loss in shard.blocks():
                wanted = (fate[at : at + len(records)] == dedup.KEPT) & chosen(records["key"])
                at += len(records)
                copied = _Copies(records, lengths, np.where(wanted, times[records["group"]], 0))
                if copied.needs_encoding():
                    tokenizer = _loaded(tokenizer, first)
                    ids, loss = copied.encode_swapped(ids, loss, tokenizer, arguments["block_size"])
                copied.write(writer, ids, loss, per_record, tags)
                if keys:
                    writer.add_also("keys", np.ascontiguousarray(records["key"][wanted]).data)
                copied.count(shard.groups, counts)
        manifest.update(common, **counts.manifest())
    return manifest


def _loaded(tokenizer, manifest):
    """The tokenizer of a shard, from a path or from where the shard found it."""
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    tokenizer = load_tokenizer(tokenizer or manifest["tokenizer_path"])
    expected = manifest["arguments"]["tokenizer"]
    if tokenizer.fingerprint != expected["blake2b"]:
        raise InputError(
            f"--tokenizer-model {tokenizer.path}: BLAKE2b {tokenizer.fingerprint}, the shards were made with "
            f"{expected['blake2b']} ({expected['file']}); give that one"
        )
    return tokenizer


def _adopt(shard, output_prefix, common):
    """Make a single shard of which all stays the dataset: its files are linked, or copied where they cannot be."""
    counts = _Counts(shard.manifest["kind"])
    for records, lengths, _, _ in shard.blocks():
        _Copies(records, lengths, np.ones(len(records), np.int64)).count(shard.groups, counts)
    files = shard.manifest["files"]
    names = [".bin", *files, *([".keys"] if shard.manifest["arguments"]["dedup"] else [])]
    of_dataset = (
        "format",
        "documents",
        "sequences",
        "tokens",
        "loss_tokens",
        "dtype",
        "bin_bytes",
        "xxh3_128",
        "files",
        "tags",
        "versions",
    )
    manifest = common | counts.manifest() | {key: shard.manifest[key] for key in of_dataset}
    finals = [f"{output_prefix}{name}" for name in (*names, ".json")]
    with replacing(*finals) as partial:
        for name, path in zip(names, partial, strict=False):
            if name == ".keys":
                with open(path, "wb") as file:
                    for records in shard.records():
                        file.write(np.ascontiguousarray(records["key"]).data)
                continue
            try:
                os.link(f"{shard.prefix}{name}", path)
            except OSError:
                shutil.copyfile(f"{shard.prefix}{name}", path)
        remove_left_over(output_prefix, files)
        partial[-1].write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return manifest


class _Copies:
    """The copies of a block of records that go to a dataset: `record` numbers the record of each, `copy` the copy."""

    def __init__(self, records, lengths, times):
        self.records, self.lengths = records, lengths
        self.sequence_starts = np.cumsum(records["sequences"], dtype=np.int64) - records["sequences"]
        self.token_starts = np.cumsum(lengths, dtype=np.int64) - lengths
        self.whole = bool((times == 1).all())
        self.record = np.repeat(np.arange(len(records)), times)
        self.copy = np.arange(len(self.record)) - np.repeat(np.cumsum(times) - times, times)
        flips = records["flips"][self.record]
        self.swapped = ((flips >> self.copy.astype(np.uint8)) ^ flips) & 1 == 1  # against the copy that is there
        # The sequences of the copies: which they are, later where their tokens are.
        self.sequence_counts = records["sequences"][self.record].astype(np.int64)
        self.sequence = _spans(self.sequence_starts[self.record], self.sequence_counts)
        self.starts, self.sizes = self.token_starts[self.sequence], lengths[self.sequence]

    def needs_encoding(self):
        return bool(self.swapped.any())

    def encode_swapped(self, ids, loss, tokenizer, block_size):
        """Encode the copies whose sides are swapped; returns (ids, loss) with theirs at the end.

        The ids are the text: decoded and cut after the side that comes first, they give both sides. A copy that has
        become longer than `block_size` keeps the direction that fits. Only connected pairs, which are one sequence
        each, come in copies that differ.
        """
        chosen = np.flatnonzero(self.swapped)
        texts = []
        for i in chosen.tolist():
            text = tokenizer.decode_text(ids[self.starts[i] + 1 : self.starts[i] + self.sizes[i] - 1])
            cut = int(self.records["first_chars"][self.record[i]])
            texts.append(f"{text[cut + 1 :]} {text[:cut]}")
        entries, sizes = encode_entries(texts, tokenizer)
        ends = np.cumsum(sizes)
        fits = sizes <= block_size
        self.swapped[chosen[~fits]] = False
        self.starts[chosen[fits]] = len(ids) + (ends - sizes)[fits]
        self.sizes[chosen[fits]] = sizes[fits]
        self.whole = False
        loss = None if loss is None else np.concatenate([loss, np.ones(len(entries), np.uint8)])
        return np.concatenate([ids, entries]), loss

    def write(self, writer, ids, loss, per_record, tags):
        if not self.whole:
            index = _spans(self.starts, self.sizes)
            ids, loss = ids[index], None if loss is None else loss[index]
        documents = self.sequence_counts if per_record else np.ones(len(self.sizes), np.int64)
        numbers = np.repeat(tag_numbers(self.records)[self.record], self.sequence_counts)
        writer.add(ids, self.sizes, documents, loss, (tags, numbers))

    def count(self, groups, counts):
        """Add the records, their tokens and words, and the entries of each direction to _Counts."""
        if not len(self.record):
            return
        group = self.records["group"][self.record]
        first = self.copy == 0
        ends = np.cumsum(self.sequence_counts)
        tokens = np.add.reduceat(self.sizes.astype(np.int64), ends - self.sequence_counts)
        words = np.where(first, self.records["words"][self.record], 0)
        sums = [np.bincount(group, weights, len(groups)).astype(np.int64) for weights in (first, tokens, words)]
        for i in np.unique(group).tolist():
            found = counts.groups[language_pair(groups[i])]
            for name, column in zip(("records", "tokens", "words"), sums, strict=True):
                found[name] += int(column[i])
        if counts.parallel:
            flipped = self.swapped ^ (self.records["flips"][self.record] & 1 == 1)
            for flip in (False, True):
                found = np.bincount(group[flipped == flip], minlength=len(groups))
                for i in np.flatnonzero(found).tolist():
                    sides = groups[i].split("-")
                    counts.directions["-".join(sides[::-1] if flip else sides)] += int(found[i])


def _spans(starts, sizes):
    """The indices of spans one after the other: [3, 10], [2, 3] gives 3, 4, 10, 11, 12."""
    ends = np.cumsum(sizes, dtype=np.int64)
    return np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)


def merge_datasets(prefixes, output_prefix):
    """Join complete datasets of one tokenizer, one after the other; returns the manifest."""
    manifests = [read_manifest(prefix, "--input") for prefix in prefixes]
    first = manifests[0]
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        if manifest["arguments"]["tokenizer"]["blake2b"] != first["arguments"]["tokenizer"]["blake2b"]:
            raise InputError(f"--input {prefix}: another tokenizer than that of {prefixes[0]}; datasets of one only")
    arguments, sources = _origin_of_datasets(prefixes, manifests)
    kinds = {manifest["kind"] for manifest in manifests}
    keys = ["keys"] if all(Path(f"{prefix}.keys").is_file() for prefix in prefixes) else []
    counts = collections.defaultdict(collections.Counter)
    with writing_dataset(output_prefix, first["arguments"]["tokenizer"]["vocab_size"], keys) as (writer, merged):
        for prefix, manifest in zip(prefixes, manifests, strict=True):
            _append(writer, prefix, manifest)
            if keys:
                with open(f"{prefix}.keys", "rb") as file:
                    while data := file.read(_COPY_BYTES):
                        writer.add_also("keys", data)
            for group, found in manifest.get("counts", {}).items():
                counts[group].update(found)
        merged.update(
            kind=kinds.pop() if len(kinds) == 1 else "mixed",
            arguments=arguments,
            sources=sources,
            languages=sorted({lang for group in counts for lang in group.split("-")}),
            counts={group: dict(found) for group, found in sorted(counts.items())},
            **{key: _summed(manifests, key) for key in ("rejects", "rejected", "test_sets", "directions")},
            repeated=sorted({pair for manifest in manifests for pair in manifest.get("repeated", ())}),
        )
    return merged


def _append(writer, prefix, manifest):
    """Add a dataset's sequences and documents to a writer, a few million tokens at a time."""
    lengths, documents = mapped_index(prefix, manifest["sequences"], manifest["documents"])
    ids = mapped(f"{prefix}.bin", manifest["dtype"])
    loss = mapped(f"{prefix}_loss.bin", np.uint8) if has_loss(prefix) else None
    tags = tag_names(manifest)
    numbers = mapped(f"{prefix}.tags", TAG) if len(tags) > 1 else np.broadcast_to(TAG.type(0), len(lengths))
    token = 0
    for at in range(0, manifest["documents"], ROWS):
        ends = np.array(documents[at : at + ROWS + 1])
        starts = 0
        while starts < len(ends) - 1:
            here = np.array(lengths[ends[starts] : ends[-1]])
            tokens = np.cumsum(here, dtype=np.int64)
            document_tokens = tokens[ends[starts + 1 :] - ends[starts] - 1]
            k = max(1, int(np.searchsorted(document_tokens, TOKENS, side="right")))
            span = slice(token, token + int(document_tokens[k - 1]))
            sizes = here[: ends[starts + k] - ends[starts]]
            tagged = tags, numbers[ends[starts] : ends[starts + k]]
            writer.add(np.array(ids[span]), sizes, np.diff(ends[starts : starts + k + 1]),
                       None if loss is None else np.array(loss[span]), tagged)  # fmt: skip
            token, starts = span.stop, starts + k


def report_dataset(prefix, manifest):
    """What a stage says of the dataset it has made."""
    counts = manifest["counts"]
    records = sum(found["records"] for found in counts.values())
    if manifest["kind"] == "mono":
        made = f"{records:,} documents of {len(counts):,} languages"
    else:
        made = f"{records:,} pairs of {len(counts):,} language pairs ({len(manifest['repeated']):,} repeated)"
    rejects = ", ".join(f"{reason} {n:,}" for reason, n in sorted(manifest["rejects"].items())) or "none"
    return (
        f"{prefix}: {made}, {manifest['sequences']:,} entries, {manifest['tokens']:,} tokens, "
        f"{manifest['loss_tokens']:,} with loss; rejects: {rejects}"
    )
