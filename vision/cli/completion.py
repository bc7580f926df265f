"""Completion of commands, options and their values in the shell.

  vision completion bash > ~/.local/share/bash-completion/completions/vision
  vision completion zsh > ~/.vision-completion.zsh     (and in ~/.zshrc: source that file)
  source <(vision completion bash)                     (for this shell alone)

The script knows the commands as they are now: make it again after an upgrade. Commands whose
packages are not installed complete their names alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import shlex
import sys
from collections.abc import Iterator

from vision.common.core.errors import command_parser, run_cli

HEAD = """# Completion of the command vision; made by: vision completion {shell}
_vision() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[$((COMP_CWORD-1))]}}
    local line="${{COMP_WORDS[*]:1:$((COMP_CWORD-1))}} " words=@files options='' values=''
    case $line in
"""
TAIL = """    esac
    [[ $current == -* ]] && words=$options
    [[ $values ]] && words=$values
    case $words in
        @files) COMPREPLY=($(compgen -f -- "$current")) ;;
        @number) COMPREPLY=() ;;
        *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
    esac
}
complete -o filenames -F _vision vision
"""
PARSES = 'parse_args', 'parse_intermixed_args'
ZSH = 'autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n'


def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument('shell', choices=('bash', 'zsh'))
    args = parser.parse_args(argv)
    from vision.cli.main import COMMANDS
    commands = {}
    for name, (module, _) in COMMANDS.items():
        commands |= dict(described(name, parser_of(module)))
    print(('' if args.shell == 'bash' else ZSH) + script(args.shell, commands), end='')
    return 0


class _Built(BaseException):
    """Carries the parser of a command out of it; no ``except Exception`` on its way stops it."""


def parser_of(module: str) -> argparse.ArgumentParser | None:
    """The parser that a command makes, caught when it would parse; None where it cannot run."""
    def caught(parser: argparse.ArgumentParser, *_args, **_options) -> None:
        raise _Built(parser)
    own, argv = {name: getattr(argparse.ArgumentParser, name) for name in PARSES}, sys.argv
    for name in PARSES:
        setattr(argparse.ArgumentParser, name, caught)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(module).main([])
    except _Built as built:
        return built.args[0]
    except ModuleNotFoundError:  # of an extra that is not installed
        return None
    finally:
        sys.argv = argv
        for name in PARSES:
            setattr(argparse.ArgumentParser, name, own[name])
    return None


def described(name: str, parser: argparse.ArgumentParser | None
              ) -> Iterator[tuple[str, dict[str, str]]]:
    """(name of a command or of an action of it, what may follow): option, or '' for the other
    arguments, -> its values; ``@files``, ``@number``, or '' for a switch."""
    found: dict[str, str] = {}
    for action in parser._actions if parser else ():
        if isinstance(action, argparse._SubParsersAction):
            found[''] = ' '.join(action.choices)
            for word, inner in action.choices.items():
                yield from described(f'{name} {word}', inner)
        elif action.help != argparse.SUPPRESS:
            values = '' if action.nargs == 0 else ' '.join(map(str, action.choices or ())) or (
                '@number' if action.type in (int, float) else '@files')
            for option in action.option_strings:
                found[option] = values
            if not action.option_strings:
                found.setdefault('', values)
    yield name, found


def script(shell: str, commands: dict[str, dict[str, str]]) -> str:
    """For bash; zsh reads the same through bashcompinit."""
    cases = [_case(f"'{name} '*", commands[name])
             for name in sorted(commands, key=len, reverse=True)]  # 'zoo add' before 'zoo'
    groups: dict[str, dict[str, None]] = {}
    for name in commands:
        first, _, rest = name.partition(' ')
        groups.setdefault(first, {}).update(dict.fromkeys(rest.split()[:1]))
    cases += [_case(f"'{first} '*", {'': ' '.join(words)}) for first, words in groups.items()
              if first not in commands]
    cases.append(_case("' '", {'': ' '.join(groups), '--help': '', '--version': ''}))
    return HEAD.format(shell=shell) + ''.join(cases) + TAIL


def _case(pattern: str, found: dict[str, str]) -> str:
    """What is set where a line of words fits the pattern."""
    options = ' '.join(option for option in found if option.startswith('--'))
    values: dict[str, list[str]] = {}
    for option, value in found.items():
        if option and value:
            values.setdefault(value, []).append(option)
    inner = ' '.join(f'{"|".join(names)}) values={shlex.quote(value)} ;;'
                     for value, names in values.items())
    return (f'        {pattern}) options={shlex.quote(options)}'
            + (f' words={shlex.quote(found[""])}' if found.get('') else '')
            + (f'\n            case $previous in {inner} esac' if inner else '') + ' ;;\n')


if __name__ == '__main__':
    run_cli(main)
