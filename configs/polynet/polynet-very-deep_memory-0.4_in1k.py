"""Very Deep PolyNet trained within 0.4 of the activation memory of a free step; equal weights.

Run: bash tools/dist_train.sh configs/polynet/polynet-very-deep_memory-0.4_in1k.py 8
The first step runs free and is measured. For a card of a known size say an amount instead:
--cfg-options activation_memory.budget=12GB
Cost: not yet measured on a GPU; on a CPU: vision/memory/README.md. Recipe: as the config below it.
"""

_base_ = ['polynet-very-deep_in1k.py']
activation_memory = dict(budget=0.4)
