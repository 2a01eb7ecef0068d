"""Whether the model hub answers, asked once per process and only when something is not on this machine.

Without it every look-up of a hub id repeats itself for half a minute where there is no network.
"""

from __future__ import annotations

import os
import ssl
import threading
import urllib.error
import urllib.request
from functools import lru_cache
from typing import Any

PATIENCE = 8.0  # seconds; a slow line answers in far less, a dead one would never


def lookup() -> dict[str, Any]:
    """Arguments of `from_pretrained` for a hub id: nothing where the hub answers, else only what the cache holds."""
    return {} if answers() else {"local_files_only": True}


@lru_cache(maxsize=1)
def answers() -> bool:
    """Any answer counts, an error of the server or of certificates too: the libraries then say what is wrong."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    found: list[bool] = []
    # a thread: the limit of urlopen does not cover the look-up of the name
    probe = threading.Thread(target=lambda: found.append(_probe()), daemon=True)
    probe.start()
    probe.join(PATIENCE)
    return any(found)


def _probe() -> bool:
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False
