"Inside a model: units that are known, parts that are silenced"
import copy
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from conftest import record_noise
from retina_nb.bncnn import BNCNN
from retina_nb.data import InputError, Part, Recording, Scaling
from retina_nb.inside import (Interneurons, activity_in_pieces, all_knockouts, as_model_sees, knocked_out, knockout_table,
                              match_interneurons, parts, read_interneurons, untrained, without)
from retina_nb.receptive_fields import gaussian_checks
from retina_nb.training import predict, train_run

movie = gaussian_checks((500, 12, 12))


def run_of(model):
    part = Part(movie, np.zeros((500, model.n_units), np.float32))
    return SimpleNamespace(model=model.eval(), scale=Scaling("by hand", 127.5, 1/40), name="tiny",
                           recording=SimpleNamespace(train=part, test=part, hz=100.))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return run_of(BNCNN(img_shape=[6, 12, 12], chans=[4, 3], ksizes=[5, 3], n_units=2))


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inside")
    rec = Recording(record_noise(folder/"noise.h5", (12, 12)))
    settings = dict(subunits=3, n_basis=4, core=4)
    return train_run(rec, "adaptive", folder/"run", history=8, settings=settings, epochs=1, progress=False, scale="zscore")


@pytest.mark.parametrize("layer", ("sequential.0", "sequential.1", "sequential.4", "sequential.7"))
def test_a_channel_without_weight_changes_nothing(network, layer):
    at = int(layer[-1])
    silent = network.model.sequential[4 if at < 4 else 9].weight.data
    if at < 4: silent[:, 2] = 0
    else: silent.view(2, 3, -1)[:, 2] = 0
    whole = predict(network, movie)
    np.testing.assert_allclose(predict(knocked_out(network, layer, 2), movie), whole, rtol=1e-4)
    others = predict(knocked_out(network, layer, [0, 1]), movie)
    assert np.nanmax(np.abs(others - whole)) > 1e-3
    np.testing.assert_array_equal(predict(network, movie), whole)      # the run itself is as it was


def test_all_silenced_is_constant(network):
    dead = predict(knocked_out(network, "sequential.3", range(4)), movie)[5:]
    np.testing.assert_allclose(dead, np.broadcast_to(dead[0], dead.shape), rtol=1e-4)


def test_stretches_do_not_go_around(network):
    "However the model is fed, the first layer is silenced"
    network.model.batches = "stretches"
    fed = knocked_out(network, "sequential.0", range(4))
    dead = predict(fed, movie)[5:]
    np.testing.assert_allclose(dead, np.broadcast_to(dead[0], dead.shape), rtol=1e-4)


def test_what_cannot_be_silenced(network):
    with pytest.raises(InputError, match="channels: expected 0 to 3"): knocked_out(network, "sequential.0", [1, 4])
    with pytest.raises(InputError, match="layer: expected one of"): knocked_out(network, "conv", 0)
    with pytest.raises(InputError, match="without: expected AdaptiveSubunits"): without(network, "near opposite")


def test_parts_of_adaptive(adaptive):
    shown = adaptive.recording.train.stimulus[:300]
    whole = predict(adaptive, shown)
    for part in parts: assert predict(without(adaptive, part), shown).shape == whole.shape
    np.testing.assert_array_equal(predict(adaptive, shown), whole)
    no_excitation = without(without(without(adaptive, "near preferred"), "near opposite"), "free filters")
    alone = no_excitation.model
    currents = alone.currents(alone.subunits(adaptive.scale(torch.from_numpy(shown[:50]))[None]))
    assert currents[0].abs().max() < 1e-6 < currents[1].abs().max()
    silent = copy.deepcopy(adaptive.model)
    silent.log_weight.data[:, 3] = -40                                  # of no weight: far opposite
    light = copy.copy(adaptive)
    light.model = silent
    np.testing.assert_allclose(predict(without(light, "far opposite"), shown), predict(light, shown), rtol=1e-5)
    with pytest.raises(InputError, match="and 'core'"): without(adaptive, "core")
    table = knockout_table(adaptive, all_knockouts(adaptive), max_frames=200)
    assert list(table.index) == ["nothing", *parts] and abs(table.like_whole.iloc[0] - 1) < 1e-5


def test_subunits_in_pieces(adaptive):
    "The same as in one piece, and aligned with the movie"
    shown = adaptive.recording.train.stimulus[:600]
    frames, activity = (np.concatenate(x) for x in zip(*activity_in_pieces(adaptive, "subunits", shown)))
    model = adaptive.model
    with torch.no_grad(): u = model.subunit_output(model.subunits(adaptive.scale(torch.from_numpy(shown))[None]))
    np.testing.assert_array_equal(frames, np.arange(7, 600))
    np.testing.assert_allclose(activity, u.flatten(0, 3).T, atol=1e-4)
    assert activity.shape[1] == 2*4*3
    with pytest.raises(InputError, match="layer"): next(activity_in_pieces(adaptive, "subunit", shown))


def test_a_known_unit_is_found(network):
    "And neither where the voltage is moved in time nor with other weights"
    activity = np.concatenate([a for _, a in activity_in_pieces(network, "sequential.3", movie)])
    unit = activity.std(0).argmax()
    voltage = np.random.default_rng(0).normal(size=(500, 3))
    voltage[5:, 0] += 2*activity[:, unit]/activity[:, unit].std()
    voltage[5:, 1] -= 2*activity[:, unit]/activity[:, unit].std()      # of the other sign
    seen = Interneurons("boxes", movie, voltage, 100., ["with", "against", "noise"])
    table = match_interneurons(network, "sequential.3", seen)
    assert table.unit.tolist()[:2] == [unit, unit]
    assert (table.score[:2] > .8).all() and (table.chance < .3).all() and table.score.iloc[2] < .2
    other = match_interneurons(untrained(network, 1), "sequential.3", seen)
    assert (other.score < table.score - .2)[:2].all()


def test_frame_rates_and_sizes(network):
    "A slower, smaller screen; what is too large is cut"
    rng = np.random.default_rng(0)
    for stimulus in (rng.random(60), rng.random((60, 30)), rng.random((60, 5, 7)), rng.random((60, 40, 40))):
        shown, voltage = as_model_sees(Interneurons("x", stimulus, np.arange(60.)[:, None], 30., ["a"]), network)
        assert shown.shape == (200, 12, 12) and shown.dtype == np.uint8 and len(voltage) == 200
        assert (np.diff(voltage[:, 0]) >= 0).all() and voltage[-1] == 59


def test_files(tmp_path):
    with pytest.raises(InputError, match="expected an HDF5 file"): read_interneurons(tmp_path/"none.h5")
    path = tmp_path/"cells.h5"
    with h5py.File(path, "w") as f: f["other/x"] = 1
    with pytest.raises(InputError, match="expected groups boxes, flashes or lines, found other"): read_interneurons(path)
    with h5py.File(path, "w") as f: f["boxes/stimuli"] = np.zeros((9, 3, 3))
    with pytest.raises(InputError, match="boxes: expected stimuli, time and membrane_potential, found no time"): read_interneurons(path)
    with h5py.File(path, "w") as f:
        f["lines/stimuli"], f["lines/time"] = np.zeros((9, 4)), np.arange(9)/25
        f["lines/membrane_potential"] = np.ones((2, 10))               # one sample more than the stimulus
        f["lines/detrended_membrane_potential"] = np.zeros((2, 10))
    lines, = read_interneurons(path)
    assert lines.voltage.shape == (9, 2) and not lines.voltage.any() and lines.hz == 25 and lines.cells == ["cell01", "cell02"]
