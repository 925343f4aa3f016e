"""What a checkpoint says of its network beside the tensors: the architecture's name, mean and deviation, the head."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .architecture import KINDS, READS
from .errors import Error

# Keys under which trainers write the architecture's name, and the dictionaries in which they do.
NAMES = ("arch", "architecture", "model_name", "encoder_name", "backbone_name", "model", "backbone")
PLACES = ("args", "hyper_parameters", "hparams", "config", "cfg", "opt")

# What Hugging Face's `problem_type` says of the head.
PROBLEMS = {"single_label_classification": "softmax", "multi_label_classification": "sigmoid"}
# ImageNet's classes: one an image. timm's recipes A1 to A3 trained them with binary cross-entropy nevertheless.
IMAGENET_CLASSES = 1000
SIGMOID_RECIPES = ("a1_", "a1h_", "a2_", "a3_")

# Plain names, with timm's prefixes for the origin of weights. Names of other kinds need these entries of KINDS.
KNOWN = [
    (r"((tv|gluon|ssl|swsl)_)?resnet_?(18|26|34|50|101|152|200)(_v1b)?", ()),
    (r"((tv|gluon)_)?wide_resnet(50|101)_2", ("wide",)),
    (r"resnet(18|26|34|50|101|152|200)d|gluon_resnet(50|101|152)_v1d", ("deep_stem", "pooled_projection")),
    (r"gluon_resnet(50|101|152)_v1c", ("deep_stem",)),
]
# A name without any of these is a person's own and says nothing.
FAMILIES = re.compile(
    r"resne|(^|_)(vit|deit|swin|convnext|efficientnet|densenet|vgg|mobilenet|regnet|inception|senet|dla\d)"
)


@dataclass
class Declared:
    """What was found, and where."""

    name: str = None
    where: str = None
    mean: list = None
    std: list = None
    source: str = None  # of mean and std
    head: str = None  # "softmax" or "sigmoid"
    why: str = None  # where that was found
    imagenet: str = None  # where it says that these are weights of ImageNet, if their head has its classes

    def head_of(self, rows):
        """What the head of so many rows was trained with, and a line that says so; None where nothing says it."""
        head, why = self.head, self.why
        if head is None and self.imagenet and rows == IMAGENET_CLASSES:
            head, why = "softmax", f"{self.imagenet}, {rows} classes of ImageNet"
        if head == "softmax":
            return head, (
                f"head: softmax, one label an image ({why}): the engine refuses it as a teacher, but can start a network "
                f'from it (init); if it was trained with binary cross-entropy, write head = "sigmoid" in the config'
            )
        return head, head and f"head: sigmoid, a probability for each label ({why})"


def declared(found, path):
    """Reads the checkpoint's own entries, and a `config.json` of timm or a hub in the same folder."""
    result = Declared()
    places = [("", found)] + [(f"{p}.", _get(found, p)) for p in PLACES]
    for place, holder in places:
        for key in NAMES:
            value = _get(holder, key)
            if result.name is None and isinstance(value, str) and re.fullmatch(r"[\w./:-]{1,80}", value):
                result.name, result.where = value, f"{path}: {place}{key}"
        _take_problem(result, holder, f"{path}: {place}problem_type")
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        config = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError):
        return result
    _take_problem(result, config, f"{file}: problem_type")
    if isinstance(_get(config, "architecture"), str):
        result.name, result.where = config["architecture"], f"{file}: architecture"
        statistics = _get(config, "pretrained_cfg")
        result.mean, result.std = (_numbers(_get(statistics, key)) for key in ("mean", "std"))
        result.source = file.name
        tag, classes = _get(statistics, "tag"), _get(statistics, "num_classes")
        if classes == IMAGENET_CLASSES and not str(tag or "").startswith(SIGMOID_RECIPES):
            result.imagenet = f"{file}: pretrained_cfg"
    return result


def _take_problem(result, holder, where):
    problem = _get(holder, "problem_type")
    if isinstance(problem, str) and problem in PROBLEMS:
        result.head, result.why = PROBLEMS[problem], f"{where}: {problem}"


def check_name(name, where):
    """Errors: the name of an architecture that the engine does not read."""
    bare = re.sub(r"^(timm/|hf[-_]hub:(timm/)?|torchvision\.models\.)", "", name.strip().lower()).split(".")[0]
    bare = bare.replace("-", "_")
    for pattern, kinds in KNOWN:
        if re.fullmatch(pattern, bare):
            unsupported = [KINDS[kind][0] for kind in kinds if not KINDS[kind][1]]
            if unsupported:
                raise Error(
                    f"{where}: architecture {name}: {' and '.join(unsupported)}; {READS}"
                )
            return
    if FAMILIES.search(bare):
        raise Error(
            f"{where}: architecture {name}: not one of the plain ResNets that dfka-engine reads; if it is one under "
            f"another name, --arch plain says so"
        )


def _get(holder, key):
    """An entry of a dictionary, or an attribute of an argparse.Namespace."""
    if isinstance(holder, Mapping):
        return holder.get(key)
    return vars(holder).get(key) if type(holder).__name__ == "Namespace" else None


def _numbers(values):
    is_list = isinstance(values, list) and all(isinstance(v, (int, float)) for v in values)
    return [float(v) for v in values] if is_list and values else None
