"What is decided for a device, with the CPU in the place of a GPU"
import copy

import numpy as np
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import retina_nb.timing as timing
from retina_nb.data import Frames, Part, Recording, write_recording
from retina_nb.cnnbilstm import FrameClips
from retina_nb.device import step_time
from retina_nb.parallel import train_sessions
from retina_nb.stacked import CachedFeatures
from retina_nb.timing import Case, step_flops
from retina_nb.training import (BatchSampler, ChooseLayout, FiringRates, Layout, MoveDataToDevice, fastest_layout, fit,
                                model_for, train_run)


class Rec:
    rng, hz = np.random.default_rng(0), 100
    train, n_cells = Part(rng.integers(0, 256, (400, 9, 10), dtype=np.uint8), rng.gamma(.2, 20, (400, 2)).astype(np.float32)), 2


class Loader:
    def __init__(self, dataset): self.dataset, self.pin_memory, self.batch_sampler = dataset, False, BatchSampler(range(len(dataset)), 8, world=4)


class OneOfFour: global_rank = 3


def module(name="bncnn"):
    model = model_for(Rec, name, 3, chans=[2, 2], ksizes=[3, 3], **(dict(hidden=4) if name == "cnnbilstm" else {}))
    return FiringRates(model, Frames(Rec.train, history=3).scale, 1e-3, 0, "")


@pytest.mark.parametrize("name", ["bncnn", "cnnbilstm"])
def test_fastest_layout_changes_nothing(name):
    frames = FrameClips(Frames(Rec.train, history=3)) if name == "cnnbilstm" else Frames(Rec.train, history=3)
    m, x = module(name), frames.__getitems__(list(range(8)))
    before, rng = copy.deepcopy(m.state_dict()), torch.get_rng_state()
    layout, in_bfloat16 = fastest_layout(m, x)
    assert layout in (torch.contiguous_format, torch.channels_last) and in_bfloat16 in (True, False)
    assert not fastest_layout(m, x, [False])[1] and torch.equal(rng, torch.get_rng_state())
    for k, v in m.state_dict().items(): assert torch.equal(v, before[k])


def write(folder, frames=2000):
    rng = np.random.default_rng(0)
    spikes = [np.sort(rng.uniform(0, frames/100, 3*frames//20)) for _ in range(2)]
    return Recording(write_recording(folder/"noise.h5", rng.integers(0, 256, (frames, 9, 10), dtype=np.uint8), spikes, test_stimulus=np.zeros((50, 9, 10), np.uint8), test_spikes=[[[.1]]*2]*2))


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_every_way_trains(tmp_path, monkeypatch, in_bfloat16):
    "The numbers of a run are about those of any other way to compute them"
    made = []
    def setup(self, trainer, module, stage):
        self.choose(trainer, module)
        made.append(module)
    recording = write(tmp_path)
    def run(out): return fit(model_for(recording, history=3, chans=[2, 2], ksizes=[3, 3], noise=0), recording, tmp_path/out, epochs=1, batch_size=50, progress=False)
    torch.manual_seed(0)
    plain = run("plain").history
    monkeypatch.setattr(ChooseLayout, "setup", setup)
    monkeypatch.setattr("retina_nb.device.fastest_layout", lambda *_: Layout(torch.channels_last, in_bfloat16))
    torch.manual_seed(0)
    other = run("other").history
    assert made[0].in_bfloat16 == in_bfloat16
    assert made[0].model.sequential[0].weight.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(other.train_loss, plain.train_loss, rtol=.02 if in_bfloat16 else 1e-3)


def test_batches_are_made_on_the_device():
    "Every tensor of a batch is where the data were moved; validation takes the movie that training has there"
    m = module()
    for kind in (lambda f: f, FrameClips):
        train, valid = Loader(kind(Frames(Rec.train, history=3))), Loader(kind(Frames(Rec.train, range(50), history=3)))
        train.dataset.to("meta"), valid.dataset.to("meta", like=train.dataset)
        inner = [getattr(l.dataset, "frames", l.dataset) for l in (train, valid)]
        assert inner[0].stimulus is inner[1].stimulus and inner[0].stimulus.device.type == "meta"
        if kind is not FrameClips:  # which frames are distinct depends on their numbers, and meta tensors have none
            x, y = valid.dataset.__getitems__([0, 3, 4])
            assert x.device.type == y.device.type == "meta" and x.shape == (3, 3, 9, 10)
    assert CachedFeatures(torch.zeros(5, 3), torch.zeros(5, 2)).to("meta").__getitems__([0, 1])[0].device.type == "meta"
    train, valid = Loader(Frames(Rec.train, history=3)), Loader(Frames(Rec.train, range(50), history=3))
    MoveDataToDevice(train, valid).setup(OneOfFour, m, "fit")
    assert train.batch_sampler.rank == valid.batch_sampler.rank == 3 and not train.pin_memory and valid.dataset.stimulus is train.dataset.stimulus


def test_no_room(monkeypatch):
    class OnGpu:
        device = torch.device("cuda")
    train, valid = Loader(Frames(Rec.train, history=3)), Loader(Frames(Rec.train, range(50), history=3))
    monkeypatch.setattr("retina_nb.device.free_memory", lambda device: 1.9*train.dataset.nbytes)
    MoveDataToDevice(train, valid).setup(OneOfFour, OnGpu, "fit")
    assert train.pin_memory and valid.pin_memory and train.dataset.stimulus.device.type == "cpu"


class OnGpu(torch.Tensor):
    "A tensor that says that it is on a GPU and refuses to meet those that are not; its numbers are on the CPU"
    device, is_cuda = property(lambda self: torch.device("cuda:0")), property(lambda self: True)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, numbers):
        new = torch.Tensor._make_wrapper_subclass(cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype, device="meta")
        new.numbers = numbers
        return new

    def __format__(self, how): return format(self.item(), how)
    def tolist(self): return self.numbers.tolist()
    def __reduce_ex__(self, protocol): return torch.clone, (self.numbers.detach(),)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    "What an operation gives, on the CPU, if its tensors could have met"
    name, device = func.overloadpacket.__name__, kwargs.get("device")
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, OnGpu)]
    here = [t for t in tensors if not isinstance(t, OnGpu) and t.ndim]
    may_meet = name in ("copy_", "_to_copy") or name in ("index", "index_put", "index_put_") and isinstance(args[0], OnGpu) and all(not t.is_floating_point() for t in here)
    assert not (there and here) or may_meet, f"{name}: tensors on two devices, {[(type(t).__name__, tuple(t.shape)) for t in tensors]}"
    on_gpu = torch.device(device).type != "cpu" if device is not None else isinstance(args[0], OnGpu) if name == "copy_" else bool(there)

    def bare(t): return t.numbers if isinstance(t, OnGpu) else t
    known = {id(bare(t)): t for t in tensors}
    found = func(*tree_map(bare, args), **tree_map(bare, kwargs) | ({"device": "cpu"} if device is not None else {}))
    return tree_map(lambda t: known.get(id(t), OnGpu(t) if on_gpu else t) if isinstance(t, torch.Tensor) else t, found)


