"""PyTorch files: each kind is read, untrusted code never runs, and the ONNX model agrees with PyTorch."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from demi.errors import InputError, SampleError, SourceError
from demi.exporter.open_source import open_source
from demi.exporter.pytorch import read as reading
from demi.exporter.pytorch.example import Example, make_example
from demi.exporter.pytorch.export import _export_hint
from demi.exporter.pytorch.modules import _shortened
from demi.exporter.sources.options import SourceKind, SourceOptions
from demi.tensors import parse_spec
from demi.user_code import current_folder_importable
from tests.exporter.pytorch.torch_modules import (
    Branching,
    Counting,
    HalfNoisy,
    HalfWithin,
    Looping,
    Mlp,
    Named,
    Noisy,
    Pair,
    Returning,
    Running,
    Silent,
    Spectrum,
    Spread,
    Subtract,
    Switchable,
    Tower,
    build,
)
from tests.models import run

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
FACTORY = "tests.exporter.pytorch.torch_modules:build"


def options(**fields):
    """Options with one sample `x`, unless others are given."""
    return SourceOptions(**({"samples": ({"x": X},)} | fields))


def saved(path, module):
    """A pickled module."""
    torch.save(module, path)
    return path


def pickled(tmp_path, module, **samples):
    """The source of a trusted pickle."""
    return open_source(saved(tmp_path / "m.pt", module), options(trust_pickle=True, samples=(samples,)))


def refused(path, message, given=None):
    """Return the error for a file."""
    with pytest.raises(SourceError, match=message) as caught:
        open_source(path, given or options())
    return caught.value


def agrees(source, module, **inputs):
    """Assert that the ONNX model agrees with the module, for any batch size."""
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    (got,) = run(source.model, inputs).values()
    np.testing.assert_allclose(expected.numpy(), got, rtol=1e-5, atol=1e-6)


class TestKinds:
    """Every kind of file."""

    def test_exported_program(self, tmp_path):
        """A `.pt2` has its example inputs in it; nothing else is needed."""
        module = build()
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(module, (torch.from_numpy(X),), dynamic_shapes={"x": {0: batch}})
        torch.export.save(program, tmp_path / "m.pt2")
        source = open_source(tmp_path / "m.pt2", SourceOptions())

        assert SourceKind.PROGRAM is source.kind
        assert ["x"] == list(source.examples[0])
        assert source.export_error < 1e-5
        agrees(source, module, x=np.ones((7, 4), np.float32))

    def test_an_input_that_is_returned(self, tmp_path):
        """It keeps its name, which the exporter changes."""
        program = torch.export.export(Returning(), (torch.from_numpy(X),))
        torch.export.save(program, tmp_path / "m.pt2")
        source = open_source(tmp_path / "m.pt2", SourceOptions())

        assert ["x"] == [value.name for value in source.model.graph.inputs]
        np.testing.assert_array_equal(X, run(source.model, {"x": X})["output_0"])

    def test_exported_program_without_examples(self, tmp_path):
        """A program that was saved without its example inputs is refused, with the way to save it."""
        program = torch.export.export(build(), (torch.from_numpy(X),))
        program.example_inputs = None
        torch.export.save(program, tmp_path / "m.pt2")

        assert "torch.export.save" in refused(tmp_path / "m.pt2", "no example inputs").hint

    def test_torchscript(self, tmp_path):
        """TorchScript needs a sample."""
        module = build().eval()
        torch.jit.script(module).save(tmp_path / "m.pt")
        source = open_source(tmp_path / "m.pt", options())

        agrees(source, module, x=np.ones((5, 4), np.float32))

    def test_trusted_pickle(self, tmp_path):
        """A pickled module is loaded when the user trusts it."""
        module = build()
        source = pickled(tmp_path, module, x=X)

        assert SourceKind.PICKLE is source.kind
        agrees(source, module, x=np.ones((1, 4), np.float32))

    def test_state_dict_with_a_factory(self, tmp_path):
        """Weights and what builds their module make a model; pickles need no trust here."""
        module = Mlp()
        torch.save(module.state_dict(), tmp_path / "m.pt")
        source = open_source(tmp_path / "m.pt", options(factory=FACTORY))

        agrees(source, module, x=X)

    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model_state", "model", "net", "ema"])
    def test_checkpoint(self, tmp_path, key):
        """A training checkpoint holds its weights under a usual name, beside the optimizer's state."""
        module = Mlp()
        optimizer = torch.optim.Adam(module.parameters()).state_dict()
        torch.save({key: module.state_dict(), "optimizer": optimizer, "epoch": 3}, tmp_path / "m.pth")

        agrees(open_source(tmp_path / "m.pth", options(factory=FACTORY)), module, x=X)

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
    def test_names_that_a_wrapper_wrote(self, tmp_path, prefix):
        """DataParallel, torch.compile and trainers put their own name before every weight's."""
        module = Mlp()
        state = {f"{prefix}{name}": value for name, value in module.state_dict().items()}
        torch.save({"model_state": state, "epoch": 3}, tmp_path / "m.pth")

        agrees(open_source(tmp_path / "m.pth", options(factory=FACTORY)), module, x=X)

    def test_a_checkpoint_in_a_checkpoint(self, tmp_path):
        """Some trainers keep the weights two levels deep."""
        module = Mlp()
        torch.save({"model": {"state_dict": module.state_dict(), "arch": "mlp"}}, tmp_path / "m.pth")

        agrees(open_source(tmp_path / "m.pth", options(factory=FACTORY)), module, x=X)

    def test_a_module_in_a_checkpoint(self, tmp_path):
        """A trusted checkpoint may hold the module itself."""
        module = Mlp()
        torch.save({"model": module, "epoch": 3}, tmp_path / "m.pt")

        agrees(open_source(tmp_path / "m.pt", options(trust_pickle=True)), module, x=X)

    def test_a_checkpoint_with_other_objects(self, tmp_path):
        """Other objects than tensors are named, and loaded only if the user trusts the file."""
        module = Mlp()
        torch.save({"model": module.state_dict(), "args": argparse.Namespace(lr=1)}, tmp_path / "m.pt")

        assert "--trust-pickle" in refused(tmp_path / "m.pt", r"argparse\.Namespace", options(factory=FACTORY)).hint
        source = open_source(tmp_path / "m.pt", options(factory=FACTORY, trust_pickle=True))
        agrees(source, module, x=X)


