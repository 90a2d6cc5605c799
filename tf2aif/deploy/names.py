"""Names that Kubernetes takes, of names that recipes and variants have.

Source: Kubernetes, "Object Names and IDs" (RFC 1035 labels) and "Labels and Selectors".
"""

from __future__ import annotations

import hashlib
import re

OBJECT = 50
"""Characters in an object's name: KServe adds 10 to it, and 63 is the most for a Service."""
LABEL = 63
_NOT_NAME = re.compile(r"[^a-z0-9]+")
_RFC_1123 = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_QUALIFIED = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)


def object_name(*parts: str) -> str:
    """A name of at most 50 characters that every kind of object takes.

    A part that had to be changed or cut for it leaves a digest of all of them at the end.

    >>> object_name("kws", "cpu-int8")
    'kws-cpu-int8'
    >>> object_name("kws", "cpu.v2-int8")
    'kws-cpu-v2-int8-614a88'
    """
    whole = "-".join(parts)
    name = _NOT_NAME.sub("-", whole.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"m-{name}"
    return name if name == whole and len(name) <= OBJECT else _told_apart(name, parts, OBJECT)


def label_value(text: str) -> str:
    """A label's value of a name that a recipe's or a variant's may be, cut where it is too long."""
    return text if len(text) <= LABEL else _told_apart(text, (text,), LABEL)


def is_name(text: str) -> bool:
    """Whether it is an RFC 1123 label, as the names of namespaces and secrets must be."""
    return bool(_RFC_1123.fullmatch(text))


def is_resource(text: str) -> bool:
    """Whether it can be an extended resource: a name with a domain before it."""
    return "/" in text and bool(_QUALIFIED.fullmatch(text))


def _told_apart(name: str, parts: tuple[str, ...], most: int) -> str:
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:6]
    return f"{name[: most - 7].rstrip('-._')}-{digest}"
