"Receptive fields against filters that are known: the controls of the bench"
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import record_noise
from retina_nb.bncnn import BNCNN, Exponential
from retina_nb.data import InputError, Part, Recording, Scaling
from retina_nb.receptive_fields import (FixedFilters, ReceptiveField, Unit, deblurred, fit_centre, gaussian_checks, hidden_field,
                                        mean_gradient, rate_triggered_average, receptive_field, some_windows,
                                        spike_triggered_covariance, unit_activity, unit_output)
from retina_nb.simulation import natural_movie
from retina_nb.training import predict, train_run

each_seed = pytest.mark.parametrize("seed", (0, 1, 2))


def filter_of(seed, lags=8, size=10):
    "A Gaussian with a biphasic time course, newest frame first"
    rng = np.random.default_rng(seed)
    row, column = rng.uniform(3, size - 4, 2)
    y, x = np.mgrid[:size, :size]
    t = np.arange(lags)
    course = np.exp(-(t - 2)**2/2) - .5*np.exp(-(t - 5)**2/2)
    return rng.choice([-1, 1])*course[:, None, None]*np.exp(-((y - row)**2 + (x - column)**2)/4)


def by_hand(filters, output=None, **given):
    filters = np.array(filters)
    model = FixedFilters(output, img_shape=filters.shape[-3:], **given).eval()
    model.filters.data[0] = torch.tensor(filters[:, ::-1].copy())
    return SimpleNamespace(model=model, scale=Scaling("by hand", 127.5, 1/40), name="by hand", recording=None)


def r(a, b): return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


@each_seed
@pytest.mark.parametrize("output, gain", [(None, 1), (Exponential(), .2)], ids=("linear", "LN"))
def test_average_is_the_filter(seed, output, gain):
    f = filter_of(seed)
    run = by_hand([gain*f], output)
    movie = gaussian_checks((20_000, 10, 10), check=1, seed=seed)
    average = rate_triggered_average(movie, predict(run, movie), 8)[0]
    assert r(average, f) > .95
    field, true = ReceptiveField(average), ReceptiveField(f)
    assert field.polarity == true.polarity and abs(field.latency_ms - 20) <= 10
    assert abs(field.diameter_um/true.diameter_um - 1) < .1


@each_seed
def test_gradient_is_the_filter(seed):
    f = filter_of(seed)
    movie = gaussian_checks((300, 10, 10), check=1, seed=seed)
    for run, exact in ((by_hand([f]), True), (by_hand([.2*f], Exponential()), False)):
        gradient = mean_gradient(run.model, Unit(), some_windows(run, movie, 40))
        if exact: np.testing.assert_allclose(gradient, f, atol=1e-6)
        assert r(gradient, f) > .9999


def test_covariance_finds_two_filters():
    t, shape = np.arange(6), (1, 4, 4)
    space = np.zeros((2, *shape))
    space[0, 0, 1, 1] = space[1, 0, 2, 3] = 1
    course = np.exp(-(t - 2)**2/2)[:, None, None]
    filters = [course*s for s in space]
    movie = gaussian_checks((30_000, 4, 4), check=1)
    energy = by_hand(filters, squares=2)
    stc = spike_triggered_covariance(Part(movie, predict(energy, movie)), lags=6)
    plane = np.linalg.qr(np.stack([f.ravel() for f in filters], 1))[0]
    assert stc.exciting.tolist() == [0, 1]
    for f in stc.filters[:2]: assert np.linalg.norm(plane.T @ f.ravel())/np.linalg.norm(f) > .95
    ln = by_hand([filters[0]/2], Exponential())
    of_ln = spike_triggered_covariance(Part(movie, predict(ln, movie)), lags=6)
    assert len(of_ln.exciting) + len(of_ln.suppressing) == 0


def test_suppressing_direction():
    "A cell that falls silent when a filter is driven either way"
    movie = gaussian_checks((15_000, 3, 3), check=1)
    light = (movie.astype(float) - 127.5)/40
    rates = np.exp(-light[:, 1, 1]**2)[:, None].astype(np.float32)
    stc = spike_triggered_covariance(Part(movie, rates), lags=3)
    assert stc.suppressing.tolist() == [26] and not len(stc.exciting)
    f = np.abs(stc.filters[26])
    assert f.argmax() == 4 and f.ravel()[4] > 5*np.delete(f.ravel(), 4).max()


