"""Baseload: plan, simulate and serve inference on accelerators in several sites, from one fleet file."""

__version__ = "0.1.0"
