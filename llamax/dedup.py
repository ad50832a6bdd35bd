"""Duplicates of a corpus, found on disk: exact ones by a key, near ones by MinHash.

Keys are sent to files by their leading bits, so that equal ones meet in one file, small enough to be sorted in memory.
Of equal records the first in the order of the corpus stays. Memory does not depend on the size of the corpus.
"""

import hashlib

import numpy as np

from llamax.files import extra, naming

KEPT, DUPLICATE, NEAR_DUPLICATE = 0, 1, 2
REASONS = {DUPLICATE: "duplicate", NEAR_DUPLICATE: "near-duplicate"}
PERMUTATIONS = 128  # hash functions of a MinHash signature: the estimate's standard error is at most 0.044
SHINGLE = 5  # characters
_BUCKET = 2 << 20  # rows sorted at a time: 48 MB
_MOST_BUCKETS = 512  # files open at a time

_ROW = np.dtype([("high", np.uint64), ("low", np.uint64), ("index", np.int64)])


def record_key(*parts):
    """The 128-bit key of a record, two unsigned integers: BLAKE2b of its languages and texts."""
    digest = hashlib.blake2b("\x00".join(parts).encode("utf-8"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def mark_duplicates(chunks, earlier, fate, folder):
    """Set fate[i] = DUPLICATE for each record whose key an earlier record or an earlier dataset has.

    Args:
        chunks: arrays of keys, uint64 [records, 2], that together are those of all records in order.
        earlier: the same of datasets that were made before.
        fate: one uint8 a record.
        folder: for temporary files.
    """
    with _Buckets(folder, len(fate)) as buckets:
        for keys in earlier:
            buckets.add(keys[:, 0], keys[:, 1], np.full(len(keys), -1))
        at = 0
        for keys in chunks:
            # What a chunk repeats is not spilled: a line that a corpus has a million times must not fill a bucket.
            order = np.lexsort((keys[:, 1], keys[:, 0]))
            again = order[1:][(keys[order[1:]] == keys[order[:-1]]).all(axis=1)]
            fate[at + again] = DUPLICATE
            index = np.delete(np.arange(len(keys)), again)
            buckets.add(keys[index, 0], keys[index, 1], at + index)
            at += len(keys)
        for rows, first in buckets.sorted():
            found = rows["index"][~first]
            fate[found[found >= 0]] = DUPLICATE


def mark_near_duplicates(signatures, groups, threshold, fate, folder):
    """Set fate[i] = NEAR_DUPLICATE for each record that resembles an earlier one of its group.

    Two records are compared if one of the bands of their signatures is equal (locality-sensitive hashing); they count
    as near-duplicates if the share of equal hash values, an estimate of the Jaccard similarity of their sets of
    character 5-grams, is at least `threshold`. A record is compared with the first and with the next earlier one of
    those that share a band with it.

    Args:
        signatures: [records, PERMUTATIONS], in order, may be mapped from disk through `Signatures`.
        groups: function of a slice of records that gives an integer for the language (pair) of each.
        fate: one uint8 a record; records that have one already take no part.
    """
    bands, rows_a_band = _bands(threshold)
    for band in range(bands):
        with _Buckets(folder, len(fate)) as buckets:
            for at, block in signatures.blocks():
                here = slice(at, at + len(block))
                values = block[:, band * rows_a_band : (band + 1) * rows_a_band].astype(np.uint64)
                high = _mix(values, np.asarray(groups(here), np.uint64))
                wanted = fate[here] == KEPT
                index = np.arange(at, at + len(block))[wanted]
                buckets.add(high[wanted], np.zeros(len(index), np.uint64), index)
            for rows, first in buckets.sorted():
                index = rows["index"]
                leader = index[np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))]
                for one, other in ((leader, index), (np.roll(index, 1), index)):
                    one, other = one[~first], other[~first]
                    similar = signatures.similarity(one, other) >= threshold
                    fate[other[similar]] = NEAR_DUPLICATE


def _bands(threshold):
    """(bands, rows a band): datasketch's choice for the threshold, which rather compares too many than too few."""
    index = extra("datasketch", "--near-dedup").MinHashLSH(
        threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9)
    )
    return index.b, index.r


