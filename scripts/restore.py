"""`gen restore` from a checkout: python scripts/restore.py --help."""

if __name__ == "__main__":
    from _run import main

    main(__file__)
