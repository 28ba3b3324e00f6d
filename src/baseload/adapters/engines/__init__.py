"""Engines that Baseload starts itself, each a process of its own: embedded (llama.cpp) and emulated (a rehearsal)."""
