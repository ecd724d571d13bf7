"""Learning methods behind one small protocol; adding one is one file and one line in `build_method`."""

from semiseg.methods.base import Batch, Method, UnlabelledBatch
from semiseg.methods.build import build_method
from semiseg.methods.phases import Phases
from semiseg.methods.settings import MethodSettings

__all__ = ["Batch", "Method", "MethodSettings", "Phases", "UnlabelledBatch", "build_method"]
