"""How a command ends when nobody hears it."""

import io
import sys

import pytest

from medgan_jax import cli


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch):
    monkeypatch.setattr(cli, "_configure_libraries", lambda: None)
    monkeypatch.setattr("os._exit", sys.exit)  # as pytest itself has loaded jax


def test_a_closed_stdout_is_no_failure(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: print("nobody reads this"))
    assert not leaving.value.code


def test_output_that_fits_nowhere_is_one_line(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: print("lost"))
    assert leaving.value.code == 2
    assert (
        capsys.readouterr().err == "error: system: No space left on device; make room and run the same command again\n"
    )


def test_names_that_the_terminal_cannot_show_are_escaped(monkeypatch):
    """As of a class whose folder is called so; standard error does the same."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: print("caf\u00e9 \udcff"))
    assert not leaving.value.code
    assert terminal.buffer.getvalue() == b"caf\\xe9 \\udcff\n"
