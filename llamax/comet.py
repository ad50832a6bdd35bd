"""COMET (Rei et al. 2022), by unbabel-comet in an environment of its own: it needs numpy 1 and transformers 4.

    python -m venv ~/comet
    ~/comet/bin/python -m pip install unbabel-comet==2.2.7 "setuptools<81"

COMET-22 is Unbabel/wmt22-comet-da, downloaded once (2.3 GB) with the tokenizer of xlm-roberta-large. Without a network,
a copy of its folder will do, given by its checkpoints/model.ckpt, where the Hugging Face cache has the tokenizer.
Scores are computed in fp32; the `comet-score` command now takes fp16, so that its last digits differ.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

from llamax.files import InputError, existing_file, fingerprint

WORKER = Path(__file__).with_name("comet_worker.py")
REMEDIES = {
    "import": 'cannot import comet ({error}); {python} -m pip install unbabel-comet "setuptools<81"',
    "load": "cannot load {model} ({error}); check the name and the network, or give --comet-model the "
    "checkpoints/model.ckpt of a copy",
    "score": "COMET failed ({error}); check that environment and the memory",
}


class Comet:
    """A process that has COMET loaded, on a GPU if there is one, and scores one direction after another, in a `with`.

    python: the environment's (--comet-python); model: a checkpoints/model.ckpt or a name on the hub (--comet-model).
    signature: "comet:NAME-HASH|v:VERSION", where HASH is of the checkpoint (BLAKE2b, the first 8 digits).
    """

    def __init__(self, python, model, batch_size=16):
        self.python, self.model = str(python), str(model)
        name = self.model.rpartition("/")[2]
        if name.endswith(".ckpt"):
            folder = existing_file(model, "--comet-model").absolute().parents[1]
            existing_file(folder / "hparams.yaml", f"--comet-model {model}: its settings")
            name = folder.name
        # Within a Slurm job Lightning would take this process for one of several.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [self.python, str(WORKER), self.model, str(batch_size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                encoding="utf-8",
            )
        except OSError as error:
            self._log.close()
            raise InputError(
                f"--comet-python {python}: {error.strerror}, expected the Python of an environment with unbabel-comet; "
                "check the path"
            ) from None
        try:
            loaded = self._answer()
            digest = fingerprint(loaded["path"])["blake2b"]
        except BaseException:
            self.__exit__()
            raise
        self.signature = f"comet:{name}-{digest[:8]}|v:{loaded['version']}"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):  # it may have left something unread
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._log.close()

    def score(self, sources, hypotheses, references):
        """({"metric", "score", "n", "signature"}, the segments' scores) of a direction, three lists of as many lines.

        The scores are COMET's times 100; the row has their mean.
        """
        if not len(sources) == len(hypotheses) == len(references):
            raise ValueError(f"{len(sources)} sources, {len(hypotheses)} hypotheses, {len(references)} references")
        request = json.dumps({"src": sources, "mt": hypotheses, "ref": references})
        with contextlib.suppress(BrokenPipeError):  # _answer() tells why
            print(request, file=self._process.stdin, flush=True)
        found = self._answer()
        row = {"metric": "COMET", "score": 100 * found["system"], "n": len(sources), "signature": self.signature}
        return row, [100 * score for score in found["scores"]]

    def _answer(self):
        """The worker's next answer, or InputError with its reason, or with its last words where it just ended."""
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:  # nothing, or from another program than Python
            self._process.kill()
            self._log.seek(0)
            words = line + self._log.read().decode("utf-8", "replace")
            last = next((line for line in reversed(words.splitlines()) if line.strip()), "without a word")[:500]
            status = self._process.wait()
            problem = f"ended with status {status} ({last}), expected scores of COMET; check the path and the memory"
        else:
            if "error" not in answer:
                return answer
            problem = REMEDIES[answer["at"]].format(error=answer["error"], python=self.python, model=self.model)
        raise InputError(f"--comet-python {self.python}: {problem}")
