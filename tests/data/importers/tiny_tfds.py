"""A tiny data set of TFDS, in a module of its own as TFDS needs it."""

import contextlib
import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent

    def _info(self):
        features = {
            "user": tfds.features.Text(),
            "number": tfds.features.Scalar(np.int32),
            "x": tfds.features.Tensor(shape=(2, 2), dtype=np.float32),
            "y": tfds.features.ClassLabel(num_classes=3),
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "more": {"flag": tfds.features.Scalar(np.bool_)},
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download):
        return {"train": self._generate_examples(30), "test": self._generate_examples(3)}

    def _generate_examples(self, number):
        for k in range(number):
            # As a file: encoding an array takes TensorFlow.
            yield k, {**example(k), "image": io.BytesIO(picture(k))}


def example(k):
    x = np.arange(4, dtype=np.float32).reshape(2, 2) / 3 + k
    return {"user": f"u{k % 4}é", "number": k, "x": x, "y": k % 3, "more": {"flag": k % 2 == 0}}


def picture(k):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(k).integers(256, size=(4 + k % 2, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def prepared(directory):
    """Prepares the data set without TensorFlow, and without a word."""
    builder = Tiny(data_dir=directory, file_format="array_record")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return builder
