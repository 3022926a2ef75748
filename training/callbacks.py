"""The instruments as callbacks of other people's loops: transformers' Trainer, and Lightning's.

trainer = Trainer(model, arguments, train_dataset=data, callbacks=[transformers_callback()])
trainer = lightning.Trainer(precision="bf16-mixed", callbacks=[lightning_callback()])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demi.errors import missing_package
from demi.training.watch import Watch


def transformers_callback(**options: Any) -> Any:
    """Return a callback for transformers' Trainer; the options are those of `demi.watch`.

    Its log lies in the Trainer's output folder. `callback.watch` has counts and causes. Raises PackageError without
    transformers.
    """
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        raise missing_package("transformers", "examples") from error

    class Callback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        watch: Watch | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            """Attach to the model and the optimizer that are trained, and to Accelerate's loss scaler."""
            optimizer = parts["optimizer"]
            scaler = getattr(optimizer, "scaler", None)
            inner = getattr(optimizer, "optimizer", optimizer)
            chosen: dict[str, Any] = {"log": Path(args.output_dir), "scaler": scaler} | options
            self.watch = Watch(parts["model"], inner, **chosen)

        def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            """Detach."""
            if self.watch is not None:
                self.watch.close()

    return Callback()


def lightning_callback(**options: Any) -> Any:
    """Return a callback for Lightning's Trainer with one optimizer; the options are those of `demi.watch`.

    `callback.watch` has counts and causes. Raises PackageError where neither lightning nor pytorch_lightning is there.
    """
    try:
        from lightning.pytorch.callbacks import Callback as Base
    except ModuleNotFoundError:
        try:
            from pytorch_lightning.callbacks import Callback as Base
        except ModuleNotFoundError as error:
            raise missing_package("lightning", "train") from error

    class Callback(Base):  # type: ignore[misc, unused-ignore]
        watch: Watch | None = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Attach to the module, its optimizer and the loss scaler of 16-bit precision."""
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            chosen: dict[str, Any] = {"scaler": scaler} | options
            self.watch = Watch(pl_module, trainer.optimizers[0], **chosen)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            """Detach."""
            if self.watch is not None:
                self.watch.close()

    return Callback()
