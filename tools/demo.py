"""The main job from nothing to a video, on data that it generates: make demo.

Seven steps, each one a command that you could run yourself (it is printed): generate video,
train a small detector, train the lattice over it, measure both against their rivals, draw the
curve, render a video. About 9 minutes on two cores. What is done is kept: run again to go on
after an interruption, or with --fresh to start over.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vision.common.core.errors import VisionError, run_cli

ROOT = Path(__file__).resolve().parents[1]
OUT = Path('demo_out')  # the configs of configs/demo name it too
LATTICE = 'configs/demo/lattice.py'
VIDEO = 'val_0000'


@dataclass(frozen=True)
class Step:
    """One command. Args: title, what it is about; minutes on two cores; arguments of Python;
    product: the file that is there when the step is done."""

    title: str
    minutes: float
    arguments: tuple[str, ...]
    product: Path


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
             ('tools/benchmarks/lattice_baseline.py', '--ann', f'{annotations}', '--images',
              f'{data / "val"}', '--config', LATTICE, '--checkpoint', f'{lattice}',
              # Composed times are enough here; running frames in full would take a minute.
              '--gaps', '1,8,16', '--full-frames', '0', '--json', f'{rows}'), rows),
        Step('draw the curve', 0.1,
             ('tools/analysis/plot_lattice.py', f'{rows}', '--out', f'{OUT / "curve.png"}'),
             OUT / 'curve.png'),
        Step('render a video', 0.3,
             ('tools/video_demo.py', f'{data / "val" / VIDEO}', '--config', LATTICE,
              '--checkpoint', f'{lattice}', '--out-dir', f'{OUT / "video"}'),
             OUT / 'video' / f'{VIDEO}.mp4'),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--fresh', action='store_true', help=f'remove {OUT}/ first')
    if parser.parse_args(argv).fresh and OUT.exists():
        shutil.rmtree(OUT)
    console, start = Console(), time.monotonic()
    todo = steps()
    console.print(f'[bold]{len(todo)} steps, about {sum(s.minutes for s in todo):.0f} minutes on '
                  f'two cores; everything goes to {OUT}/')
    for number, step in enumerate(todo, 1):
        console.rule(f'[bold]{number}/{len(todo)} {step.title}')
        run(step, console)
    console.rule(f'[bold]done in {(time.monotonic() - start) / 60:.1f} minutes')
    for name, path in (('video', todo[-1].product), ('curve', todo[-2].product),
                       ('table', todo[-3].product.with_suffix('.md'))):
        console.print(f'{name}: {path}', soft_wrap=True)
    return 0


def run(step: Step, console: Console) -> None:
    if step.product.exists():
        console.print(f'already there: {step.product}')
        return
    console.print(f'$ python {" ".join(step.arguments)}   (about {step.minutes:g} min)',
                  style='dim', soft_wrap=True)
    result = subprocess.run([sys.executable, *step.arguments], cwd=ROOT)
    if result.returncode or not step.product.exists():
        raise VisionError('VIS-RUN-904', f'the step "{step.title}" ended with exit code '
                          f'{result.returncode}', where=f'python {" ".join(step.arguments)}',
                          why='its own message stands above',
                          do='mend the cause and run make demo again: finished steps are kept')


if __name__ == '__main__':
    run_cli(main)
