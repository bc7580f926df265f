"""Check an ImageNet-1k tree and write the list of its validation images.

Licence of the data: ImageNet's terms of access, non-commercial research and education. Nothing is
downloaded or moved; datasets/imagenet/README.md shows the tree.

Examples:
  python datasets/imagenet/prepare.py --root data/imagenet --devkit ILSVRC2012_devkit_t12
  python datasets/imagenet/prepare.py --root data/imagenet --labels caffe_ilsvrc12/val.txt
"""

from __future__ import annotations

from pathlib import Path

from vision.classify.core.folders import class_folders, list_image_folder, read_image_list
from vision.common.core.errors import VisionError, command_parser, run_cli
from vision.common.core.files import atomic_write
from vision.common.core.picture_files import is_picture

NUM_CLASSES = 1000
GROUND_TRUTH = 'data/ILSVRC2012_validation_ground_truth.txt'
SYNSETS = 'data/meta.mat'


def devkit_labels(devkit: Path, wnids: tuple[str, ...]) -> list[int]:
    """Label of every validation image, in the order of the images' numbers.

    The devkit numbers classes in an order of its own; ``meta.mat`` has the wnid of each number.
    """
    from scipy.io import loadmat
    try:
        synsets = loadmat(devkit / SYNSETS, squeeze_me=True, struct_as_record=False)['synsets']
        numbers = [int(line) for line in (devkit / GROUND_TRUTH).read_text().split()]
    except (OSError, KeyError, ValueError) as error:
        raise VisionError('VIS-DATA-1208', f'{devkit} is not the devkit of ILSVRC 2012',
                          where=str(devkit), why=f'{type(error).__name__}: {error}',
                          do=f'unpack ILSVRC2012_devkit_t12.tar.gz: it has {SYNSETS} and '
                          f'{GROUND_TRUTH}') from error
    wnid_of = {int(entry.ILSVRC2012_ID): str(entry.WNID) for entry in synsets}
    position = {wnid: label for label, wnid in enumerate(wnids)}
    unknown = sorted({wnid_of.get(number, str(number)) for number in numbers} - set(position))
    if unknown:
        raise VisionError('VIS-DATA-1216', f'{len(unknown)} classes of the devkit have no folder '
                          f'in train, first {unknown[0]}', where=str(devkit),
                          do='complete train/, or use the devkit of this data')
    return [position[wnid_of[number]] for number in numbers]


def write_list(root: Path, names: list[str], labels: list[int]) -> None:
    """``val.txt``, after every image of it was found, and no other."""
    found = {path.name for path in (root / 'val').iterdir() if is_picture(path)}
    missing, extra = sorted(set(names) - found), sorted(found - set(names))
    if missing or extra or len(names) != len(labels):
        raise VisionError('VIS-DATA-1217', f'{len(missing)} images of the list are not in val, '
                          f'{len(extra)} images of val are not in the list; {len(names)} names, '
                          f'{len(labels)} labels', where=(missing or extra or [str(root)])[0],
                          why='labels would be given to the wrong images',
                          do='unpack the whole ILSVRC2012_img_val.tar into val/')
    with atomic_write(root / 'val.txt', 'w') as file:
        file.writelines(f'{name} {label}\n' for name, label in zip(names, labels, strict=True))


def prepare(root: Path, devkit: Path | None, labels: Path | None, *, is_subset: bool) -> str:
    """What was found, in one line."""
    train = list_image_folder(root / 'train')
    num_classes = len(train.classes)
    if num_classes != NUM_CLASSES and not is_subset:
        raise VisionError('VIS-DATA-1215', f'train has {num_classes} classes, not {NUM_CLASSES}',
                          where=str(root / 'train'), do='complete it, or say --subset')
    seen = f'{num_classes} classes, {len(train)} training images'
    val = root / 'val'
    if val.is_dir() and any(path.is_dir() for path in val.iterdir()):
        val_images = list_image_folder(val, classes=class_folders(root / 'train'))
        return f'{seen}, {len(val_images)} validation images in folders: no list is needed'
    if not val.is_dir() or (devkit is None) == (labels is None):
        raise VisionError('VIS-INPUT-1218', 'the labels of val are not known', where=str(val),
                          why='val is flat or absent: give either --devkit or --labels',
                          do='--devkit ILSVRC2012_devkit_t12')
    if labels is not None:
        names, values = read_image_list(labels, num_classes=num_classes)
        write_list(root, names, values.tolist())
    else:
        names = sorted(path.name for path in val.iterdir() if is_picture(path))
        write_list(root, names, devkit_labels(devkit, train.classes))
    return f'{seen}, {len(names)} validation images: {root / "val.txt"}'


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--root', type=Path, default=Path('data/imagenet'),
                        help='folder with train/ and val/ (default: %(default)s)')
    parser.add_argument('--devkit', type=Path, help='unpacked ILSVRC2012_devkit_t12')
    parser.add_argument('--labels', type=Path, help='list of NAME LABEL, labels from 0 in the '
                        "sorted order of the wnids (Caffe's val.txt)")
    parser.add_argument('--subset', action='store_true',
                        help=f'allow another number of classes than {NUM_CLASSES}')
    args = parser.parse_args(argv)
    print(prepare(args.root, args.devkit, args.labels, is_subset=args.subset))
    return 0


if __name__ == '__main__':
    run_cli(main)
