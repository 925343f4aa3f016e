"""The networks and the two kinds of steps of src/models and src/pipeline in PyTorch, from the same config file.

Written for the fastest eager PyTorch, and so that `torch.compile` takes a step's loss as one graph: no gradient where
none is needed, frozen weights stored in the type in which they are used, targets under no_grad, in-place activations,
and the two losses over whole feature maps with a backward of one pass (autograd's own needs four).
"""

import ast
import json
import math
import pathlib
import struct
import zipfile

import torch
import torch.nn as nn
import torch.nn.functional as F

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

BN_EPS, STATISTICS_EPS, MIN_STD, LEAK, GAIN = 1e-5, 1e-5, 1e-3, 0.2, 2.0


# ---- config ----


def torchvision(depth, size):
    """ResNetSpec::torchvision."""
    depths = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}[depth]
    widths = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    stem = {"width": 64, "kernel": 7, "stride": 2, "max_pool": True}
    block = "basic" if depth < 50 else "bottleneck"
    return {"block": block, "image": [size, size, 3], "stem": stem, "widths": widths, "depths": depths}


# A small network for dry runs, with the same kinds of layers.
TINY = {
    "block": "bottleneck",
    "image": [32, 32, 3],
    "stem": {"width": 8, "kernel": 7, "stride": 2, "max_pool": True},
    "widths": [16, 32, 32, 32],
    "depths": [1, 1, 1, 1],
}


class Config:
    """A run's config with the defaults of src/config/run.rs."""

    def __init__(self, path, sets=(), tiny=False):
        path = pathlib.Path(path)
        with open(path, "rb") as f:
            raw = tomllib.load(f)
        for assignment in sets:
            key, value = assignment.split("=", 1)
            at = raw
            *outer, last = key.strip().split(".")
            for part in outer:
                at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
            try:
                at[last] = tomllib.loads(f"v = {value}")["v"]
            except tomllib.TOMLDecodeError:
                at[last] = value
        student, g, loss = (raw.get(k, {}) for k in ("student", "generator", "loss"))
        dual, augment = raw["dual"], raw["dual"].get("augment", {})
        self.network, self.labels = None, []
        for t in raw["teachers"]:
            network, labels = teacher(t, path.parent, len(self.labels))
            self.network = self.network or network
            assert network == self.network, "teachers must share one architecture"
            self.labels.append(labels)
        self.groups, self.latent = g.get("groups", 2), g.get("latent", 128)
        self.widths = g.get("widths", [128, 64, 32, 32, 16])
        self.g_steps, self.g_batch, self.shift = g.get("steps", 400), g.get("batch", 64), g.get("shift", 6)
        self.betas = tuple(g.get("betas", [0.5, 0.999]))
        self.recipe = loss.get("recipe", "conditional")
        published = self.recipe == "published"
        self.max_labels, self.share = loss.get("max_labels", 3), loss.get("share", 0.08)
        self.positive = loss.get("positive", 4.0)
        self.alpha = loss.get("alpha", 1.0 if published else 0.1)
        self.mean_activation = loss.get("activation", "sum" if published else "mean") == "mean"
        self.beta, self.gamma = loss.get("beta", 1.0 if published else 0.0), loss.get("gamma", 5.0 if published else 0.0)
        self.statistics = loss.get("statistics", 0.0 if published else 5.0)
        self.norm, self.reduction = student.get("norm", "stored"), student.get("filter_reduction", 4)
        self.images, self.bank, self.batch = dual.get("images", "generator"), dual.get("bank", 4096), dual.get("batch", 64)
        self.feature, self.late = dual.get("feature", 0.0), dual.get("late_features", 0.0)
        self.freeze, self.lambda_in = dual.get("freeze_earlier", False), dual.get("lambda_in", [1.0, 1.0])
        self.augment = {k: augment.get(k, 0) for k in ("shift", "flip", "mix_max", "cutmix")}
        wanted = student.get("labels", "all")
        every = [name for labels in self.labels for name in labels]
        # As src/pipeline/tasks.rs: every label belongs to the first teacher that has it. Pairs (teacher,
        # columns).
        owned = {}
        for name in every if wanted == "all" else wanted:
            m = next(m for m, labels in enumerate(self.labels) if name in labels)
            columns = owned.setdefault(m, [])
            if self.labels[m].index(name) not in columns:
                columns.append(self.labels[m].index(name))
        self.tasks = sorted(owned.items())
        if tiny:
            self.shrink()

    def shrink(self):
        self.network, self.widths, self.g_batch, self.batch, self.bank = TINY, [8], 2, 2, 8
        self.shift, self.augment["shift"] = min(self.shift, 6), min(self.augment["shift"], 6)


