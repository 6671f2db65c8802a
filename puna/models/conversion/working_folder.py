"""The hidden folder beside a target in which it is written, and what is left of those whose process was killed.

    .NAME.converting-RANDOM/   lock       held by flock as long as the process that writes here lives
                               made       what will become the target
                               replaced   the folder that was there, for the moment in which the two change places

Whoever gets a lock that is not its own has found what nobody writes any more. It knows nothing of models.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTS = ("made", "replaced")
ATTEMPTS = 100  # at a folder of one's own, should another process clear it before it is locked


def _prefix(target: Path) -> str:
    return f".{target.name}.converting-"


@contextmanager
def working_folder(target: Path) -> Iterator[Path]:
    """A folder on the target's disk that goes at the end, whatever happens. Raises OSError."""
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def clear_abandoned(target: Path, tell: Callable[[str], None]) -> None:
    """Removes what killed conversions to the same target have left, and puts back what one of them had moved away."""
    try:
        found = [entry for entry in target.parent.iterdir() if entry.name.startswith(_prefix(target))]
    except OSError:  # what is wrong with the place is said when something is written there
        return
    for folder in sorted(found):
        if folder.is_dir() and not folder.is_symlink() and (lock := _lock(folder)) is not None:
            try:
                _clear(folder, target, tell)
            finally:
                os.close(lock)


def _clear(folder: Path, target: Path, tell: Callable[[str], None]) -> None:
    replaced = folder / "replaced"
    had_something = any((folder / part).exists() for part in PARTS)
    if replaced.exists() and not target.exists():
        try:
            os.rename(replaced, target)
        except OSError:
            return
        tell(f"{target} is back: a conversion that was killed had moved it away")
    _remove(folder)
    if had_something and not folder.exists():
        tell(f"{folder} is removed: a conversion that was killed had left it")


def _remove(folder: Path) -> None:
    """The lock goes last: a folder without one has nothing in it that anybody would miss."""
    for part in PARTS:
        if (folder / part).is_dir():
            shutil.rmtree(folder / part, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(folder / part)
    shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(target: Path) -> tuple[Path, int]:
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except BlockingIOError:  # whoever clears up was quicker
            ours = False
        except OSError:  # a file system without locks: nobody clears anything there
            ours = True
        if ours and _is_still(folder / "lock", lock):
            return folder, lock
        os.close(lock)
    raise OSError(f"other conversions cleared the working folder {ATTEMPTS} times")


def _lock(folder: Path) -> int | None:
    """None where a living process has it, or where it cannot be had."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
