#!/usr/bin/env python3
"""Converts a PyTorch checkpoint of a ResNet to a file that dfka-engine reads: `python -m dfka.convert` from a clone.

python3 scripts/torch_to_npz.py teacher.pth teacher.safetensors --labels bus,car,person
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from dfka.convert import main

if __name__ == "__main__":
    main()
