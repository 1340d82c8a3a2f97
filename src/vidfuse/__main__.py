"""`python -m vidfuse`: the command line, also under launchers such as `torchrun -m vidfuse`."""

from __future__ import annotations

from vidfuse.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="vidfuse")
