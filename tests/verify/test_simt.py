"""The SIMT emulator: every planted bug is found, and the same kernel without it passes; what is counted is exact."""

from __future__ import annotations

import ctypes
import resource
import time

import pytest
import torch

from abckd_verify.machines import emulator as simt

WHY_NOT = simt.why_unavailable()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

SEEDS = range(20)
# Kind of bug -> what the message says, besides kernel, block and thread.
PLANTED = {
    "load_out_of_bounds": r"out of bounds: load of 4 bytes, bytes 512\.\.515 of 'x', which has 512 \(bugs\.cu:\d+\)",
    "load_before_begin": r"out of bounds: load of 4 bytes, bytes -4\.\.-1 of 'x'",
    "store_out_of_bounds": r"out of bounds: store of 4 bytes, bytes 512\.\.515 of 'y'",
    "vector_out_of_bounds": r"out of bounds: load of 16 bytes, bytes 512\.\.527 of 'x'",
    "copy_out_of_bounds": r"out of bounds: load of 513 bytes, bytes 0\.\.512 of 'x'",
    "store_to_read_only": r"store to a read-only buffer: store of 4 bytes, bytes \d+\.\.\d+ of 'x'",
    "null_pointer": r"out of bounds: load of 4 bytes at address 0, a null pointer",
    "misaligned_global": r"misaligned: load of 16 bytes, bytes \d+\.\.\d+ of 'x'",
    "misaligned_shared": r"misaligned: load of 16 bytes, bytes \d+\.\.\d+ of shared array 'row', which has 256",
    "shared_out_of_bounds": r"out of bounds: load of 4 bytes, bytes 256\.\.259 of shared array 'left', which has 256",
    "dynamic_shared_out_of_bounds": r"out of bounds: store of 4 bytes, bytes 256\.\.259 of shared array 'dynamic'",
    "no_dynamic_shared": r"dynamic shared memory, but the launch gives none",
    "too_much_shared": r"too much shared memory: with 'more' it is 49156 bytes of 49152",
    "table_out_of_bounds": r"undefined: index beyond the bounds of its array type at bugs\.cu:\d+",
    "offset_overflow": r"undefined: overflow of a signed product at bugs\.cu:\d+",
    "local_of_another_thread": r"out of bounds: load of 4 bytes in the local memory of thread \(0, 0, 0\)",
    "uninitialised_shared": r"uninitialised shared memory: load of 4 bytes, bytes 20\.\.23 of shared array 'row'",
    "load_after_store_race": r"race on shared memory: .* 'row', .*; (load|store) by thread .*, with no barrier between",
    "store_after_load_race": r"race on shared memory: .* 'row', .*; (load|store) by thread .*, with no barrier between",
    "store_store_race": r"race on shared memory: store of 4 bytes, .* 'last', .*; (load|store) by thread",
    "race_within_warp": r"race on shared memory: .* 'row', .*; (load|store) by thread",
    "race_despite_shuffle": r"race on shared memory: .* 'row', .*; (load|store) by thread",
    "race_across_masks": r"race on shared memory: .* 'row', .*; (load|store) by thread",
    "global_race_in_block": r"race on global memory: .* of 'y', .*; (load|store) by thread .*, with no barrier between",
    "store_race_between_blocks": r"race on global memory: store .* of 'y', .*; store by block \(\d, 0, 0\), thread",
    "load_race_between_blocks": r"race on global memory: .* of 'y', .*; (load|store) by block \(\d, 0, 0\), thread",
    "atomic_and_store_race": r"race on global memory: (store|atomic) .* of 'y', .*; (store|atomic) by",
    "barrier_in_branch": r"divergent barrier: __syncthreads at bugs\.cu:\d+ .* but thread \(40, 0, 0\) has returned",
    "return_before_barrier": r"divergent barrier: __syncthreads at bugs\.cu:\d+ .* thread \(61, 0, 0\) has returned",
    "two_barriers": r"divergent barrier: __syncthreads at bugs\.cu:\d+ .* waits in __syncthreads at bugs\.cu:\d+",
    "shuffle_after_return": r"divergent warp operation: __shfl_xor_sync .* lane 31, but thread \(63, 0, 0\) has",
    "vote_in_branch": r"divergent warp operation: __any_sync at .* with mask 0xffffffff .* waits in __syncwarp",
    "masks_that_differ": r"divergent warp operation: .* mask 0xffffffff waits for lane 7, .* mask 0x00ffffff",
    "mask_without_caller": r"warp operation without its caller: __shfl_sync .* mask 0x0000ffff, called by lane \d+",
    "shuffle_from_outside_mask": r"shuffle from outside the mask: __shfl_sync .* with mask 0x0000ffff reads lane 16",
    "shuffle_beyond_block": r"shuffle from outside the mask: .* reads lane \d+, which the block does not have",
    "blocks_beyond_32_bits": r"load_out_of_bounds<false>: the number of blocks does not fit into 32 bits",
}
RACES = [kind for kind in PLANTED if "race" in kind]


