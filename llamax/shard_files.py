"""The files of a shard: a dataset of its own and, beside it, PREFIX.records, one row for each record.

A record is a document or a sentence pair; its row holds what the decisions over the whole corpus need.
"""

from pathlib import Path

import numpy as np

from llamax.files import InputError, read_json
from llamax.indexed import mapped_index

RECORD = np.dtype(
    [
        ("key", "<u8", 2),  # hash of languages and texts; 0 where nothing asks for it
        ("line", "<u8"),  # where it stands: line (or row) of its source, from 1
        ("source", "<u4"),
        ("group", "<u4"),  # language or language pair
        ("words", "<u4"),  # of its text; characters where the script has no spaces
        ("first_chars", "<u4"),  # of a connected pair: characters of the side that comes first
        ("sequences", "<u4"),
        ("flips", "u1"),  # of a connected pair: bit k says whether copy k swaps the sides
        ("augmented", "u1"),  # 1 for a pair that augment.py made
    ]
)
ROWS = 1 << 16  # records at a time
TOKENS = 4 << 20  # and tokens


def language_pair(group):
    """Both languages of "fr-en", in one order for both directions; a language alone is itself."""
    return "-".join(sorted(group.split("-")))


def tags_of(kind, groups):
    """What the numbers of tag_numbers stand for: [(kind, language or language pair)]. Both directions of a pair have
    one tag; augmented pairs are of a kind of their own, so that their held-out loss is told apart."""
    return [(name, language_pair(group)) for group in groups for name in (kind, "augmented")]


def tag_numbers(records):
    """The number of each record's tag, the groups of the records being those of tags_of."""
    return 2 * records["group"] + records["augmented"]


class Shard:
    """A shard's files, mapped: its pages are the system's to keep or to drop."""

    def __init__(self, prefix, manifest):
        self.prefix, self.manifest = prefix, manifest
        self.count, self.groups = manifest["records"], manifest["groups"]
        sizes = {name: size for name, (size, _) in manifest["files"].items()}
        sizes |= {".bin": manifest["bin_bytes"], ".records": self.count * RECORD.itemsize}
        for name, size in sizes.items():
            path = Path(f"{prefix}{name}")
            found = path.stat().st_size if path.is_file() else "missing"
            if found != size:
                raise InputError(
                    f"--input {path}: {found}, its manifest expects {size} bytes; remove {prefix}.json and run it again"
                )

    def records(self, rows=ROWS):
        """Yield the records in order, as arrays."""
        with open(f"{self.prefix}.records", "rb") as file:
            while len(block := np.fromfile(file, RECORD, rows)):
                yield block

    def blocks(self):
        """Yield (records, lengths of their sequences, ids, loss or None), at most ROWS and about TOKENS at a time."""
        ids = mapped(f"{self.prefix}.bin", self.manifest["dtype"])
        loss = mapped(f"{self.prefix}_loss.bin", np.uint8) if has_loss(self.prefix) else None
        lengths, _ = mapped_index(self.prefix, self.manifest["sequences"], self.manifest["documents"])
        sequence, token = 0, 0
        for records in self.records():
            while len(records):
                ends = np.cumsum(records["sequences"], dtype=np.int64)
                here = np.array(lengths[sequence : sequence + ends[-1]])
                tokens = np.cumsum(here, dtype=np.int64)[ends - 1]
                n = max(1, int(np.searchsorted(tokens, TOKENS, side="right")))
                span = slice(token, token + int(tokens[n - 1]))
                yield records[:n], here[: ends[n - 1]], ids[span], None if loss is None else loss[span]
                sequence, token, records = sequence + int(ends[n - 1]), span.stop, records[n:]


def mapped(path, dtype):
    return np.memmap(path, dtype, "r") if Path(path).stat().st_size else np.zeros(0, dtype)


def has_loss(prefix):
    return Path(f"{prefix}_loss.idx").is_file()


def load_shards(prefixes):
    """[(prefix, manifest)] in order of the shards of one dataset; InputError if some are missing or of another one."""
    found = {}
    for prefix in prefixes:
        manifest = read_json(f"{prefix}.json", "--input")
        number, count = manifest["shard"]
        first = next(iter(found.values()), (prefix, manifest))
        if _identity(manifest) != _identity(first[1]):
            raise InputError(
                f"--input {prefix}: not made as {first[0]} was (other files or options); give the shards of one run"
            )
        if number in found:
            raise InputError(f"--input {prefix}: shard {number} of {count}, as is {found[number][0]}; give each once")
        manifest["arguments"] = first[1]["arguments"]  # equal, and long enough not to be kept a thousand times
        found[number] = prefix, manifest
    missing = [str(number) for number in range(count) if number not in found]
    if missing:
        some = ",".join(missing[:20]) + (",…" if len(missing) > 20 else "")
        raise InputError(
            f"--input: {len(missing)} of {count} shards missing: {some}; run them (sbatch --array={some}), or give all"
        )
    return [found[number] for number in range(count)]


def _identity(manifest):
    return manifest["kind"], manifest["shard"][1], manifest["format"], manifest["arguments"]


def read_keys(prefix):
    """Yield the keys of a dataset that was made with --dedup."""
    path = f"{prefix}.keys"
    if not Path(path).is_file():
        raise InputError(f"--dedup-against {prefix}: no {path}; give a dataset that was made with --dedup")
    with open(path, "rb") as file:
        while len(keys := np.fromfile(file, "<u8", 2 << 20)):
            yield keys.reshape(-1, 2)
