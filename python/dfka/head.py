"""Splits the tensors around a network into its layers, its head, and what is beside it."""

import re
from dataclasses import dataclass

from .errors import Error, listed

LAYERS = re.compile(r"(conv1|bn1|layer\d+)\.")
# Names of the last Linear layer in torchvision, timm, networks for CIFAR and people's own modules; a number follows
# where it is in an nn.Sequential.
HEADS = re.compile(r"(head\.fc|fc|head|classifier|last_linear|linear)(\.\d+)?\.weight")
USUAL = ("fc", "head", "classifier", "last_linear", "linear")
# Modules that take no part in the logits, whatever the shapes of their tensors are.
HARMLESS = re.compile(
    r"(^|[._])(criterion|loss\w*|\w+_loss|metrics?|\w+_metric|pos_weight|n_averaged|ap|acc|auroc|f1)([._]|$)"
)
# A trainer's dictionaries, of which nothing is reported.
TRAINING = re.compile(r"(.*\.)?(optimizer|lr_scheduler|scheduler|scaler|callbacks)\w*\.")
# The last parts of weights' names; the last three are those of layers with weight norm.
WEIGHTS = ("weight", "weight_v", "original0", "original1")


@dataclass
class Beside:
    """A tensor that is no layer of the network."""

    tensor: object
    short: str  # its name without the prefix that it shares with the network
    is_inside: bool  # under the network's own prefix, next to conv1


@dataclass
class Parts:
    """A network's tensors by torchvision's names, and what was beside it."""

    tensors: dict
    notes: list  # on what was left out or renamed
    mean: list = None  # of buffers with which the network normalises its images
    std: list = None


def split(network, path, head=None, leave_out=(), is_teacher=False):
    """Separates the network's layers and head from the rest. A single Linear layer becomes `fc`.

    A network without a head is a backbone, unless labels make it a teacher.

    Errors: no head of a teacher, several layers that could be the head, a head of more than one layer, layers beside the
    network that may take part in its logits.
    """
    tensors = {name: e.tensor for name, e in network.inside().items() if LAYERS.match(name)}
    found = Parts(tensors, [])
    beside = around(network)
    names = list(beside)
    is_out = lambda name: any(f"{name}.".startswith(f"{out.strip('.')}.") for out in leave_out)
    beside = {name: b for name, b in beside.items() if not is_out(name) and not is_out(b.short)}
    chosen = head_of(beside, path, head)
    if chosen:
        weight, bias = (beside.pop(f"{chosen}.{part}", None) for part in ("weight", "bias"))
        check_alone(chosen, beside, path)
        tensors["fc.weight"] = weight.tensor.flatten(1) if weight.tensor.ndim == 4 else weight.tensor
        tensors["fc.bias"] = bias.tensor if bias else tensors["fc.weight"].new_zeros(weight.tensor.shape[0])
        if not bias:
            found.notes.append(f"{chosen} has no bias; wrote zeros")
        if weight.short != "fc.weight":
            found.notes.append(f"the head is {chosen}")
    # The module that holds the head also computes the logits. Outside it nothing does.
    near = {name: b for name, b in beside.items() if b.is_inside or (chosen and not weight.is_inside)}
    check_near(near, path, chosen)
    if is_teacher and not chosen:
        linear = {n: b for n, b in beside.items() if n.endswith(".weight") and is_linear(b.tensor)}
        hint = f"its Linear layers are {in_words(linear)}; name the head with --head" if linear else "it is a backbone"
        raise Error(f"{path}: expected a head, because labels were given; found none of {', '.join(USUAL)}; {hint}")
    found.mean, found.std = (buffer(near, name) for name in ("mean", "std"))
    left_out = [name for name in names if not chosen or not re.fullmatch(re.escape(chosen) + r"\.(weight|bias)", name)]
    if left_out:
        many = "tensor" if len(left_out) == 1 else "tensors"
        found.notes.append(f"left out {len(left_out)} {many} beside the network: {listed(left_out)}")
    return found


