"""Federated data: flat columns with client offsets, partitions, cohorts and samplers."""

from fedjx.data.cohort import Cohort, central, cohort
from fedjx.data.digits import digits
from fedjx.data.federated_data import ClientData, FederatedData
from fedjx.data.partition import dirichlet_partition, iid_partition, label_counts
from fedjx.data.preprocess import Preprocessed, Step, preprocess
from fedjx.data.sampling import uniform_sampler
from fedjx.data.source import Client, Source, write_store
from fedjx.data.store import Store
from fedjx.data.store_writer import StoreWriter
from fedjx.data.transforms import (
    filter_examples,
    map_examples,
    select,
    split_clients,
    split_examples,
    tokenize,
    truncate,
)

__all__ = [
    "Client",
    "ClientData",
    "Cohort",
    "FederatedData",
    "Preprocessed",
    "Source",
    "Step",
    "Store",
    "StoreWriter",
    "central",
    "cohort",
    "digits",
    "dirichlet_partition",
    "filter_examples",
    "iid_partition",
    "label_counts",
    "map_examples",
    "preprocess",
    "select",
    "split_clients",
    "split_examples",
    "tokenize",
    "truncate",
    "uniform_sampler",
    "write_store",
]
