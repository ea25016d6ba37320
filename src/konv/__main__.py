"""``python -m konv`` is the command ``konv``."""

from konv.cli import main

if __name__ == "__main__":
    main()
