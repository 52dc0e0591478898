"""What the sparse kernels gain over the best dense call on this machine, and how near the machine's limits they come.

    python benchmarks/kernels.py [--only linear blocks conv] [--threads 1] [--rounds 7] [--sparsity 0.9] [--markdown]

In one process, the calls take turns; medians. Linear: 4096 x 4096, float32, random weights and masks, against the
faster of F.linear(x, W) and W @ x with x lying in columns. Convolutions: 3x3 of ResNet shapes, one image, blocks of 8
output channels, against the fastest of PyTorch (both memory formats) and ONNX Runtime. One thread is measured in
processor seconds of the thread, several by the clock, which needs a machine that does nothing else.

The roofline of a case is the larger of the time its multiplications take at the measured peak of the registers and the
time its packed weights take at the measured read bandwidth from far memory; "share" is that over the measured time. A
packed weight that stays in a cache can be beyond it.

--markdown keeps the rows in docs/kernels.json (a row replaces the older one of its case) and writes docs/kernels.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunus.deploy import kernels
from prunus.deploy.kernels import build

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "kernels.md"
RESULTS = PAGE.with_suffix(".json")
SIZE = 4096
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
# What was asked for, on a machine with AVX-512: sparsity -> times faster.
TARGETS: dict[str, tuple[float, ...]] = {
    "linear 1": (1.2, 1.6, 1.9, 5, 10),
    "linear 64": (1.4, 2.3, 3.0, 5.5, 9.5),
    "linear 256": (1.1, 1.6, 2.1, 4.3, 7.5),
    "blocks 64": (2.1, 3.7, 5.2, 9.5, 20),
    "conv": (1.5, 3, 4.6, 8),
}
CONVOLUTIONS = ((64, 56), (128, 28), (256, 14), (512, 7))
LIMITS = """
#if defined(__x86_64__)
#define KIND "+x"
#else
#define KIND "+w"
#endif
#include <time.h>

