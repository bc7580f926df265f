"""vision COMMAND ...: everything this package does, from one place."""

from __future__ import annotations

import importlib
import sys

from vision.common.core.errors import VisionError, names_like, run_cli
from vision.version import __version__

# Section -> name, of one or two words -> (module with ``main(argv)``, what it does). Modules are
# imported when their command is called: listing the commands needs no torch.
SECTIONS = {
    'run': {
        'video': ('vision.cli.video', 'detect and track on a video, a camera or a stream'),
        'detect': ('vision.cli.detect', 'boxes on pictures, by any detector'),
        'classify': ('vision.cli.classify', 'what is in a picture'),
        'faces detect': ('vision.cli.faces_detect', 'find the faces of pictures'),
        'faces compare': ('vision.cli.faces_compare', 'are two faces of one person?'),
        'faces embed': ('vision.cli.faces_embed', 'faces to embeddings, in one file'),
        'faces gallery': ('vision.cli.faces_gallery', 'enrol people, list and remove them'),
        'faces recognize': (
            'vision.cli.faces_recognize', 'who is in a picture, a video, a camera?'),
        'web': ('vision.cli.web', 'a page for video, faces and classification in the browser'),
    },
    'train and judge': {
        'train': ('vision.cli.train', 'train the model of a config'),
        'test': ('vision.cli.test', 'evaluate a checkpoint'),
        'eval': ('vision.cli.eval', 'judge predictions that test --out wrote'),
        'analyze': (
            'vision.cli.analyze', 'confusion matrix and worst pictures of such predictions'),
        'logs': ('vision.cli.logs', 'curves, summaries and times of trainings'),
        'browse': ('vision.cli.browse', 'see the samples of a data set, augmented and not'),
        'benchmark': ('vision.cli.benchmark', 'how fast a config runs: network, data loading'),
        'flops': ('vision.cli.flops', 'parameters and multiply-adds of a config, part by part'),
        'config': ('vision.cli.config', 'print a config with everything that it inherits'),
        'faces verify': ('vision.cli.faces_verify', 'accuracy by the public protocols'),
    },
    'weights': {
        'zoo list': ('vision.cli.zoo_list', 'models and files of weights'),
        'zoo get': ('vision.cli.zoo_get', 'download weights and compare their hash'),
        'zoo add': ('vision.cli.zoo_add', 'put weights of your own into the package'),
        'publish': ('vision.cli.publish', 'a checkpoint without what only training needs'),
        'classify export': ('vision.cli.classify_export', 'write a classifier as one ONNX file'),
        'faces export': ('vision.cli.faces_export', 'write an embedder as one ONNX file'),
        'convert polynet': ('vision.cli.convert_polynet', 'published PolyNet weights, both ways'),
        'convert polynet-insertion': (
            'vision.cli.convert_polynet_insertion', 'start a larger PolyNet from a smaller one'),
        'convert mobilefacenet': (
            'vision.cli.convert_mobilefacenet', 'published MobileFaceNet weights to a checkpoint'),
        'convert partial-fc': (
            'vision.cli.convert_partial_fc', 'files of an InsightFace run to a checkpoint'),
        'convert yolox': (
            'vision.cli.convert_yolox', 'published YOLOX-nano (.onnx) to a checkpoint'),
        'convert yolox-open-size': (
            'vision.cli.convert_yolox_open_size', 'leave the input size of a YOLOX .onnx open'),
        'convert yolox-onnx': (
            'vision.cli.convert_yolox_onnx', 'a YOLOX detector of a config to .onnx'),
    },
    'data': {
        'data check': ('vision.cli.data_check', 'check a CocoVID file'),
        'data from-video': ('vision.cli.data_from_video', 'your own videos to a data set'),
        'data from-mot': ('vision.cli.data_from_mot', 'MOT challenge sequences to CocoVID files'),
        'data from-ilsvrc-det': ('vision.cli.data_from_ilsvrc_det', 'ImageNet DET to a COCO file'),
        'data from-ilsvrc-vid': (
            'vision.cli.data_from_ilsvrc_vid', 'ImageNet VID to CocoVID files'),
    },
    'plan large trainings': {
        'memory': (
            'vision.cli.memory', 'does a training fit a memory budget, and who holds the peak'),
        'pipeline': ('vision.cli.pipeline', 'simulate schedules of a pipeline, side by side'),
        'simulate': (
            'vision.cli.simulate', 'seconds a step and memory of a training on a cluster'),
        'calibrate': ('vision.cli.calibrate', 'measure this machine as a cluster for simulate'),
    },
    'help': {
        'doctor': ('vision.cli.doctor', 'look at this installation'),
        'explain': ('vision.cli.explain', 'say what an error code means and what to do'),
        'completion': (
            'vision.cli.completion', 'completion of commands and options in bash or zsh'),
    },
}
COMMANDS = {name: value for commands in SECTIONS.values() for name, value in commands.items()}


def main() -> int:
    words = sys.argv[1:]
    if words[:1] == ['--version']:
        print(__version__)
        return 0
    if not words or words[0] in ('-h', '--help'):
        print(listing())
        return 0
    name, rest = command_of(words)
    if name not in COMMANDS:  # the first word of several commands
        print(listing(name))
        return 0 if rest in ([], ['-h'], ['--help']) else refuse(' '.join([name, *rest[:1]]))
    sys.argv = [f'vision {name}', *rest]  # what usage lines and results call it
    return importlib.import_module(COMMANDS[name][0]).main(rest) or 0


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """(name of a command or of a group, the words behind it).

    Raises:
        VisionError: VIS-INPUT-1701, there is no such command.
    """
    two = ' '.join(words[:2])
    if two in COMMANDS:
        return two, words[2:]
    if words[0] in COMMANDS or any(name.startswith(f'{words[0]} ') for name in COMMANDS):
        return words[0], words[1:]
    refuse(words[0])


def refuse(name: str) -> None:
    """There is no such command; the nearest ones are named.

    Raises:
        VisionError: always.
    """
    near = names_like(name, COMMANDS, cutoff=0.5)
    raise VisionError('VIS-INPUT-1701', f'there is no command {name!r}',
                      why=f'nearest: {", ".join(near)}' if near else '',
                      do='vision --help lists the commands')


def listing(group: str = '') -> str:
    """All commands by section, or those of a group, a line each."""
    names = [name for name in COMMANDS if not group or name.split()[0] == group]
    width = max(map(len, names)) + 2
    lines = [f'usage: vision {group or "COMMAND"} ...', *([''] if group else [])]
    for section, commands in SECTIONS.items():
        shown = [f'  {name:{width}}{commands[name][1]}' for name in commands if name in names]
        lines += ([] if group else ['', f'{section}:']) + shown
    return '\n'.join([*lines, '', f'vision {group + " " if group else ""}COMMAND --help says more '
                      'of each.'])


def entry() -> None:
    """What the console script calls."""
    run_cli(main)


if __name__ == '__main__':
    entry()
