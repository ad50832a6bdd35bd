"""How many n-grams lines share with their references, counted for all lines at once.

This is what BLEU and chrF are computed from: an n-gram of a line counts as often as it is there, but not more often
than in the same line of a reference. A text is given as (symbols, lengths): the numbers of its tokens or characters,
line after line, int64 [symbols], each from 0 to 2**31 - 1, or -1 for one that no reference has; and how many of them
each line has, int64 [lines].

The n-grams of each line of the references are numbered, each order from 0: these are nodes. An n-gram is found by the
nodes of its first n - 1 and its last n - 1 symbols, a single symbol by its line and itself, all of a text at once. So
one node is one n-gram of one line, without exception, and what the references' line has not is soon given up.
"""

import numpy as np

EMPTY, SHARED = -1, -2


class Ngrams:
    """The n-grams of 1 to `orders` symbols of references, [(symbols, lengths)] with the same number of lines."""

    def __init__(self, references, orders):
        self.lines = len(references[0][1])
        rows, places = _places(np.concatenate([lengths for _, lengths in references]))
        reference, line = np.divmod(rows, self.lines)
        first, second, firsts = line, np.concatenate([symbols for symbols, _ in references]), self.lines
        self.levels = []
        for _ in range(orders):
            pairs, nodes = np.unique(_pair(first, second), return_inverse=True)
            size = len(pairs)
            counts = np.bincount(nodes * len(references) + reference, minlength=size * len(references))
            line_of = np.empty(size, np.int64)
            line_of[nodes] = line
            most = counts.reshape(size, len(references)).max(axis=1)
            bounds = np.searchsorted(line_of, np.arange(self.lines + 1))  # nodes go line by line
            self.levels.append((_Level(pairs, firsts), most, bounds))

            before = _followed(places)
            first, second, firsts = nodes[before], nodes[before + 1], size
            places, line, reference = places[before], line[before], reference[before]

    def matches(self, symbols, lengths):
        """How many n-grams of each line and order are in its references, int64 [lines, orders]: each at most as often
        as in the reference that has it most often."""
        found = np.empty((self.lines, len(self.levels)), np.int64)
        (first, places), second = _places(lengths), symbols
        for order, (level, most, bounds) in enumerate(self.levels):
            known, nodes = level.find(first, second)
            matched = np.minimum(np.bincount(nodes, minlength=len(most)), most)
            found[:, order] = np.diff(np.append(0, matched.cumsum())[bounds])
            places = places[known]
            before = _followed(places)
            first, second, places = nodes[before], nodes[before + 1], places[before]
        return found


class _Level:
    """Finds the nodes of one order by pairs (first, second): a line and a symbol, or two nodes of the order below.

    The table has 2**bits slots for each first, and a node in the slot that the last bits of its second say: what has
    the same first is close together, and mostly in order. Where two pairs meet in a slot, bisection tells them apart.
    """

    def __init__(self, pairs, firsts):
        """pairs: int64, sorted, as _pair makes them; a pair's node is its index. firsts: how many firsts there are."""
        nodes = np.arange(len(pairs))
        first, second = pairs >> 32, pairs & 0xFFFFFFFF
        self.bits = (2 * len(pairs) // max(1, firsts)).bit_length()  # at most half of the slots are taken
        self.second = np.append(second, [-2, -2])  # at the indices EMPTY and SHARED stands what no second is
        slots = self._slots(first, second)
        self.table = np.full(firsts << self.bits, EMPTY, np.int32)
        self.table[slots] = nodes
        self.table[slots[self.table[slots] != nodes]] = SHARED
        self.shared_nodes = np.flatnonzero(self.table[slots] == SHARED)
        self.shared_pairs = pairs[self.shared_nodes]

    def find(self, first, second):
        """(indices of the pairs that are nodes, those nodes), both int64."""
        nodes = self.table[self._slots(first, second)]
        known = self.second[nodes] == second
        shared = np.flatnonzero(nodes == SHARED)
        if len(shared):
            pairs = _pair(first[shared], second[shared])
            index = np.minimum(np.searchsorted(self.shared_pairs, pairs), len(self.shared_pairs) - 1)
            nodes[shared] = self.shared_nodes[index]
            known[shared] = self.shared_pairs[index] == pairs
        known = np.flatnonzero(known)
        return known, nodes[known].astype(np.int64)

    def _slots(self, first, second):
        return first << self.bits | second & ((1 << self.bits) - 1)


def totals(lengths, orders):
    """How many n-grams of 1 to `orders` symbols lines of these lengths have: int64 [lines, orders]."""
    return np.maximum(lengths[:, None] - np.arange(orders), 0)


def _pair(first, second):
    return first << 32 | second


def _places(lengths):
    """(each symbol's line, its place): places grow by one from symbol to symbol, and by two from line to line."""
    lines = np.repeat(np.arange(len(lengths)), lengths)
    return lines, np.arange(len(lines)) + lines


def _followed(places):
    """The indices of those places that the next one follows directly."""
    return np.flatnonzero(places[1:] == places[:-1] + 1)
