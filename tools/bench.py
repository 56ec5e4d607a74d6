"""Benchmarks, each a ratio measured in one run: `python tools/bench.py tokenize --help`."""

from __future__ import annotations

import argparse

import bench_generate
import bench_quality
import bench_tokenize
import bench_trace

BENCHES = {
    "tokenize": bench_tokenize,
    "generate": bench_generate,
    "quality": bench_quality,
    "trace": bench_trace,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, bench in BENCHES.items():
        command = commands.add_parser(name, description=bench.__doc__)
        bench.options(command)
        command.set_defaults(run=bench.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
