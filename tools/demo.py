"""From nothing to an annotated video, without training: make demo.

Three steps, each one a command that you could run yourself (it is printed): make a clip of
photographs whose true boxes are known, run the video demo on it, and measure the lattice against
detection on every frame in the same runtime. No compiler, no torch. What is done is kept: run
again to go on after an interruption, or with --fresh to start over.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vision.common.core.errors import VisionError, command_parser, run_cli

ROOT = Path(__file__).resolve().parents[1]
OUT = Path('demo_out')
DETECTOR = 'zoo:yolox-nano_coco'  # comes with the package


@dataclass(frozen=True)
class Step:
    """One command. Args: title, what it is about; minutes on two cores; arguments of Python;
    product: the file that is there when the step is done."""

    title: str
    minutes: float
    arguments: tuple[str, ...]
    product: Path


def steps() -> list[Step]:
    clip, video = OUT / 'clip', OUT / 'video'
    annotations, table = clip / 'annotations' / 'val.json', OUT / 'table.json'
    return [
        Step('make a clip of photographs', 0.2,
             ('datasets/photo_clip/prepare.py', '--out', f'{clip}'), annotations),
        Step('boxes and tracks on every frame, the detector on one in eight', 0.2,
             ('tools/video_demo.py', f'{clip / "photo_clip.mp4"}', '--detector', DETECTOR,
              '--out-dir', f'{video}'), video / 'photo_clip.mp4'),
        Step('measure against detection on every frame and linear interpolation', 0.7,
             ('benchmarks/lattice_tradeoff.py', '--ann', f'{annotations}', '--images',
              f'{clip / "val"}', '--detector', DETECTOR, '--methods', 'detect,linear,flow',
              '--gaps', '8', '--json', f'{table}', '--plot', f'{OUT / "curve.png"}'), table),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--fresh', action='store_true', help=f'remove {OUT}/ first')
    todo = steps()
    run_all(todo, OUT, 'make demo', is_fresh=parser.parse_args(argv).fresh, results=dict(
        video=todo[1].product, curve=OUT / 'curve.png', table=todo[2].product))
    return 0


def run_all(todo: Sequence[Step], out: Path, command: str, *, is_fresh: bool,
            results: Mapping[str, Path]) -> None:
    """Run the steps whose product is not there, then name the results."""
    if is_fresh and out.exists():
        shutil.rmtree(out)
    console, start = Console(), time.monotonic()
    minutes = sum(step.minutes for step in todo)
    console.print(f'[bold]{len(todo)} steps, about {minutes:.0f} min on two cores; '
                  f'everything goes to {out}/')
    for number, step in enumerate(todo, 1):
        console.rule(f'[bold]{number}/{len(todo)} {step.title}')
        run(step, console, command)
    console.rule(f'[bold]done in {(time.monotonic() - start) / 60:.1f} minutes')
    for name, path in results.items():
        console.print(f'{name}: {path}', soft_wrap=True)


def run(step: Step, console: Console, command: str) -> None:
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
                          do=f'mend the cause and run {command} again: finished steps are kept')


if __name__ == '__main__':
    run_cli(main)