def test_covariance_keeps_to_blocks():
    "A response whose history reaches into the block before does not count"
    movie = gaussian_checks((400, 3, 3), check=1)
    rates = np.ones((400, 1), np.float32)
    rates[200:202] = 1e6
    one, two = (spike_triggered_covariance(Part(movie, rates, blocks=b), lags=3, shifts=2) for b in ([0], [0, 200]))
    assert one.values[0] > 5 > two.values[0]


def test_deblurring():
    "Natural scenes make a field too wide; without their correlations it is about as wide as it is"
    movie = np.concatenate(list(natural_movie(4000, seed=1)))
    f = filter_of(3, size=50)
    part = Part(movie, predict(by_hand([f]), movie))
    average = rate_triggered_average(movie, part.rates, 8)
    true, before, after = (ReceptiveField(x).diameter_um for x in (f, average[0], deblurred(average, part)[0]))
    assert before > 2*true and after < 2*true


def test_a_centre_with_an_angle():
    y, x = np.mgrid[:30, :40] - np.array([12, 25])[:, None, None]
    image = np.exp(-((y + x)/np.sqrt(2)/4)**2/2 - ((x - y)/np.sqrt(2)/2)**2/2)
    centre = fit_centre(image)
    np.testing.assert_allclose([centre.row, centre.column, centre.diameter], [12, 25, 2*8**.5], rtol=1e-3)


def test_a_cell_that_never_fires():
    field = ReceptiveField(np.full((5, 6, 6), np.nan))
    assert np.isnan(field.diameter_um) and field.biphasic == 0 and field.row()


def test_no_such_layer_or_unit():
    model = BNCNN(img_shape=[3, 8, 8], chans=[1, 1], ksizes=[3, 3], n_units=2).eval()
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(InputError, match="layer: expected one of .*sequential.0"): unit_output(model, Unit("conv9", (0,)), x)
    for index in ((2,), (-1,), (0, 0), ()):
        with pytest.raises(InputError, match="unit: expected an index into"): unit_output(model, Unit("", index), x)


def test_one_line(tmp_path):
    "Of a trained run, by index and by name; a hidden unit of it"
    rec = Recording(record_noise(tmp_path/"noise.h5", (12, 12), frames=1500))
    run = train_run(rec, "bncnn", tmp_path/"run", history=6, epochs=2, progress=False, scale="zscore",
                    settings=dict(chans=[2, 2], ksizes=[3, 3]))
    fields = receptive_field(run, rec.cell_names[1], um_per_pixel=20, max_frames=1500)
    assert list(fields) == ["recorded", "predicted", "under noise", "gradient"]
    assert fields["recorded"].filter.shape == (6, 12, 12) and fields["gradient"].um_per_pixel == 20
    image = np.abs(fields["recorded"].image)
    assert np.unravel_index(image.argmax(), (12, 12)) == (0, 1)      # the cell follows that pixel, two frames late
    assert fields["recorded"].polarity == "OFF" and fields["recorded"].peak == 2
    assert len(fields.figure().axes) == 5 and len(fields.table) == 4
    unit = Unit("sequential.3", (1, 4, 4))
    hidden = hidden_field(run, unit, frames=500)
    assert list(hidden) == ["under noise", "gradient"]
    seen = np.argwhere(np.abs(hidden["gradient"].image) > 1e-6)
    assert len(seen) and seen.min() >= 4 and seen.max() <= 6          # a kernel of three, and nothing beside it
    with pytest.raises(InputError, match="cell"): receptive_field(run, "nobody")
    activity = unit_activity(run, Unit("", (0,)), rec.train.stimulus[:50])
    np.testing.assert_allclose(activity[5:], predict(run, rec.train.stimulus[:50])[5:, 0], rtol=1e-3)
    assert np.isnan(activity[:5]).all()
