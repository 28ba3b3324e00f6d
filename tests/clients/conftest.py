"""The check_*.py scripts run in their clients' own environments, not here."""

collect_ignore_glob = ["check_*.py", "probe.py"]
