"Convolutions by Fourier transform: the numbers and the gradients of plain ones, whatever the sizes"
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retina_nb.bncnn import BNCNN
from retina_nb.cnnbilstm import CNNBiLSTM
from retina_nb.fourier import FourierConv2d, fourier_convolution, fourier_pays
from retina_nb.stacked import StackedConvBNCNN


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_convolution(data):
    "Any size, any kernel that fits, any number of channels"
    def whole(low, high): return data.draw(st.integers(low, high))
    size = whole(1, 17), whole(1, 17)
    images = torch.randn(whole(1, 3), whole(1, 5), *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(whole(1, 4), images.shape[1], whole(1, size[0]), whole(1, size[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.randn(len(weight), dtype=torch.float64, requires_grad=True)
    expected, found = F.conv2d(images, weight, bias), fourier_convolution(images, weight, bias)
    torch.testing.assert_close(found, expected)
    toward = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, (images, weight, bias), toward) for y in (found, expected)]
    for a, b in zip(*gradients): torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 1, 5])
def test_layer(padding, bias):
    "A layer is nn.Conv2d to whoever saves, loads or calls it, in float32 and float64"
    layer, plain = (kind(8, 8, 11, padding=padding, bias=bias) for kind in (FourierConv2d, nn.Conv2d))
    assert fourier_pays(layer.weight.shape, (40, 44))
    plain.load_state_dict(layer.state_dict(), strict=True)
    images = torch.randn(3, 8, 40, 44)
    torch.testing.assert_close(layer(images), plain(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.double()(images.double()), plain.double()(images.double()))


def test_published_kernels_stay_plain():
    "Kernels of 5 × 5 are not transformed: the reference's numbers are those of before, bit for bit"
    for shape, size in (((32, 1, 5, 5), (50, 50)), ((64, 32, 5, 5), (46, 46)), ((32, 32, 3, 3), (50, 50)), ((64, 32, 5, 5), (52, 52))):
        assert not fourier_pays(shape, size)


@pytest.mark.parametrize("kind", [BNCNN, StackedConvBNCNN])
def test_state_of_plain_layers(kind, monkeypatch):
    "Rates of the papers' kernels, against those of plain convolutions"
    torch.manual_seed(0)
    model = kind(img_shape=(12, 40, 36), chans=[8, 8], ksizes=[15, 11], n_units=2, bias=True).eval()
    x = torch.rand(2, 12, 40, 36)
    with torch.no_grad():
        found = model(x)
        monkeypatch.setattr("retina_nb.fourier.fourier_pays", lambda *shapes: False)
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


def test_full_field_starts_at_random():
    "No place, no start from the data; what is given is not suggested"
    shape = dict(img_shape=[36, 4, 4], n_units=2)
    assert BNCNN.suggest(shape, 90, full_field=True) == dict(ksizes=[2, 2, 2])
    assert CNNBiLSTM.suggest(shape, 90, full_field=True) == dict(carried=True, patch=4)
    carried = CNNBiLSTM(**shape, carried=True, patch=4)
    assert carried.default_lr == 10*CNNBiLSTM(**shape).default_lr
    assert CNNBiLSTM.suggest(shape, 90)["start"] == BNCNN.suggest(shape, 90)["start"] == "data"
