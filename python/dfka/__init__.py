"""Python beside dfka-engine: converts checkpoints for it, and loads the students that it writes.

    import dfka
    dfka.convert("left.pth", "left.safetensors", labels=["bus", "car", "person"])
    model = dfka.load_student("student.safetensors")

Importing the package needs nothing else; a function that needs PyTorch says so if it is missing.
"""

import re
from importlib import metadata
from pathlib import Path

from .errors import Error, MissingPackage

__all__ = ["Error", "MissingPackage", "__version__", "convert", "load_student"]


def _version():
    """The version of the program that this package belongs to."""
    cargo = Path(__file__).resolve().parents[2] / "Cargo.toml"
    try:  # in a clone, where another version may also be installed
        return re.search(r'^name = "dfka-engine"\nversion = "(.+)"', cargo.read_text(), re.MULTILINE)[1]
    except (OSError, TypeError):
        pass
    try:
        return metadata.version("dfka-engine")
    except metadata.PackageNotFoundError:  # the folder was copied next to another program
        return "unknown"


__version__ = _version()


def load_student(path):
    """Returns the student in a .npz or .safetensors file: an nn.Module in evaluation mode on the CPU."""
    from .student import load_student

    return load_student(path)


def convert(source, output, labels=None, **options):
    """Writes the ResNet of a PyTorch checkpoint as a file that dfka-engine reads; see `dfka.convert.convert`."""
    from .convert import convert

    return convert(source, output, labels, **options)
