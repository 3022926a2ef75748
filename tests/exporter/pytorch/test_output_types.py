"""Types that only a model's own code defines: a `.pt2` is read without them, with the names of their fields."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.utils import _pytree as pytree

from demi.exporter.pytorch.archives import load_program
from demi.exporter.pytorch.output_types import register_unknown_types


@dataclass
class Answer:
    """Output of a model, with a field that is not always there."""

    total: torch.Tensor
    parts: torch.Tensor
    missing: torch.Tensor | None = None


class Model(torch.nn.Module):
    """Model that returns a dataclass."""

    def forward(self, x: torch.Tensor) -> Answer:
        """Return a sum and its parts."""
        return Answer(x.sum(), 2 * x)


@pytest.fixture
def path(tmp_path, request):
    """A `.pt2` whose type is not known here; PyTorch remembers the structures of names that it has read."""
    torch.export.register_dataclass(
        Answer, serialized_type_name=f"elsewhere.Answer{request.node.callspec.params['trusted']}"
    )
    torch.export.save(torch.export.export(Model(), (torch.ones(3),)), tmp_path / "m.pt2")
    pytree._deregister_pytree_node(Answer)
    return tmp_path / "m.pt2"


@pytest.mark.parametrize("trusted", [False, True])
def test_fields_have_their_names(path, trusted):
    """The program returns a dict of the fields that are there."""
    answer = load_program(path, trusted=trusted).module()(torch.ones(3))

    assert {"total": 3.0, "parts": [2.0, 2.0, 2.0]} == {name: value.tolist() for name, value in answer.items()}


def test_a_file_that_is_no_archive(tmp_path):
    """It is left to PyTorch to say what is wrong with it."""
    (tmp_path / "m.pt2").write_bytes(b"nothing")

    register_unknown_types(tmp_path / "m.pt2")