@pytest.fixture(scope="module")
def bugs():
    return simt.Library(simt.build("bugs", [simt.PLANTED / "bugs.cu"]))


@pytest.fixture(scope="module")
def right():
    return simt.Library(simt.build("right", [simt.PLANTED / "right.cu"]))


@pytest.fixture(autouse=True)
def fresh(request):
    for name in {"bugs", "right"} & set(request.fixturenames):
        library = request.getfixturevalue(name)
        library.set_seed(1)
        library.reset_counters()


def run(library, function, *args):
    """Call the function; the first tensor may only be read, if there is another one. Returns the last one."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    buffers = [(f"{i}", x.data_ptr(), x.nbytes, i > 0 or len(tensors) == 1) for i, x in enumerate(tensors)]
    with library.buffers(*buffers):
        library.call(function, *(pointer(arg) if isinstance(arg, torch.Tensor) else arg for arg in args))
    return tensors[-1]


def pointer(x):
    return ctypes.c_void_p(x.data_ptr())


def run_planted(bugs, kind, bug):
    x, y = torch.arange(128, dtype=torch.float32), torch.zeros(128)
    with bugs.buffers(("x", x.data_ptr(), x.nbytes, False), ("y", y.data_ptr(), y.nbytes, True)):
        bugs.call("run_planted", kind.encode(), ctypes.c_bool(bug), pointer(x), pointer(y))
    return y


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_bug_is_found(bugs, kind):
    with pytest.raises(simt.Error, match=PLANTED[kind]) as error:
        run_planted(bugs, kind, True)
    if kind != "blocks_beyond_32_bits":
        assert str(error.value).startswith(f"{kind}<true>: block (")


@pytest.mark.parametrize("kind", PLANTED)
def test_same_kernel_without_the_bug_passes_under_every_seed(bugs, kind):
    results = []
    for seed in SEEDS:
        bugs.set_seed(seed)
        results.append(run_planted(bugs, kind, False))
    assert kind == "atomic_and_store_race" or all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("kind", RACES)
def test_races_are_found_under_every_seed(bugs, kind):
    for seed in SEEDS:
        bugs.set_seed(seed)
        with pytest.raises(simt.Error, match=PLANTED[kind]):
            run_planted(bugs, kind, True)


def test_every_planted_kind_is_tested(bugs):
    kind_of = bugs.functions.planted_kind
    kind_of.restype = ctypes.c_char_p
    kinds = []
    while kind := kind_of(len(kinds)):
        kinds.append(kind.decode())
    assert kinds == list(PLANTED)


def test_a_failed_launch_leaves_nothing_behind(bugs):
    def fail_all():
        for kind in PLANTED:
            with pytest.raises(simt.Error):
                run_planted(bugs, kind, True)
        return run_planted(bugs, "load_after_store_race", False)

    expected = fail_all()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert all(torch.equal(fail_all(), expected) for _ in range(20))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10  # KiB


def test_unregistered_memory_is_out_of_bounds(right):
    x, y = torch.ones(64), torch.zeros(64)
    with right.buffers(("y", y.data_ptr(), y.nbytes, True)), pytest.raises(simt.Error, match="out of bounds: load"):
        right.call("run_copy", pointer(x), pointer(y), 64, 0, 1, 64)
    with pytest.raises(simt.Error, match="far from every buffer"):
        right.call("run_copy", pointer(x), pointer(y), 64, 0, 1, 64)


def test_overlapping_buffers_allow_what_one_of_them_allows(right):
    x = torch.arange(64.0)
    with right.buffers(("all", x.data_ptr(), 256, False), ("second_half", x.data_ptr() + 128, 128, True)):
        right.call("run_copy", pointer(x), pointer(x), 64, 32, 1, 32)
        with pytest.raises(simt.Error, match="store to a read-only buffer: .* of 'all'"):
            right.call("run_copy", pointer(x), pointer(x), 64, 0, 1, 32)


@pytest.mark.parametrize(
    ("blocks", "threads", "shared_bytes", "status"),
    [
        *((1, 64, 0, 0), (1, 64, 49152, 0), (1, 64, 49153, 1)),
        *((0, 64, 0, 9), (1, 0, 0, 9), (1, 1025, 0, 9), (2**31, 1, 0, 9)),
    ],
)
def test_launches_that_cuda_refuses_leave_its_status(right, blocks, threads, shared_bytes, status):
    x, y = torch.rand(64), torch.zeros(64)
    args = pointer(x), pointer(y), 64, ctypes.c_int64(blocks), threads, ctypes.c_int64(shared_bytes)
    assert right.functions.status_of_copy(*args) == status
    assert torch.equal(y, torch.zeros(64) if status else x)


# ---- results


@pytest.mark.parametrize("seed", range(5))
def test_results_do_not_depend_on_the_seed(right, seed):
    right.set_seed(seed)
    x = torch.rand(1024, generator=torch.Generator().manual_seed(3)).mul(16).round()
    square, reversed_ = x.reshape(32, 32), x[:192].reshape(2, 96).flip(1)
    assert torch.equal(run(right, "run_transpose", square, torch.empty(32, 32), 32), square.T)
    assert torch.equal(run(right, "run_transpose_double", square.double(), torch.empty(32, 32).double(), 32), square.T)
    sums = torch.stack([x.reshape(4, 256).sum(1), x.square().reshape(4, 256).sum(1)], 1)
    assert torch.equal(run(right, "run_sums", x, torch.empty(4, 2), 4), sums)
    assert torch.equal(run(right, "run_reverse", x[:192].clone(), torch.empty(2, 96), 96), reversed_)


def test_constants_may_be_read(right):
    y = run(right, "run_constants", torch.empty(32))
    assert torch.equal(y, torch.tensor([1.0, 2, 4, 8]).repeat(8))
    assert right.counters()["constants"]["load_requests"] == 0


def test_blocks_and_grids_of_three_dimensions(right):
    y = run(right, "run_indices", torch.empty(4, 3, 2, 5, 4, 3, dtype=torch.int32))
    places = (100000, 10000, 1000, 100, 10, 1)
    axes = [torch.arange(size, dtype=torch.int32) * place for size, place in zip(y.shape, places, strict=True)]
    assert torch.equal(y, sum(torch.meshgrid(*axes, indexing="ij")))


@pytest.mark.parametrize("name", ["float", "double", "int", "int64"])
def test_shuffles(right, name):
    dtype = getattr(torch, {"int": "int32"}.get(name, name))
    lane = torch.arange(32)
    x = torch.randint(-1000, 1000, (32,)).to(dtype) * (2**40 + 1 if name in ("int64", "double") else 1)
    sources = [
        torch.full((32,), 5),
        lane // 8 * 8 + (lane + 1) % 8,
        torch.where(lane >= 3, lane - 3, lane),
        torch.where(lane % 16 >= 3, lane - 3, lane),
        torch.where(lane + 3 < 32, lane + 3, lane),
        torch.where(lane % 16 + 3 < 16, lane + 3, lane),
        lane ^ 9,
        torch.where((lane ^ 9) <= lane // 8 * 8 + 7, lane ^ 9, lane),  # reaches into earlier segments only
        lane ^ 15,
    ]
    y = run(right, f"run_shuffles_{name}", x, torch.empty(len(sources), 32, dtype=dtype))
    for form, (result, source) in enumerate(zip(y, sources, strict=True)):
        assert torch.equal(result, x[source]), form
    counters = right.counters()[f"shuffles<{'long' if name == 'int64' else name}>"]
    assert counters["shuffles"] == len(sources) + 1  # the halves of the warp shuffle apart


@pytest.mark.parametrize("bits", [[1] * 32, [0] * 32, [0, 1, 1, 0] * 8])
def test_votes(right, bits):
    x = torch.tensor(bits, dtype=torch.int32)
    y = run(right, "run_votes", x, torch.empty(3, 32, dtype=torch.int32))
    ballot = sum(bit << lane for lane, bit in enumerate(bits))
    expected = [ballot - (2**32 if ballot >= 2**31 else 0), int(any(bits)), int(all(bits))]
    assert y.tolist() == [[value] * 32 for value in expected]


def test_atomics(right):
    x = torch.randint(-(2**30), 2**30, (256,), dtype=torch.int32)
    y = run(right, "run_atomics", x, torch.zeros(5, dtype=torch.int32), 8)
    wrapped = (int(x.long().sum()) + 2**31) % 2**32 - 2**31
    assert y.tolist() == [wrapped, int(x.max()), int(x.min()), 7, 9]
    assert right.counters()["atomics"]["atomics"] == 5 * 256


def test_same_seed_same_order(right):
    """Numerics tests run under several seeds: this is what they could find, a result that depends on the order."""
    x = torch.rand(4096, generator=torch.Generator().manual_seed(5)) - 0.5
    orders, sums = {}, {}
    for seed in (*SEEDS, *SEEDS):
        right.set_seed(seed)
        order = run(right, "run_tickets", torch.zeros(1 + 128, dtype=torch.int32), 4)[1:]
        total = run(right, "run_sum_in_any_order", x, torch.zeros(1), len(x))
        assert torch.equal(orders.setdefault(seed, order), order)
        assert torch.equal(sums.setdefault(seed, total), total)
    assert len({tuple(order.tolist()) for order in orders.values()}) == len(SEEDS)
    assert len({order.reshape(4, 32).min(1).values.argmin().item() for order in orders.values()}) == 4  # first blocks
    assert len({total.item() for total in sums.values()}) > 1


# ---- number formats


def same_numbers(ours, torchs):
    return torch.equal(ours.isnan(), torchs.isnan()) and torch.equal(
        ours[~ours.isnan()].view(torch.int16 if ours.element_size() == 2 else torch.int32),
        torchs[~ours.isnan()].view(torch.int16 if ours.element_size() == 2 else torch.int32),
    )


def test_all_bit_patterns_of_half_and_bfloat16_widen_as_in_torch(right):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    half, bfloat16 = torch.empty(2**16), torch.empty(2**16)
    run(right, "run_widen", bits, half, bfloat16, 2**16)
    assert same_numbers(half, bits.view(torch.float16).float())
    assert same_numbers(bfloat16, bits.view(torch.bfloat16).float())


def floats_that_are_hard_to_round():
    """Every number of both formats, the middle between neighbours, and the floats around these; and any bits."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    exact = torch.cat([bits.view(torch.float16).double(), bits.view(torch.bfloat16).double()])
    exact = exact[exact.isfinite()].unique()
    middle = (exact[1:] + exact[:-1]) / 2
    # Beyond the largest number: the middle to the one that would follow.
    beyond = torch.tensor([65504.0, 65519.0, 65520.0, 65536.0, 3.3961775e38, 3.4028235e38, float("inf"), float("nan")])
    x = torch.cat([exact, middle]).float()
    any_bits = torch.randint(-(2**31), 2**31, (2**17,), generator=torch.Generator().manual_seed(6)).to(torch.int32)
    infinity = torch.tensor(float("inf"))
    x = torch.cat([x, x.nextafter(infinity), x.nextafter(-infinity), beyond, -beyond, any_bits.view(torch.float32)])
    return x[: len(x) // 32 * 32]


def test_floats_round_as_in_torch(right):
    x = floats_that_are_hard_to_round()
    half, bfloat16 = torch.empty(len(x), dtype=torch.float16), torch.empty(len(x), dtype=torch.bfloat16)
    run(right, "run_narrow", x, half, bfloat16, len(x))
    assert same_numbers(half, x.half())
    assert same_numbers(bfloat16, x.bfloat16())


# ---- counters


def assert_counts(library, kernel, **expected):
    counters = library.counters()[kernel]
    assert {name: counters[name] for name in expected} == expected


def test_counts_of_a_scalar_copy(right):
    run(right, "run_copy", torch.rand(512), torch.empty(512), 512, 0, 4, 128)
    assert_counts(right, "copy", launches=1, blocks=4, threads=512, requests=32, sectors=128, ideal_sectors=128)
    for way in ("load", "store"):
        assert_counts(right, "copy", **{f"{way}_requests": 16, f"{way}_bytes": 2048, f"{way}_bytes_by_16": 0,
                                        f"{way}_sectors": 64, f"unique_{way}_bytes": 2048})  # fmt: skip
    assert_counts(right, "copy", shared_loads=0, shared_stores=0, barriers=0, shuffles=0, votes=0, warp_syncs=0)


def test_counts_of_a_copy_by_16_bytes(right):
    run(right, "run_copy_by_16", torch.rand(512), torch.empty(512), 512, 1, 128)
    for way in ("load", "store"):
        assert_counts(right, "copy_by_16", **{f"{way}_requests": 4, f"{way}_bytes": 2048, f"{way}_bytes_by_16": 2048,
                                              f"{way}_sectors": 64, f"unique_{way}_bytes": 2048})  # fmt: skip


def test_counts_of_a_copy_that_starts_within_a_sector(right):
    run(right, "run_copy", torch.rand(512), torch.empty(512), 512, 4, 2, 64)
    assert_counts(right, "copy", load_requests=4, load_bytes=512, load_sectors=20, ideal_load_sectors=16)
    assert_counts(right, "copy", unique_load_bytes=17 * 32)  # neighbouring warps share a sector


def test_counts_of_the_last_lanes_of_a_copy(right):
    run(right, "run_copy", torch.rand(70), torch.empty(70), 70, 0, 1, 96)
    assert_counts(right, "copy", load_requests=3, load_bytes=280, load_sectors=9, ideal_load_sectors=9)


def test_counts_of_a_strided_read(right):
    run(right, "run_strided", torch.rand(512), torch.empty(64), 64, 8)
    assert_counts(right, "strided", load_requests=2, load_bytes=256, load_sectors=64, ideal_load_sectors=8)
    assert_counts(right, "strided", unique_load_bytes=2048, store_sectors=8, ideal_store_sectors=8)


def test_counts_of_a_broadcast(right):
    run(right, "run_broadcast", torch.rand(8), torch.empty(64), 64)
    assert_counts(right, "broadcast", load_requests=2, load_bytes=8, load_sectors=2, ideal_load_sectors=2)
    assert_counts(right, "broadcast", unique_load_bytes=32, store_bytes=256)


def test_counts_of_lanes_that_leave_a_loop_one_after_another(right):
    run(right, "run_triangle", torch.rand(32, 32), torch.empty(64))
    # Iteration s of a warp is one request, of the 32 - s lanes that are still there.
    assert_counts(right, "triangle", load_requests=64, load_bytes=2 * 4 * sum(range(1, 33)))


@pytest.mark.parametrize("seed", range(4))
def test_counts_of_lanes_that_skip_iterations_and_calls(right, seed):
    right.set_seed(seed)
    run(right, "run_skipping", torch.rand(8, 32), torch.empty(32))
    assert_counts(right, "skipping", load_requests=10, load_bytes=9 * 64 + 128, load_sectors=40, ideal_load_sectors=22)


@pytest.mark.parametrize("seed", range(4))
def test_counts_of_nested_loops_of_different_lengths(right, seed):
    right.set_seed(seed)
    run(right, "run_nested", torch.rand(16, 32), torch.empty(32))
    # Per iteration of the outer loop: 24, 16 and 8 lanes in the inner one, then all of them read one number.
    assert_counts(right, "nested", load_requests=4 * 4, load_bytes=4 * (4 * (24 + 16 + 8) + 4))


def test_counts_of_a_transpose_through_shared_memory(right):
    run(right, "run_transpose", torch.rand(64, 64), torch.empty(64, 64), 64)
    assert_counts(right, "transpose<float>", load_requests=128, store_requests=128, load_sectors=512, store_sectors=512)
    assert_counts(right, "transpose<float>", shared_loads=4096, shared_stores=4096, barriers=4, ideal_sectors=1024)


def test_counts_of_sums_and_over_launches(right):
    for _ in range(3):
        run(right, "run_sums", torch.rand(512), torch.empty(2, 2), 2)
    warps = 3 * 2 * 8
    assert_counts(right, "sums<float>", launches=3, blocks=6, threads=1536, shuffles=10 * warps, barriers=4 * 6)
    assert_counts(right, "sums<float>", shared_stores=2 * warps, shared_loads=2 * 8 * 1536, unique_load_bytes=3 * 2048)
    right.reset_counters()
    assert right.counters() == {}


def test_speed(right):
    """1000 blocks of 256 threads: a second or so, against an hour if a thread took a system call or a lock."""
    n = 256_000
    x = torch.rand(n)
    start = time.perf_counter()
    y = run(right, "run_copy", x, torch.empty(n), n, 0, n // 256, 256)
    seconds = time.perf_counter() - start
    assert torch.equal(y, x)
    print(f"copy of {n} floats by as many threads: {seconds:.2f} s")
    assert seconds < 20


# ---- the build


def test_an_object_file_is_found_again_until_an_input_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(simt, "CACHE", tmp_path)
    header, source = tmp_path / "factor.h", tmp_path / "double.cu"
    header.write_text("constexpr int kFactor = 2;\n")
    source.write_text('#include "factor.h"\nint factor() { return kFactor * MORE; }\n')

    def compiled(more=1):
        return simt.compile_unit(source, (*simt.COMMON, *simt.KERNEL, f"-DMORE={more}"), simt.REDEFINED)

    first = compiled()
    assert compiled() == first
    header.write_text("constexpr int kFactor = 3;\n")
    second = compiled()
    assert len({first, second, compiled(more=5)}) == 3


def test_bindings_are_compiled_without_instrumentation(tmp_path, monkeypatch):
    """A binding may touch any memory, and registers what the kernel may touch."""
    binding = tmp_path / "binding.cpp"
    binding.write_text("""
        #include <vector>
        #include "simt.h"
        extern "C" int status_of_copy(const float*, float*, int, long, int, long);
        extern "C" float copied(float value) {
          std::vector<float> x(64, value), y(64);
          return status_of_copy(x.data(), y.data(), 64, 1, 64, 0) == 0 ? y[63] : -1;
        }""")
    library = ctypes.CDLL(str(simt.build("binding", [simt.PLANTED / "right.cu"], plain=[binding])))
    library.copied.restype, library.copied.argtypes = ctypes.c_float, [ctypes.c_float]
    assert library.copied(2.5) == 2.5


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(simt.Unavailable, match="needs g\\+\\+ and objcopy, not found on PATH"):
        simt.build("any", [])


def test_a_kernel_that_does_not_compile_says_so(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text("int f() { return x; }")
    with pytest.raises(RuntimeError, match="was not declared in this scope"):
        simt.build("wrong", [source])
