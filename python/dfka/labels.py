"""Labels from the command line or a file: one for each row of the head, in order."""

import codecs

from .errors import Error

# UTF-32's mark begins with UTF-16's, so it comes first.
MARKS = [
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]


def from_option(text):
    """The labels of `--labels a,b,c`."""
    return check([label.strip() for label in text.split(",")], "--labels", "label")


def from_file(path):
    """The labels of a text file, one a line: UTF-8, or UTF-16 with its mark, with any line ends."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Error(f"{path}: there is no such file of labels") from None
    except OSError as e:
        raise Error(f"{path}: cannot read the labels: {e.strerror}") from None
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b"\n") + 1
        what = f"byte 0x{content[e.start]:02x}" if e.start < len(content) else "an odd end"
        raise Error(
            f"{path}, line {line}: expected {encoding[:6].upper()}, found {what}; save the file as UTF-8"
        ) from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if any("\0" in line for line in lines):
        raise Error(
            f"{path}: found NUL characters, so this is UTF-16 without its mark or no text; save the file as UTF-8"
        )
    lines = [line.strip() for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return check(lines, path, "line")


def check(labels, where, unit):
    """Errors: no labels, an empty one, one that is listed twice."""
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise Error(f"{where}: expected a list of strings, found {labels!r}")
    if not labels:
        raise Error(f"{where}: expected labels, found none")
    for i, label in enumerate(labels):
        if not label.strip():
            raise Error(f"{where}: {unit} {i + 1} of {len(labels)} is empty; every row of the head needs a label")
        if label in labels[:i]:
            raise Error(f"{where}: {label!r} is listed more than once ({unit}s {labels.index(label) + 1} and {i + 1})")
    return list(labels)
