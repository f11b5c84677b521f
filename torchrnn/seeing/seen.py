"""What `torchrnn.watch` gives: the numbers of every layer, and figures of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchrnn.history import Trace
from torchrnn.seeing import inside

if TYPE_CHECKING:
    from torchrnn.layer import Recurrent
    from torchrnn.seeing.page import Page

_RANGES = {"σ": (0.0, 1.0), "tanh": (-1.0, 1.0), "softsign": (-1.0, 1.0)}  # of what squashes


@dataclass
class Seen:
    """One call of one layer.

    Attributes:
        layer: the layer.
        trace: its states and gates at every step, a [`Trace`][torchrnn.Trace], without their past.
        gradients: of each state by name ∂loss/∂state at every step, in the shape that the trace has it. It counts all
            ways from the state to the loss, also those through later steps.
        counted: (T, B) bool, of one sequence (T,): the steps that count. Those beyond a row's length do not.
    """

    layer: Recurrent
    trace: Trace
    gradients: dict[str, Any]
    counted: Tensor

    def gradient_norms(self, state: str = "") -> Tensor:
        """The norm of ∂loss/∂state over batch and units, by layer, direction and step.

        Args:
            state: its name; by default the first, which is the output.

        Returns:
            (L, D, T)

        Raises:
            ValueError: the layer has no such state.
        """
        state = state or self.layer.cell.states[0]
        if state not in self.gradients:
            raise ValueError(f"state must be one of {', '.join(self.gradients)}, got {state!r}")
        return torch.stack([g.flatten(2).norm(dim=-1) for g in self.gradients[state]])

    def saturation(self, margin: float = 0.1) -> dict[str, list[Tensor]]:
        """How often each unit is at either end of its range: a gate after its sigmoid below 0.1 or above 0.9.

        Args:
            margin: the ends, as a share of the range.

        Returns:
            By the name of a gate, or of a state that a function squashes, as the RNN's h; for each layer (D, H, 2), the
            shares of steps at the lower and at the upper end.
        """
        ranges = squashed(self.layer)
        found = {}
        for name, (low, high) in ranges.items():
            values = getattr(self.trace, name)
            near = margin * (high - low)
            found[name] = [torch.stack([self._share(v < low + near), self._share(v > high - near)], -1) for v in values]
        return found

    def _share(self, flags: Tensor) -> Tensor:
        """(D, T, B, H) bool -> (D, H), the share of the steps that count."""
        weights = self.counted.to(torch.float64).unsqueeze(-1)
        batch = tuple(range(1, flags.dim() - 1))
        return (flags * weights).sum(batch) / weights.sum().clamp_min(1)

    def eigenvalues(self) -> dict[str, Tensor]:
        """The eigenvalues of every ``weight_hh``, gate by gate: what one step multiplies the state by.

        Returns:
            By the weight's name (G, H), complex; with ``proj_size`` those of ``weight_hr @ weight_hh``, (G, P).
        """
        found = {}
        for names in self.layer._all_weights:
            weights = {name.split("_l")[0]: name for name in names}
            blocks = getattr(self.layer, weights["weight_hh"]).detach().double()
            blocks = blocks.unflatten(0, (len(self.layer.cell.gates), -1))  # (G, H, H), with projection (G, H, P)
            if "weight_hr" in weights:
                blocks = getattr(self.layer, weights["weight_hr"]).detach().double() @ blocks
            found[weights["weight_hh"]] = torch.linalg.eigvals(blocks)
        return found


class Watched:
    """What `watch` has seen: the layers' calls by name, and figures of them.

    Attributes:
        layers: a [`Seen`][torchrnn.seeing.seen.Seen] for every call of a recurrent layer, in order. The name is the
            layer's in the model; of a second call there is ``(2)`` behind it.
        result: what the model returned.
        loss: the number that the gradients are of.
    """

    def __init__(self, layers: dict[str, Seen], result: Any, loss: Tensor) -> None:
        self.layers, self.result, self.loss = layers, result, loss

    def __getitem__(self, name: str) -> Seen:
        return self.layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __repr__(self) -> str:
        lines = [f"loss {float(self.loss):.6g}"]
        for name, seen in self.layers.items():
            lines.append(f"{name}: {type(seen.layer).__name__}({seen.layer.extra_repr()})")
            lines += [f"  {line}" for line in repr(seen.trace).split("\n")]
        return "\n".join(lines)

    def plot_states(self, name: str = "", row: int = 0) -> Any:
        """Heat maps of all states of one sequence: units from top to bottom, steps from left to right.

        Args:
            name: of the layer; by default the first.
            row: which sequence of the batch.

        Returns:
            A matplotlib figure.
        """
        return _figures().states(self._named(name), row)

    def plot_gates(self, name: str = "") -> Any:
        """How often each unit's gates are shut and open: a point a unit, the shares of steps at both ends of the range.

        Args:
            name: of the layer; by default the first.

        Returns:
            A matplotlib figure.

        Raises:
            ValueError: no gate or state of the layer is squashed into a range.
        """
        return _figures().gates(self._named(name))

    def plot_gradients(self, **beside: Watched) -> Any:
        """The norm of ∂loss/∂h_t by step: where it falls toward the left, the past is forgotten by learning.

        Args:
            **beside: others to draw in the same figure, by the name that they shall have in it.

        Returns:
            A matplotlib figure.
        """
        named = {}
        for title, watched in {"": self, **beside}.items():
            for name, seen in watched.layers.items():
                kind = title or type(seen.layer).__name__
                named[kind if len(watched.layers) == 1 else f"{kind} {name}"] = seen
        return _figures().gradients(named)

    def plot_eigenvalues(self, name: str = "") -> Any:
        """The eigenvalues of ``weight_hh`` and the unit circle: a linear network's state grows beyond it and fades
        within.

        Args:
            name: of the layer; by default the first.

        Returns:
            A matplotlib figure.
        """
        return _figures().eigenvalues(self._named(name))

    def page(self, tokens: Sequence[str], name: str = "", row: int = 0) -> Page:
        """One HTML file that shows a text coloured by the values of a unit at each of its characters.

        The values of all states and gates appear under the mouse, a slider goes through time, and a search finds units
        that follow a pattern: inside quotes, position in the line, a regular expression. Nothing is fetched, so
        it works from a disk, and without a network.

        Args:
            tokens: what stands at each step that counts: a text with a character for each, or a list of texts.
            name: of the layer; by default the first.
            row: which sequence of the batch.

        Returns:
            A [`Page`][torchrnn.seeing.page.Page]; ``save(path)`` writes it.

        Raises:
            ValueError: there is not a token for each step.
        """
        from torchrnn.seeing.page import page

        return page(self._named(name), tokens, row)

    def _named(self, name: str) -> Seen:
        name = name or next(iter(self.layers))
        if name not in self.layers:
            raise ValueError(f"name must be one of {', '.join(map(repr, self.layers))}, got {name!r}")
        return self.layers[name]


def squashed(layer: Recurrent) -> dict[str, tuple[float, float]]:
    """The gates, and the states, that a function squashes, with the ends of its range."""
    graph = inside.trace(layer.cell, layer._options)
    nodes = {name: graph.gates[name] for name in layer.cell.gates if name in graph.gates}
    if not layer.proj_size:
        nodes |= {n.label.removesuffix("[t]"): n.args[0] for n in graph.nodes if n.kind == "new"}
    return {name: _RANGES[node.label] for name, node in nodes.items() if node.label in _RANGES}


def _figures() -> Any:
    """The module of the figures, which needs matplotlib."""
    try:
        from torchrnn.seeing import figures
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("matplotlib", "numpy"):
            raise
        raise ModuleNotFoundError(
            f"figures need the package {package}, which is not installed: pip install 'torchrnn[tools]'", name=package
        ) from error
    return figures
