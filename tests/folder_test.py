"""One's own images: splits, odd files, broken files."""

import io

import numpy as np
import PIL.Image
import pytest

from basisnet_jax.data import folder, pipeline
from basisnet_jax.errors import UserError


def picture(value=128, size=(12, 8), mode="RGB"):
    return PIL.Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode))


def fill(root, classes=("cat", "dog"), each=30):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture(40 + 100 * label).save(root / name / f"{i}.jpg")
    return root


def decoded(path):
    image = PIL.Image.open(io.BytesIO(folder.encode(path)))
    return np.asarray(image.convert("RGB"))


def test_missing_splits_are_carved_and_stay_as_they_are(tmp_path):
    root = fill(tmp_path / "images", each=100)
    files = folder.find_files(root)
    everything = [path for pairs in files.values() for _, path in pairs]
    assert len(everything) == len(set(everything)) == 200
    assert 8 <= len(files["validation"]) <= 35
    assert 8 <= len(files["test"]) <= 35
    before = {split: set(pairs) for split, pairs in files.items()}
    picture().save(root / "cat" / "new.png")
    after = folder.find_files(root)
    assert all(before[split] <= set(after[split]) for split in before)
    assert folder.fingerprint(root, files) != folder.fingerprint(root, after)


def test_named_splits_are_used(tmp_path):
    for split in ("train", "val", "test"):
        fill(tmp_path / split, each=3)
    files = folder.find_files(tmp_path)
    assert {split: len(pairs) for split, pairs in files.items()} == {"train": 6, "validation": 6, "test": 6}


def test_odd_images_become_upright_rgb(tmp_path):
    path = tmp_path / "image.png"
    picture(77, mode="L").save(path)
    np.testing.assert_array_equal(decoded(path), 77)
    PIL.Image.fromarray(np.full((8, 12), 257 * 200, np.uint16)).save(path)
    np.testing.assert_array_equal(decoded(path), 200)
    PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    np.testing.assert_array_equal(decoded(path), 255)  # transparent: white
    cmyk = tmp_path / "cmyk.jpg"
    PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(cmyk, quality=100)
    np.testing.assert_allclose(decoded(cmyk), np.broadcast_to([255, 0, 0], (4, 4, 3)), atol=4)
    animated = tmp_path / "animated.gif"
    frames = [PIL.Image.new("RGB", (4, 4), color) for color in ("blue", "green")]
    frames[0].save(animated, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(animated), np.broadcast_to([0, 0, 255], (4, 4, 3)))
    rotated = tmp_path / "rotated.jpg"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    picture(size=(12, 8)).save(rotated, exif=exif)
    assert decoded(rotated).shape == (12, 8, 3)


def test_ordinary_jpegs_keep_their_bytes(tmp_path):
    path = tmp_path / "a.jpg"
    picture().save(path)
    assert folder.encode(path) == path.read_bytes()


def break_one(root, how):
    path = root / "cat" / "0.jpg"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "truncated": content[: len(content) // 2]}[how])
    return path


@pytest.mark.parametrize("how", ["empty", "text", "truncated"])
def test_a_broken_file_is_named(tmp_path, tiny, how, capsys):
    path = break_one(fill(tmp_path / "images"), how)
    config = tiny(dataset=f"folder:{tmp_path / 'images'}", data_dir=str(tmp_path / "data"), num_classes=2)
    config.batch_size, config.channels = 8, 3
    with pytest.raises(UserError, match=str(path)):
        pipeline.builder(config)
    config.bad_images = "skip"
    total = sum(pipeline.num_examples(config, split) for split in ("train", "validation", "test"))
    assert total == 59
    output = capsys.readouterr()
    assert str(path) in output.out + output.err


def test_batches_of_a_folder(tmp_path, tiny):
    root = fill(tmp_path / "images")
    config = tiny(dataset=f"folder:{root}", data_dir=str(tmp_path / "data"), num_classes=2)
    config.batch_size, config.eval_batch_size = 8, 16
    config.channels = 3
    config.augment.shift = config.augment.rotation = config.augment.zoom = 0.0
    batch = next(pipeline.train_batches(config))
    assert batch["image"].shape == (8, 16, 16, 3)
    np.testing.assert_allclose(batch["image"][:, 8, 8, 0], 40 + 100 * batch["label"], atol=3)
    seen = sum(int(batch["mask"].sum()) for batch in pipeline.eval_batches(config, "test"))
    assert seen == pipeline.num_examples(config, "test")
    assert pipeline.class_names(config) == ["cat", "dog"]


def test_mistakes(tmp_path, tiny):
    with pytest.raises(UserError, match="does not exist"):
        folder.find_files(tmp_path / "nothing")
    with pytest.raises(UserError, match="no class folders"):
        folder.find_files(tmp_path)
    root = fill(tmp_path / "images")
    config = tiny(dataset=f"folder:{root}", data_dir=str(tmp_path / "data"), num_classes=10)
    with pytest.raises(UserError, match="num_classes is 10, but .* has 2"):
        pipeline.builder(config)
    with pytest.raises(UserError, match="names no folder, expected folder:/path/to/images"):
        pipeline.builder(tiny(dataset="folder:"))
