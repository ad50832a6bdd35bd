"""fastText models that identify languages: their labels, and the languages of the table that those mean."""

import contextlib
import mmap
import struct

from llamax.files import InputError
from llamax.languages import resolve

# Labels that mean several languages of the table, or one by a code that resolve() does not take for it: the
# macro-languages of lid.176 and of GlotLID before version 3, and what GlotLID 3 calls Chinese and Estonian.
LABELS = {
    **dict.fromkeys(("zh", "zho", "cmn", "zho_Hani", "cmn_Hani"), ("zh", "zhtrad")),
    **dict.fromkeys(("sh", "hbs"), ("bs", "hr", "sr")),
    **{"hbs_Latn": ("bs", "hr"), "hbs_Cyrl": ("sr",), "nb": ("no",), "nor": ("no",), "nor_Latn": ("no",)},
    **{"aze_Latn": ("az",), "ekk_Latn": ("et",), "nep_Deva": ("ne",), "ori_Orya": ("or",)},
}


def load_model(path):
    """(model, {language code: the labels that may mean it}) of a fastText file, given as --lid-model."""
    import fasttext

    names = model_labels(path)
    try:
        model = fasttext.load_model(str(path))
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"--lid-model {path}: fastText cannot load it ({error}); get it again") from None
    labels = {}
    for label in names:
        name = label.removeprefix("__label__")
        with contextlib.suppress(InputError):  # a language that neither the table nor iso639-3_Script has
            for code in LABELS.get(name) or (resolve(name).code,):
                labels[code] = (*labels.get(code, ()), label)
    if not labels:
        found = ", ".join(names[:3]) or "none"
        raise InputError(f"--lid-model {path}: labels {found}, expected languages; give a model that tells them")
    return model, labels


def model_labels(path):
    """The labels of a fastText classifier, from its file, in the form of fastText 0.9.2's FastText::saveModel.

    The file must be as long as its parts say it is: fastText itself dies of a signal, or goes on with whatever weights
    it got, where a model is truncated.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            kind, labels, size = _layout(data)
            if size != len(data):
                raise ValueError
    except (ValueError, IndexError, struct.error):  # also of an empty file
        raise InputError(f"--lid-model {path}: no whole fastText model; download it again or give another") from None
    if kind != 3:
        raise InputError(f"--lid-model {path}: holds word vectors, expected a classifier; give lid.176.bin, say")
    return labels


def _layout(data):
    """(kind of model, labels, bytes) of a fastText file. Raises what model_labels() catches if it is none."""
    magic, edition, *settings = struct.unpack_from("<14i", data)
    entries, _, _, _, pruned = struct.unpack_from("<3i2q", data, 64)
    if magic != 793712314 or edition not in (11, 12):
        raise ValueError
    labels, at = [], 92
    for _ in range(entries):  # a text, a null byte, its count (8 bytes), 1 if it is a label, else 0
        end = data.find(b"\x00", at)
        if end < 0:
            raise ValueError
        if data[end + 9] == 1:
            labels.append(data[at:end].decode("utf-8"))
        at = end + 10

    def quantizer(at):
        return at + 16 + 1024 * struct.unpack_from("<i", data, at)[0]

    def matrix(at, quantized):
        if not quantized:
            rows, columns = struct.unpack_from("<2q", data, at)
            return at + 16 + 4 * rows * columns
        normed, rows, _, codes = struct.unpack_from("<?2qi", data, at)
        at = quantizer(at + 21 + codes)
        return quantizer(at + rows) if normed else at

    at += 8 * max(0, pruned)
    quantized = data[at]
    at = matrix(at + 1, quantized)
    return settings[7], labels, matrix(at + 1, quantized and data[at])
