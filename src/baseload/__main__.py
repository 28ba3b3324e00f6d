"""Run the command line as `python -m baseload`; the commands themselves are in `app/cli.py`."""

import os
import signal


def _interrupted(number: int, frame: object) -> None:
    """End at once, in one line: while modules are still being imported there is nothing to keep."""
    os.write(2, b"baseload: interrupted\n")
    os._exit(130)


def main() -> None:
    """Entry point of the `baseload` command: Ctrl-C is answered from here on, `app/cli.py` takes it over."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, _interrupted)
    from baseload.app.cli import main as run

    run()


if __name__ == "__main__":
    main()
