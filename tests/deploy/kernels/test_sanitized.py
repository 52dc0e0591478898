"""The library compiled with the sanitizers of addresses and undefined behaviour, or of threads, fed with random cases.

The sanitized library is loaded into a process of its own, in which the sanitizer's runtime is loaded first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prunus.deploy.kernels import build

ROOT = Path(__file__).resolve().parents[3]
FUZZ = """
import sys, random
import torch
import torch.nn.functional as F
from prunus.deploy import kernels
assert kernels.available(), kernels.reason()
torch.set_num_threads(1)
count, seed = int(sys.argv[1]), int(sys.argv[2])
random.seed(seed); torch.manual_seed(seed)
acts = {"none": lambda v: v, "relu": F.relu, "gelu": F.gelu}
for case in range(count):
    form = random.choice(["csr", "rows", "bitmask", "bitrows", "4x1", "8x1", "16x1"])
    rows, sparsity = random.choice([1, 3, 16, 64, 65, random.randint(1, 150)]), random.choice([0, .5, .9, .99, 1])
    act, threads = random.choice(list(acts)), random.choice([1, 2, 3])
    dtype = random.choice([torch.float32, torch.float32, torch.bfloat16])
    if random.random() < 0.6:
        shape = (rows, random.choice([1, 7, 64, 96, 97, 128, 129, random.randint(1, 700)]))
        x = torch.randn(random.choice([0, 1, 2, 8, 9, 64, random.randint(1, 140)]), shape[1])
    else:
        channels, kernel = random.randint(1, 9), (random.randint(1, 4), random.randint(1, 4))
        shape = (rows, channels, *kernel)
        x = torch.randn(random.randint(1, 3), channels, random.randint(8, 30), random.randint(8, 30))
    weight = torch.randn(shape) * (torch.rand(shape) >= sparsity)
    if x.numel() and random.random() < 0.2:
        x.view(-1)[random.randrange(x.numel())] = random.choice([float("nan"), float("inf")])
    packed = kernels.pack(weight, form, dtype)
    packed.check()
    dense = packed.dense()
    assert torch.equal(dense, weight.to(dtype))
    bias = torch.randn(rows) if random.random() < 0.5 else None
    b = None if bias is None else bias.double()
    if len(shape) == 2:
        y, exact = kernels.linear(x, packed, bias, act, threads), F.linear(x.double(), dense.double(), b)
    else:
        s, p, d = random.randint(1, 3), random.randint(0, 3), random.randint(1, 2)
        y = kernels.conv2d(x, packed, bias, s, p, d, act, threads)
        exact = F.conv2d(x.double(), dense.double(), b, s, p, d)
    exact = acts[act](exact)
    good = exact.isfinite()
    assert torch.equal(y.isfinite(), good), (case, form, shape)
    scale = exact[good].abs().max().clamp_min(1e-6) if good.any() else 1
    off = (y[good] - exact[good]).abs().max() / scale if good.any() else 0
    assert off < 1e-5, (case, form, shape, float(off))
print("fine", count)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "runtime"), [("address,undefined", "libasan.so"), ("thread", "libtsan.so")])
def test_random_cases_under_sanitizers(tmp_path: Path, kind: str, runtime: str) -> None:
    cxx = build.compiler()
    if cxx is None:
        pytest.skip("no compiler")
    found = subprocess.run([*cxx.split(), f"-print-file-name={runtime}"], capture_output=True, text=True, check=True)
    preload = found.stdout.strip()
    if not Path(preload).is_file():
        pytest.skip(f"the compiler has no {runtime}")
    library = tmp_path / "libsanitized.so"
    build.build(library, cxx, [f"-fsanitize={kind}", "-fno-sanitize-recover=all", "-O1", "-g"])
    environment = {
        **os.environ,
        "PRUNUS_KERNEL_LIBRARY": str(library),
        "PRUNUS_KERNEL_THREADS": "own",  # the sanitizer does not see how an OpenMP runtime's threads wait
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66 ignore_noninstrumented_modules=1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    count = os.environ.get("PRUNUS_FUZZ", "400")
    command = [sys.executable, "-c", FUZZ, count, "1"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert run.returncode == 0 and "fine" in run.stdout, run.stderr[-4000:]
