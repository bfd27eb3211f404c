"Recordings from strangers, and from rigs on a bad day: a InputError in one line, or the right numbers"
import os
import resource
import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from retina_nb.data import (SMOOTHING_S, Frames, InputError, Recording, atomic_write, bin_spikes, read_interneurons, smooth,
                            split_frames, write_recording)
from retina_nb.eda import mean_rates, noise_correlation, overview, repeat_correlation, signal_correlation, spike_triggered_average
from retina_nb.simulation import simulate_recording

quick = settings(max_examples=40, deadline=None, derandomize=True)
N, N_TEST, CELLS, REPEATS = 400, 200, 3, 4


def data(seed=0, n=N, n_test=N_TEST, cells=CELLS, repeats=REPEATS, hz=100., size=(3, 4)):
    "What write_recording takes"
    rng = np.random.default_rng(seed)
    def movie(m): return rng.integers(0, 256, (m, *size), dtype=np.uint8)
    def spikes(m): return [np.sort(rng.uniform(0, m/hz, rng.integers(20, 60))) for _ in range(cells)]
    return dict(stimulus=movie(n), spikes=spikes(n), test_stimulus=movie(n_test), test_spikes=[spikes(n_test) for _ in range(repeats)], hz=hz)


@pytest.fixture
def path(tmp_path): return write_recording(tmp_path/"rec.h5", **data())


def edit(path, change):
    with h5py.File(path, "r+") as f: change(f)
    return path


def replace(f, name, x):
    del f[name]
    f[name] = x


def change_all(f, group, change):
    "Every dataset of a group, changed"
    for name in list(f[group]): replace(f, f"{group}/{name}", change(f[f"{group}/{name}"][:]))


def read_all(path, **options):
    rec = Recording(path, **options)
    return rec, rec.train.stimulus, rec.test.stimulus, rec.spikes, rec.test.repeat_counts, repr(rec)


def refused(path, says, **options):
    with pytest.raises(InputError, match=says) as e: read_all(path, **options)
    assert "\n" not in str(e.value) and path.name in str(e.value)


# ---- what is written is what is read

@quick
@given(st.integers(0, 999), st.integers(2, 300), st.integers(1, 100), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1., 7.8125, 30., 59.94, 100., 399.6]),
       st.tuples(st.integers(1, 9), st.integers(1, 9)), st.sampled_from(list(SMOOTHING_S)), st.booleans(), st.data())
