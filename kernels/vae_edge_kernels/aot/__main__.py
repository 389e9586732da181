"""`python -m vae_edge_kernels.aot`: the ahead-of-time compiler as a command."""

import sys

from vae_edge_kernels.aot import main

sys.exit(main())
