"Run folders are input: damage, strangers' code, a second training, kills, odd paths, a full disk"
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_training import recording, shell  # noqa: F401 a fixture

from retina_nb.commands import retina_predict, retina_simulate, retina_train
from retina_nb.data import InputError, Recording
from retina_nb.run_folder import (absolute_path, best_epoch, check_writable, has_ended, load_run, load_weights,
                                  read_checkpoint, training_lock)
from retina_nb.training import RunningPearson, Scores, corr_in_batch, poisson_loss, predict, train_run

SMALL = dict(settings=dict(chans=[2, 2], ksizes=[3, 3]), history=3, batch_size=256, progress=False)


@pytest.fixture(scope="module")
def rec(recording): return Recording(recording)  # noqa: F811


@pytest.fixture(scope="module")
def runs(rec, tmp_path_factory):
    "Two runs that differ in their seed only, and a third of another model"
    folder = tmp_path_factory.mktemp("runs")
    a, b = (train_run(rec, "bncnn", folder/name, seed=seed, epochs=3, **SMALL) for seed, name in enumerate("ab"))
    ln = train_run(rec, "ln", folder/"ln", history=4, progress=False)
    return a, b, ln


@pytest.fixture
def copy(runs, tmp_path): return Path(shutil.copytree(runs[0].path, tmp_path/"copy"))


def everything(folder):
    "What somebody may want of a run folder"
    run = load_run(folder)
    rates = predict(run, run.recording.test.stimulus[:60])
    return rates, run.history.valid_loss.tolist(), run.results["valid_corr"], [len(part) for part in run.split]


def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


# -- config.json ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, value", [
    ("history", 3.5), ("history", "3"), ("history", 10**9), ("history", None), ("history", True), ("cells", []), ("cells", [-1]),
    ("cells", "01"), ("fractions", [2, .1]), ("fractions", .9), ("split", "half"), ("scale", 1), ("seed", -1), ("seed", 1e20),
    ("scaling", {"name": "unit"}), ("scaling", {"name": "unit", "shift": float("nan"), "factor": 1}), ("checksum", "abc"),
    ("hyperparams", {"img_shape": [3, 10**7, 12]}), ("hyperparams", []), ("model", ""), ("model", ["bncnn"]), ("hz", 0), ("hz", "fast"),
    ("blocks", [0, .5]), ("in_memory", "yes"), ("monitor", "luck"), ("clock", "slow"), ("stimulus_clock", {"period": 2}),
    ("epochs", 1.5), ("batch_size", 0), ("lr", "high"), ("trainer", []), ("versions", "new"), ("surprise", 1), ("params", -1)])