class PretendGpu(TorchDispatchMode):
    "A device cuda:0 for whatever is computed, which needs none"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return compute(func, args, kwargs or {})


def time_in_full_precision(module, batch, layout):
    "One step of each way, of which none in bfloat16 wins: its numbers are others"
    return step_time(module, batch, layout, n=1) + 9*layout.in_bfloat16


@pytest.fixture
def gpu(monkeypatch):
    load = torch.load  # a class of tensors that stands for a device is none of those that are loaded safely
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: load(*args, **kwargs | dict(weights_only=False)))
    plain, made = torch.Tensor.to, {name: getattr(torch, name) for name in ("tensor", "as_tensor")}

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor): args = (args[0].device, args[0].dtype)
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        if not isinstance(self, OnGpu) and (device is None or device.type == "cpu"): return plain(self, *args, **kwargs)
        more = dict(dtype=dtype) if dtype else {}
        if layout and self.ndim == 4: more["memory_format"] = layout
        if not more and device in (None, self.device): return self
        return torch.ops.aten._to_copy(self, device=device or self.device, **more)

    def on(name):
        def make(*args, device=None, **kwargs):
            new = made[name](*args, **kwargs)
            return new if device is None else new.to(device)
        return make
    for name in made: monkeypatch.setattr(torch, name, on(name))  # these two and `to` look for the device before a mode is asked
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self.to("cpu"))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr("retina_nb.device.free_memory", lambda device: 1e9)
    monkeypatch.setattr("retina_nb.device.step_time", time_in_full_precision)
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda self, device: None)
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    with PretendGpu(): yield SingleDeviceStrategy(torch.device("cuda:0"), CPUAccelerator())
    torch.__future__.set_swap_module_params_on_conversion(swapped)


small = dict(chans=[2, 2], ksizes=[3, 3], noise=0)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*", "ignore:.*without cuDNN.*")
@pytest.mark.parametrize("name, settings", [("bncnn", small), ("stackedconv", small), ("stacked", {}), ("cnnbilstm", small | dict(hidden=4)), ("adaptive", dict(subunits=3, n_basis=4, spike_history=5, core=8))])
def test_nothing_stays_behind(tmp_path, request, name, settings):
    "All that a training needs is on the device, and it finds the numbers that the CPU finds"
    recording, how = write(tmp_path, frames=600), dict(history=5, epochs=1, batch_size=200, progress=False)
    if name == "stacked": settings = dict(base=train_run(recording, "bncnn", tmp_path/"base", settings=small, accelerator="cpu", **how).path)
    plain = train_run(recording, name, tmp_path/"plain", settings=settings, accelerator="cpu", **how).history
    other = train_run(recording, name, tmp_path/"gpu", settings=settings, strategy=request.getfixturevalue("gpu"), **how).history
    np.testing.assert_allclose(other[["train_loss", "valid_loss"]], plain[["train_loss", "valid_loss"]], rtol=.001)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*", "ignore:.*without cuDNN.*")
@pytest.mark.slow
def test_nothing_stays_behind_of_two_recordings(tmp_path, gpu):
    for name in "ab": (tmp_path/name).mkdir()
    runs = train_sessions([write(tmp_path/name) for name in "ab"], "adaptive", tmp_path/"run", history=5, settings=dict(subunits=3, n_basis=4), epochs=1, batch_size=200, progress=False, strategy=gpu)
    assert len(runs) == 2 and all(np.isfinite(run.results["valid_loss"]) for run in runs)


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*", "ignore:.*without cuDNN.*")
@pytest.mark.slow
def test_benchmarks_measure_on_the_device(tmp_path, monkeypatch, gpu):
    monkeypatch.setattr(timing, "device", torch.device("cuda:0"))
    rec = write(tmp_path)
    for case in (Case(rec, history=3, **small), Case(rec, "cnnbilstm", 3, hidden=4, **small), Case(rec, "adaptive", 3, 8)):
        assert case.time_bare_steps(1) > 0 and next(case.model.parameters()).is_cuda
        if not case.model.stateful: assert case.time_reference_steps(1) > 0
    assert step_flops(Case(rec, history=3, **small)) > 0
