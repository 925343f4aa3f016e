#!/usr/bin/env python3
"""PyTorch's side of `cargo bench --bench loader`: the same JPEGs, crop, size, mirroring and batch.

    python3 benches/torch/loader.py --make FOLDER [--count 400]     # draws photo-like JPEGs of about 500 x 375
    python3 benches/torch/loader.py FOLDER --seconds 5 --workers 2

Rows: `pil` does what torchvision's reference scripts do (PIL decode, RandomResizedCrop, flip, ToTensor, Normalize
in a DataLoader). `v2` is the fastest that torchvision offers on a CPU: `torchvision.io.decode_jpeg` and the v2
transforms on 8-bit tensors, converted to f32 and normalised as a whole batch. Processor time includes the workers.
"""
import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def draw(folder, count):
    """Draws noise over eight octaves whose amplitude falls as in photographs, mostly grey, with six edges."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = []
    for i in range(count):
        r = np.random.default_rng(i)
        w, h = (500, 375) if r.random() < 0.75 else (375, 500)
        w, h = w - int(r.integers(0, 20)), h - int(r.integers(0, 40))
        image = np.zeros((h, w, 3), np.float32)
        for octave in range(8):
            side = 2 ** (7 - octave)
            noise = r.standard_normal((h // side + 2, w // side + 2, 3)).astype(np.float32)
            noise = 1.3 * noise.mean(2, keepdims=True) + 0.35 * noise
            large = [np.asarray(Image.fromarray(noise[:, :, c]).resize((w, h), Image.BICUBIC)) for c in range(3)]
            image += 0.8**octave * np.stack(large, 2)
        y, x = np.mgrid[:h, :w]
        for _ in range(6):  # edges
            a, b, c = r.standard_normal(3)
            image += 0.5 * np.sign(a * (x / w - 0.5) + b * (y / h - 0.5) + 0.2 * c)[:, :, None]
        file = folder / f"{i:05}.jpg"
        Image.fromarray(np.clip(128 + 30 * image, 0, 255).astype(np.uint8)).save(file, quality=90)
        sizes.append(file.stat().st_size)
    print(f"{count} JPEGs, {np.mean(sizes) / 1e3:.0f} kB on average")


class Pil(torch.utils.data.Dataset):
    def __init__(self, files):
        from torchvision import transforms as t

        self.files = files
        self.to = t.Compose(
            [t.RandomResizedCrop(224), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize([0.5] * 3, [0.5] * 3)]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        with open(self.files[i], "rb") as f:
            return self.to(Image.open(f).convert("RGB")), torch.zeros(1)


class V2(torch.utils.data.Dataset):
    def __init__(self, files):
        from torchvision.transforms import v2

        self.files = files
        self.to = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        return self.to(decode_jpeg(read_file(str(self.files[i])), mode=ImageReadMode.RGB)), torch.zeros(1)


def cpu():
    """Processor seconds of this process and of its children, running (the workers) and ended."""
    me = os.getpid()
    total = sum(os.times()[:4])
    for task in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = task.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == me:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def measure(name, files, seconds, workers):
    set_ = (Pil if name == "pil" else V2)(files)
    loader = torch.utils.data.DataLoader(
        set_, 64, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True, prefetch_factor=4
    )
    if len(files) < 64:
        sys.exit(f"expected at least 64 JPEGs for a batch, found {len(files)}")
    n, begun, start = 0, None, time.perf_counter()
    while begun is None or time.perf_counter() - begun < seconds:
        for images, _ in loader:
            if name == "v2":
                images = images.float().div_(127.5).sub_(1)
            assert images.dtype == torch.float32 and images.shape == (64, 3, 224, 224)
            if begun is None:
                if time.perf_counter() - start > 2:
                    begun, first = time.perf_counter(), cpu()
                continue
            n += 64
            if time.perf_counter() - begun > seconds:
                break
    elapsed, used = time.perf_counter() - begun, cpu() - first
    print(f"torch {name:5} {1e3 * used / n:6.3f} ms of processor an image, {n / elapsed:7.1f} images/s, {workers} workers")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folder", type=Path)
    p.add_argument("--make", action="store_true")
    p.add_argument("--count", type=int, default=400)
    p.add_argument("--seconds", type=float, default=5)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--rows", nargs="+", default=["pil", "v2"])
    a = p.parse_args()
    if a.make:
        return draw(a.folder, a.count)
    torch.set_num_threads(1 if a.workers else 2)
    files = sorted(a.folder.glob("*.jpg"))
    for name in a.rows:
        measure(name, files, a.seconds, a.workers)


if __name__ == "__main__":
    main()
