"What is decided for a device, with the CPU in the place of a GPU"
import copy

import numpy as np
import pytest
import torch

import retina_nb.training as training
from retina_nb.data import Frames, Part, Recording, write_recording
from retina_nb.training import Batches, Clips, Features, FiringRates, OnDevice, fit, model_for, quickest


class Rec:
    rng = np.random.default_rng(0)
    train, n_cells = Part(rng.integers(0, 256, (400, 9, 10), dtype=np.uint8), rng.gamma(.2, 20, (400, 2)).astype(np.float32)), 2


class Loader:
    def __init__(self, dataset): self.dataset, self.pin_memory, self.batch_sampler = dataset, False, Batches(range(len(dataset)), 8, world=4)


class Loop: global_rank = 3


def module(name="bncnn"):
    model = model_for(Rec, name, 3, chans=[2, 2], ksizes=[3, 3], **(dict(hidden=4) if name == "cnnbilstm" else {}))
    return FiringRates(model, Frames(Rec.train, history=3).scale, 1e-3, 0, "")


@pytest.mark.parametrize("name", ["bncnn", "cnnbilstm"])
def test_quickest_changes_nothing(name):
    frames = Clips(Frames(Rec.train, history=3)) if name == "cnnbilstm" else Frames(Rec.train, history=3)
    m, x = module(name), frames.__getitems__(list(range(8)))
    before, rng = copy.deepcopy(m.state_dict()), torch.get_rng_state()
    layout, in_bfloat16 = quickest(m, x)
    assert layout in (torch.contiguous_format, torch.channels_last) and in_bfloat16 in (True, False)
    assert not quickest(m, x, [False])[1] and torch.equal(rng, torch.get_rng_state())
    for k, v in m.state_dict().items(): assert torch.equal(v, before[k])


def write(folder):
    rng = np.random.default_rng(0)
    spikes = [np.sort(rng.uniform(0, 20, 300)) for _ in range(2)]
    return Recording(write_recording(folder/"noise.h5", rng.integers(0, 256, (2000, 9, 10), dtype=np.uint8), spikes, test_stimulus=np.zeros((50, 9, 10), np.uint8), test_spikes=[[[.1]]*2]*2))


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_every_way_trains(tmp_path, monkeypatch, in_bfloat16):
    "The numbers of a run are about those of any other way to compute them"
    real, made = OnDevice.setup, []
    def setup(self, loop, module, stage):
        real(self, loop, module, stage)
        self.choose(loop, module)
        made.append(module)
    recording = write(tmp_path)
    def run(out): return fit(model_for(recording, history=3, chans=[2, 2], ksizes=[3, 3], noise=0), recording, tmp_path/out, epochs=1, batch_size=50, progress=False)
    torch.manual_seed(0)
    plain = run("plain").history
    monkeypatch.setattr(OnDevice, "setup", setup)
    monkeypatch.setattr(training, "quickest", lambda *_: (torch.channels_last, in_bfloat16))
    torch.manual_seed(0)
    other = run("other").history
    assert made[0].in_bfloat16 == in_bfloat16
    assert made[0].model.sequential[0].weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(other.train_loss, plain.train_loss, rtol=.02 if in_bfloat16 else 1e-3)


def test_batches_are_made_on_the_device():
    "Every tensor of a batch is where the data were moved; validation takes the movie that training has there"
    m = module()
    for kind in (lambda f: f, Clips):
        train, valid = Loader(kind(Frames(Rec.train, history=3))), Loader(kind(Frames(Rec.train, range(50), history=3)))
        train.dataset.to("meta"), valid.dataset.to("meta", like=train.dataset)
        inner = [getattr(l.dataset, "frames", l.dataset) for l in (train, valid)]
        assert inner[0].stimulus is inner[1].stimulus and inner[0].stimulus.device.type == "meta"
        if kind is not Clips:  # which frames are distinct depends on their numbers, and meta tensors have none
            x, y = valid.dataset.__getitems__([0, 3, 4])
            assert x.device.type == y.device.type == "meta" and x.shape == (3, 3, 9, 10)
    assert Features(torch.zeros(5, 3), torch.zeros(5, 2)).to("meta").__getitems__([0, 1])[0].device.type == "meta"
    train, valid = Loader(Frames(Rec.train, history=3)), Loader(Frames(Rec.train, range(50), history=3))
    OnDevice(train, valid, [False]).setup(Loop, m, "fit")
    assert train.batch_sampler.rank == valid.batch_sampler.rank == 3 and not train.pin_memory and valid.dataset.stimulus is train.dataset.stimulus


def test_no_room(monkeypatch):
    class OnGpu:
        device = torch.device("cuda")
    train, valid = Loader(Frames(Rec.train, history=3)), Loader(Frames(Rec.train, range(50), history=3))
    monkeypatch.setattr(training, "room", lambda device: 1.9*train.dataset.nbytes)
    monkeypatch.setattr(OnDevice, "choose", lambda *_: None)
    OnDevice(train, valid, [False]).setup(Loop, OnGpu, "fit")
    assert train.pin_memory and valid.pin_memory and train.dataset.stimulus.device.type == "cpu"
