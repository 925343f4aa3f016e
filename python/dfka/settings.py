"""The settings that the command line or a caller states beside the checkpoint: checked, and completed by assumptions."""

from . import architecture, labels as label_lists
from .errors import Error

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# The ranges that the engine accepts.
MEANS, DEVIATIONS = (0.0, 1.0), (0.001, 10.0)
LARGEST = 8192
LARGEST_STRIDE = 8
ARCHITECTURES = {f"resnet{depth}": key for key, depth in architecture.DEPTHS.items()}


def numbers(text, option):
    """The numbers of `0.485,0.456,0.406`."""
    try:
        return [float(v) for v in text.split(",")]
    except ValueError:
        raise Error(f"{option}: expected one number a channel, such as 0.485,0.456,0.406; found {text!r}") from None


def options(labels, mean, std, image_size, stride, stem_stride):
    """The metadata that the options state, checked as far as that needs no file."""
    meta = {}
    if labels is not None:
        meta["labels"] = label_lists.check(labels, "labels", "label")
    if (mean is None) != (std is None):
        raise Error("--mean and --std must be given together")
    if mean is not None:
        meta["mean"], meta["std"] = ([float(v) for v in numbers] for numbers in (mean, std))
        for option, numbers, (least, most) in (("--mean", mean, MEANS), ("--std", std, DEVIATIONS)):
            wrong = outside(numbers, (least, most))
            if wrong:
                raise Error(
                    f"{option}: expected numbers from {least:g} to {most:g}, for pixels from 0 to 1, found {wrong[0]:g}"
                )
    if image_size is not None:
        if not 1 <= image_size <= LARGEST:
            raise Error(f"--image-size: expected 1 to {LARGEST} pixels, found {image_size}")
        meta["image_size"] = int(image_size)
    if stride is not None:
        if stride not in ("3x3", "1x1"):
            raise Error(f"--stride: expected 3x3 or 1x1, found {stride}")
        meta["stride"] = stride
    if stem_stride is not None:
        if not 1 <= stem_stride <= LARGEST_STRIDE:
            raise Error(f"--stem-stride: expected 1 to {LARGEST_STRIDE}, found {stem_stride}")
        meta["stem_stride"] = int(stem_stride)
    return meta


def normalise(meta, said, parts, channels, source):
    """The mean and deviation of the images, and a line that says where they are from."""
    change = "--mean and --std change it"
    if "mean" not in meta:
        for mean, std, where in (
            (parts.mean, parts.std, "the checkpoint's own tensors"),
            (said.mean, said.std, said.source),
        ):
            if (
                mean
                and std
                and len(mean) == len(std) == channels
                and not (outside(mean, MEANS) or outside(std, DEVIATIONS))
            ):
                meta["mean"], meta["std"] = mean, std
                return (
                    mean,
                    std,
                ), f"normalisation: mean {rounded(mean)} and deviation {rounded(std)}, of {where} ({change})"
    if "mean" in meta:
        for option, numbers in (("--mean", meta["mean"]), ("--std", meta["std"])):
            if len(numbers) != channels:
                raise Error(
                    f"{source}: {option}: expected {channels} numbers, one for each input channel of conv1.weight, "
                    f"found {len(numbers)}"
                )
        return (
            meta["mean"],
            meta["std"],
        ), f"normalisation: mean {rounded(meta['mean'])} and deviation {rounded(meta['std'])}"
    if channels == 3:
        return IMAGENET, f"normalisation: ImageNet's mean and deviation (assumed; {change})"
    half = [0.5] * channels
    return (half, half), f"normalisation: mean and deviation 0.5 (assumed for {channels} channels; {change})"


def outside(numbers, limits):
    """The numbers that are not within the limits; NaN is not."""
    return [v for v in numbers if not limits[0] <= v <= limits[1]]


def rounded(numbers):
    """Numbers in messages, without the digits that float32 adds."""
    return ", ".join(f"{v:.6g}" for v in numbers)


def check_arch(spec, arch, source):
    """Errors: a network other than the one that `--arch` names."""
    if arch is None or arch == "plain":
        return
    if arch not in ARCHITECTURES:
        raise Error(f"--arch: expected plain, {', '.join(ARCHITECTURES)}; found {arch}")
    if (spec.block, spec.depths) != ARCHITECTURES[arch]:
        block, depths = ARCHITECTURES[arch]
        raise Error(
            f"{source}: expected {arch} ({block} blocks, {list(depths)} units), "
            f"found {spec.block} blocks, {list(spec.depths)} units"
        )
