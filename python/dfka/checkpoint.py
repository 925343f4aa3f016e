"""Finds the network inside whatever torch.load gave: nested dictionaries, wrappers' prefixes, averaged copies.

Every tensor gets one name: the keys of the dictionaries that hold it and its name in the last one, joined by dots. The
network is then what has `conv1.weight` and `layer1` under one prefix.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import Error, listed, need

# Dictionaries nest three deep in practice (a trainer's, a wrapper's, the state dict); the limit ends a cycle.
DEEPEST = 8
AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow)([._]|$)")
COUNTERS = ("num_batches_tracked",)

# Networks whose tensors have other names. The first match names them in an error.
OTHERS = [
    (r"(cls_token|class_token|patch_embed\.|pos_embed)", "a vision transformer"),
    (r"relative_position_bias_table", "a Swin transformer"),
    (r"denseblock\d", "a DenseNet"),
    (r"(Mixed_5b|inception3a)", "an Inception network"),
    (
        r"embedder\.embedder\.convolution",
        "a network of the package transformers; load its weights into timm's or torchvision's ResNet",
    ),
    (r"(conv_stem\.|features\.0\.0\.weight)", "an EfficientNet, MobileNet or ConvNeXt"),
    (r"stages\.\d+\.(blocks\.)?\d+\.", "a ConvNeXt, RegNet, ResNetV2 or another network of stages"),
    (r"features\.\d+\.weight", "a VGG or AlexNet"),
    (r"layer0\.conv1\.weight", "an SENet"),
]


@dataclass
class Entry:
    """A tensor of a checkpoint."""

    tensor: object
    keys: str  # of the dictionaries around it, each with a dot at its end
    name: str  # in the last of them


@dataclass
class Network:
    """The part of a checkpoint that is the network."""

    prefix: str  # of the network's tensors, with a dot at its end unless it is empty
    keys: str  # of the dictionaries that hold it
    entries: dict  # all tensors of the checkpoint by their whole names
    others: list  # prefixes of the networks that were not taken
    notes: list = field(default_factory=list)

    def inside(self):
        """The entries under the prefix by their names without it."""
        n = len(self.prefix)
        return {name[n:]: e for name, e in self.entries.items() if name.startswith(self.prefix)}


def modules(found, keys=""):
    """The modules in a checkpoint, by the keys of the dictionaries that hold them."""
    torch = need("torch", "reading a checkpoint")
    if isinstance(found, torch.nn.Module):
        return {keys: found}
    if not isinstance(found, Mapping) or keys.count(".") >= DEEPEST:
        return {}
    inner = [modules(v, f"{keys}{k}.") for k, v in found.items() if isinstance(k, str)]
    return {key: module for each in inner for key, module in each.items()}


def entries(found, keys=""):
    """All tensors in a checkpoint by their whole names."""
    torch = need("torch", "reading a checkpoint")
    if isinstance(found, torch.nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping) or keys.count(".") >= DEEPEST:
        return {}
    all_of_them = {}
    for key, value in found.items():
        if not isinstance(key, str) or key.endswith(COUNTERS):
            continue
        if isinstance(value, torch.Tensor):
            all_of_them[keys + key] = Entry(value, keys, key)
        else:
            all_of_them.update(entries(value, f"{keys}{key}."))
    return all_of_them


def find(found, path, key=None, prefix=None):
    """The network in a checkpoint. `key` and `prefix` choose one of several.

    Errors: no network, and several of which none is the obvious one.
    """
    all_of_them = usual_names(entries(found))
    prefixes = network_prefixes(all_of_them)
    if not prefixes:
        raise Error(f"{path}: {no_network(found, all_of_them)}")
    chosen = [p for p in prefixes if fits(p, key, prefix)]
    if not chosen:
        option = f"--key {key}" if key else f"--prefix {prefix}"
        raise Error(f"{path}: {option}: no network there; the file holds {listed(map(shown, prefixes), 6)}")
    notes = []
    raw = [p for p in chosen if not AVERAGED.search(p)]
    if raw and len(raw) < len(chosen):
        average = next(p for p in chosen if p not in raw)
        notes.append(
            f"took the raw weights ({shown(raw[0])}); the file also holds averaged ones: "
            f"{option_for(average, all_of_them)} takes them"
        )
    candidates = raw or chosen
    least = min(p.count(".") for p in candidates)
    candidates = [p for p in candidates if p.count(".") == least]
    if len(candidates) > 1:
        notes += [same_or_refused(candidates, all_of_them, path)]
    taken = candidates[0]
    keys = all_of_them[first_of(taken, all_of_them)].keys
    return Network(taken, keys, all_of_them, [p for p in prefixes if p != taken], notes)


def network_prefixes(names):
    """The prefixes under which the first convolution and the first block of a ResNet are, in the file's order."""
    blocks = (re.match(r"(|.*?\.)layer1\.\d+\.", name) for name in names)
    prefixes = dict.fromkeys(m[1] for m in blocks if m)
    return [p for p in prefixes if first_of(p, names)]