def test_config_is_checked(copy, name, value):
    config = json.loads((copy/"config.json").read_text())
    (copy/"config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(InputError, match=f"config.json: .*{name}") as e: load_run(copy)
    assert "\n" not in str(e.value)


def test_config_lacks_a_name(copy):
    config = json.loads((copy/"config.json").read_text())
    for name in ("model", "cells", "scaling", "seed"):
        (copy/"config.json").write_text(json.dumps({k: v for k, v in config.items() if k != name}))
        with pytest.raises(InputError, match=f"expected '{name}' in it"): load_run(copy)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a": 1, "a": 2}', b"1" * 5000, b"{}" * 2])
def test_config_that_is_no_json(copy, text):
    (copy/"config.json").write_bytes(text)
    with pytest.raises(InputError, match="config.json"): load_run(copy)


def test_byte_order_mark(copy, runs):
    (copy/"config.json").write_bytes(b"\xef\xbb\xbf" + (copy/"config.json").read_bytes())
    np.testing.assert_array_equal(everything(copy)[0], everything(runs[0].path)[0])


def test_a_gigantic_model_is_not_built(copy, rec):
    "Neither its memory nor its time is spent"
    config = json.loads((copy/"config.json").read_text())
    config["hyperparams"]["chans"] = [90_000, 90_000]
    (copy/"config.json").write_text(json.dumps(config))
    (copy/"training_results.json").unlink()
    started = time.time()
    with pytest.raises(InputError, match="cannot be built"): load_run(copy).model
    assert time.time() - started < 5


# -- what belongs together --------------------------------------------------------------------------

def test_flipped_bits(copy):
    "In a weight, where torch.load sees nothing"
    weights = torch.load(copy/"model.pth", weights_only=True)
    stored = next(iter(weights.values())).numpy().tobytes()
    whole = bytearray((copy/"model.pth").read_bytes())
    whole[bytes(whole).index(stored) + 7] ^= 64
    for checksums in (True, False):  # a run of an earlier version has none
        (copy/"model.pth").write_bytes(whole)
        if not checksums: (copy/"training_results.json").unlink()
        with pytest.raises(InputError, match="model.pth"): load_run(copy).model


def test_files_of_another_run(copy, runs):
    for name in ("model.pth", "config.json", "history.csv", "training_results.json"):
        before = (copy/name).read_bytes()
        (copy/name).write_bytes((runs[1].path/name).read_bytes())
        with pytest.raises(InputError): everything(copy)
        (copy/name).write_bytes(before)
    everything(copy)


def test_checkpoints_of_another_run(copy, runs, rec):
    shutil.copy(runs[1].path/"last.ckpt", copy/"last.ckpt")
    with pytest.raises(InputError, match="last.ckpt: expected the training that config.json and history.csv are of"):
        train_run(rec, "bncnn", copy, epochs=5, resume=True, **SMALL)
    shutil.copy(runs[0].path/"last.ckpt", copy/"last.ckpt")
    (copy/"last.ckpt").unlink()
    with pytest.raises(InputError, match="last.ckpt: expected the last epoch"): train_run(rec, "bncnn", copy, epochs=5, resume=True, **SMALL)


def test_a_moved_recording(copy, tmp_path, rec):
    "`data` may be corrected"
    shutil.copy(rec.path, tmp_path/"moved.h5")
    config = json.loads((copy/"config.json").read_text())
    (copy/"config.json").write_text(json.dumps(config | {"data": str(tmp_path/"moved.h5")}))
    assert load_run(copy).recording.path == tmp_path/"moved.h5" and load_run(copy).model.n_units == 2


def test_a_run_of_an_earlier_version(copy, runs, rec):
    "It has no checksums; it is read, left alone and gone on with"
    results = json.loads((copy/"training_results.json").read_text())
    for name in ("asked", "checksums"): del results[name]
    (copy/"training_results.json").write_text(json.dumps(results))
    config = json.loads((copy/"config.json").read_text())
    for name in ("base", "in_memory", "clock", "stimulus_clock", "trainer"): del config[name]
    (copy/"config.json").write_text(json.dumps(config))
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = torch.load(copy/name, weights_only=True)
        del checkpoint["config"]
        torch.save(checkpoint, copy/name)
    np.testing.assert_array_equal(everything(copy)[0], everything(runs[0].path)[0])
    before = contents(copy)
    train_run(rec, "bncnn", copy, epochs=3, resume=True, **SMALL)
    assert contents(copy) == before
    assert len(train_run(rec, "bncnn", copy, epochs=4, resume=True, **SMALL).history) == 4


# -- nothing is executed ----------------------------------------------------------------------------

class Stranger:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["model.pth", "best.ckpt", "last.ckpt"])
def test_nothing_is_executed(copy, rec, tmp_path, name):
    known = torch.load(copy/name, weights_only=True)
    torch.save({**known, "rows": Stranger(tmp_path/"executed"), "more": Stranger(tmp_path/"executed")}, copy/name)
    if name == "best.ckpt": (copy/"model.pth").unlink()
    for attempt in (lambda: load_run(copy).model, lambda: load_weights(copy/name), lambda: read_checkpoint(copy/name),
                    lambda: train_run(rec, "bncnn", copy, epochs=9, resume=True, **SMALL),
                    lambda: train_run(rec, "stacked", tmp_path/"head", history=3, epochs=1, settings={"base": str(copy)}, progress=False)):
        try: attempt()
        except InputError: pass
    assert not (tmp_path/"executed").exists()


# -- resume is idempotent ---------------------------------------------------------------------------

@pytest.mark.parametrize("model, more", [("bncnn", {}), ("stacked", {}), ("ln", {}), ("adaptive", dict(subunits=2, n_basis=4, core=8))])
def test_a_finished_run_stays_finished(rec, tmp_path, model, more):
    options = dict(SMALL, history=8, epochs=4, patience=1, settings=more if model in ("ln", "adaptive") else SMALL["settings"])
    train_run(rec, model, tmp_path/"run", **options)
    before = contents(tmp_path/"run")
    train_run(rec, model, tmp_path/"run", resume=True, **options)
    assert contents(tmp_path/"run") == before


