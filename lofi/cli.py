"""The `lofi` command: finds the subcommand, turns bad input into one line and a status."""

import difflib
import errno
import inspect
import logging
import sys
import warnings
from collections.abc import Callable

import tyro

from lofi import __version__, commands, launch
from lofi import config as configs

NAMES = ("toy", "check", "cache", "train", "features", "detect", "evaluate", "diagnose", "recall",
         "memory", "plan", "compare", "course", "tables")  # fmt: skip
COMMANDS: dict[str, Callable] = {name: getattr(commands, name) for name in NAMES}
TOGETHER = (commands.train, commands.features, commands.compare, commands.detect)
CONFIGURED = (commands.train, commands.features, commands.compare)


def main() -> None:
    """Entry point: exit status 0 only on success, one line for bad input."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger().handlers[0].setLevel(logging.WARNING)  # log.txt keeps more
    if arguments == ["--version"]:
        print(__version__)
        return
    if not arguments or arguments[0] in ("-h", "--help") or arguments[0] not in COMMANDS:
        unknown = bool(arguments) and arguments[0] not in ("-h", "--help")
        print(_overview(arguments[0] if unknown else ""), file=sys.stderr if unknown else None)
        raise SystemExit(2 if unknown else 0)
    launch.watch_parent()
    try:
        _run(arguments[0], arguments[1:])
    except KeyboardInterrupt:
        print(
            "lofi: interrupted; the same command goes on from the last checkpoint", file=sys.stderr
        )
        raise SystemExit(130) from None
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        if debug:
            raise
        print(f"lofi: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def _run(name: str, arguments: list[str]) -> None:
    command = COMMANDS[name]
    processes, words = _taken(arguments, "--processes", "1")
    if command in TOGETHER and processes.isdigit() and processes != "1" and not launch.launched():
        return launch.run([name, *words], int(processes))
    if command in CONFIGURED:  # preset < file < options; the head's kind decides which it has
        path, arguments = _taken(arguments, "--config", "")
        preset, _ = _taken(arguments, "--preset", "")
        base = configs.layered(preset, path)
        kind, arguments = _taken(arguments, "--head.kind", base.head.kind)
        base = configs.override(base, {"head.kind": kind})
        signature = inspect.signature(command)
        ordered = [
            p.replace(default=base) if p.name == "config" else p
            for p in signature.parameters.values()
        ]
        ordered.sort(key=lambda p: (p.kind, p.default is not inspect.Parameter.empty))
        command.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
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


def _overview(unknown: str) -> str:
    near = difflib.get_close_matches(unknown, COMMANDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    head = f"lofi: no command {unknown!r}{hint}\n" if unknown else ""
    lines = [f"  {name:<9} {(f.__doc__ or '').splitlines()[0]}" for name, f in COMMANDS.items()]
    usage = "usage: lofi COMMAND …      lofi COMMAND --help      (--debug shows tracebacks)"
    return head + usage + "\n" + "\n".join(lines)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the output folder"
        return f"{where}: no space left on the disk; finished files are kept, free space and rerun"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    text = " ".join(str(error).split())
    return text or type(error).__name__


if __name__ == "__main__":
    main()