def teacher(raw, folder, index):
    """Network and labels of a [[teachers]] table: from its weights file, or from the network that it names."""
    if "network" not in raw:
        meta = json.loads(bytes(arrays(folder / raw["weights"], only="__meta__")["__meta__"].tolist()))
        return meta["network"], meta["labels"]
    network = raw["network"]
    if isinstance(network, str):
        network = torchvision(int(network.removeprefix("resnet")), raw.get("image_size", 224))
    labels = raw.get("labels", 10)
    if isinstance(labels, int):
        labels = [f"{raw['name']}{i}" for i in range(labels)]
    return network, labels


def arrays(path, only=None):
    """The arrays of an npz as tensors. Without NumPy, because PyTorch does not install it."""
    out = {}
    with zipfile.ZipFile(path) as z:
        for entry in z.namelist():
            name = entry.removesuffix(".npy")
            if only is not None and name != only:
                continue
            data = z.read(entry)
            at = 10 if data[6] == 1 else 12
            (length,) = struct.unpack("<H" if data[6] == 1 else "<I", data[8:at])
            header = ast.literal_eval(data[at : at + length].decode())
            dtype = {"<f4": torch.float32, "<f8": torch.float64, "|u1": torch.uint8}[header["descr"]]
            assert not header["fortran_order"], f"{path}: {name}: C order expected"
            body = bytearray(data[at + length :])
            flat = torch.frombuffer(body, dtype=dtype) if body else torch.empty(0, dtype=dtype)
            out[name] = flat.reshape(header["shape"])
    return out


# ---- losses over feature maps ----


def wide(x):
    """The type in which sums over x are computed."""
    return torch.float32 if x.dtype == torch.bfloat16 else x.dtype


