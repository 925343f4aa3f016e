"""Times the training steps of a config in PyTorch; or compares the engine's losses and gradients with PyTorch's.

    step.py --config configs/voc.toml --device cuda --json OUT/torch.json      # rows of benches/step.rs, variants below
    step.py --device cpu --seconds 1 --threads 2 --tsv                         # what benches/compare.sh reads
    step.py --parity FILE.npz... --json FOLDER                                 # of `step --export FILE.npz`

Rows: `generator, K-stack` for K = 1, 2, 4 and `dual block B` for B = 1..4, named as in benches/step.rs. Variants:

    eager       launch by launch
    graphed     the same, the whole step captured as one CUDA graph
    units       torch.compile (max-autotune) of every kind of residual unit, the whole step captured as one CUDA graph:
                minutes less to compile than
    compile     torch.compile (max-autotune, its own CUDA graphs) of the whole loss, as one graph

each also `folded`, with the teachers' batch norms folded into their convolutions, and the compiled ones `cpp`, with
Inductor's C++ wrapper. On a GPU all are channels_last under
bf16 autocast, with TF32 for what stays f32, and cudnn.benchmark. On a CPU all are f32, and `nchw` names the other
memory format. A step is forward, backward and the fused Adam on random data. Times are taken between CUDA events after
successive steps (on a CPU from the clock); peak memory is PyTorch's own count.

With --limit every job runs in a worker process, which is ended when the job takes longer. The JSON file is written
after every job, and jobs that it or a --done file already has are not repeated. After --budget seconds no job starts.
"""

import argparse
import gc
import json
import os
import pathlib
import signal
import statistics
import sys
import time
import traceback

GENERATORS, BLOCKS = (2, 4, 1), (1, 2, 3, 4)
ROWS = [f"generator, {k}-stack" for k in GENERATORS] + [f"dual block {b}" for b in BLOCKS]
KINDS = ("eager", "graphed", "units", "compile")
DEFAULT = {
    "cuda": "eager folded,eager,units folded,compile folded,graphed folded,units,compile",
    "cpu": "eager folded,eager,eager folded nchw,eager nchw",
}
HERE = pathlib.Path(__file__).resolve().parent
WARM_UPS, LEAST, MOST = 5, 10, 100


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", default=str(HERE.parent / "step.toml"))
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config, as dfka-engine's")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--rows", default="", help="row names separated by ';', or a part of them")
    p.add_argument("--variants", help="separated by commas, in order of their worth")
    p.add_argument("--seconds", type=float, default=2.0, help="of repeats a job")
    p.add_argument("--threads", type=int, default=0, help="of the CPU; 0: PyTorch's choice")
    p.add_argument("--limit", type=float, default=0.0, help="seconds a job; 0: none, and no worker process")
    p.add_argument("--budget", type=float, default=float("inf"), help="seconds in all")
    p.add_argument("--json", help="results, kept up to date; of --parity the folder of one file each")
    p.add_argument("--done", action="append", default=[], metavar="JSON", help="results of an earlier call, if it is there")
    p.add_argument("--tsv", action="store_true", help="row, variant, median, least, processor time; tab-separated, in ms")
    p.add_argument("--tiny", action="store_true", help="a small network and batch, to show that all of it runs")
    p.add_argument("--parity", nargs="+", metavar="NPZ", help="compare exports with PyTorch, exit code 1 if one misses")
    return p.parse_args()


def jobs(args):
    """Pairs (row, variant): first the eager ones, which take seconds, then the others in the variants' order."""
    wanted = [part.strip() for part in args.rows.split(";")]
    rows = [row for row in ROWS if any(part in row for part in wanted)]
    variants = [v.strip() for v in (args.variants or DEFAULT[args.device]).split(",")]
    for v in variants:
        if v.split()[0] not in KINDS or set(v.split()[1:]) - {"folded", "nchw", "cpp"}:
            sys.exit(f"step.py: unknown variant {v!r}")
    quick = [(row, v) for row in rows for v in variants if v.startswith("eager")]
    slow = [(row, v) for v in variants for row in rows if not v.startswith("eager")]
    return quick + slow


# ---- one job ----


def setup(args):
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return torch


