"""Byte counts with units, as options and settings write them."""

from __future__ import annotations

import re

from demi.errors import InputError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(text: str) -> int:
    """Parse a positive byte count such as `1048576`, `512K`, `64M`, `64MiB` or `2G`; InputError for anything else."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match or int(match[1]) == 0:
        raise InputError(f"`{text}` is not a size", hint="write a number with K, M or G, e.g. 64M")
    return int(match[1]) * _UNITS[match[2].upper()]


def show_bytes(count: int) -> str:
    """Format a byte count for `parse_bytes`, in the largest exact unit."""
    unit = next(unit for unit in ("G", "M", "K", "") if count % _UNITS[unit] == 0)
    return f"{count // _UNITS[unit]}{unit}"
