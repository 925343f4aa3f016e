#!/usr/bin/env python3
"""Makes tests/fixtures/{voc,coco,folder}: tiny images as in PASCAL VOC, in MS-COCO and in a plain folder.

    python3 scripts/make_fixtures.py    # numpy 2.4 and pillow 13; other versions may encode other bytes

Pixels come from fixed seeds. The images of one label share a tint, so that a network can learn the label.
tests/program/data.rs checks the contents of the files, and makes broken files from copies of them.
"""
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
VOC = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
# Objects of each image: (label, difficult). Three trainval images have no difficult object, one has only a
# difficult one, one has a difficult object beside one of another label, and one has two objects of one label
# of which one is difficult.
TRAINVAL = {
    "000005": [("bus", 0), ("person", 0)],
    "000007": [("diningtable", 0)],
    "000009": [("bus", 0), ("car", 1)],
    "000012": [("car", 1)],
    "000016": [("person", 0), ("person", 1)],
    "000017": [("diningtable", 0), ("chair", 0)],
}
TEST = {
    "000001": [("dog", 0), ("bus", 0)],
    "000002": [("train", 0)],
    "000003": [("sofa", 1), ("diningtable", 0)],
}


def picture(seed, w, h, tint):
    """Smooth noise around a tint, which compresses to a kilobyte."""
    r = np.random.default_rng(seed)
    coarse = r.integers(-40, 40, (5, 6, 3)).astype(np.float32) + np.asarray(tint, np.float32)
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return image.resize((w, h), Image.BICUBIC)


def tint(labels):
    return (
        210 if "bus" in labels else 70,
        210 if "diningtable" in labels else 70,
        210 if "person" in labels else 70,
    )


def voc():
    year = ROOT / "voc" / "VOCdevkit" / "VOC2007"
    for folder in ["ImageSets/Main", "JPEGImages", "Annotations"]:
        (year / folder).mkdir(parents=True)
    for split, images in [("trainval", TRAINVAL), ("test", TEST)]:
        (year / f"ImageSets/Main/{split}.txt").write_text("".join(f"{i}\n" for i in images))
        for label in VOC:
            lines = []
            for name, objects in images.items():
                of_label = [difficult for found, difficult in objects if found == label]
                mark = -1 if not of_label else 1 if 0 in of_label else 0
                lines.append(f"{name} {mark:2d}\n")
            (year / f"ImageSets/Main/{label}_{split}.txt").write_text("".join(lines))
        for name, objects in images.items():
            w, h = (40, 30) if int(name) % 3 else (29, 40)
            picture(int(name), w, h, tint([o[0] for o in objects])).save(
                year / f"JPEGImages/{name}.jpg", quality=90, subsampling=2 if int(name) % 2 else 0
            )
            xml = [f"<annotation>\n\t<folder>VOC2007</folder>\n\t<filename>{name}.jpg</filename>\n"]
            size = f"\t\t<width>{w}</width>\n\t\t<height>{h}</height>\n\t\t<depth>3</depth>\n"
            xml.append(f"\t<size>\n{size}\t</size>\n")
            for label, difficult in objects:
                xml.append(
                    f"\t<object>\n\t\t<name>{label}</name>\n\t\t<truncated>0</truncated>\n"
                    f"\t\t<difficult>{difficult}</difficult>\n\t\t<bndbox>\n"
                    "\t\t\t<xmin>1</xmin>\n\t\t\t<ymin>1</ymin>\n"
                    "\t\t\t<xmax>20</xmax>\n\t\t\t<ymax>20</ymax>\n\t\t</bndbox>\n\t</object>\n"
                )
            xml.append("</annotation>\n")
            (year / f"Annotations/{name}.xml").write_text("".join(xml))


def coco():
    """Three categories whose ids are out of order and have gaps, as in COCO; an image without annotation."""
    folder = ROOT / "coco"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    categories = [(6, "vehicle", "bus"), (1, "person", "person"), (67, "furniture", "dining table")]
    shown = {139: [1, 67], 285: [6], 632: [], 724: [6, 1], 776: [67]}
    images, annotations = [], []
    for i, (number, ids) in enumerate(reversed(shown.items())):
        w, h = (40, 30) if i % 2 else (30, 36)
        name = f"{number:012d}.jpg"
        colour = tint([{6: "bus", 1: "person", 67: "diningtable"}[c] for c in ids])
        image = picture(number, w, h, colour)
        if number == 776:
            image = image.convert("L")  # COCO has some grey images
        image.save(folder / "images" / name, quality=90)
        images.append({"license": 1, "file_name": name, "height": h, "width": w, "id": number})
        for c in ids:
            is_crowd = int(number == 724 and c == 1)
            counts = {"counts": [3, 5], "size": [h, w]}
            annotations.append(
                {
                    "segmentation": counts if is_crowd else [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]],
                    "area": 40.0,
                    "iscrowd": is_crowd,
                    "image_id": number,
                    "bbox": [1.0, 1.0, 8.0, 8.0],
                    "category_id": c,
                    "id": len(annotations) + 1,
                }
            )
    data = {
        "info": {"description": "a fixture"},
        "licenses": [{"id": 1, "name": "none"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"supercategory": s, "id": i, "name": n} for i, s, n in categories],
    }
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(data, indent=1) + "\n")


def unlabelled():
    """Every kind of image that the decoder accepts, some of them in a subfolder.

    These are baseline, progressive, grey and CMYK JPEGs, one with restart markers, and PNGs.
    """
    folder = ROOT / "folder"
    (folder / "more").mkdir(parents=True)
    of = lambda seed, w=40, h=30: picture(seed, w, h, (120, 120, 120))  # noqa: E731
    of(1).save(folder / "a.jpg", quality=90, subsampling=0)
    of(2, 33, 47).save(folder / "b.JPEG", quality=85, progressive=True)
    of(3).convert("L").save(folder / "c.jpg", quality=90)
    of(4, 31, 29).convert("CMYK").save(folder / "d.jpg", quality=90)
    of(5).save(folder / "e.png")
    of(6).quantize(16).save(folder / "f.png")
    of(7).convert("LA").save(folder / "more" / "g.png")
    of(8, 41, 35).save(folder / "more" / "h.jpg", quality=90, subsampling=1, restart_marker_rows=1)
    (folder / "note.txt").write_text("Not an image: it is left alone.\n")
    # The pixels that Pillow decodes, which the decoder's test compares with.
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in [".jpg", ".jpeg", ".png"])
    decoded = {p.relative_to(folder).as_posix(): np.asarray(Image.open(p).convert("RGB")) for p in files}
    decoded["centre"] = np.stack([centre(Image.open(p).convert("RGB"), 24) for p in files])
    np.savez_compressed(folder / "pillow.npz", **decoded)


def centre(image, side):
    """Applies torchvision's Resize(round(side * 256 / 224)), then CenterCrop(side), to a PIL image."""
    (w, h), short = image.size, round(side * 256 / 224)
    size = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return np.asarray(image.resize(size, Image.BILINEAR).crop((left, top, left + side, top + side)))


if __name__ == "__main__":
    for name in ["voc", "coco", "folder"]:
        shutil.rmtree(ROOT / name, ignore_errors=True)
    voc()
    coco()
    unlabelled()
    files = [p for n in ["voc", "coco", "folder"] for p in (ROOT / n).rglob("*") if p.is_file()]
    total = sum(p.stat().st_size for p in files)
    print(f"{total} bytes")
