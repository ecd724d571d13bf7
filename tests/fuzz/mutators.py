"""Damage: files with bytes flipped, cut off, doubled or exchanged, and JSON and TOML with strange values."""

from __future__ import annotations

import io
import json
import tomllib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 7, 2**31, 10**20, 1e308, -1e308, 1e-320, "", "/", "../../victim", "\u001b[31m", "\u2028", "=1+2",
    "[/]", "a" * 5000, [], {}, [[]], {"": None}, [None], "NaN", 0.5,
)  # fmt: skip


def flip(content: bytes, generator: np.random.Generator) -> bytes:
    """One to eight bits."""
    damaged = bytearray(content)
    for place in generator.integers(0, len(damaged), int(generator.integers(1, 9))):
        damaged[place] ^= 1 << int(generator.integers(8))
    return bytes(damaged)


def cut(content: bytes, generator: np.random.Generator) -> bytes:
    """The beginning alone."""
    return content[: int(generator.integers(0, len(content)))]


def overwrite(content: bytes, generator: np.random.Generator) -> bytes:
    """A stretch of random bytes, as a bad sector leaves."""
    damaged, length = bytearray(content), int(generator.integers(1, 65))
    start = int(generator.integers(0, len(damaged)))
    damaged[start : start + length] = generator.bytes(len(damaged[start : start + length]))
    return bytes(damaged)


def double(content: bytes, generator: np.random.Generator) -> bytes:
    """A stretch that comes twice, as an interrupted copy leaves."""
    start, length = int(generator.integers(0, len(content))), int(generator.integers(1, 257))
    return content[: start + length] + content[start:]


def in_the_header(content: bytes, generator: np.random.Generator) -> bytes:
    """A field of a NIfTI header of 348 bytes."""
    damaged = bytearray(content)
    start, values = int(generator.integers(0, 87)) * 4, (0x7F800000, 0xFFC00000, 0, 0x7FFFFFFF, 0x80000000, 0x4E6E6B28)
    damaged[start : start + 4] = int(generator.choice(values)).to_bytes(4, "little")
    return bytes(damaged)


HEADER_WORDS = (
    b"0", b"-1", b"3", b"99999999999999999999", b"1e400", b"nan", b"none", b"(1,2", b"LIST", b"../x", b"/dev/zero",
    b"gzip", b"raw", b"ascii", b"bzip2", b"True", b"False", b"MET_DOUBLE", b"double", b"LOCAL", b"time", b"RGB-color",
    b"", b"9" * 5000,
)  # fmt: skip


def in_the_text(content: bytes, generator: np.random.Generator) -> bytes:
    """A word of a text header, or a line of it, which is gone or comes twice."""
    end = content.find(b"\n\n") if content.startswith(b"NRRD") else content.find(b"\nElementDataFile")
    lines = content[: end + 1].split(b"\n") if end > 0 else content.split(b"\n")[:-1]
    rest = content[len(b"\n".join(lines)) :]
    index, what = int(generator.integers(len(lines))), generator.random()
    if what < 0.1:
        del lines[index]
    elif what < 0.2:
        lines.insert(index, lines[index])
    else:
        words = lines[index].split(b" ")
        words[int(generator.integers(len(words)))] = HEADER_WORDS[int(generator.integers(len(HEADER_WORDS)))]
        lines[index] = b" ".join(words)
    return b"\n".join(lines) + rest


def in_the_tags(content: bytes, generator: np.random.Generator) -> bytes:
    """The value, length or tag of an element in the beginning of a DICOM file, where its geometry is."""
    damaged = bytearray(content)
    start = int(generator.integers(0, min(len(damaged), 2500)))
    strange = (
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\xff\xff",
        b"9999",
        b"-1",
        b"1e99",
        b"\\",
        b"SQ",
        b"nan ",
        b"\0\0\0\x80",
    )
    word = strange[int(generator.integers(len(strange)))]
    damaged[start : start + len(word)] = word
    return bytes(damaged)


def in_the_zip(content: bytes, generator: np.random.Generator) -> bytes:
    """A zip of the same files with a member that should not be there, or is not what it claims."""
    found = io.BytesIO()
    names = ("../../victim", "/etc/victim", "a/../../victim", "C:\\victim", "a\0b", "x" * 5000, "a//b.dcm", "", "é.dcm")
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as target:
        members = source.infolist()
        chosen = int(generator.integers(len(members)))
        for index, member in enumerate(members):
            data = source.read(member)
            if index == chosen and (what := generator.random()) < 0.7:
                data = (
                    in_the_tags(data, generator) if what < 0.4 else flip(data, generator) if what < 0.55 else data[:999]
                )
            target.writestr(member.filename, data)
        if generator.random() < 0.3:
            with warnings.catch_warnings(action="ignore"):  # of a name that comes twice
                name = names[int(generator.integers(len(names)))] or members[0].filename
                target.writestr(zipfile.ZipInfo(name), bytes(1 << int(generator.integers(26))))
    damaged = bytearray(found.getvalue())
    if generator.random() < 0.3:  # sizes, methods and offsets of the central directory
        start = int(generator.integers(damaged.find(b"PK\1\2"), len(damaged)))
        damaged[start] = int(generator.integers(256))
    return bytes(damaged)


BYTES: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (flip, cut, overwrite, double)


def strange_value(value: Any, generator: np.random.Generator) -> Any:
    """The same tables and lists, where one entry somewhere is another, is gone, or is added."""
    if isinstance(value, dict) and value and generator.random() < 0.85:
        key = str(generator.choice(sorted(value)))
        if (what := generator.random()) < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        if what < 0.15:
            return value | {"strange": _any(generator)}
        return value | {key: strange_value(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.7:
        index = int(generator.integers(len(value)))
        return [*value[:index], strange_value(value[index], generator), *value[index + 1 :]]
    return _any(generator)


def _any(generator: np.random.Generator) -> Any:
    return STRANGE[int(generator.integers(len(STRANGE)))]


def damaged(path: Path, content: bytes, generator: np.random.Generator) -> bytes:
    """What a file might hold in the place of its contents."""
    kind = path.suffix
    if kind in (".json", ".jsonl", ".toml") and generator.random() < 0.8:
        return _strange_text(kind, content, generator)
    if kind == ".nii" and generator.random() < 0.5:
        return in_the_header(content, generator)
    if kind in (".nrrd", ".nhdr", ".mha", ".mhd") and generator.random() < 0.7:
        return in_the_text(content, generator)
    if kind == ".zip" and generator.random() < 0.7:
        return in_the_zip(content, generator)
    if kind == ".dcm" and generator.random() < 0.7:
        return in_the_tags(content, generator)
    mutate = BYTES[int(generator.integers(len(BYTES)))]
    return mutate(content, generator)


def _strange_text(kind: str, content: bytes, generator: np.random.Generator) -> bytes:
    if kind == ".toml":
        return tomli_w.dumps(_without_none(strange_value(tomllib.loads(content.decode()), generator))).encode()
    if kind == ".json":
        return json.dumps(strange_value(json.loads(content), generator)).encode()
    lines = content.decode().splitlines()
    if not lines:
        return b"7\n"
    index = int(generator.integers(len(lines)))
    lines[index] = json.dumps(strange_value(json.loads(lines[index]), generator))
    return "".join(f"{line}\n" for line in lines).encode()


def _without_none(value: Any) -> Any:
    """TOML has no null, and its files are tables."""
    if not isinstance(value, dict):
        return {}

    def plain(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {name: plain(one) for name, one in inner.items() if one is not None}
        return [plain(one) for one in inner if one is not None] if isinstance(inner, list) else inner

    return plain(value)
