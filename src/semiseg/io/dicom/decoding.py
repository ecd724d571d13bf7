"""Compressed slices are decoded in a process of their own: a damaged one may end the process that GDCM is in (its
exceptions end it), which must not be that of a prediction.

`python -m semiseg.io.dicom.decoding` is that process. It reads a line of JSON, and bytes where they are not in a file,
and writes a line of JSON and the voxels of each frame.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import psutil

from semiseg.io.dicom.headers import NATIVE, Pixels
from semiseg.io.dicom.library import library, quiet_gdcm
from semiseg.types import AnyArray

_MOST_SECONDS, _MOST_BYTES = 120, 1 << 30
"""Of the process: for one frame, after which it ends; and beyond what it takes to begin with."""
_EXTENDED, _LOSSLESS = "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57"
"""JPEG extended; JPEG lossless."""


_HELD_BYTES, _HELD_PLANES = 120_000_000, 8
"""What the process held at most: with its libraries, and in planes of what it decodes (docs/lab/dicom.md)."""


class DecodingError(Exception):
    """A frame cannot be decoded."""


def held_bytes(pixels: Pixels) -> int:
    """What the process takes for such slices: nothing where they are not compressed."""
    if pixels.syntax in NATIVE:
        return 0
    return _HELD_BYTES + _HELD_PLANES * pixels.rows * pixels.columns * max(1, pixels.allocated // 8)


class Decoder:
    """The process, which is started with the first frames that are asked of it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def frames(self, stream: IO[bytes], options: dict[str, Any], count: int) -> Iterator[AnyArray]:
        """So many frames of the encoded value that a stream stands at. Raises `DecodingError` for a damaged one."""
        process = self._process = self._process or _started()
        assert process.stdin is not None
        assert process.stdout is not None
        name = getattr(stream, "name", "")
        if isinstance(name, str) and Path(name).is_file():
            data, asked = b"", options | {"path": str(Path(name).absolute()), "start": stream.tell()}
        else:  # in a zip
            data, asked = stream.read(), options | {"path": "", "start": 0}
        try:
            process.stdin.write(json.dumps(asked | {"bytes": len(data)}).encode() + b"\n")
            process.stdin.write(data)
            process.stdin.flush()
        except OSError:
            raise DecodingError from None
        for _ in range(count):
            head = process.stdout.readline()
            if not head or "error" in (told := json.loads(head)):
                raise DecodingError
            plane = np.frombuffer(process.stdout.read(told["bytes"]), told["dtype"])
            if plane.nbytes < told["bytes"]:
                raise DecodingError
            yield plane.reshape(told["shape"])


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "semiseg.io.dicom.decoding"]  # nothing is imported from the working folder
    paths = [path for path in sys.path if path]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )


def _decoded(source: IO[bytes], asked: dict[str, Any]) -> Iterator[AnyArray]:
    pydicom = library()
    syntax = asked["syntax"]
    if syntax == _EXTENDED and asked["pixels"]["bits_stored"] != 8:
        syntax = _LOSSLESS  # which GDCM reads by the same code: pydicom lets it read no 12 bits under their own name
    decoder = pydicom.pixels.get_decoder(syntax)
    made = decoder.iter_array(
        source,
        indices=asked["indices"],
        raw=True,
        decoding_plugin=asked["plugin"],
        pixel_keyword="PixelData",
        transfer_syntax_uid=pydicom.uid.UID(syntax),
        **asked["pixels"],
    )
    return (array for array, _ in made)


def _answer(asked: dict[str, Any], given: IO[bytes], told: IO[bytes]) -> None:
    data = io.BytesIO(given.read(asked["bytes"]))
    try:
        with Path(asked["path"]).open("rb") if asked["path"] else data as source:
            source.seek(asked["start"])
            signal.alarm(_MOST_SECONDS)
            for array in _decoded(source, asked):
                plane = np.ascontiguousarray(array)
                head = {"shape": plane.shape, "dtype": plane.dtype.str, "bytes": plane.nbytes}
                told.write(json.dumps(head).encode() + b"\n")
                told.write(plane.data)
                told.flush()
                signal.alarm(_MOST_SECONDS)
    except Exception:  # noqa: BLE001 (decoders raise anything; what they say may quote the file)
        told.write(b'{"error": true}\n')
        told.flush()
    finally:
        signal.alarm(0)


def main() -> None:
    """Answer until nothing more is asked."""
    room = psutil.Process().memory_info().vms + _MOST_BYTES
    with suppress(ValueError, OSError):  # where the system has no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders print to it
    quiet_gdcm()
    while line := sys.stdin.buffer.readline():
        _answer(json.loads(line), sys.stdin.buffer, told)


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        main()
