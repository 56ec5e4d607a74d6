"""`llmcli`, and `python -m llmcli`: Ctrl-C is answered even while there is nothing to run yet."""

import sys


def main() -> None:
    """Run the command line, interrupted or not."""
    try:
        from llmcli.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
