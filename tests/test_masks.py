"Cells that were not recorded all the time, or not in every repeat: every metric against loops over cells in numpy and scipy"
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from retina_nb.data import InputError
from retina_nb import metrics
from retina_nb.metrics import (batch_correlation, bits_per_spike, bootstrap, cc_max, cc_norm, cc_norm_or_0, deviance_explained, feve,
                               interval, nanmean, oracle, paired, pearson, pearson_or_0, signal_power)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
seeds = st.integers(0, 10**6)
few = settings(max_examples=30, deadline=None)


def sample(seed, R=5, T=300, n=4):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(T, n))
    return signal + rng.normal(size=(R, T, n)), signal + rng.normal(size=(T, n)), rng


def with_gaps(seed):
    "Cell 0 whole, cell 1 with fewer repeats, cell 2 with a short gap in one repeat, cell 3 cut off half-way in one repeat"
    repeats, yhat, rng = sample(seed)
    fewer = rng.permutation(5)[:rng.integers(1, 4)]
    repeats[fewer, :, 1] = np.nan
    gap, at = rng.integers(1, 50), rng.integers(0, 200)
    repeats[rng.integers(5), at:at + gap, 2] = np.nan
    cut = rng.integers(5)
    repeats[cut, 100:, 3] = np.nan
    yhat[:7] = np.nan
    there = [np.arange(5), np.setdiff1d(np.arange(5), fewer), np.arange(5), np.setdiff1d(np.arange(5), [cut])]
    return repeats, yhat, there


def whole(repeats, yhat, there, cell):
    "What there is of a cell: repeats (repeats, frames) and prediction (frames,)"
    y = repeats[there[cell], :, cell]
    known = ~np.isnan(y).any(0)
    with_prediction = known & ~np.isnan(yhat[:, cell])
    return y[:, known], y[:, with_prediction], yhat[with_prediction, cell]


def power(y):
    R = len(y)
    return np.mean([np.cov(y[i], y[j], ddof=0)[0, 1] for i in range(R) for j in range(i)])


def naive_feve(y, guess):
    noise = y.var(0, ddof=1).mean()
    return 1 - (((y - guess)**2).mean() - noise)/(y.var(ddof=1) - noise)


def naive_oracle(y): return np.mean([stats.pearsonr(y[r], np.delete(y, r, 0).mean(0)).statistic for r in range(len(y))])


@few
@given(seeds)
def test_repeats(seed):
    repeats, yhat, there = with_gaps(seed)
    powers, ceilings, norms, explained, oracles = signal_power(repeats), cc_max(repeats), cc_norm(repeats, yhat), feve(repeats, yhat), oracle(repeats)
    for cell in range(4):
        every, y, guess = whole(repeats, yhat, there, cell)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)
        close(powers[cell], power(every))
        if power(every) > 0: close(ceilings[cell], min(np.sqrt(power(every)/every.mean(0).var()), 1))
        if power(y) > 0: close(norms[cell], np.cov(y.mean(0), guess, ddof=0)[0, 1]/np.sqrt(guess.var()*power(y)))
        close(explained[cell], naive_feve(y, guess))
        close(oracles[cell], naive_oracle(every))


