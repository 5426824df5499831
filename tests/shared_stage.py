"""`python -m seam`, with a checkpoint at every row, not every minute: for test_distributed.py."""

from seam.cli import main
from seam.training import loop

loop._CHECKPOINT_SECONDS = 0.0
main()
