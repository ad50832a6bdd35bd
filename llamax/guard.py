"""Which steps of training are to be skipped: those with a loss or gradient that is not finite, and spikes."""

import math
from collections import deque
from statistics import median

WINDOW = 128  # accepted steps whose median a spike is measured against
ENOUGH = 32  # of them, before there is a median to speak of


class Guard:
    """Judges each step before its update. The same numbers on every rank give the same verdict on every rank.

    Args:
        loss_spike_factor, grad_spike_factor: a loss, or gradient norm, of more than so many times the median is a
            spike; 0: none is.
    """

    def __init__(self, loss_spike_factor, grad_spike_factor):
        self.factors = loss_spike_factor, grad_spike_factor
        self.recent = deque(maxlen=WINDOW)  # (loss, gradient norm) of accepted steps
        self.skipped = self.in_a_row = 0

    def judge(self, loss, grad_norm):
        """Why the step must be skipped, or None; counts it."""
        reason = self._reason(loss, grad_norm)
        if reason is None:
            self.recent.append((loss, grad_norm))
            self.in_a_row = 0
        else:
            self.skipped += 1
            self.in_a_row += 1
        return reason

    def _reason(self, loss, grad_norm):
        values = {"loss": loss, "gradient norm": grad_norm}
        for name, value in values.items():
            if not math.isfinite(value):
                return f"{name} is {value}"
        if len(self.recent) >= ENOUGH:
            for name, factor, recent in zip(values, self.factors, zip(*self.recent, strict=True), strict=True):
                usual = median(recent)
                if factor and values[name] > factor * usual:
                    return f"{name} {values[name]:.4g} is more than {factor:g} times the usual {usual:.4g}"
        return None

    def state_dict(self):
        return {"recent": list(self.recent), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state):
        self.recent.extend(tuple(pair) for pair in state["recent"])
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