#include <vector>
typedef float V __attribute__((vector_size(LANES * 4)));
static double now() {  // seconds of this thread, whatever else the machine does
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}
// By name: an array would live in memory and the loop would wait for it.
#define EACH(DO) DO(a) DO(b) DO(c) DO(d) DO(e) DO(f) DO(g) DO(h) DO(i) DO(j)
#define MADE(v) V v = x;
#define STEP(v) v = v * x + y;
#define KEPT(v) asm volatile("" : KIND(v));
extern "C" double flops() {
    V x = {}, y = {};
    for (int k = 0; k < LANES; k++) x[k] = 0.999f, y[k] = 1e-3f;
    EACH(MADE)
    double best = 0;
    for (int round = 0; round < 40; round++) {
        double t = now();
        for (int k = 0; k < 200000; k++) {
            EACH(STEP)
            EACH(KEPT)
        }
        double found = 2.0 * LANES * 10 * 200000 / (now() - t);
        best = found > best ? found : best;
    }
    return best;
}
extern "C" double bandwidth() {
    std::vector<float> m(64 << 20, 1.0f);
    double best = 0;
    volatile float keep = 0;
    for (int r = 0; r < 6; r++) {
        V s[4] = {};
        double t = now();
        for (size_t i = 0; i + 4 * LANES <= m.size(); i += 4 * LANES)
            for (int j = 0; j < 4; j++) s[j] += *reinterpret_cast<V *>(&m[i + j * LANES]);
        double b = m.size() * 4.0 / (now() - t);
        keep = s[0][0] + s[1][0] + s[2][0] + s[3][0];
        best = b > best ? b : best;
    }
    return best + 0 * keep;
}
"""


def limits() -> tuple[float, float]:
    """Multiply-add peak in FLOP/s and read bandwidth in B/s of one thread: the best of several tries."""
    _, lanes, flags = next(level for level in build.LEVELS if level[0] == kernels.level())
    cxx = build.compiler()
    assert cxx is not None, "the limits are measured with a compiled loop"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "limits.cpp", Path(folder) / "limits.so"
        source.write_text(LIMITS)
        options = [*flags, "-O3", "-std=c++17", "-faligned-new", f"-DLANES={lanes}", "-fPIC", "-shared"]
        subprocess.run([*shlex.split(cxx), *options, str(source), "-o", str(library)], check=True)
        loaded = ctypes.CDLL(str(library))
        loaded.flops.restype = loaded.bandwidth.restype = ctypes.c_double
        return loaded.flops(), loaded.bandwidth()


def turns(calls: dict[str, Callable[[], Any]], rounds: int, threads: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, and the first turn is not counted.

    Threads of a library go on for a while after a call, at full speed, to see whether another one comes; and a core
    that slept takes longer to wake than some of these calls take. With several threads a call is made until 10 ms have
    passed, and then once more: that counts.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            if threads > 1:
                end = time.perf_counter() + 0.01
                while time.perf_counter() < end:
                    call()
            start = clock()
            call()
            taken[name].append(clock() - start)
    return {name: median(values[1:]) for name, values in taken.items()}


def masked(shape: tuple[int, ...], sparsity: float, block: int) -> Tensor:
    keep = torch.rand(shape[0] // block, *shape[1:]) >= sparsity
    return torch.randn(shape) * keep.repeat_interleave(block, 0)


def row(case: str, sparsity: float, dense: dict[str, float], sparse: dict[str, float], least: float) -> dict[str, Any]:
    base, form = min(dense, key=dense.__getitem__), min(sparse, key=sparse.__getitem__)
    return {
        "case": case,
        "sparsity": sparsity,
        "dense": base,
        "dense_ms": dense[base] * 1e3,
        "form": form,
        "sparse_ms": sparse[form] * 1e3,
        "ratio": dense[base] / sparse[form],
        "roofline": dense[base] / least,
        "share": least / sparse[form],
        "all": {k: dense[base] / v for k, v in sparse.items()},
    }


def linear(kind: str, batches: tuple[int, ...], options: Any, peak: float, bandwidth: float) -> Any:
    """Rows of the linear map."""
    forms = {"linear": ("csr", "rows", "bitmask", "bitrows"), "blocks": ("4x1", "8x1")}[kind]
    for sparsity in options.sparsity:
        weights = {f: masked((SIZE, SIZE), sparsity, int(f[0]) if "x" in f else 1) for f in forms[-1:]}
        packed = {}
        for form in forms:
            weight = weights.get(form, next(iter(weights.values())))  # 8x1 blocks are 4x1 blocks, too
            packed[form] = kernels.pack(weight, form)
        dense = next(iter(weights.values()))
        for batch in batches:
            x = torch.randn(batch, SIZE)
            columns = x.T.contiguous()
            calls: dict[str, Callable[[], Any]] = {
                "F.linear": lambda x=x, w=dense: F.linear(x, w),
                "W @ x": lambda c=columns, w=dense: w @ c,
            }
            used = [f for f in forms if batch == 1 or f not in ("rows", "bitrows")]
            for form in used:
                calls[form] = lambda x=x, p=packed[form]: kernels.linear(x, p)
            taken = turns(calls, options.rounds * (3 if batch == 1 else 1), options.threads)
            best = min(used, key=taken.__getitem__)
            values = int(packed[best].starts[-1]) * (int(best[0]) if "x" in best else 1)
            least = max(2 * values * batch / peak, packed[best].bytes / bandwidth)
            yield row(
                f"{kind} {batch}",
                sparsity,
                {k: taken[k] for k in ("F.linear", "W @ x")},
                {k: taken[k] for k in used},
                least,
            )


def in_onnx(weight: Tensor, x: Tensor) -> Callable[[], Any]:
    """The convolution in ONNX Runtime, one thread."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "conv",
        [value("x", TensorProto.FLOAT, list(x.shape))],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.numpy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"x": x.numpy()}
    return lambda: session.run(None, given)


def convolutions(options: Any, peak: float, bandwidth: float) -> Any:
    """Rows of the convolutions."""
    for channels, size in CONVOLUTIONS:
        for sparsity in [s for s in options.sparsity if s != 0.95]:
            weight, x = masked((channels, channels, 3, 3), sparsity, 8), torch.randn(1, channels, size, size)
            packed = kernels.pack(weight, "8x1")
            last = {"memory_format": torch.channels_last}
            wl, xl = weight.to(**last), x.to(**last)
            calls: dict[str, Callable[[], Any]] = {
                "torch": lambda w=weight, x=x: F.conv2d(x, w, padding=1),
                "torch channels_last": lambda w=wl, x=xl: F.conv2d(x, w, padding=1),
                "ONNX Runtime": in_onnx(weight, x),
                "8x1": lambda p=packed, x=x: kernels.conv2d(x, p, padding=1),
            }
            taken = turns(calls, options.rounds * 3, options.threads)
            least = max(2 * int(packed.starts[-1]) * 8 * size * size / peak, packed.bytes / bandwidth)
            dense = {k: v for k, v in taken.items() if k != "8x1"}
            yield row(f"conv {channels}, {size}x{size}", sparsity, dense, {"8x1": taken["8x1"]}, least)


def target(found: dict[str, Any]) -> float | None:
    """What was asked for in a case."""
    name = found["case"] if not found["case"].startswith("conv") else "conv"
    goals = TARGETS.get(name, ())
    place = SPARSITIES.index(found["sparsity"])
    return goals[place] if place < len(goals) else None


