"""A model as a folder for others: weights, plan, card, README; nothing that names a case or a place on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from semiseg.errors import ConfigError, DataError
from semiseg.files import atomic_folder, hash_files, read_json, read_jsonl, write_json, write_text
from semiseg.prediction.exchange import card_for_others, hashes_alone, is_export
from semiseg.prediction.model import POSTPROCESSING_FILE, Model
from semiseg.prediction.postprocessing import read_steps
from semiseg.scoring.summary import Summary, read_summary
from semiseg.sharing.readme import README, is_as_made, is_license, readme

FORM = "model"
SHARED = ("card.json", "plan.toml", "weights.safetensors", POSTPROCESSING_FILE, README)
"""All files that are ever sent or fetched. No graph is among them: it is made of the weights again."""


def export_folder(model: Model, output: Path, *, license: str = "") -> Path:
    """Write the model as others may have it into the folder `output`; returns it.

    Raises `ConfigError` where something else is in its place, or for a license that is no name of one.
    """
    if license and not is_license(license):
        raise ConfigError(f"--license {license!r}: give the hub's name of a license, such as apache-2.0 or cc-by-4.0.")
    if output.exists() and (not is_export(output, (FORM,)) or output.resolve() == model.folder.resolve()):
        raise ConfigError(f"{output}: is there already, and is no exported model. Name a new folder.")
    with atomic_folder(output, made=SHARED) as temporary:
        for name in ("weights.safetensors", "plan.toml"):
            shutil.copyfile(model.folder / name, temporary / name)
        card = card_for_others(model) | {"form": FORM, "model_hash": model.hash}
        if (model.folder / POSTPROCESSING_FILE).is_file():
            read_steps(model.folder, model.plan.labels.organs)  # refused where it is of another model
            chosen = read_json(model.folder / POSTPROCESSING_FILE)
            kept = {
                "steps": chosen["steps"],
                "dice": chosen.get("dice", {}),
                "cases": hashes_alone(chosen.get("cases")),
            }
            write_json(temporary / POSTPROCESSING_FILE, kept)
            card["postprocessing_sha256"] = hash_files([temporary / POSTPROCESSING_FILE])
        write_json(temporary / "card.json", card)
        write_text(temporary / README, _own_words(output / README) or readme(model, scores_of(model), license=license))
    return output


def _own_words(file: Path) -> str:
    """A README that a person changed; empty where there is none."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return "" if is_as_made(text) else text


def is_shared(model: Model) -> bool:
    """Whether it lies in a folder that `export_folder` made, or that was pulled."""
    return model.card.get("form") == FORM


def scores_of(model: Model) -> Summary | None:
    """The scores of the run that the model lies in, where this very model made the predictions that were scored."""
    run = model.folder.parent
    if not (run / "run.toml").is_file() or not (run / "summary.json").is_file():
        return None
    try:
        summary = read_summary(run / "summary.json")
        made = {row["id"]: row.get("model") for row in read_jsonl(run / "predictions" / "predictions.jsonl")}
    except (DataError, KeyError):
        return None  # of another kind: no scores are better than wrong ones
    cases = [case["id"] for case in summary["cases"]]
    return summary if cases and all(made.get(id) == model.hash for id in cases) else None
