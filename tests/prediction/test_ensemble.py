"""Several models as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from semiseg import predict_run
from semiseg.errors import ConfigError
from semiseg.files import read_jsonl
from semiseg.io.scans import read_label
from semiseg.models.build import build_network
from semiseg.prediction.engines.opening import open_engine
from semiseg.prediction.ensemble import EnsembleEngine, joined
from semiseg.prediction.model import Model, load_model, save_model
from semiseg.prediction.settings import PredictSettings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def other(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same plan, another seed, mirrored along one axis more and one less."""
    folder = tmp_path_factory.mktemp("other") / "model"
    network = build_network(model.sizes, channels=1, classes=3, seed=8)
    with torch.no_grad():
        network.train()(torch.randn((4, 1, *model.plan.patch), generator=torch.Generator().manual_seed(1)))
    save_model(folder, network.eval(), model.plan, role="student", card={"mirror_axes": [1, 2]})
    return load_model(folder)


def test_logits_are_averaged(model: Model, other: Model) -> None:
    tiles = np.random.default_rng(0).standard_normal((2, 1, *model.plan.patch)).astype(np.float32)
    engines = [open_engine(one, "torch", device="cpu") for one in (model, other)]
    ensemble = EnsembleEngine(engines)
    expected = (engines[0].run(tiles) + engines[1].run(tiles)) / 2
    assert np.array_equal(ensemble.run(tiles), expected)
    assert (ensemble.name, ensemble.precision) == ("torch", "float32")


def test_an_ensemble_is_another_model_than_its_members(model: Model, other: Model) -> None:
    both = joined([model, other])
    assert both.hash not in (model.hash, other.hash)
    assert both.hash == joined([other, model]).hash
    assert both.mirror_axes == (2,)  # what all were trained with
    labels = replace(other.plan.labels, ignore=other.plan.labels.count)  # as the run after a review has it
    assert joined([model, replace(other, plan=replace(other.plan, labels=labels))]).hash == both.hash


def test_models_that_do_not_go_together_are_refused(model: Model, other: Model) -> None:
    coarser = replace(other, plan=replace(other.plan, spacing_mm=(3.0, 1.0, 1.0)))
    with pytest.raises(ConfigError, match=r"has another spacing_mm than .*Ensembles are of models of one plan"):
        joined([model, coarser])
    with pytest.raises(ConfigError, match="a model is named twice"):
        joined([model, model])


def test_scans_are_predicted_by_all(model: Model, other: Model, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(30, 80, (12, 12, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "a.nii.gz")
    settings = PredictSettings(engine="torch", device="cpu", skip_air=False)
    found = {}
    for name, folder, more in (("one", model, ()), ("two", other, ()), ("both", model, (other.folder,))):
        outcomes = predict_run.predict(
            folder.folder, [tmp_path / "a.nii.gz"], tmp_path / name, ensemble=more, settings=settings, quiet=True
        )
        assert outcomes[0].error is None
        found[name] = read_label(tmp_path / name / "a.nii.gz")[0]
    assert not np.array_equal(found["both"], found["one"])
    assert not np.array_equal(found["both"], found["two"])
    (row,) = read_jsonl(tmp_path / "both" / "predictions.jsonl")
    assert row["model"] == joined([model, other]).hash
