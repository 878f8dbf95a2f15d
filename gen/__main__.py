"""`python -m gen VERB ...` is `gen VERB ...`."""

from gen.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
