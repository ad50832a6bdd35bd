"""Whole entries into rows, with little padding: what --packing inside reads."""

import numpy as np


def pack(sizes, room, generator):
    """Fill rows of `room` places with entries, each once, none cut.

    A row begins with the first entry that is left, and takes the longest one that fits into the rest, and again, until
    none does. The last rows, of entries for which nothing was left, are mixed with the others.

    Args:
        sizes: integer array, the places that each entry takes, none more than `room`.
        generator: a numpy Generator, for the order of the rows.

    Returns (the numbers of the entries row after row, the start of each row in them), int64 arrays.
    """
    left = {}  # {size: entries of this size, the first last}
    for entry in range(len(sizes) - 1, -1, -1):
        left.setdefault(int(sizes[entry]), []).append(entry)
    available = sum(1 << size for size in left)  # a bit for each size of which there is an entry
    fitting = [(2 << rest) - 1 for rest in range(room + 1)]
    taken, rows = bytearray(len(sizes)), []
    for first, size in enumerate(sizes.tolist()):
        if taken[first]:
            continue
        row, rest = [], room
        while size >= 0:
            entries = left[size]
            entry = entries.pop()
            if not entries:
                available ^= 1 << size
            taken[entry] = 1
            row.append(entry)
            rest -= size
            size = (available & fitting[rest]).bit_length() - 1  # -1: none fits
        rows.append(row)
    rows = [rows[i] for i in generator.permutation(len(rows))]
    ends = np.cumsum([len(row) for row in rows])
    return np.array([entry for row in rows for entry in row], np.int64), np.concatenate([[0], ends[:-1]])
