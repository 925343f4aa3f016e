"""What network the tensors are, by their names and shapes; and the same network in torch, to compare with."""

import re
from dataclasses import dataclass, replace

from .errors import Error, listed, need

# What a ResNet may have beyond the plain one. The engine's support of each is switched on here.
KINDS = {
    "wide": ("bottlenecks whose 3x3 convolution has other than a quarter of the width", True),
    "deep_stem": ("a stem of three convolutions (conv1.0, conv1.3, conv1.6)", True),
    "pooled_projection": ("average pools before the projections (downsample.1)", True),
}
# What messages say of what the engine reads.
READS = "dfka-engine reads plain ResNets, Wide ResNets and ResNet-D only"
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
EPSILON = 1e-5
# Blocks and units that a name can state; a larger number is no network.
MOST = 1000

# Layers that no supported network has, by names within a residual unit or anywhere.
REFUSED = [
    (r"\.(se|se_module|se_layer)\.", "squeeze-and-excitation or another channel attention (seresnet, ecaresnet)"),
    (r"\.filt$", "anti-aliased pooling (blur pool, resnetblur)"),
    (r"\.convs\.\d", "convolutions in a hierarchy (Res2Net)"),
    (
        r"layer\d+\.\d+\.conv2\.(attn|radix|fc\d|paths|bn\d|conv)\b",
        "split attention or selective kernels (ResNeSt, SKNet)",
    ),
    (r"\.(ca|sa|cbam|attn|eca|gct|gc|attention)\.", "attention (CBAM, ECA)"),
    (
        r"(weight_g|weight_v|parametrizations)",
        "weight norm or spectral norm; remove it with torch.nn.utils.parametrize.remove_parametrizations",
    ),
    (r"offset", "deformable convolutions"),
    (r"\.lora_", "LoRA adapters; merge them into the weights first"),
    (r"(\.zero_point|\.weight_fake_quant\.|_packed_params)", "quantised layers"),
    (r"\.(prelu|act|relu)\d*\.weight$", "activations with weights (PReLU)"),
]

# Depths by block kind and units in each block.
DEPTHS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}


@dataclass
class Conv:
    """A convolution and the batch norm after it."""

    name: str
    norm: str
    shape: tuple  # out, in, height, width
    stride: int = 1


@dataclass
class Architecture:
    """A ResNet without its weights."""

    block: str  # "basic" or "bottleneck"
    depths: tuple
    widths: tuple
    inner: tuple  # of each block's bottlenecks: channels of the 3x3 convolution
    stem: tuple  # shapes of its convolutions: one, or three of a deep stem
    kinds: tuple  # keys of KINDS
    stride: str = "3x3"  # which convolution of a bottleneck has it
    stem_stride: int | None = None  # of the stem's first convolution, if it is known

    def in_words(self):
        depth = DEPTHS.get((self.block, self.depths))
        if not depth:
            return f"a ResNet of {self.block} blocks, depths {list(self.depths)}"
        is_d = {"deep_stem", "pooled_projection"} <= set(self.kinds)
        ratio = 4 * self.inner[0] / self.widths[0] if "wide" in self.kinds else 1
        return f"{'wide_' * (ratio != 1)}resnet{depth}{'d' * is_d}{f'_{ratio:g}' * (ratio != 1)}"

    def stem_convolutions(self):
        if len(self.stem) == 1:
            return [Conv("conv1", "bn1", self.stem[0], self.stem_stride or (2 if self.has_max_pool() else 1))]
        norms = ("conv1.1", "conv1.4", "bn1")
        first = self.stem_stride or 2
        return [Conv(f"conv1.{3 * i}", norms[i], s, first if i == 0 else 1) for i, s in enumerate(self.stem)]

    def assumes_stem(self):
        """Whether nothing says which stride a 3x3 stem has."""
        return self.stem_stride is None and not self.has_max_pool()

    def has_max_pool(self):
        """A 3x3 stem has none, as in networks for small images; its stride is 1 unless something says otherwise."""
        return len(self.stem) == 3 or self.stem[0][2] == 7

    def units(self):
        """For each residual unit: its name, its convolutions, its projection or None, its stride."""
        channels = self.stem[-1][0]
        for b, (depth, width, inner) in enumerate(zip(self.depths, self.widths, self.inner)):
            for u in range(depth):
                name, stride = f"layer{b + 1}.{u}", 2 if u == 0 and b > 0 else 1
                if self.block == "basic":
                    body = [(width, channels, 3, stride), (width, width, 3, 1)]
                else:
                    first, middle = (stride, 1) if self.stride == "1x1" else (1, stride)
                    body = [(inner, channels, 1, first), (inner, inner, 3, middle), (width, inner, 1, 1)]
                convolutions = [
                    Conv(f"{name}.conv{i}", f"{name}.bn{i}", (k, c, size, size), step)
                    for i, (k, c, size, step) in enumerate(body, 1)
                ]
                projection, pooled = None, "pooled_projection" in self.kinds
                if stride != 1 or channels != width:
                    at = [f"{name}.downsample.{i + pooled}" for i in (0, 1)]
                    projection = Conv(*at, (width, channels, 1, 1), 1 if pooled else stride)
                yield name, convolutions, projection, stride
                channels = width

    def convolutions(self):
        """All of them."""
        found = self.stem_convolutions()
        for _, body, projection, _ in self.units():
            found += body + ([projection] if projection else [])
        return found


