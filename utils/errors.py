"""Errors of the user, reported in one line: what was wrong, where, and what to do.

`exit_on_user_error` wraps the main function of an entry point. Other errors are bugs and keep their traceback.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """An error that the user can correct. The message is one line: what was wrong, where, what to do."""


# Libraries whose errors concern the user's files or network; by name, since importing them here would take seconds.
_PACKAGES = ("huggingface_hub", "requests", "urllib3", "httpx", "httpcore", "safetensors", "safetensors_rust")
_HINTS = {
    "OutOfMemoryError": "lower --train_batch_size (and raise --gradient_accumulation_steps as much)",
    "ConnectTimeout": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "ConnectError": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "ConnectionError": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "SafetensorError": "the file is damaged or not a safetensors file",
}


def one_line_text(text: object) -> str:
    """A message as one line without control codes: a file name may contain them, and a terminal would execute them."""
    line = " ".join(str(text).split())
    return "".join(c for c in line if c.isprintable())


def user_message(error: BaseException) -> str:
    """One line about an error, with advice if _HINTS has some."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        line = one_line_text(f"{error.filename}: {error.strerror}")
    else:
        line = one_line_text(error) or type(error).__name__
    hint = next((_HINTS[c.__name__] for c in type(error).__mro__ if c.__name__ in _HINTS), None)
    return f"{line} ({hint})" if hint else line


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """ " (did you mean X?)" for the known name nearest to a misspelt one, or "". prefix: put before X, such as "--"."""
    names = {n.lower(): n for n in known}
    near = get_close_matches(name.lower(), list(names), n=1, cutoff=0.6)
    return f" (did you mean {prefix}{names[near[0]]}?)" if near else ""


def _is_user_error(error: BaseException) -> bool:
    if isinstance(error, (ValueError, OSError)):  # UserError is a ValueError
        return True
    return any(
        c.__module__.partition(".")[0] in _PACKAGES or c.__name__ == "OutOfMemoryError" for c in type(error).__mro__
    )


def exit_on_user_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap main: a user error prints `error: <one line>` to stderr and exits with status 2; Ctrl-C exits with 130.

    The environment variable TRACEBACK=1 shows the traceback instead.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of a pipe (`... --help | head`) has closed it: not an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except Exception as error:
            if os.environ.get("TRACEBACK") == "1" or not _is_user_error(error):
                raise
            print(f"error: {user_message(error)}", file=sys.stderr)
            raise SystemExit(2) from None

    return wrapped
