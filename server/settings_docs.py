"""Generate `docs/settings.md` from the table of settings: `python -m demi.server.settings_docs > docs/settings.md`."""

from __future__ import annotations

from demi.server.settings import ServeSettings, table

_HEAD = """# Settings of `demi serve`

Every setting has a flag and an environment variable; a flag overrides its variable, and a variable overrides the default.
Turn a switch off with `--no-...`.
This page is generated from the table in `server/settings.py`: `python -m demi.server.settings_docs > docs/settings.md`.
"""


def render() -> str:
    """Return the page, with one section per setting."""
    defaults = ServeSettings()
    sections = []
    for name, row in table().items():
        text = row.help[0].upper() + row.help[1:]
        default = row.show(getattr(defaults, name))
        sections.append(f"## `{row.flag}`\n\n{text}.\n\nVariable `{row.variable}`, default `{default}`.\n")
    return "\n".join([_HEAD, *sections])


if __name__ == "__main__":
    print(render(), end="")
