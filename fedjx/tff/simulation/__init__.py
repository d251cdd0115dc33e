"""``tff.simulation``: client data for simulations."""

from fedjx.tff.simulation import datasets

__all__ = ["datasets"]
