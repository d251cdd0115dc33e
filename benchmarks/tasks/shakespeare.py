"""Shakespeare: the next character of what a role says."""

from __future__ import annotations

from benchmarks.tasks.settings import Setting
from benchmarks.tasks.task import Place, Task, opened, reading
from fedjx.data import published
from fedjx.models.published import shakespeare_lstm


def shakespeare(place: Place, setting: Setting) -> Task:
    """Predicts the next character in what 715 roles say, cut as TFF does, or FedJAX."""
    convention = "fedjax" if setting.source == "fedjax" else "tff"
    data = opened(place, published.shakespeare(convention=convention))
    return Task(data["train"], data["test"], reading(shakespeare_lstm(), published.next_token))


def plays(place: Place, setting: Setting) -> Task:
    """Predicts the next character in the plays that a package registry has, which are other roles than TFF's."""
    data = opened(place, published.shakespeare_plays(), twin="shakespeare")
    return Task(data["train"], data["test"], reading(shakespeare_lstm(), published.next_token))
