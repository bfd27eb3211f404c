"Sweeps from the shell: the whole road, Ctrl-C, kill, and two processes that share a study"
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from forks import shell
from test_training import recording  # noqa: F401 a fixture

from retina_nb.data import InputError
from retina_nb.commands import retina_sweep
from retina_nb.training import load_run

SMALL = ["--set", "ksizes=[3,3] start=random batch_size=64 lr=3e-3", "--history", 4]


def start(data, out, *args, cwd=None):
    "retina_sweep, in a process of its own"
    return shell("retina_sweep", "--data", data, "--out", out, *args, folder=out.parent, cwd=cwd)


def ended(p):
    out, err = p.communicate()
    assert p.returncode == 0 and "Traceback" not in err, err
    return out


def test_grid_by_two_processes(recording, tmp_path):
    args = recording, tmp_path/"sweep", *SMALL, "--search", "grid", "--space", "chans=[2,2],[2,3] noise=0,.1", "--epochs", 1
    said = "".join(ended(p) for p in [start(*args), start(*args)])
    table = pd.read_csv(tmp_path/"sweep"/"sweep.csv")
    places = set(zip(table.chans, table.noise))
    assert places == {(c, n) for c in ("[2,2]", "[2,3]") for n in (0, .1)} and table.val_corr.is_monotonic_decreasing
    assert len(table) == 4 and sorted(table.run) == [f"trial{i:03d}" for i in range(4)]
    best = tmp_path/"sweep"/table.run[0]
    assert (tmp_path/"sweep"/"sweep.png").read_bytes().startswith(b"\x89PNG") and f"retina_results {best}" in said
    for row in table.itertuples():
        run = load_run(tmp_path/"sweep"/row.run)
        assert (str(run.model.hyperparams["chans"]).replace(" ", ""), run.model.hyperparams["noise"]) == (row.chans, row.noise)
        assert abs(run.results["valid_corr"] - row.val_corr) < 1e-9 and run.config["batch_size"] == 64 and run.config["lr"] == 3e-3
    before = (tmp_path/"sweep"/"sweep.csv").read_bytes()
    ended(start(*args))  # nothing is left to do
    assert (tmp_path/"sweep"/"sweep.csv").read_bytes() == before


SEARCH = [*SMALL, "--space", "lr=1e-3:1e-2:log chans=[2,2],[2,3]", "--trials", 2, "--epochs", 4]


@pytest.fixture(scope="module")
def unbroken(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")/"sweep"
    ended(start(recording, out, *SEARCH))
    return pd.read_csv(out/"sweep.csv")


@pytest.mark.parametrize("stop, code", [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGKILL, -9)])
def test_stopped_and_taken_up(recording, unbroken, tmp_path, stop, code):
    p = start(recording, tmp_path/"sweep", *SEARCH)
    while not (tmp_path/"sweep"/"trial000"/"last.ckpt").exists():
        assert p.poll() is None, p.communicate()
        time.sleep(.05)
    p.send_signal(stop)
    out, err = p.communicate()
    assert p.returncode == code and "Traceback" not in err, err
    ended(start(recording, tmp_path/"sweep", *SEARCH))
    table = pd.read_csv(tmp_path/"sweep"/"sweep.csv")
    assert sorted(table.run) == ["trial000", "trial001"] and (table.epochs == 4).all() and (table.state == "done").all()
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), unbroken.drop(columns="seconds"))  # as if it had never been stopped


@pytest.mark.parametrize("args, words", [
    (dict(space="lr"), "--space: expected pairs"),
    (dict(space="chanels=[2,2],[3,3]"), "chanels"),
    (dict(search="best"), "--search: expected random or grid"),
    (dict(search="grid", space="lr=1e-4:1e-2"), "found a range for lr"),
    (dict(trials=0), "--trials: expected 1 or more"),
    (dict(model="resnet"), "--model: expected one of"),
    (dict(set="chans"), "--set: expected pairs"),
])
def test_mistakes(recording, tmp_path, args, words):
    with pytest.raises(InputError, match=words): retina_sweep(data=str(recording), out=str(tmp_path/"sweep"), **args)


def test_mistake_in_shell(recording, tmp_path):
    p = start(recording, tmp_path/"sweep", "--space", "lr=2:1")
    out, err = p.communicate()
    assert p.returncode == 2 and "--space: expected a range" in err and err.count("\n") == 1 and not (tmp_path/"sweep").exists()


def test_damaged_study(recording, tmp_path):
    (tmp_path/"sweep.db").write_bytes(b"no study"*1000)
    with pytest.raises(InputError, match="sweep.db: expected the study of a sweep"): retina_sweep(data=str(recording), out=str(tmp_path))


@pytest.mark.slow
def test_killed_at_any_moment(recording, unbroken, tmp_path):
    "No draw is lost or made twice, however early a process was killed"
    for i, wait in enumerate(np.linspace(0, 3, 8)):
        out = tmp_path/f"sweep{i}"
        p = start(recording, out, *SEARCH)
        while not (out/"sweep.db").exists():
            assert p.poll() is None, p.communicate()
        time.sleep(wait)
        p.kill()
        p.communicate()
        for path in out.glob(".*"): os.utime(path, (0, 0))  # what is a minute old belongs to nobody at work
        ended(start(recording, out, *SEARCH))
        table = pd.read_csv(out/"sweep.csv")
        pd.testing.assert_frame_equal(table.drop(columns="seconds"), unbroken.drop(columns="seconds"))
        assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_foreign_study(recording, tmp_path):
    "A database of something else, a folder in its place"
    import sqlite3
    for i, make in enumerate((lambda path: path.mkdir(), lambda path: sqlite3.connect(path).execute("create table trials (a)"))):
        out = tmp_path/str(i)
        out.mkdir()
        make(out/"sweep.db")
        with pytest.raises(InputError, match="sweep.db: expected the study of a sweep") as e:
            retina_sweep(data=str(recording), model="ln", space="pool=2", search="grid", history=2, out=str(out))
        assert "\n" not in str(e.value)


def test_paths_that_look_like_urls(recording, tmp_path):
    for name in ("a?b=c", "100%", "file:x", "a::b", "{x}", "#1"):
        retina_sweep(data=str(recording), model="ln", space="pool=2", search="grid", history=2, out=str(tmp_path/name))
        assert {"sweep.db", "sweep.csv", "trial000"} <= {path.name for path in (tmp_path/name).iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(("a?b=c", "100%", "file:x", "a::b", "{x}", "#1"))
