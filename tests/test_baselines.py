"What the baselines notebook can't show in a cell: unusual shapes, silent cells, coupling, other responses"
import json
import warnings
import numpy as np
import pytest
import torch
from retina_nb import baselines
from retina_nb.baselines import GLM, LN
from retina_nb.config import config_checksum
from retina_nb.data import Frames, Part, InputError
from retina_nb.models import model_path
from retina_nb.run_folder import load_class

def part(n_cells=2, size=(14, 11), frames=1500, response="firing_rate_10ms", seed=0):
    "Cells that each follow one pixel, three frames late; the last one also fires after the first"
    rng = np.random.default_rng(seed)
    movie = rng.integers(0, 256, (frames, *size), dtype=np.uint8)
    light = movie[:, np.linspace(2, size[0] - 3, n_cells).astype(int).clip(0, size[0] - 1), size[1]//2].astype(float)/255
    rate = np.roll(np.maximum(light - .5, 0)*2, 3, axis=0)
    counts = rng.poisson(rate).astype(np.float32)
    counts[1:, -1] += rng.binomial(1, .8, frames - 1)*(counts[:-1, 0] > 0)
    return Part(movie, counts if response == "binned" else 100*counts, response=response, counts=counts, blocks=[0, frames//2])

def solved(cls, shape, n_units, p, scale="zscore", **options):
    "A model solved on the first 80 % of the part, what it says about that, and frames of the rest in random order"
    model = cls(img_shape=shape, n_units=n_units, **options)
    n, history = len(p), shape[0]
    train = Frames(p, np.arange(0, int(.8*n)), history, scale)
    rest = np.arange(int(.8*n) + history, n)
    valid = Frames(p, np.random.default_rng(0).permutation(rest), history, train.scale)
    return model, model.initialise(train, valid), valid

@pytest.mark.parametrize("cls", [LN, GLM])
@pytest.mark.parametrize("shape, n_cells, options", [
    ((8, 14, 11), 2, {}), ((1, 14, 11), 1, {}), ((12, 14, 11), 3, dict(rank=1, n_basis=4)), ((5, 3, 2), 2, dict(window=9)), ((6, 60, 33), 2, dict(window=5)), ((4, 1, 40), 1, dict(pool=1))])
def test_shapes(cls, shape, n_cells, options):
    model, summary, valid = solved(cls, shape, n_cells, part(n_cells, shape[1:], 600), **options)
    x, _ = valid.__getitems__(range(20))
    rates = model(valid.scale(x))
    assert rates.shape == (20, n_cells) and rates.isfinite().all() and (rates >= 0).all()
    torch.testing.assert_close(model.predict_movie(valid)[:20], rates, atol=.05, rtol=1e-3)
    assert len(json.loads(json.dumps(summary, allow_nan=False))["strength"]) == n_cells
    again = cls(**json.loads(json.dumps(model.hyperparams)))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(valid.scale(x)), rates)

@pytest.mark.parametrize("cls", [LN, GLM])
def test_finds_the_pixel(cls):
    model, summary, _ = solved(cls, (8, 14, 11), 2, part(2, frames=3000), pool=1)
    assert min(summary["valid_corr"]) > .3  # Poisson counts in single frames: noise caps it near .5
    peak = model.linear.pooled()[0].abs().flatten().argmax().item()
    assert np.unravel_index(peak, (8, 14, 11)) == (4, 2, 5)  # three frames before the newest

@pytest.mark.parametrize("cls", [LN, GLM])
def test_silent_cell_and_still_movie(cls):
    p = part(2, frames=800)
    p.rates[:, 1] = p.counts[:, 1] = 0
    model, summary, valid = solved(cls, (4, 14, 11), 2, p)
    rates = model.predict_movie(valid)
    assert summary["valid_corr"][1] is None and rates.isfinite().all() and rates[:, 1].max() < .1
    p = part(2, frames=400)
    still = Part(np.full_like(p.stimulus, 90), p.rates, counts=p.counts)
    model, summary, valid = solved(cls, (4, 14, 11), 2, still)
    torch.testing.assert_close(model.predict_movie(valid).mean(0), torch.from_numpy(still.rates[:320].mean(0)), rtol=.1, atol=1)

def test_coupling_sees_the_other_cell():
    p = part(2, frames=3000)
    found = {}
    for coupling in (False, True):
        model, _, valid = solved(GLM, (6, 14, 11), 2, p, spike_history=5, coupling=coupling)
        counts = torch.from_numpy(p.counts)[valid.index]
        rates = model.predict_with_history(valid, p.counts)/100
        found[coupling] = (counts*rates.log() - rates).mean(0)[1]
        assert model.spike_filters().shape == (2, 2 if coupling else 1, 5)
    assert found[True] > found[False] + .05
    first = model.spike_filters()[1, 0]
    assert first.argmax() == 4  # the frame before

def test_spike_counts_as_response():
    model, _, valid = solved(GLM, (6, 14, 11), 2, part(2, response="binned"))
    assert model.knows_spike_history
    rates = model.predict_with_history(valid, part(2).counts)
    np.testing.assert_allclose(rates.mean(0), valid.rates[valid.index].mean(0), rtol=.3)

def test_without_counts():
    p = part(2)
    p.counts = None
    model, _, valid = solved(GLM, (6, 14, 11), 2, p)
    assert not model.knows_spike_history
    with pytest.raises(InputError, match="solved with spike counts"): model.predict_with_history(valid, np.zeros(p.rates.shape))

@pytest.mark.parametrize("bad", [dict(window=0), dict(n_basis=1.5), dict(rank=0), dict(rank="half"), dict(n_units=0), dict(img_shape=(0, 5, 5))])
def test_bad_hyperparameters(bad):
    with pytest.raises(InputError, match=next(iter(bad))): LN(**bad)

def test_gradient_reaches_the_stimulus():
    model, _, valid = solved(LN, (4, 14, 11), 1, part(1, frames=500))
    x = valid.scale(valid.__getitems__(range(30))[0]).requires_grad_()
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0

def test_history_stops_at_the_start_of_a_block():
    "Spikes before the block in which a frame lies are not seen"
    p = part(2, frames=800)
    model, _, _ = solved(GLM, (6, 14, 11), 2, p, spike_history=40)
    frames = Frames(p, np.arange(405, 415), 6, "unit")   # the second block begins at 400
    silenced = p.counts.copy()
    silenced[:400] = 0
    torch.testing.assert_close(model.predict_with_history(frames, p.counts), model.predict_with_history(frames, silenced))

@pytest.mark.parametrize("cls", [LN, GLM])
def test_rates_in_the_order_of_the_frames(cls):
    "Shuffled frames get their own rates"
    model, _, valid = solved(cls, (6, 14, 11), 2, part(2, frames=600))
    assert (np.diff(valid.index) < 0).any()
    x, _ = valid.__getitems__(range(len(valid)))
    torch.testing.assert_close(model.predict_movie(valid), model(valid.scale(x)), atol=.05, rtol=1e-3)

@pytest.mark.parametrize("cls", [LN, GLM])
def test_a_cell_that_was_lost(cls):
    "Solved on the frames in which each cell was recorded; the other cell is as it was"
    whole, lost = part(2, frames=1500), part(2, frames=1500)
    lost.rates[600:700, 0] = lost.counts[600:700, 0] = lost.rates[1400:, 0] = lost.counts[1400:, 0] = np.nan
    model, summary, valid = solved(cls, (8, 14, 11), 2, lost, pool=1)
    reference, expected, _ = solved(cls, (8, 14, 11), 2, whole, pool=1)
    rates = model.predict_movie(valid)
    assert rates.isfinite().all() and min(summary["valid_corr"]) > .3
    np.testing.assert_allclose(summary["valid_corr"], expected["valid_corr"], atol=.08)
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(rates.T, reference.predict_movie(valid).T)]
    assert min(alike) > .8, alike
    if cls is GLM:
        assert model.knows_spike_history and model.spike_weights.isfinite().all()
        assert model.predict_with_history(valid, lost.counts).isfinite().all()

def test_a_cell_without_frames_to_learn_from():
    lost = part(2, frames=600)
    lost.rates[:480, 1] = np.nan
    with pytest.raises(InputError, match="training frames: expected some in which each cell was recorded, found none for cell 1"): solved(LN, (4, 14, 11), 2, lost)


NAMES = """CellWindow Filters FitData GLM GainSoftplus LN Pooled Ramps cell_windows choose_penalty cosine_basis covariances features
find_centers localities poisson_fit poisson_path pool recent_spikes ridge ridge_path smooth_and_local strengths without_gaps""".split()

def test_names_are_still_where_they_were():
    "What now lives in 08_ridge, 08_filters, 08_ln and 08_glm is found in baselines, too, and nothing is said of it"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in NAMES: assert getattr(baselines, name) is not None
    assert sorted(baselines.__all__) == sorted(NAMES)
    with pytest.warns(DeprecationWarning, match="retina_nb.ln.choose_penalty"): assert baselines.choose is baselines.choose_penalty

@pytest.mark.parametrize("name, cls", [("ln", LN), ("glm", GLM)])
def test_run_folders_keep_the_address(name, cls):
    "Run folders of before, and the checksums in them, name baselines; a class that moves must not make them those of another model"
    address = f"retina_nb.baselines:{cls.__name__}"
    spellings = (name, cls.__name__, address, f"{cls.__module__}:{cls.__name__}")
    assert cls.__module__ != "retina_nb.baselines" and model_path(cls) == address
    for spelling in spellings: assert model_path(spelling) == address and load_class(spelling) is cls
    assert len({config_checksum({"model": spelling, "seed": 0}) for spelling in spellings}) == 1
    own = type(cls.__name__, (cls,), {"__module__": "mine"})
    assert model_path(own) == f"mine:{cls.__name__}" and model_path(f"mine:{cls.__name__}") == f"mine:{cls.__name__}"
