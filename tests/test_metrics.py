"Metrics: properties that must hold for any input"

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from retina_nb.data import InputError
from retina_nb.results import (batch_correlation, bits_per_spike, bootstrap, cc_max, cc_norm, deviance_explained, feve, interval, oracle,
                               paired, pearson, signal_power)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")


def sample(seed, R=4, T=200, n=3, snr=1.):
    rng = np.random.default_rng(seed)
    signal = np.sqrt(snr)*rng.normal(size=(T, n))
    return signal + rng.normal(size=(R, T, n)), signal + rng.normal(size=(T, n))


seeds, scales, shifts = st.integers(0, 10**6), st.floats(1e-6, 1e6), st.floats(-1e6, 1e6)
on_pair = [pearson, batch_correlation]
on_repeats = [signal_power, cc_max, oracle]
on_both = [cc_norm, feve]


@given(seeds, scales, st.floats(-1e3, 1e3))
def test_scale_and_shift_of_the_prediction(seed, a, b):
    repeats, yhat = sample(seed)
    b *= a
    for metric, y in ((pearson, repeats.mean(0)), (batch_correlation, repeats.mean(0)), (cc_norm, repeats)):
        np.testing.assert_allclose(metric(y, a*yhat + b), metric(y, yhat), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(metric(y, -a*yhat + b), -metric(y, yhat), rtol=1e-6, atol=1e-9)


@given(seeds, scales, shifts)
def test_scale_and_shift_of_everything(seed, a, b):
    repeats, yhat = sample(seed)
    for metric in on_both: np.testing.assert_allclose(metric(a*(repeats + b), a*(yhat + b)), metric(repeats, yhat), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(signal_power(a*(repeats + b)), a**2*signal_power(repeats), rtol=1e-5, atol=1e-6*a**2)
    for metric in (cc_max, oracle): np.testing.assert_allclose(metric(repeats + b), metric(repeats), rtol=1e-5, atol=1e-6)


@given(seeds, st.permutations(range(4)))
def test_order_of_repeats_and_frames(seed, order):
    repeats, yhat = sample(seed)
    t = np.random.default_rng(seed).permutation(len(yhat))
    for metric in on_repeats:
        np.testing.assert_allclose(metric(repeats[order]), metric(repeats), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(metric(repeats[:, t]), metric(repeats), rtol=1e-9, atol=1e-12)
    for metric in on_both:
        np.testing.assert_allclose(metric(repeats[order], yhat), metric(repeats, yhat), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(metric(repeats[:, t], yhat[t]), metric(repeats, yhat), rtol=1e-9, atol=1e-12)


@given(seeds)
def test_against_scipy(seed):
    repeats, yhat = sample(seed)
    y = repeats.mean(0)
    np.testing.assert_allclose(pearson(y, yhat), [stats.pearsonr(a, b).statistic for a, b in zip(y.T, yhat.T)], rtol=1e-10)
    others = [[stats.pearsonr(repeats[r, :, i], np.delete(repeats, r, 0)[:, :, i].mean(0)).statistic for r in range(4)] for i in range(3)]
    np.testing.assert_allclose(oracle(repeats), np.mean(others, 1), rtol=1e-10)
    counts, rate = np.random.default_rng(seed).poisson(np.exp(y)), np.exp(yhat)
    logp = lambda p: stats.poisson.logpmf(counts, p).sum(0)
    null = logp(np.broadcast_to(counts.mean(0), counts.shape))
    np.testing.assert_allclose(bits_per_spike(counts, rate), (logp(rate) - null)/np.log(2)/counts.sum(0), rtol=1e-8)
    np.testing.assert_allclose(deviance_explained(counts, rate), (logp(rate) - null)/(logp(np.maximum(counts, 1e-300)) - null), rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_torch_is_numpy(dtype, grad):
    repeats, yhat = (torch.tensor(x).to(dtype) for x in sample(0))
    counts, rate = torch.poisson(torch.full((200, 3), .3, dtype=torch.float64)).to(torch.int64), yhat.double().exp().to(dtype)
    as_numpy = lambda x: x.double().numpy() if dtype == torch.bfloat16 else x.numpy()
    numbers = [as_numpy(x) for x in (repeats, yhat, rate)]
    if grad: repeats, yhat, rate = (x.requires_grad_() for x in (repeats, yhat, rate))
    pairs = [(m, (repeats[0], yhat), (numbers[0][0], numbers[1])) for m in on_pair]
    pairs += [(m, (repeats,), (numbers[0],)) for m in on_repeats] + [(m, (repeats, yhat), numbers[:2]) for m in on_both]
    pairs += [(m, (counts, rate), (counts.numpy(), numbers[2])) for m in (deviance_explained, bits_per_spike)]
    for metric, tensors, arrays in pairs:
        score = metric(*tensors)
        assert isinstance(score, np.ndarray) and score.dtype == np.float64 and score.shape == (3,)
        np.testing.assert_allclose(score, metric(*arrays), rtol=1e-6)


def test_inputs_are_left_as_they_are():
    repeats, yhat = (torch.tensor(x) for x in sample(0))
    before = repeats.clone(), yhat.clone()
    pearson(repeats[0], yhat), cc_norm(repeats, yhat), batch_correlation(repeats[0], yhat), bootstrap(feve, repeats, yhat, block=10, resamples=3)
    assert torch.equal(before[0], repeats) and torch.equal(before[1], yhat)


@given(seeds, st.floats(-1e6, 1e6), st.sampled_from([np.float32, np.float64, np.int32]))
def test_constant_cells_are_nan(seed, value, dtype):
    repeats, yhat = sample(seed)
    repeats[:, :, 1] = value
    repeats, yhat = repeats.astype(dtype), yhat.astype(np.float32)
    for metric, y in ((pearson, repeats[0]), (cc_norm, repeats), (feve, repeats)):
        assert np.isnan(metric(y, yhat)).tolist() == [False, True, False] or dtype == np.int32
        assert np.isnan(metric(y, yhat)[1])
    for metric in on_repeats: assert np.isnan(metric(repeats)[1])
    assert batch_correlation(repeats[0], yhat)[1] == 0
    constant = np.full_like(yhat, value)
    assert np.isnan(pearson(repeats[0], constant)).all() and np.isnan(cc_norm(repeats, constant)).all()
    assert (batch_correlation(repeats[0], constant) == 0).all()
    counts = np.zeros((200, 3)); counts[:5, 0] = 1; counts[:, 2] = 1
    for metric in (deviance_explained, bits_per_spike): assert np.isnan(metric(counts, np.abs(yhat))).tolist() == [False, True, True]


@given(seeds, st.floats(1e-3, 1e6))
def test_rounding_noise_is_no_variance(seed, value):
    rng = np.random.default_rng(seed)
    for dtype in (np.float32, np.float64):
        wobble = (dtype(value)*(1 + np.finfo(dtype).eps*rng.integers(-1, 2, (100, 2)))).astype(dtype)
        y = rng.normal(size=(100, 2)).astype(dtype)
        assert np.isnan(pearson(y, wobble)).all() and (batch_correlation(wobble, y) == 0).all()
        assert np.isnan(signal_power(np.stack([wobble, wobble]))).all()


@given(seeds)
def test_a_large_offset_does_no_harm(seed):
    repeats, yhat = sample(seed)
    for metric in on_both: np.testing.assert_allclose(metric(repeats + 1e6, yhat + 1e6), metric(repeats, yhat), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pearson(repeats[0] + 1e6, yhat), pearson(repeats[0], yhat), rtol=1e-6, atol=1e-9)


@given(seeds)
def test_missing_and_infinite(seed):
    repeats, yhat = sample(seed)
    yhat[:39] = np.nan
    y = repeats.mean(0)
    for metric, a in ((pearson, y), (batch_correlation, y), (cc_norm, repeats), (feve, repeats)):
        np.testing.assert_allclose(metric(a, yhat), metric(a[..., 39:, :], yhat[39:]), rtol=1e-9)
        assert np.isnan(metric(a, np.full_like(yhat, np.nan))).all()
    yhat[50, 1] = np.inf
    for metric, a in ((pearson, y), (cc_norm, repeats), (feve, repeats), (batch_correlation, y)):
        assert np.isnan(metric(a, yhat)).tolist() == [False, True, False]
    counts = np.random.default_rng(seed).poisson(.5, y.shape)
    for metric in (deviance_explained, bits_per_spike):
        assert np.isnan(metric(counts, np.abs(yhat))).tolist() == [False, True, False]
        np.testing.assert_allclose(metric(counts, np.abs(yhat))[0], metric(counts[39:], np.abs(yhat[39:]))[0], rtol=1e-9)


def test_no_frames_and_one_frame():
    repeats, yhat = sample(0)
    for T in (0, 1):
        for metric, y in ((pearson, repeats[0]), (cc_norm, repeats), (feve, repeats), (deviance_explained, abs(repeats[0])), (bits_per_spike, abs(repeats[0]))):
            assert np.isnan(metric(y[..., :T, :], yhat[:T])).all()
        for metric in on_repeats: assert np.isnan(metric(repeats[:, :T])).all()
    assert (batch_correlation(repeats[0][:1], yhat[:1]) == 0).all() and np.isnan(batch_correlation(repeats[0][:0], yhat[:0])).all()


def test_what_is_wrong_is_said():
    repeats, yhat = sample(0)
    wrong = [(lambda: pearson(repeats[0], yhat[:-1]), "expected 200 frames and 3 cells as in the response, found 199 and 3"),
             (lambda: pearson(repeats[0, :, 0], yhat), "shape (frames, cells), found (200,)"),
             (lambda: pearson(repeats, yhat), "shape (frames, cells), found (4, 200, 3)"),
             (lambda: cc_norm(repeats[0], yhat), "shape (repeats, frames, cells)"),
             (lambda: cc_max(repeats[:1]), "at least 2"), (lambda: oracle(repeats[:1]), "at least 2"), (lambda: feve(repeats[:1], yhat), "at least 2"),
             (lambda: pearson(np.array([["a"]]), yhat), "expected numbers, found <U1"), (lambda: bits_per_spike(repeats[0], yhat), "0 or more"),
             (lambda: batch_correlation(repeats[0], yhat, 0), "1 or more"), (lambda: bootstrap(len, repeats), "expected one of pearson"),
             (lambda: bootstrap(pearson, repeats, yhat, block=150), "expected at least two blocks of 150 frames, found 200 frames"),
             (lambda: paired(pearson, repeats, yhat, yhat[:5]), "expected one shape, found (200, 3) and (5, 3)"),
             (lambda: bootstrap(cc_max, repeats[0, :, 0]), "shape (repeats, frames, cells), found (200,)")]
    for call, words in wrong:
        with pytest.raises(InputError) as e: call()
        assert words in str(e.value) and "\n" not in str(e.value)


def test_a_prediction_of_zero_is_finite_and_bad():
    counts = np.zeros((100, 1)); counts[:10] = 1
    wrong, worse = np.full((100, 1), .1), np.full((100, 1), .1)
    wrong[0] = 1e-3; worse[0] = 0
    scores = [bits_per_spike(counts, p)[0] for p in (worse, wrong, np.full((100, 1), .1))]
    assert np.isfinite(scores).all() and scores[0] < scores[1] < scores[2] and abs(scores[2]) < 1e-12
    np.testing.assert_allclose(bits_per_spike(counts, -worse), bits_per_spike(counts, np.zeros((100, 1))))   # below zero counts as zero


def test_many_repeats_need_little_memory():
    "All covariances of 219 repeats would be 19 GB for a thousand resamples of 48 cells, and 1.6 GB here"
    repeats, yhat = sample(0, R=219, T=400, n=4)
    tracemalloc.start()
    samples = bootstrap(cc_norm, repeats, yhat)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e8 and np.isfinite(samples).all()
    weights = np.random.default_rng(0).multinomial(4, np.full(4, 1/4), 1000)
    frames = np.concatenate([np.arange(100*b, 100*b + 100) for b in np.repeat(np.arange(4), weights[7])])
    for metric in (cc_norm, feve): np.testing.assert_allclose(bootstrap(metric, repeats, yhat)[7], metric(repeats[:, frames], yhat[frames]), rtol=1e-9)
    for metric in (cc_max, signal_power, oracle): np.testing.assert_allclose(bootstrap(metric, repeats)[7], metric(repeats[:, frames]), rtol=1e-9)


def test_one_repeat_that_varies_a_thousand_times_more():
    "It dominates the sum of the repeats, and yet the others keep their correlations"
    repeats, _ = sample(0)
    repeats[0] *= 1e3
    others = [np.delete(repeats, r, 0).mean(0) for r in range(4)]
    expected = np.mean([pearson(one, mean) for one, mean in zip(repeats, others)], 0)
    np.testing.assert_allclose(oracle(repeats), expected, rtol=1e-9)


def test_known_signal_and_noise():
    repeats, _ = sample(0, R=10, T=20000, n=20, snr=.5)
    assert abs(signal_power(repeats).mean() - .5) < .01 and abs(cc_max(repeats).mean() - np.sqrt(.5/.6)) < .005
    repeats, _ = sample(1, R=5, T=6000, n=200, snr=0)          # nothing but noise
    table = interval(signal_power, repeats)
    assert (table.lo.iloc[:-1] > 0).mean() < .06               # cells taken to carry a signal: 2.5 % expected


def test_seeds_make_pairs():
    repeats, yhat = sample(0, T=1000)
    a, b = bootstrap(pearson, repeats, yhat, 50), bootstrap(pearson, repeats, yhat, 50)
    np.testing.assert_array_equal(a, b)
    assert (a != bootstrap(pearson, repeats, yhat, 50, seed=1)).any()
    same = paired(cc_norm, repeats, yhat, 2*yhat + 1, 50)
    np.testing.assert_allclose(same.to_numpy(), 0, atol=1e-9)
    late = yhat.copy(); late[:100] = np.nan                    # the same model, without its first frames
    np.testing.assert_allclose(paired(pearson, repeats, yhat, late, 50).to_numpy(), 0, atol=1e-12)
