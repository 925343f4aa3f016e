"""The steps of `benches/step.rs` in PyTorch, on the CPU: `python benches/torch/step.py [SECONDS [THREADS [ROW]]]` (needs torch).

Eager PyTorch at its best: no graph where no gradient is needed, frozen parts without requires_grad, the fused Adam,
target branches under no_grad. Each row is timed four times: teachers' batch norms folded or not, memory contiguous or
channels_last. Prints row, variant, median, minimum and least processor time of all threads together in
milliseconds, tab-separated.
"""

import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

BATCH, LABELS = 64, 10
WIDTHS, G_WIDTHS = [16, 32, 64, 128], [128, 64, 32, 32, 16]
LATENT, SHIFT, MIX_MAX, BANK = 108, 6, 0.3, 4096
LAYOUT = torch.contiguous_format


class Conv(nn.Module):
    """Convolution and batch norm; `folded` leaves a convolution with a bias."""

    def __init__(self, c, k, kernel, stride, folded):
        super().__init__()
        self.conv = nn.Conv2d(c, k, kernel, stride, kernel // 2, bias=folded)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm = None if folded else nn.BatchNorm2d(k)
        # What the batch norm remembers, for the statistics loss.
        self.register_buffer("mean", torch.zeros(k))
        self.register_buffer("std", torch.ones(k))

    def forward(self, x, watch=None):
        u = self.conv(x)
        if watch is not None:
            var, mean = torch.var_mean(u, (0, 2, 3), correction=0)
            sigma = (var / self.std**2 + 1e-5).sqrt()
            watch.append((((mean - self.mean) / self.std) ** 2 + (sigma - 1) ** 2).mean())
        return u if self.norm is None else self.norm(u)


class Block(nn.Module):
    def __init__(self, c, k, stride, folded):
        super().__init__()
        self.a, self.b = Conv(c, k, 3, stride, folded), Conv(k, k, 3, 1, folded)
        self.skip = Conv(c, k, 1, stride, folded) if stride != 1 or c != k else None

    def forward(self, x, watch=None):
        skip = x if self.skip is None else self.skip(x, watch)
        y = F.relu(self.a(x, watch), inplace=watch is None)
        return F.relu_(self.b(y, watch) + skip)


class ResNet(nn.Module):
    def __init__(self, folded, head):
        super().__init__()
        self.stem = Conv(1, 16, 3, 2, folded)
        inputs = [16] + WIDTHS[:-1]
        blocks = [Block(c, k, 1 if i == 0 else 2, folded) for i, (c, k) in enumerate(zip(inputs, WIDTHS))]
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(WIDTHS[-1], LABELS) if head else None
        self.eval()

    def block(self, b, x, watch=None):
        if b == 1:
            x = F.relu(self.stem(x, watch), inplace=watch is None)
        return self.blocks[b - 1](x, watch)

    def head(self, x):
        pooled = x.mean((2, 3))
        return pooled, self.fc(pooled)

    def predict(self, x, first=1, watch=None):
        for b in range(first, 5):
            x = self.block(b, x, watch)
        return self.head(x)


class Filter(nn.Module):
    def __init__(self, c, r=4):
        super().__init__()
        self.reduce, self.expand = nn.Linear(c, c // r), nn.Linear(c // r, c)

    def forward(self, x):
        gain = 2 * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))
        return x * gain[:, :, None, None]


