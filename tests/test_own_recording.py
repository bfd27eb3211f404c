"From what a rig leaves behind to a row of the table: phy, NWB, counts, traces, drops, pauses, no repeats, a dying cell"
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from retina_nb.bncnn import BNCNN, LinearOutput
from retina_nb.data import InputError, Recording, smooth, write_recording
from retina_nb.eda import overview
from retina_nb.own_recording import cell_checks, cut_triggers, from_nwb, from_phy, read_phy, refractory_violations, repeat_lags, traces_at_frames
from retina_nb.results import notes, results_table
from retina_nb.training import fit, load_run, model_for, predict, train_run

hz, n_train, n_test = 50, 1000, 250
rng = np.random.default_rng(0)
movie, test_movie = (rng.integers(0, 256, (n, 10, 10), dtype=np.uint8) for n in (n_train, n_test))


def drives(frames):
    "What drives three cells, (time, cells)"
    light = np.stack([frames[:, r:r + 3, c:c + 3].mean((1, 2)) - 128 for r, c in ((1, 1), (4, 5), (6, 2))], 1)/25
    return lfilter([.3, .5, .2], 1, light*[1, -1, 1], axis=0)


def counts_of(frames): return rng.poisson(.5*np.exp(2*drives(frames)).clip(max=6)).T    # (cells, time)


def spikes_of(counts, times):
    "Spike times in the middle of the frames, each (n,)"
    return [np.repeat(times, n) + .004 + .001*rng.random(n.sum()) for n in counts]


counts, clip_counts = counts_of(movie), np.stack([counts_of(test_movie) for _ in range(4)])


def row(rec, folder, model="ln", **options):
    "Train a model, and its row of the table"
    run = train_run(rec, model, folder, progress=False, **options)
    return results_table([run]).iloc[0], run


def clock(n, start, drops=(), pause=None):
    steps = np.full(n, 1/hz)
    steps[list(drops)] = 2/hz
    if pause is not None: steps[pause] = 5
    return start + np.append(0, np.cumsum(steps))[:n]


# ---- a rig: phy and NWB

drops = [[100, 450], [30], [], [60, 200], [5]]
shown = [clock(n_train, 10, drops[0], pause=600), *(clock(n_test, 60 + 10*r, d) for r, d in enumerate(drops[1:]))]
cells = [np.concatenate(x) for x in zip(spikes_of(counts, shown[0]), *(spikes_of(c, t) for c, t in zip(clip_counts, shown[1:])))]
died = 73.    # in the second repeat


@pytest.fixture
def phy(tmp_path):
    folder = tmp_path/"phy"
    folder.mkdir()
    samples = np.round(np.concatenate(cells)*20_000).astype(np.uint64)
    ids = np.repeat([2, 11, 40], [len(x) for x in cells])
    order = np.argsort(samples, kind="stable")
    np.save(folder/"spike_times.npy", samples[order][:, None])    # as Kilosort writes it
    np.save(folder/"spike_clusters.npy", ids[order].astype(np.int32))
    (folder/"params.py").write_text("raise SystemExit\nsample_rate = 20000.\n")
    pd.DataFrame({"cluster_id": [2, 11, 40], "group": ["good", "good", "good"]}).to_csv(folder/"cluster_group.tsv", sep="\t", index=False)
    return folder


def rig(**more): return dict(frame_times=shown[0], test_stimulus=test_movie, test_frame_times=shown[1:], **more)


def test_from_phy(phy, tmp_path):
    rec = Recording(from_phy(phy, tmp_path/"x.h5", movie, **rig()))
    assert rec.cell_names == ["unit2", "unit11", "unit40"] and rec.hz == hz and rec.blocks.tolist() == [0, 603]
    np.testing.assert_array_equal(np.asarray(rec.test.repeat_counts).sum(1), clip_counts.sum(2))
    assert rec.train.counts.sum() == counts.sum()
    assert not repeat_lags(rec).any()
    table, _ = row(rec, tmp_path/"run")
    assert table.cc_norm > .5 and table.cc_max > .5


