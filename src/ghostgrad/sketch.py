"""Random projections of gradients: small rows whose inner products estimate those of the gradients.

A matrix parameter's gradient G becomes P_o G P_iᵀ, from the factors and without making G; a vector's becomes P_i g.
E[P_oᵀ P_o] and E[P_iᵀ P_i] are the identity for every kind, so that E<sketch(g), sketch(h)> = <g, h>. A side that is
no longer than its sketch would be is kept exactly.

The matrices are a function of (seed, parameter name, side, kind, sizes) alone: numpy's counter-based Philox generator,
keyed by a hash of these, always drawn on the CPU and then moved. Order of layers, device and process do not matter.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ghostgrad.forms import Dense, matrix_shape

Kind = Literal["gaussian", "rademacher", "orthonormal"]
Split = Literal["even", "cheap"]


@dataclass(frozen=True)
class SketchOptions:
    """Everything a sketch depends on; no option has a silent default, `PROFILES` holds named sets of them.

    Attributes:
        size: numbers per parameter, k_o * k_i at most (the reference's proj_rank_total).
        side: smallest k_o and k_i (proj_rank_min); a side of the parameter shorter than it is kept exactly.
        layers: name patterns (`fnmatch`) of the parameters to sketch; each must match. ("*",) is all.
        embeddings: whether lookup tables are sketched.
        kind: entries N(0, 1/k), or ±1/√k, or orthonormal rows times √(n/k).
        split: "even" makes k_o and k_i as equal as the sides allow; "cheap" makes k_o/k_i equal to O/I's inverse, which
            multiplies least (k_i/k_o = O/I). Which estimates better: benchmarks/projection_error.md.
        seed: of the projections.
        dtype: of the rows: float32, bfloat16 or float16. Contributions to a mean over many tokens are small numbers;
            bfloat16 keeps their range, float16 ends at 6e-8.
    """

    size: int
    side: int
    layers: tuple[str, ...]
    embeddings: bool
    kind: Kind
    split: Split
    seed: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.side < 1 or self.side**2 > self.size:
            raise ValueError(f"side {self.side} must be at least 1 and its square at most size {self.size}")
        if self.kind not in ("gaussian", "rademacher", "orthonormal"):
            raise ValueError(f"kind is {self.kind!r}; accepted are gaussian, rademacher, orthonormal")
        if self.split not in ("even", "cheap"):
            raise ValueError(f"split is {self.split!r}; accepted are even, cheap")
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"dtype is {self.dtype}; accepted are float32, float16, bfloat16")

    def as_json(self) -> dict[str, object]:
        """The options as JSON values; what a store writes down and compares."""
        return {**asdict(self), "layers": list(self.layers), "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_json(cls, values: Any) -> SketchOptions:
        """The options that `as_json` wrote; ValueError where it did not write them."""
        kinds = {"size": int, "side": int, "layers": list, "embeddings": bool, "kind": str, "split": str, "seed": int}
        kinds |= {"dtype": str}
        if not isinstance(values, Mapping) or values.keys() != kinds.keys():
            raise ValueError(f"a sketch has the options {', '.join(kinds)}")
        wrong = [name for name, kind in kinds.items() if type(values[name]) is not kind]
        if wrong or not all(isinstance(name, str) for name in values["layers"]):
            raise ValueError(f"options of another type: {', '.join(wrong) or 'layers'}")
        if not 0 <= values["seed"] < 1 << 63:
            raise ValueError("seed must be from 0 to 2^63 - 1")
        own: dict[str, Any] = {**values, "layers": tuple(values["layers"]), "dtype": getattr(torch, values["dtype"])}
        return cls(**own)


# New profiles are added under a new number; one that exists is never changed, stores name it.
PROFILES: Mapping[str, SketchOptions] = {
    "compact@1": SketchOptions(64, 4, ("*",), False, "rademacher", "even", 42, torch.bfloat16),
    "standard@1": SketchOptions(256, 8, ("*",), False, "rademacher", "even", 42, torch.bfloat16),
    "exact@1": SketchOptions(1 << 40, 1, ("*",), True, "rademacher", "even", 42, torch.float32),
    "reference@1": SketchOptions(256, 8, ("*",), False, "gaussian", "cheap", 42, torch.float32),
}


class Projection:
    """P_o [k_o, O] and P_i [k_i, I] of one parameter; None for a side that is kept exactly."""

    def __init__(self, outer: Tensor | None, inner: Tensor | None, shape: tuple[int, int]):
        self.outer, self.inner, self.shape = outer, inner, shape
        self.left_size = shape[0] if outer is None else outer.shape[-2]
        self.right_size = shape[1] if inner is None else inner.shape[-2]

    def left(self, values: Tensor) -> Tensor:
        """[..., O] to [..., k_o]."""
        return values if self.outer is None else values @ self._like(self.outer, values).mT

    def right(self, values: Tensor) -> Tensor:
        """[..., I] to [..., k_i]."""
        return values if self.inner is None else values @ self._like(self.inner, values).mT

    def left_columns(self, index: Tensor) -> Tensor:
        """[N, k_o]: the columns of P_o at `index`, the projections of one-hot rows."""
        if self.outer is None:
            return torch.nn.functional.one_hot(index, self.shape[0])
        return self._like(self.outer, index).mT[index]

    def swapped(self) -> Projection:
        """The projection of the transposed parameter."""
        return Projection(self.inner, self.outer, (self.shape[1], self.shape[0]))

    def chosen(self, which: slice | int | list[int]) -> Projection:
        """Of some parameters, or one, where the projection is of several: matrices [G, k, n]."""
        outer, inner = (None if matrix is None else matrix[which] for matrix in (self.outer, self.inner))
        return Projection(outer, inner, self.shape)

    @staticmethod
    def _like(matrix: Tensor, values: Tensor) -> Tensor:
        dtype = values.dtype if values.is_floating_point() else matrix.dtype
        return matrix.to(values.device, dtype)


class Sketcher:
    """The projections of a model's parameters by name, drawn at first use and kept.

    Args:
        shapes: parameter name to shape, of the selected parameters.
        options: see `SketchOptions`.
        tables: names of the parameters that are lookup tables; they are left out unless `options.embeddings`.

    Raises:
        ValueError: a pattern that matches nothing, or nothing to sketch.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], options: SketchOptions, tables: frozenset[str]):
        unmatched = [p for p in options.layers if not any(fnmatchcase(name, p) for name in shapes)]
        if unmatched:
            raise ValueError(f"patterns that match no parameter: {unmatched}; names look like {list(shapes)[:3]}")
        self.options = options
        self.shapes = {
            name: matrix_shape(tuple(shape))
            for name, shape in sorted(shapes.items())
            if any(fnmatchcase(name, p) for p in options.layers) and (options.embeddings or name not in tables)
        }
        if not self.shapes:
            raise ValueError("no parameter is left to sketch: only embeddings match, and they are switched off")
        self._projections: dict[tuple[str, torch.device], Projection] = {}
        self._together: dict[tuple[tuple[str, ...], torch.device], Projection] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __getitem__(self, name: str) -> Projection:
        return self.on(name, torch.device("cpu"))

    def on(self, name: str, device: torch.device) -> Projection:
        """The projection of a parameter with its matrices on `device`."""
        key = (name, device)
        if key not in self._projections:
            shape = self.shapes[name]
            sizes = sides(shape, self.options)
            drawn = [
                None if k == n else draw(self.options.kind, self.options.seed, f"{name}/{side}", k, n).to(device)
                for side, k, n in zip("oi", sizes, shape, strict=True)
            ]
            self._projections[key] = Projection(drawn[0], drawn[1], shape)
        return self._projections[key]

    def together(self, names: Sequence[str], device: torch.device) -> Projection:
        """The projections of several parameters of one shape as one, with matrices [G, k, n]; kept once."""
        key = (tuple(names), device)
        if key not in self._together:
            each = [self.on(name, device) for name in names]
            outer, inner = ([getattr(one, side) for one in each] for side in ("outer", "inner"))
            stacked = [None if some[0] is None else torch.stack(some) for some in (outer, inner)]
            whole = self._together[key] = Projection(stacked[0], stacked[1], each[0].shape)
            self._projections |= {(name, device): whole.chosen(place) for place, name in enumerate(names)}
        return self._together[key]

    def width(self, name: str) -> int:
        """Numbers of one parameter in a row."""
        return math.prod(sides(self.shapes[name], self.options))

    @property
    def sides(self) -> list[tuple[int, int]]:
        """(k_o, k_i) of each parameter, in the order of their numbers in a row."""
        return [sides(shape, self.options) for shape in self.shapes.values()]

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return sum(self.width(name) for name in self)

    def row(self, direction: Mapping[str, Tensor]) -> Tensor:
        """[size]: the sketch of one gradient, whose `direction` is [*P] by parameter, in its dtype.

        Its inner product with the sketch of an example estimates that of the direction with the example's gradient.
        """
        self.check(direction)
        parts = [Dense(direction[name].unsqueeze(0)).sketch(self.on(name, direction[name].device)) for name in self]
        return torch.cat([part.squeeze(0) for part in parts])

    def check(self, parameters: Mapping[str, Tensor]) -> None:
        """Raises ValueError unless `parameters`, each [*P] by name, has every sketched one in its shape."""
        wrong = [n for n, s in self.shapes.items() if n not in parameters or matrix_shape(parameters[n].shape) != s]
        if wrong:
            raise ValueError(f"the sketch was made for parameters that are not observed, or in other shapes: {wrong}")

    def manifest(self) -> dict[str, object]:
        """What rows mean: options, columns of each parameter, and a checksum of the matrices themselves."""
        columns, start = {}, 0
        for name in self:
            columns[name] = [start, start + self.width(name)]
            start += self.width(name)
        return {"options": self.options.as_json(), "columns": columns, "checksum": self._checksum()}

    def _checksum(self) -> str:
        digest = hashlib.sha256()
        for name in self:
            for matrix in (self[name].outer, self[name].inner):
                if matrix is not None:
                    digest.update(matrix.numpy().tobytes())
        return digest.hexdigest()


