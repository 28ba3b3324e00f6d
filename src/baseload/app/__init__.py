"""The front doors, and the only place where parts are wired together. Nothing imports app."""
