"What the simulation notebook can't show in a cell: the command, its errors, interruption, memory"
import os, signal, sys, time
import h5py
import numpy as np
import pytest
import forks
from retina_nb.data import InputError, Recording
from retina_nb.simulation import RefractorySpikes, Retina, natural_movie, simulate_recording

SHORT = dict(seconds=6, test_seconds=3, repeats=2, cells=2)

@pytest.fixture
def start(tmp_path_factory):
    "Start the command as an installed script would"
    folder = tmp_path_factory.mktemp("bin")
    return lambda *args: forks.shell("retina_simulate", *args, folder=folder)

def arrays(path):
    datasets = {}
    with h5py.File(path) as f: f.visititems(lambda name, x: datasets.update({name: x[()]}) if isinstance(x, h5py.Dataset) else None)
    return datasets

def test_command_and_errors(start, tmp_path):
    good = start(tmp_path/"new"/"rec.h5", "--seconds", 6.5, "--test_seconds", 2, "--repeats", 3, "--cells", 4, "--stimulus", "whitenoise", "--seed", 5)
    bad = start(tmp_path/"bad.h5", "--stimulus", "gratings")
    out, err = good.communicate()
    assert good.returncode == 0, err
    assert out.strip() == str(tmp_path/"new"/"rec.h5") and "simulating" in err
    assert os.listdir(tmp_path/"new") == ["rec.h5"]
    rec = Recording(tmp_path/"new"/"rec.h5")
    assert rec.train.stimulus.shape == (650, 50, 50) and rec.train.truth.shape == (650, 4) and len(rec.blocks) == 6
    assert rec.test.repeats.shape == (3, 200, 4) and rec.test.truth.shape == (200, 4)
    out, err = bad.communicate()
    assert bad.returncode == 2 and err.count("\n") == 1 and "naturalscene or whitenoise" in err and "gratings" in err
    assert not (tmp_path/"bad.h5").exists()

@pytest.mark.parametrize("bad", [dict(seconds=0), dict(seconds=float("nan")), dict(test_seconds=-1), dict(repeats=0), dict(cells=0), dict(seed=-1), dict(stimulus="")])
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(InputError, match=next(iter(bad))): simulate_recording(tmp_path/"x.h5", **bad)
    assert not os.listdir(tmp_path)

def test_path_is_a_folder(tmp_path):
    with pytest.raises(InputError, match="folder"): simulate_recording(tmp_path, **SHORT)

def test_movie_of_another_size():
    with pytest.raises(InputError, match="50 x 50"): Retina(1)(np.zeros((10, 40, 50), np.uint8))

def test_seed(tmp_path):
    a, b, other, noise = (arrays(simulate_recording(tmp_path/f"{i}.h5", seed=seed, stimulus=stimulus, **SHORT))
                          for i, (seed, stimulus) in enumerate([(3, "naturalscene"), (3, "naturalscene"), (4, "naturalscene"), (3, "whitenoise")]))
    assert a.keys() == b.keys() == noise.keys()
    for name in a: np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert not np.array_equal(a["train/stimulus"], other["train/stimulus"])
    parts = [name for name in a if name.startswith(("truth/cells", "truth/subunits"))]
    assert len(parts) > 10
    for name in parts: np.testing.assert_array_equal(a[name], noise[name], err_msg=name) # the same retina, whichever movie it sees
    assert not np.array_equal(a["truth/cells/center"], other["truth/cells/center"])

def test_the_same_call_again(tmp_path):
    "The file stays, to the byte, so that a run trained on it can be opened; another call writes anew"
    path = simulate_recording(tmp_path/"x.h5", seed=3, **SHORT)
    before = path.stat().st_mtime_ns, path.read_bytes()
    assert simulate_recording(str(path), seed=np.int64(3), **SHORT) == path
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    simulate_recording(path, seed=4, **SHORT)
    assert path.read_bytes() != before[1]
    path.write_bytes(before[1][:1000])
    simulate_recording(path, seed=3, **SHORT)
    assert Recording(path).n_cells == SHORT.get("cells", 9)

def test_cells_stay_the_same_when_more_are_recorded():
    movie = np.concatenate(list(natural_movie(200)))
    np.testing.assert_allclose(Retina(2)(movie), Retina(12)(movie)[:, :2], rtol=1e-3, atol=1e-3)

def test_nothing_half_written(tmp_path, monkeypatch):
    draw = RefractorySpikes.__call__
    def fail(self, rates):
        if self.now > 2000: raise OSError("disk full")
        return draw(self, rates)
    monkeypatch.setattr(RefractorySpikes, "__call__", fail)
    with pytest.raises(OSError, match="disk full"): simulate_recording(tmp_path/"x.h5", **SHORT)
    assert not os.listdir(tmp_path)

@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_interrupt(start, tmp_path):
    run = start(tmp_path/"x.h5", "--seconds", 3600)
    while not os.listdir(tmp_path):
        assert run.poll() is None, run.stderr.read()
        time.sleep(.1)
    run.send_signal(signal.SIGINT)
    run.communicate()
    assert run.returncode == 130 and not os.listdir(tmp_path)

@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_movie(tmp_path):
    code = """import sys
from retina_nb.simulation import simulate_recording
def peak(seconds):
    simulate_recording(sys.argv[1], seconds, test_seconds=2, repeats=1, cells=3, stimulus="whitenoise")
    return next(int(l.split()[1])/1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
small = peak(10); print(peak(170) - small)"""
    script = tmp_path/"measure.py"
    script.write_text(code)
    process = forks.start(script, tmp_path/"x.h5")
    out, err = process.communicate()
    assert process.returncode == 0, err
    growth = float(out)
    assert growth < 15 # MiB; the movie has 40
