"""No file that is given to `demi export` executes code, by any way that PyTorch, transformers or NumPy have for it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demi.calibration.samples import load_arrays
from demi.errors import SampleError, SourceError
from demi.exporter.open_source import open_source
from demi.exporter.pytorch.allowed_operators import is_plain_operator
from demi.exporter.pytorch.size_expressions import unsafe_part
from demi.exporter.sources.options import SourceKind, SourceOptions
from tests.hostile.payloads import Archive, Touch, plain_pickle, python, torch_pickle

X = torch.ones(2, 4)


class Sized(torch.nn.Module):
    """A model with a parameter, a buffer, a free axis and a product of sizes: its program has everything to forge."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x):
        return (self.layer(x) + self.shift).reshape(x.shape[0] * 3)


@pytest.fixture(scope="module")
def valid_program(tmp_path_factory) -> Path:
    """Return a valid program with everything to forge."""
    path = tmp_path_factory.mktemp("valid_program") / "m.pt2"
    program = torch.export.export(Sized(), (X,), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}})
    torch.export.save(program, path)
    return path


@pytest.fixture
def mark(tmp_path) -> Path:
    """Return the folder that a payload would create."""
    return tmp_path / "mark"


def graph_of(document: Any) -> Any:
    """Return the graph in a decoded program."""
    return document["graph_module"]["graph"]


def call_mkdir(document: Any, mark: Path) -> None:
    """A node calls a function that PyTorch's own modules import."""
    node = dict(graph_of(document)["nodes"][0])
    node |= {"target": "torch.os.mkdir", "outputs": [{"as_none": True}]}
    node["inputs"] = [{"name": "path", "arg": {"as_string": str(mark)}, "kind": 1}]
    graph_of(document)["nodes"].insert(0, node)


def open_a_file(document: Any, mark: Path) -> None:
    """An operator opens and creates a file."""
    node = dict(graph_of(document)["nodes"][0])
    node |= {"target": "torch.ops.aten.from_file.default"}
    graph_of(document)["nodes"].insert(0, node)


def evaluate_a_size(document: Any, mark: Path) -> None:
    """A size is a Python expression."""
    sizes = graph_of(document)["tensor_values"]["x"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = python(mark)


def evaluate_a_guard(document: Any, mark: Path) -> None:
    """A guard is a Python expression."""
    document["guards_code"] = [python(mark)]


def import_a_class(document: Any, mark: Path) -> None:
    """The structure of the arguments names a class to import."""
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps({"__enum__": True, "fqn": "antigravity:X", "name": "Y"})
    signature["in_spec"] = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])


def name_a_parameter(document: Any, mark: Path) -> None:
    """A parameter's name ends the quoted text in generated code."""
    specs = document["graph_module"]["signature"]["input_specs"]
    next(iter(specs[0].values()))["parameter_name"] = f'w"), {python(mark)}, ("'


def name_an_input(document: Any, mark: Path) -> None:
    """An input's name is inserted into generated code."""
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = [f"x={python(mark)}"]


DOCUMENTS: list[Callable[[Any, Path], None]] = [
    call_mkdir,
    open_a_file,
    evaluate_a_size,
    evaluate_a_guard,
    import_a_class,
    name_a_parameter,
    name_an_input,
]


def pickled_weight(archive: Archive, mark: Path) -> None:
    """A weight is declared as a pickle."""
    config = archive.json("model_weights_config.json")
    next(iter(config["config"].values()))["use_pickle"] = True
    archive.put_json("model_weights_config.json", config)
    archive.put("data/weights/weight_0", torch_pickle(mark))


def old_weights(archive: Archive, mark: Path) -> None:
    """The weights are in the record where older versions kept them."""
    archive.put("data/weights/model.pt", torch_pickle(mark))


def old_constants(archive: Archive, mark: Path) -> None:
    """The constants are in the record where older versions kept them."""
    archive.put("data/constants/model.pt", torch_pickle(mark))


def opaque_constant(archive: Archive, mark: Path) -> None:
    """A constant is a Python object."""
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    archive.put_json("model_constants_config.json", {"config": {"thing": entry}})
    archive.put("data/constants/opaque_obj_0", plain_pickle(mark))


def example_inputs(archive: Archive, mark: Path) -> None:
    """The example inputs are a Python object."""
    archive.put("data/sample_inputs/model.pt", torch_pickle(mark))


def compiled(archive: Archive, mark: Path) -> None:
    """A compiled library is beside the program."""
    archive.put("data/aotinductor/model/model.so", b"\x7fELF")


RECORDS = [pickled_weight, old_weights, old_constants, opaque_constant, example_inputs, compiled]


