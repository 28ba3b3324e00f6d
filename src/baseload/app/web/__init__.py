"""The control listener: live page, metrics, keys, usage, reload. It asks the owner for everything, and holds no rule."""