def measure(args, row, variant):
    """The result of a job; raises what PyTorch raises."""
    import torch

    import nets

    kind, *words = variant.split()
    on_gpu = args.device == "cuda"
    torch.manual_seed(1)
    config = nets.Config(args.config, args.set, args.tiny)
    place = nets.Place(args.device, "folded" in words, "nchw" not in words, autocast=on_gpu)
    compiled = kind in ("units", "compile")
    if compiled:
        import torch._inductor.config

        torch._inductor.config.cpp_wrapper = "cpp" in words
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    number = int("".join(filter(str.isdigit, row)))
    build = nets.GeneratorStep if row.startswith("generator") else nets.DualStep
    with torch.device(args.device):
        step = build(config, number, place, kind)
    batch = step.batch
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    begin = time.perf_counter()
    step()
    wait()
    first = time.perf_counter() - begin
    if on_gpu and kind in nets.CAPTURED:
        step = nets.captured(step)
    for _ in range(WARM_UPS if on_gpu else 2):
        mark_step(torch, kind)
        begin = time.perf_counter()
        step()
        wait()
        once = time.perf_counter() - begin
    if args.tiny:
        count = 2
    elif on_gpu:
        count = int(min(MOST, max(LEAST, args.seconds / once)))
    else:
        count = None
    times, cpu = (on_cuda if on_gpu else on_cpu)(torch, step, kind, count, args.seconds)
    times.sort()
    at = lambda share: times[round((len(times) - 1) * share)]
    result = {
        "ms": statistics.median(times),
        "p10": at(0.1),
        "p90": at(0.9),
        "least": times[0],
        "n": len(times),
        "first_s": first,
        "batch": batch,
        "images_s": 1e3 * batch / statistics.median(times),
    }
    if on_gpu:
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
        result["reserved_bytes"] = torch.cuda.max_memory_reserved()
    else:
        result["cpu_ms"] = cpu
    if compiled:
        from torch._dynamo.utils import counters

        result["cudagraph_skips"] = counters["inductor"]["cudagraph_skips"] if kind == "compile" else 0
        torch._dynamo.reset()
        counters.clear()
    return result


def mark_step(torch, kind):
    if kind == "compile":
        torch.compiler.cudagraph_mark_step_begin()