def test_fewer_and_more_epochs(copy, rec, runs):
    before = contents(copy)
    train_run(rec, "bncnn", copy, epochs=2, resume=True, **SMALL)
    assert contents(copy) == before
    run = train_run(rec, "bncnn", copy, epochs=5, resume=True, **SMALL)
    assert len(run.history) == run.config["epochs"] == run.results["epochs"] == 5
    whole = train_run(rec, "bncnn", copy.parent/"whole", epochs=5, **SMALL)
    pd.testing.assert_frame_equal(run.history.drop(columns="seconds"), whole.history.drop(columns="seconds"), check_exact=True)
    for a, b in zip(run.model.state_dict().values(), whole.model.state_dict().values()): assert torch.equal(a, b)


def test_stopped_between_its_last_files(copy, rec, runs):
    "Weights without their summary, a best epoch without its checkpoint, an epoch of the history without its: all is written anew"
    want = everything(copy)
    (copy/"training_results.json").unlink()
    history = pd.read_csv(copy/"history.csv", dtype=str)
    pd.concat([history, history.tail(1).assign(epoch="3")]).to_csv(copy/"history.csv", index=False)
    (copy/"model.pth").write_bytes(b"half")
    best = load_run(copy).config["monitor"]
    rows = read_checkpoint(copy/"last.ckpt").rows
    if best_epoch(rows, best) == 2: (copy/"best.ckpt").unlink()
    train_run(rec, "bncnn", copy, epochs=3, resume=True, **SMALL)
    got = everything(copy)
    np.testing.assert_array_equal(got[0], want[0])
    assert got[1:] == want[1:]


def test_the_base_is_fixed(rec, tmp_path):
    "It is not trained on when its head is, and another base is refused"
    options = dict(SMALL, epochs=1)
    train_run(rec, "stacked", tmp_path/"run", **options)
    base = contents(tmp_path/"run"/"bncnn")
    run = train_run(rec, "stacked", tmp_path/"run", resume=True, **options | dict(epochs=2))
    assert contents(tmp_path/"run"/"bncnn") == base and len(run.history) == 2
    train_run(rec, "bncnn", tmp_path/"run"/"bncnn", resume=True, **options | dict(epochs=6, patience=0))
    changed = (tmp_path/"run"/"bncnn"/"model.pth").read_bytes() != base[Path("model.pth")]
    if not changed: pytest.skip("the first epoch was the best")
    with pytest.raises(InputError, match="found another base"): train_run(rec, "stacked", tmp_path/"run", resume=True, **options | dict(epochs=3))


def test_two_at_once(copy, rec):
    with training_lock(copy), pytest.raises(InputError, match="another training at work"):
        train_run(rec, "bncnn", copy, epochs=9, resume=True, **SMALL)
    assert not (copy/".lock").exists()


def test_lock_of_a_killed_process(recording, tmp_path):  # noqa: F811
    args = ["--data", recording, "--model", "bncnn", "--set", "chans=[2,2]", "--history", 4, "--epochs", 300, "--patience", 0, "--out", tmp_path/"run"]
    p = shell("retina_train", *args, folder=tmp_path)
    while not (tmp_path/"run"/"last.ckpt").exists():
        assert p.poll() is None, p.communicate()
        time.sleep(.02)
    q = shell("retina_train", *args, "--resume", folder=tmp_path)
    _, err = q.communicate()
    assert q.returncode == 2 and "another training at work" in err and err.count("\n") == 1
    p.send_signal(signal.SIGKILL)
    p.wait()
    (tmp_path/"run"/".last.ckpt.abcd_123").mkdir()  # as a kill leaves them
    n = len(read_checkpoint(tmp_path/"run"/"last.ckpt").rows)
    run = train_run(Recording(recording), "bncnn", tmp_path/"run", history=4, settings={"chans": [2, 2]}, epochs=n + 1, patience=0, resume=True, progress=False)
    assert len(run.history) == n + 1 and not [p.name for p in run.path.iterdir() if p.name.startswith(".")]


# -- a full disk ------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", [400, 3000, 12_000, 17_000])
def test_full_disk(rec, tmp_path, size, monkeypatch):
    "Files of more than so many bytes cannot be written: the run can go on later, and gives what it would have given"
    real = Path.write_bytes
    def full(path, data):
        if len(data) > size: raise OSError(28, "No space left on device")
        return real(path, data)
    with monkeypatch.context() as m:
        m.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left") as e: train_run(rec, "bncnn", tmp_path/"run", epochs=2, **SMALL)
    assert e.value.filename.startswith(str(tmp_path/"run"))
    run = train_run(rec, "bncnn", tmp_path/"run", epochs=2, resume=True, **SMALL)
    whole = train_run(rec, "bncnn", tmp_path/"whole", epochs=2, **SMALL)
    pd.testing.assert_frame_equal(run.history.drop(columns="seconds"), whole.history.drop(columns="seconds"), check_exact=True)
    assert not [p.name for p in run.path.iterdir() if p.name.startswith(".")]


