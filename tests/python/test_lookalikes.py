"""The converter on networks with the tensors of a plain ResNet that compute something else."""

import argparse
import json
import unittest

from case import Case  # first: it skips where torch is missing

import dfka
import numpy as np
import safetensors.torch
import torch
from torch import nn

from resnet import ResNet, Scaled, Wrapped


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

    def test_14_saturated_probabilities_hide_no_difference(self):
        net = ResNet(dilation=2)
        net.fc.weight.data *= 30
        self.other("has dilation 2", net=Wrapped(net, nn.Sigmoid()))

    def test_15_stride_that_the_user_states_wrongly(self):
        net = ResNet(block="bottleneck")
        self.refused(self.saved(net), "layer2.0.conv2 has stride 2 instead of 1", unsafe=True, stride="1x1")

    def test_16_names(self):
        for name in ("resnetblur50", "resnext50_32x4d", "seresnet50", "timm/resnetaa50.a1h_in1k"):
            for content in (
                {"arch": name},
                {"args": argparse.Namespace(model=name)},
                {"hyper_parameters": {"arch": name}},
            ):
                self.refused(self.saved({"state_dict": self.state, **content}), f"architecture {name}")
        for name in ("resnet18", "timm/resnet50.a1_in1k", "tv_resnet101", "my_activity_net"):
            self.exact(self.saved({"state_dict": self.state, "arch": name}))
        source = self.saved({"state_dict": self.state, "arch": "resnetblur50"})
        self.exact(source, arch="plain")
        (self.folder / "config.json").write_text('{"architecture": "resnetblur50"}')
        self.refused(self.saved(self.state), "config.json: architecture: architecture resnetblur50")

    def test_17_config_of_a_hub(self):
        config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
        (self.folder / "config.json").write_text(json.dumps(config))
        done = self.convert(self.saved(self.state))
        self.assertIn("of config.json", done.notes[-1])
        with safetensors.safe_open(self.folder / "out.safetensors", "pt") as f:
            self.assertEqual(json.loads(f.metadata()["dfka"])["std"], [0.25, 0.25, 0.25])

    def head_of(self, config=None, content=None, net=None):
        """The head that the converted file names, and the notes."""
        if config is not None:
            (self.folder / "config.json").write_text(json.dumps(config))
        net = net or self.net
        rows = net.fc.out_features
        labels = [f"label {i}" for i in range(rows)]
        done = self.convert(self.saved(content or net.state_dict()), "out.npz", labels)
        with np.load(self.folder / "out.npz") as file:
            meta = json.loads(file["__meta__"].tobytes())
        return meta.get("head"), "\n".join(done.notes)

    def test_18_heads_that_the_metadata_names(self):
        self.assertEqual(self.head_of()[0], None)
        head, notes = self.head_of({"problem_type": "single_label_classification"})
        self.assertEqual(head, "softmax")
        self.assertIn("config.json: problem_type: single_label_classification): the engine refuses it", notes)
        self.assertIn('write head = "sigmoid" in the config', notes)
        head, notes = self.head_of({"problem_type": "multi_label_classification"})
        self.assertEqual(head, "sigmoid")
        self.assertIn("head: sigmoid, a probability for each label", notes)
        self.assertEqual(self.head_of({"problem_type": "regression"})[0], None)
        (self.folder / "config.json").unlink()
        content = {"state_dict": self.state, "hparams": {"problem_type": "single_label_classification"}}
        head, notes = self.head_of(content=content)
        self.assertEqual(head, "softmax")
        self.assertIn("in.pth: hparams.problem_type", notes)

    def test_19_heads_of_imagenet(self):
        net = ResNet()
        timm = lambda tag, classes=1000: {
            "architecture": "resnet18",
            "pretrained_cfg": {"tag": tag, "num_classes": classes},
        }
        # The pretrained weights are ImageNet's, and the head is another.
        self.assertEqual(self.head_of(timm("tv_in1k"))[0], None)
        net.fc = torch.nn.Linear(net.fc.in_features, 1000)
        head, notes = self.head_of(timm("tv_in1k"), net=net)
        self.assertEqual(head, "softmax")
        self.assertIn("pretrained_cfg, 1000 classes of ImageNet", notes)
        # timm trained these recipes with binary cross-entropy.
        self.assertEqual(self.head_of(timm("a1_in1k"), net=net)[0], None)
        self.assertEqual(self.head_of(timm("tv_in1k", 21843), net=net)[0], None)


if __name__ == "__main__":
    unittest.main()