class TestPrograms:
    """torch.export's `.pt2`, with any file name."""

    def test_valid_program(self, valid_program):
        """A file of torch.export.save is read without trust: with parameters, free axes and computed sizes."""
        assert SourceKind.PROGRAM is open_source(valid_program, SourceOptions()).kind

    @pytest.mark.parametrize("forge", DOCUMENTS, ids=lambda forge: forge.__name__)
    def test_forged_document(self, valid_program, tmp_path, mark, forge):
        """A graph that would execute something is refused before PyTorch reads it, and the error names it."""
        archive = Archive(valid_program)
        document = archive.json("models/model.json")
        forge(document, mark)
        archive.put_json("models/model.json", document)

        with pytest.raises(SourceError, match=r"could run code when it is loaded: .*model.json` holds") as refused:
            open_source(archive.write(tmp_path / "m.pt2"), SourceOptions())
        assert "--trust-pickle" in (refused.value.hint or "")
        assert not mark.exists()

    @pytest.mark.parametrize("name", ["m.pt2", "m.pt", "m.pth"])
    @pytest.mark.parametrize("forge", RECORDS, ids=lambda forge: forge.__name__)
    def test_forged_record(self, valid_program, tmp_path, mark, forge, name):
        """A record that would be unpickled or loaded is refused, whatever the file's name."""
        archive = Archive(valid_program)
        forge(archive, mark)

        with pytest.raises(SourceError, match="could run code when it is loaded"):
            open_source(archive.write(tmp_path / name), SourceOptions())
        assert not mark.exists()

    @pytest.mark.parametrize("forge", [evaluate_a_size], ids=lambda forge: forge.__name__)
    def test_forged_documents_execute_if_trusted(self, valid_program, tmp_path, mark, forge):
        """The forged documents do execute if they are trusted, so that the tests above can fail."""
        archive = Archive(valid_program)
        document = archive.json("models/model.json")
        forge(document, mark)
        archive.put_json("models/model.json", document)

        with contextlib.suppress(Exception):  # errors afterwards do not matter
            open_source(archive.write(tmp_path / "m.pt2"), SourceOptions(trust_pickle=True))
        assert mark.exists()

    @pytest.mark.parametrize(
        "forge", [pickled_weight, old_weights, opaque_constant, example_inputs], ids=lambda forge: forge.__name__
    )
    def test_forged_records_execute_if_trusted(self, valid_program, tmp_path, mark, forge):
        """The pickles do execute if they are trusted."""
        archive = Archive(valid_program)
        forge(archive, mark)

        with contextlib.suppress(Exception):  # errors afterwards do not matter
            open_source(archive.write(tmp_path / "m.pt2"), SourceOptions(trust_pickle=True))
        assert mark.exists()

    def test_the_environment_is_restored(self, valid_program, monkeypatch):
        """PyTorch's environment variable is restored, and an opposite setting has no effect."""
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        open_source(valid_program, SourceOptions())
        assert "1" == os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]
        assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


class TestExpressions:
    """Expressions that may be evaluated."""

    @pytest.mark.parametrize(
        "text",
        [
            "Mul(Integer(3), Symbol('s0', positive=True, integer=True))",
            "Pow(Symbol('s0'), Integer(2))",
            "0 <= (-1)*(L['mask'].size()[0] // 2) + 3*L['mask'].size()[0]",
            "L['x'].stride()[0] == 1",
            "TruncToInt(Mul(Float('1.5', precision=53), ToFloat(Symbol('s77', positive=True, integer=True))))",
        ],
    )
    def test_arithmetic(self, text):
        """Arithmetic of sizes is allowed."""
        assert unsafe_part(text) is None

    @pytest.mark.parametrize(
        "text",
        [
            "__import__('os').mkdir('x')",
            "open('x', 'w')",
            "Symbol(open('x', 'w'))",
            "L['x'].numpy().tofile('x')",
            "().__class__",
            "(lambda: 1)()",
            "[x for x in y]",
            "f'{x}'",
            "Symbol('s0 + open(1)')",
            "9**9**9",
            "Pow(9, Pow(9, 99))",
            "Pow(Symbol('s0'), Symbol('s1'))",
            "factorial(100000000)",
            "x" * 30_000,
            "(" * 5000 + ")" * 5000,
            "1; 2",
            "",
        ],
    )
    def test_more_than_arithmetic(self, text):
        """Nothing else is allowed, nor arithmetic without bounds."""
        assert unsafe_part(text)

    @pytest.mark.parametrize(
        "target",
        [
            "torch.os.system",
            "torch.load",
            "torch.ops.load_library",
            "torch.ops.aten.add",
            "torch.ops.aten.add.__class__",
            "torch.ops.aten.save.default",
            "torch.ops.c10d.send.default",
            "_operator.attrgetter",
            "_operator.__import__",
            "math.__loader__",
            "builtins.eval",
            "#x:y",
        ],
    )
    def test_operators(self, target):
        """Only operators that compute are allowed."""
        assert not is_plain_operator(target)


