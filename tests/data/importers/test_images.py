"""Tests of importing folders of images, against Pillow and reading the tables by hand."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from fedjx.data import write_store
from fedjx.data.importers import ImageRow, celeba_rows, image_folder, inaturalist_rows, landmarks_rows
from tests.data.damage import check_damage

RANDOM = np.random.default_rng(0)


def saved(path, size=(6, 8), mode="RGB", **options):
    """A noise image of (height, width) and a mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,), "CMYK": (4,), "LA": (2,), "L": (), "1": ()}.get(mode, (3,))
    image = Image.fromarray(RANDOM.integers(256, size=(*size, *channels), dtype=np.uint8))
    if mode == "CMYK":
        image = Image.frombytes("CMYK", size[::-1], RANDOM.bytes(size[0] * size[1] * 4))
    image = image if image.mode == mode else image.convert(mode)
    image.save(path, **options)
    return path


def only(tmp_path, name, image_shape):
    (client,) = image_folder(tmp_path, [ImageRow(0, name)], image_shape=image_shape).clients()
    (image,) = client.examples["image"]
    assert image.shape == image_shape
    assert image.dtype == np.uint8
    return image


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.jpg", "RGB"),
        ("a.jpg", "L"),
        ("a.jpg", "CMYK"),
        ("a.png", "P"),
        ("a.png", "1"),
        ("a.png", "RGBA"),
        ("a.png", "LA"),
    ],
)
def test_any_image_becomes_rgb_or_grey(tmp_path, name, mode):
    path = saved(tmp_path / name, mode=mode)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = np.asarray(image.convert("RGB"))
        grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(only(tmp_path, name, (6, 8, 3)), expected)
    np.testing.assert_array_equal(only(tmp_path, name, (6, 8, 1))[..., 0], grey)
    if mode in ("L", "1"):
        assert (expected[..., 0] == expected[..., 2]).all()
    # As it is, what has one channel keeps it.
    (as_it_is,) = image_folder(tmp_path, [ImageRow(0, name)]).clients()
    np.testing.assert_array_equal(
        as_it_is.examples["image"][0], grey[..., None] if mode in ("L", "1", "LA") else expected
    )


def test_images_of_several_shapes_need_one(tmp_path):
    for name, mode in (("a.png", "L"), ("b.png", "RGB")):
        saved(tmp_path / name, mode=mode)
    with pytest.raises(ValueError, match=r"images need one shape; got \[\(6, 8, 1\), \(6, 8, 3\)\] in client 0. Give"):
        list(image_folder(tmp_path, [ImageRow(0, "a.png"), ImageRow(0, "b.png")]).clients())


def test_images_are_scaled_to_cover_and_cut_in_the_centre(tmp_path):
    ramp = np.zeros((20, 60, 3), np.uint8)
    ramp[:, 20:40] = 200  # A square in the centre.
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert (only(tmp_path, "a.png", (20, 20, 3)) == 200).all()
    half = only(tmp_path, "a.png", (10, 30, 3))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(half, np.asarray(image.resize((30, 10), Image.Resampling.BILINEAR)))
    assert only(tmp_path, "a.png", (40, 40, 3))[:, 2:-2].min() > 190


def test_images_of_more_than_eight_bits_or_too_many_pixels_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        only(tmp_path, "a.png", (4, 4, 3))
    # The header alone, as of a decompression bomb.
    data = bytearray((saved(tmp_path / "b.bmp")).read_bytes())
    data[18:26] = (20_000).to_bytes(4, "little") * 2
    (tmp_path / "b.bmp").write_bytes(data)
    with pytest.raises(ValueError, match="pixels"):
        only(tmp_path, "b.bmp", (4, 4, 3))