def test_drops_are_not_a_shift(phy, tmp_path):
    rec = Recording(from_phy(phy, tmp_path/"x.h5", movie, **rig()))
    by_frame = np.repeat(np.arange(n_train), np.bincount([100, 450], minlength=n_train) + 1)
    np.testing.assert_array_equal(rec.train.stimulus, movie[by_frame])
    first_tick = np.append(0, np.cumsum(np.bincount([100, 450], minlength=n_train) + 1))[:-1]
    np.testing.assert_array_equal(np.add.reduceat(rec.train.counts, first_tick).T, counts)    # spikes stay with their frame
    np.testing.assert_array_equal(np.asarray(rec.test.repeat_counts).transpose(0, 2, 1), clip_counts)


def test_shifted_repeats_are_seen(phy, tmp_path):
    wrong = [times + .06*(r == 1) for r, times in enumerate(shown[1:])]
    rec = Recording(from_phy(phy, tmp_path/"x.h5", movie, **rig() | dict(test_frame_times=wrong)))
    np.testing.assert_allclose(repeat_lags(rec), [0, -.06, 0, 0])


def test_a_dying_cell(phy, tmp_path):
    for i in (0, 2): assert (cells[i] > died).any()
    rec = Recording(from_phy(phy, tmp_path/"x.h5", movie, **rig(valid={"unit11": (0, died)})))
    known = ~np.isnan(rec.test.repeats)
    assert known[:, :, [0, 2]].all() and known[0, :, 1].all() and not known[2:, :, 1].any() and 0 < known[1, :, 1].mean() < 1
    assert cell_checks(rec).repeats.tolist() == [4, 2, 4]
    table, run = row(rec, tmp_path/"run")
    assert table.cc_norm > .5 and "unit11 (2 of 4 repeats" in " ".join(notes([run]))


def test_a_cell_that_dies_while_training(phy, tmp_path):
    rec = Recording(from_phy(phy, tmp_path/"x.h5", movie, **rig(valid={"unit2": [(0, 20), (45, 1000)]})))
    silent = np.isnan(rec.train.rates[:, 0])
    assert not np.isnan(rec.train.rates[:, 1:]).any() and silent[501:600].all() and not silent[:495].any()
    assert np.isnan(rec.train.counts[:, 0]).sum() < silent.sum()    # a smoothed rate is not known near a gap either
    for model in ("ln", "bncnn"):
        table, run = row(rec, tmp_path/model, model, **({} if model == "ln" else {"epochs": 1}))
        assert np.isfinite(table.test_corr)


@pytest.mark.parametrize("spoil, says", [
    (lambda f: (f/"spike_times.npy").unlink(), "spike_times.npy"), (lambda f: (f/"spike_times.npy").write_bytes(b"x"), "array of numpy"),
    (lambda f: (f/"params.py").unlink(), "give sample_rate"), (lambda f: (f/"cluster_group.tsv").unlink(), "found 3 unsorted"),
    (lambda f: np.save(f/"spike_clusters.npy", np.zeros(3, int)), "and 3 clusters"), (lambda f: (f/"cluster_group.tsv").write_text(""), "unsorted")])
def test_broken_phy_folders(phy, tmp_path, spoil, says):
    spoil(phy)
    with pytest.raises(InputError, match=says): from_phy(phy, tmp_path/"x.h5", movie, **rig())
    assert not (tmp_path/"x.h5").exists()


def test_labels_of_phy(phy):
    info = pd.DataFrame({"cluster_id": [2, 11, 40], "group": ["noise", "", "good"], "KSLabel": ["good", "mua", "good"]})
    info.to_csv(phy/"cluster_info.tsv", sep="\t", index=False)
    assert list(read_phy(phy)) == ["unit2", "unit11", "unit40"]    # what somebody said in cluster_group.tsv comes first
    (phy/"cluster_group.tsv").unlink()
    assert list(read_phy(phy)) == ["unit40"]
    assert list(read_phy(phy, groups=None)) == ["unit11", "unit40"]
    info[["cluster_id", "KSLabel"]].to_csv(phy/"cluster_KSLabel.tsv", sep="\t", index=False)
    assert list(read_phy(phy, ("mua",))) == ["unit11"]
    np.testing.assert_allclose(read_phy(phy, sample_rate=10_000)["unit40"], 2*np.sort(cells[2]), atol=1e-3)


