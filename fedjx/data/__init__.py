"""Federated data: client data in memory and on disk, importers, partitions, preprocessing, cohorts and samplers."""

from fedjx.data.client_states import ClientStates
from fedjx.data.cohort import Cohort, central
from fedjx.data.describe import Description, describe
from fedjx.data.digits import digits
from fedjx.data.federated_data import ClientData, FederatedData
from fedjx.data.partitions import (
    continuous_partition,
    dirichlet_by_client_partition,
    dirichlet_partition,
    dirichlet_sizes,
    distribution_partition,
    exponential_sizes,
    iid_partition,
    label_counts,
    linear_sizes,
    lognormal_sizes,
    natural_grouped_partition,
    natural_partition,
    pachinko_partition,
    pathological_partition,
    power_law_sizes,
    rotating_weights,
    shards_partition,
    size_partition,
    sort_partition,
    square_sizes,
    train_test_partition,
    zipf_sizes,
)
from fedjx.data.plots import plot_description, plot_label_distribution, plot_sizes
from fedjx.data.poison import flip_labels, only_clients, pixel_trigger, relabel
from fedjx.data.preprocess import Preprocessed, Step, preprocess
from fedjx.data.python_source import python_modules, python_source
from fedjx.data.sampling import Sampler, check_description, poisson_sampler, uniform_sampler
from fedjx.data.sampling_choice import ToldSampler, power_of_choice
from fedjx.data.sampling_reports import exponential_times, over_select
from fedjx.data.sampling_schedules import (
    Diurnal,
    availability_sampler,
    cyclic_poisson_sampler,
    cyclic_sampler,
    fixed_sampler,
)
from fedjx.data.sampling_weighted import size_weighted_sampler, weighted_sampler
from fedjx.data.skew import add_noise, label_permutations, noise_levels, permute_labels, rotate_images, scale_channels
from fedjx.data.source import Client, Source, write_store
from fedjx.data.store import Store
from fedjx.data.store_writer import StoreWriter
from fedjx.data.transforms import (
    filter_examples,
    map_examples,
    select_features,
    split_clients,
    split_examples,
    tokenize,
    truncate,
)

__all__ = [
    "Client",
    "ClientData",
    "ClientStates",
    "Cohort",
    "Description",
    "Diurnal",
    "FederatedData",
    "Preprocessed",
    "Sampler",
    "Source",
    "Step",
    "Store",
    "StoreWriter",
    "ToldSampler",
    "add_noise",
    "availability_sampler",
    "central",
    "check_description",
    "continuous_partition",
    "cyclic_poisson_sampler",
    "cyclic_sampler",
    "describe",
    "digits",
    "dirichlet_by_client_partition",
    "dirichlet_partition",
    "dirichlet_sizes",
    "distribution_partition",
    "exponential_sizes",
    "exponential_times",
    "filter_examples",
    "fixed_sampler",
    "flip_labels",
    "iid_partition",
    "label_counts",
    "label_permutations",
    "linear_sizes",
    "lognormal_sizes",
    "map_examples",
    "natural_grouped_partition",
    "natural_partition",
    "noise_levels",
    "only_clients",
    "over_select",
    "pachinko_partition",
    "pathological_partition",
    "permute_labels",
    "pixel_trigger",
    "plot_description",
    "plot_label_distribution",
    "plot_sizes",
    "poisson_sampler",
    "power_law_sizes",
    "power_of_choice",
    "preprocess",
    "python_modules",
    "python_source",
    "relabel",
    "rotate_images",
    "rotating_weights",
    "scale_channels",
    "select_features",
    "shards_partition",
    "size_partition",
    "size_weighted_sampler",
    "sort_partition",
    "split_clients",
    "split_examples",
    "square_sizes",
    "tokenize",
    "train_test_partition",
    "truncate",
    "uniform_sampler",
    "weighted_sampler",
    "write_store",
    "zipf_sizes",
]
