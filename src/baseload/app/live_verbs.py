"""The verbs of the live side: `serve`, `keys`, `usage`, `verify`. Heavy parts are imported inside."""

from __future__ import annotations

import argparse

from baseload.app.verbs import say


def serve_verb(options: argparse.Namespace) -> int:
    """Run gateway and control plane until told to stop."""
    from baseload.app import serving

    return serving.serve(options, say)