def test_triggers():
    every = np.concatenate(shown)
    lengths = [len(x) for x in shown]
    for one, true in zip(cut_triggers(every, lengths), shown): np.testing.assert_array_equal(one, true)
    with pytest.raises(InputError, match="showing 1 to begin after a pause"): cut_triggers(every, [n_test, n_train, *lengths[2:]])
    at_once = np.arange(300)/60
    assert [len(x) for x in cut_triggers(at_once, [100, 200])] == [100, 200]
    for wrong, says in ((every[1:], "found 1999"), (np.delete(np.append(every, every[-1] + .02), 700), "after a pause")):
        with pytest.raises(InputError, match=says): cut_triggers(wrong, lengths)
    assert refractory_violations(np.array([0, 1, 1.001, 2])) == 1/3


pynwb = pytest.importorskip("pynwb", reason="pynwb is not installed: pip install 'retina_nb[nwb]'")


def new_nwb():
    from datetime import datetime, timezone
    return pynwb.NWBFile(session_description="x", identifier="x", session_start_time=datetime(2024, 1, 1, tzinfo=timezone.utc))


def images(name, data, times): return pynwb.image.ImageSeries(name=name, data=data, unit="n.a.", timestamps=times)


def save(nwb, path):
    with pynwb.NWBHDF5IO(path, "w") as io: io.write(nwb)
    return path


def with_units(nwb, intervals=False):
    for i, times in zip((2, 11, 40), cells):
        nwb.add_unit(id=i, spike_times=np.sort(times), **(dict(obs_intervals=[[0., died if i == 11 else 200.]]) if intervals else {}))
    return nwb


def same(a, b):
    for part in ("train", "test"):
        x, y = getattr(a, part), getattr(b, part)
        np.testing.assert_array_equal(x.stimulus, y.stimulus)
        np.testing.assert_array_equal(x.rates, y.rates)
    np.testing.assert_array_equal(a.test.repeats, b.test.repeats)
    assert a.cell_names == b.cell_names and a.blocks.tolist() == b.blocks.tolist()


def test_from_nwb_with_a_series_for_each_showing(phy, tmp_path):
    nwb = with_units(new_nwb(), intervals=True)
    nwb.add_stimulus(images("train", movie, shown[0]))
    for r in range(4): nwb.add_stimulus(images(f"test{r}", test_movie, shown[1 + r]))
    path = save(nwb, tmp_path/"x.nwb")
    tests = [f"test{r}" for r in range(4)]
    rec = Recording(from_nwb(path, tmp_path/"nwb.h5", "train", tests))
    same(rec, Recording(from_phy(phy, tmp_path/"phy.h5", movie, **rig(valid={"unit11": (0, died)}))))
    assert row(rec, tmp_path/"run")[0].cc_norm > .5
    some = Recording(from_nwb(path, tmp_path/"some.h5", "train", tests, units=[40], valid=None))
    assert some.cell_names == ["unit40"]
    for given, says in ((dict(stimulus="film"), "found test0, test1"), (dict(units=[3]), "found 3"), (dict(intervals="trials", series="train"), "found none"), (dict(intervals="trials"), "one of test0"),
                        (dict(test_stimulus=["test0", "train"]), "one length")):
        with pytest.raises(InputError, match=says): from_nwb(path, tmp_path/"bad.h5", **{**dict(stimulus="train", test_stimulus=tests), **given})
    with pytest.raises(InputError, match="expected an NWB file"): from_nwb(tmp_path/"nwb.h5", tmp_path/"bad.h5", "train")
    with pytest.raises(InputError, match="from_nwb"): Recording(path)


