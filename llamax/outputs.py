"""Outputs that are one file with a manifest beside it, FILE.manifest.json: written once, never overwritten."""

import json
import os
import platform
import unicodedata
from importlib.metadata import version
from pathlib import Path

from llamax.files import InputError, read_json, require_same_origin


def already_done(output, form, arguments, sources):
    """True if `output` is complete and was made from the same arguments and sources; False if it is not there.

    Args:
        form: number of the format, raised when the same arguments would give other bytes.
        sources: fingerprints of the files it is made from.

    Raises InputError if it is there but is something else: an existing file is never overwritten.
    """
    if not os.path.lexists(output):
        return False
    remedy = f"choose another name or remove {output}*"
    if not Path(f"{output}.manifest.json").exists():
        raise InputError(
            f"--output {output}: exists, but no {output}.manifest.json that says this command wrote it; choose another "
            "name, or remove the file if nobody needs it"
        )
    manifest = read_json(f"{output}.manifest.json", "--output")
    if not isinstance(manifest, dict) or not isinstance(manifest.get("arguments"), dict):
        raise InputError(f"--output {output}: {output}.manifest.json is not a manifest of this command; {remedy}")
    require_same_origin(manifest, {"format": form, "sources": sources, **arguments}, f"--output {output}", remedy)
    size = os.path.getsize(output)
    if size != manifest.get("bytes"):
        raise InputError(f"--output {output}: {size} bytes, its manifest says {manifest.get('bytes')}; {remedy}")
    return True


def write_manifest(path, output, form, packages=(), **values):
    """Write the manifest of what `output` holds so far, with the versions of `packages` that its bytes depend on."""
    values = {"format": form, **values, "bytes": os.path.getsize(output)}
    versions = {"python": platform.python_version(), "unicode": unicodedata.unidata_version}
    values["versions"] = versions | {package: version(package) for package in packages}
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
