"""``tff.templates``."""

from fedjx.tff.learning.process import IterativeProcess

__all__ = ["IterativeProcess"]
