"""The instruments in other people's trainers, where they are installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from demi.training.callbacks import lightning_callback, transformers_callback
from demi.training.logs import read_log
from tests.training.tasks import WEIGHTS


class Classifier(nn.Module):
    """A model as transformers' Trainer wants one: it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x, labels=None):
        """Loss and logits."""
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def rows(bad: int) -> list[dict[str, torch.Tensor]]:
    """Samples of which one holds NaN."""
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    y = (x @ WEIGHTS > 0).long()
    x[bad, 3] = torch.nan
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


def test_the_interface_of_transformers(tmp_path):
    """A loop that calls the callback as the Trainer does: model and optimizer by name, wrapped as Accelerate wraps it."""
    callback, model = transformers_callback(note=lambda _: None), Classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    args, wrapped = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(optimizer=optimizer, scaler=None)
    callback.on_train_begin(args, None, None, model=model, optimizer=wrapped)
    for row in rows(bad=1)[:3]:
        model(row["x"].expand(2, 8), row["labels"].expand(2))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    callback.on_train_end(args, None, None)

    assert (3, 2, {"batch": 1}) == (callback.watch.steps, callback.watch.updates, callback.watch.skipped)
    assert 3 == len(read_log(tmp_path))


def test_transformers_trainer(tmp_path):
    """The real one, in bf16: one batch of eight is bad, and the model stays finite."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    callback, model = transformers_callback(note=lambda _: None), Classifier()
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, bf16=True, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows(bad=9), callbacks=[callback]).train()

    assert (8, 7, {"batch": 1}) == (callback.watch.steps, callback.watch.updates, callback.watch.skipped)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


def test_lightning_trainer(tmp_path):
    """The real one, in bf16, which passes a closure to the optimizer and calls no forward of the module itself."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Classifier()

        def training_step(self, batch, _):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    module, callback = Module(), lightning_callback(note=lambda _: None)
    trainer = lightning.Trainer(
        accelerator="cpu", precision="bf16-mixed", max_epochs=1, callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(rows(bad=9), batch_size=4))

    assert (8, 7, {"batch": 1}) == (callback.watch.steps, callback.watch.updates, callback.watch.skipped)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())
