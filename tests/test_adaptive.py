"What the notebook can't show in a cell: stopping and resuming through the command, movies in pieces, unusual recordings"
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import record_noise
from retina_nb import adaptive
from retina_nb.adaptive import AdaptiveSubunits
from retina_nb.commands import retina_predict, retina_train
from retina_nb.data import Frames, Recording, write_recording
from retina_nb.models import model_path, models
from retina_nb.results import results_table
from retina_nb.training import load_run, predict, train_run


NARROW = dict(core=8, subunits=4)        # all parts, each of them small
KNOWN = dict(core=None, squares=None)    # nothing beside the known parts


@pytest.fixture(scope="module")
def recording(tmp_path_factory): return record_noise(tmp_path_factory.mktemp("adaptive")/"noise.h5", (12, 12))


def test_what_moved_to_other_rooms_can_be_had_here():
    "Names without a warning, and the class where run folders look for it"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("Saturating", "Scanned", "SegmentBatch", "Segments", "delay", "leaky_mean"):
            assert name in adaptive.__all__ and callable(getattr(adaptive, name))
    assert model_path(AdaptiveSubunits) == models["adaptive"] == "retina_nb.adaptive:AdaptiveSubunits"


def test_stop_resume_predict(recording, tmp_path):
    "A run that was prolonged is the run that was not stopped; predictions come from the folder alone"
    args = dict(data=str(recording), model="adaptive", history=6, set="core=8 subunits=4", accelerator="cpu")
    retina_train(**args, epochs=2, out=str(tmp_path/"whole"))
    retina_train(**args, epochs=1, out=str(tmp_path/"stopped"))
    retina_train(**args, epochs=2, out=str(tmp_path/"stopped"), resume=True)
    a, b = load_run(tmp_path/"whole"), load_run(tmp_path/"stopped")
    pd.testing.assert_frame_equal(a.history.drop(columns="seconds"), b.history.drop(columns="seconds"), check_exact=True)
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()): assert torch.equal(x, y)
    assert a.config["lr"] == .03 and a.model_name == "AdaptiveSubunits"

    retina_predict(run=str(tmp_path/"whole"), data=str(recording), part="train", out=str(tmp_path/"rates.npz"))
    rates = np.load(tmp_path/"rates.npz")["rates"]
    assert np.flatnonzero(np.isnan(rates).all(1)).tolist() == [*range(5), *range(750, 755)]
    assert 0 < results_table([a]).test_corr[0] < 1


def test_pieces_and_blocks(recording, tmp_path):
    "Neither the pieces nor the wanted frames change a rate; a block knows nothing of the one before"
    rec = Recording(recording)
    run = train_run(rec, "adaptive", tmp_path/"run", history=6, epochs=1, settings=NARROW, progress=False)
    movie, blocks = rec.train.stimulus, rec.blocks
    whole = predict(run, movie, blocks)
    some = np.array([7, 300, 301, 760, 1499])
    part = predict(run, movie, blocks, some)
    np.testing.assert_allclose(part[some], whole[some], rtol=1e-3)
    assert np.isnan(np.delete(part, some, 0)).all()
    np.testing.assert_allclose(predict(run, movie[750:])[5:], whole[755:], rtol=1e-3)
    frames = Frames(rec.train, None, 6, run.scale)
    with torch.no_grad(): pieces = run.model.output(run.model.drive_movie(frames, length=64))
    np.testing.assert_allclose(pieces, whole[frames.index], rtol=1e-3)
    backwards = Frames(rec.train, frames.index[::-1], 6, run.scale)
    with torch.no_grad(): np.testing.assert_allclose(run.model.predict_movie(backwards).flip(0), whole[frames.index], rtol=1e-3)