class TestTrust:
    """A `.pt` file is untrusted."""

    def test_pickled_module(self, tmp_path):
        """A pickled module is refused, and the hint says how to trust it, and how not to need to."""
        error = refused(saved(tmp_path / "m.pt", build()), "a pickle can run any code")

        assert "--trust-pickle" in error.hint
        assert ".pt2" in error.hint

    @pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
    def test_malicious_pickle_does_not_run(self, tmp_path, new_format):
        """A pickle that would create a file creates none, in either of PyTorch's formats."""
        canary = tmp_path / "canary"

        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(canary),)

        torch.save({"weight": Evil()}, tmp_path / "m.pt", _use_new_zipfile_serialization=new_format)
        refused(tmp_path / "m.pt", "a pickle can run any code")

        assert not canary.exists()

    def test_malicious_plain_pickle_does_not_run(self, tmp_path):
        """A pickle that PyTorch did not write does not run either."""
        canary = tmp_path / "canary"

        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(canary),)

        (tmp_path / "m.pt").write_bytes(pickle.dumps(Evil()))
        refused(tmp_path / "m.pt", "")

        assert not canary.exists()

    def test_canary_would_sing(self, tmp_path):
        """The pickle of these tests does run where it is trusted: the tests above can fail."""
        canary = tmp_path / "canary"

        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(canary),)

        torch.save({"weight": Evil()}, tmp_path / "m.pt")
        refused(tmp_path / "m.pt", "", options(trust_pickle=True))

        assert canary.exists()


class TestFactoryThatLeaves:
    """Code of the user's that ends the process."""

    def test_it_is_an_error(self, tmp_path):
        """A factory that calls sys.exit(0) does not make the export look like a success."""
        path = saved(tmp_path / "m.pt", build().state_dict())

        refused(
            path, "cannot build a module: SystemExit: 0", options(factory="tests.exporter.pytorch.torch_modules:leave")
        )


