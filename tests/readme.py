"""README.md as something to run: its commands in order, and what they print against what is pasted there.

A block of fence `console run` holds commands (after `$ `) and their output. The commands of all such blocks are one
shell session. Output is compared by its structure: titles and the first cell of every row, with numbers left out,
since digits differ from machine to machine. A line of `...` stands for more output that is not shown.

    python -m tests.readme --write        (make readme) puts what the commands print now into README.md
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FENCE = re.compile(r"^```(?P<info>.*)$")
RUNNABLE = "console run"
ELIDED = "..."
PORT = "8000"
"""The port that is written in README.md; where it runs, a free one takes its place."""
LIMIT_S = 900


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a document, what is pasted below it, and what it printed when it ran."""

    line: int
    command: str
    pasted: tuple[str, ...]
    printed: tuple[str, ...] = ()
    code: int = 0


def read_steps(document: str) -> list[Step]:
    """The commands of all runnable blocks, in order."""
    steps = []
    for number, lines in _blocks(document, RUNNABLE):
        for offset, line in enumerate(lines):
            if line.startswith("$ "):
                pasted = _until_command(lines[offset + 1 :])
                steps.append(Step(number + offset, line.removeprefix("$ "), tuple(pasted)))
    return steps


def commands(document: str) -> list[str]:
    """Every command that a document shows, runnable or not: lines after `$ `, and lines of `bash` blocks."""
    shown = [step.command for step in read_steps(document)]
    for _, lines in _blocks(document, "console"):
        shown += [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for _, lines in _blocks(document, "bash"):
        shown += [line for line in lines if line.strip() and not line.startswith("#")]
    return shown


def run_steps(steps: Sequence[Step], folder: Path) -> list[Step]:
    """Run the commands in one bash session in `folder`; each with its exit code and what it printed."""
    port = _free_port()
    script = "exec 2>&1\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n" + "".join(
        f"{step.command.replace(PORT, port)}\ncode=$?; printf '\\n@@ {index} %s\\n' $code; (exit $code)\n"
        for index, step in enumerate(steps)
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DEMI_", "COLUMNS"))}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
    return list(_with_results(steps, printed.replace(port, PORT)))


def differences(step: Step) -> list[str]:
    """Return how the pasted output of a step differs in structure from the printed one; empty if it does not."""
    if step.code:
        return [f"line {step.line}: `{step.command}` ended with {step.code}:", *step.printed]
    pasted, printed = structure(step.pasted), structure(step.printed)
    missing = [label for label in pasted if label not in printed]
    new = [label for label in printed if label not in pasted] if ELIDED not in step.pasted else []
    where = f"line {step.line}, `{step.command}`"
    return [f"{where}: pasted, but not printed: {label}" for label in missing] + [
        f"{where}: printed, but not pasted: {label}" for label in new
    ]


def structure(lines: Sequence[str]) -> list[str]:
    """Return titles and first cells without their numbers, each once; progress and rules are left out."""
    labels = []
    for line in lines:
        cells = re.split(r"\s{2,}", line.strip())
        if not line.strip(" ─") or line == ELIDED or _is_chatter(line):
            continue
        label = _without_numbers(cells[0])
        if label in ("#", "-"):  # the row's name is not a name: take all of it
            label = _without_numbers(" ".join(cells))
        if label not in labels:
            labels.append(label)
    return labels


def refresh(document: str, steps: Sequence[Step]) -> str:
    """Return the document with the printed output in place of the pasted one."""
    lines = document.splitlines()
    for step in sorted(steps, key=lambda step: -step.line):
        lines[step.line : step.line + len(step.pasted)] = _shown(step)
    return "\n".join(lines) + "\n"


def link_examples(folder: Path) -> Path:
    """Return `folder` with the examples linked into it, as in a checkout."""
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def _shown(step: Step) -> list[str]:
    """Return the lines to paste for a step: without progress, cut where they were cut before, without outer empty lines."""
    lines = [line.rstrip() for line in step.printed if not _is_chatter(line)]
    if ELIDED in step.pasted:
        before = structure(step.pasted[: step.pasted.index(ELIDED)])
        last = max((i for i, line in enumerate(lines) if structure([line]) == before[-1:]), default=len(lines) - 1)
        lines = [*lines[: last + 1], ELIDED]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _blocks(document: str, info: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line's number and the lines of each fenced block with exactly this info string."""
    opened: str | None = None
    inside: list[str] = []
    for number, line in enumerate(document.splitlines(), 1):
        fence = FENCE.match(line)
        if fence and opened is None:
            opened, inside = fence["info"].strip(), []
        elif fence:
            if opened == info:
                yield number - len(inside), inside
            opened = None
        elif opened is not None:
            inside.append(line)


def _until_command(lines: Sequence[str]) -> list[str]:
    end = next((index for index, line in enumerate(lines) if line.startswith("$ ")), len(lines))
    return list(lines[:end])


def _with_results(steps: Sequence[Step], printed: str) -> Iterator[Step]:
    parts = re.split(r"^@@ (\d+) (\d+)\n", printed, flags=re.MULTILINE)
    results = {int(parts[i + 1]): (parts[i], int(parts[i + 2])) for i in range(0, len(parts) - 2, 3)}
    for index, step in enumerate(steps):
        text, code = results.get(index, (f"it never ended, or was never reached; last output:\n{parts[-1]}", 124))
        yield Step(step.line, step.command, step.pasted, tuple(text.rstrip().splitlines()), code)


def _is_chatter(line: str) -> bool:
    """Return whether a line is progress (`reading the model: 7.0 s`), a note, or a server's log."""
    return bool(re.search(r": [\d.]+ s$|^note: |^\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ ", line))


def _without_numbers(text: str) -> str:
    return re.sub(r"-?\d[\d.,]*(e[+-]?\d+)?", "#", text)


def _free_port() -> str:
    """Return a free port whose next one, for gRPC, is free as well."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as server, contextlib.suppress(OSError, OverflowError):
            port: int = server.getsockname()[1]
            with socket.create_server(("127.0.0.1", port + 1)):
                return str(port)


def main() -> int:
    """Run README.md in a temporary folder; report the differences, or write the output into it."""
    parser = argparse.ArgumentParser(description="Run the commands of README.md.")
    parser.add_argument("--write", action="store_true", help="paste their output into README.md")
    write: bool = parser.parse_args().write
    document = README.read_text()
    with tempfile.TemporaryDirectory() as folder:
        steps = run_steps(read_steps(document), link_examples(Path(folder)))
    found = [line for step in steps for line in (differences(step) if not write or step.code else [])]
    print("\n".join(found) or "README.md: every command ran")
    if write and not any(step.code for step in steps):
        README.write_text(refresh(document, steps))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