@pytest.mark.parametrize("table", ["trials", "epochs", "movies"])
def test_from_nwb_with_intervals(phy, tmp_path, table):
    nwb = with_units(new_nwb())
    nwb.add_stimulus(images("all", np.concatenate([movie, *[test_movie]*4]), np.concatenate(shown)))
    rows = [dict(start_time=x[0], stop_time=x[-1] + 1/hz) for x in shown]
    names = ["film", *["clip"]*4]
    if table == "epochs":
        for one, name in zip(rows, names): nwb.add_epoch(**one, tags=[name])
    elif table == "trials":
        nwb.add_trial_column(name="stimulus", description="which")
        for one, name in zip(rows, names): nwb.add_trial(**one, stimulus=name)
    else:
        mine = pynwb.epoch.TimeIntervals(name="movies", description="x")
        mine.add_column(name="stimulus", description="which")
        for one, name in zip(rows, names): mine.add_row(**one, stimulus=name)
        nwb.add_time_intervals(mine)
    path = save(nwb, tmp_path/"x.nwb")
    label = "tags" if table == "epochs" else "stimulus"
    same(Recording(from_nwb(path, tmp_path/"nwb.h5", "film", "clip", intervals=table, label=label)), Recording(from_phy(phy, tmp_path/"phy.h5", movie, **rig())))
    with pytest.raises(InputError, match="found clip, film"): from_nwb(path, tmp_path/"bad.h5", "clips", intervals=table, label=label)


@pytest.mark.parametrize("ordered", [True, False])
def test_from_nwb_with_an_index(tmp_path, ordered):
    nwb = with_units(new_nwb())
    pool = [pynwb.image.GrayscaleImage(name=f"picture{i}", data=movie[i]) for i in range(12)]
    order = dict(order_of_images=pynwb.base.ImageReferences(name="order_of_images", data=pool)) if ordered else {}
    pictures = pynwb.base.Images(name="pictures", images=pool, **order)
    nwb.add_stimulus_template(pictures)
    index = rng.integers(0, 12, n_train)
    nwb.add_stimulus(pynwb.image.IndexSeries(name="shown", data=index.astype(np.uint32), unit="N/A", indexed_images=pictures, timestamps=shown[0]))
    path = save(nwb, tmp_path/"x.nwb")
    if not ordered:    # the file would give them by name: 0, 1, 10, 11, 2
        with pytest.raises(InputError, match="order_of_images"): from_nwb(path, tmp_path/"x.h5", "shown")
        return
    rec = Recording(from_nwb(path, tmp_path/"x.h5", "shown"))
    by_frame = np.repeat(np.arange(n_train), np.bincount([100, 450], minlength=n_train) + 1)[:len(rec.train)]
    np.testing.assert_array_equal(rec.train.stimulus, movie[:12][index[by_frame]])


def test_traces_and_levels_from_nwb(tmp_path):
    levels = rng.integers(0, 256, 1500, dtype=np.uint8)
    times = 3 + np.arange(1500)/30
    nwb = new_nwb()
    nwb.add_stimulus(pynwb.TimeSeries(name="led", data=levels, unit="n.a.", rate=30., starting_time=3.))
    slow = np.arange(0, 60, .1)
    values = np.stack([np.interp(slow, times, lfilter([1], [1, -.8], levels - 128.)), np.sin(slow)], 1)
    device = nwb.create_device(name="scope")
    channel = pynwb.ophys.OpticalChannel(name="c", description="x", emission_lambda=500.)
    plane = nwb.create_imaging_plane(name="p", optical_channel=channel, imaging_rate=10., description="x", device=device, excitation_lambda=600.,
                                     indicator="GCaMP", location="retina")
    ophys = nwb.create_processing_module(name="ophys", description="x")
    rois = pynwb.ophys.ImageSegmentation()
    ophys.add(rois)
    segments = rois.create_plane_segmentation(name="s", description="x", imaging_plane=plane)
    for i in range(2): segments.add_roi(image_mask=np.ones((2, 2))*i)
    region = segments.create_roi_table_region(region=[0, 1], description="x")
    ophys.add(pynwb.ophys.DfOverF(roi_response_series=pynwb.ophys.RoiResponseSeries(name="dff", data=values, rois=region, unit="n.a.", timestamps=slow)))
    path = save(nwb, tmp_path/"x.nwb")
    rec = Recording(from_nwb(path, tmp_path/"x.h5", "led", traces="dff"), "trace")
    assert rec.cell_names == ["roi0", "roi1"] and rec.train.stimulus.shape[1:] == (1, 1) and rec.hz == 30
    np.testing.assert_allclose(rec.train.rates, traces_at_frames(values, slow, times[:len(rec.train)]).T, rtol=1e-4, atol=1e-4)
    assert np.isfinite(row(rec, tmp_path/"run")[0].test_corr)


