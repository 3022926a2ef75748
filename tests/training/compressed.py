"""A loop of one's own on two ranks, whose gradients are sent in FP16: too large for that, and finite on every rank."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import demi


def run() -> None:
    """Take a good step and one whose gradient is about 1e6; print both causes."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1))
    model.register_comm_hook(None, fp16_compress_hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with demi.watch(model, optimizer, note=lambda _: None) as watch:
        for factor in (1.0, 1e6):
            optimizer.zero_grad()
            (model(torch.ones(2, 4)).mean() * factor).backward()
            optimizer.step()
            if torch.distributed.get_rank() == 0:
                print(watch.last.cause if watch.last else "none", flush=True)
    torch.distributed.barrier()


if __name__ == "__main__":
    run()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes abort a process that tears down its libraries (PyTorch 2.13)