def test_clients_come_sorted_with_their_images_in_order(tmp_path):
    paths = {name: saved(tmp_path / name) for name in ("d/x.png", "d/e/y.png", "z.png", "w.png")}
    rows = [ImageRow("b", "z.png", {"y": 3}), ImageRow("a", "d/x.png", {"y": 1}), ImageRow("b", "y.png", {"y": 2})]
    source = image_folder(tmp_path, rows, image_shape=(6, 8, 3), image="x")
    store = write_store(tmp_path / "s", source, progress=False)
    assert store.client_ids([0, 1]) == ["a", "b"]
    assert store.client(1)["y"].tolist() == [3, 2]
    np.testing.assert_array_equal(store.client(0)["x"], [np.asarray(Image.open(paths["d/x.png"]))])
    expected = [np.asarray(Image.open(paths[name])) for name in ("z.png", "d/e/y.png")]  # One is found by its name.
    np.testing.assert_array_equal(store.client(1)["x"], expected)
    (few,) = image_folder(tmp_path, rows, image_shape=(6, 8, 3), min_images=2).clients()
    assert few.id == "b"


def test_missing_and_corrupt_images_are_refused_or_dropped(tmp_path):
    saved(tmp_path / "a.png")
    whole = saved(tmp_path / "b.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_bytes(b"no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in (("cut", "cut.png is not"), ("text", "text.png is not"), ("empty", "empty.png is not")):
        with pytest.raises(ValueError, match=message):
            only(tmp_path, f"{name}.png", (6, 8, 3))
    with pytest.raises(FileNotFoundError, match=r"none\.png is missing"):
        only(tmp_path, "none.png", (6, 8, 3))
    names = ["cut.png", "a.png", "none.png", "b.png", "text.png"]
    rows = [ImageRow(int(k > 3), name, {"y": k}) for k, name in enumerate(names)]
    source = image_folder(tmp_path, rows, image_shape=(6, 8, 3), missing="drop")
    with pytest.warns(UserWarning, match="3 images"):
        (client,) = source.clients()
    assert client.id == 0
    assert client.examples["y"].tolist() == [1, 3]


@pytest.mark.parametrize(
    "path", ["../a.png", "/etc/a.png", "d/../../a.png", "d//a.png", "..\\a.png", "a\0.png", "", "."]
)
@pytest.mark.parametrize("missing", ["error", "drop"])
def test_paths_stay_in_the_directory(tmp_path, path, missing):
    saved(tmp_path / "a.png")
    saved(tmp_path / "in" / "d" / "b.png")
    source = image_folder(tmp_path / "in", [ImageRow(0, path)], image_shape=(6, 8, 3), missing=missing)
    with pytest.raises(ValueError, match="stays in its directory"):
        list(source.clients())


def test_links_do_not_lead_out_of_the_directory(tmp_path):
    saved(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match="link out of it"):
        only(tmp_path / "in", "link.png", (6, 8, 3))


def test_a_name_that_is_there_twice_and_other_mistakes_are_refused(tmp_path):
    for folder in ("d", "e"):
        saved(tmp_path / folder / "a.png")
    with pytest.raises(ValueError, match="2 times"):
        only(tmp_path, "a.png", (6, 8, 3))
    for shape in ((6, 8), (6, 8, 2), (0, 8, 3)):
        with pytest.raises(ValueError, match="image_shape"):
            image_folder(tmp_path, [], image_shape=shape)
    with pytest.raises(TypeError, match="twice"):
        image_folder(tmp_path, iter([]), image_shape=(6, 8, 3))
    with pytest.raises(FileNotFoundError, match="need a directory"):
        image_folder(tmp_path / "none", [], image_shape=(6, 8, 3))
    with pytest.raises(ValueError, match="missing must be one of 'error', 'drop'; got missing="):
        image_folder(tmp_path, [], image_shape=(6, 8, 3), missing="ignore")
    rows = [ImageRow(0, "d/a.png", {"y": 1}), ImageRow(0, "d/a.png", {"z": 1})]
    with pytest.raises(ValueError, match="same labels"):
        list(image_folder(tmp_path, rows, image_shape=(6, 8, 3)).clients())


def test_landmarks(tmp_path):
    table = tmp_path / "federated_train.csv"
    users = {"17": ["00cba0067c078490", "f9cba0067c078490"], "9": ["00ffa0067c078490"]}
    table.write_text("user_id,image_id,class\n17,00cba0067c078490,5\n9,00ffa0067c078490,2027\n17,f9cba0067c078490,0\n")
    for name in (*users["17"], *users["9"]):
        saved(tmp_path / "images" / name[0] / name[1] / name[2] / f"{name}.jpg")
    source = image_folder(tmp_path / "images", landmarks_rows(table), image_shape=(6, 8, 3))
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [client.id for client in source.clients()] == ["17", "9"]
    for client in source.clients():
        own = [row for row in rows if row["user_id"] == client.id]
        assert client.examples["class"].tolist() == [int(row["class"]) for row in own]
        names = [row["image_id"] for row in own]
        paths = [tmp_path / "images" / name[0] / name[1] / name[2] / f"{name}.jpg" for name in names]
        np.testing.assert_array_equal(client.examples["image"], [np.asarray(Image.open(path)) for path in paths])
    assert source.provenance["importer"] == "landmarks"
    assert source.provenance["files"] == {"federated_train.csv": table.stat().st_size}
    small = saved(tmp_path / "images/0/0/f/00ffa0067c078490.jpg", (2, 2))
    assert next(source.clients()).examples["image"].shape == (2, 6, 8, 3)
    assert small.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns"),
        ("user_id,image_id\n1,abcd\n", "columns"),
        ("user_id,user_id,image_id,class\n1,1,abcd,1\n", "columns"),
        ("user_id,image_id,class\n1,abcd,\n", "line 2"),
        ("user_id,image_id,class\n1,abcd,1\n1,abcd\n", "line 3"),
        ("user_id,image_id,class\n1,abcd,1,1\n", "line 2"),
        ("user_id,image_id,class\n1,abcd,one\n", "class in line 2"),
        ("user_id,image_id,class\n1,../../a,1\n", "image_id in line 2"),
        ('user_id,image_id,class\n1,"ab\ncd",1\n', "image_id in line 3"),
        ("user_id,image_id,class\n1,\xff,1\n", "landmarks.csv"),
    ],
)
def test_tables_that_are_not_as_published_are_refused(tmp_path, text, message):
    path = tmp_path / "landmarks.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        list(landmarks_rows(path))
    assert "landmarks.csv" in str(error.value)
    with pytest.raises(FileNotFoundError):
        landmarks_rows(tmp_path / "none.csv")


