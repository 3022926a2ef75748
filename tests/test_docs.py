"""The documents are true: commands run, and files, links, flags and fields exist."""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from demi.accuracy.budget import Budget, Limits
from demi.accuracy.varying import Varying
from demi.bundles import manifest
from demi.bundles.manifest import BatchProof, BatchSpec, FileEntry, Manifest, Provenance
from demi.cli.commands import COMMANDS, build_parser
from demi.tensors import TensorSpec
from tests import references
from tests.readme import (
    README,
    ROOT,
    Step,
    commands,
    differences,
    read_steps,
    refresh,
    run_steps,
    structure,
)

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MADE = ("work/", "models/", "runs/", ".venv", "venv/", "build/", "dist/")
"""Files that commands create; everything else that a document names is in the repository."""


def missing_links(document: Path) -> list[str]:
    """The relative links of a document that lead nowhere, to a heading or to a file."""
    links = re.findall(r"\]\(([^)\s]+)\)", without_fences(document.read_text()))
    relative = [link for link in links if not re.match(r"[a-z]+:", link)]
    return [link for link in relative if not link_resolves(document, link)]


def link_resolves(document: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.exists():
        return False
    return not anchor or anchor in {slug(line) for line in target.read_text().splitlines() if line.startswith("#")}


def missing_files(text: str) -> list[str]:
    """Files of this repository that a text names in backticks or in commands, and that are not there."""
    words = {word for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()}
    words |= {word for command in commands(text) for word in command.split()}
    named = {word for word in words if re.fullmatch(r"[\w.][\w./-]*/[\w.-]*\.(py|md|toml|txt|json)|\.ci/run", word)}
    return sorted(name for name in named if not name.startswith(MADE) and not (ROOT / name).exists())


def wrong_commands(text: str) -> list[str]:
    """Commands of `demi` and `make` in a text that would not be understood."""
    shown = commands(text) + [span for span in re.findall(r"`([^`\n]+)`", without_fences(text)) if " " in span]
    return [command for command in shown if not is_understood(command)]


def is_understood(command: str) -> bool:
    words = shlex.split(re.split(r"\||;|&|2>", command)[0])
    if words[:1] == ["demi"] and len(words) > 1:
        flags = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        return words[1].startswith("-") or (words[1] in COMMANDS and flags <= flags_of(words[1]))
    if words[:1] == ["make"] and len(words) > 1:
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return all(word in targets or "=" in word for word in words[1:])
    return True


def flags_of(command: str) -> set[str]:
    """The flags of one of Demi's commands."""
    (choices,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    return {flag for action in choices[command]._actions for flag in action.option_strings}


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """A heading's anchor as GitHub writes it."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("#").strip().lower()).replace(" ", "-")


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tour):
    """Every runnable command of README.md ends well and prints what is pasted, but for the numbers."""
    assert len(tour.steps) > 8
    assert [] == [line for step in tour.steps for line in differences(step)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_references_in_documents_exist(document):
    """Links, files, and the commands and flags of `demi` and `make`."""
    assert [] == missing_links(document)
    assert [] == missing_files(document.read_text())
    assert [] == wrong_commands(document.read_text())


def test_references_in_code_exist():
    """Files, modules and names that docstrings and comments mention are there; a renamed one is not."""
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in references.python_files()
        for name in references.missing_references(path.read_text(), path)
    ]

    assert [] == found


def test_every_document_is_reached_from_the_readme():
    """README.md, or a document it links to, links to every other one."""
    reached = " ".join(path.read_text() for path in DOCUMENTS)

    assert [] == [path.name for path in DOCUMENTS if path != README and f"{path.name})" not in reached]


def test_one_sentence_a_line():
    """Markdown has one sentence per line, so that a change shows what changed."""
    found = [
        f"{path.name}: {line}"
        for path in DOCUMENTS
        for line in without_fences(path.read_text()).splitlines()
        if re.search(r"[a-z`)][.!?] [A-Z]", line) and not line.startswith("|")
    ]

    assert [] == found


@pytest.mark.parametrize(
    "described", [Manifest, TensorSpec, BatchSpec, BatchProof, Budget, Limits, Provenance, FileEntry, Varying]
)
def test_every_field_of_the_manifest_is_described(described):
    """docs/bundle.md names every field of the manifest and what it holds."""
    text = (ROOT / "docs" / "bundle.md").read_text()

    assert [] == [field.name for field in dataclasses.fields(described) if f"`{field.name}`" not in text]


def test_every_file_of_a_bundle_is_described():
    """docs/bundle.md has a heading for every file that the code gives a name."""
    text = (ROOT / "docs" / "bundle.md").read_text()
    files = [value for name, value in vars(manifest).items() if name.isupper() and isinstance(value, str)]

    assert "model.onnx" in files
    assert [] == [name for name in files if not re.search(rf"^## `{re.escape(name)}`", text, re.MULTILINE)]


@pytest.mark.slow
def test_a_real_bundle_holds_no_undescribed_file(tour):
    """Every file that the exporter writes is described."""
    text = (ROOT / "docs" / "bundle.md").read_text()

    assert [] == [path.name for path in tour.made("models/minilm/1").iterdir() if f"`{path.name}`" not in text]


def test_every_extra_is_described():
    """README.md has a row for each extra that a user may want."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| `(\w+)` \|", README.read_text(), re.MULTILINE)

    assert {"dev", "tensorrt", "ray"} >= set(extras) - set(rows)
    assert set(rows) <= set(extras)


# --- the checkers themselves ----------------------------------------------------------------------------------------

DOCUMENT = """\
Text.

```console run
$ echo 3 apples and; echo 'pears    4'
2 apples and
pears    5
$ echo more; echo and more
...
```

```console
$ demi serve models
```
"""


def test_commands_run_in_order_in_one_shell(tmp_path):
    """Later commands see what earlier ones left; output and exit code belong to their command."""
    document = '```console run\n$ x=5; echo $x > file\n$ (cat file; exit $x)\n$ echo "$? $x"\n```\n'
    steps = run_steps(read_steps(document), tmp_path)

    assert [(), ("5",), ("5 5",)] == [step.printed for step in steps]
    assert [0, 5, 0] == [step.code for step in steps]


def test_numbers_may_differ_and_more_may_follow(tmp_path):
    """Only runnable blocks run; digits are not compared, and `...` stands for any further lines."""
    steps = run_steps(read_steps(DOCUMENT), tmp_path)

    assert 2 == len(steps)
    assert [[], []] == [differences(step) for step in steps]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("echo 'pears", "ecko 'pears", "ended with 127"),
        ("echo 3 apples", "echo 3 plums", "pasted, but not printed: # apples"),
        ("$ echo more; echo and more\n...", "$ echo more\nless", "printed, but not pasted: more"),
        ("pears    5", "", "printed, but not pasted: pears"),
        ("'pears    4'", "'pears    4'; exit 0", "was never reached"),
    ],
)
def test_a_wrong_document_is_reported(tmp_path, before, after, expected):
    """A command that fails, prints something else or prints more, and a session that ends early."""
    assert before in DOCUMENT
    document = DOCUMENT.replace(before, after)
    found = [line for step in run_steps(read_steps(document), tmp_path) for line in differences(step)]

    assert expected in "\n".join(found)


