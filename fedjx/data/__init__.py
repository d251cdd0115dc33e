"""Federated data: flat columns with client offsets, partitions, cohorts and samplers."""

from fedjx.data.cohort import Cohort, central, cohort
from fedjx.data.digits import digits
from fedjx.data.federated_data import ClientData, FederatedData
from fedjx.data.partition import dirichlet_partition, iid_partition, label_counts
from fedjx.data.sampling import uniform_sampler
from fedjx.data.source import Client, Source, write_store
from fedjx.data.store import Store
from fedjx.data.store_writer import StoreWriter

__all__ = [
    "Client",
    "ClientData",
    "Cohort",
    "FederatedData",
    "Source",
    "Store",
    "StoreWriter",
    "central",
    "cohort",
    "digits",
    "dirichlet_partition",
    "iid_partition",
    "label_counts",
    "uniform_sampler",
    "write_store",
]
