"""A model on several devices: a copy on each rank (DDP), or a share of its weights on each (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as whole
from torch.optim import Optimizer

from demi.errors import InputError
from demi.training.precision import Precision

_WHOLE = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)
_SPREAD = whole.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def share_out(model: nn.Module, shard: str, precision: Precision, device: torch.device) -> nn.Module:
    """Return a model as all ranks train it together; `shard` is empty, `ddp` or `fsdp`.

    FSDP casts parameters itself, and averages gradients in FP32. Raises InputError for weights in half with FSDP.
    """
    if shard == "ddp":
        return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    if shard == "fsdp":
        if precision.weights is not torch.float32:
            raise InputError(
                f"--shard fsdp does not take {precision.name}", where="--precision", hint="use fp32, bf16 or fp16"
            )
        return _fsdp(model, precision)
    return model


def _fsdp(model: nn.Module, precision: Precision) -> nn.Module:
    """Shard each block of a list of blocks by itself, such as a transformer's layers, and what is left as one."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=precision.compute, reduce_dtype=torch.float32, output_dtype=torch.float32)
    blocks = [each for module in model.modules() if isinstance(module, nn.ModuleList) for each in module]
    for block in blocks:
        if any(True for _ in block.parameters()) and not isinstance(block, nn.ModuleList):
            fully_shard(block, mp_policy=MixedPrecisionPolicy(precision.compute, torch.float32))
    fully_shard(model, mp_policy=policy)
    return model


def gather_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the whole weights and the whole optimizer state of a sharded model; on ranks but the first both are empty."""
    weights, state = whole.get_state_dict(model, optimizer, options=_WHOLE)
    return cast(dict[str, Tensor], weights), dict(state)


def spread_state(
    model: nn.Module, optimizer: Optimizer, weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Give every rank its share of what `gather_state` returned; all ranks call this with the whole."""
    whole.set_state_dict(
        model, optimizer, model_state_dict=dict(weights), optim_state_dict=dict(state), options=_SPREAD
    )
