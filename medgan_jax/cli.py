"""What the doors share: parsing flags, one line for a user's error, exit codes, quiet libraries, compiled programs."""

import contextlib
import difflib
import io
import itertools
import logging
import os
import runpy
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from medgan_jax.errors import UserError, reported


def value_or(name: str, otherwise: str | None) -> str:
    """The value of the flag `name`, or `otherwise` where it was not given.

    Raises:
      UserError: there is neither, or the flag is empty, as an unset shell variable leaves it.
    """
    value = flags.FLAGS[name].value
    value = otherwise if value is None else value
    if not value:
        raise UserError(f"give --{name}=...")
    return value


def define_data(values: ConfigDict) -> flags.FlagHolder:
    """Defines --data.FIELD for the fields of a data set, as they stand in a config; `values` are the defaults."""
    with reported():  # ml_collections looks at the fields given as soon as the flag is defined
        _check_fields("data", list(values))
    return config_flags.DEFINE_config_dict(
        "data", values, help_string="How to read the reals, as --data.FIELD=VALUE.", lock_config=True
    )


def run(main: Callable[[], int | None], *, doc: str | None = None) -> None:
    """Parses the flags, runs `main` and exits.

    A UserError becomes one line on stderr and exit code 2; so does a system error such as a full disk, and a device
    without the memory asked for. `main` may return another exit code.

    Args:
      main: reads `absl.flags.FLAGS`; imports what is slow to import itself, so that --help is fast.
      doc: the door's docstring, for --help; None for a door that has no flags of absl's, and parses its own.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and classes may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # a log file is up to date
    try:
        with reported():
            if doc is not None:
                _parse_flags(doc)
            _configure_libraries()
            with _explained_memory():
                code = main() or 0
            if sys.stdout is not None:  # else it was closed
                sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else 2
        print("stopped; what was saved before is as it was", file=sys.stderr)
        code = 128 + number
    except SystemExit as leaving:
        code = leaving.code or 0
    except Exception:
        if not _is_distributed():
            raise
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, or nobody who reads it: no failure
            stream.flush()
    # Threads of the libraries may be at work still: they would crash while the interpreter goes down, or be waited for
    # without end; and so would other processes, which may be gone.
    if (code and "jax" in sys.modules) or _is_distributed():
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def _explained_memory() -> Iterator[None]:
    """Makes a UserError of the one error of XLA's that a user can mend."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the device has too little memory ({reason}); lower batch_size, feature maps or image_size"
        ) from error


def _is_distributed() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _parse_flags(doc: str) -> None:
    if {"-h", "-help", "--help"} & set(sys.argv[1:]):
        print(doc.strip() + "\n" + flags.FLAGS.main_module_help())
        sys.exit(0)
    given = _given_config() if "config" in flags.FLAGS else None
    try:
        if given:
            _check_config_arguments(given)
        surplus = flags.FLAGS(sys.argv)[1:]
        for name in flags.FLAGS:
            getattr(flags.FLAGS[name].value, "to_dict", None)  # a config that failed to load says so when used
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split())} (see --help)") from error
    except UserError:
        raise
    except Exception as error:  # whatever the config file raised
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--config={given}: is not a working config file ({reason})") from error
    if surplus:
        raise UserError(f"unexpected argument {surplus[0]!r}; options are written --name=value (see --help)")


def _given_config() -> str | None:
    """The value of --config, also where it is an argument of its own."""
    found = None
    for argument, following in itertools.zip_longest(sys.argv[1:], sys.argv[2:]):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            found = value if equals else following
    return found


def _check_config_arguments(given: str) -> None:
    """Says what is wrong in our own words; ml_collections raises errors of many kinds, some without a name."""
    from medgan_jax.config import field_names

    name, colon, argument = given.partition(":")
    config = Path(name)
    if not config.is_file():
        near = difflib.get_close_matches(str(config), map(str, sorted(config.parent.glob("*.py"))), n=1)
        hint = f"did you mean {near[0]}?" if near else "give one of the files in configs/"
        raise UserError(f"--config={config}: no such config file; {hint}")
    values = runpy.run_path(name)["get_config"](*[argument] * bool(colon))
    samples = "quantity" in values
    command, flag = ("sample.py", "checkpoint") if samples else ("train.py", "workdir")
    if flag not in flags.FLAGS:
        raise UserError(f"--config={given}: belongs to {command}; run python {command} --config={given}")
    fields = list(values) if samples else field_names()
    _check_fields("config", fields)


def _check_fields(flag: str, fields: list[str]) -> None:
    for argument in sys.argv[1:]:
        name = argument.partition("=")[0].removeprefix(f"--{flag}.")
        if argument.startswith(f"--{flag}.") and name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else "configs/default.py explains every field"
            raise UserError(f"--{flag}.{name}: there is no such field; {hint}")


def _configure_libraries() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's, read at import
    import jax

    from medgan_jax.data.cache import default_cache_dir

    # Their errors reach us as exceptions; what they print beside that, tracebacks of threads included, is noise.
    for name in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    threading.excepthook = sys.unraisablehook = lambda details: None
    warnings.filterwarnings("ignore", module=r"orbax|tensorflow_datasets|jax\._src\.compil")
    ours = logging.getLogger("medgan_jax")
    ours.addHandler(logging.StreamHandler())
    ours.propagate = False
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
        # Else the folder's spelling becomes part of the key.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
