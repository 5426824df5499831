"""`python -m seam`: what both workflow engines call."""

from seam.cli import main

if __name__ == "__main__":
    main()
