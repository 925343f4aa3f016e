"""A small ResNet as an nn.Module, with a switch for everything that leaves no tensor."""

import torch
from torch import nn

LABELS = ["bus", "car", "cat"]


class Unit(nn.Module):
    def __init__(self, net, channels, width, stride, dilation=1):
        super().__init__()
        self.act = net["act"]()
        norm = lambda k: nn.BatchNorm2d(k, eps=net["eps"])
        mode = net["padding_mode"]
        if net["block"] == "basic":
            sizes = [(channels, width, 3, stride), (width, width, 3, 1)]
        else:
            mid = int(width // 4 * net["wide"])
            first, middle = (stride, 1) if net["stride"] == "1x1" else (1, stride)
            sizes = [(channels, mid, 1, first), (mid, mid, 3, middle), (mid, width, 1, 1)]
        self.count = len(sizes)
        for i, (c, k, size, step) in enumerate(sizes, 1):
            groups = net["groups"] if size == 3 else 1
            pad = size // 2 * dilation
            conv = nn.Conv2d(c, k, size, step, pad, dilation if size == 3 else 1, groups, False, mode)
            if size == 1:
                conv.padding = (0, 0)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", norm(k))
        self.downsample = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), norm(width))

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.count + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = self.act(x + skip) if i == self.count else self.act(x)
        return x


class ResNet(nn.Module):
    """Batch norms and head have values as after a training."""

    def __init__(self, seed=1, **changes):
        super().__init__()
        net = dict(
            block="basic", widths=(8, 12, 16, 20), depths=(1, 2, 1, 1), channels=3, kernel=7, act=nn.ReLU, eps=1e-5,
            stride="3x3", padding_mode="zeros", wide=1, groups=1, pool="max", dilation=1, last_stride=2, labels=len(LABELS),
        )  # fmt: skip
        assert changes.keys() <= net.keys()
        net.update(changes)
        torch.manual_seed(seed)
        k, widths = net["kernel"], net["widths"]
        self.conv1 = nn.Conv2d(net["channels"], 8, k, 2 if k == 7 else 1, k // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=net["eps"])
        self.relu = net["act"]()
        pools = {
            "max": nn.MaxPool2d(3, 2, 1) if k == 7 else nn.Identity(),
            "average": nn.AvgPool2d(3, 2, 1),
            "none": nn.Identity(),
            "added": nn.MaxPool2d(3, 2, 1),
            "ceil": nn.MaxPool2d(3, 2, 0, ceil_mode=True),
        }
        self.maxpool = pools[net["pool"]]
        channels = 8
        for b, (depth, width) in enumerate(zip(net["depths"], widths)):
            units = []
            is_last = b == len(widths) - 1
            for u in range(depth):
                stride = 2 if u == 0 and b > 0 else 1
                stride = net["last_stride"] if stride == 2 and is_last else stride
                units.append(Unit(net, channels, width, stride, net["dilation"] if is_last else 1))
                channels = width
            setattr(self, f"layer{b + 1}", nn.Sequential(*units))
        self.blocks = len(widths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, net["labels"])
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
        nn.init.normal_(self.fc.weight, 0, 0.5)
        self.eval()

    def features(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for b in range(1, self.blocks + 1):
            x = getattr(self, f"layer{b}")(x)
        return torch.flatten(self.avgpool(x), 1)

    def forward(self, x):
        return self.fc(self.features(x))


class Scaled(ResNet):
    """The same layers, and another computation with them."""

    def features(self, x):
        return super().features(x) * 1.01


class Normalising(ResNet):
    """Takes images in [0, 1]."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def features(self, x):
        return super().features((x - self.mean) / self.std)


class Wrapped(nn.Module):
    """As a LightningModule: a network, a loss with a buffer, and what its forward adds."""

    def __init__(self, net, last=None):
        super().__init__()
        self.model = net
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=torch.ones(len(LABELS)))
        self.last = last or nn.Identity()

    def forward(self, x):
        return self.last(self.model(x))


class Beside(nn.Module):
    """A backbone without a head, and a head beside it."""

    def __init__(self, head=None):
        super().__init__()
        self.backbone = ResNet()
        self.fc = self.backbone.fc
        self.backbone.fc = nn.Identity()
        self.drop = head

    def forward(self, x):
        return self.fc(self.backbone(x))
