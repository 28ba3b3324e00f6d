"""What `baseload serve` looks at before it starts anything: its state folder, and how many files it may open."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from baseload.app.serving import state_folder
from baseload.errors import InputError


def test_a_state_folder_that_others_may_write_is_refused(tmp_path: Path):
    """Keys and ledger do not lie where another user may exchange them, and the sentence says what to do."""
    folder = state_folder(tmp_path / "state")
    assert folder.stat().st_mode & 0o777 == 0o700
    for private in (folder, folder / "run"):
        for mode in (0o720, 0o702, 0o777):
            private.chmod(mode)
            with pytest.raises(InputError, match=f"chmod 700 {private}"):
                state_folder(folder)
        private.chmod(0o755)  # others may look at the names, as before
    assert state_folder(folder) == folder


def test_too_few_files_are_said_with_the_mend():
    """The limit goes up as far as it may; where that is not enough it is said, with what to type."""
    program = (
        "import resource; from baseload.app.early import raise_file_limit;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, {hard}));"
        "print(raise_file_limit(512)); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] not in (resource.RLIM_INFINITY,):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 512, "this test needs 512 files"
    for hard, warned in ((256, True), (512, False)):
        run = subprocess.run(
            [sys.executable, "-c", program.format(hard=hard)], capture_output=True, text=True, check=True
        )  # fmt: skip
        said, limits = run.stdout.split("\n")[:2]
        assert limits == f"{hard} {hard}"
        assert ("ulimit -Hn 512" in said and "256 files" in said) is warned