def test_inaturalist(tmp_path):
    table = tmp_path / "iNaturalist_train.csv"
    # Names end with letters of ".jpg", and one has it.
    table.write_text("image_id,class,user_120k,geo_100\nabjpg,3,7,NA\ncgpj,4,NA,1\nbbb.jpg,5,7,0\n")
    for k, name in enumerate(("abjpg", "cgpj", "bbb")):
        saved(tmp_path / "images" / "Aves" / f"species {k}" / f"{name}.jpg")
    users = list(
        image_folder(tmp_path / "images", inaturalist_rows(table, "user_120k"), image_shape=(6, 8, 3)).clients()
    )
    assert [(client.id, client.examples["class"].tolist()) for client in users] == [("7", [3, 5])]
    expected = [np.asarray(Image.open(next(tmp_path.rglob(f"{name}.jpg")))) for name in ("abjpg", "bbb")]
    np.testing.assert_array_equal(users[0].examples["image"], expected)
    rows = list(inaturalist_rows(table, "geo_100"))
    assert [(row.client, row.path) for row in rows] == [("1", "cgpj.jpg"), ("0", "bbb.jpg")]
    with pytest.raises(ValueError, match="split is one of user_120k"):
        inaturalist_rows(table, "geo_5")
    with pytest.raises(ValueError, match="geo_1k have to be there"):
        list(inaturalist_rows(table, "geo_1k"))


NAMES = " ".join(f"Attribute_{k}" for k in range(40))


def celeba(tmp_path, lines, values, number=None):
    identities, attributes = tmp_path / "identity_CelebA.txt", tmp_path / "list_attr_celeba.txt"
    identities.write_text("".join(f"{line}\n" for line in lines))
    rows = "".join(f"{name}  {' '.join(f'{v:2d}' for v in row)}\n" for name, row in values)
    attributes.write_text(f"{len(values) if number is None else number}\n{NAMES} \n{rows}")
    return identities, attributes


