"""Two folders that swap their names in one step, so that neither name is ever free.

Linux has renameat2 with RENAME_EXCHANGE for it, since 3.15 and glibc 2.28, on ext4, xfs, btrfs, tmpfs and others.
"""

import ctypes
import os
from pathlib import Path

_AT_CWD = -100
_EXCHANGE = 2


def exchange_folders(first: Path, second: Path) -> bool:
    """Swap two names on one file system; return whether this machine and file system could."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(_AT_CWD, os.fsencode(first), _AT_CWD, os.fsencode(second), _EXCHANGE) == 0