def first_of(prefix, names):
    """The whole name of the first convolution under `prefix`: plain, or the first of a deep stem."""
    return next((prefix + n for n in ("conv1.weight", "conv1.0.weight") if prefix + n in names), None)


def fits(found, key, prefix):
    """Whether the network under the prefix `found` is one that the options ask for. Dots at the ends do not matter."""
    bare = f".{found}"
    key_fits = key is None or bare.startswith(f".{key.strip('.')}.")
    return key_fits and (
        prefix is None or found.strip(".") == prefix.strip(".") or bare.endswith(f".{prefix.strip('.')}.")
    )


def same_or_refused(candidates, names, path):
    """A note if the networks under all prefixes are the same, tensor for tensor.

    Errors: they differ, so that one of them has to be chosen.
    """
    first, *rest = ({n[len(p) :]: e.tensor for n, e in names.items() if n.startswith(p)} for p in candidates)
    torch = need("torch", "reading a checkpoint")
    in_words = listed(map(shown, candidates), 6)
    for other in rest:
        common = [name for name in first if re.match(r"(conv1|bn1|layer\d+)\.", name)]
        equal = all(name in other and torch.equal(first[name], other[name]) for name in common)
        if not equal:
            options = " or ".join(option_for(p, names) for p in candidates[:3])
            raise Error(f"{path}: found {len(candidates)} networks ({in_words}); choose one with {options}")
    return f"{in_words} are the same network; took {shown(candidates[0])}"


def option_for(prefix, names):
    """The option that chooses the network under `prefix`."""
    keys = names[first_of(prefix, names)].keys
    return f"--key {keys.strip('.')}" if keys else f"--prefix {prefix.strip('.')}"


def shown(prefix):
    """A prefix in messages."""
    return prefix.rstrip(".") or "the names without a prefix"


def no_network(found, names):
    """Why a checkpoint without a ResNet's names is refused."""
    if not isinstance(found, Mapping) and not names:
        return f"expected a dictionary of tensors, found {type(found).__name__}"
    if not names:
        return f"expected tensors, found a dictionary without any; its keys are {listed(map(str, found), 5)}"
    for pattern, what in OTHERS:
        if any(re.search(r"(^|\.)" + pattern, name) for name in names):
            return f"found {what}; expected a ResNet under torchvision's names (conv1.weight, layer1.0.conv1.weight)"
    return (
        f"expected a ResNet under torchvision's names (conv1.weight, layer1.0.conv1.weight), "
        f"found {len(names)} tensor(s): {listed(names)}"
    )


def usual_names(names):
    """The entries under torchvision's names, if they have another usual naming.

    One is `nn.Sequential(*resnet.children())`, which numbers the layers: 0 conv1, 1 bn1, 2 ReLU, 3 max pool (if there is
    one), then the blocks. The other calls a projection `shortcut`, as networks for CIFAR do.
    """
    numbered = [p for p in (m[1] for m in (re.match(r"(|.*\.)0\.weight$", n) for n in names) if m)]
    for p in numbered:
        first = next((i for i in (3, 4) if f"{p}{i}.0.conv1.weight" in names), None)
        if first is not None and f"{p}1.running_mean" in names:
            layers = {"0": "conv1", "1": "bn1", **{str(first + i): f"layer{i + 1}" for i in range(8)}}
            names = {rename(n, p, layers): e for n, e in names.items()}
    return {re.sub(r"(layer\d+\.\d+\.)shortcut\.", r"\1downsample.", n): e for n, e in names.items()}


def rename(name, prefix, layers):
    """`name` with the number after `prefix` replaced by the layer that has it."""
    if not name.startswith(prefix):
        return name
    number, dot, rest = name[len(prefix) :].partition(".")
    # A head behind the blocks, as Linear is in Sequential(*children[:-1], Flatten(), Linear()).
    is_block = not layers.get(number, "").startswith("layer") or re.match(r"\d+\.", rest)
    return f"{prefix}{layers[number]}{dot}{rest}" if number in layers and is_block else name
