"""Several trainings in the same ranks, one after the other: starting processes takes longer than training."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch

from demi.cli.main import main


def run(shard: str) -> int:
    """Train what test_ranks.py looks at, each run into a folder of its own below the current one."""
    common = ["--shard", shard, "--json"]
    faulty, good, task = (f"tests.training.tasks:{name}" for name in ("overflow_on_rank_1", "no_buffers", "task"))
    half = ["--precision", "fp16", *common]
    commands = [
        [faulty, "--steps", "6", *half, "-o", "faulty"],
        [good, "--steps", "5", *half, "-o", "whole"],
        [good, "--steps", "3", *half, "-o", "parts"],
        [good, "--steps", "5", *half, "-o", "parts", "--resume"],
    ]
    if shard == "ddp":
        commands.append([task, "--steps", "4", "--precision", "bf16", *common, "-o", "fewer"])
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    code = max(main(["train", *command]) for command in commands)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return code


if __name__ == "__main__":
    ended = run(sys.argv[1])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(ended)  # gloo's threads sometimes abort a process that tears down its libraries (PyTorch 2.13)
