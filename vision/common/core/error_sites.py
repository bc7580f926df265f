"""Where the source raises an error code, and what the message says there. Nothing is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

CODE = re.compile(r'VIS-[A-Z]+-\d{3,4}')
PARTS = ('what', 'why', 'do')
BESIDE = ('commands', '')  # pages that are of no room
MOST_OF_A_FRAME = 6  # own words of a message that its callers fill
MOST_LISTED = 10
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Site:
    """A place that raises a code, and what its message says there, as templates.

    Args:
        cases: where a function is told what is wrong, what its callers tell it.
    """

    code: str
    path: str
    line: int
    what: str = ''
    why: str = ''
    do: str = ''
    cases: list[str] = field(default_factory=list)

    @property
    def page(self) -> str:
        """Name of its page: a room, or what stands beside the rooms; of a measurement none."""
        first, second = self.path.split('/')[:2]
        is_room = first == 'vision' and second != 'cli' and not second.endswith('.py')
        beside = dict(vision='commands', tools='commands', benchmarks='')
        return second if is_room else beside.get(first, first)


def sites_of(sources: dict[str, str]) -> list[Site]:
    """Every site of every code, of sources by their paths, by file and line."""
    modules = {path: Module(ast.parse(source)) for path, source in sources.items()}
    takers = {name: function for module in modules.values()
              for name, function in module.functions.items() if message_of(function)}
    return [module.site(call, code, path, takers) for path, module in modules.items()
            for call in module.calls if (code := module.code_of(call))]


def repeats(sites: list[Site]) -> dict[str, list[str]]:
    """Codes that are raised at several places, with those places."""
    places: dict[str, list[str]] = {}
    for site in sites:
        places.setdefault(site.code, []).append(f'{site.path}:{site.line}')
    return {code: found for code, found in places.items() if len(found) > 1}


def message_of(function: ast.FunctionDef) -> ast.Call | None:
    """The ``VisionError`` of a function that is given its code."""
    names = parameters_of(function)
    return next((node for node in ast.walk(function) if isinstance(node, ast.Call)
                 and getattr(node.func, 'id', '') == 'VisionError'
                 and getattr(node.args[0], 'id', '') in names), None)


def parameters_of(function: ast.FunctionDef) -> list[str]:
    """Names of a function's arguments, without ``self``."""
    return [each.arg for each in function.args.args + function.args.kwonlyargs
            if each.arg != 'self']


def told_by(call: ast.Call, function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Parameter -> what a call of the function gives for it."""
    return dict(zip(parameters_of(function), call.args, strict=False)) | {
        each.arg: each.value for each in call.keywords}


def parts_of(call: ast.Call) -> dict[str, ast.expr]:
    """What, why and do of a ``VisionError``, or of what takes them under the same names."""
    given = {each.arg: each.value for each in call.keywords}
    return given | (dict(what=call.args[1]) if len(call.args) > 1 else {})


class Module:
    """A file: its calls, its constants, and the function that each call stands in."""

    def __init__(self, tree: ast.Module) -> None:
        self.constants = {target.id: constant(node.value) for node in tree.body
                          if isinstance(node, ast.Assign) for target in node.targets
                          if isinstance(target, ast.Name) and constant(node.value) is not None}
        self.functions = {node.name: node for node in ast.walk(tree)
                          if isinstance(node, Function)}
        self.inside: dict[ast.AST, ast.AST] = {}
        self.calls = [node for node in self._walk(tree, tree) if isinstance(node, ast.Call)]

    def _walk(self, node: ast.AST, function: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            self.inside[child] = function
            yield child
            yield from self._walk(child, child if isinstance(child, Function) else function)

    def code_of(self, call: ast.Call) -> str:
        """The code that a call hands over: first, or by the name ``code``."""
        given = [*call.args[:1], *(each.value for each in call.keywords if each.arg == 'code')]
        for value in given:
            if isinstance(value, ast.Name):
                value = ast.Constant(self.constants.get(value.id, ''))
            if isinstance(value, ast.Constant) and CODE.fullmatch(str(value.value)):
                return value.value
        return ''

    def site(self, call: ast.Call, code: str, path: str,
             takers: dict[str, ast.FunctionDef]) -> Site:
        """What the code's message says at this call, with the arguments of the function that
        raises it."""
        given, told = parts_of(call), {}
        if taker := takers.get(getattr(call.func, 'id', '')):
            # The message of that function, with the arguments of this call.
            given, told = parts_of(message_of(taker)), told_by(call, taker)
        texts = {part: self.text(given[part], told) if part in given else '' for part in PARTS}
        function = self.inside[call]
        cases = self._cases(function, given) if isinstance(function, Function) else []
        return Site(code, path, call.lineno, **texts, cases=cases)

    def _cases(self, function: ast.FunctionDef, given: dict[str, ast.expr]) -> list[str]:
        """What the callers of a function say, where it is told nearly the whole of ``what``."""
        names = parameters_of(function)
        told = [node.id for node in ast.walk(given.get('what', function)) if isinstance(
            node, ast.Name) and node.id in names]
        if not told or len(literal_words(self.text(given['what']))) > MOST_OF_A_FRAME:
            return []
        remedy, cases = getattr(given.get('do'), 'id', ''), []
        for call in self.calls:
            if getattr(call.func, 'id', getattr(call.func, 'attr', '')) == function.name:
                values = {name: self.text(value)
                          for name, value in told_by(call, function).items()}
                if literal_words(values.get(told[0], '')):
                    cases.append(values[told[0]] + (f' ({values[remedy]})' if remedy in values
                                                    else ''))
        return list(dict.fromkeys(cases))

    def text(self, node: ast.expr, told: dict[str, ast.expr] | None = None) -> str:
        """An expression as a template: texts as they are, anything else as {name}.

        Args:
            told: names in the expression that stand for other ones.
        """
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return ''.join(self.text(each, told) for each in node.values)
        if isinstance(node, ast.FormattedValue):
            return self.text(node.value, told)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.text(node.left, told) + self.text(node.right, told)
        if isinstance(node, ast.IfExp):
            both = [text for each in (node.body, node.orelse) if (text := self.text(each, told))]
            return ' / '.join(both) if len(both) == 1 or all(map(literal_words, both)) else '{...}'
        if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'join' and node.args:
            return self.text(node.args[0], told)
        if isinstance(node, ast.Name) and told and node.id in told:
            return self.text(told[node.id])
        if isinstance(node, ast.Name) and node.id in self.constants:
            return self.constants[node.id]
        return '{' + short(node) + '}'


def constant(node: ast.expr) -> str | None:
    """A text, a number, or the texts of a short list or table, as a message shows them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return str(node.value)
    items = node.elts if isinstance(node, ast.Tuple | ast.List) else \
        node.keys if isinstance(node, ast.Dict) else []
    texts = [item.value for item in items if isinstance(item, ast.Constant)]
    is_list = 0 < len(texts) == len(items) <= MOST_LISTED
    return ', '.join(map(str, texts)) if is_list else None


def short(node: ast.expr) -> str:
    """A name for what an expression puts into a message."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return 'type' if node.attr == '__name__' else node.attr
    if isinstance(node, ast.Subscript | ast.Starred):
        return short(node.value)
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'len':
        return f'number_of_{short(node.args[0])}'
    if isinstance(node, ast.Call) and node.args:
        return short(node.args[-1])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return short(node.func.value)
    return '...'


def literal_words(template: str) -> list[str]:
    """Words of a message that stand there whatever is filled in."""
    return re.findall(r'[A-Za-z]{2,}', re.sub(r'\{[^}]*\}', ' ', template))
