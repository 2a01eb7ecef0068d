"""User errors end a program in one line."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.errors import UserError, exit_on_user_error, is_disk_full, library_message, refuse_unreadable, user_message

ROOT = Path(__file__).resolve().parents[2]


def raising(error: BaseException):
    @exit_on_user_error
    def main():
        raise error

    return main


class HubError(Exception):
    pass


HubError.__module__ = "huggingface_hub.errors"


@pytest.mark.parametrize(
    "error",
    [
        UserError("no such corpus:\n  roc\n\tuse --data_dir"),
        ValueError("bad\x1b[31m value"),
        FileNotFoundError(2, "No such file or directory", "a/b.txt"),
        HubError("unreachable\nsee https://"),
        ValueError(),
    ],
)
def test_a_user_error_is_one_line_and_status_2(error, capsys, monkeypatch):
    monkeypatch.delenv("TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stopped:
        raising(error)()
    out = capsys.readouterr()
    assert stopped.value.code == 2 and out.out == ""
    assert out.err.startswith("error: ") and out.err.count("\n") == 1 and "\x1b" not in out.err


def test_a_missing_file_is_named():
    missing = FileNotFoundError(2, "No such file or directory", "a/b.txt")
    assert user_message(missing) == "a/b.txt: No such file or directory"


def test_other_errors_and_the_traceback_flag_print_the_trace(monkeypatch):
    with pytest.raises(AssertionError):
        raising(AssertionError("ours"))()
    with pytest.raises(KeyError):
        raising(KeyError("ours"))()
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(UserError):
        raising(UserError("theirs"))()


def test_an_interrupt_exits_130_and_return_values_are_passed_on(capsys):
    with pytest.raises(SystemExit) as stopped:
        raising(KeyboardInterrupt())()
    assert stopped.value.code == 130
    assert exit_on_user_error(lambda x: x + 1)(2) == 3


@pytest.mark.parametrize("body", ["print('x ' * 100)", "print('x ' * 100_000)", "print('x'); raise SystemExit(0)"])
def test_a_closed_pipe_is_no_error(body):
    """`program | head -1`, with an output that fits into the buffer and one that does not."""
    code = f"from utils.errors import exit_on_user_error\ndef main():\n    {body}\nexit_on_user_error(main)()"
    pipe = subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep(0.2)\n{code}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    pipe.stdout.close()
    assert (pipe.stderr.read(), pipe.wait(60)) == (b"", 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line():
    code = "from utils.errors import exit_on_user_error; exit_on_user_error(lambda: print('x'))()"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: [Errno 28] No space left on device (the disk, or the quota of this user")


class Runs:
    def __reduce__(self):
        return print, ("this would be code of the file",)


def test_advice_to_run_the_code_of_a_file_is_not_passed_on(tmp_path, capsys):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Runs()))
    torch.save(Runs(), tmp_path / "zip.pt")
    for name in ("model.pt", "zip.pt"):
        with pytest.raises(UserError) as caught, refuse_unreadable(str(tmp_path / name), "train it again"):
            torch.load(tmp_path / name, weights_only=True)
        line = str(caught.value)
        assert "can run code, so it is not read" in line and line.endswith(": train it again")
        assert "weights_only" not in line and "trusted source" not in line
    assert capsys.readouterr().out == ""
    loads = ValueError("The repository x contains custom code: please pass `trust_remote_code=True`")
    assert "never run here" in library_message(loads) and "True" not in user_message(loads)


def test_what_a_library_raises_is_a_user_error_and_an_interrupt_is_not():
    panic = type("PanicException", (BaseException,), {})
    for error in (KeyError("vocab"), TypeError("x\ny"), RuntimeError(), panic("index out of bounds"), RecursionError()):
        with pytest.raises(UserError, match="^the file f cannot be read"), refuse_unreadable("the file f"):
            raise error
    for error in (KeyboardInterrupt(), SystemExit(3), MemoryError()):
        with pytest.raises(type(error)), refuse_unreadable("the file f"):
            raise error


def test_full_disks_are_recognised_by_number_and_by_words():
    from safetensors import SafetensorError

    assert is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_disk_full(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(SafetensorError("invalid header (os error 2)"))
    assert not is_disk_full(ValueError("(os error 28)"))
    for error in (OSError(errno.EFBIG, "File too large"), SafetensorError("I/O error: File too large (os error 27)")):
        assert "ulimit -f" in user_message(error) and "damaged" not in user_message(error)
    for error in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left (os error 28)")):
        line = user_message(error)
        assert "is full: free space" in line and "damaged" not in line


def test_memory_that_is_full_is_one_line(capsys):
    """Found by benchmarks/fuzz.py: on a CPU, PyTorch raises a RuntimeError of two lines."""

    def allocate():
        torch.empty(2**62, dtype=torch.uint8)

    for error in (allocate, lambda: bytearray(2**62)):
        with pytest.raises(SystemExit) as stopped:
            exit_on_user_error(error)()
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and "out of memory: lower --train_batch_size" in line
