"""Importers: functions that return a `fedjx.data.Source` of clients, for `fedjx.data.write_store`."""

from fedjx.data.importers.arrays import arrays
from fedjx.data.importers.arrow import arrow_ipc, hugging_face, parquet, table
from fedjx.data.importers.cifar import cifar
from fedjx.data.importers.grouping import grouped
from fedjx.data.importers.image_rows import celeba_rows, inaturalist_rows, landmarks_rows
from fedjx.data.importers.images import ImageRow, image_folder
from fedjx.data.importers.leaf import leaf
from fedjx.data.importers.records import array_record, tfds
from fedjx.data.importers.webdataset import webdataset

__all__ = [
    "ImageRow",
    "array_record",
    "arrays",
    "arrow_ipc",
    "celeba_rows",
    "cifar",
    "grouped",
    "hugging_face",
    "image_folder",
    "inaturalist_rows",
    "landmarks_rows",
    "leaf",
    "parquet",
    "table",
    "tfds",
    "webdataset",
]
