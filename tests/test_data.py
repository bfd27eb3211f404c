"What the data notebook can't show in a cell: every layout, damage of every kind, memory, splits and batches for any input, fetching"
import http.server
import importlib
import inspect
import operator
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from forks import console_script, start, surroundings
from hypothesis import given, settings, strategies as st
from scipy.ndimage import gaussian_filter1d

import retina_nb.data
from retina_nb.data import (SMOOTHING_S, Frames, InputError, Part, Recording, full_history, guard_frames, read_interneurons, renamed,
                            split_frames, well_isolated, write_recording)

quick = settings(max_examples=60, deadline=None, derandomize=True)


# ---- names of before

@pytest.mark.parametrize("before", renamed)
def test_name_of_before(before):
    "Every old name gives what the new one gives, and says its new place"
    module, name = before.split(".")
    new_module, new_name = renamed[before].split(":")
    old, new = importlib.import_module(f"retina_nb.{module}"), importlib.import_module(f"retina_nb.{new_module}")
    assert name not in vars(old)
    with pytest.warns(DeprecationWarning, match=rf"^retina_nb\.{before} is now retina_nb\.{new_module}\.{re.escape(new_name)}; the old name goes with version 0\.3$") as said:
        assert getattr(old, name) is operator.attrgetter(new_name)(new)
    assert [w.filename for w in said] == [__file__]


@pytest.mark.filterwarnings("error")
def test_unknown_names_are_unknown():
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"): exec("from retina_nb.data import nonsense", {})
    with pytest.raises(AttributeError, match="^module 'retina_nb.data' has no attribute 'nonsense'$"): retina_nb.data.nonsense
    assert not hasattr(retina_nb.data, "__path__") and getattr(retina_nb.data, "nonsense", 3) == 3


def test_import_of_a_name_of_before():
    with pytest.warns(DeprecationWarning, match="retina_nb.data.Problem is now retina_nb.data.InputError"): from retina_nb.data import Problem
    assert Problem is InputError
    old_pickle = pickle.dumps(InputError("x: expected 1, found 2"), 0).replace(b"inputs\nInputError", b"data\nProblem")
    with pytest.warns(DeprecationWarning): assert str(pickle.loads(old_pickle)) == "x: expected 1, found 2"


@pytest.mark.filterwarnings("error")
def test_what_looks_through_modules_meets_no_old_name():
    names = {}
    exec("from retina_nb.data import *", names)
    assert names["InputError"] is InputError and "Problem" not in names and "Problem" not in dir(retina_nb.data)
    assert pickle.loads(pickle.dumps(InputError)) is InputError
    assert dict(inspect.getmembers(retina_nb.data))["Recording"] is Recording and inspect.getmodule(Recording) is retina_nb.data


