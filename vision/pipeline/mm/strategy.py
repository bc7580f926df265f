"""How a model is spread over a pipeline, and its shards over the ranks of each stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine._strategy import SingleDeviceStrategy
from mmengine.dist import get_world_size
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from vision.common.core.amounts import format_bytes, parse_budget
from vision.common.core.errors import VisionError
from vision.common.mm.agreement import decided_by_first, join_ranks
from vision.common.mm.strategies import require_ranks
from vision.common.nn.checkpoint_folder import ELSEWHERE
from vision.common.nn.seeds import kept_random_states
from vision.pipeline.core.cut import cut
from vision.pipeline.core.tasks import Costs, looped, v_shaped
from vision.pipeline.mm.model import PipelinedModel
from vision.pipeline.mm.plan import Plan, Schedule, counted_costs
from vision.pipeline.nn.chunks import (
    Chunk,
    Piece,
    PieceCost,
    count_pieces,
    keep_pieces,
    measure_pieces,
    pieces_of,
)
from vision.registry import STRATEGIES