def describe(tensors, path, stride="3x3", stem_stride=None):
    """The network that has these tensors.

    Errors: tensors of another network; a kind that the engine does not support.
    """
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = lambda message: Error(f"{path}: {message}")
    for pattern, what in REFUSED:
        found = next((name for name in shapes if re.search(pattern, name)), None)
        if found:
            raise wrong(f"{found}: {what}; {READS}")
    found = replace(read_off(shapes, wrong, stride), stem_stride=stem_stride)
    check_tensors(found, shapes, wrong)
    unsupported = [words for kind, (words, is_supported) in KINDS.items() if kind in found.kinds and not is_supported]
    if unsupported:
        raise wrong(f"{found.in_words()}: {' and '.join(unsupported)}; {READS}")
    return found


def read_off(shapes, wrong, stride):
    """The architecture that the names and shapes suggest; whether all tensors fit it is checked afterwards."""
    units = {}
    for name in shapes:
        if m := re.match(r"layer(\d+)\.(\d+)\.", name):
            b, u = int(m[1]), int(m[2])
            if not 1 <= b <= MOST or u > MOST:
                raise wrong(f"{name}: no ResNet has such a block")
            units[b] = max(units.get(b, 0), u + 1)
    depths = tuple(units.get(b, 0) for b in range(1, max(units, default=0) + 1))
    block = "bottleneck" if any(".conv3." in name for name in shapes) else "basic"
    deep = "conv1.0.weight" in shapes
    stem = tuple(
        shapes.get(n, ())
        for n in (("conv1.0.weight", "conv1.3.weight", "conv1.6.weight") if deep else ("conv1.weight",))
    )
    is_known = deep or (len(stem[0]) == 4 and stem[0][2:] in ((7, 7), (3, 3)))
    if not is_known or any(len(s) != 4 for s in stem):
        raise wrong(f"conv1.weight: expected a 7x7 or 3x3 convolution, found shapes {list(stem)}")
    check_groups(shapes, block, DEPTHS.get((block, depths), ""), wrong)
    last = 2 if block == "basic" else 3
    widths, inner = [], []
    for b in range(1, len(depths) + 1):
        conv = shapes.get(f"layer{b}.0.conv{last}.weight")
        if not conv or len(conv) != 4:
            raise wrong(f"expected layer{b}.0.conv{last}.weight, a convolution; found {conv or 'no such tensor'}")
        widths.append(conv[0])
        inner.append(conv[1])
    kinds = ["deep_stem"] if deep else []
    kinds += ["wide"] if block == "bottleneck" and any(4 * i != w for i, w in zip(inner, widths)) else []
    kinds += ["pooled_projection"] if any(re.search(r"\.downsample\.2\.", n) for n in shapes) else []
    return Architecture(block, depths, tuple(widths), tuple(inner), stem, tuple(kinds), stride)


