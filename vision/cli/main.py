"""vision COMMAND ...: everything this package does, from one place."""

from __future__ import annotations

import difflib
import importlib
import sys

from vision.common.core.errors import VisionError, run_cli
from vision.version import __version__

# Name, of one or two words -> (module with ``main(argv)``, what it does). Modules are imported
# when their command is called: listing the commands needs no torch.
COMMANDS = {
    'video': ('vision.cli.video', 'detect and track on a video, a camera or a stream'),
    'classify': ('vision.cli.classify', 'what is in a picture'),
    'classify export': ('vision.cli.classify_export', 'write a classifier as one ONNX file'),
    'faces detect': ('vision.cli.faces_detect', 'find the faces of pictures'),
    'faces compare': ('vision.cli.faces_compare', 'are two faces of one person?'),
    'faces embed': ('vision.cli.faces_embed', 'faces to embeddings, in one file'),
    'faces gallery': ('vision.cli.faces_gallery', 'enrol people, list and remove them'),
    'faces recognize': ('vision.cli.faces_recognize', 'who is in a picture, a video, a camera?'),
    'faces verify': ('vision.cli.faces_verify', 'accuracy by the public protocols'),
    'faces export': ('vision.cli.faces_export', 'write an embedder as one ONNX file'),
    'zoo list': ('vision.cli.zoo_list', 'models and files of weights'),
    'zoo get': ('vision.cli.zoo_get', 'download weights and compare their hash'),
    'zoo add': ('vision.cli.zoo_add', 'put weights of your own into the package'),
    'train': ('vision.cli.train', 'train the model of a config'),
    'test': ('vision.cli.test', 'evaluate a checkpoint'),
    'completion': ('vision.cli.completion', 'completion of commands and options in bash or zsh'),
    'config': ('vision.cli.config', 'print a config with everything that it inherits'),
}


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
    near = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=0.5)
    raise VisionError('VIS-INPUT-1701', f'there is no command {name!r}',
                      why=f'nearest: {", ".join(near)}' if near else '',
                      do='vision --help lists the commands')


def listing(group: str = '') -> str:
    """All commands, or those of a group, a line each."""
    names = [name for name in COMMANDS if not group or name.split()[0] == group]
    width = max(map(len, names)) + 2
    return '\n'.join([f'usage: vision {group or "COMMAND"} ...', '',
                      *(f'  {name:{width}}{COMMANDS[name][1]}' for name in names), '',
                      f'vision {group + " " if group else ""}COMMAND --help says more of each.'])


def entry() -> None:
    """What the console script calls."""
    run_cli(main)


if __name__ == '__main__':
    entry()
