"""What the converter refuses, and how it says so."""

import json
import unittest

from case import BOUND, SIDE, Case, renamed  # first: it skips where torch is missing

import dfka
import numpy as np
import safetensors.torch
import torch

from resnet import Beside, ResNet


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
        two = {
            "fc.0.weight": torch.ones(9, 20),
            "fc.0.bias": torch.ones(9),
            "fc.3.weight": torch.ones(3, 9),
            "fc.3.bias": torch.ones(3),
        }
        self.refused(self.saved({**state, **two}), "the head fc has 2 Linear layers", "fc.0 (9 x 20), fc.3 (3 x 9)")
        self.refused(self.saved({**self.state, "classifier.weight": torch.ones(3, 20)}), "name it with --head")
        self.refused(
            self.saved(
                {
                    **state,
                    "fc.0.running_mean": torch.ones(20),
                    **renamed(self.state, lambda n: n.replace("fc.", "fc.1.")),
                }
            ),
            "more than the Linear layer fc.1",
        )
        self.refused(self.saved({**state, "logits.weight": torch.ones(3, 20)}), "logits (3 x 20)", "--head")
        self.refused(
            self.saved({**state, "fc.weight": torch.ones(3, 7), "fc.bias": torch.ones(3)}),
            "fc.weight: expected the shape (3, 20)",
        )
        self.refused(
            self.saved(self.state), "expected 3 labels, one for each row of fc.weight, found 2", labels=["a", "b"]
        )
        self.refused(
            self.saved({**self.state, "neck.weight": torch.ones(20, 20)}), "neck (20 x 20)", "--leave-out neck"
        )
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
        two = {n: t for n, t in self.state.items() if not n.startswith("fc.")} | {
            "fc.0.weight": torch.ones(9, 20),
            "fc.2.weight": torch.ones(3, 9),
        }
        self.assertEqual(self.convert(self.saved(two), labels=None, leave_out=["fc"]).labels, 0)

    def test_networks_of_other_kinds(self):
        wide = ResNet(block="bottleneck", wide=2, widths=(32, 64, 96, 128), depths=(3, 4, 6, 3))
        self.assertEqual(self.convert(self.saved(wide.state_dict())).labels, 3)
        pixels = torch.from_numpy(np.random.RandomState(5).randint(0, 256, (3, 3, SIDE, SIDE))).float() / 255
        theirs = self.of_the_program(self.folder / "out.safetensors", pixels.numpy())
        if theirs is not None:
            shape = lambda v: torch.tensor(v).reshape(1, -1, 1, 1)
            with torch.no_grad():
                ours = wide.eval()((pixels - shape([0.485, 0.456, 0.406])) / shape([0.229, 0.224, 0.225]))
            self.assertLessEqual(np.abs(theirs - ours.numpy()).max(), BOUND * max(1, ours.abs().max().item()))
        grouped = ResNet(block="bottleneck", groups=2, widths=(32, 64, 96, 128), depths=(3, 4, 6, 3))
        self.refused(self.saved(grouped.state_dict()), "resnext50_2x4d: grouped convolutions")
        deep = {n: t for n, t in self.state.items() if n != "conv1.weight"}
        for i, c in ((0, 3), (3, 8), (6, 8)):
            deep[f"conv1.{i}.weight"] = torch.ones(8, c, 3, 3)
        for i in (1, 4):
            deep.update(
                {f"conv1.{i}.{part}": torch.ones(8) for part in ("weight", "bias", "running_mean", "running_var")}
            )
        self.assertEqual(self.convert(self.saved(deep)).labels, 3)
        more = lambda name, *shape: self.saved({**self.state, name: torch.ones(shape)})
        self.refused(more("layer1.0.se.fc1.weight", 2, 8, 1, 1), "squeeze-and-excitation")
        self.refused(more("layer2.0.conv2.0.filt", 8, 1, 3, 3), "blur pool")
        self.refused(more("avgpool.p", 1), "generalised-mean pooling")
        self.refused(more("layer1.0.conv3.weight", 8, 8, 1, 1), "expected layer2.0.conv3.weight")
        self.refused(more("layer1.0.extra.weight", 8), "not part of it: layer1.0.extra.weight")
        self.refused(more("layer1000000000.0.conv1.weight", 8, 8, 3, 3), "no ResNet has such a block")
        group_norm = {n: t for n, t in self.state.items() if "running" not in n}
        self.refused(self.saved(group_norm), "no running statistics")
        for name, what in (
            ("cls_token", "vision transformer"),
            ("features.0.weight", "VGG"),
            ("a.weight", "1 tensor(s): a.weight"),
        ):
            self.refused(self.saved({name: torch.ones(1, 1, 4)}), what)
        self.refused(self.saved(self.state), "expected resnet50", arch="resnet50")

    def test_values(self):
        with_fc = lambda tensor: self.saved({**self.state, "fc.weight": tensor})
        self.refused(
            with_fc(torch.ones(3, 20, dtype=torch.int8)), "fc.weight: expected floating-point numbers, found int8"
        )
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
        (self.folder / "cut.pth").write_bytes(
            self.saved(self.state, "old.pth", _use_new_zipfile_serialization=False).read_bytes()[:900]
        )
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
