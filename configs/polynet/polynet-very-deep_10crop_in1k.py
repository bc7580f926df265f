"""Very Deep PolyNet tested on ten crops an image: centre and corners of 378 x 378, mirrored too.

Score of a class: mean of its 5 highest crop scores. The authors name "top-k pooling" and give no
detail: k, the number of crops and their places are our choice.
"""

_base_ = ['polynet-very-deep_in1k.py']
model = dict(test_cfg=dict(crop_topk=5))
test_dataloader = dict(batch_size=2, dataset=dict(pipeline=[
    dict(type='ReadImage'),
    dict(type='Resize', scale=(378, 378), keep_ratio=False),
    dict(type='MultiCrop', crop_size=331, num_crops=10),
    dict(type='PackInputs'),
]))