class Generator(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.levels = {1: [0], 2: [2, 0], 4: [3, 2, 1, 0]}[groups]
        self.project = nn.Linear(LATENT + 2 * LABELS, 16 * G_WIDTHS[0], bias=False)
        self.project_norm = nn.BatchNorm2d(G_WIDTHS[0])
        shallowest = 3 if groups == 1 else self.levels[-2]
        self.steps = nn.ModuleList()
        self.how = []
        c = G_WIDTHS[0]
        for i, level in enumerate([3, 2, 1, 0]):
            mode = "bilinear" if groups == 1 or level < shallowest else "nearest"
            self.add(c, G_WIDTHS[i + 1], mode if i > 0 else None, False, False)
            c = G_WIDTHS[i + 1]
            if level > 0 and level in self.levels:
                self.add(c, WIDTHS[level - 1], None, True, True)
                c = WIDTHS[level - 1]
        self.image = nn.Conv2d(c, 1, 3, padding=1)

    def add(self, c, k, mode, relu, ends):
        conv = nn.Conv2d(c, k, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        self.steps.append(nn.Sequential(conv, nn.BatchNorm2d(k)))
        self.how.append((mode, relu, ends))

    def forward(self, z):
        x = self.project(z)
        if LAYOUT == torch.channels_last:
            x = x.view(-1, 4, 4, G_WIDTHS[0]).permute(0, 3, 1, 2)
        else:
            x = x.view(-1, G_WIDTHS[0], 4, 4)
        x = F.leaky_relu_(self.project_norm(x), 0.2)
        out = []
        for step, (mode, relu, ends) in zip(self.steps, self.how):
            if mode is not None:
                align = {"align_corners": False} if mode == "bilinear" else {}
                x = F.interpolate(x, scale_factor=2, mode=mode, **align)
            x = F.relu_(step(x)) if relu else F.leaky_relu_(step(x), 0.2)
            if ends:
                out.append(x)
        return out + [torch.tanh(self.image(x))]


def shifted(x):
    """Each image moved by up to SHIFT pixels, -1 moving in: one gather from the padded images."""
    n, side = x.shape[0], 32 + 2 * SHIFT
    at = torch.randint(0, 2 * SHIFT + 1, (n, 2))
    line = torch.arange(32)
    rows, cols = at[:, :1] + line, at[:, 1:] + line
    index = (rows[:, :, None] * side + cols[:, None, :]).view(n, -1)
    padded = F.pad(x, (SHIFT,) * 4, value=-1.0).reshape(n, -1)
    return padded.gather(1, index).view(n, 1, 32, 32)


def augmented(x):
    """Shifted, and with probability MIX_MAX the maximum with another image."""
    x = shifted(x)
    other = (torch.arange(BATCH) + 1 + torch.randint(0, BATCH - 1, (BATCH,))) % BATCH
    mixed = (torch.rand(BATCH) < MIX_MAX)[:, None, None, None]
    return torch.where(mixed, torch.maximum(x, x[other]), x)


def drawn():
    wanted = torch.zeros(BATCH, 2 * LABELS)
    order = torch.rand(BATCH, 2 * LABELS).argsort(1)
    count = torch.randint(1, 4, (BATCH, 1))
    wanted.scatter_(1, order, (torch.arange(2 * LABELS) < count).float())
    return torch.cat([torch.randn(BATCH, LATENT), wanted], 1), wanted


def frozen(module):
    return placed(module).requires_grad_(False)


def placed(module):
    return module.to(memory_format=LAYOUT)


def laid(x):
    return x.contiguous(memory_format=LAYOUT)


class GeneratorStep:
    def __init__(self, groups, folded):
        self.teachers = [frozen(ResNet(folded, True)) for _ in range(2)]
        self.g = placed(Generator(groups))
        levels = self.g.levels[:-1]
        self.filters = nn.ModuleList(nn.ModuleList(Filter(WIDTHS[l - 1]) for _ in range(2)) for l in levels)
        learning = [*self.g.parameters(), *self.filters.parameters()]
        self.adam = torch.optim.Adam(learning, 1e-3, (0.5, 0.999), fused=True)
        self.bank, self.at = torch.zeros(BANK, 1, 32, 32), 0

    def __call__(self):
        z, wanted = drawn()
        levels = self.g(z)
        image = levels[-1]
        seen = laid(shifted(image))
        watched, features, logits = [], [], []
        for t in self.teachers:
            f, y = t.predict(seen, watch=watched)
            features.append(f)
            logits.append(y)
        every = torch.cat(logits, 1)
        loss = F.binary_cross_entropy_with_logits(every, wanted)
        loss = loss - 0.1 * sum(f.abs().mean() for f in features) / 2
        loss = loss + 5 * sum(watched) / len(watched)
        if len(levels) > 1:
            with torch.no_grad():
                target = torch.sigmoid(torch.cat([t.predict(laid(image))[1] for t in self.teachers], 1))
            for level, x, filters in zip(self.g.levels, levels, self.filters):
                y = torch.cat([t.predict(f(x), level + 1)[1] for t, f in zip(self.teachers, filters)], 1)
                loss = loss + F.binary_cross_entropy_with_logits(y, target) / (len(levels) - 1)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        with torch.no_grad():
            f = torch.cat(features, 1)
            ((f - f.mean(0)) ** 2).sum() / (f**2).sum()
            self.bank[self.at : self.at + BATCH] = image
            self.at = (self.at + BATCH) % BANK
        return loss.item()


class DualStep:
    def __init__(self, b, folded):
        self.b = b
        self.teachers = [frozen(ResNet(folded, True)) for _ in range(2)]
        self.g = frozen(Generator(2)).train()
        self.student = placed(ResNet(False, False))
        self.filters = nn.ModuleList(Filter(WIDTHS[b - 1]) for _ in range(2))
        self.bank = torch.randn(BANK, 1, 32, 32)
        trunk = [p for part in [self.student.stem, *self.student.blocks[:b]] for p in part.parameters()]
        self.adam = torch.optim.Adam([*trunk, *self.filters.parameters()], 1e-3, fused=True)

    def suffix(self, t, x):
        features = [x]
        for b in range(self.b + 1, 5):
            features.append(t.block(b, features[-1]))
        pooled, y = t.head(features[-1])
        return features + [pooled], y

    def one_input(self, image, x, first):
        for b in range(first, self.b + 1):
            x = self.student.block(b, x)
        loss = 0
        for t, f in zip(self.teachers, self.filters):
            with torch.no_grad():
                shallow = image
                for b in range(1, self.b + 1):
                    shallow = t.block(b, shallow)
                wanted_features, wanted = self.suffix(t, shallow)
                target = torch.sigmoid(wanted)
                entropy = F.binary_cross_entropy(target, target)
            features, found = self.suffix(t, f(x))
            errors = [((a - w) ** 2).sum() / (w**2).sum() for a, w in zip(features, wanted_features)]
            loss = loss + F.binary_cross_entropy_with_logits(found, target) - entropy
            loss = loss + errors[0] + sum(errors[1:]) / len(errors[1:])
        return loss

    def __call__(self):
        with torch.no_grad():
            image = laid(augmented(self.bank[torch.randint(0, BANK, (BATCH,))]))
        loss = self.one_input(image, image, 1)
        if self.b - 1 in self.g.levels[:-1]:
            with torch.no_grad():
                levels = self.g(drawn()[0])
            at = self.g.levels.index(self.b - 1)
            loss = loss + 0.3 * self.one_input(laid(levels[-1]), levels[at], self.b)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        self.adam.step()
        return loss.item()


def milliseconds(step, seconds):
    for _ in range(3):
        step()
    times, cpu, start = [], [], time.perf_counter()
    while time.perf_counter() - start < seconds:
        began, busy = time.perf_counter(), time.process_time()
        step()
        times.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - busy))
    return statistics.median(times), min(times), min(cpu)


def main():
    global LAYOUT
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    rows = [(f"generator, {k}-stack", lambda folded, k=k: GeneratorStep(k, folded)) for k in (1, 2, 4)]
    rows += [(f"dual block {b}", lambda folded, b=b: DualStep(b, folded)) for b in range(1, 5)]
    for row, build in rows:
        for folded in (True, False):
            for layout in (torch.contiguous_format, torch.channels_last):
                if only not in row:
                    continue
                LAYOUT = layout
                torch.manual_seed(1)
                median, least, cpu = milliseconds(build(folded), seconds)
                variant = ("folded" if folded else "unfolded") + ("" if layout == torch.contiguous_format else " nhwc")
                print(f"{row}\t{variant}\t{median:.2f}\t{least:.2f}\t{cpu:.2f}", flush=True)


if __name__ == "__main__":
    main()