# ---- counts, traces, no repeats

@pytest.fixture
def counted(tmp_path): return write_recording(tmp_path/"counts.h5", movie, counts=counts, test_stimulus=test_movie, test_counts=clip_counts, hz=hz)


def test_counts(counted, tmp_path):
    rec = Recording(counted)
    np.testing.assert_array_equal(rec.train.counts.T, counts)
    np.testing.assert_allclose(rec.train.rates, smooth(counts.T.astype(float), .01, hz), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rec.test.repeat_counts.transpose(0, 2, 1), clip_counts)
    with pytest.raises(InputError, match="spikes"): rec.spikes
    table, _ = row(rec, tmp_path/"run")
    assert table.cc_norm > .5 and table.bits_per_spike > 0


def test_counts_of_frames_that_stayed(tmp_path):
    path = write_recording(tmp_path/"x.h5", movie, counts=counts, frame_times=shown[0])
    rec = Recording(path, "binned")
    assert rec.blocks.tolist() == [0, 603]
    n = len(rec.train) - 10    # the end is held out
    first = np.append(0, np.cumsum(np.bincount([100, 450], minlength=n_train) + 1))
    frames = np.searchsorted(first, n) - 1
    np.testing.assert_array_equal(np.add.reduceat(rec.train.rates, first[:frames])[:-1].T, counts[:, :frames - 1])


def traces_of(frames, noise=.3):
    slow = lfilter([1], [1, -.8], drives(frames), axis=0)
    return ((slow + noise*rng.standard_normal(slow.shape))*[1, .01, 300] + [0, -5, 4000]).T    # of any unit and sign


@pytest.fixture
def graded(tmp_path):
    tests = np.stack([traces_of(test_movie) for _ in range(4)])
    path = write_recording(tmp_path/"ca.h5", movie, traces=traces_of(movie), test_stimulus=test_movie, test_traces=tests, hz=hz)
    return Recording(path, "trace")


@pytest.mark.parametrize("model, options", [("ln", {}), ("quadratic", {}), ("bncnn", dict(epochs=2, history=10)), ("adaptive", dict(epochs=2, settings=dict(core=8))), ("tcn", dict(epochs=1)),
                                            ("cnnbilstm", dict(epochs=1)), ("stacked", dict(epochs=1))])
def test_every_model_predicts_traces(graded, tmp_path, model, options):
    table, run = row(graded, tmp_path/"run", model, **options)
    assert run.config["response"] == "trace"
    assert np.isnan(table.bits_per_spike) and table.cc_max > .5 and np.isfinite([table.test_corr, table.cc_norm, table.feve]).all()
    if model in ("ln", "quadratic", "adaptive"): assert table.cc_norm > .6
    again = load_run(tmp_path/"run")
    assert isinstance(again.model.output, LinearOutput)
    rates = predict(again, test_movie)
    np.testing.assert_allclose(np.nanmean(rates, 0), graded.train.rates.mean(0), rtol=.2, atol=1)
    np.testing.assert_array_equal(rates, predict(run, test_movie))


def test_the_glm_says_that_it_cannot(graded, tmp_path):
    with pytest.raises(InputError, match="GLM: expected firing rates, found traces"): row(graded, tmp_path/"run", "glm")


def test_the_loss_of_traces_is_the_error_in_units_of_the_variance(graded, tmp_path):
    model = model_for(graded, "bncnn", 10, chans=[4, 4])
    run = fit(model, graded, tmp_path/"run", epochs=1, progress=False)
    assert .3 < run.history.valid_loss.min() < 1.5
    again = fit(BNCNN(**model.hyperparams), graded, tmp_path/"run", epochs=2, resume=True, progress=False)
    assert len(again.history) == 2 and np.isfinite(again.history.valid_loss).all()


