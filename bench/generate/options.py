"""The options of the command `generate`."""

from typing import Any

from bench.measuring_options import AddCommand, device_options, words
from perfmodel.arguments import count, counts, output_options, size


def add_generate(subparsers: Any, add_command: AddCommand) -> None:
    summary = "whole generations of a LLaMA beside their prediction, FP16, GPTQ and the paper"
    run = ("bench.generate.command", "cmd_generate")
    parser = add_command(subparsers, "generate", summary, run=run)
    parser.add_argument(
        "--model", default="llama-7b", help="preset, config.json or checkpoint folder (llama-7b)"
    )
    parser.add_argument(
        "--weights", type=words, metavar="NAMES",
        help="formats of random weights; default: the paper's, or a checkpoint's own weights",
    )  # fmt: skip
    parser.add_argument(
        "--new", type=counts, default=[128, 1024], metavar="N,N", help="tokens (128,1024)"
    )
    parser.add_argument("--prompt", type=size, default=0, help="tokens cached before (0)")
    parser.add_argument(
        "--stack", type=words, default=["memwall"], metavar="NAMES",
        help="memwall (ours), hf-eager (transformers: growing cache, no graph, as in the papers)",
    )  # fmt: skip
    parser.add_argument("--layers", type=count, help="only so many blocks of the model")
    parser.add_argument("--runs", type=count, default=3, help="generations of each kind (3)")
    parser.add_argument(
        "--hardware", metavar="NAME", help="device to predict for (this one, where it is known)"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="stop by then (30)")
    parser.add_argument(
        "--check", type=count, metavar="N",
        help="measure nothing: compare N tokens of a checkpoint with its dequantized model",
    )  # fmt: skip
    device_options(parser)
    output_options(parser)
