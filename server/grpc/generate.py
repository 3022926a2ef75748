"""Generate files from `inference.proto` and `health.proto`: `python -m demi.server.grpc.generate`, with grpcio-tools.

Writes `protocol.binpb`, the descriptors that `messages.py` loads, and `inference.pyi` and `health.pyi`, the message types
for mypy and editors.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROTOS = ("inference", "health")
DESCRIPTORS = "protocol.binpb"


def generate() -> dict[str, bytes]:
    """Return the content of each generated file, by name."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        code = protoc.main(
            [
                "protoc",
                f"--proto_path={HERE}",
                f"--descriptor_set_out={out / DESCRIPTORS}",
                f"--pyi_out={out}",
                *(f"{name}.proto" for name in PROTOS),
            ]
        )
        if code:
            raise SystemExit(code)
        types = {f"{name}.pyi": (out / f"{name}_pb2.pyi").read_bytes() for name in PROTOS}
        return {DESCRIPTORS: (out / DESCRIPTORS).read_bytes(), **types}


if __name__ == "__main__":
    for name, content in generate().items():
        (HERE / name).write_bytes(content)
        print(HERE / name, file=sys.stderr)
