"""The token compensator: a bank of tiny low-rank deltas, one group per gap between two degrees.

For every layer the bank holds, for the query and for the value weight, ``K`` groups of rank ``h``.
Group ``i`` closes the gap between degree ``i-1`` and degree ``i`` (Token Compensator, ECCV 2024,
section 3.3):

    ΔW(m → n) = s · Σ_{i=m+1…n} B_i A_i            n ≥ m
    ΔW(m → n) = −ΔW(n → m)                          n < m

so deltas are antisymmetric and add up along any path of degrees.

Two variants, alone or together, repeat the paper's ablations and lose some of that:

- ``shared``: one group for every pair, ``±s · B A`` for ``n ≠ m``.  Antisymmetric; does not add up.
- no ``inversion``: ``s · Σ_{i=n+1…m} B'_i A'_i`` for ``n < m``, with factors of their own.  There
  and back is not nothing; adds up only along paths that never turn (if shared too: never).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tocom_core.bank_header import PROJECTIONS, BankHeader, check_sizes, read_header, write_header
from tocom_core.checkpoint import write_safetensors
from tocom_core.errors import BankError, DegreeError
from tocom_core.schedule import Method


class Bank(nn.Module):
    """The low-rank groups of all layers.

    ``lora_A[l][p]`` is ``(K·h, D)`` and ``lora_B[l][p]`` is ``(D, K·h)``, float32, for layer ``l``
    and projection ``p`` ("q" or "v"); group ``i`` (1…K) is rows, respectively columns,
    ``(i-1)·h … i·h``.  ``A`` starts random and ``B`` at zero, so that an untrained bank changes
    nothing.  A shared bank has a single group; a bank without inversion has ``lora_A_lower`` and
    ``lora_B_lower`` too, of the same shapes, for steps to a lower degree.
    """

    lora_A: nn.ModuleList
    lora_B: nn.ModuleList

    def __init__(self, header: BankHeader) -> None:
        super().__init__()
        self.header = header
        total, dim = header.total_rank, header.embed_dim

        def layers(rows: int, columns: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.ParameterDict({p: nn.Parameter(torch.zeros(rows, columns)) for p in PROJECTIONS})
                for _ in range(header.depth)
            )

        for name_a, name_b in header.factor_names:
            self.add_module(name_a, layers(total, dim))
            self.add_module(name_b, layers(dim, total))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Kaiming-uniform ``A`` and zero ``B``, as LoRA does."""
        bound = self.embed_dim**-0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("lora_A"):
                    parameter.uniform_(-bound, bound, generator=generator)
                else:
                    parameter.zero_()

    def factors(
        self, layer: int, projection: str, lower: bool = False
    ) -> tuple[nn.Parameter, nn.Parameter]:
        """``A (K·h, D)`` and ``B (D, K·h)`` of one layer for projection ``"q"`` or ``"v"``.

        A shared bank has ``h`` rows, respectively columns.  ``lower``: the factors of the steps to
        a lower degree.

        Raises:
            BankError: ``lower``, but the bank inverts, so that it has no such factors.
        """
        if lower and self.header.inversion:
            raise BankError("a bank with inversion=True has no factors of its own for steps down")
        name_a, name_b = self.header.factor_names[lower]
        key = f"{layer}.{projection}"
        return self.get_parameter(f"{name_a}.{key}"), self.get_parameter(f"{name_b}.{key}")

    @property
    def num_groups(self) -> int:
        """``K``, the highest degree with a compensation."""
        return self.header.num_groups

    @property
    def rank(self) -> int:
        """``h``, rank of each group."""
        return self.header.rank

    @property
    def scaling(self) -> float:
        """``s``, the factor on every delta unless a call says otherwise."""
        return self.header.scaling

    @property
    def arch(self) -> str:
        """Name, in timm, of the architecture it was trained on."""
        return self.header.arch

    @property
    def embed_dim(self) -> int:
        """Token width ``D``."""
        return self.header.embed_dim

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.header.depth

    @property
    def method(self) -> Method:
        """How tokens were removed in training."""
        return self.header.method

    @property
    def prop_attn(self) -> bool:
        """Whether proportional attention was on in training."""
        return self.header.prop_attn

    @property
    def backbone_digest(self) -> str:
        """Digest of the backbone that it was trained on; empty if unknown."""
        return self.header.backbone_digest

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Data, recipe, command, figures."""
        return self.header.provenance

    @property
    def digest(self) -> str:
        """SHA-256 of the bank's own parameters."""
        return _digest(self.state_dict())

    def check_degree(self, r: int, name: str = "r") -> None:
        """Raise ``DegreeError`` unless the bank reaches degree ``r``."""
        if type(r) is not int or not 0 <= r <= self.num_groups:
            raise DegreeError(
                f"{name}={r!r} has no compensation: this bank covers degrees 0 to {self.num_groups}"
            )

    def layer_delta(
        self, layer: int, r_source: int, r_target: int, scaling: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(ΔW_q, ΔW_v)`` of one layer, each ``(D, D)``; differentiable.

        Every factor of the layer gets a gradient, zero outside the groups between the degrees:
        momentum decays alike for all of them, and DistributedDataParallel finds none unused.
        """
        (query_a, query_b), (value_a, value_b), factor = self._span(
            layer, r_source, r_target, scaling
        )
        return factor * (query_b @ query_a), factor * (value_b @ value_a)

    def layer_factors(
        self, layer: int, r_source: int, r_target: int, scaling: float | None = None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """``A (n, D)`` and ``B (D, n)`` of query and value, with ``B A = ΔW``; differentiable."""
        (query_a, query_b), (value_a, value_b), factor = self._span(
            layer, r_source, r_target, scaling
        )
        return (query_a, factor * query_b), (value_a, factor * value_b)

    def _span(
        self, layer: int, r_source: int, r_target: int, scaling: float | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], float]:
        """What lies between two degrees: factors of query and value, and the factor on them."""
        self.check_degree(r_source, "r_source")
        self.check_degree(r_target, "r_target")
        factor = self.scaling if scaling is None else scaling
        if self.header.inversion and r_target < r_source:
            r_source, r_target, factor = r_target, r_source, -factor
        query, value = (self._between(layer, p, r_source, r_target) for p in PROJECTIONS)
        return query, value, factor

    def _between(
        self, layer: int, projection: str, r_source: int, r_target: int
    ) -> tuple[Tensor, Tensor]:
        """``A`` and ``B`` of the groups between two degrees; those of an inverting bank go up."""
        down, up = self.factors(layer, projection)
        groups = self._groups(r_source, r_target)
        if self.header.inversion:
            return down[groups], up[:, groups]
        lower_down, lower_up = self.factors(layer, projection, lower=True)
        lower = self._groups(r_target, r_source)
        return (
            torch.cat([down[groups], lower_down[lower]]),
            torch.cat([up[:, groups], lower_up[:, lower]], dim=1),
        )

    def _groups(self, low: int, high: int) -> slice:
        """Rows of ``A`` from degree ``low`` to ``high``; none unless ``low < high``."""
        if self.header.shared:
            return slice(0, self.rank if low < high else 0)
        return slice(low * self.rank, max(low, high) * self.rank)

    @torch.no_grad()
    def delta(
        self, r_source: int, r_target: int, scaling: float | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """What to add to the query and value weights of a model to serve it at another degree.

        Args:
            r_source: the degree that the model was fine-tuned at.
            r_target: the degree that it is served at.
            scaling: ``s``; default: the bank's own.

        Returns:
            layer index to ``(ΔW_q, ΔW_v)``, each ``(D, D)`` float32.

        Raises:
            DegreeError: a degree is not in ``0…K``.
        """
        return {
            layer: self.layer_delta(layer, r_source, r_target, scaling)
            for layer in range(self.depth)
        }

    def save(self, path: str | Path) -> None:
        """Write the bank and its header as safetensors; written beside itself first."""
        state = {key: value.detach().cpu() for key, value in self.state_dict().items()}
        write_safetensors(Path(path), state, {"tocom_bank": write_header(self.header)})

    @classmethod
    def load(cls, path: str | Path) -> "Bank":
        """Read a bank, onto the CPU.

        Raises:
            BankError: no such file, not a bank, a newer format, or tensors that do not fit the
                header or are not finite.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BankError(f"{path} is not a readable safetensors file: {error}") from error
        if "tocom_bank" not in metadata:
            raise BankError(f"{path} is no bank: its header has no 'tocom_bank' entry")
        header = read_header(metadata["tocom_bank"], path)
        check_sizes(header, state, path)
        bank = cls(header)
        bank._fill(state, path)
        return bank

    @classmethod
    def from_reference_checkpoint(
        cls, path: str | Path, num_groups: int = 16, scaling: float = 0.1
    ) -> "Bank":
        """Convert a checkpoint of the original research code (a pickle, read as weights only).

        There, degree ``r`` enables the *last* ``r·h`` rows, so group ``i`` is rows
        ``(K-i)·h … (K-i+1)·h``; here it is the other way round.

        Args:
            path: a file whose ``["model"]`` holds
                ``blocks.{l}.attn.{q,v}_tocom.adapter_{down,up}.weight``.
            num_groups: ``K``; rank is rows divided by it.
            scaling: ``s`` that it was trained with; the file does not say.

        Raises:
            BankError: not such a checkpoint, or rows that ``num_groups`` does not divide.
        """
        from tocom_core.reference_bank import read_reference_state

        state = read_reference_state(Path(path), num_groups)
        total, dim = state["lora_A.0.q"].shape
        header = BankHeader(
            arch="",
            embed_dim=dim,
            depth=len(state) // (2 * len(PROJECTIONS)),
            num_groups=num_groups,
            rank=total // num_groups,
            scaling=scaling,
            provenance={"source": "research checkpoint", "file": Path(path).name},
        )
        bank = cls(header)
        bank._fill(state, path)
        return bank

    def _fill(self, state: dict[str, Tensor], path: str | Path) -> None:
        """Take over tensors that were read from ``path``, after checking them."""
        for key, value in state.items():
            if not torch.isfinite(value).all():
                raise BankError(f"{path}: {key} holds values that are not finite")
        try:
            self.load_state_dict({key: value.float() for key, value in state.items()})
        except RuntimeError as error:
            lines = " ".join(line.strip() for line in str(error).splitlines()[:4])
            raise BankError(f"{path}: the tensors do not fit the header: {lines}") from error


def backbone_digest(vit: nn.Module) -> str:
    """SHA-256 of all weights but the head's, rounded to float16: a float16 copy has the same.

    Running statistics of a convolutional stem count: two models of one architecture with equal
    digests compute the same features, up to that rounding.
    """
    return _digest(
        {
            key: value.half()
            for key, value in vit.state_dict().items()
            if value.is_floating_point() and not key.startswith(("head.", "head_dist."))
        }
    )


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, in the order of names."""
    total = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        total.update(f"{key}{tuple(value.shape)}".encode())
        total.update(value.numpy().tobytes())
    return total.hexdigest()
