"""Loads a student of dfka-engine in PyTorch: the package `dfka` from a clone, without installing it.

from load_student import load_student
model = load_student("student.safetensors")
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from dfka.student import Student, load_student

__all__ = ["Student", "load_student"]