# -- scores and loss --------------------------------------------------------------------------------

def test_scores_are_those_of_pearson():
    from retina_nb.results import pearson
    rng = np.random.default_rng(0)
    y = rng.gamma(.1, 30, (5000, 4)).astype(np.float32)
    y[:, 1] = rng.random(5000) < 1e-3
    y[2500, 2] = 1e5
    yhat = (y*rng.lognormal(0, 1, y.shape)).astype(np.float32)
    yhat[:, 3] = 2.
    scores = Scores(4)
    for i in range(0, 5000, 32): scores.update(torch.tensor(y[i:i + 32]), torch.tensor(yhat[i:i + 32]), torch.tensor(0.))
    scores.score()
    got = scores.corr.compute().numpy()
    np.testing.assert_allclose(got[:3], pearson(y, yhat)[:3], rtol=1e-9)
    assert np.isnan(got[3]) and scores.compute()["corr"] == pytest.approx(got[:3].sum()/4)  # a constant prediction counts as 0


def test_masked():
    "Where a cell was not recorded nothing is asked of the model"
    torch.manual_seed(0)
    drive, y = torch.randn(64, 3, requires_grad=True), torch.rand(64, 3)*20
    output = torch.nn.Softplus()
    torch.testing.assert_close(poisson_loss(drive, y, output), (output(drive) - y*(output(drive)).log()).mean())
    gaps = y.clone()
    gaps[10:30, 1] = torch.nan
    gaps[:, 2] = torch.nan
    kept = ~gaps.isnan()
    slope, = torch.autograd.grad(poisson_loss(drive, gaps, output), drive)
    assert slope.isfinite().all() and (slope[~kept] == 0).all() and (slope[kept] != 0).all()
    rates = output(drive).detach()
    alone = [np.corrcoef(y[kept[:, i], i], rates[kept[:, i], i])[0, 1] for i in range(2)]
    assert corr_in_batch(gaps, rates).item() == pytest.approx(np.mean(alone), rel=1e-4)
    running = RunningPearson()
    for i in range(0, 64, 16): running.update(rates[i:i + 16], gaps[i:i + 16])
    np.testing.assert_allclose(running.compute()[:2], alone, rtol=1e-6)
    assert running.compute()[2].isnan() and running.mean().item() == pytest.approx(np.mean(alone), rel=1e-6)
    assert poisson_loss(drive, torch.full_like(y, torch.nan), output).item() == 0


def test_training_on_a_recording_with_gaps(rec, tmp_path):
    "A cell lost half-way: losses and weights are finite"
    gaps = Recording(rec.path)
    gaps.train.rates = gaps.train.rates.copy()
    gaps.train.rates[1500:, 1] = np.nan
    run = train_run(gaps, "bncnn", tmp_path/"run", epochs=2, **SMALL)
    assert np.isfinite(run.history.drop(columns="epoch")).all(axis=None)
    assert all(value.isfinite().all() for value in run.model.state_dict().values())


class NeverDefined(RunningPearson):
    def mean(self): return torch.tensor(torch.nan)


def test_undefined_correlation(rec, tmp_path, monkeypatch, capsys):
    "The epoch with the least validation loss, and it is said"
    monkeypatch.setattr("retina_nb.scores.RunningPearson", NeverDefined)
    run = train_run(rec, "bncnn", tmp_path/"run", epochs=3, monitor="valid_corr", patience=0, **SMALL)
    assert run.results["best_epoch"] == run.history.valid_loss.argmin()
    assert "valid_corr is undefined in every epoch" in capsys.readouterr().out


# -- numbers and paths from the shell ---------------------------------------------------------------