def check_groups(shapes, block, depth, wrong):
    """Errors: grouped convolutions, whose filters have fewer input channels than the layer before gives."""
    for name, shape in shapes.items():
        m = re.fullmatch(r"(layer\d+\.\d+)\.conv2\.weight", name)
        before = shapes.get(f"{m[1]}.conv1.weight") if m else None
        if before and len(shape) == 4 and shape[1] != before[0] and before[0] % shape[1] == 0:
            groups = before[0] // shape[1]
            kind = f"resnext{depth}_{groups}x{shape[1]}d" if block == "bottleneck" else f"{groups} groups"
            raise wrong(f"{name}: {kind}: grouped convolutions; {READS}")


def check_tensors(network, shapes, wrong):
    """Errors: tensors that are missing, that the network does not have, or of another shape."""
    expected = {}
    for conv in network.convolutions():
        expected[f"{conv.name}.weight"] = conv.shape
        if f"{conv.norm}.weight" in shapes and f"{conv.norm}.running_mean" not in shapes:
            raise wrong(f"{conv.norm}: no running statistics, so this is no batch norm in evaluation mode (GroupNorm?)")
        # A folded batch norm is a convolution's bias.
        is_folded = f"{conv.name}.bias" in shapes and f"{conv.norm}.weight" not in shapes
        parts = [f"{conv.name}.bias"] if is_folded else [f"{conv.norm}.{part}" for part in BATCH_NORM]
        expected.update((part, conv.shape[:1]) for part in parts)
    if "fc.weight" in shapes:
        rows = shapes["fc.weight"][0]
        expected.update({"fc.weight": (rows, network.widths[-1]), "fc.bias": (rows,)})
    for what, names in (
        ("missing", expected.keys() - shapes.keys()),
        ("not part of it", shapes.keys() - expected.keys()),
    ):
        if names:
            raise wrong(
                f"expected the tensors of {network.in_words()}: {len(names)} {what}: {listed(sorted(names), 5)}"
            )
    for name, shape in expected.items():
        if shapes[name] != tuple(shape):
            raise wrong(f"{name}: expected the shape {tuple(shape)} of {network.in_words()}, found {shapes[name]}")


def logits(network, tensors, images):
    """The logits of normalised images [n, c, h, w], or the last features' means where there is no head."""
    torch = need("torch", "computing logits")
    F = torch.nn.functional

    def apply(conv, x):
        weight = tensors[f"{conv.name}.weight"]
        x = F.conv2d(x, weight, tensors.get(f"{conv.name}.bias"), conv.stride, weight.shape[-1] // 2)
        if f"{conv.norm}.weight" not in tensors:
            return x
        gamma, beta, mean, variance = (tensors[f"{conv.norm}.{part}"] for part in BATCH_NORM)
        return F.batch_norm(x, mean, variance, gamma, beta, eps=EPSILON)

    x = images
    for conv in network.stem_convolutions():
        x = F.relu(apply(conv, x))
    if network.has_max_pool():
        x = F.max_pool2d(x, 3, 2, 1)
    for _, body, projection, stride in network.units():
        skip = x
        if projection:
            is_pooled = stride != projection.stride
            skip = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False) if is_pooled else x
            skip = apply(projection, skip)
        for conv in body[:-1]:
            x = F.relu(apply(conv, x))
        x = F.relu(apply(body[-1], x) + skip)
    x = x.mean((2, 3))
    return F.linear(x, tensors["fc.weight"], tensors["fc.bias"]) if "fc.weight" in tensors else x
