#!/usr/bin/env python3
"""Converts a PyTorch checkpoint of a ResNet to a file that dfka-engine reads.

The engine itself never unpickles a file.

    python3 scripts/torch_to_npz.py teacher.pth teacher.safetensors --labels bus,car,person

IN is a state dict, a dictionary that holds one (under state_dict, model_state_dict, model, net or ema), or,
with --unsafe, a whole module. OUT ends in .safetensors (which needs the package safetensors) or .npz. The
script needs torch and numpy, but neither torchvision nor timm.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

NESTED = ["state_dict", "model_state_dict", "model", "net", "ema"]
WRAPPERS = ("module.", "model.", "backbone.", "encoder.", "_orig_mod.")
# Convolutions per residual unit, and residual units per block, of torchvision's networks.
ARCHITECTURES = {
    "resnet18": (2, [2, 2, 2, 2]),
    "resnet34": (2, [3, 4, 6, 3]),
    "resnet50": (3, [3, 4, 6, 3]),
    "resnet101": (3, [3, 4, 23, 3]),
    "resnet152": (3, [3, 8, 36, 3]),
}


def fail(message):
    sys.exit(f"error: {message}")


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("input", metavar="IN", type=Path)
    p.add_argument("output", metavar="OUT", type=Path)
    labels = p.add_mutually_exclusive_group()
    labels.add_argument("--labels", help="names of the head's rows, in order, separated by commas")
    labels.add_argument("--labels-file", type=Path, help="a file with the same names, one per line")
    mean = "mean of pixels from 0 to 1: three numbers separated by commas [default: ImageNet's]"
    p.add_argument("--mean", help=mean)
    p.add_argument("--std", help="standard deviation, in the same form; required with --mean")
    p.add_argument("--image-size", type=int, help="height and width in pixels [default: 224]")
    stride = "the convolution of a bottleneck that has the stride [default: 3x3]"
    p.add_argument("--stride", choices=["3x3", "1x1"], help=stride)
    arch = "fail if the checkpoint is of another network"
    p.add_argument("--arch", choices=sorted(ARCHITECTURES), help=arch)
    unsafe = "run the code in the pickle; only for files that you trust"
    p.add_argument("--unsafe", action="store_true", help=unsafe)
    return p.parse_args()


def numbers(text, option):
    try:
        values = [float(v) for v in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        fail(f"{option}: expected three numbers such as 0.485,0.456,0.406; found {text!r}")
    return values


def state_dict(path, unsafe):
    try:
        found = torch.load(path, map_location="cpu", weights_only=not unsafe)
    except Exception as e:  # unpickling can raise any exception
        hint = "; a file that holds more than tensors needs --unsafe, which runs the code in it"
        hint = "" if unsafe else hint
        fail(f"{path}: cannot load: {str(e).splitlines()[0]}{hint}")
    while True:
        if isinstance(found, torch.nn.Module):
            found = found.state_dict()
        if not isinstance(found, dict):
            fail(f"{path}: expected a state dict, found {type(found).__name__}")
        inner = [k for k in NESTED if isinstance(found.get(k), (dict, torch.nn.Module))]
        if not inner:
            break
        found = found[inner[0]]
    tensors = {k: v for k, v in found.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        fail(f"{path}: expected a state dict, found no tensor under the keys {list(found)[:5]}")
    return {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}


def strip_wrappers(tensors):
    while True:
        common = [w for w in WRAPPERS if all(k.startswith(w) for k in tensors)]
        if not common:
            return tensors
        tensors = {k[len(common[0]) :]: v for k, v in tensors.items()}


def check_architecture(tensors, name, path):
    convolutions, depths = ARCHITECTURES[name]
    units = {m.groups() for k in tensors if (m := re.match(r"layer(\d+)\.(\d+)\.", k))}
    found = [sum(b == str(layer) for b, _ in units) for layer in range(1, 5)]
    kind = 3 if any(".conv3." in k for k in tensors) else 2
    if (kind, found) != (convolutions, depths):
        expected = f"{name} ({depths} units of {convolutions} convolutions)"
        fail(f"{path}: expected {expected}, found {found} of {kind}")


def main():
    args = arguments()
    if args.output.suffix not in (".npz", ".safetensors"):
        fail(f"{args.output}: expected a name that ends in .npz or .safetensors")
    if (args.mean is None) != (args.std is None):
        fail("--mean and --std must be given together")
    tensors = strip_wrappers(state_dict(args.input, args.unsafe))
    if args.arch:
        check_architecture(tensors, args.arch, args.input)

    meta = {}
    if args.labels is not None:
        meta["labels"] = [label.strip() for label in args.labels.split(",")]
    if args.labels_file:
        meta["labels"] = [line.strip() for line in args.labels_file.read_text().splitlines() if line.strip()]
    rows = tensors["fc.weight"].shape[0] if "fc.weight" in tensors else 0
    if "labels" in meta and len(meta["labels"]) != rows:
        fail(f"expected {rows} labels, one for each row of fc.weight, found {len(meta['labels'])}")
    if args.mean:
        meta["mean"], meta["std"] = numbers(args.mean, "--mean"), numbers(args.std, "--std")
    if args.image_size:
        meta["image_size"] = args.image_size
    if args.stride:
        meta["stride"] = args.stride

    arrays = {}
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            fail(f"{name}: expected floating-point numbers, found {tensor.dtype}")
        arrays[name] = np.ascontiguousarray(tensor.detach().float().numpy())
        if not np.isfinite(arrays[name]).all():
            fail(f"{name}: expected finite numbers")
    if args.output.suffix == ".npz":
        if meta:
            arrays["__meta__"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        np.savez(args.output, **arrays)
    else:
        try:
            from safetensors.numpy import save_file
        except ImportError:
            fail("writing .safetensors needs the package: pip install safetensors (or write .npz)")
        # The engine reads the entry `dfka`. The other entries repeat parts of it for other programs.
        plain = {k: json.dumps(v) for k, v in meta.items() if k in ("labels", "mean", "std")}
        save_file(arrays, args.output, metadata={"dfka": json.dumps(meta), **plain} if meta else None)
    print(f"{args.output}: {len(tensors)} tensors, {rows} labels")


if __name__ == "__main__":
    main()
