"""The datasets that seam knows by name. Light to import: the parameters are checked against these names."""

from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class DatasetInfo:
    """What is fixed about a dataset.

    `layout` says how it is read: "digits" (scikit-learn's bundled file), "idx" (MNIST's format), "cifar" (torchvision's
    batches), "torchvision" (image files that a torchvision class lists) or "folder" (train/ and val/ or test/, one
    folder a class). All but the first two may also come as such folders.
    """

    name: str
    title: str
    layout: str
    channels: int | None  # None: read off the images
    image_size: tuple[int, int] | None  # (H, W) in pixels; None: read off the images
    classes: int | None
    counts: tuple[int, int] | None  # images in (train, test)
    torchvision: str | None = None  # class in torchvision.datasets
    train: tuple[str, ...] = ("train",)  # the torchvision splits that make up our train split
    test: str = "test"
    url: str | None = None  # where torchvision downloads from
    files: MappingProxyType = field(default_factory=lambda: MappingProxyType({}))  # name -> sha256 of its content
    debian: tuple[str, str] | None = None  # package and the folder it installs
    flip: bool = True  # whether a mirrored image still shows the same class
    hint: str = ""  # which files to put where, under <data root>/<name>/


def _idx(**digests: str) -> MappingProxyType:
    return MappingProxyType({name.replace("_", "-") + "-ubyte": digest for name, digest in digests.items()})


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo(
            name="digits",
            title="scikit-learn's digits",
            layout="digits",
            channels=1,
            image_size=(8, 8),
            classes=10,
            counts=(1438, 359),
            flip=False,
            hint="install scikit-learn again",
        ),
        DatasetInfo(
            name="fashion_mnist",
            title="Fashion-MNIST",
            layout="idx",
            channels=1,
            image_size=(28, 28),
            classes=10,
            counts=(60_000, 10_000),
            torchvision="FashionMNIST",
            url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            # Of the uncompressed files: Debian compresses them anew.
            files=_idx(
                train_images_idx3="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                train_labels_idx1="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                t10k_images_idx3="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                t10k_labels_idx1="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            debian=("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
            hint="train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
            "t10k-labels-idx1-ubyte.gz (from github.com/zalandoresearch/fashion-mnist)",
        ),
        DatasetInfo(
            name="cifar10",
            title="CIFAR-10",
            layout="cifar",
            channels=3,
            image_size=(32, 32),
            classes=10,
            counts=(50_000, 10_000),
            torchvision="CIFAR10",
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            hint="the folder cifar-10-batches-py, or its archive cifar-10-python.tar.gz",
        ),
        DatasetInfo(
            name="cifar100",
            title="CIFAR-100",
            layout="cifar",
            channels=3,
            image_size=(32, 32),
            classes=100,
            counts=(50_000, 10_000),
            torchvision="CIFAR100",
            url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            hint="the folder cifar-100-python, or its archive cifar-100-python.tar.gz",
        ),
        DatasetInfo(
            name="flowers102",
            title="Oxford 102 Flower",
            layout="torchvision",
            channels=3,
            image_size=(224, 224),
            classes=102,
            counts=(2_040, 6_149),
            torchvision="Flowers102",
            train=("train", "val"),
            url="https://thor.robots.ox.ac.uk/flowers/102/102flowers.tgz",
            hint="the folder flowers-102 with jpg/, imagelabels.mat and setid.mat",
        ),
        DatasetInfo(
            name="food101",
            title="Food-101",
            layout="torchvision",
            channels=3,
            image_size=(224, 224),
            classes=101,
            counts=(75_750, 25_250),
            torchvision="Food101",
            url="https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            hint="the folder food-101 with images/ and meta/",
        ),
        DatasetInfo(
            name="oxford_iiit_pet",
            title="Oxford-IIIT Pet",
            layout="torchvision",
            channels=3,
            image_size=(224, 224),
            classes=37,
            counts=(3_680, 3_669),
            torchvision="OxfordIIITPet",
            train=("trainval",),
            url="https://thor.robots.ox.ac.uk/pets/images.tar.gz",
            hint="the folder oxford-iiit-pet with images/ and annotations/",
        ),
        DatasetInfo(
            name="stanford_cars",
            title="Stanford Cars",
            layout="torchvision",
            channels=3,
            image_size=(224, 224),
            classes=196,
            counts=(8_144, 8_041),
            torchvision="StanfordCars",
            hint="the folder stanford_cars with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat "
            "(the original server is gone; see torchvision's issue 7545)",
        ),
        DatasetInfo(
            name="fgvc_aircraft",
            title="FGVC-Aircraft (variants)",
            layout="torchvision",
            channels=3,
            image_size=(224, 224),
            classes=100,
            counts=(6_667, 3_333),
            torchvision="FGVCAircraft",
            train=("trainval",),
            url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            hint="the folder fgvc-aircraft-2013b with data/",
        ),
        DatasetInfo(
            name="imagenet",
            title="ImageNet (ILSVRC 2012)",
            layout="torchvision",
            channels=3,
            image_size=(224, 224),
            classes=1000,
            counts=(1_281_167, 50_000),
            torchvision="ImageNet",
            test="val",
            hint="train/ and val/ with one folder a class (n01440764, ...), WebDataset's shards of them, or the "
            "archives ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar "
            "(image-net.org, registration needed)",
        ),
        DatasetInfo(
            name="folder",
            title="a folder of images",
            layout="folder",
            channels=None,
            image_size=None,
            classes=None,
            counts=None,
            hint="train/ and val/ (or test/) with one folder a class",
        ),
    )
}
