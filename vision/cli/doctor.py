"""Look at this installation: versions, compiled operators, codecs, devices, space, model zoo.

Examples:
  vision doctor
  vision doctor --json > doctor.json

Each problem comes with the command that mends it. Exit code 0: nothing essential is broken;
3: something is. Takes 10 to 30 seconds. Needs only the standard library: it runs, and says so,
when everything else is missing (python -m vision doctor in a checkout).
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict

from vision.common.core.errors import command_parser, run_cli
from vision.doctor.checks import Finding, examine

EXIT_BROKEN = 3


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('--json', action='store_true', help='print JSON instead of tables')
    args = parser.parse_args(argv)
    findings = examine()
    broken = [f for f in findings if f.state == 'broken']
    if args.json:
        print(json.dumps(dict(is_usable=not broken, python=platform.python_version(),
                              platform=platform.platform(),
                              findings=[asdict(f) for f in findings]), indent=2))
    else:
        print_table(findings)
        print_advice([f for f in findings if f.state in ('broken', 'warning')], len(broken))
    return EXIT_BROKEN if broken else 0


def print_table(findings: list[Finding]) -> None:
    """All findings, a line each; in plain columns where rich is not installed."""
    rows = [(f.state, f.name, f.expected, f.found) for f in findings]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:  # plain columns then: the doctor runs where nothing is installed
        for state, name, expected, found in rows:
            print(f'{state:8} {name:28} {expected:24} {found}')
        return
    colours = dict(ok='green', info='dim', warning='yellow', broken='bold red')
    table = Table('state', 'what', 'expected', 'found')
    for state, *cells in rows:
        table.add_row(f'[{colours[state]}]{state}[/]', *(cell.replace('[', r'\[')
                                                         for cell in cells))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def print_advice(problems: list[Finding], num_broken: int) -> None:
    """For each problem the command that mends it, then how many there are."""
    for finding in problems:
        print(f'{finding.state.upper()} {finding.name}: {finding.found}\n  Do: {finding.do}')
    print(f'{num_broken} broken, {len(problems) - num_broken} warnings'
          if problems else 'everything that was looked at works')


if __name__ == '__main__':
    run_cli(main)