class TestDamaged:
    """Files that cannot be read."""

    @pytest.mark.parametrize("name", ["m.pt", "m.pt2", "m.pth"])
    def test_garbage(self, tmp_path, name):
        """Bytes that are not a PyTorch file are refused as such, without a hint to trust them."""
        (tmp_path / name).write_bytes(b"this is not a model\n" * 20)
        error = refused(tmp_path / name, "PyTorch cannot read the file")

        assert "trust" not in error.hint

    @pytest.mark.parametrize("data", [b"hello", b"\x80\x02\xff" * 99, b"\x80\x04K\x01", bytes(range(256))])
    def test_no_pickle(self, tmp_path, data):
        """An incomplete pickle is not reported as one that needs trust."""
        (tmp_path / "m.pt").write_bytes(data)
        error = refused(
            tmp_path / "m.pt", "PyTorch cannot read the file: it is neither an archive nor a complete pickle"
        )

        assert "trust" not in error.hint

    def test_truncated(self, tmp_path):
        """A truncated file is refused."""
        path = saved(tmp_path / "m.pt", build().state_dict())
        path.write_bytes(path.read_bytes()[:-200])
        refused(path, "PyTorch cannot read the file")

    def test_truncated_program(self, tmp_path):
        """A truncated `.pt2` is refused."""
        torch.export.save(torch.export.export(build(), (torch.from_numpy(X),)), tmp_path / "m.pt2")
        (tmp_path / "m.pt2").write_bytes((tmp_path / "m.pt2").read_bytes()[:-200])
        refused(tmp_path / "m.pt2", "PyTorch cannot read the file")

    @pytest.mark.parametrize("entry", ["m/archive_format", "m/constants.pkl"], ids=["program", "torchscript"])
    def test_hollow_archive(self, tmp_path, entry):
        """An empty archive that looks like a program or a script is refused."""
        with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
            archive.writestr(entry, "pt2")
        refused(tmp_path / "m.pt", "PyTorch cannot read the file")

    @pytest.mark.parametrize("thing", [[1, 2], {"a": 1}, torch.ones(2)], ids=["list", "dict", "tensor"])
    def test_neither_module_nor_weights(self, tmp_path, thing):
        """A file of something else says what it holds."""
        refused(saved(tmp_path / "m.pt", thing), f"holds a {type(thing).__name__}, neither a module nor a state_dict")

    def test_class_that_cannot_be_imported(self, tmp_path):
        """A trusted pickle whose class is not here names what is missing."""
        path = saved(tmp_path / "m.pt", build())
        data = path.read_bytes().replace(b"tests.exporter.pytorch.torch_modules", b"tests.exporter.gone_modules_")
        path.write_bytes(data)
        error = refused(path, "gone_modules_|cannot read", options(trust_pickle=True))

        assert error.hint


class TestFactories:
    """`--model package.module:factory`."""

    @pytest.fixture
    def state(self, tmp_path):
        """A file of bare weights."""
        return saved(tmp_path / "m.pt", build().state_dict())

    def test_none(self, state):
        """Bare weights are refused, since they need their module."""
        error = refused(state, r"bare state_dict \(4 tensors\)")

        assert "--model package.module:factory" in error.hint

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            ("tests.exporter.pytorch.torch_modules", "it has no `:`"),
            ("tests.exporter.no_modules:build", "No module named"),
            ("tests.exporter.pytorch.torch_modules:nothing", "no attribute 'nothing'"),
            ("tests.exporter.pytorch.torch_modules:build_badly", "no weights here"),
            ("tests.exporter.pytorch.torch_modules:build_nothing", "returned a str"),
            (":build", "cannot build a module"),
        ],
    )
    def test_wrong(self, state, factory, message):
        """A factory that does not work is quoted, with what went wrong."""
        error = refused(state, message, options(factory=factory))

        assert factory in str(error)
        assert "--model" == error.where

    def test_weights_that_do_not_fit(self, tmp_path):
        """Weights of another module are refused, with the names that do not fit."""
        path = saved(tmp_path / "m.pt", torch.nn.Linear(4, 3).state_dict())
        refused(path, "do not fit the module of.*first.weight", options(factory=FACTORY))

    def test_a_checkpoint_is_recognized(self, tmp_path):
        """A training checkpoint is named as such, with the key of its weights."""
        path = saved(tmp_path / "m.pt", {"model_state_dict": build().state_dict(), "epoch": 3})

        refused(path, r"a training checkpoint with weights under `model_state_dict` \(4 tensors\)")

    def test_long_lists_of_names_are_cut_short(self):
        """Of many parameters that do not fit, three are named."""
        names = ", ".join(f'"{index}.weight"' for index in range(30))

        assert 'Missing: "0.weight", "1.weight", "2.weight" and 27 more. ' == _shortened(f"Missing: {names}. ")
        assert 'Missing: "a", "b", "c". ' == _shortened('Missing: "a", "b", "c". ')


