"""The student's loader: logits, what it refuses, and preprocessing. Needs torch and Pillow.

tests/program/export.rs compares the logits of students of every kind with the program's.
"""

import hashlib
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
import dfka

try:
    import numpy as np
    import torch
    from PIL import Image

    from dfka.student import Student as Network
except ImportError as e:
    print(f"SKIPPED: tests/python/test_student.py: {e}", file=sys.stderr)
    raise unittest.SkipTest(str(e)) from None

FIXTURES = ROOT / "tests/fixtures"


class Student(unittest.TestCase):
    def setUp(self):
        self.student = dfka.load_student(FIXTURES / "student_golden.npz")

    def test_logits(self):
        with np.load(FIXTURES / "student_golden_logits.npz") as f:
            images, logits = torch.from_numpy(f["images"]), f["logits"]
        images = images.float().permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            found = self.student(images)
        self.assertLess(np.abs(found.numpy() - logits).max(), 1e-5)
        above = [[label for label, v in zip(self.student.labels, row) if v > 0] for row in logits]
        self.assertEqual(self.student.predict(images), above)

    def test_other_ranges_and_layouts_are_refused(self):
        images = torch.rand(2, 3, 24, 16)
        for wrong, expected in [
            ((images * 255).byte(), "found torch.uint8; divide by 255, or use preprocess"),
            (images * 255, "divide by 255"),
            (images * 2 - 1, "do not normalise them"),
            (images[0], "expected the shape [N, 3, height, width], found [3, 24, 16]"),
            (images.permute(0, 2, 3, 1), "expected the shape"),
        ]:
            with self.assertRaises(dfka.Error) as caught:
                self.student.predict(wrong)
            self.assertIn(expected, str(caught.exception))

    def test_preprocess(self):
        draw = np.random.RandomState(0)
        for h, w, c in [(300, 500, 3), (500, 300, 3), (24, 16, 3), (37, 41, 4), (90, 70, 1)]:
            small = draw.randint(0, 256, (h // 4, w // 4, c), dtype=np.uint8)
            array = np.kron(small, np.ones((4, 4, 1), np.uint8))
            found = self.student.preprocess(array)
            self.assertEqual((found.dtype, tuple(found.shape)), (torch.float32, (3, 24, 16)))
            picture = Image.fromarray(array[:, :, 0] if c == 1 else array)
            self.assertTrue(torch.equal(found, self.student.preprocess(picture)))
            # Pillow's own resize and crop are the same but for rounding.
            scale = max(27 / picture.height, 18 / picture.width)
            size = (int(picture.width * scale), int(picture.height * scale))
            left, top = round((size[0] - 16) / 2), round((size[1] - 24) / 2)
            usual = (
                picture.convert("RGB").resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 16, top + 24))
            )
            usual = torch.from_numpy(np.array(usual)).permute(2, 0, 1)
            self.assertLessEqual((found * 255 - usual).abs().max().item(), 1.01)
            self.student.predict(found[None])
        with self.assertRaises(dfka.Error):
            self.student.preprocess(np.zeros((9, 9, 3), np.float32))

    def test_pixels_are_those_of_the_program(self):
        rows = np.arange(40)[:, None] * 3 + np.arange(30)[None] * 4
        array = np.stack([rows % 256, (rows * 7) % 256, (rows * 13) % 256], 2).astype(np.uint8)
        found = (self.student.preprocess(array) * 255).round().to(torch.uint8).numpy()
        # `data::folder::load` on this image as a PNG, for a network of 24 x 16 pixels.
        self.assertEqual(hashlib.sha256(found.tobytes()).hexdigest()[:16], "636e87cdff423d9f")

    def test_a_teacher_of_other_channels_is_reached_through_a_1x1_convolution(self):
        stem = {"width": 4, "kernel": 3, "stride": 1, "max_pool": False}
        trunk = {"block": "basic", "image": [8, 8, 1], "stem": stem, "widths": [4, 8], "depths": [1, 1]}
        wide = {**trunk, "block": "bottleneck", "widths": [12, 16], "depths": [2, 1]}
        tasks = [
            {"teacher": "a", "labels": ["bus"], "block": 2},
            {"teacher": "b", "labels": ["cat", "dog"], "block": 1, "network": wide},
        ]
        spec = {"network": trunk, "filter_reduction": 4, "tasks": tasks, "labels": ["dog", "bus", "cat"]}
        shapes = lambda spec: {n: list(t.shape) for n, t in Network({"student": spec}).state_dict().items()}
        found = shapes(spec)
        self.assertEqual(found["task1.filter.stitch.weight"], [12, 4, 1, 1])
        self.assertEqual(found["task1.filter.fc1.weight"], [3, 12])
        self.assertEqual(found["task1.layer2.0.conv3.weight"], [16, 4, 1, 1])
        self.assertNotIn("task0.filter.stitch.weight", found)
        self.assertEqual(shapes({**spec, "filter": "stitch"})["task0.filter.stitch.weight"], [8, 8, 1, 1])
        model = Network({"student": spec}).eval()
        filter, x = model.task1.filter, torch.rand(2, 4, 8, 8)
        with torch.no_grad():
            y = torch.einsum("ks,nshw->nkhw", filter.stitch.weight[:, :, 0, 0], x) + filter.stitch.bias[:, None, None]
            hidden = torch.relu(y.mean((2, 3)) @ filter.fc1.weight.T + filter.fc1.bias)
            gain = 2 * torch.sigmoid(hidden @ filter.fc2.weight.T + filter.fc2.bias)
            self.assertLess((filter(x) - y * gain[:, :, None, None]).abs().max(), 1e-5)
            self.assertEqual(list(model(torch.rand(2, 1, 8, 8)).shape), [2, 3])

    def test_files_that_are_no_students(self):
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "a.npz"
            text.write_text("no")
            for file, expected in [
                (Path(folder) / "none.npz", "there is no such file"),
                (text, "expected a student in a .safetensors or .npz file"),
                (ROOT / "weights/demo/teacher_a.npz", "expected a student, which dfka-engine's run writes"),
            ]:
                with self.assertRaises(dfka.Error) as caught:
                    dfka.load_student(file)
                self.assertIn(expected, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
