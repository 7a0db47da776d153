"""Public data sets by name: their archives with published digests, and how the unpacked images are read.

pipeline/fetch/set_layout.py downloads a set and makes a competition folder of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import UserError
from pipeline.wording import nearest

CIFAR_PX = 32


@dataclass(frozen=True)
class Archive:
    """One file of a set, with its published `size` in bytes and `sha256`."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Its file name."""
        return Path(urlsplit(self.url).path).name


@dataclass(frozen=True)
class SetImage:
    """One image of a set. `split`: the set's own name of its part. `original`: its name in the archive."""

    split: str
    label: str
    original: str
    suffix: str
    save: Callable[[Path], object]


@dataclass(frozen=True)
class PublicSet:
    """A set: its archives and how to read the unpacked images.

    The images of `test_split` are the test images.
    """

    about: str
    archives: tuple[Archive, ...]
    read: Callable[[Path], Iterator[SetImage]]
    test_split: str
    disk_factor: float  # bytes on disk during the layout, per byte of its archives
    recipes: tuple[str, ...] = ()


def find(name: str) -> PublicSet:
    """Return the set with this name.

    Raises:
        UserError: there is none.
    """
    if name not in SETS:
        raise UserError(f"--dataset {name!r} is not known{nearest(name, SETS)}; known: {', '.join(SETS)}")
    return SETS[name]


# ---- the layout of the archives; `unpacked/0` is the first archive, `unpacked/1` the second ----


def _cifar(
    unpacked: Path, folder: str, names: str, batches: Sequence[tuple[str, str]], label_bytes: int
) -> Iterator[SetImage]:
    """Read CIFAR's binary version: a record has its labels (the last one is used), then 1,024 bytes each of
    red, green, blue.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version". The Python version uses pickles,
    which may run code.
    """
    import numpy as np

    root = unpacked / "0" / folder
    class_names = (root / names).read_text().split()
    for split, batch in batches:
        records = np.fromfile(root / batch, np.uint8).reshape(-1, label_bytes + 3 * CIFAR_PX**2)
        for number, record in enumerate(records):
            label = class_names[record[label_bytes - 1]]
            yield SetImage(
                split, label, f"{batch}#{number}", ".png", partial(_save_pixels, record[label_bytes:])
            )


def _save_pixels(planes: Sequence[int], path: Path) -> None:
    from PIL import Image

    Image.fromarray(planes.reshape(3, CIFAR_PX, CIFAR_PX).transpose(1, 2, 0)).save(path)


def _class_folders(unpacked: Path, folder: str, class_names: dict[str, str]) -> Iterator[SetImage]:
    """Read fast.ai's layout: train/ and val/, each with one folder per WordNet id."""
    for split in ("train", "val"):
        for wordnet_id, label in class_names.items():
            class_dir = unpacked / "0" / folder / split / wordnet_id
            for path in sorted(class_dir.iterdir()):
                yield _moved(split, label, path, f"{split}/{wordnet_id}/{path.name}")


def _pets(unpacked: Path) -> Iterator[SetImage]:
    """Read Oxford-IIIT Pet: images named after their breed, and lists `<image> <class> <species> <breed>` of
    both parts.
    """
    for split in ("trainval", "test"):
        for image, *_ in _columns(unpacked / "1" / "annotations" / f"{split}.txt"):
            yield _moved(
                split, image.rpartition("_")[0], unpacked / "0" / "images" / f"{image}.jpg", f"{image}.jpg"
            )


def _birds(unpacked: Path) -> Iterator[SetImage]:
    """Read CUB-200-2011: images in folders such as 001.Black_footed_Albatross, and lists by image number."""
    root = unpacked / "0" / "CUB_200_2011"
    is_train = dict(_columns(root / "train_test_split.txt"))
    for number, image in _columns(root / "images.txt"):
        label = image.partition("/")[0].partition(".")[2]
        yield _moved("train" if is_train[number] == "1" else "test", label, root / "images" / image, image)


def _columns(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines() if line.strip()]


def _moved(split: str, label: str, path: Path, original: str) -> SetImage:
    """Return an image that is a file already; its bytes are not changed."""
    if not path.is_file():
        raise FileNotFoundError(f"no {original}")
    return SetImage(split, label, original, path.suffix.lower(), path.rename)


# ---- the sets ----

# The first name of each synset in WordNet, as in ImageNet's own list.
WOOF = {
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian_ridgeback",
    "n02088364": "beagle",
    "n02089973": "English_foxhound",
    "n02093754": "Border_terrier",
    "n02096294": "Australian_terrier",
    "n02099601": "golden_retriever",
    "n02105641": "Old_English_sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "dingo",
}
NETTE = {
    "n01440764": "tench",
    "n02102040": "English_springer",
    "n02979186": "cassette_player",
    "n03000684": "chain_saw",
    "n03028079": "church",
    "n03394916": "French_horn",
    "n03417042": "garbage_truck",
    "n03425413": "gas_pump",
    "n03445777": "golf_ball",
    "n03888257": "parachute",
}
TORONTO = "https://www.cs.toronto.edu/~kriz/"
FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas/"
PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
CALTECH = "https://data.caltech.edu/records/65de6-vp158/files/"
BATCHES_10 = (*(("train", f"data_batch_{number}.bin") for number in range(1, 6)), ("test", "test_batch.bin"))
BATCHES_100 = (("train", "train.bin"), ("test", "test.bin"))