def test_written_is_read(tmp_path_factory, seed, n, n_test, cells, repeats, hz, size, response, in_memory, draw):
    given = data(seed, n, n_test, cells, repeats, hz, size)
    blocks = sorted({0, *draw.draw(st.lists(st.integers(0, n - 1), max_size=5))})
    rec = Recording(write_recording(tmp_path_factory.mktemp("identity")/"x.h5", blocks=blocks, **given), response, in_memory=in_memory)
    np.testing.assert_array_equal(rec.train.stimulus, given["stimulus"])
    np.testing.assert_array_equal(rec.test.stimulus, given["test_stimulus"])
    counts = bin_spikes(given["spikes"], n, hz)
    test_counts = np.stack([bin_spikes(r, n_test, hz) for r in given["test_spikes"]], 1)
    np.testing.assert_array_equal(rec.train.counts, counts)
    np.testing.assert_allclose(rec.train.rates, smooth(counts, SMOOTHING_S[response], hz), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rec.test.rates, smooth(test_counts, SMOOTHING_S[response], hz).mean(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rec.test.repeats.swapaxes(0, 1), smooth(test_counts, .01, hz) if rec.test.unit != "binned" else test_counts, rtol=1e-5, atol=1e-5)
    for name, times in zip(rec.cell_names, given["spikes"]): np.testing.assert_array_equal(rec.spikes[name][:len(times)], times)
    assert abs(rec.hz/hz - 1) < 1e-3 and rec.test.hz == rec.hz and rec.blocks.tolist() == blocks and rec.test.blocks.tolist() == [0]


# ---- cells that are not perfect

def lose(f, part, cell, where):
    "A cell was not recorded there"
    for name in list(f[f"{part}/response"]):
        x = f[f"{part}/response/{name}"][:]
        x[cell, where] = np.nan
        replace(f, f"{part}/response/{name}", x)


def test_a_unit_lost_half_way(path):
    edit(path, lambda f: lose(f, "train", 1, slice(150, None)))
    rec, whole = Recording(path), Recording(write_recording(path.with_name("whole.h5"), **data()))
    assert np.isnan(rec.train.rates[150:, 1]).all() and np.isnan(rec.train.counts[150:, 1]).all()
    np.testing.assert_array_equal(rec.train.rates[:150], whole.train.rates[:150])
    np.testing.assert_array_equal(rec.train.rates[:, [0, 2]], whole.train.rates[:, [0, 2]])
    assert "not recorded of the training movie: cell02 62.5%" in repr(rec) and "not recorded" not in repr(whole)
    some = Recording(path, cells=[0, 2])
    assert not np.isnan(some.train.rates).any() and "not recorded" not in repr(some)
    np.testing.assert_allclose(mean_rates(rec)[0], [*whole.train.rates[:, :1].mean(0), whole.train.rates[:150, 1].mean(), *whole.train.rates[:, 2:].mean(0)], rtol=1e-5)


@pytest.mark.parametrize("where, says", [("train", "train/response.*NaN only in cell cell02"), ("test", "test/response.*NaN only in cell cell02")])
def test_a_unit_never_recorded(path, where, says):
    edit(path, lambda f: lose(f, where, 1, slice(None)))
    refused(path, says)
    assert read_all(path, cells=["cell01", "cell03"])[0].n_cells == 2


@pytest.mark.parametrize("value, says", [(np.inf, "finite.*cell cell02"), (-np.inf, "finite.*cell cell02"), (-1., "negative.*cell cell02"), (1e300, "finite.*cell cell02")])
@pytest.mark.parametrize("name", ["train/response/firing_rate_10ms", "test/response/firing_rate_10ms", "train/response/binned", "test/repeats/cell02"])
def test_bad_values_are_refused_by_name(path, name, value, says):
    def spoil(f): f[name][(0 if "repeats" in name else 1, 7)] = value
    edit(path, spoil)
    refused(path, f"{name.rpartition('/')[0]}.*{says}")
    assert read_all(path, cells=[0, 2])[0].n_cells == 2


def repeat_of(f, cell, repeats):
    "The repeats of a cell, and its responses as the mean of those"
    replace(f, f"test/repeats/cell{cell + 1:02d}", repeats)
    for name in list(f["test/response"]):
        if name != "firing_rate_10ms": del f[f"test/response/{name}"]
    x = f["test/response/firing_rate_10ms"][:]
    x[cell] = np.nanmean(repeats, 0)
    replace(f, "test/response/firing_rate_10ms", x)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_fewer_repeats_of_one_cell(path, kept):
    "NaN in place of those that it lacks, where the response is the mean of those that are there"
    edit(path, lambda f: repeat_of(f, 1, f["test/repeats/cell02"][:kept]))
    rec = Recording(path)
    assert rec.test.repeats.shape == (REPEATS, N_TEST, CELLS) and rec.test.unit == "firing_rate_10ms"
    assert np.isnan(rec.test.repeats[kept:, :, 1]).all() and not np.isnan(rec.test.repeats[:kept]).any() and not np.isnan(rec.test.repeats[:, :, [0, 2]]).any()
    counts = rec.test.repeat_counts
    assert np.isnan(counts[kept:, :, 1]).all() and not np.isnan(counts[:kept]).any()
    assert f"cell02 {1 - kept/REPEATS:.1%}" in repr(rec)
    assert repeat_correlation(rec.test.repeats).shape == (6, 3) and np.isfinite(signal_correlation(rec.test.repeats)).all()
    assert np.isfinite(noise_correlation(rec.test.repeats)[[0, 2]][:, [0, 2]]).all()
    overview(rec)


def test_fewer_repeats_than_the_response_has(path):
    edit(path, lambda f: replace(f, "test/repeats/cell02", f["test/repeats/cell02"][:3]))
    refused(path, "repeats whose mean is the recorded test/response, found others for cell cell02")
    assert read_all(path, cells=[0, 2])[0].test.repeats.shape == (REPEATS, N_TEST, 2)


@pytest.mark.parametrize("form", ["by cell", "by type"])
def test_a_repeat_that_was_cut_off(path, form):
    def cut(f):
        x = f["test/repeats/cell02"][:]
        x[3, 150:] = np.nan
        replace(f, "test/repeats/cell02", x)
        if form == "by cell": return
        by_type = np.stack([f[f"test/repeats/cell{i + 1:02d}"][:] for i in range(CELLS)], 1)
        del f["test/repeats"]
        f["test/repeats/firing_rate_10ms"] = by_type
    rec, whole = Recording(edit(path, cut)), Recording(write_recording(path.with_name("whole.h5"), **data()))
    assert np.isnan(rec.test.repeats[3, 150:, 1]).all() and np.isnan(rec.test.repeats).sum() == 50
    counts = rec.test.repeat_counts
    is_known = ~np.isnan(counts)
    assert is_known.sum() >= counts.size - 70
    np.testing.assert_array_equal(counts[is_known], whole.test.repeat_counts[is_known])


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 0, 1], [0, 2, 1]])
@pytest.mark.parametrize("names", [["cell01", "cell02", "cell03"], ["a", "b", "c"], ["x9", "y2", "z5"], ["unit 1", "unit 10", "unit 2"], ["3", "1", "2"]])
def test_a_wrong_pairing_is_impossible(path, order, names):
    "Repeats in another order than the responses are refused, whatever the cells are called"
    with h5py.File(path, "r+") as f:
        repeats = [f[f"test/repeats/cell{i + 1:02d}"][:] for i in range(CELLS)]
        del f["test/repeats"]
        for i, name in zip(order, names): f[f"test/repeats/{name}"] = repeats[i]
    try: rec = Recording(path)
    except InputError as e: assert "found others for cell" in str(e)
    else: np.testing.assert_allclose(rec.test.repeats.mean(0), rec.test.rates, atol=1e-3)
    by_type = path.with_name("by_type.h5")
    write_recording(by_type, **data())
    with h5py.File(by_type, "r+") as f:
        del f["test/repeats"]
        f["test/repeats/firing_rate_10ms"] = np.stack([repeats[i] for i in order], 1)
    refused(by_type, "found others for cell")


