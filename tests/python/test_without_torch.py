"""What needs neither torch nor numpy: labels, options, and files that are no checkpoints. Also the student's loader.

python -m unittest discover -s tests/python
"""

import io
import shutil
import subprocess
import sys
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python"))
import dfka
from dfka import labels
from dfka.convert import main

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 102469840\n"


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def file(self, name, content):
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def error(self, function, *args, **options):
        with self.assertRaises(dfka.Error) as caught:
            function(*args, **options)
        return str(caught.exception)


class Labels(Case):
    def test_encodings_and_line_ends(self):
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            for end in ("\n", "\r\n", "\r"):
                text = f"café{end}a, b {end}語{end}{end}"
                file = self.file("l.txt", text.encode(encoding))
                self.assertEqual(labels.from_file(file), ["café", "a, b", "語"])

    def test_other_encodings_are_refused(self):
        message = self.error(labels.from_file, self.file("l.txt", "bus\ncafé\n".encode("latin-1")))
        self.assertIn("l.txt, line 2: expected UTF-8, found byte 0xe9; save the file as UTF-8", message)
        message = self.error(labels.from_file, self.file("l.txt", "bus\ncar\n".encode("utf-16-le")))
        self.assertIn("save the file as UTF-8", message)
        self.assertIn("no such file", self.error(labels.from_file, self.folder / "none.txt"))

    def test_empty_and_duplicate_labels(self):
        self.assertEqual(labels.from_option("a, b"), ["a", "b"])
        self.assertIn("label 2 of 2 is empty", self.error(labels.from_option, "x,"))
        self.assertIn("'a' is listed more than once (labels 1 and 3)", self.error(labels.from_option, "a,b,a"))
        self.assertIn("line 2 of 3 is empty", self.error(labels.from_file, self.file("l.txt", b"a\n\nb\n")))
        self.assertIn("'a' is listed more than once", self.error(labels.from_file, self.file("l.txt", b"a\na\n")))
        self.assertIn("found none", self.error(labels.from_file, self.file("l.txt", b"\n")))


class Copied(Case):
    def test_a_copy_of_the_folder_can_be_imported(self):
        shutil.copytree(ROOT / "python" / "dfka", self.folder / "dfka", ignore=shutil.ignore_patterns("__pycache__"))
        code = "import dfka; print(dfka.__version__)"
        done = subprocess.run([sys.executable, "-S", "-c", code], cwd=self.folder, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, "unknown\n"), done.stderr)


class Files(Case):
    def message(self, name, content):
        message = self.error(dfka.convert, self.file(name, content), self.folder / "o.npz", labels=["a"])
        self.assertFalse((self.folder / "o.npz").exists())
        self.assertNotIn("--unsafe", message)
        return message

    def test_what_is_no_checkpoint_is_called_by_its_name(self):
        for name, content, expected in [
            ("a.safetensors", LFS, "a Git LFS pointer, not the file itself: run git lfs pull"),
            ("a.pth", b"<!DOCTYPE html><html>", "an HTML page"),
            ("a.pth", b"\xef\xbb\xbf\n <HTML>", "an HTML page"),
            ("a.pth", b"PK\x03\x04" + bytes(40), "a zip archive without its end"),
            ("a.pth", b"", "the file is empty"),
            ("a.json", b'{"epoch": 3}', "not an index of shards"),
            (
                "m.safetensors.index.json",
                b'{"weight_map": {"a": "model-00001.safetensors"}}',
                "(model-00001.safetensors); download",
            ),
            ("a.h5", b"\x89HDF\r\n", "an HDF5 file"),
            ("a.pth.gz", b"\x1f\x8b\x08", "unpack it first"),
            ("a.pth", b"hello", "found one that begins with b'hello'"),
        ]:
            with self.subTest(content):
                self.assertIn(expected, self.message(name, content))

    def test_missing_files_and_folders(self):
        self.assertIn(
            "cannot load: there is no such file",
            self.error(dfka.convert, self.folder / "none.pth", self.folder / "o.npz"),
        )
        self.assertIn("one *.index.json", self.error(dfka.convert, self.folder, self.folder / "o.npz"))
        file = self.file("a.pth", LFS)
        self.assertIn("create it first", self.error(dfka.convert, file, self.folder / "no/o.npz"))
        self.assertIn(".npz or .safetensors", self.error(dfka.convert, file, self.folder / "o.bin"))

    def test_options(self):
        file, out = self.file("a.pth", LFS), self.folder / "o.npz"
        for expected, options in [
            ("expected 1 to 8192 pixels, found 0", {"image_size": 0}),
            ("must be given together", {"mean": [0.5]}),
            ("--std: expected numbers from 0.001 to 10", {"mean": [0.5], "std": [0.0]}),
            ("--mean: expected numbers from 0 to 1", {"mean": [123.7], "std": [1.0]}),
            ("expected a list of strings", {"labels": "a,b"}),
            ("expected 3x3 or 1x1", {"stride": "2"}),
        ]:
            self.assertIn(expected, self.error(dfka.convert, file, out, **options))

    def test_command_line(self):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), self.assertRaises(SystemExit) as caught:
            main([str(self.file("a\x1b[31m.pth", LFS)), str(self.folder / "o.npz")])
        self.assertTrue(str(caught.exception).startswith("error: "))
        self.assertNotIn("\x1b", str(caught.exception))
        for script in (ROOT / "scripts/torch_to_npz.py", "-mdfka.convert"):
            done = subprocess.run(
                [sys.executable, script, self.file("b.pth", LFS), self.folder / "o.npz", "--mean", "a,b", "--std", "1"],
                capture_output=True, text=True, cwd=ROOT / "python",
            )  # fmt: skip
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertEqual(
                done.stderr, "error: --mean: expected one number a channel, such as 0.485,0.456,0.406; found 'a,b'\n"
            )


class Package(Case):
    def test_the_import_needs_nothing(self):
        code = "import sys; sys.modules['torch'] = sys.modules['numpy'] = None; import dfka; dfka.load_student('x.npz')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "python")
        self.assertIn("dfka.load_student needs the package numpy: pip install numpy", done.stderr)

    def test_the_version_is_the_programs(self):
        self.assertIn(f'\nversion = "{dfka.__version__}"\n', (ROOT / "Cargo.toml").read_text())

    def test_the_function_convert_is_also_a_module(self):
        import dfka.convert

        self.assertIn("no such file", self.error(dfka.convert, "none.pth", self.folder / "o.npz"))
        self.assertIn("no such file", self.error(dfka.convert.convert, "none.pth", self.folder / "o.npz"))


if __name__ == "__main__":
    unittest.main()