@pytest.mark.parametrize("kind, history", [
    (dict(shape=(6, 7)), 4),
    (dict(shape=(12, 12)), 1),
    (dict(shape=(3, 2), cells=1), 5),
    (dict(shape=(8, 10), silent=True), 8),
    (dict(shape=(8, 10), still=True), 8),
    (dict(shape=(104, 78), frames=500), 10),
    (dict(shape=(1, 40)), 4),
    (dict(shape=(10, 10), hz=500), 40),
    (dict(shape=(10, 10), hz=30), 12)])
def test_unusual_recordings(tmp_path, kind, history):
    rec = Recording(record_noise(tmp_path/"r.h5", **dict(frames=800) | kind))
    run = train_run(rec, "adaptive", tmp_path/"run", history=history, epochs=1, settings=dict(core=8), progress=False)
    rates = predict(run, rec.test.stimulus)
    assert np.isfinite(rates[history - 1:]).all() and (rates[history - 1:] >= 0).all()
    if "silent" in kind: assert rates[history:, 0].max() < 1


@pytest.mark.parametrize("options", [dict(split="random"), dict(split="stratified"), dict(precision="bf16-mixed", accelerator="cpu")], ids=str)
def test_splits_and_precision(recording, tmp_path, options):
    run = train_run(Recording(recording), "adaptive", tmp_path/"run", history=6, epochs=1, settings=NARROW, progress=False, **options)
    assert np.isfinite(run.results["valid_loss"])


def test_spike_history(tmp_path):
    "A cell that falls silent for 30 ms after a spike: the filter finds it, the table shows it apart"
    rng = np.random.default_rng(0)

    def movie(n): return rng.integers(0, 256, (n, 6, 6), dtype=np.uint8)

    def spikes(m):
        counts = rng.poisson(np.full(len(m), .3))
        for t in range(1, len(counts)): counts[t] *= not counts[max(0, t - 3):t].any()
        return [np.repeat(np.arange(len(m)), counts)/100 + .005]*2

    shown, test = movie(2000), movie(400)
    path = write_recording(tmp_path/"r.h5", shown, spikes(shown), test_stimulus=test, test_spikes=[spikes(test) for _ in range(3)])
    options = dict(history=4, epochs=1, progress=False)
    run = train_run(Recording(path), "adaptive", tmp_path/"run", settings=KNOWN | dict(spike_history=10), **options)
    assert run.model.knows_spike_history
    weights = run.model.spike_weights[0]
    after = weights[:-1] @ run.model.spike_basis
    assert (after[-3:] < -1).all() and after[:4].abs().max() < after[-3:].abs().min()
    plain, seeing = results_table([run]).itertuples()
    assert seeing.model == "AdaptiveSubunits with spike history" and seeing.bits_per_spike > plain.bits_per_spike + .1
    without = train_run(Recording(path), "adaptive", tmp_path/"plain", settings=KNOWN, **options)
    assert not without.model.knows_spike_history
    assert "with spike history" not in " ".join(results_table([without]).model)


@pytest.fixture(scope="module")
def with_core(recording, tmp_path_factory):
    "A trained run, and what it was trained on"
    out = tmp_path_factory.mktemp("core")/"run"
    rec = Recording(recording)
    return train_run(rec, "adaptive", out, history=6, epochs=2, settings=NARROW, progress=False), rec


def test_a_run_from_before_core_and_free_filters(recording, tmp_path):
    "It predicts what it predicted, and goes on as the same run"
    rec = Recording(recording)
    options = dict(history=6, settings=KNOWN, patience=0, progress=False)
    run = train_run(rec, "adaptive", tmp_path/"run", epochs=2, **options)
    rates = predict(run, rec.test.stimulus)
    config = json.loads((run.path/"config.json").read_text())
    for name in KNOWN: del config["hyperparams"][name]
    (run.path/"config.json").write_text(json.dumps(config))
    (run.path/"training_results.json").unlink()  # neither it nor the config in checkpoints was there
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = torch.load(run.path/name)
        del checkpoint["config"]
        torch.save(checkpoint, run.path/name)
    old = load_run(run.path)
    assert old.model.core is None and old.model.free is None
    np.testing.assert_array_equal(predict(old, rec.test.stimulus), rates)
    assert len(train_run(rec, "adaptive", run.path, epochs=3, resume=True, **options).history) == 3


