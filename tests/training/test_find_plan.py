"""A precision for each module, measured on gradients: the cheapest within a budget, with a reason for each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from demi.cli.main import main
from demi.errors import InputError
from demi.plan import Precision, Reason, read_plan
from demi.training.batches import Batches
from demi.training.find_plan import Planned, _choose, _Costs, find_plan, own_flops
from demi.training.loop import prepare, train
from demi.training.module_precision import ROOT, applied, by_name, plan_of_pins, without_plan
from demi.training.request import TrainRequest
from demi.training.state import TrainState
from tests.training.tasks import Pair, Task

CPU = torch.device("cpu")


class Large(nn.Module):
    """A linear layer whose products pass FP16's 65,504, and a division that brings them back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)
        with torch.no_grad():
            self.inner.weight.mul_(1e6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / 1e6


class OneLarge(Task):
    """One module of three overflows in FP16."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), Large(), nn.Linear(16, 2))


def measured(folder, task: Task, precision: str = "fp16", **options) -> tuple[TrainState, Planned]:
    """A plan, rehearsed, and the state it was measured with."""
    request = TrainRequest(task, 3, folder, precision, rehearse=True)
    state = prepare(request)
    with state.arithmetic():
        return state, find_plan(state, Batches(request, state).take(1)[0], **options)


def test_a_healthy_model_is_half(tmp_path):
    """Every module that multiplies, and no other, is in the plan; errors in squares predict what is measured."""
    _, found = measured(tmp_path, Task(), "bf16")

    assert ["0", "4"] == list(found.plan.decisions)
    assert {Reason.SAFE} == {decision.reason for decision in found.plan.decisions.values()}
    assert 1.0 == found.half_flops
    assert 0.5 < found.predicted / found.measured < 2
    assert found.measured == found.all_half < found.budget
    assert 1.0 == pytest.approx(sum(decision.share for decision in found.plan.decisions.values()))


def test_a_module_that_overflows_stays_fp32(tmp_path):
    """It is named, the others are half, and the step is finite."""
    _, found = measured(tmp_path, OneLarge())

    assert {"0": Reason.SAFE, "1.inner": Reason.OVERFLOW, "2": Reason.SAFE} == {
        name: decision.reason for name, decision in found.plan.decisions.items()
    }
    assert math.isinf(found.all_half)
    assert found.measured < 1e-2
    assert "not finite at any loss scale" in found.plan["1.inner"].evidence


def test_a_tight_budget_keeps_what_loses_most(tmp_path):
    """The reason is the measured share of the budget; the measured error is within it."""
    _, free = measured(tmp_path / "a", Task(), "bf16")
    _, tight = measured(tmp_path / "b", Task(), "bf16", budget=0.9 * free.measured)
    (single,) = [decision for decision in tight.plan.decisions.values() if not decision.is_half]

    assert Reason.SENSITIVE is single.reason
    assert "of the budget" in single.evidence
    assert tight.measured <= tight.budget


def test_no_budget_at_all(tmp_path):
    """Nothing is half."""
    _, found = measured(tmp_path, Task(), "bf16", budget=1e-9)
    assert (0, 0.0) == (found.plan.half_nodes, found.measured)


def test_the_cheapest_choice():
    """`big` saves most error for a FLOP and goes first; when it is gone, `small` fits again."""
    costs = _Costs({"big": 10, "mid": 100, "small": 1}, {"big": 9.0, "mid": 1.0, "small": 1.0})

    assert {"mid", "small"} == _choose(costs, set(), 2.0)
    assert {"mid"} == _choose(costs, set(), 1.5)
    assert {"mid"} == _choose(costs, {"small"}, 2.0)
    assert {"big", "mid", "small"} == _choose(costs, set(), 11.0)


def test_measuring_leaves_no_trace(tmp_path):
    """Weights, BatchNorm's statistics, gradients and random numbers are as they were."""
    request = TrainRequest(Task(), 3, tmp_path, "fp16", rehearse=True)
    state = prepare(request)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    random = torch.get_rng_state()
    with state.arithmetic():
        find_plan(state, Batches(request, state).take(1)[0])

    assert all(torch.equal(before[name], tensor) for name, tensor in state.model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert [] == state.gradients()
    assert not any(module._forward_pre_hooks for module in state.model.modules())


class Attention(Task):
    """A model with products of its own beside those of its layers, as attention has them, and a recurrent layer."""

    def model(self) -> nn.Module:
        return _Attention()


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent, self.last = nn.Linear(8, 8), nn.LSTM(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z, _ = self.recurrent(y)
        return self.last((y @ y.T).softmax(-1) @ z)


def test_flops_of_a_modules_own_code(tmp_path):
    """Those of its children are theirs; recurrent layers count by their weights."""
    request = TrainRequest(Attention(), 1, tmp_path, "fp16", rehearse=True)
    state = prepare(request)
    found = own_flops(state, Batches(request, state).take(1)[0])

    lstm = sum(p.numel() for p in state.model.recurrent.parameters())
    assert {ROOT: 4 * 32 * 32 * 8, "first": 2 * 32 * 64, "recurrent": lstm, "last": 2 * 32 * 16} == found


@pytest.mark.parametrize("single", [[ROOT], ["first"], ["recurrent", "last"], [ROOT, "first", "recurrent", "last"]])
def test_any_mixture_runs(tmp_path, single):
    """Half children below an FP32 parent and the reverse: types fit forward and backward, also where autocast is off."""
    request = TrainRequest(Attention(), 1, tmp_path, "fp16", rehearse=True)
    state = prepare(request)
    x, y = Batches(request, state).take(1)[0]
    seen: dict[str, torch.dtype] = {}
    for name, module in by_name(state.model).items():
        module.register_forward_hook(
            lambda _, __, output, name=name: seen.__setitem__(
                name, (output[0] if isinstance(output, tuple) else output).dtype
            )
        )
    _, found = measured(tmp_path / "m", Attention())
    decisions = dict(found.plan.decisions)
    plan = plan_of_pins(state.model, "fp16", dict.fromkeys(single, "test"))
    plan = type(plan)("fp16", decisions | dict(plan.decisions))
    with state.arithmetic(), applied(state.model, plan, CPU, torch.float16):
        with state.autocast():
            loss = nn.functional.cross_entropy(state.model(x).float(), y)
        loss.backward()
        half = dict(seen)
        state.model(x)

    assert all(torch.float32 is half[name] for name in single)
    assert all(torch.float16 is half[name] for name in half.keys() - {*single, ROOT} if name in decisions)
    assert {torch.float32} == set(seen.values())


class TestRun:
    """Plans of a whole run."""

    def test_a_measured_plan_is_kept(self, tmp_path):
        """It is in the run's folder, no step is skipped, and a resumed run has the same one."""
        notes: list[str] = []
        request = TrainRequest(OneLarge(), 4, tmp_path, "fp16", rehearse=True, find_plan=True, init_scale=1.0)
        done = train(request, note=notes.append)
        plan = read_plan(tmp_path / "plan.json")

        assert ({}, 4) == (done.skipped, done.updates)
        assert Precision.SINGLE is plan["1.inner"].precision
        assert "2 of 3 modules in fp16" in notes[0]
        assert "1.inner (Linear) stays FP32: overflow" in notes[1]

    def test_a_given_plan(self, tmp_path):
        """Written by one run, applied by another; without it every step is skipped."""
        made = TrainRequest(OneLarge(), 1, tmp_path / "a", "fp16", rehearse=True, find_plan=True)
        train(made)
        plan = read_plan(tmp_path / "a/plan.json")
        given = TrainRequest(OneLarge(), 2, tmp_path / "b", "fp16", rehearse=True, plan=plan, init_scale=1.0)
        without = TrainRequest(OneLarge(), 2, tmp_path / "c", "fp16", rehearse=True, init_scale=1.0)

        assert (2, 0) == (train(given).updates, train(without).updates)

    def test_modules_that_the_user_keeps(self, tmp_path):
        """A path, a glob or a class; what lies below follows."""
        for number, name in enumerate(("1", "1.*", "Large")):
            request = TrainRequest(
                OneLarge(), 2, tmp_path / str(number), "fp16", rehearse=True, keep_fp32=(name,), init_scale=1.0
            )
            assert 2 == train(request).updates
        assert Reason.PINNED is read_plan(tmp_path / "0/plan.json")["1"].reason

    def test_pins_are_not_measured(self, tmp_path):
        """They are in the plan with their reason."""
        _, found = measured(tmp_path, OneLarge(), keep_fp32=("Large",))
        assert (Reason.PINNED, "--keep-fp32 Large") == (
            found.plan["1.inner"].reason,
            found.plan["1.inner"].evidence,
        )

    def test_the_handed_over_model_has_no_plan(self, tmp_path):
        """Hooks would be traced into the program."""
        request = TrainRequest(Task(), 1, tmp_path, "fp16", rehearse=True, keep_fp32=("0",), save_model=True)
        train(request)
        state = prepare(TrainRequest(Task(), 1, tmp_path / "b", "fp16"))
        from demi.training.module_precision import apply_plan

        apply_plan(state.model, read_plan(tmp_path / "plan.json"), CPU, torch.float16)
        assert not any(module._forward_hooks for module in without_plan(state.model).modules())

    @pytest.mark.slow
    def test_the_command(self, tmp_path, capsys, monkeypatch):
        """Measured, resumed and verified in a fresh process; `demi diff` reads the file."""
        monkeypatch.chdir(tmp_path)
        task = ["train", "tests.training.test_find_plan:OneLarge", "--precision", "fp16", "--rehearse"]
        options = ["--steps", "4", "--save-every", "2", "--find-plan", "-o", "run", "--verify-resume"]
        assert 0 == main([*task, *options])
        assert "bit for bit" in capsys.readouterr().err
        assert 3 == len(json.loads((tmp_path / "run/plan.json").read_text())["decisions"])
        assert 0 == main([*task, "--steps", "2", "--plan", "run/plan.json", "-o", "again"])
        assert 0 == main(["diff", "run/plan.json", "again/plan.json"])


class NoData(Task):
    """A task without batches."""

    def batches(self, position) -> Iterator[Pair]:
        return iter(())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_fp32": ("nothing.*",)}, "no module is named `nothing"),
        ({"precision": "fp32", "keep_fp32": ("0",)}, "fp32 takes no plan: nothing is half"),
        ({"precision": "bf16-pure", "find_plan": True}, "bf16-pure takes no plan: its weights are BF16 themselves"),
        ({"find_plan": True, "shard": "fsdp"}, "fsdp takes no plan: it casts each block"),
        ({"find_plan": True, "task": NoData()}, "no batch to measure"),
    ],
)
def test_what_is_refused(tmp_path, options, words):
    """With what to do."""
    given = {"task": Task(), "steps": 1, "folder": tmp_path, "precision": "fp16"} | options
    with pytest.raises(InputError, match=words) as caught:
        train(TrainRequest(**given))
    assert caught.value.hint


def test_a_plan_of_another_model(tmp_path):
    """Its first unknown module is named; so is one for another precision."""
    request = TrainRequest(OneLarge(), 1, tmp_path / "a", "fp16", rehearse=True, find_plan=True)
    train(request)
    plan = read_plan(tmp_path / "a/plan.json")

    with pytest.raises(InputError, match=r"no module `1\.inner`"):
        train(TrainRequest(Task(), 1, tmp_path / "b", "fp16", plan=plan))
    with pytest.raises(InputError, match="the plan is for fp16"):
        TrainRequest(OneLarge(), 1, tmp_path / "c", "bf16", plan=plan)


def test_seeds_share_one_plan(tmp_path, capsys, monkeypatch):
    """A comparison takes a plan that was found before."""
    monkeypatch.chdir(tmp_path)
    options = ["--steps", "1", "--precision", "fp16", "--compare", "2", "--find-plan"]
    assert 2 == main(["train", "tests.training.tasks:task", *options])
    assert "every seed would get a plan of its own" in capsys.readouterr().err