def _fastai(
    about: str,
    folder: str,
    size: int,
    sha256: str,
    class_names: dict[str, str],
    recipes: tuple[str, ...] = (),
) -> PublicSet:
    archive = Archive(f"{FASTAI}{folder}.tgz", size, sha256)
    return PublicSet(
        about,
        (archive,),
        partial(_class_folders, folder=folder, class_names=class_names),
        "val",
        2.2,
        recipes,
    )


_woof = partial(_fastai, class_names=WOOF, recipes=("vit-tiny-imagewoof",))
_nette = partial(_fastai, class_names=NETTE)

# Sizes and digests: TensorFlow Datasets, tensorflow_datasets/url_checksums/*.txt (it has CUB from a copy of
# the same file).
SETS: dict[str, PublicSet] = {
    "cifar10": PublicSet(
        "CIFAR-10: 60,000 images of 32 px in 10 classes (A. Krizhevsky, 2009)",
        (
            Archive(
                f"{TORONTO}cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        partial(
            _cifar, folder="cifar-10-batches-bin", names="batches.meta.txt", batches=BATCHES_10, label_bytes=1
        ),
        "test",
        4.0,
        ("beit-base-cifar10", "beit-base-cifar10-baseline"),
    ),
    "cifar100": PublicSet(
        "CIFAR-100: 60,000 images of 32 px in 100 classes (A. Krizhevsky, 2009)",
        (
            Archive(
                f"{TORONTO}cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        partial(
            _cifar,
            folder="cifar-100-binary",
            names="fine_label_names.txt",
            batches=BATCHES_100,
            label_bytes=2,
        ),
        "test",
        4.0,
        ("beit-base-cifar100", "beit-base-cifar100-baseline"),
    ),
    "imagewoof": _woof(
        "ImageWoof: 10 dog breeds of ImageNet, full size (fast.ai)",
        "imagewoof2",
        1_343_482_285,
        "d6f2ffc7b95663f7701b94cea32db1683b9a50dd389382c7cca024e840af0379",
    ),
    "imagewoof-320": _woof(
        "ImageWoof: 10 dog breeds of ImageNet, shorter side 320 px (fast.ai)",
        "imagewoof2-320",
        328_288_506,
        "4e4905ed7643120daaf9bf3b2ef7f3a7e8396d9bdaf254a38c6f01f618b4973d",
    ),
    "imagewoof-160": _woof(
        "ImageWoof: 10 dog breeds of ImageNet, shorter side 160 px (fast.ai)",
        "imagewoof2-160",
        92_560_471,
        "663c22f69c2802d85e2a67103c017e047096702ffddf9149a14011b7002539bf",
    ),
    "imagenette": _nette(
        "Imagenette: 10 easy classes of ImageNet, full size (fast.ai)",
        "imagenette2",
        1_556_914_727,
        "de32de18a7d8df0114d5e2c3c14cafb9558e8f00441a73aa7953681ad02be49c",
    ),
    "imagenette-320": _nette(
        "Imagenette: 10 easy classes of ImageNet, shorter side 320 px (fast.ai)",
        "imagenette2-320",
        341_553_947,
        "5020a9130cea0348272823cb12d2db7e981c6f2afa3dce71ccd5b8013005c55e",
    ),
    "imagenette-160": _nette(
        "Imagenette: 10 easy classes of ImageNet, shorter side 160 px (fast.ai)",
        "imagenette2-160",
        98_948_031,
        "88daccb09b6fce93f45e6c09ddeb269cce705549e6bff322092a2a5a11489863",
    ),
    "pets": PublicSet(
        "Oxford-IIIT Pet: 37 breeds of cats and dogs (O. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, "
        "2012)",
        (
            Archive(
                f"{PETS}images.tar.gz",
                791_918_971,
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            ),
            Archive(
                f"{PETS}annotations.tar.gz",
                19_173_078,
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            ),
        ),
        _pets,
        "test",
        2.3,
    ),
    "cub200": PublicSet(
        "CUB-200-2011: 200 species of birds (C. Wah, S. Branson, P. Welinder, P. Perona, S. Belongie, 2011)",
        (
            Archive(
                f"{CALTECH}CUB_200_2011.tgz",
                1_150_585_339,
                "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
            ),
        ),
        _birds,
        "test",
        2.3,
    ),
}
