"""Mistakes of the user, said in one line: what was wrong, where, and what to do.

`one_line` wraps the main function of an entry point. Our own mistakes keep their traceback.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any


class UserError(ValueError):
    """Something the user can put right. The message is one line: what was wrong, where, what to do."""


# Errors of libraries that are about the user's files or network, known by name: importing them here would cost seconds.
_PACKAGES = ("huggingface_hub", "requests", "urllib3", "httpx", "httpcore", "safetensors", "safetensors_rust")
_HINTS = {
    "OutOfMemoryError": "lower --train_batch_size (and raise --gradient_accumulation_steps as much)",
    "ConnectTimeout": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "ConnectError": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "ConnectionError": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "SafetensorError": "the file is damaged or not a safetensors file",
}


def fold(text: object) -> str:
    """Any message as one line, without control codes: a file name may hold them, and a terminal obeys them."""
    line = " ".join(str(text).split())
    return "".join(c for c in line if c.isprintable())


def message(error: BaseException) -> str:
    """What to tell the user about an error, in one line."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        line = fold(f"{error.filename}: {error.strerror}")
    else:
        line = fold(error) or type(error).__name__
    hint = next((_HINTS[c.__name__] for c in type(error).__mro__ if c.__name__ in _HINTS), None)
    return f"{line} ({hint})" if hint else line


def _is_users(error: BaseException) -> bool:
    if isinstance(error, (ValueError, OSError)):  # UserError is a ValueError
        return True
    return any(
        c.__module__.partition(".")[0] in _PACKAGES or c.__name__ == "OutOfMemoryError" for c in type(error).__mro__
    )


def one_line(main: Callable[..., Any]) -> Callable[..., Any]:
    """main, whose user errors end the program with `error: <one line>` on stderr and status 2; Ctrl-C with 130.

    The environment variable TRACEBACK=1 shows the whole trace instead.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of a pipe (`... --help | head`) had enough: not an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except Exception as error:
            if os.environ.get("TRACEBACK") == "1" or not _is_users(error):
                raise
            print(f"error: {message(error)}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapped
