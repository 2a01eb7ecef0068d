"""Loading of models: whether the hub can be reached, without remote code, without the progress bars of transformers.

The hub is tested once per process and only when something is not on this machine: without the test each look-up of a
hub id retries for half a minute where there is no network.
"""

from __future__ import annotations

import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

TIMEOUT = 8.0  # seconds; a slow connection needs far less


def hub_kwargs() -> dict[str, Any]:
    """Arguments of `from_pretrained` for a hub id: none where the hub can be reached, else use the local cache only."""
    return {} if is_online() else {"local_files_only": True}


@contextmanager
def without_remote_code() -> Iterator[None]:
    """transformers refuses a model that needs code of its own, where another library calls it without the argument.

    Without trust_remote_code=False it would ask on the terminal whether to run that code, and a "y" runs it.
    """
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for an answer; 0: an error instead
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


@lru_cache(maxsize=1)
def is_online() -> bool:
    """Whether the hub answers. Errors of the server or of certificates count as answers: the libraries report those."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    found: list[bool] = []
    # in a thread, since the timeout of urlopen does not cover the DNS look-up
    probe = threading.Thread(target=lambda: found.append(_probe()), daemon=True)
    probe.start()
    probe.join(TIMEOUT)
    return any(found)


def _probe() -> bool:
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn off the progress bars and load reports of transformers: loading takes half a second."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