def test_splits_and_frames_with_gaps(path):
    edit(path, lambda f: [lose(f, "train", cell, slice(100, 200)) for cell in range(CELLS)])
    rec = Recording(path)
    for scheme in ("blocked", "stratified", "random"):
        split = np.concatenate(split_frames(rec.train, scheme, (.5, .5), history=3))
        assert not ((split >= 100) & (split < 200)).any() and len(split)
    assert np.isfinite(spike_triggered_average(rec.train, 4)).all() and Frames(rec.train, history=3).rates.isnan().any()


# ---- a file reads only itself

def elsewhere(path):
    other = path.with_name("other.h5")
    shutil.copy(path, other)
    return other


datasets = ["train/stimulus", "test/stimulus", "train/time", "train/response/firing_rate_10ms", "test/response/firing_rate_10ms", "train/response/binned", "test/repeats/cell02", "spikes/cell02"]
everywhere = pytest.mark.parametrize("name", datasets)


@pytest.mark.parametrize("name", [*datasets, "train", "test", "train/response", "test/repeats", "spikes"])
@pytest.mark.parametrize("way", ["link", "soft link to a link"])
def test_external_links(path, name, way):
    other = elsewhere(path)
    def link(f):
        del f[name]
        if way == "link": f[name] = h5py.ExternalLink(other.name, name)
        else: f["away"], f[name] = h5py.ExternalLink(other.name, name), h5py.SoftLink("/away")
    edit(path, link)
    refused(path, f"{name}.*leads to 'other.h5'")
    assert read_all(path, external=True)[0].n_cells == CELLS
    assert read_all(path, external=True, in_memory=False)[0].n_cells == CELLS
    other.unlink()
    with pytest.raises(InputError): read_all(path, external=True)


