"""Loads a student of dfka-engine in PyTorch.

    import dfka
    model = dfka.load_student("student.safetensors")    # or student.npz
    image = model.preprocess(Image.open("photo.jpg"))   # [channels, height, width] in [0, 1], as `dfka-engine eval` has it
    logits = model(image[None])                         # [N, channels, height, width] in [0, 1] to [N, labels]
    names = model.predict(image[None])                  # for each image the list of labels above their thresholds

Needs torch and numpy, for .safetensors files the package safetensors, and for `preprocess` Pillow. The parameters have
the names of the file's tensors.
"""

import json
from pathlib import Path

from .errors import Error, first_line, need
from .resize import evaluation_view

np = need("numpy", "dfka.load_student")
torch = need("torch", "dfka.load_student")
from torch import nn  # noqa: E402, after the check above
from torch.nn import functional as F  # noqa: E402


class Unit(nn.Module):
    """A residual unit whose batch norms are folded into its convolutions."""

    def __init__(self, network, block, channels, stride):
        super().__init__()
        width, variant = network["widths"][block - 1], network.get("variant", {})
        if network["block"] == "basic":
            sizes = [(channels, width, 3, stride), (width, width, 3, 1)]
        else:
            inner = variant.get("inner_widths")  # stated where they are not a quarter of the widths
            mid = inner[block - 1] if inner else width // 4
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
        self.downsample = projection(variant, channels, width, stride) if needs_projection else None

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.length):
            x = F.relu(getattr(self, f"conv{i}")(x))
        return F.relu(getattr(self, f"conv{self.length}")(x) + skip)


def projection(variant, channels, width, stride):
    """The shortcut of a unit that changes the resolution or the number of channels."""
    if variant.get("shortcut") != "average_pool":
        return nn.Sequential(nn.Conv2d(channels, width, 1, stride))
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(channels, width, 1))


