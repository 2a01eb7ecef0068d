"""Errors of the user, reported in one line: what was wrong, where, and what to do.

`exit_on_user_error` wraps the main function of an entry point. Other errors are bugs and keep their traceback.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any

from utils import ranks
from utils.terminal import escape_unencodable, single_line


class UserError(ValueError):
    """An error that the user can correct. The message is one line: what was wrong, where, what to do."""


# Libraries whose errors concern the user's files or network; by name, since importing them here would take seconds.
_PACKAGES = ("huggingface_hub", "requests", "urllib3", "httpx", "httpcore", "safetensors", "safetensors_rust")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_HINTS = {
    "OutOfMemoryError": "lower --train_batch_size (and raise --gradient_accumulation_steps as much)",
    "ConnectTimeout": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "ConnectError": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "ConnectionError": "without a network set HF_HUB_OFFLINE=1 and give local folders",
    "SafetensorError": "the file is damaged or not a safetensors file",
}
# What libraries say about a file that could run code, or about the hub -> what we say. Their texts give wrong advice.
_ADVICE = (
    (
        re.compile(r"weights_only|weights only load|UnpicklingError|unpickl|pickle", re.I),
        "its pickle is damaged or holds more than tensors, and a pickle can run code, so it is not read",
    ),
    (
        re.compile(r"trust_remote_code|remote code|custom code"),
        "it needs Python code from its own files, which is never run here: give a model of a type that transformers "
        "contains",
    ),
    (
        re.compile(r"offline.mode|internet connection|LocalEntryNotFound|OfflineModeIsEnabled", re.I),
        "it is not on this machine, and the model hub is not reached",
    ),
)


def one_line_text(text: object) -> str:
    """A message as one line without control codes: a file name may contain them, and a terminal would execute them.

    A word of more than 400 characters, such as a file name or a number, is cut in the middle.
    """
    return re.sub(r"(\S{150})\S{200,}(\S{50})", r"\1...\2", single_line(text))


def library_message(error: BaseException, limit: int = 300) -> str:
    """The error of a library in one line of at most `limit` characters; the name of its class where it has no text.

    Advice to load a file in a way that can run code is replaced by our own.
    """
    text = f"{type(error).__name__} {error}"
    for pattern, ours in _ADVICE:
        if pattern.search(text):
            return ours
    if isinstance(error, KeyError):
        return f"it has no entry {one_line_text(error)}"
    return one_line_text(error)[:limit] or type(error).__name__


@contextmanager
def refuse_unreadable(what: str, advice: str = "") -> Iterator[None]:
    """Report any error of a library that reads a file or folder of the user as a UserError.

    what: names the file and the flag. advice: what to do, after a colon. Not for our own code, whose errors are bugs.
    """
    try:
        yield
    except BaseException as error:
        if not is_of_a_library(error):
            raise
        raise UserError(f"{what} cannot be read ({library_message(error)}){advice and ': '}{advice}") from error


def is_of_a_library(error: BaseException) -> bool:
    """Whether an error, raised while a library reads a user's file, says that the file cannot be read."""
    if isinstance(error, UserError) or is_out_of_memory(error):
        return False
    # a panic of a Rust library (tokenizers, safetensors) is no Exception
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def user_message(error: BaseException) -> str:
    """One line about an error, with advice if _HINTS has some."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        line = one_line_text(f"{error.filename}: {error.strerror}")
    elif isinstance(error, UserError):
        line = one_line_text(error)
    else:
        line = library_message(error, limit=2000)
    if is_out_of_memory(error):
        return f"{line[:200]} (out of memory: {_HINTS['OutOfMemoryError']}, or the size of the model)"
    hint = next((_HINTS[c.__name__] for c in type(error).__mro__ if c.__name__ in _HINTS), None)
    if is_disk_full(error):
        hint = "the disk, or the quota of this user, is full: free space, then start again"
    elif _is_system_error(error, (errno.EFBIG,)):
        hint = "no file may be as large here: raise `ulimit -f`, or write to another file system"
    return f"{line} ({hint})" if hint else line


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the quota of the user, is full. safetensors says it in words only."""
    return _is_system_error(error, _DISK_FULL)


def _is_system_error(error: BaseException, numbers: Collection[int]) -> bool:
    if isinstance(error, OSError):
        return error.errno in numbers
    of_safetensors = type(error).__module__.partition(".")[0] in ("safetensors", "safetensors_rust")
    return of_safetensors and any(f"os error {number})" in str(error) for number in numbers)


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """ " (did you mean X?)" for the known name nearest to a misspelt one, or "". prefix: put before X, such as "--"."""
    names = {n.lower(): n for n in known}
    near = get_close_matches(name.lower()[:200], list(names), n=1, cutoff=0.6)
    return f" (did you mean {prefix}{names[near[0]]}?)" if near else ""


def _is_user_error(error: BaseException) -> bool:
    if isinstance(error, (ValueError, OSError)):  # UserError is a ValueError
        return True
    if is_out_of_memory(error):
        return True
    return any(c.__module__.partition(".")[0] in _PACKAGES for c in type(error).__mro__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is full: of a GPU, of Python, or of PyTorch on the CPU, which raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def exit_on_user_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap main: a user error prints `error: <one line>` to stderr and exits with status 2; Ctrl-C exits with 130.

    A closed pipe exits with 141, in silence, as other programs do; characters that the terminal lacks are escaped.
    The environment variable TRACEBACK=1 shows the traceback instead.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        escape_unencodable()
        try:
            try:
                result = main(*args, **kwargs)
            except SystemExit:
                _flush_output()
                raise
            _flush_output()
            return result
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of a pipe (`... --help | head`) has closed it: not an error
            _discard_output()
            raise SystemExit(141) from None
        except Exception as error:
            if os.environ.get("TRACEBACK") == "1":
                raise
            if ranks.is_lost_connection(error):
                ranks.report_lost_connection(error)
                raise SystemExit(1) from None
            if not _is_user_error(error):
                raise
            ranks.print_error(f"error: {user_message(error)}")
            if isinstance(error, OSError):
                _discard_output()  # what is left in the buffer cannot be written either
            raise SystemExit(2) from None

    return wrapped


def _flush_output() -> None:
    """Write standard output now, so that a closed pipe or a full disk is reported here and not as the program ends."""
    if sys.stdout is not None:  # it is None where the shell closed it
        sys.stdout.flush()


def _discard_output() -> None:
    """Send what is left of standard output nowhere, if it cannot be written: Python would report it once more."""
    try:
        _flush_output()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
