"""What tests of training runs share: a short run's command line, its losses and weights, its processes."""

import json
import signal
import socket
import subprocess
import sys
import time

from conftest import ENVIRONMENT, ROOT, stage
from safetensors.numpy import load_file

LAYOUTS = {"TP1PP1": (1, 1, 1), "TP2PP1": (2, 1, 2), "TP1PP2": (1, 2, 2), "TP2PP2": (2, 2, 4), "DP2": (1, 1, 2)}


def command(hf, data, save, *options, steps=6):
    """The command line of a run that resumes itself: 8 rows a step, held-out losses at the beginning and the end."""
    return ["pretrain_llamax.py", "--hf-model", hf, "--data-path", *data, "--split", "90,10,0", "--save", save,
            "--load", save, "--seq-length", 32, "--packing", "inside", "--micro-batch-size", 2,
            "--global-batch-size", 8, "--train-iters", steps, "--lr", 1e-3, "--eval-interval", steps,
            "--eval-iters", 1, *options]  # fmt: skip


def layout_options(name, distributed):
    tensor, pipeline, _ = LAYOUTS[name]
    options = ["--tensor-model-parallel-size", tensor, "--pipeline-model-parallel-size", pipeline]
    return options + ["--use-distributed-optimizer"] * distributed


def rows(save):
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (save / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(save):
    """{(step, which): loss}; every step stands there once."""
    found = [((row["iteration"], key), row[key]) for row in rows(save) for key in ("loss", "valid_loss") if key in row]
    assert len(dict(found)) == len(found)
    return dict(found)


def difference(a, b):
    assert a.keys() == b.keys()
    return max(abs(a[key] - b[key]) for key in a)


def weights(hf, save):
    """{name: array}: the weights of a run's newest checkpoint, exported."""
    stage("convert_hf.py", "to-hf", "--load", save, "--hf-model", hf, "--save", save / "hf", "--dtype", "float32")
    return load_file(save / "hf" / "model.safetensors")


def tensors(folder):
    """{file: digest} of the tensors of a checkpoint: weights and optimizer state."""
    files = json.loads((folder / "complete.json").read_text(encoding="utf-8"))["files"]
    return {name: digest for name, (_, digest) in files.items() if name.endswith(".distcp")}


class Processes:
    """The ranks of a run, each a process started here, so that a test can send signals to any of them."""

    def __init__(self, command, ranks, script=None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        common = {**ENVIRONMENT, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        line = [sys.executable, str(script or ROOT / command[0]), *map(str, command[1:])]
        self.all = [
            subprocess.Popen(line, cwd=ROOT, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for rank in range(ranks)
        ]  # fmt: skip

    def until(self, condition, seconds=120):
        """Wait until condition() is true or a rank has ended; whether it is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and all(process.poll() is None for process in self.all):
            if condition():
                return True
            time.sleep(0.01)
        return condition()

    def send(self, number, rank):
        self.all[rank].send_signal(number)

    def end(self, seconds=120):
        """[(exit status, stdout, stderr)] of the ranks; those that do not end by themselves are killed."""
        deadline = time.monotonic() + seconds
        results = []
        for process in self.all:
            try:
                out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                out, err = process.communicate()
            results.append((process.returncode, out, err))
        return results