def stem_convolutions(network):
    """The convolutions before the first block and the activations between them."""
    channels, stem, deep = network["image"][2], network["stem"], network.get("variant", {}).get("deep_stem")
    conv = lambda c, k, stride: nn.Conv2d(c, k, stem["kernel"], stride, stem["kernel"] // 2)
    if not deep:
        return conv(channels, stem["width"], stem["stride"])
    # The identities stand for batch norms, which are folded, so that the names are timm's.
    first = [conv(channels, deep[0], stem["stride"]), nn.Identity(), nn.ReLU()]
    second = [conv(deep[0], deep[1], 1), nn.Identity(), nn.ReLU()]
    return nn.Sequential(*first, *second, conv(deep[1], stem["width"], 1))


class Filter(nn.Module):
    """Multiplies each channel by a gain from 0 to 2, computed from the channels' means (supplement 1.2). A stitch has a
    1x1 convolution from the trunk's channels to the teacher's before it."""

    def __init__(self, channels, to, reduction, is_stitch):
        super().__init__()
        self.stitch = nn.Conv2d(channels, to, 1) if is_stitch else None
        self.fc1 = nn.Linear(to, to // reduction)
        self.fc2 = nn.Linear(to // reduction, to)

    def forward(self, x):
        if self.stitch is not None:
            x = self.stitch(x)
        gain = 2 * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x * gain[:, :, None, None]


def add_blocks(module, network, first, last):
    """Adds the blocks `first` to `last` (1-based, inclusive) to `module`, block b as layer{b}."""
    for b in range(first, last + 1):
        channels = network["widths"][b - 2] if b > 1 else network["stem"]["width"]
        units = []
        for u in range(network["depths"][b - 1]):
            units.append(Unit(network, b, channels, 2 if u == 0 and b > 1 else 1))
            channels = network["widths"][b - 1]
        setattr(module, f"layer{b}", nn.Sequential(*units))


class Student(nn.Module):
    """The TargetNet: a shared trunk, and for each task a filter, the remaining blocks and a head."""

    def __init__(self, meta):
        super().__init__()
        spec = meta["student"]
        self.network = network = spec["network"]
        self.tasks, self.labels = spec["tasks"], spec["labels"]
        self.thresholds = meta.get("thresholds", [0.5] * len(self.labels))
        channels, blocks = network["image"][2], len(network["widths"])
        # Without a normalisation the network takes images in [-1, 1].
        normalisation = network.get("normalisation") or {"mean": [0.5] * channels, "std": [0.5] * channels}
        for name in ("mean", "std"):
            value = torch.tensor(normalisation[name], dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

        self.trunk = nn.Module()
        self.trunk.conv1 = stem_convolutions(network)
        add_blocks(self.trunk, network, 1, max(t["block"] for t in self.tasks))
        for i, task in enumerate(self.tasks):
            branch, block = nn.Module(), task["block"]
            teachers = task.get("network") or network  # stated where it is not the trunk's
            channels, to = network["widths"][block - 1], teachers["widths"][block - 1]
            is_stitch = spec.get("filter") == "stitch" or channels != to
            branch.filter = Filter(channels, to, spec["filter_reduction"], is_stitch)
            add_blocks(branch, teachers, block + 1, blocks)
            branch.fc = nn.Linear(teachers["widths"][-1], len(task["labels"]))
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
        """Returns, for each image [N, channels, height, width] in [0, 1], the labels above their thresholds.

        Errors: images in another range or layout.
        """
        self.check(images)
        above = torch.sigmoid(self(images)) > torch.tensor(self.thresholds, device=images.device)
        return [[label for label, is_there in zip(self.labels, row) if is_there] for row in above.tolist()]

    def check(self, images):
        """Errors: images that are not floats in [0, 1] of the network's channels."""
        channels = self.network["image"][2]
        if images.ndim != 4 or images.shape[1] != channels:
            raise Error(f"images: expected the shape [N, {channels}, height, width], found {list(images.shape)}")
        if not images.is_floating_point():
            raise Error(f"images: expected floats in [0, 1], found {images.dtype}; divide by 255, or use preprocess")
        if images.numel() and (images.max() > 1.001 or images.min() < -0.001):
            least, most = images.min().item(), images.max().item()
            hint = "divide by 255" if most > 3 else "do not normalise them, because the student does"
            raise Error(f"images: expected values in [0, 1], found {least:.3g} to {most:.3g}; {hint}")

    def preprocess(self, image):
        """Returns an image of any size as the tensor [channels, height, width] in [0, 1] that `dfka-engine eval` makes
        of a JPEG or PNG file: the shorter side resized, then the centre cropped.

        `image` is a PIL image or a uint8 array [height, width] or [height, width, channels]. Transparency is dropped,
        and an EXIF orientation is not applied, as in the program.

        Errors: an array of another type or shape.
        """
        height, width, channels = self.network["image"]
        picture = as_rgb(image)
        pixels = evaluation_view(np.asarray(picture), height, width)
        if channels == 1:
            pixels = np.asarray(need("PIL.Image", "preprocess", "pillow").fromarray(pixels).convert("L"))
        return (
            torch.from_numpy(pixels.reshape(height, width, channels).copy()).permute(2, 0, 1).contiguous().float() / 255
        )


def as_rgb(image):
    """A PIL image in the mode RGB."""
    Image = need("PIL.Image", "preprocess", "pillow")
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
            raise Error(
                f"preprocess: expected a PIL image or a uint8 array [height, width, 1, 3 or 4], "
                f"found {array.dtype} {list(array.shape)}"
            )
        image = Image.fromarray(np.ascontiguousarray(array))
    if image.mode.startswith("I;16"):  # 16 bits are truncated to 8, not clipped
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def read(path):
    """Returns the tensors and the metadata of a student file.

    Errors: a file that is missing, of another format, or no student.
    """
    path = Path(path)
    if not path.is_file():
        raise Error(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            safetensors = need("safetensors", f"{path}: reading a .safetensors file")
            with safetensors.safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                meta = json.loads((file.metadata() or {}).get("dfka", "{}"))
        else:
            with np.load(path) as file:
                tensors = {name: torch.from_numpy(file[name]) for name in file.files if name != "__meta__"}
                meta = json.loads(file["__meta__"].tobytes()) if "__meta__" in file.files else {}
    except (Error, OSError):
        raise
    except Exception as e:  # each reader has its own
        raise Error(f"{path}: expected a student in a .safetensors or .npz file ({first_line(e)})") from None
    if "student" not in meta:
        raise Error(f"{path}: expected a student, which dfka-engine's run writes; found a file without its description")
    return tensors, meta


def load_student(path):
    """Returns the student in a .npz or .safetensors file, in evaluation mode on the CPU."""
    tensors, meta = read(path)
    model = Student(meta)
    model.load_state_dict(tensors)
    return model.eval()
