"Training with two processes gives the numbers of one, whoever starts them, and through Ctrl-C and resume"
import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from forks import start
from test_training import recording, shell, wait_for_epoch  # noqa: F401

from retina_nb.data import InputError, Recording
from retina_nb.training import fit, load_run, load_runs, model_for, train_run
from retina_nb.commands import retina_train

# without noise, which is each process' own; the last batches are partial, and odd
SET = "chans=[2,3] ksizes=[3,3] noise=0"
ARGS = ["--model", "bncnn", "--set", SET, "--history", 4, "--batch_size", 62, "--epochs", 5, "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def alone(recording, tmp_path_factory):
    "The run of one process"
    out = tmp_path_factory.mktemp("alone")/"run"
    retina_train(model="bncnn", data=str(recording), set=SET, history=4, batch_size=62, epochs=5, accelerator="cpu", out=str(out))
    return load_run(out)


def check_same(run, alone):
    "The same loss curve, scores and weights, within rounding, which grows with every step"
    a, b = (r.history.drop(columns="seconds") for r in (alone, run))
    pd.testing.assert_frame_equal(a[:2], b[:2], rtol=1e-5, atol=1e-6)
    pd.testing.assert_frame_equal(a, b, rtol=1e-3, atol=1e-3)
    for x, y in zip(alone.model.state_dict().values(), run.model.state_dict().values()): torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-3)
    assert alone.results["best_epoch"] == run.results["best_epoch"]


def test_two_processes(recording, alone, tmp_path):
    p = shell("retina_train", "--data", recording, *ARGS, "--devices", 2, "--strategy", "ddp", "--out", tmp_path/"run", folder=tmp_path)
    out, err = p.communicate()
    assert p.returncode == 0, err
    assert out.count("validation correlation") == 1 and "Traceback" not in err  # one process speaks
    run = load_run(tmp_path/"run")
    assert {p.name for p in run.path.iterdir()} == {p.name for p in alone.path.iterdir()}
    check_same(run, alone)


@pytest.mark.slow
def test_stop_and_resume_with_torchrun(recording, alone, tmp_path):
    "Ctrl-C ends both processes; torchrun goes on with the run"
    args = ["--data", recording, *ARGS, "--devices", 2, "--strategy", "ddp", "--out", tmp_path/"run"]
    p = shell("retina_train", *args, folder=tmp_path)
    wait_for_epoch(tmp_path/"run/history.csv", 1, p)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and err.count("--resume") == 1 and "Traceback" not in err
    assert len(pd.read_csv(tmp_path/"run/history.csv")) < 5

    p = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", tmp_path/"retina_train", *map(str, args), "--resume"],
                       capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"})
    assert p.returncode == 0, p.stderr
    assert p.stdout.count("validation correlation") == 1
    check_same(load_run(tmp_path/"run"), alone)


def test_a_batch_must_divide(recording, tmp_path):
    rec = Recording(recording)
    with pytest.raises(InputError, match="batch_size: expected a multiple of 2, .* use 64"):
        fit(model_for(rec, chans=[2, 2]), rec, tmp_path/"run", batch_size=63, accelerator="cpu", devices=2, strategy="ddp")
    assert not (tmp_path/"run").exists()


forked = """
import json, sys
import torch
from retina_nb.data import Recording
from retina_nb.training import train_run
torch.set_num_threads(1)
train_run(Recording(sys.argv[1]), out=sys.argv[2], accelerator="cpu", devices=2, strategy="ddp_notebook", progress=False, **json.loads(sys.argv[3]))
"""


def train_in_forks(recording, folder, **options):
    "The run of two processes, as in a notebook"
    script = folder/"train.py"
    script.write_text(forked)
    p = start(script, recording, folder/"run", json.dumps(options))
    _, err = p.communicate()
    assert p.returncode == 0 and "Traceback" not in err, err
    return load_run(folder/"run")


def test_processes_that_are_forks(recording, alone, tmp_path):
    settings = dict(chans=[2, 3], ksizes=[3, 3], noise=0)
    check_same(train_in_forks(recording, tmp_path, model="bncnn", settings=settings, history=4, batch_size=62, epochs=5), alone)


def check_alike(one, two):
    "About the same loss curve"
    a, b = (run.history.drop(columns="seconds") for run in (one, two))
    pd.testing.assert_frame_equal(a[:1], b[:1], rtol=1e-4, atol=1e-4)
    pd.testing.assert_frame_equal(a, b, rtol=1e-2, atol=1e-2)


def test_stretches(recording, tmp_path):
    "AdaptiveSubunits, whose stretches hold different numbers of frames; a last batch of one stretch leaves a process without a share"
    options = dict(model="adaptive", settings=dict(core=8, subunits=4), history=4, batch_size=10, epochs=2)
    alone = train_run(Recording(recording), out=tmp_path/"alone", accelerator="cpu", progress=False, **options)
    check_alike(alone, train_in_forks(recording, tmp_path, **options))


@pytest.mark.slow
def test_stretches_of_two_recordings(recording, tmp_path):
    "One core, from the shell"
    other = tmp_path/"other.h5"
    other.write_bytes(recording.read_bytes())
    args = dict(data=f"{recording},{other}", model="adaptive", set="core=8", history=4, batch_size=10, epochs=2, accelerator="cpu")
    retina_train(**args, out=str(tmp_path/"alone"))
    p = shell("retina_train", *[x for k, v in args.items() for x in (f"--{k}", v)], "--devices", 2, "--strategy", "ddp", "--out", tmp_path/"run", folder=tmp_path)
    _, err = p.communicate()
    assert p.returncode == 0 and "Traceback" not in err, err
    for one, two in zip(load_runs(tmp_path/"alone"), load_runs(tmp_path/"run"), strict=True): check_alike(one, two)
