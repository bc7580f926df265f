"""Is a model its listed modules, one after the other, and nothing else?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vision.common.core.errors import VisionError


class Calls(TorchFunctionMode):
    """Who calls what in a forward pass of the whole model: what each piece got and gave, and the
    functions of torch that ran outside of all pieces, as in-place ones leave no other trace."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)
        self.calls: list[tuple[str, tuple, dict, Any]] = []
        self.functions: list[tuple[int, str]] = []
        self.depth, self.hooks = 0, []

    def __enter__(self) -> Calls:
        for name in self.names:
            module = self.model.get_submodule(name)
            self.hooks += [module.register_forward_pre_hook(self._begin),
                           module.register_forward_hook(
                               lambda module, args, kwargs, result, name=name:
                               self._end(name, args, kwargs, result), with_kwargs=True)]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: tuple) -> None:
        self.depth += 1

    def _end(self, name: str, args: tuple, kwargs: dict, result: Any) -> None:
        self.depth -= 1
        self.calls.append((name, args, kwargs, result))

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.depth == 0 and (func is Tensor.__setitem__ or any(
                isinstance(each, Tensor)
                for each in (result if isinstance(result, tuple | list) else (result,)))):
            self.functions.append((len(self.calls), getattr(func, '__name__', str(func))))
        return result

    def check(self, inputs: tuple[Tensor, ...], whole: Any) -> None:
        """Refuse modules that, called one after the other, are not the model.

        Args:
            inputs: tensors of any shape that the model got.
            whole: what it gave.

        Raises:
            VisionError: VIS-CONFIG-1524, with the two pieces between which something happens.
        """
        called = [name for name, *_ in self.calls]
        if called != self.names:
            first = next((pair for pair in zip(called, self.names, strict=False)
                          if pair[0] != pair[1]), None)
            raise _no_chain(
                f'{type(self.model).__name__} runs {first[0]!r} where piece {first[1]!r} is listed'
                if first else f'of {len(self.names)} pieces the model runs {len(called)} once',
                f'order of the model: {", ".join(called)}')
        before, expected = 'the inputs of the model', inputs
        for position, (name, args, kwargs, result) in enumerate((
                *self.calls, ('the end of the model', _spread(whole), {}, None))):
            between = f'between {before} and {name}'
            functions = [function for place, function in self.functions if place == position]
            if functions:
                raise _no_chain(f'{functions[0]}() runs {between}',
                                'it lies outside of all pieces and would be lost')
            if kwargs or not _same(args, expected):
                is_nested = len(args) == 1 and isinstance(args[0], tuple | list)
                raise _no_chain(f'tensors change {between}', 'the tuple arrives as one argument; '
                                'a pipeline passes tensors one by one' if is_nested else 'a skip '
                                'link, a function outside of modules, or one more argument')
            before, expected = name, _spread(result)


def _spread(outputs: Any) -> tuple:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _same(got: tuple, given: tuple) -> bool:
    return len(got) == len(given) and all(a is b for a, b in zip(got, given, strict=True))


def _no_chain(what: str, why: str) -> VisionError:
    return VisionError('VIS-CONFIG-1524', what, where='pipeline pieces', why=why,
                       do='give the model a method pipeline_stages() whose runs do it, or name '
                       'one module around both')