class TestExamples:
    """Example inputs."""

    @pytest.fixture
    def path(self, tmp_path):
        """A file of a trusted module with two inputs."""
        return saved(tmp_path / "m.pt", Subtract())

    def test_none(self, path):
        """Without any the hint lists the model's inputs."""
        error = refused(path, "no example inputs", SourceOptions(trust_pickle=True))

        assert "left, right" in error.hint

    def test_none_of_many(self):
        """The hint leaves out inputs that the model can do without, such as labels."""
        with pytest.raises(SourceError) as caught:
            make_example({"input_values": True, "labels": False}, SourceOptions(), Path("m"))

        assert "--input for each of: input_values (" in caught.value.hint

    def test_others(self, path):
        """Inputs that the model does not take are refused."""
        samples = ({"a": X, "b": X},)
        error = refused(path, "none of the inputs a, b", options(trust_pickle=True, samples=samples))

        assert "the model takes left, right" == error.hint

    def test_one_of_two(self, path):
        """A missing input is named."""
        refused(path, "right", options(trust_pickle=True, samples=({"left": X},)))

    def test_order_does_not_matter(self, path):
        """Inputs go by name, whatever their order in the file of samples."""
        source = open_source(path, options(trust_pickle=True, samples=({"right": X + 1, "left": X},)))

        agrees(source, Subtract(), left=X, right=X * 3)

    def test_order_does_not_matter_to_torchscript(self, tmp_path):
        """TorchScript takes its inputs by position: they are put in its order."""
        torch.jit.script(Subtract()).save(tmp_path / "m.pt")
        source = open_source(tmp_path / "m.pt", options(samples=({"right": X + 1, "left": X},)))

        agrees(source, Subtract(), left=X, right=X * 3)

    def test_single_input_of_any_name(self, tmp_path):
        """A model with one input takes it under any name."""
        source = open_source(saved(tmp_path / "m.pt", build()), options(trust_pickle=True, samples=({"image": X},)))

        assert ["x"] == [value.name for value in source.model.graph.inputs]

    def test_shape_that_the_model_refuses(self, tmp_path):
        """A sample of another width is refused with PyTorch's message."""
        path = saved(tmp_path / "m.pt", build())
        refused(path, "does not run on the example", options(trust_pickle=True, samples=({"x": X[:, :2]},)))

    def test_specs(self, tmp_path):
        """`--input` is enough: the example is drawn, and free axes have the user's names."""
        specs = (parse_spec("x:float32[rows,4]"),)
        path = saved(tmp_path / "m.pt", build())
        source = open_source(path, options(trust_pickle=True, samples=(), inputs=specs))

        assert ["rows", 4] == [dim if isinstance(dim, int) else dim.value for dim in source.model.graph.inputs[0].shape]
        agrees(source, torch.load(path, weights_only=False), x=np.ones((9, 4), np.float32))