class Saving(torch.nn.Module):
    """TorchScript module that writes a file."""

    def forward(self, x):
        torch.save(x, "mark")
        return x + 1


class TestScripts:
    """TorchScript archives."""

    def test_operators_that_write(self, tmp_path, monkeypatch):
        """A script that would write a file is refused before it is loaded."""
        monkeypatch.chdir(tmp_path)
        torch.jit.script(Saving()).save("m.pt")

        with pytest.raises(SourceError, match="uses `save`, which can reach files"):
            open_source(Path("m.pt"), SourceOptions(samples=({"x": X.numpy()},)))
        assert not Path("mark").exists()

    def test_escaped_name(self, tmp_path):
        """A name that is written with escapes is refused as well."""
        torch.jit.script(Sized().eval()).save(tmp_path / "m.pt")
        archive = Archive(tmp_path / "m.pt")
        code = next(name for name in archive.records if name.endswith(".py"))
        archive.records[code] += b'\n# getattr(torch, "s\\x61ve")\n'

        with pytest.raises(SourceError, match="hides the name"):
            open_source(archive.write(tmp_path / "m.pt"), SourceOptions(samples=({"x": X.numpy()},)))

    @pytest.mark.parametrize("record", ["constants.pkl", "data.pkl"])
    def test_pickles(self, tmp_path, mark, record):
        """Pickles in TorchScript are read by its own reader, which cannot call Python functions."""
        torch.jit.script(Sized().eval()).save(tmp_path / "m.pt")
        archive = Archive(tmp_path / "m.pt")
        archive.put(record, plain_pickle(mark))

        with pytest.raises(SourceError):
            open_source(archive.write(tmp_path / "m.pt"), SourceOptions(samples=({"x": X.numpy()},)))
        assert not mark.exists()


BERT = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1}


def folder_of(path: Path, config: Any) -> Path:
    """Return a folder as transformers saves a model, without weights; its code would create a folder."""
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (path / "evil.py").write_text(f"import os\nos.mkdir({str(path / 'mark')!r})\n")
    return path


class TestFolders:
    """Folders of transformers."""

    @pytest.mark.parametrize(
        "config",
        [
            "[1]",
            "{",
            "[" * 100_000,
            {"architectures": [5]},
            {"architectures": {"a": 1}},
            {"architectures": "BertModel"},
            {"architectures": ["BertConfig"], "model_type": "bert"},
            {"architectures": ["pipeline"]},
            {"architectures": ["AutoTokenizer"], "tokenizer_class": "evil.T"},
            {"architectures": ["M"], "auto_map": {"AutoModel": "evil.M"}, "model_type": "evil"},
            BERT | {"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}},
            BERT | {"attn_implementation": "owner/kernel"},
            BERT | {"num_hidden_layers": 1e9},
            BERT | {"hidden_size": -1},
        ],
        ids=lambda config: str(config)[:40],
    )
    def test_configuration(self, tmp_path, config):
        """Any config.json raises an error about the folder, and executes no code of it."""
        path = folder_of(tmp_path / "f", config)

        with pytest.raises(SourceError) as refused:
            open_source(path, SourceOptions())
        assert str(path) == refused.value.where
        assert not (path / "mark").exists()

    @pytest.mark.parametrize("index", [False, True], ids=["weights", "index"])
    def test_pickled_weights(self, tmp_path, index):
        """Pickled weights are not read, even if an index calls them safetensors."""
        path = folder_of(tmp_path / "f", BERT)
        (path / "pytorch_model.bin").write_bytes(torch_pickle(path / "mark"))
        if index:
            named = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "pytorch_model.bin"}}
            (path / "model.safetensors.index.json").write_text(json.dumps(named))

        with pytest.raises(SourceError, match="transformers cannot load the folder"):
            open_source(path, SourceOptions())
        assert not (path / "mark").exists()


class TestSamples:
    """Arrays in files from others."""

    @pytest.mark.parametrize("name", ["s.npz", "s.npy"])
    def test_objects(self, tmp_path, mark, name):
        """Arrays of objects are refused."""
        array = np.array([Touch(mark)], dtype=object)
        (np.savez if name.endswith("z") else np.save)(tmp_path / name, array)

        with pytest.raises(SampleError, match=r"cannot be read|single array"):
            load_arrays(tmp_path / name)
        assert not mark.exists()

    def test_plain_pickle(self, tmp_path, mark):
        """A pickle with another file name is refused."""
        (tmp_path / "s.npz").write_bytes(plain_pickle(mark))

        with pytest.raises(SampleError, match="not a file of arrays"):
            load_arrays(tmp_path / "s.npz")
        assert not mark.exists()
