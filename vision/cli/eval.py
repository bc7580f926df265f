"""Judge predictions again, without the network: vision eval CONFIG RESULTS

RESULTS is what ``vision test CONFIG CHECKPOINT --out RESULTS`` wrote. The metrics are those of
the test, or those of another test_evaluator that the config or --cfg-options name.

  vision test CONFIG CHECKPOINT --out results.json
  vision eval CONFIG results.json
  vision eval CONFIG results.json --cfg-options test_evaluator.protocol=coco
"""

from __future__ import annotations

import json
from pathlib import Path

from vision.common.core.errors import command_parser, run_cli
from vision.common.core.files import atomic_write, refuse_unwritable


def main(argv: list[str] | None = None) -> int:
    from vision.common.mm.launch import (
        add_config_arguments,
        explained,
        read_config_alone,
    )
    from vision.common.mm.predictions import evaluate_predictions
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file that the predictions were made with')
    parser.add_argument('results', type=Path, help='.json or .npz of vision test --out')
    parser.add_argument('--out', type=Path, help='write the metrics to this JSON file')
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    refuse_unwritable(args.out)
    config = read_config_alone(args.config, args.cfg_options)
    with explained(config):
        metrics = evaluate_predictions(config, args.results)
    for name, value in metrics.items():
        print(f'{name}: {value:.4f}')
    if args.out:
        with atomic_write(args.out, 'w') as file:
            json.dump({name: float(value) for name, value in metrics.items()}, file, indent=1)
        print(f'metrics: {args.out}')
    return 0


if __name__ == '__main__':
    run_cli(main)
