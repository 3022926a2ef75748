"""How several processes share the tests: by file, and the files that share a fixture go to the same process."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

from tests.conftest import SHARING


class ByFile(LoadFileScheduling):
    """Gives each file to one process, and all files that share fixtures to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return "sharing" if nodeid.startswith(SHARING) else super()._split_scope(nodeid)
