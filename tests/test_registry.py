"""Rooms are imported when their names are asked for, and large libraries only then."""

import subprocess
import sys

from vision import registry

LATE = ('mmdet', 'torch.distributed.pipelining', 'vision.lattice.mm', 'vision.pipeline.mm')


def test_the_table_of_large_rooms_is_what_they_register():
    registry.import_rooms()
    found = {room: set() for room in (*registry.ROOMS, *registry.LARGE_ROOMS)}
    for place in vars(registry).values():
        if isinstance(place, registry.RoomRegistry):
            for name, cls in place.module_dict.items():
                package, room, *_ = f'{cls.__module__}.'.split('.')
                if package == 'vision':  # tests register classes too
                    found[room].add(name)
    for room, names in registry.LARGE_ROOMS.items():
        assert sorted(found[room]) == sorted(names), f'mend LARGE_ROOMS[{room!r}]'
        assert not any(found[room] & found[other] for other in found if other != room)
    assert all(found.values())


def test_a_classifier_needs_no_detector(repository):
    code = f'''if True:
        import sys
        from mmengine.registry import MODELS as ROOT
        from vision.common.mm.launch import read_config_alone
        from vision.registry import MODELS, STRATEGIES
        config = read_config_alone('vit-tiny_imagenette160')
        MODELS.build(config.model)
        print([name for name in {LATE} if name in sys.modules])
        print(ROOT.get('vision.LatticeDetector').__module__, 'mmdet' in sys.modules)
        print(STRATEGIES.get('ZeroPPStrategy').__module__)'''
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=120, cwd=repository)
    assert said.stdout.splitlines()[-3:] == [
        '[]', 'vision.lattice.mm.detector True', 'vision.pipeline.mm.strategy'], said.stderr
