"""The `lofi` command: finds the subcommand, turns bad input into one line and a status."""

import difflib
import errno
import inspect
import logging
import sys
import warnings

import tyro

from lofi import __version__, commands, launch
from lofi import config as configs

NAMES = ("fit", "toy", "check", "cache", "train", "features", "detect", "evaluate", "diagnose",
         "recall", "memory", "plan", "compare", "course", "tables")  # fmt: skip


def main() -> None:
    """Entry point: exit status 0 only on success, one line for bad input."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger().handlers[0].setLevel(logging.WARNING)  # log.txt keeps more
    name = arguments[0] if arguments else "--help"
    if arguments == ["--version"]:
        print(__version__)
    elif name in ("-h", "--help"):
        print(_overview())
    elif name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"lofi: no command {name!r}{hint}\n{_overview()}", file=sys.stderr)
        raise SystemExit(2)
    else:
        launch.watch_parent()
        try:
            _run(name, arguments[1:])
        except KeyboardInterrupt:
            again = "the same command goes on from the last checkpoint"
            print(f"lofi: interrupted; {again}", file=sys.stderr)
            raise SystemExit(130) from None
        except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
            if debug:
                raise
            print(f"lofi: {_one_line(error)}", file=sys.stderr)
            raise SystemExit(1) from None


def _run(name: str, arguments: list[str]) -> None:
    command = getattr(commands, name)
    signature = inspect.signature(command)
    processes, words = _taken(arguments, "--processes", "1")
    several = processes.isdigit() and processes != "1" and not launch.launched()
    if "processes" in signature.parameters and several:
        return launch.run([name, *words], int(processes))
    if "config" in signature.parameters:  # preset < file < options; the head's kind decides which
        path, arguments = _taken(arguments, "--config", "")
        preset = _taken(arguments, "--preset", "own" if name == "fit" and not path else "")[0]
        base = configs.layered(preset, path)
        kind, arguments = _taken(arguments, "--head.kind", base.head.kind)
        base = configs.override(base, {"head.kind": kind})
        options = (word[2:].split("=")[0] for word in arguments if word.startswith("--"))
        given = tuple(option.replace("-", "_") for option in options)
        known = {"config": base, "given": given}
        ordered = [
            p.replace(default=known[p.name]) if p.name in known else p
            for p in signature.parameters.values()
        ]
        ordered.sort(key=lambda p: (p.kind, p.default is not inspect.Parameter.empty))
        command.__signature__ = signature.replace(parameters=ordered)
    warnings.filterwarnings("ignore", module="tyro")
    tyro.cli(command, args=arguments, prog=f"lofi {name}", config=(tyro.conf.AvoidSubcommands,))


def _taken(arguments: list[str], option: str, default: str) -> tuple[str, list[str]]:
    """The value of an option, and the words without it."""
    for i, word in enumerate(arguments):
        if word == option and i + 1 < len(arguments):
            return arguments[i + 1], arguments[:i] + arguments[i + 2 :]
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1], arguments[:i] + arguments[i + 1 :]
    return default, arguments


def _overview() -> str:
    first_lines = ((name, getattr(commands, name).__doc__.splitlines()[0]) for name in NAMES)
    usage = "usage: lofi COMMAND …      lofi COMMAND --help      (--debug shows tracebacks)"
    return "\n".join([usage, *(f"  {name:<9} {line}" for name, line in first_lines)])


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the output folder"
        return f"{where}: no space left on the disk; finished files are kept, free space and rerun"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
