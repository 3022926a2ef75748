"""Train a task of `demi train` under Ray: the same task, other processes.

    python examples/ray_train.py tasks:Digits --workers 2 --steps 200 -o runs/digits

Ray starts the workers and opens their process group, as torchrun does for `demi train --shard ddp`; a run's folder has the
same files either way. Needs `pip install "demi-inference[train]" "ray[train]"`. With workers on several machines, the
folder must be on storage that all of them share.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def train_worker(config: dict[str, Any]) -> None:
    """Train on one worker; Ray calls this in each."""
    from demi.training.loop import train
    from demi.training.request import TrainRequest
    from demi.training.task import load_task

    request = TrainRequest(
        task=load_task(config["task"]),
        steps=config["steps"],
        folder=Path(config["folder"]),
        precision=config["precision"],
        shard="ddp",
        device="cuda" if config["gpu"] else "cpu",
    )
    done = train(request, note=print)
    if os.environ["RANK"] == "0":
        print(f"trained {done.steps} steps: {done.metrics}")


def main() -> None:
    """Start the workers, and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("task", metavar="PKG.MOD:TASK")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--steps", type=int, default=200, metavar="N")
    parser.add_argument("--precision", default="bf16", metavar="P")
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    args = parser.parse_args()

    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder = args.output.resolve()
    config = {
        "task": args.task,
        "steps": args.steps,
        "folder": str(folder),
        "precision": args.precision,
        "gpu": args.gpu,
    }
    TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=args.workers, use_gpu=args.gpu),
        run_config=RunConfig(name="ray", storage_path=str(folder)),
    ).fit()


if __name__ == "__main__":
    main()
