"""One operation: its FLOPs and its traffic. Plain integers, which add and scale."""

from typing import Literal

import msgspec

from perfmodel.formats import WeightFormat

WHOLE_TILE = 128  # elements: a cache line of FP16 is half of it, a row of a GEMM tile all
OpKind = Literal["gemm", "attention", "vector", "gather", "collective"]


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that cross the DRAM interface of one device, by what they are."""

    weight_bytes: int = 0
    kv_read_bytes: int = 0
    kv_write_bytes: int = 0
    read_bytes: int = 0  # activations
    write_bytes: int = 0  # activations

    @property
    def kv_bytes(self) -> int:
        return self.kv_read_bytes + self.kv_write_bytes

    @property
    def activation_bytes(self) -> int:
        return self.read_bytes + self.write_bytes

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    def __mul__(self, times: int) -> "Traffic":
        return Traffic(
            weight_bytes=self.weight_bytes * times,
            kv_read_bytes=self.kv_read_bytes * times,
            kv_write_bytes=self.kv_write_bytes * times,
            read_bytes=self.read_bytes * times,
            write_bytes=self.write_bytes * times,
        )

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            weight_bytes=self.weight_bytes + other.weight_bytes,
            kv_read_bytes=self.kv_read_bytes + other.kv_read_bytes,
            kv_write_bytes=self.kv_write_bytes + other.kv_write_bytes,
            read_bytes=self.read_bytes + other.read_bytes,
            write_bytes=self.write_bytes + other.write_bytes,
        )


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """The quantized matrix that one instance of an operation decodes: N x K in a format."""

    format: WeightFormat
    out_features: int
    in_features: int

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features

    @property
    def ragged(self) -> bool:
        """Whether a side is no multiple of the 128 elements that fast kernels take at once."""
        return bool(self.out_features % WHOLE_TILE or self.in_features % WHOLE_TILE)

    @property
    def nonzeros(self) -> int:
        """Values of the sparse part."""
        sparse = self.format.sparse
        return sparse.nonzeros(self.out_features, self.in_features) if sparse else 0


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """`count` operations of one name together, on one device."""

    name: str
    kind: OpKind
    count: int = 1
    flops: int
    traffic: Traffic
    send_bytes: int = 0  # over the interconnect, in one direction
    merged: tuple[str, ...] = ()  # ops whose work is part of this one
    matrix: Matrix | None = None  # of each instance

    @property
    def bytes(self) -> int:
        """All DRAM traffic."""
        return self.traffic.bytes

    @property
    def intensity_flop_per_byte(self) -> float:
        return self.flops / self.bytes if self.bytes else 0.0

    def __mul__(self, times: int) -> "Op":
        """The same operations done `times` times."""
        return Op(
            name=self.name,
            kind=self.kind,
            count=self.count * times,
            flops=self.flops * times,
            traffic=self.traffic * times,
            send_bytes=self.send_bytes * times,
            merged=self.merged,
            matrix=self.matrix,
        )

    def __add__(self, other: "Op") -> "Op":
        """Both together; they must be of one name and kind.

        Raises: ValueError.
        """
        if (self.name, self.kind) != (other.name, other.kind):
            raise ValueError(f"cannot add {other.name} ({other.kind}) to {self.name} ({self.kind})")
        return Op(
            name=self.name,
            kind=self.kind,
            count=self.count + other.count,
            flops=self.flops + other.flops,
            traffic=self.traffic + other.traffic,
            send_bytes=self.send_bytes + other.send_bytes,
            merged=self.merged,
            matrix=self.matrix,
        )


def gemm(
    name: str,
    multiply_adds: int,
    traffic: Traffic,
    *,
    kind: OpKind = "gemm",
    extra_flops: int = 0,
    merged: tuple[str, ...] = (),
) -> Op:
    """A matrix product; the only place where a multiply-add counts as 2 FLOPs.

    multiply_adds: M N K, or what a causal mask leaves of it. extra_flops: a bias, and the
    elementwise work of merged ops.
    """
    flops = 2 * multiply_adds + extra_flops
    return Op(name=name, kind=kind, flops=flops, traffic=traffic, merged=merged)