class Statistics(torch.autograd.Function):
    """src/ops/losses/statistics_loss.rs; the backward is linear in u."""

    @staticmethod
    def forward(ctx, u, mean, std):
        if u.dtype == torch.bfloat16:
            # var_mean would round both to bf16.
            mu = u.mean((0, 2, 3), dtype=torch.float32)
            square = torch.linalg.vector_norm(u, dim=(0, 2, 3), dtype=torch.float32) ** 2
            var = (square / (u.numel() // u.shape[1]) - mu * mu).clamp_min(0)
        else:
            var, mu = torch.var_mean(u, (0, 2, 3), correction=0)
        counts = std >= MIN_STD
        counted = counts.sum().clamp_min(1)
        std = torch.where(counts, std, 1.0)
        away, ratio = mu - mean, (var / (std * std) + STATISTICS_EPS).sqrt()
        loss = torch.where(counts, (away / std) ** 2 + (ratio - 1) ** 2, 0.0).sum() / counted
        scale = torch.where(counts, 2.0 / (std * std), 0.0) / (counted * (u.numel() // u.shape[1]))
        slope = scale * (ratio - 1) / ratio
        ctx.save_for_backward(u, slope, scale * away - slope * mu)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        u, slope, offset = ctx.saved_tensors
        slope, offset = ((v * dloss)[:, None, None] for v in (slope, offset))
        if torch.compiler.is_compiling():
            return torch.addcmul(offset, u, slope).to(u.dtype), None, None
        # Computed in f32, and rounded once when it is stored.
        return torch.addcmul(offset, u, slope, out=torch.empty_like(u)), None, None


class RelativeError(torch.autograd.Function):
    """src/ops/losses/feature_loss.rs: ||a - b||^2 / ||b||^2."""

    @staticmethod
    def forward(ctx, a, b):
        d = a - b
        norm = torch.linalg.vector_norm(b, dtype=wide(b)).square().clamp_min(1e-12)
        ctx.save_for_backward(d, norm)
        return torch.linalg.vector_norm(d, dtype=wide(d)).square() / norm

    @staticmethod
    def backward(ctx, dloss):
        d, norm = ctx.saved_tensors
        return d * (2 * dloss / norm), None


class Moved(torch.autograd.Function):
    """Shifts every image by (down, right) pixels and fills the gap with `fill`; backward shifts the gradient back."""

    @staticmethod
    def forward(ctx, x, down, right, most, fill):
        ctx.save_for_backward(down, right)
        ctx.most = most
        return moved(x, down, right, most, fill)

    @staticmethod
    def backward(ctx, dy):
        down, right = ctx.saved_tensors
        return moved(dy, -down, -right, ctx.most, 0.0), None, None, None, None


def moved(x, down, right, most, fill, mirrored=None):
    n, c, h, w = x.shape
    rows = torch.arange(h, device=x.device) - down[:, None] + most
    columns = torch.arange(w, device=x.device).expand(n, w)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], w - 1 - columns, columns)
    columns = columns - right[:, None] + most
    padded = F.pad(x, (most,) * 4, value=fill)
    image = torch.arange(n, device=x.device)[:, None, None]
    y = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()


def within(n, most, device):
    return torch.randint(-most, most + 1, (n,), device=device)


def augmented(x, shift, flip, mix_max, cutmix):
    """src/ops/random/augment.rs, without its gradient."""
    n, _, h, w = x.shape
    device = x.device
    if shift > 0 or flip > 0:
        mirrored = torch.rand(n, device=device) < flip if flip > 0 else None
        x = moved(x, within(n, shift, device), within(n, shift, device), shift, -1.0, mirrored)
    if mix_max + cutmix > 0:
        other = (torch.arange(n, device=device) + 1 + torch.randint(0, n - 1, (n,), device=device)) % n
        u, partner = torch.rand(n, 1, 1, 1, device=device), x[other]
        y = torch.where(u < mix_max, torch.maximum(x, partner), x)
        if cutmix > 0:
            inside = True
            for size, axis in ((h, 2), (w, 3)):
                length = 1 + (torch.rand(n, device=device) * math.ceil(size / 2)).long()
                start = (torch.rand(n, device=device) * (size - length + 1)).long()
                line = torch.arange(size, device=device)
                part = (line >= start[:, None]) & (line < (start + length)[:, None])
                inside = part.view([n, 1] + [size if a == axis else 1 for a in (2, 3)]) & inside
            y = torch.where((u >= mix_max) & (u < mix_max + cutmix) & inside, partner, y)
        x = y
    return x


# ---- networks ----


class Norm(nn.Module):
    """A batch norm with its stored statistics, or with those of the batch."""

    def __init__(self, c, batch):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(c))
        self.register_buffer("running_mean", torch.zeros(c))
        self.register_buffer("running_var", torch.ones(c))
        self.batch = batch

    def forward(self, x):
        stored = (self.running_mean, self.running_var)
        return F.batch_norm(x, *stored, self.weight, self.bias, self.batch, 0.1, BN_EPS)


class Conv(nn.Module):
    """A convolution and its batch norm; `folded` leaves a convolution with a bias."""

    def __init__(self, c, k, kernel, stride, folded, batch):
        super().__init__()
        self.conv = nn.Conv2d(c, k, kernel, stride, kernel // 2, bias=folded)
        nn.init.kaiming_normal_(self.conv.weight)
        if folded:
            nn.init.zeros_(self.conv.bias)
        self.norm = None if folded else Norm(k, batch)
        # The targets of the statistics loss; with a folded batch norm its beta and |gamma|.
        self.register_buffer("mean", torch.zeros(k))
        self.register_buffer("std", torch.ones(k))

    def forward(self, x, watch, losses):
        u = self.conv(x)
        y = u if self.norm is None else self.norm(u)
        if watch:
            # The output of an unfolded batch norm equals that of a folded convolution.
            losses.append(Statistics.apply(y, self.mean, self.std))
        return y


class Unit(nn.Module):
    def __init__(self, kind, c, k, stride, folded, batch):
        super().__init__()
        mid = k // 4
        layers = [(c, k, 3, stride), (k, k, 3, 1)]
        if kind == "bottleneck":
            layers = [(c, mid, 1, 1), (mid, mid, 3, stride), (mid, k, 1, 1)]
        self.body = nn.ModuleList(Conv(*layer, folded, batch) for layer in layers)
        self.skip = Conv(c, k, 1, stride, folded, batch) if stride != 1 or c != k else None

    def forward(self, x, watch):
        losses = []
        skip = x if self.skip is None else self.skip(x, watch, losses)
        for i, conv in enumerate(self.body):
            x = conv(x, watch, losses)
            if i + 1 < len(self.body):
                # The statistics loss keeps x, which an in-place activation would overwrite.
                x = F.relu(x) if watch else F.relu_(x)
        return F.relu_(x + skip), losses


class Stem(nn.Module):
    def __init__(self, c, spec, folded, batch):
        super().__init__()
        self.conv = Conv(c, spec["width"], spec["kernel"], spec["stride"], folded, batch)
        self.max_pool = spec["max_pool"]

    def forward(self, x, watch):
        losses = []
        x = self.conv(x, watch, losses)
        x = F.relu(x) if watch else F.relu_(x)
        return F.max_pool2d(x, 3, 2, 1) if self.max_pool else x, losses


class ResNet(nn.Module):
    """The first `blocks` blocks of a network, and a head for `labels` labels unless that is 0."""

    def __init__(self, spec, labels, folded, batch=False, blocks=None):
        super().__init__()
        stem, widths = spec["stem"], spec["widths"]
        self.last = len(widths)
        self.stem = Stem(spec["image"][2], stem, folded, batch)
        self.blocks = nn.ModuleList()
        c = stem["width"]
        for b in range(blocks or self.last):
            units = []
            for u in range(spec["depths"][b]):
                units.append(Unit(spec["block"], c, widths[b], 2 if u == 0 and b > 0 else 1, folded, batch))
                c = widths[b]
            self.blocks.append(nn.ModuleList(units))
        self.fc = nn.Linear(widths[-1], labels) if labels else None

    def block(self, b, x, watched=None):
        for unit in [self.stem] * (b == 1) + list(self.blocks[b - 1]):
            x, losses = unit(x, watched is not None)
            if watched is not None:
                watched += losses
        return x

    def head(self, x):
        pooled = x.mean((2, 3), dtype=wide(x))
        return pooled, self.fc(pooled).to(pooled.dtype)

    def predict(self, x, first=1, watched=None):
        for b in range(first, self.last + 1):
            x = self.block(b, x, watched)
        return self.head(x)

    def convs(self):
        """Yields torchvision's names of each convolution and its batch norm, and the module."""
        yield "conv1", "bn1", self.stem.conv
        for b, units in enumerate(self.blocks, 1):
            for u, unit in enumerate(units):
                for i, conv in enumerate(unit.body, 1):
                    yield f"layer{b}.{u}.conv{i}", f"layer{b}.{u}.bn{i}", conv
                if unit.skip is not None:
                    yield f"layer{b}.{u}.downsample.0", f"layer{b}.{u}.downsample.1", unit.skip


class Filter(nn.Module):
    """src/ops/layers/se_filter.rs."""

    def __init__(self, c, reduction):
        super().__init__()
        self.reduce, self.expand = nn.Linear(c, c // reduction), nn.Linear(c // reduction, c)

    def forward(self, x):
        pooled = x.mean((2, 3), dtype=wide(x))
        gain = GAIN * torch.sigmoid(self.expand(F.relu(self.reduce(pooled))))
        return x * gain[:, :, None, None].to(x.dtype)


class Generator(nn.Module):
    """src/models/generator.rs."""

    def __init__(self, spec, groups, z, widths, nhwc):
        super().__init__()
        blocks, self.nhwc = len(spec["widths"]), nhwc
        self.levels = [(2 * blocks * (groups - j) + groups) // (2 * groups) for j in range(1, groups)] + [0]
        width = lambda i: widths[min(i, len(widths) - 1)]
        size = {level: feature_size(spec, level) for level in range(1, blocks)}
        self.side = side = size[blocks - 1]
        c = self.c = width(0)
        self.project, self.project_norm = nn.Linear(z, side[0] * side[1] * c, bias=False), Norm(c, True)
        shallowest = min(self.levels[max(len(self.levels) - 2, 0)], blocks - 1)
        self.steps, self.how = nn.ModuleList(), []
        i = 0
        while True:
            level = next((l for l in range(1, blocks) if size[l] == side), None)
            smooth = groups == 1 or level is None or level < shallowest
            self.add(c, width(i + 1), None if i == 0 else "bilinear" if smooth else "nearest", False)
            c = width(i + 1)
            if level is not None and level in self.levels:
                self.add(c, spec["widths"][level - 1], None, True)
                c = spec["widths"][level - 1]
            if side[0] >= spec["image"][0] and side[1] >= spec["image"][1]:
                break
            side, i = (2 * side[0], 2 * side[1]), i + 1
        self.image = nn.Conv2d(c, spec["image"][2], 3, padding=1)

    def add(self, c, k, mode, ends):
        conv = nn.Conv2d(c, k, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        self.steps.append(nn.Sequential(conv, Norm(k, True)))
        self.how.append((mode, ends))

    def forward(self, z):
        x = self.project(z)
        x = x.view(-1, *self.side, self.c).permute(0, 3, 1, 2) if self.nhwc else x.view(-1, self.c, *self.side)
        x = F.leaky_relu_(self.project_norm(x), LEAK)
        out = []
        for step, (mode, ends) in zip(self.steps, self.how):
            if mode is not None:
                align = {"align_corners": False} if mode == "bilinear" else {}
                x = F.interpolate(x, scale_factor=2.0, mode=mode, **align)
            x = F.relu_(step(x)) if ends else F.leaky_relu_(step(x), LEAK)
            if ends:
                out.append(x)
        return out + [torch.tanh(self.image(x))]


def feature_size(spec, level):
    """Height and width after a block."""
    stem = spec["stem"]

    def size(s):
        s = (s + 2 * (stem["kernel"] // 2) - stem["kernel"]) // stem["stride"] + 1
        for _ in range(level - 1 + stem["max_pool"]):
            s = (s - 1) // 2 + 1
        return s

    return size(spec["image"][0]), size(spec["image"][1])


# ---- steps ----


class Place:
    """The device, memory format and types of a variant."""

    def __init__(self, device, folded, nhwc=True, autocast=False, dtype=torch.float32):
        self.device, self.folded, self.autocast, self.dtype = torch.device(device), folded, autocast, dtype
        self.nhwc, self.format = nhwc, torch.channels_last if nhwc else torch.contiguous_format

    def put(self, module):
        return module.to(self.device, self.dtype, memory_format=self.format)

    def frozen(self, module):
        module = self.put(module).requires_grad_(False)
        if self.autocast:
            # Autocast would cast a frozen f32 weight at every use.
            for m in module.modules():
                if isinstance(m, (nn.Conv2d, nn.Linear)):
                    m.to(torch.bfloat16)
        return module

    def laid(self, x):
        return x.contiguous(memory_format=self.format)

    def context(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast)

    def bank(self, config):
        rows = max(1, min((config.g_steps - config.g_steps // 5) * config.g_batch, config.bank))
        h, w, c = config.network["image"]
        return self.laid(torch.rand(rows, c, h, w, device=self.device) * 2 - 1)


def teachers(config, place):
    return [place.frozen(ResNet(config.network, len(labels), place.folded)) for labels in config.labels]


def draws(config, place, n):
    """z, and the wanted labels if the recipe has them."""
    z = torch.randn(n, config.latent, device=place.device, dtype=place.dtype)
    if config.recipe != "conditional":
        return z, None
    labels = sum(map(len, config.labels))
    order = torch.rand(n, labels, device=place.device).argsort(1)
    count = torch.randint(1, config.max_labels + 1, (n, 1), device=place.device)
    chosen = (torch.arange(labels, device=place.device) < count).to(z.dtype)
    wanted = torch.zeros_like(chosen).scatter(1, order, chosen)
    return torch.cat([z, wanted], 1), wanted


def z_length(config):
    return config.latent + (sum(map(len, config.labels)) if config.recipe == "conditional" else 0)


def bce(logits, target):
    return F.binary_cross_entropy_with_logits(logits, target)


def one_hot(config, logits, wanted):
    if config.recipe == "conditional":
        weight = torch.full_like(logits[:1], config.positive)
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight)
    if config.recipe == "published":
        return bce(logits, (logits.detach() >= 0).to(logits.dtype))
    n = logits.shape[0]
    rank = logits.detach().argsort(0, descending=True, stable=True).argsort(0)
    return bce(logits, (rank < max(1, min(n, round(config.share * n)))).to(logits.dtype))


def negative_entropy(p):
    return torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)


def objective(config, nets, filters, levels, numbers, wanted, shift):
    """StageOne::record_objective: the loss, its terms and the diversity of the features."""
    image = levels[-1]
    seen = image
    if shift > 0:
        n, device = image.shape[0], image.device
        seen = Moved.apply(image, within(n, shift, device), within(n, shift, device), shift, -1.0)
    watched, features, logits = ([] if config.statistics > 0 else None), [], []
    for net in nets:
        f, y = net.predict(seen, watched=watched)
        features.append(f)
        logits.append(y)
    every = torch.cat(logits, 1)
    terms = {"one_hot": (1.0, one_hot(config, every, wanted))}
    l1 = [-f.abs().sum() / (f.numel() if config.mean_activation else f.shape[0]) for f in features]
    terms["activation"] = (config.alpha, sum(l1) / len(nets))
    if config.beta > 0:
        terms["entropy"] = (config.beta, negative_entropy(torch.sigmoid(every).mean(0)).mean())
    if config.gamma > 0:
        terms["discrete"] = (config.gamma, torch.sigmoid(every).mean())
    if watched:
        terms["statistics"] = (config.statistics, torch.stack(watched).mean())
    if len(levels) > 1:
        target = every.detach()
        if shift > 0:
            with torch.no_grad():
                target = torch.cat([net.predict(image)[1] for net in nets], 1)
        target = torch.sigmoid(target)
        inner = []
        for level, x, own in zip(numbers, levels, filters):
            y = torch.cat([net.predict(f(x), level + 1)[1] for net, f in zip(nets, own)], 1)
            inner.append(bce(y, target))
        terms["inner"] = (1.0, torch.stack(inner).mean())
    loss = sum(weight * value for weight, value in terms.values())
    with torch.no_grad():
        f = torch.cat(features, 1)
        n = f.shape[0]
        diversity = 2 * n / (n - 1) * (f - f.mean(0)).square().sum() / f.square().sum()
    return loss, {name: value.detach() for name, (_, value) in terms.items()}, diversity


# Kinds whose whole step, optimiser included, is captured as one CUDA graph.
CAPTURED = ("graphed", "units")


def compiled(step, kind, modules):
    """The step's loss function. `compile` makes one graph of it, `units` a graph of every kind of residual unit."""
    settings = {"fullgraph": True, "dynamic": False}
    if kind == "compile":
        return torch.compile(step.forward, mode="max-autotune", **settings)
    if kind == "units":
        # Units of one shape share their compiled code; there are more shapes than the default limit allows.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.cache_size_limit = 256
        for module in modules:
            whole = isinstance(module, (Generator, Filter))
            units = [module] if whole else [module.stem, *(u for b in module.blocks for u in b)]
            for unit in units:
                unit.compile(mode="max-autotune-no-cudagraphs", **settings)
        if isinstance(step, DualStep):
            step.relative_error = torch.compile(step.relative_error, mode="max-autotune-no-cudagraphs", **settings)
    return step.forward


def captured(step):
    """A step as one CUDA graph (its random numbers still differ from replay to replay)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    step.adam.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = step()

    def replay():
        graph.replay()
        return loss

    return replay


class GeneratorStep:
    """StageOne::stage."""

    def __init__(self, config, groups, place, kind="eager"):
        self.config, self.place, self.batch = config, place, config.g_batch
        self.nets = teachers(config, place)
        self.g = place.put(Generator(config.network, groups, z_length(config), config.widths, place.nhwc))
        make = lambda level: nn.ModuleList(
            Filter(config.network["widths"][level - 1], config.reduction) for _ in self.nets
        )
        self.filters = place.put(nn.ModuleList(make(level) for level in self.g.levels[:-1]))
        learning = [*self.g.parameters(), *self.filters.parameters()]
        # A learning rate of 0: hundreds of repeats must not change the weights.
        self.adam = torch.optim.Adam(learning, 0.0, config.betas, fused=True, capturable=kind in CAPTURED)
        self.bank, self.at = place.bank(config), 0
        own = [f for level in self.filters for f in level]
        self.loss = compiled(self, kind, [*self.nets, self.g, *own])

    def forward(self):
        with self.place.context():
            z, wanted = draws(self.config, self.place, self.batch)
            levels = self.g(z)
            loss, _, diversity = objective(
                self.config, self.nets, self.filters, levels, self.g.levels, wanted, self.config.shift
            )
        return loss, levels[-1].detach(), diversity

    def __call__(self):
        self.adam.zero_grad(set_to_none=True)
        loss, image, _ = self.loss()
        loss.backward()
        self.adam.step()
        rows = min(self.batch, len(self.bank) - self.at)
        self.bank[self.at : self.at + rows].copy_(image[:rows])
        self.at = (self.at + rows) % len(self.bank)
        return loss


class DualStep:
    """StageTwo::stage of block b."""

    def __init__(self, config, b, place, kind="eager"):
        self.config, self.b, self.place, self.batch = config, b, place, config.batch
        self.nets = teachers(config, place)
        from_generator = config.images == "generator"
        self.second = None
        if from_generator and b > 1 and config.lambda_in[1] > 0:
            g = Generator(config.network, config.groups, z_length(config), config.widths, place.nhwc)
            if b - 1 in g.levels:
                self.g, self.second = place.frozen(g), g.levels.index(b - 1)
        batch_norm = config.norm == "batch"
        self.trunk = place.put(ResNet(config.network, 0, config.norm == "folded", batch_norm, b))
        c = config.network["widths"][b - 1]
        self.filters = place.put(nn.ModuleList(Filter(c, config.reduction) for _ in config.tasks))
        self.bank = place.bank(config) if config.images != "noise" else None
        if config.freeze:
            for part in [self.trunk.stem, *self.trunk.blocks[: b - 1]] if b > 1 else []:
                part.requires_grad_(False)
                for norm in (m for m in part.modules() if isinstance(m, Norm)):
                    norm.batch = False
        learning = [p for p in [*self.trunk.parameters(), *self.filters.parameters()] if p.requires_grad]
        self.adam = torch.optim.Adam(learning, 0.0, (0.9, 0.999), fused=True, capturable=kind in CAPTURED)
        self.columns = {
            m: None if columns == list(range(len(config.labels[m]))) else torch.tensor(columns, device=place.device)
            for m, columns in config.tasks
        }
        second = [] if self.second is None else [self.g]
        self.relative_error = RelativeError.apply
        self.loss = compiled(self, kind, [*self.nets, self.trunk, *self.filters, *second])

    def suffix(self, m, x):
        net, columns, features = self.nets[m], self.columns[m], [x]
        for b in range(self.b + 1, net.last + 1):
            features.append(net.block(b, features[-1]))
        pooled, y = net.head(features[-1])
        return features + [pooled], y if columns is None else y[:, columns]

    def one_input(self, image, x, first):
        config, loss = self.config, 0
        for b in range(first, self.b + 1):
            x = self.trunk.block(b, x)
        for (m, _), own in zip(config.tasks, self.filters):
            with torch.no_grad():
                shallow = image
                for b in range(1, self.b + 1):
                    shallow = self.nets[m].block(b, shallow)
                wanted_features, wanted = self.suffix(m, shallow)
                target = torch.sigmoid(wanted)
                entropy = -negative_entropy(target).mean()
            features, found = self.suffix(m, own(x))
            loss = loss + bce(found, target) - entropy
            for i, (a, w) in enumerate(zip(features, wanted_features)):
                weight = config.feature if i == 0 else config.late / (len(features) - 1)
                if weight > 0:
                    loss = loss + weight * self.relative_error(a, w)
        return loss

    def forward(self):
        config, place = self.config, self.place
        with place.context():
            with torch.no_grad():
                if self.bank is None:
                    h, w, c = config.network["image"]
                    image = torch.randn(self.batch, h, w, c, device=place.device).permute(0, 3, 1, 2)
                else:
                    image = self.bank[torch.randint(0, len(self.bank), (self.batch,), device=place.device)]
                if place.autocast:
                    image = image.to(torch.bfloat16)
                image = place.laid(augmented(image, **config.augment))
            loss = config.lambda_in[0] * self.one_input(image, image, 1)
            if self.second is not None:
                with torch.no_grad():
                    levels = self.g(draws(config, place, self.batch)[0])
                loss = loss + config.lambda_in[1] * self.one_input(levels[-1], levels[self.second], self.b)
        return loss

    def __call__(self):
        self.adam.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.adam.step()
        return loss
