"""Say what an error code means and what to do: vision explain CODE

Braces hold what differs from case to case; the message of the run has the values.

  vision explain VIS-INPUT-602
  vision explain 602 303                   # numbers do, too
"""

from __future__ import annotations

from vision.common.core.error_codes import explanation, find_codes, read_codes
from vision.common.core.errors import command_parser, run_cli


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('codes', nargs='+', metavar='CODE',
                        help='a code or its number, or a message that has one, in quotes')
    args = parser.parse_args(argv)
    known = read_codes()
    found = [code for text in args.codes for code in find_codes(text, known)]
    print('\n\n'.join(explanation(code, known[code]) for code in dict.fromkeys(found)))
    return 0


if __name__ == '__main__':
    run_cli(main)
