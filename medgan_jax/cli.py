"""The console command `medgan`, and what its subcommands share: flags, one line for a user's error, exit codes."""

import argparse
import contextlib
import ctypes
import difflib
import importlib
import importlib.util
import io
import logging
import os
import shlex
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from medgan_jax.config import FIELDS, current_name, default_config, named_config
from medgan_jax.errors import UserError, reported
from medgan_jax.files import expanded, local_path

COMMANDS = {
    "train": "train a GAN on a folder of images, or resume a run",
    "sample": "sample images from a trained generator",
    "evaluate": "compare generated images with real ones",
    "audit": "tell whether others could find out what a generator was trained on",
    "verify": "tell which images a generator drew, and whether they were changed",
    "balance": "make a training set of real and generated images with the counts asked for",
    "prove": "tell whether synthetic images help a classifier",
    "report": "write, serve or film the report of a run",
    "import-torch": "convert a network of PyTorch's",
    "export-torch": "convert a network for PyTorch",
    "isic": "prepare images of the ISIC archive as a TFDS data set",
    "experiments": "run MedImageGAN's published experiments",
}

# By glibc's name: its number in malloc.h, and our value. One arena; no block outside it; its end is never given back.
_MALLOC_OPTIONS = {"arena_max": (-8, 1), "mmap_max": (-4, 0), "trim_threshold": (-1, -1)}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `medgan COMMAND ...` and exits.

    A UserError becomes one line on stderr and exit code 2; so does a system error such as a full disk, and a device
    without the memory asked for. A command may return another exit code.

    Args:
      argv: the command and its flags; by default those of the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and classes may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # a log is up to date
    code: Any = 0
    try:
        with reported():
            _configure_libraries()
            with _explained_devices():
                code = _dispatch(argv) or 0
            if sys.stdout is not None:  # else it was closed
                with contextlib.suppress(BrokenPipeError):  # nobody reads it
                    sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print("stopped; what was saved before is as it was", file=sys.stderr)
        code = 128 + (interrupt.args[0] if interrupt.args else 2)
    except SystemExit as leaving:
        code = leaving.code or 0
    except Exception:
        if not _is_distributed():
            raise
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, or nobody reads it
            stream.flush()
    # Threads of the libraries may still be at work: an ordinary exit would crash, or wait for them or for processes
    # that are gone.
    if (code and "jax" in sys.modules) or _is_distributed():
        os._exit(code)
    sys.exit(code)


def _dispatch(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = [f"  {name:<14}{text}" for name, text in COMMANDS.items()]
        print("\n".join(["medgan COMMAND ...; medgan COMMAND --help explains each.", "", *lines]))
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(COMMANDS)}"
        raise UserError(f"medgan {name}: no such command; {hint}")
    module = importlib.import_module(f"medgan_jax.commands.{name.replace('-', '_')}")
    return module.main(rest)


def parse_flags(
    values: flags.FlagValues, argv: Sequence[str], *, doc: str | None, more_help: Callable[[], str] = str
) -> None:
    """Parses a command's flags.

    Args:
      values: the flags that it has defined; those of its own alone.
      argv: the command line, after the command; see `load_config`.
      doc: the docstring of the command, for --help.
      more_help: what --help prints after the flags.

    Raises:
      UserError: a flag is unknown or has an impossible value, or the config cannot be loaded.
      SystemExit: --help was asked for, and printed.
    """
    if {"-h", "-help", "--help"} & set(argv):
        print((doc or "").strip() + "\n")
        for name in values:
            print(f"  --{name}: {values[name].help}")
        print(more_help())
        sys.exit(0)
    try:
        surplus = values(["medgan", *argv])[1:]
    except (flags.Error, AttributeError, TypeError, ValueError) as error:  # the last three of a config's fields
        raise UserError(f"{' '.join(str(error).split())} (see --help)") from error
    if surplus:
        raise UserError(f"unexpected argument {surplus[0]!r}; options are written --name=value (see --help)")


