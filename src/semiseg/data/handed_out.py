"""What was handed out to be mended, by its hash: so it is seen what a person touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from semiseg.decisions import label_sha256
from semiseg.errors import DataError
from semiseg.files import read_json, write_json
from semiseg.tables import first_problem

_FILE = "handed_out.json"


class HandedOut(TypedDict):
    """A file as it was written. source_sha256: of the run's label that it was made of; texts have none."""

    sha256: str
    source_sha256: NotRequired[str]


_HANDED_OUT: TypeAdapter[dict[str, HandedOut]] = TypeAdapter(dict[str, HandedOut])


def read_handed_out(folder: Path) -> dict[str, HandedOut]:
    """What was handed out in a folder, by the names of its files; nothing where that was not kept. Raises `DataError`
    for a damaged list."""
    file = folder / _FILE
    if not file.exists():
        return {}
    try:
        return _HANDED_OUT.validate_python(read_json(file))
    except ValidationError as error:
        raise DataError(f"{file}: {first_problem(error)} Restore the file, or delete it.") from None


def keep_handed_out(folder: Path, files: Mapping[str, HandedOut]) -> None:
    """Keep what was handed out."""
    write_json(folder / _FILE, dict(files))


def is_untouched(file: Path, handed_out: Mapping[str, HandedOut]) -> bool:
    """Whether a file is, byte by byte, as it was handed out."""
    known = handed_out.get(file.name)
    return known is not None and file.is_file() and label_sha256(file) == known["sha256"]