def test_traces_are_asked_for(graded, counted):
    with pytest.raises(InputError, match="response='trace'"): Recording(graded.path)
    with pytest.raises(InputError, match="found binned"): Recording(counted, "trace")
    assert graded.unit == "trace" and graded.test.counts is None and graded.test.repeat_counts is None
    checks = cell_checks(graded)
    assert (checks.unsteady == "").all() and (checks.reliability > .5).all() and "spikes" not in checks


def test_traces_on_a_page(graded):
    fig = overview(graded)
    labels = [ax.get_ylabel() for part in fig.subfigs for ax in part.axes]
    assert labels.count("trace") == 2 and labels.count("trace, less its mean (sd)") == 3 and not any("Hz" in label for label in labels)
    plt.close(fig)


def test_traces_with_gaps(tmp_path):
    traces = traces_of(movie)
    traces[1, 300:500] = np.nan
    rec = Recording(write_recording(tmp_path/"x.h5", movie, traces=traces, hz=hz), "trace")
    assert np.isnan(rec.train.rates).sum() == 200
    for model in ("ln", "bncnn"): assert np.isfinite(row(rec, tmp_path/model, model, **({"epochs": 1} if model == "bncnn" else {}))[0].test_corr)


@pytest.mark.parametrize("kind", ["spikes", "counts", "traces"])
def test_no_repeats(tmp_path, kind):
    given = dict(spikes=spikes_of(counts, np.arange(n_train)/hz), counts=counts, traces=traces_of(movie))[kind]
    path = write_recording(tmp_path/"x.h5", movie, **{kind: given}, hz=hz, blocks=[0, 400, 800])
    rec = Recording(path, "trace" if kind == "traces" else "firing_rate_10ms")
    n = len(rec.test)
    assert n == n_train//3 and len(rec.train) == n_train - n - hz and len(rec.test.repeats) == 1
    np.testing.assert_array_equal(np.concatenate([rec.train.stimulus, rec.test.stimulus]), np.delete(movie, np.s_[n_train - n - hz:n_train - n], 0))
    assert rec.blocks.tolist() == [0, 400] and rec.test.blocks.tolist() == [0, 800 - (n_train - n)]
    if kind != "traces": np.testing.assert_array_equal(rec.test.counts.T, counts[:, -n:])
    table, run = row(rec, tmp_path/"run")
    assert np.isnan(table.cc_max) and table.test_corr > .2
    assert "shown once, so there is no ceiling" in " ".join(notes([run]))


@pytest.mark.parametrize("shape", [(), (8,)])
@pytest.mark.parametrize("model, options", [("ln", {}), ("bncnn", dict(epochs=1)), ("adaptive", dict(epochs=1, settings=dict(core=8)))])
def test_full_field_and_bars_as_they_come(tmp_path, shape, model, options):
    film = rng.integers(0, 256, (n_train, *shape), dtype=np.uint8)
    light = film.reshape(n_train, -1)[:, -1] - 128.
    rec = Recording(write_recording(tmp_path/"x.h5", film, counts=rng.poisson(np.exp(light/60))[None], hz=hz))
    assert rec.train.stimulus.shape[1:] == (1, *(shape or (1,)))
    table, _ = row(rec, tmp_path/"run", model, **options)
    assert np.isfinite(table.test_corr) and (model != "ln" or table.test_corr > .3)


def test_slow_movies_say_it_once(tmp_path, capsys):
    rec = Recording(write_recording(tmp_path/"x.h5", movie, counts=counts, hz=20))
    assert "a frame lasts 50 ms" in repr(rec) and "a frame lasts" not in repr(Recording(rec.path, "binned"))
    train_run(rec, "bncnn", tmp_path/"run", epochs=1)
    assert capsys.readouterr().out.count("a frame lasts 50 ms") == 1
    assert train_run(rec, "ln", tmp_path/"ln", progress=False).config["history"] == 8    # 0.4 s
    assert "a frame lasts" not in repr(Recording(write_recording(tmp_path/"fast.h5", movie, counts=counts, hz=60)))


# ---- what is written

