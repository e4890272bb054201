"""The command `micro-musicgen`: thin verbs over the library, each in `commands`. Heavy imports happen inside use.

Exit codes: 0 done, 2 bad input (one line, no traceback), 130 interrupted, 1 anything else.
"""

from __future__ import annotations

import atexit
import os
import sys

import typer

from micro_musicgen.commands.data import prepare
from micro_musicgen.commands.evaluating import evaluate
from micro_musicgen.commands.playing import generate
from micro_musicgen.commands.sharing import doctor, export, info, pull, push, size
from micro_musicgen.commands.tiaf import app as tiaf
from micro_musicgen.commands.tokens import tokens
from micro_musicgen.commands.training import demo, train
from micro_musicgen.errors import MicroMusicGenError

app = typer.Typer(
    name="micro-musicgen",
    help="Music models small enough to train from scratch at home, on your own sounds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (doctor, prepare, tokens, train, evaluate, export, generate, info, size, push, pull, demo):
    app.command()(verb)
app.add_typer(tiaf)

DEBUG_VARIABLE = "MICRO_MUSICGEN_DEBUG"


def main() -> None:
    """Runs the command line and ends the process; the entry point of `micro-musicgen`."""
    try:
        run()
    except SystemExit as end:
        if "torch" in sys.modules and sys.argv[1:2] == ["generate"]:
            # Taking torch down in order costs most of a second and does nothing that anybody waits for.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


def run() -> None:
    """Runs the command line."""
    # Threads of torch that wait by spinning lose half their speed and more as soon as anything else runs: a product of
    # matrices on 2 cores beside one busy process gave 34 GFLOP/s, with a short spin 60. On an idle machine the short
    # spin costs up to a fifth. Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except MicroMusicGenError as error:
        _fail(error, str(error), error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of click; without a message it has printed the help
            if not error.format_message():
                sys.exit(2)
            _fail(error, f"{error.format_message()}{_given_value(error)}", 2)
        _fail(error, f"{type(error).__name__}: {error} (set {DEBUG_VARIABLE}=1 for the traceback)", 1)


def _given_value(error: Exception) -> str:
    """Gives what was typed after the option that `error` is about, which click's message leaves out."""
    for option in getattr(getattr(error, "param", None), "opts", []):
        if option in sys.argv[:-1]:
            return f" (got {sys.argv[sys.argv.index(option) + 1]!r})"
    return ""


def _fail(error: BaseException, line: str, code: int) -> None:
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    typer.echo(f"error: {' '.join(line.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
