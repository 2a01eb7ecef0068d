"""User errors end a program in one line."""

from __future__ import annotations

import pytest

from utils.errors import UserError, exit_on_user_error, user_message


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
