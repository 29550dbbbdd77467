"""What this device can do, measured: bandwidth by size, matrix products, launches, decoding.

Every number is a `Measurement` of the suite "probe": `read`, `copy` and `triad` at a size in MiB,
`matmul` of a type, `launch` in a mode, `decode` of a subject with its weights in a cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from bench.kernels.check import check
from bench.kernels.contest import Bench, Contestant
from bench.kernels.prepare import prepare, rotation
from bench.kernels.subjects import AIMED, Subject, default_subjects, subject
from bench.timing import event_s
from perfmodel.errors import UsageError

SUITE = "probe"
MIB = 2**20
CPU_READ_MIB = (0.25, 1, 4, 16, 64, 256)
CUDA_READ_MIB = (4, 16, 64, 256, 1024, 4096)
CPU_MATMUL = {"fp32": 1024, "fp16": 256}  # rows = columns; a CPU emulates FP16
CUDA_MATMUL = {"fp32": 4096, "fp16": 8192}
COLUMNS = 4096  # of the weights to decode
MOST_ROWS, FEWEST_ROWS = 4096, 64
DECODE_COPIES = 4  # where an array happens to lie changes its time; together they fit the cache
CACHE_SHARE = 0.5  # of the cache that weights to decode may fill
EMPTY_LAUNCHES = 1000


def probe(bench: Bench) -> None:
    """Everything that is not in the results yet, most important first."""
    for part in (bandwidths, matrix_products, launches, decoding, empty_kernels):
        for contestants in part(bench):
            waiting = [c for c in contestants if not bench.results.is_done(_key(bench, c))]
            if waiting:
                bench.time(waiting)


def _key(bench: Bench, contestant: Contestant) -> str:
    modes = {"l2_policy": contestant.l2_policy, "timing_mode": contestant.timing_mode}
    return bench.key(SUITE, contestant.name, contestant.params, **modes)


def bandwidths(bench: Bench) -> Iterator[list[Contestant]]:
    """Reading by size; copy and triad at the largest one. Bytes are those read and written."""
    sizes = CUDA_READ_MIB if bench.is_cuda else CPU_READ_MIB
    largest = int(sizes[-1] * MIB)
    for mib in reversed(sizes):
        yield [_roof("read", int(mib * MIB), 1, _reader(bench, int(mib * MIB)))]
    copy, triad = _movers(bench, largest)
    yield [_roof("copy", largest, 2, copy), _roof("triad", largest, 3, triad)]


def _roof(name: str, size_bytes: int, times: int, call: Callable[[int], object]) -> Contestant:
    """Read again and again: `l2_policy` says warm, and a size beyond the cache is cold all the
    same."""
    return Contestant(
        suite=SUITE,
        name=name,
        params={"mib": size_bytes / MIB},
        call=call,
        l2_policy="warm",
        bytes_moved=times * size_bytes,
    )


def _reader(bench: Bench, size_bytes: int) -> Callable[[int], object]:
    if bench.is_cuda:
        from bench.gpu.rates import READ_WORDS, read_all

        programs = max(1, size_bytes // (4 * READ_WORDS))
        x = torch.zeros(programs * READ_WORDS, dtype=torch.int32, device="cuda")
        sums = torch.empty(programs, dtype=torch.int32, device="cuda")
        return lambda _: read_all[(programs,)](x, sums, num_warps=4)
    from bench.probe.cpu import read

    x = torch.zeros(size_bytes // 4).numpy()
    return lambda _: read(x)


def _movers(bench: Bench, size_bytes: int) -> tuple[Callable[[int], object], ...]:
    a, b, c = (torch.zeros(size_bytes // 4, device=bench.environment.kind) for _ in range(3))
    if bench.is_cuda:
        return lambda _: b.copy_(a), lambda _: torch.add(a, b, alpha=2.0, out=c)
    from bench.probe.cpu import triad

    return lambda _: b.copy_(a), lambda _: triad(a.numpy(), b.numpy(), c.numpy())


def matrix_products(bench: Bench) -> Iterator[list[Contestant]]:
    """Square products of the vendor's library; FP32 without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = CUDA_MATMUL if bench.is_cuda else CPU_MATMUL
    for name, size in sizes.items():
        dtype = torch.float16 if name == "fp16" else torch.float32
        a = torch.randn((size, size), device=bench.environment.kind).to(dtype)
        out = torch.empty_like(a)
        yield [
            Contestant(
                suite=SUITE,
                name="matmul",
                params={"type": name, "size": size},
                call=lambda _, a=a, out=out: torch.mm(a, a, out=out),
                l2_policy="warm",
                bytes_moved=3 * a.nbytes,
                flops=2 * size**3,
            )
        ]


