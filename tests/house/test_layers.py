"""Who may import whom: tools > cli, web > api > mm > nn > core, and few arrows between rooms.

``runtime`` stands beside nn: it runs exported networks and never sees torch.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vision.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'vision'
HEAVY = {'torch', 'mmengine', 'mmcv', 'mmdet', 'supervision', 'faiss'}
FORBIDDEN = {'core': {'torch', 'mmengine', 'mmcv', 'mmdet', 'cv2'},
             'runtime': HEAVY,
             'nn': {'mmengine', 'mmcv', 'mmdet'}}
# Importing room: what it may import of other rooms. Every room may use common and zoo; common
# uses no room at all: what finds files of the zoo is registered from above.
ARROWS = {'stream': {'vision.lattice.core'}, 'faces': {'vision.classify.core'},
          # The last two: a config's pipeline is planned by what plans it in a training.
          'simulator': {'vision.pipeline.core', 'vision.memory.core', 'vision.pipeline.mm.plan',
                        'vision.pipeline.nn.chunks'}}
# Above the rooms: they may use every room, and no room uses them; the doctor tries them all.
ABOVE = ('cli', 'web', 'configs', 'doctor')
# What a room's api.py may use beside its own room: the whole of these.
API_ARROWS = {'stream': {'vision.lattice'}, 'faces': {'vision.stream.io.face_overlay'},
              # The published file of its port is converted where a user loads it.
              'classify': {'vision.polynet.nn.cadene'}}
SHARED = {'vision.common', 'vision.zoo', 'vision.registry', 'vision.version'}
LAYERS = ('core', 'runtime', 'nn', 'mm')  # runtime imports no nn: torch is forbidden there


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def modules(layer: str) -> list[Path]:
    return sorted(PACKAGE.glob(f'*/{layer}/**/*.py'))


@pytest.mark.parametrize('layer', FORBIDDEN)
def test_layer_imports_no_framework_above_it(layer):
    assert modules(layer)
    for path in modules(layer):
        tops = {name.split('.')[0] for name in imports(path)}
        assert not tops & FORBIDDEN[layer], f'{path}: {layer} imports {tops & FORBIDDEN[layer]}'


def test_arrows_inside_a_room_point_down():
    for path in PACKAGE.glob('*/*/**/*.py'):
        layer = path.relative_to(PACKAGE).parts[1]
        if layer not in LAYERS:
            continue
        above = LAYERS[LAYERS.index(layer) + 1:]
        for name in imports(path):
            parts = name.split('.')
            assert not (parts[0] == 'vision' and len(parts) > 2 and parts[2] in above), \
                f'{path} imports {name}'


def test_rooms_meet_only_along_the_drawn_arrows():
    for path in PACKAGE.glob('*/**/*.py'):
        room = path.relative_to(PACKAGE).parts[0]
        if room in ABOVE:
            continue
        shared = SHARED - {'vision.zoo'} if room == 'common' else SHARED
        allowed = shared | {f'vision.{room}'} | ARROWS.get(room, set())
        if path.name == 'api.py':
            allowed |= API_ARROWS.get(room, set())
        for name in imports(path):
            if name.startswith('vision.'):
                assert any(f'{name}.'.startswith(f'{prefix}.') for prefix in allowed), \
                    f'{path}: room {room} imports {name}'


def test_nothing_imports_what_is_above_it():
    for path in PACKAGE.glob('*/**/*.py'):
        room, *rest = path.relative_to(PACKAGE).parts
        if room in ABOVE:
            continue
        for name in imports(path):
            assert name.split('.')[:1] + name.split('.')[1:2] not in (
                ['vision', above] for above in ABOVE), f'{path} imports {name}'
            assert rest == ['api.py'] or not re.match(r'vision\.\w+\.api\b', name), \
                f'{path} imports {name}'


def test_every_core_imports_without_the_frameworks():
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in modules('core')
             if path.stem != '__init__']
    blocked = ', '.join(f'{name!r}: None' for name in sorted(FORBIDDEN['core']))
    code = f'import sys; sys.modules.update({{{blocked}}}); import importlib\n' + ''.join(
        f'importlib.import_module({name!r})\n' for name in names)
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert names and result.returncode == 0, result.stderr


def test_what_runs_imports_in_the_light_environment():
    """Only what setup.cfg requires without extras."""
    folders = ('lattice/core', 'lattice/runtime', 'stream/core', 'stream/io', 'zoo',
               'classify/core', 'classify/runtime', 'faces/runtime')
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for folder in folders
             for path in sorted((PACKAGE / folder).glob('*.py'))
             if path.stem != '__init__']
    blocked = ', '.join(f'{name!r}: None' for name in sorted(HEAVY | {'onnx', 'PIL', 'skimage'}))
    code = f'import sys; sys.modules.update({{{blocked}}}); import importlib\n' + ''.join(
        f'importlib.import_module({name!r})\n' for name in names)
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert len(names) > 30 and result.returncode == 0, result.stderr


def test_every_command_begins_in_the_light_environment():
    """What needs more is imported by the function that needs it, and then the error says so."""
    names = [f'vision.{path.parent.name}.{path.stem}' for room in ('cli', 'doctor')
             for path in sorted((PACKAGE / room).glob('*.py')) if path.stem != '__init__']
    blocked = ', '.join(f'{name!r}: None' for name in sorted(
        HEAVY | {'onnx', 'PIL', 'skimage', 'matplotlib', 'pandas', 'gradio'}))
    code = f'import sys; sys.modules.update({{{blocked}}}); import importlib\n' + ''.join(
        f'importlib.import_module({name!r})\n' for name in names)
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert len(names) > 20 and result.returncode == 0, result.stderr


def test_commands_do_not_use_each_other():
    """What two of them need stands in a room, or in a module that is no command; the table of all
    is of strings."""
    commands = {module for module, _ in COMMANDS.values()}
    for path in (PACKAGE / 'cli').glob('*.py'):
        used = {name for name in imports(path) if name.startswith('vision.cli.')}
        assert not {name for name in used if name.rpartition('.')[0] in commands}, path


def test_the_package_knows_nothing_of_what_stands_around_it():
    for path in PACKAGE.glob('**/*.py'):
        tops = {name.split('.')[0] for name in imports(path)}
        assert not tops & {'tools', 'benchmarks', 'tests'}, path


def test_modules_import_in_no_circle():
    """At the top, where a circle would break the first import of one of them."""
    files = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): path
             for path in PACKAGE.glob('**/*.py') if 'configs' not in path.parts}
    arrows = {name: {other for other in top_imports(path) if other in files and other != name}
              for name, path in files.items()}
    done: set[str] = set()
    while free := {name for name in arrows if name not in done and arrows[name] <= done}:
        done |= free
    assert done == set(arrows), sorted(set(arrows) - done)[:20]


def top_imports(path: Path) -> set[str]:
    """Modules that importing a file imports (names out of a package's __init__ left out)."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f'{node.module}.{alias.name}' for alias in node.names)}
    return names
