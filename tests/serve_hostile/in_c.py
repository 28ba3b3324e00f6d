"""Imported first, it lets a process use the functions in C, where `make native` built them; `WHY` says why not."""

import sys

from baseload import native

WHY = native.use(written_alone=True) if "baseload.serve" not in sys.modules else "the gateway was imported before"
