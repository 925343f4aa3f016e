"""Writes tensors as a safetensors or npz file."""

import json
import os

from .errors import Error, need


def check_place(path, endings):
    """Errors: a name with another ending, a folder that does not exist."""
    if path.suffix not in endings or path.is_dir():
        raise Error(f"{path}: expected a name that ends in {' or '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise Error(f"{path}: there is no folder {path.parent}; create it first")


def values(tensor, name, source):
    """A tensor as a float32 array. Sparse tensors become dense.

    Errors: a tensor that is quantised, has no values, or holds other numbers than finite floats.
    """
    torch, numpy = need("torch", "converting"), need("numpy", "converting")
    wrong = lambda message: Error(f"{source}: {name}: {message}")
    if tensor.is_quantized:
        raise wrong(f"quantised ({tensor.dtype}); convert the network as it was before it was quantised")
    if tensor.device.type == "meta":
        raise wrong("the file holds its shape but not its values (device meta)")
    if not tensor.is_floating_point():
        raise wrong(f"expected floating-point numbers, found {str(tensor.dtype).removeprefix('torch.')}")
    tensor = tensor.detach()
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    array = numpy.ascontiguousarray(tensor.cpu().float().numpy())
    if not numpy.isfinite(array).all():
        raise wrong("expected finite numbers, found infinity or NaN")
    return array


def write(path, arrays, meta):
    """Writes a file under a temporary name in the same folder, then renames it, so that it is never half written."""
    numpy = need("numpy", "converting")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".npz":
            if meta:
                arrays = {**arrays, "__meta__": numpy.frombuffer(json.dumps(meta).encode(), numpy.uint8)}
            with open(temporary, "wb") as file:
                numpy.savez(file, **arrays)
        else:
            # The engine reads the entry `dfka`. The other entries repeat parts of it for other programs.
            plain = {k: json.dumps(v) for k, v in meta.items() if k in ("labels", "mean", "std")}
            save = need("safetensors.numpy", "writing a .safetensors file", "safetensors").save_file
            save(arrays, temporary, metadata={"dfka": json.dumps(meta), **plain} if meta else None)
        os.replace(temporary, path)
    except OSError as e:
        raise Error(f"{path}: cannot write: {e.strerror or e}") from None
    finally:
        temporary.unlink(missing_ok=True)
