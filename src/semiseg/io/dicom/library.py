"""pydicom, which only who has DICOM needs: what it is set to, and what to say where it is missing."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from functools import cache
from typing import Any

from semiseg.errors import ConfigError


@cache
def library() -> Any:
    """The package `pydicom`. Values are taken as they stand, and what is odd about them is not told: pydicom's
    warnings quote them, and they may be a patient's."""
    if importlib.util.find_spec("pydicom") is None:
        raise ConfigError("DICOM needs pydicom: pip install '.[dicom]'.")
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


@cache
def quiet_gdcm() -> None:
    """Stop GDCM from writing to the terminal, if it is there."""
    if importlib.util.find_spec("gdcm") is not None:
        import gdcm

        for off in ("WarningOff", "ErrorOff", "DebugOff"):
            getattr(gdcm.Trace, off)()