def sides(shape: tuple[int, int], options: SketchOptions) -> tuple[int, int]:
    """(k_o, k_i) for a parameter [O, I]: k_o * k_i at most `size`, each at least `side` or the side's own length.

    One side that is short leaves its share of the size to the other.
    """
    outer, inner = shape
    ratio = 1.0 if options.split == "even" else inner / outer
    left = round(math.sqrt(options.size * ratio))
    left = min(max(left, options.side), options.size // options.side, outer)
    right = min(max(options.size // left, 1), inner)
    left = min(max(options.size // right, left), outer)
    return left, right


def draw(kind: Kind, seed: int, key: str, k: int, n: int) -> Tensor:
    """[k, n] float32 matrix P with E[PᵀP] = identity; the same for the same arguments everywhere."""
    digest = hashlib.sha256(f"{kind}/{seed}/{key}/{k}x{n}".encode()).digest()
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    if kind == "rademacher":
        bits = np.unpackbits(np.frombuffer(random.bytes(-(-k * n // 8)), dtype=np.uint8), count=k * n)
        return torch.from_numpy((bits.astype(np.float32) * 2 - 1).reshape(k, n) / np.float32(math.sqrt(k)))
    normal = random.standard_normal((k, n))
    if kind == "gaussian":
        return torch.from_numpy((normal / math.sqrt(k)).astype(np.float32))
    # Q alone would shrink inner products by k/n, differently for each layer. The signs make Q uniformly distributed.
    q, r = np.linalg.qr(normal.T)
    return torch.from_numpy((np.sign(np.diagonal(r)) * q).T.astype(np.float32) * np.float32(math.sqrt(n / k)))


@dataclass(frozen=True)
class ErrorBar:
    """How far sketched similarities are from exact ones: over all pairs of a few exact gradients.

    Attributes:
        cosine: root mean square difference of the cosines; the ± of a reported similarity.
        bias: mean ratio minus one of sketched to exact squared norms, 0 within noise.
        pairs: number of pairs of different examples measured.
    """

    cosine: float
    bias: float
    pairs: int


def error_bar(exact: Tensor, sketched: Tensor) -> ErrorBar:
    """`ErrorBar` from the exact inner products [m, m] and the sketch rows [m, k] of the same m examples (m >= 3)."""
    if len(exact) < 3 or exact.shape != (len(exact), len(exact)) or len(sketched) != len(exact):
        raise ValueError("needs the [m, m] exact inner products and [m, k] sketches of at least 3 examples")
    rows = sketched.double()
    estimated, exact = rows @ rows.mT, exact.double()
    above = torch.triu(torch.ones_like(exact, dtype=torch.bool), 1)
    difference = (_cosines(estimated) - _cosines(exact))[above]
    ratio = (estimated.diagonal() / exact.diagonal()).mean()
    return ErrorBar(float(difference.square().mean().sqrt()), float(ratio - 1), int(above.sum()))


def _cosines(gram: Tensor) -> Tensor:
    norms = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
    return gram / (norms.unsqueeze(0) * norms.unsqueeze(1))
