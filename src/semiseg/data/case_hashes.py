"""Ids of a run's cases as others may see them: a scan's file is named after a patient at times."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

from semiseg.errors import DataError
from semiseg.files import atomic_file

KEY_FILE = "ids.key"
"""In the run folder. A hash without a key would be found by trying names."""
_KEY_BYTES, _DIGITS = 32, 16


def hashed_ids(run: Path, ids: Iterable[str]) -> list[str]:
    """16 hexadecimal digits for each id, sorted, so that their order says nothing either.

    They are the same for the same run, whose key is made when it is first asked for. Without the key they say nothing.
    Raises `DataError` where the key is damaged.
    """
    key = _key(run / KEY_FILE)
    return sorted(hmac.new(key, id.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:_DIGITS] for id in ids)


def _key(file: Path) -> bytes:
    if not file.exists():
        with atomic_file(file) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(secrets.token_hex(_KEY_BYTES) + "\n", encoding="ascii")
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii"))
    except (ValueError, IsADirectoryError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise DataError(
            f"{file}: not the key that ids are hashed with. Delete the file: the next model gets a new one."
        )
    return key
