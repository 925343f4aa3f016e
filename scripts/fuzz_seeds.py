#!/usr/bin/env python3
"""Writes fuzz/seeds: a few small inputs for every target of fuzz/targets, most of which its reader accepts.

    python3 scripts/fuzz_seeds.py

Needs only the standard library, and writes the same bytes each time. Inputs that fuzzing found are in
fuzz/regressions, one file per fault; no script makes them.
"""

import gzip
import io
import json
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "fuzz" / "seeds"


def seed(target, name, data):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def npy(descr, shape, body, fortran=False, version=1):
    head = f"{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}"
    head += " " * (-(len(head) + 11) % 64) + "\n"
    length = struct.pack("<H" if version == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes([version, 0]) + length + head.encode() + body


def npz(arrays, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in arrays.items():
            z.writestr(zipfile.ZipInfo(name + ".npy", (1980, 1, 1, 0, 0, 0)), data, method)
    return out.getvalue()


def text_array(value):
    text = json.dumps(value).encode()
    return npy("|u1", f"({len(text)},)", text)


# The record format that `recorded` of fuzz/src/readers/archives.rs reads.


def record(name, kind, rest):
    return bytes([len(name)]) + name.encode() + kind + rest


def record_json(name, value):
    text = json.dumps(value, separators=(",", ":")).encode()
    return record(name, b"j", struct.pack("<H", len(text)) + text)


def record_npy(name, data):
    return record(name, b"n", struct.pack("<H", len(data)) + data)


def record_floats(name, *shape):
    return record(name, b"f", bytes([len(shape), *shape]))


def record_bytes(name, *shape):
    return record(name, b"u", bytes([len(shape), *shape]))


def arrays():
    floats = struct.pack("<6f", 0.0, 1.5, -2.0, 3e-39, 1e30, -0.0)
    kinds = {
        "f4": npy("<f4", "(2, 3)", floats),
        "f4_fortran": npy("<f4", "(3, 2)", floats, fortran=True),
        "f4_big": npy(">f4", "(1, 6)", struct.pack(">6f", 1, 2, 3, 4, 5, 6), version=2),
        "f8": npy("<f8", "(2,)", struct.pack("<2d", 0.1, -7.0), version=3),
        "f2": npy("<f2", "(4,)", struct.pack("<4e", 1.0, -2.5, 6e-8, 65504.0)),
        "scalar": npy("<f4", "()", struct.pack("<f", 4.0)),
        "empty": npy("<f4", "(0, 5)", b""),
        "u1": npy("|u1", "(3,)", b"abc"),
        "nan": npy("<f4", "(1,)", struct.pack("<f", float("nan"))),
        "short": npy("<f4", "(9,)", floats),
        "object": npy("|O", "(1,)", b"\x80\x04N."),
        "structured": npy("|V4", "(1,)", b"abcd").replace(b"'|V4'", b"[('a','<f4')]"),
    }
    for name, data in kinds.items():
        seed("npy", name, data)
    meta = text_array({"labels": ["bus", "straße"], "n": 3})
    two = {"__meta__": meta, "a.weight": kinds["f4"], "b.bias": kinds["f2"]}
    seed("npz", "stored", npz(two))
    seed("npz", "deflated", npz(two, zipfile.ZIP_DEFLATED))
    seed("npz", "one", npz({"x": kinds["f8"]}))
    seed("npz", "nothing", npz({}))
    seed("npz", "truncated", npz(two)[:-30])


RUN = """name = "small"
seed = 3
[[teachers]]
name = "left"
weights = "left.npz"
[[teachers]]
name = "right"
weights = "right.npz"
network = "resnet18"
image_size = 32
labels = ["bus", "car"]
[student]
labels = ["bus", "cat"]
init = "teacher:left"
branch = 2
[generator]
groups = 1
widths = [8, 4]
betas = [0.5, 0.999]
[loss]
recipe = "balanced"
share = 0.1
[dual]
images = "real:ka.npz"
steps = [10, 10]
lambda_in = [1, 0.5]
augment = { shift = 1, flip = 0.5 }
[evaluation]
data = "e.npz"
[baselines]
noise = true
ka = "ka.npz"
"""

LEAST = 'name="a"\nteachers=[{name="l",weights="l.npz"}]\ndual={steps=[1]}\n'

TEACH = """name = "t"
init = "b.npz"
[data]
labels = ["bus"]
train = "a.npz"
[network]
block = "basic"
widths = [16, 32]
depths = [1, 1]
stem = { width = 16, kernel = 3, stride = 2, max_pool = false }
[training]
steps = 7
learning_rate = 1e-3
"""


EXPERIMENT = """title = "t"
source = "s"
seeds = [0, 2]
by_block = true
[scales.demo]
config = "d.toml"
[scales.paper]
config = "/p.toml"
set = ["dual.batch=4"]
[[rows]]
name = "ours"
run = "two"
set = ["seed=3"]
set_demo = ["generator.groups=1", "dual.steps=[3, 4]"]
published = { mAP = 71.7, "M parameters" = 59.8, bus = 80 }
[[rows]]
name = "teachers"
teachers_of = "two"
only = "paper"
[[rows]]
name = "A"
teacher = 1
"""


def configs():
    seed("run_config", "full", RUN)
    seed("run_config", "least", LEAST)
    sets = ["seed=7", "student.branch=auto", "teachers.0.name=x y", "loss.recipe=published"]
    sets.append("dual.steps=[3, 4]")
    seed("run_config", "sets", LEAST + "".join("\0" + s for s in sets))
    seed("run_config", "wrong_sets", LEAST + "\0generator.bacth=3\0teachers.7.name=a\0dual.steps.0={}")
    seed("run_config", "unknown", LEAST + "[genertor]\n")
    seed("run_config", "broken", "name = [[{\n\"")
    seed("teach_config", "full", TEACH)
    seed("teach_config", "sets", TEACH + "\0network.stem.kernel=5\0data.labels=all")
    scenes = 'scenes = { archives = "raw", count = 10, side = [5, 9] }'
    seed("teach_config", "scenes", TEACH.replace('train = "a.npz"', scenes))
    seed("teach_config", "both", TEACH.replace("[network]", scenes + "\n[network]"))
    seed("experiment_config", "demo", EXPERIMENT)
    seed("experiment_config", "paper", EXPERIMENT + "\0paper")
    seed("experiment_config", "no_scale", EXPERIMENT + "\0papr")
    seed("experiment_config", "no_run", EXPERIMENT.replace('"two"\nonly', '"three"\nonly') + "\0paper")
    seed("experiment_config", "no_assignment", EXPERIMENT.replace("seed=3", "seed"))
    seed("experiment_config", "twice", EXPERIMENT.replace("[0, 2]", "[2, 2]"))


def image_sets():
    images = record_bytes("images", 3, 2, 2, 1)
    meta = record_json("__meta__", {"labels": ["bus", "cat"], "provenance": "made up"})
    seed("labelled", "good", meta + images + record_bytes("targets", 3, 2))
    seed("labelled", "turned", meta + images + record_bytes("targets", 2, 3))
    twice = record_json("__meta__", {"labels": ["a", "a"]})
    seed("labelled", "twice", twice + images + record_bytes("targets", 3, 2))
    seed("labelled", "raw", meta + images + record_npy("targets", npy("|u1", "(3, 2)", b"\0\1\2\0\1\3")))
    seed("unlabelled", "good", record_json("__meta__", {"provenance": "made up"}) + images)
    seed("unlabelled", "bare", images)
    seed("unlabelled", "floats", record_floats("images", 1, 2, 2, 1))
    seed("unlabelled", "extra", images + record_bytes("targets", 3, 2))
    idx = b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 3) + bytes(range(12))
    seed("idx", "plain", idx)
    seed("idx", "gzip", gzip.compress(idx, mtime=0))
    seed("idx", "float", b"\0\0\x0d\1" + struct.pack(">I", 1) + b"abcd")
    digit = ["0"] * 784
    digit[300:303] = ["1", "0.5", "1e-3"]
    seed("digits", "one", '{"data":[' + ",".join(digit) + "]}")
    seed("digits", "short", '{"data":[0,1]}')


NETWORK = {
    "block": "basic",
    "image": [8, 8, 1],
    "stem": {"width": 2, "kernel": 3, "stride": 1, "max_pool": False},
    "widths": [2, 4],
    "depths": [1, 1],
}


def convolution(name, norm, k, c, r):
    out = record_floats(name + ".weight", k, c, r, r)
    for part in ["weight", "bias", "running_mean", "running_var"]:
        out += record_floats(f"{norm}.{part}", k)
    return out


def norm(name, k):
    parts = ["weight", "bias", "running_mean", "running_var"]
    return b"".join(record_floats(f"{name}.norm.{p}", k) for p in parts)


def layer1():
    stem = convolution("conv1", "bn1", 2, 1, 3)
    stem += convolution("layer1.0.conv1", "layer1.0.bn1", 2, 2, 3)
    return stem + convolution("layer1.0.conv2", "layer1.0.bn2", 2, 2, 3)


def layer2():
    out = convolution("layer2.0.conv1", "layer2.0.bn1", 4, 2, 3)
    out += convolution("layer2.0.conv2", "layer2.0.bn2", 4, 4, 3)
    return out + convolution("layer2.0.downsample.0", "layer2.0.downsample.1", 4, 2, 1)


def models():
    head = record_floats("fc.weight", 3, 4) + record_floats("fc.bias", 3)
    meta = {"network": NETWORK, "labels": ["bus", "car", "cat"]}
    whole = record_json("__meta__", meta) + layer1() + layer2() + head
    counter = record_floats("layer1.0.bn1.num_batches_tracked", 1)
    bottleneck = {**NETWORK, "block": "bottleneck", "widths": [4], "depths": [1]}
    neck = convolution("conv1", "bn1", 2, 1, 3) + convolution("layer1.0.conv1", "layer1.0.bn1", 1, 2, 1)
    neck += convolution("layer1.0.conv2", "layer1.0.bn2", 1, 1, 3)
    neck += convolution("layer1.0.conv3", "layer1.0.bn3", 4, 1, 1)
    neck += convolution("layer1.0.downsample.0", "layer1.0.downsample.1", 4, 2, 1)
    for target in ["teacher", "student"]:
        seed(target, "whole", whole)
        seed(target, "extra", whole + record_floats("extra", 1))
        seed(target, "no_head", whole[: -len(head)])
    seed("teacher", "counter", whole + counter)
    seed("teacher", "bottleneck", record_json("__meta__", {**meta, "network": bottleneck}) + neck + head)
    deep = {**NETWORK, "depths": [65536, 65536]}
    seed("teacher", "huge", record_json("__meta__", {**meta, "network": deep}))
    tasks = [{"teacher": "a", "labels": ["bus"], "block": 1}, {"teacher": "b", "labels": ["cat"], "block": 2}]
    student = {"network": NETWORK, "filter_reduction": 2, "tasks": tasks, "labels": ["cat", "bus"]}
    seed("student", "student", record_json("__meta__", {"student": student}) + folded_student())
    lies = {**student, "tasks": [{**tasks[0], "block": 9}], "filter_reduction": 0}
    seed("student", "lies", record_json("__meta__", {"student": lies}))


def generators():
    draw = {"latent": 3, "conditions": 2, "max_labels": 1}
    told = {"network": NETWORK, "groups": 2, "widths": [3, 2], "draw": draw, "batch": 8, "seed": 4}
    tensors = record_floats("project.weight", 192, 5) + norm("project", 3)
    tensors += record_floats("up0.conv.weight", 2, 3, 3, 3) + norm("up0.conv", 2)
    level = record_floats("up0.feature.weight", 2, 2, 3, 3) + norm("up0.feature", 2)
    image = record_floats("image.weight", 1, 2, 3, 3) + record_floats("image.bias", 1)
    seed("generator", "two_groups", record_json("__meta__", {"generator": told}) + tensors + level + image)
    told = {**told, "groups": 1, "draw": {**draw, "latent": 5, "conditions": 0}}
    seed("generator", "plain", record_json("__meta__", {"generator": told}) + tensors + image)
    seed("generator", "no_image", record_json("__meta__", {"generator": told}) + tensors)
    told = {**told, "widths": [8192] * 64, "network": {**NETWORK, "image": [4096, 4096, 1]}}
    seed("generator", "huge", record_json("__meta__", {"generator": told}))


def folded_student():
    """The tensors of a student: convolutions with folded batch norms, a filter and a head for each task."""

    def folded(name, k, c, r):
        return record_floats(name + ".weight", k, c, r, r) + record_floats(name + ".bias", k)

    def filters(task, c, r):
        names = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
        shapes = [(c // r, c), (c // r,), (c, c // r), (c,)]
        return b"".join(record_floats(f"task{task}.filter.{n}", *s) for n, s in zip(names, shapes))

    def second(at):
        unit = at + "layer2.0."
        body = folded(unit + "conv1", 4, 2, 3) + folded(unit + "conv2", 4, 4, 3)
        return body + folded(unit + "downsample.0", 4, 2, 1)

    def head(task):
        return record_floats(f"task{task}.fc.weight", 1, 4) + record_floats(f"task{task}.fc.bias", 1)

    trunk = folded("trunk.conv1", 2, 1, 3)
    trunk += folded("trunk.layer1.0.conv1", 2, 2, 3) + folded("trunk.layer1.0.conv2", 2, 2, 3)
    trunk += second("trunk.")
    return trunk + filters(0, 2, 2) + second("task0.") + head(0) + filters(1, 4, 2) + head(1)


def onnx():
    def field(number, value):
        if isinstance(value, int):
            return bytes([number << 3, value])
        value = value.encode() if isinstance(value, str) else value
        return bytes([number << 3 | 2]) + varint(len(value)) + value

    def varint(n):
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    def model(tensors, producer="dfka-engine", meta='{"labels":["bus"]}'):
        graph = b"".join(field(5, t) for t in tensors) + field(2, "student")
        entry = field(1, "dfka") + field(2, meta)
        return field(1, 9) + field(2, producer) + field(7, graph) + field(14, entry)

    floats = struct.pack("<2f", 1.5, -2.0)
    weight = field(1, 2) + field(1, 1) + field(2, 1) + field(8, "trunk.conv1.weight") + field(9, floats)
    constant = field(1, 1) + field(2, 7) + field(8, "graph.axes") + field(9, bytes(8))
    seed("onnx", "whole", model([weight, constant]))
    seed("onnx", "bare", model([], meta="{}"))
    seed("onnx", "stranger", model([weight], producer="pytorch"))
    seed("onnx", "short", model([weight[:-3]]))
    seed("onnx", "turned", model([field(1, 3) + weight]))


def checkpoints():
    progress = {
        "fingerprint": "ab" * 32,
        "done": {"generator": {"seconds": 1.5, "converged": {"diversity": 0.25}}},
        "student": "",
        "stage": "block1",
        "step": 7,
        "tail": {"sums": [0.5, 1.0], "count": 2},
        "seconds": 0.25,
    }
    state = record_floats("generator.project", 2, 1, 1, 3)
    seed("checkpoint", "good", record_json("__meta__", {"progress": progress}) + state)
    seed("checkpoint", "done", record_json("__meta__", {"progress": progress}))
    seed("checkpoint", "stranger", record_json("__meta__", {"progress": progress}) + record_floats("x", 2))
    seed("checkpoint", "nothing", b"")


def safetensors_files():
    header = {
        "__metadata__": {"dfka": json.dumps({"labels": ["bus"]}), "labels": '["bus"]'},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
        "c.num_batches_tracked": {"dtype": "I64", "shape": [], "data_offsets": [14, 22]},
        "d": {"dtype": "F16", "shape": [1], "data_offsets": [22, 24]},
        "e": {"dtype": "F64", "shape": [], "data_offsets": [24, 32]},
        "f": {"dtype": "F32", "shape": [0], "data_offsets": [32, 32]},
    }
    body = struct.pack("<2f3HqHd", 1.0, -2.0, 0x3F80, 0xC000, 0, 7, 0x3C00, 0.25)

    def safetensors(header, body):
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + body

    seed("safetensors", "all", safetensors(header, body))
    one = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    seed("safetensors", "one", safetensors(one, body[:4]))
    seed("safetensors", "nothing", safetensors({}, b""))
    seed("safetensors", "short", safetensors(header, body[:-1]))
    seed("safetensors", "integers", safetensors({"x": {**one["x"], "dtype": "I32"}}, body[:4]))


def photographs():
    seed("voc_list", "split", "000005\n000007\n\n2008_000003\n")
    seed("voc_list", "class", "c000005 -1\n000007  1\n2008_000003  0\n")
    seed("voc_list", "twice", "000005\n000005\n")
    seed("voc_list", "path", "../000005\n")
    seed("voc_list", "mark", "c000005 2\n")
    fixtures = ROOT / "tests" / "fixtures"
    for name in ["000001", "000002"]:
        text = (fixtures / "voc/VOCdevkit/VOC2007/Annotations" / f"{name}.xml").read_bytes()
        seed("voc_xml", name, text)
    seed("voc_xml", "doctype", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    seed("voc_xml", "stranger", "<annotation><object><name>zebra</name></object></annotation>")
    cat = "<object><name><![CDATA[cat]]></name><difficult> 1 </difficult></object>"
    seed("voc_xml", "words", f"<annotation>{cat}</annotation>")
    coco = {
        "images": [{"id": 9, "file_name": "9.jpg", "width": 4}, {"id": 3, "file_name": "3.jpg"}],
        "annotations": [{"image_id": 3, "category_id": 18, "bbox": [1, 2, 3, 4], "iscrowd": 0}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    }
    seed("coco_json", "two", json.dumps(coco, separators=(",", ":")))
    seed("coco_json", "bare", json.dumps({**coco, "annotations": []}, separators=(",", ":")))
    seed("coco_json", "stranger", json.dumps({**coco, "annotations": [{"image_id": 4, "category_id": 1}]}))
    seed("coco_json", "path", json.dumps({**coco, "images": [{"id": 1, "file_name": "../a.jpg"}]}))
    seed("csv", "two", "file,bus,car\na.jpg,1,0\nmore/b.png,0,\n")
    seed("csv", "quotes", 'file, bus,"dining, ""set"" table"\n\n"b, c.png" , , 1.0\r\nd.jpg,0.0,\n')
    seed("csv", "twice", "file,bus\na.jpg,1\na.jpg,0\n")
    seed("csv", "path", "file,bus\n../a.jpg,1\n")
    seed("csv", "open", 'file,bus\n"a.jpg,1\n')
    for path in sorted((fixtures / "folder").rglob("*")):
        kind = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}.get(path.suffix.lower())
        if kind:
            seed(kind, path.stem, path.read_bytes())
            seed(kind, path.stem + "_cut", path.read_bytes()[: path.stat().st_size // 2])
    plain = b"".join(b"\0" + bytes(range(i, i + 6)) for i in range(3))
    seed("png", "tiny", png(2, 3, 8, 2, plain))
    seed("png", "palette", png(8, 1, 1, 3, b"\0\x5a", [(b"PLTE", b"\0\0\0\xff\x80\0"), (b"tRNS", b"\x40")]))
    seed("png", "grey16", png(1, 2, 16, 0, b"\0\1\2\0\3\4"))


def run_folders():
    by_label = {"ap": {"bus": 80.5, "cat": 62.5}, "ap_11_point": {"bus": 79.5, "cat": 61.0}}
    score = {"map": 71.5, "map_11_point": 70.25, **by_label}
    student = {**score, "by_block": [score, score]}
    shares = [{"teacher": "a", "label": "bus", "drawn": 9, "predicted": 8, "shown": 3}]
    shares += [{"teacher": "b", "label": "cat", "drawn": None, "predicted": 7, "shown": 0}]
    statistics = {"images": 64, "labels": shares}
    summary = {
        "name": "r",
        "seed": 3,
        "labels": ["bus", "cat"],
        "teachers": {"a": score, "b": score, "mean": score},
        "student": student,
        "noise": student,
        "ka": None,
        "parameters": {"teachers": 900, "student": 600, "filters": 20, "trunk": 300},
        "branch": [{"teacher": "a", "labels": ["bus"], "block": 1, "loss_by_block": [0.25, 0.5]}],
        "label_statistics": statistics,
        "seconds": {"generator": 1.5, "block1": 2, "total": 4},
        "version": "0.1.0",
    }
    metrics = [("generator", 0, 0.5), ("generator", 2, 1.0), ("block1", 0, 0.25), ("generator", 2, 0.5)]
    losses = {"loss": 0.5, "dual.a": None, "task.a": -1e-3}
    lines = [
        json.dumps({"stage": stage, "step": step, "seconds": s, "metrics": losses})
        for stage, step, s in metrics
    ]
    config = """name = "r"
seed = 3
teachers = [{ name = "a" }, { name = "b" }]
[generator]
steps = 4
batch = 8
[dual]
images = "generator"
steps = [3, 3]
batch = 4
[loss]
least_diversity = 0.1
[evaluation]
data = "e"
[baselines]
noise = true
"""
    call = {"command": ["dfka-engine", "run", "r x.toml"], "started": 1790000000, "version": "0.1.0"}
    call |= {"device": "cpu", "threads": 2, "system": "linux x86_64"}
    file = {"name": "teacher a", "file": "a.npz", "bytes": 9, "sha256": "ab" * 32}
    failure = {"message": "generator: collapsed", "exit_code": 7}
    origin = {"calls": [call, call], "weights": [file], "failure": None}

    images = [{"image": 1, "asked": ["bus"], "predicted": []}, {"image": 2, "asked": None, "predicted": ["cat"]}]
    captions = {"predicted_by": "teachers", "images": images}

    def folder(summary=None, lines=(), config="", statistics=None, origin=None, captions=None):
        texts = [json.dumps(t, separators=(",", ":")) if t else "" for t in [summary, statistics, origin, captions]]
        return "\0".join([texts[0], "\n".join(lines), config, *texts[1:]])

    seed("run_folder", "finished", folder(summary, lines, config, statistics, origin, captions))
    seed("run_folder", "failed", folder(None, lines, config, statistics, {**origin, "failure": failure}))
    seed("run_folder", "begun", folder(None, [lines[0], lines[1][:40]], config))
    seed("run_folder", "damaged", "\0".join(['{"name":', "{}", "name = [", '{"images":', "[]"]))
    seed("run_folder", "nothing", "")


def png(w, h, depth, kind, rows, extra=()):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">2I5B", w, h, depth, kind, 0, 0, 0))
    middle = b"".join(chunk(*e) for e in extra)
    return b"\x89PNG\r\n\x1a\n" + head + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


if __name__ == "__main__":
    shutil.rmtree(SEEDS, ignore_errors=True)
    texts = [configs, run_folders]
    tensors = [arrays, safetensors_files, models, generators, onnx, checkpoints]
    for make in [*texts, *tensors, image_sets, photographs]:
        make()
    files = [p for p in SEEDS.rglob("*") if p.is_file()]
    print(f"{len(files)} seeds, {sum(p.stat().st_size for p in files)} bytes in {SEEDS}")