def around(network):
    """The tensors that are no layers of a network: those under its prefix, in the same dictionary, or in one next to it.
    They are called by their names in the network's dictionary."""
    prefixes = [network.prefix, *network.others]
    parts = network.prefix.split(".")[:-1]
    ancestors = [".".join(parts[:i]) + "." if i else "" for i in range(len(parts), -1, -1)]
    found = {}
    for full, entry in network.entries.items():
        owner = max((p for p in prefixes if full.startswith(p)), key=len, default=None)
        elsewhere = entry.keys != network.keys and any(p.startswith(entry.keys) for p in network.others)
        if owner not in (None, network.prefix) or elsewhere or TRAINING.match(entry.keys):
            continue
        base = next(a for a in ancestors if full.startswith(a))
        short, is_inside = full[len(base) :], base == network.prefix
        if not (is_inside and LAYERS.match(short)):
            found[full.removeprefix(network.keys)] = Beside(entry.tensor, short, is_inside)
    return found


def head_of(beside, path, head):
    """The name of the layer that is the head; None if there is no such layer.

    Errors: several, a head of several Linear layers, a name that the user gave and that no layer has.
    """
    linear = {n.removesuffix(".weight"): b for n, b in beside.items() if n.endswith(".weight") and is_linear(b.tensor)}
    if head is not None:
        asked = head.strip(".").removesuffix(".weight")
        found = [name for name, b in linear.items() if asked in (name, b.short.removesuffix(".weight"))]
        if len(found) == 1:
            return found[0]
        hint = f"the Linear layers beside the network are {in_words(linear)}" if linear else "it has no Linear layer"
        raise Error(f"{path}: --head {head}: expected the name of one Linear layer; {hint}")
    named = {name: b for name, b in linear.items() if HEADS.fullmatch(b.short)}
    roots = {root_of(name) for name in named}
    if len(named) > 1 and len(roots) == 1:
        raise Error(
            f"{path}: the head {roots.pop()} has {len(named)} Linear layers, {in_words(named)}; dfka-engine's networks have "
            f"one: train a single Linear layer on the same backbone"
        )
    if len(named) > 1:
        raise Error(f"{path}: {len(named)} Linear layers may be the head, {in_words(named)}; name it with --head")
    return next(iter(named), None)


def check_alone(head, beside, path):
    """Errors: another layer within the head's module, such as a batch norm before the Linear layer."""
    root = root_of(head)
    others = [name for name in beside if name.startswith(f"{root}.")]
    if others:
        raise Error(
            f"{path}: the head {root} has more than the Linear layer {head}: {listed(others)}; dfka-engine's networks have "
            f"a single Linear layer there"
        )


def check_near(near, path, head):
    """Refuses layers in the module that computes the logits, because they may take part in it, and a head that was missed.

    Losses, metrics and other buffers are harmless.
    """
    near = {name: b for name, b in near.items() if not HARMLESS.search(name)}
    pooling = [name for name, b in near.items() if re.fullmatch(r"(\w*pool\w*|gem)\.p", b.short)]
    if pooling:
        raise Error(f"{path}: {pooling[0]}: generalised-mean pooling; dfka-engine's networks average the last features")
    layers = {name: b for name, b in near.items() if b.tensor.ndim > 1 and name.endswith(WEIGHTS)}
    if layers and not head and all(is_linear(b.tensor) for b in layers.values()):
        raise Error(
            f"{path}: expected a head called {', '.join(USUAL)}; found {in_words(layers)}; name it with --head, or leave it "
            f"out with --leave-out"
        )
    # A batch norm between the last features and the head has vectors only.
    layers.update({name: b for name, b in near.items() if name.endswith(".running_mean")})
    if layers:
        raise Error(
            f"{path}: the network also has {in_words(layers)}, which a plain ResNet has not; if the logits do not depend "
            f"on it, --leave-out {next(iter(layers.values())).short.split('.')[0]}"
        )


def buffer(near, name):
    """The numbers of a buffer called `name` or `pixel_name`, such as a module's own mean; None if there is none."""
    found = [b.tensor for n, b in near.items() if re.fullmatch(rf"(.*[._])?{name}", n) and b.tensor.is_floating_point()]
    return found[0].flatten().tolist() if len(found) == 1 else None


def is_linear(tensor):
    """Whether a weight is that of a Linear layer, or of a 1x1 convolution that serves as one."""
    return tensor.ndim == 2 or (tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1))


def root_of(name):
    """The module of the head: `fc` of `fc.1`, `head` of `head.fc`."""
    return re.sub(r"(?<=head)\.fc$|\.\d+$", "", name)


def in_words(layers):
    """Layers with their shapes, for messages."""
    return listed(
        f"{re.sub(r'[.](weight|running_mean)$', '', n)} ({' x '.join(map(str, b.tensor.shape))})"
        for n, b in layers.items()
    )