def test_a_cell_that_the_core_makes_worse_goes_without(with_core, monkeypatch):
    run, rec = with_core
    model = AdaptiveSubunits(**run.model.hyperparams)
    model.load_state_dict(run.model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train, valid, *_ = (Frames(rec.train, index, 6, run.scale) for index in run.split)

    def harm_one_cell(training, **options):
        core, output = training.net
        with torch.no_grad():
            core.readout.bias[0] += 50
            core.gain[1] *= 1                           # the other one stays as good as it was, which is not better
            output.log_gain[1] += 0
        return [(1, 0.)]

    monkeypatch.setattr("retina_nb.adaptive.train_core", harm_one_cell)
    assert model.refine(train, valid)["cells_with_core"] == 0
    for name, value in model.state_dict().items():
        if name not in ("core.mean", "core.std"): assert torch.equal(value, before[name]), name


def test_core_sees_no_other_block_and_no_later_frame(with_core):
    run, rec = with_core
    movie = rec.train.stimulus.copy()
    rates = predict(run, movie, rec.blocks)
    movie[750:] = 255 - movie[750:]                     # the second block, and a later part of it
    changed = predict(run, movie, rec.blocks)
    np.testing.assert_allclose(changed[5:750], rates[5:750], rtol=1e-4)
    movie = rec.train.stimulus.copy()
    movie[1200:] = 0
    np.testing.assert_allclose(predict(run, movie, rec.blocks)[755:1200], rates[755:1200], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["adaptive", "tcn", "quadratic"])
def test_cells_that_were_not_recorded_all_the_time(recording, tmp_path, kind):
    "Gaps of one cell leave weights and scores finite, and say nothing against the other"
    rec = Recording(recording)
    for values in (rec.train.rates, rec.train.counts): values[400:700, 1] = np.nan
    settings = NARROW | dict(spike_history=4) if kind == "adaptive" else {}
    run = train_run(rec, kind, tmp_path/"run", history=6, epochs=2, settings=settings, progress=False)
    assert all(value.isfinite().all() for name, value in run.model.state_dict().items()
               if value.is_floating_point() and name not in ("exposure", "free.quadratic.locality"))
    assert np.isfinite(predict(run, rec.test.stimulus)[6:]).all() and np.isfinite(run.results["valid_loss"])
    assert results_table([run]).test_corr.notna().all()


def contrast_recording(path):
    "A cell of the squares of two pixels' differences: no linear filter sees it"
    rng = np.random.default_rng(0)
    def movie(n): return rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
    def spikes(m):
        a, b = ((m[:, 4, x].astype(float) - m[:, 3, x])/128 for x in (3, 4))
        return [np.flatnonzero(rng.random(len(m)) < .25*np.roll(a**2 + b**2, 2))/60]
    train, test = movie(5000), movie(600)
    return write_recording(path, train, spikes(train), test_stimulus=test, test_spikes=[spikes(test) for _ in range(5)], hz=60)


def test_free_filters_find_what_round_subunits_cannot(tmp_path):
    "Squares of oriented filters beside the subunits, kept by validation"
    rec = Recording(contrast_recording(tmp_path/"contrast.h5"))
    scores = {}
    for squares in (None, 2):
        run = train_run(rec, "adaptive", tmp_path/f"{squares}", history=6, epochs=1, patience=0, progress=False,
                        settings=dict(squares=squares, core=None, subunits=4))
        scores[squares] = results_table([run]).test_corr.iloc[0]
    assert run.results["cells_with_free_filters"] == 1 and scores[2] > scores[None] + .1, scores
