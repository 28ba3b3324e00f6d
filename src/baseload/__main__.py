"""Run the command line as `python -m baseload`; the commands themselves are in `app/cli.py`."""

from baseload.app.cli import main

if __name__ == "__main__":
    main()
