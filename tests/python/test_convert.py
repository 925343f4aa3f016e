"""The converter on checkpoints of many kinds; `python -m unittest discover -s tests/python`."""

import argparse
import collections
import json
import unittest
from pathlib import Path

from case import SIDE, Case, ema_of, renamed  # first: it skips where torch is missing

import dfka
import numpy as np
import safetensors.torch
import torch
from torch import nn

from resnet import Beside, Normalising, ResNet, Wrapped


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
        source = self.saved(
            {**renamed(self.state, "net.{}".format), **renamed(averaged.state_dict(), "model_ema.{}".format)}
        )
        self.assertIn("--prefix model_ema", self.exact(source))
        self.exact(source, averaged, prefix="model_ema")
        self.exact(self.saved({"ema": averaged.state_dict()}), averaged)

    def test_11_torchvision_training(self):
        args = argparse.Namespace(lr=0.1, model="resnet18", output_dir=Path("."))
        averaged = torch.optim.swa_utils.AveragedModel(self.net).state_dict()
        content = {
            "model": self.state,
            "optimizer": {"state": {}},
            "args": args,
            "model_ema": averaged,
            "best": np.float64(0.7),
        }
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
        safetensors.torch.save_file(
            net.state_dict(), self.folder / "in.safetensors", {"format": "pt", "labels": "x,y", "mean": "0.5"}
        )
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
        notes = self.exact(
            self.saved({**renamed(self.state, "model.{}".format), **renamed(self.state, "net.{}".format)})
        )
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
        self.refused(
            self.saved(self.state),
            "expected 3 numbers, one for each input channel of conv1.weight, found 2",
            mean=[0.5] * 2,
            std=[0.5] * 2,
        )

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
        source, probe = self.saved(self.net), self.folder / "probe.npz"
        dfka.convert(source, self.folder / "w.npz", ["bus", "car", "cat"], unsafe=True, probe=probe)
        with np.load(probe) as f:  # the size that the engine takes without --image-size
            self.assertEqual(f["images"].shape, (2, 3, 224, 224))
        self.convert(self.saved(self.net), unsafe=True, probe=self.folder / "probe.npz", image_size=SIDE)
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

    def test_34_small_stem_with_a_stride(self):
        net = ResNet(kernel=3)
        net.conv1.stride = (2, 2)
        pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        shape = lambda v: torch.tensor(v).reshape(1, -1, 1, 1)
        with torch.no_grad():
            expected = net((pixels - shape([0.485, 0.456, 0.406])) / shape([0.229, 0.224, 0.225])).numpy()
        for content, options in ((net.state_dict(), {"stem_stride": 2}), (net, {"unsafe": True})):
            done = self.convert(self.saved(content), image_size=SIDE, **options)
            with safetensors.safe_open(done.output, "pt") as f:
                self.assertEqual(json.loads(f.metadata()["dfka"])["stem_stride"], 2)
            self.assertNotIn("are assumed", "".join(done.notes))
            theirs = self.of_the_program(done.output, pixels.numpy())
            if theirs is not None:
                self.assertLessEqual(np.abs(theirs - expected).max(), BOUND)
        self.assertIn("conv1 has stride 2, as in the module", done.notes)
        done = self.convert(self.saved(net.state_dict()))
        self.assertIn("stride 1 and no max pool are assumed", "".join(done.notes))


if __name__ == "__main__":
    unittest.main()
