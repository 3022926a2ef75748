"""A GPU's half precision, rehearsed on a CPU: where it overflows, where it rounds, and where it stays in FP32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from demi.cli.main import main
from demi.errors import InputError
from demi.training.loop import train
from demi.training.precision import why_slow
from demi.training.rehearsal import cuda_autocast, rehearsing
from demi.training.request import TrainRequest
from tests.training.tasks import BackwardOverflow, ForwardOverflow, Task

CPU = torch.device("cpu")


def rehearsed(function, *inputs: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """The result of a function in a rehearsal."""
    with rehearsing(), cuda_autocast(CPU, dtype):
        found: Tensor = function(*inputs)
    return found


def test_a_product_beyond_the_range_is_infinite():
    """65,504 is the largest FP16: 300 x 300 is beyond it, and in BF16 it is not."""
    x = torch.full((1, 1), 300.0)

    assert torch.inf == rehearsed(torch.mm, x, x).item()
    assert 90112.0 == rehearsed(torch.mm, x, x, dtype=torch.bfloat16).item()


def test_sums_inside_a_product_are_fp32():
    """As in tensor cores: 60,000 + 60,000 - 60,000 fits, though its first part does not."""
    x = torch.tensor([[60000.0, 60000.0, -60000.0]])

    assert 60000.0 == rehearsed(torch.mm, x, torch.ones(3, 1)).item()


def test_results_are_rounded_once():
    """1 + 2^-11 + 2^-11 is 1 + 2^-10 when rounded at the end, and 1 when rounded on the way."""
    x = torch.tensor([[1.0, 2.0**-11, 2.0**-11]])

    assert 1 + 2.0**-10 == rehearsed(torch.mm, x, torch.ones(3, 1)).item()


@pytest.mark.parametrize(("size", "expected"), [(70000.0, torch.inf), (1e-8, 0.0), (1000.0, 1000.0)])
def test_gradients_are_stored_in_half(size, expected):
    """On its way through a linear layer a gradient overflows and vanishes as activations do."""
    layer, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1, requires_grad=True)
    nn.init.ones_(layer.weight)
    with rehearsing():
        with cuda_autocast(CPU, torch.float16):
            y = layer(x)
        y.backward(torch.full_like(y, 1.0).float().mul(size).to(y.dtype))

    assert torch.float32 is x.grad.dtype
    assert expected == x.grad.item()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.pow(2),
        lambda x: x**2,
        torch.exp,
        lambda x: functional.softmax(x, -1),
        lambda x: x.softmax(-1),
        lambda x: functional.layer_norm(x, (4,)),
        torch.sum,
        lambda x: x.norm(),
        lambda x: functional.mse_loss(x, x),
    ],
)
def test_what_cuda_keeps_in_fp32(function):
    """Powers, exponentials, sums, normalizations and losses; a CPU's own autocast leaves most of them in half."""
    x = torch.full((2, 4), 11.0, dtype=torch.float16)

    assert torch.float32 is rehearsed(function, x).dtype


def test_a_power_that_a_cpus_autocast_loses():
    """300 squared: infinite in the type of its input, and 90,000 on a GPU."""
    x = torch.full((1,), 300.0, dtype=torch.float16)
    with torch.autocast("cpu", torch.float16):
        native = x.pow(2)

    assert (torch.inf, 90000.0) == (native.item(), rehearsed(lambda x: x.pow(2), x).item())


def test_a_type_that_was_asked_for():
    """It is not overruled."""
    x = torch.ones(3, dtype=torch.float16)
    assert torch.float64 is rehearsed(lambda x: x.sum(dtype=torch.float64), x).dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3), (2, 3, 8, 8)),
        (nn.ConvTranspose1d(3, 4, 3), (2, 3, 8)),
        (nn.LSTM(3, 4), (5, 2, 3)),
        (nn.GRU(3, 4), (5, 2, 3)),
        (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0), (5, 2, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_are_near_fp32(layer, shape, dtype):
    """Forward and backward, with the error of the type and not more; a CPU itself cannot run an LSTM in FP16."""
    torch.manual_seed(0)
    x = torch.randn(shape)

    def gradients(half: bool) -> Tensor:
        layer.zero_grad()
        with rehearsing():
            with cuda_autocast(CPU, dtype) if half else torch.autocast("cpu", enabled=False):
                found = layer(x)
                output = found[0] if isinstance(found, tuple) else found
            output.float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in layer.parameters()])

    exact, half = gradients(False), gradients(True)
    error = float((half - exact).norm() / exact.norm())
    assert 0 < error < 20 * torch.finfo(dtype).eps


def test_fp32_is_left_alone():
    """Bit for bit, and nothing stays switched on."""
    x = torch.randn(5, 5)
    with rehearsing():
        found = x @ x
    assert torch.equal(x @ x, found)
    assert torch.float16 is (x.half() @ x.half()).dtype


@pytest.mark.parametrize(
    ("task", "words"), [(ForwardOverflow(), "forward in `1`"), (BackwardOverflow(), "backward in")]
)
def test_a_run_is_skipped_where_a_gpu_would_skip(tmp_path, task, words):
    """The cause is the same as in native half."""
    notes: list[str] = []
    train(TrainRequest(task, 2, tmp_path, "fp16", rehearse=True, init_scale=1.0), note=notes.append)

    assert any(words in note for note in notes)


@pytest.mark.parametrize(
    ("flags", "precision", "is_slow"),
    [
        ({"avx2": True}, "fp16", True),
        ({"avx2": True}, "bf16", True),
        ({"avx512_bf16": True}, "fp16", True),
        ({"avx512_fp16": True}, "fp16", False),
        ({"amx_bf16": True}, "bf16", False),
        ({"avx2": True}, "fp32", False),
    ],
)
def test_a_slow_cpu_is_named(monkeypatch, flags, precision, is_slow):
    """Without hardware for the type the option is worth a note, and with it there is none."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: flags)
    assert is_slow == ("--rehearse" in why_slow(precision, "cpu"))


def test_a_gpu_needs_no_rehearsal(tmp_path):
    """It is the stage itself."""
    with pytest.raises(InputError, match="a GPU computes in half itself"):
        TrainRequest(Task(), 1, tmp_path, "fp16", rehearse=True, device="cuda")


@pytest.mark.slow
def test_the_command(tmp_path, capsys, monkeypatch):
    """A rehearsed run resumes bit for bit as well."""
    monkeypatch.chdir(tmp_path)
    options = ["--steps", "6", "--precision", "fp16", "--rehearse", "--save-every", "3", "-o", "run"]
    assert 0 == main(["train", "tests.training.tasks:task", *options, "--verify-resume"])
    assert "bit for bit" in capsys.readouterr().err