@everywhere
def test_external_raw_data(path, name, tmp_path):
    "A file of the system can't be shown as a movie or a response"
    def point(f):
        x = f[name]
        shape, dtype = x.shape, x.dtype
        (tmp_path/"secret.txt").write_bytes(x[:].tobytes())
        del f[name]
        f.create_dataset(name, shape, dtype, external=[(str(tmp_path/"secret.txt"), 0, h5py.h5f.UNLIMITED)])
    edit(path, point)
    refused(path, f"{name}.*leads to '.*secret.txt'")
    assert read_all(path, external=True)[0].n_cells == CELLS


@everywhere
@pytest.mark.parametrize("where", ["outside", "inside", "a part of it", "a missing file"])
def test_virtual_datasets(path, name, where):
    other = elsewhere(path)
    def virtual(f):
        x = f[name]
        shape, dtype = x.shape, x.dtype
        f.move(name, "kept")
        layout = h5py.VirtualLayout(shape, dtype)
        source = h5py.VirtualSource({"outside": other.name, "a missing file": "gone.h5"}.get(where, path.name), name if where == "outside" else "kept", shape)
        if where in ("inside", "a part of it"): source = h5py.VirtualSource(".", "kept", shape)
        half = shape[0]//2 if where == "a part of it" else shape[0]
        if half: layout[:half] = source[:half]
        f.create_virtual_dataset(name, layout)
    edit(path, virtual)
    if where == "inside": assert read_all(path)[0].n_cells == CELLS
    elif where == "a part of it": refused(path, f"{name}.*all of it was written")
    else:
        refused(path, f"{name}.*leads to '")
        if where == "outside": assert read_all(path, external=True)[0].n_cells == CELLS
        else: refused(path, "no such file", external=True)


@everywhere
@pytest.mark.parametrize("chunks", [None, True])
def test_declared_and_never_written(path, name, chunks):
    "Is not silence"
    def declare(f):
        shape, dtype = f[name].shape, f[name].dtype
        del f[name]
        f.create_dataset(name, shape, dtype, chunks=chunks)
    edit(path, declare)
    refused(path, f"{name}: expected that all of it was written")


