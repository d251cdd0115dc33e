"""Partitions of a central data set over clients: pure functions of labels, keys or sizes that return rows."""

from fedjx.data.partitions.dirichlet import dirichlet_partition, iid_partition, label_counts
from fedjx.data.partitions.keys import (
    continuous_partition,
    natural_grouped_partition,
    natural_partition,
    sort_partition,
    train_test_partition,
)
from fedjx.data.partitions.labels import (
    distribution_partition,
    pathological_partition,
    rotating_weights,
    shards_partition,
)
from fedjx.data.partitions.pachinko import dirichlet_by_client_partition, pachinko_partition
from fedjx.data.partitions.sizes import (
    dirichlet_sizes,
    exponential_sizes,
    linear_sizes,
    lognormal_sizes,
    power_law_sizes,
    size_partition,
    square_sizes,
    zipf_sizes,
)

__all__ = [
    "continuous_partition",
    "dirichlet_by_client_partition",
    "dirichlet_partition",
    "dirichlet_sizes",
    "distribution_partition",
    "exponential_sizes",
    "iid_partition",
    "label_counts",
    "linear_sizes",
    "lognormal_sizes",
    "natural_grouped_partition",
    "natural_partition",
    "pachinko_partition",
    "pathological_partition",
    "power_law_sizes",
    "rotating_weights",
    "shards_partition",
    "size_partition",
    "sort_partition",
    "square_sizes",
    "train_test_partition",
    "zipf_sizes",
]
