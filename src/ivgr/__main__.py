"""`python -m ivgr` is `ivgr`."""

from ivgr.cli import main

if __name__ == "__main__":
    main()
