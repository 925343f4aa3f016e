"""Compares a module with the plain ResNet of its tensors.

Dilations, strides, pools, activations and the epsilon of batch norms leave no tensor, so a state dict does not show them.
A whole module does: its logits differ.
"""

from dataclasses import replace

from . import architecture
from .errors import Error, first_line, listed, need

# Of the largest logit, in float64. The engine's own rounding is a tenth of it.
TOLERANCE = 1e-4
IMAGES = 2
# Sides that are tried if the image size is not stated: quick first, then that of networks with a fixed pool.
SIDES = (64, 224)
ACTIVATIONS = (
    "SiLU",
    "GELU",
    "LeakyReLU",
    "ELU",
    "CELU",
    "SELU",
    "PReLU",
    "RReLU",
    "Hardswish",
    "Mish",
    "ReLU6",
    "Softplus",
    "Tanh",
)


def images(channels, side):
    """Images [2, channels, side, side] in [0, 1], always the same. Values are multiples of 1/255, as in files."""
    numpy = need("numpy", "comparing the module")
    pixels = numpy.random.RandomState(0).randint(0, 256, (IMAGES, channels, side, side))
    return (pixels / 255).astype(numpy.float32)


def compare(module, network, tensors, path, *, prefix, side, mean, std, stride):
    """Returns the network with the stride that fits, the images, the module's logits of them, and notes.

    `mean` and `std` normalise the images; `stride` is None if the user did not state it.

    Errors: a module that computes something else than the plain ResNet of its tensors.
    """
    torch = need("torch", "comparing the module")
    exact = {name: t.double() for name, t in tensors.items()}
    strides = [stride] if stride else ["3x3", "1x1"] if network.block == "bottleneck" else ["3x3"]
    stems = [network.stem_stride] if not network.assumes_stem() else [1, 2]
    candidates = [replace(network, stride=place, stem_stride=stem) for place in strides for stem in stems]
    off = []
    # First the usual module, which takes normalised images; then one that normalises them itself.
    for is_raw in (False, True):
        pixels, normalised, output = run(module, network, path, side, mean, std, is_raw)
        for candidate in candidates:
            with torch.no_grad():
                expected = architecture.logits(candidate, exact, normalised)
            if expected.shape != output.shape:
                raise Error(
                    f"{path}: the module returns the shape {list(output.shape)} for {IMAGES} images, the plain ResNet of "
                    f"its tensors {list(expected.shape)}; {reasons(module, candidate, prefix)}"
                )
            for found, note in readings(output):
                off.append((expected - found).abs().max().item() / max(found.abs().max().item(), 1e-6))
                if off[-1] <= TOLERANCE:
                    notes = [f"the module's logits agree to {off[-1]:.0e} of their scale", *note]
                    notes += ["the module normalises its images itself"] * is_raw
                    notes += [f"stride: {candidate.stride}, as in the module"] * (candidate.stride != strides[0])
                    notes += ["conv1 has stride 2, as in the module"] * (candidate.stem_stride != stems[0])
                    return candidate, pixels, found.float().numpy(), notes
    raise Error(
        f"{path}: the module's logits differ from those of the plain ResNet of its tensors by {min(off):.1e} of their "
        f"scale (at most {TOLERANCE:.0e} is allowed), so dfka-engine would compute another network; "
        f"{reasons(module, candidates[0], prefix)}"
    )


def readings(output):
    """What a module's output may be: logits, or probabilities, of which the logits are compared.

    Probabilities themselves would hide a difference where they are near 0 or 1.
    """
    torch = need("torch", "comparing the module")
    found = [(output, [])]
    if output.min() > 0 and output.max() < 1:
        found.append((torch.logit(output), ["the module ends in a sigmoid; the file's logits are those before it"]))
    return found


