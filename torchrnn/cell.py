"""What a cell is: one pointwise function with the names of its gates and states."""

from __future__ import annotations

import inspect
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import cached_property
from keyword import iskeyword
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrnn.activation import PLAIN, Options, takes_options

#: Every cell by its name, in order of definition. Conformance tests run over it.
CELLS: dict[str, Cell] = {}

_tracing = torch._C._get_tracing_state


class Cell:
    r"""A recurrent cell: the pointwise function of a step, and the names of its gates and states.

    A recurrent layer is two matrix products and one pointwise function; only the pointwise function differs:

    $$
    \begin{aligned}
    x &= W_{ih} x_t + b_{ih} \\
    h &= W_{hh} h_{t-1} + b_{hh} \\
    s_t &= \mathrm{step}(x, h, s_{t-1})
    \end{aligned}
    $$

    Made by the decorator [`cell`][torchrnn.cell]; calling it does one step on whole pre-activations.

    Attributes:
        name: the name of the step function, unique among all cells.
        gates: names of the row blocks of ``weight_ih`` and ``weight_hh``, in this order.
        states: names of the states; the first is the output and what ``weight_hh`` multiplies.
        step: the function ``(x, h, s) -> new states``, or ``(x, h, s, options) -> new states``.
        takes_options: whether it is the second.
        late: names of the gates, the last ones, whose product with ``weight_hh`` the step asks for itself.
    """

    def __init__(
        self, step: Callable[..., Any], gates: tuple[str, ...], states: tuple[str, ...], late: tuple[str, ...] = ()
    ) -> None:
        self.step = step
        self.takes_options = takes_options(step)
        self.name: str = step.__name__
        self.gates = gates
        self.states = states
        self.late = late
        self.__doc__ = step.__doc__
        self._gates = namedtuple(f"{self.name}_gates", gates)
        self._states = namedtuple(f"{self.name}_states", states)

    def __call__(
        self, x: Tensor, h: Tensor, states: tuple[Tensor, ...], options: Options = PLAIN
    ) -> tuple[Tensor, ...]:
        """One step from the pre-activations.

        Args:
            x: ``W_ih x_t + b_ih`` for all gates, shape (…, G·H).
            h: ``W_hh h_{t-1} + b_hh`` for all gates, shape (…, G·H).
            states: the previous states, each (…, H).
            options: the activation and the limit of the state.

        Returns:
            The new states, each (…, H), in the order of ``states``.

        Raises:
            TypeError: the cell has late gates, of which there is no ``h`` before the step.
        """
        if self.late:
            raise TypeError(
                f"cell {self.name!r} multiplies with weight_hh within its step, for {' '.join(self.late)}: take "
                "recurrence(weight_hh, bias_hh), which does a step from x and the previous states"
            )
        G = len(self.gates)
        return self.advance(x.chunk(G, -1), h.chunk(G, -1), states, options)

    def recurrence(
        self, w_hh: Tensor, b_hh: Tensor | None = None, options: Options = PLAIN
    ) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        """The step with its recurrent weights: a function of ``W_ih x_t + b_ih`` and the previous states."""
        G, products = len(self.gates), self._products(w_hh, b_hh)
        return lambda x, states: self.advance(x.chunk(G, -1), products(states[0]), states, options)

    def _products(self, w_hh: Tensor, b_hh: Tensor | None) -> Callable[[Tensor], Sequence[Any]]:
        """What makes a step's h of the previous output: its parts by gate; of a late gate, what the step calls."""
        G, late = len(self.gates), len(self.late)
        if not late:
            return lambda h: F.linear(h, w_hh, b_hh).chunk(G, -1)
        weights, none = w_hh.chunk(G), (None,) * G
        biases = none if b_hh is None else b_hh.chunk(G)
        n = G - late
        E = n * weights[0].size(0)
        w_early, b_early = w_hh[:E], None if b_hh is None else b_hh[:E]

        def products(h: Tensor) -> Sequence[Any]:
            early = F.linear(h, w_early, b_early).chunk(n, -1) if n else ()
            return (*early, *(_Late(w, b) for w, b in zip(weights[n:], biases[n:], strict=True)))

        return products

    def advance(self, x: Sequence[Any], h: Sequence[Any], states: Sequence[Any], options: Any) -> tuple[Any, ...]:
        """One step from the parts of x and h, one for each gate.

        A step that takes the options clips where its equations say so; of another, the states after the first are
        clipped, or the only one.
        """
        parts = self._gates(*x), self._gates(*h), self._states(*states)
        try:
            new = self.step(*parts, options) if self.takes_options else self.step(*parts)
        except AttributeError as error:
            unknown = self._unknown_part(error, parts)
            if unknown is None:
                raise
            raise unknown from None
        if isinstance(new, Tensor):
            new = (new,)
        if not isinstance(new, (tuple, list)) or len(new) != len(self.states):
            came = len(new) if isinstance(new, (tuple, list)) else f"{new!r}: is there a return?"
            raise TypeError(
                f"cell {self.name!r}: the step function must return {len(self.states)} states "
                f"({', '.join(self.states)}), got {came}"
            )
        if _tracing() is None:  # torch.jit.trace would warn of each comparison
            gate = x[0]
            for state in new:
                if type(state) is not Tensor or state.shape != gate.shape:
                    self._check_shapes(new, gate, states)
        if self.takes_options:
            return tuple(new)
        first = 1 if len(new) > 1 else 0
        return (*new[:first], *(options.clip(state) for state in new[first:]))

    def _unknown_part(self, error: AttributeError, parts: tuple[Any, ...]) -> AttributeError | None:
        """What to say of ``x.q`` where there is no gate q."""
        for letter, part in zip("xhs", parts, strict=True):
            if error.obj is part:
                of, names = ("states", self.states) if letter == "s" else ("gates", self.gates)
                return AttributeError(
                    f"cell {self.name!r}: the step function asks for {letter}.{error.name}, but {letter} has the {of} "
                    f"{', '.join(names)}: name it in {of}=, or take one of these"
                )
        return None

    def _check_shapes(self, new: Sequence[Any], gate: Any, states: Sequence[Any]) -> None:
        if type(gate) is not Tensor or not gate.dim() or torch.compiler.is_compiling():
            return  # who makes code of the step says more
        for name, state in zip(self.states, new, strict=True):
            if not isinstance(state, Tensor):
                raise TypeError(f"cell {self.name!r}: the new {name} must be a Tensor, got {type(state).__name__}")
            if state.shape != gate.shape and gate.shape[:-1] == states[0].shape[:-1]:
                raise ValueError(
                    f"cell {self.name!r}: the new {name} must have the shape of a gate, {tuple(gate.shape)}, got "
                    f"{tuple(state.shape)}: the equations of a step are elementwise"
                )

    def gate_values(
        self, x: Tensor, w_hh: Tensor, b_hh: Tensor | None, states: tuple[Tensor, ...], options: Options = PLAIN
    ) -> list[Tensor]:
        """The gates of a step by what its function calls so; where it calls nothing so, both pre-activations' sum."""
        parts, h = x.chunk(len(self.gates), -1), self._products(w_hh, b_hh)(states[0])
        local: dict[str, Any] = {}
        code = getattr(inspect.unwrap(self.step), "__code__", None)
        # else nothing is called so, and no late product is to be seen
        if self.late or (code is not None and {*self.gates} & {*code.co_varnames}):
            _, local = self.watched(lambda: self.advance(parts, h, states, options))
        sums = zip(self.gates, parts, h, strict=True)
        return [local[name] if isinstance(local.get(name), Tensor) else a + _product(b) for name, a, b in sums]

    def watched(self, run: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        """What ``run``, which makes a step, gives; and the local variables of the step when it returned.

        Raises:
            RuntimeError: torch.compile has put other code in the place of the step.
        """
        code, local = getattr(inspect.unwrap(self.step), "__code__", None), {}
        seen = code is None

        def watch(frame: Any, event: str, result: Any) -> Any:
            nonlocal seen
            if frame.f_code is not code:
                return None
            if event == "return":
                seen = True
                local.update(frame.f_locals)
            return watch

        before = sys.gettrace()
        sys.settrace(watch)
        try:
            result = run()
        finally:
            sys.settrace(before)
        if not seen:
            raise RuntimeError(
                f"the gates of {self.name!r} are read from its step function while it runs, which torch.compile "
                "replaces: call a layer with return_all=True from a function under torch.compiler.disable"
            )
        return result, local

    @cached_property
    def reads_output(self) -> bool:
        """Whether the step reads the previous output itself (as GRU does), not only its product with ``weight_hh``."""
        if self.late:
            return True
        zeros = torch.zeros(1, len(self.gates), device="cpu")
        previous = [torch.full((1, 1), 0.5, device="cpu") for _ in self.states]
        previous[0] = torch.full((1, 1), torch.nan, device="cpu")
        return any(bool(new.isnan().any()) for new in self(zeros, zeros, tuple(previous)))

    def __repr__(self) -> str:
        return f"<cell {self.name}: gates {' '.join(self.gates)}, states {' '.join(self.states)}>"

    def __reduce__(self) -> tuple[Callable[[str], Cell], tuple[str]]:
        return _by_name, (self.name,)


class _Late:
    """The product of a late gate, which the step asks for: W_hh v + b_hh for the rows of the gate."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.result: Tensor | None = None

    def __call__(self, v: Tensor) -> Tensor:
        self.result = F.linear(v, self.weight, self.bias)
        return self.result


def _product(h: Any) -> Any:
    """A gate's product with ``weight_hh``, late or not; of one that was not asked for, nothing to add."""
    return (0 if h.result is None else h.result) if isinstance(h, _Late) else h


def _by_name(name: str) -> Cell:
    if name not in CELLS:
        raise KeyError(f"no cell is called {name!r}: import the module that defines it before unpickling")
    return CELLS[name]


def cell(*step: NoReturn, gates: str = "", states: str = "", late: str = "") -> Callable[[Callable[..., Any]], Cell]:
    """Declare a recurrent cell from the equations of one step.

    Args:
        gates: names of the gates, separated by spaces: the row blocks of ``weight_ih`` and ``weight_hh`` in this order.
        states: names of the states, separated by spaces. The first is the output.
        late: names of the last gates, whose product with ``weight_hh`` is made within the step, of what the step gives
            it: for ``late="n"``, ``h.n`` is a function, and ``h.n(v)`` is ``W_hh v + b_hh`` for the rows of ``n``. Such
            a cell runs step by step, on the reference backend.

    Returns:
        A decorator for a function ``step(x, h, s)`` in plain, elementwise torch. ``x.i`` is the part of
        ``W_ih x_t + b_ih`` that belongs to gate ``i``, ``h.i`` that of ``W_hh h_{t-1} + b_hh``, ``s.c`` the previous
        state ``c``, each of shape (B, H). It returns the new states in the order of ``states``. A fourth argument, if
        it has one, gets the options of the layer: ``options.activation(a)`` is the function that ``activation=``
        names, ``options.clip(c)`` keeps within ``cell_clip=``.

    Raises:
        TypeError: the step function takes other arguments, the names are not given as one string, or the decorator
            stands without its brackets.
        ValueError: a name is no identifier, stands twice, or the cell's own name is taken; or ``late`` names others
            than the last gates.

    Example:
        ```python
        import torch
        from torch import sigmoid, tanh
        import torchrnn

        @torchrnn.cell(gates="i g o", states="h c")
        def coupled_lstm(x, h, s):
            i, g, o = sigmoid(x.i + h.i), tanh(x.g + h.g), sigmoid(x.o + h.o)
            c = (1 - i) * s.c + i * g
            return o * tanh(c), c

        class CoupledLSTM(torchrnn.Recurrent):
            cell = coupled_lstm

        output, (h, c) = CoupledLSTM(3, 5)(torch.randn(7, 2, 3))
        assert output.shape == (7, 2, 5)
        ```
    """
    if step:
        raise TypeError('give a cell the names of its gates and states: @torchrnn.cell(gates="i f g o", states="h c")')
    gate_names, state_names = _names("gates", gates), _names("states", states)
    late_names = _names("late", late) if late else ()
    if late_names and gate_names[-len(late_names) :] != late_names:
        raise ValueError(f"late must name the last of the gates {gates!r}, in their order, got {late!r}")

    def declare(step: Callable[..., Any]) -> Cell:
        if not step.__name__.isidentifier():
            raise ValueError(f"a cell needs a name: define its step with def, got {step.__name__}")
        _takes_parts(step)
        made = Cell(step, gate_names, state_names, late_names)
        known = CELLS.get(made.name)
        # the same function may be declared again: a notebook's cell is run many times
        if known is not None and (known.step.__module__, known.step.__qualname__) != (
            step.__module__,
            step.__qualname__,
        ):
            raise ValueError(
                f"a cell called {made.name!r} already exists in {known.step.__module__}: rename your step function"
            )
        CELLS[made.name] = made
        return made

    return declare


def _takes_parts(step: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(step)
    except ValueError:  # of a function in C
        return
    try:
        parameters.bind(*"xhs", *("options",) * takes_options(step))
    except TypeError:
        came = f"{step.__name__}{parameters}"
        raise TypeError(f"the step of a cell must take (x, h, s) or (x, h, s, options), got {came}") from None


def _names(argument: str, text: str) -> tuple[str, ...]:
    if not isinstance(text, str):
        came = type(text).__name__
        raise TypeError(f"{argument} must be one string of names separated by spaces, such as 'i f g o', got {came}")
    names = tuple(text.split())
    wrong = [n for n in names if not n.isidentifier() or n.startswith("_") or iskeyword(n)]
    if not names or wrong or len(set(names)) < len(names):
        raise ValueError(
            f"{argument} must be different identifiers separated by spaces, such as 'i f g o', got {text!r}"
        )
    return names