def told(found: dict[str, Any]) -> tuple[str, ...]:
    """A row as text."""
    goal = target(found)
    return (
        found["case"],
        str(found["threads"]),
        f"{found['sparsity']:.0%}",
        f"{found['dense']}, {found['dense_ms']:.2f} ms",
        f"{found['form']}, {found['sparse_ms']:.2f} ms",
        f"{found['ratio']:.2f}",
        f"{found['roofline']:.1f}",
        f"{found['share']:.0%}",
        "" if goal is None else f"{goal:g}",
        "" if goal is None else ("yes" if found["ratio"] >= goal else "no"),
    )


HEAD = ("Case", "Threads", "Zeros", "Best dense", "Sparse", "Times faster", "Roofline", "Share", "Target", "Met")


def page(stored: dict[str, Any]) -> str:
    """docs/kernels.md."""
    from prunus.report.markdown import table

    order = {name: i for i, name in enumerate(("linear 1", "linear 64", "linear 256", "blocks 64"))}
    rows = sorted(
        stored["rows"].values(),
        key=lambda r: (r["threads"], order.get(r["case"], 9), r["case"].split(",")[0].rjust(9), r["sparsity"]),
    )
    machine = stored["machine"]
    return (
        "# What the sparse kernels gain\n\n"
        "<!-- Written by `python benchmarks/kernels.py --markdown`; run that instead of editing. -->\n\n"
        f"Machine: {machine['name']}, kernels of level {machine['level']}, {machine['peak'] / 1e9:.0f} GFLOP/s and\n"
        f"{machine['bandwidth'] / 1e9:.1f} GB/s from far memory in one thread, torch {machine['torch']}. "
        f"{machine.get('note', '')}\n\n"
        "*linear N* is a 4096 x 4096 float32 weight with random zeros at batch N, *blocks* has random blocks of 8\n"
        "output channels, *conv C, HxW* is a 3x3 convolution of C to C channels with such blocks. Dense is the\n"
        "fastest of PyTorch's calls (for convolutions, of both memory formats and ONNX Runtime), the sparse form\n"
        "the fastest of those that apply. The roofline is how many times faster it could be if its products ran at\n"
        "the peak and its packed weights were read at the bandwidth; share is how much of that is reached. The\n"
        "targets were set for a machine with AVX-512.\n\n"
        "With one thread each call comes after another library's, in processor time. With several each call is\n"
        "made until 10 ms have passed and only then timed, so packed weights that fit the last cache are in it,\n"
        "and the roofline, whose bandwidth is that of one thread from far memory, can be passed.\n\n"
        + table(HEAD, [told(r) for r in rows], right=(1, 2, 5, 6, 7, 8))
    )


def name_of_machine() -> str:
    """The processor, as Linux names it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure and print a line each."""
    parser = argparse.ArgumentParser(description="What the sparse kernels gain over dense calls.")
    parser.add_argument("--only", nargs="*", choices=("linear", "blocks", "conv"), default=("linear", "blocks", "conv"))
    parser.add_argument("--batch", type=int, nargs="*", default=(1, 64, 256))
    parser.add_argument("--sparsity", type=float, nargs="*", choices=SPARSITIES, default=SPARSITIES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", default="", help="said on the page beside the machine")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    if not kernels.available():
        print(f"the sparse kernels are not available: {kernels.reason()}")
        return
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    peak, bandwidth = limits()
    print(f"{peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s, level {kernels.level()}")
    stored: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    stored["machine"] = {
        "name": name_of_machine(),
        "level": kernels.level(),
        "peak": max(peak, stored.get("machine", {}).get("peak", 0)),
        "bandwidth": max(bandwidth, stored.get("machine", {}).get("bandwidth", 0)),
        "torch": torch.__version__,
        "note": options.note,
    }
    limit = stored["machine"]["peak"] * options.threads, stored["machine"]["bandwidth"]
    parts = {
        "linear": lambda: linear("linear", tuple(options.batch), options, *limit),
        "blocks": lambda: linear("blocks", (64,), options, *limit),
        "conv": lambda: convolutions(options, *limit),
    }
    for part in options.only:
        for found in parts[part]():
            found["threads"] = options.threads
            print("  ".join(told(found)), {k: round(v, 2) for k, v in found["all"].items()}, flush=True)
            stored["rows"][f"{found['case']}|{found['sparsity']}|{found['threads']}"] = found
            if options.markdown:
                RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
                PAGE.write_text(page(stored), encoding="utf-8")


if __name__ == "__main__":
    main()