def load_config(argv: Sequence[str]) -> tuple[ConfigDict | None, list[str]]:
    """Loads the config that --config=NAME or --config=PATH:ARGUMENT asks for.

    Args:
      argv: the command line, after the command.

    Returns:
      The config, None where none is asked for; and the rest of the command line, in which --config.FIELD has the
      present names of fields.

    Raises:
      UserError: there is no such config or field, or the file does not work.
    """
    given, rest, arguments = "", [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            given = value if equals else next(arguments, "")
        else:
            rest.append(argument)
    if not given:
        return None, rest
    config = named_config(given)
    fields = tuple(FIELDS) if "num_steps" in config else tuple(config)  # the latter of a control file for sampling
    return config, [_with_present_name(argument, "--config.", "--config.", fields) for argument in rest]


def _with_present_name(argument: str, start: str, prefix: str, fields: Sequence[str] = tuple(FIELDS)) -> str:
    """A flag that starts with `start` under the present name of its field, which follows `prefix`; others as is."""
    name, equals, value = argument.partition("=")
    if not name.startswith(start):
        return argument
    return f"{prefix}{resolve_field(prefix, name.removeprefix(prefix), fields)}{equals}{value}"


def resolve_field(prefix: str, name: str, fields: Sequence[str]) -> str:
    """The present name of the field that the flag PREFIXNAME sets. Raises UserError where there is none."""
    field = current_name(name)
    if field not in fields:
        near = difflib.get_close_matches(field, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else "train.py --help lists the fields"
        raise UserError(f"{prefix}{name}: there is no such field; {hint}")
    return field


def define_data_flags(values: flags.FlagValues, argv: Sequence[str], help_string: str) -> list[str]:
    """Defines --data.FIELD for each field of a data set.

    Args:
      values: to which they are added; `values.data` will be a ConfigDict.
      argv: the command line, after the command.
      help_string: what they are for.

    Returns:
      The command line with the present names of fields. Raises UserError where there is no such field.
    """
    argv = [_with_present_name(argument, "--data.", "--") for argument in argv]
    config_flags.DEFINE_config_dict(
        "data",
        default_config().data,
        help_string=help_string,
        lock_config=True,
        flag_values=values,
        sys_argv=["medgan", *argv],
    )
    return argv


def given_path(name: str, value: str | None) -> Path:
    """The path that a flag gives, see `local_path`.

    Raises:
      UserError: it is missing or empty, as an unset shell variable leaves it; or it is not on this machine.
    """
    if not value:
        raise UserError(f"give --{name}=...")
    return local_path(f"--{name}", value)


class PathFlag(argparse.Action):
    """Stores the path that an argument gives, `expanded`, where it is one of this machine; an empty one as it is."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """See `argparse.Action`."""
        local_path(option_string or self.dest, values)
        setattr(namespace, self.dest, expanded(values))


def command_line() -> str:
    """The command that started this process, to be repeated."""
    program = Path(sys.argv[0]).name
    return shlex.join([*(["python"] if program.endswith(".py") else []), program, *sys.argv[1:]])


@contextlib.contextmanager
def _explained_devices() -> Iterator[None]:
    """Makes a UserError of what JAX raises where a device is not there or has too little memory."""
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        wanted = os.environ.get("JAX_PLATFORMS")
        if wanted and "jax" in sys.modules and not _devices_found():
            sys.modules["jax"].config.update("jax_platforms", None)  # all that there are
            raise UserError(
                f"JAX_PLATFORMS={wanted}: there is no such device here, but {' '.join(_devices_found())}; "
                "unset it, or install JAX for that device (README.md)"
            ) from error
        if not any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory")):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the device has too little memory ({reason}); lower batch_size, feature maps or image_size"
        ) from error


def _devices_found() -> list[str]:
    """The kinds of devices that JAX finds; none where it was asked for others."""
    import jax

    try:
        return sorted({device.platform for device in jax.devices()})
    except (AssertionError, RuntimeError):
        return []


def _is_distributed() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next step; to be called before JAX looks for devices.

    XLA on a CPU asks for all the memory of a step at once, and frees it after the step. glibc would give it back to the
    system and get it anew, page by page, for each step: docs/profile.md has what that costs. It keeps so large a block
    only in the arena of the main thread, so all threads share that one, and compiling takes longer. A training takes up
    to twice the memory.

    It does nothing where the environment has settings of malloc, where a plugin for GPUs or TPUs is installed and
    `JAX_PLATFORMS` is not "cpu", and without glibc.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    is_set = any(name.startswith("MALLOC_") for name in os.environ) or any(name in tunables for name in _MALLOC_OPTIONS)
    has_plugin = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    if is_set or sys.platform != "linux" or (has_plugin and os.environ.get("JAX_PLATFORMS") != "cpu"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in _MALLOC_OPTIONS.values():
            libc.mallopt(option, value)


def _configure_libraries() -> None:
    """Sets what JAX and others read when they are imported, and silences what they print beside their errors."""
    from medgan_jax.data.cache import default_cache_dir

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's
    with contextlib.suppress(UserError):  # without a home folder all is compiled anew
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(default_cache_dir() / "xla"))
    # Else the folder's spelling becomes part of the key.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
    for name in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    threading.excepthook = lambda details: None
    sys.unraisablehook = lambda details: None
    warnings.filterwarnings("ignore", module=r"PIL|orbax|tensorflow_datasets|jax\..*compil")
    # What a training says is its result, on stdout; the rest is about the input.
    for name, handler in (("medgan_jax", logging.StreamHandler()), ("medgan_jax.training", _AboveBar())):
        ours = logging.getLogger(name)
        if not ours.handlers:
            ours.addHandler(handler)
        ours.setLevel(logging.INFO)
        ours.propagate = False


class _AboveBar(logging.Handler):
    """Prints lines, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        from tqdm import tqdm

        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            tqdm.write(record.getMessage())
