"""The `lofi` command: finds the subcommand, turns bad input into one line and a status.

Almost everything is imported inside `main`, so that Ctrl-C during an import is one line as well.
"""

import contextlib
import os
import signal
import sys

NAMES = ("fit", "import", "export", "toy", "check", "cache", "train", "features", "detect",
         "evaluate", "diagnose", "recall", "memory", "plan", "compare", "course",
         "tables", "report")  # fmt: skip


def main() -> None:
    """Entry point: exit status 0 only on success, one line for bad input."""
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know ×, → and …
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        _find(arguments)
    except KeyboardInterrupt as stop:
        number = signal.Signals(*(stop.args or [signal.SIGINT]))
        again = "the same command" + " without --no-resume" * ("--no-resume" in arguments)
        again += " goes on from the last checkpoint"
        print(f"lofi: interrupted by {number.name}; {again}", file=sys.stderr)
        if getattr(sys.modules["__main__"], "main", None) is main:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(128 + number)  # else Python may end itself by the signal: another status
        raise SystemExit(128 + number) from None
    except BrokenPipeError:  # `lofi … | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(141) from None
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        if debug:
            raise
        print(f"lofi: {_one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None


def _find(arguments: list[str]) -> None:
    import logging

    from lofi import __version__
    from lofi.files import printable

    class OneLine(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    logging.basicConfig(stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(OneLine("%(message)s"))
    logging.getLogger().handlers[0].setLevel(logging.WARNING)  # log.txt keeps more
    name = arguments[0] if arguments else "--help"
    if arguments == ["--version"]:
        print(__version__)
    elif name in ("-h", "--help"):
        print(_overview())
    elif name not in NAMES:
        import difflib

        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"lofi: no command {name!r}{hint}\n{_overview()}", file=sys.stderr)
        raise SystemExit(2)
    else:
        from lofi import launch

        launch.watch_parent()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, _interrupt)
        _run(name, arguments[1:])


def _interrupt(number: int, frame: object) -> None:
    """Let a signal end the command as Ctrl-C does, so that half-written files are removed."""
    raise KeyboardInterrupt(number)


def _run(name: str, arguments: list[str]) -> None:
    import inspect
    import warnings

    import tyro

    from lofi import config as configs
    from lofi import launch

    command = _command(name)
    signature = inspect.signature(command)
    processes, words = _taken(arguments, "--processes", "1")
    several = processes.isdigit() and processes != "1" and not launch.launched()
    if "processes" in signature.parameters and several:
        return launch.run([name, *words], int(processes))
    if "config" in signature.parameters:  # preset < file < options; the head's kind decides which
        path, arguments = _taken(arguments, "--config", "")
        preset = _taken(arguments, "--preset", "own" if name == "fit" and not path else "")[0]
        base = configs.layered(preset, path)
        options = [word[2:].split("=")[0] for word in arguments if word.startswith("--")]
        kind, arguments = _taken(arguments, "--head.kind", base.head.kind)
        base = configs.override(base, {"head.kind": kind})
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


def _command(name: str):
    from lofi import commands

    return getattr(commands, _function(name))


def _function(name: str) -> str:
    import keyword

    return name + "_" * keyword.iskeyword(name)  # `import_`


def _taken(arguments: list[str], option: str, default: str) -> tuple[str, list[str]]:
    """The value of an option, and the words without it; of a repeated one the last counts."""
    value, others, words = default, [], iter(arguments)
    for word in words:
        if word.startswith(f"{option}="):
            value = word.split("=", 1)[1]
        elif word != option or (given := next(words, None)) is None:
            others.append(word)
        else:
            value = given
    return value, others


def _overview() -> str:
    import ast  # the commands' text is read, not run: their imports take longer
    from pathlib import Path

    body = ast.parse(Path(__file__).with_name("commands.py").read_text("utf-8")).body
    documented = {f.name: ast.get_docstring(f) for f in body if isinstance(f, ast.FunctionDef)}
    first_lines = ((name, documented[_function(name)].splitlines()[0]) for name in NAMES)
    usage = "usage: lofi COMMAND …      lofi COMMAND --help      (--debug shows tracebacks)"
    return "\n".join([usage, *(f"  {name:<9} {line}" for name, line in first_lines)])


def _one_line(error: BaseException) -> str:
    import errno

    from lofi.files import printable

    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the output folder"
        text = f"{where}: no space left on the disk; finished files are kept, free space and rerun"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    else:
        text = str(error)
    lines = (line.strip() for line in text.splitlines())
    return printable(" ".join(filter(None, lines))) or type(error).__name__


if __name__ == "__main__":
    main()
