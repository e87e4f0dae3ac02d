"""Images per second and memory of 1, 2, and 4 workers on one machine: strong and weak scaling.

    python -m benchmarks.scale.scaling --rounds 3

Strong scaling fixes the global batch; weak scaling fixes the batch per worker. One worker uses all cores of the
machine, and several share them, so any loss is the cost of splitting the work, without a network. All settings take
turns, so that changes in the machine's speed affect all of them, and medians are compared.
"""

import statistics

from benchmarks.program import train
from benchmarks.record import new_parser, write_json
from vgg_ddp.machine.limits import usable_cores

WORKERS = (1, 2, 4)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--batch-size", type=int, default=128, help="largest global batch; default: %(default)s")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    batch_sizes = {
        "strong": dict.fromkeys(WORKERS, options.batch_size),
        "weak": {count: options.batch_size * count // WORKERS[-1] for count in WORKERS},
    }
    flags = ["--data", options.data, "--recipe", "classic", "--epochs", 1, "--precision", options.precision]
    speeds: dict[str, dict[int, list[float]]] = {kind: {count: [] for count in WORKERS} for kind in batch_sizes}
    memory: dict[str, dict[int, int]] = {kind: dict.fromkeys(WORKERS, 0) for kind in batch_sizes}
    for number in range(options.rounds):
        for kind, sizes in batch_sizes.items():
            for count, batch_size in sizes.items():
                trained = train(*flags, "--num-workers", count, "--batch-size", batch_size, watch_memory=True)
                speeds[kind][count].append(trained.rows[0]["images_per_second"])
                memory[kind][count] = max(memory[kind][count], trained.peak_memory_bytes)
                speed = speeds[kind][count][-1]
                print(f"round {number + 1}: {kind:<6} {count} worker(s) {speed:8.1f} images/s", flush=True)
    print(f"\nmedian of {options.rounds}, {options.data}, {options.precision}, {usable_cores()} cores\n")
    for kind, sizes in batch_sizes.items():
        one = statistics.median(speeds[kind][1])
        for count, batch_size in sizes.items():
            speed = statistics.median(speeds[kind][count])
            print(
                f"  {kind:<6} {count} worker(s), global batch {batch_size:>4}: {speed:8.1f} images/s, "
                f"{speed / one:4.2f} x one worker, {memory[kind][count] / 1e6:,.0f} MB per worker"
            )
    settings = {"data": options.data, "precision": options.precision, "batch_sizes": batch_sizes, "n": options.rounds}
    write_json(options.json, {"settings": settings, "images_per_second": speeds, "peak_memory_bytes": memory})


if __name__ == "__main__":
    main()