@pytest.mark.parametrize("given, words", [
    (dict(seed=-1), "seed"), (dict(seed=10**20), "seed"), (dict(epochs=10**20), "epochs"), (dict(epochs=1.5), "epochs"),
    (dict(history=10**9), "history"), (dict(history=0), "history"), (dict(history=-3), "history"), (dict(lr=float("nan")), "lr"),
    (dict(lr=float("inf")), "lr"), (dict(lr=-1.), "lr"), (dict(batch_size=10**12), "batch_size"), (dict(patience=-1), "patience"),
    (dict(accelerator="tpu"), "devices"), (dict(devices="0"), "devices"), (dict(devices="-1"), "devices"), (dict(num_nodes=0), "num_nodes"),
    (dict(precision="7-bit"), "devices"), (dict(model="ln", set="foo=1"), "foo"), (dict(seeds="0,-1"), "seeds"), (dict(seeds="²"), "seeds"),
    (dict(seeds="99999999999"), "seeds"), (dict(data=""), "--data"), (dict(data="a\0b"), "--data")])
def test_numbers_from_the_shell(recording, tmp_path, given, words):  # noqa: F811
    with pytest.raises(InputError, match=words) as e:
        retina_train(**{"data": str(recording), "model": "bncnn", "history": 1, "set": "chans=[2,2]", "out": str(tmp_path/"run")} | given)
    assert "\n" not in str(e.value) and not (tmp_path/"run").exists()


def test_a_device_is_never_replaced(recording, runs, tmp_path):  # noqa: F811
    os.mkfifo(tmp_path/"pipe")
    for out in (tmp_path/"pipe", Path("/dev/null")):
        before = os.stat(out).st_ino
        for command in (lambda: retina_predict(run=str(runs[0].path), data=str(recording), out=str(out)),
                        lambda: retina_simulate(str(out), seconds=1, test_seconds=1),
                        lambda: retina_train(data=str(recording), out=str(out))):
            with pytest.raises((InputError, OSError)): command()
        assert os.stat(out).st_ino == before


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert absolute_path("~/a") == absolute_path("a") == tmp_path/"a"
    for path in ("/proc/run", "/dev/null/run", "/dev/null"):
        with pytest.raises((InputError, OSError)): check_writable(path)
    with pytest.raises(OSError): check_writable("x"*300)


def test_closed_pipe(recording, tmp_path):  # noqa: F811
    p = shell("retina_train", "--data", recording, "--model", "bncnn", "--history", 1, "--set", "chans=[2,2] ksizes=[3,3]", "--epochs", 400, "--patience", 0, "--out", tmp_path/"run", folder=tmp_path)
    p.stdout.readline()
    p.stdout.close()
    err = p.stderr.read()
    assert p.wait(timeout=60) == 141 and "Traceback" not in err and "Exception" not in err, err
    assert not has_ended(tmp_path/"run", dict(epochs=400, patience=0))


@pytest.mark.slow
def test_ctrl_c_in_the_first_seconds(recording, tmp_path):  # noqa: F811
    for wait in np.linspace(.5, 5, 10):
        p = shell("retina_train", "--data", recording, "--epochs", 400, "--out", tmp_path/f"run{wait:.2f}", folder=tmp_path)
        time.sleep(wait)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate()
        early = p.returncode == -2 and "/retina_nb/" not in err  # before the first line of ours
        assert early or (p.returncode == 130 and err.count("\n") == 1 and "Traceback" not in err), (wait, p.returncode, err)


# -- fuzz -------------------------------------------------------------------------------------------

def damage(folder, others, rng):
    "One of many ways in which a run folder may be damaged; says which"
    folder = Path(folder)
    path = folder/rng.choice(["config.json", "model.pth", "history.csv", "training_results.json", "best.ckpt", "last.ckpt"])
    whole = path.read_bytes()
    kind = rng.choice(["flip", "flip", "flip", "cut", "empty", "gone", "folder", "swap", "grow", "value", "value", "value", "link", "random"])
    if kind == "flip":
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
    if kind == "cut": path.write_bytes(whole[:rng.randrange(len(whole))])
    if kind == "empty": path.write_bytes(b"")
    if kind == "gone": path.unlink()
    if kind == "folder":
        path.unlink()
        path.mkdir()
    if kind == "swap":
        other = rng.choice(others)/path.name
        path.write_bytes(other.read_bytes() if other.exists() else b"{}")
    if kind == "grow": path.write_bytes(whole + rng.randbytes(rng.randrange(1, 1000)))
    if kind == "random": path.write_bytes(rng.randbytes(1000))
    if kind == "link":
        path.unlink()
        path.symlink_to(rng.choice(["/dev/null", "/dev/zero", "nowhere", path.name]))
    if kind != "value": return f"{path.name}: {kind}"
    path = folder/rng.choice(["config.json", "config.json", "training_results.json"])
    value = json.loads(path.read_bytes())
    name = rng.choice(list(value))
    odd = rng.choice([None, -1, 0, 1.5, 10**30, "", "text", [], {}, [[]], float("nan"), True, "../..", "\0", ["a"]*5, {"a": None}])
    path.write_text(json.dumps(value | {name: odd}))
    return f"{path.name}: {name}: {odd!r}"


