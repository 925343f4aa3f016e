"""Converts a PyTorch checkpoint of a ResNet to a file that dfka-engine reads. The engine itself never unpickles a file.

    python -m dfka.convert teacher.pth teacher.safetensors --labels bus,car,person

IN is a checkpoint of PyTorch, a safetensors file, an index of shards, or a folder with one. The network in it is what has
conv1.weight and layer1; it may be in nested dictionaries and have a wrapper's prefix. OUT ends in .safetensors (which
needs the package safetensors) or .npz. The conversion needs torch and numpy, but neither torchvision nor timm.
"""

import argparse
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from . import architecture, checkpoint, compare, declared, files, labels as label_lists
from .errors import Error, first_line, need, printable
from .head import split
from .settings import ARCHITECTURES, check_arch, normalise, numbers, options
from .writer import check_place, values, write


# Side of the images that the engine assumes where neither file nor config gives it.
ASSUMED_SIDE = 224


@dataclass
class Converted:
    """What was written."""

    output: Path
    tensors: int
    labels: int  # rows of the head
    notes: list  # one line each: what was assumed, chosen, renamed or left out


def convert(
    source, output, labels=None, *, mean=None, std=None, image_size=None, stride=None, stem_stride=None, arch=None,
    key=None, prefix=None, head=None, leave_out=(), unsafe=False, probe=None,
):  # fmt: skip
    """Writes the ResNet in the checkpoint `source` to `output`, a .safetensors or .npz file, and returns a `Converted`.

    The options are those of the command line, with lists in place of text. Errors are `dfka.Error`; nothing is written
    then.
    """
    source, output = Path(source), Path(output)
    check_place(output, (".npz", ".safetensors"))
    if probe is not None:
        check_place(Path(probe), (".npz",))
    if output.exists() and source.exists() and output.samefile(source):
        raise Error(f"{output}: IN and OUT are the same file")
    meta = options(labels, mean, std, image_size, stride, stem_stride)
    files.kind_of(source)  # before anything is imported: what is no checkpoint is called by its name
    if output.suffix == ".safetensors":
        need("safetensors.numpy", f"{output}: writing a .safetensors file (unlike .npz)", "safetensors")
    found = files.read(source, unsafe)

    said = declared.declared(found, source)
    if said.name and arch is None:
        declared.check_name(said.name, said.where)
    network = checkpoint.find(found, source, key, prefix)
    parts = split(network, source, head, leave_out, "labels" in meta)
    tensors, notes = parts.tensors, parts.notes
    spec = architecture.describe(tensors, source, stride or "3x3", stem_stride)
    check_arch(spec, arch, source)
    rows = tensors["fc.weight"].shape[0] if "fc.weight" in tensors else 0
    if "labels" in meta and len(meta["labels"]) != rows:
        raise Error(f"{source}: expected {rows} labels, one for each row of fc.weight, found {len(meta['labels'])}")
    head_kind, head_words = said.head_of(rows)
    if head_kind is not None:
        meta["head"] = head_kind
        notes.append(head_words)
    normalisation, words = normalise(meta, said, parts, spec.stem[0][1], source)
    arrays = {name: values(tensor, name, source) for name, tensor in sorted(tensors.items())}

    module = checkpoint.modules(found).get(network.keys)
    if module is not None:
        # The arrays, which are what is written, and not the module's own tensors.
        written = {name: need("torch", "comparing").from_numpy(a) for name, a in arrays.items()}
        spec, pixels, logits, more = compare.compare(
            module, spec, written, source, prefix=network.prefix.removeprefix(network.keys),
            # The images of a probe have the size that the engine takes where the file does not say it.
            side=image_size or (ASSUMED_SIDE if probe is not None else None),
            mean=normalisation[0], std=normalisation[1], stride=stride,
        )  # fmt: skip
        notes += more
        if spec.stride != "3x3":
            meta["stride"] = spec.stride
        if spec.stem_stride is not None:
            meta["stem_stride"] = spec.stem_stride
    elif probe is not None:
        raise Error(
            f"{source}: --probe needs a whole module, saved by torch.save(model, PATH) and read with --unsafe, because "
            f"tensors alone give no logits"
        )
    if spec.assumes_stem():
        notes.append(
            "conv1 is 3x3: stride 1 and no max pool are assumed, as in networks for small images (--stem-stride changes it)"
        )
    write(output, arrays, meta)
    if probe is not None:
        write(Path(probe), {"images": pixels, "logits": logits}, {})
        notes.append(f"wrote {probe}: {len(pixels)} images and PyTorch's logits of them")
    if not rows:
        notes.append("no head: the file can start a network (init), but is no teacher")
    return Converted(output, len(arrays), rows, [*network.notes, *notes, words])


