"""The errors that a person sees, and the import of optional packages."""

import importlib
import re


class Error(Exception):
    """A failure for which the message is enough: one sentence that names the file or tensor and what to do."""

    def __init__(self, message):
        super().__init__(printable(message))


class MissingPackage(Error, ImportError):
    """A package that a function needs is not installed."""


def need(package, purpose, install=None):
    """Returns the module `package`, or raises an error that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as e:
        why = f" ({e})" if getattr(e, "name", package) != package else ""
        raise MissingPackage(
            f"{purpose} needs the package {package.split('.')[0]}{why}: pip install {install or package.split('.')[0]}"
        ) from None


def printable(text):
    """`text` without the escape sequences and control characters that a terminal would obey."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text))
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def first_line(error):
    """The first line of an exception's message, for use within a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".")


def listed(names, most=3):
    """`names` separated by commas; after the first `most`, their number instead."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
