"""bfloat16 through ONNX Runtime on a CPU: as bits, in and out."""

import numpy as np
import pytest

from demi.runtime.onnxruntime.session import open_session
from tests.models import parse, text

ROUND = """round (bfloat16[n, 2] x, int64 k) => (bfloat16[n, 2] y, float[n, 2] z, int64 l)
{ wide = Cast <to = 1> (x) z = Neg(wide) y = Cast <to = 16> (z) l = Identity(k) }"""


@pytest.mark.parametrize("rows", [2, 0])
def test_bits_in_and_out(rows: int):
    """1.0 is 0x3F80 and is returned as 0xBF80, -1.0; other types and empty tensors are unchanged."""
    session = open_session(text(parse(ROUND)))

    got = session.run({"x": np.full((rows, 2), 0x3F80, np.uint16), "k": np.array(3)})

    assert np.uint16 == got["y"].dtype
    np.testing.assert_array_equal(np.full((rows, 2), 0xBF80), got["y"])
    np.testing.assert_array_equal(np.full((rows, 2), -1.0), got["z"])
    assert 3 == got["l"]