class TestNames:
    """Names are checked before anything slow."""

    @pytest.fixture
    def no_export(self, monkeypatch):
        """An exporter that must not be reached."""
        monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("exported before its names were read"))

    @pytest.mark.parametrize("kind", ["program", "script", "module", "weights"])
    def test_a_wrong_name_for_the_only_input(self, tmp_path, no_export, kind):
        """Samples that must go by the model's own names are refused, with those that there are."""
        path = tmp_path / ("m.pt2" if kind == "program" else "m.pt")
        if kind == "program":
            torch.export.save(torch.export.export(build(), (torch.from_numpy(X),)), path)
        elif kind == "script":
            torch.jit.script(build()).save(path)
        else:
            torch.save(build().state_dict() if kind == "weights" else build(), path)
        given = options(
            samples=({"image": X},),
            own_names=True,
            factory=FACTORY if kind == "weights" else None,
            trust_pickle=kind == "module",
        )

        with pytest.raises(SampleError, match="input `x` is missing from the samples; there is image") as caught:
            open_source(path, given)
        assert "the model's inputs are x" in caught.value.hint

    def test_a_set_with_another_name(self, tmp_path, no_export):
        """Every set is checked, not only the first."""
        path = saved(tmp_path / "m.pt", Subtract())
        sets = ({"left": X, "right": X}, {"left": X, "write": X})

        with pytest.raises(SampleError, match="`right` is missing"):
            open_source(path, options(trust_pickle=True, samples=sets, own_names=True))

    def test_an_input_that_is_needed(self, tmp_path, no_export):
        """An input without a default is missed at once, and what is there in its place is named."""
        path = saved(tmp_path / "m.pt", Subtract())

        refused(
            path, "`right` is missing; there is write", options(trust_pickle=True, samples=({"left": X, "write": X},))
        )

    def test_a_wrong_name_among_specs(self, tmp_path, no_export):
        """`--input` for an input that the model does not take is refused."""
        specs = tuple(parse_spec(f"{name}:float32[n,4]") for name in ("left", "right", "up"))
        path = saved(tmp_path / "m.pt", Subtract())

        refused(path, "--input names `up`", options(trust_pickle=True, samples=(), inputs=specs))


class TestLearnedAxes:
    """Samples of different sizes say which axes are free."""

    SMALL, LARGE = (np.ones((1, 1, size, size + 2), np.float32) for size in (4, 6))

    def test_images(self, tmp_path):
        """Height and width are free where the samples' are not the same; what they share is fixed."""
        module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU()).eval()
        samples = ({"input": self.SMALL}, {"input": self.LARGE})
        source = open_source(saved(tmp_path / "m.pt", module), options(trust_pickle=True, samples=samples))

        shape = [dim if isinstance(dim, int) else dim.value for dim in source.model.graph.inputs[0].shape]
        assert ["batch", 1, "input_dim2", "input_dim3"] == shape
        for given in (self.SMALL, self.LARGE, np.ones((3, 1, 9, 5), np.float32)):
            with torch.no_grad():
                expected = module(torch.from_numpy(given)).numpy()
            np.testing.assert_allclose(expected, next(iter(run(source.model, {"input": given}).values())), atol=1e-5)

    def test_one_size_is_a_constant(self, tmp_path):
        """If all samples agree, only the batch axis is free."""
        module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval()
        samples = ({"input": self.SMALL}, {"input": self.SMALL})
        source = open_source(saved(tmp_path / "m.pt", module), options(trust_pickle=True, samples=samples))

        assert [1, 4, 6] == list(source.model.graph.inputs[0].shape)[1:]

    def test_the_users_own_word_holds(self, tmp_path):
        """A size that `--input` fixes stays fixed."""
        module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval()
        given = options(
            trust_pickle=True,
            samples=({"input": self.SMALL}, {"input": self.LARGE}),
            inputs=(parse_spec("input:float32[n,1,4,6]"),),
        )
        source = open_source(saved(tmp_path / "m.pt", module), given)

        assert [1, 4, 6] == list(source.model.graph.inputs[0].shape)[1:]

    def test_an_empty_axis(self, tmp_path):
        """A cache that is empty at first is free, and the set that shows more is the example."""
        sets = ({"queries": X, "documents": X[:0]}, {"queries": X, "documents": X})
        path = saved(tmp_path / "m.pt", Tower())

        source = open_source(path, options(trust_pickle=True, samples=sets))

        queries, documents = (value.shape[0] for value in source.model.graph.inputs)
        assert "documents_dim0" == documents.value
        assert queries != documents


