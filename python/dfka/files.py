"""Opens what people have: PyTorch checkpoints, safetensors files and their shards. Recognises what is none of them."""

import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path

from .errors import Error, first_line, listed, need

STATE_DICT = "save the state dict alone where the network was trained: torch.save(model.state_dict(), PATH)"
AGAIN = "download or copy it again"
# Names of these files end in the index's suffix; the folder of a sharded checkpoint holds one of them.
INDEX = ".index.json"
WHOLE = ("model.safetensors", "pytorch_model.bin")

# First bytes of files that people take for checkpoints, and what to do with each.
FOREIGN = [
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"\x89HDF", "an HDF5 file (Keras); only PyTorch checkpoints and safetensors files can be converted"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x93NUMPY", "a single numpy array; expected a PyTorch checkpoint or a safetensors file"),
    (b"\x08", "an ONNX file, it seems; convert the PyTorch checkpoint that it was exported from"),
]


def kind_of(path):
    """Returns "folder", "index", "safetensors", "zip" or "pickle". Anything else is an error that calls it by name."""
    if path.is_dir():
        return "folder"
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise Error(f"{path}: cannot load: there is no such file") from None
    except OSError as e:
        raise Error(f"{path}: cannot load: {e.strerror}") from None
    if not start:
        raise Error(f"{path}: the file is empty; {AGAIN}")
    for magic, words in FOREIGN:
        if start.startswith(magic):
            raise Error(f"{path}: found {words}")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise Error(f"{path}: found an HTML page, not the file itself; download the file, not the page that shows it")
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[8:9] == b"{" and len(start) > 8 and not text.startswith(b"{"):
        return "safetensors"
    if start[0] == 0x80 and start[1:2] <= b"\x05":
        return "pickle"
    if text.startswith((b"{", b"[")):
        return "index"
    raise Error(
        f"{path}: expected a PyTorch checkpoint or a safetensors file, found one that begins with {start[:8]!r}"
    )


def read(path, unsafe=False):
    """Returns what the file holds: a dictionary of tensors, whatever was pickled, or, with `unsafe`, a module.

    `path` may be a folder or an index of a checkpoint in several files.
    """
    kind = kind_of(path)
    if kind == "folder":
        return read(in_folder(path), unsafe)
    if kind == "index":
        return read_shards(path, unsafe)
    if kind == "safetensors":
        return read_safetensors(path)
    return read_pickle(path, kind, unsafe)


def in_folder(folder):
    """The checkpoint in a folder: an index of shards, or the single file with the usual name."""
    found = sorted(p for p in folder.iterdir() if p.name.endswith(INDEX))
    # The same weights are often there in both formats.
    found = [p for p in found if ".safetensors" in p.name] or found
    found = found or [folder / name for name in WHOLE if (folder / name).is_file()]
    if len(found) == 1 or (found and found[0].name in WHOLE):
        return found[0]
    what = f"found {listed(p.name for p in found)}; name one of them" if found else "found neither; name the file"
    raise Error(f"{folder}: expected a folder with one *{INDEX}, or with {' or '.join(WHOLE)}; {what}")


def read_shards(index, unsafe):
    """The tensors of all files that an index names."""
    try:
        content = json.loads(index.read_text("utf-8-sig"))
        names = content["weight_map"]
        shards = sorted(set(names.values()))
        inside = all(isinstance(s, str) and Path(s).name == s for s in shards)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Error(
            f"{index}: found JSON, not weights, and not an index of shards either (it has no weight_map); "
            f"name the file that holds the weights"
        ) from None
    if not inside:
        raise Error(
            f"{index}: weight_map: expected names of files in the same folder, found {listed(map(str, shards))}"
        )
    missing = [s for s in shards if not (index.parent / s).is_file()]
    if missing:
        raise Error(
            f"{index}: the index names {len(shards)} file(s), of which {len(missing)} are not in its folder "
            f"({listed(missing)}); download them too"
        )
    tensors = {}
    for shard in shards:
        found = read(index.parent / shard, unsafe)
        if not isinstance(found, dict):
            raise Error(f"{index.parent / shard}: expected a dictionary of tensors, found {type(found).__name__}")
        tensors.update(found)
    lost = [name for name in names if name not in tensors]
    if lost:
        raise Error(f"{index}: none of its files holds {listed(lost)}; the files belong to another index")
    return tensors