def test_a_wrong_command_is_reported():
    """Unknown commands, flags and targets; in commands and in running text."""
    wrong = ["demi expart model.pt", "demi export --fp17 model.pt", "make tea"]
    right = ["demi export --fp16 model.pt", "demi --help", "make test", "make clean", "ls -l"]

    assert wrong == [command for command in wrong + right if not is_understood(command)]
    assert ["demi serve --prot 1"] == wrong_commands("Type `demi serve --prot 1` or `demi serve --port 1`.")
    assert ["demi chekc x"] == wrong_commands("```console\n$ demi chekc x\n```\n")


def test_missing_files_and_broken_links_are_reported(tmp_path):
    """A link to no file or no heading, and a named file that is not in the repository."""
    document = tmp_path / "page.md"
    document.write_text("# A page\n[here](#a-page) [there](other.md) [where](#nowhere) [web](https://example.org)\n")

    assert ["other.md", "#nowhere"] == missing_links(document)
    assert ["demi/nothing.py"] == missing_files("`demi/nothing.py` and `demi/bundles/bundle.py`, made: `work/x/y.json`")


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ('"""See docs/nothing.md and `main.py`."""', "docs/nothing.md"),
        ("x = 1  {} as in `nothing_here.py`".format("#"), "nothing_here.py"),
        (
            'def f():\n    """Call `demi.files.write_nothing`, then `demi.files.write_whole`."""',
            "demi.files.write_nothing",
        ),
        ('"""See `demi.nowhere`."""', "demi.nowhere"),
        ('x = 1\n"""Set by `a_name_that` + `_went`, see `write_whole()`."""', "a_name_that"),
    ],
)
def test_a_wrong_reference_is_found(source, missing):
    """A file, a module or a name that does not exist is reported; in a docstring, a comment, or a constant's description."""
    assert missing in references.missing_references(source, ROOT / "demi" / "files.py")


def test_right_references_pass():
    """Paths from the root, from a source folder and from the file's own folder, modules, and names that code uses."""
    source = '"""docs/http.md, cli/main.py, `bundles/bundle.py`, `demi.cli.main`, `demi.files.write_whole`, `write_whole`."""'

    assert [] == references.missing_references(source, ROOT / "demi" / "files.py")


def test_refreshing_keeps_what_is_left_out():
    """New output takes the place of the old; `...` stays after the row it came after."""
    document = "```console run\n$ show\nrow    1\n...\n$ tell\nold\n```\nend\n"
    first, second = read_steps(document)
    ran = [
        Step(first.line, first.command, first.pasted, ("", "row    2", "other  3", "reading: 1.2 s")),
        Step(second.line, second.command, second.pasted, ("new", "newer")),
    ]

    assert "```console run\n$ show\nrow    2\n...\n$ tell\nnew\nnewer\n```\nend\n" == refresh(document, ran)


def test_the_structure_of_output():
    """Titles and first cells, without numbers; progress, notes, server logs and rules are left out."""
    printed = [
        "a title: 3 sets",
        "",
        " name      value",
        " ────────",
        " y   0.1",
        " 1   fp32   2.5",
        "reading: 2.5 s",
        "note: x",
    ]

    assert ["a title: # sets", "name", "y", "# fp# #"] == structure(printed)


def test_the_script_is_run_by_ci():
    """`.ci/run` is executable bash and stops at the first failure."""
    script = ROOT / ".ci" / "run"

    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()
    assert 0 == subprocess.run(["bash", "-n", script]).returncode