def test_a_moved_name_imports_its_module_on_demand(tmp_path, monkeypatch):
    "So a chapter may refer to a later one that imports it"
    (tmp_path/"pack").mkdir()
    (tmp_path/"pack"/"__init__.py").touch()
    (tmp_path/"pack"/"early.py").write_text("from retina_nb.data import old_names\n__getattr__ = old_names(__name__)\n")
    (tmp_path/"pack"/"late.py").write_text("from . import early\nthing = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(renamed, "early.stuff", "late:thing")
    early = importlib.import_module("pack.early")
    assert "pack.late" not in sys.modules
    with pytest.warns(DeprecationWarning, match="pack.early.stuff is now pack.late.thing"): assert early.stuff == 3


# ---- every published layout

def test_layout(session):
    rec = Recording(session)
    with h5py.File(session) as f:
        stimulus, test_stimulus = f["train/stimulus"][:], f["test/stimulus"][:]
        by_type = "firing_rate_10ms" in f["test/repeats"]
        repeats = f["test/repeats/firing_rate_10ms"][:] if by_type else np.stack([f[f"test/repeats/cell{i + 1:02d}"][:] for i in range(rec.n_cells)], 1)
        spikes = {k: x[:] for k, x in f["train/spikes" if "train/spikes" in f else "spikes"].items()}
        longer = f["test/response/binned"].shape[1] - len(test_stimulus)
    n_cells, session_name = {"15-10-07": 9, "15-11-21a": 14, "15-11-21b": 27}[session.parent.name], session.parent.name
    assert rec.session == session_name and rec.n_cells == n_cells and rec.hz == 100 and longer == (session_name == "15-10-07")
    assert rec.cell_names == [f"cell{i + 1:02d}" for i in range(n_cells)]
    assert rec.blocks.tolist() == [i*2500//6 for i in range(6)] and rec.test.blocks.tolist() == [0]
    for ours, there in ((rec.train.stimulus, stimulus), (rec.test.stimulus, test_stimulus)):
        assert ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, there)
    np.testing.assert_allclose(rec.test.repeats, repeats.transpose(0, 2, 1)[:, :500], rtol=1e-6)
    assert rec.test.repeats.shape == (6 if "whitenoise" in session.name else 5, 500, n_cells) and rec.test.unit == "firing_rate_10ms"
    assert rec.train.repeats is None and rec.train.truth is None
    assert rec.spikes.keys() == spikes.keys()
    for name in spikes: np.testing.assert_array_equal(rec.spikes[name], spikes[name])
    counts = np.stack([np.histogram(rec.spikes[c], np.arange(2501)/100)[0] for c in rec.cell_names], 1)
    np.testing.assert_array_equal(rec.train.counts, counts)


@pytest.mark.parametrize("response", SMOOTHING_S)
def test_every_response(session, response):
    rec = Recording(session, response=response)
    with h5py.File(session) as f:
        for name, part, n in (("train", rec.train, 2500), ("test", rec.test, 500)):
            assert part.rates.dtype == np.float32 and part.rates.shape == (n, rec.n_cells) and part.response == response
            np.testing.assert_allclose(part.rates, f[f"{name}/response/{response}"][:].T[:n], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(part.counts, f[f"{name}/response/binned"][:].T[:n], rtol=1e-6)
    width = {"binned": 0, "firing_rate_5ms": .5, "firing_rate_10ms": 1, "firing_rate_20ms": 2}[response]  # frames
    if width: np.testing.assert_allclose(rec.train.rates, gaussian_filter1d(rec.train.counts*100., width, axis=0, mode="constant"), atol=1e-3)


def test_some_cells(session):
    every, names = Recording(session), ["cell07", "cell02"]
    for cells, index in ((names, [6, 1]), ([6, 1], [6, 1]), ([np.int64(3)], [3]), ("cell05", [4]), ("well-isolated", well_isolated[session.parent.name])):
        some = Recording(session, cells=cells)
        assert list(some.cells) == index and some.cell_names == [every.cell_names[i] for i in index] == list(some.spikes)
        for part, whole in ((some.train, every.train), (some.test, every.test)):
            np.testing.assert_array_equal(part.rates, whole.rates[:, index])
            np.testing.assert_array_equal(part.counts, whole.counts[:, index])
        np.testing.assert_array_equal(some.test.repeats, every.test.repeats[:, :, index])
    for cells in ([99], [-1], ["cell99"], [1, 1], [], [1.5], "nobody"):
        with pytest.raises(InputError, match="cells: expected"): Recording(session, cells=cells)


def test_blocks_can_be_given(session):
    assert Recording(session, blocks=[0, 700]).blocks.tolist() == [0, 700]
    for blocks in ([5], [0, 2500], [0, 0], [], "ab", [[0]], [0, np.nan], [0, 1.5], [0, 10**30]):
        with pytest.raises(InputError, match="blocks: expected the start frame"): Recording(session, blocks=blocks)


def test_clock_that_jumps_starts_a_block(small, tmp_path):
    with h5py.File(shutil.copy(small["by_cell"], tmp_path/"jump.h5"), "r+") as f: f["train/time"][100:] += 30
    assert Recording(tmp_path/"jump.h5").blocks.tolist() == [0, 100] and Recording(tmp_path/"jump.h5").hz == 100


def read_as_openretina_does(path, response):
    "What openretina's reader of this dataset asks of a file, in our words"
    with h5py.File(path) as f:
        train, test, stored = f[f"/train/response/{response}"][:], f[f"/test/response/{response}"][:], f["test/repeats"]
        if response in stored: trials = stored[response][:]
        else: trials = np.stack([stored[k][:] for k in sorted((k for k in stored if "cell" in k), key=lambda k: int(k.split("cell")[-1]))]).swapaxes(0, 1)
        return f["/train/stimulus"][:], f["/test/stimulus"][:], train, test, trials


@pytest.mark.parametrize("response", ["firing_rate_5ms", "firing_rate_10ms", "firing_rate_20ms"])
def test_openretina_can_read_it(session, response):
    train_movie, test_movie, train, test, trials = read_as_openretina_does(session, response)
    rec = Recording(session, response=response)
    assert train_movie.shape == (2500, 50, 50) and test_movie.shape == (500, 50, 50) and train_movie.dtype == np.uint8
    assert train.shape[0] == test.shape[0] == trials.shape[1] == rec.n_cells
    np.testing.assert_allclose(train.T, rec.train.rates, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(trials.swapaxes(1, 2)[:, :500], rec.test.repeats, rtol=1e-6)
    assert rec.test.unit == (response if session.parent.name == "15-11-21a" else "firing_rate_10ms")


@pytest.mark.parametrize("style", ["cell{:02d}", "cell{:d}"])
def test_cells_are_sorted_by_number(tmp_path, style):
    "cell100 comes after cell11, for us and for openretina"
    n, movie = 101, np.zeros((200, 2, 2), np.uint8)
    spikes = [np.full(i + 1, .5) for i in range(n)]  # a cell's number is its number of spikes
    path = write_recording(tmp_path/"many.h5", movie, spikes, test_stimulus=movie, test_spikes=[spikes, spikes])
    with h5py.File(path, "r+") as f:
        for group in (f["spikes"], f["test/repeats"]):
            for i in range(n):
                if style.format(i + 1) not in group: group.move(f"cell{i + 1:02d}", style.format(i + 1))
    rec = Recording(path)
    assert rec.cell_names == [style.format(i + 1) for i in range(n)]
    assert rec.train.counts.sum(0).tolist() == list(range(1, n + 1)) == [np.sum(s < 2) for s in rec.spikes.values()]
    np.testing.assert_allclose(rec.test.repeats.sum(1)/100, np.tile(np.arange(1, n + 1), (2, 1)), rtol=1e-4)
    trials = read_as_openretina_does(path, "firing_rate_10ms")[-1]
    np.testing.assert_allclose(trials.swapaxes(1, 2), rec.test.repeats, rtol=1e-6)


# ---- damage: a file loads, or a InputError says in one line which file and what

def read_all(path):
    "Everything that can be read of a recording"
    rec = Recording(path)
    return rec, repr(rec), rec.train.stimulus, rec.test.stimulus, rec.test.repeat_rates, rec.spikes


def one_line(problem, path): return "\n" not in str(problem) and str(path) in str(problem) and len(str(problem)) < 1000


def loads_or_explains(path):
    "Whether a file loads; every other exception than a InputError, and a InputError in many lines, is a failure"
    try: read_all(path)
    except InputError as e:
        assert one_line(e, path), str(e)
        return False
    return True


def edited(source, folder, edit):
    path = Path(shutil.copy(source, folder/"damaged.h5"))
    with h5py.File(path, "r+") as f: edit(f)
    return path


needed = ["train", "test", "train/stimulus", "test/stimulus", "train/response", "test/response", "train/response/firing_rate_10ms", "test/response/firing_rate_10ms",
          "test/repeats", "test/repeats/cell02", "test/repeats/firing_rate_10ms", "spikes", "spikes/cell02", "train/spikes", "train/spikes/cell02"]
checked = needed + ["train/time", "test/time", "train/response/binned", "test/response/binned", "test/response/firing_rate_20ms"]
forms = pytest.mark.parametrize("form", ["by_cell", "by_type"])


def there(path, names):
    with h5py.File(path) as f: return [n for n in names if n in f]


@forms
def test_something_is_missing(small, form, tmp_path):
    for name in there(small[form], checked):
        def gone(f): del f[name]
        assert loads_or_explains(edited(small[form], tmp_path, gone)) == (name not in needed or name.startswith("test/repeats/firing")), name  # other types take its place


@forms
def test_group_and_dataset_exchanged(small, form, tmp_path):
    for name in there(small[form], checked):
        def exchange(f):
            group = isinstance(f[name], h5py.Group)
            del f[name]
            if group: f[name] = np.zeros((3, 400))
            else: f.create_group(name)
        assert not loads_or_explains(edited(small[form], tmp_path, exchange)) or name not in needed, name


wrong_types = {
    "text": lambda f, x: x.astype("S8"),
    "texts": lambda f, x: np.full(x.shape, "one", dtype=object),
    "complex": lambda f, x: x.astype(complex),
    "compound": lambda f, x: np.zeros(x.shape, [("a", "f4"), ("b", "i2")]),
    "references": lambda f, x: np.full(x.shape, f["train"].ref, dtype=h5py.ref_dtype),
    "opaque": lambda f, x: np.zeros(x.shape, "V5"),
    "scalar": lambda f, x: x.flat[0],
    "nothing": lambda f, x: h5py.Empty("f8"),
    "no axis has length": lambda f, x: np.zeros((0,)*x.ndim, x.dtype),
    "one axis more": lambda f, x: x[None],
    "one axis less": lambda f, x: x.ravel() if x.ndim > 1 else x.sum(),
    "too short": lambda f, x: x[..., :-2] if x.dtype != "u1" else x[:-2],
    "too long": lambda f, x: np.concatenate([x, x], -1 if x.dtype != "u1" else 0),
}
wrong_numbers = {"NaN": np.nan, "infinite": np.inf, "negative": -1.}


@forms
@pytest.mark.parametrize("wrong", wrong_types)
def test_wrong_type_or_shape(small, form, wrong, tmp_path):
    harmless = [n for n in checked if "spikes" in n] if wrong in ("too short", "too long", "no axis has length", "one axis more") else []
    for name in there(small[form], checked):
        with h5py.File(small[form]) as f:
            if isinstance(f[name], h5py.Group): continue
        def replace(f):
            x = f[name][:]
            del f[name]
            f[name] = wrong_types[wrong](f, x)
        path = edited(small[form], tmp_path, replace)
        assert not loads_or_explains(path) or name not in needed or name in harmless, f"{name} as {wrong} loads"


@forms
@pytest.mark.parametrize("wrong", wrong_numbers)
def test_wrong_numbers(small, form, wrong, tmp_path):
    names = there(small[form], ["train/response/firing_rate_10ms", "test/response/firing_rate_10ms", "train/response/binned", "test/repeats/cell02",
                                "test/repeats/firing_rate_10ms", "train/time", "test/time", "spikes/cell02", "train/spikes/cell02"])
    for name in names:
        def one(f): f[name][(..., 7)] = wrong_numbers[wrong]
        path = edited(small[form], tmp_path, one)
        if loads_or_explains(path): assert wrong == "NaN" or "time" in name or "spikes" in name, f"{name} with a value that is {wrong} loads"
        else:
            with pytest.raises(InputError, match=name.rpartition("/")[0]): read_all(path)


def test_clock_that_stands_still(small, tmp_path):
    for value in (0., np.nan, np.inf, -1.):
        def stop(f): f["train/time"][:] = value*np.arange(400) if value == -1 else value
        with pytest.raises(InputError, match="train/time: expected 400 rising times"): Recording(edited(small["by_cell"], tmp_path, stop))


@pytest.mark.parametrize("blocks", [[5, 10], [0, 400], "abc", [0., np.nan], 3, [[0]], h5py.Empty("f8"), [b"a"], [1j]], ids=str)
def test_stored_blocks_are_wrong(small, tmp_path, blocks):
    def store(f): f["train"].attrs["blocks"] = blocks
    path = edited(small["by_cell"], tmp_path, store)
    with pytest.raises(InputError, match="attribute blocks of train") as e: Recording(path)
    assert one_line(e.value, path)


@forms
def test_cut_anywhere(small, form, tmp_path):
    whole, path = small[form].read_bytes(), tmp_path/"cut.h5"
    for n in {*range(0, 600, 7), *np.linspace(0, len(whole) - 1, 250).astype(int), len(whole) - 1}:
        path.write_bytes(whole[:n])
        assert not loads_or_explains(path), f"cut to {n} of {len(whole)} bytes loads"


@forms
def test_flipped_bytes(small, form, tmp_path):
    "Anywhere, and where the structure of the file is"
    whole, path, rng = small[form].read_bytes(), tmp_path/"flipped.h5", np.random.default_rng(0)
    structure = np.flatnonzero(~np.isin(np.arange(len(whole)), [i for i in range(len(whole)) if whole[i] == 0]))
    for i in range(150):
        damaged = bytearray(whole)
        for at in rng.choice(structure if i % 2 else len(whole), 1 + i % 5): damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        loads_or_explains(path)


def test_damaged_movie(session, tmp_path):
    "Damage of a compressed, checksummed movie is found when it is read"
    path = tmp_path/"movie.h5"
    with h5py.File(session) as f, h5py.File(path, "w") as g:
        for name in f:
            if name != "test": f.copy(name, g)
        f.copy("test", g)
        movie = g["test/stimulus"][:]
        del g["test/stimulus"]
        at = g.create_dataset("test/stimulus", data=movie, chunks=(100, 50, 50), fletcher32=True).id.get_chunk_info(2).byte_offset
    with open(path, "r+b") as f:
        f.seek(at + 1000)
        f.write(b"damage")
    rec = Recording(path)
    with pytest.raises(InputError, match="test/stimulus: .*damaged") as e: rec.test.stimulus
    assert one_line(e.value, path)


def test_not_a_recording(tmp_path):
    (tmp_path/"text.h5").write_text("spikes, spikes, spikes\n"*1000)
    (tmp_path/"empty.h5").touch()
    (tmp_path/"loop.h5").symlink_to(tmp_path/"loop.h5")
    with h5py.File(tmp_path/"other.h5", "w") as f: f["x"] = 1
    for name in ("text.h5", "empty.h5", "loop.h5", "other.h5", "missing.h5", "", "missing/folder.h5"):
        for read in (Recording, read_interneurons):
            with pytest.raises(InputError) as e: read(tmp_path/name)
            assert one_line(e.value, tmp_path/name)
    with h5py.File(tmp_path/"linked.h5", "w") as f: f["train"], f["test"] = h5py.ExternalLink("gone.h5", "/train"), h5py.SoftLink("/nowhere")
    assert not loads_or_explains(tmp_path/"linked.h5")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(small, tmp_path):
    path = Path(shutil.copy(small["by_cell"], tmp_path/"secret.h5"))
    path.chmod(0)
    with pytest.raises(InputError, match="ermission"): Recording(path)


def test_file_vanishes_after_opening(small, tmp_path):
    path = Path(shutil.copy(small["by_cell"], tmp_path/"gone.h5"))
    rec = Recording(path)
    path.unlink()
    for read in (lambda: rec.train.stimulus, lambda: rec.spikes):
        with pytest.raises(InputError, match="no such file"): read()


def test_a_failed_write_leaves_nothing(tmp_path):
    movie, spikes = np.zeros((100, 3, 3), np.uint8), [[.5]]
    def write(**changed): return write_recording(tmp_path/"x.h5", **{**dict(stimulus=movie, spikes=spikes, test_stimulus=movie, test_spikes=[spikes]), **changed})
    bad = [dict(stimulus=movie/255), dict(stimulus=movie[0]), dict(stimulus=movie[:0]), dict(stimulus=iter([])), dict(stimulus=[movie, movie[:, :2]]), dict(stimulus=3),
           dict(stimulus=[[1, 2]]), dict(spikes=[[-1]]), dict(spikes=[[np.nan]]), dict(spikes=[[np.inf]]), dict(spikes=[["a"]]), dict(spikes=[]), dict(spikes=[[9.]]),
           dict(spikes=3), dict(test_spikes=[]), dict(test_spikes=[spikes, []]), dict(test_spikes=[[[2.]]]), dict(hz=0), dict(hz=np.nan), dict(hz=-1), dict(blocks=[1]), dict(blocks=["a"])]
    for changed in bad:
        with pytest.raises(InputError) as e: write(**changed)
        assert "\n" not in str(e.value), changed
        assert not list(tmp_path.iterdir()), changed
    def stopped():
        yield movie
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write(stimulus=stopped())
    assert not list(tmp_path.iterdir())
    assert Recording(write()).train.counts.sum() == 1


# ---- interneurons

@pytest.fixture
def interneurons(tmp_path):
    with h5py.File(tmp_path/"bipolars_late_2012.h5", "w") as f:
        for name, shape in (("boxes", (90, 38, 38)), ("lines", (180, 100)), ("flashes", (222,))):
            f[f"{name}/stimuli"], f[f"{name}/time"] = np.random.default_rng(0).normal(size=shape), np.arange(shape[0])/100
            for key in ("membrane_potential", "detrended_membrane_potential"): f[f"{name}/{key}"] = np.arange(2*shape[0]).reshape(2, -1)*1.
        f["boxes/rfs/a"] = np.zeros((40, 38, 38))
        f["expts"] = [b"a", b"b"]
    return tmp_path/"bipolars_late_2012.h5"


def test_interneurons(interneurons):
    found = read_interneurons(interneurons)
    assert list(found) == ["boxes", "flashes", "lines"]
    for name, n in (("boxes", 90), ("lines", 180), ("flashes", 222)):
        assert found[name]["membrane_potential"].shape == (n, 2) and found[name]["cells"] == ["a", "b"] and len(found[name]["stimulus"]) == len(found[name]["time"]) == n
        np.testing.assert_array_equal(found[name]["detrended_membrane_potential"][:, 1], np.arange(n, 2*n))
    assert list(found["boxes"]["rfs"]) == ["a"] and "rfs" not in found["lines"]
    with pytest.raises(InputError, match="read_interneurons"): Recording(interneurons)


def test_interneurons_damaged(interneurons, tmp_path):
    names = ["boxes", "boxes/stimuli", "boxes/time", "boxes/membrane_potential", "boxes/rfs", "boxes/rfs/a", "expts"]
    for name in names:
        for new in (None, "group", np.zeros((2, 2, 2)), "text", h5py.Empty("f8"), 3):
            def change(f):
                del f[name]
                if isinstance(new, str) and new == "group": f.create_group(name)
                elif new is not None: f[name] = new
            path = edited(interneurons, tmp_path, change)
            try: read_interneurons(path)
            except InputError as e: assert one_line(e, path)
    whole, rng = interneurons.read_bytes(), np.random.default_rng(1)
    for i in range(100):
        damaged = bytearray(whole[:None if i % 2 else rng.integers(len(whole))])
        for at in rng.integers(0, min(len(damaged), 4000) or 1, 3 if damaged else 0): damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try: read_interneurons(path)
        except InputError as e: assert one_line(e, path)


# ---- splits and batches, for any input

@st.composite
def parts(draw, most=4000):
    n = draw(st.integers(1, most))
    blocks = sorted({0, *draw(st.lists(st.integers(0, n - 1), max_size=12))})
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return Part(rng.integers(0, 256, (n, 2, 3), dtype=np.uint8), rng.gamma(.2, 20, (n, 2)).astype(np.float32), blocks=blocks,
                hz=draw(st.sampled_from([20., 100., 399.6])), response=draw(st.sampled_from(list(SMOOTHING_S))))


shares = st.sampled_from([(.8, .1, .1), (.9, .1), (.5, .5), (.25,)*4, (.98, .01, .01), (1.,)])


@quick
@given(parts(), st.sampled_from(["blocked", "stratified", "random"]), shares, st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_split(part, scheme, fractions, history, seed):
    try: split = split_frames(part, scheme, fractions, history, seed)
    except InputError as e:
        assert "longer recording" in str(e) and "\n" not in str(e)
        assert len(part) < 30*guard_frames(part, history)*len(part.blocks) or min(fractions) < .05
        return
    usable, every = full_history(part, history), np.concatenate(split)
    assert len(split) == len(fractions) and all(s.dtype == np.int64 and len(s) and (np.diff(s) > 0).all() for s in split)
    assert len(np.unique(every)) == len(every) and np.isin(every, usable).all()
    for a, b in zip(split, split_frames(part, scheme, fractions, history, seed)): np.testing.assert_array_equal(a, b)
    if scheme == "blocked":
        owner = np.full(len(part), -1)
        for k, s in enumerate(split): owner[s] = k
        for a, b in zip(every_sorted := np.sort(every), every_sorted[1:]):
            if owner[a] != owner[b]: assert b - a > guard_frames(part, history)
    else:
        assert len(every) == len(usable)
        strata = 10 if scheme == "stratified" else 1
        for s, share in zip(split, fractions): assert abs(len(s) - share*len(usable)) <= strata


@quick
@given(st.integers(6000, 60_000), st.integers(1, 6), shares, st.integers(1, 40), st.integers(0, 99))
def test_blocked_split_of_a_minute_and_more(n, n_blocks, fractions, history, seed):
    "Shares of the frames come out about right, and most frames are used"
    part = Part(np.zeros((n, 1, 1), np.uint8), np.zeros((n, 1), np.float32), blocks=[i*n//n_blocks for i in range(n_blocks)])
    split = split_frames(part, "blocked", fractions, history, seed)
    used = sum(map(len, split))
    assert used > .5*n
    for s, share in zip(split, fractions): assert abs(len(s)/used - share) < .15


@pytest.mark.parametrize("scheme", ["blocked", "stratified", "random"])
@pytest.mark.parametrize("fractions", [(.8, .1), (.5, .6), (1.1, -.1), (0, 1), (), (np.nan, 1)])
def test_impossible_shares(scheme, fractions):
    part = Part(np.zeros((3000, 1, 1), np.uint8), np.zeros((3000, 1), np.float32))
    with pytest.raises(InputError, match="fractions: expected"): split_frames(part, scheme, fractions)


@quick
@given(parts(most=300), st.integers(1, 30), st.data())
def test_frames_are_the_naive_windows(part, history, data):
    usable = full_history(part, history)
    naive_usable = [t for t in range(len(part)) if t - history + 1 >= max(b for b in part.blocks if b <= t)]
    assert usable.tolist() == naive_usable
    index = None if data.draw(st.booleans()) else np.array(data.draw(st.lists(st.integers(0, len(part) - 1), max_size=20)), int)
    wanted = naive_usable if index is None else [t for t in index if t in naive_usable]
    if not wanted:
        with pytest.raises(InputError, match="index: expected frames with"): Frames(part, index, history)
        return
    frames = Frames(part, index, history, scale=data.draw(st.sampled_from(["unit", "raw", "zscore"])))
    assert frames.index.tolist() == wanted and len(frames) == len(wanted)
    items = data.draw(st.lists(st.integers(0, len(wanted) - 1), min_size=1, max_size=8))
    x, y = frames.__getitems__(items)
    naive = np.stack([part.stimulus[wanted[i] - history + 1:wanted[i] + 1] for i in items])
    assert x.dtype == torch.uint8 and y.dtype == torch.float32
    np.testing.assert_array_equal(x, naive)
    np.testing.assert_array_equal(y, part.rates[[wanted[i] for i in items]])
    one_x, one_y = frames[items[0]]
    assert torch.equal(one_x, x[0]) and torch.equal(one_y, y[0])
    seen = part.stimulus[wanted].astype(float)
    scaled = {"unit": naive/255, "raw": naive*1., "zscore": (naive - seen.mean())/max(seen.std(), 1e-6)}[frames.scale.name]
    np.testing.assert_allclose(frames.scale(x), scaled, rtol=1e-4, atol=1e-4)


def test_frames_say_what_is_wrong():
    part = Part(np.zeros((50, 2, 2), np.uint8), np.zeros((50, 1), np.float32))
    for kwargs, says in ((dict(index=[50]), "0 to 49"), (dict(index=[-1]), "0 to 49"), (dict(scale="log"), "unit, zscore or raw"), (dict(history=51), "51 frames of history"), (dict(history=0), "history")):
        with pytest.raises(InputError, match=says): Frames(part, **kwargs)


# ---- memory

measure = '''
import sys
import torch
from retina_nb.data import Frames, Recording, split_frames
def first_batch(path):
    rec = Recording(path)
    x, y = Frames(rec.train, split_frames(rec.train)[0], history=40, scale="zscore").__getitems__(list(range(32)))
    return rec.train.stimulus.nbytes
first_batch(sys.argv[1])  # a small one, so that everything is loaded that costs memory by itself
def memory(key): return next(int(l.split()[1])*1024 for l in open("/proc/self/status") if l.startswith(key))  # bytes
now = memory("VmRSS")
size = first_batch(sys.argv[2])
print((memory("VmHWM") - now)/size)  # not ru_maxrss: a child process inherits that from its parent
'''


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory(tmp_path, sessions):
    "Opening a recording and making a first batch costs little more than the movie itself"
    n, rng = 30_000, np.random.default_rng(0)
    def pieces():
        piece = rng.integers(0, 256, (6000, 50, 50), dtype=np.uint8)
        for _ in range(n//6000): yield piece
    spikes = [np.sort(rng.uniform(0, 300, 1500)) for _ in range(9)]
    path = write_recording(tmp_path/"big.h5", pieces(), spikes, test_stimulus=np.zeros((600, 50, 50), np.uint8), test_spikes=[[[.5]]*9]*5)
    done = subprocess.run([sys.executable, "-c", measure, str(sessions["15-10-07", "naturalscene"]), str(path)], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.2


# ---- fetching

class Server(http.server.BaseHTTPRequestHandler):
    "Serves `files`; /cut/NAME breaks off half-way until `mended`"
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_GET(self):
        kind, _, name = self.path.strip("/").rpartition("/")
        self.server.asked.append(self.path)
        if name not in self.server.files: return self.send_error(404)
        body = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind == "cut" and not self.server.mended:
            self.wfile.write(body[:len(body)//2])
            self.wfile.flush()
            self.close_connection = True
        else: self.wfile.write(body)


def archive(*names, content=b"x"*100_000):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name in names: z.writestr(name, content)
    return data.getvalue()


published = [f"neural_code_data/ganglion_cell_data/{s}/{m}.h5" for s in ("15-10-07", "15-11-21a") for m in ("naturalscene", "whitenoise")]


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.mended, server.asked = False, []
    damaged = bytearray(archive(*published))
    damaged[5000] ^= 255
    server.files = {"data.zip": archive(*published), "not.zip": b"no archive"*1000, "damaged.zip": bytes(damaged)}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(tmp_path):
    "Run retina_fetch with some arguments: exit code, stdout, stderr"
    script = console_script(tmp_path.parent, "retina_fetch")
    def run(*args):
        process = start(script, *args, env=surroundings() | {"no_proxy": "127.0.0.1"})
        said = process.communicate()
        return process.returncode, *said
    return run


def files(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_fetch(server, fetch, tmp_path):
    code, out, err = fetch(tmp_path/"data", "--url", f"{server.url}/data.zip", "--only", "15-10-07/naturalscene.h5")
    assert code == 0, err
    assert out.splitlines() == [str(tmp_path/"data"/published[0])]
    assert files(tmp_path/"data") == ["data.zip", "data.zip.sha256", published[0]]
    assert (tmp_path/"data"/published[0]).read_bytes() == b"x"*100_000 and "100%" in err
    assert subprocess.run(["sha256sum", "-c", "data.zip.sha256"], cwd=tmp_path/"data", capture_output=True).returncode == 0 or not shutil.which("sha256sum")
    code, out, err = fetch(tmp_path/"data", "--url", f"{server.url}/data.zip")  # the rest, without another download
    assert code == 0 and len(out.splitlines()) == 4 and files(tmp_path/"data") == ["data.zip", "data.zip.sha256", *published]
    assert server.asked == ["/data.zip"]
    (tmp_path/"data/data.zip").write_bytes(b"damaged")  # not what the checksum says: again
    (tmp_path/"data"/published[1]).write_bytes(b"half")
    assert fetch(tmp_path/"data", "--url", f"{server.url}/data.zip")[0] == 0
    assert server.asked == ["/data.zip"]*2 and (tmp_path/"data"/published[1]).stat().st_size == 100_000


def test_fetch_what_is_not_there(server, fetch, tmp_path):
    code, out, err = fetch(tmp_path/"data", "--url", f"{server.url}/missing.zip")
    assert code == 2 and err.count("\n") == 1 and "404" in err and not out


def explained(result, *says):
    code, out, err = result
    lines = [x for x in re.split(r"[\r\n]", err) if x.strip() and not re.match(r"\s*\d+%\|", x)]  # a progress bar is none
    return code == 2 and len(lines) == 1 and lines[0].startswith("retina_fetch: ") and all(s in lines[0] for s in says) and "Traceback" not in err


def test_fetch_breaks_off(server, fetch, tmp_path):
    url = f"{server.url}/cut/data.zip"
    result = fetch(tmp_path/"data", "--url", url)
    assert explained(result, url, "again"), result
    assert not files(tmp_path/"data")
    server.mended = True
    code, out, err = fetch(tmp_path/"data", "--url", url)
    assert code == 0 and files(tmp_path/"data") == ["data.zip", "data.zip.sha256", *published], err


@pytest.mark.slow
def test_fetch_says_what_is_wrong(server, fetch, tmp_path):
    result = fetch(tmp_path/"a", "--url", f"{server.url}/missing.zip")
    assert explained(result, "404", "missing.zip") and not files(tmp_path/"a"), result
    result = fetch(tmp_path/"b", "--url", f"{server.url}/not.zip")
    assert explained(result, "not.zip", "zip archive"), result
    result = fetch(tmp_path/"c", "--url", f"{server.url}/data.zip", "--only", "15-99-99")
    assert explained(result, "15-99-99", "neural_code_data"), result
    result = fetch(tmp_path/"d", "--url", f"{server.url}/damaged.zip")
    assert explained(result, "damaged.zip"), result
    assert [x for x in files(tmp_path/"d") if x.endswith(".h5")] == [] and not [x for x in files(tmp_path/"d") if "/." in x]
    server.files["damaged.zip"] = archive(*published)  # mended: the next try downloads it again
    assert fetch(tmp_path/"d", "--url", f"{server.url}/damaged.zip")[0] == 0 and len(files(tmp_path/"d")) == 6
    (tmp_path/"file").write_text("no folder")
    for dest in (tmp_path/"file", tmp_path/"file"/"below"):
        result = fetch(dest, "--url", f"{server.url}/data.zip")
        assert explained(result, str(dest)), result
    for url in ("http://127.0.0.1:1/data.zip", "nonsense", f"{server.url}/", "http://", "ftp://127.0.0.1:1/x.zip"):
        result = fetch(tmp_path/"e", "--url", url)
        assert explained(result), (url, result)


def test_fetch_stays_in_its_folder(server, fetch, tmp_path):
    for name in ("../../evil.h5", f"{tmp_path}/evil.h5", "data/../../evil.h5"):
        server.files["evil.zip"] = archive(name)
        result = fetch(tmp_path/"deep"/"er"/"data", "--url", f"{server.url}/evil.zip")
        assert explained(result, "evil"), result
        assert not list(tmp_path.rglob("evil.h5"))
        shutil.rmtree(tmp_path/"deep")


# ---- files that are sound, but cannot be read now

def test_open_in_another_program(small):
    "A lock is called a lock"
    hold = "import h5py, sys\nf = h5py.File(sys.argv[1], 'r+')\nprint('open', flush=True)\nsys.stdin.read()\n"
    with subprocess.Popen([sys.executable, "-c", hold, small["by_cell"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match="by_cell.h5: .*another program has it open"): Recording(small["by_cell"])
        other.stdin.close()
    assert Recording(small["by_cell"]).n_cells == 3


def test_unknown_compression(small, tmp_path):
    "The filter is named, and nobody is sent to download the file again"
    path = tmp_path/"blosc.h5"
    shutil.copy(small["by_cell"], path)
    with h5py.File(path, "r+") as f:
        movie = f["train/stimulus"][:]
        del f["train/stimulus"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk(movie.shape)
        plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2, 1, movie.size, 5, 1, 0))
        space = h5py.h5s.create_simple(movie.shape)
        data = h5py.h5d.create(f["train"].id, b"stimulus", h5py.h5t.NATIVE_UINT8, space, plan)
        data.write_direct_chunk((0, 0, 0), movie.tobytes()[:5000])
    rec = Recording(path)
    with pytest.raises(InputError, match="filter 32001.*hdf5plugin") as e: rec.train.stimulus
    assert "download" not in str(e.value)