def test_files_are_compact_and_read_by_others(counted):
    with h5py.File(counted) as f:    # as openretina's loader reads them, by name and whole
        train, test = f["/train/response/firing_rate_20ms"][()], f["/test/response/firing_rate_20ms"][()]
        assert train.shape == (3, n_train) and test.shape == (3, n_test) and train.dtype == np.float32
        assert f["/train/stimulus"][()].shape == movie.shape and f["train/time"].dtype == np.float64
    assert counted.stat().st_size < movie.nbytes + test_movie.nbytes + 8*4*3*n_train


def test_names_keep_their_order(tmp_path):
    names = ["OFF 9", "ON 10", "OFF 1"]
    rec = Recording(write_recording(tmp_path/"x.h5", movie, counts=counts, test_stimulus=test_movie, test_counts=clip_counts, hz=hz, cell_names=names))
    assert rec.cell_names == names
    np.testing.assert_array_equal(rec.test.repeat_counts.transpose(0, 2, 1), clip_counts)
    assert Recording(rec.path, cells="OFF 1").train.counts[:, 0].tolist() == counts[2].tolist()
    spikes = spikes_of(counts, np.arange(n_train)/hz)
    rec = Recording(write_recording(tmp_path/"y.h5", movie, spikes, hz=hz, cell_names=names))
    assert all(len(rec.spikes[name]) <= len(times) for name, times in zip(names, spikes))


@pytest.mark.parametrize("given, says", [
    (dict(stimulus=movie/255, counts=counts), "multiply by 255"), (dict(stimulus=movie.astype(float), counts=counts), "scale the pixels"),
    (dict(stimulus=movie > 9, counts=counts), "multiply by 255"), (dict(stimulus=(movie > 9).astype(int), counts=counts), "multiply by 255"),
    (dict(stimulus=list(movie), counts=counts), r"frame\[None\]"), (dict(stimulus=[0, 128, 255], counts=counts), "full-field"),
    (dict(), "expected one of spikes"), (dict(counts=counts, traces=counts), "found counts, traces"), (dict(counts=counts.T), "transpose"),
    (dict(counts=-counts - 1), "traces"), (dict(counts=counts, test_stimulus=test_movie), "test_counts"), (dict(counts=counts, test_counts=clip_counts), "test_stimulus"),
    (dict(counts=counts, test_stimulus=test_movie, test_counts=clip_counts[0]), "4 cells|3 cells"), (dict(counts=counts, test_blocks=[0]), "test_blocks"),
    (dict(counts=counts, test_stimulus=test_movie[:, :5], test_counts=clip_counts), "frames of"), (dict(counts=counts, cell_names=["a", "a", "b"]), "cell_names"),
    (dict(counts=counts, valid=[(0, 1)]), "for each of 3 cells"), (dict(counts=counts, valid={"cell02": (5, 1)}), "valid, cell02"),
    (dict(counts=counts, valid={"cell02": (500, 600)}), "found never for cell cell02"), (dict(counts=counts, frame_times=shown[1]), "as many frames"),
    (dict(counts=counts, test_stimulus=test_movie, test_counts=clip_counts, test_frame_times=shown[1:3]), "each of 4 repeats"),
    (dict(counts=counts, test_stimulus=test_movie, test_counts=clip_counts, test_frame_times=[x[:-1] for x in shown[1:]]), "as many frames")])
def test_mistakes_are_said_in_one_line(tmp_path, given, says):
    with pytest.raises(InputError, match=says) as e: write_recording(tmp_path/"x.h5", **{**dict(stimulus=movie, hz=hz), **given})
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def test_zeros_and_ones_are_not_silently_black(tmp_path):
    with pytest.warns(UserWarning, match="255"): write_recording(tmp_path/"x.h5", (movie > 99).astype(np.uint8), counts=counts, hz=hz)


def test_older_names_of_frame_times(tmp_path):
    a, b = (write_recording(tmp_path/f"{name}.h5", movie, counts=counts, **{name: shown[0]}) for name in ("time", "frame_times"))
    np.testing.assert_array_equal(Recording(a).train.rates, Recording(b).train.rates)