def read_safetensors(path):
    """The tensors of a safetensors file. Metadata of other programs is ignored."""
    safetensors = need("safetensors", f"{path}: reading a .safetensors file")
    need("torch", f"{path}: converting")
    try:
        with safetensors.safe_open(path, "pt") as file:
            ours = json.loads((file.metadata() or {}).get("dfka", "{}"))
            if "student" in ours or "network" in ours:
                raise Error(f"{path}: dfka-engine wrote this file and reads it as it is; there is nothing to convert")
            return {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as e:
        size = path.stat().st_size
        raise Error(
            f"{path}: a safetensors file that is cut or damaged ({size} bytes; {first_line(e)}); {AGAIN}"
        ) from None


def read_pickle(path, kind, unsafe):
    """What torch.load returns. Without `unsafe` only tensors, plain containers and `harmless` objects are created."""
    if kind == "zip":
        check_archive(path, unsafe)
    torch = need("torch", f"{path}: reading a PyTorch checkpoint")
    allow = getattr(torch.serialization, "safe_globals", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if unsafe or allow is None:
                return torch.load(path, map_location="cpu", weights_only=not unsafe)
            with allow(harmless()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # unpickling can raise any exception
        raise Error(f"{path}: cannot load: {in_words(e, unsafe)}") from None


def check_archive(path, unsafe):
    """Refuses zip archives that torch.load cannot read, or reads with an unclear message."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        size = path.stat().st_size
        raise Error(f"{path}: a zip archive without its end, so the file was cut ({size} bytes); {AGAIN}") from None
    if not any(name.endswith("data.pkl") for name in names):
        if any(name.endswith(".npy") for name in names):
            raise Error(f"{path}: found an npz, which dfka-engine reads as it is; there is nothing to convert")
        raise Error(f"{path}: found a zip archive that is no checkpoint (it holds {listed(names)}); unpack it first")
    if any(name.endswith("constants.pkl") for name in names) and not unsafe:
        raise Error(f"{path}: found a TorchScript program; {STATE_DICT}; or --unsafe loads the program")


def harmless():
    """Objects that checkpoints hold beside tensors. Creating one of them runs no code of the file."""
    import argparse
    import datetime
    import pathlib

    numpy = need("numpy", "reading a PyTorch checkpoint")
    core = getattr(numpy, "_core", None) or numpy.core
    allowed = [argparse.Namespace, datetime.datetime, datetime.timedelta, numpy.dtype, numpy.ndarray]
    allowed += [pathlib.PosixPath, pathlib.PurePosixPath]
    # numpy 1 and 2 write different names of the same functions.
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(getattr(core.multiarray, name), f"{module}.{name}") for name in ("scalar", "_reconstruct")]
    types = [getattr(numpy.dtypes, name) for name in dir(getattr(numpy, "dtypes", None)) if name.endswith("DType")]
    return allowed + [t for t in types if isinstance(t, type) and "Object" not in t.__name__]


def in_words(error, unsafe):
    """A failure of torch.load as part of a sentence."""
    text = str(error)
    name = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"but got <class '([\w.]+)'>", text)
    if name and "is blocked" in text:
        return f"it calls {name[1]}, which no checkpoint needs; the file may be an attack, so do not load it"
    if name and not unsafe:
        return (
            f"it holds an object of {name[1]}, which only the code in the file can create; {STATE_DICT}; "
            f"or, if you trust the file, --unsafe runs its code"
        )
    if isinstance(error, (ImportError, AttributeError)):
        return (
            f"it needs code that Python does not find here ({first_line(error)}); run the converter where that can be "
            f"imported (PYTHONPATH), or {STATE_DICT}"
        )
    if isinstance(error, (EOFError, pickle.UnpicklingError, RuntimeError)) or not text:
        return f"the file is cut or damaged ({first_line(error)}); {AGAIN}"
    return first_line(error)
