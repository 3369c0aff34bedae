"""`python -m advprior` is the `advprior` command."""

from advprior.cli import main

if __name__ == "__main__":
    main()
