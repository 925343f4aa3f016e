"""Resizes an image to the pixels that dfka-engine computes, bit for bit.

The filter is a triangle as wide as the scale (Pillow's BILINEAR, torchvision's antialias=True), with weights in 16-bit
integers and the result of each pass rounded to 8 bits. The program filters columns before rows, while Pillow's order
depends on its version and the image: that alone changes a fifth of the values by 1/255.
"""

import math

from .errors import need

# The shorter side before the centre crop, in lengths of the crop: torchvision's rule for evaluation.
RESIZE = 256 / 224


def evaluation_view(pixels, height, width):
    """The centre of a uint8 array [h, w, c] as [height, width, c]: what the program evaluates of a file's image."""
    left, top, right, bottom = centre(*pixels.shape[:2], height, width)
    rows = one_pass(pixels, top, bottom, height)
    return one_pass(rows.swapaxes(0, 1), left, right, width).swapaxes(0, 1)


def centre(h, w, height, width):
    """The part (left, top, right, bottom) of an image of `h` x `w` pixels that becomes `height` x `width` pixels.

    It is in the coordinates before resizing, because resizing and cropping are one step (src/data/transform.rs).
    """
    # Rust's constant is a float32, which matters where the product is near a half.
    numpy = need("numpy", "preprocess")
    side = [math.floor(n * float(numpy.float32(RESIZE)) + 0.5) for n in (height, width)]
    to, of = (side[0], h) if side[0] / h > side[1] / w else (side[1], w)
    new_h, new_w = math.floor(h * to / of), math.floor(w * to / of)
    top, left = round((new_h - height) / 2), round((new_w - width) / 2)
    fy, fx = h / new_h, w / new_w
    return left * fx, top * fy, left * fx + width * fx, top * fy + height * fy


def one_pass(pixels, start, end, length):
    """The part from `start` to `end` of the first axis, resized to `length`."""
    numpy = need("numpy", "preprocess")
    windows = [window(pixels.shape[0], start, (end - start) / length, i) for i in range(length)]
    largest = max(weights.max() for _, weights in windows)
    # The most bits with which the largest weight fits in 16 bits with a sign.
    bits = next((b for b in range(21) if math.floor(largest * 2 ** (b + 1) + 0.5) >= 2**15), 21)
    resized = numpy.empty((length, *pixels.shape[1:]), numpy.uint8)
    for i, (first, weights) in enumerate(windows):
        integers = numpy.floor(weights * 2**bits + 0.5)
        part = pixels[first : first + len(weights)].astype(numpy.float64)  # exact: the sums are integers below 2^53
        resized[i] = numpy.clip(numpy.floor((numpy.tensordot(integers, part, 1) + 2 ** (bits - 1)) / 2**bits), 0, 255)
    return resized


def window(size, start, scale, i):
    """The first pixel that output pixel `i` reads, and the weights of that and the next ones. They sum to 1."""
    numpy = need("numpy", "preprocess")
    radius = max(scale, 1.0)
    middle = start + (i + 0.5) * scale
    first, last = max(math.floor(middle - radius), 0), min(math.ceil(middle + radius), size)
    distances = (numpy.arange(first, last) - (middle - 0.5)) * (1.0 / radius)
    weights = numpy.maximum(1.0 - numpy.abs(distances), 0.0)
    # Added one after the other, as the program does: another order can change the last bit.
    return first, weights / numpy.add.accumulate(weights)[-1]
