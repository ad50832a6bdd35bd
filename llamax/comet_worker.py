"""Score translations by COMET, in the environment that has it: python comet_worker.py MODEL BATCH_SIZE

Run by llamax/comet.py. Needs unbabel-comet and nothing else. Reads a line of JSON for each direction,
{"src": [sentences], "mt": [...], "ref": [...]}, and writes one, {"system": the mean, "scores": [...]}. Before these it
writes {"version", "path"} of what it has loaded. Where it fails it writes {"error", "at"}, and ends.
"""

import sys

sys.path[:] = [folder for folder in sys.path if folder != __file__.rpartition("/")[0]]  # ours has a comet.py

import json  # noqa: E402
import os  # noqa: E402


def main():
    model, batch_size = sys.argv[1], int(sys.argv[2])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers

    def answer(**value):
        print(json.dumps(value), file=out, flush=True)

    at = "import"
    try:
        import comet

        at = "load"
        path = model if model.endswith(".ckpt") else comet.download_model(model)
        metric = comet.load_from_checkpoint(path)  # no set_embedding_cache(): it may take a batch for another
        answer(version=comet.__version__, path=path)
        at = "score"
        for line in sys.stdin:
            columns = json.loads(line)
            samples = [dict(zip(columns, texts)) for texts in zip(*columns.values())]  # noqa: B905 (Python 3.8)
            # gpus=1 is the first GPU if there is one, else the CPU.
            found = metric.predict(samples, batch_size=batch_size, gpus=1, progress_bar=False)
            answer(system=float(found.system_score), scores=[float(score) for score in found.scores])
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}"[:500], at=at)
        raise


if __name__ == "__main__":
    main()
