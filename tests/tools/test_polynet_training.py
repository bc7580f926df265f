"""The PolyNet training experiment on generated images, and its figures by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts import load_script

from vision.common.core.errors import VisionError

experiment = load_script('benchmarks/polynet_training.py')
plot = load_script('benchmarks/plot_polynet_training.py')


def row(run, seed, losses, top1=50.0):
    curve = [dict(epoch=i + 1, train_loss=loss, val_loss=loss + 1, val_top1=top1)
             for i, loss in enumerate(losses)]
    return dict(run=run, seed=seed, epochs=len(losses), training_tmac=2.0, curve=curve,
                commit='abc', final_train_loss=losses[-1], final_val_loss=losses[-1] + 1,
                final_val_top1=top1)


def test_summary_by_hand():
    rows = [row('poly', 0, [3.0, 2.0, 1.0], 40.0), row('poly', 1, [3.0, 2.0, 1.0], 50.0),
            row('inserted', 0, [1.5, 0.9]), row('inserted', 1, [1.5, 1.2])]
    summary = experiment.summarize(rows)
    assert summary['poly']['val_top1_mean'] == 45.0
    assert summary['poly']['val_top1_std'] == pytest.approx(7.071, abs=1e-3)
    assert summary['insertion'] == [
        dict(seed=0, epochs_from_scratch=3, epochs_to_same_train_loss=2,
             epochs_to_same_val_loss=2),
        dict(seed=1, epochs_from_scratch=3, epochs_to_same_train_loss=None,
             epochs_to_same_val_loss=None)]


def test_rivals_are_of_equal_compute():
    macs = {name: experiment.gmac_per_image(arch) for name, arch in experiment.ARCHS.items()}
    assert macs['deeper-twin'] == macs['poly'] > macs['twin']
    epochs = round(8 * macs['poly'] / macs['twin'])
    assert epochs * macs['twin'] == pytest.approx(8 * macs['poly'], rel=0.05)


def test_crops_are_parts_of_their_images():
    images = torch.arange(2 * 3 * 45 * 45).view(2, 3, 45, 45)
    crops = experiment.augmented(images, torch.Generator().manual_seed(0))
    assert crops.shape == (2, 3, 40, 40)
    for crop, image in zip(crops, images, strict=True):
        assert set(crop.flatten().tolist()) < set(image.flatten().tolist())


def test_inserted_net_holds_the_twins_weights(tmp_path):
    twin = experiment.build(experiment.ARCHS['twin'], 3, seed=1)
    torch.save(twin.state_dict(), tmp_path / 'twin.pth')
    poly = experiment.build(experiment.ARCHS['inserted'], 3, seed=2)
    found = experiment.insert(poly, tmp_path / 'twin.pth', 3)
    state = {name.replace('.chain.', '.blocks.'): value
             for name, value in poly.state_dict().items()}
    assert all(torch.equal(state[name], value) for name, value in twin.state_dict().items())
    assert found['copied'] + found['new'] == len(poly.backbone.trunk.state_dict())
    assert found['new'] > 0


def test_results_of_other_settings_are_not_mixed(tmp_path):
    args = type('Args', (), dict(epochs=8, data=Path('x'), json=tmp_path / 'r.json'))
    assert experiment.earlier_rows(args) == []
    rows = [dict(run='twin', commit='abc1234')]
    args.json.write_text(json.dumps(dict(settings=experiment.settings(args), rows=rows)))
    assert experiment.earlier_rows(args) == rows
    args.epochs = 9
    with pytest.raises(VisionError, match='VIS-RUN-1238'):
        experiment.earlier_rows(args)


def test_picture_of_a_part_of_the_runs(tmp_path):
    rows = [row('twin', 0, [3.0, 2.0]), row('poly', 0, [2.0, 1.0]), row('poly', 1, [2.0, 1.5])]
    file = tmp_path / 'r.json'
    file.write_text(json.dumps(dict(rows=rows, seeds=[0, 1], settings=dict(data='x', size=40))))
    assert plot.main([str(file), '--out', str(tmp_path / 'x.png')]) == 0
    assert (tmp_path / 'x.png').stat().st_size > 5000
    file.write_text('{}')
    with pytest.raises(VisionError, match='VIS-INPUT-1239'):
        plot.main([str(file), '--out', str(tmp_path / 'y.png')])


@pytest.mark.slow
def test_finished_runs_are_skipped(tmp_path, monkeypatch):
    import cv2
    for split, count in (('train', 20), ('val', 2)):
        for label, name in enumerate(('dark', 'light')):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                image = np.full((50, 60, 3), 60 + 120 * label, np.uint8)
                cv2.imwrite(str(tmp_path / split / name / f'{index}.png'), image)
    arguments = ['--data', str(tmp_path), '--json', str(tmp_path / 'r.json'), '--work-dir',
                 str(tmp_path), '--epochs', '1', '--seeds', '0', '--runs', 'twin', 'inserted']
    monkeypatch.setattr(sys, 'argv', ['polynet_training.py'])
    assert experiment.main(arguments) == 0
    rows = json.loads((tmp_path / 'r.json').read_text())['rows']
    assert [r['run'] for r in rows] == ['twin', 'inserted'] and rows[1]['new'] > 0

    def refuse(*_, **__):
        raise AssertionError('trained again')
    monkeypatch.setattr(experiment, 'train', refuse)
    assert experiment.main(arguments) == 0