@everywhere
def test_half_written(path, name):
    def half(f):
        x = f[name][:]
        del f[name]
        chunks = (1, 50) if "response" in name or "repeats" in name else (10, *x.shape[1:])
        d = f.create_dataset(name, x.shape, x.dtype, chunks=chunks)
        d[:len(x)//2 or 1] = x[:len(x)//2 or 1]
    edit(path, half)
    refused(path, f"{name}: expected that all of it was written, found .* pieces")


@pytest.mark.parametrize("name", ["train/stimulus", "train/time", "test/repeats/cell01", "train/response/binned", "spikes/cell01"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_declared_shape_takes_no_memory(path, name, chunked):
    def declare(f):
        shape = tuple(10**12 if n in (N, N_TEST) or len(f[name].shape) == 1 else n for n in f[name].shape)
        dtype = f[name].dtype
        del f[name]
        f.create_dataset(name, shape, dtype, chunks=tuple(min(n, 1000) for n in shape) if chunked else None)
    edit(path, declare)
    refused(path, name)


def test_interneurons_from_elsewhere(path):
    with h5py.File(path.with_name("bipolars.h5"), "w") as f: f["boxes"] = h5py.ExternalLink("other.h5", "/train")
    with pytest.raises(InputError, match="leads to 'other.h5'"): read_interneurons(path.with_name("bipolars.h5"))


def test_links_in_a_circle(path):
    def circle(f):
        del f["train/time"]
        f["train/time"], f["a"], f["b"] = h5py.SoftLink("/a"), h5py.SoftLink("/b"), h5py.SoftLink("/a")
    edit(path, circle)
    refused(path, "train/time: .*leads nowhere")


def test_links_inside_are_followed(path):
    def link(f):
        f.move("train/response/firing_rate_10ms", "train/response/best")
        f["train/response/firing_rate_10ms"] = h5py.SoftLink("best")
        f.move("test/repeats", "kept")
        f["test/repeats"] = h5py.SoftLink("/kept")
        f["train/time"].parent.move("time", "t")
        f["train/time"] = f["train/t"]
    edit(path, link)
    assert read_all(path)[0].test.repeats.shape == (REPEATS, N_TEST, CELLS)


# ---- saved by MATLAB

@pytest.mark.parametrize("flip", [lambda x: x[None], lambda x: x[:, None]])
def test_vectors(path, flip):
    def as_matlab(f):
        change_all(f, "spikes", flip)
        for part in ("train", "test"): replace(f, f"{part}/time", flip(f[f"{part}/time"][:]))
    before = Recording(path).spikes
    rec = Recording(edit(path, as_matlab))
    for name in before: np.testing.assert_array_equal(rec.spikes[name], before[name])


@pytest.mark.parametrize("what", ["everything", "movies", "responses", "repeats", "test movie", "one repeat"])
def test_reversed_axes_are_called_so(path, what):
    def turn(f):
        if what in ("everything", "movies"): replace(f, "train/stimulus", f["train/stimulus"][:].T)
        if what in ("everything", "movies", "test movie"): replace(f, "test/stimulus", f["test/stimulus"][:].T)
        if what in ("everything", "responses"): [change_all(f, f"{part}/response", np.transpose) for part in ("train", "test")]
        if what in ("everything", "repeats"): change_all(f, "test/repeats", np.transpose)
        if what == "one repeat": replace(f, "test/repeats/cell02", f["test/repeats/cell02"][:].T)
    edit(path, turn)
    refused(path, "(time|repeats).*reversed.*MATLAB.*transpose")


def test_cell_arrays(path):
    def references(f):
        refs = [f.create_dataset(f"#refs#/{i}", data=f[f"spikes/cell{i + 1:02d}"][:][None]).ref for i in range(CELLS)]
        del f["spikes"]
        f.create_dataset("spikes", (1, 3), h5py.ref_dtype)[0] = refs
    rec = Recording(edit(path, references))
    with pytest.raises(InputError, match="MATLAB cell array"): rec.spikes


# ---- paths

odd_names = ["a b.h5", "what?.h5", "50%20.h5", "a%d.h5", "x::y.h5", "file:x.h5", "s3:x.h5", "~x.h5", "-x.h5", "#.h5", "naïve é 網膜.h5", "x"*252 + ".h5", "é"*126 + ".h5", "[0].h5", "a;b&c.h5", "\udce9.h5", "a\tb.h5", " .h5"]


@pytest.mark.parametrize("name", odd_names)
def test_odd_names(tmp_path, name, monkeypatch):
    "Written, found again by an absolute and a relative path, and after the working directory has changed"
    monkeypatch.chdir(tmp_path)
    given = name if not name.startswith("~") else f"./{name}"
    path = write_recording(given, **data())
    assert path == tmp_path/name and [p.name for p in tmp_path.iterdir()] == [name]
    rec = Recording(given, in_memory=False)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(rec.train.stimulus, read_all(path)[1])
    assert len(rec.spikes) == CELLS and rec.path == path


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path/"home"))
    monkeypatch.chdir(tmp_path)
    assert write_recording("~/deep/x.h5", **data()) == tmp_path/"home/deep/x.h5"
    assert Recording("~/deep/x.h5").path == tmp_path/"home/deep/x.h5" and Recording(b"home/deep/x.h5").n_cells == CELLS
    assert simulate_recording("~/sim.h5", seconds=1, test_seconds=1, cells=1, repeats=1) == tmp_path/"home/sim.h5"
    assert not (tmp_path/"~").exists()


@pytest.mark.parametrize("given", [None, 3, 1.5, [], "a\0b", "~nobody_of_that_name/x.h5", b"a\0b"])
def test_no_paths(given):
    for use in (Recording, read_interneurons, lambda p: write_recording(p, **data()), lambda p: atomic_write(p).__enter__()):
        with pytest.raises(InputError, match="expected"): use(given)


def test_places_that_hold_no_recording(path, tmp_path):
    os.mkfifo(tmp_path/"pipe")
    for place in ("/dev/null", "/dev/zero", "/proc/self/mem", "/proc/self/maps", "/proc", tmp_path, tmp_path/"pipe", path/"below", tmp_path/("y"*300), "", "/dev/stdin", tmp_path/"gone"/"x.h5"):
        with pytest.raises(InputError) as e: Recording(place)
        assert "\n" not in str(e.value)


def test_places_that_cannot_be_written(path, tmp_path):
    os.mkfifo(tmp_path/"pipe")
    before = sorted(p.name for p in tmp_path.iterdir())
    for place in (path/"below.h5", "/proc/x.h5", tmp_path/("y"*300), tmp_path, "/dev/null", tmp_path/"pipe", "/proc/self/x/y.h5"):
        with pytest.raises((InputError, OSError)) as e: write_recording(place, **data())
        assert isinstance(e.value, InputError) or Path(e.value.filename) == Path(place) or Path(place) in (tmp_path, tmp_path/("y"*300)), e.value
    assert sorted(p.name for p in tmp_path.iterdir()) == before and Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_folder_that_is_read_only(tmp_path):
    (tmp_path/"locked").mkdir(mode=0o500)
    with pytest.raises(PermissionError): write_recording(tmp_path/"locked"/"x.h5", **data())


def test_a_link_is_written_through(path, tmp_path):
    (tmp_path/"link.h5").symlink_to(path)
    write_recording(tmp_path/"link.h5", **data(1))
    assert (tmp_path/"link.h5").is_symlink() and not path.is_symlink()
    np.testing.assert_array_equal(Recording(path).train.stimulus, data(1)["stimulus"])


def test_messages_can_be_printed():
    "A path in an old encoding, a name with control characters"
    message = str(InputError("caf\udce9.h5: bad\a\x1b[31m"))
    assert message.encode() and message.isprintable()


# ---- a full disk

@pytest.mark.parametrize("limit", [0, 100, 800, 2000, 5000, 20_000, 60_000])
def test_full_disk(tmp_path, limit):
    "An OSError that names the file, in a process that lives on, and nothing left; in a child, as the limit can't be lifted"
    given = data(n=4000)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try: write_recording(tmp_path/"x.h5", **given)
        except OSError as e: os._exit(0 if e.filename == str(tmp_path/"x.h5") and not isinstance(e, InputError) else 3)
        except BaseException: os._exit(4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and not list(tmp_path.iterdir())


def test_a_full_disk_ends_a_long_movie_early(tmp_path):
    shown = []
    def pieces():
        for i in range(1000):
            shown.append(i)
            yield np.random.default_rng(i).integers(0, 256, (100, 30, 30), dtype=np.uint8)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try: write_recording(tmp_path/"x.h5", **data() | dict(stimulus=pieces()))
        except OSError: os._exit(0 if len(shown) < 100 else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and not list(tmp_path.iterdir())


# ---- damage of every kind, at random

def metadata_bytes(path):
    "Places in a file that hold no data of a dataset"
    is_data = np.zeros(path.stat().st_size, bool)
    def mark(name, x):
        if not isinstance(x, h5py.Dataset): return
        if x.chunks is None and x.id.get_offset() is not None: is_data[x.id.get_offset():x.id.get_offset() + x.id.get_storage_size()] = True
        elif x.chunks is not None:
            for i in range(x.id.get_num_chunks()):
                info = x.id.get_chunk_info(i)
                is_data[info.byte_offset:info.byte_offset + info.size] = True
    with h5py.File(path) as f: f.visititems(mark)
    return np.flatnonzero(~is_data)


def some(rng, f): return datasets[rng.integers(len(datasets))]


def with_values(change):
    "An edit of some dataset's values"
    def apply(rng, f):
        name = some(rng, f)
        replace(f, name, change(rng, f[name][:]))
    return apply


def spots(rng, x, value):
    if x.dtype == np.uint8: return x
    flat = x.astype(float).ravel()
    start = rng.integers(len(flat))
    flat[start:start + rng.integers(1, 50)] = value
    return flat.reshape(x.shape)


edits = [
    with_values(lambda rng, x: spots(rng, x, np.nan)), with_values(lambda rng, x: spots(rng, x, np.inf)), with_values(lambda rng, x: spots(rng, x, -3)),
    with_values(lambda rng, x: x.T), with_values(lambda rng, x: x[::-1]), with_values(lambda rng, x: rng.permutation(x, -1)), with_values(lambda rng, x: rng.permutation(x)),
    with_values(lambda rng, x: x[:len(x) - rng.integers(1, 4)]), with_values(lambda rng, x: x[..., :x.shape[-1] - rng.integers(1, 4)]), with_values(lambda rng, x: np.concatenate([x, x])),
    with_values(lambda rng, x: x*rng.choice([2., 1e3, 1e-3, 3e4])), with_values(lambda rng, x: x.astype(rng.choice(["f2", "i1", "S3", "c8", "u2", "?"]))), with_values(lambda rng, x: x[None]),
    with_values(lambda rng, x: np.zeros_like(x)), lambda rng, f: f.__delitem__(some(rng, f)), lambda rng, f: f.move(some(rng, f), "elsewhere"),
    lambda rng, f: f["train"].attrs.__setitem__("blocks", rng.integers(-1, 500, 3)), lambda rng, f: f["test"].attrs.__setitem__("blocks", np.append(0, rng.integers(1, 260, 2)))]


def check_right(path, rec):
    "Every number is the file's, independently read"
    with h5py.File(path) as f:
        for name, part in (("train", rec.train), ("test", rec.test)):
            n = len(part)
            np.testing.assert_array_equal(part.stimulus, f[f"{name}/stimulus"][:n])
            stored = f[f"{name}/response/{rec.response}"][:, :n].T.astype(np.float32)
            np.testing.assert_array_equal(part.rates, np.maximum(stored, 0))
            assert part.stimulus.shape[0] == n and not np.isinf(part.rates).any()
            assert abs(part.hz/100 - 1) < .02 or f"{name}/time" in f
        complete = ~np.isnan(rec.test.repeats).any((0, 1)) & ~np.isnan(rec.test.rates).any(0)
        repeats = rec.test.repeats[:, :, complete]
        if rec.test.unit == rec.response: np.testing.assert_allclose(repeats.mean(0), rec.test.rates[:, complete], atol=1e-2*max(1, np.nanmax(rec.test.rates)))


def same(one, other):
    "Two readings are equal in every number"
    for a, b in ((one.train, other.train), (one.test, other.test)):
        for name in ("stimulus", "rates", "counts", "blocks"): np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert a.hz == b.hz
    np.testing.assert_array_equal(one.test.repeats, other.test.repeats)
    for name in one.spikes: np.testing.assert_array_equal(one.spikes[name], other.spikes[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_200_damaged_recordings(tmp_path):
    good = write_recording(tmp_path/"good.h5", **data(), blocks=[0, 130])
    whole, places, clean = good.read_bytes(), metadata_bytes(good), Recording(good)
    outcomes = {"explained": 0, "right": 0}
    for seed in range(200):
        rng, path = np.random.default_rng(seed), tmp_path/"damaged.h5"
        flips = seed % 2
        if flips:
            damaged = bytearray(whole)
            for at in rng.choice(places, rng.integers(1, 4)): damaged[at] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
        else:
            shutil.copy(good, path)
            edit(path, lambda f: edits[seed//2 % len(edits)](rng, f))
        try: rec = read_all(path)[0]
        except InputError as e:
            assert "\n" not in str(e) and path.name in str(e), (seed, e)
            outcomes["explained"] += 1
            continue
        try: same(rec, clean) if flips else check_right(path, rec)
        except AssertionError as e: raise AssertionError(f"seed {seed}: {e}") from e
        outcomes["right"] += 1
    assert min(outcomes.values()) > 20, outcomes
