"""Training from nothing to a video, on data that it generates: make demo-train.

Six steps, each one a command that you could run yourself (it is printed): generate video,
train a small detector, train the lattice over it, measure both against their rivals, render a
video. About 9 minutes on two cores. What is done is kept: run again to go on
after an interruption, or with --fresh to start over.
"""

from __future__ import annotations

from pathlib import Path

from demo import Step, run_all  # the folder of a script is on its path

from vision.common.core.errors import command_parser, run_cli

OUT = Path('demo_train_out')  # the configs of configs/demo name it too
LATTICE = 'configs/demo/lattice.py'
VIDEO = 'val_0000'


def steps() -> list[Step]:
    data, short = OUT / 'moving_sprites', OUT / 'moving_sprites_short'
    rows, annotations = OUT / 'baselines.json', data / 'annotations' / 'val.json'
    detector, lattice = OUT / 'detector' / 'iter_560.pth', OUT / 'lattice' / 'iter_260.pth'
    prepare = 'datasets/moving_sprites/prepare.py'
    return [
        Step('generate video', 0.4, (prepare, '--out', f'{data}', '--num-val', '4'), annotations),
        Step('generate short videos: many sprites for the detector', 0.4,
             (prepare, '--out', f'{short}', '--num-train', '600', '--num-val', '1',
              '--num-frames', '8'), short / 'annotations' / 'train.json'),
        Step('train the detector', 5,
             ('tools/train.py', 'configs/demo/detector.py', '--work-dir', f'{detector.parent}',
              '--resume'), detector),
        Step('train propagation and refinement', 3,
             ('tools/train.py', LATTICE, '--work-dir', f'{lattice.parent}', '--resume'), lattice),
        Step('measure against detection on every frame and linear interpolation', 1,
             ('benchmarks/lattice_tradeoff.py', '--ann', f'{annotations}', '--images',
              f'{data / "val"}', '--config', LATTICE, '--checkpoint', f'{lattice}',
              '--methods', 'detect,linear,flow,paper', '--gaps', '8,16', '--time-frames', '32',
              '--repeats', '1', '--json', f'{rows}', '--plot', f'{OUT / "curve.png"}'), rows),
        Step('render a video', 0.3,
             ('tools/video_demo.py', f'{data / "val" / VIDEO}', '--config', LATTICE,
              '--checkpoint', f'{lattice}', '--out-dir', f'{OUT / "video"}'),
             OUT / 'video' / f'{VIDEO}.mp4'),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--fresh', action='store_true', help=f'remove {OUT}/ first')
    todo = steps()
    run_all(todo, OUT, 'make demo-train', is_fresh=parser.parse_args(argv).fresh,
            results=dict(video=todo[-1].product, curve=OUT / 'curve.png',
                         table=todo[-2].product.with_suffix('.md')))
    return 0


if __name__ == '__main__':
    run_cli(main)
