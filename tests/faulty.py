"""pretrain_llamax.py with a fault at one place of one rank: FAULT="KIND RANK FIRST LAST", steps FIRST to LAST.

nan        the losses of its micro-batches are NaN
gradient   their gradients are, the losses are not
term       it is sent SIGTERM          validating   the same, while the held-out loss after step FIRST is computed
hang       it stands still
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pretrain_llamax as script
from llamax.files import run

kind, *numbers = os.environ["FAULT"].split()
faulty_rank, first, last = map(int, numbers)
mine = int(os.environ.get("RANK", 0)) == faulty_rank
original_step, original_forward, original_evaluate = script.train_step, script.forward_step, script.evaluate
state = {"step": None}


def train_step(model, optimizer, scheduler, iterator, guard, args):
    step = state["step"] = scheduler.num_steps + 1
    if mine and first <= step <= last:
        if kind == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "hang":
            time.sleep(3600)
    return original_step(model, optimizer, scheduler, iterator, guard, args)


def forward_step(iterator, model):
    losses, function = original_forward(iterator, model)
    if mine and model.training and first <= state["step"] <= last:
        if kind == "nan":
            losses = losses * float("nan")
        if kind == "gradient":
            losses.register_hook(lambda gradient: gradient * float("nan"))
    return losses, function


def evaluate(model, dataset, groups, args, interrupted):
    def at_the_second_batch():
        asked.append(1)
        if kind == "validating" and mine and state["step"] == first and len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return interrupted()

    asked = []
    return original_evaluate(model, dataset, groups, args, at_the_second_batch)


script.train_step, script.forward_step, script.evaluate = train_step, forward_step, evaluate
sys.argv[0] = script.__file__
if __name__ == "__main__":
    run(script.main)
