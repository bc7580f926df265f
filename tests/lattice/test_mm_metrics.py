import subprocess
import sys

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

from vision.common.core.errors import VisionError
from vision.lattice.mm.metrics import VIDMetric


def frame(video, frame_id, length, *, score=0.9, shift=0.0, labelled=True):
    sample = DetDataSample(metainfo=dict(img_id=100 * video + frame_id, video_id=video,
                                         frame_id=frame_id, video_length=length,
                                         is_labelled=labelled))
    boxes = torch.tensor([[10.0, 10, 60, 60]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]),
                                       instances_ids=torch.tensor([1]))
    sample.pred_instances = InstanceData(bboxes=boxes + shift, scores=torch.tensor([score]),
                                         labels=torch.tensor([1]))
    return sample


def evaluate(samples, num_videos=None, **options):
    metric = VIDMetric(**options)
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(classes=('a', 'b'))
    for start in range(0, len(samples), 3):  # samples come in other groups than their inputs
        evaluator.process(samples[start:start + 3])
    # The size that MMEngine passes is the length of the data set, which counts videos.
    return evaluator.evaluate(num_videos or len({s.video_id for s in samples}))


def test_frames_in_any_grouping_and_order_are_judged():
    samples = [frame(v, t, 5) for v in (1, 2) for t in range(5)]
    result = evaluate(samples[::-1])
    assert result['vid/map50'] == 1 and result['vid/map50_slow'] == 1


def test_misses_count():
    samples = [frame(1, t, 4, shift=100.0 if t % 2 else 0.0) for t in range(4)]
    assert evaluate(samples, speed=False)['vid/map50'] < 0.6


def test_unlabelled_frames_are_not_judged():
    samples = [frame(1, t, 4, shift=100.0 if t else 0.0, labelled=t == 0) for t in range(4)]
    assert evaluate(samples, classwise=False)['vid/map50'] == 1


def test_missing_frames_and_unknown_protocols_are_refused():
    with pytest.raises(VisionError, match=r'VIS-DATA-406[^$]*video 1: 3 of 4'):
        evaluate([frame(1, t, 4) for t in range(3)])
    with pytest.raises(VisionError, match='VIS-DATA-406[^$]*1 videos with 4 frames'):
        evaluate([frame(1, t, 4) for t in range(4)], num_videos=2)
    with pytest.raises(VisionError, match='VIS-CONFIG-405'):
        VIDMetric(protocol='voc')


def test_without_speed_no_tracks_are_needed(capsys):
    samples = [frame(1, t, 4) for t in range(4)]
    for sample in samples:
        sample.gt_instances.instances_ids[:] = 0
    assert evaluate(samples, speed=False) == {'vid/map50': 1, 'vid/map5095': 1}
    assert 'slow' not in capsys.readouterr().out


RANK = """
import os
import sys
from pathlib import Path
import torch.distributed as dist
sys.path[:0] = ['tests/lattice', '.']
from test_mm_metrics import VisionError, evaluate, frame
dist.init_process_group('gloo')
rank = dist.get_rank()
mine = [frame(1, t, 5) for t in range(5)] if rank == 0 else [
    frame(v, t, 2, shift=100.0) for v in (2, 3) for t in range(2)]
value = evaluate(mine, num_videos=3)['vid/map50_slow']
try:
    evaluate(mine[rank:], num_videos=3)  # rank 1 loses a frame, rank 0 finds out
except VisionError as error:
    Path(sys.argv[1], f'rank{rank}').write_text(f'{value:.6f} {error.code}')
dist.barrier()  # the first rank holds the store: it must not leave before the other
dist.destroy_process_group()
os._exit(0)  # torch's gloo now and then aborts while Python shuts down, all work done
"""


@pytest.mark.distributed
def test_ranks_with_unequal_parts_agree_in_value_and_in_refusal(repository, tmp_path):
    (tmp_path / 'rank.py').write_text(RANK)
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone',
         str(tmp_path / 'rank.py'), str(tmp_path)], cwd=repository,
        capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    # 5 of 9 objects are found, by boxes as good as the 4 that find nothing: all 5 come first.
    for rank in (0, 1):
        assert (tmp_path / f'rank{rank}').read_text() == f'{5 / 9:.6f} VIS-DATA-406'