class TestBatch:
    """The batch axis is free."""

    @pytest.mark.parametrize("rows", [1, 3])
    def test_any_sample_will_do(self, tmp_path, rows):
        """A model that was exported with a sample of any batch size, even one row, runs with other sizes."""
        module = build()
        source = pickled(tmp_path, module, x=X[:rows])

        assert "batch" == source.model.graph.inputs[0].shape[0].value
        for other in (1, 2, 8):
            agrees(source, module, x=np.ones((other, 4), np.float32))

    def test_independent_batches(self, tmp_path):
        """Two inputs whose first axes are exported apart need not agree in size."""
        program = torch.export.export(
            Tower(),
            (torch.ones(2, 4), torch.ones(5, 4)),
            dynamic_shapes={"queries": {0: torch.export.Dim("q")}, "documents": {0: torch.export.Dim("d")}},
        )
        torch.export.save(program, tmp_path / "m.pt2")
        source = open_source(tmp_path / "m.pt2", SourceOptions())

        first, second = (value.shape[0].value for value in source.model.graph.inputs)
        assert first != second


class TestOutputs:
    """Names of outputs."""

    def test_one(self, tmp_path):
        """A single output is `output`."""
        assert ["output"] == [value.name for value in pickled(tmp_path, build(), x=X).model.graph.outputs]

    def test_dict(self, tmp_path):
        """Outputs of a dict go by its keys, and each is the right one."""
        answers = run(pickled(tmp_path, Named(), x=X).model, {"x": X})

        assert {"scores", "hidden"} == set(answers)
        np.testing.assert_array_equal(X + 1, answers["scores"])
        np.testing.assert_array_equal(X * 2, answers["hidden"])

    def test_tuple(self, tmp_path):
        """Outputs of a tuple are numbered."""
        answers = run(pickled(tmp_path, Pair(), x=X).model, {"x": X})

        assert ["output_0", "output_1"] == list(answers)
        np.testing.assert_array_equal(X * 2, answers["output_1"])

    def test_names_that_were_given(self, tmp_path):
        """`--output-names` wins, whatever inner values are called."""
        path = saved(tmp_path / "m.pt", Pair())
        source = open_source(path, options(trust_pickle=True, output_names=("mul", "add")))
        answers = run(source.model, {"x": X})

        np.testing.assert_array_equal(X + 1, answers["mul"])
        np.testing.assert_array_equal(X * 2, answers["add"])

    def test_wrong_number_of_names(self, tmp_path):
        """There is a name for each output."""
        path = saved(tmp_path / "m.pt", Pair())
        refused(path, "for 2 outputs", options(trust_pickle=True, output_names=("a",)))


class TestCodeOfTheCurrentFolder:
    """A script finds its modules beside it."""

    def test_a_trusted_pickle(self, tmp_path, monkeypatch):
        """The class of a pickled module is looked for in the current folder, as a factory is."""
        lines = "import torch\nclass Own(torch.nn.Module):\n    def forward(self, x):\n        return x * 2\n"
        (tmp_path / "own_module.py").write_text(lines)
        monkeypatch.chdir(tmp_path)
        with current_folder_importable():
            saved(tmp_path / "m.pt", importlib.import_module("own_module").Own())
        del sys.modules["own_module"]
        source = open_source(tmp_path / "m.pt", options(trust_pickle=True))

        np.testing.assert_array_equal(2 * X, run(source.model, {"x": X})["output"])