def _mix(values, groups):
    """One well-mixed uint64 for each row of uint64 values and its group (splitmix64's finaliser, chained)."""
    state = groups * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    for column in values.T:
        state = (state ^ column) * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(27)
        state *= np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


class _Buckets:
    """Rows of (high, low, index), spilled to files by their leading bits and given back file by file, sorted."""

    def __init__(self, folder, rows):
        self.count = min(_MOST_BUCKETS, max(1, -(-rows // _BUCKET)))
        self.paths = [folder / f"bucket-{i}" for i in range(self.count)]

    def __enter__(self):
        self.files = [open(path, "wb") for path in self.paths]
        return self

    def __exit__(self, *_):
        for file, path in zip(self.files, self.paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)

    def add(self, high, low, index):
        rows = np.empty(len(index), _ROW)
        rows["high"], rows["low"], rows["index"] = high, low, index
        bucket = ((high >> np.uint64(32)) * np.uint64(self.count)) >> np.uint64(32)
        rows = rows[np.argsort(bucket, kind="stable")]
        ends = np.cumsum(np.bincount(bucket.astype(np.int64), minlength=self.count))
        for i, end in enumerate(ends.tolist()):
            start = int(ends[i - 1]) if i else 0
            if end > start:
                with naming(self.paths[i]):
                    self.files[i].write(rows[start:end].data)

    def sorted(self):
        """Yield (rows sorted by key and, within a key, in the order added; whether each is the first of its key)."""
        for file, path in zip(self.files, self.paths, strict=True):
            with naming(path):
                file.flush()
            rows = np.fromfile(path, _ROW)
            rows = rows[np.lexsort((rows["low"], rows["high"]))]
            same = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
            yield rows, np.concatenate([np.ones(min(1, len(rows)), bool), ~same])


class Signatures:
    """The signatures of a corpus, in one file a shard."""

    def __init__(self, paths, counts):
        shape = [(n, PERMUTATIONS) for n in counts]
        self.parts = [
            np.memmap(path, np.uint16, "r", shape=s) if s[0] else np.zeros(s, np.uint16)
            for path, s in zip(paths, shape, strict=True)
        ]
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def blocks(self, rows=1 << 16):
        """Yield (number of the first record, signatures)."""
        for start, part in zip(self.starts.tolist(), self.parts, strict=False):
            for at in range(0, len(part), rows):
                yield start + at, np.array(part[at : at + rows])

    def similarity(self, one, other, rows=1 << 14):
        """The shares of hash values that two arrays of records have in common."""
        out = np.zeros(len(one))
        for at in range(0, len(one), rows):
            a, b = (self.take(index[at : at + rows]) for index in (one, other))
            out[at : at + rows] = (a == b).mean(axis=1)
        return out

    def take(self, index):
        """The signatures of some records."""
        out = np.empty((len(index), PERMUTATIONS), np.uint16)
        part = np.searchsorted(self.starts, index, side="right") - 1
        for i in np.unique(part).tolist():
            out[part == i] = self.parts[i][index[part == i] - self.starts[i]]
        return out


class Signer:
    """Makes MinHash signatures. Two bytes of each hash value are kept: by chance one in 65,536 is equal."""

    def __init__(self):
        self.empty = extra("datasketch", "--near-dedup").MinHash(
            num_perm=PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32"
        )

    def signatures(self, texts):
        """uint16 [texts, PERMUTATIONS] of the sets of SHINGLE-grams of the texts' characters, lower-cased, with runs
        of white space as one space."""
        out = np.empty((len(texts), PERMUTATIONS), np.uint16)
        for i, text in enumerate(texts):
            characters = np.frombuffer(" ".join(text.lower().split()).encode("utf-32-le"), np.uint32).astype(np.uint64)
            if len(characters) < SHINGLE:
                characters = np.pad(characters, (0, SHINGLE - len(characters)))
            grams = np.lib.stride_tricks.sliding_window_view(characters, SHINGLE)
            hashes = np.unique(_mix(grams, np.zeros(len(grams), np.uint64)) >> np.uint64(32))
            minhash = self.empty.copy()
            minhash.update_batch(hashes.tolist())
            out[i] = minhash.hashvalues.astype(np.uint16)
        return out
