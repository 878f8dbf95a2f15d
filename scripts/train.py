"""`gen train` from a checkout: python scripts/train.py --help, accelerate launch scripts/train.py digits."""

if __name__ == "__main__":
    from _run import main

    main(__file__)