def launches(bench: Bench) -> Iterator[list[Contestant]]:
    """What a call costs that has nothing to do."""
    if bench.is_cuda:
        one = torch.zeros(1, device="cuda", dtype=torch.int32)
        yield [_launch("graph", lambda _: one.zero_()), _eager_launch(one)]
        return
    import numpy as np

    from bench.probe import cpu as probe_cpu

    cells, one = np.zeros(64, np.float32), torch.zeros(1)
    tiny = prepare(subject("squeezellm-w3"), (1, 128), "cpu")
    x, out, counters = tiny.inputs()
    yield [
        _launch("gemv", lambda _: tiny.run(x, tiny.weights, out, counters)),
        _launch("threads", lambda _: probe_cpu.nothing(cells)),
        _launch("torch", lambda _: one.zero_()),
    ]


def empty_kernels(bench: Bench) -> Iterator[list[Contestant]]:
    """A Triton kernel in a graph, each after the one before; on Hopper also overlapping it."""
    if not bench.is_cuda:
        return
    from bench.gpu.rates import nothing

    one = torch.zeros(1, device="cuda", dtype=torch.int32)
    found = [_launch("graph-triton", lambda _: nothing[(1,)](one, OVERLAP=False, num_warps=1))]
    if torch.cuda.get_device_capability() >= (9, 0):
        options = {"num_warps": 1, "launch_pdl": True}
        found.append(
            _launch("graph-overlapped", lambda _: nothing[(1,)](one, OVERLAP=True, **options))
        )
    yield found


def _eager_launch(one: torch.Tensor) -> Contestant:
    """A queue of launches from the host, none of which is waited for alone."""

    def launch_all() -> None:
        for _ in range(EMPTY_LAUNCHES):
            one.zero_()

    return replace(
        _launch("eager", lambda _: one.zero_()),
        sampler=lambda: event_s(launch_all) / EMPTY_LAUNCHES,
        timing_mode="cuda-events",
    )


def _launch(mode: str, call: Callable[[int], object]) -> Contestant:
    return Contestant(
        suite=SUITE, name="launch", params={"mode": mode}, call=call, l2_policy="warm",
        bytes_moved=0,
    )  # fmt: skip


def decoding(bench: Bench, names: Sequence[str] = ()) -> Iterator[list[Contestant]]:
    """GEMV per subject on weights that stay in the cache: what decoding alone allows."""
    for name in names or _decoded(bench):
        asked = subject(name)
        if asked.batch > 1 or asked.part == "csr":
            continue
        try:
            rows = _rows_in_cache(bench, asked)
            params = {"format": asked.weights, "rows": rows, "columns": COLUMNS, **asked.options}
            key = bench.key(SUITE, "decode", params, l2_policy="warm")
            yield [] if bench.results.is_done(key) else [_decode(bench, asked, params)]
        except UsageError as error:
            line = {"kind": "skipped", "name": f"decode {name}", "reason": str(error)}
            bench.results.add_line(line)


def _decoded(bench: Bench) -> Sequence[str]:
    """A GPU's time is short: what is predicted there, and not every option of a kernel."""
    return AIMED if bench.is_cuda else default_subjects(bench.environment.kind)


def _rows_in_cache(bench: Bench, asked: Subject) -> int:
    """The most rows whose weights fill no more than their share of the cache."""
    room = CACHE_SHARE * bench.environment.cache_bytes
    few = prepare(asked, (FEWEST_ROWS, COLUMNS), bench.environment.kind)
    rows = MOST_ROWS
    while rows > FEWEST_ROWS and DECODE_COPIES * few.weight_bytes * rows / FEWEST_ROWS > room:
        rows //= 2
    return rows


def _decode(bench: Bench, asked: Subject, params: dict[str, int | float | str]) -> Contestant:
    rows = int(params["rows"])
    prepared = prepare(asked, (rows, COLUMNS), bench.environment.kind)
    found = check(prepared, rows=FEWEST_ROWS)
    if not found.ok:
        raise UsageError(f"{asked.name}: {found.why}, error {found.error:.1e}")
    return Contestant(
        suite=SUITE,
        name="decode",
        params=params,
        call=rotation(prepared, DECODE_COPIES),
        copies=DECODE_COPIES,
        l2_policy="warm",
        bytes_moved=prepared.bytes_moved,
        flops=2 * rows * COLUMNS,
    )
