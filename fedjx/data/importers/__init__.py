"""Importers: functions that open files of other formats as a `fedjx.data.Source`, for `fedjx.data.write_store`."""

from fedjx.data.importers.arrays import arrays
from fedjx.data.importers.arrow import arrow_ipc, hugging_face, parquet, table
from fedjx.data.importers.cifar import cifar
from fedjx.data.importers.fedjax_sqlite import fedjax_sqlite
from fedjx.data.importers.grouping import grouped
from fedjx.data.importers.hdf5 import pfl_hdf5, tff_hdf5
from fedjx.data.importers.idx import emnist, emnist_writers, idx, mnist
from fedjx.data.importers.image_rows import celeba_rows, inaturalist_rows, landmarks_rows
from fedjx.data.importers.images import ImageRow, image_folder
from fedjx.data.importers.leaf import leaf
from fedjx.data.importers.records import array_record, tfds
from fedjx.data.importers.tff_sqlite import tff_sqlite
from fedjx.data.importers.tfrecords import dataset_grouper, tfrecord_clients
from fedjx.data.importers.webdataset import webdataset

__all__ = [
    "ImageRow",
    "array_record",
    "arrays",
    "arrow_ipc",
    "celeba_rows",
    "cifar",
    "dataset_grouper",
    "emnist",
    "emnist_writers",
    "fedjax_sqlite",
    "grouped",
    "hugging_face",
    "idx",
    "image_folder",
    "inaturalist_rows",
    "landmarks_rows",
    "leaf",
    "mnist",
    "parquet",
    "pfl_hdf5",
    "table",
    "tfds",
    "tff_hdf5",
    "tff_sqlite",
    "tfrecord_clients",
    "webdataset",
]
