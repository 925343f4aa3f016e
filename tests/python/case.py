"""What the tests of the converter share. Needs torch.

A converted file's logits come from the tests' own ResNet and, if DFKA_BIN names the program and onnxruntime is
installed, from the ONNX file that the program exports of it. Both must agree with the original module.
"""

import os
import subprocess
import sys
import tempfile
import unittest
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
import dfka

try:
    import numpy as np
    import safetensors.torch
    import torch

    from resnet import LABELS, ResNet
except ImportError as e:
    print(f"SKIPPED: tests of the converter: {e}", file=sys.stderr)
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