@few
@given(seeds)
def test_response_of_one_showing(seed):
    _, yhat, rng = sample(seed)
    y, counts = rng.normal(size=yhat.shape), rng.poisson(.7, yhat.shape).astype(float)
    rate = np.exp(.3*yhat)
    hole = rng.random(yhat.shape) < np.array([0, .1, .5, .9])
    hole[100:150, 1] = True
    y[hole], counts[hole] = np.nan, np.nan
    yhat[:9] = np.nan
    rate[:9] = np.nan
    r, batches = pearson(y, yhat), batch_correlation(y, yhat, 20)
    bits, deviance = bits_per_spike(counts, rate), deviance_explained(counts, rate)
    for cell in range(4):
        known = ~np.isnan(y[:, cell]) & ~np.isnan(yhat[:, cell])
        a, b, n, p = y[known, cell], yhat[known, cell], counts[known, cell], rate[known, cell]
        np.testing.assert_allclose(r[cell], stats.pearsonr(a, b).statistic, rtol=1e-9)
        parts = [(a[i:i + 20], b[i:i + 20]) for i in range(0, len(a), 20)]
        np.testing.assert_allclose(batches[cell], np.mean([stats.pearsonr(*x).statistic if len(x[0]) > 1 else 0 for x in parts]), rtol=1e-9)
        ours, null = stats.poisson.logpmf(n, p).sum(), stats.poisson.logpmf(n, n.mean()).sum()
        best = stats.poisson.logpmf(n, np.maximum(n, 1e-300)).sum()
        np.testing.assert_allclose(bits[cell], (ours - null)/np.log(2)/n.sum(), rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(deviance[cell], (ours - null)/(best - null), rtol=1e-7, atol=1e-12)


@few
@given(seeds)
def test_a_cell_is_scored_as_if_it_were_alone(seed):
    repeats, yhat, _ = with_gaps(seed)
    for metric, more in ((signal_power, ()), (cc_max, ()), (oracle, ()), (cc_norm, (yhat,)), (feve, (yhat,)), (cc_norm_or_0, (yhat,))):
        together, samples = metric(repeats, *more), bootstrap(metric, repeats, *more, block=50, resamples=5)
        for cell in range(4):
            one = slice(cell, cell + 1)
            alone = [repeats[..., one], *(x[:, one] for x in more)]
            np.testing.assert_allclose(together[one], metric(*alone), rtol=1e-12)
            np.testing.assert_allclose(samples[:, one], bootstrap(metric, *alone, block=50, resamples=5), rtol=1e-12)


def test_resamples_take_what_there_is():
    repeats, yhat, there = with_gaps(3)
    weights = np.random.default_rng(0).multinomial(6, np.full(6, 1/6), 20)
    samples = {m: bootstrap(m, repeats, yhat, 50, 20) for m in (cc_norm, feve)}
    of_mean = bootstrap(pearson, repeats, yhat, 50, 20)
    for k in (0, 19):
        frames = np.concatenate([np.arange(50*b, 50*b + 50) for b in np.repeat(np.arange(6), weights[k])])
        for cell in range(4):
            y = repeats[there[cell], :, cell][:, frames]
            guess = yhat[frames, cell]
            known = ~np.isnan(y).any(0) & ~np.isnan(guess)
            for metric, got in samples.items():
                np.testing.assert_allclose(got[k, cell], metric(y[:, known][..., None], guess[known][:, None])[0], rtol=1e-9)
            mean = np.nanmean(repeats[:, frames, cell], 0)
            there_is = ~np.isnan(mean) & ~np.isnan(guess)
            np.testing.assert_allclose(of_mean[k, cell], stats.pearsonr(mean[there_is], guess[there_is]).statistic, rtol=1e-9)


def test_too_few_repeats_of_one_cell_are_nan_and_of_all_an_error():
    repeats, yhat, _ = sample(0)
    repeats[1:, :, 2] = np.nan
    repeats[:, :, 3] = np.nan
    for metric, more in ((signal_power, ()), (cc_max, ()), (oracle, ()), (cc_norm, (yhat,)), (feve, (yhat,))):
        assert np.isnan(metric(repeats, *more)).tolist() == [False, False, True, True]
        assert np.isnan(interval(metric, repeats, *more, block=50).loc[[2, 3]]).all(axis=None)
        with pytest.raises(InputError, match="at least 2"): metric(repeats[:1], *more)


def test_disjoint_halves_and_a_repeat_each():
    "No frame is in all repeats, and yet the best pair says something"
    repeats, _, _ = sample(1, R=4, n=1)
    repeats[0, 150:] = repeats[1, 150:] = repeats[2, :150] = np.nan
    np.testing.assert_allclose(signal_power(repeats)[0], power(repeats[[0, 1, 3], :150, 0]), rtol=1e-9)


@pytest.mark.parametrize("constant", ["prediction", "response", "both"])
def test_constant(constant):
    repeats, yhat, _ = sample(0)
    if constant != "response": yhat[:, 1] = 3
    if constant != "prediction": repeats[:, :, 1] = 0
    y = repeats.mean(0)
    for plain, or_0, response in ((pearson, pearson_or_0, y), (cc_norm, cc_norm_or_0, repeats)):
        assert np.isnan(plain(response, yhat)[1])
        score = or_0(response, yhat)[1]
        assert score == 0 if constant == "prediction" else np.isnan(score)
        others = [0, 2, 3]
        np.testing.assert_array_equal(or_0(response, yhat)[others], plain(response, yhat)[others])
        samples = bootstrap(or_0, response, yhat, 50, 10)[:, 1]
        assert (samples == 0).all() if constant == "prediction" else np.isnan(samples).all()


def test_paired_differences_know_a_constant_prediction():
    repeats, yhat, _ = sample(0)
    flat = yhat.copy()
    flat[:, 1] = 0
    table = paired(pearson_or_0, repeats, yhat, flat, 50)
    np.testing.assert_allclose(table.value[1], pearson(repeats.mean(0), yhat)[1], rtol=1e-12)
    np.testing.assert_allclose(table.value["mean"], table.value[1]/4, rtol=1e-12)
    assert table.lo[1] > 0 and np.isfinite(table).all(axis=None)


@pytest.mark.parametrize("metric", [cc_norm, cc_max, feve, oracle, signal_power, pearson])
def test_a_few_cells_at_a_time(metric, monkeypatch):
    "The same numbers, and shapes are compared as a whole"
    repeats, yhat, _ = with_gaps(5)
    more = () if metric in (cc_max, oracle, signal_power) else (yhat,)
    together = bootstrap(metric, repeats, *more, block=50, resamples=7)
    monkeypatch.setattr(metrics, "_AT_A_TIME", 1)
    np.testing.assert_allclose(bootstrap(metric, repeats, *more, block=50, resamples=7), together, rtol=1e-12)
    if more:
        response = repeats[0] if metric is pearson else repeats
        for wrong in (yhat[:, :3], np.concatenate([yhat, yhat], 1), yhat[:-1]):
            with pytest.raises(InputError, match="expected 300 frames and 4 cells"): metric(response, wrong)


def test_means_of_nothing_are_nan():
    assert np.isnan(nanmean([])) and np.isnan(nanmean([np.nan]))


@pytest.mark.parametrize("cells, repeats", [(40, 219), (400, 3)])
def test_memory_does_not_grow_with_cells_and_repeats(cells, repeats):
    "All moments at once would be a gigabyte and more"
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(repeats, 300, cells)).astype(np.float32)
    tracemalloc.start()
    bootstrap(cc_norm, responses, responses[0], block=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e8