def on_cuda(torch, step, kind, count, _):
    """Intervals between events after successive steps: the device waits for the host only if the host is slower."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        mark_step(torch, kind)
        step()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(events, events[1:])], None


def on_cpu(torch, step, kind, count, seconds):
    times, cpu, start = [], [], time.perf_counter()
    while len(times) < count if count else not times or time.perf_counter() - start < seconds:
        mark_step(torch, kind)
        began, busy = time.perf_counter(), time.process_time()
        step().item()
        times.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - busy))
    return times, min(cpu)


def attempt(args, row, variant):
    try:
        return measure(args, row, variant)
    except Exception as e:
        traceback.print_exc()
        lines = str(e).strip().splitlines()
        return {"error": f"{type(e).__name__}: {lines[0][:300] if lines else ''}"}
    finally:
        gc.collect()


def worker(args, pipe):
    # The worker leads a process group, so that the compiler's helper processes end with it.
    os.setsid()
    torch = setup(args)
    about = {"torch": torch.__version__, "device": "cpu", "cuda": torch.version.cuda}
    if args.device == "cuda":
        about["device"] = torch.cuda.get_device_name()
        about["cudnn"] = torch.backends.cudnn.version()
    pipe.send(about)
    while (job := pipe.recv()) is not None:
        pipe.send(attempt(args, *job))


class Workers:
    """Runs jobs in a process that is replaced when one takes too long or dies."""

    START = 90.0

    def __init__(self, args):
        import multiprocessing

        self.args, self.context, self.process = args, multiprocessing.get_context("spawn"), None

    def start(self):
        """Starts a worker; returns its versions and device, or an error."""
        self.pipe, end = self.context.Pipe()
        self.process = self.context.Process(target=worker, args=(self.args, end))
        self.process.start()
        end.close()
        return self.answer(self.START, "starting PyTorch")

    def answer(self, limit, what):
        try:
            if self.pipe.poll(limit):
                return self.pipe.recv()
            error = f"cut: {what} took longer than {limit:.0f} s"
        except EOFError:
            self.process.join(5)
            error = f"the process died with exit code {self.process.exitcode}"
        self.end()
        return {"error": error}

    def run(self, row, variant, limit):
        if self.process is None and (about := self.start()).get("error"):
            return about
        self.pipe.send((row, variant))
        return self.answer(limit, "the job")

    def end(self):
        if self.process is None:
            return
        try:
            # The worker's group has the worker's number, which no other process gets before the join below.
            # This fails if the group does not exist yet, or has ended.
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.join()
        self.process = None


# ---- all jobs ----


def save(path, results):
    if path:
        temporary = f"{path}.part"
        with open(temporary, "w") as f:
            json.dump(results, f, indent=1)
        os.replace(temporary, path)


def bench(args):
    begin = time.monotonic()
    results = {"config": args.config, "set": args.set, "tiny": args.tiny, "rows": []}
    if args.json and os.path.exists(args.json):
        with open(args.json) as f:
            results = json.load(f)
    earlier = []
    for path in filter(os.path.exists, args.done):
        with open(path) as f:
            earlier += json.load(f)["rows"]
    measured = lambda job: any((r["row"], r["variant"]) == job and "ms" in r for r in [*earlier, *results["rows"]])
    workers = None
    if args.limit > 0:
        workers = Workers(args)
        about = workers.start()
        if "error" in about:
            sys.exit(f"step.py: {about['error']}")
        results.update(about)
    else:
        torch = setup(args)
        results.update({"torch": torch.__version__, "device": args.device})
    for row, variant in jobs(args):
        if measured((row, variant)):
            continue
        left = args.budget - (time.monotonic() - begin)
        if left < 5:
            result = {"error": "not started: no time left"}
        elif workers:
            result = workers.run(row, variant, min(args.limit, left))
            if variant.split()[0] in ("units", "compile"):
                # Memory that a compiler keeps would count for the next job.
                workers.end()
        else:
            result = attempt(args, row, variant)
        results["rows"] = [r for r in results["rows"] if (r["row"], r["variant"]) != (row, variant)]
        results["rows"].append({"row": row, "variant": variant, **result})
        save(args.json, results)
        show(args, row, variant, result)
    if workers:
        workers.end()
    save(args.json, results)
    # Exit code 1 if every job failed.
    return 0 if not results["rows"] or any("ms" in r for r in results["rows"]) else 1


def show(args, row, variant, r):
    if args.tsv:
        if "error" in r:
            print(f"{row} {variant}: {r['error']}", file=sys.stderr)
        else:
            print(f"{row}\t{variant}\t{r['ms']:.2f}\t{r['least']:.2f}\t{r.get('cpu_ms') or 0:.2f}", flush=True)
        return
    if "error" in r:
        text = r["error"]
    else:
        text = f"{r['ms']:9.3f} ms ({r['p10']:.3f} to {r['p90']:.3f}, n {r['n']})  {r['images_s']:8.0f} images/s"
        if "peak_bytes" in r:
            text += f"  {r['peak_bytes'] / 1e9:6.2f} GB"
        text += f"  first step {r['first_s']:.1f} s"
        if r.get("cudagraph_skips"):
            text += f"  CUDA graphs skipped {r['cudagraph_skips']} times"
    print(f"{row:20} {variant:22} {text}", flush=True)


# ---- parity ----

F32_BAR, BF16_BAR = 1e-5, 0.999


def parity(args, path):
    """Compares the engine's loss and gradients (StageOne::record_objective) with PyTorch's.

    The f32 bar applies to the loss and to the gradients at the levels. The bf16 bar applies to these gradients, against
    PyTorch's f32 or its bf16 autocast, whichever is nearer. It does not apply to the filters' own gradients: they are
    sums that cancel, in which PyTorch's f32 has an error of 1e-5 too. A cosine below the bar still exits with 0 if the
    deviation is at most a quarter larger than that of PyTorch's own bf16 from its f32, because in any bf16 program
    rounding moves some units to the other side of a ReLU's kink.
    """
    torch = setup(args)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    import nets

    found = nets.arrays(path)
    meta = json.loads(bytes(found.pop("__meta__").tolist()))
    config = argparse.Namespace(**meta["config"])
    device = args.device

    def evaluate(dtype, autocast):
        place = nets.Place(device, True, True, autocast, dtype)
        all_nets = []
        for m, labels in enumerate(config.labels):
            net = nets.ResNet(config.network, len(labels), True)
            take = lambda name: found[f"teacher{m}.{name}"]
            with torch.no_grad():
                for conv_name, norm_name, conv in net.convs():
                    conv.conv.weight.copy_(take(f"{conv_name}.weight"))
                    conv.conv.bias.copy_(take(f"{conv_name}.bias"))
                    conv.mean.copy_(take(f"{norm_name}.target_mean"))
                    conv.std.copy_(take(f"{norm_name}.target_std"))
                net.fc.weight.copy_(take("fc.weight"))
                net.fc.bias.copy_(take("fc.bias"))
            all_nets.append(place.frozen(net))
        filters = []
        for level in meta["levels"][:-1]:
            own = []
            for m in range(len(all_nets)):
                f = nets.Filter(config.network["widths"][level - 1], config.reduction)
                with torch.no_grad():
                    for layer, name in ((f.reduce, "fc1"), (f.expand, "fc2")):
                        layer.weight.copy_(found[f"filter{level}.{m}.{name}.weight"])
                        layer.bias.copy_(found[f"filter{level}.{m}.{name}.bias"])
                own.append(place.put(f))
            filters.append(own)
        leaves, levels = [], []
        for level in meta["levels"]:
            # Stored NHWC; a leaf in the type of the computation, as the generator's output is.
            x = found[f"level{level}"].permute(0, 3, 1, 2).to(device, dtype)
            leaves.append(place.laid(x).requires_grad_())
            levels.append(leaves[-1].to(torch.bfloat16) if autocast else leaves[-1])
        wanted = found["wanted"].to(device, dtype) if "wanted" in found else None
        with place.context():
            loss, terms, _ = nets.objective(config, all_nets, filters, levels, meta["levels"], wanted, 0)
        loss.backward()
        named = {f"level{n}": leaf.grad.permute(0, 2, 3, 1).double().cpu() for n, leaf in zip(meta["levels"], leaves)}
        for level, own in zip(meta["levels"], filters):
            for m, f in enumerate(own):
                named[f"filter{level}.{m}.fc1.weight"] = f.reduce.weight.grad.double().cpu()
        return loss.double().item(), {k: v.double().item() for k, v in terms.items()}, named

    is_bf16 = meta["precision"] == "bf16"
    f64 = evaluate(torch.float64, False)
    f32 = evaluate(torch.float32, False)
    bf16 = evaluate(torch.float32, True)
    ours = {name: found[f"gradient.{name}"].double() for name in f32[2]}
    loss = float(found["loss"].reshape(()))
    relative = lambda a, b: abs(a - b) / max(abs(b), 1e-30)
    worst = lambda a, b: ((a - b).abs().max() / b.abs().max()).item()
    cosine = lambda a, b: (a.flatten() @ b.flatten() / (a.norm() * b.norm())).item()
    print(f"{meta['device']} in {meta['precision']} against PyTorch {torch.__version__} on {device}, batch {meta['batch']}")
    print(f"\n{'loss':24} {'ours':>14} {'torch f64':>14} {'ours-f64':>10} {'f32-f64':>10} {'bf16-f64':>10}")
    terms = {"loss": (loss, f64[0], f32[0], bf16[0])}
    for name in f64[1]:
        terms[name] = (float(found[f"metric.{name}"].reshape(())), f64[1][name], f32[1][name], bf16[1][name])
    for name, (a, ref, single, half) in terms.items():
        errors = " ".join(f"{relative(v, ref):10.1e}" for v in (a, single, half))
        print(f"{name:24} {a:14.7g} {ref:14.7g} {errors}")
    print(f"\n{'gradient of':24} {'max rel. error to torch f32':>28} {'f64':>10} {'(torch f32-f64)':>16}", end=" ")
    print(f"{'cosine to torch f32':>20} {'bf16':>10} {'(torch bf16-f32)':>17}")
    levels = [name for name in ours if name.startswith("level")]
    for name, g in ours.items():
        single, double, half = f32[2][name], f64[2][name], bf16[2][name]
        print(f"{name:24} {worst(g, single):28.2e} {worst(g, double):10.2e} {worst(single, double):16.2e}", end=" ")
        print(f"{cosine(g, single):20.6f} {cosine(g, half):10.6f} {cosine(half, single):17.6f}")
    error = max(worst(ours[name], f32[2][name]) for name in levels)
    # The cosine to PyTorch in either type, whichever is nearer; and the cosine of these two to each other.
    nearest = lambda name: max(cosine(ours[name], of[2][name]) for of in (f32, bf16))
    similar = {name: (nearest(name), cosine(bf16[2][name], f32[2][name])) for name in levels}
    least = min(similar, key=lambda name: similar[name][0])
    off = relative(loss, f32[0])
    if is_bf16:
        bar, passed = f"cosine at least {BF16_BAR}", similar[least][0] >= BF16_BAR
        tolerable = all(1 - a <= max(1 - BF16_BAR, 1.25 * (1 - b)) for a, b in similar.values())
    else:
        bar, passed = f"relative error at most {F32_BAR:.0e}", max(error, off) <= F32_BAR
        tolerable = passed
    result = "reached" if passed else "MISSED"
    print(f"\nparity {meta['precision']}: {bar}: {result} (loss {off:.1e}, levels {error:.1e}, ", end="")
    print(f"cosine {similar[least][0]:.6f} at {least}, where PyTorch's own bf16 has {similar[least][1]:.6f})\n", flush=True)
    if args.json:
        row = {"precision": meta["precision"], "device": meta["device"], "loss": off, "error": error, "passed": passed}
        row.update(cosine=similar[least][0], level=least, torch_cosine=similar[least][1])
        save(str(pathlib.Path(args.json) / pathlib.Path(path).with_suffix(".json").name), row)
    return 0 if tolerable else 1


def main():
    args = arguments()
    sys.path.insert(0, str(HERE))
    sys.exit(max(parity(args, path) for path in args.parity) if args.parity else bench(args))


if __name__ == "__main__":
    main()
