"""What the doors share: parsing flags, one line for a user's error, exit codes, quiet libraries, compiled programs."""

import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import flags

from medgan_jax.errors import UserError

USAGE_ERROR = 2  # the exit code of bad input


def run(main: Callable[[], int | None], *, doc: str) -> None:
    """Parses the flags, runs `main` and exits.

    A UserError becomes one line on stderr and exit code 2; so does a system error such as a full disk. `main` may
    return another exit code.

    Args:
      main: reads `absl.flags.FLAGS`; imports what is slow to import itself, so that --help is fast.
      doc: the door's docstring, for --help.
    """
    try:
        _parse_flags(doc)
        _configure_libraries()
        sys.exit(main())
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno is None:
            raise
        _fail(f"{error.filename or 'system'}: {error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _parse_flags(doc: str) -> None:
    if {"-h", "-help", "--help"} & set(sys.argv[1:]):
        print(doc.strip() + "\n" + flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        surplus = flags.FLAGS(sys.argv)[1:]
        for name in flags.FLAGS:
            getattr(flags.FLAGS[name].value, "to_dict", None)  # a config that failed to load says so when used
    except OSError as error:
        raise UserError(_unreadable_config()) from error
    except Exception as error:  # ml_collections passes on whatever the config file or an override raised
        reason = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
        raise UserError(f"{' '.join(reason.split()) or type(error).__name__} (see --help)") from error
    if surplus:
        raise UserError(f"unexpected argument {surplus[0]!r}; options are written --name=value (see --help)")


def _unreadable_config() -> str:
    given = [argument.partition("=")[2] for argument in sys.argv if argument.startswith("--config=")]
    path = Path(given[-1] if given else "")
    near = difflib.get_close_matches(str(path), map(str, sorted(path.parent.glob("*.py"))), n=1)
    hint = f"; did you mean {near[0]}?" if near else "; give one of the files in configs/"
    return f"--config={path}: no such config file{hint}"


def _configure_libraries() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)  # what the libraries have to say; ours is not said through absl
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from medgan_jax.data.cache import default_cache_dir

    warnings.filterwarnings("ignore", module="orbax|tensorflow_datasets")
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
        # Else the folder's spelling becomes part of the key.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(USAGE_ERROR)