def same(a, b): return np.array_equal(a[0], b[0], equal_nan=True) and str(a[1:]) == str(b[1:])


@pytest.mark.slow
def test_fuzz_of_run_folders(runs, rec, tmp_path):
    "Each is said in a line, or changes no number; and whoever goes on with it is told, or gets the numbers of before"
    rng = random.Random(0)
    want = everything(runs[0].path)
    others = [runs[1].path, runs[2].path]
    wrong = []
    for i in range(150):
        folder = Path(shutil.copytree(runs[0].path, tmp_path/f"run{i}"))
        what = damage(folder, others, rng)
        for name, attempt in {"read": lambda: everything(folder),
                              "go on": lambda: train_run(rec, "bncnn", folder, epochs=3, resume=True, **SMALL) and everything(folder)}.items():
            try: got = attempt()
            except InputError as e:
                if "\n" in str(e): wrong.append((name, what, str(e)))
            except Exception as e: wrong.append((name, what, repr(e)[:300]))
            else:
                if not same(got, want): wrong.append((name, what, "other numbers"))
        shutil.rmtree(folder)
    assert not wrong, "\n".join(map(str, wrong))


def odd_paths(rng, folder):
    "Paths that mean something to somebody"
    pieces = ["~", "%", "?", "#", "*", "[a]", "::", "file:", "http:", " ", "é", "\udcff", "'", '"', "{x}", "$HOME", "&", "=", ",", "a", ".h5", "\\", "\t", "-"]
    name = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 7)))
    whole = rng.choice([name, name, name, "x"*rng.choice([200, 255, 256, 5000]), name + "/" + name, "..", ".", "\n", "-x"])
    place = rng.choice([folder, folder, folder, folder/"file", folder/"gone", folder/"readonly", "/proc", "/dev", "/dev/null", "/sys"])
    return os.path.join(place, whole)


COMMANDS = """import sys, retina_nb.commands as commands
sys.stdout.reconfigure(errors="backslashreplace")
import json
from retina_nb.data import InputError
failed = []
for name, options in json.load(open(sys.argv[1])):
    try: getattr(commands, name)(**options)
    except (InputError, OSError) as e: failed.append("\\n" in str(e) and repr(e))
    except SystemExit as e: failed.append(repr(e))
    except BaseException as e: failed.append(f"{name} {options}: {e!r}"[:500])
    else: failed.append(False)
print(json.dumps([f for f in failed if f]))
"""


@pytest.mark.slow
def test_fuzz_of_paths(runs, rec, tmp_path):
    "Each path through a command: it works, or it is an InputError or an OSError"
    rng = random.Random(0)
    (tmp_path/"file").write_text("x")
    (tmp_path/"readonly").mkdir(mode=0o555)
    run, data = str(runs[2].path), str(rec.path)
    calls = []
    for i in range(150):
        path = odd_paths(rng, tmp_path)
        calls.append(rng.choice([
            ("retina_predict", dict(run=run, data=data, out=path)), ("retina_predict", dict(run=path, data=data, out=str(tmp_path/"r.npz"))),
            ("retina_predict", dict(run=run, data=path, out=str(tmp_path/"r.npz"))), ("retina_train", dict(data=data, model="ln", history=2, out=path)),
            ("retina_train", dict(data=path, model="ln", out=str(tmp_path/"t"))), ("retina_train", dict(data=data, set=f"base={path}", model="stacked", out=str(tmp_path/"s"))),
            ("retina_simulate", dict(out=path, seconds=.2, test_seconds=.2, repeats=2, cells=1)), ("retina_results", dict(runs=[path], out=str(tmp_path/"table"))),
            ("retina_sweep", dict(data=data, model="ln", space="pool=2", search="grid", history=2, out=path))]))
    (tmp_path/"calls.json").write_text(json.dumps(calls))
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMMANDS, tmp_path/"calls.json"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert Path("/dev/null").is_char_device() and not (tmp_path/"~").exists()