def test_celeba(tmp_path):
    values = RANDOM.choice([-1, 1], size=(4, 40)).tolist()
    names = [f"{k:06d}.jpg" for k in range(1, 5)]
    paths = celeba(
        tmp_path,
        [f"{n} {c}" for n, c in zip(names, (2880, 7, 2880, 2880), strict=True)],
        list(zip(names, values, strict=True)),
    )
    for name in names:
        saved(tmp_path / "img" / name)
    source = image_folder(tmp_path / "img", celeba_rows(*paths), image_shape=(6, 8, 3))
    first, second = source.clients()
    assert (first.id, second.id) == (7, 2880)
    assert second.examples["attributes"].dtype == bool
    np.testing.assert_array_equal(second.examples["attributes"], np.array(values)[[0, 2, 3]] == 1)
    np.testing.assert_array_equal(first.examples["image"][0], np.asarray(Image.open(tmp_path / "img" / "000002.jpg")))
    assert source.provenance["options"]["attributes"] == NAMES.split()
    assert [row.labels for row in celeba_rows(paths[0])] == [{}] * 4
    (many,) = image_folder(tmp_path / "img", celeba_rows(*paths), image_shape=(6, 8, 3), min_images=2).clients()
    assert many.id == 2880


@pytest.mark.parametrize(
    ("lines", "values", "number", "message"),
    [
        (["1.jpg 1"], [("2.jpg", [1] * 40)], 1, r"got 1\.jpg in .* has 2\.jpg"),
        (["1.jpg 1", "2.jpg 1"], [("1.jpg", [1] * 40)], 1, r"got 2\.jpg in .* has nothing"),
        (["1.jpg 1"], [("1.jpg", [1] * 40), ("2.jpg", [1] * 40)], 2, r"got nothing in .* has 2\.jpg"),
        (["1.jpg 1"], [("1.jpg", [1] * 40)], 5, "1 images and says 5"),
        (["1.jpg 1"], [("1.jpg", [1] * 39)], 1, "40 times"),
        (["1.jpg 1"], [("1.jpg", [0] * 40)], 1, "1 or -1"),
        (["1.jpg"], [("1.jpg", [1] * 40)], 1, "line 1"),
        (["../1.jpg 1"], [("../1.jpg", [1] * 40)], 1, "line 1"),
    ],
)
def test_celeba_files_that_do_not_fit_are_refused(tmp_path, lines, values, number, message):
    with pytest.raises(ValueError, match=message):
        list(celeba_rows(*celeba(tmp_path, lines, values, number)))


def test_damaged_tables_and_images_are_refused_or_whole(tmp_path):
    names = [f"{k:06d}.jpg" for k in range(1, 5)]
    values = [(name, RANDOM.choice([-1, 1], size=40).tolist()) for name in names]
    paths = celeba(tmp_path, [f"{name} {k % 2}" for k, name in enumerate(names)], values)
    for name in names:
        saved(tmp_path / "img" / name, quality=20)

    def source():
        return image_folder(tmp_path / "img", celeba_rows(*paths), image_shape=(6, 8, 3))

    assert check_damage(paths[0], source, number=60) > 40
    assert check_damage(paths[1], source, number=60) > 40
    assert check_damage(tmp_path / "img" / names[0], source, number=60) > 20
    # PNG has checksums.
    saved(tmp_path / "img" / "a.png")
    rows = [ImageRow("c", "a.png", {"y": 1})]
    png = tmp_path / "img" / "a.png"
    check_damage(png, lambda: image_folder(tmp_path / "img", rows, image_shape=(6, 8, 3)), number=60, is_checked=True)


def test_an_image_that_is_grey_by_its_bytes(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert (only(tmp_path, "a.png", (6, 8, 3)) == 77).all()


def test_rows_may_be_plain_tuples(tmp_path):
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "a.png")
    (client,) = image_folder(tmp_path, [("ada", "a.png", {"y": 3})], image_shape=(4, 4, 3)).clients()
    assert client.id == "ada"
    assert (client.examples["image"] == 9).all()
    assert client.examples["y"].tolist() == [3]
