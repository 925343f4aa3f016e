"""The converter on checkpoints of many kinds, and on networks that only look like plain ResNets. Needs torch.

    python -m unittest discover -s tests/python

A converted file's logits come from the tests' own ResNet and, if DFKA_BIN names the program and onnxruntime is installed,
from the ONNX file that the program exports of it. Both must agree with the original module.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import unittest
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "python"), str(Path(__file__).resolve().parent)]
import dfka

try:
    import numpy as np
    import safetensors.torch
    import torch
    from torch import nn

    from resnet import LABELS, Beside, Normalising, ResNet, Scaled, Wrapped
except ImportError as e:
    print(f"SKIPPED: tests/python/test_convert.py: {e}", file=sys.stderr)
    raise unittest.SkipTest(str(e)) from None

# The networks are small; more threads only wait for each other.
torch.set_num_threads(1)

BOUND = 1e-4
SIDE = 64
BIN = os.environ.get("DFKA_BIN")


def renamed(state, change):
    return {change(name): tensor for name, tensor in state.items()}


def ema_of(state):
    return {name: t * 1.05 if t.is_floating_point() else t for name, t in state.items()}


class Case(unittest.TestCase):
    def setUp(self):
        warnings.simplefilter("ignore")  # of torch.jit and quantisation, which will leave it
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.net = ResNet()
        self.state = self.net.state_dict()

    def saved(self, content, name="in.pth", **options):
        torch.save(content, self.folder / name, **options)
        return self.folder / name

    def convert(self, source, output="out.safetensors", labels=LABELS, **options):
        options = {"image_size": SIDE, **options}
        return dfka.convert(source, self.folder / output, labels, **options)

    def exact(self, source, net=None, output="out.safetensors", **options):
        """Converts and compares logits. Returns the notes as one text."""
        net = net or self.net
        done = self.convert(source, output, **options)
        file = self.folder / output
        channels = (net.conv1 if hasattr(net, "conv1") else net.backbone.conv1).in_channels
        mean, std = options.get("mean"), options.get("std")
        if mean is None:
            mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if channels == 3 else ([0.5] * channels,) * 2
        shape = lambda v: torch.tensor(v).reshape(1, -1, 1, 1)
        pixels = torch.from_numpy(np.random.RandomState(5).randint(0, 256, (3, channels, SIDE, SIDE))).float() / 255
        with torch.no_grad():
            expected = net((pixels - shape(mean)) / shape(std))
            if file.suffix == ".npz":
                with np.load(file) as f:
                    tensors = {n: torch.from_numpy(f[n]) for n in f.files if n != "__meta__"}
            else:
                tensors = safetensors.torch.load_file(file)
            block = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
            widths = [tensors[f"layer{b}.0.bn{3 if block == 'bottleneck' else 2}.weight"].shape[0] for b in range(1, 5)]
            depths = [len({n.split(".")[1] for n in tensors if n.startswith(f"layer{b}.")}) for b in range(1, 5)]
            kernel = tensors["conv1.weight"].shape[-1]
            stride = options.get("stride") or ("1x1" if any("stride: 1x1" in note for note in done.notes) else "3x3")
            plain = ResNet(block=block, widths=widths, depths=depths, kernel=kernel, channels=channels, stride=stride)
            missing = plain.load_state_dict(tensors, strict=False)
            self.assertFalse(missing.unexpected_keys)
            self.assertTrue(all(n.endswith("num_batches_tracked") for n in missing.missing_keys), missing)
            found = plain((pixels - shape(mean)) / shape(std))
        self.assertLessEqual((found - expected).abs().max().item(), BOUND)
        theirs = self.of_the_program(file, pixels.numpy())
        if theirs is not None:
            self.assertLessEqual(np.abs(theirs - expected.numpy()).max(), BOUND)
        return "\n".join(done.notes)

    def of_the_program(self, file, pixels):
        """The logits in the ONNX file that the program exports; None without the program or onnxruntime."""
        try:
            import onnxruntime
        except ImportError:
            return None
        if not BIN:
            return None
        made = file.with_suffix(".onnx")
        done = subprocess.run([BIN, "export", file, "--to", made], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"image": pixels})[0]

    def refused(self, source, *expected, **options):
        with self.assertRaises(dfka.Error) as caught:
            self.convert(source, "refused.safetensors", **options)
        message = str(caught.exception)
        for part in expected:
            self.assertIn(part, message)
        self.assertNotIn("\x1b", message)
        self.assertNotIn("\n", message)
        self.assertEqual([p.name for p in self.folder.iterdir() if "refused" in p.name], [])
        return message


class Flavours(Case):
    """One test for each kind of checkpoint."""

    def test_01_state_dict(self):
        self.assertIn("ImageNet's mean and deviation (assumed", self.exact(self.saved(self.state)))

    def test_02_data_parallel(self):
        self.exact(self.saved({"state_dict": renamed(self.state, "module.{}".format), "epoch": 3}), output="out.npz")

    def test_03_lightning_with_a_loss(self):
        state = {**renamed(self.state, "model.{}".format), "criterion.pos_weight": torch.ones(2)}
        optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
        content = {"state_dict": state, "hyper_parameters": {"arch": "resnet18"}, "optimizer_states": [optimizer]}
        notes = self.exact(self.saved(content, "in.ckpt"))
        self.assertIn("left out 1 tensor beside the network: criterion.pos_weight", notes)

    def test_04_lightning_with_a_metric(self):
        state = {**renamed(self.state, "net.{}".format), "val_ap.thresholds": torch.linspace(0, 1, 5)}
        self.assertIn("val_ap.thresholds", self.exact(self.saved({"state_dict": state})))

    def test_05_averaged_model(self):
        state = torch.optim.swa_utils.AveragedModel(self.net).state_dict()
        self.assertIn("left out 1 tensor beside the network: n_averaged", self.exact(self.saved(state)))

    def test_06_compiled(self):
        self.exact(self.saved(renamed(self.state, "_orig_mod.{}".format)))

    def test_07_nested_wrappers(self):
        self.exact(self.saved({"model": renamed(self.state, "_orig_mod.module.backbone.{}".format)}))

    def test_08_any_key(self):
        self.exact(self.saved({"weights": self.state, "loss": torch.tensor(0.3)}))

    def test_09_averaged_beside_raw(self):
        source = self.saved({"state_dict": self.state, "state_dict_ema": ema_of(self.state)})
        notes = self.exact(source)
        self.assertIn("took the raw weights (state_dict)", notes)
        self.assertIn("--key state_dict_ema", notes)

    def test_10_averaged_by_key(self):
        averaged = ResNet()
        averaged.load_state_dict(ema_of(self.state))
        source = self.saved({"state_dict": self.state, "state_dict_ema": averaged.state_dict()})
        self.exact(source, averaged, key="state_dict_ema")
        source = self.saved({**renamed(self.state, "net.{}".format), **renamed(averaged.state_dict(), "model_ema.{}".format)})
        self.assertIn("--prefix model_ema", self.exact(source))
        self.exact(source, averaged, prefix="model_ema")
        self.exact(self.saved({"ema": averaged.state_dict()}), averaged)

    def test_11_torchvision_training(self):
        args = argparse.Namespace(lr=0.1, model="resnet18", output_dir=Path("."))
        averaged = torch.optim.swa_utils.AveragedModel(self.net).state_dict()
        content = {"model": self.state, "optimizer": {"state": {}}, "args": args, "model_ema": averaged, "best": np.float64(0.7)}
        self.assertIn("--key model_ema", self.exact(self.saved(content)))

    def head(self, name, **options):
        self.net.fc.bias.data += 0.1
        return self.exact(self.saved(renamed(self.net.state_dict(), lambda n: n.replace("fc.", f"{name}."))), **options)

    def test_12_head_behind_a_dropout(self):
        self.assertIn("the head is fc.1", self.head("fc.1"))

    def test_13_heads_of_other_names(self):
        for name in ("fc.0", "head", "head.fc", "classifier", "classifier.1", "last_linear", "linear"):
            with self.subTest(name):
                self.head(name)

    def test_14_head_by_option(self):
        self.head("logits", head="logits")

    def test_15_head_beside_the_backbone(self):
        net = Beside()
        self.exact(self.saved(net.state_dict()), net)
        state = renamed(net.state_dict(), lambda n: f"model.{n}")
        self.exact(self.saved({"state_dict": state}), net)

    def test_16_dictionaries_for_backbone_and_head(self):
        net = Beside()
        self.exact(self.saved({"backbone": net.backbone.state_dict(), "fc": net.fc.state_dict(), "epoch": 1}), net)

    def test_17_head_without_a_bias(self):
        self.net.fc.bias.data.zero_()
        state = {n: t for n, t in self.net.state_dict().items() if n != "fc.bias"}
        self.assertIn("wrote zeros", self.exact(self.saved(state)))

    def test_18_half_precision(self):
        net = self.net.half()
        source = self.saved(net.state_dict())
        self.exact(source, net.float())

    def test_19_bfloat16_safetensors_with_foreign_metadata(self):
        net = self.net.bfloat16()
        safetensors.torch.save_file(net.state_dict(), self.folder / "in.safetensors", {"format": "pt", "labels": "x,y", "mean": "0.5"})
        self.exact(self.folder / "in.safetensors", net.float())

    def test_20_double_precision(self):
        self.exact(self.saved(self.net.double().state_dict()), self.net.float())

    def shards(self):
        names = sorted(self.state)
        files = {n: f"model-0000{1 + (i > 20)}-of-00002.safetensors" for i, n in enumerate(names)}
        for file in set(files.values()):
            safetensors.torch.save_file({n: self.state[n] for n in names if files[n] == file}, self.folder / file)
        index = self.folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}, indent=2))
        return index

    def test_21_shards(self):
        index = self.shards()
        self.exact(index)
        self.exact(self.folder, output="again.npz")

    def test_22_sparse_head(self):
        self.exact(self.saved({**self.state, "fc.weight": self.state["fc.weight"].to_sparse()}))

    def test_23_same_network_twice(self):
        notes = self.exact(self.saved({**renamed(self.state, "model.{}".format), **renamed(self.state, "net.{}".format)}))
        self.assertIn("are the same network; took model", notes)

    def test_24_numbered_layers(self):
        net = self.net
        numbered = nn.Sequential(*list(net.children())[:-1])
        wrapped = nn.ModuleDict({"backbone": numbered, "fc": net.fc})
        self.assertIn("backbone.4.0.conv1.weight", wrapped.state_dict())
        self.exact(self.saved(wrapped.state_dict()))

    def test_25_network_for_cifar(self):
        net = ResNet(kernel=3)
        change = lambda n: n.replace("downsample", "shortcut").replace("fc.", "linear.")
        self.exact(self.saved({"net": renamed(net.state_dict(), change), "acc": 93.1}), net)

    def test_26_old_format(self):
        self.exact(self.saved(self.state, _use_new_zipfile_serialization=False))
        content = collections.OrderedDict((n, nn.Parameter(t, False)) for n, t in self.state.items())
        self.exact(self.saved(content))

    def test_27_channels(self):
        for channels, mean, std in [(1, None, None), (1, [0.3], [0.2]), (5, [0.1] * 5, [0.3] * 5)]:
            with self.subTest(channels):
                net = ResNet(channels=channels)
                self.exact(self.saved(net.state_dict()), net, mean=mean, std=std, output="out.npz")
        self.refused(self.saved(self.state), "expected 3 numbers, one for each input channel of conv1.weight, found 2", mean=[0.5] * 2, std=[0.5] * 2)

    def test_28_bottlenecks_of_both_strides(self):
        for stride in ("3x3", "1x1"):
            net = ResNet(block="bottleneck", stride=stride)
            self.exact(self.saved(net.state_dict()), net, stride=stride)

    def test_29_whole_modules(self):
        self.exact(self.saved(self.net), unsafe=True)
        self.exact(self.saved({"model": self.net, "epoch": 3}), unsafe=True)
        self.exact(self.saved(Wrapped(self.net)), unsafe=True)
        self.exact(self.saved(nn.DataParallel(self.net)), unsafe=True)
        net = Beside()
        self.exact(self.saved(net), net, unsafe=True)
        v1 = ResNet(block="bottleneck", stride="1x1")
        self.assertIn("stride: 1x1, as in the module", self.exact(self.saved(v1), v1, unsafe=True))
        notes = self.exact(self.saved(Wrapped(self.net, nn.Sigmoid())), unsafe=True)
        self.assertIn("ends in a sigmoid", notes)

    def test_30_torchscript(self):
        torch.jit.save(torch.jit.trace(self.net.conv1, torch.zeros(1, 3, 9, 9)), self.folder / "in.pt")
        self.refused(self.folder / "in.pt", "TorchScript")
        torch.jit.save(torch.jit.trace(self.net, torch.zeros(2, 3, SIDE, SIDE)), self.folder / "in.pt")
        self.exact(self.folder / "in.pt", unsafe=True)

    def test_31_backbone(self):
        state = {n: t for n, t in self.state.items() if not n.startswith("fc.")}
        done = self.convert(self.saved(state), labels=None)
        self.assertIn("no head", "\n".join(done.notes))
        self.refused(self.saved(state), "expected a head, because labels were given")

    def test_32_probe(self):
        self.convert(self.saved(self.net), unsafe=True, probe=self.folder / "probe.npz")
        with np.load(self.folder / "probe.npz") as f:
            images, logits = torch.from_numpy(f["images"]), f["logits"]
        self.assertEqual((images.dtype, tuple(images.shape)), (torch.float32, (2, 3, SIDE, SIDE)))
        self.assertTrue(0 <= images.min() and images.max() <= 1)
        shape = lambda v: torch.tensor(v).reshape(1, -1, 1, 1)
        with torch.no_grad():
            expected = self.net((images - shape([0.485, 0.456, 0.406])) / shape([0.229, 0.224, 0.225]))
        self.assertLess(np.abs(logits - expected.numpy()).max(), 1e-5)
        self.refused(self.saved(self.state), "--probe needs a whole module", probe=self.folder / "p.npz")

    def test_33_networks_that_normalise_their_images(self):
        for mean, std in (([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.3] * 3, [0.25] * 3)):
            net = Normalising(mean, std)
            for content, unsafe in ((net, True), (net.state_dict(), False)):
                done = self.convert(self.saved(content), unsafe=unsafe)
                with safetensors.safe_open(done.output, "pt") as f:
                    found = json.loads(f.metadata()["dfka"])
                self.assertTrue(np.allclose(found["mean"], mean) and np.allclose(found["std"], std))
                self.assertIn("of the checkpoint's own tensors", done.notes[-1])
        self.assertIn("normalises its images itself", "".join(self.convert(self.saved(net), unsafe=True).notes))


class LookAlikes(Case):
    """The tensors of a plain ResNet, and another computation. Only a whole module shows it."""

    def other(self, *expected, net=None, **changes):
        net = net or ResNet(**changes)
        self.refused(self.saved(net), "would compute another network", *expected, unsafe=True)

    def test_01_dilation(self):
        self.other("layer4.0.conv1 has dilation 2", dilation=2)

    def test_02_stride_of_the_last_block(self):
        self.other("layer4.0.conv1 has stride 1 instead of 2", last_stride=1)

    def test_03_average_pool(self):
        self.other("maxpool is AvgPool2d", pool="average")

    def test_04_no_pool(self):
        self.other("no max pool", pool="none")

    def test_05_pool_behind_a_small_stem(self):
        self.other("maxpool is a max pool, which", kernel=3, pool="added")

    def test_06_pool_of_other_padding(self):
        self.other("a max pool other than 3x3", pool="ceil")

    def test_07_silu(self):
        self.other("is SiLU", act=nn.SiLU)

    def test_08_leaky_relu(self):
        self.other("is LeakyReLU", act=nn.LeakyReLU)

    def test_09_epsilon(self):
        self.other("bn1 has the epsilon 0.001", eps=1e-3)

    def test_10_padding_of_other_values(self):
        self.other("pads with reflect", padding_mode="reflect")

    def test_11_other_forward(self):
        self.other("its forward() computes something else", net=Scaled())

    def test_12_global_max_pool(self):
        net = ResNet()
        net.avgpool = nn.AdaptiveMaxPool2d(1)
        self.other("avgpool is AdaptiveMaxPool2d", net=net)

    def test_13_softmax(self):
        self.other("last is Softmax", net=Wrapped(ResNet(), nn.Softmax(1)))

    def test_14_stride_that_the_user_states_wrongly(self):
        net = ResNet(block="bottleneck")
        self.refused(self.saved(net), "layer2.0.conv2 has stride 2 instead of 1", unsafe=True, stride="1x1")

    def test_15_names(self):
        for name in ("resnetblur50", "resnet50d", "wide_resnet50_2", "seresnet50", "timm/resnetaa50.a1h_in1k"):
            for content in ({"arch": name}, {"args": argparse.Namespace(model=name)}, {"hyper_parameters": {"arch": name}}):
                self.refused(self.saved({"state_dict": self.state, **content}), f"architecture {name}")
        for name in ("resnet18", "timm/resnet50.a1_in1k", "tv_resnet101", "my_activity_net"):
            self.exact(self.saved({"state_dict": self.state, "arch": name}))
        source = self.saved({"state_dict": self.state, "arch": "resnetblur50"})
        self.exact(source, arch="plain")
        (self.folder / "config.json").write_text('{"architecture": "resnetblur50"}')
        self.refused(self.saved(self.state), "config.json: architecture: architecture resnetblur50")

    def test_16_config_of_a_hub(self):
        config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
        (self.folder / "config.json").write_text(json.dumps(config))
        done = self.convert(self.saved(self.state))
        self.assertIn("of config.json", done.notes[-1])
        with safetensors.safe_open(self.folder / "out.safetensors", "pt") as f:
            self.assertEqual(json.loads(f.metadata()["dfka"])["std"], [0.25, 0.25, 0.25])


class Refusals(Case):
    def test_two_networks(self):
        other = ResNet(seed=2).state_dict()
        source = self.saved({**renamed(self.state, "student.{}".format), **renamed(other, "teacher.{}".format)})
        self.refused(source, "found 2 networks (student, teacher)", "--prefix student or --prefix teacher")
        self.exact(source, prefix="student")
        source = self.saved({"student": self.state, "teacher": other})
        self.refused(source, "--key student or --key teacher")
        self.exact(source, key="student")
        self.refused(source, "--key pupil: no network there", key="pupil")

    def test_heads(self):
        state = {n: t for n, t in self.state.items() if not n.startswith("fc.")}
        two = {"fc.0.weight": torch.ones(9, 20), "fc.0.bias": torch.ones(9), "fc.3.weight": torch.ones(3, 9), "fc.3.bias": torch.ones(3)}
        self.refused(self.saved({**state, **two}), "the head fc has 2 Linear layers", "fc.0 (9 x 20), fc.3 (3 x 9)")
        self.refused(self.saved({**self.state, "classifier.weight": torch.ones(3, 20)}), "name it with --head")
        self.refused(self.saved({**state, "fc.0.running_mean": torch.ones(20), **renamed(self.state, lambda n: n.replace("fc.", "fc.1."))}), "more than the Linear layer fc.1")
        self.refused(self.saved({**state, "logits.weight": torch.ones(3, 20)}), "logits (3 x 20)", "--head")
        self.refused(self.saved({**state, "fc.weight": torch.ones(3, 7), "fc.bias": torch.ones(3)}), "fc.weight: expected the shape (3, 20)")
        self.refused(self.saved(self.state), "expected 3 labels, one for each row of fc.weight, found 2", labels=["a", "b"])
        self.refused(self.saved({**self.state, "neck.weight": torch.ones(20, 20)}), "neck (20 x 20)", "--leave-out neck")
        self.exact(self.saved({**self.state, "neck.weight": torch.ones(20, 20)}), leave_out=["neck"])

    def test_layers_between_the_features_and_the_head(self):
        net = Beside()
        neck = {f"neck.{part}": torch.ones(20) for part in ("weight", "bias", "running_mean", "running_var")}
        source = self.saved({**net.state_dict(), **neck})
        self.refused(source, "the network also has neck (20)", "--leave-out neck")
        self.assertIn("left out 4 tensors", self.exact(source, net, leave_out=["neck"]))
        # Next to a network that has its own head, nothing takes part in its logits.
        state = {**renamed(self.state, "model.{}".format), "projector.weight": torch.ones(20, 20)}
        self.assertIn("left out 1 tensor beside the network: projector.weight", self.exact(self.saved(state)))
        # Without labels, a head of two layers can be left out.
        two = {n: t for n, t in self.state.items() if not n.startswith("fc.")} | {"fc.0.weight": torch.ones(9, 20), "fc.2.weight": torch.ones(3, 9)}
        self.assertEqual(self.convert(self.saved(two), labels=None, leave_out=["fc"]).labels, 0)

    def test_networks_of_other_kinds(self):
        wide = ResNet(block="bottleneck", wide=2, widths=(32, 64, 96, 128), depths=(3, 4, 6, 3))
        self.refused(self.saved(wide.state_dict()), "wide_resnet50_2", "plain ResNets only")
        grouped = ResNet(block="bottleneck", groups=2, widths=(32, 64, 96, 128), depths=(3, 4, 6, 3))
        self.refused(self.saved(grouped.state_dict()), "resnext50_2x4d: grouped convolutions")
        deep = {n: t for n, t in self.state.items() if n != "conv1.weight"}
        for i, c in ((0, 3), (3, 8), (6, 8)):
            deep[f"conv1.{i}.weight"] = torch.ones(8, c, 3, 3)
        for i in (1, 4):
            deep.update({f"conv1.{i}.{part}": torch.ones(8) for part in ("weight", "bias", "running_mean", "running_var")})
        self.refused(self.saved(deep), "a stem of three convolutions (conv1.0, conv1.3, conv1.6); dfka-engine reads plain")
        more = lambda name, *shape: self.saved({**self.state, name: torch.ones(shape)})
        self.refused(more("layer1.0.se.fc1.weight", 2, 8, 1, 1), "squeeze-and-excitation")
        self.refused(more("layer2.0.conv2.0.filt", 8, 1, 3, 3), "blur pool")
        self.refused(more("avgpool.p", 1), "generalised-mean pooling")
        self.refused(more("layer1.0.conv3.weight", 8, 8, 1, 1), "expected layer2.0.conv3.weight")
        self.refused(more("layer1.0.extra.weight", 8), "not part of it: layer1.0.extra.weight")
        self.refused(more("layer1000000000.0.conv1.weight", 8, 8, 3, 3), "no ResNet has such a block")
        group_norm = {n: t for n, t in self.state.items() if "running" not in n}
        self.refused(self.saved(group_norm), "no running statistics")
        for name, what in (("cls_token", "vision transformer"), ("features.0.weight", "VGG"), ("a.weight", "1 tensor(s): a.weight")):
            self.refused(self.saved({name: torch.ones(1, 1, 4)}), what)
        self.refused(self.saved(self.state), "expected resnet50", arch="resnet50")

    def test_values(self):
        with_fc = lambda tensor: self.saved({**self.state, "fc.weight": tensor})
        self.refused(with_fc(torch.ones(3, 20, dtype=torch.int8)), "fc.weight: expected floating-point numbers, found int8")
        self.refused(with_fc(torch.full((3, 20), torch.nan)), "fc.weight: expected finite numbers")
        self.refused(with_fc(torch.ones(3, 20, device="meta")), "fc.weight")
        self.refused(with_fc(torch.quantize_per_tensor(torch.ones(3, 20), 0.1, 0, torch.qint8)), "fc.weight: quantised")

    def test_pickles(self):
        message = self.refused(self.saved(self.net), "resnet.ResNet", "--unsafe runs its code")
        self.assertNotIn("Traceback", message)
        self.refused(self.saved({"state_dict": self.state, "x": unittest.TestCase()}), "unittest.case.TestCase")
        self.refused(self.saved([1, 2]), "expected a dictionary of tensors, found list")
        self.refused(self.saved({"epoch": 1}), "a dictionary without any; its keys are epoch")
        whole = self.saved(self.state).read_bytes()
        (self.folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
        self.assertNotIn("--unsafe", self.refused(self.folder / "cut.pth", "cut"))
        (self.folder / "cut.pth").write_bytes(self.saved(self.state, "old.pth", _use_new_zipfile_serialization=False).read_bytes()[:900])
        self.assertNotIn("--unsafe", self.refused(self.folder / "cut.pth", "cut or damaged"))
        safetensors.torch.save_file(self.state, self.folder / "a.safetensors")
        whole = (self.folder / "a.safetensors").read_bytes()
        (self.folder / "a.safetensors").write_bytes(whole[:-9])
        self.refused(self.folder / "a.safetensors", "cut or damaged")

    def test_shards_that_are_missing(self):
        index = self.folder / "model.safetensors.index.json"
        index.write_text('{"weight_map": {"conv1.weight": "model-00001-of-00001.safetensors"}}')
        self.refused(index, "model-00001-of-00001.safetensors", "download")
        index.write_text('{"weight_map": {"conv1.weight": "../x.safetensors"}}')
        self.refused(index, "expected names of files in the same folder")

    def test_what_is_written_by_the_program(self):
        meta = {"dfka": json.dumps({"network": {}})}
        safetensors.torch.save_file(self.state, self.folder / "a.safetensors", meta)
        self.refused(self.folder / "a.safetensors", "nothing to convert")
        self.convert(self.saved(self.state), "b.npz")
        self.refused(self.folder / "b.npz", "nothing to convert")

    def test_a_file_is_whole_or_absent(self):
        (self.folder / "out.safetensors").write_text("old")
        with self.assertRaises(dfka.Error):
            self.convert(self.saved({**self.state, "fc.weight": torch.full((3, 20), torch.inf)}))
        self.assertEqual((self.folder / "out.safetensors").read_text(), "old")
        self.convert(self.saved(self.state))
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["in.pth", "out.safetensors"])


if __name__ == "__main__":
    unittest.main()