class TestFidelity:
    """The ONNX model answers as PyTorch does, or there is none."""

    def test_difference_is_an_error(self, tmp_path):
        """A module that answers otherwise the second time differs, with a likely cause."""
        path = saved(tmp_path / "m.pt", Counting())
        error = refused(path, "differs from PyTorch: output `output`", options(trust_pickle=True))

        assert "eval mode" in error.hint

    def test_a_module_that_changes_a_buffer_is_told_so(self, tmp_path):
        """An ONNX model holds no state between calls."""
        error = refused(saved(tmp_path / "m.pt", Running()), "differs from PyTorch", options(trust_pickle=True))

        assert error.hint.startswith("every call changes the module's buffer `seen`")

    def test_complex_numbers_are_refused(self, tmp_path):
        error = refused(saved(tmp_path / "m.pt", Spectrum()), "returns complex numbers", options(trust_pickle=True))

        assert "torch.view_as_real" in error.hint

    def test_a_module_that_draws_is_no_error(self, tmp_path):
        """Noise that the ONNX model draws as well is not a difference; outputs without it are compared."""
        source = open_source(saved(tmp_path / "m.pt", Noisy()), options(trust_pickle=True))
        both = open_source(saved(tmp_path / "both.pt", HalfNoisy()), options(trust_pickle=True))

        assert source.export_error is None
        assert 0 <= both.export_error < 1e-6

    def test_difference_within_float32_noise(self, tmp_path):
        """If PyTorch in FP32 is as far from FP64, the difference is reported and accepted."""
        x = (5 + 1e-4 * np.random.default_rng(0).standard_normal((8, 33))).astype(np.float32)

        assert 1e-4 < pickled(tmp_path, Spread(), x=x).export_error < 0.1

    def test_half_of_its_own(self, tmp_path):
        """A CPU computes half in FP32: a model with half tensors gets half's tolerance."""
        assert 0 < pickled(tmp_path, HalfWithin(), x=X * 1000).export_error < 4e-3

    def test_script_that_cannot_be_converted(self, tmp_path):
        """TorchScript that loops by a value is refused with a hint."""
        torch.jit.script(Looping()).save(tmp_path / "m.pt")
        error = refused(tmp_path / "m.pt", "cannot")

        assert error.hint

    def test_eager_attention_is_tried(self, tmp_path, monkeypatch):
        """If the exporter fails on a model's fused attention, its eager attention is exported instead."""
        monkeypatch.setattr(reading, "_load", lambda path, kind, options: reading.Loaded(module, module, example, ()))
        module = Switchable().eval()
        example = Example((torch.ones(2, 4),), {}, None, {})

        source = reading.read(tmp_path / "m.pt", SourceKind.PICKLE, options())

        assert "eager" == module.config._attn_implementation
        assert source.export_error == 0

    def test_options_of_another_source(self, tmp_path):
        """A factory means nothing to an exported program."""
        program = torch.export.export(Mlp(), (torch.from_numpy(X),))
        torch.export.save(program, tmp_path / "m.pt2")

        with pytest.raises(InputError, match=r"--model means nothing for a torch\.export program"):
            open_source(tmp_path / "m.pt2", options(factory=FACTORY))

    def test_factory_for_a_pickled_module(self, tmp_path):
        """Only reading a pickle shows that it needs no factory."""
        path = saved(tmp_path / "m.pt", build())

        with pytest.raises(InputError, match="--model means nothing for a pickled module"):
            open_source(path, options(factory=FACTORY, trust_pickle=True))

    def test_task_for_a_pickle(self, tmp_path):
        """An option that no pickle takes is refused before the file is read."""
        path = saved(tmp_path / "m.pt", build())

        with pytest.raises(InputError, match="--task means nothing for a PyTorch pickle"):
            open_source(path, options(task="features"))

    def test_module_that_answers_nothing(self, tmp_path):
        """A forward without a return is refused before anything is run."""
        refused(saved(tmp_path / "m.pt", Silent()), "the module returns no tensor", options(trust_pickle=True))

    def test_a_failed_export_prints_nothing(self, tmp_path, capfd):
        """PyTorch prints the whole graph when it fails; without --verbose this is suppressed."""
        path = saved(tmp_path / "m.pt", Branching())
        logging.disable(logging.WARNING)
        try:
            refused(path, "cannot export the model", options(trust_pickle=True))
        finally:
            logging.disable(logging.NOTSET)

        assert "def forward" not in "".join(capfd.readouterr())

    def test_module_that_cannot_be_exported(self, tmp_path):
        """A model that PyTorch cannot trace is refused in one line, with a hint at what to change."""
        error = refused(saved(tmp_path / "m.pt", Branching()), "cannot export the model", options(trust_pickle=True))

        assert "\n" not in error.message
        assert "path depends on its values or sizes" in error.hint


def test_hints_of_failed_exports():
    """Samples are suggested only to those who gave none, and shapes where PyTorch cannot decide a branch."""
    given = options(samples=({"x": X},))

    assert "--sample" in _export_hint(ValueError("no"), options(samples=()))
    assert "--sample" not in _export_hint(ValueError("no"), given)
    assert "fixed sizes" in _export_hint(ValueError("Could not guard on data-dependent expression Eq(u0, 1)"), given)