def run(module, network, path, side, mean, std, is_raw):
    """The images, the same normalised in float64, and the module's output in float64: of those images if `is_raw`, else of
    the normalised ones."""
    torch = need("torch", "comparing the module")
    channels = network.stem[0][1]
    failure = None
    for length in [side] if side else SIDES:
        pixels = images(channels, length)
        shaped = [torch.tensor(v, dtype=torch.float64).reshape(1, -1, 1, 1) for v in (mean, std)]
        normalised = (torch.from_numpy(pixels).double() - shaped[0]) / shaped[1]
        given = torch.from_numpy(pixels) if is_raw else normalised
        # A module that casts to float32 itself cannot run in float64.
        for dtype in (torch.float64, torch.float32):
            try:
                with torch.no_grad():
                    output = tensor_of(module.eval().to(dtype)(given.to(dtype)))
            except Exception as e:  # a module may raise anything
                failure = failure or e
                continue
            if output is None:
                raise Error(f"{path}: the module returns no tensor of logits; save its state dict and convert that")
            # Features of a network without a head, before its last pool.
            output = output.double().mean((2, 3)) if output.ndim == 4 else output.double()
            return pixels, normalised, output
    raise Error(
        f"{path}: the module cannot be compared with a plain ResNet, because its forward pass fails on {IMAGES} images of "
        f"{channels} x {length} x {length} ({first_line(failure)}); state the size of its images with --image-size"
    )


def tensor_of(output):
    """The logits in what a module returned: a tensor, the first of a tuple, or a dictionary's `logits` or `out`."""
    torch = need("torch", "comparing the module")
    if isinstance(output, dict):
        output = next((output[key] for key in ("logits", "out", "output") if key in output), None)
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def reasons(module, network, prefix):
    """The usual causes that a look at the module's layers shows, as part of a sentence."""
    torch = need("torch", "comparing the module")
    expected = {conv.name: conv for conv in network.convolutions()}
    seen = []
    has_max_pool = False
    for full, layer in module.named_modules():
        name, kind = full.removeprefix(prefix), type(layer).__name__
        conv = expected.get(name)
        if isinstance(layer, torch.nn.Conv2d):
            stride = conv.stride if conv else None
            if layer.dilation != (1, 1):
                seen.append(f"{name} has dilation {layer.dilation[0]}")
            if stride and layer.stride != (stride, stride):
                seen.append(f"{name} has stride {layer.stride[0]} instead of {stride}")
            size = layer.kernel_size[0] // 2 * layer.dilation[0]
            if conv and layer.padding not in ((size, size), "same"):
                seen.append(f"{name} has padding {layer.padding} instead of {size}")
            if layer.padding_mode != "zeros":
                seen.append(f"{name} pads with {layer.padding_mode}")
        elif isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            if abs(layer.eps - architecture.EPSILON) > 1e-9:
                seen.append(f"{name} has the epsilon {layer.eps:g} instead of {architecture.EPSILON:g}")
        elif isinstance(layer, torch.nn.MaxPool2d):
            has_max_pool = True
            if not network.has_max_pool():
                seen.append(f"{name} is a max pool, which a network with a 3x3 stem has not")
            elif (layer.kernel_size, layer.stride, layer.padding) not in (
                (3, 2, 1),
                ((3, 3), (2, 2), (1, 1)),
            ) or layer.ceil_mode:
                seen.append(f"{name} is a max pool other than 3x3 of stride 2 with padding 1")
        elif kind in ("AvgPool2d", "LPPool2d", "AdaptiveMaxPool2d") or "blur" in kind.lower() or kind == "Downsample2d":
            seen.append(f"{name} is {kind}")
        elif kind in ACTIVATIONS or kind in ("Sigmoid", "Softmax", "LogSoftmax", "Normalize", "Upsample"):
            seen.append(f"{name} is {kind}")
    if network.has_max_pool() and not has_max_pool:
        seen.append("it has no max pool, which a network with a 7x7 stem has")
    # Every layer of a kind has the same cause; one of each is enough.
    causes = {text.split(" ", 1)[1]: text for text in reversed(seen)}
    if not causes:
        return "its layers are those of a plain ResNet, so its forward() computes something else with them"
    return f"the likely cause: {listed(reversed(causes.values()), 4)}"
