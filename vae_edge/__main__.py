"""`python -m vae_edge` is `vae-edge`."""

import sys

from vae_edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
