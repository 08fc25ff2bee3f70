"""Where the host's time of a step goes: seconds, operators and synchronisations with a device, by part of the step.

All is measured on a CPU. An operator is what torch dispatches and a GPU would launch a kernel for (views and empty
tensors are left out). A synchronisation is what makes the host wait for a GPU: a value that is read from a tensor
(`.item()`, `.tolist()`, `.cpu()`, a branch on a tensor), an operator whose output has a size that depends
on values (`nonzero`, `unique`, `bincount`, a boolean mask as an index), and a tensor that is made of Python numbers on
a given device.
"""

import functools
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

REST = "the rest"
FIRST_LAYER = "attention of the first layer"
SET_UP = "attention set-up"
ATTENTION = "attention"
LATE = "guards, read a step later"
ON_THE_HOST = {"collator", "transfer", LATE}  # what these read is on the host with a GPU as well, without a wait

_READS = {"item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__"}  # `numpy` follows `cpu` or fails
_FROM_NUMBERS = {"tensor", "as_tensor"}
_SIZED_BY_VALUES = {
    "aten::_local_scalar_dense", "aten::_unique2", "aten::bincount", "aten::equal", "aten::is_nonzero", "aten::item",
    "aten::masked_select", "aten::nonzero", "aten::repeat_interleave", "aten::unique_consecutive", "aten::unique_dim",
}  # fmt: skip
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_"}
_NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::lift", "aten::detach", "aten::is_pinned")
_OWN = (str(Path(torch.__file__).parent), str(Path(__file__)), "<frozen")


class Parts:
    """Seconds and counts of the steps by part; the time of an inner part is taken out of that of the outer one.

    Attributes:
        steps: For each finished step the seconds, operators and synchronisations by part.
        places: The synchronisations of all finished steps by the line of code that they come from.
    """

    def __init__(self):
        self.steps, self.places = [], Counter()
        self._stack, self._since = [REST], time.perf_counter()
        self._new_step()

    def _new_step(self):
        self.seconds, self.operators, self.synchronisations = Counter(), Counter(), Counter()

    @property
    def current(self):
        """The innermost part that the code is in."""
        return self._stack[-1]

    def _charge(self):
        now = time.perf_counter()
        self.seconds[self.current] += now - self._since
        self._since = now

    def enter(self, name):
        """Begin a part inside the current one."""
        self._charge()
        self._stack.append(name)

    def leave(self):
        """End the innermost part."""
        self._charge()
        self._stack.pop()

    @contextmanager
    def part(self, name):
        """Charge what runs in this context to a part."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def end_step(self, *, keep=True):
        """Finish a step; with `keep=False`, forget it."""
        self._charge()
        if keep:
            self.steps.append((self.seconds, self.operators, self.synchronisations))
        else:
            self.places.clear()
        self._new_step()

    def timed(self, owner, name, part):
        """Replace a function of an object, class or module by one that is charged to a part, within this context."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            with self.part(part):
                return function(*args, **kwargs)

        return replaced(owner, name, timed)

    def timed_attention(self, functions, name):
        """Charge the attention function of a name to a part, the first layer of each forward pass to one of its own."""
        function = functions[name]

        def timed(module, *args, **kwargs):
            with self.part(FIRST_LAYER if module.layer_idx == 0 else ATTENTION):
                return function(module, *args, **kwargs)

        return _registered(functions, name, timed)

    @contextmanager
    def timed_forward(self, model):
        """Charge the forward passes of a model to the part "forward"."""
        before = model.register_forward_pre_hook(lambda *_: self.enter("forward"))
        after = model.register_forward_hook(lambda *_: self.leave(), always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def counting(self, active=True):
        """Return the context in which operators and synchronisations are counted, which makes the code slow."""
        if not active:
            return nullcontext()
        stack, reads = ExitStack(), _Reads(self)
        stack.enter_context(reads)
        stack.enter_context(_Operators(self, reads))
        return stack

    def synchronise(self):
        """Count one synchronisation."""
        if self.current not in ON_THE_HOST:
            self.synchronisations[self.current] += 1
            self.places[_place()] += 1


@contextmanager
def replaced(owner, name, value):
    """Set an attribute within this context."""
    was_own, old = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old) if was_own else delattr(owner, name)


@contextmanager
def _registered(functions, name, function):
    old = functions[name]
    functions[name] = function
    try:
        yield
    finally:
        functions[name] = old


class _Reads(TorchFunctionMode):
    """Counts what Python reads from tensors, or puts on a device."""

    def __init__(self, parts):
        super().__init__()
        self.parts, self.depth = parts, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        is_put = name in _FROM_NUMBERS and kwargs.get("device") is not None and args[0] != []
        if name not in _READS and not is_put:
            return func(*args, **kwargs)
        if not self.depth:
            self.parts.synchronise()
        self.depth += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.depth -= 1


class _Operators(TorchDispatchMode):
    """Counts operators, forward and backward, and those whose output has a size that depends on values."""

    def __init__(self, parts, reads):
        super().__init__()
        self.parts, self.reads = parts, reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        is_mask = name in _INDEXED and any(each is not None and each.dtype == torch.bool for each in args[1])
        if not self.reads.depth and (is_mask or name in _SIZED_BY_VALUES):
            self.parts.synchronise()
        if not _is_view(func) and not name.startswith(_NO_KERNEL):
            self.parts.operators[self.parts.current] += 1
        return func(*args, **(kwargs or {}))


@functools.cache
def _is_view(func):
    returned = func._schema.returns
    return bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write


def _place():
    """Return the innermost line outside torch and this file: of Plaudit, or of a library that Plaudit calls."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return "/".join(Path(frame.f_code.co_filename).parts[-3:]) + f":{frame.f_lineno}"
