"""Importers: functions that open files of other formats as a `fedjx.data.Source`, for `fedjx.data.write_store`."""

from fedjx.data.importers.fedjax_sqlite import fedjax_sqlite
from fedjx.data.importers.hdf5 import pfl_hdf5, tff_hdf5
from fedjx.data.importers.tff_sqlite import tff_sqlite
from fedjx.data.importers.tfrecords import dataset_grouper, tfrecord_clients

__all__ = [
    "dataset_grouper",
    "fedjax_sqlite",
    "pfl_hdf5",
    "tff_hdf5",
    "tff_sqlite",
    "tfrecord_clients",
]
