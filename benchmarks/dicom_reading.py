"""A CT of 512 x 512 x 700 as DICOM: seconds and peak memory of reading it, in each form, against NIfTI and SimpleITK.

    python benchmarks/dicom_reading.py --out /tmp/dicom-reading --data ../shared/data

The voxels are those of a real CT (119 slices, repeated). Each reading is a process of its own; its peak is what it
holds most above what it held before, with all libraries loaded. The best of the repeats counts, which go in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from dicom_series import compress, write_enhanced, write_series  # type: ignore[import-not-found] # noqa: E402
from semiseg.io.grid import Grid  # noqa: E402
from semiseg.io.scans import read_scan  # noqa: E402

SHAPE = (700, 512, 512)
SYNTAXES = {"JPEG lossless": "JPEGLosslessProcess14_1", "JPEG-LS": "JPEGLSLossless", "JPEG 2000": "JPEG2000Lossless"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("/tmp/dicom-reading"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--slices", type=int, default=SHAPE[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--forms", nargs="*", default=[])
    parser.add_argument("--read", nargs=2)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(*arguments.read)))
        return
    forms = made(arguments.out, arguments.data, arguments.slices)
    forms = {name: path for name, path in forms.items() if not arguments.forms or name in arguments.forms}
    ways = [("semiseg", name) for name in forms] + [("simpleitk", name) for name in ("uncompressed",) if name in forms]
    taken: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(arguments.repeats):
        for way, name in ways:
            command = [sys.executable, __file__, "--read", way, str(forms[name])]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            taken[way, name].append(json.loads(answer.stdout))
    volume = arguments.slices * SHAPE[1] * SHAPE[2] * 2
    for (way, name), runs in taken.items():
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        print(
            f"{way:10} {name:14} headers {best['headers']:6.2f} s, voxels {best['voxels']:6.2f} s, peak "
            f"{best['peak'] / 2**20:6.0f} MiB = {best['peak'] / volume:.2f} x int16, {best['mean']:.6f} HU on average",
            flush=True,
        )


def made(out: Path, data: Path, slices: int) -> dict[str, Path]:
    """The scan in each form, by name; what is there from before is taken."""
    found = {
        "uncompressed": out / "uncompressed",
        **{name: out / name.replace(" ", "-") for name in SYNTAXES},
        "enhanced": out / "enhanced.dcm",
        "zip": out / "scan.zip",
        "tilted": out / "tilted",
        "NIfTI": out / "scan.nii.gz",
    }
    if found["NIfTI"].exists():
        return found
    source = read_scan([data / "ct_whole" / "ircad17_0000.nii.gz"])
    values = source.channels[0].values().astype(np.int16)[:, ::-1, ::-1]
    voxels = np.resize(values, (slices, *SHAPE[1:]))
    given: dict[str, Any] = {"spacing": (0.74, 0.74), "intercepts": [0.0]}
    files = write_series(found["uncompressed"], voxels, step_mm=1.0, **given)
    for name, syntax in SYNTAXES.items():
        compress(write_series(found[name], voxels, step_mm=1.0, **given), syntax)
    write_enhanced(found["enhanced"], voxels, step_mm=1.0, **given)
    with zipfile.ZipFile(found["zip"], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for file in files:
            zipped.write(file, file.name)
    angle = np.radians(10)
    straight = [(0.0, 0.0, float(k)) for k in range(slices)]
    tilt = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    write_series(found["tilted"], voxels, orientation=tilt, positions=straight, **given)
    affine = np.diag([-0.74, -0.74, 1.0, 1.0])
    grid = Grid((slices, *SHAPE[1:]), (1.0, 0.74, 0.74), affine, (0.74, 0.74, 1.0))
    from semiseg.io import nifti

    nifti.write(found["NIfTI"], voxels.transpose(2, 1, 0), grid, None)
    return found


def read(way: str, place: str) -> dict[str, float]:
    """Seconds and bytes of one reading, in this process."""
    import SimpleITK

    path, mean = Path(place), 0.0
    if way == "semiseg":
        from semiseg.io.dicom import library, places, reading
        from semiseg.io.dicom.series import find_series
        from semiseg.io.scans import read_grid

        library.library().pixels.get_decoder(next(iter(reading.BY_GDCM)))
        library.quiet_gdcm()
        if path.name == "tilted":
            (found,) = find_series(path, resample=True)
            path = places.path_of(path, found, resample=True)
            places._known_series.cache_clear()
    before = held_most(reset=True)
    start = time.perf_counter()
    if way == "semiseg":
        read_grid(path)
        headers = time.perf_counter() - start
        scan = read_scan([path])
        seconds = time.perf_counter() - start - headers
        peak = held_most() - before
        channel = scan.channels[0]
        mean = float(np.mean([channel.values(k, k + 1).mean() for k in range(0, len(channel.stored), 50)]))
    else:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        headers = time.perf_counter() - start
        image = reader.Execute()
        seconds = time.perf_counter() - start - headers
        peak = held_most() - before
        mean = float(SimpleITK.GetArrayViewFromImage(image)[::50].mean())
    return {"headers": headers, "voxels": seconds, "peak": float(peak), "mean": mean}


def held_most(*, reset: bool = False) -> int:
    """The most bytes that this process has held; reset: from here on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


if __name__ == "__main__":
    main()
