"""Model sources: the error for every bad file says what it is and what is missing."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.errors import SourceError
from demi.exporter.open_source import open_source
from demi.exporter.sources.index_limits import index_limits
from demi.exporter.sources.onnx_file import read_onnx
from demi.exporter.sources.options import SourceKind, SourceOptions
from tests.models import EMBEDDING, MLP, parse, text


def write(path, data):
    """A file with these bytes."""
    path.write_bytes(data)
    return path


def refused(path, message):
    """Return the error for a file; its `where` is the file."""
    with pytest.raises(SourceError, match=message) as caught:
        open_source(path, SourceOptions())
    assert str(path) == caught.value.where
    return caught.value


class TestFiles:
    """Files that are refused before they are read."""

    def test_missing(self, tmp_path):
        """A file that is not there."""
        assert ".onnx" in refused(tmp_path / "none.onnx", "no such file").hint

    def test_folder(self, tmp_path):
        """A folder."""
        refused(tmp_path, "not a transformers model")

    @pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.pt2", "m"])
    def test_empty(self, tmp_path, name):
        """A file of no bytes."""
        refused(write(tmp_path / name, b""), "the file is empty")

    @pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.pt2", "m.safetensors"])
    @pytest.mark.parametrize(
        ("content", "message", "hint"),
        [
            (b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 12\n", "a Git LFS pointer", "git lfs pull"),
            (b"\n<!DOCTYPE html><html>", "a web page", "login"),
            (b"<html lang=en>", "a web page", "login"),
        ],
    )
    def test_leftovers_of_a_failed_download(self, tmp_path, name, content, message, hint):
        """Files that a failed checkout or download leaves."""
        assert hint in refused(write(tmp_path / name, content), message).hint

    @pytest.mark.parametrize("name", ["m.txt", "m.bin", "m", "m.h5", "onnx"])
    def test_unknown_suffix(self, tmp_path, name):
        """A file of another kind: the known ones are listed."""
        error = refused(write(tmp_path / name, b"some bytes"), "not a model file that Demi knows")

        assert ".pt, .pth, .pt2, .safetensors, .onnx" in error.hint


class TestOnnx:
    """`.onnx` files."""

    def test_good(self, tmp_path):
        """A valid model is read as it is; it has no examples."""
        source = open_source(write(tmp_path / "m.onnx", text(parse(MLP))), SourceOptions())

        assert (SourceKind.ONNX, (), None) == (source.kind, source.examples, source.export_error)
        assert text(parse(MLP)) == text(source.model)

    def test_text(self, tmp_path):
        """A text file with the suffix."""
        refused(write(tmp_path / "m.onnx", b"this is not a model\n" * 20), "not a valid ONNX model")

    def test_an_input_without_a_shape(self, tmp_path):
        """ONNX requires one; the hint shows an example."""
        model = ir.to_proto(parse(MLP))
        model.graph.input[0].type.tensor_type.ClearField("shape")

        assert "[batch, 4]" in refused(write(tmp_path / "m.onnx", model.SerializeToString()), "Field 'shape'").hint

    @pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.999])
    def test_truncated(self, tmp_path, keep):
        """A file that was cut off anywhere."""
        data = text(parse(MLP))
        error = refused(write(tmp_path / "m.onnx", data[: int(len(data) * keep)]), "not a valid ONNX model")

        assert "truncated" in error.hint

    def test_invalid_graph(self, tmp_path):
        """A model that the checker refuses: Relu has no second input."""
        model = parse("bad (float[n] x) => (float[n] y) { y = Relu(x) }")
        proto = ir.to_proto(model)
        proto.graph.node[0].input.append("x")
        refused(write(tmp_path / "m.onnx", proto.SerializeToString()), "not a valid ONNX model")

    def test_no_outputs(self, tmp_path):
        """A model that answers nothing."""
        proto = ir.to_proto(parse(MLP))
        del proto.graph.output[:]
        refused(write(tmp_path / "m.onnx", proto.SerializeToString()), "no graph outputs")

    def test_external_data(self, tmp_path):
        """Weights beside the model are found."""
        ir.save(parse(MLP), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
        read = read_onnx(tmp_path / "m.onnx")

        np.testing.assert_array_equal(
            parse(MLP).graph.initializers["w1"].const_value.numpy(), read.graph.initializers["w1"].const_value.numpy()
        )

    def test_missing_external_data(self, tmp_path):
        """Weights that should be beside the model and are not."""
        ir.save(parse(MLP), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
        (tmp_path / "m.data").unlink()

        assert "external data" in refused(tmp_path / "m.onnx", "not a valid ONNX model").hint

    def test_an_output_listed_twice(self, tmp_path):
        """Two outputs of one name are refused."""
        proto = ir.to_proto(parse("m (float[2] x) => (float[2] y) { y = Relu(x) }"))
        proto.graph.output.append(proto.graph.output[0])

        assert (
            "Identity" in refused(write(tmp_path / "m.onnx", proto.SerializeToString()), "`y` is listed 2 times").hint
        )

    def test_external_data_that_was_cut_off(self, tmp_path):
        """Weights that reach beyond the end of their file are named before anything is done with them."""
        ir.save(parse(MLP), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
        (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes()[:-1])

        refused(tmp_path / "m.onnx", r"`\w+` reaches beyond the [\d,]+ bytes of m.data: it was cut off")

    def test_the_first_cause_is_reported(self, tmp_path):
        """The innermost of nested errors is reported."""
        proto = ir.to_proto(parse("m (float[2] x) => (float[2] y) { y = Relu(x) }"))
        proto.graph.node.append(proto.graph.node[0])

        refused(write(tmp_path / "m.onnx", proto.SerializeToString()), "Output 'y' is redeclared")

    @pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
    def test_external_data_elsewhere(self, tmp_path, location):
        """A model cannot read files outside its folder."""
        (tmp_path / "models").mkdir()
        write(tmp_path / "secret", b"\0" * 64)
        proto = ir.to_proto(parse(MLP))
        weight = proto.graph.initializer[0]
        weight.ClearField("float_data")
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "48")):
            weight.external_data.add(key=key, value=value)
        refused(write(tmp_path / "models" / "m.onnx", proto.SerializeToString()), "not a valid ONNX model")


class TestIndexLimits:
    """Limits of drawn ids."""

    def limits(self, body, weights="<float[5, 2] table = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}>"):
        return index_limits(parse(f"m (int64[n] ids) => (float[n, k] y) {weights} {{ {body} }}"))

    def test_rows_of_the_table(self):
        """Ids that look up rows of a table stay below its rows; masks look up nothing."""
        assert {"input_ids": 5} == index_limits(parse(EMBEDDING))

    def test_ids_that_are_moved_first(self):
        """Reshaped and cast ids are ids."""
        assert {"ids": 5} == self.limits("a = Cast <to = 6> (ids) b = Identity(a) y = Gather(table, b)")

    def test_smallest_table_counts(self):
        """Ids that look up two tables fit both."""
        weights = "<float[5, 1] a = {0, 0, 0, 0, 0}, float[3, 1] b = {0, 0, 0}>"

        assert {"ids": 3} == self.limits("p = Gather(a, ids) q = Gather(b, ids) y = Add(p, q)", weights)

    def test_table_in_a_constant_node(self):
        """A table may be a Constant node."""
        body = "table = Constant <value: tensor = float[2, 1] {1, 2}> () y = Gather(table, ids)"

        assert {"ids": 2} == self.limits(body, "")

    @pytest.mark.parametrize(
        "body", ["y = Gather <axis = 1> (table, ids)", "a = Cast <to = 1> (ids) y = Mul(a, table)"]
    )
    def test_others_have_none(self, body):
        """Columns, and ids that are numbers, have no limit of this kind."""
        assert {} == self.limits(body)
