"""Loads a student of dfka-engine in PyTorch.

    from load_student import load_student
    model = load_student("student.safetensors")     # or student.npz
    logits = model(images)                          # [N, channels, height, width] in [0, 1] to [N, labels]
    names = model.predict(images)                   # for each image the list of labels above their thresholds

Needs torch and numpy, and for .safetensors files the package safetensors. The parameters have the names of
the file's tensors.
"""

import json

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Unit(nn.Module):
    """A residual unit whose batch norms are folded into its convolutions."""

    def __init__(self, network, channels, width, stride):
        super().__init__()
        if network["block"] == "basic":
            sizes = [(channels, width, 3, stride), (width, width, 3, 1)]
        else:
            mid = width // 4
            first = network.get("stride") == "1x1"  # the first convolution has the stride, not the 3x3 one
            sizes = [
                (channels, mid, 1, stride if first else 1),
                (mid, mid, 3, 1 if first else stride),
                (mid, width, 1, 1),
            ]
        self.length = len(sizes)
        for i, (c, k, size, step) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(c, k, size, step, size // 2))
        needs_projection = stride != 1 or channels != width
        self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride)) if needs_projection else None

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.length):
            x = F.relu(getattr(self, f"conv{i}")(x))
        return F.relu(getattr(self, f"conv{self.length}")(x) + skip)


class Filter(nn.Module):
    """Multiplies each channel by a gain from 0 to 2, computed from the channels' means (supplement 1.2)."""

    def __init__(self, channels, reduction):
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)

    def forward(self, x):
        gain = 2 * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x * gain[:, :, None, None]


def add_blocks(module, network, first, last):
    """Adds the blocks `first` to `last` (1-based, inclusive) to `module`, block b as layer{b}."""
    for b in range(first, last + 1):
        width = network["widths"][b - 1]
        channels = network["widths"][b - 2] if b > 1 else network["stem"]["width"]
        units = []
        for u in range(network["depths"][b - 1]):
            units.append(Unit(network, channels, width, 2 if u == 0 and b > 1 else 1))
            channels = width
        setattr(module, f"layer{b}", nn.Sequential(*units))


class Student(nn.Module):
    """The TargetNet: a shared trunk, and for each task a filter, the remaining blocks and a head."""

    def __init__(self, meta):
        super().__init__()
        spec = meta["student"]
        self.network = network = spec["network"]
        self.tasks, self.labels = spec["tasks"], spec["labels"]
        self.thresholds = meta.get("thresholds", [0.5] * len(self.labels))
        channels, stem, blocks = network["image"][2], network["stem"], len(network["widths"])
        # Without a normalisation the network takes images in [-1, 1].
        normalisation = network.get("normalisation") or {"mean": [0.5] * channels, "std": [0.5] * channels}
        for name in ("mean", "std"):
            value = torch.tensor(normalisation[name], dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

        self.trunk = nn.Module()
        kernel = stem["kernel"]
        self.trunk.conv1 = nn.Conv2d(channels, stem["width"], kernel, stem["stride"], kernel // 2)
        add_blocks(self.trunk, network, 1, max(t["block"] for t in self.tasks))
        for i, task in enumerate(self.tasks):
            branch = nn.Module()
            branch.filter = Filter(network["widths"][task["block"] - 1], spec["filter_reduction"])
            add_blocks(branch, network, task["block"] + 1, blocks)
            branch.fc = nn.Linear(network["widths"][-1], len(task["labels"]))
            setattr(self, f"task{i}", branch)
        columns = [label for task in self.tasks for label in task["labels"]]
        self.order = [columns.index(label) for label in self.labels]

    def forward(self, images):
        """Returns the logits [N, labels] of images [N, channels, height, width] in [0, 1]."""
        x = F.relu(self.trunk.conv1((images - self.mean) / self.std))
        if self.network["stem"]["max_pool"]:
            x = F.max_pool2d(x, 3, 2, 1)
        logits = [None] * len(self.tasks)
        for b in range(1, max(t["block"] for t in self.tasks) + 1):
            x = getattr(self.trunk, f"layer{b}")(x)
            for i, task in enumerate(self.tasks):
                if task["block"] == b:
                    logits[i] = self.branch(getattr(self, f"task{i}"), x, b)
        return torch.cat(logits, 1)[:, self.order]

    def branch(self, branch, x, block):
        x = branch.filter(x)
        for b in range(block + 1, len(self.network["widths"]) + 1):
            x = getattr(branch, f"layer{b}")(x)
        return branch.fc(x.mean((2, 3)))

    @torch.no_grad()
    def predict(self, images):
        """Returns, for each image, the labels whose probabilities are above their thresholds."""
        above = torch.sigmoid(self(images)) > torch.tensor(self.thresholds, device=images.device)
        return [[label for label, is_there in zip(self.labels, row) if is_there] for row in above.tolist()]


def read(path):
    """Returns the tensors and the metadata of a student file."""
    if str(path).endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["dfka"])
    with np.load(path) as file:
        tensors = {name: torch.from_numpy(file[name]) for name in file.files if name != "__meta__"}
        return tensors, json.loads(file["__meta__"].tobytes())


def load_student(path):
    """Returns the student in a .npz or .safetensors file, in evaluation mode on the CPU."""
    tensors, meta = read(path)
    model = Student(meta)
    model.load_state_dict(tensors)
    return model.eval()
