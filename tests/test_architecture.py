"""ARCHITECTURE.md names every source file exactly once, in the table of its folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tests.map import sources
from tests.paths import ROOT

HEADING = re.compile(r"^### `([\w/]+/)`")
ROW = re.compile(r"^\| `([\w.]+\.py)` \| \S")


def named_files(text: str) -> list[str]:
    """Return the files in the tables of a text, as paths: a heading names the folder, and each row a file in it."""
    folder, files = "", []
    for line in text.splitlines():
        if line.startswith("#"):
            heading = HEADING.match(line)
            folder = heading[1] if heading else ""
        elif folder and (row := ROW.match(line)):
            files.append(folder + row[1])
    return files


def problems(text: str, files: Iterable[str]) -> list[str]:
    """Return a line for each file that the tables lack, repeat, or still name; each one says what to write."""
    named, existing = Counter(named_files(text)), set(files)
    return [
        *(f"add {_row(path)}" for path in sorted(existing - named.keys())),
        *(f"remove {_row(path)}: there is no such file" for path in sorted(named.keys() - existing)),
        *(f"keep only one of {count} rows {_row(path)}" for path, count in sorted(named.items()) if count > 1),
    ]


def _row(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"`| `{name}` | its purpose in a few words |` in the table below `### `{folder}/`` of ARCHITECTURE.md"


def source_files() -> list[str]:
    """Return every source file of the packages; `__init__.py` needs no row."""
    return [path for path in sources() if not path.endswith("/__init__.py")]


def test_the_tables_name_every_source_file_once():
    """Each file has one row in the table of its folder, and every row has its file."""
    assert [] == problems((ROOT / "ARCHITECTURE.md").read_text(), source_files())


# --- the check itself -----------------------------------------------------------------------------------------------

TEXT = """\
## Every file

### `demi/cli/`: the command line

| file | purpose |
| --- | --- |
| `main.py` | the entry point |
| `check.py` | `demi check` |

## Errors

| `errors.py` | outside of a folder's table |
"""


def test_rows_are_files_of_the_folder_above_them():
    """A table belongs to the nearest heading with a folder, up to the next heading."""
    assert ["demi/cli/main.py", "demi/cli/check.py"] == named_files(TEXT)


def test_a_file_without_a_row_is_reported_with_the_row():
    """The message contains what to write and where."""
    (problem,) = problems(TEXT, ["demi/cli/main.py", "demi/cli/check.py", "demi/cli/new.py"])

    assert (
        "add `| `new.py` | its purpose in a few words |` in the table below `### `demi/cli/`` of ARCHITECTURE.md"
        == problem
    )


def test_a_row_without_a_file_is_reported():
    """A row stays behind when its file is renamed or removed."""
    (problem,) = problems(TEXT, ["demi/cli/main.py"])

    assert problem.startswith("remove `| `check.py`")


def test_a_file_with_two_rows_is_reported():
    """Each file has one row."""
    (problem,) = problems(f"{TEXT}### `demi/cli/`\n| `main.py` | again |\n", ["demi/cli/main.py", "demi/cli/check.py"])

    assert problem.startswith("keep only one of 2 rows `| `main.py`")


def test_a_row_needs_a_purpose():
    """A row without words counts as missing."""
    assert ["demi/cli/check.py"] == named_files(TEXT.replace("the entry point", ""))
