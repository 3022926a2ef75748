"""Measure half precision on this GPU in one run: `python -m bench.gpu`.

Each section is a module here with `rows(setup)`, a generator of rows: a row is stored as soon as it is yielded.
Sections run in processes of their own, one after the other, each within its share of the time, so that one which fails,
hangs or breaks the device takes only its own remaining rows with it.
"""