def arguments(given=None):
    p = argparse.ArgumentParser(
        prog="python -m dfka.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("input", metavar="IN", type=Path)
    p.add_argument("output", metavar="OUT", type=Path)
    group = p.add_argument_group("the teacher")
    labels = group.add_mutually_exclusive_group()
    labels.add_argument("--labels", help="names of the head's rows, in order, separated by commas")
    labels.add_argument("--labels-file", type=Path, help="a file with the same names, one a line, in UTF-8")
    mean = "mean of pixels from 0 to 1: one number a channel, separated by commas [default: ImageNet's; 0.5 for other than three channels]"
    group.add_argument("--mean", help=mean)
    group.add_argument("--std", help="standard deviation, in the same form; required with --mean")
    group.add_argument("--image-size", type=int, help="height and width in pixels [default: 224]")
    stride = "the convolution of a bottleneck that has the stride [default: 3x3]"
    group.add_argument("--stride", choices=["3x3", "1x1"], help=stride)
    stem = "the stride of conv1, which no tensor shows [default: 2 for 7x7, 1 for 3x3]"
    group.add_argument("--stem-stride", type=int, metavar="N", help=stem)
    arch = "fail if the tensors are of another network; `plain`: the checkpoint's name for it is no reason to fail"
    group.add_argument("--arch", choices=[*ARCHITECTURES, "plain"], help=arch)
    group = p.add_argument_group("where the network is")
    group.add_argument("--key", help="the dictionary that holds it, such as state_dict_ema, or model.ema")
    group.add_argument("--prefix", help="the prefix of its tensors' names, such as model.backbone")
    group.add_argument("--head", help="the Linear layer that is its head, such as classifier.1")
    leave_out = "a module next to conv1 that takes no part in the logits; may be repeated"
    group.add_argument("--leave-out", metavar="NAME", action="append", default=[], help=leave_out)
    unsafe = "run the code in the pickle, which reads a whole module; only for files that you trust"
    p.add_argument("--unsafe", action="store_true", help=unsafe)
    probe = "also write images and PyTorch's logits of them, as an npz; needs a whole module"
    p.add_argument("--probe", metavar="FILE", type=Path, help=probe)
    return p.parse_args(given)


def main(given=None):
    """The command line: notes on stderr, then one line on stdout; an error is one line on stderr and the exit code 1."""
    args = arguments(given)
    try:
        labels = label_lists.from_option(args.labels) if args.labels is not None else None
        labels = label_lists.from_file(args.labels_file) if args.labels_file else labels
        done = convert(
            args.input, args.output, labels, image_size=args.image_size, stride=args.stride, stem_stride=args.stem_stride,
            arch=args.arch, key=args.key,
            mean=numbers(args.mean, "--mean") if args.mean is not None else None,
            std=numbers(args.std, "--std") if args.std is not None else None,
            prefix=args.prefix, head=args.head, leave_out=args.leave_out, unsafe=args.unsafe, probe=args.probe,
        )  # fmt: skip
    except Error as e:
        sys.exit(f"error: {e}")
    except Exception as e:
        if os.environ.get("DFKA_TRACEBACK"):
            raise
        fault = printable(f"{type(e).__name__}: {first_line(e)}")
        sys.exit(f"error: {args.input}: a fault of the converter ({fault}); DFKA_TRACEBACK=1 shows where")
    for note in done.notes:
        print(printable(note), file=sys.stderr)
    print(f"{done.output}: {done.tensors} tensors, {done.labels} labels")


class _Callable(types.ModuleType):
    """`dfka.convert` names this module once it is imported, and is documented as a function: it is both."""

    def __call__(self, *args, **options):
        return convert(*args, **options)


if __name__ == "__main__":
    main()
else:
    sys.modules[__name__].__class__ = _Callable
