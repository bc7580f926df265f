"""Write a trained classifier as one ONNX file: network, preparation and class names.

  vision classify export configs/classify/vit-tiny_imagenette160.py work_dirs/CKPT.pth mine.onnx
  vision classify export configs/classify/lean-resnet_glyphs.py \\
      work_dirs/lean-resnet_glyphs/iter_7000.pth hanzi.onnx --half-rows --class-means \\
      --unknown split=unseen --test 5000 --json hanzi.json

vision.load('mine.onnx') and "vision classify --model mine.onnx" take the file, without torch.
Names come from the checkpoint (those of the training data), or from --classes. The graph takes
images (B, C, h, w) as the config's test pipeline leaves them and gives logits; it stays only if
onnxruntime gives what PyTorch gives. A FaceRecognizer becomes a classifier of the identities
that its head was trained on.

--unknown: the test data set with these options has pictures of no class. The file then gives
"unknown" a probability of its own, fitted with the scale of all on 1,000 pictures of each kind;
--test measures the written file on others.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import refuse_unwritable
from vision.common.core.report import add_report_options, refuse_no_evidence, write_report


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add('config', type=Path, help='config of an ImageClassifier or a FaceRecognizer')
    add('checkpoint', help='.pth, .safetensors or zoo:NAME')
    add('target', type=Path, help='.onnx file to write')
    add('--half-rows', action='store_true', help='large matrices as float16: half the file')
    add('--class-means', action='store_true', help='of a recogniser: classes are the mean '
        'embeddings of their training pictures')
    add('--classes', help='comma-separated, in the order of the labels; for a checkpoint that '
        'does not name them')
    add('--unknown', metavar='OPTION=VALUE', help='options of the test data set that make it one '
        'of pictures of no class')
    add('--test', type=int, default=0, metavar='N', help='measure the file on N test pictures')
    add_report_options(parser, what='measures')
    add('--data-root', help='where the data set is, in place of the config\'s folder')
    args = parser.parse_args(argv)
    refuse_unwritable(args.target)
    refuse_no_evidence(args.json, is_recorded=args.record)
    from vision.classify.mm.export import export_classifier
    done = export_classifier(args.config, args.checkpoint, args.target,
                             half_rows=args.half_rows, class_means=args.class_means,
                             unknown=args.unknown, num_test=args.test,
                             classes=args.classes.split(',') if args.classes else None,
                             data_root=args.data_root)
    print(f'{args.target}: {done.num_classes} classes, {args.target.stat().st_size} bytes, '
          f'largest difference of a logit to PyTorch {done.difference:.2g}')
    if done.accuracy:
        print(f'{done.num_images} test pictures: ' + ', '.join(
            f'{name} {value:.2f} %' for name, value in done.accuracy.items()))
    if done.unknown_accuracy is not None:
        print(f'of pictures of no class {done.unknown_accuracy:.2f} % are called unknown')
    if args.json:
        write_report(args.json, [asdict(done) | dict(size_bytes=args.target.stat().st_size)],
                     seed=0, is_recorded=args.record)
    return 0


if __name__ == '__main__':
    run_cli(main)
