import pytest

from vision.common.core.errors import VisionError
from vision.lattice.core.class_names import join_classes
from vision.lattice.core.structures import FrameBoxes


def test_equal_names_match_whatever_their_case_and_the_rest_is_listed():
    names = join_classes(['Person', 'camel', 'car'], ['car', 'person', 'zebra'])
    assert names.names == ('person', 'car') and names.unknown == ('camel',)
    assert names.truth_to_judged.tolist() == [0, -1, 1]
    assert names.detector_to_judged.tolist() == [1, 0, -1]


def test_a_map_joins_names_of_both_sides():
    names = join_classes(['pedestrian', 'rider', 'car'], ['person', 'truck', 'car'],
                         dict(person=['pedestrian', 'rider'], car=['truck']))
    assert names.names == ('person', 'car') and names.unknown == ()
    assert names.truth_to_judged.tolist() == [0, 0, 1]
    assert names.detector_to_judged.tolist() == [0, 1, 1]


def test_boxes_of_other_classes_are_left_out():
    names = join_classes(['car'], ['person', 'car'])
    boxes = FrameBoxes([[0, 0, 1, 1], [0, 0, 2, 2]], [0.5, 0.6], [0, 1])
    assert names.of_detections(boxes).boxes_xyxy.tolist() == [[0, 0, 2, 2]]
    assert names.of_detections(boxes).labels.tolist() == [0]


@pytest.mark.fault('R20')
def test_nothing_in_common_is_refused():
    with pytest.raises(VisionError, match=r'VIS-DATA-407[^$]*camel[^$]*zebra'):
        join_classes(['camel'], ['zebra'])
