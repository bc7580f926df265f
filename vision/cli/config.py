"""Print a config with everything that it inherits: vision config CONFIG"""

from __future__ import annotations

from vision.common.core.errors import command_parser, run_cli


def main(argv: list[str] | None = None) -> int:
    from vision.common.mm.launch import add_common_arguments, read_config
    parser = command_parser(__doc__)
    parser.add_argument('config', help='config file')
    add_common_arguments(parser)
    print(read_config(parser.parse_args(argv)).pretty_text)
    return 0


if __name__ == '__main__':
    run_cli(main)
